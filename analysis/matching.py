"""Which detection hit what at every IoU threshold: matched once by pycocotools, then resampled, thresholded
and sorted into errors.

Legend: I images, K classes, M detections, G ground-truth boxes, T IoU thresholds (0.50:0.05:0.95).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from data.types import BoolArray, FloatArray, IntArray
from engine.metrics import GroundTruth, Predictions, matches_of_images, unique_names

IOU_THRESHOLDS: FloatArray = np.linspace(0.5, 0.95, 10)
FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2
NO_BOX, DOES_NOT_COUNT = -1, -2
MIN_IOU = 0.1
"""TIDE's border between "badly placed" and "background"."""


class Boxes(NamedTuple):
    """Boxes of a split in columns of N."""

    images: IntArray
    """Index into `Matches.image_ids`."""
    labels: IntArray
    """Contiguous."""
    xywh: FloatArray
    """[N, 4], pixels."""
    areas: FloatArray
    """Square pixels: as annotated; width x height of a detection."""
    scores: FloatArray
    """1 for ground truth."""
    crowd: BoolArray
    """False for detections."""

    def at(self, rows: IntArray | BoolArray) -> Boxes:
        """Return some of the boxes."""
        images, labels, xywh, areas, scores, crowd = self
        return Boxes(images[rows], labels[rows], xywh[rows], areas[rows], scores[rows], crowd[rows])


@dataclass(frozen=True, eq=False)
class Matches:
    """COCO's matching of a whole split."""

    names: tuple[str, ...]
    """[K], unique."""
    gt_hash: str
    """`GroundTruth.fingerprint()`."""
    image_ids: IntArray
    """[I], ascending."""
    truth: Boxes
    """G boxes in the order of the annotations."""
    found: Boxes
    """M detections by class, best first, equal scores by image: COCO's ranking, in which 100 per image and class count.
    Detections of other images and categories are left out."""
    outcomes: NDArray[np.int8]
    """[T, M]: FALSE_POSITIVE, TRUE_POSITIVE or IGNORED (in a crowd)."""
    truth_of: IntArray
    """[M], row of the box that a detection hits at IoU 0.5; -1 for the others."""
    gt_counts: NDArray[np.int32]
    """[I, K]: boxes that count."""

    def rows(self, label: int) -> slice:
        """Return where the detections of a class are."""
        low, high = np.searchsorted(self.found.labels, [label, label + 1]).tolist()
        return slice(low, high)

    @property
    def num_gt(self) -> IntArray:
        """[K], boxes that count."""
        counts: IntArray = self.gt_counts.sum(axis=0, dtype=np.int64)
        return counts


def match(truth: GroundTruth, detections: Predictions) -> Matches:
    """Match the detections of a split to its ground truth as COCO does: within a class, best detection first."""
    image_ids = np.array(sorted(truth.images), dtype=np.int64)
    category_ids = np.array(truth.classes.category_ids, dtype=np.int64)

    def boxes(images: Any, categories: Any, xywh: Any, areas: Any, scores: Any, crowd: Any) -> Boxes:
        images, categories = np.asarray(images, dtype=np.int64), np.asarray(categories, dtype=np.int64)
        columns = Boxes(
            np.searchsorted(image_ids, images),
            np.searchsorted(category_ids, categories),
            np.asarray(xywh, dtype=np.float64).reshape(-1, 4),
            np.asarray(areas, dtype=np.float64),
            np.asarray(scores, dtype=np.float64),
            np.asarray(crowd, dtype=bool),
        )
        return columns.at(np.isin(images, image_ids) & np.isin(categories, category_ids))

    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    images, categories, corners, areas, crowd = ([box[key] for box in truth.annotations] for key in keys)
    annotated = boxes(images, categories, corners, areas, np.ones(len(areas)), crowd)
    xywh, scores = detections.boxes_xywh, detections.scores
    sizes = xywh[:, 2] * xywh[:, 3]
    found = boxes(detections.image_ids, detections.category_ids, xywh, sizes, scores, np.zeros(len(scores)))
    names, num_images = tuple(unique_names(truth.classes)), len(image_ids)
    cells = _evaluate(annotated, found, num_images, len(names), ious=IOU_THRESHOLDS)
    counts = np.zeros((num_images, len(names)), dtype=np.int32)
    rows, taken = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    outcomes = [np.empty((len(IOU_THRESHOLDS), 0), dtype=np.int8)]
    for label in range(len(names)):
        own = [cell for cell in cells[label * num_images : (label + 1) * num_images] if cell is not None]
        for cell in own:
            counts[cell["image_id"], label] = np.count_nonzero(cell["gtIgnore"] == 0)
        if own:
            ids = np.concatenate([cell["dtIds"] for cell in own]).astype(np.int64) - 1
            order = np.argsort(-found.scores[ids], kind="stable")
            matched = np.concatenate([cell["dtMatches"] for cell in own], axis=1)[:, order]
            ignored = np.concatenate([cell["dtIgnore"] for cell in own], axis=1)[:, order]
            outcomes.append(np.where(ignored, IGNORED, matched > 0).astype(np.int8))
            rows.append(ids[order])
            taken.append(np.where(ignored[0], 0, matched[0]).astype(np.int64) - 1)
    return Matches(
        names,
        truth.fingerprint(),
        image_ids,
        truth=annotated,
        found=found.at(np.concatenate(rows)),
        outcomes=np.concatenate(outcomes, axis=1),
        truth_of=np.concatenate(taken),
        gt_counts=counts,
    )


