"""Baselines so small that tests are quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.baselines import TorchvisionDetector
from models.config import BaselineConfig
from tests.support.tiny_run import write_tiny_config

NAMES = ("fasterrcnn_resnet18", "fasterrcnn_efficientnet_b0", "fcos_resnet18")
NUM_CLASSES = 3
SIZE = (64, 96)
"""Height and width, pixels."""

_SMALL: dict[str, Any] = {
    "weights": None,
    "fpn_channels": 64,
    "box_head_channels": 32,
    "rpn_pre_nms_top_n": 60,
    "rpn_post_nms_top_n": 30,
    "rpn_batch_per_image": 64,
    "roi_batch_per_image": 32,
}


def small_section(name: str, **changes: Any) -> BaselineConfig:
    return BaselineConfig(**(_SMALL | {"name": name} | changes))


def small_baseline(name: str, *, num_classes: int = NUM_CLASSES, **changes: Any) -> TorchvisionDetector:
    """Seeded random weights, in training mode."""
    torch.manual_seed(0)
    return TorchvisionDetector(small_section(name, **changes), num_classes, SIZE, num_top_queries=300)


def targets_with(*boxes_per_image: int) -> list[dict[str, Tensor]]:
    """Boxes in [0, 1] and labels for as many images as there are numbers."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "labels": torch.randint(0, NUM_CLASSES, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.3 + 0.3,
        }
        for count in boxes_per_image
    ]


def write_tiny_baseline(folder: Path, name: str = "fasterrcnn_efficientnet_b0", extra: str = "") -> Path:
    """The run of `write_tiny_config` with a baseline; the default is the one with the smallest checkpoints."""
    write_tiny_config(folder)
    path = folder / f"{name}.yml"
    section = "".join(f"  {key}: {'null' if value is None else value}\n" for key, value in _SMALL.items())
    path.write_text(_CONFIG.format(name=name) + section + extra, encoding="utf-8")
    return path


_CONFIG = """
__include__: [tiny.yml]
epoches: 3
flat_epoch: 1
no_aug_epoch: 1
optimizer:
  lr: 0.001
  params:
    - {{params: 'bias$', weight_decay: 0}}
Baseline:
  name: {name}
"""
