"""Maps of the ViT and the decoder against their definitions and the pass they were taken from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.capture import Captured, capture
from attention.maps import (
    CLASS_TOKEN,
    box_steps,
    edge_distributions,
    fit_patch_colours,
    head_maps,
    otsu_threshold,
    patches_in_box,
    query_attention,
    rollout,
    sampling_points,
    similarity,
    token_at,
)
from models.boxes import cxcywh_to_xyxy
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def captured() -> Captured:
    model = tiny_model().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for block in model.backbone.vit.blocks:  # a random ViT attends nearly evenly
            block.attn.qkv.weight.mul_(20)
        for parameter in model.decoder.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return capture(model, torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)))


def test_head_maps_and_prefix_share_sum_to_one(captured: Captured) -> None:
    for tokens in ([CLASS_TOKEN], [1, 5, 7]):
        maps, to_prefix = head_maps(captured, 1, tokens)
        assert maps.shape == (2, 4, 6)
        np.testing.assert_allclose(maps.sum((1, 2)) + to_prefix, 1, atol=1e-6)
    expected = captured.vit_layers[1].rows(0, 0)[[1, 5, 7]].mean(0)[1:].view(4, 6)
    np.testing.assert_allclose(maps[0], expected, atol=1e-6)


def test_rollout_is_the_product_of_all_layers(captured: Captured) -> None:
    """The vector form against the matrix product of Abnar and Zuidema."""
    product = torch.eye(25)
    for layer in captured.vit_layers:
        attention = torch.stack([layer.rows(0, head) for head in range(layer.num_heads)]).mean(0)
        product = (0.5 * attention + 0.5 * torch.eye(25)) @ product
    np.testing.assert_allclose(rollout(captured, [CLASS_TOKEN]), product[0, 1:].view(4, 6), atol=1e-6)
    np.testing.assert_allclose(rollout(captured, [3, 4]), product[[3, 4], 1:].mean(0).view(4, 6), atol=1e-6)


def test_similarity_is_one_with_itself() -> None:
    features = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0)) + 30
    found = similarity(features, [7])
    assert found.shape == (3, 5) and found[1, 2] == pytest.approx(1, abs=1e-5)
    assert found.min() >= -1.00001 and found.ravel().argmax() == 7
    assert found.min() < 0, "what all patches share is taken away"


@given(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2))
def test_every_point_has_a_patch(x: float, y: float) -> None:
    assert 0 <= token_at((x, y), (3, 5)) < 15


def test_patches_in_a_box() -> None:
    assert patches_in_box((0, 0, 0.5, 1), (2, 4)) == [0, 1, 4, 5]
    assert patches_in_box((0.6, 0.6, 0.61, 0.61), (2, 4)) == [6], "smaller than a patch: the one it lies in"


def scene(seed: int, texture: float) -> tuple[np.ndarray, np.ndarray]:
    """Patches of a 10 x 10 image with a defect in the middle, on its own texture."""
    rng = np.random.default_rng(seed)
    defect = np.zeros((10, 10), bool)
    defect[4:7, 4:6] = True
    features = rng.normal(0, 0.05, (100, 6)) + texture * np.eye(6)[0]
    features[defect.ravel()] += np.array([0, 5, 0, 0, 0, 0]) + rng.normal(0, 1, (6, 6)) * [0, 0, 1, 0.5, 0.2, 0]
    return features.astype(np.float32), defect.ravel()


def test_foreground_is_what_departs_from_each_images_texture() -> None:
    images, defects = zip(*[scene(seed, texture) for seed, texture in ((0, 20.0), (1, -20.0))], strict=True)
    colours = fit_patch_colours(images)
    for features, defect in zip(images, defects, strict=True):
        shown, foreground = colours.colours(features)
        assert (foreground == defect).all()
        assert shown.shape == (100, 3) and shown.min() >= 0 and shown.max() <= 1
    assert sum(colours.explained) <= 1.0001
    again = fit_patch_colours(images)
    assert all(np.array_equal(getattr(colours, name), getattr(again, name)) for name in ("mean", "components", "low"))
    biggest = np.abs(colours.components).argmax(axis=1)
    assert (colours.components[range(3), biggest] > 0).all(), "stable signs"


def test_colours_of_equal_patches() -> None:
    shown, _ = fit_patch_colours([np.ones((9, 2), np.float32)]).colours(np.ones((9, 2), np.float32))
    assert np.isfinite(shown).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30))
def test_otsu_finds_the_best_cut(values: list[int]) -> None:
    x = np.array(values, float)

    def within(threshold: float) -> float:
        return sum(part.size * part.var() for part in (x[x <= threshold], x[x > threshold]) if part.size)

    best = min(within(cut) for cut in x)
    assert within(otsu_threshold(x)) == pytest.approx(best, abs=1e-6)


def test_edges_expect_the_final_box(captured: Captured) -> None:
    final = cxcywh_to_xyxy(captured.outputs["pred_boxes"][0])
    for query in (0, 7, 19):
        edges = edge_distributions(captured, query)
        assert list(edges) == ["left", "top", "right", "bottom"]
        np.testing.assert_allclose([edge.expected for edge in edges.values()], final[query], atol=1e-5)
        for edge in edges.values():
            assert edge.probabilities.sum() == pytest.approx(1, abs=1e-5) and edge.spread > 0
        left, _, right, _ = edges.values()
        assert left.positions[0] > left.positions[-1] and right.positions[0] < right.positions[-1], "outward"


def test_box_steps_end_at_the_final_box(captured: Captured) -> None:
    boxes, ious = box_steps(captured, 5)
    assert boxes.shape == (len(captured.cross_attention) + 1, 4)
    np.testing.assert_allclose(boxes[-1], cxcywh_to_xyxy(captured.outputs["pred_boxes"][0, 5]), atol=1e-6)
    assert ious[-1] == pytest.approx(1, abs=1e-6)
    assert ((ious >= 0) & (ious <= 1.0001)).all()


def test_sampling_weights_sum_to_one(captured: Captured) -> None:
    points = sampling_points(captured, 0, 3)
    assert points.weights.sum() == pytest.approx(1, abs=1e-5)
    assert points.points_xy.shape == (len(points.weights), 2) and set(points.levels) == {0, 1, 2}
    first = captured.cross_attention[0].locations[0, 3, 1, 0].numpy()
    np.testing.assert_array_equal(points.points_xy[len(points.weights) // 4 * 0 + 12], first)


def test_query_attention(captured: Captured) -> None:
    row = query_attention(captured, 1, 4)
    assert row.shape == (20,) and row.sum() == pytest.approx(1, abs=1e-5)
