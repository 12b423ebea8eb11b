"""The losses as docs/deimv2.md, Matching and criterion, words them: one layer, one image, one pair at a time.

Nothing from `models` is used. Slow on purpose where slow is plainer: one matching per layer over the whole
batch's (B * Q) x N table, N x N tables of which only the diagonal is wanted, a Python loop for the GO union.
It is the yardstick of `benchmarks/criterion.py` and the truth of tests/models/test_criterion.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Match = list[tuple[Tensor, Tensor]]
"""Per image: indices of queries and of the boxes they belong to."""


@dataclass(frozen=True)
class OracleSettings:
    """The recipe's numbers (docs/deimv2.md, Matching and criterion / Values of the base file)."""

    change_matcher: bool = True
    matcher_change_epoch: int = 100
    iou_order_alpha: float = 4.0
    gamma: float = 1.5
    mal_alpha: float | None = None
    reg_max: int = 32
    use_uni_set: bool = True


@dataclass(frozen=True)
class OracleResult:
    """Weighted losses by official name, every matching by output set, and the GO union."""

    losses: dict[str, Tensor]
    matched: dict[str, Match]
    go: Match


WEIGHTS = {"loss_mal": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0, "loss_fgl": 0.15, "loss_ddf": 1.5}


def to_xyxy(boxes: Tensor) -> Tensor:
    x, y, w, h = boxes.unbind(-1)
    w, h = w.clamp(min=0), h.clamp(min=0)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)


