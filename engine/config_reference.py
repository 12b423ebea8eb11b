"""Write docs/reference/config.md and its JSON Schema from the config's models: `python -m engine.config_reference`.

`explain` says the same of one key, with its value in a config and who stated it.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from data.errors import UserError
from data.section import Section, sections_in
from engine.config import ExperimentConfig, config_to_dict
from engine.config_keys import every_field, locate, suggestion
from engine.yaml_dialect import INCLUDE, SPELLINGS, get_path, steps

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
    places: dict[type[Section], list[str]] = {ExperimentConfig: []}
    for path, _, field in every_field(ExperimentConfig):
        inner = list(sections_in(field.annotation))
        for section in inner:
            place = f"Op `{section.model_fields['type'].default}`" if len(inner) > 1 else f"`{path}`"
            places.setdefault(section, []).append(place)
    parts = [_INTRODUCTION]
    for section, paths in places.items():
        parts += [f"## {', '.join(dict.fromkeys(paths)) or 'Top level'}", "", _one_line(section.__doc__), ""]
        parts += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        parts += [f"| `{name}` | {' | '.join(describe_key(section, name))} |" for name in section.model_fields]
        if section.without_effect:
            inactive = ", ".join(f"`{key}`" for key in section.without_effect)
            parts += ["", f"Official keys without effect, accepted and dropped: {inactive}."]
        if section.only:
            fixed = ", ".join(f"`{key}: {json.dumps(only)}`" for key, only in section.only.items())
            parts += ["", f"Official keys with one value, another is an error: {fixed}."]
        parts.append("")
    return "\n".join(parts)


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of one config file, which may leave out whatever another file gives."""
    schema = ExperimentConfig.model_json_schema(schema_generator=_WithoutTitles)
    top = schema["properties"]
    sections = {section.__name__: section for _, section, _ in every_field(ExperimentConfig)}
    for name, part in {"ExperimentConfig": schema, **schema["$defs"]}.items():
        part.pop("required", None)
        keys, section = part["properties"], sections[name]
        keys |= {key: {"description": _INACTIVE} for key in section.without_effect}
        keys |= {key: {"const": only, "description": f"{_FIXED}."} for key, only in section.only.items()}
        keys |= {key: top[key] for key in section.repeats}
    keys = {name: part["properties"] for name, part in schema["$defs"].items()}
    top |= {right: top[official] for right, official in SPELLINGS.items()}
    top["num_top_queries"] = keys["PostProcessorConfig"]["num_top_queries"]
    top |= {f"ema_{key}": keys["EmaConfig"][key] for key in ("decay", "warmups")}
    for part, key in ((keys["TransformsConfig"], "ops"), *((top, key) for key in _MAY_BE_NULL)):
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
    shown, owner, name = locate(steps(key), values, ExperimentConfig)
    if shown != key or owner is None or name not in owner.model_fields:
        if owner and name in owner.without_effect:
            return f"{key}: {_INACTIVE}"
        if owner and name in owner.only:
            return f"{key}: {_FIXED.lower()}\n  type:    {owner.only[name]}"
        near = suggestion(key, owner or ExperimentConfig, ExperimentConfig, dotted=True)
        raise UserError(f"{key}: unknown key{near} (docs/reference/config.md lists them all)")
    kind, default, meaning = describe_key(owner, name)
    inner = list(sections_in(owner.model_fields[name].annotation))
    here = json.dumps(get_path(values, key), ensure_ascii=False)
    stated_nowhere = "the default" if default == f"`{here}`" else "taken from another key"
    lines = [f"{key}: {meaning}", f"  type:    {kind}"]
    section = key.rpartition(".")[0]
    if len(inner) == 1:
        lines.append(f"  keys:    {', '.join(inner[0].model_fields)}")
        lines += ["  here:    null"] if here == "null" else []
    elif section and get_path(values, section) is None:
        lines += [f"  default: {default}", f"  here:    nothing, {section} is null"]
    else:
        lines += [f"  default: {default}", f"  here:    {here}, {config.origin(key) or stated_nowhere}"]
    return "\n".join(lines).replace("`", "")


def describe_key(section: type[Section], name: str) -> tuple[str, str, str]:
    """Say type, default and meaning of a section's key; the meaning of a section without an own text is its class's."""
    field, schema = section.model_fields[name], _properties(section)[name]
    default = f"`{json.dumps(schema.get('default'), ensure_ascii=False)}`"
    if field.is_required() or isinstance(field.default, Section):
        default = "required" if field.is_required() else "its keys' defaults"
    of_class = [(inner.__doc__ or "").partition("\n\n")[0] for inner in sections_in(field.annotation)]
    meaning = field.description or [*of_class, "Official key; only this value is built here."][0]
    return _words(schema), default, _one_line(meaning)


@cache
def _properties(section: type[Section]) -> dict[str, Any]:
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
