"""Single boxes worth a look, and sizes: what is missed, and what is reported without being there."""

from __future__ import annotations

import numpy as np

from analysis.errors import Errors
from analysis.overlaps import BoolArray, Overlaps, places_in_runs
from analysis.result import ERROR_KINDS, Finding, FloatArray, IntArray, SizeHistogram

GALLERY_SIZE = 24
_MOST_PER_IMAGE = 3
SIZE_EDGES_PX = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 1e5)
"""COCO's borders, 32 and 96, are among them."""


def size_histogram(overlaps: Overlaps, errors: Errors, *, score: float) -> SizeHistogram:
    """Boxes (crowds left out) by the square root of their area, and those found by a detection of at least `score`."""
    real = ~overlaps.truth_crowd
    sizes = np.sqrt(overlaps.truth_areas)
    edges: FloatArray = np.array(SIZE_EDGES_PX, dtype=np.float64)
    largest = sizes[real].max(initial=0.0)
    edges = edges[: int(np.searchsorted(edges, largest, side="right")) + 1]
    there, _ = np.histogram(sizes[real], edges)
    found, _ = np.histogram(sizes[_found(overlaps, errors, score)], edges)
    return SizeHistogram(edges, there.astype(np.int64), found.astype(np.int64))


def gallery(overlaps: Overlaps, errors: Errors, normal_label: int | None, *, score: float) -> list[Finding]:
    """The worst misses and false alarms at a score threshold, worst first, a few of one image at most.

    A miss is the worse, the larger it is and the less any detection that touches it is sure; a false alarm, the surer
    it is. NORMAL boxes are neither.
    """
    return _misses(overlaps, errors, normal_label, score) + _false_alarms(overlaps, errors, normal_label, score)


def _found(overlaps: Overlaps, errors: Errors, score: float) -> BoolArray:
    """[G], boxes hit at IoU 0.5 by a detection of at least `score`."""
    hits = errors.truth_of[(errors.truth_of >= 0) & (overlaps.scores >= score)]
    found = np.zeros(len(overlaps.truth_labels), dtype=bool)
    found[hits] = True
    return found


def _misses(overlaps: Overlaps, errors: Errors, normal_label: int | None, score: float) -> list[Finding]:
    missed = ~_found(overlaps, errors, score) & ~overlaps.truth_crowd & (overlaps.truth_labels != normal_label)
    touching = np.full(len(missed), -1, dtype=np.int64)
    order = np.argsort(overlaps.scores[overlaps.pair_detections], kind="stable")
    touching[overlaps.pair_truths[order]] = overlaps.pair_detections[order]  # the best one stays
    scores = np.where(touching >= 0, overlaps.scores[touching], 0.0) if len(overlaps.scores) else np.zeros(len(missed))
    rows = np.flatnonzero(missed)
    rows = rows[np.argsort(-np.sqrt(overlaps.truth_areas[rows]) * (1 - scores[rows]), kind="stable")]
    return [
        Finding(
            kind="missed",
            image_id=int(overlaps.image_ids[overlaps.truth_images[row]]),
            label=int(overlaps.truth_labels[row]),
            score=float(scores[row]),
            box_xywh=_box(overlaps.truth_boxes[row]),
            note=_note_of_miss(errors, int(row), int(touching[row])),
        )
        for row in _few_per_image(rows, overlaps.truth_images)
    ]


def _note_of_miss(errors: Errors, truth: int, detection: int) -> str:
    if detection >= 0 and errors.targets[detection] == truth:
        return ERROR_KINDS[int(errors.kinds[detection])]
    return "missed"


def _false_alarms(overlaps: Overlaps, errors: Errors, normal_label: int | None, score: float) -> list[Finding]:
    rows = np.flatnonzero((errors.kinds >= 0) & (overlaps.scores >= score) & (overlaps.labels != normal_label))
    rows = rows[np.argsort(-overlaps.scores[rows], kind="stable")]
    return [
        Finding(
            kind="false_alarm",
            image_id=int(overlaps.image_ids[overlaps.images[row]]),
            label=int(overlaps.labels[row]),
            score=float(overlaps.scores[row]),
            box_xywh=_box(overlaps.boxes[row]),
            note=ERROR_KINDS[int(errors.kinds[row])],
        )
        for row in _few_per_image(rows, overlaps.images)
    ]


def _few_per_image(rows: IntArray, images: IntArray) -> list[int]:
    """The first `GALLERY_SIZE` rows with at most `_MOST_PER_IMAGE` of one image."""
    order = np.argsort(images[rows], kind="stable")
    places = np.empty(len(rows), dtype=np.int64)
    places[order] = places_in_runs(images[rows][order])
    kept: list[int] = rows[places < _MOST_PER_IMAGE][:GALLERY_SIZE].tolist()
    return kept


def _box(box: FloatArray) -> tuple[float, float, float, float]:
    x, y, width, height = (float(value) for value in box)
    return x, y, width, height
