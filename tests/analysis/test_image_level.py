"""Image level: pairs counted one by one, and the edges."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.bootstrap import draw_weights, percentiles
from analysis.image_level import image_level
from analysis.matching import match
from tests.support.coco_reference import CLASSES, random_case
from tests.support.scenes import Box, scene

A: Box = (10, 10, 20, 20)
THRESHOLDS = np.array([0.0, 0.3, 0.6, 1.0])


def level(boxes, detections, **options) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    truth, found = scene(boxes, detections, **options)
    return image_level(match(truth, found), truth.classes.normal_label, samples=50, thresholds=THRESHOLDS)


def test_by_hand() -> None:
    boxes = [(1, "hole", A), (2, "scratch", A), (3, "NORMAL", A)]
    detections = [
        (1, "hole", (100, 100, 5, 5), 0.7),
        (2, "NORMAL", A, 0.9),
        (3, "hole", A, 0.5),
        (3, "scratch", A, 0.4),
        (4, "NORMAL", A, 0.99),
    ]
    result = level(boxes, detections, num_images=4)
    assert (result["num_clean"], result["num_defective"]) == (2, 2)
    assert result["auroc"] == pytest.approx((2 + 0 + 0.5) / 4), "0.7 beats 0.5 and 0; 0 loses to 0.5 and ties with 0"
    assert result["false_alarms_per_clean_image"] == [1.0, 1.0, 0.0, 0.0]
    assert result["miss_rate"] == [0.5, 0.5, 0.5, 1.0]


def test_a_crowd_of_defects_is_a_defect() -> None:
    result = level([], [], crowds=[(1, "hole", A)], num_images=2)
    assert (result["num_clean"], result["num_defective"]) == (1, 1)
    assert result["auroc"] == 0.5


@pytest.mark.parametrize("boxes", [[], [(1, "hole", A), (2, "hole", A), (3, "scratch", A)]])
def test_images_of_one_sort_only(boxes: list[tuple[int, str, Box]]) -> None:
    result = level(boxes, [(1, "hole", A, 0.5)])
    assert result["auroc"] is None and result["auroc_interval"] is None
    curve = result["false_alarms_per_clean_image"] if boxes else result["miss_rate"]
    assert curve == [None] * len(THRESHOLDS)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_auroc_counts_pairs(seed: int) -> None:
    truth, detections = random_case(seed, num_images=15)
    matches = match(truth, detections)
    found = matches.found
    label = CLASSES.normal_label
    result = image_level(matches, label, samples=20, seed=3)
    scores = np.zeros(15)
    np.maximum.at(scores, found.images[found.labels != label], found.scores[found.labels != label])
    defective = np.isin(np.arange(15), matches.truth.images[matches.truth.labels != label])

    def auroc(rows: np.ndarray) -> float:  # type: ignore[type-arg]
        bad, good = scores[rows][defective[rows]], scores[rows][~defective[rows]]
        wins = (bad[:, None] > good).sum() + 0.5 * (bad[:, None] == good).sum()
        return float(wins / (len(bad) * len(good))) if len(bad) and len(good) else np.nan

    point = auroc(np.arange(15))
    if np.isnan(point):
        assert result["auroc"] is None
        return
    assert result["auroc"] == pytest.approx(point)
    weights = draw_weights(np.random.default_rng(3), 15, 20).astype(int)
    drawn = np.array([auroc(np.repeat(np.arange(15), weights[:, sample])) for sample in range(20)])
    assert result["auroc_interval"] == pytest.approx(percentiles(drawn))


def test_without_samples_there_is_no_interval() -> None:
    truth, detections = random_case(0)
    result = image_level(match(truth, detections), None, samples=0)
    assert result["auroc"] is not None and result["auroc_interval"] is None
