"""The keys a config may have: their official forms, and how a fault in one is said.

Works on plain dicts, before any field is checked, so every section may still hold anything.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from data.section import Section, sections_in
from engine.yaml_dialect import OWN_FILE, get_path, merge, set_path
from models.config import DEIMV2_KEYS

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def every_field(model: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section], FieldInfo]]:
    """Yield path, section and field of every key; `[]` stands for the elements of a list."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", model, field
        for section in sections_in(field.annotation):
            yield from every_field(section, f"{prefix}{name}{'[]' * (get_origin(field.annotation) is tuple)}.")


def locate(location: Sequence[int | str], values: Any, model: type[Section]) -> tuple[str, type[Section] | None, str]:
    """Follow names and positions in lists through a config, skipping what pydantic adds for the types it tried.

    Returns:
        The path as users write it, the section of its last name (None: in no section), and that name.
    """
    shown, name, owner, inner = "", "", None, [model]
    for position, part in enumerate(location):
        if isinstance(part, int):
            shown += f"[{part}]"
            values = values[part] if isinstance(values, (list, tuple)) and part < len(values) else None
            continue
        section, is_last = _section_of(inner, values), position == len(location) - 1
        is_key = isinstance(values, Mapping) and (part in values or is_last)
        if is_key or (section and part in section.model_fields):
            shown, owner, name = f"{shown}.{part}".lstrip("."), section, part
            values = values.get(part) if isinstance(values, Mapping) else None
            field = section.model_fields.get(part) if section else None
            inner = list(sections_in(field.annotation)) if field else []
    return shown, owner, name


def _section_of(kinds: Sequence[type[Section]], values: Any) -> type[Section] | None:
    """Return which of the sections that may stand somewhere does: the only one, or that of an op's `type`."""
    named = (kind for kind in kinds if kind.model_fields["type"].default == get_path(values, "type"))
    return kinds[0] if len(kinds) == 1 else next(named, None)


def _parts(model: type[Section], values: Any) -> Iterator[tuple[type[Section], dict[str, Any]]]:
    """Yield every section that `values` hold, with its class."""
    if isinstance(values, dict):
        yield model, values
        for name, field in model.model_fields.items():
            inner, value = list(sections_in(field.annotation)), values.get(name)
            for part in value if isinstance(value, list) else [value]:
                if section := _section_of(inner, part):
                    yield from _parts(section, part)


def to_own_form(values: dict[str, Any], model: type[Section], rank: Callable[[str], int]) -> dict[str, Any]:
    """Give `values`, which are changed, the one form that the models know. `rank`: see `Provenance`."""
    test, val = values.get("test_dataloader"), values.get("val_dataloader")
    if isinstance(test, dict) and isinstance(val, dict):  # what the test loader leaves out is the other's
        sizes = {"batch_size", "total_batch_size"}
        given = sizes if sizes & test.keys() else set()
        values["test_dataloader"] = merge({key: val[key] for key in val if key not in given}, test)
    for section, part in _parts(model, values):
        for key in section.repeats:
            if (value := part.pop(key, None)) is not None:
                values.setdefault(key, value)
    if "num_top_queries" in values and isinstance(values.setdefault("PostProcessor", {}), dict):
        values["PostProcessor"]["num_top_queries"] = values.pop("num_top_queries")
    if values.get("ema") is None:  # `ema_decay` and `ema_warmups` are read where there is no section
        values["ema"] = {"decay": values.pop("ema_decay", 0.9999), "warmups": values.pop("ema_warmups", 2000)}
    for name in LOADERS:
        if get_path(values, f"{name}.dataset.transforms.ops", ()) is None:
            set_path(values, f"{name}.dataset.transforms.ops", [])
        # Top-level `num_workers` is for loaders without their own, and beats what earlier files say of these.
        if "num_workers" in values and isinstance(values.get(name), dict):
            later = rank("num_workers") > rank(f"{name}.num_workers")
            if later or "num_workers" not in values[name]:
                values[name]["num_workers"] = values["num_workers"]
    if values.get("Baseline") is not None:
        # What included files say of DEIMv2 has no effect and no place in the record; what the `-c` file itself or `-u`
        # says stays, so that the rules refuse it.
        values.update({key: None for key in DEIMV2_KEYS if rank(key) < OWN_FILE})
    return drop_inactive(values, model)


