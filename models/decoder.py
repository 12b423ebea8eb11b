"""Query decoder with fine-grained distribution refinement (docs/deimv2.md, Decoder).

Legend: B images, L memory tokens (all maps, row by row, fine to coarse), Q matching queries, G denoising queries,
T = G + Q queries, D width, C classes, n = `reg_max`, N decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.boxes import distance_to_box, inverse_sigmoid, weighting_function
from models.config import DecoderConfig
from models.deformable_attention import DeformableAttention, split_heads
from models.denoising import DenoisingQueries, make_denoising_queries, padded
from models.distinct import PositionRelation, distinct_first, more_confident
from models.hybrid_encoder import ConvNorm
from models.layers import Mlp, SelfAttention, becomes_part_of_graph, clones, in_autocast_type, without_autocast
from models.text_fusion import TextFusion

_PRIOR = 0.01
"""Initial score of every class."""
_ANCHOR_SIZE = 0.05
"""Side of the finest level's anchors; doubles from level to level."""
_FLOAT16_MAX = 65504.0
CANDIDATES_PER_QUERY = 4
"""Among how many tokens distinct queries are sought."""
_LQE_TOP_BINS, _LQE_WIDTH = 4, 64

Shapes = tuple[tuple[int, int], ...]


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.scale.shape, self.scale, eps=1e-6)


class PackedSwigluFfn(nn.Module):
    """w3(silu(a) * b) with [a, b] = w12(x); `hidden` is the width of a and of b."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)
        for layer in (self.w12, self.w3):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        gated, linear = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gated) * linear)
        return out


class Gateway(nn.Module):
    """Learned mix of the query and what it read; takes the place of the residual sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * width, 2 * width)
        self.norm = RmsNorm(width)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, target: Tensor, read: Tensor) -> Tensor:
        """[B, T, D], [B, T, D] -> [B, T, D]."""
        both = torch.stack([target, read], dim=-2)
        gates = self.gate(both.flatten(-2)).sigmoid().view_as(both)
        out: Tensor = self.norm((gates * both).sum(dim=-2))
        return out


