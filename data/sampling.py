"""Which images an epoch has, and how often: repeat-factor sampling for rare classes."""

from __future__ import annotations

import numpy as np

from data.coco import CocoSplit
from data.types import FloatArray, IntArray


def repeat_factors(split: CocoSplit, threshold: float, tiles: CocoSplit | None = None) -> FloatArray:
    """Return how often each image comes in an epoch, on average, [images] (A. Gupta et al., LVIS, 2019, section 3.2).

    A class that a fraction f of the images holds asks for max(1, sqrt(threshold / f)); an image follows the one of
    its classes that asks for most. Images without boxes come once. With the split's `tiles` it is these that come,
    and images that count.
    """
    labels = _labels(split)
    counts = np.bincount(np.concatenate([*labels, np.empty(0, np.int64)]), minlength=len(split.classes))
    fractions = np.maximum(counts, 1) / max(len(split), 1)
    per_class = np.maximum(1.0, np.sqrt(threshold / fractions))
    return np.array([per_class[own].max(initial=1.0) for own in (labels if tiles is None else _labels(tiles))])


def _labels(split: CocoSplit) -> list[IntArray]:
    return [np.unique(split.labels[split.training_rows(image)]) for image in split.images]


def epoch_length(factors: FloatArray) -> int:
    """Count the images of an epoch, repeats included; the same for every epoch."""
    return round(float(factors.sum()))


def repeated(factors: FloatArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Draw positions and copy numbers of an epoch's images, ascending, each [epoch_length].

    Systematic sampling: every image comes floor(factor) or ceil(factor) times, `factor` times on average, and the sum
    is the same in every epoch (up to rounding the sum, the factors are exact).
    """
    count = epoch_length(factors)
    ends = factors.cumsum() * (count / factors.sum())
    points = np.arange(count) + rng.random()
    positions = np.searchsorted(ends, points, side="right").clip(max=len(factors) - 1)
    return positions, np.arange(count) - np.searchsorted(positions, positions, side="left")
