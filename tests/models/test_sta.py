"""The detail branch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.sta import SpatialTuningAdapter
from tests.support.models import images


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 64), (160, 160)])
def test_maps_at_strides_8_16_32(height: int, width: int) -> None:
    branch = SpatialTuningAdapter(4)
    shapes = [tuple(x.shape) for x in branch(images(2, height, width))]
    assert shapes == [(2, c, height // s, width // s) for c, s in zip((8, 16, 16), (8, 16, 32), strict=True)]
    assert branch.channels == (8, 16, 16)


def test_maps_are_taken_before_the_next_activation() -> None:
    torch.manual_seed(0)
    branch = SpatialTuningAdapter(4).eval()
    x = images(1)
    conv = {key: value for key, value in branch.state_dict().items() if value.ndim == 4}
    scale = 1 / (1 + 1e-5) ** 0.5  # a fresh BatchNorm in evaluation mode
    stem = F.gelu(F.conv2d(x, conv["stem.0.weight"], stride=2, padding=1) * scale)
    stride8 = F.conv2d(F.max_pool2d(stem, 3, 2, 1), conv["conv2.0.weight"], stride=2, padding=1) * scale
    stride16 = F.conv2d(F.gelu(stride8), conv["conv3.1.weight"], stride=2, padding=1) * scale
    stride32 = F.conv2d(F.gelu(stride16), conv["conv4.1.weight"], stride=2, padding=1) * scale
    for found, expected in zip(branch(x), (stride8, stride16, stride32), strict=True):
        torch.testing.assert_close(found, expected)


def test_default_initial_weights() -> None:
    torch.manual_seed(0)
    weight = SpatialTuningAdapter(16).conv4[1].weight
    bound = 1 / (64 * 9) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
