import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from data.colour import (
    Brightness,
    Change,
    ChannelOrder,
    Contrast,
    GreyCurve,
    Hue,
    Saturation,
    apply_changes,
    sample_of,
)
from data.types import PixelArray

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 110, 3), dtype=np.uint8)


def _torchvision(pixels: PixelArray, change: Change) -> PixelArray:
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    match change:
        case Brightness(factor):
            image = F.adjust_brightness(image, factor)
        case Contrast(factor):
            image = F.adjust_contrast(image, factor)
        case Saturation(factor):
            image = F.adjust_saturation(image, factor)
        case Hue(turn):
            image = F.adjust_hue(image, turn)
        case ChannelOrder(order):
            image = image[list(order)]
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "change",
    [
        *(Brightness(f) for f in (0.875, 1.0, 1.125)),
        *(Contrast(f) for f in (0.5, 1.0, 1.5)),
        *(Saturation(f) for f in (0.5, 1.0, 1.5)),
        *(Hue(turn) for turn in (-0.05, -0.01, 0.0, 0.03, 0.05, 0.4)),
        *(ChannelOrder(order) for order in ((0, 1, 2), (2, 0, 1), (1, 0, 2))),
    ],
)
def test_each_change_is_torchvisions_within_two_levels(change: Change) -> None:
    before = PIXELS.copy()
    changed = apply_changes(PIXELS, [change], sample_of(PIXELS))
    difference = np.abs(changed.astype(int) - _torchvision(PIXELS, change))
    assert changed.dtype == np.uint8 and difference.max() <= 2 and difference.mean() < 0.6
    np.testing.assert_array_equal(PIXELS, before)


@pytest.mark.parametrize("seed", range(8))
def test_chains_in_torchvisions_order(seed: int) -> None:
    """torchvision rounds after every step, and a contrast or saturation of 1.5 widens what rounding left."""
    rng = np.random.default_rng(seed)
    middle: list[Change] = [
        Contrast(rng.uniform(0.5, 1.5)),
        Saturation(rng.uniform(0.5, 1.5)),
        Hue(rng.uniform(-0.05, 0.05)),
    ]
    middle = middle if seed % 2 else [*middle[1:], middle[0]]
    changes = [Brightness(rng.uniform(0.875, 1.125)), *middle, ChannelOrder((1, 2, 0))]
    expected = PIXELS
    for change in changes:
        expected = _torchvision(expected, change)
    difference = np.abs(apply_changes(PIXELS, changes, sample_of(PIXELS)).astype(int) - expected)
    assert difference.mean() < 1 and np.quantile(difference, 0.99) <= 3 and difference.max() <= 8


def test_contrast_goes_by_the_whole_image() -> None:
    """A dark corner of a bright image gets darker, with the mean as it is after the changes before."""
    pixels = np.full((40, 40, 3), 200, dtype=np.uint8)
    pixels[:10, :10] = 40
    part = apply_changes(pixels[:10, :10], [Brightness(0.5), Contrast(1.5)], sample_of(pixels))
    whole = apply_changes(pixels, [Brightness(0.5), Contrast(1.5)], sample_of(pixels))
    np.testing.assert_array_equal(part, whole[:10, :10])
    assert part.max() == 0


def test_grey_curve() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    curve = apply_changes(ramp, [GreyCurve(0.5, 0.0)], ramp)[0, :, 1].astype(int)
    assert (np.diff(curve) >= 0).all() and curve[0] == 0 and curve[255] == 255
    assert curve[64] == round(255 * (64 / 255) ** 0.5)
    shifted = apply_changes(ramp, [GreyCurve(1.0, 0.1)], ramp)[0, :, 0].astype(int)
    assert np.abs(shifted - (np.arange(256) + 25.5).clip(0, 255)).max() <= 0.5
