"""Maps of the ViT against their definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.backbone_maps import (
    CLASS_TOKEN,
    fit_patch_colours,
    head_maps,
    otsu_threshold,
    patches_in_box,
    rollout,
    similarity,
    token_at,
)
from attention.capture import Captured, capture
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def captured() -> Captured:
    model = tiny_model().eval()
    with torch.no_grad():  # a random ViT attends nearly evenly
        for block in model.backbone.vit.blocks:
            block.attn.qkv.weight.mul_(20)
    return capture(model, torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2)))


def test_head_maps_and_prefix_share_sum_to_one(captured: Captured) -> None:
    for tokens in ([CLASS_TOKEN], [1, 5, 7]):
        found = head_maps(captured, 1, tokens, image=1)
        assert found.maps.shape == (2, 4, 6)
        np.testing.assert_allclose(found.maps.sum((1, 2)) + found.to_prefix, 1, atol=1e-6)
    expected = captured.vit_layers[1].rows(1, 0)[[1, 5, 7]].mean(0)[1:].view(4, 6)
    np.testing.assert_allclose(found.maps[0], expected, atol=1e-6)


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
