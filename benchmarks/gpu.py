"""What does the machine make of it? Everything that needs a GPU to be known, in one process and a few minutes.

    python benchmarks/gpu.py [--minutes 6] [--json FILE] [--only steps loop] [-c CONFIG] [-u KEY=VALUE ...]

Sections in order of worth; what no longer fits into the minutes is skipped and said: `parity` (losses of the golden
case in float32 against the original's), `tests` (those marked gpu), `syncs` (waits for the device in a training step),
`steps` (time and peak memory of a step by batch, eager, with gradient checkpointing, compiled), `loop` (images/s of the
training loop, share of waiting for data, time to the first step), `inference` (batch 1 and 16, eager, deploy form,
compiled), `evaluation` (images/s), `amp` (losses of 50 steps in mixed precision against float32), `training` (AP of a
short one). Without -c: DEIMv2-S at 640 pixels for `steps`; for the rest NEU-DET where NEU_DET_ROOT is set, else drawn
data. On a CPU it runs in small, without what only a GPU has.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script: the repository is not on the path

from data.batch import Batch  # noqa: E402
from data.schedule import stage_starts  # noqa: E402
from data.script import run_script  # noqa: E402
from engine.acceleration import compiler  # noqa: E402
from engine.cli import (  # noqa: E402
    add_config_argument,
    add_device_argument,
    add_overrides_argument,
    resolve_device,
    setup_logging,
)
from engine.config import ExperimentConfig, load_config  # noqa: E402
from engine.distributed import Distributed  # noqa: E402
from engine.evaluate import evaluate  # noqa: E402
from engine.interrupt import StopSignal  # noqa: E402
from engine.run import Run, build_run  # noqa: E402
from engine.step import Step, train_steps, windows  # noqa: E402
from engine.train import BatchNormStatistics, timed, train, train_step  # noqa: E402
from models.criterion import build_criterion  # noqa: E402
from models.deploy import deploy  # noqa: E402
from models.detector import DEIM, build_detector  # noqa: E402
from tests.support.parity import SIX_CLASSES, golden_json, golden_model, golden_tensors, network_input  # noqa: E402

INDUSTRIAL = ROOT / "configs" / "deimv2_industrial_defects.yml"
Row = tuple[str, float, str]
"""What was measured, the number and its unit."""


@dataclass
class Bench:
    """The machine, what is measured on it, and how long that may take."""

    device: torch.device
    path: Path
    """Config of what is trained; has data."""
    network: Path
    """Config of the network whose steps are timed."""
    overrides: list[str]
    workers: int
    deadline: float
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def in_time(self, what: str) -> bool:
        """Whether to begin `what`; says so if not."""
        in_time = time.monotonic() < self.deadline
        if not in_time:
            say(f"  {what}: the minutes are over")
        return in_time

    def config(self, *overrides: str, path: Path | None = None) -> ExperimentConfig:
        usual = ["DINOv3STAs.weights_path=null", f"train_dataloader.num_workers={self.workers}"]
        return load_config(path or self.path, [*usual, *self.overrides, *overrides])

    @contextmanager
    def run(self, *overrides: str) -> Iterator[Run]:
        """A run of its own folder, closed at the end."""
        place = Distributed(0, 1, 0, self.device)
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        run = build_run(self.config(*overrides), place, folder / "run", resume=None, tuning=None)
        run.wrapped.train()
        try:
            yield run
        finally:
            run.close()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def parity(bench: Bench) -> Iterator[Row]:
    golden, tensors = golden_json("train_320"), golden_tensors("train_320")
    targets = [{k: tensors[f"target.{i}.{k}"].to(bench.device) for k in ("labels", "boxes")} for i in range(2)]
    model = golden_model().to(bench.device)
    criterion = build_criterion(load_config(ROOT / "configs/deimv2/deimv2_dinov3_s_coco.yml", SIX_CLASSES))
    outputs = model(network_input(tensors["image"]).to(bench.device), targets)
    losses = criterion(outputs, targets, epoch=golden["epoch"])
    worst = max(abs(float(losses[key].detach()) / value - 1) for key, value in golden["losses"].items())
    yield "losses, largest relative difference from the original's", worst, ""


def gpu_tests(bench: Bench) -> Iterator[Row]:
    import pytest

    marked = [str(path) for path in ROOT.glob("tests/*/test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8")]
    yield "exit code of pytest -m gpu", float(pytest.main([*marked, "-m", "gpu", "-n", "0", "-q"])), ""


def syncs(bench: Bench) -> Iterator[Row]:
    with bench.run() as run:
        steps = loop_steps(run)
        for _ in range(3):
            next(steps)
        yield "waits for the device in a step", count_syncs(lambda: next(steps)), ""


def count_syncs(action: Callable[[], object]) -> int:
    """Synchronising CUDA calls, as PyTorch's debug mode reports them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def steps_by_batch(bench: Bench) -> Iterator[Row]:
    """Batch 4 first in every form, then the others."""
    batches = (4, 32, 2, 16, 8) if bench.on_gpu else (2,)
    for batch in batches:
        for form in ("eager", "checkpointed", "compiled"):
            what = f"step, batch {batch}, {form}"
            if form == "compiled" and not bench.on_gpu:
                continue  # minutes
            if not bench.in_time(what):
                return
            config = bench.config(f"gradient_checkpointing={form == 'checkpointed'}", path=bench.network)
            model = build_detector(config).to(bench.device)
            if form == "compiled":
                backend = compiler(model, bench.device)
                if backend is None or not isinstance(model, DEIM):
                    continue
                model.compile_training(backend)
            images = torch.zeros(batch, 3, *config.eval_spatial_size, dtype=torch.uint8, device=bench.device)
            if bench.on_gpu:
                torch.cuda.reset_peak_memory_stats(bench.device)
            try:
                times = train_steps(model, config, images, steps=15 if bench.on_gpu else 2)
            except torch.OutOfMemoryError:
                say(f"  {what}: does not fit")
                continue
            milliseconds = 1e3 * statistics.median(times[len(times) // 3 :])
            yield what, milliseconds, f"ms = {1e3 * batch / milliseconds:.0f} images/s"
            if bench.on_gpu:
                yield f"{what}: peak", torch.cuda.max_memory_allocated(bench.device) / 2**30, "GiB"
                torch.cuda.empty_cache()


def all_batches(run: Run) -> Iterator[Batch]:
    """Epoch after epoch, from the first that has all the augmentation."""
    transforms, collate = run.config.train_dataloader.dataset.transforms, run.config.train_dataloader.collate_fn
    starts = stage_starts(transforms, collate, run.config.epoches)
    epoch = starts[1] if len(starts) > 1 else 0
    while True:
        run.train_loader.set_epoch(epoch)
        yield from run.train_loader
        epoch = min(epoch + 1, run.config.epoches - 1)


def loop_steps(run: Run, batches: Iterable[Batch] | None = None) -> Iterator[tuple[Step, int, float, float]]:
    """The engine's own steps, for ever: what came of one, its images, seconds of waiting and of computing."""
    kept, stop = BatchNormStatistics(run.model), StopSignal()  # never entered: Ctrl-C ends a benchmark at once
    for window, wait in timed(windows(batches or all_batches(run), run.config.micro_batches)):
        started = time.perf_counter()
        step = train_step(run, run.position.epoch, window, kept, stop)  # ends with a wait for the device
        run.position = run.position.but(step=run.position.step + 1)
        yield step, sum(len(batch.targets) for batch in window), wait, time.perf_counter() - started


def loop(bench: Bench) -> Iterator[Row]:
    warm_up, seconds = (10, 30.0) if bench.on_gpu else (1, 1.0)
    started = time.perf_counter()
    images, waits, computing, until = 0, 0.0, 0.0, 0.0
    with bench.run() as run:
        for number, (_, count, wait, work) in enumerate(loop_steps(run)):
            if number == 0:
                yield "time to the first step", time.perf_counter() - started, "s"
            if number < warm_up:
                until = time.perf_counter() + seconds
                continue
            images, waits, computing = images + count, waits + wait, computing + work
            if time.perf_counter() > until:
                break
        loader = run.config.train_dataloader
        setting = f"batch {loader.total_batch_size}, {run.config.micro_batches} micro-batches, {bench.workers} workers"
    yield f"training loop, {setting}", images / (waits + computing), "images/s"
    yield "share of waiting for data", 100 * waits / (waits + computing), "%"


def inference(bench: Bench) -> Iterator[Row]:
    with bench.run() as run:
        detector = replace(run.detector, model=run.detector.model.eval())
    forms = {"eager": detector}
    if isinstance(detector.model, DEIM):
        forms["deploy form"] = replace(detector, model=deploy(detector.model))
        if bench.on_gpu and (backend := compiler(detector.model, bench.device)):
            forms["compiled"] = replace(detector, model=copy.deepcopy(detector.model), compiled=backend)
    for name, form in forms.items():
        for batch in (1, 16) if bench.on_gpu else (1,):
            if not bench.in_time(f"inference, {name}"):
                return
            images = torch.zeros(batch, 3, *run.config.eval_spatial_size, dtype=torch.uint8, device=bench.device)
            times = []
            for _ in range(40 if bench.on_gpu else 3):
                started = time.perf_counter()
                form.detect(images, [(640, 640)] * batch)  # its end is on the host
                times.append(time.perf_counter() - started)
            yield f"inference, batch {batch}, {name}", 1e3 * statistics.median(times[1:]) / batch, "ms an image"


def evaluation(bench: Bench) -> Iterator[Row]:
    with bench.run() as run:
        result = evaluate(run.detector, run.val_loader, run.data.splits["val"], progress=False)
    yield f"evaluation of {result.num_images} images", 1 / result.seconds_per_image, "images/s"


def amp(bench: Bench) -> Iterator[Row]:
    """The same batches from the same weights; the mean of the last ten losses."""
    means: list[float] = []
    for used in (True, False):
        with bench.run(f"use_amp={used}") as run:
            losses = [float(sum(step.losses.values())) for step, *_ in islice(loop_steps(run), 50)]
        means.append(statistics.fmean(losses[-10:]))
    yield "mean loss of steps 41-50, mixed precision", means[0], ""
    yield "the same in float32", means[1], ""


def training(bench: Bench) -> Iterator[Row]:
    epochs = 20 if bench.on_gpu else 2
    config = bench.config(f"epoches={epochs}", f"eval_interval_epochs={epochs}")
    started = time.perf_counter()
    train(config, Distributed(0, 1, 0, bench.device), bench.folder / "training")
    results = json.loads((bench.folder / "training" / "results.json").read_text(encoding="utf-8"))
    yield f"AP after {epochs} epochs", results["metrics"]["AP"] or 0.0, ""
    yield f"{epochs} epochs", time.perf_counter() - started, "s"


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "parity": parity,
    "tests": gpu_tests,
    "syncs": syncs,
    "steps": steps_by_batch,
    "loop": loop,
    "inference": inference,
    "evaluation": evaluation,
    "amp": amp,
    "training": training,
}
NEED_A_GPU = ("tests", "syncs", "amp")


def measure(bench: Bench, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Rows by section, and why there are no more of them."""
    sections: dict[str, dict[str, Any]] = {}
    for name in names:
        say(name)
        rows: list[Row] = []
        note = None
        if name in NEED_A_GPU and not bench.on_gpu:
            note = "skipped, needs a GPU: not measured on a GPU"
        elif not bench.in_time(name):
            note = "skipped, the minutes are over"
        else:
            try:
                for what, number, unit in SECTIONS[name](bench):
                    rows.append((what, number, unit))
                    say(f"  {what:60}{number:12.4g} {unit}")
            except Exception as error:  # the other sections still count
                note = f"failed, {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if note:
            say(f"  {note}")
        sections[name] = {"rows": rows, "note": note}
    return sections


def default_config(device: torch.device) -> Path:
    """What to train where no config is named."""
    if not os.environ.get("NEU_DET_ROOT"):
        return ROOT / "configs" / "quickstart.yml"
    return ROOT / "configs" / ("neu_det.yml" if device.type == "cuda" else "neu_det_small.yml")


def main(command: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_argument(parser, required=False, help_text="what to train (default: NEU-DET, or drawn images)")
    add_overrides_argument(parser)
    add_device_argument(parser)
    parser.add_argument("--minutes", type=float, default=6.0, help="begin nothing after so many (default: 6)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS], metavar="SECTION")
    parser.add_argument("--workers", type=int, default=4, help="data worker processes (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(command)
    setup_logging()
    device = resolve_device(options.device)
    path = options.config or default_config(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    say(f"{name}, torch {torch.__version__}, {path.name}")
    with tempfile.TemporaryDirectory() as folder:
        deadline = time.monotonic() + 60 * options.minutes
        network = options.config or (INDUSTRIAL if device.type == "cuda" else path)
        bench = Bench(device, path, network, options.update, options.workers, deadline, Path(folder))
        sections = measure(bench, options.only)
    if options.json is not None:
        content = {"device": name, "torch": torch.__version__, "config": path.name, "sections": sections}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(any((section["note"] or "").startswith("failed") for section in sections.values()))


if __name__ == "__main__":
    sys.exit(run_script(lambda _: main(), own_json=True))
