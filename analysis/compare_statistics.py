"""Estimates and paired differences from bootstrap samples. Pure: arrays in, numbers out.

Legend: N samples (the same resampled images in the same order for everything that is compared), S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.bootstrap import BootstrapResult
from analysis.result import Interval
from data.types import FloatArray


@dataclass(frozen=True, eq=False)
class Resampled:
    """One metric of one run; NaN where there is nothing to measure on."""

    point: float
    """On the images as they are."""
    samples: FloatArray
    """[N]"""


@dataclass(frozen=True)
class Estimate:
    """One metric of a group of runs."""

    value: float | None
    """Mean over the seeds; None without ground truth."""
    interval: Interval | None
    """95 %, over the choice of test images; of the seeds' mean."""
    sd: float | None
    """Standard deviation over the seeds (S - 1 in the denominator); None for a single one."""
    per_run: tuple[float | None, ...]


@dataclass(frozen=True)
class Difference:
    """How much better a group is than the reference on the same images."""

    value: float | None
    interval: Interval | None
    p_value: float | None
    """Two-sided, of "no difference"."""


def estimate(runs: Sequence[Resampled]) -> Estimate:
    """Mean of the seeds' APs, its interval, and their spread."""
    points = np.asarray([run.point for run in runs])
    per_run = tuple(_number(point) for point in points)
    if np.isnan(points).any():
        return Estimate(None, None, None, per_run)
    sd = float(points.std(ddof=1)) if len(points) > 1 else None
    value = float(points.mean())
    return Estimate(value, BootstrapResult.ap_interval(_mean_samples(runs), value), sd, per_run)


def paired_difference(runs: Sequence[Resampled], reference: Sequence[Resampled]) -> Difference:
    """Mean of `runs` minus mean of `reference`, resample by resample on the same images.

    The p-value belongs to the percentile interval: twice the smaller share of resamples on one side of 0 (0 itself
    counts for both sides), so p < 0.05 where the interval leaves 0 out. One resample more is counted on either side
    (Davison & Hinkley 1997, section 4.2): p is never 0, and at least 2 / (N + 1).

    Raises:
        ValueError: The samples differ in number, so they cannot be of the same images.
    """
    if len({len(run.samples) for run in (*runs, *reference)}) != 1:
        raise ValueError("paired samples must be of the same resampled images")
    value = _number(float(np.mean([run.point for run in runs]) - np.mean([run.point for run in reference])))
    samples = _mean_samples(runs) - _mean_samples(reference)
    samples = samples[~np.isnan(samples)]
    if value is None or not len(samples):
        return Difference(value, None, None)
    below, above = (samples <= 0).sum(), (samples >= 0).sum()
    p_value = min(1.0, 2.0 * float(min(below, above) + 1) / (len(samples) + 1))
    return Difference(value, BootstrapResult.interval(samples), p_value)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979) over all that are not None."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


def without_class(result: BootstrapResult, label: int) -> Resampled:
    """AP over all classes but one."""
    kept = [index for index in range(len(result.names)) if index != label]
    points = result.point_per_class_ap[None, kept]
    return Resampled(float(_row_means(points)[0]), _row_means(result.per_class_ap[:, kept]))


def _row_means(values: FloatArray) -> FloatArray:
    """Means of [N, K] over what is not NaN; NaN where nothing is left."""
    measured = ~np.isnan(values)
    total, count = np.where(measured, values, 0.0).sum(axis=1), measured.sum(axis=1)
    means: FloatArray = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return means


def _mean_samples(runs: Sequence[Resampled]) -> FloatArray:
    mean: FloatArray = np.mean([run.samples for run in runs], axis=0)
    return mean


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
