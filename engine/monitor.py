"""What a run tells while it trains: progress bar, log.jsonl, loggers. Only rank 0 has one that speaks."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from data.batch import Batch
from data.classes import ClassMap
from data.progress import progress_bar
from data.types import PixelArray
from engine.config import ExperimentConfig
from engine.evaluate import EvalResult
from engine.loggers import open_boards
from engine.pictures import batch_pictures, grid
from engine.resume import Position
from engine.run_folder import JsonLines
from engine.step import Step
from texts import Texts

LOG_EVERY_STEPS = 10
_MAX_PICTURES = 8


class Monitor:
    """Collects losses on the device and reports their mean every `LOG_EVERY_STEPS` steps (one sync each time)."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path,
        classes: ClassMap,
        text: Texts,
        steps_per_epoch: int,
        position: Position,
        *,
        enabled: bool,
        earlier_log: Path | None = None,
    ) -> None:
        self.enabled = enabled
        self._text = text
        self._classes = classes
        self._total_epochs = config.epoches
        self._steps_per_epoch = steps_per_epoch
        self._log_every = max(1, min(config.print_freq, LOG_EVERY_STEPS))
        self._pending: list[tuple[tuple[str, ...], Tensor, Tensor]] = []
        self._images = 0
        self._wait_seconds = 0.0
        self._since = time.perf_counter()
        self._seconds_per_step = 0.0
        self._bar: tqdm[Any] | None = None
        if enabled:
            step, evaluated = position.step, position.batch_in_epoch == 0
            self._lines = JsonLines(folder / "log.jsonl", first_step=step, evaluated=evaluated, earlier=earlier_log)
            self._boards = open_boards(config, folder, step)

    def start_epoch(self, epoch: int, steps_done: int) -> None:
        """Open the epoch's progress bar."""
        self._since = time.perf_counter()
        if not self.enabled:
            return
        self._bar = progress_bar(
            None,
            self._text("bar", epoch=epoch + 1, epochs=self._total_epochs),
            unit=self._text["bar_unit"],
            total=self._steps_per_epoch,
            initial=steps_done,
            leave=True,
        )

    def end_epoch(self, *, epoch: int, step: int) -> None:
        """Report what is still pending and close the bar."""
        if self.enabled and self._pending:
            self._report(epoch, step, {})
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def step(
        self, result: Step, *, epoch: int, step: int, images: int, wait_seconds: float, optimizer: Optimizer
    ) -> None:
        """One finished optimiser step; `step` counts from 1, the tensors stay on the device until the report."""
        if not self.enabled:
            return
        losses = result.losses
        self._pending.append((tuple(losses), torch.stack(list(losses.values())), result.grad_norm.detach()))
        self._images += images
        self._wait_seconds += wait_seconds
        if self._bar is not None:
            self._bar.update()
        if step % self._log_every == 0:
            rates = {f"group_{i}": group["lr"] for i, group in enumerate(optimizer.param_groups)}
            self._report(epoch, step, rates)

    def _report(self, epoch: int, step: int, learning_rates: Mapping[str, float]) -> None:
        means = _means(self._pending)
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        self._seconds_per_step = elapsed / len(self._pending)
        record: dict[str, Any] = {
            "step": step,
            "epoch": epoch + 1,
            "loss": sum(value for key, value in means.items() if key != "grad_norm"),
            "losses": {key: value for key, value in means.items() if key != "grad_norm"},
            "grad_norm": means["grad_norm"],
            "images_per_s": self._images / elapsed,
            "data_wait_share": min(self._wait_seconds / elapsed, 1.0),
            "memory_mb": _peak_memory_mb(),
            "learning_rates": dict(learning_rates),
        }
        self._lines.write(record)
        of_the_step = ("loss", "grad_norm", "images_per_s", "data_wait_share", "memory_mb")
        values = {f"train/{key}": record[key] for key in of_the_step}
        values |= {f"losses/{key}": value for key, value in record["losses"].items()}
        values |= {f"learning_rate/{key}": value for key, value in learning_rates.items()}
        for board in self._boards:
            board.scalars(values, step)
        self._show(record, step)
        self._pending.clear()
        self._images, self._wait_seconds, self._since = 0, 0.0, time.perf_counter()

    def _show(self, record: Mapping[str, Any], step: int) -> None:
        if self._bar is None:
            return
        left = self._seconds_per_step * (self._total_epochs * self._steps_per_epoch - step)
        self._bar.set_postfix_str(
            self._text(
                "bar_values",
                loss=self._text.number(record["loss"], 4),
                speed=self._text.number(record["images_per_s"], 1),
                memory=f"{record['memory_mb']:.0f}",
                left=tqdm.format_interval(left),
            )
        )

    def evaluation(self, result: EvalResult, *, epoch: int, step: int, seconds: float) -> None:
        """AP of one evaluation into the log and the loggers."""
        if not self.enabled:
            return
        self._lines.write(
            {
                "step": step,
                "epoch": epoch + 1,
                "metrics": result.metrics,
                "per_class": result.per_class,
                "evaluation_seconds": seconds,
            }
        )
        values = {f"val/{key}": value for key, value in result.metrics.items()}
        values |= {f"val_per_class/{name}": row["AP"] for name, row in result.per_class.items()}
        known = {key: value for key, value in values.items() if value is not None}
        for board in self._boards:
            board.scalars(known, step)
        self._since = time.perf_counter()

    def training_images(self, batch: Batch, *, step: int) -> None:
        """A grid of training images with boxes, as the network sees them; the batch is still on the CPU."""
        if self.enabled:
            pictures = batch_pictures(batch, self._classes.names)[:_MAX_PICTURES]
            self._show_picture("training_images", pictures, step)

    def prediction_images(self, pictures: Sequence[PixelArray], *, step: int) -> None:
        """Validation predictions beside the ground truth."""
        if self.enabled and pictures:
            self._show_picture("validation_predictions", pictures, step)

    def _show_picture(self, key: str, pictures: Sequence[PixelArray], step: int) -> None:
        picture = grid(pictures)
        for board in self._boards:
            board.image(key, picture, step)

    def close(self) -> None:
        """Close the files."""
        if self._bar is not None:
            with contextlib.suppress(OSError):  # stderr may be a file on a full disk, too; that must not hide an error
                self._bar.close()
        if self.enabled:
            self._lines.close()
            for board in self._boards:
                board.close()


def _means(pending: Sequence[tuple[tuple[str, ...], Tensor, Tensor]]) -> dict[str, float]:
    """Mean of every loss over the pending steps. A key that a step lacks (no boxes, say) counts as 0 there."""
    flat = torch.cat([torch.cat([values, norm.reshape(1)]) for _, values, norm in pending]).tolist()
    sums: dict[str, float] = {}
    position = 0
    for keys, _, _ in pending:
        for key in (*keys, "grad_norm"):
            sums[key] = sums.get(key, 0.0) + flat[position]
            position += 1
    return {key: value / len(pending) for key, value in sums.items()}


def _peak_memory_mb() -> float:
    """Peak memory in MB: of the GPU where there is one, else of this process where the platform tells."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource  # POSIX only; Windows reports 0
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
