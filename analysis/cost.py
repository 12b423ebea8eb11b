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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import profiler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from analysis.result import Cost, Latency
from data.batch import Target
from data.industrial_dataset import pixel_mean_std
from engine.amp import choose_amp_dtype
from engine.config import ExperimentConfig
from engine.detector import Detector
from engine.ema import ModelEma
from engine.optim import build_optimizer
from models.criterion import build_criterion
from models.detector import build_detector, normalize_images

log = logging.getLogger(__name__)

BUDGET_SECONDS = 40.0
"""About how long `measure_cost` may take; a GPU needs a few seconds."""

_MAX_REPEATS = 100
_MIN_REPEATS = 3
_WARM_UP_RUNS = 5
_BOXES_PER_IMAGE = 8
_PROBE_BATCH = 2
_TRAINING_SHARE = 0.5
"""Of the budget that a training step may take whatever was spent before: the slower a machine, the more was."""
_CPU_TRAINING_LIMIT_BYTES = 4 * 2**30
"""A step that might need more is not tried on a CPU: running out of memory would kill the evaluation itself."""


def measure_cost(
    detector: Detector,
    *,
    eval_batch: int,
    training_step: bool = True,
    budget_seconds: float = BUDGET_SECONDS,
) -> Cost:
    """Measure one detector on images of noise of `eval_spatial_size`.

    - GFLOPs: one image through the network, counted by torch.utils.flop_counter (a multiply-add is two). It knows
      matrix products, convolutions and attention. Everything else counts nothing: normalisations, activations,
      softmax, element-wise sums, and `grid_sample` and other gathers, so also the sampling of deformable attention,
      RoI pooling and non-maximum suppression.
    - Latency: from uint8 images on the device to detections (normalisation, network, post-processing), the device
      synchronised before and after each run, after warm-up. As many runs as the budget allows, 3 to 100;
      `Latency.repeats` says how many. The evaluation batch is left out where not even three fit.
    - Memory: the highest sum of what torch's allocator has handed out, weights included; whatever else lies on the
      device is not in it. Read from torch.cuda's statistics, on a CPU from the allocations in torch's profiler.
    - Training step: forward, losses, backward, AdamW step, EMA, on one process's micro-batch with
      `_BOXES_PER_IMAGE` boxes an image. None if it does not fit into memory or, on a CPU, might need more than 4 GiB,
      or more time than is left and than half of the budget.

    Args:
        detector: Any. Of its config image size, training batch, optimiser, EMA and losses are read; the training step
            follows `use_amp` there.
        eval_batch: Images per batch of the second latency.
        training_step: Measure it too.
        budget_seconds: Upper bound of the time, kept as far as single runs allow.
    """
    deadline = time.perf_counter() + budget_seconds
    model, config, device = detector.model, detector.config, detector.device
    subject = _Subject(replace(detector, model=copy.deepcopy(model).eval()))
    cuda_devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda_devices):
        gflops = _gflops(subject)
        latencies = _latencies(subject, eval_batch, deadline)
        inference_bytes = _peak_bytes(lambda: subject.detect(subject.images(1)), device)
        if inference_bytes is not None:
            inference_bytes += _weight_bytes(subject.detector.model)
        left_seconds = max(deadline - time.perf_counter(), _TRAINING_SHARE * budget_seconds)
        training_bytes = _training_bytes(model, config, subject, left_seconds) if training_step else None
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=gflops,
        image_size_hw=config.eval_spatial_size,
        latencies=latencies,
        inference_memory_mb=_megabytes(inference_bytes),
        training_memory_mb=_megabytes(training_bytes),
        device=_device_name(device),
        dtype=str(detector.amp_dtype or torch.float32).removeprefix("torch."),
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True)
class _Subject:
    """The copy that is measured."""

    detector: Detector

    def images(self, count: int) -> Tensor:
        """uint8 [count, 3, H, W]: noise, the same every time."""
        generator = torch.Generator().manual_seed(0)
        size = (count, 3, *self.detector.config.eval_spatial_size)
        return torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).to(self.detector.device)

    def detect(self, images: Tensor) -> None:
        """Images to detections."""
        height, width = self.detector.config.eval_spatial_size
        self.detector.detect(images, [(width, height)] * len(images))

    def timed(self, images: Tensor) -> float:
        """Seconds of one `detect`."""
        self._wait()
        started = time.perf_counter()
        self.detect(images)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.detector.device.type == "cuda":
            torch.cuda.synchronize(self.detector.device)


