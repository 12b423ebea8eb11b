"""Decoded pixels in memory, one copy for all workers. What is in the cache never changes a result, only its time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.compat import shared_bytes
from data.types import PixelArray

_SHARED_MEMORY_FOLDER = Path("/dev/shm")
_LARGEST_SHARE = 0.5


class PixelCache:
    """A place for every image in every version (size), as far as the memory goes. Nothing is ever thrown out.

    Places are dealt out beforehand, so processes need no lock: two that decode the same image write the same bytes
    to the same place, and only then the mark that they are there. Between the two the interpreter's lock changes
    hands, which orders them on every processor.
    """

    def __init__(self, sizes_hw: Sequence[Sequence[tuple[int, int]]], max_bytes: int, *, shared: bool) -> None:
        """Deal places out to the first version of all images, then to the second, and so on.

        No memory is taken from the system yet. `max_bytes` of pixels are for all processes; `shared` with workers.
        """
        self._shapes = np.array(sizes_hw, dtype=np.int64)  # [N, V, 2]
        counts = self._shapes.prod(axis=2) * 3
        ends = counts.T.ravel().cumsum().reshape(counts.T.shape).T
        self._starts = np.where(ends <= max_bytes, ends - counts, -1)
        self.num_bytes = int(ends[ends <= max_bytes].max(initial=0))
        """Pixels that fit."""
        make = shared_bytes if shared else partial(torch.empty, dtype=torch.uint8)
        self._pixels = make(self.num_bytes)
        self._is_there = make(counts.size).zero_()

    def get(self, index: int, version: int) -> PixelArray | None:
        """Return the pixels, not to be written to, or None if they are not there (yet)."""
        if not self._marks[index, version]:
            return None
        place = self._place(index, version)
        place.flags.writeable = False
        return place

    def lacks(self, index: int, version: int) -> bool:
        """Tell whether pixels are not there, and there is room for them."""
        return bool(self._starts[index, version] >= 0 and not self._marks[index, version])

    def put(self, index: int, version: int, pixels: PixelArray) -> None:
        """Keep a copy of the pixels, if there is room for them."""
        if self._starts[index, version] >= 0:
            self._place(index, version)[...] = pixels
            self._marks[index, version] = 1

    @property
    def _marks(self) -> PixelArray:
        """[N, V] Which pixels are there; seen by all processes."""
        marks: PixelArray = self._is_there.numpy().reshape(self._starts.shape)
        return marks

    def _place(self, index: int, version: int) -> PixelArray:
        height, width = self._shapes[index, version].tolist()
        start = int(self._starts[index, version])
        place: PixelArray = self._pixels.numpy()[start : start + height * width * 3].reshape(height, width, 3)
        return place


def memory_to_spare() -> int | None:
    """Return the bytes that may reasonably be taken: half of the free memory; None where the system does not tell.

    Linux keeps shared memory in /dev/shm, which is small in many containers; a process that writes more than
    fits there is killed.
    """
    limits = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows, macOS: the configured size alone counts
        limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if _SHARED_MEMORY_FOLDER.is_dir():
        limits.append(shutil.disk_usage(_SHARED_MEMORY_FOLDER).free)
    return int(min(limits) * _LARGEST_SHARE) if limits else None
