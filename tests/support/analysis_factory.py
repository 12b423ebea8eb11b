"""An `Analysis` from random numbers: no model, no evaluation, every odd case at will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from analysis.analyse import Analysis
from analysis.bootstrap import Interval
from analysis.cost import Cost, Latency
from analysis.curves import SCORE_THRESHOLDS
from analysis.errors import ERROR_KINDS, Finding
from data.types import FloatArray
from engine.metrics import METRIC_NAMES

NAMES = ("PERFORACIÓN", "RAYÓN", "ROTURA", "PLIEGUE", "MANCHA", "NORMAL")
CLASS_METRICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_100", "AR_small", "AR_medium", "AR_large"),
)


def make_curves(rng: np.random.Generator) -> FloatArray:
    """Precision, which rises with the threshold, recall, which falls, and F1."""
    recall = np.clip(rng.uniform(0.7, 0.99) * (1 - SCORE_THRESHOLDS ** rng.uniform(1, 4)), 0, 1)
    precision = np.clip(rng.uniform(0.1, 0.4) + 0.8 * SCORE_THRESHOLDS ** rng.uniform(0.2, 0.8), 0, 1)
    return np.stack([precision, recall, 2 * precision * recall / np.maximum(precision + recall, 1e-9)])


def best_of(curves: FloatArray) -> dict[str, float]:
    """The highest F1."""
    k = int(np.nanargmax(curves[2]))
    precision, recall, f1 = curves[:, k].tolist()
    return {"score": float(SCORE_THRESHOLDS[k]), "f1": f1, "precision": precision, "recall": recall}


def make_class(rng: np.random.Generator) -> dict[str, Any]:
    """Plausible numbers of a class."""
    ap = float(rng.uniform(0.2, 0.7))
    metrics: dict[str, Any] = {key: float(np.clip(ap + rng.uniform(-0.2, 0.3), 0, 1)) for key in CLASS_METRICS}
    ap50 = metrics["AP50"]
    intervals = {"AP": Interval(ap - 0.05, ap + 0.04), "AP50": Interval(ap50 - 0.03, min(ap50 + 0.06, 1))}
    counts = {"num_gt": int(rng.integers(5, 2000)), "num_images": int(rng.integers(5, 500)), "intervals": intervals}
    return {**metrics, "AP": ap, "AP_small": None, **counts}


def make_analysis(
    names: Sequence[str] = NAMES,
    *,
    findings: Sequence[Finding] = (),
    facts: dict[str, Any] | None = None,
    **changes: Any,
) -> Analysis:
    """Plausible numbers for classes of these names; `changes` replaces parts of the results."""
    rng = np.random.default_rng(0)
    if facts is None:
        facts = {"checkpoint": "best.pth", "epoch": 37, "epochs": 132, "seed": 0, "use_amp": False}
    count = len(names)
    curves = np.stack([make_curves(rng) for _ in range(count + 1)])
    counts = rng.integers(0, 6, (count + 1, count + 1)) + np.diag([*rng.integers(20, 90, count), 0])
    counts[-1, -1] = 0
    ground_truth = rng.integers(20, 100, 10)
    scores = np.linspace(0, 1, 101)
    metrics: dict[str, Any] = {name: float(rng.uniform(0.3, 0.8)) for name in METRIC_NAMES}
    cost = Cost(
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
    results = {
        "split": "val",
        "gt_hash": "0123456789abcdef" * 4,
        "num_images": 360,
        "metrics": metrics | {"AP_small": None},
        "metrics_defects": {name: value - 0.01 for name, value in metrics.items()} | {"AP_small": None},
        "intervals": {key: Interval(metrics[key] - 0.03, metrics[key] + 0.04) for key in ("AP", "AP50", "AP75")},
        "bootstrap_samples": 1000,
        "per_class": {name: make_class(rng) for name in names},
        "thresholds": {
            "overall": best_of(curves[-1]),
            "per_class": dict(zip(names, map(best_of, curves), strict=False)),
        },
        "suppression": make_suppression(),
        "confusion": {"names": list(names), "iou": 0.5, "score": 0.43, "counts": counts.tolist()},
        "errors": {
            "base_ap50": 0.62,
            "ap50_cost": {kind: float(rng.uniform(0, 0.1)) for kind in ERROR_KINDS},
            "counts": {kind: int(rng.integers(0, 3000)) for kind in ERROR_KINDS},
            "counts_at_score": {kind: number for number, kind in enumerate(ERROR_KINDS, start=7)},
        },
        "image_level": {
            "auroc": 0.943,
            "auroc_interval": Interval(0.91, 0.97),
            "num_clean": 60,
            "num_defective": 300,
            "scores": scores.tolist(),
            "false_alarms_per_clean_image": (90 * np.exp(-9 * scores) * (scores < 0.9)).tolist(),
            "miss_rate": (scores**3).tolist(),
        },
        "calibration": make_calibration(names),
        "acceptance": {
            "cost": {
                **{"miss": 100.0, "false_alarm": 1.0, "num_clean": 60, "num_defective": 300},
                **{"threshold": 0.21, "threshold_interval": Interval(0.15, 0.3)},
                **{"per_image": 0.4, "per_image_interval": Interval(0.2, 0.7)},
            },
            "promise": make_promise(names),
        },
        "sizes": {
            "edges_px": [0.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0, 1024.0],
            "ground_truth": ground_truth.tolist(),
            "found": (ground_truth * rng.uniform(0.2, 1, 10)).astype(int).tolist(),
        },
        "cost": asdict(cost),
    }
    steps = 1 - (np.linspace(0, 1, 101) / (rng.uniform(0.7, 1, (count, 1, 1)) * np.array([[[1], [0.8], [0.6]]]))) ** 3
    return Analysis({**results, **facts}, facts, curves, np.clip(steps, 0, 1), findings)


def make_calibration(names: Sequence[str]) -> dict[str, Any]:
    """Scores that are too high, and what calibration makes of them."""

    def measured(ece: float) -> dict[str, Any]:
        one = {"ece": ece, "interval": Interval(ece - 0.01, ece + 0.01), "detections": 700}
        scores = [(k + 0.5) / 15 for k in range(15)]
        bins = {"scores": scores, "hits": [score * (1 - ece) for score in scores], "counts": [9, 0, *range(13)]}
        return {**one, "per_class": dict.fromkeys(names, one), "bins": bins}

    facts = {"method": "isotonic", "iou": 0.5, "least_score": 0.05, "curves": dict.fromkeys(names, [[0, 1], [0, 1]])}
    return {**facts, "before": measured(0.12), "after": measured(0.03)}


def make_promise(names: Sequence[str]) -> dict[str, Any]:
    """A promise that is made for all and, for want of images, for no class."""
    kept = {"num_defective": 300, "missed": 2, "threshold": 0.11, "bound": 0.0195, "needed": 149}
    facts = {"max_miss_rate": 0.02, "confidence": 0.95, "promise_per_class": False, "num_clean": 60}
    few = {"num_defective": 50, "missed": 0, "threshold": None, "bound": None, "needed": 149}
    whole = {"all": kept, "per_class": dict.fromkeys(names, few), "threshold": 0.11, "false_alarm_rate": 0.25}
    return facts | whole


def make_suppression() -> dict[str, Any]:
    """What suppression would give, IoU 0.6 the best."""
    ious = (None, 0.9, 0.8, 0.7, 0.6, 0.5)
    tried = [
        {"iou": iou, "AP": 0.3 + 0.01 * k, "AP50": 0.6 + 0.01 * k, "f1": 0.7 - 0.01 * abs(k - 4)}
        | {"thresholds": {"overall": {"score": 0.3 - 0.01 * k, "f1": 0.7, "precision": 0.7, "recall": 0.7}}}
        for k, iou in enumerate(ious)
    ]
    return {"iou": 0.6, "tried": tried, "repeats": 12, "detections": 340}


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


def empty_class(one: dict[str, Any]) -> dict[str, Any]:
    """A class without ground truth."""
    return {**dict.fromkeys(one), "num_gt": 0, "num_images": 0, "intervals": {"AP": None, "AP50": None}}


def _uncalibrated(results: dict[str, Any]) -> dict[str, Any]:
    """No detection at all."""
    nothing = {"ece": None, "interval": None, "detections": 0}
    bins = dict.fromkeys(("scores", "hits", "counts"), [0] * 15)
    return {**nothing, "per_class": dict.fromkeys(results["per_class"], nothing), "bins": bins}


def without_ground_truth(analysis: Analysis) -> Analysis:
    """The same where nothing is annotated: None and NaN wherever they may be."""
    results = analysis.results
    nothing = [None] * len(results["image_level"]["scores"])
    zeros = [0] * len(results["sizes"]["found"])
    return replace(
        changed(
            analysis,
            metrics=dict.fromkeys(METRIC_NAMES),
            metrics_defects=dict.fromkeys(METRIC_NAMES),
            intervals=dict.fromkeys(results["intervals"]),
            per_class={name: empty_class(one) for name, one in results["per_class"].items()},
            thresholds={"overall": None, "per_class": dict.fromkeys(results["per_class"])},
            confusion={"counts": np.zeros_like(results["confusion"]["counts"]).tolist()},
            errors={
                "base_ap50": None,
                "ap50_cost": dict.fromkeys(ERROR_KINDS, 0.0),
                "counts": dict.fromkeys(ERROR_KINDS, 0),
                "counts_at_score": dict.fromkeys(ERROR_KINDS, 0),
            },
            image_level={
                **{"auroc": None, "auroc_interval": None, "num_clean": 0, "num_defective": 0},
                **{"false_alarms_per_clean_image": nothing, "miss_rate": nothing},
            },
            calibration={"method": "none", "curves": None, "after": None, "before": _uncalibrated(results)},
            acceptance={"cost": None, "promise": None},
            sizes={"ground_truth": zeros, "found": zeros},
            cost=None,
        ),
        curves=np.full_like(analysis.curves, np.nan),
        precision_at_recall=np.full_like(analysis.precision_at_recall, np.nan),
    )
