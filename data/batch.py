"""The one contract between data, model, losses and evaluator.

Legend: B images in the batch, N boxes of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NotRequired, TypedDict, cast

import numpy.typing as npt
import torch
from torch import Tensor

from data.types import IntArray, Window


class Target(TypedDict):
    """Ground truth of one image, as the network sees it."""

    labels: Tensor
    """int64 [N], contiguous class labels 0..C-1."""
    boxes: Tensor
    """float32 [N, 4], cxcywh in [0, 1] of the image."""
    area: Tensor
    """float32 [N], width x height in pixels of the current image."""
    pseudo: NotRequired[Tensor]
    """bool [N], labelled by a network (`CocoSplit.pseudo`); in training."""


@dataclass
class Batch:
    """A stacked batch; normalisation happens on the device, so images stay uint8 until then."""

    images: Tensor
    """uint8 [B, 3, H, W], RGB."""
    targets: list[Target]
    image_ids: list[int]
    orig_sizes_wh: Tensor
    """int64 [B, 2], width and height of the original images, or of their tiles, in pixels."""
    windows: list[Window] | None = None
    """Where tiles lie in their images; None: all images are whole."""

    @property
    def num_boxes(self) -> int:
        """Boxes in the batch; read from shapes, so it never waits for a device."""
        return sum(target["labels"].shape[0] for target in self.targets)

    def __reduce__(self) -> tuple[Any, ...]:
        """How a worker sends a batch: only the images stay in shared memory.

        torch would open a shared file for each of the 4 x B + 1 small tensors, too, and the main process would ask the
        worker for each of them in turn.
        """
        small = [{key: tensor.numpy() for key, tensor in _tensors(target)} for target in self.targets]
        return _received, (self.images, small, self.image_ids, self.orig_sizes_wh.numpy(), self.windows)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory; the DataLoader calls it when `pin_memory` is on."""
        return self._mapped(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`, asynchronously where the memory is pinned."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> Batch:
        targets = [_target((key, move(tensor)) for key, tensor in _tensors(target)) for target in self.targets]
        return replace(self, images=move(self.images), targets=targets, orig_sizes_wh=move(self.orig_sizes_wh))


def _tensors(target: Target) -> Iterable[tuple[str, Tensor]]:
    return cast("dict[str, Tensor]", target).items()


def _target(tensors: Iterable[tuple[str, Tensor]]) -> Target:
    return cast(Target, dict(tensors))


def _received(
    images: Tensor,
    targets: list[dict[str, npt.NDArray[Any]]],
    image_ids: list[int],
    sizes: IntArray,
    windows: list[Window] | None,
) -> Batch:
    """The batch whose parts came through a pipe."""
    made = [_target((key, torch.from_numpy(array)) for key, array in target.items()) for target in targets]
    return Batch(images, made, image_ids, torch.from_numpy(sizes), windows)
