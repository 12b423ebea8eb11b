"""Curves from scores to chances."""

from typing import Any

import numpy as np
import pytest

from engine.calibration import Calibration


def drawn(num: int = 4000) -> tuple[Any, Any, Any]:
    """Scores of three classes; the chance is the square of the score, of the last, rare class it is 1 - score."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, num, p=[0.5, 0.499, 0.001])
    scores = rng.uniform(size=num).round(3)  # many are equal
    hits = rng.uniform(size=num) < np.where(labels == 2, 1 - scores, scores**2)
    return scores, hits, labels


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_ranks_stay_and_files_say_the_same(method: Any) -> None:
    scores, hits, labels = drawn()
    curves = Calibration.fit(method, scores, hits, labels, 4)
    chances = curves(scores, labels)
    assert ((chances >= 0) & (chances <= 1)).all()
    for label in range(3):
        own = labels == label
        order = np.argsort(scores[own], kind="stable")
        assert (np.diff(chances[own][order])[np.diff(scores[own][order]) > 0] > 0).all(), "not even ties are new"
    names = ["a", "b", "c", "d"]
    again = Calibration.from_json(curves.to_json(names), names)
    assert np.array_equal(again(scores, labels), chances)
    everything = Calibration.fit(method, scores, hits, np.zeros_like(labels), 1)
    rare = scores[labels == 2]
    assert np.array_equal(curves(rare, np.full(len(rare), 2)), everything(rare, np.zeros(len(rare), dtype=int)))


def test_isotonic_finds_the_chances() -> None:
    scores, hits, labels = drawn()
    grid = np.linspace(0.2, 0.95, 20)
    curves = Calibration.fit("isotonic", scores, hits, labels, 3)
    assert np.abs(curves(grid, np.zeros(20, dtype=int)) - grid**2).mean() < 0.04


@pytest.mark.parametrize(("truth", "expected"), [(1.0, 1.0), (2.5, 2.5)])
def test_temperature_finds_the_one_that_was_used(truth: float, expected: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, 20_000)
    hits = rng.uniform(size=20_000) < 1 / (1 + np.exp(-logits / truth))
    curves = Calibration.fit("temperature", 1 / (1 + np.exp(-logits)), hits, np.zeros(20_000, dtype=int), 1)
    assert curves.curves[0] == pytest.approx(expected, rel=0.05)


def test_nothing_to_fit_to_changes_nothing() -> None:
    nothing = np.empty(0)
    for method in ("temperature", "isotonic"):
        curves = Calibration.fit(method, nothing, nothing > 0, nothing.astype(int), 2)  # type: ignore[arg-type]
        assert curves(np.array([0.25]), np.array([1])).tolist() == [0.25]


@pytest.mark.parametrize(
    "curve", [None, "x", 0, -1.0, [[0, 1]], [[0, 1], [0, 2]], [[0, 1], [1, 0]], [[], []], [[0, 1], [0]]]
)
def test_damaged_curves(curve: Any) -> None:
    with pytest.raises(ValueError):
        Calibration.from_json({"a": curve}, ["a"])
