"""Boxes of a split in columns, which of them overlap, and who gets whom: the ground all analyses stand on.

Legend: I images, M detections, G ground-truth boxes, P pairs, S settings (IoU threshold x area range).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.result import FloatArray, IntArray
from engine.coco_metrics import Detections, GroundTruth

BoolArray = NDArray[np.bool_]

MIN_IOU = 0.1
"""Pairs that overlap less are not kept: TIDE's border between "badly placed" and "background"."""
MAX_DETECTIONS = 100
"""COCO's limit, per image and class."""

_PAIRS_AT_ONCE = 2_000_000
_NOT_IGNORED = np.int32(1 << 24)


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Detections and ground truth of a split, and every pair of them in one image with IoU >= `MIN_IOU`.

    Ground truth is ordered by image, then as in the file. Detections are ordered by class, best first, equal scores
    by image and then as given: the order in which COCO ranks them. Beyond COCO's limit of 100 per image and class,
    and outside the images and classes of the ground truth, detections are left out.
    """

    image_ids: IntArray
    """[I], ascending."""
    num_classes: int
    truth_images: IntArray
    """[G], index into `image_ids`."""
    truth_labels: IntArray
    """[G], contiguous."""
    truth_boxes: FloatArray
    """[G, 4], xywh in pixels."""
    truth_areas: FloatArray
    """[G], square pixels, as annotated."""
    truth_crowd: BoolArray
    """[G]"""
    images: IntArray
    """[M], index into `image_ids`."""
    labels: IntArray
    """[M], contiguous."""
    scores: FloatArray
    """[M]"""
    boxes: FloatArray
    """[M, 4], xywh in pixels."""
    ranks: IntArray
    """[M], place within its image and class, the best is 0."""
    pair_detections: IntArray
    """[P], index of a detection, ascending."""
    pair_truths: IntArray
    """[P], index of a ground-truth box."""
    pair_ious: FloatArray
    """[P]; for a crowd box: intersection over the detection's area, as COCO has it."""

    @classmethod
    def of(cls, truth: GroundTruth, detections: Detections) -> Overlaps:
        """Sort, cut off and pair."""
        image_ids = np.array(sorted(truth.images), dtype=np.int64)
        category_ids = np.array(truth.classes.category_ids, dtype=np.int64)
        t = _truth_columns(truth, image_ids, category_ids)
        d = _detection_columns(detections, image_ids, category_ids)
        ranks = _ranks(d.images, d.labels)
        kept = ranks < MAX_DETECTIONS
        d, ranks = d.at(np.flatnonzero(kept)), ranks[kept]
        pairs = _pairs(d, t, num_images=len(image_ids))
        return cls(
            image_ids, len(category_ids), t.images, t.labels, t.boxes, t.values, t.crowd,
            d.images, d.labels, d.values, d.boxes, ranks, *pairs,
        )  # fmt: skip

    @property
    def areas(self) -> FloatArray:
        """[M], square pixels."""
        return self.boxes[:, 2] * self.boxes[:, 3]


class _Columns(NamedTuple):
    images: IntArray
    labels: IntArray
    values: FloatArray
    """Annotated area, or score."""
    boxes: FloatArray
    crowd: BoolArray

    def at(self, rows: IntArray) -> _Columns:
        return _Columns(self.images[rows], self.labels[rows], self.values[rows], self.boxes[rows], self.crowd[rows])


def _truth_columns(truth: GroundTruth, image_ids: IntArray, category_ids: IntArray) -> _Columns:
    rows = truth.annotations
    images, known_image = _index_of(np.array([box["image_id"] for box in rows], dtype=np.int64), image_ids)
    labels, known_class = _index_of(np.array([box["category_id"] for box in rows], dtype=np.int64), category_ids)
    columns = _Columns(
        images,
        labels,
        np.array([box["area"] for box in rows], dtype=np.float64),
        np.array([box["bbox"] for box in rows], dtype=np.float64).reshape(-1, 4),
        np.array([bool(box["iscrowd"]) for box in rows], dtype=bool),
    )
    kept = np.flatnonzero(known_image & known_class)
    order = kept[np.argsort(images[kept], kind="stable")]
    return columns.at(order)


def _detection_columns(detections: Detections, image_ids: IntArray, category_ids: IntArray) -> _Columns:
    images, known_image = _index_of(detections.image_ids, image_ids)
    labels, known_class = _index_of(detections.category_ids, category_ids)
    crowd = np.zeros(len(detections), dtype=bool)
    columns = _Columns(images, labels, detections.scores, detections.boxes_xywh, crowd)
    kept = np.flatnonzero(known_image & known_class)
    order = kept[np.lexsort((images[kept], -detections.scores[kept], labels[kept]))]
    return columns.at(order)


def _index_of(ids: IntArray, known: IntArray) -> tuple[IntArray, BoolArray]:
    """Position of every id in the ascending `known`, and whether it is there at all."""
    if not len(known):
        return np.zeros(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=bool)
    position = np.minimum(np.searchsorted(known, ids), len(known) - 1).astype(np.int64)
    return position, known[position] == ids


