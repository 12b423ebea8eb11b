"""DEIMv2's YAML dialect: safe reading, `__include__`, deep merge, `a.b=c` overrides (spec sections 11.1, 11.2).

Everything here works on plain dicts, knows nothing of the config's fields and returns fresh objects: reading one
config never changes what the next one sees. Differences from the original, all on purpose: the loader is safe,
`1e-4` is a number, duplicate keys are errors, dates stay strings, `__include__` is not in the result.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.errors import UserError

INCLUDE = "__include__"
MAX_FILE_BYTES = 200_000
MAX_NODES = 100_000
"""Nodes of one file with every alias written out; the whole DEIMv2-S config has about 300."""
MAX_FILES = 100
"""Files one config may read, repeated ones counted each time."""

SPELLINGS = {"epochs": "epoches", "lrscheduler": "lrsheduler"}
"""Right spellings of keys whose official name is misspelt; both are accepted, the official one is the result."""


class _Loader(yaml.SafeLoader):
    """The safe loader with DEIMv2's scalars: floats such as 1e-4 and no dates; see `_parse`."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                problem = f"found the key {key_node.value!r}, expected a name (put it in quotes if it is one)"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key_node.value in seen:
                problem = f"the key {key_node.value!r} is given twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_FLOAT_TAG, _DATE_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != _DATE_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT_TAG,
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
    """One file as a dict, includes not yet followed, spellings made official. An empty file is an empty dict.

    Raises:
        UserError: file missing, too large, not UTF-8, not YAML, an alias bomb, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: config file not found; check the path given with -c or in `{INCLUDE}`") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read this config file ({error.strerror or error})") from None
    if len(raw) > MAX_FILE_BYTES:
        raise UserError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes, so this is no config file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    content = _parse(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a {_kind(content)} at the top, expected `key: value` lines")
    return official_spelling(content, str(path))


def read_with_includes(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The merged config of `path` and its includes, and what the file itself states; `__include__` removed from both.

    Raises:
        UserError: as `read_yaml`, and for a bad or circular `__include__`.
    """
    return _Includes().read(path, ())


class _Includes:
    """Follows `__include__`; counts files so that files including one another twice cannot explode."""

    def __init__(self) -> None:
        self.files = 0

    def read(self, path: Path, parents: tuple[Path, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        here = path.expanduser().resolve()
        if here in parents:
            chain = " -> ".join(parent.name for parent in (*parents[parents.index(here) :], here))
            raise UserError(f"{path}: `{INCLUDE}` goes in a circle: {chain}; remove one of them")
        self.files += 1
        if self.files > MAX_FILES:
            raise UserError(f"{path}: more than {MAX_FILES} included files; something is included over and over")
        own = read_yaml(path.expanduser())
        merged: dict[str, Any] = {}
        for name in self._names(own.pop(INCLUDE, None), path):
            target = here.parent / Path(name).expanduser()
            if "\0" in name or not target.is_file():
                raise UserError(f"{path}: `{INCLUDE}` names {name!r}, but there is no file {target}; correct the path")
            merged = merge(merged, self.read(target, (*parents, here))[0])
        return merge(merged, own), own

    @staticmethod
    def _names(value: object, path: Path) -> list[str]:
        names = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise UserError(f"{path}: `{INCLUDE}` is {value!r}, expected a list of file names")
        return names


def parse_overrides(overrides: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """`["a.b=1", "c=[1, 2]"]` as one nested dict; later ones win. Values are YAML, read like the files.

    Args:
        overrides: What followed each `-u`.
        config: What they will be merged into; only looked at.

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
        try:
            value = _parse(text, f"-u {key}")
        except UserError as error:
            problems.append(str(error))
            continue
        for name in reversed(names):
            value = {name: value}
        result = merge(result, value)
    problems += [
        f"{path}: is a list, whose elements cannot be addressed (found .{key}); "
        f"give the whole list, such as -u '{path}=[...]', or write it in a config file"
        for path, key in _steps_into_lists(config, result, "")
    ]
    if problems:
        raise UserError("Bad override (-u):", problems)
    return official_spelling(result, "-u")


def official_spelling(content: dict[str, Any], source: str) -> dict[str, Any]:
    """`content` with the right spellings of `SPELLINGS` renamed to the official ones.

    Raises:
        UserError: both spellings stand side by side with different values.
    """
    result = dict(content)
    for right, official in SPELLINGS.items():
        if right not in result:
            continue
        value = result.pop(right)
        if official in result and result[official] != value:
            raise UserError(
                f"{source}: {right} is {value!r} but {official}, its other spelling, is {result[official]!r}; keep one"
            )
        result[official] = value
    return result


def leaf_paths(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of everything that is not a dict."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaf_paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def get_path(content: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path, or `default` where there is none."""
    value: Any = content
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value


def set_path(content: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path in place; the dicts on the way must be there."""
    *parents, last = path.split(".")
    for name in parents:
        content = content[name]
    content[last] = value


def _steps_into_lists(config: Any, overrides: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(config, list) and isinstance(overrides, dict):
        yield from ((path, key) for key in overrides)
    elif isinstance(config, Mapping) and isinstance(overrides, dict):
        for key, value in overrides.items():
            if key in config:
                yield from _steps_into_lists(config[key], value, f"{path}.{key}" if path else key)


def _parse(text: str, source: str) -> Any:
    """One YAML document as plain dicts, lists and scalars."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _expanded_nodes(node, {}, source) > MAX_NODES:
                raise UserError(
                    f"{source}: its aliases (*name) expand to more than {MAX_NODES:,} values; "
                    "write the values out instead"
                )
            content = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        what = "; ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{source}: bad YAML:{where} {what}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: bad YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UserError(f"{source}: bad YAML: nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{source}: bad YAML: a value cannot be read ({error})") from None
    return _plain(content, source)


def _expanded_nodes(node: yaml.Node, sizes: dict[int, int], source: str) -> int:
    """Nodes under `node` with aliases written out. `sizes` remembers each node once (0: still open)."""
    known = sizes.get(id(node))
    if known == 0:
        line = node.start_mark.line + 1
        raise UserError(f"{source}: bad YAML: line {line}: an alias (*name) contains itself")
    if known is not None:
        return known
    sizes[id(node)] = 0
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_expanded_nodes(part, sizes, source) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_expanded_nodes(part, sizes, source) for part in node.value)
    sizes[id(node)] = total
    return total


def _plain(value: Any, source: str) -> Any:
    """A copy without shared parts; refuses what plain YAML settings never hold."""
    if isinstance(value, dict):
        return {key: _plain(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, source) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{source}: found {value}, expected a finite number")
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise UserError(f"{source}: found a {_kind(value)}, expected plain text, numbers, lists and `key: value` pairs")


def _kind(value: object) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(
        type(value), type(value).__name__
    )
