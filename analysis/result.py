"""The outcome of a full evaluation, as plain data: what `results.json`, the figures and the report are made of.

Legend: K classes, T IoU thresholds (0.50:0.05:0.95), S score thresholds, R = 101 recall points (0, 0.01, ..., 1).
Fractions are in [0, 1]; None where there is no ground truth to measure on. All intervals are 95 % percentile
intervals of a bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from data.types import FloatArray, IntArray

ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Threshold(NamedTuple):
    """The score threshold with the best F1 at IoU 0.5, and what it gives."""

    score: float
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class ScoreCurves:
    """Precision, recall and F1 at IoU 0.5 when detections below a score are dropped, each float64 [S]."""

    scores: FloatArray
    """Ascending thresholds in [0, 1]."""
    precision: FloatArray
    """NaN where no detection is left."""
    recall: FloatArray
    """NaN without ground truth."""
    f1: FloatArray
    """NaN without ground truth."""


@dataclass(frozen=True)
class ClassAnalysis:
    """One class."""

    name: str
    label: int
    """Contiguous label."""
    num_gt: int
    """Boxes, crowds left out."""
    num_images: int
    """Images with at least one of them."""
    metrics: Mapping[str, float | None]
    """AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_100, AR_small, AR_medium, AR_large."""
    intervals: Mapping[str, Interval | None]
    """Of AP and AP50."""
    precision_at_recall: FloatArray
    """[3, R]: COCO's interpolated precision at IoU 0.5, 0.75 and averaged over T; NaN without ground truth."""
    curves: ScoreCurves
    best: Threshold | None
    """None where nothing is hit."""


@dataclass(frozen=True)
class Confusion:
    """Who is taken for whom, at one IoU and one score threshold."""

    names: Sequence[str]
    iou: float
    score: float
    counts: IntArray
    """[K + 1, K + 1]: row = ground truth (last: background), column = prediction (last: missed)."""


@dataclass(frozen=True)
class ErrorBreakdown:
    """Errors in the manner of TIDE (Bolya et al., ECCV 2020) at IoU 0.5 (foreground) and 0.1 (background)."""

    base_ap50: float | None
    ap50_cost: Mapping[ErrorKind, float]
    """How much AP50 would rise if only this kind of error were mended."""
    counts: Mapping[ErrorKind, int]
    """Detections (ground-truth boxes for `missed`) of this kind."""


@dataclass(frozen=True)
class ImageLevel:
    """Is there any defect in this image? An image's score is its best detection's of a defect class (not NORMAL)."""

    auroc: float | None
    auroc_interval: Interval | None
    num_clean: int
    """Images without a defect box; a crowd box is one too."""
    num_defective: int
    scores: FloatArray
    """[S], ascending thresholds."""
    false_alarms_per_clean_image: FloatArray
    """[S]: detections of defects at or above the threshold on clean images / clean images; NaN without any."""
    miss_rate: FloatArray
    """[S]: share of defective images without any detection of a defect at or above the threshold."""


@dataclass(frozen=True)
class SizeHistogram:
    """Boxes by size (square root of the area in pixels): how many there are, and how many are found (IoU 0.5, at the
    best score threshold)."""

    edges_px: FloatArray
    """[N + 1]"""
    ground_truth: IntArray
    """[N]"""
    found: IntArray
    """[N]"""


@dataclass(frozen=True)
class Finding:
    """One picture of the gallery."""

    kind: str
    """"missed" or "false_alarm"."""
    image_id: int
    label: int
    score: float
    """Of the false alarm; for a miss the best score of a detection that touches it, else 0."""
    box_xywh: tuple[float, float, float, float]
    """Pixels of the original image."""
    note: str
    """Error kind, e.g. "classification"."""


@dataclass(frozen=True)
class Latency:
    """Of one batch size, device synchronised, after warm-up."""

    batch_size: int
    median_ms: float
    p95_ms: float
    images_per_s: float
    repeats: int = 0
    """Timed runs behind the two numbers: few on a CPU, where a percentile of them says little. 0: unknown."""


@dataclass(frozen=True)
class Cost:
    """What a model costs to run."""

    parameters: int
    gflops: float
    """Of one image at `image_size_hw`; a multiply-add counts as two (torch.utils.flop_counter)."""
    image_size_hw: tuple[int, int]
    latencies: Sequence[Latency]
    """Batch 1 and the evaluation batch."""
    inference_memory_mb: float | None
    """Peak of one inference batch of size 1."""
    training_memory_mb: float | None
    """Peak of one training step at the micro-batch of the config."""
    device: str
    dtype: str
    threads: int


@dataclass(frozen=True)
class Analysis:
    """Everything that one pass over a split tells."""

    split: str
    gt_hash: str
    num_images: int
    metrics: Mapping[str, float | None]
    """COCO's twelve."""
    metrics_defects: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None]
    """Of AP, AP50 and AP75."""
    bootstrap_samples: int
    per_class: Sequence[ClassAnalysis]
    curves: ScoreCurves
    """Of all classes together (counts summed)."""
    best: Threshold | None
    confusion: Confusion
    errors: ErrorBreakdown
    image_level: ImageLevel
    sizes: SizeHistogram
    gallery: Sequence[Finding]
    """Worst misses and worst false alarms, worst first within each kind."""
    cost: Cost | None
    facts: Mapping[str, Any]
    """Of the run: checkpoint, epoch, epochs, seed, parameters, train_seconds, ..."""
