"""What a detector costs: parameters, floating-point operations, time and memory.

Everything is measured on a copy: the model's weights, modes and caches, and the random numbers of the caller, are the
same afterwards.
"""

from __future__ import annotations

import copy
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.config import ExperimentConfig
from engine.detector import Detector
from engine.step import train_steps

log = logging.getLogger(__name__)

BUDGET_SECONDS = 40.0
"""About how long `measure_cost` may take; a GPU needs a few seconds."""

_MAX_REPEATS = 100
_MIN_REPEATS = 3
_WARM_UP_RUNS = 5


@dataclass(frozen=True)
class Latency:
    """Time of one batch size, device synchronised, after warm-up."""

    batch_size: int
    median_ms: float
    p95_ms: float
    images_per_s: float
    repeats: int = 0
    """Timed runs behind the two numbers: few on a CPU, where a percentile of them says little. 0: unknown."""


@dataclass(frozen=True)
class Cost:
    """What a model costs to run."""

    parameters: int
    gflops: float
    """Of one image at `image_size_hw`; a multiply-add counts as two (torch.utils.flop_counter)."""
    image_size_hw: tuple[int, int]
    latencies: Sequence[Latency]
    """Batch 1 and the evaluation batch."""
    inference_memory_mb: float | None
    """Peak of one inference batch of size 1."""
    training_memory_mb: float | None
    """Peak of one training step at the micro-batch of the config."""
    device: str
    dtype: str
    threads: int
    passes: int = 1
    """Of the network an image: its tiles. All other numbers are of one pass."""


def measure_cost(
    detector: Detector, *, eval_batch: int, passes: int = 1, budget_seconds: float = BUDGET_SECONDS
) -> Cost:
    """Measure one detector on images of noise of `eval_spatial_size`, of which an image takes as many as `passes`.

    - GFLOPs: one image through the network, counted by torch.utils.flop_counter (a multiply-add is two). It knows
      matrix products, convolutions and attention. Everything else counts nothing: normalisations, activations,
      softmax, element-wise sums, and `grid_sample` and other gathers, so also the sampling of deformable attention,
      RoI pooling and non-maximum suppression.
    - Latency: from uint8 images on the device to detections (normalisation, network, post-processing), the device
      synchronised before and after each run, after warm-up. As many runs as the budget allows, 3 to 100;
      `Latency.repeats` says how many. The evaluation batch is left out where not even three fit.
    - Memory of inference: the highest sum of what torch's allocator has handed out, weights included; whatever else
      lies on the device is not in it. Read from torch.cuda's statistics, on a CPU from torch's profiler.
    - Memory of a training step, on a GPU alone: forward, losses, backward, AdamW step, EMA, on one process's
      micro-batch with 8 boxes an image, in the precision of the config. None if it does not fit.
    """
    deadline = time.perf_counter() + budget_seconds
    model, config, device = detector.model, detector.config, detector.device
    plain = replace(detector, model=copy.deepcopy(model).eval(), compiled=None)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        gflops = _gflops(plain)
        subject = replace(plain, compiled=detector.compiled)
        latencies = _latencies(subject, eval_batch, deadline)
        one_image = _noise(config, 1, device)
        inference_bytes = _peak_bytes(lambda: _detect(subject, one_image), device)
        if inference_bytes is not None:
            inference_bytes += _weight_bytes(subject.model)
        training_bytes = _training_bytes(model, config, device) if device.type == "cuda" else None
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=gflops,
        image_size_hw=config.eval_spatial_size,
        latencies=latencies,
        inference_memory_mb=inference_bytes and inference_bytes / 2**20,
        training_memory_mb=training_bytes and training_bytes / 2**20,
        device=device_name(device),
        dtype=str(detector.amp_dtype or torch.float32).removeprefix("torch.") + ", compiled" * bool(detector.compiled),
        threads=torch.get_num_threads(),
        passes=passes,
    )


