"""D-RISE: what a detection rests on, found by hiding random parts of the image (Petsiuk et al., CVPR 2021).

Nothing but the detector's outputs is needed, so it is the reference for maps that look inside.

Legend: N masks, K detections of a masked image, C classes, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.capture import Predictions, predictions_of
from data.progress import progress_bar
from models.boxes import paired_iou

_GRID = 8
"""Cells along a side of the image; the paper has 16, for thousands of masks."""


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

    @torch.no_grad()
    def _look(self, model: nn.Module, image: Tensor) -> tuple[Predictions, list[Predictions]]:
        """What it says of the image and of each masked copy, hidden parts in the image's mean colour."""
        hidden = image.mean(dim=(2, 3), keepdim=True)
        seen: list[Predictions] = []
        masks, total = self._masks((image.shape[-2], image.shape[-1])), -(-len(self._cells) // self._batch_size)
        for batch in progress_bar(masks, "D-RISE", unit="batch", total=total, show=None if self._progress else False):
            seen += predictions_of(model(hidden + batch.to(image) * (image - hidden)), self._num_classes)
        return predictions_of(model(image), self._num_classes)[0], seen


def similarity(predictions: Predictions, box: Tensor, scores: Tensor) -> float:
    """Return the best IoU x cosine of the class scores [C] of any detection; DETRs have no objectness to count too."""
    if not len(predictions.boxes):
        return 0.0
    alike = F.cosine_similarity(predictions.scores, scores[None], dim=1)
    return float((paired_iou(predictions.boxes, box) * alike).max())
