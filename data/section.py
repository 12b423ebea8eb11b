"""The base of all config sections, and the types of their values.

Paths may start with `~` and contain environment variables, written `$NAME` or `${NAME}` on every platform (an
addition of ours to the dialect). `engine.config.load_config` replaces those that are set and leaves the others as they
stand, so that a model can be built or a config looked at without the data; `require_variables`, called by whoever is
about to use them, names the variable that is missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from data.errors import UserError

RULES_LATER = {"rules": "later"}
"""Context of a validation after which `broken_rules` is called."""
LOADING = RULES_LATER | {"paths": "expand"}
"""The same, writing out `~` and environment variables in paths."""
_MAX_NAME_BYTES = 255
"""Of a file or folder, on all common file systems."""
_VARIABLE = re.compile(r"\$(?=\{\w+\}|[^\W\d])\{?(\w+)\}?")
_Text = TypeVar("_Text", str, Path)


def expand_path(text: str) -> str:
    """Write out `~` and the environment variables that are set."""
    return _VARIABLE.sub(lambda match: os.environ.get(match[1]) or match[0], os.path.expanduser(text))


def checked_path(value: _Text, info: ValidationInfo) -> _Text:
    """Refuse what no file can be called; while loading, write out what stands for something else."""
    text = str(value)
    if info.context == LOADING and (expanded := expand_path(text)) != text:
        text, value = expanded, type(value)(Path(expanded).as_posix())
    if "\0" in text or any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in Path(text).parts):
        fault = f"{text[:40]!r}... is no path; a name in it has a NUL or more than {_MAX_NAME_BYTES} bytes"
        raise PydanticCustomError("rule", "{fault}", {"fault": fault})
    return value


PositiveInt = Annotated[int, Field(ge=1, le=1_000_000)]
NonNegativeInt = Annotated[int, Field(ge=0, le=1_000_000_000)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Chance = Annotated[Fraction, Field(description="Chance per image.")]
Grey = Annotated[int, Field(ge=0, le=255)]
Pair = tuple[float, float]


def must(holds: Callable[[Any], bool], text: str) -> AfterValidator:
    """Refuse values that do not hold, in the words of `text`, where `{}` is the value."""

    def check(value: Any, info: ValidationInfo) -> Any:
        if holds(value):
            return value
        fault = text.format(list(value) if isinstance(value, tuple) else value)
        if op := info.data.get("type"):
            fault = f"{op} {info.field_name} {fault}"
        raise PydanticCustomError("rule", "{fault}", {"fault": fault})

    return AfterValidator(check)


RISING = must(lambda numbers: list(numbers) == sorted(numbers), "{} must rise")


def within(least: float, most: float = float("inf")) -> AfterValidator:
    """Refuse ranges that fall or go beyond these limits."""
    limits = f"expected {least:g} <= low <= high <= {most:g}"
    return must(lambda pair: least <= pair[0] <= pair[1] <= most, f"{{}} is no possible range, {limits}")


PortablePath = Annotated[
    Path, AfterValidator(checked_path), PlainSerializer(lambda path: path.as_posix(), return_type=str)
]
"""A path, dumped with forward slashes: a config written on Windows can be read elsewhere."""


def require_variables(paths: Mapping[str, Path]) -> None:
    """Raise UserError if a path still holds `$NAME`, that is, NAME was not set when the config was read.

    `paths` are by dotted key, for the message.
    """
    problems = [
        f"{key}: {path.as_posix()} needs the environment variable {name}; set {name} to the data's folder, or give the "
        f"path: -u {key}=PATH"
        for key, path in paths.items()
        if not os.path.exists(path)
        for name in _VARIABLE.findall(str(path))
    ]
    if problems:
        raise UserError("The config does not say where the data are:", problems)


class Section(BaseModel):
    """A part of the config: frozen, and strict about its keys.

    Its docstring and those below its fields are what docs/reference/config.md says about it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    without_effect: ClassVar[tuple[str, ...]] = ()
    """Official keys that are accepted and do nothing here; every other unknown key is an error."""
    only: ClassVar[dict[str, Any]] = {}
    """Official keys with the one value that is built here: it is dropped, another is an error."""
    repeats: ClassVar[tuple[str, ...]] = ()
    """Keys of the top level that may stand here too; the top level wins (docs/deimv2.md, Sections and objects)."""

    def rules(self) -> Iterator[str]:
        """Yield "key: fault" for each broken rule between fields, the key as seen from this section."""
        yield from ()

    @model_validator(mode="after")
    def _check_rules(self, info: ValidationInfo) -> Self:
        """Refuse broken rules, unless whoever validates the whole config lists those of all sections together."""
        if not (info.context and "rules" in info.context) and (faults := list(self.rules())):
            raise ValueError("; ".join(faults))
        return self


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a type names, however deep in it."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def broken_rules(section: Section, prefix: str = "") -> Iterator[str]:
    """Yield a line, with its dotted key, for each broken rule of a section and of the sections inside it."""
    for name, value in section:
        inside = {f"[{i}]": item for i, item in enumerate(value)} if isinstance(value, tuple) else {"": value}
        for index, item in inside.items():
            if isinstance(item, Section):
                yield from broken_rules(item, f"{prefix}{name}{index}.")
    yield from (prefix + fault for fault in section.rules())
