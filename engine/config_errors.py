"""Pydantic's errors as lines for a person: dotted key, what was found, what is expected, what was meant."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

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
    """One line per fault, in the order of the config; several tries of one union share a line."""
    keys = _all_keys(model)
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        if len(lines) == _MAX_LINES:
            return [*lines.values(), "and more; correct these first"]
        if fault["type"] == "json_invalid":
            return ["nested too deeply, or with text that is no Unicode"]
        context = fault.get("ctx", {})
        if fault["type"] == "rules":
            lines.update({problem: problem for problem in context["problems"]})
            continue
        shown, schema_path = _locate(fault["loc"], values)
        message = _message(fault["type"], fault["msg"], fault["input"], shown, schema_path, keys)
        if shown in lines and fault["type"] != "extra_forbidden":
            expected = message.rpartition("expected ")[2]
            if expected not in lines[shown]:
                lines[shown] += f" or {expected}"
        else:
            lines[shown] = f"{shown}: {message}"
    return list(lines.values())


def _message(kind: str, text: str, found: Any, shown: str, schema_path: str, keys: frozenset[str]) -> str:
    if kind == "missing":
        return "missing; give it in the config file or with -u"
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(schema_path, keys)}"
    if kind in ("unsupported", "pattern"):
        return f"found {_short(found)}: {text}"
    expected = text.removeprefix("Input should be ").removeprefix("Value error, ")
    for technical, plain in _PLAIN_WORDS.items():
        expected = expected.replace(technical, plain)
    if kind in ("model_type", "model_attributes_type"):
        expected = "a section of `key: value` lines"
    if kind == "union_tag_not_found":
        expected = "an op with a `type`"
    if kind == "union_tag_invalid":
        expected = f"one of the types {text.rpartition(': ')[2]}"
    return f"found {_short(found)}, expected {expected}"


def _suggestion(schema_path: str, keys: frozenset[str]) -> str:
    """The nearest key of the same section, else the same key elsewhere, else the section's keys if few."""
    parent, _, name = schema_path.rpartition(".")
    siblings = sorted(
        key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == parent and not key.endswith("]")
    )
    if not parent and name in MOVED_KEYS:
        return f"; did you mean {MOVED_KEYS[name]}?"
    near = difflib.get_close_matches(name.lower(), [sibling.lower() for sibling in siblings], n=1, cutoff=0.6)
    if near:
        match = next(sibling for sibling in siblings if sibling.lower() == near[0])
        return f"; did you mean {match}?"
    elsewhere = sorted(
        (key for key in keys if key.rpartition(".")[2] == name and "[" not in key),
        key=lambda key: (not key.startswith("train"), key),
    )
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere[:3])}?"
    if len(siblings) <= 20:
        return f"; known here: {', '.join(siblings)}" if siblings else ""
    return "; remove it or correct its spelling"


def _locate(location: tuple[int | str, ...], values: Any) -> tuple[str, str]:
    """The dotted path as the user wrote it, and the one in `_schema_keys`' form, which names union members."""
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


@cache
def _all_keys(model: type[BaseModel]) -> frozenset[str]:
    """Dotted paths of every key there is; elements of a list are `[]`, followed by the type where ops differ."""
    return frozenset(_schema_keys(model, ""))


def _schema_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        yield from _nested_keys(field.annotation, f"{prefix}{name}")


def _nested_keys(annotation: Any, path: str) -> Iterator[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _schema_keys(annotation, f"{path}.")
    elif origin is Annotated:
        yield from _nested_keys(arguments[0], path)
    elif origin is tuple:
        yield from _nested_keys(arguments[0], f"{path}.[]")
    elif origin in (Union, types.UnionType):
        for member in arguments:
            tag = (
                member.model_fields.get("type") if isinstance(member, type) and issubclass(member, BaseModel) else None
            )
            tagged = tag is not None and path.endswith("[]")
            yield from _nested_keys(member, f"{path}.{tag.default}" if tag is not None and tagged else path)


def _short(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
