"""Detections against ground truth: COCO's numbers through faster-coco-eval. Pure: no model, no files.

Legend: M detections, K categories, T IoU thresholds (0.50:0.05:0.95), R recall points, A area ranges, D limits on
detections per image (1, 10, 100).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from data.classes import ClassMap
from data.coco import CocoSplit
from data.types import FloatArray as FloatArray
from data.types import IntArray as IntArray
from models.detections import SCORE_DECIMALS

_BOX_DECIMALS = 4


class Prediction(TypedDict):
    """One entry of COCO's result format."""

    image_id: int
    category_id: int
    bbox: list[float]
    """x, y, width, height in pixels of the original image."""
    score: float


class ClassResult(TypedDict):
    """Numbers of one class; None where it has no ground truth (of that size)."""

    AP: float | None
    AP50: float | None
    AP75: float | None
    AP_small: float | None
    AP_medium: float | None
    AP_large: float | None
    AR_100: float | None
    AR_small: float | None
    AR_medium: float | None
    AR_large: float | None
    num_gt: int


@dataclass(frozen=True)
class Detections:
    """Detections of a whole split, in columns. Rounded when made, so that what is judged is what is written.

    1e-4 px is the resolution of float32 itself for a coordinate near 1000, and 1e-9 keeps the order of scores.
    """

    image_ids: IntArray
    """[M]"""
    category_ids: IntArray
    """[M], the data set's own."""
    scores: FloatArray
    """[M], in [0, 1]."""
    boxes_xywh: FloatArray
    """[M, 4], pixels of the original image."""

    @classmethod
    def from_xyxy(
        cls, image_ids: IntArray, category_ids: IntArray, scores: NDArray[Any], boxes_xyxy: NDArray[Any]
    ) -> Detections:
        """From corners in pixels, [M, 4]; other arguments as the fields."""
        corners = boxes_xyxy.astype(np.float64).reshape(-1, 4)
        boxes_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return cls(
            image_ids.astype(np.int64),
            category_ids.astype(np.int64),
            scores.astype(np.float64).round(SCORE_DECIMALS),
            boxes_xywh.round(_BOX_DECIMALS),
        )

    @classmethod
    def empty(cls) -> Detections:
        """None at all."""
        no_ids = np.empty(0, dtype=np.int64)
        return cls(no_ids, no_ids, np.empty(0), np.empty((0, 4)))

    def __len__(self) -> int:
        return len(self.image_ids)

    def to_coco(self) -> list[Prediction]:
        """COCO's result format."""
        columns = (self.image_ids, self.category_ids, self.boxes_xywh, self.scores)
        return [
            Prediction(image_id=image_id, category_id=category_id, bbox=box, score=score)
            for image_id, category_id, box, score in zip(*(column.tolist() for column in columns), strict=True)
        ]


@dataclass(frozen=True)
class GroundTruth:
    """What detections are judged against."""

    images: Mapping[int, str]
    """Image id -> file name, as in the annotation file."""
    annotations: Sequence[Mapping[str, Any]]
    """`image_id`, `category_id`, `bbox` (xywh, pixels), `area` (pixels), `iscrowd` (0 or 1): a detection inside a
    crowd box counts neither for nor against."""
    classes: ClassMap

    @classmethod
    def of(cls, split: CocoSplit) -> GroundTruth:
        """Everything the split holds: crowd boxes too, NORMAL boxes unless they were read as negatives."""
        content = split.to_coco()
        return cls(
            {image["id"]: image["file_name"] for image in content["images"]}, content["annotations"], split.classes
        )

    def fingerprint(self) -> str:
        """sha256 of images, boxes and categories, whatever their order in the file: results with different
        fingerprints were judged on different things and cannot be compared."""
        content = {
            "images": sorted(self.images.items()),
            "categories": list(zip(self.classes.category_ids, self.classes.names, strict=True)),
            "annotations": sorted(
                [
                    int(box["image_id"]),
                    int(box["category_id"]),
                    [float(value) for value in box["bbox"]],
                    float(box["area"]),
                    int(box["iscrowd"]),
                ]
                for box in self.annotations
            ),
        }
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class CocoNumbers:
    """All metrics of one split; fractions in [0, 1], None where there is no ground truth to measure on."""

    metrics: dict[str, float | None]
    metrics_defects: dict[str, float | None]
    """The same over all categories but NORMAL."""
    per_class: dict[str, ClassResult]


