"""One pass over detections and ground truth: what results.json holds, and the curves and boxes that only figures show.

Legend: K classes, S score thresholds, R = 101 recall points (0, 0.01, ..., 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from pydantic import Field

from analysis.acceptance import AcceptanceOptions, acceptance
from analysis.bootstrap import bootstrap
from analysis.cost import Cost
from analysis.curves import image_level, precision_at_recall, ranked_hits, score_curves
from analysis.errors import Finding, classify_errors, confusion, error_breakdown, gallery, size_histogram
from analysis.matching import MIN_IOU, match
from data.types import FloatArray
from engine.metrics import CocoNumbers, GroundTruth, Predictions, best_thresholds, coco_numbers
from engine.suppression import try_suppression
from texts import Language

DEFAULT_SCORE = 0.5
"""Where nothing is hit, so that no threshold is the best."""


class AnalysisOptions(AcceptanceOptions):
    """What to do with detections once they are there."""

    lang: Language = "en"
    """Of figures and report."""
    bootstrap: int = Field(1000, ge=0, description="0 (off) or more, e.g. 1000")
    """Resamples."""
    confusion_iou: float = Field(0.5, ge=MIN_IOU, lt=1, description=f"{MIN_IOU:g} to below 1, e.g. 0.5")
    confusion_score: float | None = Field(None, ge=0, le=1, description="0 to 1, e.g. 0.5")
    """None: the best score threshold of all classes together."""
    captions: bool = True
    """False: captions of figures go into text files beside them."""
    report: bool = True
    """Write figures, gallery and report.html."""
    cost: bool = True
    """Measure FLOPs, time and memory."""
    nms: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="an IoU between 0 and 1, e.g. 0.7; without --nms all are judged, and several tried",
    )
    """Of boxes of one class that overlap more, only the best is judged; None judges all, as DEIMv2 is."""


@dataclass(frozen=True)
class Analysis:
    """Everything that one pass over a split tells."""

    results: dict[str, Any]
    """The content of results.json under its keys: `metrics`, `per_class`, `intervals`, `thresholds`, `confusion`,
    `errors`, `image_level`, `sizes`, `cost`, facts of the run. Fractions are in [0, 1]; None where there is nothing to
    measure on."""
    facts: Mapping[str, Any]
    """Those of the run, which are in `results` too."""
    curves: FloatArray
    """[K + 1, 3, S]: precision (NaN where no detection is left), recall and F1 (NaN without ground truth) at IoU 0.5
    when detections below a score are dropped; each class, then all together."""
    precision_at_recall: FloatArray
    """[K, 3, R]: COCO's interpolated precision at IoU 0.5, 0.75 and averaged; NaN without ground truth."""
    findings: Sequence[Finding]
    """Worst misses and worst false alarms, worst first within each kind."""


def analyse(
    truth: GroundTruth,
    detections: Predictions,
    split: str,
    options: AnalysisOptions,
    *,
    seed: int = 0,
    cost: Cost | None = None,
    facts: Mapping[str, Any] = MappingProxyType({}),
    numbers: CocoNumbers | None = None,
) -> Analysis:
    """Analyse the detections of all images of a split.

    Args:
        facts: Of the run, for results.json. Where `nms_iou` says that repeats were suppressed, nothing more is tried.
        numbers: COCO's numbers of these detections where they are known already.
    """
    numbers, matches = numbers or coco_numbers(truth, detections), match(truth, detections)
    samples, normal, labels = options.bootstrap, truth.classes.normal_label, range(len(matches.names))
    drawn = bootstrap(matches, samples=samples, seed=seed)
    thresholds, errors = best_thresholds(truth, detections), classify_errors(matches)
    best_score = DEFAULT_SCORE if thresholds["overall"] is None else thresholds["overall"]["score"]
    least_score = best_score if options.confusion_score is None else options.confusion_score
    suppressed = facts.get("nms_iou") is not None
    of_classes = {
        name: {
            **numbers.per_class[name],
            "num_images": int((matches.gt_counts[:, label] > 0).sum()),
            "intervals": {key: one.interval for key, one in drawn.per_class[name].items()},
        }
        for label, name in enumerate(matches.names)
    }
    results: dict[str, Any] = {
        "metrics": numbers.metrics,
        "metrics_defects": numbers.metrics_defects,
        "per_class": of_classes,
        "gt_hash": matches.gt_hash,
        "split": split,
        "num_images": len(truth.images),
        "intervals": {key: one.interval for key, one in drawn.metrics.items()},
        "bootstrap_samples": samples,
        "thresholds": thresholds,
        "suppression": None if suppressed else try_suppression(truth, detections, numbers, thresholds),
        "confusion": {
            "names": list(matches.names),
            "iou": options.confusion_iou,
            "score": least_score,
            "counts": confusion(matches, iou=options.confusion_iou, score=least_score).tolist(),
        },
        "errors": error_breakdown(matches, errors, score=least_score),
        "image_level": image_level(matches, normal, samples=samples, seed=seed),
        **acceptance(matches, normal, options, samples=samples, seed=seed),
        "sizes": size_histogram(matches, score=best_score),
        "cost": None if cost is None else asdict(cost),
    }
    if taken := sorted(results.keys() & facts):
        raise ValueError(f"results.json already has {', '.join(taken)}")
    return Analysis(
        results=results | {**facts},
        facts=facts,
        curves=np.stack([score_curves(*ranked_hits(matches, label)) for label in (*labels, None)]),
        precision_at_recall=np.stack([precision_at_recall(matches, label) for label in labels]),
        findings=gallery(matches, errors, normal, score=best_score),
    )