def _ranks(images: IntArray, labels: IntArray) -> IntArray:
    """Place of every row among the rows of its image and class, in the order given."""
    order = np.lexsort((images, labels))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = places_in_runs(labels[order] * (images.max(initial=0) + 1) + images[order])
    return ranks


def places_in_runs(keys: IntArray) -> IntArray:
    """0, 1, 2, ... within every run of equal keys."""
    places = np.arange(len(keys), dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else places
    lengths = np.diff(np.concatenate([starts, [len(keys)]]))
    return places - np.repeat(starts, lengths)


def _pairs(d: _Columns, t: _Columns, *, num_images: int) -> tuple[IntArray, IntArray, FloatArray]:
    """Every detection with every box of its image, in pieces of bounded size; kept where they overlap enough."""
    starts = np.searchsorted(t.images, np.arange(num_images + 1))
    partners = np.diff(starts)[d.images] if num_images else np.zeros(0, dtype=np.int64)
    ends = np.cumsum(partners)
    pieces = np.arange(_PAIRS_AT_ONCE, (ends[-1] if len(ends) else 0) + _PAIRS_AT_ONCE, _PAIRS_AT_ONCE)
    borders = [0, *np.searchsorted(ends, pieces, side="right").tolist(), len(ends)]
    found: list[tuple[IntArray, IntArray, FloatArray]] = []
    for low, high in zip(borders[:-1], borders[1:], strict=True):
        detection = np.repeat(np.arange(low, high), partners[low:high])
        truth = starts[d.images[detection]] + places_in_runs(detection)
        iou = box_ious(d.boxes[detection], t.boxes[truth], t.crowd[truth])
        kept = iou >= MIN_IOU
        found.append((detection[kept], truth[kept], iou[kept]))
    return (
        np.concatenate([piece[0] for piece in found]),
        np.concatenate([piece[1] for piece in found]),
        np.concatenate([piece[2] for piece in found]),
    )


def box_ious(boxes: FloatArray, truths: FloatArray, crowd: BoolArray) -> FloatArray:
    """IoU of boxes xywh, row by row, [P]; operations in the order of COCO's `bbIou`, so that borders fall alike."""
    low = np.maximum(boxes[:, :2], truths[:, :2])
    sides = np.minimum(boxes[:, 2:] + boxes[:, :2], truths[:, 2:] + truths[:, :2]) - low
    inside = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area, truth_area = boxes[:, 2] * boxes[:, 3], truths[:, 2] * truths[:, 3]
    union = np.where(crowd, area, area + truth_area - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


class Matches(NamedTuple):
    """Who got whom: one row for every match."""

    settings: IntArray
    """Index of the setting."""
    pairs: IntArray
    """Index into the pairs that were given."""


def match_best_first(
    *,
    rounds: IntArray,
    detections: IntArray,
    truths: IntArray,
    ious: FloatArray,
    thresholds: FloatArray,
    crowd: BoolArray,
    ignored: BoolArray,
) -> Matches:
    """COCO's greedy matching under many settings at once.

    Detections choose in rounds, all those of a round at the same time: the best box that is still free and overlaps
    enough, boxes that count before boxes that are ignored; of equal IoUs the later box. Crowd boxes stay free.

    Args:
        rounds: [P], when the pair's detection chooses. Detections that compete for a box have different rounds.
        detections: [P]
        truths: [P], index of a box.
        ious: [P]
        thresholds: [S], least IoU.
        crowd: [G]
        ignored: [S, G]
    """
    limits = np.minimum(thresholds, 1 - 1e-10)[:, None]  # COCO's own guard
    usable = np.flatnonzero(ious >= limits.min())
    order = usable[np.lexsort((truths[usable], ious[usable], detections[usable], rounds[usable]))]
    detections, truths, ious = detections[order], truths[order], ious[order]
    places = (places_in_runs(detections) + 1).astype(np.int32)
    borders = np.concatenate([np.flatnonzero(np.diff(rounds[order], prepend=-1)), [len(order)]])
    taken = np.zeros(ignored.shape, dtype=bool)
    settings: list[IntArray] = [np.empty(0, dtype=np.int64)]
    pairs: list[IntArray] = [np.empty(0, dtype=np.int64)]
    for low, high in zip(borders[:-1], borders[1:], strict=True):
        boxes = truths[low:high]
        allowed = (ious[low:high] >= limits) & ~taken[:, boxes]
        wish = np.where(allowed, places[low:high] + _NOT_IGNORED * ~ignored[:, boxes], 0)
        starts = np.flatnonzero(places[low:high] == 1)
        best = np.maximum.reduceat(wish, starts, axis=1)
        won = allowed & (wish == np.repeat(best, np.diff(np.append(starts, high - low)), axis=1))
        taken[:, boxes] |= won & ~crowd[boxes]
        setting, pair = np.nonzero(won)
        settings.append(setting)
        pairs.append(order[low + pair])
    return Matches(np.concatenate(settings), np.concatenate(pairs))