def drop_inactive(values: dict[str, Any], model: type[Section]) -> dict[str, Any]:
    """Take official keys that have no effect, or the one value built here, out of `values`, which are changed."""
    for section, part in _parts(model, values):
        for key in section.without_effect:
            if not (key == "lr_scheduler" and isinstance(part.get(key), str)):  # text is a misspelt `lrsheduler`
                part.pop(key, None)
        for key, only in section.only.items():
            if key in part and _is_only(part[key], only):
                del part[key]
    return values


def _is_only(value: Any, only: Any) -> bool:
    if isinstance(only, dict) and isinstance(value, dict):
        return value.items() <= only.items()
    return type(value) is type(only) and bool(value == only)


MOVED_KEYS = {
    "lr": "optimizer.lr",
    "batch_size": "train_dataloader.total_batch_size",
    "ema_decay": "ema.decay",
    "ema_warmups": "ema.warmups",
}
"""Keys that people expect at the top level, and where they are."""
_MAX_LINES = 100
_EXPECTED = {
    "model_type": "a section of `key: value` lines",
    "model_attributes_type": "a section of `key: value` lines",
    "union_tag_not_found": "an op with a `type`",
}
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


def describe(error: ValidationError, model: type[Section], values: Mapping[str, Any]) -> list[str]:
    """Say each fault in one line, in the order of the config; several tries of one union share a line."""
    lines: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        if len(lines) == _MAX_LINES:
            return [*lines.values(), "and more; correct these first"]
        if fault["type"] == "json_invalid":
            return ["nested too deeply, or with text that is no Unicode"]
        shown, owner, name = locate(fault["loc"], values, model)
        message = _message(fault["type"], fault["msg"], fault["input"])
        if fault["type"] == "extra_forbidden" and owner:
            found = f"found {_short(fault['input'])}, expected {owner.only.get(name)!r}"
            message = found if name in owner.only else f"unknown key{suggestion(shown, owner, model)}"
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
    if kind == "pattern":
        return f"found {_short(found)}: {text}"
    expected = _EXPECTED.get(kind, text.removeprefix("Input should be ").removeprefix("Value error, "))
    if kind == "union_tag_invalid":
        expected = f"one of the types {text.rpartition(': ')[2]}"
    for technical, plain in _PLAIN_WORDS.items():
        expected = expected.replace(technical, plain)
    return f"found {_short(found)}, expected {expected}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggestion(path: str, owner: type[Section], model: type[Section], *, dotted: bool = False) -> str:
    """Name the nearest key of the same section (`dotted`: with its path), else of another unless it stands in a list's
    item, else the section's keys if they are few."""
    parent, _, name = path.rpartition(".")
    siblings = {key.lower(): key for key in [*owner.model_fields, *owner.only]}
    if path in MOVED_KEYS:
        return f"; did you mean {MOVED_KEYS[path]}?"
    if near := difflib.get_close_matches(name.lower(), siblings, n=1, cutoff=0.65):
        return f"; did you mean {f'{parent}.' * (dotted and bool(parent))}{siblings[near[0]]}?"
    elsewhere: dict[str, list[str]] = {}
    for key, *_ in every_field(model):
        if "[" not in key + parent and not key.startswith(LOADERS[1:]):
            elsewhere.setdefault(key.rpartition(".")[2].lower(), []).append(key)
    if near := difflib.get_close_matches(name.lower(), elsewhere, n=1, cutoff=0.65):
        return f"; did you mean {' or '.join(elsewhere[near[0]][:4])}?"
    few = f"known here: {', '.join(sorted(siblings.values()))}"
    return f"; {few if len(siblings) <= 20 else 'remove it or correct its spelling'}"
