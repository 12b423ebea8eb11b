"""Precision, recall and F1 against recall and against the score threshold.

Legend: K classes, M detections, D distinct scores, R = 101 recall points, S thresholds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from analysis.bootstrap import RECALL_POINTS
from analysis.matching import IGNORED, TRUE_POSITIVE, Matches
from data.types import BoolArray, FloatArray, IntArray
from engine.metrics import best_threshold

SCORE_THRESHOLDS: FloatArray = np.linspace(0.0, 1.0, 201)
_T50, _T75 = 0, 5


class ScoreCounts(NamedTuple):
    """What remains at IoU 0.5 when detections below a score are dropped, for every distinct score."""

    scores: FloatArray
    """[D], descending."""
    hits: IntArray
    """[D], true positives with at least this score."""
    counted: IntArray
    """[D], true and false positives with at least this score."""
    num_gt: int


def score_counts(matches: Matches, label: int | None) -> ScoreCounts:
    """Count for one class, or for all classes together (None)."""
    scores, hits, num_gt = _counted(matches, label)
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each group of equal scores
    return ScoreCounts(scores[order][last], np.cumsum(hits[order], dtype=np.int64)[last], last + 1, num_gt)


def _counted(matches: Matches, label: int | None) -> tuple[FloatArray, BoolArray, int]:
    """Scores of the detections that count at IoU 0.5, which of them are true positives, and the number of boxes."""
    rows = slice(None) if label is None else matches.rows(label)
    outcomes, scores = matches.outcomes[0, _T50, rows], matches.found.scores[rows]
    kept = outcomes != IGNORED
    num_gt = matches.num_gt.sum() if label is None else matches.num_gt[label]
    return scores[kept], outcomes[kept] == TRUE_POSITIVE, int(num_gt)


def score_curves(counts: ScoreCounts, thresholds: FloatArray = SCORE_THRESHOLDS) -> FloatArray:
    """Compute [3, S]: precision (NaN where nothing is left), recall and F1 (NaN without ground truth) at ascending
    thresholds."""
    kept = np.searchsorted(-counts.scores, -thresholds, side="right")
    hits = np.concatenate([[0], counts.hits])[kept].astype(np.float64)
    counted = np.concatenate([[0], counts.counted])[kept].astype(np.float64)
    curves = np.full((3, len(thresholds)), np.nan)
    np.divide(hits, counted, out=curves[0], where=counted > 0)
    if counts.num_gt:
        curves[1:] = hits / counts.num_gt, 2 * hits / (counted + counts.num_gt)
    return curves


def best_thresholds(matches: Matches) -> dict[str, Any]:
    """Find the best thresholds, as `engine.metrics.best_thresholds` without matching again."""
    return {
        "overall": best_threshold(*_counted(matches, None)),
        "per_class": {name: best_threshold(*_counted(matches, label)) for label, name in enumerate(matches.names)},
    }


def precision_at_recall(matches: Matches, label: int) -> FloatArray:
    """Compute COCO's interpolated precision [3, R] of one class at IoU 0.5, 0.75 and averaged over all thresholds; NaN
    without ground truth."""
    num_gt = int(matches.num_gt[label])
    outcomes = matches.outcomes[0, :, matches.rows(label)]
    curves = np.stack([interpolated_precision(row[row != IGNORED] == TRUE_POSITIVE, num_gt) for row in outcomes])
    return np.stack([curves[_T50], curves[_T75], curves.mean(axis=0)])


def interpolated_precision(hits: BoolArray, num_gt: int) -> FloatArray:
    """Compute precision [R] at COCO's recall points; its mean is AP.

    Args:
        hits: [M], best detection first: is it a true positive?
        num_gt: Boxes there are; NaN for 0.
    """
    if num_gt == 0:
        return np.full(len(RECALL_POINTS), np.nan)
    hit_rows = np.flatnonzero(hits)
    found = np.arange(1, len(hit_rows) + 1)
    envelope = np.maximum.accumulate((found / (hit_rows + 1))[::-1])[::-1]
    first = np.searchsorted(found / num_gt, RECALL_POINTS, side="left")
    return np.concatenate([envelope, [0.0]])[first]
