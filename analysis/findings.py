"""Single boxes worth a look, and sizes: what is missed, and what is reported without being there."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np

from analysis.errors import Errors
from analysis.matching import Boxes, Matches
from analysis.result import ERROR_KINDS, Finding
from data.types import BoolArray, FloatArray, IntArray

GALLERY_SIZE = 12
"""Of each kind: a sheet of the gallery."""
_MOST_PER_IMAGE = 3
SIZE_EDGES_PX = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 1e5)
"""COCO's borders, 32 and 96, are among them."""


def size_histogram(matches: Matches, *, score: float) -> dict[str, list[float]]:
    """Count boxes (crowds left out) by the square root of their area, and those found by a detection of at least
    `score`."""
    real, sizes = ~matches.truth.crowd, np.sqrt(matches.truth.areas)
    edges: FloatArray = np.array(SIZE_EDGES_PX, dtype=np.float64)
    edges = edges[: int(np.searchsorted(edges, sizes[real].max(initial=0.0), side="right")) + 1]
    there, _ = np.histogram(sizes[real], edges)
    found, _ = np.histogram(sizes[_found(matches, score)], edges)
    return {"edges_px": edges.tolist(), "ground_truth": there.tolist(), "found": found.tolist()}


def gallery(matches: Matches, errors: Errors, normal_label: int | None, *, score: float) -> list[Finding]:
    """Choose the worst misses and false alarms at a score threshold, worst first, a few of one image at most.

    A miss is the worse, the larger it is and the less any detection that touches it is sure; a false alarm, the surer
    it is. NORMAL boxes are neither.
    """
    truth, found = matches.truth, matches.found
    # The last entry stands for "none": index -1.
    touched = np.append(found.scores, 0.0)[errors.touching]
    explained = np.append(errors.targets, -1)[errors.touching] == np.arange(len(touched))
    notes = np.where(explained, np.append(errors.kinds, 0)[errors.touching], ERROR_KINDS.index("missed"))
    misses = np.flatnonzero(~_found(matches, score) & ~truth.crowd & (truth.labels != normal_label))
    misses = misses[np.argsort(-np.sqrt(truth.areas[misses]) * (1 - touched[misses]), kind="stable")]
    alarms = np.flatnonzero((errors.kinds >= 0) & (found.scores >= score) & (found.labels != normal_label))
    alarms = alarms[np.argsort(-found.scores[alarms], kind="stable")]

    found_by = np.full(len(truth.labels), -1, dtype=np.int64)
    hits = np.flatnonzero(matches.truth_of >= 0)
    found_by[matches.truth_of[hits]] = hits

    def alarm(row: int) -> Finding:
        one = finding("false_alarm", found, row, float(found.scores[row]), errors.kinds[row])
        if one.note != "duplicate":
            return one
        first = found.scores[found_by[errors.first_truth[row]]]
        return one._replace(first_score=float(first), first_iou=float(errors.first_iou[row]))

    def finding(kind: Literal["missed", "false_alarm"], boxes: Boxes, row: int, score: float, note: int) -> Finding:
        x, y, width, height = boxes.xywh[row].tolist()
        image_id = int(matches.image_ids[boxes.images[row]])
        return Finding(kind, image_id, int(boxes.labels[row]), score, (x, y, width, height), ERROR_KINDS[note])

    return [
        *(finding("missed", truth, row, float(touched[row]), notes[row]) for row in _few(misses, truth.images)),
        *(alarm(row) for row in _few(alarms, found.images)),
    ]


def _found(matches: Matches, score: float) -> BoolArray:
    """[G], boxes hit at IoU 0.5 by a detection of at least `score`."""
    found = np.zeros(len(matches.truth.labels), dtype=bool)
    found[matches.truth_of[(matches.truth_of >= 0) & (matches.found.scores >= score)]] = True
    return found


def _few(rows: IntArray, images: IntArray) -> list[int]:
    """The first `GALLERY_SIZE` rows with at most `_MOST_PER_IMAGE` of one image."""
    shown: Counter[int] = Counter()
    kept: list[int] = []
    for row, image in zip(rows.tolist(), images[rows].tolist(), strict=True):
        if len(kept) < GALLERY_SIZE and shown[image] < _MOST_PER_IMAGE:
            shown[image] += 1
            kept.append(row)
    return kept
