"""Losses: MAL (classes), L1 and GIoU (boxes), FGL and DDF (distributions); docs/deimv2.md, Matching and criterion.

Papers: DEIM (Huang et al. 2024) for MAL, D-FINE (Peng et al. 2024) for FGL, DDF and the GO union.

All output sets with the same queries are stacked, and the pairs of all sets are one list, so that a step costs a few
large operations instead of many small ones. The device is waited for once: when the matching costs come to the host.
NaN is never masked.

Legend: S output sets, K of them with side distributions, B images, Q queries of an image, C classes,
N boxes of the batch, P pairs, n = reg_max (n + 1 bins).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from data.types import IntArray
from models.boxes import box_to_bins, cxcywh_to_xyxy_clamped, paired_iou_giou, weighting_function
from models.config import CriterionConfig, ModelConfig
from models.matcher import HungarianMatcher, Pairs, assign, go_union

DDF_TEMPERATURE = 5.0


@dataclass(frozen=True)
class WindowShare:
    """What one micro-batch is of its gradient accumulation window, so that the sum equals the large batch."""

    num_boxes: Tensor | float
    """max(1, mean over processes of the boxes of the whole window); replaces N_box."""
    image_share: float
    """Images of this micro-batch / images of the window; scales DDF, a mean over images."""


class _Boxes(NamedTuple):
    """All ground truth of the batch, one image after the other."""

    labels: Tensor  # int64 [N]
    cxcywh: Tensor  # float32 [N, 4]
    xyxy: Tensor  # float32 [N, 4]
    per_image: tuple[int, ...]  # B numbers that add to N
    weight: Tensor | None  # float32 [N], of pseudo-labels less than 1; None: all count alike


class _OutputSets(NamedTuple):
    """Outputs for the same queries, stacked. Sets with distributions come first, above all the teacher."""

    suffixes: tuple[str, ...]  # S endings of the loss names
    logits: Tensor  # float32 [S, B, Q, C]
    boxes_cxcywh: Tensor  # float32 [S, B, Q, 4], not clamped
    corners: Tensor  # float32 [K, B * Q, 4, n + 1]: logits over the bins, sides left, top, right, bottom
    ref_cxcywh: Tensor  # float32 [B * Q, 4]: the boxes that all distributions refine


class _DevicePairs(NamedTuple):
    """`Pairs` on the device, int64 [S, P]: among the B * Q queries, the S * B * Q outputs and the N boxes."""

    query: Tensor
    row: Tensor
    box: Tensor


class _Taught(NamedTuple):
    """Some `_OutputSets`, who answers for what among them, and what the sums are divided by."""

    sets: _OutputSets
    class_pairs: _DevicePairs
    box_pairs: _DevicePairs
    class_norm: Tensor | float
    box_norm: Tensor | float
    differs: tuple[bool, ...]  # K - 1 students: is the distribution different from the teacher's?
    balance: tuple[float, float]  # DDF's weights of matched and of other queries


class DEIMCriterion(nn.Module):
    """Named, weighted losses of one micro-batch; their plain sum is the training loss.

    It works in float32 whatever comes in, and makes the same number of collective calls in every process. The set of
    keys depends on the process's own data: reduce totals, never stacked values.
    """

    def __init__(self, config: CriterionConfig, contrastive_weight: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.contrastive_weight = contrastive_weight
        self.matcher = HungarianMatcher(config.matcher)

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Mapping[str, Tensor]],
        *,
        epoch: int,
        share: WindowShare | None = None,
    ) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            outputs: the detector's training output (docs/deimv2.md, Overview and data flow).
            targets: B mappings with `labels` int64 [N_b] and `boxes` [N_b, 4], cxcywh in [0, 1], on that device.
            epoch: selects the matcher's cost.
            share: given under gradient accumulation only.

        Returns:
            Loss name (official names and suffixes) -> float32 scalar. Without boxes the denoising losses are
            absent; DDF is absent where student and teacher are identical, as in the first step of training.
        """
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            return self._losses(outputs, _concatenate(targets, self.config.pseudo_weight), epoch, share)

    def _losses(
        self, outputs: Mapping[str, Any], boxes: _Boxes, epoch: int, share: WindowShare | None
    ) -> dict[str, Tensor]:
        matching = _matching_sets(outputs)
        denoising = _denoising_sets(outputs) if "dn_outputs" in outputs else None
        own, matching_differs, denoising_differs = self._match(matching, denoising, boxes, epoch)
        shared = go_union(own) if self.config.use_uni_set else own
        paired = [(matching, own), (matching, shared)]
        if denoising is not None:
            paired.append((denoising, _denoising_pairs(outputs["dn_meta"], boxes, denoising.logits.shape[2])))
        own_pairs, shared_pairs, *noised_pairs = _to_device(paired, boxes.labels.device)
        num_boxes, num_shared = _normalisers(sum(boxes.per_image), shared.query.shape[1], boxes.labels.device, share)

        class_norm = num_boxes
        if self.config.matcher.repeat_targets > 1:
            repeats = self._repeats(len(matching.logits))
            class_norm = num_boxes * torch.stack([boxes.cxcywh.new_full((), n) for n in repeats])
        box_norm = num_shared if self.config.use_uni_set else num_boxes
        balance = _balance(shared.query.shape[1], *matching.logits.shape[1:3])
        taught = [_Taught(matching, own_pairs, shared_pairs, class_norm, box_norm, matching_differs, balance)]
        if denoising is not None:
            norm, (pairs,) = num_boxes * outputs["dn_meta"]["dn_num_group"], noised_pairs
            balance = balance if any(matching_differs) else (0.5, 0.5)
            taught.append(_Taught(denoising, pairs, pairs, norm, norm, denoising_differs, balance))

        image_share = 1.0 if share is None else share.image_share
        losses = self._set_losses(taught, boxes, outputs["up"], outputs["reg_scale"], image_share)
        if self.contrastive_weight > 0 and "text_logits" in outputs:
            # Region against texts: cross-entropy over the classes of the last layer's matched queries, before the gate.
            rows = outputs["text_logits"].float().flatten(0, 1).index_select(0, own_pairs.query[0])
            contrast = F.cross_entropy(rows, boxes.labels[own_pairs.box[0]], reduction="sum")
            losses["loss_contrastive"] = contrast / num_boxes * self.contrastive_weight
        return losses

    def _repeats(self, num_sets: int) -> list[int]:
        """Queries of each box, by output set; the last layer's set is the first."""
        matcher = self.config.matcher
        last = matcher.repeat_targets if matcher.repeat_in_last else 1
        return [last, *[matcher.repeat_targets] * (num_sets - 1)]

    def _match(
        self, matching: _OutputSets, denoising: _OutputSets | None, boxes: _Boxes, epoch: int
    ) -> tuple[Pairs, tuple[bool, ...], tuple[bool, ...]]:
        """Match every output set, and see which students differ from their teacher.

        Both need values on the host, which therefore come over in one piece: the only wait for the device.
        """
        image_of_box = np.repeat(np.arange(len(boxes.per_image)), boxes.per_image)
        (image_index,) = _upload([image_of_box], boxes.labels.device)
        with torch.no_grad():
            costs = self.matcher.costs(
                matching.logits, matching.boxes_cxcywh, boxes.labels, boxes.cxcywh, image_index, epoch
            )
            corners = [sets.corners for sets in (matching, denoising) if sets is not None]
            differ = [(one[1:] != one[:1]).flatten(1).any(1).float() for one in corners]  # [K - 1] each
            on_host = torch.cat([costs.flatten(), *differ]).cpu().numpy()
        on_host_costs = on_host[: costs.numel()].reshape(costs.shape)
        own = assign(on_host_costs, boxes.per_image, self._repeats(len(matching.logits)))
        differs = tuple(bool(flag) for flag in on_host[costs.numel() :])
        num_matching = len(matching.corners) - 1
        return own, differs[:num_matching], differs[num_matching:]

    def _set_losses(
        self, taught: Sequence[_Taught], boxes: _Boxes, up: Tensor, reg_scale: Tensor, image_share: float
    ) -> dict[str, Tensor]:
        """Every loss of the given output sets, weighted and named."""
        weights = cast(Mapping[str, float], self.config.weight_dict)
        ious, class_ious, l1, giou = _compare_boxes(taught, boxes)
        fgl = _fgl(taught, boxes, ious, weighting_function(self.config.reg_max, up, reg_scale), reg_scale)
        named: dict[str, Tensor] = {}
        for part, iou, class_iou, *terms in zip(taught, ious, class_ious, l1, giou, fgl, strict=True):
            per_box = 1 / part.box_norm
            # Weighted as vectors [S] and taken apart then: an operation per set would cost more than the arithmetic.
            sums = {"loss_mal": self._mal(part, boxes, class_iou) * (weights["loss_mal"] / part.class_norm)}
            for name, term in zip(("loss_bbox", "loss_giou", "loss_fgl"), terms, strict=True):
                sums[name] = (term * (weights[name] * per_box)).sum(1)
            named |= {
                name + suffix: value
                for name, values in sums.items()
                for suffix, value in zip(part.sets.suffixes, values.unbind(), strict=False)
            }
            if any(part.differs):
                ddf = (_ddf(part, iou, image_share) * weights["loss_ddf"]).unbind()
                students = zip(part.sets.suffixes[1:], part.differs, ddf, strict=False)
                named |= {f"loss_ddf{suffix}": value for suffix, differs, value in students if differs}
        return named

    def _mal(self, part: _Taught, boxes: _Boxes, iou: Tensor) -> Tensor:
        """Matchability-aware loss, summed: [S]. The target of a matched query's class is IoU^gamma; iou [S, P]."""
        gamma, pairs, logits = self.config.gamma, part.class_pairs, part.sets.logits
        weight = logits.detach().sigmoid() ** gamma
        if self.config.mal_alpha is not None:
            weight *= self.config.mal_alpha
        target = torch.zeros_like(weight)
        position = pairs.row * logits.shape[-1] + boxes.labels[pairs.box]
        weight.view(-1)[position] = 1.0 if boxes.weight is None else boxes.weight[pairs.box]
        target.view(-1)[position] = iou**gamma
        return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="none").sum((1, 2, 3))


