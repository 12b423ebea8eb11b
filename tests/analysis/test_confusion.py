"""The confusion matrix: cases by hand, and sums that must come out on random data."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.errors import confusion
from analysis.matching import IGNORED, TRUE_POSITIVE, match
from tests.support.coco_reference import CLASSES, random_case
from tests.support.scenes import Box, scene

A: Box = (10, 10, 20, 20)
NEAR_A: Box = (12, 10, 20, 20)
FAR: Box = (200, 200, 20, 20)


def matrix(boxes, detections, *, iou=0.5, score=0.3, **options):  # type: ignore[no-untyped-def]
    truth, found = scene(boxes, detections, **options)
    return confusion(match(truth, found), iou=iou, score=score).tolist()


def test_each_cell_by_hand() -> None:
    boxes = [(1, "hole", A), (1, "scratch", FAR), (2, "scratch", A)]
    detections = [(1, "hole", NEAR_A, 0.9), (2, "hole", A, 0.8), (3, "scratch", A, 0.7), (3, "scratch", FAR, 0.2)]
    assert matrix(boxes, detections) == [[1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_the_right_class_keeps_its_box() -> None:
    """A surer detection of a wrong class stands on the same box: it is a false alarm, not a confusion."""
    detections = [(1, "scratch", A, 0.9), (1, "hole", NEAR_A, 0.4)]
    assert matrix([(1, "hole", A)], detections) == [[1, 0, 0, 0], [0] * 4, [0] * 4, [0, 1, 0, 0]]
    assert matrix([(1, "hole", A)], detections, score=0.5) == [[0, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4]


def test_of_two_wrong_classes_the_surer_one_counts() -> None:
    detections = [(1, "scratch", NEAR_A, 0.5), (1, "NORMAL", A, 0.9)]
    assert matrix([(1, "hole", A)], detections) == [[0, 0, 1, 0], [0] * 4, [0] * 4, [0, 1, 0, 0]]


def test_iou_limit() -> None:
    detections = [(1, "scratch", NEAR_A, 0.9)]  # IoU 0.82
    assert matrix([(1, "hole", A)], detections, iou=0.8)[0] == [0, 1, 0, 0]
    assert matrix([(1, "hole", A)], detections, iou=0.85)[0] == [0, 0, 0, 1]


def test_crowds_and_what_lies_in_them_do_not_count() -> None:
    detections = [(1, "hole", A, 0.9), (1, "hole", NEAR_A, 0.8), (1, "scratch", A, 0.7)]
    assert matrix([], detections, crowds=[(1, "hole", (0, 0, 100, 100))]) == [[0] * 4] * 4


def test_nothing_at_all() -> None:
    assert matrix([], []) == [[0] * 4] * 4
    assert matrix([(1, "hole", A)], []) == [[0, 0, 0, 1], *[[0] * 4] * 3]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), iou=st.sampled_from([0.1, 0.5, 0.75]), score=st.sampled_from([0.0, 0.3, 0.7]))
def test_sums(seed: int, iou: float, score: float) -> None:
    matches = match(*random_case(seed, crowds=0.2))
    found = matches.found
    counts = confusion(matches, iou=iou, score=score)
    assert (counts >= 0).all() and counts[-1, -1] == 0
    assert counts[:-1].sum(axis=1).tolist() == matches.num_gt.tolist()
    predicted = np.bincount(found.labels[found.scores >= score], minlength=len(CLASSES))
    assert (counts[:, :-1].sum(axis=0) <= predicted).all()
    if iou > 0.1:
        outcomes = matches.outcomes[{0.5: 0, 0.75: 5}[iou]]
        kept = found.scores >= score
        hits = np.bincount(found.labels[kept & (outcomes == TRUE_POSITIVE)], minlength=len(CLASSES))
        assert counts.diagonal()[:-1].tolist() == hits.tolist()
        assert counts[:, :-1].sum() <= (kept & (outcomes != IGNORED)).sum()
    matches = match(*random_case(seed, crowds=0.0))
    counts = confusion(matches, iou=iou, score=score)
    judged = (matches.found.scores >= score) & (matches.found.areas >= 0)
    assert counts[:, :-1].sum(axis=0).tolist() == np.bincount(matches.found.labels[judged], minlength=5).tolist()
