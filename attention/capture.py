"""What a detector predicts, and what passes through it on the way, taken by hooks that are gone afterwards.

Legend: B images, N = P + Hp*Wp tokens (P prefix tokens: class, registers), M heads, d head width, D width,
Q queries, S sampling points of a head over all levels, L decoder layers, C classes, n = `reg_max`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import UserError
from models.boxes import cxcywh_to_xyxy, distance_to_box, inverse_sigmoid, paired_iou, weighting_function
from models.decoder import DecoderLayer
from models.detector import DEIM
from models.vit import PATCH_SIZE, Block, rotate

_SAME_PLACE_IOU = 0.7
"""Two predictions of one class that overlap so much show the same thing."""


def require_deim(model: nn.Module, what: str) -> DEIM:
    """Return `model` as DEIMv2, for maps that a CNN baseline does not have.

    Raises:
        UserError: It is a baseline.
    """
    if isinstance(model, DEIM):
        return model
    raise UserError(
        f"{what}: not defined for a CNN baseline, which has no attention. Ask for class evidence (--what evidence), "
        "or take a DEIMv2 checkpoint."
    )


class SelfAttentionMaps(NamedTuple):
    """One layer's queries and keys [B, M, N, d] as its fused kernel read them; weights are computed on demand."""

    q: Tensor
    k: Tensor
    bias: Tensor | None = None
    """[B, M, N, N], added to the logits."""

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    def rows(self, image: int, head: int, tokens: slice | Sequence[int] | Tensor = slice(None)) -> Tensor:
        """Compute how much the chosen tokens attend to every token: float32 [len(tokens), N], each row sums to 1."""
        scale = self.q.shape[-1] ** -0.5
        scores: Tensor = (self.q[image, head, tokens].float() @ self.k[image, head].float().T) * scale
        if self.bias is not None:
            scores = scores + self.bias[image, head, tokens].float()
        return scores.softmax(dim=-1)


