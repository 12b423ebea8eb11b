"""Curves and thresholds: what is left when low scores are dropped, evaluated again to be sure; pairs of images counted
one by one."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.bootstrap import draw_weights, percentiles
from analysis.curves import image_level, interpolated_precision, precision_at_recall, ranked_hits, score_curves
from analysis.matching import IGNORED, TRUE_POSITIVE, match
from engine.metrics import GroundTruth, Predictions, best_thresholds
from tests.support.coco_reference import CLASSES, random_case, reference_evaluator
from tests.support.scenes import Box, scene

THRESHOLDS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
A: Box = (10, 10, 20, 20)
LEVELS = np.array([0.0, 0.3, 0.6, 1.0])


def above(detections: Predictions, score: float) -> Predictions:
    kept = detections.scores >= score
    return Predictions(*(getattr(detections, field.name)[kept] for field in dataclasses.fields(Predictions)))


def count(truth: GroundTruth, detections: Predictions, label: int | None) -> tuple[int, int]:
    """True positives, and detections that count, at IoU 0.5."""
    matches = match(truth, detections)
    outcomes = matches.outcomes[0, slice(None) if label is None else matches.rows(label)]
    return int((outcomes == TRUE_POSITIVE).sum()), int((outcomes != IGNORED).sum())


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), label=st.sampled_from([None, 0, 1, 4]))
def test_a_threshold_is_as_if_lower_scores_had_never_been_there(seed: int, label: int | None) -> None:
    truth, detections = random_case(seed)
    matches = match(truth, detections)
    precision, recall, f1 = score_curves(*ranked_hits(matches, label), THRESHOLDS)
    num_gt = int(matches.num_gt.sum() if label is None else matches.num_gt[label])
    for index, threshold in enumerate(THRESHOLDS):
        hits, counted = count(truth, above(detections, threshold), label)
        assert precision[index] == pytest.approx(hits / counted if counted else np.nan, nan_ok=True)
        assert recall[index] == pytest.approx(hits / num_gt if num_gt else np.nan, nan_ok=True)
        expected = 2 * hits / (counted + num_gt) if num_gt else np.nan
        assert f1[index] == pytest.approx(expected, nan_ok=True)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), label=st.sampled_from([None, 0, 2]))
def test_the_best_threshold_beats_every_score(seed: int, label: int | None) -> None:
    truth, detections = random_case(seed, num_images=5)
    matches = match(truth, detections)
    num_gt = int(matches.num_gt.sum() if label is None else matches.num_gt[label])
    found = best_thresholds(truth, detections)
    best = found["overall"] if label is None else found["per_class"][CLASSES.names[label]]
    trials = []
    for score in np.unique(detections.scores):
        hits, counted = count(truth, above(detections, score), label)
        if counted and num_gt:
            trials.append((2 * hits / (counted + num_gt), score, hits / counted, hits / num_gt))
    if best is None:
        assert max(trials, default=(0.0,))[0] == 0
        return
    f1, _, precision, recall = max(trials)
    assert [best[key] for key in ("f1", "precision", "recall")] == pytest.approx([f1, precision, recall])
    assert best["score"] in detections.scores


def test_precision_at_recall_is_coco_s() -> None:
    truth, detections = random_case(8, num_images=20)
    matches = match(truth, detections)
    precision = reference_evaluator(truth, [dict(one) for one in detections.to_coco()]).eval["precision"]
    for label in range(len(CLASSES)):
        expected = precision[:, :, label, 0, -1]
        ours = precision_at_recall(matches, label)
        if (expected == -1).all():
            assert np.isnan(ours).all()
            continue
        assert ours[0] == pytest.approx(expected[0]) and ours[1] == pytest.approx(expected[5])
        assert ours[2] == pytest.approx(expected.mean(axis=0))


def test_interpolated_precision() -> None:
    assert np.isnan(interpolated_precision(np.array([False]), 0)).all()
    assert (interpolated_precision(np.array([], dtype=bool), 3) == 0).all()
    curve = interpolated_precision(np.array([True, False, True]), 2)
    assert (curve[:51] == 1).all() and curve[51:] == pytest.approx(2 / 3)


def level(boxes, detections, **options) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    truth, found = scene(boxes, detections, **options)
    return image_level(match(truth, found), truth.classes.normal_label, samples=50, thresholds=LEVELS)


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
    assert curve == [None] * len(LEVELS)


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
