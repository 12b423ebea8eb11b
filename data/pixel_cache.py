"""Decoded pixels in memory, one copy for all workers. What is in the cache never changes a result, only its time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from data.images import REDUCTIONS, PixelArray
from data.shared_memory import shared_bytes

_LEVELS = len(REDUCTIONS)


class PixelCache:
    """A place for every image at every reduction, as far as the memory goes. Nothing is ever thrown out.

    Places are dealt out beforehand, small versions first: one byte spent on them serves more samples (three of a
    mosaic's four images are read small). So processes need no lock: two that decode the same image write the
    same bytes to the same place, and only then the mark that they are there. Between the two the interpreter's
    lock changes hands, which orders them on every processor.
    """

    def __init__(self, sizes_hw: Sequence[tuple[int, int]], max_bytes: int, *, shared: bool) -> None:
        """Nothing is decoded yet, and no memory is taken from the system.

        Args:
            sizes_hw: Of all images.
            max_bytes: Of pixels, over all processes.
            shared: Whether worker processes will use it.
        """
        sizes = np.array(sizes_hw, dtype=np.int64).reshape(-1, 1, 2)
        steps = np.array(REDUCTIONS, dtype=np.int64)[None, :, None]
        self._shapes = -(-sizes // steps)  # [N, levels, 2]
        counts = self._shapes.prod(axis=2) * 3
        ends = counts.T[::-1].ravel().cumsum().reshape(_LEVELS, -1)[::-1].T  # the smallest level of all images first
        self._starts = np.where(ends <= max_bytes, ends - counts, -1)
        self.num_bytes = int(ends[ends <= max_bytes].max(initial=0))
        """Pixels that fit."""
        make = shared_bytes if shared else _own_bytes
        self._pixels = make(self.num_bytes)
        self._is_there = make(counts.size).zero_()

    def get(self, index: int, reduction: int) -> PixelArray | None:
        """The pixels, not to be written to, or None if they are not there (yet)."""
        level = REDUCTIONS.index(reduction)
        if not self._is_there.numpy()[index * _LEVELS + level]:
            return None
        place = self._place(index, level)
        place.flags.writeable = False
        return place

    def put(self, index: int, reduction: int, pixels: PixelArray) -> None:
        """Keep a copy of the pixels, if there is room for them."""
        level = REDUCTIONS.index(reduction)
        if self._starts[index, level] >= 0:
            self._place(index, level)[...] = pixels
            self._is_there[index * _LEVELS + level] = 1

    def _place(self, index: int, level: int) -> PixelArray:
        height, width = self._shapes[index, level].tolist()
        start = int(self._starts[index, level])
        place: PixelArray = self._pixels.numpy()[start : start + height * width * 3].reshape(height, width, 3)
        return place


def _own_bytes(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.uint8)
