"""Small helpers for tests of the config."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from engine.config import ExperimentConfig, config_from_dict, config_to_dict, load_config
from engine.yaml_dialect import merge, set_path

CONFIGS = Path(__file__).parents[2] / "configs"
OFFICIAL = CONFIGS / "deimv2"
INDUSTRIAL = CONFIGS / "deimv2_industrial_defects.yml"


def official(size: str) -> Path:
    """The file of size s, m, l or x."""
    return OFFICIAL / f"deimv2_dinov3_{size}_coco.yml"


def changed(config: ExperimentConfig, **sections: Any) -> ExperimentConfig:
    """A copy with values replaced; `a__b=1` sets a.b."""
    values = merge(config_to_dict(config), {})
    for path, value in sections.items():
        set_path(values, path.replace("__", "."), value)
    return config_from_dict(values)


def derived(config: ExperimentConfig) -> tuple[str, ...]:
    """What was derived, a line each."""
    return tuple(note.text for note in config._provenance.log)


def write(folder: Path, name: str, text: str) -> Path:
    """A file with this text."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@cache
def small_config() -> ExperimentConfig:
    """The small model, without anything from the environment. Read once: configs are frozen.

    What the quickstart is tuned by is fixed here, so that tuning it breaks no test.
    """
    pinned = ("epoches=6", "flat_epoch=3", "no_aug_epoch=1", "optimizer.lr=0.001", "DEIMTransformer.num_denoising=30")
    return load_config(CONFIGS / "quickstart.yml", [*pinned, "train_dataloader.total_batch_size=16"])


@cache
def industrial() -> ExperimentConfig:
    """The user's config, read once."""
    return load_config(INDUSTRIAL)
