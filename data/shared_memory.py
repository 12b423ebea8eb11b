"""Memory that several processes see: what a worker writes there needs no copy on its way to the training process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

_SHARED_MEMORY_FOLDER = Path("/dev/shm")
_LARGEST_SHARE = 0.5


def shared_bytes(count: int) -> Tensor:
    """uint8 [count], uninitialised, in shared memory. Pages are taken from the system only when written to."""
    storage = torch.UntypedStorage._new_shared(count)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def memory_to_spare() -> int | None:
    """Bytes that may reasonably be taken: half of the free memory; None where the system does not tell.

    Linux keeps shared memory in /dev/shm, which is small in many containers; a process that writes more than
    fits there is killed.
    """
    limits = []
    try:
        limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        limits = []  # Windows and macOS: the configured size alone counts
    if _SHARED_MEMORY_FOLDER.is_dir():
        limits.append(shutil.disk_usage(_SHARED_MEMORY_FOLDER).free)
    return int(min(limits) * _LARGEST_SHARE) if limits else None
