"""Errors in the manner of TIDE: by hand, and against a slow oracle written from the paper."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import ERROR_KINDS, classify_errors, error_breakdown
from analysis.matching import match
from engine.metrics import Predictions, coco_numbers
from tests.support.coco_reference import random_case
from tests.support.scenes import Box, scene
from tests.support.tide_oracle import tide

A: Box = (10, 10, 20, 20)
SHIFTED: Box = (20, 10, 20, 20)  # IoU 1/3 with A
FAR: Box = (200, 200, 20, 20)


def breakdown(boxes, detections, **options) -> dict[str, Any]:  # type: ignore[no-untyped-def]
    matches = match(*scene(boxes, detections, **options))
    return error_breakdown(matches, classify_errors(matches), score=0.5)


def test_one_error_of_each_kind() -> None:
    """Each is the only fault of its own scene, so mending it gives AP50 1."""
    good = (2, "hole", A, 0.5)
    truths = [(2, "hole", A)]
    cases = {
        "classification": ([*truths, (1, "hole", A)], [(1, "scratch", A, 0.9), good]),
        "localisation": ([*truths, (1, "hole", A)], [(1, "hole", SHIFTED, 0.9), good]),
        "both": (truths, [(2, "scratch", SHIFTED, 0.9), good]),
        "duplicate": (truths, [good, (2, "hole", (11, 10, 20, 20), 0.4)]),
        "background": (truths, [(3, "hole", A, 0.9), good]),
        "missed": ([*truths, (1, "hole", A)], [good]),
    }
    for kind, (boxes, detections) in cases.items():
        result = breakdown(boxes, detections)
        assert {name: n for name, n in result["counts"].items() if n} == {kind: 1}, kind
        assert result["base_ap50"] is not None
        others = {name: cost for name, cost in result["ap50_cost"].items() if name != kind}
        assert set(others.values()) == {0.0}, kind
        if kind in ("both", "duplicate"):  # a wrong class of no box, and a lower score, take nothing from AP
            assert result["ap50_cost"][kind] == 0
        else:
            assert result["base_ap50"] + result["ap50_cost"][kind] == pytest.approx(1), kind


def test_a_box_is_given_to_the_surest_of_several_errors() -> None:
    boxes = [(1, "hole", A)]
    detections = [(1, "hole", SHIFTED, 0.9), (1, "hole", (0, 10, 20, 20), 0.8), (3, "hole", FAR, 0.95)]
    result = breakdown(boxes, detections)
    assert result["base_ap50"] == 0 and result["ap50_cost"]["localisation"] == pytest.approx(0.5)
    assert result["ap50_cost"]["missed"] == 0 and result["counts"]["missed"] == 0, "localisation already explains it"


def test_errors_on_a_box_that_is_found_are_only_dropped() -> None:
    boxes = [(1, "hole", A), (2, "hole", A)]
    detections = [(1, "hole", SHIFTED, 0.9), (1, "hole", A, 0.8), (2, "hole", A, 0.7)]
    result = breakdown(boxes, detections)
    assert result["base_ap50"] is not None
    assert result["base_ap50"] == pytest.approx(2 / 3) and result["ap50_cost"]["localisation"] == pytest.approx(1 / 3)


def test_detections_in_a_crowd_are_no_errors() -> None:
    result = breakdown([(2, "hole", A)], [(1, "hole", A, 0.9)], crowds=[(1, "hole", (0, 0, 100, 100))])
    assert {name: n for name, n in result["counts"].items() if n} == {"missed": 1}


def test_nothing_to_judge() -> None:
    result = breakdown([], [(1, "hole", A, 0.9)])
    assert result["base_ap50"] is None and set(result["ap50_cost"].values()) == {0.0}
    assert result["counts"]["background"] == 1
    assert set(breakdown([], [])["counts"].values()) == {0}


def test_counts_from_a_score_on_leave_weaker_detections_out() -> None:
    """The box found with 0.4 alone is missed at 0.5, and its duplicate with 0.3 is no error there."""
    near = (11, 10, 20, 20)
    weak = [(1, "hole", A, 0.4), (1, "hole", near, 0.3)]
    result = breakdown([(1, "hole", A), (2, "hole", A)], [*weak, (2, "hole", A, 0.9), (2, "hole", near, 0.8)])
    assert {name: n for name, n in result["counts"].items() if n} == {"duplicate": 2}
    assert {name: n for name, n in result["counts_at_score"].items() if n} == {"duplicate": 1, "missed": 1}


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), num_images=st.integers(1, 8))
def test_equal_to_the_oracle(seed: int, num_images: int) -> None:
    truth, detections = random_case(seed, num_images=num_images, crowds=0.0)
    if not truth.annotations:
        return
    possible = detections.boxes_xywh[:, 2:].min(axis=1) >= 0
    detections = Predictions(*(getattr(detections, field.name)[possible] for field in dataclasses.fields(Predictions)))
    # Unequal scores: which of two equals comes first is not the paper's matter.
    order = np.argsort(np.argsort(detections.scores, kind="stable"))
    detections = dataclasses.replace(detections, scores=(order + 1) / (len(order) + 1))
    matches = match(truth, detections)
    result = error_breakdown(matches, classify_errors(matches), score=0.5)
    base, costs, counts = tide(truth, detections)
    assert result["base_ap50"] == pytest.approx(base)
    assert dict(result["counts"]) == counts
    assert dict(result["ap50_cost"]) == pytest.approx(costs)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_matches_and_coco(seed: int) -> None:
    truth, detections = random_case(seed, num_images=20, crowds=0.3)
    matches = match(truth, detections)
    errors = classify_errors(matches)
    assert ((errors.kinds >= 0) == (matches.outcomes[0] == 0)).all()
    result = error_breakdown(matches, errors, score=0.5)
    assert tuple(result["ap50_cost"]) == ERROR_KINDS
    assert result["base_ap50"] == pytest.approx(coco_numbers(truth, detections).metrics["AP50"], abs=1e-9)
