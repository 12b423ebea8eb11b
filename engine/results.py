"""What an evaluation leaves behind: results.json, predictions.json, a table for the eye."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint import write_atomically
from engine.coco_metrics import METRIC_NAMES
from engine.evaluate import EvalResult

log = logging.getLogger(__name__)

_MEANINGS = {
    "AP": "IoU 0.50:0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "AP_small": "area below 32 x 32 px",
    "AP_medium": "area 32 x 32 to 96 x 96 px",
    "AP_large": "area above 96 x 96 px",
    "AR_1": "1 detection per image",
    "AR_10": "10 detections per image",
    "AR_100": "100 detections per image",
    "AR_small": "area below 32 x 32 px",
    "AR_medium": "area 32 x 32 to 96 x 96 px",
    "AR_large": "area above 96 x 96 px",
}


def write_results(folder: Path, result: EvalResult, extra: Mapping[str, Any] | None = None) -> None:
    """Write predictions.json, then results.json, each atomically: where results.json is, its predictions are too.

    Args:
        folder: Created if need be.
        result: From `evaluate` on rank 0, the only process that has the detections.
        extra: Further JSON values for results.json, such as checkpoint and epoch; they may not hide a metric.

    Raises:
        UserError: The folder cannot be written.
    """
    content = result.to_json()
    taken = sorted(set(content) & set(extra or {}))
    if taken:
        raise ValueError(f"results.json already has {', '.join(taken)}")
    content.update(extra or {})
    predictions = json.dumps(result.predictions, separators=(",", ":"), allow_nan=False)
    results = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    _write_text(folder / "predictions.json", predictions, what="predictions")
    _write_text(folder / "results.json", results, what="results")


def _write_text(path: Path, text: str, *, what: str) -> None:
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()), what=what)


def format_results(result: EvalResult) -> str:
    """The twelve COCO numbers and AP per class as a readable table; `-` stands for "no ground truth"."""
    has_normal = result.metrics != result.metrics_defects
    head = f"{'':12}{'all':>8}" + (f"{'defects':>10}" if has_normal else "")
    lines = [f"Split {result.split}: {result.num_images} images", "", head]
    for name in METRIC_NAMES:
        row = f"{name:12}{_number(result.metrics[name]):>8}"
        if has_normal:
            row += f"{_number(result.metrics_defects[name]):>10}"
        lines.append(f"{row}   {_MEANINGS[name]}")
    width = max(12, *(len(name) + 2 for name in result.per_class))
    lines += ["", f"{'class':{width}}{'AP':>8}{'AP50':>8}{'boxes':>8}"]
    for name, row_of_class in result.per_class.items():
        lines.append(
            f"{name:{width}}{_number(row_of_class['AP']):>8}{_number(row_of_class['AP50']):>8}"
            f"{row_of_class['num_gt']:>8}"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
