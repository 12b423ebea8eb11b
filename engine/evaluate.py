"""A model over a data split: detections of every image, gathered from all processes, and COCO's numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn

from data.batch import Batch
from data.coco import CocoSplit
from data.progress import progress_bar
from data.types import Window
from engine.detector import Detector
from engine.metrics import GroundTruth, Metrics, Prediction, Predictions, coco_numbers
from engine.tiling import merge_tiles
from models.detections import Detections


@dataclass(frozen=True)
class EvalResult:
    """Outcome of `evaluate`; equal on every process but for the detections, which only rank 0 has."""

    metrics: Metrics
    """COCO's twelve numbers, fractions in [0, 1]; None without ground truth."""
    metrics_defects: Metrics
    """The same without the category NORMAL."""
    per_class: dict[str, dict[str, Any]]
    gt_hash: str
    """`GroundTruth.fingerprint()` of what was judged."""
    split: str
    num_images: int
    seconds_per_image: float
    """Wall-clock seconds of the pass over the data (reading, network, post-processing) per image, on the slowest
    process; the metrics themselves are not in it."""
    detections: Predictions

    @property
    def predictions(self) -> list[Prediction]:
        """COCO result format, the data set's own category ids; best first within an image."""
        return self.detections.to_coco()

    def to_json(self) -> dict[str, Any]:
        """What results.json holds of it: everything but the detections."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "detections"}


def evaluate(
    detector: Detector,
    batches: Iterable[Batch],
    split: CocoSplit,
    *,
    nms_iou: float | None = None,
    progress: bool = True,
) -> EvalResult:
    """Judge a detector on `split`. Every process of the group calls it with its own part of the images.

    Args:
        detector: Judged in evaluation mode; its modules' modes are restored.
        batches: Of this process; all processes together must cover the split. An image that comes twice counts once.
            All tiles of an image are in one process; what was found in them is merged and judged in the whole image.
        split: Ground truth, with the detector's classes.
        nms_iou: Of boxes of one class that overlap more, the best is kept; None keeps all, as DEIMv2 is judged.
        progress: Show a bar with ETA on stderr (rank 0 only).

    Raises:
        ValueError: The batches left out images of the split, or the split has other classes.
    """
    if detector.classes != split.classes:
        raise ValueError(f"split {split.name!r} has classes {split.classes}, the network {detector.classes}")
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank = dist.get_rank() if together else 0
    started = time.perf_counter()
    bar = progress_bar(batches, f"evaluate {split.name}", unit="batch", show=progress and rank == 0)
    seen = _detect(detector, bar, split)
    if nms_iou is not None:
        seen = {image_id: one.without_repeats(nms_iou) for image_id, one in seen.items()}
    parts: list[Any] = [(seen, time.perf_counter() - started)]
    if together:
        own, parts = parts[0], [None] * dist.get_world_size()
        dist.gather_object(own, parts if rank == 0 else None, dst=0)
    result = _judge(split, parts) if rank == 0 else None
    if together:  # all decide alike; the detections stay on rank 0
        light = [result and replace(result, detections=Predictions.empty())]
        dist.broadcast_object_list(light, src=0)
        result = result or light[0]
    assert result is not None
    return result


def _detect(detector: Detector, batches: Iterable[Batch], split: CocoSplit) -> dict[int, Detections]:
    """What is detected in each image, by its id; tiles are put together."""
    seen: dict[int, Detections] = {}
    in_tiles: dict[int, dict[Window, Detections]] = {}
    with _evaluation_mode(detector.model):
        for batch in batches:
            found = detector.detect(batch.images, batch.orig_sizes_wh)
            if batch.windows is None:
                seen |= zip(batch.image_ids, found, strict=True)
                continue
            for image_id, window, one in zip(batch.image_ids, batch.windows, found, strict=True):
                in_tiles.setdefault(image_id, {})[window] = one
    sizes_wh = {image.id: (image.width, image.height) for image in split.images}
    for image_id, tiles in in_tiles.items():
        seen[image_id] = merge_tiles([*tiles.values()], [*tiles], sizes_wh[image_id])
    return seen


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


def _judge(split: CocoSplit, parts: Iterable[tuple[dict[int, Detections], float]]) -> EvalResult:
    """Judge what all processes detected, each in how many seconds."""
    merged: dict[int, Detections] = {}
    seconds = 0.0
    for part, took in parts:
        merged |= part
        seconds = max(seconds, took)
    truth, detections = GroundTruth.of(split), _to_split(merged, split)
    per_image = seconds / max(len(truth.images), 1)
    numbers = coco_numbers(truth, detections)
    return EvalResult(*numbers, truth.fingerprint(), split.name, len(truth.images), per_image, detections)


def _to_split(detections: Mapping[int, Detections], split: CocoSplit) -> Predictions:
    """Put all of a split into one table, in ascending order of image ids.

    Raises:
        ValueError: Images of the split are missing: their boxes would silently count as misses.
    """
    absent = sorted({image.id for image in split.images} - set(detections))
    if absent:
        raise ValueError(f"the loader left out {len(absent)} images of split {split.name!r}, e.g. ids {absent[:5]}")
    ordered = sorted(detections)
    image_ids = np.repeat(np.array(ordered, dtype=np.int64), [len(detections[image_id]) for image_id in ordered])
    whole = Detections.joined([detections[image_id] for image_id in ordered])
    category_ids = split.classes.ids.numpy()[whole.labels]
    return Predictions.from_xyxy(image_ids, category_ids, whole.scores, whole.boxes_xyxy)