class OwnLosses(nn.Module):
    """For detectors that return their losses themselves, such as torchvision's; the plain sum is the training loss."""

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Sequence[Mapping[str, Tensor]],
        *,
        epoch: int,
        share: WindowShare | None = None,
    ) -> dict[str, Tensor]:
        """Loss name -> float32 scalar: `outputs`, scaled to this micro-batch's share of the window's images.

        The losses are means over images (or over samples of a fixed number per image), so the shares add to the
        large batch's loss; where they are means over the boxes' anchors (FCOS), nearly so.
        """
        scale = 1.0 if share is None else share.image_share
        return {name: loss.float() * scale for name, loss in outputs.items()}


def build_criterion(config: ModelConfig) -> DEIMCriterion | OwnLosses:
    """The criterion for the outputs of `models.detector.build_detector(config)`."""
    if config.Baseline is not None:
        return OwnLosses()
    fusion = config.MultimodalFusion
    return DEIMCriterion(config.deimv2.criterion, 0.0 if fusion is None else fusion.contrastive_weight)


def _compare_boxes(taught: Sequence[_Taught], boxes: _Boxes) -> tuple[list[Tensor], ...]:
    """Compare all paired boxes: IoU of the box pairs and of the class pairs, both without gradient, L1 distance and
    1 - GIoU of the box pairs, each [S, P] for each of `taught`."""
    paired = [(part.sets, part.box_pairs) for part in taught] + [(part.sets, part.class_pairs) for part in taught]
    shapes = [pairs.row.shape for _, pairs in paired]
    predicted = torch.cat([_rows(sets.boxes_cxcywh.flatten(0, 2), pairs.row) for sets, pairs in paired])
    box = torch.cat([pairs.box.flatten() for _, pairs in paired])
    iou, giou = paired_iou_giou(cxcywh_to_xyxy_clamped(predicted), boxes.xyxy[box])
    l1 = (predicted - boxes.cxcywh[box]).abs().sum(-1)
    ious = _apart(iou.detach(), shapes)
    l1s, gious = (_apart(_weighed(terms, boxes, box), shapes)[: len(taught)] for terms in (l1, 1 - giou))
    return ious[: len(taught)], ious[len(taught) :], l1s, gious


