"""The detector: backbone, encoder, decoder under their official names (spec section 1).

Legend: B images, H x W pixels (multiples of 32), Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone import DINOv3STAs
from models.config import ModelConfig
from models.decoder import DEIMTransformer
from models.hybrid_encoder import HybridEncoder

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
SIZE_DIVISOR = 32
"""Sides of the network input are multiples of this: the coarsest map has this stride."""


class DEIM(nn.Module):
    """DEIMv2."""

    def __init__(self, backbone: DINOv3STAs, encoder: HybridEncoder, decoder: DEIMTransformer) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor, targets: Sequence[Mapping[str, Tensor]] | None = None) -> dict[str, Any]:
        """Detect.

        Args:
            images: float [B, 3, H, W], RGB, normalised (`normalize_images`).
            targets: Per image `labels` int64 [N] and `boxes` float [N, 4] cxcywh in [0, 1]. Read in training
                only, to make denoising queries.

        Returns:
            In evaluation `pred_logits` float32 [B, Q, C] (before the sigmoid) and `pred_boxes` float32 [B, Q, 4]
            (cxcywh, not clamped); in training also the entries that the losses read (spec section 1).

        Raises:
            ValueError: H or W is not a multiple of 32.
        """
        height, width = images.shape[-2:]
        if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
            raise ValueError(
                f"images of {height} x {width} (height x width) pixels: both must be multiples of {SIZE_DIVISOR}"
            )
        outputs: dict[str, Any] = self.decoder(self.encoder(self.backbone(images)), targets)
        return outputs


def build_detector(config: ModelConfig) -> DEIM:
    """The configured detector with random weights; `models.weights` loads files."""
    return DEIM(
        DINOv3STAs(config.DINOv3STAs, config.gradient_checkpointing),
        HybridEncoder(config.HybridEncoder, config.gradient_checkpointing),
        DEIMTransformer(config.DEIMTransformer, config.num_classes, config.eval_spatial_size),
    )


def normalize_images(images: Tensor, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 of the same shape and device: (x / 255 - mean) / std."""
    x = images.to(torch.float32, copy=True)
    return x.div_(255).sub_(_per_channel(mean, x.device)).div_(_per_channel(std, x.device))


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """[C, 1, 1], filled on the device: a copy from the host would make it wait."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])
