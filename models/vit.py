"""Plain vision transformers with rotary position embedding (docs/deimv2.md, ViT-Tiny / DINOv3 ViT-S/16).

Two families share this code: DEIMv2's ViT-Tiny and ViT-Tiny+ (and `vit_custom` of the same structure), and
DINOv3's ViT-S/16 and ViT-S+/16, which add register ("storage") tokens, layer scale, a key-bias mask, a final
norm and a random rescaling of the coordinates in training.

Legend: B images, P prefix tokens (class, registers), Hp x Wp patches, N = P + Hp*Wp tokens, D width, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ViTShape
from models.layers import run_block

PATCH_SIZE = 16
"""Side of a patch in pixels; the fusion with the detail branch relies on it."""

_NUM_REGISTERS = 4
_ROPE_BASE = 100.0
_MAX_LOG_RESCALE = math.log(2.0)


class RotaryEmbedding(nn.Module):
    """Rotation angles of the patches from their row and column, each axis normalised by its own length."""

    periods: Tensor

    def __init__(self, head_width: int) -> None:
        super().__init__()
        quarter = head_width // 4
        # Persistent: official files carry these constants, and their values are used (docs/deimv2.md, State dict).
        self.register_buffer("periods", _ROPE_BASE ** (torch.arange(quarter, dtype=torch.float32) / quarter))

    def forward(self, height: int, width: int, rescale: Tensor | None = None) -> Tensor:
        """Angles, float32 [height*width, d/2]: rows first, then columns; `rescale` [1] multiplies coordinates."""
        device = self.periods.device
        rows = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) * (2 / height) - 1
        columns = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) * (2 / width) - 1
        if rescale is not None:
            rows, columns = rows * rescale, columns * rescale
        frequency = 2 * math.pi / self.periods.float()
        row_angles = (rows[:, None] * frequency)[:, None].expand(-1, width, -1)
        column_angles = (columns[:, None] * frequency)[None].expand(height, -1, -1)
        return torch.cat([row_angles, column_angles], dim=-1).flatten(0, 1)


def make_rotation(angles: Tensor, num_prefix: int) -> Tensor:
    """Angles [Hp*Wp, d/2] -> the rotation of all tokens, ready for `rotate`: float32 [2, N, 1, 1, d], cosines and
    signed sines. The tokens before the patches get angle 0, which leaves them as they are.

    A plain tensor, because torch.compile (2.11) loses the fields of an object that it hands from module to module.
    """
    angles = F.pad(angles, (0, 0, num_prefix, 0))
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])[:, :, None, None]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate [B, N, *, *, d] in float32: x * cos + swap_halves(x) * signed_sin; the type of `x` is kept."""
    cos, signed_sin = rotation
    exact = x.float()
    swapped = exact.roll(exact.shape[-1] // 2, dims=-1)
    rotated: Tensor = torch.addcmul(exact * cos, swapped, signed_sin).to(x.dtype)
    return rotated


class MaskedKeyLinear(nn.Linear):
    """DINOv3's qkv projection: a mask (1, 0, 1 by thirds) takes the bias of the keys away."""

    bias_mask: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width)
        mask = torch.ones(3 * width)
        mask[width : 2 * width] = 0
        self.register_buffer("bias_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias * self.bias_mask)


class Attention(nn.Module):
    """Multi-head self-attention with rotated queries and keys."""

    def __init__(self, shape: ViTShape, dinov3: bool) -> None:
        super().__init__()
        self.num_heads = shape.heads
        self.qkv = MaskedKeyLinear(shape.width) if dinov3 else nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        qk, v = qkv.split((2, 1), dim=2)
        q, k = rotate(qk, rotation).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v.squeeze(2).transpose(1, 2))
        projected: Tensor = self.proj(out.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class GeluFfn(nn.Module):
    """fc2(GELU(fc1(x))), exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SwigluFfn(nn.Module):
    """w3(SiLU(w1(x)) * w2(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w3(F.silu(self.w1(x)) * self.w2(x))
        return out


class LayerScale(nn.Module):
    """A learned factor per channel on the way into the residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, shape: ViTShape, dinov3: bool, swiglu: bool) -> None:
        super().__init__()
        eps = 1e-5 if dinov3 else 1e-6
        self.norm1 = nn.LayerNorm(shape.width, eps=eps)
        self.attn = Attention(shape, dinov3)
        self.ls1 = LayerScale(shape.width) if dinov3 else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, eps=eps)
        self.mlp = (SwigluFfn if swiglu else GeluFfn)(shape.width, round(shape.width * shape.mlp_ratio))
        self.ls2 = LayerScale(shape.width) if dinov3 else nn.Identity()

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    """Non-overlapping patches of 16 x 16 pixels -> tokens, row by row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, Hp*Wp, D]."""
        batch, channels, height, width = images.shape
        grid = (height // PATCH_SIZE, PATCH_SIZE, width // PATCH_SIZE, PATCH_SIZE)
        patches = images.reshape(batch, channels, *grid).permute(0, 2, 4, 1, 3, 5)
        # One matrix product: the same numbers as the convolution, whose backward pass is slower on CPUs.
        return F.linear(patches.reshape(batch, grid[0] * grid[2], -1), self.proj.weight.flatten(1), self.proj.bias)


class VisionTransformer(nn.Module):
    """Returns the patch tokens after chosen blocks (0-based, ascending); `dinov3` is DINOv3's structure instead of
    ViT-Tiny's, `swiglu` its gated feed-forward part."""

    def __init__(
        self,
        shape: ViTShape,
        returned_blocks: Sequence[int],
        *,
        dinov3: bool = False,
        swiglu: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self._dinov3 = dinov3
        self.returned_blocks = tuple(returned_blocks)
        self.gradient_checkpointing = gradient_checkpointing
        self._num_frozen = 0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        if dinov3:
            self.storage_tokens = nn.Parameter(torch.zeros(1, _NUM_REGISTERS, shape.width))
            self.mask_token = nn.Parameter(torch.zeros(1, shape.width))
            self.norm = nn.LayerNorm(shape.width, eps=1e-5)
        self.patch_embed = PatchEmbed(shape.width)
        self.rope_embed = RotaryEmbedding(shape.width // shape.heads)
        self.blocks = nn.ModuleList(Block(shape, dinov3, swiglu) for _ in range(shape.depth))
        self._init_weights()
        # Nothing runs the blocks after the last returned one. They stay, because official files hold them.
        self.blocks[self.returned_blocks[-1] + 1 :].requires_grad_(False)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self._dinov3:
            nn.init.normal_(self.cls_token, std=0.02)
            nn.init.normal_(self.storage_tokens, std=0.02)
        else:
            nn.init.trunc_normal_(self.cls_token, std=0.02)

    def freeze(self, num_blocks: int) -> list[nn.Module]:
        """Take the tokens, the patch embedding and the first blocks from training; return the modules of these."""
        self._num_frozen = num_blocks
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(False)
        frozen = [self.patch_embed, *self.blocks[:num_blocks]]
        for part in frozen:
            part.requires_grad_(False)
        return frozen

    @property
    def num_prefix(self) -> int:
        """P: the class token and the registers, which come before the patches."""
        return 1 + (_NUM_REGISTERS if self._dinov3 else 0)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W], sides multiples of 16 -> maps [B, D, Hp, Wp], one per returned block."""
        height, width = images.shape[-2] // PATCH_SIZE, images.shape[-1] // PATCH_SIZE
        prefix = self._prefix_tokens(images.shape[0])
        num_prefix = prefix.shape[1]
        x = torch.cat([prefix, self.patch_embed(images)], dim=1)
        rotation = None
        maps = []
        for index in range(self.returned_blocks[-1] + 1):
            rescales = self._dinov3 and self.training and index >= self._num_frozen
            if rotation is None or rescales:
                rotation = self._rotation(height, width, num_prefix, rescales)
            x = run_block(self.blocks[index], x, rotation, recompute=self.gradient_checkpointing)
            if index in self.returned_blocks:
                tokens = self.norm(x) if self._dinov3 else x
                maps.append(tokens[:, num_prefix:].transpose(1, 2).reshape(x.shape[0], -1, height, width))
        return maps

    def _prefix_tokens(self, batch: int) -> Tensor:
        if not self._dinov3:
            return self.cls_token.expand(batch, -1, -1)
        # The mask token belongs to DINOv3's pre-training; it takes part with weight 0, so that every parameter
        # gets a gradient (distributed training insists on it).
        cls_token = self.cls_token + 0 * self.mask_token
        return torch.cat([cls_token, self.storage_tokens], dim=1).expand(batch, -1, -1)

    def _rotation(self, height: int, width: int, num_prefix: int, rescales: bool) -> Tensor:
        rescale = None
        if rescales:
            rescale = torch.empty(1, device=self.rope_embed.periods.device)
            rescale = rescale.uniform_(-_MAX_LOG_RESCALE, _MAX_LOG_RESCALE).exp()
        return make_rotation(self.rope_embed(height, width, rescale), num_prefix)
