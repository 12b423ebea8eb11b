"""Where does the time of a training step go, and how much of it is waiting for data?

    python benchmarks/train_step.py [-c CONFIG] [--workers 2] [--batch-size N] [--steps 20] [--use-amp] [--json FILE]

Runs the engine's own step (`engine.train.train_step`) on the training loader of a config and reports milliseconds per
optimiser step. Without -c: NEU-DET where NEU_DET_ROOT is set (configs/neu_det.yml on a GPU, the small
configs/neu_det_small.yml on a CPU), generated images otherwise (configs/quickstart.yml). The epoch is the first that
has all the augmentation of the config. On a GPU every part ends with a synchronisation; the loop itself has one per
step anyway, so the waiting share is that of training.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script: the repository is not on the path

from data.batch import Batch  # noqa: E402
from data.schedule import stage_starts  # noqa: E402
from engine.cli import (  # noqa: E402
    add_amp_argument,
    add_device_argument,
    add_overrides_argument,
    run_script,
    setup_logging,
)
from engine.config import load_config  # noqa: E402
from engine.distributed import cleanup, init_distributed  # noqa: E402
from engine.interrupt import StopSignal  # noqa: E402
from engine.run import Run, build_run  # noqa: E402
from engine.train import BatchNormStatistics, timed, train_step  # noqa: E402
from engine.window import windows  # noqa: E402

PARTS = ("wait", "prepare", "forward", "loss", "backward", "update")
"""`prepare`: copy to the device and the step's bookkeeping; `update`: clip, optimiser, EMA."""
TARGET_SHARE = 0.05


class Stopwatch:
    """Splits the engine's step into parts from outside: hooks on model and criterion, and a scaler that tells."""

    def __init__(self, run: Run) -> None:
        self._device = run.dist.device
        self._parts: dict[str, float] = defaultdict(float)
        self._last = 0.0
        self._model_done = False
        run.wrapped.register_forward_pre_hook(lambda *_: self._before_forward())
        run.wrapped.register_forward_hook(lambda *_: self._after("forward"))
        run.criterion.register_forward_hook(lambda *_: self._after("loss"))
        run.scaler = _TellingScaler(run.scaler, self)

    def start(self) -> None:
        """A step begins."""
        self._parts = defaultdict(float)
        self._last, self._model_done = self._now(), False

    def stop(self) -> dict[str, float]:
        """It is over; seconds per part."""
        self._after("update")
        return dict(self._parts)

    def backward_done(self) -> None:
        """All gradients are there."""
        self._after("backward")

    def _before_forward(self) -> None:
        self._after("backward" if self._model_done else "prepare")  # an earlier micro-batch went before
        self._model_done = True

    def _after(self, part: str) -> None:
        now = self._now()
        self._parts[part] += now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _TellingScaler(torch.amp.GradScaler):
    """The run's scaler; its `unscale_` is the first thing after the last backward."""

    def __init__(self, scaler: torch.amp.GradScaler, watch: Stopwatch) -> None:
        super().__init__(watch._device.type, enabled=scaler.is_enabled())
        self._watch = watch

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self._watch.backward_done()
        super().unscale_(optimizer)


def all_batches(run: Run) -> Iterator[Batch]:
    """Epoch after epoch, from the first that has all the augmentation."""
    transforms, collate = run.config.train_dataloader.dataset.transforms, run.config.train_dataloader.collate_fn
    starts = stage_starts(transforms, collate, run.config.epoches)
    epoch = starts[1] if len(starts) > 1 else 0
    while True:
        run.train_loader.set_epoch(epoch)
        yield from run.train_loader
        epoch = epoch + 1 if epoch + 1 < run.config.epoches else epoch


