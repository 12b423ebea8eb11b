"""Match tables: what pycocotools matches, to the last detection."""

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.curves import interpolated_precision
from analysis.matching import IGNORED, TRUE_POSITIVE, match, overlapping
from engine.metrics import GroundTruth, Predictions, coco_numbers
from tests.support.coco_reference import CLASSES, TOLERANCE, random_case
from tests.support.scenes import scene


def assert_as_faster_coco_eval(truth: GroundTruth, detections: Predictions) -> None:
    """AP of every class and threshold from pycocotools' matches, against the metrics of training."""
    matches, numbers = match(truth, detections), coco_numbers(truth, detections)
    for label, row in enumerate(numbers.per_class.values()):
        rows, num_gt = matches.rows(label), int(matches.num_gt[label])
        assert (np.diff(matches.found.scores[rows]) <= 0).all() and num_gt == row["num_gt"]
        ranked = [outcomes[outcomes != IGNORED] == TRUE_POSITIVE for outcomes in matches.outcomes[:, rows]]
        ap = np.mean([interpolated_precision(hits, num_gt).mean() for hits in ranked])
        assert np.isnan(ap) if row["AP"] is None else abs(ap - row["AP"]) <= TOLERANCE, label
    hits = matches.outcomes[0] == TRUE_POSITIVE
    assert ((matches.truth_of >= 0) == hits).all()
    taken = matches.truth_of[hits]
    assert len(np.unique(taken)) == len(taken) and not matches.truth.crowd[taken].any()
    assert (matches.truth.labels[taken] == matches.found.labels[hits]).all()
    assert (matches.truth.images[taken] == matches.found.images[hits]).all()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 10), crowds=st.sampled_from([0.0, 0.2, 0.6, 1.0]))
def test_equal_to_the_metrics_of_training(seed: int, num_images: int, crowds: float) -> None:
    assert_as_faster_coco_eval(*random_case(seed, num_images=num_images, crowds=crowds))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), crowds=st.sampled_from([0.0, 0.4]))
def test_equal_to_the_metrics_of_training_in_a_throng(seed: int, crowds: float) -> None:
    """Many boxes on a coarse grid in one spot: equal IoUs, equal scores, IoUs of exactly 0.5."""
    rng = np.random.default_rng(seed)
    images = {3: "a", 1: "b"}

    def boxes(count: int) -> Any:
        return np.concatenate([rng.integers(0, 3, (count, 2)) * 10, rng.integers(1, 5, (count, 2)) * 10], axis=1)

    annotations = [
        {
            "image_id": int(rng.choice([1, 3])),
            "category_id": int(rng.choice([0, 3])),
            "bbox": box.tolist(),
            "area": float(rng.choice([box[2:].prod(), 32.0**2, 32.0**2 + 1])),
            "iscrowd": int(rng.random() < crowds),
        }
        for box in boxes(24)
    ]
    found = boxes(60)
    detections = Predictions.from_xyxy(
        rng.choice([1, 3], 60),
        rng.choice([0, 3], 60),
        rng.integers(0, 6, 60) / 5,
        np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1),
    )
    assert_as_faster_coco_eval(GroundTruth(images, annotations, CLASSES), detections)


def test_more_than_a_hundred_detections_of_an_image() -> None:
    truth, _ = random_case(0, num_images=3, crowds=0.1)
    rng = np.random.default_rng(1)
    corners = np.sort(rng.uniform(0, 300, (900, 2, 2)), axis=1).reshape(900, 4)
    detections = Predictions.from_xyxy(
        np.repeat(np.array(list(truth.images)), 300), np.full(900, 4), rng.random(900), corners
    )
    assert_as_faster_coco_eval(truth, detections)
    assert len(match(truth, detections).found.scores) == 300


def test_nothing_found_nothing_there_and_strangers() -> None:
    truth, detections = random_case(1)
    empty = match(truth, Predictions.empty())
    assert len(empty.found.scores) == 0 and empty.num_gt.sum() > 0
    nothing_there = match(dataclasses.replace(truth, annotations=[]), detections)
    assert nothing_there.num_gt.sum() == 0 and not (nothing_there.outcomes == TRUE_POSITIVE).any()
    no_images = match(dataclasses.replace(truth, images={}, annotations=[]), detections)
    assert len(no_images.found.scores) == 0 and no_images.gt_counts.shape == (0, 5)
    stranger = Predictions.from_xyxy(np.array([12345]), np.array([3]), np.array([0.9]), np.array([[0, 0, 5, 5]]))
    assert len(match(truth, stranger).found.scores) == 0


def test_pairs_that_overlap_are_of_one_image_and_of_any_class() -> None:
    boxes = [(1, "hole", (0, 0, 10, 10)), (2, "hole", (0, 0, 10, 10))]
    detections = [
        (1, "hole", (0, 0, 10, 5), 0.9),
        (1, "scratch", (0, 0, 10, 0.5), 0.8),
        (2, "NORMAL", (0, 0, 2, 2), 0.7),
    ]
    matches = match(*scene(boxes, detections, crowds=[(2, "scratch", (0, 0, 100, 100))]))
    pairs = [(matches.found.scores[d], box, iou) for d, box, iou in zip(*overlapping(matches), strict=True)]
    assert pairs == [(0.9, 0, 0.5), (0.7, 2, 1.0)], "a crowd box: the share of the detection in it; below 0.1: none"
