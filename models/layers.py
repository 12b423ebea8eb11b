"""Small parts shared by the encoder and the decoder.

Legend: B images, Q tokens, D width.
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Compute as written, also under autocast. Nothing where autocast is off: an exported graph stays free of it."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


class Mlp(nn.Module):
    """Linear layers with SiLU between them, none at the end."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """[..., widths[0]] -> [..., widths[-1]]."""
        *hidden, last = self.layers
        for layer in hidden:
            x = F.silu(layer(x))
        out: Tensor = last(x)
        return out

    def zero_last(self) -> None:
        """Make the output 0, whatever the input."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)


class SelfAttention(nn.Module):
    """Multi-head self-attention whose position code enters queries and keys only (spec 4.1, 5.2).

    The keys of the state dict are those of `nn.MultiheadAttention`, which cannot share the projection of
    queries and keys when the values lack the position code.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, position: Tensor, allowed: Tensor | None = None) -> Tensor:
        """[B, Q, D], position [1 or B, Q, D], allowed bool [Q, Q] (row may see column) -> [B, Q, D]."""
        batch, tokens, width = x.shape
        rows = 2 * width
        qk = F.linear(x + position, self.in_proj_weight[:rows], self.in_proj_bias[:rows])
        v = F.linear(x, self.in_proj_weight[rows:], self.in_proj_bias[rows:])
        heads = (batch, tokens, -1, width // self.num_heads)
        q, k = qk.view(heads).transpose(1, 2).chunk(2, dim=1)
        out = F.scaled_dot_product_attention(q, k, v.view(heads).transpose(1, 2), attn_mask=allowed)
        projected: Tensor = self.out_proj(out.transpose(1, 2).reshape(batch, tokens, width))
        return projected