class CrossAttentionMaps(NamedTuple):
    """Where one decoder layer read."""

    locations: Tensor
    """float32 [B, Q, M, S, 2], x and y, 0..1 over the image; points outside read zeros."""
    weights: Tensor
    """float32 [B, Q, M, S], each head's sum to 1."""
    references: Tensor
    """float32 [B, Q, 4] cxcywh, the box that the layer started from."""
    level_of_point: Tensor
    """int64 [S], 0 is the finest map."""


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
    """[L]"""
    query_attention: tuple[SelfAttentionMaps, ...]
    """[L], tokens are queries: N = Q."""
    layer_boxes: tuple[Tensor, ...]
    """[1 + L], float32 [B, Q, 4] cxcywh each: the encoder's proposal, then the outcome of every decoder layer."""
    distribution: Tensor
    """float32 [B, Q, 4, n + 1], of the last layer: probabilities of the bins, sides left, top, right, bottom."""
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
    """
    deim = require_deim(model, "Attention")
    with _listening(deim) as heard:
        outputs = deim(images)
    vit, decoder = deim.backbone.vit, deim.decoder
    cross: list[CrossAttentionMaps] = heard["cross"]
    proposals = cross[0].references
    references = (heard["pre_boxes"][0].float() + inverse_sigmoid(proposals)).sigmoid()
    bins = weighting_function(heard["corners"][0].shape[-1] // 4 - 1, decoder.up, decoder.reg_scale)
    corners = distribution = torch.zeros((), device=images.device)
    boxes = [proposals]
    for of_layer in heard["corners"]:
        corners = of_layer.float() + corners
        distribution = corners.view(*corners.shape[:2], 4, -1).softmax(dim=-1)
        boxes.append(distance_to_box(references, (distribution * bins).sum(dim=-1), decoder.reg_scale))
    return Captured(
        image_size_hw=(images.shape[-2], images.shape[-1]),
        outputs=outputs,
        vit_layers=tuple(heard["vit"]),
        num_prefix=vit.num_prefix,
        returned_blocks=vit.returned_blocks,
        features=tuple(heard["features"][0]),
        cross_attention=tuple(cross),
        query_attention=tuple(heard["queries"]),
        layer_boxes=tuple(boxes),
        distribution=distribution,
        bin_values=bins,
        edge_references=references,
        reg_scale=float(decoder.reg_scale.abs()),
    )


@contextmanager
def _listening(model: DEIM) -> Iterator[dict[str, list[Any]]]:
    """Hooks inside, none afterwards; each kind's list is in the order of the layers, since that is how they run."""
    heard: dict[str, list[Any]] = defaultdict(list)
    handles = []

    def keep(kind: str, module: nn.Module, read: Callable[[Any, Any, Any], object] = lambda *call: call[-1]) -> None:
        handles.append(module.register_forward_hook(lambda *call: heard[kind].append(read(*call))))

    vit, decoder = model.backbone.vit, model.decoder
    keep("features", vit)
    keep("pre_boxes", decoder.pre_bbox_head)
    for block in vit.blocks:
        assert isinstance(block, Block)
        keep("vit", block.attn, _vit_attention)
    for index, layer in enumerate(decoder.decoder.layers):
        assert isinstance(layer, DecoderLayer)
        keep("cross", layer.cross_attn, _cross_attention)
        keep("queries", layer.self_attn, _query_attention)
        keep("corners", decoder.dec_bbox_head[index])
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _vit_attention(module: Any, inputs: Any, _output: Any) -> SelfAttentionMaps:
    x, rotation = inputs
    batch, tokens, width = x.shape
    qkv = module.qkv(x).view(batch, tokens, 3, module.num_heads, width // module.num_heads)
    q, k = rotate(qkv[:, :, :2], rotation).permute(2, 0, 3, 1, 4)
    return SelfAttentionMaps(q, k)


def _query_attention(module: Any, inputs: Any, _output: Any) -> SelfAttentionMaps:
    x, position, bias = inputs  # in evaluation every query may see every other
    batch, tokens, width = x.shape
    rows, heads = 2 * width, module.num_heads
    qk = F.linear(x + position, module.in_proj_weight[:rows], module.in_proj_bias[:rows])
    q, k = qk.view(batch, tokens, -1, width // heads).transpose(1, 2).chunk(2, dim=1)
    return SelfAttentionMaps(q, k, bias)


def _cross_attention(module: Any, inputs: Any, _output: Any) -> CrossAttentionMaps:
    query, boxes, _values = inputs
    per_head = (*query.shape[:2], module.num_heads, -1)
    weights = module.attention_weights(query).view(per_head).float().softmax(dim=-1)
    offsets = module.sampling_offsets(query).float().view(*per_head, 2)
    centre, size = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
    locations = centre + 0.5 * offsets * module.num_points_scale[:, None] * size
    counts = torch.tensor(module.points_per_level)
    return CrossAttentionMaps(locations, weights, boxes, torch.arange(len(counts)).repeat_interleave(counts))


class Predictions(NamedTuple):
    """What a detector says of one image; row k is query k (DEIMv2) or detection k (baseline). K rows, on the CPU."""

    boxes: Tensor
    """float32 [K, 4], xyxy in [0, 1]; they may leave the image."""
    scores: Tensor
    """float32 [K, C] in [0, 1]; a baseline's detections score 0 for all classes but their own."""


def predictions_of(outputs: Any, num_classes: int) -> list[Predictions]:
    """Read the outputs of a detector of any kind in evaluation mode; one entry an image."""
    if isinstance(outputs, Mapping):
        boxes = cxcywh_to_xyxy(outputs["pred_boxes"].float()).cpu()
        return [Predictions(*one) for one in zip(boxes, outputs["pred_logits"].float().sigmoid().cpu(), strict=True)]
    predictions = []
    for one in outputs:
        scores = torch.zeros(len(one["scores"]), num_classes)
        scores.scatter_(1, one["labels"].cpu()[:, None], one["scores"].float().cpu()[:, None])
        predictions.append(Predictions(one["boxes"].float().cpu(), scores))
    return predictions


class PredictedObject(NamedTuple):
    """One query (DEIMv2) or detection (baseline) with its best class."""

    query: int
    """Row of the detector's output."""
    label: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    """0..1 over the image; it may leave it a little."""


def all_objects(predictions: Predictions) -> list[PredictedObject]:
    """Return every query or detection with its best class, best score first; ties by row."""
    scores, labels = predictions.scores.max(dim=-1)
    return [
        PredictedObject(row, int(labels[row]), float(scores[row]), tuple(predictions.boxes[row].tolist()))
        for row in torch.sort(scores, descending=True, stable=True).indices.tolist()
        if bool(torch.isfinite(predictions.boxes[row]).all()) and bool(torch.isfinite(scores[row]))
    ]


def choose_objects(
    objects: Sequence[PredictedObject], *, queries: Sequence[int] = (), top: int = 3, min_score: float = 0.3
) -> list[PredictedObject]:
    """Choose what to draw: the given queries in their order, or else the `top` best of at least `min_score`.

    Of several predictions of a class in one place the best stands for all: the detector suppresses none, and a second
    figure of the same would hide another object's. Where nothing reaches `min_score` nothing was detected.

    Raises:
        UserError: There is no such query.
    """
    if queries:
        by_query = {one.query: one for one in objects}
        unknown = [str(query) for query in queries if query not in by_query]
        if unknown:
            last = max(by_query, default=-1)
            has = f"they go from 0 to {last}" if by_query else "the detector found nothing in this image"
            raise UserError(f"--query {' '.join(unknown)}: no such query; {has}.")
        return [by_query[query] for query in dict.fromkeys(queries)]
    chosen: list[PredictedObject] = []
    for one in objects:
        if one.score < min_score or len(chosen) == top:
            break
        alike = torch.tensor([other.box_xyxy for other in chosen if other.label == one.label]).reshape(-1, 4)
        if not bool((paired_iou(alike, torch.tensor(one.box_xyxy)) >= _SAME_PLACE_IOU).any()):
            chosen.append(one)
    return chosen
