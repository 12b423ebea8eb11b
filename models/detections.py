"""What a detector says of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data.types import BoolArray, FloatArray, IntArray

SCORE_DECIMALS = 9
"""Of scores in files and judgements."""


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one image, best first, on the host. Legend: N detections, C classes."""

    boxes_xyxy: FloatArray
    """[N, 4], pixels of the original image; they may leave it."""
    scores: FloatArray
    """[N], in [0, 1]."""
    labels: IntArray
    """[N], contiguous labels 0..C-1."""
    is_whole: bool = True
    """False: some were not finite, and are left out."""

    @classmethod
    def of(cls, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> Detections:
        """Take tensors of any device and type."""
        boxes, values, classes = (
            tensor.detach().cpu().numpy() for tensor in (boxes_xyxy.double(), scores.double(), labels.long())
        )
        return cls(boxes, values, classes)

    @classmethod
    def empty(cls) -> Detections:
        """Return no detections."""
        return cls(np.empty((0, 4)), np.empty(0), np.empty(0, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """Put several in one, in the given order."""
        whole = [cls.empty(), *parts]
        columns = ([getattr(part, name) for part in whole] for name in ("boxes_xyxy", "scores", "labels"))
        boxes, scores, labels = map(np.concatenate, columns)
        return cls(boxes, scores, labels, all(part.is_whole for part in parts))

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, rows: IntArray | BoolArray | slice) -> Detections:
        """Pick some, in the order of `rows`."""
        return replace(self, boxes_xyxy=self.boxes_xyxy[rows], scores=self.scores[rows], labels=self.labels[rows])

    def above(self, thresholds: FloatArray) -> Detections:
        """Keep those whose score reaches their class's threshold [C]. Scores are judged and written with nine
        decimals: the detection that a threshold of results.json was taken from must not fall below it."""
        return self.rows(self.scores.round(SCORE_DECIMALS) >= thresholds[self.labels])

    def without_repeats(self, most_iou: float) -> Detections:
        """Suppress repeats: of boxes of one class that overlap more than `most_iou`, the best is kept.

        Not part of DEIMv2, whose one-to-one training is to make it superfluous; after few epochs it is not yet.
        """
        from torchvision.ops import batched_nms  # torchvision takes as long to load as torch

        boxes, scores, labels = (torch.from_numpy(part) for part in (self.boxes_xyxy, self.scores, self.labels))
        return self.rows(batched_nms(boxes, scores, labels, most_iou).numpy())

    def rescored(self, scores: FloatArray) -> Detections:
        """Give them other scores [N], best first again; equal ones keep their order."""
        return replace(self, scores=scores).rows(np.argsort(-scores, kind="stable"))

    def clipped(self, size_wh: tuple[int, int]) -> Detections:
        """Cut boxes off at the edges of an image of this size; those wholly outside are dropped."""
        boxes = np.clip(self.boxes_xyxy, 0, np.array([*size_wh, *size_wh], dtype=np.float64))
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return replace(self, boxes_xyxy=boxes).rows(inside)
