"""What passes through a detector on its way to the boxes, taken by hooks that are gone afterwards.

Legend: B images, N = P + Hp*Wp tokens (P prefix tokens: class, registers), M heads, d head width, D width,
Q queries, S sampling points of a head over all levels, C classes, n = `reg_max`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import UserError
from models.boxes import inverse_sigmoid
from models.decoder import DecoderLayer
from models.deformable_attention import DeformableAttention
from models.detector import DEIM
from models.distribution import distance_to_box, weighting_function
from models.layers import SelfAttention
from models.vit import PATCH_SIZE, Attention, Block, rotate


def require_deim(model: nn.Module, what: str) -> DEIM:
    """`model` as DEIMv2, for maps that a CNN baseline does not have.

    Raises:
        UserError: It is a baseline.
    """
    if isinstance(model, DEIM):
        return model
    raise UserError(
        f"{what}: not defined for a CNN baseline, which has no attention. Ask for class evidence (--what evidence), "
        "or take a DEIMv2 checkpoint."
    )


@dataclass(frozen=True)
class SelfAttentionMaps:
    """One layer's queries, keys and values as its fused kernel read them; weights are computed on demand."""

    q: Tensor
    """[B, M, N, d], after the rotation where there is one."""
    k: Tensor
    """[B, M, N, d], likewise."""
    v: Tensor
    """[B, M, N, d]."""

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    def rows(self, image: int, head: int, tokens: slice | Sequence[int] | Tensor = slice(None)) -> Tensor:
        """How much the chosen tokens attend to every token: float32 [len(tokens), N], each row sums to 1."""
        scale = self.q.shape[-1] ** -0.5
        scores: Tensor = (self.q[image, head, tokens].float() @ self.k[image, head].float().T) * scale
        return scores.softmax(dim=-1)


@dataclass(frozen=True)
class CrossAttentionMaps:
    """Where one decoder layer read."""

    locations: Tensor
    """float32 [B, Q, M, S, 2], x and y, 0..1 over the image; points outside read zeros."""
    weights: Tensor
    """float32 [B, Q, M, S], each head's sum to 1."""
    references: Tensor
    """float32 [B, Q, 4] cxcywh, the box that the layer started from."""
    points_per_level: tuple[int, ...]
    """Of each head, fine to coarse; their sum is S."""

    @property
    def level_of_point(self) -> Tensor:
        """int64 [S]."""
        counts = torch.tensor(self.points_per_level)
        return torch.arange(len(counts)).repeat_interleave(counts)