METRIC_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)


def coco_numbers(truth: GroundTruth, detections: Detections) -> CocoNumbers:
    """COCO's twelve numbers, with and without NORMAL, and AP per class.

    Leaving a category out of the arrays equals evaluating without it: COCO matches and ranks within a category.
    """
    precision, recall = _evaluate(truth, detections)
    names = unique_names(truth.classes)
    counts = Counter(box["category_id"] for box in truth.annotations if not box["iscrowd"])
    defects = [label for label in range(len(truth.classes)) if label != truth.classes.normal_label]
    return CocoNumbers(
        metrics=_summary(precision, recall),
        metrics_defects=_summary(precision[:, :, defects], recall[:, defects]),
        per_class={
            name: _class_result(precision[:, :, [label]], recall[:, [label]], counts[category_id])
            for label, (name, category_id) in enumerate(zip(names, truth.classes.category_ids, strict=True))
        },
    )


def _evaluate(truth: GroundTruth, detections: Detections) -> tuple[FloatArray, FloatArray]:
    """Precision [T, R, K, A, D] and recall [T, K, A, D], -1 where there is no ground truth.

    Built as `COCO(dict)` on both sides: `loadRes` would copy everything and invent a polygon for every box.
    """
    head = {
        "images": [{"id": image_id} for image_id in truth.images],
        "categories": [{"id": category_id} for category_id in truth.classes.category_ids],
    }
    # Ids from 1: the matcher reads an id of 0 as "unmatched".
    boxes = [{**box, "id": number} for number, box in enumerate(truth.annotations, start=1)]
    areas = (detections.boxes_xywh[:, 2] * detections.boxes_xywh[:, 3]).tolist()
    found = [
        {**prediction, "id": number, "area": area, "iscrowd": 0}
        for number, (prediction, area) in enumerate(zip(detections.to_coco(), areas, strict=True), start=1)
    ]
    evaluator = COCOeval_faster(
        COCO({**head, "annotations": boxes}), COCO({**head, "annotations": found}), iouType="bbox"
    )
    evaluator.evaluate()
    evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])


def _summary(precision: FloatArray, recall: FloatArray) -> dict[str, float | None]:
    areas = {"small": 1, "medium": 2, "large": 3}
    values = [_mean(precision[..., 0, -1]), _mean(precision[0, ..., 0, -1]), _mean(precision[5, ..., 0, -1])]
    values += [_mean(precision[..., area, -1]) for area in areas.values()]
    values += [_mean(recall[..., 0, limit]) for limit in range(3)]
    values += [_mean(recall[..., area, -1]) for area in areas.values()]
    return dict(zip(METRIC_NAMES, values, strict=True))


def _class_result(precision: FloatArray, recall: FloatArray, num_gt: int) -> ClassResult:
    numbers = _summary(precision, recall)
    return ClassResult(
        AP=numbers["AP"],
        AP50=numbers["AP50"],
        AP75=numbers["AP75"],
        AP_small=numbers["AP_small"],
        AP_medium=numbers["AP_medium"],
        AP_large=numbers["AP_large"],
        AR_100=numbers["AR_100"],
        AR_small=numbers["AR_small"],
        AR_medium=numbers["AR_medium"],
        AR_large=numbers["AR_large"],
        num_gt=num_gt,
    )


def _mean(values: FloatArray) -> float | None:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def unique_names(classes: ClassMap) -> list[str]:
    """[K] names as keys: two categories of one name are told apart by their ids."""
    times = Counter(classes.names)
    return [
        name if times[name] == 1 else f"{name} (id {category_id})"
        for name, category_id in zip(classes.names, classes.category_ids, strict=True)
    ]
