"""Detections from logits and boxes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.postprocess import Detections, PostProcessor, without_repeats

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "postprocess.safetensors")


def test_equals_the_original() -> None:
    detections = PostProcessor(num_classes=6, num_top_queries=300)(GOLDEN, GOLDEN["orig_sizes"])
    assert len(detections) == 2
    for image, found in enumerate(detections):
        assert torch.equal(found["labels"], GOLDEN["labels"][image])
        torch.testing.assert_close(found["scores"], GOLDEN["scores"][image])
        torch.testing.assert_close(found["boxes"], GOLDEN["boxes"][image])


def test_width_scales_x_and_height_scales_y() -> None:
    outputs = {
        "pred_logits": torch.tensor([[[0.0, 3.0]]]),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.4]]]),
    }
    (found,) = PostProcessor(2, 1)(outputs, torch.tensor([[200, 100]]))
    torch.testing.assert_close(found["boxes"], torch.tensor([[80.0, 30.0, 120.0, 70.0]]))
    assert found["labels"].tolist() == [1]


def test_fewer_scores_than_detections_wanted() -> None:
    outputs = {"pred_logits": torch.randn(3, 5, 4), "pred_boxes": torch.rand(3, 5, 4)}
    detections = PostProcessor(4, 300)(outputs, torch.tensor([[10, 10]] * 3))
    for found in detections:
        assert found["scores"].shape == (20,) and found["boxes"].shape == (20, 4)
        assert torch.equal(found["scores"], found["scores"].sort(descending=True).values)


def test_a_query_may_appear_with_several_labels() -> None:
    outputs = {"pred_logits": torch.tensor([[[2.0, 1.0], [-5.0, -5.0]]]), "pred_boxes": torch.rand(1, 2, 4)}
    (found,) = PostProcessor(2, 2)(outputs, torch.tensor([[10, 20]]))
    assert found["labels"].tolist() == [0, 1]
    assert torch.equal(found["boxes"][0], found["boxes"][1])


def test_half_precision_becomes_float32() -> None:
    outputs = {"pred_logits": torch.randn(1, 5, 4).bfloat16(), "pred_boxes": torch.rand(1, 5, 4)}
    (found,) = PostProcessor(4, 3)(outputs, torch.tensor([[10, 10]]))
    assert found["scores"].dtype == found["boxes"].dtype == torch.float32


def test_another_class_count_is_an_error() -> None:
    outputs = {"pred_logits": torch.randn(1, 5, 4), "pred_boxes": torch.rand(1, 5, 4)}
    with pytest.raises(ValueError, match="the model has 4 classes, PostProcessor expects 6"):
        PostProcessor(6, 3)(outputs, torch.tensor([[10, 10]]))


def test_repeats_of_one_class_are_dropped() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [0, 0, 10, 4]])
    found = Detections(scores=torch.tensor([0.9, 0.8, 0.7, 0.6]), labels=torch.tensor([1, 1, 0, 1]), boxes=boxes)
    (kept,) = without_repeats([found], most_iou=0.5)
    assert kept["labels"].tolist() == [1, 0, 1], "the second overlaps the first by 0.9"
    torch.testing.assert_close(kept["scores"], torch.tensor([0.9, 0.7, 0.6]))
    assert torch.equal(kept["boxes"], boxes[[0, 2, 3]])
    (empty,) = without_repeats([Detections(scores=boxes[:0, 0], labels=found["labels"][:0], boxes=boxes[:0])], 0.5)
    assert len(empty["scores"]) == 0
