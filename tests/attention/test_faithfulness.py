"""Faithfulness: of a detector whose evidence is known, what chance gives, and of detectors with new weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from attention.capture import Predictions
from attention.evidence import DrawMap
from attention.faithfulness import (
    CENTRE,
    METRICS,
    RANDOM,
    ScoreImage,
    ScoreOptions,
    Scores,
    centre_prior,
    choose_images,
    closest,
    coverage,
    energy_ratio,
    find_objects,
    points_inside,
    random_maps,
    randomise,
    rank_correlation,
    score_maps,
)
from attention.perturbation import predict
from data.errors import UserError
from models.baselines import TorchvisionDetector
from models.detector import build_detector
from tests.support.baselines import NUM_CLASSES, small_baseline
from tests.support.models import images, shake, tiny_config
from tests.support.text_fusion import section, texts
from tests.support.toy_detector import TRUTH, ToyDetector, perfect_map, toy_image, wrong_map

QUICK = ScoreOptions(steps=6, baseline="mean", samples=50)
PARTS = {"heads": "decoder.", "neck": "encoder.", "backbone": "backbone."}


def image(image_id: int = 1, labels: tuple[int, ...] = (0, 2)) -> ScoreImage:
    return ScoreImage(image_id, toy_image(), TRUTH[: len(labels)], torch.tensor(labels, dtype=torch.int64))


def judged(
    methods: dict[str, DrawMap], options: ScoreOptions = QUICK, count: int = 2, randomised: nn.Module | None = None
) -> Scores:
    new = {} if randomised is None else {"same": randomised}
    one = [image(k + 1) for k in range(count)]
    return score_maps(
        ToyDetector().eval(), one, methods, num_classes=3, options=options, randomised=new, progress=False
    )


def test_the_perfect_map_is_perfect_and_the_opposite_one_is_not() -> None:
    scores = judged({"perfect": perfect_map, "wrong": wrong_map})
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
    assert (of["perfect"]["road"] < of["wrong"]["road"]).all()
    for name in (RANDOM, CENTRE):
        assert (of["perfect"]["deletion"] < of[name]["deletion"]).all()
        assert (of["perfect"]["insertion"] > of[name]["insertion"]).all()
        assert (of["perfect"]["road"] < of[name]["road"]).all()


def test_random_maps_score_as_chance_and_the_same_again() -> None:
    inside = coverage(TRUTH[:1], (32, 32))
    draw = random_maps(0)
    large = torch.zeros(1, 3, 32 * 16, 32 * 16)  # one random cell a pixel of the mask
    maps = [draw(nn.Identity(), large, 0, 0).double().numpy() for _ in range(40)]
    assert np.mean([energy_ratio(one, inside) for one in maps]) == pytest.approx(1, abs=0.03)
    assert np.mean([points_inside(one, inside) for one in maps]) == pytest.approx(1 / 16, abs=0.1)
    np.testing.assert_array_equal(judged({}).values, judged({}).values)
    other = judged({}, ScoreOptions(steps=6, baseline="mean", samples=50, seed=1))
    assert not np.array_equal(judged({}).values, other.values)


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


def test_false_alarms_and_misses_are_found_and_explained_through_the_best_query() -> None:
    boxes = torch.stack([TRUTH[0], TRUTH[0] + 0.01, TRUTH[1], TRUTH[0], TRUTH[1] - 0.1])
    scores = torch.tensor([[0.1, 0.8], [0.1, 0.7], [0.9, 0.0], [0.2, 0.0], [0.0, 0.1]])
    truth = ScoreImage(7, toy_image(), TRUTH[[0, 1, 1]], torch.tensor([0, 0, 1]))
    every = ScoreOptions(on=("tp", "fp", "fn"))
    found = [(one.kind, one.query, one.label) for one in find_objects(Predictions(boxes, scores), truth, every)]
    # Query 0 fires as class 1 where class 0 is; query 1 shows the same thing; box 0 is met best by query 3, box 2 by 4.
    assert found == [("tp", 2, 0), ("fp", 0, 1), ("fn", 3, 0), ("fn", 4, 1)]
    false, missed, _ = find_objects(Predictions(boxes, scores), truth, ScoreOptions(on=("fp", "fn")))
    assert torch.equal(false.truth, boxes[0]) and torch.equal(false.box, boxes[0]) and false.iou == 0
    assert torch.equal(missed.truth, TRUTH[0]) and torch.equal(missed.box, TRUTH[0]) and missed.score < 0.3
    nothing = Predictions(torch.zeros(0, 4), torch.zeros(0, 2))
    assert find_objects(nothing, truth, every) == []
    clean = ScoreImage(7, toy_image(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert [one.query for one in find_objects(Predictions(boxes, scores), clean, every)] == [2, 0], "best first"
    crowd = clean._replace(crowd_boxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]), crowd_labels=torch.tensor([0]))
    found = [(one.query, one.label) for one in find_objects(Predictions(boxes, scores), crowd, every)]
    assert found == [(0, 1)], "nothing in a crowd of its class is a false alarm"
    far = Predictions(torch.tensor([[0.9, 0.0, 1.0, 0.1]]), torch.tensor([[0.1, 0.1]]))
    assert find_objects(far, truth, every) == [], "nothing overlaps the missed boxes: nothing to explain"


def test_kinds_are_judged_together_and_told_apart() -> None:
    options = QUICK.model_copy(update={"on": ("tp", "fn"), "score_threshold": 0.3})
    scores = judged({"perfect": perfect_map, "wrong": wrong_map}, options, count=1)
    assert [one.kind for one in scores.objects] == ["tp", "tp"] and not scores.of("fn").objects
    assert scores.of("fn").values.shape == (4, 0, len(METRICS))
    assert (scores.seconds > 0).all() and len(scores.seconds) == 4
    with pytest.raises(UserError, match="--on fp: there are none in 2 images with 4 annotated boxes .* another --min"):
        judged({}, QUICK.model_copy(update={"on": ("fp",)}))


def test_predictions_choose_boxes_by_score_once_each() -> None:
    boxes = torch.stack([TRUTH[0], TRUTH[0], TRUTH[1], TRUTH[0]])
    scores = torch.tensor([[0.5, 0.0], [0.8, 0.0], [0.9, 0.1], [0.2, 0.99]])
    truth = ScoreImage(7, toy_image(), TRUTH[[0, 0, 1, 1]], torch.tensor([0, 0, 0, 1]))
    matched = find_objects(Predictions(boxes, scores), truth, ScoreOptions())
    assert [(one.query, one.label, one.score) for one in matched] == [
        (1, 0, pytest.approx(0.8)),
        (0, 0, pytest.approx(0.5)),
        (2, 0, pytest.approx(0.9)),
    ]
    assert all(one.iou == pytest.approx(1) and one.image_id == 7 for one in matched)
    other_class = Predictions(TRUTH[:1], torch.tensor([[0.0, 0.7]]))  # as a baseline's detection of class 1
    assert find_objects(other_class, image(labels=(0,)), ScoreOptions(score_threshold=0)) == []
    none = Predictions(torch.zeros(0, 4), torch.zeros(0, 2))
    assert find_objects(none, truth, ScoreOptions()) == []
    empty = ScoreImage(7, toy_image(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert find_objects(Predictions(boxes, scores), empty, ScoreOptions()) == []


def test_one_map_for_all_objects_is_judged_once() -> None:
    def passes(draw: DrawMap) -> int:
        model = ToyDetector().eval()
        score_maps(model, [image()], {"map": draw}, num_classes=3, options=QUICK, progress=False)
        return model.num_images

    assert passes(perfect_map) - passes(centre_prior) == 3 * (QUICK.steps - 1)


def test_a_map_of_the_same_weights_correlates_with_itself_and_noise_does_not() -> None:
    estimates = judged({"perfect": perfect_map}, count=1, randomised=ToyDetector().eval()).estimates()
    assert estimates["perfect"]["randomised_same"].value == estimates[CENTRE]["randomised_same"].value == 1
    noise = estimates[RANDOM]["randomised_same"].value
    assert noise is not None and noise < 1


def test_intervals_are_of_images_and_hold_the_mean() -> None:
    scores = judged({"perfect": perfect_map}, count=5)
    one = scores.estimates()[RANDOM]["deletion"]
    assert one.interval is not None and one.value is not None
    assert one.interval.low <= one.value <= one.interval.high
    assert one.interval.low < one.interval.high
    assert one.num_objects == 10
    same = scores.estimates()["perfect"]["energy"]  # equal in all images: images are drawn, not objects
    assert same.interval is not None
    assert (same.interval.low, same.interval.high) == (pytest.approx(12), pytest.approx(12))
    against = scores.estimates(CENTRE)
    assert set(against) == {"perfect", RANDOM}
    assert against["perfect"]["deletion"].value == pytest.approx(
        float((scores.values[0, :, 3] - scores.values[2, :, 3]).mean())
    )
    off = judged({}, ScoreOptions(steps=6, baseline="mean", samples=0))
    assert off.estimates()[RANDOM]["energy"].interval is None


def test_images_without_a_hit_are_counted_and_leave_no_objects() -> None:
    def scored(*given: ScoreImage) -> Scores:
        return score_maps(ToyDetector().eval(), given, {}, num_classes=3, options=QUICK, progress=False)

    missed = image(2, labels=(1,))
    scores = scored(image(1), missed)
    assert (scores.num_truths, len(scores.objects), scores.image_ids) == (3, 2, (1, 2))
    with pytest.raises(UserError, match=r"hits any of the 1 annotated boxes of 1 images .* Lower --min-score"):
        scored(missed)


def test_faulty_methods_are_named() -> None:
    def negative(model: nn.Module, one: Tensor, query: int, label: int) -> Tensor:
        return -perfect_map(model, one, query, label)

    with pytest.raises(ValueError, match="method below: expected a finite map"):
        judged({"below": negative})


def test_options_out_of_range_are_all_named() -> None:
    with pytest.raises(UserError, match="--score out of range") as caught:
        ScoreOptions(
            steps=1, baseline="x", batch_size=0, score_threshold=1, iou_threshold=0, samples=-1, seed=-1,
            on=(), drise_masks=-1, sample=5  # type: ignore[arg-type]
        )  # fmt: skip
    assert len(caught.value.problems) == 10
    assert caught.value.problems[3] == "--min-score 1: expected 0 to below 1, e.g. 0.3"
    assert caught.value.problems[9] == "sample: no such option; did you mean samples?"
    assert ScoreOptions.of({"sample": 5, "steps": 3}) == ScoreOptions(steps=3), "a script has options of others, too"


@given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 5))
def test_images_are_drawn_once_and_keep_their_order(available: int, count: int, seed: int) -> None:
    ids = np.arange(available) * 3
    chosen = choose_images(ids, count, seed)
    assert len(chosen) == min(available, count)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert set(chosen.tolist()) <= set(ids.tolist())
    np.testing.assert_array_equal(chosen, choose_images(ids, count, seed))


def test_a_baselines_detections_score_for_their_own_class() -> None:
    model = small_baseline("fasterrcnn_resnet18").eval()
    predictions = predict(model, images(1, 64, 96), NUM_CLASSES)[0]
    raw = model(images(1, 64, 96))[0]
    assert torch.equal(predictions.scores.argmax(dim=1), raw["labels"])
    assert torch.equal(predictions.scores.sum(dim=1), raw["scores"])
    assert not predictions.scores.requires_grad


def test_parts_get_new_weights_one_after_the_other_and_the_texts_stay() -> None:
    config = tiny_config(MultimodalFusion=section())
    model = build_detector(config)
    assert not isinstance(model, TorchvisionDetector)
    assert model.text_fusion is not None
    model.text_fusion.texts.set(*texts())
    shake(model)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    copies = randomise(model, config, seed=3)
    assert torch.equal(random_state, torch.get_rng_state())
    assert list(copies) == list(PARTS)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    done: list[str] = ["text_fusion."]
    for name, other in copies.items():
        done.append(PARTS[name])
        after = other.state_dict()
        same = {key for key in learned if torch.equal(after[key], before[key])}
        assert same == {key for key in learned if not key.startswith(tuple(done))}
        assert torch.equal(after["text_fusion.texts.embeds"], before["text_fusion.texts.embeds"])
        assert bool(torch.isfinite(other(images(1))["pred_logits"]).all())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    again = randomise(model, config, seed=3)["backbone"].state_dict()
    assert all(torch.equal(value, again[key]) for key, value in copies["backbone"].state_dict().items())


def test_the_nearest_detection_is_asked_about() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 0.7, 0.7]])
    predictions = Predictions(boxes, torch.tensor([[0.9, 0.0], [0.2, 0.1]]))
    assert closest(predictions, torch.tensor([0.55, 0.5, 0.7, 0.7]), 1) == (1, 1)
    assert closest(predictions, torch.tensor([0.3, 0.3, 0.34, 0.34]), 0) == (0, 0)  # none overlaps: the nearer one
    assert closest(predictions, boxes[0], 1) == (0, 0)  # a baseline's detection has its own class only
    assert closest(Predictions(torch.zeros(0, 4), torch.zeros(0, 2)), boxes[0], 1) is None


@given(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), st.floats(0.5, 3))
def test_only_ranks_count(values: list[float], power: float) -> None:
    one = torch.tensor(values).reshape(2, 3)
    assert rank_correlation(one, one) == 1
    order = torch.arange(6.0).reshape(2, 3)
    assert rank_correlation(order, order**power) == pytest.approx(1)
    assert rank_correlation(order, -order) == pytest.approx(-1)
    assert -1 <= rank_correlation(one, order) <= 1
    assert rank_correlation(torch.full((2, 3), 2.0), order) == 0
    assert not np.isnan(rank_correlation(torch.zeros(2, 3), torch.ones(2, 3)))
