"""Deletion and insertion: does the score depend on the pixels that a map calls important?

Pixels are replaced in the order of the map. Deletion starts from the image, insertion from the image without
information; a good map makes the score fall, or rise, early (RISE, Petsiuk et al. 2018; for detectors D-RISE 2021).

Legend: H x W pixels of the network's input, S steps, K detections, C classes, N objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import Tensor, nn

from data.types import FloatArray, IntArray
from models.boxes import cxcywh_to_xyxy, paired_iou

Baseline = Literal["blur", "mean"]

_BLUR_SHARE = 1 / 16
"""Standard deviation of the blur as a share of the shorter side: wide enough that no defect survives it."""


@dataclass(frozen=True)
class Found:
    """What a detector says of one image."""

    boxes: Tensor
    """float32 [K, 4], xyxy in [0, 1]; they may leave the image."""
    scores: Tensor
    """float32 [K, C] in [0, 1]; a baseline's detections score 0 for all classes but their own."""


@torch.no_grad()
def detect(model: nn.Module, images: Tensor, num_classes: int) -> list[Found]:
    """Evaluation outputs of any detector in one form; row k is query k, or detection k. On the CPU."""
    outputs: Any = model(images)
    if isinstance(outputs, Mapping):
        boxes = cxcywh_to_xyxy(outputs["pred_boxes"].float()).cpu()
        return [Found(*one) for one in zip(boxes, outputs["pred_logits"].float().sigmoid().cpu(), strict=True)]
    found = []
    for one in outputs:
        scores = torch.zeros(len(one["scores"]), num_classes)
        scores.scatter_(1, one["labels"].cpu()[:, None], one["scores"].float().cpu()[:, None])
        found.append(Found(one["boxes"].float().cpu(), scores))
    return found


def object_score(found: Found, box: Tensor, label: int) -> float:
    """How sure the detector is of this object: the best IoU x class score of any detection.

    A query has no identity across images: in a changed image the same query may look at something else, so the object
    is followed by its place, as in D-RISE.
    """
    if not len(found.boxes):
        return 0.0
    return float((paired_iou(found.boxes, box) * found.scores[:, label]).max())


def without_information(image: Tensor, baseline: Baseline) -> Tensor:
    """float [1, 3, H, W] -> the same shape: strongly blurred, or of its mean colour everywhere."""
    if baseline == "mean":
        return image.mean(dim=(2, 3), keepdim=True).expand_as(image).clone()
    sigma = min(image.shape[-2:]) * _BLUR_SHARE
    pixels = image[0].permute(1, 2, 0).cpu().numpy()
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigmaX=sigma, borderType=cv2.BORDER_REFLECT)
    return torch.from_numpy(np.ascontiguousarray(blurred)).permute(2, 0, 1)[None].to(image)


def step_shares(steps: int) -> FloatArray:
    """[S + 1] shares of the pixels from 0 to 1, closer at the start, where good maps differ."""
    shares: FloatArray = np.linspace(0.0, 1.0, steps + 1) ** 2
    return shares


def pixel_ranks(pixel_map: FloatArray, tie_break: FloatArray) -> IntArray:
    """[H, W] -> int64 [H, W]: 0 for the most important pixel. Equal ones come in the order of `tie_break` [H, W]."""
    order = np.lexsort((tie_break.ravel(), -pixel_map.ravel()))
    ranks = np.empty(order.size, dtype=np.int64)
    ranks[order] = np.arange(order.size)
    return ranks.reshape(pixel_map.shape)


@dataclass(frozen=True)
class Curves:
    """Scores of one object along the way, each [S + 1] over `step_shares`."""

    deletion: FloatArray
    insertion: FloatArray


class Perturber:
    """One image with its empty counterpart; runs the detector on mixtures of the two.

    Args:
        model: In evaluation mode.
        image: float [1, 3, H, W], normalised.
        objects: Box (xyxy in [0, 1]) and label of every object to follow.
        num_classes: C.
        steps: S.
        baseline: What removed pixels become.
        batch_size: Images in one pass.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        objects: Sequence[tuple[Tensor, int]],
        *,
        num_classes: int,
        steps: int,
        baseline: Baseline,
        batch_size: int,
    ) -> None:
        self._model, self._objects, self._num_classes = model, objects, num_classes
        self._batch_size = batch_size
        self._shares = step_shares(steps)
        self._full, self._empty = image, without_information(image, baseline)
        ends = detect(model, torch.cat([self._full, self._empty]), num_classes)
        self._full_scores, self._empty_scores = (self._scores_of(found) for found in ends)

    def curves(self, ranks: IntArray) -> list[Curves]:
        """One per object, for pixels replaced in the order of `ranks` [H, W]."""
        counts = [round(share * ranks.size) for share in self._shares[1:-1]]
        inner = np.array([self._scores_of(found) for found in self._run(torch.from_numpy(ranks), counts)])
        deleted, inserted = np.split(inner.reshape(2 * len(counts), len(self._objects)), 2)
        full, empty = np.array(self._full_scores)[None], np.array(self._empty_scores)[None]
        deletion, insertion = np.concatenate([full, deleted, empty]), np.concatenate([empty, inserted, full])
        return [Curves(deletion[:, k], insertion[:, k]) for k in range(len(self._objects))]

    def _run(self, ranks: Tensor, counts: Sequence[int]) -> Iterator[Found]:
        """All deletions, then all insertions; only one batch of images exists at a time."""
        ranks = ranks.to(self._full.device)
        plan = [(count, self._empty, self._full) for count in counts]
        plan += [(count, self._full, self._empty) for count in counts]
        for start in range(0, len(plan), self._batch_size):
            batch = [torch.where(ranks < n, first, then) for n, first, then in plan[start : start + self._batch_size]]
            yield from detect(self._model, torch.cat(batch), self._num_classes)

    def _scores_of(self, found: Found) -> list[float]:
        return [object_score(found, box, label) for box, label in self._objects]


def area_under(curve: FloatArray) -> float:
    """Of a curve over `step_shares`, in [0, 1] for scores in [0, 1]."""
    return float(trapezoid(curve, step_shares(len(curve) - 1)))
