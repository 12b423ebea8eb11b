"""Multi-scale deformable attention without value and output projections (docs/deimv2.md, Deformable attention).

Legend: B images, Q queries, D width, M heads, d = D/M head width, P sampling points per head over all levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import in_autocast_type


class DeformableAttention(nn.Module):
    """Each head of each query reads P points around the query's reference box and takes their weighted mean."""

    num_points_scale: Tensor

    def __init__(self, width: int, num_heads: int, points_per_level: Sequence[int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.points_per_level = tuple(points_per_level)
        points = sum(self.points_per_level)
        # Persistent: official files carry this constant, and their value is to be used (docs/deimv2.md, State dict).
        scale = [1 / count for count in self.points_per_level for _ in range(count)]
        self.register_buffer("num_points_scale", torch.tensor(scale, dtype=torch.float32))
        self.sampling_offsets = nn.Linear(width, num_heads * points * 2)
        self.attention_weights = nn.Linear(width, num_heads * points)
        self._init_weights()

    def _init_weights(self) -> None:
        """Let heads look in different directions, each level's points further out (docs/deimv2.md, Initialisation)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        theta = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        direction = torch.stack([theta.cos(), theta.sin()], dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        steps = torch.cat([torch.arange(1, count + 1) for count in self.points_per_level])
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((direction[:, None] * steps[:, None]).flatten())

    def forward(self, query: Tensor, boxes: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Read from one float32 map [B*M, d, h, w] (`split_heads`) per level, fine to coarse: float32 [B, Q, D].

        `query` is [B, Q, D], `boxes` float32 [B, Q, 4] cxcywh, the reference of all levels; may leave [0, 1].
        """
        batch, queries, width = query.shape
        per_head = (batch, queries, self.num_heads, -1)
        query = in_autocast_type(query)
        weights = self.attention_weights(query).view(per_head).float().softmax(dim=-1)
        offsets = self.sampling_offsets(query).float().view(*per_head, 2)
        centre, size = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
        # grid_sample counts from -1 to 1 over the map: 2 * location - 1, location = centre + offset * size / 2.
        grid = torch.addcmul(2 * centre - 1, offsets, size * self.num_points_scale[:, None])
        # Queries go last: sampling and the sum over the points then run along contiguous memory.
        grid = grid.permute(0, 2, 3, 1, 4).flatten(0, 1)
        weights = weights.permute(0, 2, 3, 1).flatten(0, 1)[:, None]
        read = [
            F.grid_sample(value, points, mode="bilinear", padding_mode="zeros", align_corners=False)
            for value, points in zip(values, grid.split(list(self.points_per_level), dim=1), strict=True)
        ]
        out: Tensor = (torch.cat(read, dim=2) * weights).sum(dim=2)
        return out.view(batch, width, queries).transpose(1, 2)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Map [B, D, h, w] -> float32 [B*M, d, h, w]; head m takes channels m*d to (m+1)*d."""
    batch, _, height, width = x.shape
    contiguous = x.to(torch.float32, memory_format=torch.contiguous_format)
    return contiguous.view(batch * num_heads, -1, height, width)
