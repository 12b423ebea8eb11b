"""The convolutional detail branch beside the ViT ("spatial tuning adapter", docs/deimv2.md, STA detail branch)."""

from __future__ import annotations

from torch import Tensor, nn

from models.layers import BatchNorm2d


def _down(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)


class SpatialTuningAdapter(nn.Module):
    """Detail maps at strides 8, 16, 32.

    Args:
        base_width: p; the maps have 2p, 4p and 4p channels (`channels`).
    """

    def __init__(self, base_width: int) -> None:
        super().__init__()
        p = base_width
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
