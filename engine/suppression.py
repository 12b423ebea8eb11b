"""Repeated detections: how many there are, and the IoU from which suppressing them, or not, serves best.

DEIMv2's one-to-one training is to make suppression superfluous; after few epochs or on few images it is not yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask

from data.files import write_json
from data.types import BoolArray
from engine.metrics import CocoNumbers, GroundTruth, Predictions, best_thresholds, coco_numbers
from engine.results import RESULTS_NAME, read_evaluation, read_results

TRIED_IOUS = (0.9, 0.8, 0.7, 0.6, 0.5)
REPEAT_IOU = 0.5
"""A detection that overlaps a better one of its class by this much or more repeats it."""


def suppressed(detections: Predictions, most_iou: float) -> Predictions:
    """Keep, of boxes of one image and class that overlap more than `most_iou`, the best."""
    from torchvision.ops import batched_nms  # torchvision takes as long to load as torch

    boxes = detections.boxes_xywh.copy()
    boxes[:, 2:] += boxes[:, :2]
    groups = np.unique(np.stack([detections.image_ids, detections.category_ids]), axis=1, return_inverse=True)[1]
    arrays = (boxes, detections.scores, groups.reshape(-1))
    kept = batched_nms(*map(torch.from_numpy, arrays), most_iou).sort().values.numpy()
    return detections.rows(kept)


def try_suppression(
    truth: GroundTruth, detections: Predictions, numbers: CocoNumbers, thresholds: dict[str, Any]
) -> dict[str, Any]:
    """Judge the detections of a split as they are, which gave `numbers` and `thresholds`, and suppressed.

    Returns:
        What results.json says under `suppression`: `tried` (`iou`, None for none; `AP`, `AP50`, `f1` at the best score,
        and the `thresholds` that belong to it), the `iou` with the best F1, and how many of the `detections` that reach
        their class's threshold, all as they are, are `repeats`.
    """
    tried = [_judged(None, numbers, thresholds)]
    for iou in TRIED_IOUS:
        left = suppressed(detections, iou)
        tried.append(_judged(iou, coco_numbers(truth, left), best_thresholds(truth, left)))
    best = max(tried, key=lambda one: one["f1"] or 0.0)  # of equals the first, which suppresses least
    shown = detections.rows(_reach(truth, detections, thresholds))
    repeats = int(_is_repeat(shown).sum())
    return {"iou": best["iou"], "tried": tried, "repeats": repeats, "detections": len(shown)}


def add_suppression(folder: Path) -> None:
    """Add to the results.json of a run what `try_suppression` says of its detections.

    Raises:
        UserError: The files beside it are damaged, or the folder cannot be written.
    """
    results = read_results(folder / RESULTS_NAME)
    if not results:
        return  # the best epoch is in the folder of an earlier part of the run
    numbers = CocoNumbers(*(results[key] for key in CocoNumbers._fields))
    tried = try_suppression(*read_evaluation(folder), numbers, results["thresholds"])
    write_json(folder / RESULTS_NAME, {**results, "suppression": tried}, what="results", indent=2)


def _judged(iou: float | None, numbers: CocoNumbers, thresholds: dict[str, Any]) -> dict[str, Any]:
    overall = thresholds["overall"]
    metrics = {key: numbers.metrics[key] for key in ("AP", "AP50")}
    return {"iou": iou, **metrics, "f1": overall and overall["f1"], "thresholds": thresholds}


def _reach(truth: GroundTruth, detections: Predictions, thresholds: dict[str, Any]) -> BoolArray:
    """[M], whether a detection reaches its class's threshold, or that of all where its class has none."""
    least = np.full(len(detections), np.inf)
    for category_id, own in zip(truth.classes.category_ids, thresholds["per_class"].values(), strict=True):
        threshold = own or thresholds["overall"]
        if threshold is not None:
            least[detections.category_ids == category_id] = threshold["score"]
    return detections.scores >= least


def _is_repeat(detections: Predictions) -> BoolArray:
    order = np.lexsort((-detections.scores, detections.category_ids, detections.image_ids))
    ids = np.stack([detections.image_ids, detections.category_ids])[:, order]
    starts = np.flatnonzero((ids[:, 1:] != ids[:, :-1]).any(axis=0)) + 1
    repeats = np.zeros(len(detections), dtype=bool)
    for rows in np.split(order, starts):
        if len(rows) > 1:
            boxes = detections.boxes_xywh[rows]
            overlaps = mask.iou(boxes, boxes, np.zeros(len(rows)))
            repeats[rows] = (np.tril(overlaps, -1) >= REPEAT_IOU).any(axis=1)
    return repeats
