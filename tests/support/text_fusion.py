"""Tiny detectors with text, and texts for them that need no encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.detector import DEIM
from tests.support.models import NUM_CLASSES, tiny_model

TEXT_DIM, PROMPTS = 12, 3


def texts(classes: int = NUM_CLASSES, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Unit vectors [C, P, D] and a mask in which every other class lacks the last prompt."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(classes, PROMPTS, dtype=torch.bool)
    mask[::2, -1] = False
    embeds = F.normalize(torch.randn(classes, PROMPTS, TEXT_DIM, generator=generator), dim=-1)
    return embeds * mask[..., None], mask


def section(**values: Any) -> dict[str, Any]:
    """The config section `MultimodalFusion`, its sizes known."""
    return {"text_dim": TEXT_DIM, "num_prompts": PROMPTS, "proj_dim": 16, **values}


def fused_model(**values: Any) -> DEIM:
    """A tiny detector with text, from a fixed seed, its texts given, in training mode."""
    model = tiny_model(MultimodalFusion=section(**values))
    if model.text_fusion is not None:
        model.text_fusion.texts.set(*texts())
    return model
