"""A model over a data split: detections of every image, gathered from all processes, and COCO's numbers."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from data.batch import Batch
from data.classes import ClassMap
from data.coco import CocoSplit
from data.industrial_dataset import pixel_mean_std
from data.progress import progress_bar
from engine.coco_metrics import ClassResult, GroundTruth, Prediction, coco_numbers
from engine.coco_metrics import Detections as SplitDetections
from engine.config import ExperimentConfig
from models.detections import Detections
from models.detector import normalize_images
from models.postprocess import build_postprocessor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvalResult:
    """Outcome of `evaluate`; equal on every process but for the detections, which only rank 0 has."""

    metrics: dict[str, float | None]
    """COCO's twelve numbers, fractions in [0, 1]; None without ground truth."""
    metrics_defects: dict[str, float | None]
    """The same without the category NORMAL."""
    per_class: dict[str, ClassResult]
    gt_hash: str
    """`GroundTruth.fingerprint()` of what was judged."""
    split: str
    num_images: int
    seconds_per_image: float
    """Wall-clock seconds of the pass over the data (reading, network, post-processing) per image, on the slowest
    process; the metrics themselves are not in it."""
    detections: SplitDetections

    @property
    def predictions(self) -> list[Prediction]:
        """COCO result format, the data set's own category ids; best first within an image."""
        return self.detections.to_coco()

    def to_json(self) -> dict[str, Any]:
        """What results.json holds of it: everything but the detections."""
        return {
            "metrics": self.metrics,
            "metrics_defects": self.metrics_defects,
            "per_class": self.per_class,
            "gt_hash": self.gt_hash,
            "split": self.split,
            "num_images": self.num_images,
            "seconds_per_image": self.seconds_per_image,
        }


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    classes: ClassMap,
    split: CocoSplit,
    config: ExperimentConfig,
    device: torch.device,
    progress: bool = True,
    amp_dtype: torch.dtype | None = None,
    nms_iou: float | None = None,
) -> EvalResult:
    """Judge `model` on `split`. Every process of the group calls it with its own part of the images.

    Args:
        model: Detector; judged in evaluation mode, its modes are restored.
        loader: Batches of this process; all processes together must cover the split. An image that comes twice
            counts once.
        classes: Labels of the network -> the data set's category ids.
        split: Ground truth.
        config: What `build_postprocessor` and the pixel normalisation read.
        device: Where `model` is.
        progress: Show a bar with ETA on stderr (rank 0 only).
        amp_dtype: Autocast to this type; None (the spec's way, section 9.4) computes in float32.
        nms_iou: Of boxes of one class that overlap more, the best is kept; None (the spec's way) keeps all.

    Raises:
        ValueError: The loaders left out images of the split, or the split has other classes.
    """
    if classes != split.classes:
        raise ValueError(f"split {split.name!r} has classes {split.classes}, the network {classes}")
    rank = dist.get_rank() if _is_distributed() else 0
    bar = progress_bar(loader, f"evaluate {split.name}", unit="batch", show=progress and rank == 0)
    started = time.perf_counter()
    with _evaluation_mode(model):
        seen = _detect(model, bar, config, device, amp_dtype, nms_iou)
    seconds = time.perf_counter() - started
    parts = _gather((seen, seconds))
    result = None
    if rank == 0:
        merged: dict[int, Detections] = {}
        for part, _ in parts:
            merged |= part
        truth = GroundTruth.of(split)
        slowest = max(seconds for _, seconds in parts)
        result = _judge(truth, _to_split(merged, split), split.name, slowest / max(len(truth.images), 1))
    return _share(result)


@torch.no_grad()  # not inference_mode: embeddings cached by a module must stay usable in training
def _detect(
    model: nn.Module,
    batches: Iterable[Batch],
    config: ExperimentConfig,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    nms_iou: float | None,
) -> dict[int, Detections]:
    """What this process's part of the network saw, by image id."""
    mean, std = pixel_mean_std(config)
    processor = build_postprocessor(config)
    detections: dict[int, Detections] = {}
    for batch in batches:
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            outputs = model(normalize_images(batch.images, mean, std))
        for image_id, one in zip(batch.image_ids, processor(outputs, batch.orig_sizes_wh), strict=True):
            detections[image_id] = one if nms_iou is None else one.without_repeats(nms_iou)
    return detections


def _to_split(detections: Mapping[int, Detections], split: CocoSplit) -> SplitDetections:
    """All of a split in ascending order of image ids; what is not finite is dropped (JSON and COCO know no NaN).

    Raises:
        ValueError: Images of the split are missing: their boxes would silently count as misses.
    """
    absent = sorted({image.id for image in split.images} - set(detections))
    if absent:
        raise ValueError(f"the loader left out {len(absent)} images of split {split.name!r}, e.g. ids {absent[:5]}")
    ordered = sorted(detections)
    image_ids = np.repeat(np.array(ordered, dtype=np.int64), [len(detections[image_id]) for image_id in ordered])
    whole = Detections.joined([detections[image_id] for image_id in ordered])
    finite = np.isfinite(whole.scores) & np.isfinite(whole.boxes_xyxy).all(axis=1)
    if not finite.all():
        log.warning(
            "%d of %d detections are not finite and left out; the weights have probably diverged",
            int((~finite).sum()),
            len(finite),
        )
    category_ids = split.classes.ids.numpy()[whole.labels]
    return SplitDetections.from_xyxy(
        image_ids[finite], category_ids[finite], whole.scores[finite], whole.boxes_xyxy[finite]
    )


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, afterwards each module's own mode again: frozen parts may differ from the rest."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gather(part: tuple[dict[int, Detections], float]) -> list[tuple[dict[int, Detections], float]]:
    """Every process's part, by rank, on rank 0; nothing elsewhere."""
    if not _is_distributed():
        return [part]
    parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(part, parts, dst=0)
    return parts or []


def _share(result: EvalResult | None) -> EvalResult:
    """Rank 0's result to every process, so that all decide alike; the detections stay on rank 0."""
    if not _is_distributed():
        assert result is not None
        return result
    light = [None if result is None else replace(result, detections=SplitDetections.empty())]
    dist.broadcast_object_list(light, src=0)
    shared = light[0] if result is None else result
    assert shared is not None
    return shared


def _judge(truth: GroundTruth, detections: SplitDetections, split: str, seconds_per_image: float) -> EvalResult:
    numbers = coco_numbers(truth, detections)
    return EvalResult(
        metrics=numbers.metrics,
        metrics_defects=numbers.metrics_defects,
        per_class=numbers.per_class,
        gt_hash=truth.fingerprint(),
        split=split,
        num_images=len(truth.images),
        seconds_per_image=seconds_per_image,
        detections=detections,
    )
