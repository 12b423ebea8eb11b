"""How sure AP is: a bootstrap over images that weights the matches instead of evaluating again.

Drawing images with replacement gives every image a weight, the number of times it was drawn. Precision matters only
at true positives: between two of them only the weighted number of false positives counts, one sparse product
[segments, images] x [images, samples] for all thresholds together. The rest are sums along the ranking. With all
weights 1 this is COCO's AP, which is the point estimate.

Legend: N samples, I images, K classes, T IoU thresholds, J detections of a class that hit or are ignored somewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from analysis.matching import FALSE_POSITIVE, IGNORED, IOU_THRESHOLDS, TRUE_POSITIVE, Matches
from data.types import FloatArray, IntArray

RECALL_POINTS: FloatArray = np.linspace(0.0, 1.0, 101)
"""COCO's."""
DEFECTS = "AP_defects"
"""AP over all classes but NORMAL."""

_CHUNK_VALUES = 1 << 18
"""Numbers in one intermediate array [J, samples]: few enough for the cache."""
_T50, _T75 = 0, 5
Z95 = 1.959964


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Resampled(NamedTuple):
    """A metric; NaN where there is nothing to measure on: no box, or none in the resample."""

    point: float
    """On the images as they are: COCO's value."""
    samples: FloatArray
    """[N], on resampled images."""

    @classmethod
    def of(cls, values: FloatArray) -> Resampled:
        """Take [1 + N] values as `resampled` returns them."""
        return cls(float(values[0]), values[1:])

    @property
    def value(self) -> float | None:
        """The point; None for NaN."""
        return None if np.isnan(self.point) else self.point

    @property
    def interval(self) -> Interval | None:
        """95 % of an AP: point - bias ± 1.96 standard deviations, within 0 to 1; None if nothing was measured.

        AP reads the best precision at or beyond each recall, a maximum, which noise raises: AP of few images is too
        high, and that of their resamples higher still by about as much (the bias). Percentiles hold both: on 100
        images of NEU-DET with six classes 95 % of them held 70 % of the truth (docs/results.md). In the difference of
        two models it cancels, so differences have percentiles.
        """
        measured = self.samples[~np.isnan(self.samples)]
        if np.isnan(self.point) or not len(measured):
            return None
        centre = 2 * self.point - float(measured.mean())
        half = Z95 * float(measured.std(ddof=1)) if len(measured) > 1 else 0.0
        return Interval(min(max(centre - half, 0.0), 1.0), min(max(centre + half, 0.0), 1.0))


class BootstrapResult(NamedTuple):
    """The metrics of one model."""

    metrics: dict[str, Resampled]
    """AP, AP50, AP75 and perhaps `DEFECTS`: means over the classes that have boxes."""
    per_class: dict[str, dict[str, Resampled]]
    """AP and AP50 of every class."""


def percentiles(values: FloatArray) -> Interval | None:
    """Return the 95 % percentile interval of [N] values; NaN are left out, None if nothing is left."""
    measured = values[~np.isnan(values)]
    if not len(measured):
        return None
    low, high = np.percentile(measured, [2.5, 97.5])
    return Interval(float(low), float(high))