def measure(run: Run, steps: int, warmup: int) -> list[dict[str, float]]:
    """Seconds per part for every step after the warm-up."""
    watch, statistics_kept, found = Stopwatch(run), BatchNormStatistics(run.model), []
    run.wrapped.train()
    stop = StopSignal()  # never entered: Ctrl-C ends a benchmark at once
    for window, wait in timed(windows(all_batches(run), run.config.accumulation_steps)):
        watch.start()
        train_step(run, run.position.epoch, window, statistics_kept, stop)
        found.append({"wait": wait, **watch.stop()})
        run.position = replace(run.position, step=run.position.step + 1)
        if len(found) == warmup + steps:
            break
    return found[warmup:]


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    """Milliseconds per part: mean, median, 95th percentile; the share of waiting in the whole time."""
    rows = {part: [step.get(part, 0.0) * 1e3 for step in found] for part in PARTS}
    rows["step"] = [sum(step.values()) * 1e3 for step in found]
    parts = {
        part: {
            "mean": statistics.fmean(values),
            "p50": statistics.median(values),
            "p95": sorted(values)[min(len(values) - 1, round(0.95 * len(values)))],
        }
        for part, values in rows.items()
    }
    return {"ms": parts, "waiting_share": sum(rows["wait"]) / sum(rows["step"])}


def report(result: Mapping[str, Any]) -> list[str]:
    """A table and the verdict."""
    lines = [f"{'ms per step':12}{'mean':>10}{'p50':>10}{'p95':>10}"]
    lines += [f"{part:12}{row['mean']:10.1f}{row['p50']:10.1f}{row['p95']:10.1f}" for part, row in result["ms"].items()]
    share, facts = result["waiting_share"], result["setting"]
    verdict = "met" if share <= TARGET_SHARE else "MISSED"
    lines.append(
        f"waiting for data: {share:.1%} of the time (at most {TARGET_SHARE:.0%}: {verdict}) - {facts['config']}, "
        f"batch {facts['batch_size']}, {facts['workers']} workers, {facts['device']}"
    )
    return lines


def default_config(device: torch.device) -> Path:
    """What to train where no config is named."""
    if not os.environ.get("NEU_DET_ROOT"):
        return ROOT / "configs" / "quickstart.yml"
    return ROOT / "configs" / ("neu_det.yml" if device.type == "cuda" else "neu_det_small.yml")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", type=Path, help="what to train (default: NEU-DET, or generated images)")
    add_overrides_argument(parser)
    add_device_argument(parser)
    add_amp_argument(parser, "mixed precision on a GPU (default: the config's use_amp)")
    parser.add_argument("--workers", type=int, default=2, help="data worker processes (default: 2)")
    parser.add_argument("--batch-size", type=int, help="images per step (default: the config's)")
    parser.add_argument("--steps", type=int, default=20, help="steps to measure (default: 20)")
    parser.add_argument("--warmup", type=int, default=5, help="steps before, not counted (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    setup_logging()
    overrides = [*options.update, f"train_dataloader.num_workers={options.workers}"]
    if options.batch_size is not None:
        overrides.append(f"train_dataloader.total_batch_size={options.batch_size}")
    if options.use_amp is not None:
        overrides.append(f"use_amp={options.use_amp}")
    dist = init_distributed(options.device)
    path = options.config or default_config(dist.device)
    config = load_config(path, overrides)
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(config, dist, Path(folder, "run"), resume=None, tuning=None)
        try:
            found = measure(run, options.steps, options.warmup)
        finally:
            run.monitor.close()
            run.train_loader.close()
            run.val_loader.close()
            cleanup()
    loader = run.config.train_dataloader
    setting = {
        "config": path.name,
        "device": torch.cuda.get_device_name(dist.device) if dist.device.type == "cuda" else dist.device.type,
        "workers": options.workers,
        "batch_size": loader.total_batch_size or loader.batch_size,
        "image_size_hw": list(run.train_loader.dataset.size_hw),
        "use_amp": run.amp_dtype is not None,
        "threads": torch.get_num_threads(),
        "steps": len(found),
    }
    result = {**summary(found), "setting": setting}
    sys.stdout.write("\n".join(report(result)) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
