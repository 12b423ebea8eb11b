"""The parts of one optimiser step, and whole steps on trial.

A window is the micro-batches that make one step (`accumulation_steps` of them).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
from torch import Tensor, nn

from data.batch import Batch, Target
from data.industrial_dataset import pixel_mean_std
from engine.acceleration import choose_amp_dtype
from engine.config import ExperimentConfig
from engine.distributed import Distributed
from engine.optim import ModelEma, build_optimizer
from models.criterion import WindowShare, build_criterion
from models.detector import build_detector, normalize_images

BOXES_PER_IMAGE = 8


def windows(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Groups of `size` micro-batches; the last one of an epoch may be shorter."""
    iterator = iter(batches)
    while window := list(islice(iterator, size)):
        yield window


def window_shares(config: ExperimentConfig, dist: Distributed, window: list[Batch]) -> list[WindowShare | None]:
    """How the losses of each micro-batch are scaled, so that a window's sum is one large batch's loss."""
    if config.micro_batches == 1:
        return [None]
    boxes = torch.full((), float(sum(batch.num_boxes for batch in window)), device=dist.device)
    num_boxes = dist.mean(boxes).clamp(min=1.0)
    images = sum(len(batch.targets) for batch in window)
    return [WindowShare(num_boxes=num_boxes, image_share=len(batch.targets) / images) for batch in window]


def batch_losses(
    model: nn.Module,
    criterion: nn.Module,
    batch: Batch,
    config: ExperimentConfig,
    *,
    epoch: int,
    share: WindowShare | None,
    amp_dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Weighted losses of one micro-batch, which is on the model's device."""
    with torch.autocast(batch.images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        outputs = model(normalize_images(batch.images, *pixel_mean_std(config)), batch.targets)
    losses: dict[str, Tensor] = criterion(outputs, batch.targets, epoch=epoch, share=share)
    return losses


@dataclass(frozen=True)
class Step:
    """What one optimiser step gave; the tensors stay on the device."""

    losses: dict[str, Tensor]
    """Weighted losses, summed over the window's micro-batches."""
    grad_norm: Tensor
    loss_finite: bool
    """The loss, on every process."""
    update_finite: bool
    """Loss and gradient, on every process; False: the step was skipped."""
    stopping: bool
    """Some process got a stop signal."""
    scaled: bool
    """Trained with a loss scale (fp16), where a gradient overflow is nothing unusual."""

    @property
    def counts_as_nonfinite(self) -> bool:
        return not self.loss_finite or (not self.update_finite and not self.scaled)


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
    ema = ModelEma(trained, **config.ema.model_dump()) if config.use_ema else None
    optimizer = build_optimizer(trained, config.optimizer)
    criterion = build_criterion(config).to(device)
    batch = Batch(images, _targets(len(images), boxes_per_image, config, device), [], torch.empty(0))
    amp_dtype = choose_amp_dtype(config.use_amp, device)
    times = [_now(device)]
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.enable_grad():
            losses = batch_losses(trained, criterion, batch, config, epoch=0, share=None, amp_dtype=amp_dtype)
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
    centres = 0.3 + 0.4 * torch.rand(num_images, num_boxes, 2, generator=generator)
    sizes = 0.1 + 0.3 * torch.rand(num_images, num_boxes, 2, generator=generator)
    labels = torch.randint(0, config.num_classes, (num_images, num_boxes), generator=generator)
    areas = sizes.prod(dim=2) * math.prod(config.eval_spatial_size)
    columns = [column.to(device) for column in (labels, torch.cat([centres, sizes], dim=2), areas)]
    return [Target(labels=one, boxes=boxes, area=area) for one, boxes, area in zip(*columns, strict=True)]
