"""Who is taken for whom.

`faster_coco_eval.extra` has such a matrix too, but it evaluates everything again on deep copies, counts crowd boxes
as misses, and lets a wrong class take a box that the right class found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.matching import impossible_detections, match_within_classes
from analysis.overlaps import MIN_IOU, BoolArray, Overlaps, match_best_first, places_in_runs
from analysis.result import Confusion, IntArray


def confusion(overlaps: Overlaps, names: Sequence[str], *, iou: float, score: float) -> Confusion:
    """Count pairs at one IoU and one score.

    Detections first get boxes of their own class as COCO matches them, so that the diagonal holds the true positives
    of precision and recall; what is left over on both sides is then matched whatever the class, best detection
    first. Detections in a crowd box do not count.

    Args:
        overlaps: Boxes and pairs.
        names: [K]
        iou: Least IoU, in [0.1, 1).
        score: Detections below it are dropped.
    """
    if not MIN_IOU <= iou < 1:
        raise ValueError(f"iou {iou} is outside [{MIN_IOU}, 1)")
    kept = overlaps.scores >= score
    truth_of, ignored = _own_class(overlaps, iou, kept)
    _any_class(overlaps, iou, kept, truth_of, ignored)
    background = len(names)
    matched = np.flatnonzero(truth_of >= 0)
    cells = overlaps.truth_labels[truth_of[matched]] * (background + 1) + overlaps.labels[matched]
    counts = np.bincount(cells, minlength=(background + 1) ** 2).reshape(background + 1, background + 1)
    alone = kept & (truth_of < 0) & ~ignored
    counts[background, :background] = np.bincount(overlaps.labels[alone], minlength=background)
    missed = ~overlaps.truth_crowd
    missed[truth_of[matched]] = False
    counts[:background, background] = np.bincount(overlaps.truth_labels[missed], minlength=background)
    return Confusion(names=list(names), iou=iou, score=score, counts=counts)


def _own_class(overlaps: Overlaps, iou: float, kept: BoolArray) -> tuple[IntArray, BoolArray]:
    """Box of each detection [M] (-1: none), and whether it is ignored: in a crowd box of its class, or impossible.

    A low score never takes a box from a higher one, so dropping low scores after matching changes nothing.
    """
    _, detections, truths = match_within_classes(overlaps, np.array([iou]), overlaps.truth_crowd[None])
    ignored = impossible_detections(overlaps)
    ignored[detections] = overlaps.truth_crowd[truths]
    truth_of = np.full(len(kept), -1, dtype=np.int64)
    truth_of[detections] = np.where(overlaps.truth_crowd[truths], -1, truths)
    truth_of[~kept] = -1
    return truth_of, ignored


def _any_class(overlaps: Overlaps, iou: float, kept: BoolArray, truth_of: IntArray, ignored: BoolArray) -> None:
    """Match what is left over; fills `truth_of` and `ignored` in place."""
    free_truth = np.ones(len(overlaps.truth_labels), dtype=bool)
    free_truth[truth_of[truth_of >= 0]] = False
    free = kept & (truth_of < 0) & ~ignored
    usable = free[overlaps.pair_detections] & free_truth[overlaps.pair_truths] & (overlaps.pair_ious >= iou)
    detections, truths = overlaps.pair_detections[usable], overlaps.pair_truths[usable]
    rounds = np.zeros(len(kept), dtype=np.int64)
    order = np.lexsort((-overlaps.scores, overlaps.images))
    rounds[order] = places_in_runs(overlaps.images[order])
    matches = match_best_first(
        rounds=rounds[detections],
        detections=detections,
        truths=truths,
        ious=overlaps.pair_ious[usable],
        thresholds=np.array([iou]),
        crowd=overlaps.truth_crowd,
        ignored=overlaps.truth_crowd[None],
    )
    found, boxes = detections[matches.pairs], truths[matches.pairs]
    ignored[found] = overlaps.truth_crowd[boxes]
    truth_of[found] = np.where(overlaps.truth_crowd[boxes], -1, boxes)
