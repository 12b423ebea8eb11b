"""Distinct queries, position relation and repeated targets; all without effect in the official model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from models.boxes import cxcywh_to_xyxy
from models.config import CriterionConfig, MatcherConfig
from models.criterion import build_criterion
from models.decoder import CANDIDATES_PER_QUERY
from models.deploy import deploy
from models.detections import Detections
from models.detector import DEIM, build_deim
from models.distinct import PositionRelation, distinct_first, more_confident, without_repeats
from models.matcher import assign
from tests.support.models import images, shake, targets, tensors_of, tiny_config


def crowd(count: int, seed: int) -> Tensor:
    """[1, count, 4] cxcywh: clusters of overlapping boxes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(6, 2, generator=generator)[torch.randint(0, 6, (count,), generator=generator)]
    boxes = torch.cat([centres, torch.full((count, 2), 0.2)], dim=-1)
    return (boxes + 0.04 * torch.rand(count, 4, generator=generator))[None]


@pytest.mark.parametrize("most_iou", [0.5, 0.7, 0.8, 0.9])
def test_the_distinct_come_first_as_greedy_suppression_finds_them(most_iou: float) -> None:
    for seed in range(10):
        boxes = crowd(80, seed)
        scores = torch.arange(80, 0, -1).float()
        kept = nms(cxcywh_to_xyxy(boxes[0]), scores, most_iou).tolist()
        others = [place for place in range(80) if place not in kept]
        assert distinct_first(boxes, most_iou, 80)[0].tolist() == kept + others
        assert distinct_first(boxes, most_iou, 5)[0].tolist() == (kept + others)[:5]


@pytest.mark.parametrize("most_iou", [0.5, 0.7, 0.9])
def test_a_graph_suppresses_what_prediction_suppresses(most_iou: float) -> None:
    """Crowds of several classes, and the worst case: 60 boxes in a row, each of which overlaps the next."""
    row = torch.tensor([[1.0 + 10 * (1 - most_iou) * 0.99 / (1 + most_iou) * place, 5, 10, 10] for place in range(60)])
    for boxes in [*(crowd(60, seed)[0] for seed in range(4)), row]:
        labels = torch.zeros(60).long() if boxes is row else torch.arange(60) % 3
        plain = labels, cxcywh_to_xyxy(boxes), torch.linspace(0.9, 0.1, 60)
        expected = Detections.of(*(plain[k] for k in (1, 2, 0))).without_repeats(most_iou)
        found = [part[1] for part in without_repeats(*(torch.stack([part, part]) for part in plain), most_iou)]
        assert 1 < len(expected) < 60 and (found[2][len(expected) :] == 0).all() and len(found[0]) == 60
        for mine, right in zip(found, (expected.labels, expected.boxes_xyxy, expected.scores), strict=True):
            np.testing.assert_allclose(mine[: len(expected)], right, rtol=1e-6)


def built(**decoder: object) -> DEIM:
    torch.manual_seed(0)
    return build_deim(tiny_config(**{f"DEIMTransformer__{key}": value for key, value in decoder.items()}))


def test_selected_queries_repeat_no_better_one() -> None:
    model = built(distinct_iou=0.5, num_queries=8).eval()
    shake(model)
    maps = model.encoder(model.backbone(torch.randn(2, 3, 128, 128)))
    chosen = model.decoder.predict(maps, None).encoder.boxes
    boxes = cxcywh_to_xyxy(chosen)
    for image in boxes:
        alone = nms(image, torch.arange(8, 0, -1).float(), 0.5).tolist()
        assert alone == sorted(alone) and len(alone) > 1
        assert alone == list(range(len(alone))), "those that repeat one, needed to fill up, come last"
    assert CANDIDATES_PER_QUERY * 8 <= 16 * 16 + 8 * 8 + 4 * 4


def test_a_fresh_relation_changes_nothing_and_learns() -> None:
    plain, related = built().eval(), built(relation_bias=True).eval()
    missing = related.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert set(missing) == {"decoder.position_relation.proj.weight", "decoder.position_relation.proj.bias"}
    for first, second in zip(tensors_of(plain(images())), tensors_of(related(images())), strict=True):
        torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-6)
    shake(related)
    outputs = related.train()(images(), targets(2, 1))
    outputs["pred_boxes"].sum().backward()
    gradient = related.decoder.position_relation.proj.weight.grad  # type: ignore[union-attr]
    assert gradient is not None and gradient.abs().max() > 0


