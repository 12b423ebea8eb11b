"""Precision, recall and F1 against recall and against the score threshold.

Legend: K classes, M detections, R = 101 recall points, S thresholds.
"""

from __future__ import annotations

import numpy as np

from analysis.bootstrap import RECALL_POINTS
from analysis.matching import IGNORED, TRUE_POSITIVE, Matches
from data.types import BoolArray, FloatArray

SCORE_THRESHOLDS: FloatArray = np.linspace(0.0, 1.0, 201)
_T50, _T75 = 0, 5


def ranked_hits(matches: Matches, label: int | None) -> tuple[FloatArray, BoolArray, int]:
    """Return scores [M] and hits [M] at IoU 0.5 of the detections that count, best first, and the number of boxes; of
    one class, or of all classes together (None)."""
    rows = slice(None) if label is None else matches.rows(label)
    outcomes, scores = matches.outcomes[0, _T50, rows], matches.found.scores[rows]
    order = np.flatnonzero(outcomes != IGNORED)
    order = order[np.argsort(-scores[order], kind="stable")]
    num_gt = matches.num_gt.sum() if label is None else matches.num_gt[label]
    return scores[order], outcomes[order] == TRUE_POSITIVE, int(num_gt)


def score_curves(
    scores: FloatArray, hits: BoolArray, num_gt: int, thresholds: FloatArray = SCORE_THRESHOLDS
) -> FloatArray:
    """Compute [3, S]: precision (NaN where nothing is left), recall and F1 (NaN without ground truth) when detections
    below a threshold are dropped; arguments as from `ranked_hits`."""
    kept = np.searchsorted(-scores, -thresholds, side="right")
    hit = np.append(0, np.cumsum(hits))[kept].astype(np.float64)
    curves = np.full((3, len(thresholds)), np.nan)
    np.divide(hit, kept, out=curves[0], where=kept > 0)
    if num_gt:
        curves[1:] = hit / num_gt, 2 * hit / (kept + num_gt)
    return curves


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
