"""DEIMv2's YAML dialect: safe reading, `__include__`, deep merge, `a.b=c` (docs/deimv2.md, Configuration dialect).

Everything here works on plain dicts, knows nothing of the config's fields and returns fresh objects: reading one
config never changes what the next one sees. Differences from the original, all on purpose: the loader is safe,
`1e-4` is a number, duplicate keys are errors, dates, 010 and 1:30 stay strings, `__include__` is not in the result.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from data.errors import UserError
from data.section import expand_path
from engine.named_files import config_not_found, did_you_mean

INCLUDE = "__include__"
MAX_FILE_BYTES = 200_000
MAX_VALUES = 100_000
"""Values of one file with every alias written out; the whole DEIMv2-S config has about 300."""
MAX_DEPTH = 200

RECIPE, OWN_FILE, OVERRIDE = 0, 1_000_000, 1_000_001
"""Ranks of what a recipe, the `-c` file and `-u` say; other included files have 1, 2, ... in the order of merging."""
_RECIPE_FILE = re.compile(r"(^|/)((base|dataset|deimv2)/[^/]+|runtime\.ya?ml|deimv2_\w+_coco\.ya?ml)$")
"""The files of `configs/` and of an official checkout that are made for no particular data and length of run."""


class Statement(NamedTuple):
    """Who says a value."""

    rank: int
    source: str
    """A file, or -u."""


SPELLINGS = {"epochs": "epoches", "lrscheduler": "lrsheduler"}
"""Right spellings of keys whose official name is misspelt; both are accepted, the official one is the result."""


_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """The safe loader with DEIMv2's scalars: floats such as 1e-4 and no dates. A key is a name, and given once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = None
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                problem = f"found the key {key.value!r}, expected a name (put it in quotes if it is one)"
            elif key.value in seen and key.tag != f"{_TAG}merge":
                problem = f"the key {key.value!r} is given twice; keep one"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_ODD_NUMBER = re.compile(r"[-+]?0[0-7_]+$|.*:")
"""What YAML 1.1 reads as another number than is meant: 010 as 8, 1:30 as 90."""


def _number(kind: str) -> Callable[[Any, Any], Any]:
    construct = yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"]
    return lambda loader, node: node.value if _ODD_NUMBER.match(node.value) else construct(loader, node)


_Loader.add_constructor(f"{_TAG}timestamp", lambda _, node: node.value)
_Loader.add_constructor(f"{_TAG}int", _number("int"))
_Loader.add_constructor(f"{_TAG}float", _number("float"))
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overlaid with `update`: dicts merge key by key, anything else (lists, null) is replaced.

    Returns a deep copy; neither argument is changed or shared.
    """
    merged = {key: copy.deepcopy(value) for key, value in base.items()}
    for key, value in update.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else copy.deepcopy(value)
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one file, includes not yet followed, spellings made official. An empty file is an empty dict.

    Raises:
        UserError: file missing, too large, not UTF-8, not YAML, an alias bomb, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        is_folder = isinstance(error, (IsADirectoryError, PermissionError)) and path.is_dir()  # Windows: the latter
        if is_folder or isinstance(error, FileNotFoundError):
            raise config_not_found(path) from None
        raise UserError(f"{path}: cannot read this config file ({error.strerror or error})") from None
    if len(raw) > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes, so this is no config file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if (content := _parse(text, str(path))) is None:
        return {}
    if not isinstance(content, dict):
        found = "list" if isinstance(content, list) else "text" if isinstance(content, str) else "single value"
        raise UserError(f"{path}: found a {found} at the top, expected `key: value` lines")
    return _official_spelling(content, str(path))


def read_with_includes(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the merged config of `path` and its includes, and the same tree with a `Statement` at every leaf.

    Raises:
        UserError: as `read_yaml`, and for a bad or circular `__include__`.
    """
    merged = itertools.count(1)

    def read(path: Path, parents: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        here = Path(os.path.realpath(path))
        if here in parents:
            chain = " -> ".join(parent.name for parent in (*parents[parents.index(here) :], here))
            raise UserError(f"{path}: `{INCLUDE}` goes in a circle: {chain}; remove one of them")
        own = read_yaml(path)
        values: dict[str, Any] = {}
        said: dict[str, Any] = {}
        for target in _includes_of(path, own.pop(INCLUDE, None)):
            values, said = map(merge, (values, said), read(target, (*parents, here)))
        order = next(merged)
        rank = OWN_FILE if not parents else RECIPE if _RECIPE_FILE.search(path.as_posix()) else order
        shown = os.path.normpath(path).removeprefix(f"{os.getcwd()}{os.sep}")
        return merge(values, own), merge(said, stated(own, Statement(rank, shown)))

    return read(Path(expand_path(str(path))), ())


def stated(content: Mapping[str, Any], by: Statement) -> dict[str, Any]:
    """Return the tree of `content` with `by` at every leaf."""
    return {key: stated(value, by) if isinstance(value, dict) else by for key, value in content.items()}


def included_experiments(path: Path) -> list[Path]:
    """List the files that a config includes itself, in order, but for the recipes."""
    files = _includes_of(path, read_yaml(path).get(INCLUDE))
    return [file for file in files if not _RECIPE_FILE.search(file.as_posix())]


def _includes_of(path: Path, names: Any) -> list[Path]:
    names = [names] if isinstance(names, str) else names or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path}: `{INCLUDE}` is {names!r}, expected a list of file names")
    targets = []
    for name in names:
        target = Path(os.path.realpath(path)).parent / expand_path(name)
        if not os.path.isfile(target):
            near = did_you_mean(target, target.parent.glob("*.y*ml")) if os.path.isdir(target.parent) else ""
            fix = near or "correct the path"
            raise UserError(f"{path}: `{INCLUDE}` names {name!r}, but there is no file {str(target)!r}; {fix}")
        targets.append(target)
    return targets