class DecoderLayer(nn.Module):
    """Attends among queries, then deformably to the maps, then feeds forward, gated (docs/deimv2.md, Decoder layer)."""

    def __init__(self, width: int, num_heads: int, ffn_hidden: int, points_per_level: Sequence[int]) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, num_heads)
        self.norm1 = RmsNorm(width)
        self.cross_attn = DeformableAttention(width, num_heads, points_per_level)
        self.gateway = Gateway(width)
        self.swish_ffn = PackedSwigluFfn(width, ffn_hidden)
        self.norm3 = RmsNorm(width)

    def forward(
        self, target: Tensor, position: Tensor, boxes: Tensor, values: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """[B, T, D], position [B, T, D], boxes [B, T, 4], maps of `split_heads` -> [B, T, D]."""
        target = self.norm1(target + self.self_attn(target, position, mask))
        target = self.gateway(target, self.cross_attn(target + position, boxes, values))
        # hardtanh is clamp with a gradient of one operation
        out: Tensor = self.norm3(F.hardtanh(target + self.swish_ffn(target), -_FLOAT16_MAX, _FLOAT16_MAX))
        return out


class LocationQuality(nn.Module):
    """Adds the sharpness of the box distributions to all class logits ("LQE"; docs/deimv2.md, Layer loop)."""

    def __init__(self) -> None:
        super().__init__()
        self.reg_conf = Mlp(4 * (_LQE_TOP_BINS + 1), _LQE_WIDTH, 1)
        self.reg_conf.zero_last()

    def forward(self, scores: Tensor, probabilities: Tensor) -> Tensor:
        """float32 logits [B, T, C], side distributions [B, T, 4, n + 1] -> logits [B, T, C]."""
        top = probabilities.topk(_LQE_TOP_BINS, dim=-1).values
        statistics = torch.cat([top, top.mean(dim=-1, keepdim=True)], dim=-1)
        quality: Tensor = self.reg_conf(statistics.flatten(-2))
        return scores + quality


class LayerOutput(NamedTuple):
    """What one decoder layer says; all float32."""

    logits: Tensor  # [B, T, C]
    boxes: Tensor  # [B, T, 4] cxcywh, not clamped
    corners: Tensor  # [B, T, 4 * (n + 1)], logits over the bins, side by side
    references: Tensor  # [B, T, 4] cxcywh, the box that the distances are measured from; the same for all layers


class BoxesAndLogits(NamedTuple):
    """An output without distributions; float32 [B, T, C] and [B, T, 4] cxcywh."""

    logits: Tensor
    boxes: Tensor


_Output = TypeVar("_Output", LayerOutput, BoxesAndLogits)
_OFFICIAL = {"logits": "pred_logits", "boxes": "pred_boxes", "corners": "pred_corners", "references": "ref_points"}


def _split(output: _Output, num_denoising: int, num_matching: int) -> tuple[_Output, _Output]:
    """The denoising queries, which come first, and the matching queries, which come last."""
    num_added = output.logits.shape[1] - num_denoising - num_matching  # see `models.denoising.padded`
    sizes = (num_denoising, num_added, num_matching) if num_added else (num_denoising, num_matching)
    noised, *_, matching = zip(*(x.split(sizes, dim=1) for x in output), strict=True)
    return type(output)(*noised), type(output)(*matching)


def _as_dict(output: LayerOutput | BoxesAndLogits, teacher: LayerOutput | None = None) -> dict[str, Any]:
    named = {_OFFICIAL[name]: x for name, x in output._asdict().items()}
    return named | ({} if teacher is None else {"teacher_corners": teacher.corners, "teacher_logits": teacher.logits})


class Predicted(NamedTuple):
    """What the decoder computes, all queries in one row."""

    layers: list[LayerOutput]  # of all layers in training, otherwise the last is that of the evaluated one
    pre: BoxesAndLogits
    said: Tensor | None  # the texts' contribution to the last layer's logits before the gate, [B, T, C]
    encoder: BoxesAndLogits  # the encoder's selection, [B, Q, ...]


class TransformerDecoder(nn.Module):
    """The layers and their quality estimators; `up` and `reg_scale` are the owner's, listed a second time here."""

    def __init__(
        self, layers: nn.ModuleList, lqe_layers: nn.ModuleList, up: nn.Parameter, reg_scale: nn.Parameter
    ) -> None:
        super().__init__()
        self.layers = layers
        self.lqe_layers = lqe_layers
        self.up = up
        self.reg_scale = reg_scale


class Anchors(NamedTuple):
    """One starting box per memory token."""

    logits: Tensor  # float32 [1, L, 4], cxcywh before the sigmoid; +inf where not valid
    valid: Tensor  # bool [1, L, 1]


def make_anchors(shapes: Shapes, eps: float, device: torch.device | None = None) -> Anchors:
    """Anchors of maps (h, w), fine to coarse; near the border they are not valid (docs/deimv2.md, Memory, anchors)."""
    levels = []
    for level, (height, width) in enumerate(shapes):
        y, x = torch.meshgrid(
            *(torch.arange(side, dtype=torch.float32, device=device) + 0.5 for side in (height, width)), indexing="ij"
        )
        size = torch.full_like(x, _ANCHOR_SIZE * 2.0**level)
        levels.append(torch.stack([x / width, y / height, size, size], dim=-1).flatten(0, 1))
    boxes = torch.cat(levels)[None]
    valid = ((boxes > eps) & (boxes < 1 - eps)).all(dim=-1, keepdim=True)
    return Anchors(torch.log(boxes / (1 - boxes)).masked_fill(~valid, math.inf), valid)


class SelectedQueries(NamedTuple):
    """The memory tokens that become queries."""

    indices: Tensor  # int64 [B, Q], positions in the memory, best first
    content: Tensor  # [B, Q, D]
    logits: Tensor  # float32 [B, Q, C]
    reference_logits: Tensor  # float32 [B, Q, 4] cxcywh before the sigmoid


class DEIMTransformer(nn.Module):
    """From encoder maps to boxes and logits; the state dict holds anchors for `eval_spatial_size` (height, width)."""

    anchors: Tensor
    valid_mask: Tensor

    def __init__(self, config: DecoderConfig, num_classes: int, eval_spatial_size: tuple[int, int]) -> None:
        super().__init__()
        width, num_layers = config.hidden_dim, config.num_layers
        self._config = config
        self._num_classes = num_classes
        self.num_eval_layers = config.eval_idx % num_layers + 1
        self.num_speaking = 2 if config.ordered_last else 1  # layers whose scores are needed in evaluation, the last
        self._anchor_cache: dict[tuple[Shapes, torch.device], Anchors] = {}

        self.up = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.reg_scale = nn.Parameter(torch.tensor([config.reg_scale]), requires_grad=False)
        self.input_proj = nn.ModuleList(_input_projection(c, width) for c in config.feat_channels)
        layer = DecoderLayer(width, config.nhead, config.dim_feedforward // 2, config.num_points)
        lqe_layers = nn.ModuleList(LocationQuality() for _ in range(num_layers))
        self.decoder = TransformerDecoder(clones(layer, num_layers), lqe_layers, self.up, self.reg_scale)
        self.denoising_class_embed = nn.Embedding(num_classes + 1, width, padding_idx=num_classes)
        self.position_relation = PositionRelation(config.nhead) if config.relation_bias else None
        self._build_heads()

        eval_height, eval_width = eval_spatial_size
        self._eval_shapes: Shapes = tuple((eval_height // s, eval_width // s) for s in config.feat_strides)
        anchors = make_anchors(self._eval_shapes, config.eps)
        self.register_buffer("anchors", anchors.logits)
        self.register_buffer("valid_mask", anchors.valid)

    def _build_heads(self) -> None:
        width, num_layers = self._config.hidden_dim, self._config.num_layers
        self.enc_score_head = nn.Linear(width, self._num_classes)
        self.enc_bbox_head = Mlp(width, width, width, 4)
        self.query_pos_head = Mlp(4, width, width, width)
        self.pre_bbox_head = Mlp(width, width, width, 4)
        score_head = nn.Linear(width, self._num_classes)
        bbox_head = Mlp(width, width, width, 4 * (self._config.reg_max + 1))
        for head in (self.enc_score_head, score_head):
            nn.init.constant_(head.bias, -math.log((1 - _PRIOR) / _PRIOR))
        for box_head in (self.enc_bbox_head, self.pre_bbox_head, bbox_head):
            box_head.zero_last()
        for parameter in self.query_pos_head.parameters():
            if parameter.ndim == 2:
                nn.init.xavier_uniform_(parameter)
        self.dec_score_head = clones(score_head, num_layers)
        self.dec_bbox_head = clones(bbox_head, num_layers)

    def forward(
        self,
        maps: Sequence[Tensor],
        targets: Sequence[Mapping[str, Tensor]] | None = None,
        text_fusion: TextFusion | None = None,
    ) -> dict[str, Any]:
        """Encoder maps [B, feat_channels[i], h_i, w_i] -> output dict (docs/deimv2.md, Overview and data flow).

        In evaluation: `pred_logits` [B, Q, C] and `pred_boxes` [B, Q, 4]. In training also what the losses need;
        the `dn_*` entries only if a target has boxes, `text_logits` [B, Q, C] (the texts' contribution to the last
        layer's logits, before the gate) only with `text_fusion`. All tensors are float32.
        """
        denoising = None
        if self.training:
            num_tokens = sum(x.shape[-2] * x.shape[-1] for x in maps)
            denoising = self.draw_denoising(targets, num_tokens)
        found = self.predict(maps, None if denoising is None else denoising.inputs, text_fusion)
        if not self.training:
            return {"pred_logits": found.layers[-1].logits, "pred_boxes": found.layers[-1].boxes}
        return self.training_outputs(found, denoising)

    def predict(
        self,
        maps: Sequence[Tensor],
        denoising: tuple[Tensor, Tensor, Tensor] | None,
        text_fusion: TextFusion | None = None,
    ) -> Predicted:
        """Everything that is computed: from encoder maps and the inputs of denoising queries, tensors alone."""
        maps = [project(x) for project, x in zip(self.input_proj, maps, strict=True)]
        memory = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        shapes: Shapes = tuple((x.shape[-2], x.shape[-1]) for x in maps)
        selected = self.select_queries(memory, self._anchors_for(shapes, memory.device), text_fusion)
        content, reference_logits = selected.content.detach(), selected.reference_logits.detach()
        allowed = None
        if denoising is not None:
            labels, noised, seen = denoising
            # As a sum, in the type of the attention: made once, not in every layer out of the truth values.
            allowed = in_autocast_type(torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, -math.inf))
            content = torch.cat([self.denoising_class_embed(labels), content], dim=1)
            reference_logits = torch.cat([noised, reference_logits], dim=1)
        elif self.training:
            # Distributed training wants a gradient for every parameter, also on a process without boxes.
            content = content + 0 * self.denoising_class_embed.weight.sum()
        values = [split_heads(x, self._config.nhead) for x in maps]
        layers, pre, said = self._decode(content, reference_logits, values, allowed, text_fusion)
        return Predicted(layers, pre, said, BoxesAndLogits(selected.logits, selected.reference_logits.sigmoid()))

    def select_queries(
        self, memory: Tensor, anchors: Anchors, text_fusion: TextFusion | None = None
    ) -> SelectedQueries:
        """The tokens with the best class score (docs/deimv2.md, Memory, anchors). memory [B, L, D]."""
        # All tokens are ranked, outside the graph; only the chosen ones go through the heads with gradients.
        with without_autocast(memory.device.type):
            tokens = memory.detach().float().masked_fill(~anchors.valid, 0)
            with torch.no_grad():
                scores = _class_scores(self.enc_score_head, tokens, text_fusion, -1)[0].amax(dim=-1)
        indices = self._selected(scores, tokens, anchors)
        rows = indices[..., None]
        content = memory.gather(1, rows.expand(-1, -1, memory.shape[2]))
        content = content.masked_fill(~anchors.valid[0, :, 0][indices][..., None], 0)
        reference_logits = self.enc_bbox_head(content).float() + anchors.logits[0][indices]
        logits, _ = _class_scores(self.enc_score_head, content, text_fusion, -1)
        return SelectedQueries(indices, content, logits, reference_logits)

    def _selected(self, scores: Tensor, tokens: Tensor, anchors: Anchors) -> Tensor:
        """The queries' tokens, best first: scores [B, L], float32 tokens [B, L, D] -> int64 [B, Q]."""
        most_iou, count = self._config.distinct_iou, min(self._config.num_queries, tokens.shape[1])
        if most_iou is None:
            return scores.topk(count, dim=1).indices
        candidates = scores.topk(min(CANDIDATES_PER_QUERY * count, tokens.shape[1]), dim=1).indices
        rows = candidates[..., None]
        with torch.no_grad():
            content = tokens.gather(1, rows.expand(-1, -1, tokens.shape[2]))
            boxes = (self.enc_bbox_head(content).float() + anchors.logits[0][candidates]).sigmoid()
        return candidates.gather(1, distinct_first(boxes, most_iou, count))

    def _anchors_for(self, shapes: Shapes, device: torch.device) -> Anchors:
        if becomes_part_of_graph(*(side for shape in shapes for side in shape)):
            return make_anchors(shapes, self._config.eps, device)
        key = (shapes, device)
        if key not in self._anchor_cache:
            # Kept for later steps, so they must not become inference tensors, which no backward pass may use.
            with torch.inference_mode(False):
                made = make_anchors(shapes, self._config.eps)
                self._anchor_cache[key] = Anchors(made.logits.to(device), made.valid.to(device))
        anchors = self._anchor_cache[key]
        if not self.training and shapes == self._eval_shapes:
            # A loaded file's stored anchors may differ in the last digits; the original evaluates with those.
            anchors = anchors._replace(logits=self.anchors)
        return anchors

    def draw_denoising(
        self, targets: Sequence[Mapping[str, Tensor]] | None, num_tokens: int, *, batch: int | None = None
    ) -> DenoisingQueries | None:
        """Draw the denoising queries of a batch on maps of so many tokens; None without boxes.

        With `batch`, its size, there are always some, and their number does not depend on the boxes (but for more than
        `num_denoising` of them in an image).
        """
        queries = {"num_classes": self._num_classes, "num_queries": min(self._config.num_queries, num_tokens)}
        drawn = make_denoising_queries(
            targets or (),
            **queries,
            num_denoising=self._config.num_denoising,
            label_noise_ratio=self._config.label_noise_ratio,
            box_noise_scale=self._config.box_noise_scale,
        )
        if batch is None or self._config.num_denoising <= 0:
            return drawn
        return padded(drawn, 2 * self._config.num_denoising, batch=batch, **queries, device=self.up.device)

    def _decode(
        self,
        target: Tensor,
        reference_logits: Tensor,
        values: Sequence[Tensor],
        allowed: Tensor | None,
        text_fusion: TextFusion | None,
    ) -> tuple[list[LayerOutput], BoxesAndLogits, Tensor | None]:
        """Refine layer by layer (docs/deimv2.md, Layer loop): outputs of all in training, else at least of the last.

        The last is the texts' contribution of the last layer, before the gate, where there are texts.
        """
        reg_scale = self.reg_scale.float()
        bins = weighting_function(self._config.reg_max, self.up, reg_scale)
        boxes = reference_logits.sigmoid()
        position = F.hardtanh(self.query_pos_head(boxes), -10, 10).float()  # added to float32 in every layer
        num_layers = len(self.decoder.layers) if self.training else self.num_eval_layers
        corners = previous = None
        outputs: list[LayerOutput] = []
        for index in range(num_layers):
            mask = allowed
            if self.position_relation is not None:
                bias = self.position_relation(boxes)
                mask = bias if allowed is None else bias + allowed
            if self._config.ordered_last and index == num_layers - 1:
                order = in_autocast_type(torch.where(more_confident(outputs[-1].logits), 0.0, -math.inf))
                mask = order if mask is None else order + mask
            target = self.decoder.layers[index](target, position, boxes, values, mask)
            emits = self.training or index >= num_layers - self.num_speaking
            if emits or index == 0:
                scores, said = _class_scores(self.dec_score_head[index], target, text_fusion, index)
            if index == 0:
                pre_boxes = (self.pre_bbox_head(target) + inverse_sigmoid(boxes)).sigmoid()
                pre = BoxesAndLogits(scores, pre_boxes)
                references = pre_boxes.detach()
            change = self.dec_bbox_head[index](target if previous is None else target + previous)
            corners = change.float() if corners is None else corners + change
            probabilities = corners.view(*corners.shape[:2], 4, -1).softmax(dim=-1)
            refined = distance_to_box(references, (probabilities * bins).sum(dim=-1), reg_scale)
            if emits:
                logits = self.decoder.lqe_layers[index](scores, probabilities)
                outputs.append(LayerOutput(logits, refined, corners, references))
            boxes, previous = refined.detach(), target.detach()
        return outputs, pre, said

    def training_outputs(self, found: Predicted, denoising: DenoisingQueries | None) -> dict[str, Any]:
        """What the losses read."""
        num_matching = found.encoder.logits.shape[1]
        num_denoising = 0 if denoising is None else denoising.num_queries
        noised, matching = zip(*(_split(layer, num_denoising, num_matching) for layer in found.layers), strict=True)
        noised_pre, matching_pre = _split(found.pre, num_denoising, num_matching)
        outputs = {
            **_as_dict(matching[-1]),
            "up": self.up,
            "reg_scale": self.reg_scale,
            "aux_outputs": [_as_dict(layer, matching[-1]) for layer in matching[:-1]],
            "pre_outputs": _as_dict(matching_pre),
            "enc_aux_outputs": [_as_dict(found.encoder)],
            "enc_meta": {"class_agnostic": False},
        }
        if found.said is not None:
            outputs["text_logits"] = found.said[:, -num_matching:]
        if num_denoising and denoising is not None:
            outputs |= {
                "dn_outputs": [_as_dict(layer, noised[-1]) for layer in noised],
                "dn_pre_outputs": _as_dict(noised_pre),
                "dn_meta": denoising.meta,
            }
        return outputs


def _class_scores(
    head: nn.Module, features: Tensor, text_fusion: TextFusion | None, place: int
) -> tuple[Tensor, Tensor | None]:
    """float32 logits [..., C] of features [..., D], and what the texts said, where they have a say: in the decoder
    layers, and with `selects_queries` also about the encoder's tokens (place -1)."""
    if text_fusion is None or (place == -1 and not text_fusion.selects_queries):
        return head(features).float(), None
    fused: tuple[Tensor, Tensor] = text_fusion(features, head, place)
    return fused


def _input_projection(channels: int, width: int) -> nn.Module:
    if channels == width:
        return nn.Identity()
    projection = ConvNorm(channels, width, 1)
    nn.init.xavier_uniform_(projection.conv.weight)
    return projection
