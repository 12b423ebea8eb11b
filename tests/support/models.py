"""Models small enough to run many times in a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.config import ExperimentConfig
from models.detector import DEIM, build_detector
from tests.support.configs import changed, small_config

NUM_CLASSES = 6
Targets = list[dict[str, Tensor]]


def tiny_config(**sections: Any) -> ExperimentConfig:
    """Every real part at toy widths; `a__b=1` sets a.b."""
    tiny = {
        "eval_spatial_size": [64, 64],
        "DEIMTransformer__num_denoising": 30,
        "DINOv3STAs__embed_dim": 32,
        "DINOv3STAs__num_heads": 2,
        "DINOv3STAs__depth": 3,
        "DINOv3STAs__mlp_ratio": 2,
        "DINOv3STAs__interaction_indexes": [0, 1, 2],
        "DINOv3STAs__conv_inplane": 4,
        "HybridEncoder__in_channels": [32, 32, 32],
        "HybridEncoder__hidden_dim": 32,
        "HybridEncoder__dim_feedforward": 48,
        "DEIMTransformer__feat_channels": [32, 32, 32],
        "DEIMTransformer__hidden_dim": 32,
        "DEIMTransformer__dim_feedforward": 48,
        "DEIMTransformer__num_queries": 20,
    }
    return changed(small_config(), **{**tiny, **sections})


def tiny_model(**sections: Any) -> DEIM:
    """`build_detector(tiny_config(...))` from a fixed seed, in training mode."""
    torch.manual_seed(0)
    return build_detector(tiny_config(**sections))


def shake(model: torch.nn.Module, seed: int = 1) -> None:
    """Move all trained parameters off their initial values, of which many are 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def images(batch: int = 2, height: int = 64, width: int = 64, seed: int = 0) -> Tensor:
    """Normalised random images."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def targets(*counts: int, seed: int = 0) -> Targets:
    """One target per image, with so many boxes."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for count in counts:
        centre = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
        size = 0.05 + 0.3 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
        made.append({"labels": labels, "boxes": torch.cat([centre, size], dim=1)})
    return made


def tensors_of(outputs: Any) -> list[Tensor]:
    """All tensors of a nested output, in a fixed order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, dict):
        return [tensor for key in sorted(outputs) for tensor in tensors_of(outputs[key])]
    if isinstance(outputs, (list, tuple)):
        return [tensor for item in outputs for tensor in tensors_of(item)]
    return []
