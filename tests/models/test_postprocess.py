"""Detections from logits and boxes."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from models.postprocess import PostProcessor

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "postprocess.safetensors")


def test_equals_the_original() -> None:
    detections = PostProcessor(num_classes=6, num_top_queries=300)(GOLDEN, GOLDEN["orig_sizes"])
    assert len(detections) == 2
    for image, found in enumerate(detections):
        assert np.array_equal(found.labels, GOLDEN["labels"][image])
        np.testing.assert_allclose(found.scores, GOLDEN["scores"][image], rtol=1.3e-6, atol=1e-5)
        np.testing.assert_allclose(found.boxes_xyxy, GOLDEN["boxes"][image], rtol=1.3e-6, atol=1e-5)


def test_width_scales_x_and_height_scales_y() -> None:
    outputs = {
        "pred_logits": torch.tensor([[[0.0, 3.0]]]),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.4]]]),
    }
    (found,) = PostProcessor(2, 1)(outputs, torch.tensor([[200, 100]]))
    np.testing.assert_allclose(found.boxes_xyxy, [[80.0, 30.0, 120.0, 70.0]], rtol=1e-6)
    assert found.labels.tolist() == [1]


def test_fewer_scores_than_detections_wanted() -> None:
    outputs = {"pred_logits": torch.randn(3, 5, 4), "pred_boxes": torch.rand(3, 5, 4)}
    detections = PostProcessor(4, 300)(outputs, torch.tensor([[10, 10]] * 3))
    for found in detections:
        assert found.scores.shape == (20,) and found.boxes_xyxy.shape == (20, 4)
        assert (np.diff(found.scores) <= 0).all()


def test_half_precision_becomes_float32() -> None:
    outputs = {"pred_logits": torch.randn(1, 5, 4).bfloat16(), "pred_boxes": torch.rand(1, 5, 4)}
    _, boxes, scores = PostProcessor(4, 3).batched(outputs, torch.tensor([[10, 10]]))
    assert scores.dtype == boxes.dtype == torch.float32
