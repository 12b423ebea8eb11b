"""What is used of torch beyond its public interface, each with a test: the places to look at when torch is renewed."""

from __future__ import annotations

from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader


def shared_bytes(count: int) -> Tensor:
    """Return uint8 [count], uninitialised, in shared memory. Pages are taken from the system only when written to.

    `Tensor.share_memory_` would first take memory of this process and copy it.
    """
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(count))


def workers_of(iterator: object) -> list[BaseProcess]:
    """Return the worker processes behind an iterator of a DataLoader; none if this process reads itself."""
    return list(getattr(iterator, "_workers", ()))


def stop_workers(loader: DataLoader[Any]) -> None:
    """Stop a DataLoader's persistent workers now; iterating again starts new ones. There is no public way."""
    iterator, loader._iterator = loader._iterator, None
    if workers := workers_of(iterator):
        iterator._shutdown_workers()  # type: ignore[union-attr]
        for worker in workers:
            worker.kill()  # one that hangs in a read