def _fgl(
    taught: Sequence[_Taught], boxes: _Boxes, ious: Sequence[Tensor], bin_values: Tensor, reg_scale: Tensor
) -> list[Tensor]:
    """Fine-grained localisation loss of each pair of the sets with distributions: [K, P] for each of `taught`.

    Cross-entropy with the two bins next to the true distance.
    """
    with_corners = [(part.sets, part.box_pairs, len(part.sets.corners)) for part in taught]
    box = torch.cat([pairs.box[:k].flatten() for _, pairs, k in with_corners])
    reference = torch.cat([_rows(sets.ref_cxcywh, pairs.query[:k]) for sets, pairs, k in with_corners])
    corners = torch.cat([_rows(sets.corners.flatten(0, 1), pairs.row[:k]) for sets, pairs, k in with_corners])
    left_bin, left_weight, right_weight = box_to_bins(reference, boxes.xyxy[box], bin_values, reg_scale)
    bins = torch.stack([left_bin, left_bin + 1], dim=-1)
    likelihoods = corners.log_softmax(-1).gather(-1, bins) * torch.stack([left_weight, right_weight], dim=-1)
    shapes = [pairs.row[:k].shape for _, pairs, k in with_corners]
    iou = torch.cat([iou[:k].flatten() for iou, (k, _) in zip(ious, shapes, strict=True)])
    return _apart(_weighed(-likelihoods.sum((1, 2)) * iou, boxes, box), shapes)