def test_the_relation_of_two_boxes() -> None:
    """Equal boxes: log(1) = 0 four times; twice the size: log 2 at both sizes, with the other sign the other way."""
    relation = PositionRelation(2)
    seen: list[Tensor] = []
    relation.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    relation(torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.1, 0.1]]]))
    waves = seen[0].view(2, 2, 4, 2, 8)
    expected = torch.tensor([[np.log(1.5), 0, np.log(2), np.log(2)], [np.log(2), 0, -np.log(2), -np.log(2)]])
    angles = expected.float()[..., None] * relation.frequencies
    torch.testing.assert_close(waves[0, 1], torch.stack([angles[0].sin(), angles[0].cos()], dim=1), rtol=0, atol=2e-4)
    torch.testing.assert_close(waves[1, 0], torch.stack([angles[1].sin(), angles[1].cos()], dim=1), rtol=0, atol=2e-4)
    assert (waves[0, 0, :, 0] == 0).all() and (waves[0, 0, :, 1] == 1).all()


def test_repeated_targets_find_several_queries() -> None:
    costs = np.array([[[1, 2, 3, 4, 9, 9], [9, 9, 4, 3, 2, 1]]] * 2, dtype=np.float32)
    pairs = assign(costs, [2], [1, 3])
    assert sorted(zip(pairs.query[1], pairs.box[1], strict=True)) == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    assert set(zip(pairs.query[0], pairs.box[0], strict=True)) == {(0, 0), (5, 1)}
    few = assign(costs[:, :, :3], [2], [1, 3])
    assert few.query.shape == (2, 3) and set(few.query[1]) == {0, 1, 2}


def test_one_to_many_losses() -> None:
    """The last layer's class loss is that of one-to-one matching; those of the others change."""
    config = tiny_config()
    many = CriterionConfig(
        **config.DEIMCriterion.model_dump(exclude={"matcher"}), matcher=MatcherConfig(repeat_targets=3)
    )
    torch.manual_seed(0)
    model = build_deim(config).train()
    shake(model)
    truth = targets(3, 1)
    outputs = model(images(), truth)
    losses = [
        build_criterion(config.model_copy(update={"DEIMCriterion": section}))(outputs, truth, epoch=0)
        for section in (config.DEIMCriterion, many)
    ]
    assert losses[0].keys() == losses[1].keys()
    torch.testing.assert_close(losses[0]["loss_mal"], losses[1]["loss_mal"])
    assert not torch.allclose(losses[0]["loss_mal_aux_0"], losses[1]["loss_mal_aux_0"])
    assert all(torch.isfinite(value) for value in losses[1].values())


def test_who_may_see_whom() -> None:
    logits = torch.tensor([[[0.5, -1.0], [2.0, 0.0], [-3.0, 0.5]]])  # the second leads, the other two are level
    expected = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 1, 1]]).bool()
    assert torch.equal(more_confident(logits), expected[None, None])


def test_in_an_ordered_last_layer_the_better_do_not_depend_on_the_worse() -> None:
    model = built(ordered_last=True, num_queries=6).eval()
    shake(model)
    layer = model.decoder.decoder.layers[-1]
    seen: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.extend((inputs[0].clone(), inputs[4])))
    outputs = model(images(1))
    target, mask = seen
    order = mask[0, 0].isfinite().sum(dim=-1).argsort()  # the best sees itself alone
    assert mask[0, 0, order[0]].isfinite().nonzero().tolist() == [[int(order[0])]]
    changed = target.clone()
    changed[0, order[-1]] += 1
    attended = [layer.self_attn(x, torch.zeros_like(x), mask) for x in (target, changed)]
    torch.testing.assert_close(attended[0][0, order[:-1]], attended[1][0, order[:-1]])
    for first, second in zip(tensors_of(outputs), tensors_of(deploy(model)(images(1))), strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5)
