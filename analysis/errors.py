"""Which kind of error costs how much AP50, in the manner of TIDE.

Bolya, Foley, Hays, Hoffman: TIDE: A General Toolbox for Identifying Object Detection Errors (ECCV 2020), section 2:
the six kinds, what mending each means, and the order in which the authors' tool asks for them (localisation,
classification, duplicate, background, both). Written anew on arrays, as faster-coco-eval has no such thing. Matching,
limits and AP are COCO's. Each kind is mended alone, on the original detections.

Legend: M detections, G boxes, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.curves import interpolated_precision
from analysis.matching import impossible_detections, match_within_classes
from analysis.overlaps import BoolArray, Overlaps
from analysis.result import ERROR_KINDS, ErrorBreakdown, ErrorKind, FloatArray, IntArray

FOREGROUND_IOU = 0.5
"""The background's, 0.1, is `MIN_IOU`: pairs below it are not kept."""
NO_ERROR = -1
_LOCALISATION = ERROR_KINDS.index("localisation")
_CLASSIFICATION = ERROR_KINDS.index("classification")
_DUPLICATE = ERROR_KINDS.index("duplicate")
_BACKGROUND = ERROR_KINDS.index("background")
_BOTH = ERROR_KINDS.index("both")


@dataclass(frozen=True, eq=False)
class Errors:
    """What every detection is at IoU 0.5."""

    kinds: NDArray[np.int8]
    """[M], index into ERROR_KINDS; NO_ERROR for true positives and ignored detections."""
    truth_of: IntArray
    """[M], the box that a true positive hit; -1 otherwise."""
    ignored: BoolArray
    """[M], in a crowd box, or impossible."""
    targets: IntArray
    """[M], the box that a wrong place or class was meant for; -1 otherwise."""
    missed: BoolArray
    """[G], neither found nor the target of any error."""
    found: BoolArray
    """[G]"""


def classify_errors(overlaps: Overlaps) -> Errors:
    """Sort all detections into true positives and kinds of error."""
    truth_of, ignored = _matches(overlaps)
    hit = truth_of >= 0
    found = np.zeros(len(overlaps.truth_labels), dtype=bool)
    found[truth_of[hit]] = True

    wrong = ~hit & ~ignored
    same = overlaps.labels[overlaps.pair_detections] == overlaps.truth_labels[overlaps.pair_truths]
    real = ~overlaps.truth_crowd[overlaps.pair_truths]
    own_truth, own_iou = _best_partner(overlaps, same & real)
    other_truth, other_iou = _best_partner(overlaps, ~same & real)
    _, used_iou = _best_partner(overlaps, same & real & found[overlaps.pair_truths])

    conditions = (
        (_LOCALISATION, (own_truth >= 0) & (own_iou <= FOREGROUND_IOU)),
        (_CLASSIFICATION, other_iou >= FOREGROUND_IOU),
        (_DUPLICATE, used_iou >= FOREGROUND_IOU),
        (_BACKGROUND, (own_truth < 0) & (other_truth < 0)),
        (_BOTH, np.ones(len(wrong), dtype=bool)),
    )
    kinds = np.full(len(wrong), NO_ERROR, dtype=np.int8)
    for kind, condition in conditions:
        kinds[wrong & (kinds == NO_ERROR) & condition] = kind
    targets = np.where(kinds == _LOCALISATION, own_truth, np.where(kinds == _CLASSIFICATION, other_truth, -1))
    missed = ~found & ~overlaps.truth_crowd
    missed[targets[targets >= 0]] = False
    return Errors(kinds, truth_of, ignored, targets, missed, found)


