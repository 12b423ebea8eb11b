"""Promise, cost and calibration: values by hand, against scipy's own, and by simulation."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.acceptance import (
    AcceptanceOptions,
    acceptance,
    acceptance_lines,
    calibration_error,
    least_cost,
    most_misses,
    promise,
    upper_bound,
)
from analysis.matching import match
from tests.support.scenes import Box, scene
from texts import texts_of

A: Box = (10, 10, 20, 20)


@pytest.mark.parametrize(("missed", "num", "confidence"), [(0, 149, 0.95), (3, 200, 0.9), (17, 60, 0.99), (5, 5, 0.95)])
def test_clopper_pearson(missed: int, num: int, confidence: float) -> None:
    expected = stats.binomtest(missed, num, alternative="less").proportion_ci(confidence, method="exact").high
    assert upper_bound(missed, num, confidence) == pytest.approx(expected)


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_as_many_misses_as_the_bound_allows(rate: float) -> None:
    for num in range(1, 400, 31):
        bounds = [upper_bound(missed, num, 0.95) for missed in range(num + 1)]
        assert most_misses(num, rate, 0.95) == sum(bound <= rate for bound in bounds) - 1


@pytest.mark.parametrize(
    ("best", "threshold", "missed", "needed"),
    [
        (np.arange(1, 150) / 200, 0.005, 0, 149),  # 0.98^149 < 0.05
        (np.arange(1, 149) / 200, None, 0, 149),
        (np.empty(0), None, 0, 149),
        (np.arange(1, 237) / 300, 2 / 300, 1, 149),  # one miss from 236 images on
        (np.r_[np.full(5, 0.1), np.arange(1, 232) / 300 + 0.1], 0.1, 0, 149),  # equal scores fall together
        (np.r_[np.zeros(2), np.arange(1, 300) / 300], None, 2, 388),  # in two nothing was found
        (np.r_[np.zeros(9), np.full(291, 0.5)], None, 9, 0),  # 3 % are never found
    ],
)
def test_threshold_of_a_promise(best: Any, threshold: float | None, missed: int, needed: int) -> None:
    made = promise(best, 0.02, 0.95)
    assert (made.threshold, made.missed) == (None if threshold is None else pytest.approx(threshold), missed)
    assert (made.num_defective, made.needed) == (len(best), pytest.approx(needed, abs=25))
    assert (made.bound is None) == (threshold is None) and (made.bound or 0) <= 0.02


def test_the_promise_is_kept_in_simulation() -> None:
    """Scores are uniform, so a threshold is its own miss rate. One image more would break the promise too often."""
    rng = np.random.default_rng(0)
    broken = {0: 0, 1: 0}
    for _ in range(1000):
        best = rng.uniform(size=200)
        threshold = promise(best, 0.05, 0.95).threshold
        assert threshold is not None
        following = np.sort(best)[np.searchsorted(np.sort(best), threshold) + 1]
        broken[0] += threshold > 0.05
        broken[1] += following > 0.05
    assert 15 <= broken[0] <= 50 < broken[1]


def test_least_cost_is_that_of_every_threshold_tried() -> None:
    rng = np.random.default_rng(1)
    defective = rng.uniform(size=80) < 0.4
    best = np.where(rng.uniform(size=80) < 0.1, 0, (rng.uniform(size=80) + 0.4 * defective).round(1).clip(0, 1))
    found = least_cost(best, defective, 10, 2, samples=50, seed=0)
    costs = {t: (10 * (defective & (best < t)).sum() + 2 * (~defective & (best >= t)).sum()) / 80 for t in set(best)}
    assert found["per_image"] == pytest.approx(min(costs.values()))
    assert found["threshold"] == min(t for t in costs if costs[t] == pytest.approx(min(costs.values())))
    assert found["per_image_interval"].low < found["per_image"] < found["per_image_interval"].high
    assert found["threshold_interval"].low <= found["threshold"] <= found["threshold_interval"].high
    assert least_cost(best, defective, 1e6, 1, samples=0, seed=0)["threshold"] == best[defective].min()
    assert least_cost(best, np.ones(80, dtype=bool), 10, 2, samples=9, seed=0)["threshold"] is None


def test_calibration_error_by_hand() -> None:
    scores, hits = np.array([0.62, 0.64, 0.9, 1.0, 0.1]), np.array([True, False, True, True, False])
    images, labels = np.array([0, 0, 1, 2, 2]), np.array([0, 0, 0, 1, 0])
    found = calibration_error(scores, hits, images, labels, names=("a", "b", "c"), num_images=3, samples=100, seed=0)
    assert found["ece"] == pytest.approx((abs(1 - 1.26) + 0.1 + 0.0 + 0.1) / 5)
    assert found["per_class"]["a"]["ece"] == pytest.approx((0.26 + 0.1 + 0.1) / 4)
    assert (found["per_class"]["b"]["ece"], found["per_class"]["c"]["ece"]) == (0, None)
    assert found["interval"].low <= found["ece"] <= found["interval"].high and found["detections"] == 5
    assert found["bins"]["counts"] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 1]
    assert found["bins"]["hits"][9] == 0.5 and found["bins"]["scores"][9] == pytest.approx(0.63)


def many(num: int) -> tuple[Any, Any]:
    """Images of which each has a hole and a detection of it, right with half its score; every fifth has no defect."""
    rng = np.random.default_rng(2)
    scores, boxes, detections = rng.uniform(0.1, 1, num), [], []
    for image, score in enumerate(scores, 1):
        boxes.append((image, "NORMAL" if image % 5 == 0 else "hole", A))
        place: Box = A if rng.uniform() < score / 2 else (200, 200, 20, 20)
        detections.append((image, "hole" if image % 5 else "NORMAL", place, float(score)))
    return scene(boxes, detections, num_images=num)


@pytest.mark.parametrize("method", ["none", "temperature", "isotonic"])
def test_the_sections_of_results(method: Any) -> None:
    truth, found = many(400)
    options = AcceptanceOptions(calibrate=method, cost_miss=100, max_miss_rate=0.02, promise_per_class=False)
    results = acceptance(match(truth, found), truth.classes.normal_label, options, samples=50)
    measured, made = results["calibration"], results["acceptance"]["promise"]
    assert measured["before"]["ece"] == pytest.approx(0.27, abs=0.04)
    if method == "none":
        assert measured["after"] is None and measured["curves"] is None
    else:
        # A temperature cannot halve a chance; isotonic regression can do anything that rises.
        gain = measured["before"]["ece"] - measured["after"]["ece"]
        assert gain > (0.01 if method == "temperature" else 0.15)
        assert set(measured["curves"]) == {"hole", "scratch", "NORMAL"}
    assert set(made["per_class"]) == {"hole", "scratch"} and made["all"] == made["per_class"]["hole"]
    assert made["all"]["num_defective"] == 320 and made["threshold"] == made["all"]["threshold"]
    assert (made["num_clean"], made["false_alarm_rate"]) == (80, 0)
    lines = acceptance_lines(results, texts_of("es", "acceptance"))
    assert len(lines) == 4 and "como máximo el 2\u00a0%" in lines[1] and "95\u00a0%" in lines[1]


def test_a_class_that_nobody_has_seen_lets_no_promise_be_made_for_it() -> None:
    truth, found = many(300)
    options = AcceptanceOptions(max_miss_rate=0.025, promise_per_class=True)
    results = acceptance(match(truth, found), truth.classes.normal_label, options, samples=0)
    assert results["acceptance"]["promise"]["threshold"] is None
    lines = acceptance_lines(results, texts_of("en", "acceptance"))
    assert "At most 2.5\u00a0% of the defective images missed" in lines[0]
    assert lines[1:] == ["scratch: 119 images would do."]
