"""The predicted objects that are looked at more closely.

Legend: Q queries, C classes, K detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from models.boxes import cxcywh_to_xyxy, paired_iou

_SAME_PLACE_IOU = 0.7
"""Two predictions of one class that overlap so much show the same thing."""


@dataclass(frozen=True)
class PredictedObject:
    """One query (DEIMv2) or detection (baseline) with its best class."""

    query: int
    """Row of the detector's output."""
    label: int
    score: float
    box_xyxy: tuple[float, float, float, float]
    """0..1 over the image; it may leave it a little."""


def all_objects(outputs: Any) -> list[PredictedObject]:
    """Every query or detection of the first image, best score first; ties by row.

    Args:
        outputs: Of the detector in evaluation mode: `pred_logits` [B, Q, C] and `pred_boxes` [B, Q, 4] cxcywh, or a
            baseline's list of `scores` [K], `labels` [K] and `boxes` [K, 4] xyxy.
    """
    if isinstance(outputs, Mapping):
        scores, labels = outputs["pred_logits"][0].float().sigmoid().max(dim=-1)
        boxes = cxcywh_to_xyxy(outputs["pred_boxes"][0].float())
    else:
        scores, labels, boxes = (outputs[0][key] for key in ("scores", "labels", "boxes"))
    order = torch.sort(scores, descending=True, stable=True).indices.tolist()
    return [
        PredictedObject(row, int(labels[row]), float(scores[row]), _corners(boxes[row]))
        for row in order
        if bool(torch.isfinite(boxes[row]).all()) and bool(torch.isfinite(scores[row]))
    ]


def _corners(box: Tensor) -> tuple[float, float, float, float]:
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom


def choose_objects(
    objects: Sequence[PredictedObject], *, queries: Sequence[int] = (), top: int = 3, min_score: float = 0.3
) -> list[PredictedObject]:
    """What to draw: the given queries in their order, or else the `top` best of at least `min_score`.

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
        if one.score >= min_score and len(chosen) < top and not any(_show_the_same(one, other) for other in chosen):
            chosen.append(one)
    return chosen


def _show_the_same(one: PredictedObject, other: PredictedObject) -> bool:
    iou = paired_iou(torch.tensor(one.box_xyxy), torch.tensor(other.box_xyxy))
    return one.label == other.label and float(iou) >= _SAME_PLACE_IOU