def error_breakdown(overlaps: Overlaps, errors: Errors) -> ErrorBreakdown:
    """How much AP50 would rise if one kind of error were mended, never below 0."""
    num_gt = np.bincount(overlaps.truth_labels[~overlaps.truth_crowd], minlength=overlaps.num_classes)
    counts = {kind: int((errors.kinds == number).sum()) for number, kind in enumerate(ERROR_KINDS)}
    counts["missed"] = int(errors.missed.sum())
    base = _ap50(overlaps.labels, overlaps.scores, errors.truth_of >= 0, ~errors.ignored, num_gt)
    if base is None:
        return ErrorBreakdown(None, dict.fromkeys(ERROR_KINDS, 0.0), counts)
    costs: dict[ErrorKind, float] = {}
    for number, kind in enumerate(ERROR_KINDS):
        if kind == "missed":
            gone = np.bincount(overlaps.truth_labels[errors.missed], minlength=overlaps.num_classes)
            mended = _ap50(
                overlaps.labels, overlaps.scores, errors.truth_of >= 0, ~errors.ignored, num_gt - gone, num_gt > 0
            )
        else:
            mended = _mended_ap50(overlaps, errors, number, num_gt)
        costs[kind] = max((base if mended is None else mended) - base, 0.0)
    return ErrorBreakdown(base, costs, counts)


def _matches(overlaps: Overlaps) -> tuple[IntArray, BoolArray]:
    """Box of every detection [M] (-1: none) at IoU 0.5, and whether it is ignored."""
    thresholds = np.array([FOREGROUND_IOU])
    _, detections, truths = match_within_classes(overlaps, thresholds, overlaps.truth_crowd[None])
    truth_of = np.full(len(overlaps.scores), -1, dtype=np.int64)
    ignored = impossible_detections(overlaps)
    crowd = overlaps.truth_crowd[truths]
    truth_of[detections[~crowd]] = truths[~crowd]
    ignored[detections] = crowd
    return truth_of, ignored


def _best_partner(overlaps: Overlaps, wanted: BoolArray) -> tuple[IntArray, FloatArray]:
    """The wanted box [M] that each detection overlaps most (-1: none; the first of equals), and the IoU (0: none)."""
    pairs = np.flatnonzero(wanted)
    order = pairs[np.lexsort((-overlaps.pair_truths[pairs], overlaps.pair_ious[pairs]))]
    truth = np.full(len(overlaps.scores), -1, dtype=np.int64)
    iou = np.zeros(len(overlaps.scores))
    truth[overlaps.pair_detections[order]] = overlaps.pair_truths[order]  # the last one stays
    iou[overlaps.pair_detections[order]] = overlaps.pair_ious[order]
    return truth, iou


def _mended_ap50(overlaps: Overlaps, errors: Errors, kind: int, num_gt: IntArray) -> float | None:
    """AP50 with the detections of one kind mended: moved to their target, or dropped where there is none.

    A box takes one mended detection, the best; if it is found already, it takes none (and they are dropped).
    """
    labels, hits = overlaps.labels.copy(), errors.truth_of >= 0
    kept = ~errors.ignored & (errors.kinds != kind)
    rows = np.flatnonzero((errors.kinds == kind) & (errors.targets >= 0))
    rows = rows[~errors.found[errors.targets[rows]]]
    rows = rows[np.argsort(-overlaps.scores[rows], kind="stable")]
    _, first = np.unique(errors.targets[rows], return_index=True)
    rows = rows[first]
    labels[rows] = overlaps.truth_labels[errors.targets[rows]]
    hits[rows] = kept[rows] = True
    return _ap50(labels, overlaps.scores, hits, kept, num_gt)


def _ap50(
    labels: IntArray,
    scores: FloatArray,
    hits: BoolArray,
    kept: BoolArray,
    num_gt: IntArray,
    judged: BoolArray | None = None,
) -> float | None:
    """Mean over the `judged` classes [K] (default: those with boxes); a judged class without boxes has AP 0."""
    judged = num_gt > 0 if judged is None else judged
    rows = np.flatnonzero(kept)
    # Detections come in COCO's order within a class; moved ones are sorted in. Stable: equal scores stay put.
    rows = rows[np.lexsort((-scores[rows], labels[rows]))]
    borders = np.searchsorted(labels[rows], np.arange(len(num_gt) + 1))
    aps = [
        float(interpolated_precision(hits[rows[borders[k] : borders[k + 1]]], int(num_gt[k])).mean())
        if num_gt[k]
        else 0.0
        for k in np.flatnonzero(judged)
    ]
    return float(np.mean(aps)) if aps else None