def _evaluate(truth: Boxes, found: Boxes, num_images: int, num_classes: int, **how: Any) -> list[dict[str, Any] | None]:
    """Return `matches_of_images`, in which ids of images and categories are indices; ids of boxes are their rows + 1,
    since 0 stands for "no match"."""

    def dataset(boxes: Boxes) -> dict[str, Any]:
        rows = zip(*(column.tolist() for column in boxes), strict=True)
        return {
            "images": [{"id": image} for image in range(num_images)],
            "categories": [{"id": label} for label in range(num_classes)],
            "annotations": [
                {"id": n, "image_id": i, "category_id": k, "bbox": box, "area": area, "score": score, "iscrowd": crowd}
                for n, (i, k, box, area, score, crowd) in enumerate(rows, start=1)
            ],
        }

    return matches_of_images(dataset(truth), dataset(found), **how)


def take(matches: Matches, truth: Boxes, found: Boxes, *, iou: float, any_class: bool = False) -> IntArray:
    """Match some boxes and detections of a split at one IoU, within classes or whatever the class: row of `truth` for
    each detection; NO_BOX, or DOES_NOT_COUNT in a crowd box or of an impossible size."""
    size = (len(matches.image_ids), len(matches.names))
    taken = np.full(len(found.labels), NO_BOX, dtype=np.int64)
    for cell in _evaluate(truth, found, *size, ious=np.array([iou]), any_class=any_class):
        if cell is not None and cell["dtIds"]:
            rows = np.array(cell["dtIds"]) - 1
            taken[rows] = np.where(cell["dtIgnore"][0], DOES_NOT_COUNT, cell["dtMatches"][0] - 1)
    return taken


def overlapping(matches: Matches) -> tuple[IntArray, IntArray, FloatArray]:
    """Return detections, boxes and IoUs of all P pairs within an image that overlap by `MIN_IOU` or more.

    With a crowd box the IoU is the share of the detection that lies in it, as COCO has it.
    """
    found, truth = matches.found, matches.truth
    images = np.arange(1, len(matches.image_ids))
    order, truth_order = (np.argsort(boxes.images, kind="stable") for boxes in (found, truth))
    detections: list[IntArray] = [np.empty(0, dtype=np.int64)]
    boxes, ious = [*detections], [np.empty(0)]
    for rows, truths in zip(
        np.split(order, np.searchsorted(found.images[order], images)),
        np.split(truth_order, np.searchsorted(truth.images[truth_order], images)),
        strict=True,
    ):
        if len(rows) and len(truths):
            overlap = mask.iou(found.xywh[rows], truth.xywh[truths], truth.crowd[truths])
            row, column = np.nonzero(overlap >= MIN_IOU)
            detections.append(rows[row])
            boxes.append(truths[column])
            ious.append(overlap[row, column])
    return np.concatenate(detections), np.concatenate(boxes), np.concatenate(ious)
