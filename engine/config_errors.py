"""Pydantic's errors as lines for a person: dotted key, what was found, what is expected, what was meant."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from engine.official_keys import FIXED_KEYS, FIXED_PATHS

MOVED_KEYS = {
    "lr": "optimizer.lr",
    "batch_size": "train_dataloader.total_batch_size",
    "ema_decay": "ema.decay",
    "ema_warmups": "ema.warmups",
}
"""Keys that people expect at the top level, and where they are."""

_MAX_LINES = 100

_PLAIN_WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid array": "a list",
    "a valid string": "text",
    "a valid boolean": "True or False",
    "an object": "`key: value` pairs",
    "Tuple should have at most": "a list of at most",
    " item after validation": " item",
    " items after validation": " items",
    "greater than": "a number greater than",
    "less than": "a number less than",
}


def describe(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Say each fault in one line, in the order of the config; several tries of one union share a line."""
    keys = frozenset([*FIXED_KEYS, *(key for key, *_ in every_field(model))])
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        if len(lines) == _MAX_LINES:
            return [*lines.values(), "and more; correct these first"]
        if fault["type"] == "json_invalid":
            return ["nested too deeply, or with text that is no Unicode"]
        shown, schema_path = _locate(fault["loc"], values)
        if fault["type"] == "extra_forbidden":
            only = FIXED_PATHS.get(schema_path)
            found = f"found {_short(fault['input'])}, expected {only!r}"
            lines[shown] = f"{shown}: {f'unknown key{suggestion(schema_path, keys)}' if only is None else found}"
            continue
        message = _message(fault["type"], fault["msg"], fault["input"])
        expected = message.rpartition("expected ")[2]
        if shown not in lines:
            lines[shown] = f"{shown}: {message}"
        elif expected not in lines[shown]:
            lines[shown] += f" or {expected}"
    return list(lines.values())


def _message(kind: str, text: str, found: Any) -> str:
    if kind == "rule":
        return text
    if kind == "missing":
        return "missing; give it in the config file or with -u"
    if kind in ("unsupported", "pattern"):
        return f"found {_short(found)}: {text}"
    expected = {
        "model_type": "a section of `key: value` lines",
        "model_attributes_type": "a section of `key: value` lines",
        "union_tag_not_found": "an op with a `type`",
        "union_tag_invalid": f"one of the types {text.rpartition(': ')[2]}",
    }.get(kind, text.removeprefix("Input should be ").removeprefix("Value error, "))
    for technical, plain in _PLAIN_WORDS.items():
        expected = expected.replace(technical, plain)
    return f"found {_short(found)}, expected {expected}"


def suggestion(schema_path: str, keys: frozenset[str]) -> str:
    """Name the nearest key of the same section, else the same key elsewhere unless it stands in a list's item, else the
    section's keys if few."""
    parent, _, name = schema_path.rpartition(".")
    siblings = {
        key.rpartition(".")[2].lower(): key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == parent
    }
    if not parent and name in MOVED_KEYS:
        return f"; did you mean {MOVED_KEYS[name]}?"
    if near := difflib.get_close_matches(name.lower(), siblings, n=1, cutoff=0.6):
        return f"; did you mean {siblings[near[0]]}?"
    elsewhere = sorted(
        (key for key in keys if key.rpartition(".")[2] == name and "[" not in key),
        key=lambda key: (not key.startswith("train"), key),
    )
    if elsewhere and "[" not in parent:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    if len(siblings) <= 20:
        return f"; known here: {', '.join(sorted(siblings.values()))}" if siblings else ""
    return "; remove it or correct its spelling"


def _locate(location: tuple[int | str, ...], values: Any) -> tuple[str, str]:
    """Return the dotted path as the user wrote it, and the one of `every_field`."""
    shown, schema = "", ""
    for position, part in enumerate(location):
        is_last = position == len(location) - 1
        if isinstance(part, int):
            shown += f"[{part}]"
            schema += ".[]"
            values = values[part] if isinstance(values, (list, tuple)) and part < len(values) else None
            continue
        schema += f".{part}" if schema else part
        if isinstance(values, Mapping) and (part in values or is_last):
            shown += f".{part}" if shown else part
            values = values.get(part)
    return shown, schema


def every_field(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], FieldInfo]]:
    """Yield path, section and field of every key; elements of a list are `[]`, then the type where ops differ."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", model, field
        inner = list(sections_in(field.annotation))
        is_list = get_origin(field.annotation) is tuple
        for section in inner:
            kind = f".{section.model_fields['type'].default}" if len(inner) > 1 else ""
            yield from every_field(section, f"{prefix}{name}{'.[]' * is_list}{kind}.")


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a type names, however deep in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
