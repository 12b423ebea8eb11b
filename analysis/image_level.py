"""Is there any defect in this image? The question a factory asks first.

Legend: I images, S thresholds, N bootstrap samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from analysis.bootstrap import draw_weights, percentiles
from analysis.curves import SCORE_THRESHOLDS
from analysis.matching import Matches
from data.types import BoolArray, FloatArray

_CHUNK_SAMPLES = 128


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
    best detection of such a class, wherever it is; 0 without any. The bootstrap draws the same images as `bootstrap`.
    """
    found, num_images = matches.found, len(matches.image_ids)
    best, defective = image_scores(matches, normal_label)
    rows = found.labels != normal_label
    alarms = np.sort(found.scores[rows & ~defective[found.images]])
    num_defective = int(defective.sum())
    num_clean = num_images - num_defective
    point = float(_aurocs(best, defective, np.ones((num_images, 1)))[0])
    false_alarms = len(alarms) - np.searchsorted(alarms, thresholds, side="left")
    # At threshold 0 an image without any detection is still a miss.
    missed = np.searchsorted(np.sort(best[defective]), np.maximum(thresholds, np.finfo(float).tiny), side="left")
    return {
        "auroc": None if np.isnan(point) else point,
        "auroc_interval": percentiles(_bootstrap(best, defective, samples, seed)),
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


def _bootstrap(best: FloatArray, defective: BoolArray, samples: int, seed: int) -> FloatArray:
    """AUROC [N]; NaN where a resample has images of one sort only."""
    rng = np.random.default_rng(seed)
    parts = [np.empty(0)]
    for start in range(0, samples if len(best) else 0, _CHUNK_SAMPLES):
        weights = draw_weights(rng, len(best), min(_CHUNK_SAMPLES, samples - start))
        parts.append(_aurocs(best, defective, weights))
    return np.concatenate(parts)


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
