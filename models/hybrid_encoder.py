"""Hybrid encoder: attention on the coarsest map, then top-down and bottom-up fusion (docs/deimv2.md, Hybrid encoder).

Legend: B images, D width, h x w the size of a map; maps are ordered by stride 8, 16, 32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import EncoderConfig
from models.layers import BatchNorm2d, SelfAttention, becomes_part_of_graph, clones, run_block


class ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, SiLU (or nothing)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, silu: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups, bias=False)
        self.norm = BatchNorm2d(outputs)
        self._silu = silu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.silu(x) if self._silu else x


class RepVggBlock(nn.Module):
    """SiLU(BN(conv3x3(x)) + BN(conv1x1(x))), no identity branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv1(x) + self.conv2(x))


class CspStage(nn.Module):
    """Half of the channels pass a chain of RepVGG blocks, the other half is added to the result."""

    def __init__(self, inputs: int, outputs: int, num_blocks: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, 2 * outputs, 1, silu=True)
        self.bottlenecks = nn.Sequential(*(RepVggBlock(outputs) for _ in range(num_blocks)))

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = self.conv1(x).chunk(2, dim=1)
        out: Tensor = kept + self.bottlenecks(worked)
        return out


class FuseBlock(nn.Module):
    """Two CSP stages one after the other, all intermediate results concatenated."""

    def __init__(self, width: int, stage_width: int, num_blocks: int) -> None:
        super().__init__()
        self.cv1 = ConvNorm(width, 2 * width, 1, silu=True)
        self.cv2 = nn.Sequential(CspStage(width, stage_width, num_blocks))
        self.cv3 = nn.Sequential(CspStage(stage_width, stage_width, num_blocks))
        self.cv4 = ConvNorm(2 * (width + stage_width), width, 1, silu=True)

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = self.cv1(x).chunk(2, dim=1)
        first = self.cv2(worked)
        out: Tensor = self.cv4(torch.cat([kept, worked, first, self.cv3(first)], dim=1))
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

    def __init__(self, width: int, num_heads: int, ffn_width: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, num_heads)
        self.linear1 = nn.Linear(width, ffn_width)
        self.linear2 = nn.Linear(ffn_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """[B, h*w, D], position [1, h*w, D] -> [B, h*w, D]."""
        x = self.norm1(x + self.self_attn(x, position))
        out: Tensor = self.norm2(x + self.linear2(F.gelu(self.linear1(x))))
        return out


class AifiStack(nn.Module):
    """The attention layers of one map."""

    def __init__(self, layers: Sequence[AifiLayer], gradient_checkpointing: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._gradient_checkpointing = gradient_checkpointing

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """[B, h*w, D] -> [B, h*w, D]."""
        for layer in self.layers:
            x = run_block(layer, x, position, recompute=self._gradient_checkpointing)
        return x


def sine_position_embedding(
    height: int, width: int, channels: int, temperature: float, device: torch.device | None = None
) -> Tensor:
    """[1, height*width, channels], row-major: sin and cos of the row, then sin and cos of the column.

    The original enumerates non-square maps in the wrong order (docs/deimv2.md, Known defects, 8); this is the
    corrected form, which is the same on square maps (docs/deimv2.md, AIFI).
    """
    quarter = channels // 4
    omega = temperature ** -(torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    rows = torch.arange(height, dtype=torch.float32, device=device)[:, None] * omega
    columns = torch.arange(width, dtype=torch.float32, device=device)[:, None] * omega
    row_code = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    column_code = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([row_code, column_code], dim=-1).reshape(1, height * width, 4 * quarter)


class HybridEncoder(nn.Module):
    """Mixes the three backbone maps; every map keeps its size and leaves with `hidden_dim` channels."""

    def __init__(self, config: EncoderConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        width = config.hidden_dim
        self._width = width
        self._temperature = config.pe_temperature
        self._attended_maps = config.use_encoder_idx
        self._positions: dict[tuple[int, int, torch.device], Tensor] = {}
        self.input_proj = nn.ModuleList(
            nn.Identity() if channels == width else ConvNorm(channels, width, 1) for channels in config.in_channels
        )
        self.encoder = nn.ModuleList(
            AifiStack(
                [AifiLayer(width, config.nhead, config.dim_feedforward) for _ in range(config.num_encoder_layers)],
                gradient_checkpointing,
            )
            for _ in self._attended_maps
        )
        steps = len(config.in_channels) - 1
        fuse = FuseBlock(width, round(config.expansion * width // 2), round(3 * config.depth_mult))
        self.lateral_convs = clones(ConvNorm(width, width, 1), steps)
        self.fpn_blocks = clones(fuse, steps)
        self.downsample_convs = clones(nn.Sequential(ScDown(width)), steps)
        self.pan_blocks = clones(fuse, steps)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Backbone maps [B, in_channels[i], h_i, w_i], fine to coarse -> maps [B, D, h_i, w_i]."""
        maps = [project(x) for project, x in zip(self.input_proj, maps, strict=True)]
        for stack, index in zip(self.encoder, self._attended_maps, strict=True):
            maps[index] = self._attend(stack, maps[index])
        coarse = maps[-1]
        laterals = []
        for lateral, fuse, finer in zip(self.lateral_convs, self.fpn_blocks, reversed(maps[:-1]), strict=True):
            laterals.append(lateral(coarse))
            coarse = fuse(F.interpolate(laterals[-1], scale_factor=2.0, mode="nearest") + finer)
        # The way back adds the laterals, not the maps they came from (docs/deimv2.md, FPN and PAN).
        outputs = [coarse]
        for down, fuse, lateral_map in zip(self.downsample_convs, self.pan_blocks, reversed(laterals), strict=True):
            outputs.append(fuse(down(outputs[-1]) + lateral_map))
        return outputs

    def _attend(self, stack: nn.Module, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        out: Tensor = stack(x.flatten(2).transpose(1, 2).contiguous(), self._position(height, width, x.device))
        return out.transpose(1, 2).reshape(x.shape)

    def _position(self, height: int, width: int, device: torch.device) -> Tensor:
        if becomes_part_of_graph(height, width):
            return sine_position_embedding(height, width, self._width, self._temperature, device)
        key = (height, width, device)
        if key not in self._positions:
            # Kept for later steps, so it must not become an inference tensor, which no backward pass may use.
            with torch.inference_mode(False):
                code = sine_position_embedding(height, width, self._width, self._temperature)
                self._positions[key] = code.to(device)
        return self._positions[key]
