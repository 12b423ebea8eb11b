"""Check the options of a script: what is wrong with any of them is said at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import UserError


class Options(BaseModel):
    """Options of a script. A field has the name of its option, or that as title, and as description what is expected
    there.

    Raises:
        UserError: Values that cannot be, or options that do not exist; all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, title="Options out of range")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            found = [line for one in error.errors() for line in self._problem(one, values).split("\n")]
            problems = dict.fromkeys(found)
            raise UserError(f"{self.model_config['title']}:", [*problems]) from None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Take the options out of what `argparse` read, which holds others, too."""
        return cls(**{name: value for name, value in given.items() if name in cls.model_fields})

    @classmethod
    def _problem(cls, error: Any, values: dict[str, Any]) -> str:
        name = error["loc"][0]
        if error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            meant = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(cls.model_fields)}"
            return f"{name}: no such option; {meant}"
        field, value = cls.model_fields[name], values[name]
        parts = value if isinstance(value, list | tuple) else [value]
        found = " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)
        reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else f"expected {field.description}"
        if reason.startswith("-"):
            return reason  # it names the option, as what is wrong with one of several values or with two options does
        return f"{field.title or '--' + name.replace('_', '-')} {found}: {reason}"
