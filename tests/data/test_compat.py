"""Each use of torch's internals, alone: after an update of torch this says which of them moved."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from data.compat import shared_bytes, stop_workers, workers_of

NUMBERS: Any = [3, 5]


def test_shared_bytes_are_seen_by_other_processes() -> None:
    numbers = shared_bytes(6)
    assert numbers.dtype == torch.uint8 and numbers.shape == (6,) and numbers.is_shared()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_are_known_and_stopped(num_workers: int) -> None:
    # Not from the fork server, which outlives this test: all later workers would inherit its signal mask.
    options: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "spawn"} if num_workers else {}
    loader: DataLoader[int] = DataLoader(NUMBERS, batch_size=None, num_workers=num_workers, **options)
    iterator = iter(loader)
    workers = workers_of(iterator)
    assert len(workers) == num_workers and all(worker.is_alive() for worker in workers)
    assert list(iterator) == [3, 5]
    stop_workers(loader)
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()
