"""Deletion and insertion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention.perturbation import (
    Found,
    Perturber,
    area_under,
    detect,
    object_score,
    pixel_ranks,
    step_shares,
    without_information,
)
from models.boxes import cxcywh_to_xyxy
from tests.support.baselines import NUM_CLASSES, small_baseline
from tests.support.models import images
from tests.support.toy_detector import BOXES, SIZE, ToyDetector, perfect_map, toy_image, wrong_map

OBJECTS = [(cxcywh_to_xyxy(torch.tensor(box)), label) for box, label in zip(BOXES, (0, 2), strict=True)]
NO_TIES = np.arange(SIZE * SIZE, dtype=float).reshape(SIZE, SIZE)


def perturber(**changes: object) -> Perturber:
    settings = {"num_classes": 3, "steps": 10, "baseline": "mean", "batch_size": 4} | changes
    return Perturber(ToyDetector().eval(), toy_image(), OBJECTS, **settings)


def test_curves_of_the_perfect_map_end_where_they_must_and_move_at_once() -> None:
    ranks = pixel_ranks(perfect_map(ToyDetector(), toy_image(), 0, 0).double().numpy(), NO_TIES)
    curves = perturber().curves(ranks)
    full, empty = (
        1 / (1 + np.exp(-6)),
        1 / (1 + np.exp(6 - 12 * 64 / SIZE**2)),
    )  # the mean colour keeps 64 pixels' worth
    assert curves[0].deletion[[0, -1]] == pytest.approx([full, empty], abs=1e-5)
    assert curves[0].insertion[[0, -1]] == pytest.approx([empty, full], abs=1e-5)
    covered = step_shares(10) >= 64 / SIZE**2
    assert curves[0].deletion[covered] == pytest.approx(empty, abs=1e-5)
    assert curves[0].insertion[covered] == pytest.approx(full, abs=1e-5)
    assert (np.diff(curves[0].deletion) <= 1e-6).all()


def test_a_wrong_map_is_worse_and_the_batch_size_does_not_matter() -> None:
    good, bad = (
        pixel_ranks(draw(ToyDetector(), toy_image(), 0, 0).double().numpy(), NO_TIES)
        for draw in (perfect_map, wrong_map)
    )
    assert area_under(perturber().curves(good)[0].deletion) < 0.2 < area_under(perturber().curves(bad)[0].deletion)
    assert area_under(perturber().curves(good)[0].insertion) > 0.8 > area_under(perturber().curves(bad)[0].insertion)
    for batch_size in (1, 7, 100):
        again = perturber(batch_size=batch_size).curves(good)
        for one, other in zip(again, perturber().curves(good), strict=True):
            np.testing.assert_allclose(one.deletion, other.deletion, atol=1e-6)
            np.testing.assert_allclose(one.insertion, other.insertion, atol=1e-6)


@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.permutations(list(range(12))))
def test_ranks_are_a_permutation_in_descending_order_ties_as_told(values: list[int], ties: list[int]) -> None:
    pixels = np.array(values, dtype=float).reshape(3, 4)
    ranks = pixel_ranks(pixels, np.array(ties, dtype=float).reshape(3, 4)).ravel()
    assert sorted(ranks.tolist()) == list(range(12))
    order = np.argsort(ranks)
    pairs = [(-values[k], ties[k]) for k in order]
    assert pairs == sorted(pairs)


def test_an_object_is_followed_by_its_place() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0]])
    found = Found(boxes, torch.tensor([[0.4, 0.9], [0.9, 0.1]]))
    assert object_score(found, boxes[0], 0) == pytest.approx(0.45)  # half the IoU of the surer one beats 0.4
    assert object_score(found, boxes[0], 1) == pytest.approx(0.9)
    assert object_score(found, torch.tensor([0.8, 0.8, 0.9, 0.9]), 1) == 0
    assert object_score(Found(torch.zeros(0, 4), torch.zeros(0, 2)), boxes[0], 1) == 0


def test_what_is_removed_holds_no_information() -> None:
    image = torch.zeros(1, 3, 64, 64)
    image[:, 1, 30:34, 30:34] = 1
    blurred, mean = without_information(image, "blur"), without_information(image, "mean")
    assert blurred.shape == mean.shape == image.shape
    assert float(blurred[0, 1].max()) < 0.2
    assert float(blurred.sum()) == pytest.approx(float(image.sum()), rel=1e-3)
    assert torch.equal(mean[0, 1], torch.full((64, 64), 16 / 64**2))
    assert float(image.max()) == 1


def test_the_area_is_that_of_the_uneven_steps() -> None:
    assert area_under(np.ones(9)) == pytest.approx(1)
    assert area_under(step_shares(50)) == pytest.approx(0.5)
    assert step_shares(4).tolist() == [0, 1 / 16, 1 / 4, 9 / 16, 1]


def test_a_baselines_detections_score_for_their_own_class() -> None:
    model = small_baseline("fasterrcnn_resnet18").eval()
    found = detect(model, images(1, 64, 96), NUM_CLASSES)[0]
    raw = model(images(1, 64, 96))[0]
    assert torch.equal(found.scores.argmax(dim=1), raw["labels"])
    assert torch.equal(found.scores.sum(dim=1), raw["scores"])
    assert not found.scores.requires_grad
