"""An `Analysis` from random numbers: no model, no evaluation, every odd case at will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from analysis.result import (
    ERROR_KINDS,
    Analysis,
    ClassAnalysis,
    Confusion,
    Cost,
    ErrorBreakdown,
    Finding,
    ImageLevel,
    Interval,
    Latency,
    ScoreCurves,
    SizeHistogram,
    Threshold,
)
from engine.coco_metrics import METRIC_NAMES

NAMES = ("PERFORACIÓN", "RAYÓN", "ROTURA", "PLIEGUE", "MANCHA", "NORMAL")
CLASS_METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_100", "AR_small", "AR_medium", "AR_large"),
)


def make_curves(rng: np.random.Generator, points: int = 101) -> ScoreCurves:
    """Precision rises and recall falls with the threshold."""
    scores = np.linspace(0, 1, points)
    recall = np.clip(rng.uniform(0.7, 0.99) * (1 - scores ** rng.uniform(1, 4)), 0, 1)
    precision = np.clip(rng.uniform(0.1, 0.4) + 0.8 * scores ** rng.uniform(0.2, 0.8), 0, 1)
    return ScoreCurves(scores, precision, recall, 2 * precision * recall / np.maximum(precision + recall, 1e-9))


def best_of(curves: ScoreCurves) -> Threshold:
    """The highest F1."""
    k = int(np.nanargmax(curves.f1))
    return Threshold(*(float(values[k]) for values in (curves.scores, curves.f1, curves.precision, curves.recall)))


def make_class(rng: np.random.Generator, name: str, label: int) -> ClassAnalysis:
    """A class with plausible numbers."""
    ap = float(rng.uniform(0.2, 0.7))
    recall = np.linspace(0, 1, 101)
    steps = [np.clip(1 - (recall / limit) ** 3, 0, 1) for limit in rng.uniform(0.7, 1) * np.array([1, 0.8, 0.6])]
    curves = make_curves(rng)
    metrics: dict[str, float | None] = {key: float(np.clip(ap + rng.uniform(-0.2, 0.3), 0, 1)) for key in CLASS_METRICS}
    metrics |= {"AP": ap, "AP_small": None}
    ap50 = metrics["AP50"] or 0.0
    return ClassAnalysis(
        name=name,
        label=label,
        num_gt=int(rng.integers(5, 2000)),
        num_images=int(rng.integers(5, 500)),
        metrics=metrics,
        intervals={"AP": Interval(ap - 0.05, ap + 0.04), "AP50": Interval(ap50 - 0.03, min(ap50 + 0.06, 1))},
        precision_at_recall=np.stack(steps),
        curves=curves,
        best=best_of(curves),
    )


def make_analysis(names: Sequence[str] = NAMES, *, seed: int = 0, **changes: Any) -> Analysis:
    """Plausible numbers for classes of these names; `changes` replaces fields."""
    rng = np.random.default_rng(seed)
    classes = [make_class(rng, name, label) for label, name in enumerate(names)]
    curves = make_curves(rng)
    count = len(names)
    counts = rng.integers(0, 6, (count + 1, count + 1)) + np.diag([*rng.integers(20, 90, count), 0])
    counts[-1, -1] = 0
    ground_truth = rng.integers(20, 100, 10)
    thresholds = np.linspace(0, 1, 101)
    metrics: dict[str, float | None] = {name: float(rng.uniform(0.3, 0.8)) for name in METRIC_NAMES}
    metrics["AP_small"] = None
    analysis = Analysis(
        split="val",
        gt_hash="0123456789abcdef" * 4,
        num_images=360,
        metrics=metrics,
        metrics_defects={name: None if value is None else value - 0.01 for name, value in metrics.items()},
        intervals={
            key: Interval((metrics[key] or 0) - 0.03, (metrics[key] or 0) + 0.04) for key in ("AP", "AP50", "AP75")
        },
        bootstrap_samples=1000,
        per_class=classes,
        curves=curves,
        best=best_of(curves),
        confusion=Confusion(list(names), 0.5, 0.43, counts.astype(np.int64)),
        errors=ErrorBreakdown(
            base_ap50=0.62,
            ap50_cost={kind: float(rng.uniform(0, 0.1)) for kind in ERROR_KINDS},
            counts={kind: int(rng.integers(0, 3000)) for kind in ERROR_KINDS},
        ),
        image_level=ImageLevel(
            auroc=0.943,
            auroc_interval=Interval(0.91, 0.97),
            num_clean=60,
            num_defective=300,
            scores=thresholds,
            false_alarms_per_clean_image=90 * np.exp(-9 * thresholds) * (thresholds < 0.9),
            miss_rate=thresholds**3,
        ),
        sizes=SizeHistogram(
            np.array([0, 8, 16, 24, 32, 48, 64, 96, 128, 256, 1024], dtype=np.float64),
            ground_truth.astype(np.int64),
            (ground_truth * rng.uniform(0.2, 1, 10)).astype(np.int64),
        ),
        gallery=(),
        cost=Cost(
            parameters=9_876_543,
            gflops=25.4,
            image_size_hw=(640, 640),
            latencies=[Latency(1, 21.5, 25.1, 46.5), Latency(32, 410.0, 440.5, 78.0)],
            inference_memory_mb=310.5,
            training_memory_mb=None,
            device="NVIDIA H100",
            dtype="float32",
            threads=8,
        ),
        facts={"checkpoint": "best.pth", "epoch": 37, "epochs": 132, "seed": 0, "use_amp": False},
    )
    return replace(analysis, **changes)


def make_findings(image_ids: Sequence[int], *, size: float = 12.0, score: float = 0.8) -> list[Finding]:
    """One miss and one false alarm an image."""
    return [
        Finding(kind, image_id, 0, score if kind == "false_alarm" else 0.0, (8.0, 6.0, size, size), note)
        for kind, note in (("missed", "missed"), ("false_alarm", "background"))
        for image_id in image_ids
    ]  # type: ignore[misc]


def without_ground_truth(analysis: Analysis) -> Analysis:
    """The same where nothing is annotated: None and NaN wherever the contract allows them."""
    nothing = np.full_like(analysis.curves.f1, np.nan)
    curves = replace(analysis.curves, precision=nothing, recall=nothing, f1=nothing)
    level = analysis.image_level
    return replace(
        analysis,
        metrics=dict.fromkeys(analysis.metrics),
        metrics_defects=dict.fromkeys(analysis.metrics),
        intervals=dict.fromkeys(analysis.intervals),
        per_class=[
            replace(
                one,
                num_gt=0,
                num_images=0,
                metrics=dict.fromkeys(one.metrics),
                intervals=dict.fromkeys(one.intervals),
                precision_at_recall=np.full((3, 101), np.nan),
                curves=curves,
                best=None,
            )
            for one in analysis.per_class
        ],
        curves=curves,
        best=None,
        confusion=replace(analysis.confusion, counts=np.zeros_like(analysis.confusion.counts)),
        errors=ErrorBreakdown(None, dict.fromkeys(ERROR_KINDS, 0.0), dict.fromkeys(ERROR_KINDS, 0)),
        image_level=replace(
            level,
            auroc=None,
            auroc_interval=None,
            num_clean=0,
            num_defective=0,
            false_alarms_per_clean_image=np.full_like(level.scores, np.nan),
            miss_rate=np.full_like(level.scores, np.nan),
        ),
        sizes=replace(
            analysis.sizes,
            ground_truth=np.zeros_like(analysis.sizes.ground_truth),
            found=np.zeros_like(analysis.sizes.found),
        ),
        cost=None,
    )
