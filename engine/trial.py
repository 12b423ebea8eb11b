"""Training steps on a copy of a network, to see what they take: memory and time."""

from __future__ import annotations

import copy
import gc
import logging
import time
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from data.batch import Target
from data.config import multiscale_sides
from data.industrial_dataset import pixel_mean_std
from engine.amp import choose_amp_dtype
from engine.config import ExperimentConfig
from engine.ema import ModelEma
from engine.optim import build_optimizer
from models.criterion import build_criterion
from models.detector import build_detector, normalize_images

log = logging.getLogger(__name__)

BOXES_PER_IMAGE = 8


@dataclass(frozen=True)
class Trial:
    """What a training step took."""

    peak_bytes: int
    """The most that torch's allocator had handed out, weights, optimiser and EMA included."""
    seconds: float


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


def train_steps(
    model: nn.Module,
    config: ExperimentConfig,
    images: Tensor,
    *,
    boxes_per_image: int = BOXES_PER_IMAGE,
    steps: int = 1,
) -> list[float]:
    """Make steps of the training loop on a copy of `model`, with everything that takes memory; seconds of each."""
    device = images.device
    trained = copy.deepcopy(model).train()
    if not any(parameter.requires_grad for parameter in trained.parameters()):
        # An EMA's weights do not learn: take from a new model which of them do in training.
        learns = {name for name, parameter in build_detector(config).named_parameters() if parameter.requires_grad}
        for name, parameter in trained.named_parameters():
            parameter.requires_grad_(name in learns)
    ema = ModelEma(trained, decay=config.ema.decay, warmups=config.ema.warmups) if config.use_ema else None
    optimizer = build_optimizer(trained, config.optimizer)
    criterion = build_criterion(config).to(device)
    targets = _targets(len(images), boxes_per_image, config, device)
    amp_dtype = choose_amp_dtype(config.use_amp, device)
    times = [_now(device)]
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                outputs = trained(normalize_images(images, *pixel_mean_std(config)), targets)
            losses = criterion(outputs, targets, epoch=0)
            torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        if ema is not None:
            ema.update(trained)
        times.append(_now(device))
    return [end - start for start, end in pairwise(times)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _targets(num_images: int, num_boxes: int, config: ExperimentConfig, device: torch.device) -> list[Target]:
    """Random boxes, the same every time."""
    generator = torch.Generator().manual_seed(0)
    targets = []
    for _ in range(num_images):
        centre = 0.3 + 0.4 * torch.rand(num_boxes, 2, generator=generator)
        size = 0.1 + 0.3 * torch.rand(num_boxes, 2, generator=generator)
        labels = torch.randint(0, config.num_classes, (num_boxes,), generator=generator)
        area = size.prod(dim=1) * config.eval_spatial_size[0] * config.eval_spatial_size[1]
        boxes = torch.cat([centre, size], dim=1)
        targets.append(Target(labels=labels.to(device), boxes=boxes.to(device), area=area.to(device)))
    return targets
