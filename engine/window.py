"""A window: the micro-batches that make one optimiser step (`accumulation_steps` of them)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from data.batch import Batch
from data.industrial_dataset import pixel_mean_std
from engine.config import ExperimentConfig
from engine.distributed import Distributed
from models.criterion import WindowShare
from models.detector import normalize_images


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
    mean, std = pixel_mean_std(config)
    with torch.autocast(batch.images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
        outputs = model(normalize_images(batch.images, mean, std), batch.targets)
    losses: dict[str, Tensor] = criterion(outputs, batch.targets, epoch=epoch, share=share)
    return losses
