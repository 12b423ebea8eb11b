"""The pages about the config's keys, their schema for editors, and `--explain`."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from data.errors import UserError
from engine.config import ExperimentConfig, load_config
from engine.config_keys import every_field
from engine.config_reference import FOLDER, describe_key, explain, json_schema, reference
from engine.yaml_dialect import merge
from tests.support.configs import CONFIGS, INDUSTRIAL

FILES = sorted(CONFIGS.rglob("*.yml"))


def test_the_pages_are_what_the_models_say() -> None:
    advice = "run python -m engine.config_reference"
    assert (FOLDER / "config.md").read_text(encoding="utf-8") == reference(), advice
    assert json.loads((FOLDER / "config.schema.json").read_text(encoding="utf-8")) == json_schema(), advice


def test_every_key_has_a_meaning() -> None:
    for path, section, field in every_field(ExperimentConfig):
        meaning = describe_key(section, path.rpartition(".")[2])[2]
        only = str(field.annotation).startswith("typing.Literal") and str(field.annotation).count(",") == 0
        assert len(meaning) > 3 and (only or meaning != "Official key; only this value is built here."), path


def faults_of(content: dict[str, Any]) -> list[str]:
    faults = jsonschema.Draft202012Validator(json_schema()).iter_errors(content)
    return [fault.json_path for fault in faults]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_schema_accepts_every_config(path: Any) -> None:
    assert faults_of(_like_a_file(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        "epohs: 3",
        "epoches: many",
        "optimizer: {lr: -1}",
        "train_dataloader: {dataset: {transforms: {ops: [{type: A}]}}}",
    ],
)
def test_the_schema_refuses_what_loading_refuses(text: str) -> None:
    assert faults_of(merge(_like_a_file(INDUSTRIAL.read_text(encoding="utf-8")), _like_a_file(text)))


def _like_a_file(text: str) -> dict[str, Any]:
    """As editors read it: floats such as 1e-4 are numbers in YAML 1.2."""
    content = yaml.safe_load(text) or {}
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("epochs", ["epoches: Length of the run", "type:    whole number ≥ 1", "default: required", "50, stated by"]),
        ("seed", ["here:    3, stated by -u"]),
        ("optimizer.lr", ["here:    6.25e-05, derived: 0.0005 -> 6.25e-05 (batch 4, reference 32)"]),
        ("optimizer.params[0].lr", ["derived: 2.5e-05 -> 3.125e-06"]),
        ("train_dataloader.dataset.transforms.ops[0].fill_value", ["Grey level", "from the recipe", "dataloader.yml"]),
        ("lr_gamma", ["type:    number ≥ 0, ≤ 1", "from the recipe", "optimizer.yml"]),
        ("eval_interval_epochs", ["default: 1", "here:    1, the default"]),
        ("test_dataloader.num_workers", ["here:    4, taken from another key"]),
        ("DINOv3STAs.patch_size", ["only this value is built here", "type:    16"]),
        ("ema", ["keys:    decay, warmups, start"]),
        ("tiles", ["keys:    size, overlap, keep_empty, min_visible", "here:    null"]),
        ("tiles.overlap", ["default: 0.2", "here:    nothing, tiles is null"]),
        ("HybridEncoder.csp_type", ["without effect here"]),
    ],
)
def test_a_key_is_explained(key: str, lines: list[str]) -> None:
    config = load_config(INDUSTRIAL, ["seed=3", "test_dataloader.dataset.img_folder=x"])
    text = explain(key, config)
    for line in lines:
        assert line in text


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("ema.deca", "ema.deca: unknown key; did you mean ema.decay?"),
        ("num_query", "did you mean DEIMTransformer.num_queries"),
        ("lr", "did you mean optimizer.lr?"),
        ("train_dataloader.dataset.transforms.ops[0].sigma", "unknown key"),
        ("qqqqqq", "unknown key; remove it or correct its spelling"),
    ],
)
def test_an_unknown_key_gets_the_nearest_names(key: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        explain(key, load_config(INDUSTRIAL))
    assert message in str(error.value)
