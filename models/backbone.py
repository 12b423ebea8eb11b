"""Backbone: a ViT for meaning, convolutions for detail, fused at strides 8, 16, 32 (docs/deimv2.md, Backbone).

Legend: B images, D width of the output, H x W pixels (multiples of 32), Hp x Wp patches.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import BackboneConfig
from models.layers import BatchNorm2d, in_autocast_type
from models.vit import VisionTransformer

NUM_MAPS = 3


def _down(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)


class SpatialTuningAdapter(nn.Module):
    """The convolutional detail branch beside the ViT (docs/deimv2.md, STA detail branch)."""

    def __init__(self, p: int) -> None:
        super().__init__()
        self.channels = (2 * p, 4 * p, 4 * p)
        self.stem = nn.Sequential(
            _down(3, p), BatchNorm2d(p), nn.GELU(), nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        )
        self.conv2 = nn.Sequential(_down(p, 2 * p), BatchNorm2d(2 * p))
        self.conv3 = nn.Sequential(nn.GELU(), _down(2 * p, 4 * p), BatchNorm2d(4 * p))
        self.conv4 = nn.Sequential(nn.GELU(), _down(4 * p, 4 * p), BatchNorm2d(4 * p))

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> maps [B, 2p, H/8, W/8], [B, 4p, H/16, W/16], [B, 4p, H/32, W/32]."""
        stride8 = self.conv2(self.stem(images))
        stride16 = self.conv3(stride8)
        return [stride8, stride16, self.conv4(stride16)]


class TinyBackbone(nn.Module):
    """Holds the ViT one level deeper, where official checkpoints of S and M have it (docs/deimv2.md, State dict)."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self._model = vit

    def forward(self, images: Tensor) -> list[Tensor]:
        """As `VisionTransformer.forward`."""
        maps: list[Tensor] = self._model(images)
        return maps


class DINOv3STAs(nn.Module):
    """ViT maps of three depths, resized to strides 8, 16, 32, each fused with the detail map of its stride."""

    def __init__(self, config: BackboneConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        dinov3 = config.name.startswith("dinov3")
        vit = VisionTransformer(
            config.vit,
            config.interaction_indexes,
            dinov3=dinov3,
            swiglu=config.name == "dinov3_vits16plus",
            gradient_checkpointing=gradient_checkpointing,
        )
        self.dinov3: nn.Module = vit if dinov3 else TinyBackbone(vit)
        self.sta = SpatialTuningAdapter(config.conv_inplane) if config.use_sta else None
        details = (0,) * NUM_MAPS if self.sta is None else self.sta.channels
        width = config.out_channels
        self.convs = nn.ModuleList(
            nn.Conv2d(config.vit.width + detail, width, kernel_size=1, bias=False) for detail in details
        )
        self.norms = nn.ModuleList(BatchNorm2d(width) for _ in details)
        self._frozen: list[nn.Module] = []
        if config.freeze == "all":
            self._frozen = [*self.children()]
        elif not config.finetune:
            self._frozen = [self.dinov3]
        elif isinstance(config.freeze, int):
            self._frozen = vit.freeze(config.freeze)
        for part in self._frozen:
            part.requires_grad_(False).eval()

    @property
    def vit(self) -> VisionTransformer:
        """The bare ViT: the part that a backbone weight file holds."""
        vit = self.dinov3._model if isinstance(self.dinov3, TinyBackbone) else self.dinov3
        assert isinstance(vit, VisionTransformer)
        return vit

    def train(self, mode: bool = True) -> DINOv3STAs:
        """As `nn.Module.train`, but frozen parts stay in evaluation mode (docs/deimv2.md, Known defects, 28)."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] -> maps [B, D, H/8, W/8], [B, D, H/16, W/16], [B, D, H/32, W/32]."""
        semantic = self.dinov3(images)
        if len(semantic) == 1:
            semantic = semantic * NUM_MAPS
        semantic = [_to_stride(x, index) for index, x in enumerate(semantic)]
        if self.sta is not None:
            details = self.sta(images)
            semantic = [torch.cat([in_autocast_type(x), y], dim=1) for x, y in zip(semantic, details, strict=True)]
        return [norm(conv(x)) for x, conv, norm in zip(semantic, self.convs, self.norms, strict=True)]


def _to_stride(x: Tensor, index: int) -> Tensor:
    """Bilinear resize of a stride-16 map by 2, 1 or 1/2 (the last is the mean of 2 x 2, sides being even)."""
    if index == 0:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    return x if index == 1 else F.avg_pool2d(x, 2)
