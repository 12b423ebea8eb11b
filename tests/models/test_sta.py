"""The detail branch."""

from __future__ import annotations

import pytest
import torch

from models.sta import SpatialTuningAdapter
from tests.support.models import images


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 64), (160, 160)])
def test_maps_at_strides_8_16_32(height: int, width: int) -> None:
    branch = SpatialTuningAdapter(4)
    shapes = [tuple(x.shape) for x in branch(images(2, height, width))]
    assert shapes == [(2, c, height // s, width // s) for c, s in zip((8, 16, 16), (8, 16, 32), strict=True)]
    assert branch.channels == (8, 16, 16)


def test_default_initial_weights() -> None:
    torch.manual_seed(0)
    weight = SpatialTuningAdapter(16).conv4[1].weight
    bound = 1 / (64 * 9) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
