"""What the decoder's views say, against the pass they were taken from."""

import numpy as np
import pytest
import torch

from attention.capture import Captured, capture
from attention.decoder_maps import (
    box_steps,
    edge_distributions,
    object_attention,
    query_attention,
    sampling_points,
)
from attention.objects import PredictedObject, all_objects, choose_objects
from data.errors import UserError
from models.boxes import cxcywh_to_xyxy
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def captured() -> Captured:
    model = tiny_model().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return capture(model, torch.randn(1, 3, 64, 64, generator=generator))


def test_edges_expect_the_final_box(captured: Captured) -> None:
    final = cxcywh_to_xyxy(captured.outputs["pred_boxes"][0])
    for query in (0, 7, 19):
        edges = edge_distributions(captured, query)
        assert [edge.edge for edge in edges] == ["left", "top", "right", "bottom"]
        np.testing.assert_allclose([edge.expected for edge in edges], final[query], atol=1e-5)
        for edge in edges:
            assert edge.probabilities.sum() == pytest.approx(1, abs=1e-5) and edge.spread > 0
        left, _, right, _ = edges
        assert left.positions[0] > left.positions[-1] and right.positions[0] < right.positions[-1], "outward"


def test_box_steps_end_at_the_final_box(captured: Captured) -> None:
    steps = box_steps(captured, 5)
    assert steps.boxes_xyxy.shape == (len(captured.cross_attention) + 1, 4)
    assert steps.iou_with_last[-1] == pytest.approx(1, abs=1e-6)
    assert ((steps.iou_with_last >= 0) & (steps.iou_with_last <= 1.0001)).all()


def test_sampling_weights_sum_to_one(captured: Captured) -> None:
    points = sampling_points(captured, 0, 3)
    assert points.weights.sum() == pytest.approx(1, abs=1e-5)
    assert points.points_xy.shape == (len(points.weights), 2) and set(points.levels) == {0, 1, 2}
    first = captured.cross_attention[0].locations[0, 3, 1, 0].numpy()
    np.testing.assert_array_equal(points.points_xy[len(points.weights) // 4 * 0 + 12], first)


def test_query_attention(captured: Captured) -> None:
    row = query_attention(captured, 1, 4)
    assert row.shape == (20,) and row.sum() == pytest.approx(1, abs=1e-5)
    matrices = object_attention(captured, [4, 9])
    assert matrices.shape == (len(captured.query_attention), 2, 2)
    assert matrices[1, 0].tolist() == pytest.approx(row[[4, 9]].tolist())


def test_objects_come_best_first(captured: Captured) -> None:
    found = all_objects(captured.outputs)
    assert len(found) == 20 and [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert choose_objects(found, min_score=1.0) == [], "what was not detected is not drawn"
    assert [one.query for one in choose_objects(found, queries=[9, 2, 9])] == [9, 2]
    assert len(choose_objects(found, top=2, min_score=0)) == 2
    with pytest.raises(UserError, match="--query 20 31: no such query; they go from 0 to 19"):
        choose_objects(found, queries=[20, 3, 31])


def test_predictions_of_the_same_thing_are_drawn_once() -> None:
    best = PredictedObject(3, 0, 0.9, (0.1, 0.1, 0.5, 0.5))
    again = PredictedObject(7, 0, 0.8, (0.1, 0.1, 0.52, 0.5))
    other_class = PredictedObject(1, 1, 0.7, best.box_xyxy)
    elsewhere = PredictedObject(2, 0, 0.6, (0.3, 0.1, 0.7, 0.5))
    found = [best, again, other_class, elsewhere]
    assert choose_objects(found) == [best, other_class, elsewhere]
    assert choose_objects(found, top=2) == [best, other_class]
    assert choose_objects(found, queries=[3, 7]) == [best, again], "who names a query gets it"


def test_objects_of_a_baseline() -> None:
    outputs = [{"scores": torch.tensor([0.2, 0.9]), "labels": torch.tensor([1, 0]), "boxes": torch.rand(2, 4)}]
    assert [(one.query, one.label) for one in all_objects(outputs)] == [(1, 0), (0, 1)]
    nothing = [{"scores": torch.empty(0), "labels": torch.empty(0, dtype=torch.int64), "boxes": torch.empty(0, 4)}]
    assert choose_objects(all_objects(nothing)) == []
