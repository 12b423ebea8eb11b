"""Is a mode better than another? Differences with intervals, and what may be said of them. Arrays in, numbers out.

A mode is trained with S seeds and judged on I images. Two things are left to chance: which images are in the split,
and what the seeds did. Resampling the images (a paired bootstrap: the same images for both modes) knows nothing of the
second. Resampling the few seeds as well does not mend that: a bootstrap of S = 3 numbers has a spread too small by a
factor of sqrt(2/3) and ten different outcomes. So both variances are added, and the interval takes its quantile from
Student's t with Welch and Satterthwaite's degrees of freedom:

    difference ± t(df) x sqrt(v_images + v_seeds)
    v_images = variance of the seeds' mean difference over the resampled images,        df = I - 1
    v_seeds  = variance of the S differences, each of a seed and the same seed, / S,    df = S - 1

What images do to single seeds is in both terms, so the interval is rather too wide than too narrow. In simulations
with S = 3, 100 images and no effect, nominal 95 % intervals held 0 in 92 to 99 % of all cases; images alone in 42 to
94 %, images and seeds resampled together in 80 to 100 % (docs/design.md).

Legend: N samples, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from analysis.bootstrap import BootstrapResult
from analysis.compare_statistics import Resampled
from analysis.result import Interval

LEAST_SEEDS = 3
"""Fewer say too little about what another seed would have given."""
_COVERED = 0.95

Verdict = Literal["helps", "no_difference", "hurts"]


@dataclass(frozen=True)
class Effect:
    """How much better a mode is than a reference, same images, same seeds; None where it cannot be known."""

    value: float | None
    """Mean over the seeds."""
    per_seed: tuple[float | None, ...]
    seed_sd: float | None
    """Standard deviation of `per_seed` (S - 1)."""
    image_interval: Interval | None
    """95 %, over the images alone: of these very models."""
    interval: Interval | None
    """95 %, over images and seeds: of the mode. Needs two seeds."""


def effect(runs: Sequence[Resampled], reference: Sequence[Resampled], num_images: int) -> Effect:
    """`runs` minus `reference`, seed by seed and resample by resample.

    Args:
        runs: One per seed.
        reference: The same seeds in the same order, the same resampled images.
        num_images: I.

    Raises:
        ValueError: Seeds or samples differ in number, so they cannot be paired.
    """
    if len(runs) != len(reference) or len({len(run.samples) for run in (*runs, *reference)}) != 1:
        raise ValueError("paired runs must be of the same seeds and of the same resampled images")
    points = np.asarray([run.point - other.point for run, other in zip(runs, reference, strict=True)])
    per_seed = tuple(None if np.isnan(point) else float(point) for point in points)
    if np.isnan(points).any():
        return Effect(None, per_seed, None, None, None)
    pairs = zip(runs, reference, strict=True)
    samples = np.mean([run.samples - other.samples for run, other in pairs], axis=0)
    samples = samples[~np.isnan(samples)]
    seed_sd = float(points.std(ddof=1)) if len(points) > 1 else None
    value = float(points.mean())
    interval = None
    if seed_sd is not None and len(samples) > 1:
        interval = _combined(
            value, float(samples.var(ddof=1)), num_images - 1, seed_sd**2 / len(points), len(points) - 1
        )
    return Effect(value, per_seed, seed_sd, BootstrapResult.interval(samples), interval)


def _combined(value: float, of_images: float, df_images: int, of_seeds: float, df_seeds: int) -> Interval:
    total = of_images + of_seeds
    if total == 0:
        return Interval(value, value)
    freedom = total**2 / (of_images**2 / max(df_images, 1) + of_seeds**2 / df_seeds)
    half = float(stats.t.ppf((1 + _COVERED) / 2, freedom)) * math.sqrt(total)
    return Interval(value - half, value + half)


def verdict(interval: Interval) -> Verdict:
    """What an interval of a difference shows."""
    if interval.low > 0:
        return "helps"
    return "hurts" if interval.high < 0 else "no_difference"
