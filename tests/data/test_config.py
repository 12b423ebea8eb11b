"""The data's rules: what cannot be read or trained on is refused, with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data.config import CollateConfig, DataConfig, loaders, multiscale_sides
from data.errors import UserError
from engine.config import config_to_dict
from tests.support.configs import changed, small_config

OPS = "train_dataloader__dataset__transforms__ops"
RESIZE = {"type": "Resize", "size": [160, 160]}
NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
COLLATE = "train_dataloader__collate_fn"

RULES: list[tuple[dict[str, Any], str]] = [
    ({"train_dataloader__batch_size": 4}, "train_dataloader: total_batch_size and batch_size are both given; keep one"),
    ({"val_dataloader__total_batch_size": None}, "val_dataloader.total_batch_size: missing; give it (or batch_size"),
    (
        {"accumulation_steps": 3, "train_dataloader__total_batch_size": 16},
        "total_batch_size: 16 cannot be split into accumulation_steps 3; choose a multiple",
    ),
    ({OPS: []}, "train_dataloader.dataset.transforms.ops: empty; a file with `ops: ~`"),
    ({OPS: [NORMALIZE]}, "found 0 Resize ops, expected exactly one"),
    ({OPS: [RESIZE, RESIZE, NORMALIZE]}, "found 2 Resize ops, expected exactly one"),
    ({OPS: [{"type": "Resize", "size": [100, 160]}, NORMALIZE]}, "Resize to [100, 160]; height and width must be mult"),
    ({OPS: [{"type": "Mosaic", "scaling_range": [2, 1]}, RESIZE, NORMALIZE]}, "Mosaic scaling_range [2.0, 1.0] must"),
    ({OPS: [{"type": "RandomZoomOut", "side_range": [3, 2]}, RESIZE, NORMALIZE]}, "RandomZoomOut side_range [3.0, 2"),
    ({OPS: [{"type": "RandomIoUCrop", "min_scale": 1, "max_scale": 0.5}, RESIZE]}, "RandomIoUCrop has a minimum above"),
    ({OPS: [{"type": "RandomPhotometricDistort", "hue": [-1, 1]}, RESIZE]}, "hue [-1.0, 1.0] is no possible range"),
    ({OPS: [{"type": "RandomPhotometricDistort", "contrast": [-1, 1]}, RESIZE]}, "contrast [-1.0, 1.0] is no possible"),
    ({OPS: [{"type": "RandomGamma", "gamma": [2, 1]}, RESIZE]}, "RandomGamma gamma [2.0, 1.0] must rise"),
    ({"val_dataloader__repeat_factor_threshold": 0.1}, "val_dataloader.repeat_factor_threshold: every image is judged"),
    ({OPS: [RESIZE]}, "Normalize differs between the splits"),
    (
        {"train_dataloader__dataset__transforms__policy": {"name": "stop_epoch", "epoch": [3, 2, 4], "ops": []}},
        "policy.epoch: [3, 2, 4] must rise (start",
    ),
    ({f"{COLLATE}__mixup_epochs": [3, 2]}, "collate_fn.mixup_epochs: [3, 2] must rise"),
    ({f"{COLLATE}__copyblend_epochs": [3, 2]}, "collate_fn.copyblend_epochs: [3, 2] must rise"),
    ({f"{COLLATE}__expand_ratios": [0.3, 0.2]}, "collate_fn.expand_ratios: [0.3, 0.2] must rise"),
    ({f"{COLLATE}__base_size": 192, f"{COLLATE}__base_size_repeat": 2}, "multi-scale resizes to squares around 192"),
    ({f"{COLLATE}__mixup_prob": 1.5}, "collate_fn.mixup_prob: found 1.5, expected a number less than or equal to 1"),
    ({f"{COLLATE}__base_size_repeat": 10**9}, "base_size_repeat: found 1000000000, expected a number less than"),
    ({"train_dataloader__dataset__return_masks": True}, "return_masks: found true, expected False"),
]


@pytest.mark.parametrize(("change", "message"), RULES)
def test_rules(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        changed(small_config(), **change)
    assert message in str(error.value)


def test_defaults_of_ops() -> None:
    ops = [{"type": "RandomZoomOut"}, {"type": "RandomIoUCrop"}, {"type": "RandomPhotometricDistort"}]
    config = changed(small_config(), **{OPS: [*ops, RESIZE, NORMALIZE]})
    zoom, crop, distort = (op.model_dump() for op in config.train_dataloader.dataset.transforms.ops[:3])
    assert zoom == {"type": "RandomZoomOut", "fill": 0, "side_range": (1.0, 4.0), "p": 0.5}
    assert (crop["min_scale"], crop["max_scale"], crop["trials"], crop["p"]) == (0.3, 1.0, 40, 1.0)
    assert (distort["brightness"], distort["hue"], distort["p"]) == ((0.875, 1.125), (-0.05, 0.05), 0.5)


@pytest.mark.parametrize("base", [640, 320])
def test_multiscale_sides(base: int) -> None:
    golden = json.loads((Path(__file__).parents[1] / "golden" / "schedule.json").read_text(encoding="utf-8"))
    for case in golden["multiscale"]:
        collate = CollateConfig(base_size=case["base_size"], base_size_repeat=case["repeat"])
        assert multiscale_sides(collate) == case["sizes"]
    assert multiscale_sides(CollateConfig(base_size=base)) == []


def test_loaders_there_are() -> None:
    config = small_config()
    assert list(loaders(config)) == ["train_dataloader", "val_dataloader"]
    test = changed(config, test_dataloader=config_to_dict(config)["val_dataloader"])
    assert list(loaders(test)) == ["train_dataloader", "val_dataloader", "test_dataloader"]


def test_the_section_stands_alone() -> None:
    values = config_to_dict(small_config())
    data = DataConfig.model_validate({key: values[key] for key in DataConfig.model_fields})
    assert data.train_dataloader == small_config().train_dataloader
    with pytest.raises(ValidationError, match="cannot be split"):
        DataConfig.model_validate({**data.model_dump(), "accumulation_steps": 5})
