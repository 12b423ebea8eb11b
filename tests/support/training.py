"""Training runs inside the test process, and comparisons of what they leave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import engine.train as training
from engine.config import load_config
from engine.distributed import Distributed
from engine.interrupt import StopSignal
from engine.run import Run
from engine.train import train


def alone() -> Distributed:
    """The only process, on the CPU."""
    return Distributed(0, 1, 0, torch.device("cpu"))


def train_here(
    config: Path,
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    resume: Path | None = None,
    tuning: Path | None = None,
) -> Path:
    """A whole run in this process; returns its folder."""
    train(load_config(config, overrides), alone(), folder, resume=resume, tuning=tuning)
    return folder


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_same_state(a: Path, b: Path) -> None:
    """Raw weights, EMA, optimiser and position are bitwise equal."""
    one, two = checkpoint(a), checkpoint(b)
    for key in ("last_epoch", "step", "batch_in_epoch", "selection"):
        assert one[key] == two[key], key
    _assert_same(one["model"], two["model"])
    _assert_same(one["ema"]["module"], two["ema"]["module"])
    assert one["ema"]["updates"] == two["ema"]["updates"]
    for index, state in one["optimizer"]["state"].items():
        _assert_same(state, two["optimizer"]["state"][index])


def _assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    different = [key for key in one if not torch.equal(one[key], two[key])]
    assert not different, different[:5]


def log_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the run believe in a signal to stop as soon as it has done so many steps."""
    rates, original = [], training.set_learning_rates

    def count(optimizer: torch.optim.Optimizer, ratio: float) -> None:
        rates.append(ratio)
        original(optimizer, ratio)

    patch.setattr(training, "set_learning_rates", count)
    patch.setattr(StopSignal, "received", property(lambda self: len(rates) >= steps))


def keep_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs keep a copy of best_stg1.pth, which goes when they are complete, as early.pth."""
    save = training.save

    def saved(run: Run, name: str, **position: int) -> None:
        save(run, name, **position)
        if name == "best_stg1.pth":
            shutil.copy(run.folder / name, run.folder / "early.pth")

    monkeypatch.setattr(training, "save", saved)
