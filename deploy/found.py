"""What was found in one image.

Legend: N detections, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import batched_nms

from analysis.overlaps import BoolArray
from engine.coco_metrics import FloatArray, IntArray

SCORE_DECIMALS = 9
"""Of scores in files, as the evaluation rounds them."""


@dataclass(frozen=True, eq=False)
class Found:
    """Detections of one image, best first."""

    scores: FloatArray
    """[N], in [0, 1]."""
    labels: IntArray
    """[N], contiguous labels 0..C-1."""
    boxes_xyxy: FloatArray
    """[N, 4], pixels of the image; they may leave it."""

    @classmethod
    def empty(cls) -> Found:
        """Nothing."""
        return cls(np.empty(0), np.empty(0, dtype=np.int64), np.empty((0, 4)))

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, rows: IntArray | BoolArray) -> Found:
        """Some of them, in the order of `rows`."""
        return Found(self.scores[rows], self.labels[rows], self.boxes_xyxy[rows])

    def above(self, thresholds: FloatArray) -> Found:
        """Those whose score reaches their class's threshold [C]. Scores are judged and written with nine decimals: the
        detection that a threshold of results.json was taken from must not fall below it."""
        return self.rows(self.scores.round(SCORE_DECIMALS) >= thresholds[self.labels])

    def without_repeats(self, most_iou: float) -> Found:
        """Non-maximum suppression within each class: none of two boxes of one class overlaps more than `most_iou`."""
        boxes, scores, labels = (torch.from_numpy(part) for part in (self.boxes_xyxy, self.scores, self.labels))
        return self.rows(batched_nms(boxes, scores, labels, most_iou).numpy())

    def clipped(self, size_wh: tuple[int, int]) -> Found:
        """Boxes cut off at the edges of an image of this size; those wholly outside are dropped."""
        boxes = np.clip(self.boxes_xyxy, 0, np.array([*size_wh, *size_wh], dtype=np.float64))
        inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return Found(self.scores, self.labels, boxes).rows(inside)


def joined(parts: Sequence[Found]) -> Found:
    """Several in one, in the given order."""
    if not parts:
        return Found.empty()
    return Found(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.boxes_xyxy for part in parts]),
    )
