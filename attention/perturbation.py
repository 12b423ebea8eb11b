"""What a detector says when pixels are hidden: D-RISE's maps, and the curves of deletion and insertion.

- D-RISE (Petsiuk et al., CVPR 2021) hides random parts of the image. Nothing but the detector's outputs is needed, so
  it is the reference for maps that look inside.
- Deletion and insertion take pixels away, or bring them back, in the order of a map (see `attention.faithfulness`).
- Noisy linear imputation takes pixels away without leaving their shape (ROAD, Rong et al., ICML 2022): every missing
  pixel is to be the weighted mean of its eight neighbours, a sparse linear system. It is solved by conjugate gradients,
  one system for all steps, from coarse to fine (cascadic multigrid, Bornemann and Deuflhard 1996): a direct solution of
  a hole as large as the image takes longer than the detector.

Legend: N masks, K detections of an image, C classes, S steps, D channels, H x W pixels, n missing pixels of all steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy.integrate import trapezoid
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import cg
from torch import Tensor, nn

from attention.capture import Predictions, predictions_of
from data.progress import progress_bar
from data.types import BoolArray, FloatArray, IntArray
from models.boxes import paired_iou

Baseline = Literal["blur", "mean"]

_GRID = 8
"""Cells of D-RISE along a side of the image; the paper has 16, for thousands of masks."""
_BLUR_SHARE = 1 / 16
"""Standard deviation of the blur as a share of the shorter side: wide enough that no defect survives it."""
_WEIGHTS = {(y, x): 1 / 12 if y and x else 1 / 6 for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x}
_NOISE = 0.01
"""Standard deviation, in units of the network's input, as in the authors' code."""
_COARSEST_PX = 16
_TOLERANCE, _MOST_ITERATIONS = 1e-4, 50
"""Errors stay well below the noise."""


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, num_classes: int) -> list[Predictions]:
    """Run a detector of any kind on normalised images; one entry an image."""
    return predictions_of(model(images), num_classes)


class DRise:
    """Draws maps of any detector's queries or detections, as `attention.faithfulness.DrawMap`.

    The same masks serve all images and detections. What a model says of an image's masked copies is kept until another
    image comes: N passes a model and image, however many detections are explained.
    """

    def __init__(
        self, num_masks: int, num_classes: int, *, seed: int = 0, batch_size: int = 8, progress: bool = False
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._cells = (torch.rand(num_masks, 1, _GRID + 1, _GRID + 1, generator=generator) < 0.5).float()
        self._shifts = torch.rand(num_masks, 2, generator=generator).tolist()
        self._num_classes, self._batch_size, self._progress = num_classes, batch_size, progress
        self._image, self._seen = torch.empty(0), dict[int, tuple[Predictions, list[Predictions]]]()

    def __call__(self, model: nn.Module, image: Tensor, query: int, _label: int) -> Tensor:
        """Return [H, W], >= 0: mean of the masks weighted by the similarity of the best detection under each, less
        their plain mean, which is chance."""
        if image is not self._image:
            self._image, self._seen = image, {}
        if id(model) not in self._seen:
            self._seen[id(model)] = self._look(model, image)
        whole, masked = self._seen[id(model)]
        similar = torch.tensor([similarity(one, whole.boxes[query], whole.scores[query]) for one in masked])
        weights, size_hw = similar - similar.mean(), (image.shape[-2], image.shape[-1])
        batches = zip(weights.split(self._batch_size), self._masks(size_hw), strict=True)
        total = sum((torch.einsum("n,nhw->hw", share, masks[:, 0]) for share, masks in batches), torch.zeros(size_hw))
        return total.clamp(min=0)

    def _masks(self, size_hw: tuple[int, int]) -> Iterator[Tensor]:
        """[batch, 1, H, W] each, 1 keeps: cells enlarged smoothly, shifted by up to a cell."""
        cell = [-(-side // _GRID) for side in size_hw]
        for start in range(0, len(self._cells), self._batch_size):
            part = slice(start, start + self._batch_size)
            large = F.interpolate(self._cells[part], size=[side * (_GRID + 1) for side in cell], mode="bilinear")
            corners = [(int(y * cell[0]), int(x * cell[1])) for y, x in self._shifts[part]]
            pairs = zip(large, corners, strict=True)
            yield torch.stack([one[:, y : y + size_hw[0], x : x + size_hw[1]] for one, (y, x) in pairs])

    def _look(self, model: nn.Module, image: Tensor) -> tuple[Predictions, list[Predictions]]:
        """What it says of the image and of each masked copy, hidden parts in the image's mean colour."""
        hidden = image.mean(dim=(2, 3), keepdim=True)
        seen: list[Predictions] = []
        masks, total = self._masks((image.shape[-2], image.shape[-1])), -(-len(self._cells) // self._batch_size)
        for batch in progress_bar(masks, "D-RISE", unit="batch", total=total, show=None if self._progress else False):
            seen += predict(model, hidden + batch.to(image) * (image - hidden), self._num_classes)
        return predict(model, image, self._num_classes)[0], seen


def similarity(predictions: Predictions, box: Tensor, scores: Tensor) -> float:
    """Return the best IoU x cosine of the class scores [C] of any detection; DETRs have no objectness to count too."""
    if not len(predictions.boxes):
        return 0.0
    alike = F.cosine_similarity(predictions.scores, scores[None], dim=1)
    return float((paired_iou(predictions.boxes, box) * alike).max())


class Perturber:
    """Runs the detector on mixtures of an image [1, 3, H, W] and its counterpart without information, and follows
    `objects`, a box and a label each."""

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        objects: Sequence[tuple[Tensor, int]],
        num_classes: int,
        *,
        steps: int = 12,
        baseline: Baseline = "blur",
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        self._model, self._objects, self._num_classes = model, objects, num_classes
        self._batch_size, self._shares, self._seed = batch_size, step_shares(steps), seed
        self._full, self._empty = image, without_information(image, baseline)
        ends = [self._full, self._empty, without_information(image, "mean")]
        self._full_scores, self._empty_scores, self._mean_scores = self._scores(ends)

    def curves(self, ranks: IntArray) -> FloatArray:
        """Return scores over `step_shares`: [3, S + 1, objects], pixels replaced in the order of `ranks` [H, W].

        Deletion, insertion, and deletion by imputation, which ends at the mean colour: from nothing nothing follows.
        """
        order = torch.from_numpy(ranks).to(self._full.device)
        counts = [round(share * ranks.size) for share in self._shares[1:-1]]
        pairs = ((self._empty, self._full), (self._full, self._empty))
        mixed = (torch.where(order < count, first, then) for first, then in pairs for count in counts)
        imputed = impute(self._full, ranks < np.array(counts)[:, None, None], self._seed).split(1)
        deleted, inserted, filled = np.split(self._scores(chain(mixed, imputed)), 3)
        full, empty, mean = self._full_scores, self._empty_scores, self._mean_scores
        curves = ((full, deleted, empty), (empty, inserted, full), (full, filled, mean))
        return np.stack([np.stack([first, *between, last]) for first, between, last in curves])

    def _scores(self, images: Iterable[Tensor]) -> FloatArray:
        """[images, objects]; only one batch of images exists at a time."""
        rows, images = [], iter(images)
        while batch := list(islice(images, self._batch_size)):
            for predictions in predict(self._model, torch.cat(batch), self._num_classes):
                rows.append([object_score(predictions, box, label) for box, label in self._objects])
        return np.array(rows)


def object_score(predictions: Predictions, box: Tensor, label: int) -> float:
    """Tell how sure the detector is of an object: the best IoU x class score of any detection.

    A query has no identity across images: in a changed image the same query may look at something else, so the object
    is followed by its place, as in D-RISE.
    """
    if not len(predictions.boxes):
        return 0.0
    return float((paired_iou(predictions.boxes, box) * predictions.scores[:, label]).max())


def without_information(image: Tensor, baseline: Baseline) -> Tensor:
    """Blur float [1, 3, H, W] strongly, or give it its mean colour everywhere."""
    if baseline == "mean":
        return image.mean(dim=(2, 3), keepdim=True).expand_as(image).clone()
    sigma = min(image.shape[-2:]) * _BLUR_SHARE
    pixels = image[0].permute(1, 2, 0).cpu().numpy()
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REFLECT)
    return torch.from_numpy(np.ascontiguousarray(blurred)).permute(2, 0, 1)[None].to(image)


def step_shares(steps: int) -> FloatArray:
    """Return [S + 1] shares of the pixels from 0 to 1, closer at the start, where good maps differ."""
    shares: FloatArray = np.linspace(0.0, 1.0, steps + 1) ** 2
    return shares


def area_under(curve: FloatArray) -> float:
    """Integrate a curve over `step_shares`; in [0, 1] for scores in [0, 1]."""
    return float(trapezoid(curve, step_shares(len(curve) - 1)))


def pixel_ranks(pixel_map: FloatArray, tie_break: FloatArray) -> IntArray:
    """[H, W] -> int64 [H, W]: 0 for the most important pixel. Equal ones come in the order of `tie_break` [H, W]."""
    order = np.lexsort((tie_break.ravel(), -pixel_map.ravel()))
    ranks = np.empty(order.size, dtype=np.int64)
    ranks[order] = np.arange(order.size)
    return ranks.reshape(pixel_map.shape)


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