def _weighed(terms: Tensor, boxes: _Boxes, box: Tensor) -> Tensor:
    """Terms of pairs by their boxes' weights; the sums are still divided by the count of boxes."""
    return terms if boxes.weight is None else terms * boxes.weight[box]


def _ddf(part: _Taught, iou: Tensor, image_share: float) -> Tensor:
    """Decoupled distillation focal loss of the students, one number each: [K - 1].

    The mean over matched queries, whose weights are their `iou` [S, P] without gradient, and the mean over the others,
    combined by `balance`, are one weighted sum over all queries, because how many are matched is known on the host.
    """
    sets, pairs, (matched_weight, unmatched_weight) = part.sets, part.box_pairs, part.balance
    teacher, students = sets.corners.detach()[0], sets.corners[1:]
    teacher_log_p = (teacher / DDF_TEMPERATURE).log_softmax(-1)
    confidence = sets.logits[0].detach().sigmoid().amax(-1).flatten()

    num_sides, matched_sides = 4 * confidence.shape[0], 4 * pairs.query.shape[1]
    factor = DDF_TEMPERATURE**2 * image_share / (matched_weight + unmatched_weight)
    per_matched = factor * matched_weight / max(matched_sides, 1)
    per_unmatched = factor * unmatched_weight / max(num_sides - matched_sides, 1)
    weight = (confidence * per_unmatched).repeat(len(students), 1)
    matched = slice(1, len(sets.corners))
    weight.scatter_(1, pairs.query[matched], iou[matched] * per_matched)
    log_p = (students / DDF_TEMPERATURE).log_softmax(-1)
    divergence = (teacher_log_p.exp() * (teacher_log_p - log_p)).sum((2, 3))
    return (weight * divergence).sum(1)


def _balance(num_pairs: int, batch: int, num_queries: int) -> tuple[float, float]:
    """DDF's weights of matched and of other queries: growing with the root of their sides per image."""
    matched_sides, all_sides = 4 * num_pairs, 4 * batch * num_queries
    return math.sqrt(matched_sides * 8 / batch), math.sqrt((all_sides - matched_sides) * 8 / batch)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table, in the order of an index of any shape: [R, ...] -> [number of indices, ...]."""
    return table.index_select(0, index.flatten())


def _apart(terms: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Undo a concatenation of flattened tensors."""
    parts = terms.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _concatenate(targets: Sequence[Mapping[str, Tensor]], pseudo_weight: float) -> _Boxes:
    cxcywh = torch.cat([target["boxes"].reshape(-1, 4) for target in targets]).float()
    labels = torch.cat([target["labels"] for target in targets])
    per_image = tuple(target["labels"].shape[0] for target in targets)
    weight = None
    if pseudo_weight != 1:  # else not even a multiplication: the losses are the original's
        none = torch.zeros_like(labels, dtype=torch.bool)
        pseudo = torch.cat([target.get("pseudo", none[: len(target["labels"])]) for target in targets])
        weight = torch.where(pseudo, pseudo_weight, 1.0)
    return _Boxes(labels, cxcywh, cxcywh_to_xyxy_clamped(cxcywh), per_image, weight)


_Named = Sequence[tuple[str, Mapping[str, Tensor]]]


