"""Small parts shared by the backbone, the encoder and the decoder.

Legend: B images, Q tokens, D width.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Compute as written, also under autocast. Nothing where autocast is off: an exported graph stays free of it."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def becomes_part_of_graph(*sides: int) -> bool:
    """Whether what follows from an image's size is computed in the graph, not kept from step to step: in an export for
    any size, and where torch.compile traces, which would compile anew for each entry that a cache gets."""
    return torch.compiler.is_dynamo_compiling() or not all(isinstance(side, int) for side in sides)


def in_autocast_type(x: Tensor) -> Tensor:
    """Cast an activation that several layers read, which autocast would cast anew for each of them."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def weights_in_autocast_type(model: nn.Module, exact: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Cast the weights that autocast would cast one by one, all at once: two launches instead of two per layer.

    Linear layers, convolutions and packed projections are meant, but for those in `exact`, which compute in float32.
    Returned are, for `functional_call`, names of parameters and their casts, through which gradients reach them.
    """
    kept = {id(module) for part in exact for module in part.modules()}
    cast = {
        f"{prefix}.{name}": parameter
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | SelfAttention) and id(module) not in kept
        for name, parameter in module.named_parameters(recurse=False)
    }
    casts: dict[str, Tensor] = {}
    for learns in (True, False):  # apart, or the backward pass would go through what is frozen
        group = {name: parameter for name, parameter in cast.items() if parameter.requires_grad is learns}
        if group:
            flat = torch.cat([parameter.flatten() for parameter in group.values()])
            parts = in_autocast_type(flat).split([parameter.numel() for parameter in group.values()])
            casts |= {name: part.view_as(group[name]) for name, part in zip(group, parts, strict=True)}
    return casts


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that leaves counting its batches to `count_batches`: one launch instead of one per layer."""

    def forward(self, x: Tensor) -> Tensor:
        learned = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(x, *learned, self.training, self.momentum or 0.0, self.eps)


def count_batches(model: nn.Module) -> None:
    """Count a training batch in all `BatchNorm2d` of a model that are in training mode."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm2d) and module.training]
    counters = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
    if counters:
        torch._foreach_add_(counters, 1)


def clones(module: nn.Module, count: int) -> nn.ModuleList:
    """Copy a module so that all start with equal weights, as the original's do (docs/deimv2.md, Initialisation)."""
    return nn.ModuleList(copy.deepcopy(module) for _ in range(count))


def run_block(block: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """Run a block; with `recompute` a training pass keeps its inputs only and runs it again in the backward pass."""
    if recompute and block.training and torch.is_grad_enabled():
        # Nothing random happens inside a block, so its recomputation needs no saved generator state.
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    else:
        out = block(*inputs)
    return out


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
    """Attends with several heads; the position code enters queries and keys only (docs/deimv2.md, Decoder layer).

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

    def forward(self, x: Tensor, position: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, Q, D], position [1 or B, Q, D] -> [B, Q, D].

        `mask`: bool [Q, Q], row may see column; or float [B, heads, Q, Q], added to the logits.
        """
        batch, tokens, width = x.shape
        # Split, not sliced: the gradient of slices is a sum of padded zeros, that of a split one concatenation.
        qk_weight, v_weight = self.in_proj_weight.split((2 * width, width))
        qk_bias, v_bias = self.in_proj_bias.split((2 * width, width))
        qk, v = F.linear(x + position, qk_weight, qk_bias), F.linear(x, v_weight, v_bias)
        heads = (batch, tokens, self.num_heads, width // self.num_heads)
        q, k, v = (x.view(heads).transpose(1, 2) for x in (*qk.chunk(2, dim=-1), v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.out_proj(out.transpose(1, 2).reshape(batch, tokens, width))
        return projected
