"""Noisy linear imputation against what it must give back, and against a direct solution of its system."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import spsolve

from attention import road


def holes(size: int) -> np.ndarray:
    """[3, size, size]: a small one, most of the image, none."""
    missing = np.zeros((3, size, size), dtype=bool)
    missing[0, 3:7, 5:6] = True
    missing[1, 1:-1, 2:-1] = True
    return missing


@pytest.mark.parametrize("size", [16, 67])
def test_a_linear_ramp_comes_back_and_what_is_known_stays(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float32) / size] * 2, indexing="ij")
    image = torch.stack([x, y, 2 * x - y])[None]
    noisy = road.impute(image, holes(size), seed=0)
    known = torch.from_numpy(~holes(size))[:, None].expand_as(noisy)
    assert torch.equal(noisy[known], image.expand_as(noisy)[known])
    assert float((noisy - image).abs().max()) < 0.06
    assert float((noisy - image)[~known].std()) == pytest.approx(0.01, rel=0.1)
    assert torch.equal(noisy, road.impute(image, holes(size), seed=0))
    monkeypatch.setattr(road, "_NOISE", 0)
    assert float((road.impute(image, holes(size), seed=0) - image).abs().max()) < 0.01, "as far as it is solved"
    monkeypatch.setattr(road, "_TOLERANCE", 1e-8)
    monkeypatch.setattr(road, "_MOST_ITERATIONS", 2000)
    torch.testing.assert_close(road.impute(image, holes(size), seed=0), image.expand_as(noisy), atol=1e-5, rtol=0)


def test_holes_at_the_rim_are_filled_as_a_direct_solution_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(road, "_NOISE", 0)
    image = torch.randn(1, 2, 40, 48, generator=torch.Generator().manual_seed(0))
    missing = np.zeros((2, 40, 48), dtype=bool)
    missing[0, :30, 10:], missing[1, 5:] = True, True
    monkeypatch.setattr(road, "_TOLERANCE", 1e-8)
    monkeypatch.setattr(road, "_MOST_ITERATIONS", 2000)
    found = road.impute(image, missing, seed=0)
    pixels = image.expand(2, -1, -1, -1).permute(0, 2, 3, 1).numpy().copy()
    matrix, sides = road._system(pixels, missing)
    pixels[missing] = spsolve(matrix.tocsc(), sides)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), pixels, atol=1e-4)
