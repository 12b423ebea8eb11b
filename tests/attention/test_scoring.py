"""Is a map honest: a detector whose evidence is known, and what chance gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from attention.perturbation import Found
from attention.randomisation import RandomisedModel
from attention.scoring import (
    CENTRE,
    METRICS,
    RANDOM,
    AttentionScores,
    MapMethod,
    ScoreImage,
    ScoreOptions,
    centre_prior,
    choose_images,
    coverage,
    energy_ratio,
    match_objects,
    points_inside,
    random_maps,
    score_maps,
)
from data.errors import UserError
from models.boxes import cxcywh_to_xyxy
from tests.support.toy_detector import BOXES, ToyDetector, perfect_map, toy_image, wrong_map

TRUTH = cxcywh_to_xyxy(torch.tensor(BOXES))
QUICK = ScoreOptions(steps=6, baseline="mean", samples=50)


def image(image_id: int = 1, labels: tuple[int, ...] = (0, 2)) -> ScoreImage:
    return ScoreImage(image_id, toy_image(), TRUTH[: len(labels)], torch.tensor(labels, dtype=torch.int64))


def judged(*methods: MapMethod, options: ScoreOptions = QUICK, count: int = 2) -> AttentionScores:
    one = [image(k + 1) for k in range(count)]
    return score_maps(ToyDetector().eval(), one, methods, num_classes=3, options=options, progress=False)


def test_the_perfect_map_is_perfect_and_the_opposite_one_is_not() -> None:
    scores = judged(MapMethod("perfect", perfect_map), MapMethod("wrong", wrong_map))
    assert scores.methods == ("perfect", "wrong", RANDOM, CENTRE)
    assert scores.values.shape == (4, 4, len(METRICS))
    of = {name: dict(zip(METRICS, scores.values[m].T, strict=True)) for m, name in enumerate(scores.methods)}
    areas = np.array([1 / 16, 1 / 8] * 2)
    np.testing.assert_allclose(of["perfect"]["energy"], 1 / areas)
    np.testing.assert_allclose(of["perfect"]["energy_all"], 16 / 3)
    assert (of["perfect"]["pointing"] == 1).all()
    assert (of["perfect"]["deletion"] < of["perfect"]["insertion"]).all()
    assert (of["wrong"]["energy"] == 0).all()
    assert (of["wrong"]["pointing"] == 0).all()
    assert (of["wrong"]["deletion"] > of["wrong"]["insertion"]).all()
    for name in (RANDOM, CENTRE):
        assert (of["perfect"]["deletion"] < of[name]["deletion"]).all()
        assert (of["perfect"]["insertion"] > of[name]["insertion"]).all()


def test_random_maps_score_as_chance_and_the_same_again() -> None:
    inside = coverage(TRUTH[:1], (32, 32))
    draw = random_maps(0)
    large = torch.zeros(1, 3, 32 * 16, 32 * 16)  # one random cell a pixel of the mask
    maps = [draw(nn.Identity(), large, 0, 0).double().numpy() for _ in range(40)]
    assert np.mean([energy_ratio(one, inside) for one in maps]) == pytest.approx(1, abs=0.03)
    assert np.mean([points_inside(one, inside) for one in maps]) == pytest.approx(1 / 16, abs=0.1)
    np.testing.assert_array_equal(judged().values, judged().values)
    other = judged(options=ScoreOptions(steps=6, baseline="mean", samples=50, seed=1))
    assert not np.array_equal(judged().values, other.values)


@given(
    st.tuples(*[st.floats(0, 0.9)] * 2), st.tuples(*[st.floats(0.02, 1)] * 2), st.integers(1, 40), st.integers(1, 40)
)
def test_coverage_is_the_boxs_area_and_a_flat_map_is_chance(
    corner: tuple[float, float], size: tuple[float, float], height: int, width: int
) -> None:
    x1, y1 = corner
    x2, y2 = min(x1 + size[0], 1), min(y1 + size[1], 1)
    inside = coverage(torch.tensor([[x1, y1, x2, y2]], dtype=torch.float64), (height, width))
    assert inside.shape == (height, width)
    assert inside.mean() == pytest.approx((x2 - x1) * (y2 - y1), rel=1e-6)
    assert inside.max() <= 1 + 1e-9
    assert energy_ratio(np.full((height, width), 0.3), inside) == pytest.approx(1)
    assert energy_ratio(np.zeros((height, width)), inside) == 1
    assert energy_ratio(inside, inside) >= 1 - 1e-9


def test_pointing_takes_the_mean_of_several_highest_places() -> None:
    inside = np.array([[1.0, 0.6], [0.4, 0.0]])
    assert points_inside(np.array([[1.0, 3.0], [2.0, 0.0]]), inside) == 1
    assert points_inside(np.array([[1.0, 0.0], [2.0, 0.0]]), inside) == 0
    assert points_inside(np.zeros((2, 2)), inside) == 0.5
    assert np.isnan(energy_ratio(np.ones((2, 2)), np.zeros((2, 2))))
    assert coverage(torch.zeros(0, 4), (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_the_centre_prior_is_highest_in_the_middle() -> None:
    prior = centre_prior(nn.Identity(), torch.zeros(1, 3, 9, 15), 0, 0)
    assert prior.shape == (9, 15)
    assert int(prior.argmax()) == 4 * 15 + 7
    torch.testing.assert_close(prior, prior.flip(0, 1))


def test_predictions_choose_boxes_by_score_once_each() -> None:
    boxes = torch.stack([TRUTH[0], TRUTH[0], TRUTH[1], TRUTH[0]])
    scores = torch.tensor([[0.5, 0.0], [0.8, 0.0], [0.9, 0.1], [0.2, 0.99]])
    truth = ScoreImage(7, toy_image(), TRUTH[[0, 0, 1, 1]], torch.tensor([0, 0, 0, 1]))
    matched = match_objects(Found(boxes, scores), truth, ScoreOptions())
    assert [(one.query, one.label, one.score) for one in matched] == [
        (1, 0, pytest.approx(0.8)),
        (0, 0, pytest.approx(0.5)),
        (2, 0, pytest.approx(0.9)),
    ]
    assert all(one.iou == pytest.approx(1) and one.image_id == 7 for one in matched)
    other_class = Found(TRUTH[:1], torch.tensor([[0.0, 0.7]]))  # as a baseline's detection of class 1
    assert match_objects(other_class, image(labels=(0,)), ScoreOptions(score_threshold=0)) == []
    none = Found(torch.zeros(0, 4), torch.zeros(0, 2))
    assert match_objects(none, truth, ScoreOptions()) == []
    empty = ScoreImage(7, toy_image(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert match_objects(Found(boxes, scores), empty, ScoreOptions()) == []


def test_one_map_for_all_objects_is_judged_once() -> None:
    def passes(draw: MapMethod) -> int:
        model = ToyDetector().eval()
        score_maps(model, [image()], [draw], num_classes=3, options=QUICK, progress=False)
        return model.num_images

    perturbed = 2 * (QUICK.steps - 1)
    assert passes(MapMethod("each", perfect_map)) - passes(MapMethod("all", centre_prior)) == perturbed


def test_a_map_of_the_same_weights_correlates_with_itself_and_noise_does_not() -> None:
    model = ToyDetector().eval()
    scores = score_maps(
        model,
        [image()],
        [MapMethod("perfect", perfect_map)],
        num_classes=3,
        options=QUICK,
        randomised=[RandomisedModel("same", model)],
        progress=False,
    )
    found = scores.estimates()
    assert found["perfect"]["randomised_same"].value == found[CENTRE]["randomised_same"].value == 1
    noise = found[RANDOM]["randomised_same"].value
    assert noise is not None
    assert noise < 1


def test_intervals_are_of_images_and_hold_the_mean() -> None:
    scores = judged(MapMethod("perfect", perfect_map), count=5)
    found = scores.estimates()[RANDOM]["deletion"]
    assert found.interval is not None
    assert found.value is not None
    assert found.interval.low <= found.value <= found.interval.high
    assert found.interval.low < found.interval.high
    assert found.num_objects == 10
    same = scores.estimates()["perfect"]["energy"]  # equal in all images: images are drawn, not objects
    assert same.interval is not None
    assert (same.interval.low, same.interval.high) == (pytest.approx(12), pytest.approx(12))
    against = scores.differences(CENTRE)
    assert set(against) == {"perfect", RANDOM}
    assert against["perfect"]["deletion"].value == pytest.approx(
        float((scores.values[0, :, 3] - scores.values[2, :, 3]).mean())
    )
    off = judged(options=ScoreOptions(steps=6, baseline="mean", samples=0))
    assert off.estimates()[RANDOM]["energy"].interval is None


def test_images_without_a_hit_are_counted_and_leave_no_objects() -> None:
    missed = image(2, labels=(1,))
    scores = score_maps(ToyDetector().eval(), [image(1), missed], [], num_classes=3, options=QUICK, progress=False)
    assert (scores.num_truths, len(scores.objects), scores.image_ids) == (3, 2, (1, 2))
    with pytest.raises(UserError, match=r"hits any of the 1 annotated boxes of 1 images .* Lower --min-score"):
        score_maps(ToyDetector().eval(), [missed], [], num_classes=3, options=QUICK, progress=False)


def test_faulty_methods_are_named() -> None:
    def negative(model: nn.Module, one: Tensor, query: int, label: int) -> Tensor:
        return -perfect_map(model, one, query, label)

    with pytest.raises(ValueError, match="method below: expected a finite map"):
        judged(MapMethod("below", negative))
    with pytest.raises(ValueError, match="names of methods repeat: random"):
        judged(MapMethod(RANDOM, perfect_map))


def test_options_out_of_range_are_all_named() -> None:
    with pytest.raises(UserError, match="--score out of range") as caught:
        ScoreOptions(
            steps=1, baseline="x", batch_size=0, score_threshold=1, iou_threshold=0, samples=-1, seed=-1  # type: ignore[arg-type]
        )  # fmt: skip
    assert len(caught.value.problems) == 7


@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 5))
def test_images_are_drawn_once_and_keep_their_order(available: int, count: int, seed: int) -> None:
    ids = np.arange(available) * 3
    chosen = choose_images(ids, count, seed)
    assert len(chosen) == min(available, count)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert set(chosen.tolist()) <= set(ids.tolist())
    np.testing.assert_array_equal(chosen, choose_images(ids, count, seed))