def parse_overrides(overrides: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Read `["a.b=1", "c=[1, 2]"]` as one nested dict; later ones win.

    A number, truth value, null, quoted text, or list or mapping in brackets is read as in a file; every other value is
    text, taken whole whatever it holds.

    Raises:
        UserError: listing every override that is not `key=value` or that steps into a list.
    """
    result: dict[str, Any] = {}
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        names = key.strip().split(".")
        if not equals or not all(name.strip() == name and name for name in names):
            problems.append(f"{override!r}: expected key=value, such as train_dataloader.num_workers=2")
            continue
        if key[-1].isspace():
            text = text.lstrip()  # `key = value`
        try:
            change: Any = _parse(text, f"-u {key}") if _is_typed(text) else text
        except UserError as error:
            problems.append(str(error))
            continue
        for depth in range(1, len(names)):
            if isinstance(get_path(config, path := ".".join(names[:depth])), list):
                problems.append(
                    f"{path}: is a list, whose elements cannot be addressed (found .{names[depth]}); "
                    f"give the whole list, such as -u '{path}=[...]', or write it in a config file"
                )
        for name in reversed(names):
            change = {name: change}
        result = merge(result, change)
    if problems:
        raise UserError("Bad override (-u):", problems)
    return _official_spelling(result, "-u")


def _is_typed(text: str) -> bool:
    """Whether the whole of `text` is one value of YAML that is no plain text."""
    text = text.strip()
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        return False
    if node is None:
        return not text
    if text[0] in "&!" or node.start_mark.index or node.end_mark.index < len(text):
        return False
    if isinstance(node, yaml.ScalarNode):
        plain = [f"{_TAG}{kind}" for kind in ("int", "float", "bool", "null")]
        return node.style in ("'", '"') or (node.style is None and node.tag in plain)
    return isinstance(node, yaml.CollectionNode) and bool(node.flow_style)


def as_override(key: str, text: str) -> str:
    """The override that sets `key` to exactly this text."""
    return f"{key}={json.dumps(text, ensure_ascii=False) if _is_typed(text) else text}"


def _official_spelling(content: dict[str, Any], source: str) -> dict[str, Any]:
    """`content`, which is changed, with the right spellings of `SPELLINGS` renamed to the official ones."""
    for right, official in SPELLINGS.items():
        if right in content and [value := content.pop(right)] != [other := content.setdefault(official, value)]:
            # Lists, since NaN differs from itself: the check of its field is to refuse it.
            text = f"{right} is {value!r} but {official}, its other spelling, is {other!r}"
            raise UserError(f"{source}: {text}; keep one")
    return content


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted path and value of everything that is not a dict."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def get_path(content: Any, path: str, default: Any = None) -> Any:
    """Return the value at a path such as `a.b[0].c`, or `default` where there is none."""
    try:
        for name in steps(path):
            content = content[name]
    except (KeyError, IndexError, TypeError):
        return default
    return content


def set_path(content: Any, path: str, value: Any) -> None:
    """Set the value at a path in place; the dicts and lists on the way must be there."""
    *parents, last = steps(path)
    for name in parents:
        content = content[name]
    content[last] = value


def steps(path: str) -> list[str | int]:
    """Split a path into names and positions in lists."""
    return [int(name[1:-1]) if name[0] == "[" else name for name in re.findall(r"\[\d+\]|[^.\[]+", path)]


def _parse(text: str, source: str) -> Any:
    """Read one YAML document as plain dicts, lists and scalars."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        require_few_values(node, source)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        parts = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
        raise UserError(f"{source}: bad YAML:{where} {'; '.join(parts) or str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(f"{source}: bad YAML: nested too deeply") from None
    except (ValueError, OverflowError, KeyError) as error:  # KeyError: a tag !!bool of what is none
        raise UserError(f"{source}: bad YAML: a value cannot be read ({error})") from None


def require_few_values(content: Any, source: str) -> None:
    """Raise UserError if `content`, a node of YAML or plain containers, is deep, circular or immense with its shared
    parts written out: copying, comparing or printing it would not end."""
    pending, count = [(content, 0)], 0
    while pending:
        part, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise UserError(f"{source}: nested too deeply, or an alias (*name) contains itself")
        if count > MAX_VALUES:
            raise UserError(
                f"{source}: its shared parts or aliases (*name) expand to more than {MAX_VALUES:,} values; write the "
                "values out instead"
            )
        part = part.value if isinstance(part, yaml.CollectionNode) else part
        inside = part.values() if isinstance(part, dict) else part if isinstance(part, (list, tuple)) else ()
        pending += [(item, depth + 1) for item in inside]
