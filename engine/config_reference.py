"""Write docs/reference/config.md and its JSON Schema from the config's models: `python -m engine.config_reference`.

`explain` says the same of one key, with its value in a config and who stated it.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from data.errors import UserError
from engine.config import ExperimentConfig, config_to_dict
from engine.config_errors import MOVED_KEYS, every_field, sections_in
from engine.official_keys import FIXED_KEYS, FIXED_PATHS, INACTIVE_KEYS, INACTIVE_PATHS, SHARED_KEYS
from engine.yaml_dialect import INCLUDE, SPELLINGS, get_path

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
_INTRODUCTION = """# Every key of a config

Generated from the models by `python -m engine.config_reference`. `python train_deimv2.py -c CONFIG --explain KEY` says
the same of one key, with its value in CONFIG and who stated it. Epochs, learning rates, image sizes and the output
folder are derived where no file states them: see [configs](../guide/configs.md).

Editors complete and check a file that begins with `# yaml-language-server: $schema=PATH/config.schema.json`
(in Visual Studio Code with the extension YAML).
"""
_FIXED = "Only this value is built here"
_INACTIVE = "Official key, known and without effect here."


def reference() -> str:
    """Return docs/reference/config.md: a table of keys for every section, sections in the order of the config."""
    places: dict[type[BaseModel], list[str]] = {ExperimentConfig: []}
    for path, _, field in every_field(ExperimentConfig):
        inner = list(sections_in(field.annotation))
        for section in inner:
            place = f"Op `{section.model_fields['type'].default}`" if len(inner) > 1 else f"`{path}`"
            places.setdefault(section, []).append(place)
    parts = [_INTRODUCTION]
    for section, paths in places.items():
        rows = [
            f"| `{name}` | {type_of(section, name)} | {_default(field)} | {meaning(field)} |"
            for name, field in section.model_fields.items()
        ]
        head = [f"## {', '.join(dict.fromkeys(paths)) or 'Top level'}", "", _one_line(section.__doc__), ""]
        parts.append("\n".join([*head, "| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""]))
    inactive = ", ".join(f"`{key}`" for key in INACTIVE_KEYS)
    parts.append(f"## Official keys without effect\n\nAccepted and dropped: {inactive}.\n")
    fixed = ", ".join(f"`{key}: {json.dumps(only)}`" for key, only in FIXED_KEYS.items())
    parts.append(f"## Official keys with one value\n\n{_FIXED}; another is an error: {fixed}.\n")
    return "\n".join(parts)


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of one config file, which may leave out whatever another file gives."""
    schema = ExperimentConfig.model_json_schema(schema_generator=_WithoutTitles)
    parts = {"ExperimentConfig": schema, **schema["$defs"]}
    for part in parts.values():
        part.pop("required", None)
    top = schema["properties"]
    keys = {"": top}
    for path, _, field in every_field(ExperimentConfig):
        inner = list(sections_in(field.annotation))
        for section in inner:
            kind = f".[].{section.model_fields['type'].default}" if len(inner) > 1 else ""
            keys[f"{path}{kind}"] = parts[section.__name__]["properties"]
    for path in INACTIVE_PATHS:
        section_path, _, key = path.rpartition(".")
        keys[section_path][key] = {"description": _INACTIVE}
    for path, only in FIXED_PATHS.items():
        section_path, _, key = path.rpartition(".")
        keys[section_path][key] = {"const": only, "description": f"{_FIXED}."}
    for key, paths in SHARED_KEYS.items():
        for path in paths:
            keys[path][key] = top[key]
    top |= {right: top[official] for right, official in SPELLINGS.items()}
    top["num_top_queries"] = keys["PostProcessor"]["num_top_queries"]
    top |= {f"ema_{key}": keys["ema"][key] for key in ("decay", "warmups")}
    for part, key in ((keys["train_dataloader.dataset.transforms"], "ops"), *((top, key) for key in _MAY_BE_NULL)):
        part[key] = {"anyOf": [part[key], {"type": "null"}]}
    description = "Files to merge first, in this order; names as seen from this file."
    top[INCLUDE] = {"description": description, "type": ["string", "array"], "items": {"type": "string"}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


_MAY_BE_NULL = ("ema", "flat_epoch", "no_aug_epoch", "output_dir")
"""Keys whose null leaves their values to be derived."""


def explain(key: str, config: ExperimentConfig) -> str:
    """Say type, default and meaning of a dotted key, its value in `config` and who stated it.

    Raises:
        UserError: There is no such key; the nearest ones are named.
    """
    key, values = SPELLINGS.get(key, key), config_to_dict(config)
    fields = {path: (owner, field) for path, owner, field in every_field(ExperimentConfig)}
    path = _model_path(key, values)
    if key in INACTIVE_KEYS:
        return f"{key}: {_INACTIVE}"
    only = None if path in fields else FIXED_PATHS.get(path)
    if only is not None:
        return f"{key}: {_FIXED.lower()}\n  type:    {only}"
    if path not in fields:
        raise UserError(f"{key}: unknown key; {_nearest(key, fields)} (docs/reference/config.md lists them all)")
    owner, field = fields[path]
    inner, value = list(sections_in(field.annotation)), get_path(values, key)
    stated_nowhere = "the default" if value == _plain_default(field) else "taken from another key"
    lines = [f"{key}: {meaning(field)}", f"  type:    {type_of(owner, path.rpartition('.')[2])}"]
    if len(inner) == 1:
        lines.append(f"  keys:    {', '.join(inner[0].model_fields)}")
    else:
        lines.append(f"  default: {_default(field)}")
        lines.append(f"  here:    {json.dumps(value, ensure_ascii=False)}, {config.origin(key) or stated_nowhere}")
    return "\n".join(lines).replace("`", "")


def _model_path(key: str, values: dict[str, Any]) -> str:
    """Return the path of `every_field` for a user's key, whose list elements are `[0]`."""
    path, shown = "", ""
    for step in re.findall(r"\[\d+\]|[^.\[]+", key):
        if step[0] == "[":
            shown += step
            kind = get_path(values, f"{shown}.type")
            path += f".[].{kind}" if kind else ".[]"
        else:
            shown, path = f"{shown}.{step}".lstrip("."), f"{path}.{step}".lstrip(".")
    return path


def _nearest(key: str, paths: Iterable[str]) -> str:
    """Suggest keys of a like name, whatever their section; those of the other loaders are the training loader's."""
    names: dict[str, list[str]] = {}
    for path in paths:
        if "[" not in path and not path.startswith(("val_dataloader.", "test_dataloader.")):
            names.setdefault(path.rpartition(".")[2], []).append(path)
    near = difflib.get_close_matches(key.rpartition(".")[2], names, n=3, cutoff=0.5)
    found = [MOVED_KEYS[key]] if key in MOVED_KEYS else [path for name in near for path in names[name]][:4]
    return f"did you mean {' or '.join(found)}?" if found else "no key is called anything like it"


def meaning(field: FieldInfo) -> str:
    """Return what a field's docstring says, or its section's where that is all there is."""
    if field.description:
        return _one_line(field.description)
    inner = list(sections_in(field.annotation))
    if inner:
        return _one_line((inner[0].__doc__ or "").partition("\n\n")[0])
    return "Official key; only this value is built here."


def type_of(section: type[BaseModel], name: str) -> str:
    """Say in words which values a field of a section takes."""
    return _words(_properties(section)[name])


@cache
def _properties(section: type[BaseModel]) -> dict[str, Any]:
    return dict(section.model_json_schema()["properties"])


def _words(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_words(option) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        choices = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{choice if isinstance(choice, str) else json.dumps(choice)}`" for choice in choices)
    if "type" not in schema:
        return "op" if "oneOf" in schema else "section"
    if schema["type"] == "array":
        items = [_words(item) for item in schema.get("prefixItems", [schema.get("items")])]
        if len(set(items)) > 1:
            return f"[{', '.join(items)}]"
        return f"list of {len(items) if 'prefixItems' in schema else 'any length'}: {items[0]}"
    if schema["type"] == "object":
        return f"`name: value` pairs, values: {_words(schema['additionalProperties'])}"
    limits = [f"{sign} {schema[key]:g}" for key, sign in _LIMITS.items() if abs(schema.get(key, _SANE)) < _SANE]
    return " ".join([_TYPES.get(schema.get("format", schema["type"]), "text"), ", ".join(limits)]).strip()


_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "null": "null", "path": "path"}
_LIMITS = {
    "minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "multipleOf": "multiple of",
}  # fmt: skip
_SANE = 1_000_000
"""Limits from here on only keep nonsense out and are not worth a reader's time."""


def _plain_default(field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True)
    return json.loads(json.dumps(default, default=str))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "its keys' defaults"
    return f"`{json.dumps(_plain_default(field), ensure_ascii=False)}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> None:
    """Write both files."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    (FOLDER / "config.md").write_text(reference(), encoding="utf-8")
    schema = json.dumps(json_schema(), indent=1, ensure_ascii=False)
    (FOLDER / "config.schema.json").write_text(f"{schema}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
