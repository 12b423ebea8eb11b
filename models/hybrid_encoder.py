"""Hybrid encoder: attention on the coarsest map, then top-down and bottom-up fusion (spec section 4).

Legend: B images, D width, h x w the size of a map; maps are ordered by stride 8, 16, 32.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.layers import Activation, SelfAttention, activation


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, activation (or none)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        act: Activation | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outputs)
        self._act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self._act is None else self._act(x)


class RepVggBlock(nn.Module):
    """act(BN(conv3x3(x)) + BN(conv1x1(x))), no identity branch."""

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self._act = act

    def forward(self, x: Tensor) -> Tensor:
        return self._act(self.conv1(x) + self.conv2(x))


class CspStage(nn.Module):
    """Half of the channels pass a chain of RepVGG blocks, the other half is added to the result."""

    def __init__(self, inputs: int, outputs: int, num_blocks: int, act: Activation) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, 2 * outputs, 1, act=act)
        self.bottlenecks = nn.Sequential(*(RepVggBlock(outputs, act) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = self.conv1(x).chunk(2, dim=1)
        out: Tensor = kept + self.bottlenecks(worked)
        return out


class FuseBlock(nn.Module):
    """Two CSP stages one after the other, all intermediate results concatenated."""

    def __init__(self, width: int, stage_width: int, num_blocks: int, act: Activation) -> None:
        super().__init__()
        self.cv1 = ConvNorm(width, 2 * width, 1, act=act)
        self.cv2 = nn.Sequential(CspStage(width, stage_width, num_blocks, act))
        self.cv3 = nn.Sequential(CspStage(stage_width, stage_width, num_blocks, act))
        self.cv4 = ConvNorm(2 * (width + stage_width), width, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        split = self.cv1(x)
        first = self.cv2(split.chunk(2, dim=1)[1])
        out: Tensor = self.cv4(torch.cat([split, first, self.cv3(first)], dim=1))
        return out


class ScDown(nn.Module):
    """Halve a map: pointwise, then depthwise with stride 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(width, width, 1)
        self.cv2 = ConvNorm(width, width, 3, stride=2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv2(self.cv1(x))
        return out


class AifiLayer(nn.Module):
    """Post-norm transformer layer on a flattened map."""

    def __init__(self, width: int, num_heads: int, ffn_width: int, act: Activation) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, num_heads)
        self.linear1 = nn.Linear(width, ffn_width)
        self.linear2 = nn.Linear(ffn_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self._act = act

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """[B, h*w, D], position [1, h*w, D] -> [B, h*w, D]."""
        x = self.norm1(x + self.self_attn(x, position))
        out: Tensor = self.norm2(x + self.linear2(self._act(self.linear1(x))))
        return out


class AifiStack(nn.Module):
    """The attention layers of one map."""

    def __init__(self, layers: Sequence[AifiLayer], gradient_checkpointing: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """[B, h*w, D] -> [B, h*w, D]."""
        recompute = self._gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            if recompute:
                x = checkpoint(layer, x, position, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, position)
        return x


def sine_position_embedding(height: int, width: int, channels: int, temperature: float) -> Tensor:
    """[1, height*width, channels], row-major: sin and cos of the row, then sin and cos of the column.

    The original enumerates non-square maps in the wrong order (REF-BUG 8); this is the corrected form,
    which is the same on square maps (spec 4.1).
    """
    quarter = channels // 4
    omega = temperature ** -(torch.arange(quarter, dtype=torch.float32) / quarter)
    rows = torch.arange(height, dtype=torch.float32)[:, None] * omega
    columns = torch.arange(width, dtype=torch.float32)[:, None] * omega
    row_code = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    column_code = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([row_code, column_code], dim=-1).reshape(1, height * width, 4 * quarter)
