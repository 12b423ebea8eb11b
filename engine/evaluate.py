"""A model over a data split: detections of every image, gathered from all processes, and COCO's numbers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from data.batch import Batch
from data.classes import ClassMap
from data.coco import CocoSplit
from data.industrial_dataset import pixel_mean_std
from engine.coco_metrics import ClassResult, Detections, GroundTruth, Prediction, coco_numbers
from engine.config import ExperimentConfig
from models.detector import normalize_images
from models.postprocess import build_postprocessor, without_repeats

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
    detections: Detections

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
    bar = tqdm(
        loader,
        desc=f"evaluate {split.name}",
        unit="batch",
        leave=False,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30.0,
        disable=not progress or rank != 0,
    )
    started = time.perf_counter()
    with _evaluation_mode(model):
        raw = _detect(model, bar, config, device, amp_dtype, nms_iou)
    seconds = time.perf_counter() - started
    parts = _gather((raw, seconds))
    result = None
    if rank == 0:
        merged = _merge([part for part, _ in parts], split)
        truth = GroundTruth.of(split)
        slowest = max(seconds for _, seconds in parts)
        result = _judge(truth, merged.to_detections(classes), split.name, slowest / max(len(truth.images), 1))
    return _share(result)


@dataclass(frozen=True)
class _Raw:
    """Detections as the network gives them: few arrays, cheap to send between processes."""

    image_ids: list[int]
    """Every image that was looked at, in order."""
    counts: list[int]
    """Detections per image, same order."""
    scores: np.ndarray[Any, Any]
    """float32 [M], images concatenated, best first within each."""
    labels: np.ndarray[Any, Any]
    """int64 [M], contiguous."""
    boxes_xyxy: np.ndarray[Any, Any]
    """float32 [M, 4], pixels of the original image."""

    def to_detections(self, classes: ClassMap) -> Detections:
        """Map labels to category ids and drop what is not finite (JSON and COCO know no NaN)."""
        finite = np.isfinite(self.scores) & np.isfinite(self.boxes_xyxy).all(axis=1)
        if not finite.all():
            log.warning(
                "%d of %d detections are not finite and left out; the weights have probably diverged",
                int((~finite).sum()),
                len(finite),
            )
        image_ids = np.repeat(np.asarray(self.image_ids, dtype=np.int64), self.counts)
        category_ids = classes.ids.numpy()[self.labels]
        return Detections.from_xyxy(
            image_ids[finite], category_ids[finite], self.scores[finite], self.boxes_xyxy[finite]
        )


@torch.no_grad()  # not inference_mode: embeddings cached by a module must stay usable in training
def _detect(
    model: nn.Module,
    batches: Iterable[Batch],
    config: ExperimentConfig,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    nms_iou: float | None,
) -> _Raw:
    """All detections of this process, copied to the host in the background: a single wait, at the end."""
    mean, std = pixel_mean_std(config)
    processor = build_postprocessor(config)
    image_ids: list[int] = []
    counts: list[int] = []
    scores, labels, boxes = [torch.empty(0)], [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 4)]

    def keep(kept: list[Tensor], parts: list[Tensor]) -> None:
        kept.append(torch.cat(parts).to("cpu", non_blocking=True))

    for batch in batches:
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            outputs = model(normalize_images(batch.images, mean, std))
        found = processor(outputs, batch.orig_sizes_wh)
        if nms_iou is not None:
            found = without_repeats(found, nms_iou)
        image_ids += batch.image_ids
        counts += [len(one["scores"]) for one in found]
        keep(scores, [one["scores"] for one in found])
        keep(labels, [one["labels"] for one in found])
        keep(boxes, [one["boxes"] for one in found])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return _Raw(image_ids, counts, *(torch.cat(parts).numpy() for parts in (scores, labels, boxes)))


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


def _gather(part: tuple[_Raw, float]) -> list[tuple[_Raw, float]]:
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
    light = [None if result is None else replace(result, detections=Detections.empty())]
    dist.broadcast_object_list(light, src=0)
    shared = light[0] if result is None else result
    assert shared is not None
    return shared


def _merge(parts: Sequence[_Raw], split: CocoSplit) -> _Raw:
    """One table in ascending order of image ids, each image once, whatever the number of processes was.

    Raises:
        ValueError: Images of the split are missing: their boxes would silently count as misses.
    """
    image_ids = np.concatenate([np.asarray(part.image_ids, dtype=np.int64) for part in parts])
    counts = np.concatenate([np.asarray(part.counts, dtype=np.int64) for part in parts])
    starts = np.concatenate([[0], np.cumsum(counts)])
    unique, first = np.unique(image_ids, return_index=True)
    expected = {image.id for image in split.images}
    if set(unique.tolist()) != expected:
        absent = sorted(expected - set(unique.tolist()))
        raise ValueError(f"the loader left out {len(absent)} images of split {split.name!r}, e.g. ids {absent[:5]}")
    rows = np.concatenate([np.empty(0, dtype=np.int64), *(np.arange(starts[i], starts[i + 1]) for i in first)])
    return _Raw(
        image_ids=unique.tolist(),
        counts=counts[first].tolist(),
        scores=np.concatenate([part.scores for part in parts])[rows],
        labels=np.concatenate([part.labels for part in parts])[rows],
        boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts])[rows],
    )


def _judge(truth: GroundTruth, detections: Detections, split: str, seconds_per_image: float) -> EvalResult:
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
