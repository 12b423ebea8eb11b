"""The one contract between data, model, losses and evaluator.

Legend: B images in the batch, N boxes of one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor


class Target(TypedDict):
    """Ground truth of one image, as the network sees it."""

    labels: Tensor
    """int64 [N], contiguous class labels 0..C-1."""
    boxes: Tensor
    """float32 [N, 4], cxcywh in [0, 1] of the image."""
    area: Tensor
    """float32 [N], width x height in pixels of the current image."""


@dataclass
class Batch:
    """A stacked batch; normalisation happens on the device, so images stay uint8 until then."""

    images: Tensor
    """uint8 [B, 3, H, W], RGB."""
    targets: list[Target]
    image_ids: list[int]
    orig_sizes_wh: Tensor
    """int64 [B, 2], width and height of the original images in pixels."""

    @property
    def num_boxes(self) -> int:
        """Boxes in the batch; read from shapes, so it never waits for a device."""
        return sum(target["labels"].shape[0] for target in self.targets)

    def pin_memory(self) -> Batch:
        """Called by the DataLoader when `pin_memory` is on."""
        targets = [
            Target(labels=t["labels"].pin_memory(), boxes=t["boxes"].pin_memory(), area=t["area"].pin_memory())
            for t in self.targets
        ]
        return Batch(self.images.pin_memory(), targets, self.image_ids, self.orig_sizes_wh.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`, asynchronously where the memory is pinned."""
        targets = [
            Target(
                labels=t["labels"].to(device, non_blocking=True),
                boxes=t["boxes"].to(device, non_blocking=True),
                area=t["area"].to(device, non_blocking=True),
            )
            for t in self.targets
        ]
        images = self.images.to(device, non_blocking=True)
        return Batch(images, targets, self.image_ids, self.orig_sizes_wh.to(device, non_blocking=True))
