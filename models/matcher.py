"""Which query answers for which box: Hungarian matching and the GO union (docs/deimv2.md, Matcher / GO union).

The costs of all output sets are computed together on the device and cross to the host once; everything
after that is numpy. Papers: DETR (Carion et al. 2020) for the matching, D-FINE (Peng et al. 2024) for GO,
"globally optimal" pairs shared by all layers, DEIM (Huang et al. 2024) for the late, order-aware cost.

Legend: S output sets, B images, Q queries, C classes, N boxes of the whole batch, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from data.types import IntArray
from models.boxes import cxcywh_to_xyxy_clamped, paired_iou, paired_iou_giou
from models.config import MatcherConfig


class Pairs(NamedTuple):
    """Queries paired with boxes, on the host. P is the same for every output set."""

    query: IntArray  # int64 [S, P], position in the flattened B * Q queries
    box: IntArray  # int64 [S, P], position among the N boxes of the batch


class HungarianMatcher:
    """One-to-one matching of queries and boxes, for all output sets of a step at once."""

    def __init__(self, config: MatcherConfig) -> None:
        self.config = config

    @torch.no_grad()
    def costs(
        self,
        logits: Tensor,
        boxes_cxcywh: Tensor,
        labels: Tensor,
        targets_cxcywh: Tensor,
        image_of_box: Tensor,
        epoch: int,
    ) -> Tensor:
        """The price of every (query, box) pair within its own image; pairs across images are never formed.

        Args:
            logits: float32 [S, B, Q, C]. boxes_cxcywh: float32 [S, B, Q, 4].
            labels: int64 [N]. targets_cxcywh: float32 [N, 4]. image_of_box: int64 [N], in 0..B-1.
            epoch: decides between the cost of the first epochs and the order-aware one.

        Returns:
            float32 [S, N, Q]; NaN has become 1 and infinity the largest finite number.
        """
        class_first = logits.sigmoid().movedim(-1, 0)  # [C, S, B, Q]
        targets_xyxy = cxcywh_to_xyxy_clamped(targets_cxcywh)[:, None]  # [N, 1, 4]
        predicted_xyxy = _own_image(cxcywh_to_xyxy_clamped(boxes_cxcywh), image_of_box)  # [S, N, Q, 4]
        if self.config.change_matcher and epoch >= self.config.matcher_change_epoch:
            iou = paired_iou(predicted_xyxy, targets_xyxy)
            cost = -(_own_class(class_first, labels, image_of_box) * iou**self.config.iou_order_alpha)
        else:
            weights = self.config.weight_dict
            l1 = (_own_image(boxes_cxcywh, image_of_box) - targets_cxcywh[:, None]).abs_().sum(-1)
            focal = _own_class(self._focal(class_first), labels, image_of_box)
            cost = weights["cost_bbox"] * l1 + weights["cost_class"] * focal
            cost -= weights["cost_giou"] * paired_iou_giou(predicted_xyxy, targets_xyxy)[1]
        return cost.nan_to_num_(nan=1.0)

    def _focal(self, p: Tensor) -> Tensor:
        """Focal loss if the query were of this class minus the loss if it were background; any shape."""
        alpha, gamma = self.config.alpha, self.config.gamma
        positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
        negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
        return positive - negative


def _own_image(boxes: Tensor, image_of_box: Tensor) -> Tensor:
    """Predictions of each box's own image: [S, B, Q, 4] -> [S, N, Q, 4], stored coordinate by coordinate."""
    return boxes.movedim(-1, 0).index_select(2, image_of_box).movedim(0, -1)


def _own_class(class_first: Tensor, labels: Tensor, image_of_box: Tensor) -> Tensor:
    """Values of each box's own image and class: [C, S, B, Q] -> [S, N, Q]."""
    return class_first.transpose(1, 2)[labels, image_of_box].transpose(0, 1)


def assign(
    costs: npt.NDArray[np.float32], boxes_per_image: Sequence[int], repeats: Sequence[int] | None = None
) -> Pairs:
    """The cheapest assignment of every output set and image (Hungarian method), one-to-one where nothing repeats.

    Args:
        costs: [S, N, Q], boxes grouped by image in order.
        boxes_per_image: B numbers that add to N.
        repeats: S numbers, queries of each box ("label augmentation", Wang et al., DE-DETR, ECCV 2022); None: 1 each.

    Returns:
        Pairs with P = sum of min(Q, n_b x most repeats), by image and, where nothing repeats, then by query. A set with
        fewer repeats says its pairs several times, which gives them more weight in `go_union` and nothing else.
    """
    num_sets, _, num_queries = costs.shape
    repeats = repeats or [1] * num_sets
    most = max(repeats, default=1)
    num_pairs = sum(min(num_queries, n * most) for n in boxes_per_image)
    query = np.empty((num_sets, num_pairs), dtype=np.int64)
    box = np.empty((num_sets, num_pairs), dtype=np.int64)
    first_box, first_pair = 0, 0
    for image, n in enumerate(boxes_per_image):
        pairs_here = slice(first_pair, first_pair + min(num_queries, n * most))
        for s in range(num_sets if n else 0):
            of_image = np.tile(costs[s, first_box : first_box + n], (repeats[s], 1))
            own_query, own_box = linear_sum_assignment(of_image.T)
            length = pairs_here.stop - pairs_here.start
            query[s, pairs_here] = np.resize(own_query, length) + image * num_queries
            box[s, pairs_here] = np.resize(own_box % n, length) + first_box
        first_box, first_pair = first_box + n, pairs_here.stop
    return Pairs(query, box)


def go_union(pairs: Pairs) -> Pairs:
    """One set of pairs for the box losses of all layers: per query the box most output sets gave it.

    Equally frequent boxes: the smaller index wins, so that the result is the same on every device.

    Returns:
        Pairs with S = 1, ascending by query; every query at most once, a box possibly many times.
    """
    num_boxes = int(pairs.box.max(initial=0)) + 1
    distinct, votes = np.unique(pairs.query * num_boxes + pairs.box, return_counts=True)
    query, box = np.divmod(distinct, num_boxes)
    best_first = np.lexsort((box, -votes, query))
    winners = best_first[np.unique(query[best_first], return_index=True)[1]]
    return Pairs(query[None, winners], box[None, winners])
