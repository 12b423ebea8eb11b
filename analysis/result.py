"""The outcome of a full evaluation: what results.json holds, and the curves and boxes that only figures show.

Legend: K classes, S score thresholds, R = 101 recall points (0, 0.01, ..., 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from data.types import FloatArray

ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Finding(NamedTuple):
    """One picture of the gallery."""

    kind: Literal["missed", "false_alarm"]
    image_id: int
    label: int
    score: float
    """Of the false alarm; for a miss the best score of a detection that touches it, else 0."""
    box_xywh: tuple[float, float, float, float]
    """Pixels of the original image."""
    note: ErrorKind
    first_score: float | None = None
    """Of a duplicate: the detection that found its box first."""
    first_iou: float | None = None
    """Of a duplicate: with that box."""


@dataclass(frozen=True)
class Latency:
    """Time of one batch size, device synchronised, after warm-up."""

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