@dataclass(frozen=True)
class Captured:
    """One pass of a batch through DEIMv2. Layers count from 0; all tensors are detached."""

    image_size_hw: tuple[int, int]
    """Of the network's input, pixels."""
    outputs: dict[str, Tensor]
    """`pred_logits` [B, Q, C], `pred_boxes` [B, Q, 4] cxcywh."""
    vit_layers: tuple[SelfAttentionMaps, ...]
    """The blocks that run, first to last returned one."""
    num_prefix: int
    """P: token 0 is the class token, the other prefix tokens are registers; patches follow, row by row."""
    returned_blocks: tuple[int, ...]
    """Blocks whose patch tokens the detector reads."""
    features: tuple[Tensor, ...]
    """Patch tokens of `returned_blocks`: [B, D, Hp, Wp] each."""
    cross_attention: tuple[CrossAttentionMaps, ...]
    """Per decoder layer."""
    query_attention: tuple[SelfAttentionMaps, ...]
    """Per decoder layer, tokens are queries: N = Q."""
    layer_boxes: tuple[Tensor, ...]
    """float32 [B, Q, 4] cxcywh each: the encoder's proposal, then the outcome of every decoder layer."""
    distributions: tuple[Tensor, ...]
    """Per decoder layer, float32 [B, Q, 4, n + 1]: probabilities of the bins, sides left, top, right, bottom."""
    bin_values: Tensor
    """float32 [n + 1]: distance of a bin, in units of the reference's width (height) / `reg_scale`."""
    edge_references: Tensor
    """float32 [B, Q, 4] cxcywh: the box that the distributions' distances start from."""
    reg_scale: float

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Hp and Wp."""
        return self.image_size_hw[0] // PATCH_SIZE, self.image_size_hw[1] // PATCH_SIZE


@torch.no_grad()
def capture(model: nn.Module, images: Tensor) -> Captured:
    """Run DEIMv2 on normalised images [B, 3, H, W] and keep what its attention layers did.

    The model is only listened to: outputs, weights and buffers are as without. Memory grows with the number of
    tokens, not with its square.

    Raises:
        UserError: The model is a CNN baseline.
        ValueError: The model is in training mode.
    """
    deim = require_deim(model, "Attention")
    if deim.training:
        raise ValueError("the model must be in evaluation mode")
    with _listening(deim) as heard:
        outputs = deim(images)
    return _assemble(deim, images, outputs, heard)


@dataclass
class _Heard:
    """What the hooks kept, by layer."""

    features: list[Tensor] = field(default_factory=list)
    vit: dict[int, SelfAttentionMaps] = field(default_factory=dict)
    cross: dict[int, CrossAttentionMaps] = field(default_factory=dict)
    queries: dict[int, SelfAttentionMaps] = field(default_factory=dict)
    corners: dict[int, Tensor] = field(default_factory=dict)
    pre_boxes: list[Tensor] = field(default_factory=list)


@contextmanager
def _listening(model: DEIM) -> Iterator[_Heard]:
    """Hooks inside, none afterwards."""
    heard = _Heard()
    vit, decoder = model.backbone.vit, model.decoder
    handles = [
        vit.register_forward_hook(lambda _module, _inputs, maps: heard.features.extend(maps)),
        decoder.pre_bbox_head.register_forward_hook(lambda _module, _inputs, out: heard.pre_boxes.append(out)),
    ]
    for index, block in enumerate(vit.blocks):
        assert isinstance(block, Block)
        handles.append(block.attn.register_forward_hook(partial(_keep_vit, heard.vit, index)))
    for index, layer in enumerate(decoder.decoder.layers):
        assert isinstance(layer, DecoderLayer)
        handles.append(layer.cross_attn.register_forward_hook(partial(_keep_cross, heard.cross, index)))
        handles.append(layer.self_attn.register_forward_hook(partial(_keep_queries, heard.queries, index)))
        handles.append(decoder.dec_bbox_head[index].register_forward_hook(partial(_keep_output, heard.corners, index)))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _keep_output(kept: dict[int, Tensor], index: int, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    kept[index] = output


def _keep_vit(kept: dict[int, SelfAttentionMaps], index: int, module: Attention, inputs: Any, _output: Any) -> None:
    x, rotation = inputs
    batch, tokens, width = x.shape
    heads = module.num_heads
    qkv = module.qkv(x).view(batch, tokens, 3, heads, width // heads)
    q, k = rotate(qkv[:, :, :2], rotation).permute(2, 0, 3, 1, 4)
    kept[index] = SelfAttentionMaps(q, k, qkv[:, :, 2].transpose(1, 2))


def _keep_queries(
    kept: dict[int, SelfAttentionMaps], index: int, module: SelfAttention, inputs: Any, _output: Any
) -> None:
    x, position, _allowed = inputs  # in evaluation every query may see every other
    batch, tokens, width = x.shape
    rows, heads = 2 * width, module.num_heads
    qk = F.linear(x + position, module.in_proj_weight[:rows], module.in_proj_bias[:rows])
    v = F.linear(x, module.in_proj_weight[rows:], module.in_proj_bias[rows:])
    q, k = qk.view(batch, tokens, -1, width // heads).transpose(1, 2).chunk(2, dim=1)
    kept[index] = SelfAttentionMaps(q, k, v.view(batch, tokens, heads, -1).transpose(1, 2))


def _keep_cross(
    kept: dict[int, CrossAttentionMaps], index: int, module: DeformableAttention, inputs: Any, _output: Any
) -> None:
    query, boxes, _values = inputs
    per_head = (*query.shape[:2], module.num_heads, -1)
    weights = module.attention_weights(query).view(per_head).float().softmax(dim=-1)
    offsets = module.sampling_offsets(query).float().view(*per_head, 2)
    centre, size = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
    locations = centre + 0.5 * offsets * module.num_points_scale[:, None] * size
    kept[index] = CrossAttentionMaps(locations, weights, boxes, module.points_per_level)


def _assemble(model: DEIM, images: Tensor, outputs: dict[str, Tensor], heard: _Heard) -> Captured:
    decoder = model.decoder
    count = len(heard.cross)
    num_bins = heard.corners[0].shape[-1] // 4
    bins = weighting_function(num_bins - 1, decoder.up, decoder.reg_scale)
    proposals = heard.cross[0].references
    references = (heard.pre_boxes[0].float() + inverse_sigmoid(proposals)).sigmoid()
    corners = torch.zeros((), device=images.device)
    boxes, distributions = [proposals], []
    for index in range(count):
        corners = heard.corners[index].float() + corners
        distributions.append(corners.view(*corners.shape[:2], 4, -1).softmax(dim=-1))
        boxes.append(distance_to_box(references, (distributions[-1] * bins).sum(dim=-1), decoder.reg_scale))
    vit = model.backbone.vit
    return Captured(
        image_size_hw=(images.shape[-2], images.shape[-1]),
        outputs=outputs,
        vit_layers=tuple(heard.vit[index] for index in sorted(heard.vit)),
        num_prefix=vit.num_prefix,
        returned_blocks=vit.returned_blocks,
        features=tuple(heard.features),
        cross_attention=tuple(heard.cross[index] for index in range(count)),
        query_attention=tuple(heard.queries[index] for index in range(count)),
        layer_boxes=tuple(boxes),
        distributions=tuple(distributions),
        bin_values=bins,
        edge_references=references,
        reg_scale=float(decoder.reg_scale.abs()),
    )
