"""`total_batch_size: auto` and `accumulation_steps: auto`: numbers that fit into the card's memory, by trial steps."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch

from data.coco import CocoSplit
from data.config import multiscale_sides
from engine.config import ExperimentConfig, with_batch
from engine.distributed import Distributed
from engine.step import train_steps
from models.detector import build_detector

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """What a training step took."""

    peak_bytes: int
    """The most that torch's allocator had handed out, weights, optimiser and EMA included."""
    seconds: float


Probe = Callable[[int], Trial | None]
"""What a step with so many images takes; None where it does not fit."""

CPU_BATCH = 4
_LARGEST_BATCH = 32
"""The one that the official learning rates are made for."""
_ROOMY, _FITTING = 0.6, 0.9
"""Shares of a card's memory: for a batch chosen freely, and for one that has to fit."""
_GIB = 2**30


@dataclass(frozen=True)
class BatchChoice:
    """Images per optimiser step, over all processes, and micro-batches it is made of; why, and what is faster."""

    total_batch_size: int
    accumulation_steps: int
    why: str
    advice: str | None = None


def decide_batch(
    config: ExperimentConfig, dist: Distributed, split: CocoSplit, stored: ExperimentConfig | None
) -> ExperimentConfig:
    """Replace `auto` by numbers, the same in every process; a resumed run keeps those of its checkpoint, `stored`."""
    loader = config.train_dataloader
    if "auto" not in (loader.total_batch_size, config.accumulation_steps):
        return config
    if stored is not None:
        total = stored.train_dataloader.total_batch_size or stored.train_dataloader.batch_size
        choice = BatchChoice(total if isinstance(total, int) else CPU_BATCH, stored.micro_batches, "of the checkpoint")
    else:
        choice = dist.from_main(partial(_measured, config, dist, split))
    log.info("batch: %d in %d micro-batches (%s)", choice.total_batch_size, choice.accumulation_steps, choice.why)
    if choice.advice:
        log.info("%s", choice.advice)
    return with_batch(config, choice.total_batch_size, choice.accumulation_steps, choice.why)


def _measured(config: ExperimentConfig, dist: Distributed, split: CocoSplit) -> BatchChoice:
    probe: Probe | None = None
    memory_bytes = 0
    if dist.device.type == "cuda":
        boxes = most_boxes(config, split)
        probe = cache(lambda images: try_step(config, dist.device, images, boxes))
        memory_bytes = torch.cuda.get_device_properties(dist.device).total_memory
    total = config.train_dataloader.total_batch_size
    return choose_batch(
        total if isinstance(total, int) else None,
        config.accumulation_steps if isinstance(config.accumulation_steps, int) else None,
        probe,
        memory_bytes,
        num_processes=dist.world_size,
        num_images=len(split),
    )


def try_step(config: ExperimentConfig, device: torch.device, num_images: int, boxes_per_image: int) -> Trial | None:
    """Train a network with random weights for a few steps on a GPU, at the largest size; None: it does not fit.

    Without class texts, whose part is small. The random numbers of the caller are the same afterwards.
    """
    config = config.model_copy(update={"MultimodalFusion": None})
    side = max(multiscale_sides(config.train_dataloader.collate_fn), default=0)
    height, width = (max(side, length) for length in config.eval_spatial_size)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.cuda.reset_peak_memory_stats(device)
            model = build_detector(config).to(device)
            images = torch.zeros(num_images, 3, height, width, dtype=torch.uint8, device=device)
            *_, seconds = train_steps(model, config, images, boxes_per_image=boxes_per_image, steps=3)
            return Trial(torch.cuda.max_memory_allocated(device), seconds)
    except torch.OutOfMemoryError as error:
        log.debug("trial step with %d images: %s", num_images, error)
        return None
    finally:
        model = images = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()


def most_boxes(config: ExperimentConfig, split: CocoSplit) -> int:
    """Count the boxes of the fullest image, or of the four fullest, which Mosaic may put together."""
    counts = sorted((image.rows.stop - image.rows.start for image in split.images), reverse=True)
    mosaic = any(op.type == "Mosaic" for op in config.train_dataloader.dataset.transforms.ops)
    return max(1, int(sum(counts[: 4 if mosaic else 1])))


def choose_batch(
    total: int | None,
    steps: int | None,
    probe: Probe | None,
    memory_bytes: int,
    *,
    num_processes: int = 1,
    num_images: int,
) -> BatchChoice:
    """Choose what is not given.

    Args:
        total: Images per optimiser step; None: the largest power of two up to 32 within 60 % of the memory.
        steps: Micro-batches; None: as few as fit.
        probe: None on a CPU.
        num_processes: They share a step's images.
        num_images: Of the training split, which a step cannot exceed.
    """
    given = steps or 1
    if probe is None:
        images = max(1, min(CPU_BATCH, num_images) // given)
        return BatchChoice(total or images * given * num_processes, given, "on a CPU")
    largest = max(1, min(_LARGEST_BATCH, num_images) // num_processes)
    if total is None:
        images, trial = _roomiest(probe, memory_bytes, max(1, largest // given))
        return BatchChoice(images * given * num_processes, given, _facts(trial, images, memory_bytes))
    own = max(1, total // num_processes)
    for parts in [n for n in range(1, own + 1) if own % n == 0]:
        if _fits(trial := probe(own // parts), _FITTING * memory_bytes):
            break
    why = _facts(trial, own // parts, memory_bytes)
    images, larger = _roomiest(probe, memory_bytes, largest)
    if trial is None or larger is None or images <= own:
        return BatchChoice(total, parts, why)
    times = (images / larger.seconds) / (own / (parts * trial.seconds))
    advice = (
        f"peak {trial.peak_bytes / _GIB:.1f} of {memory_bytes / _GIB:.1f} GiB at batch {own * num_processes}; "
        f"total_batch_size {images * num_processes} ({larger.peak_bytes / _GIB:.1f} GiB) trains about {times:.1f} "
        "times as many images a second (trial steps on this card)"
    )
    return BatchChoice(total, parts, why, advice)


def _roomiest(probe: Probe, memory_bytes: int, largest: int) -> tuple[int, Trial | None]:
    images = 1 << (largest.bit_length() - 1)
    while not _fits(trial := probe(images), _ROOMY * memory_bytes) and images > 1:
        images //= 2
    return images, trial


def _fits(trial: Trial | None, most_bytes: float) -> bool:
    return trial is not None and trial.peak_bytes <= most_bytes


def _facts(trial: Trial | None, images: int, memory_bytes: int) -> str:
    if trial is None:
        return f"a trial step with {images} image did not fit into {memory_bytes / _GIB:.1f} GiB, either"
    return f"peak {trial.peak_bytes / _GIB:.1f} of {memory_bytes / _GIB:.1f} GiB in a trial step with {images} images"
