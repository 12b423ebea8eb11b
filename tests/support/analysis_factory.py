"""Analyses of random boxes, for classes of any name: no model, no images, every odd case at will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from analysis.analyse import Analysis, AnalysisOptions, analyse
from analysis.cost import Cost, Latency
from analysis.errors import Finding
from data.classes import ClassMap
from engine.metrics import Predictions
from tests.support.coco_reference import random_case

NAMES = ("PERFORACIÓN", "RAYÓN", "ROTURA", "PLIEGUE", "MANCHA", "NORMAL")
NUM_IMAGES = 40
COST = Cost(
    parameters=9_876_543,
    gflops=25.4,
    image_size_hw=(640, 640),
    latencies=[Latency(1, 21.5, 25.1, 46.5), Latency(32, 410.0, 440.5, 78.0)],
    inference_memory_mb=310.5,
    training_memory_mb=None,
    device="NVIDIA H100",
    dtype="float32",
    threads=8,
)
RUN = MappingProxyType({"checkpoint": "best.pth", "epoch": 37, "epochs": 132, "seed": 0, "use_amp": False})


def make_analysis(
    names: Sequence[str] = NAMES,
    *,
    facts: Mapping[str, Any] = RUN,
    boxes: bool = True,
    detections: bool = True,
    unseen: int = 0,
    **parts: Any,
) -> Analysis:
    """For classes of these names, of which the last `unseen` have no ground truth; `parts` replaces fields."""
    analysis = _analysed(tuple(names), boxes, detections, unseen)
    return replace(analysis, results={**analysis.results, **facts}, facts=facts, **parts)


@cache
def _analysed(names: tuple[str, ...], boxes: bool, detections: bool, unseen: int) -> Analysis:
    classes = ClassMap(tuple(range(3, 3 + len(names))), names)
    truth, found = random_case(0, num_images=NUM_IMAGES, classes=classes, unseen=unseen)
    truth = truth if boxes else replace(truth, annotations=[])
    found = found if detections else Predictions.empty()
    wishes = {"calibrate": "isotonic" if boxes and detections else "none", "cost_miss": 100.0, "max_miss_rate": 0.2}
    options = AnalysisOptions(bootstrap=20 if boxes else 0, **(wishes if boxes else {}))
    return analyse(truth, found, "val", options, cost=COST if boxes else None)


def changed(analysis: Analysis, **changes: Any) -> Analysis:
    """The same with other parts of the results; dictionaries are merged."""
    merged = {k: {**analysis.results[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}
    return replace(analysis, results={**analysis.results, **merged})


def make_findings(image_ids: Sequence[int], *, size: float = 12.0, score: float = 0.8) -> list[Finding]:
    """One miss and one false alarm an image."""
    return [
        Finding(kind, image_id, 0, score if kind == "false_alarm" else 0.0, (8.0, 6.0, size, size), note)
        for kind, note in (("missed", "missed"), ("false_alarm", "background"))
        for image_id in image_ids
    ]  # type: ignore[misc]
