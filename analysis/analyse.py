"""One pass over detections and ground truth: everything a full evaluation tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.bootstrap import BootstrapResult, bootstrap
from analysis.curves import best_threshold, precision_at_recall, score_counts, score_curves
from analysis.errors import classify_errors, confusion, error_breakdown
from analysis.findings import gallery, size_histogram
from analysis.image_level import image_level
from analysis.matching import MatchTables
from analysis.result import Analysis, ClassAnalysis, Cost, ImageLevel, Interval, Threshold
from engine.coco_metrics import ClassResult, CocoNumbers, Detections, GroundTruth, coco_numbers

DEFAULT_SCORE = 0.5
"""Where nothing is hit, so that no threshold is the best."""


def analyse(
    truth: GroundTruth,
    detections: Detections,
    *,
    split: str,
    samples: int = 1000,
    seed: int = 0,
    confusion_iou: float = 0.5,
    confusion_score: float | None = None,
    cost: Cost | None = None,
    facts: Mapping[str, Any] | None = None,
    numbers: CocoNumbers | None = None,
) -> tuple[Analysis, MatchTables]:
    """Analyse the detections of a split; the match tables too, which are made on the way.

    Args:
        truth: Ground truth.
        detections: Of all images.
        split: Name of the split.
        samples: Of the bootstrap; 0 leaves all intervals out.
        seed: Of the bootstrap.
        confusion_iou: Least IoU of the confusion matrix.
        confusion_score: Least score of the confusion matrix; None takes the best of F1 over all classes.
        cost: Of the model, passed on.
        facts: Of the run, passed on.
        numbers: COCO's numbers of these detections where they are known already.
    """
    numbers = numbers or coco_numbers(truth, detections)
    tables = MatchTables.of(truth, detections)
    resampled = bootstrap(tables, samples=samples, seed=seed)
    counts = score_counts(tables, None)
    best = best_threshold(counts)
    best_score = DEFAULT_SCORE if best is None else best.score
    errors = classify_errors(tables)
    normal = truth.classes.normal_label
    interval = BootstrapResult.ap_interval
    analysis = Analysis(
        split=split,
        gt_hash=tables.gt_hash,
        num_images=len(truth.images),
        metrics=numbers.metrics,
        metrics_defects=numbers.metrics_defects,
        intervals={
            "AP": interval(resampled.ap, resampled.point_ap),
            "AP50": interval(resampled.ap50, resampled.point_ap50),
            "AP75": interval(resampled.ap75, resampled.point_ap75),
        },
        bootstrap_samples=samples,
        per_class=[
            _class_analysis(label, tables, numbers.per_class[name], resampled)
            for label, name in enumerate(tables.names)
        ],
        curves=score_curves(counts),
        best=best,
        confusion=confusion(
            tables, iou=confusion_iou, score=best_score if confusion_score is None else confusion_score
        ),
        errors=error_breakdown(tables, errors),
        image_level=image_level(tables, normal, samples=samples, seed=seed),
        sizes=size_histogram(tables, score=best_score),
        gallery=gallery(tables, errors, normal, score=best_score),
        cost=cost,
        facts=dict(facts or {}),
    )
    return analysis, tables


def _class_analysis(label: int, tables: MatchTables, row: ClassResult, resampled: BootstrapResult) -> ClassAnalysis:
    counts = score_counts(tables, label)
    interval = BootstrapResult.ap_interval
    return ClassAnalysis(
        name=tables.names[label],
        label=label,
        num_gt=row["num_gt"],
        num_images=int((tables.gt_counts[0, :, label] > 0).sum()),
        metrics=class_metrics(row),
        intervals={
            "AP": interval(resampled.per_class_ap[:, label], float(resampled.point_per_class_ap[label])),
            "AP50": interval(resampled.per_class_ap50[:, label], float(resampled.point_per_class_ap50[label])),
        },
        precision_at_recall=precision_at_recall(tables, label),
        curves=score_curves(counts),
        best=best_threshold(counts),
    )


def class_metrics(row: ClassResult) -> dict[str, float | None]:
    """The fractions of a class, without its counts."""
    return {
        "AP": row["AP"],
        "AP50": row["AP50"],
        "AP75": row["AP75"],
        "AP_small": row["AP_small"],
        "AP_medium": row["AP_medium"],
        "AP_large": row["AP_large"],
        "AR_100": row["AR_100"],
        "AR_small": row["AR_small"],
        "AR_medium": row["AR_medium"],
        "AR_large": row["AR_large"],
    }


def analysis_to_json(analysis: Analysis) -> dict[str, Any]:
    """What results.json holds of it; null for what cannot be measured. Curves per class stay out, they follow from
    match_tables.npz; the facts of the run stand beside the metrics.

    Raises:
        ValueError: A fact has the name of a metric.
    """
    content: dict[str, Any] = {
        "metrics": dict(analysis.metrics),
        "metrics_defects": dict(analysis.metrics_defects),
        "per_class": {
            one.name: {
                **one.metrics,
                "num_gt": one.num_gt,
                "num_images": one.num_images,
                "intervals": _intervals(one.intervals),
            }
            for one in analysis.per_class
        },
        "gt_hash": analysis.gt_hash,
        "split": analysis.split,
        "num_images": analysis.num_images,
        "intervals": _intervals(analysis.intervals),
        "bootstrap_samples": analysis.bootstrap_samples,
        "thresholds": {
            "overall": _threshold(analysis.best),
            "per_class": {one.name: _threshold(one.best) for one in analysis.per_class},
        },
        "confusion": {
            "names": list(analysis.confusion.names),
            "iou": analysis.confusion.iou,
            "score": analysis.confusion.score,
            "counts": analysis.confusion.counts.tolist(),
        },
        "errors": {
            "base_ap50": analysis.errors.base_ap50,
            "ap50_cost": dict(analysis.errors.ap50_cost),
            "counts": dict(analysis.errors.counts),
        },
        "image_level": _image_level(analysis.image_level),
        "sizes": {
            "edges_px": analysis.sizes.edges_px.tolist(),
            "ground_truth": analysis.sizes.ground_truth.tolist(),
            "found": analysis.sizes.found.tolist(),
        },
        "cost": None if analysis.cost is None else asdict(analysis.cost),
    }
    taken = sorted(set(content) & set(analysis.facts))
    if taken:
        raise ValueError(f"results.json already has {', '.join(taken)}")
    return {**content, **analysis.facts}


def _intervals(intervals: Mapping[str, Interval | None]) -> dict[str, list[float] | None]:
    return {name: None if one is None else [one.low, one.high] for name, one in intervals.items()}


def _threshold(best: Threshold | None) -> dict[str, float] | None:
    return None if best is None else best._asdict()


def _image_level(level: ImageLevel) -> dict[str, Any]:
    interval = level.auroc_interval
    return {
        "auroc": level.auroc,
        "auroc_interval": None if interval is None else [interval.low, interval.high],
        "num_clean": level.num_clean,
        "num_defective": level.num_defective,
        "scores": _numbers(level.scores),
        "false_alarms_per_clean_image": _numbers(level.false_alarms_per_clean_image),
        "miss_rate": _numbers(level.miss_rate),
    }


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in values]
