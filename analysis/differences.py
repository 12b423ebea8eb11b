"""Estimates, paired differences and their intervals from bootstrap samples. Arrays in, numbers out.

Legend: N samples (the same resampled images in the same order for everything that is compared), S seeds, I images.

`paired_difference` is about trained models: only the choice of images is left to chance. `effect` is about a way of
training: what the seeds did is chance too, and resampling the images knows nothing of it. Resampling the few seeds as
well does not mend that: a bootstrap of S = 3 numbers has a spread too small by a factor of sqrt(2/3) and ten different
outcomes. So both variances are added, and the interval takes its quantile from Student's t with Welch and
Satterthwaite's degrees of freedom:

    difference ± t(df) x sqrt(v_images + v_seeds)
    v_images = variance of the seeds' mean difference over the resampled images,        df = I - 1
    v_seeds  = variance of the S differences, each of a seed and the same seed, / S,    df = S - 1

What images do to single seeds is in both terms, so the interval is rather too wide than too narrow. In simulations
with S = 3, 100 images and no effect, nominal 95 % intervals held 0 in 92 to 99 % of all cases; images alone in 42 to
94 %, images and seeds resampled together in 80 to 100 % (docs/design.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from analysis.bootstrap import Z95, Interval, Resampled, percentiles
from data.types import FloatArray

LEAST_SEEDS = 3
"""Fewer say too little about what another seed would have given."""
_COVERED = 0.95
_NEARLY_1 = 1 - 1e-12

Verdict = Literal["helps", "no_difference", "equivalent", "hurts"]


class Estimate(NamedTuple):
    """One metric of a group of runs."""

    value: float | None
    """Mean over the seeds; None without ground truth."""
    interval: Interval | None
    """95 %, over the choice of test images; of the seeds' mean."""
    sd: float | None
    """Standard deviation over the seeds (S - 1 in the denominator); None for a single one."""
    per_run: tuple[float | None, ...]


class Difference(NamedTuple):
    """How much better a group is than the reference on the same images."""

    value: float | None
    interval: Interval | None
    p_value: float | None
    """Two-sided, of "no difference"."""
    p_holm: float | None = None
    """After Holm's correction over all groups compared in this metric."""


class Effect(NamedTuple):
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
    standard_error: float | None = None
    """Of `value`, over images and seeds."""
    freedom: float | None = None
    """Degrees of freedom of the standard error."""


class Equivalence(NamedTuple):
    """How small a difference is shown to be, by two one-sided tests (Schuirmann 1987)."""

    bound: float
    """The least margin that holds at 5 %: the farther end of the 90 % interval."""
    p_value: float
    """Of "it is the margin or more, to one side or the other"."""


class RankCorrelation(NamedTuple):
    """Spearman's, with the 95 % interval of Bonett and Wright (Psychometrika 65, 2000)."""

    value: float
    interval: Interval
    pairs: int
    """Of numbers."""


def estimate(runs: Sequence[Resampled], parts: Sequence[Resampled] = ()) -> Estimate:
    """Return the mean of the seeds' APs, its interval, and their spread; where `runs` are the folds of one set judged
    together, single values and spread are those of the `parts`."""
    mean, parts = _mean(runs), parts or runs
    return Estimate(mean.value, mean.interval, _sd([run.point for run in parts]), tuple(run.value for run in parts))


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean; None where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def paired_difference(runs: Sequence[Resampled], reference: Sequence[Resampled]) -> Difference:
    """Subtract the mean of `reference` from the mean of `runs`, resample by resample on the same images.

    The p-value belongs to the percentile interval: twice the smaller share of resamples on one side of 0 (0 itself
    counts for both sides), so p < 0.05 where the interval leaves 0 out. One resample more is counted on either side
    (Davison & Hinkley 1997, section 4.2): p is never 0, and at least 2 / (N + 1).

    Raises:
        ValueError: The samples differ in number, so they cannot be of the same images.
    """
    if len({len(run.samples) for run in (*runs, *reference)}) != 1:
        raise ValueError("paired samples must be of the same resampled images")
    found = _minus(_mean(runs), _mean(reference))
    samples = found.samples[~np.isnan(found.samples)]
    if found.value is None or not len(samples):
        return Difference(found.value, None, None)
    below, above = (samples <= 0).sum(), (samples >= 0).sum()
    p_value = min(1.0, 2.0 * float(min(below, above) + 1) / (len(samples) + 1))
    return Difference(found.value, percentiles(samples), p_value)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values by Holm's steps (Scandinavian Journal of Statistics 6, 1979) over all that are not None."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


