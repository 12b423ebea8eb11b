"""TIDE's errors and their costs, image by image and box by box: slow, plain, and written from the paper alone."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from engine.metrics import GroundTruth, Predictions

KINDS = ("classification", "localisation", "both", "duplicate", "background")


def tide(truth: GroundTruth, detections: Predictions) -> tuple[float, dict[str, float], dict[str, int]]:
    """AP50, what each kind of error costs, and how often it occurs. There may be no crowd boxes."""
    gts = [
        {"image": box["image_id"], "class": box["category_id"], "box": box["bbox"], "by": None}
        for box in truth.annotations
    ]
    dets = [
        {"image": one["image_id"], "class": one["category_id"], "box": one["bbox"], "score": one["score"], "hit": None}
        for one in detections.to_coco()
    ]
    dets.sort(key=lambda one: (-one["score"], one["image"]))
    for det in dets:
        free = [g for g in gts if same(det, g) and g["by"] is None and iou(det, g) >= 0.5]
        if free:
            det["hit"] = max(reversed(free), key=lambda g: iou(det, g))
            det["hit"]["by"] = det
    for det in dets:
        det["kind"], det["target"] = (None, None) if det["hit"] else kind_of(det, gts)
    targeted = {id(det["target"]) for det in dets if det["target"] is not None}
    missed = [g for g in gts if g["by"] is None and id(g) not in targeted]

    totals: dict[int, int] = defaultdict(int)
    for g in gts:
        totals[g["class"]] += 1
    base = ap50([(d["class"], d["score"], d["hit"] is not None) for d in dets], totals)
    costs = {kind: ap50(mended(dets, kind), totals) - base for kind in KINDS}
    left = dict(totals)
    for g in missed:
        left[g["class"]] -= 1
    costs["missed"] = ap50([(d["class"], d["score"], d["hit"] is not None) for d in dets], left) - base
    counts = {kind: sum(d["kind"] == kind for d in dets) for kind in KINDS} | {"missed": len(missed)}
    return base, {kind: max(cost, 0.0) for kind, cost in costs.items()}, counts


def kind_of(det: dict[str, Any], gts: list[dict[str, Any]]) -> tuple[str, dict[str, Any] | None]:
    here = [g for g in gts if g["image"] == det["image"]]
    own = max((g for g in here if g["class"] == det["class"]), key=lambda g: iou(det, g), default=None)
    other = max((g for g in here if g["class"] != det["class"]), key=lambda g: iou(det, g), default=None)
    if own and 0.1 <= iou(det, own) <= 0.5:
        return "localisation", own
    if other and iou(det, other) >= 0.5:
        return "classification", other
    if any(g["class"] == det["class"] and g["by"] and iou(det, g) >= 0.5 for g in here):
        return "duplicate", None
    if all(iou(det, g) < 0.1 for g in here):
        return "background", None
    return "both", None


def mended(dets: list[dict[str, Any]], kind: str) -> list[tuple[int, float, bool]]:
    rows, served = [], set()
    for det in dets:  # best first
        if det["kind"] != kind:
            rows.append((det["class"], det["score"], det["hit"] is not None))
        elif det["target"] is not None and det["target"]["by"] is None and id(det["target"]) not in served:
            served.add(id(det["target"]))
            rows.append((det["target"]["class"], det["score"], True))
    return rows


def same(det: dict[str, Any], gt: dict[str, Any]) -> bool:
    return bool(det["image"] == gt["image"] and det["class"] == gt["class"])


def iou(one: dict[str, Any], two: dict[str, Any]) -> float:
    (x1, y1, w1, h1), (x2, y2, w2, h2) = one["box"], two["box"]
    width = max(min(x1 + w1, x2 + w2) - max(x1, x2), 0)
    height = max(min(y1 + h1, y2 + h2) - max(y1, y2), 0)
    return float(width * height / (w1 * h1 + w2 * h2 - width * height))


def ap50(rows: list[tuple[int, float, bool]], totals: dict[int, int]) -> float:
    """COCO's 101 points, averaged over the classes that have (or had) boxes."""
    values = []
    for label, total in totals.items():
        points: list[tuple[float, float]] = []
        hits = 0
        ranked = sorted((row for row in rows if row[0] == label), key=lambda row: -row[1])
        for place, (_, _, hit) in enumerate(ranked, start=1):
            hits += hit
            points.append((hits / total if total else 0.0, hits / place))
        recalls = np.linspace(0, 1, 101)
        best = [max((p for r, p in points if r >= level), default=0.0) for level in recalls]
        values.append(float(np.mean(best)) if total else 0.0)
    return float(np.mean(values))
