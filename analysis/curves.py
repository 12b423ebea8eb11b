"""What detections are worth above each score: precision, recall and F1; and, of whole images, what a factory asks
first: is there any defect in this image?

Legend: I images, K classes, M detections, N bootstrap samples, R = 101 recall points, S thresholds.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from analysis.bootstrap import RECALL_POINTS, Resampled, percentiles, resampled
from analysis.matching import IGNORED, TRUE_POSITIVE, Matches
from data.types import BoolArray, FloatArray

SCORE_THRESHOLDS: FloatArray = np.linspace(0.0, 1.0, 201)
_T50, _T75 = 0, 5


def ranked_hits(matches: Matches, label: int | None) -> tuple[FloatArray, BoolArray, int]:
    """Return scores [M] and hits [M] at IoU 0.5 of the detections that count, best first, and the number of boxes; of
    one class, or of all classes together (None)."""
    rows = slice(None) if label is None else matches.rows(label)
    outcomes, scores = matches.outcomes[_T50, rows], matches.found.scores[rows]
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
    outcomes = matches.outcomes[:, matches.rows(label)]
    curves = np.stack([interpolated_precision(row[row != IGNORED] == TRUE_POSITIVE, num_gt) for row in outcomes])
    return np.stack([curves[_T50], curves[_T75], curves.mean(axis=0)])


def interpolated_precision(hits: BoolArray, num_gt: int) -> FloatArray:
    """Compute precision [R] at COCO's recall points, whose mean is AP, from hits [M], best first; NaN without boxes."""
    if num_gt == 0:
        return np.full(len(RECALL_POINTS), np.nan)
    hit_rows = np.flatnonzero(hits)
    found = np.arange(1, len(hit_rows) + 1)
    envelope = np.maximum.accumulate((found / (hit_rows + 1))[::-1])[::-1]
    first = np.searchsorted(found / num_gt, RECALL_POINTS, side="left")
    return np.concatenate([envelope, [0.0]])[first]


def image_level(
    matches: Matches,
    normal_label: int | None,
    *,
    samples: int = 1000,
    seed: int = 0,
    thresholds: FloatArray = SCORE_THRESHOLDS,
) -> dict[str, Any]:
    """Compute AUROC of "any defect", and false alarms and misses per image at each threshold [S].

    An image is defective if it has a box of a class other than NORMAL, a crowd box too. Its score is that of its
    best detection of such a class, wherever it is; 0 without any.
    """
    found = matches.found
    best, defective = image_scores(matches, normal_label)
    alarms = np.sort(found.scores[(found.labels != normal_label) & ~defective[found.images]])
    num_clean, num_defective = int((~defective).sum()), int(defective.sum())
    auroc = Resampled.of(resampled(partial(_aurocs, best, defective), len(best), samples, seed))
    false_alarms = len(alarms) - np.searchsorted(alarms, thresholds, side="left")
    # At threshold 0 an image without any detection is still a miss.
    missed = np.searchsorted(np.sort(best[defective]), np.maximum(thresholds, np.finfo(float).tiny), side="left")
    return {
        "auroc": auroc.value,
        "auroc_interval": percentiles(auroc.samples),
        "num_clean": num_clean,
        "num_defective": num_defective,
        "scores": thresholds.round(6).tolist(),
        "false_alarms_per_clean_image": _ratios(false_alarms, num_clean),
        "miss_rate": _ratios(missed, num_defective),
    }


def image_scores(matches: Matches, normal_label: int | None) -> tuple[FloatArray, BoolArray]:
    """Return the score of each image's best detection of a defect [I], 0 without any, and whether it is defective."""
    truth, found = matches.truth, matches.found
    defective = np.zeros(len(matches.image_ids), dtype=bool)
    defective[truth.images[truth.labels != normal_label]] = True
    rows = found.labels != normal_label
    best = np.zeros(len(defective))
    np.maximum.at(best, found.images[rows], found.scores[rows])
    return best, defective


def _ratios(counts: Any, total: int) -> list[float | None]:
    return (counts / total).round(6).tolist() if total else [None] * len(counts)


def _aurocs(best: FloatArray, defective: BoolArray, weights: FloatArray) -> FloatArray:
    """Chance [N] that a defective image scores higher than a clean one, equal scores counted half (Mann-Whitney),
    from scores [I], whether images are defective [I], and how often they count, [I, N]."""
    if not len(best):
        return np.full(weights.shape[1], np.nan)
    order = np.argsort(best, kind="stable")
    weights, defective = weights[order], defective[order]
    starts = np.flatnonzero(np.diff(best[order], prepend=-np.inf))  # of each group of equal scores
    bad = np.add.reduceat(np.where(defective[:, None], weights, 0.0), starts, axis=0)
    good = np.add.reduceat(np.where(defective[:, None], 0.0, weights), starts, axis=0)
    below = np.cumsum(good, axis=0) - good
    wins = (bad * (below + good / 2)).sum(axis=0)
    pairs = bad.sum(axis=0) * good.sum(axis=0)
    aurocs: FloatArray = np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return aurocs
