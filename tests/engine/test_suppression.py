"""Repeats: counted, suppressed, and what that gives on validation data."""

from pathlib import Path

import numpy as np
import pytest

from engine.metrics import best_thresholds, coco_numbers
from engine.results import RESULTS_NAME, read_results, write_results
from engine.suppression import TRIED_IOUS, add_suppression, suppressed, try_suppression
from tests.support.coco_reference import random_case
from tests.support.scenes import scene

BOX = (10.0, 10.0, 40.0, 40.0)
NEAR = (10.0, 10.0, 40.0, 36.0)  # IoU 0.9 with BOX
OVER = (10.0, 10.0, 40.0, 26.0)  # IoU 0.65


@pytest.mark.parametrize(("most_iou", "left"), [(0.95, 5), (0.85, 4), (0.7, 4), (0.6, 3)])
def test_within_a_class_and_an_image_the_best_is_kept(most_iou: float, left: int) -> None:
    found = [(1, "hole", NEAR, 0.7), (1, "hole", BOX, 0.9), (1, "hole", OVER, 0.4), (1, "scratch", BOX, 0.8)]
    detections = scene([], [*found, (2, "hole", BOX, 0.6)])[1]
    kept = suppressed(detections, most_iou)
    assert len(kept) == left and {0.9, 0.8, 0.6} <= set(kept.scores)
    assert kept.image_ids.tolist() == sorted(kept.image_ids), "in the order they came"


def test_what_suppression_gives() -> None:
    """One box found three times at every threshold, one found last: without the repeats F1 is 1."""
    boxes = [(1, "hole", BOX), (2, "hole", BOX)]
    found = [(1, "hole", BOX, 0.9), (1, "hole", NEAR, 0.8), (1, "hole", OVER, 0.7), (2, "hole", BOX, 0.6)]
    truth, detections = scene(boxes, found)
    thresholds = best_thresholds(truth, detections)
    result = try_suppression(truth, detections, coco_numbers(truth, detections), thresholds)
    f1 = {one["iou"]: one["f1"] for one in result["tried"]}
    assert list(f1) == [None, *TRIED_IOUS]
    assert f1[None] == pytest.approx(2 / 3) and f1[0.8] == pytest.approx(4 / 5) and f1[0.6] == f1[0.5] == 1
    assert result["iou"] == 0.6, "the highest of equals"
    chosen = next(one for one in result["tried"] if one["iou"] == 0.6)
    assert chosen["thresholds"]["per_class"]["hole"]["score"] == 0.6
    assert chosen["AP50"] == pytest.approx(1)
    assert (result["repeats"], result["detections"]) == ((2, 4) if thresholds["overall"]["score"] == 0.6 else (0, 1))


def test_numbers_are_those_of_the_suppressed_detections(tmp_path: Path) -> None:
    truth, detections = random_case(3, num_images=20)
    numbers, thresholds = coco_numbers(truth, detections), best_thresholds(truth, detections)
    result = try_suppression(truth, detections, numbers, thresholds)
    assert result["tried"][0]["AP"] == numbers.metrics["AP"] and result["tried"][0]["thresholds"] == thresholds
    alone = suppressed(detections, 0.5)
    assert result["tried"][-1]["AP"] == coco_numbers(truth, alone).metrics["AP"]
    assert result["tried"][-1]["thresholds"] == best_thresholds(truth, alone)
    write_results(tmp_path, truth, detections, {**numbers._asdict(), "thresholds": thresholds})
    add_suppression(tmp_path)
    assert read_results(tmp_path / RESULTS_NAME)["suppression"] == result, "of the files that a run leaves"
    nothing = suppressed(detections, 0.5)
    nothing = type(nothing)(*(np.empty((0, *column.shape[1:])) for column in vars(nothing).values()))
    empty = try_suppression(truth, nothing, coco_numbers(truth, nothing), best_thresholds(truth, nothing))
    assert (empty["iou"], empty["repeats"], empty["detections"]) == (None, 0, 0)