def _stack(with_corners: _Named, others: _Named, ref_cxcywh: Tensor) -> _OutputSets:
    """Bring named output sets into one shape and into float32; `with_corners` starts with the teacher."""
    every = [*with_corners, *others]
    corners = torch.stack([output["pred_corners"].float() for _, output in with_corners])
    return _OutputSets(
        suffixes=tuple(suffix for suffix, _ in every),
        logits=torch.stack([output["pred_logits"].float() for _, output in every]),
        boxes_cxcywh=torch.stack([output["pred_boxes"].float() for _, output in every]),
        corners=corners.flatten(1, 2).unflatten(-1, (4, -1)),
        ref_cxcywh=ref_cxcywh.detach().float().flatten(0, 1),
    )


def _matching_sets(outputs: Mapping[str, Any]) -> _OutputSets:
    """Last layer, the layers before it, the pre-head and the encoder's selection."""
    layers = [("", outputs), *((f"_aux_{i}", aux) for i, aux in enumerate(outputs["aux_outputs"]))]
    encoder = [(f"_enc_{i}", enc) for i, enc in enumerate(outputs["enc_aux_outputs"])]
    return _stack(layers, [("_pre", outputs["pre_outputs"]), *encoder], outputs["ref_points"])


def _denoising_sets(outputs: Mapping[str, Any]) -> _OutputSets:
    """The denoising part of all layers, the last (the teacher) first, and of the pre-head."""
    *layers, teacher = [(f"_dn_{i}", layer) for i, layer in enumerate(outputs["dn_outputs"])]
    return _stack([teacher, *layers], [("_dn_pre", outputs["dn_pre_outputs"])], outputs["dn_outputs"][0]["ref_points"])


def _denoising_pairs(meta: Mapping[str, Any], boxes: _Boxes, num_queries: int) -> Pairs:
    """The positives of each group answer for the boxes they were made from (docs/deimv2.md, Matcher): [1, P]."""
    groups = int(meta["dn_num_group"])
    first_box = np.cumsum([0, *boxes.per_image])
    box = [np.tile(np.arange(n), groups) + first for n, first in zip(boxes.per_image, first_box, strict=False)]
    image = np.repeat(np.arange(len(boxes.per_image)), np.multiply(boxes.per_image, groups))
    positives = np.concatenate([positive.cpu().numpy().ravel() for positive in meta["dn_positive_idx"]])
    return Pairs((positives + image * num_queries)[None], np.concatenate(box)[None])


def _upload(arrays: Sequence[IntArray], device: torch.device) -> list[Tensor]:
    """Host to device in one transfer that nothing waits for; shapes are kept."""
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = torch.split(packed.to(device, non_blocking=True), [array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _to_device(paired: Sequence[tuple[_OutputSets, Pairs]], device: torch.device) -> list[_DevicePairs]:
    """Upload pairs, said for every set also where all sets share them."""
    arrays: list[IntArray] = []
    for sets, pairs in paired:
        num_sets, batch, num_queries = sets.logits.shape[:3]
        first_row = np.arange(num_sets)[:, None] * (batch * num_queries)
        query, row, box = np.broadcast_arrays(pairs.query, pairs.query + first_row, pairs.box)
        arrays += [query, row, box]
    index = _upload(arrays, device)
    return [_DevicePairs(*index[i : i + 3]) for i in range(0, len(index), 3)]


def _normalisers(
    num_boxes: int, num_pairs: int, device: torch.device, share: WindowShare | None
) -> tuple[Tensor | float, Tensor]:
    """N_box and N_go (docs/deimv2.md, Normalisers): counts averaged over processes, at least 1.

    One collective call in every process, whatever the counts are. In a window of micro-batches N_go is what
    the window would have if its other boxes got as many pairs as these.
    """
    (counts,) = _upload([np.array([num_boxes, num_pairs], dtype=np.int64)], device)
    mean = counts.float()
    world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if world_size > 1:
        dist.all_reduce(mean)
        mean /= world_size
    mean_boxes, mean_pairs = mean.unbind()
    if share is None:
        return mean_boxes.clamp(min=1), mean_pairs.clamp(min=1)
    in_window = mean_pairs * share.num_boxes / mean_boxes.clamp(min=1 / world_size)
    return share.num_boxes, in_window.clamp(min=1)