def effect(runs: Sequence[Resampled], reference: Sequence[Resampled], num_images: int) -> Effect:
    """Subtract `reference` from `runs`, seed by seed and resample by resample: both have the same seeds in one order
    and the same resamples of `num_images` images.

    Raises:
        ValueError: Seeds or samples differ in number, so they cannot be paired.
    """
    if len(runs) != len(reference) or len({len(run.samples) for run in (*runs, *reference)}) != 1:
        raise ValueError("paired runs must be of the same seeds and of the same resampled images")
    pairs = [_minus(*pair) for pair in zip(runs, reference, strict=True)]
    mean, per_seed, seed_sd = _mean(pairs), tuple(pair.value for pair in pairs), _sd([pair.point for pair in pairs])
    if mean.value is None:
        return Effect(None, per_seed, None, None, None)
    samples = mean.samples[~np.isnan(mean.samples)]
    found = Effect(mean.value, per_seed, seed_sd, percentiles(samples), None)
    if seed_sd is None or len(samples) < 2:
        return found
    of_images, of_seeds = float(samples.var(ddof=1)), seed_sd**2 / len(pairs)
    total, freedom = of_images + of_seeds, float(len(pairs) - 1)
    if total > 0:
        freedom = total**2 / (of_images**2 / max(num_images - 1, 1) + of_seeds**2 / (len(pairs) - 1))
    half = float(stats.t.ppf((1 + _COVERED) / 2, freedom)) * math.sqrt(total)
    interval = Interval(mean.value - half, mean.value + half)
    return found._replace(interval=interval, standard_error=math.sqrt(total), freedom=freedom)


def tost(found: Effect, margin: float) -> Equivalence | None:
    """Test whether a difference is smaller than `margin` to both sides; None where its spread is not known."""
    value, error, freedom = found.value, found.standard_error, found.freedom
    if value is None or error is None or freedom is None:
        return None
    if error == 0:
        return Equivalence(abs(value), 0.0 if abs(value) < margin else 1.0)
    bound = abs(value) + float(stats.t.ppf(_COVERED, freedom)) * error
    return Equivalence(bound, float(stats.t.sf((margin - abs(value)) / error, freedom)))


def rank_correlation(first: FloatArray, second: FloatArray) -> RankCorrelation | None:
    """Correlate the ranks of [N] and [N] numbers; None below five pairs, or where all numbers of one are equal."""
    if len(first) < 5 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    value = float(stats.spearmanr(first, second).statistic)
    half = Z95 * math.sqrt((1 + value**2 / 2) / (len(first) - 3))
    centre = math.atanh(min(max(value, -_NEARLY_1), _NEARLY_1))
    return RankCorrelation(value, Interval(math.tanh(centre - half), math.tanh(centre + half)), len(first))


def verdict(interval: Interval) -> Verdict:
    """Say what an interval of a difference shows."""
    if interval.low > 0:
        return "helps"
    return "hurts" if interval.high < 0 else "no_difference"


def _mean(runs: Sequence[Resampled]) -> Resampled:
    points, samples = zip(*runs, strict=True)
    return Resampled(float(np.mean(points)), np.mean(samples, axis=0))


def _minus(one: Resampled, other: Resampled) -> Resampled:
    return Resampled(one.point - other.point, one.samples - other.samples)


def _sd(points: Sequence[float]) -> float | None:
    return None if len(points) < 2 or np.isnan(points).any() else float(np.std(points, ddof=1))
