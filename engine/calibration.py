"""Make scores chances: of the detections with a score of 0.8, 80 % shall be right. Fitted class by class.

Legend: M detections, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data.types import BoolArray, FloatArray, IntArray
from models.detections import SCORE_DECIMALS

Method = Literal["none", "temperature", "isotonic"]
_LEAST_HITS = 10
"""A class with fewer right, or fewer wrong detections gets the curve of all classes together."""
_SLOPE = 1e-3
"""Of the score itself in a calibrated one: it keeps the order of scores that isotonic regression makes equal."""
_TINY = 1e-9


@dataclass(frozen=True)
class Calibration:
    """A rising curve per class from scores to chances; ranks within a class do not change."""

    curves: Sequence[float | tuple[FloatArray, FloatArray]]
    """[K]: a temperature, by which the logit is divided, or scores and chances, between which straight lines run."""

    @classmethod
    def fit(
        cls, method: Literal["temperature", "isotonic"], scores: FloatArray, hits: BoolArray, labels: IntArray, num: int
    ) -> Calibration:
        """Fit the curves of `num` classes to [M] scores of detections that were right (`hits`) or wrong."""
        fit = _temperature if method == "temperature" else _isotonic

        def curve(rows: BoolArray) -> float | tuple[FloatArray, FloatArray]:
            few = min(hits[rows].sum(), (~hits[rows]).sum()) < _LEAST_HITS
            return everything if few else fit(scores[rows], hits[rows])

        everything: float | tuple[FloatArray, FloatArray] = fit(scores, hits) if len(scores) else 1.0
        return cls([curve(labels == label) for label in range(num)])

    def __call__(self, scores: FloatArray, labels: IntArray) -> FloatArray:
        """Return the chances [M] of scores [M] of these labels, with the decimals that scores have in files."""
        chances = scores.astype(np.float64).round(SCORE_DECIMALS)
        for label, curve in enumerate(self.curves):
            rows = labels == label
            own = chances[rows]
            if isinstance(curve, float):
                chances[rows] = _expit(_logit(own) / curve)
            else:
                chances[rows] = (1 - _SLOPE) * np.interp(own, *curve) + _SLOPE * own
        return chances.round(SCORE_DECIMALS)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the curves by the names of the classes, as results.json keeps them."""
        curves = [curve if isinstance(curve, float) else [part.tolist() for part in curve] for curve in self.curves]
        return dict(zip(names, curves, strict=True))

    @classmethod
    def from_json(cls, content: Mapping[str, Any], names: Sequence[str]) -> Calibration:
        """Undo `to_json`.

        Raises:
            ValueError: It is damaged, or of other classes.
        """
        curves: list[float | tuple[FloatArray, FloatArray]] = []
        for name in names:
            curve = content.get(name)
            if isinstance(curve, float | int) and 0 < curve < np.inf:
                curves.append(float(curve))
                continue
            knots = np.asarray(curve, dtype=np.float64)
            if knots.ndim != 2 or len(knots) != 2 or not knots.size or not ((knots >= 0) & (knots <= 1)).all():
                raise ValueError(f"no curve of class {name}")
            if (np.diff(knots) < 0).any():
                raise ValueError(f"the curve of class {name} falls")
            curves.append((knots[0], knots[1]))
        return cls(curves)


def _logit(scores: FloatArray) -> FloatArray:
    inside = np.clip(scores, _TINY, 1 - _TINY)
    logits: FloatArray = np.log(inside) - np.log1p(-inside)
    return logits


def _expit(logits: FloatArray) -> FloatArray:
    chances: FloatArray = 1 / (1 + np.exp(-logits))
    return chances


def _temperature(scores: FloatArray, hits: BoolArray) -> float:
    """The temperature of the greatest likelihood, 0.05 to 20."""
    from scipy.optimize import minimize_scalar

    signed = np.where(hits, 1.0, -1.0) * _logit(scores)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -signed * np.exp(-log_temperature)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def _isotonic(scores: FloatArray, hits: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Mean score and share of hits of each block of the isotonic regression; a score of 0 has no chance."""
    from scipy.optimize import isotonic_regression

    order = np.lexsort((~hits, scores))  # equal scores, hits first: they end in one block
    blocks = isotonic_regression(hits[order].astype(np.float64)).blocks
    sizes = np.diff(blocks)
    means = [np.add.reduceat(values[order].astype(np.float64), blocks[:-1]) / sizes for values in (scores, hits)]
    x, y = (np.append(0.0, part).round(SCORE_DECIMALS) for part in means)
    return x, y