def bootstrap(matches: Matches, *, samples: int = 1000, seed: int = 0, normal: int | None = None) -> BootstrapResult:
    """Compute the metrics on `samples` resamples of the images (0: points alone), `DEFECTS` where NORMAL's label is
    given."""
    plans = [_class_plan(matches, label) for label in range(len(matches.names))]
    chunk = max(8, _CHUNK_VALUES // max(1, *(len(plan.images) for plan in plans), 1))
    aps = resampled(  # [K, T, 1 + N]
        lambda weights: _class_aps(matches, plans, weights), len(matches.image_ids), samples, seed, chunk=chunk
    )
    means = aps.mean(axis=1)
    metrics = {"AP": _mean(means), "AP50": _mean(aps[:, _T50]), "AP75": _mean(aps[:, _T75])}
    if normal is not None:
        metrics[DEFECTS] = _mean(np.delete(means, normal, axis=0))
    per_class = {
        name: {"AP": Resampled.of(means[label]), "AP50": Resampled.of(aps[label, _T50])}
        for label, name in enumerate(matches.names)
    }
    return BootstrapResult({name: Resampled.of(values) for name, values in metrics.items()}, per_class)


def resampled(
    measure: Callable[[FloatArray], FloatArray], num_images: int, samples: int, seed: int, *, chunk: int = 128
) -> FloatArray:
    """Return what `measure` makes of weights [I, n], [..., n]: of the images as they are, then of the resamples,
    [..., 1 + N].

    The same seed draws the same images for everything that is measured on them, so that differences can be taken
    sample by sample.
    """
    rng = np.random.default_rng(seed)
    parts = [measure(np.ones((num_images, 1)))]
    for start in range(0, samples if num_images else 0, chunk):
        parts.append(measure(draw_weights(rng, num_images, min(chunk, samples - start))))
    return np.concatenate(parts, axis=-1)


def draw_weights(rng: np.random.Generator, num_images: int, samples: int) -> FloatArray:
    """Draw how often each image counts, [I, samples]; every column sums to I."""
    # One call per sample: the stream of random numbers does not depend on how samples are grouped.
    drawn = [np.bincount(rng.integers(0, num_images, num_images), minlength=num_images) for _ in range(samples)]
    return np.ascontiguousarray(np.stack(drawn, axis=1), dtype=np.float64)


class _ClassPlan(NamedTuple):
    """One class, prepared for any weights. Its J rows are the detections that hit or are ignored at some threshold."""

    images: IntArray
    """[J], image of each row."""
    segments: sparse.csr_array
    """[J, I]: detections of an image from behind the row before to the row, which is included."""
    hits: Sequence[IntArray]
    """T times: rows that are true positives."""
    ignored: Sequence[IntArray]
    """T times: rows that are ignored."""


def _class_plan(matches: Matches, label: int) -> _ClassPlan:
    outcomes = matches.outcomes[:, matches.rows(label)]
    images = matches.found.images[matches.rows(label)]
    counted = (outcomes != IGNORED).any(axis=0)
    outcomes, images = outcomes[:, counted], images[counted]
    special = (outcomes != FALSE_POSITIVE).any(axis=0)
    segment = np.cumsum(special) - special  # a row closes its segment
    num_rows = int(special.sum())
    before_last = segment < num_rows
    ones = np.ones(int(before_last.sum()))
    segments = sparse.coo_array(
        (ones, (segment[before_last], images[before_last])), shape=(num_rows, len(matches.image_ids))
    ).tocsr()
    rows = outcomes[:, special]
    return _ClassPlan(
        images=images[special],
        segments=segments,
        hits=[np.flatnonzero(row == TRUE_POSITIVE) for row in rows],
        ignored=[np.flatnonzero(row == IGNORED) for row in rows],
    )


def _class_aps(matches: Matches, plans: Sequence[_ClassPlan], weights: FloatArray) -> FloatArray:
    """AP [K, T, samples] under `weights` [I, samples]; NaN without ground truth."""
    num_gt = matches.gt_counts.T.astype(np.float64) @ weights
    result = np.full((len(plans), len(IOU_THRESHOLDS), weights.shape[1]), np.nan)
    for label, plan in enumerate(plans):
        measured = num_gt[label] > 0
        if measured.any():
            aps = _weighted_aps(plan, weights, np.maximum(num_gt[label], 1.0))
            result[label] = np.where(measured, aps, np.nan)
    return result


def _weighted_aps(plan: _ClassPlan, weights: FloatArray, num_gt: FloatArray) -> FloatArray:
    """AP [T, samples] of one class.

    An image drawn w times puts w true positives in a row. Precision rises along them, so the envelope over all of
    them is the one at their end, and images not drawn add nothing: looking at ends only is exact.
    """
    seen = np.cumsum(plan.segments @ weights, axis=0)
    own = weights[plan.images]
    result = np.zeros((len(plan.hits), weights.shape[1]))
    for threshold, (hits, ignored) in enumerate(zip(plan.hits, plan.ignored, strict=True)):
        if not len(hits):
            continue
        hit = np.cumsum(own[hits], axis=0)
        counted = seen[hits]
        if len(ignored):
            skipped = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(own[ignored], axis=0)])
            counted -= skipped[np.searchsorted(ignored, hits)]
        precision = hit / np.maximum(counted, 1.0)
        envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        reached = _recall_points_reached(hit / num_gt)
        reached[1:] -= reached[:-1].copy()
        result[threshold] = np.einsum("js,js->s", envelope, reached) / len(RECALL_POINTS)
    return result


def _recall_points_reached(recall: FloatArray) -> FloatArray:
    """How many of COCO's 101 points are <= each recall; compared with the very numbers COCO compares with."""
    nearest = np.rint(recall * 100)
    return nearest + (RECALL_POINTS[nearest.astype(np.intp)] <= recall)


def _mean(values: FloatArray) -> FloatArray:
    """Mean over the classes of [K, samples] that have ground truth; NaN where none has."""
    measured = ~np.isnan(values)
    count = measured.sum(axis=0)
    total = np.where(measured, values, 0.0).sum(axis=0)
    means: FloatArray = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return means
