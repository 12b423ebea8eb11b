"""Joining torchrun's group, or saying why not. Training in two processes is in test_train_distributed.py."""

import pytest
import torch

from data.errors import UserError
from engine.distributed import init_distributed

VARIABLES = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    dist = init_distributed("cpu")
    assert (dist.rank, dist.world_size, dist.device, dist.is_main) == (0, 1, torch.device("cpu"), True)
    value = torch.tensor(3.0)
    assert dist.mean(value) == 3.0 and dist.sum_(value) == 3.0
    dist.barrier()


def test_half_a_torchrun_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="RANK, WORLD_SIZE .*not LOCAL_RANK, MASTER_ADDR, MASTER_PORT.*torchrun"):
        init_distributed("cpu")


def test_a_group_that_cannot_be_joined_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("connection refused")

    monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    with pytest.raises(
        UserError, match=r"process 0 of 2 could not join the group at localhost:1 \(connection refused\)"
    ):
        init_distributed("cpu")