def _gflops(subject: _Subject) -> float:
    """Of one image. Fused attention is written out, so that every device counts the same operations."""
    images = subject.images(1)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operation that the counter does not know
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            subject.detector.outputs(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return float(counter.get_total_flops()) / 1e9


def _latencies(subject: _Subject, eval_batch: int, deadline: float) -> list[Latency]:
    """Batch 1, and the evaluation batch where it is another one and fits into the time."""
    single = _latency(subject, 1, (deadline - time.perf_counter()) / 4)
    if eval_batch == 1:
        return [single]
    seconds_left = (deadline - time.perf_counter()) / 2
    expected_seconds = single.median_ms / 1e3 * eval_batch * (1 + _MIN_REPEATS)
    # A GPU computes a batch in far less than the sum of its images, and has the time anyway.
    if expected_seconds > seconds_left:
        log.warning(
            "latency of batches of %d not measured: about %.0f s (smaller: val_dataloader.total_batch_size)",
            eval_batch,
            expected_seconds,
        )
        return [single]
    return [single, _latency(subject, eval_batch, seconds_left)]


def _latency(subject: _Subject, batch_size: int, seconds: float) -> Latency:
    """Warm up, then time until the seconds are over, 3 times at least and 100 times at most."""
    images = subject.images(batch_size)
    until = time.perf_counter() + seconds
    first = subject.timed(images)
    for _ in range(_WARM_UP_RUNS - 1):
        if first * (_WARM_UP_RUNS + _MIN_REPEATS) < seconds:
            subject.timed(images)
    times: list[float] = []
    while len(times) < _MIN_REPEATS or (len(times) < _MAX_REPEATS and time.perf_counter() < until):
        times.append(subject.timed(images))
    median = float(np.median(times))
    return Latency(
        batch_size=batch_size,
        median_ms=1e3 * median,
        p95_ms=1e3 * float(np.percentile(times, 95)),
        images_per_s=batch_size / median,
        repeats=len(times),
    )


def _training_bytes(model: nn.Module, config: ExperimentConfig, subject: _Subject, limit_seconds: float) -> int | None:
    """Peak of one step; on a CPU a step on two images tells first whether the whole one can be afforded."""
    device, batch_size = subject.detector.device, _micro_batch(config)
    if device.type == "cpu" and batch_size > _PROBE_BATCH:
        started = time.perf_counter()
        probe = _peak_bytes(lambda: _train_once(model, config, subject.images(_PROBE_BATCH)), device)
        seconds = (time.perf_counter() - started) * batch_size / _PROBE_BATCH
        # Upper bounds: weights and optimiser do not grow with the batch.
        if probe is None or probe * batch_size / _PROBE_BATCH > _CPU_TRAINING_LIMIT_BYTES:
            log.info("memory of a training step not measured: %d images might not fit into this machine", batch_size)
            return None
        if seconds > limit_seconds:
            log.info("memory of a training step not measured: %d images would take %.0f s", batch_size, seconds)
            return None
    try:
        return _peak_bytes(lambda: _train_once(model, config, subject.images(batch_size)), device)
    except torch.OutOfMemoryError as error:
        log.warning("memory of a training step not measured: %s", str(error).splitlines()[0])
    torch.cuda.empty_cache()
    return None


def _train_once(model: nn.Module, config: ExperimentConfig, images: Tensor) -> None:
    """One step of the training loop on a copy of `model`, with everything that takes memory in it."""
    device = images.device
    trained = copy.deepcopy(model).train()
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        _thaw(trained, config)
    ema = ModelEma(trained, decay=config.ema.decay, warmups=config.ema.warmups) if config.use_ema else None
    optimizer = build_optimizer(trained, config.optimizer)
    criterion = build_criterion(config).to(device)
    targets = _targets(len(images), config.num_classes, config.eval_spatial_size, device)
    amp_dtype = choose_amp_dtype(config.use_amp, device)
    with torch.enable_grad():
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            outputs = trained(normalize_images(images, *pixel_mean_std(config)), targets)
        losses = criterion(outputs, targets, epoch=0)
        torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    if ema is not None:
        ema.update(trained)


def _thaw(frozen: nn.Module, config: ExperimentConfig) -> None:
    """An EMA's weights do not learn: take from a new model which of them do in training."""
    learns = {name for name, parameter in build_detector(config).named_parameters() if parameter.requires_grad}
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad_(name in learns)


def _targets(count: int, num_classes: int, size_hw: tuple[int, int], device: torch.device) -> list[Target]:
    """Random boxes, the same every time."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(count):
        centre = 0.3 + 0.4 * torch.rand(_BOXES_PER_IMAGE, 2, generator=generator)
        size = 0.1 + 0.3 * torch.rand(_BOXES_PER_IMAGE, 2, generator=generator)
        labels = torch.randint(0, num_classes, (_BOXES_PER_IMAGE,), generator=generator)
        area = size.prod(dim=1) * size_hw[0] * size_hw[1]
        boxes = torch.cat([centre, size], dim=1)
        targets.append(Target(labels=labels.to(device), boxes=boxes.to(device), area=area.to(device)))
    return targets


def _micro_batch(config: ExperimentConfig) -> int:
    """Images per micro-batch of a single process."""
    loader = config.train_dataloader
    return loader.batch_size or max(1, (loader.total_batch_size or 1) // config.accumulation_steps)


def _peak_bytes(action: Callable[[], None], device: torch.device) -> int | None:
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
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(model)}
    return sum(storages.values())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / 2**20


def _device_name(device: torch.device) -> str:
    """The hardware, as a reader of a table wants to see it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
