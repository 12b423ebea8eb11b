"""Who says what in a class score: the picture or the text. For looking at a trained detector, not for running it.

N decoder layers, B images, Q queries, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.detector import DEIM


@dataclass(frozen=True)
class TextContributions:
    """The class logits of every layer that evaluation runs, in two parts; all float32.

    `visual` + `text` is what the layer's score head gives; on top of it the location quality adds one number per
    query to all classes, which makes the detector's `pred_logits`.
    """

    visual: Tensor
    """[N, B, Q, C]: phase 1's score head on the query's own features."""
    text: Tensor
    """[N, B, Q, C]: what the texts change: gate x contribution, and in `cross_attention` also what the score head
    makes of the features' look at the class tokens. Zeros without text fusion."""
    outputs: dict[str, Tensor]
    """The detector's evaluation output: `pred_logits` [B, Q, C], `pred_boxes` [B, Q, 4]."""


@torch.no_grad()
def text_contributions(model: DEIM, images: Tensor) -> TextContributions:
    """Run `model`, in evaluation mode, on normalised images [B, 3, H, W] and take its class scores apart.

    The model is only listened to, through hooks that are gone afterwards: nothing is computed when nobody asks.

    Raises:
        ValueError: The model is in training mode.
    """
    if model.training:
        raise ValueError("the model must be in evaluation mode")
    features: dict[int, Tensor] = {}
    layers = model.decoder.decoder.layers
    handles = [layer.register_forward_hook(partial(_keep, features, index)) for index, layer in enumerate(layers)]
    try:
        outputs = model(images)
    finally:
        for handle in handles:
            handle.remove()
    visual, fused = [], []
    for index, read in sorted(features.items()):
        head = model.decoder.dec_score_head[index]
        visual.append(head(read).float())
        fused.append(visual[-1] if model.text_fusion is None else model.text_fusion(read, head, index)[0])
    plain = torch.stack(visual)
    return TextContributions(plain, torch.stack(fused) - plain, outputs)


def _keep(features: dict[int, Tensor], index: int, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
    features[index] = output
