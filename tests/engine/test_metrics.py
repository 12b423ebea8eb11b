"""COCO's numbers: equal to pycocotools, and right at the edges."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.classes import ClassMap
from engine.metrics import METRIC_NAMES, GroundTruth, Predictions, best_threshold, best_thresholds, coco_numbers
from tests.support.coco_reference import (
    CLASSES,
    TOLERANCE,
    assert_equal,
    random_case,
    reference_stats,
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("crowds", [0.0, 0.3])
def test_equal_to_pycocotools(seed: int, crowds: float) -> None:
    truth, detections = random_case(seed, crowds=crowds)
    numbers = coco_numbers(truth, detections)
    results = [dict(one) for one in detections.to_coco()]
    assert_equal(numbers.metrics, reference_stats(truth, results))
    assert_equal(numbers.metrics_defects, reference_stats(truth, results, [0, 4, 9, 20]))
    for name, category_id in zip(CLASSES.names, CLASSES.category_ids, strict=True):
        expected = reference_stats(truth, results, [category_id])
        row = numbers.per_class[name]
        assert row["AP"] == (None if expected[0] is None else pytest.approx(expected[0], abs=TOLERANCE))
        for key in ("AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100", "AR_small", "AR_medium", "AR_large"):
            value = expected[METRIC_NAMES.index(key)]
            assert row[key] == (None if value is None else pytest.approx(value, abs=TOLERANCE))
        boxes = [box for box in truth.annotations if box["category_id"] == category_id and not box["iscrowd"]]
        assert row["num_gt"] == len(boxes)
    assert set(numbers.per_class["never seen"].values()) == {None, 0}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 4), crowds=st.sampled_from([0.0, 0.5, 1.0]))
def test_equal_to_pycocotools_in_tiny_cases(seed: int, num_images: int, crowds: float) -> None:
    truth, detections = random_case(seed, num_images=num_images, crowds=crowds)
    results = [dict(one) for one in detections.to_coco()]
    assert_equal(coco_numbers(truth, detections).metrics, reference_stats(truth, results))


def test_more_than_a_hundred_detections_of_an_image() -> None:
    truth, _ = random_case(0, num_images=3, crowds=0.0)
    rng = np.random.default_rng(1)
    image_ids = np.repeat(np.array(list(truth.images)), 300)
    corners = np.sort(rng.uniform(0, 300, (900, 2, 2)), axis=1).reshape(900, 4)
    detections = Predictions.from_xyxy(image_ids, np.full(900, 4), rng.random(900), corners)
    numbers = coco_numbers(truth, detections)
    assert_equal(numbers.metrics, reference_stats(truth, [dict(one) for one in detections.to_coco()]))


def test_rounding_for_the_file_does_not_change_the_numbers() -> None:
    truth, detections = random_case(5, num_images=40)
    rng = np.random.default_rng(0)
    corners = np.concatenate(
        [detections.boxes_xywh[:, :2], detections.boxes_xywh[:, :2] + detections.boxes_xywh[:, 2:]], 1
    )
    corners = (corners + rng.normal(0, 0.01, corners.shape)).astype(np.float32)
    scores = (1 / (1 + np.exp(-rng.normal(-2, 2, len(detections))))).astype(np.float32)
    exact = [
        {"image_id": int(i), "category_id": int(c), "bbox": [*b[:2], *(b[2:] - b[:2])], "score": float(s)}
        for i, c, b, s in zip(
            detections.image_ids, detections.category_ids, corners.astype(np.float64), scores, strict=True
        )
    ]
    rounded = Predictions.from_xyxy(detections.image_ids, detections.category_ids, scores, corners)
    assert_equal(coco_numbers(truth, rounded).metrics, reference_stats(truth, exact))
    read_back = json.loads(json.dumps(rounded.to_coco()))
    assert coco_numbers(truth, rounded).metrics == dict(
        zip(
            METRIC_NAMES,
            [pytest.approx(v, abs=TOLERANCE) for v in reference_stats(truth, read_back)],
            strict=True,
        )
    )


def test_no_detections_and_no_ground_truth() -> None:
    truth, detections = random_case(1, crowds=0.0)
    nothing_found = coco_numbers(truth, Predictions.empty())
    assert nothing_found.metrics["AP"] == 0.0 and nothing_found.metrics["AR_100"] == 0.0
    nothing_there = coco_numbers(dataclasses.replace(truth, annotations=[]), detections)
    assert set(nothing_there.metrics.values()) == {None}
    assert set(nothing_there.metrics_defects.values()) == {None}
    assert set(nothing_there.per_class["hole"].values()) == {None, 0}


@pytest.mark.parametrize(
    ("ids", "names", "ap_of_defects"),
    [((0, 1), ("hole", "scratch"), 1.0), ((3,), ("Normal",), None), ((2, 5), ("hole", "hole"), 1.0)],
)
def test_one_box_of_the_first_class(ids: tuple[int, ...], names: tuple[str, ...], ap_of_defects: float | None) -> None:
    """Ids from 0 count like any other, Normal is no defect, classes of one name are kept apart."""
    box = {"image_id": 0, "category_id": ids[0], "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0}
    truth = GroundTruth({0: "a.png"}, [box], ClassMap(ids, names))
    numbers = coco_numbers(truth, Predictions.from_xyxy(*_one(0, ids[0], 0.5, [0, 0, 50, 50])))
    assert numbers.metrics["AP"] == numbers.metrics["AR_100"] == 1.0
    assert numbers.metrics_defects["AP"] == ap_of_defects
    expected = ["hole (id 2)", "hole (id 5)"] if len(set(names)) < len(names) else list(names)
    assert list(numbers.per_class) == expected and numbers.per_class[expected[0]]["AP"] == 1.0


def _one(image_id: int, category_id: int, score: float, corners: list[float]) -> tuple[Any, Any, Any, Any]:
    return np.array([image_id]), np.array([category_id]), np.array([score]), np.array([corners])


def test_fingerprint_follows_content_not_order() -> None:
    truth, _ = random_case(2)
    shuffled = dataclasses.replace(
        truth,
        images=dict(reversed(truth.images.items())),
        annotations=[dict(reversed(box.items())) for box in reversed(truth.annotations)],
    )
    assert truth.fingerprint() == shuffled.fingerprint()
    assert len(truth.fingerprint()) == 64
    moved = [dict(box) for box in truth.annotations]
    moved[0]["bbox"] = [value + 0.5 for value in moved[0]["bbox"]]
    variants = [
        dataclasses.replace(truth, annotations=moved),
        dataclasses.replace(truth, annotations=truth.annotations[1:]),
        dataclasses.replace(truth, images={**truth.images, 1000: "more.jpg"}),
        dataclasses.replace(truth, images={image_id: f"x{name}" for image_id, name in truth.images.items()}),
        dataclasses.replace(truth, classes=ClassMap(CLASSES.category_ids, ("a", "b", "c", "d", "e"))),
    ]
    assert len({truth.fingerprint(), *(variant.fingerprint() for variant in variants)}) == 6


def test_thresholds_without_hits_or_truth() -> None:
    truth, predictions = random_case(1)
    nothing = {"overall": None, "per_class": dict.fromkeys(CLASSES.names)}
    assert best_thresholds(truth, predictions)["per_class"]["never seen"] is None
    assert best_thresholds(truth, Predictions.empty()) == nothing
    assert best_thresholds(dataclasses.replace(truth, annotations=[]), predictions) == nothing


def test_the_highest_of_several_best_scores() -> None:
    scores, hits = np.array([0.9, 0.4, 0.6, 0.4]), np.array([True, True, False, False])
    best = best_threshold(scores, hits, 3)
    assert best == pytest.approx({"score": 0.4, "f1": 4 / 7, "precision": 0.5, "recall": 2 / 3})
    best = best_threshold(scores, hits, 2)
    assert best == pytest.approx({"score": 0.9, "f1": 2 / 3, "precision": 1, "recall": 0.5}), "0.4 gives the same F1"
