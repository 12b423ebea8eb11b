"""A model over a data split: detections of every image, gathered from all processes, and COCO's numbers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    rank = dist.get_rank() if _is_distributed() else 0
    started = time.perf_counter()
    seen: dict[int, Detections] = {}
    in_tiles: dict[int, dict[Window, Detections]] = {}
    with _evaluation_mode(detector.model):
        for batch in progress_bar(batches, f"evaluate {split.name}", unit="batch", show=progress and rank == 0):
            found = detector.detect(batch.images, batch.orig_sizes_wh)
            if batch.windows is None:
                seen |= zip(batch.image_ids, found, strict=True)
                continue
            for image_id, window, one in zip(batch.image_ids, batch.windows, found, strict=True):
                in_tiles.setdefault(image_id, {})[window] = one
    sizes_wh = {image.id: (image.width, image.height) for image in split.images}
    for image_id, parts_of in in_tiles.items():
        seen[image_id] = merge_tiles([*parts_of.values()], [*parts_of], sizes_wh[image_id])
    if nms_iou is not None:
        seen = {image_id: one.without_repeats(nms_iou) for image_id, one in seen.items()}
    parts = _gather((seen, time.perf_counter() - started))
    result = None
    if rank == 0:
        merged: dict[int, Detections] = {}
        for part, _ in parts:
            merged |= part
        seconds = max(seconds for _, seconds in parts)
        result = _judge(GroundTruth.of(split), _to_split(merged, split), split.name, seconds)
    return _share(result)


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
    light = [None if result is None else replace(result, detections=Predictions.empty())]
    dist.broadcast_object_list(light, src=0)
    shared = light[0] if result is None else result
    assert shared is not None
    return shared


def _judge(truth: GroundTruth, detections: Predictions, split: str, seconds: float) -> EvalResult:
    numbers = coco_numbers(truth, detections)
    return EvalResult(
        metrics=numbers.metrics,
        metrics_defects=numbers.metrics_defects,
        per_class=numbers.per_class,
        gt_hash=truth.fingerprint(),
        split=split,
        num_images=len(truth.images),
        seconds_per_image=seconds / max(len(truth.images), 1),
        detections=detections,
    )