def _noise(config: ExperimentConfig, count: int, device: torch.device) -> Tensor:
    """uint8 [count, 3, H, W], the same every time."""
    generator = torch.Generator().manual_seed(0)
    size = (count, 3, *config.eval_spatial_size)
    return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).to(device)


def _detect(subject: Detector, images: Tensor) -> None:
    height, width = subject.config.eval_spatial_size
    subject.detect(images, [(width, height)] * len(images))


def _gflops(subject: Detector) -> float:
    """Of one image. Fused attention is written out, so that every device counts the same operations."""
    images = _noise(subject.config, 1, subject.device)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation that the counter does not know
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            subject.outputs(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return float(counter.get_total_flops()) / 1e9


def _latencies(subject: Detector, eval_batch: int, deadline: float) -> list[Latency]:
    """Batch 1, and the evaluation batch where it is another one and fits into the time."""
    single = _latency(subject, 1, (deadline - time.perf_counter()) / 4)
    if eval_batch == 1:
        return [single]
    seconds_left = (deadline - time.perf_counter()) / 2
    expected_seconds = single.median_ms / 1e3 * eval_batch * (1 + _MIN_REPEATS)
    # A GPU computes a batch in far less than the sum of its images, and has the time anyway.
    if expected_seconds > seconds_left:
        said = "latency of batches of %d not measured: about %.0f s (smaller: val_dataloader.total_batch_size)"
        log.warning(said, eval_batch, expected_seconds)
        return [single]
    return [single, _latency(subject, eval_batch, seconds_left)]


def _latency(subject: Detector, batch_size: int, seconds: float) -> Latency:
    """Warm up, then time until the seconds are over, 3 times at least and 100 times at most."""
    images = _noise(subject.config, batch_size, subject.device)

    def timed() -> float:
        _synchronize(subject.device)
        started = time.perf_counter()
        _detect(subject, images)
        _synchronize(subject.device)
        return time.perf_counter() - started

    until = time.perf_counter() + seconds
    first = timed()
    for _ in range(_WARM_UP_RUNS - 1):
        if first * (_WARM_UP_RUNS + _MIN_REPEATS) < seconds:
            timed()
    times: list[float] = []
    while len(times) < _MIN_REPEATS or (len(times) < _MAX_REPEATS and time.perf_counter() < until):
        times.append(timed())
    median, p95 = np.percentile(times, [50, 95]).tolist()
    return Latency(batch_size, 1e3 * median, 1e3 * p95, batch_size / median, repeats=len(times))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _training_bytes(model: nn.Module, config: ExperimentConfig, device: torch.device) -> int | None:
    """Peak of one step on a single process's micro-batch."""
    batch_size = config.train_dataloader.images_per_batch(config.micro_batches)
    try:
        return _peak_bytes(lambda: train_steps(model, config, _noise(config, batch_size, device)), device)
    except torch.OutOfMemoryError as error:
        log.warning("memory of a training step not measured: %s", str(error).splitlines()[0])
    torch.cuda.empty_cache()
    return None


def _peak_bytes(action: Callable[[], object], device: torch.device) -> int | None:
    """The most that `action` had allocated at a time, on top of what was there; None where torch cannot tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    with _quiet_kineto(), profiler.profile(profile_memory=True) as profile:
        action()
    if profile.kineto_results is None:
        return None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    # Only what was allocated in here is counted when it is freed.
    held = np.cumsum([0, *(event.nbytes() for event in events)], dtype=np.int64)
    return int(held.max())


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """The profiler's library reports to stderr, e.g. that a CPU build finds no GPU."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = before or "6"
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]


def _weight_bytes(model: nn.Module) -> int:
    """Parameters and buffers, each once."""
    storages = (tensor.untyped_storage() for tensor in chain(model.parameters(), model.buffers()))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def device_name(device: torch.device) -> str:
    """The hardware, as a reader of a table wants to see it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