def iou_table(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of every a with every b, xyxy: [N, M], [N, M]. Nothing over nothing is 0."""
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    size = (torch.min(a[:, None, 2:], b[None, :, 2:]) - torch.max(a[:, None, :2], b[None, :, :2])).clamp(min=0)
    inter = size[..., 0] * size[..., 1]
    union = area_a[:, None] + area_b[None, :] - inter
    size = torch.max(a[:, None, 2:], b[None, :, 2:]) - torch.min(a[:, None, :2], b[None, :, :2])
    hull = size[..., 0] * size[..., 1]
    iou = inter / torch.where(union > 0, union, torch.inf)
    return iou, iou - (hull - union) / torch.where(hull > 0, hull, torch.inf)


def match(
    output: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]], epoch: int, s: OracleSettings
) -> Match:
    """docs/deimv2.md, Matcher: for one output set."""
    batch, num_queries = output["pred_logits"].shape[:2]
    p = output["pred_logits"].detach().flatten(0, 1).sigmoid()
    boxes = output["pred_boxes"].detach().flatten(0, 1)
    labels = torch.cat([t["labels"] for t in targets])
    gt = torch.cat([t["boxes"] for t in targets])
    iou, giou = iou_table(to_xyxy(boxes), to_xyxy(gt))
    if s.change_matcher and epoch >= s.matcher_change_epoch:
        cost = -(p[:, labels] * iou**s.iou_order_alpha)
    else:
        negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
        positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
        l1 = torch.cdist(boxes, gt, p=1)
        cost = 5 * l1 + 2 * (positive - negative)[:, labels] - 2 * giou
    cost = cost.view(batch, num_queries, -1).nan_to_num(1.0)
    matches, first = [], 0
    for image, target in enumerate(targets):
        n = len(target["labels"])
        query, box = linear_sum_assignment(cost[image, :, first : first + n].numpy())
        matches.append((torch.as_tensor(query), torch.as_tensor(box)))
        first += n
    return matches


def go_union(matchings: Sequence[Match]) -> Match:
    """docs/deimv2.md, GO union: pair by pair."""
    union = []
    for image in range(len(matchings[0])):
        votes: dict[tuple[int, int], int] = {}
        for matching in matchings:
            for query, box in zip(*matching[image], strict=True):
                pair = (int(query), int(box))
                votes[pair] = votes.get(pair, 0) + 1
        taken: dict[int, int] = {}
        for query_index, box_index in sorted(sorted(votes), key=lambda pair: -votes[pair]):
            taken.setdefault(query_index, box_index)
        queries = sorted(taken)
        union.append((torch.tensor(queries, dtype=torch.long), torch.tensor([taken[q] for q in queries]).long()))
    return union


class _Layer:
    """One output set with the pairs that its losses use."""

    def __init__(self, output: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]], pairs: Match) -> None:
        self.output = output
        self.image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)])
        self.query = torch.cat([query for query, _ in pairs])
        self.labels = torch.cat([t["labels"][box] for t, (_, box) in zip(targets, pairs, strict=True)])
        self.gt = torch.cat([t["boxes"][box] for t, (_, box) in zip(targets, pairs, strict=True)])
        self.boxes = output["pred_boxes"][self.image, self.query]

    @cached_property
    def iou(self) -> Tensor:
        return torch.diag(iou_table(to_xyxy(self.boxes.detach()), to_xyxy(self.gt))[0])


def mal(layer: _Layer, norm: float, s: OracleSettings) -> Tensor:
    x = layer.output["pred_logits"]
    one_hot, y = torch.zeros_like(x), torch.zeros_like(x)
    one_hot[layer.image, layer.query, layer.labels] = 1
    y[layer.image, layer.query, layer.labels] = layer.iou
    p = x.detach().sigmoid()
    background = p**s.gamma * (1 - one_hot) * (1 if s.mal_alpha is None else s.mal_alpha)
    weight = background + one_hot
    target = (y * one_hot) ** s.gamma
    return (weight * F.binary_cross_entropy_with_logits(x, target, reduction="none")).sum() / norm


def bbox(layer: _Layer, norm: float) -> tuple[Tensor, Tensor]:
    l1 = (layer.boxes - layer.gt).abs().sum() / norm
    giou = torch.diag(iou_table(to_xyxy(layer.boxes), to_xyxy(layer.gt))[1])
    return l1, (1 - giou).sum() / norm


def bin_values(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    bound = float(up) * float(reg_scale)
    q = (bound + 1) ** (2 / (reg_max - 2))
    positive = [q**j - 1 for j in range(1, reg_max // 2)]
    return torch.tensor([-2 * bound, *(-v for v in reversed(positive)), 0.0, *positive, 2 * bound])


def fgl(layer: _Layer, ref_points: Tensor, w: Tensor, rho: float, norm: float) -> Tensor:
    ref = ref_points[layer.image, layer.query]
    gt = to_xyxy(layer.gt)
    x, y, width, height = ref.unbind(-1)
    distance = torch.stack(
        [
            (x - gt[:, 0]) / (width / rho + 1e-16) - rho / 2,
            (y - gt[:, 1]) / (height / rho + 1e-16) - rho / 2,
            (gt[:, 2] - x) / (width / rho + 1e-16) - rho / 2,
            (gt[:, 3] - y) / (height / rho + 1e-16) - rho / 2,
        ],
        dim=-1,
    )
    n = len(w) - 1
    k = (w <= distance[..., None]).sum(-1) - 1
    inside = k.clamp(0, n - 1)
    right = (distance - w[inside]) / ((distance - w[inside]) + (w[inside + 1] - distance))
    right = torch.where(k < 0, 0.0, torch.where(k >= n, 1.0, right))
    z = layer.output["pred_corners"][layer.image, layer.query].unflatten(-1, (4, n + 1)).flatten(0, 1)
    left_ce = F.cross_entropy(z, inside.flatten(), reduction="none")
    right_ce = F.cross_entropy(z, inside.flatten() + 1, reduction="none")
    per_side = left_ce * (1 - right.flatten()) + right_ce * right.flatten()
    return (per_side * layer.iou.repeat_interleave(4)).sum() / norm


def ddf(
    layer: _Layer, teacher: Mapping[str, Tensor], balance: tuple[float, float] | None, n: int
) -> tuple[Tensor, tuple[float, float]]:
    """The loss and the a+, a- it used; `balance` replaces its own."""
    z = layer.output["pred_corners"].unflatten(-1, (4, n + 1))
    batch, num_queries = z.shape[:2]
    goal = teacher["pred_corners"].detach().unflatten(-1, (4, n + 1))
    kl = F.kl_div((z / 5).log_softmax(-1), (goal / 5).softmax(-1), reduction="none").sum(-1) * 25
    weight = teacher["pred_logits"].detach().sigmoid().amax(-1)
    matched = torch.zeros(batch, num_queries, dtype=torch.bool)
    matched[layer.image, layer.query] = True
    weight[layer.image, layer.query] = layer.iou
    weighted = kl * weight[..., None]
    sides = matched[..., None].expand_as(weighted)
    mean_matched = weighted[sides].mean() if sides.any() else torch.zeros(())
    mean_others = weighted[~sides].mean() if (~sides).any() else torch.zeros(())
    if balance is None:
        balance = (float(sides.sum() * 8 / batch) ** 0.5, float((~sides).sum() * 8 / batch) ** 0.5)
    return (mean_matched * balance[0] + mean_others * balance[1]) / sum(balance), balance


def oracle_losses(
    outputs: Mapping[str, Any], targets: Sequence[Mapping[str, Tensor]], epoch: int, s: OracleSettings
) -> OracleResult:
    """Sections 7.3 and 7.4 for one process; outputs in float32 on the CPU."""
    layers = {"": outputs, **{f"_aux_{i}": aux for i, aux in enumerate(outputs["aux_outputs"])}}
    heads = {"_pre": outputs["pre_outputs"], **{f"_enc_{i}": e for i, e in enumerate(outputs["enc_aux_outputs"])}}
    matched = {suffix: match(output, targets, epoch, s) for suffix, output in (layers | heads).items()}
    go = go_union(list(matched.values()))
    num_boxes = max(1, sum(len(t["labels"]) for t in targets))
    num_go = max(1, sum(len(query) for query, _ in go)) if s.use_uni_set else num_boxes
    w = bin_values(s.reg_max, outputs["up"], outputs["reg_scale"])
    rho = float(outputs["reg_scale"])

    losses: dict[str, Tensor] = {}
    balance: tuple[float, float] | None = None
    for suffix, output in (layers | heads).items():
        own = _Layer(output, targets, matched[suffix])
        shared = _Layer(output, targets, go) if s.use_uni_set else own
        losses["loss_mal" + suffix] = mal(own, num_boxes, s)
        losses["loss_bbox" + suffix], losses["loss_giou" + suffix] = bbox(shared, num_go)
        if suffix in layers:
            losses["loss_fgl" + suffix] = fgl(shared, outputs["ref_points"], w, rho, num_go)
            if not torch.equal(output["pred_corners"], outputs["pred_corners"]):
                losses["loss_ddf" + suffix], balance = ddf(shared, outputs, None, s.reg_max)
    if "dn_outputs" in outputs:
        losses |= _denoising_losses(outputs, targets, num_boxes, balance or (0.5, 0.5), w, rho, s)
    weighted = {name: value * WEIGHTS["_".join(name.split("_")[:2])] for name, value in losses.items()}
    return OracleResult(weighted, matched, go)


def _denoising_losses(
    outputs: Mapping[str, Any],
    targets: Sequence[Mapping[str, Tensor]],
    num_boxes: int,
    balance: tuple[float, float],
    w: Tensor,
    rho: float,
    s: OracleSettings,
) -> dict[str, Tensor]:
    groups = outputs["dn_meta"]["dn_num_group"]
    pairs = [
        (query, torch.arange(len(target["labels"])).repeat(groups))
        for query, target in zip(outputs["dn_meta"]["dn_positive_idx"], targets, strict=True)
    ]
    norm = num_boxes * groups
    layers = {f"_dn_{i}": layer for i, layer in enumerate(outputs["dn_outputs"])}
    teacher = outputs["dn_outputs"][-1]
    losses = {}
    for suffix, output in (layers | {"_dn_pre": outputs["dn_pre_outputs"]}).items():
        layer = _Layer(output, targets, pairs)
        losses["loss_mal" + suffix] = mal(layer, norm, s)
        losses["loss_bbox" + suffix], losses["loss_giou" + suffix] = bbox(layer, norm)
        if suffix in layers:
            losses["loss_fgl" + suffix] = fgl(layer, outputs["dn_outputs"][0]["ref_points"], w, rho, norm)
            if not torch.equal(output["pred_corners"], teacher["pred_corners"]):
                losses["loss_ddf" + suffix] = ddf(layer, teacher, balance, s.reg_max)[0]
    return losses
