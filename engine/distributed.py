"""torchrun in, one process out: who am I, which device, and sums over processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.errors import UserError
from data.signals import STOP_SIGNALS, handlers
from engine.cli import resolve_device

Made = TypeVar("Made")

_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Distributed:
    """This process's place in the run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and shows progress."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Mean over processes, on the device: no host synchronisation."""
        if self.world_size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.world_size

    def sum_(self, value: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def from_main(self, make: Callable[[], Made]) -> Made:
        """What `make` returns in the main process, in every process; the others do not call it."""
        if self.world_size == 1:
            return make()
        box: list[Any] = [make() if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        made: Made = box[0]
        return made

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return `model`, inside DistributedDataParallel where there are several processes."""
        if self.world_size == 1:
            return model
        # Every parameter takes part in every step (boxes or not), so the costly search for unused ones stays off.
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


def init_distributed(device: str | None = None) -> Distributed:
    """Join torchrun's process group if its variables are set, else be the only process.

    A torchrun start that cannot join is fatal: going on alone would turn one run of N processes into N runs.

    Args:
        device: `cpu`, `cuda`, `cuda:1` or None for the best there is. Under torchrun a CUDA process takes the
            card of its local rank.

    Raises:
        UserError: Some of torchrun's variables are missing, the group cannot be joined, or CUDA is absent.
    """
    present = [name for name in _TORCHRUN_VARIABLES if name in os.environ]
    if "RANK" not in present and "WORLD_SIZE" not in present:
        return Distributed(0, 1, 0, resolve_device(device))
    missing = [name for name in _TORCHRUN_VARIABLES if name not in present]
    if missing:
        raise UserError(
            f"Distributed start: found {', '.join(present)} in the environment but not {', '.join(missing)}. "
            "Start with `torchrun --nproc_per_node=N train_deimv2.py ...`, or unset these variables."
        )
    rank, world_size, local_rank = (int(os.environ[name]) for name in _TORCHRUN_VARIABLES[:3])
    base = resolve_device(device)
    place = torch.device("cuda", local_rank) if base.type == "cuda" else base
    try:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        # torch waits for the others for up to 30 minutes, in which no Python handler would run.
        with handlers(signal.SIG_DFL, *STOP_SIGNALS):
            dist.init_process_group(
                "nccl" if place.type == "cuda" else "gloo",
                rank=rank,
                world_size=world_size,
                timeout=timedelta(minutes=30),
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"Distributed start: process {rank} of {world_size} could not join the group at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({error}). Check that every node runs the same "
            "torchrun command with its own --node_rank, that --nproc_per_node is at most the number of GPUs, and that "
            "the port is open."
        ) from error
    return Distributed(rank, world_size, local_rank, place)


def cleanup() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
