"""Costs, assignment and GO union, against the golden indices and scipy.

Legend: S output sets, B images, Q queries, C classes, N boxes of the batch.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.config import MatcherConfig
from models.matcher import HungarianMatcher, Pairs, assign, go_union
from tests.support.criterion_cases import Targets, golden_case, made_up_targets

CONFIG = MatcherConfig(change_matcher=True, iou_order_alpha=4.0, matcher_change_epoch=100)
PerImage = list[list[list[int]]]


def match(sets: list[dict[str, Tensor]], targets: Targets, epoch: int, config: MatcherConfig = CONFIG) -> Pairs:
    logits = torch.stack([output["pred_logits"] for output in sets])
    boxes = torch.stack([output["pred_boxes"] for output in sets])
    counts = [len(t["labels"]) for t in targets]
    image_of_box = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    labels, gt = torch.cat([t["labels"] for t in targets]), torch.cat([t["boxes"] for t in targets])
    costs = HungarianMatcher(config).costs(logits, boxes, labels, gt, image_of_box, epoch)
    assert costs.shape == (len(sets), len(labels), logits.shape[2]) and not costs.requires_grad
    return assign(costs.numpy(), counts)


def per_image(pairs: Pairs, s: int, targets: Targets, num_queries: int) -> PerImage:
    """In the golden files' form: per image [query indices, box indices]."""
    first, result = 0, []
    for image, target in enumerate(targets):
        here = pairs.query[s] // num_queries == image
        result.append([(pairs.query[s][here] % num_queries).tolist(), (pairs.box[s][here] - first).tolist()])
        first += len(target["labels"])
    return result


@pytest.mark.parametrize("epoch", [0, 100])
def test_indices_equal_the_original(epoch: int) -> None:
    outputs, targets, numbers = golden_case()
    sets = [outputs, *outputs["aux_outputs"], outputs["pre_outputs"], *outputs["enc_aux_outputs"]]
    pairs = match(sets, targets, epoch)
    expected = numbers[f"epoch_{epoch}"]
    for s, name in enumerate(["last", "aux.0", "aux.1", "aux.2", "pre", "enc.0"]):
        assert per_image(pairs, s, targets, 60) == expected["matched"][name]
    union = per_image(go_union(pairs), 0, targets, 60)
    assert [[list(pair) for pair in zip(*image, strict=True)] for image in union] == expected["go"]


@pytest.mark.parametrize("epoch", [0, 100])
def test_nan_scores_equal_the_original(epoch: int) -> None:
    outputs, targets, numbers = golden_case()
    logits = outputs["pred_logits"].detach().clone()
    for image, query, label in numbers["nan_matcher"]["set_to_nan"]:
        logits[image, query, label] = torch.nan
    pairs = match([{"pred_logits": logits, "pred_boxes": outputs["pred_boxes"].detach()}], targets, epoch)
    assert per_image(pairs, 0, targets, 60) == numbers["nan_matcher"][f"epoch_{epoch}"]


def test_everything_nan_still_matches_every_box() -> None:
    targets = made_up_targets([3, 2], 4, torch.Generator().manual_seed(0))
    output = {"pred_logits": torch.full((2, 5, 4), torch.nan), "pred_boxes": torch.full((2, 5, 4), torch.nan)}
    for epoch in (0, 100):
        pairs = match([output], targets, epoch)
        assert sorted(pairs.box[0].tolist()) == [0, 1, 2, 3, 4]


def test_infinite_boxes_cost_a_finite_price() -> None:
    output = {"pred_logits": torch.zeros(1, 2, 3), "pred_boxes": torch.tensor([[[torch.inf] * 4, [0.5] * 4]])}
    target = {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.5, 0.4]])}
    pairs = match([output], [target], 0)
    assert np.isfinite(pairs.query).all() and len(pairs.query[0]) == 1


def test_change_matcher_off_keeps_the_first_cost() -> None:
    outputs, targets, numbers = golden_case()
    pairs = match([outputs], targets, 100, CONFIG.model_copy(update={"change_matcher": False}))
    assert per_image(pairs, 0, targets, 60) == numbers["epoch_0"]["matched"]["last"]


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(0, 6), max_size=4), num_queries=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_assignment_with_ties_is_scipys(counts: list[int], num_queries: int, seed: int) -> None:
    costs = np.random.default_rng(seed).integers(0, 3, (2, sum(counts), num_queries)).astype(np.float32)
    pairs = assign(costs, counts)
    for s in range(2):
        first, expected = 0, []
        for image, n in enumerate(counts):
            query, box = linear_sum_assignment(costs[s, first : first + n].T)
            expected += zip((query + image * num_queries).tolist(), (box + first).tolist(), strict=True)
            first += n
        assert list(zip(pairs.query[s].tolist(), pairs.box[s].tolist(), strict=True)) == expected


def test_the_union_counts_votes_over_the_sets() -> None:
    """Query 0: box 1 has two votes; query 1: one vote each, the smaller box; query 5: box 4 alone."""
    union = go_union(Pairs(np.array([[0, 1], [0, 1], [5, 0]]), np.array([[2, 3], [1, 2], [4, 1]])))
    assert (union.query.tolist(), union.box.tolist()) == ([[0, 1, 5]], [[1, 2, 4]])
    union = go_union(Pairs(np.array([[4], [4], [4], [4]]), np.array([[7], [3], [7], [3]])))
    assert (union.query.tolist(), union.box.tolist()) == ([[4]], [[3]]), "a tie goes to the smaller box"
