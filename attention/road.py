"""Noisy linear imputation, which takes pixels away without leaving their shape (ROAD, Rong et al., ICML 2022).

Every missing pixel is to be the weighted mean of its eight neighbours: a sparse linear system. It is solved by
conjugate gradients, one system for all steps, from coarse to fine (cascadic multigrid, Bornemann and Deuflhard 1996): a
direct solution of a hole as large as the image takes longer than the detector.

Legend: S steps, C channels, H x W pixels, n missing pixels of all steps.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import cg
from torch import Tensor

from data.types import BoolArray, FloatArray

_WEIGHTS = {(y, x): 1 / 12 if y and x else 1 / 6 for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x}
_NOISE = 0.01
"""Standard deviation, in units of the network's input, as in the authors' code."""
_COARSEST_PX = 16
_TOLERANCE, _MOST_ITERATIONS = 1e-4, 50
"""Errors stay well below the noise."""


def impute(image: Tensor, missing: BoolArray, seed: int) -> Tensor:
    """Fill what is missing [S, H, W] of an image float [1, C, H, W] in: [S, C, H, W], with a little noise there."""
    generator = torch.Generator().manual_seed(seed)
    filled = _filled(image.cpu().float().expand(len(missing), -1, -1, -1), torch.from_numpy(missing))
    noise = torch.randn(filled.shape, generator=generator) * _NOISE
    return (filled + noise * torch.from_numpy(missing)[:, None]).to(image)


def _filled(images: Tensor, missing: Tensor) -> Tensor:
    """[S, C, H, W], [S, H, W] -> [S, C, H, W], without noise."""
    size, known = images.shape[-2:], (~missing[:, None]).float()
    if min(size) >= 2 * _COARSEST_PX:
        present = F.avg_pool2d(known, 2, ceil_mode=True)
        coarse = F.avg_pool2d(images * known, 2, ceil_mode=True) / present.clamp(min=1e-6)
        start = F.interpolate(_filled(coarse, present[:, 0] == 0), size=size, mode="bilinear", align_corners=False)
    else:
        start = ((images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)).expand_as(images)
    filled, holes = images.permute(0, 2, 3, 1).numpy().copy(), missing.numpy()
    matrix, sides = _system(filled, holes)
    guesses = start.permute(0, 2, 3, 1).numpy()[holes]
    pairs = zip(sides.T, guesses.T, strict=True)
    solved = [cg(matrix, b, x, rtol=_TOLERANCE, maxiter=_MOST_ITERATIONS)[0] for b, x in pairs]
    filled[holes] = np.stack(solved, axis=1)
    return torch.from_numpy(filled).permute(0, 3, 1, 2)


def _system(images: FloatArray, missing: BoolArray) -> tuple[csr_matrix, FloatArray]:
    """[S, H, W, C], [S, H, W] -> [n, n] and the right sides [n, C]; neighbours outside the image do not count."""
    _, height, width = missing.shape
    count = int(missing.sum())
    numbers = np.full(missing.shape, -1)
    numbers[missing] = np.arange(count)
    numbers = np.pad(numbers, ((0, 0), (1, 1), (1, 1)), constant_values=-2)
    values = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    degrees, sides = np.zeros(count), np.zeros((count, images.shape[-1]))
    rows, columns, weights = [np.arange(count)], [np.arange(count)], [degrees]
    for (y, x), weight in _WEIGHTS.items():
        at = (slice(None), slice(1 + y, height + 1 + y), slice(1 + x, width + 1 + x))
        neighbours = numbers[at][missing]
        degrees += weight * (neighbours > -2)
        sides += weight * values[at][missing] * (neighbours == -1)[:, None]
        unknown = np.flatnonzero(neighbours >= 0)
        rows.append(unknown)
        columns.append(neighbours[unknown])
        weights.append(np.full(len(unknown), -weight))
    entries = np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))
    return csr_matrix(entries, shape=(count, count)), sides
