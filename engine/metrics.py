"""Detections against ground truth: COCO's numbers through faster-coco-eval. Pure: no model, no files.

Legend: M detections, K categories, T IoU thresholds (0.50:0.05:0.95), R recall points, A area ranges, D limits on
detections per image (1, 10, 100).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat
from typing_extensions import TypedDict

from data.classes import ClassMap
from data.coco import CocoSplit
from data.types import BoolArray, FloatArray, IntArray
from models.detections import SCORE_DECIMALS

_BOX_DECIMALS = 4
_ANY_AREA = (0.0, 1e5**2)
"""COCO's, square pixels, both ends included."""
MAX_DETECTIONS = 100
"""COCO's limit, per image and class."""
METRIC_NAMES = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
)
_CLASS_METRICS = tuple(name for name in METRIC_NAMES if name not in ("AR_1", "AR_10"))
Metrics = dict[str, float | None]
"""Fractions in [0, 1] by name; None without ground truth (of that size)."""
Id = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Box = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
"""x, y, width, height in pixels of the original image."""


class Prediction(TypedDict):
    """One entry of COCO's result format."""

    image_id: Id
    category_id: Id
    bbox: Box
    score: FiniteFloat


@dataclass(frozen=True)
class Predictions:
    """Detections of a whole split in COCO's terms, in columns. Rounded when made, so that what is judged is what is
    written.

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
    ) -> Predictions:
        """Take corners in pixels, [M, 4]; other arguments as the fields."""
        corners = boxes_xyxy.astype(np.float64).reshape(-1, 4)
        boxes_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        return cls(
            image_ids.astype(np.int64),
            category_ids.astype(np.int64),
            scores.astype(np.float64).round(SCORE_DECIMALS),
            boxes_xywh.round(_BOX_DECIMALS),
        )

    @classmethod
    def from_coco(cls, predictions: Sequence[Prediction]) -> Predictions:
        """Take COCO's result format as it stands."""
        return cls(
            np.array([one["image_id"] for one in predictions], dtype=np.int64),
            np.array([one["category_id"] for one in predictions], dtype=np.int64),
            np.array([one["score"] for one in predictions], dtype=np.float64),
            np.array([one["bbox"] for one in predictions], dtype=np.float64).reshape(-1, 4),
        )

    @classmethod
    def empty(cls) -> Predictions:
        """Return none at all."""
        return cls.from_coco([])

    @classmethod
    def joined(cls, parts: Iterable[Predictions]) -> Predictions:
        """Return the detections of several splits, or of parts of one, as those of one."""
        return cls(*map(np.concatenate, zip(*(one._columns for one in parts), strict=True)))

    @property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self.image_ids, self.category_ids, self.scores, self.boxes_xywh

    def __len__(self) -> int:
        return len(self.image_ids)

    def rows(self, rows: Any) -> Predictions:
        """Return those that an index or a mask chooses."""
        return Predictions(*(column[rows] for column in self._columns))

    def to_coco(self) -> list[Prediction]:
        """Return COCO's result format."""
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
        """Take everything the split holds: crowd boxes too, NORMAL boxes unless they were read as negatives."""
        return cls.from_coco(split.to_coco())

    @classmethod
    def from_coco(cls, content: Mapping[str, Any]) -> GroundTruth:
        """Take COCO's own form."""
        images = {image["id"]: image["file_name"] for image in content["images"]}
        return cls(images, content["annotations"], ClassMap.from_categories(content["categories"]))

    def to_coco(self) -> dict[str, list[dict[str, Any]]]:
        """Return COCO's own form; annotations are numbered from 1, because COCO's matchers read an id of 0 as
        "unmatched"."""
        categories = zip(self.classes.category_ids, self.classes.names, strict=True)
        return {
            "images": [{"id": image_id, "file_name": name} for image_id, name in self.images.items()],
            "annotations": [{**box, "id": number} for number, box in enumerate(self.annotations, start=1)],
            "categories": [{"id": category_id, "name": name} for category_id, name in categories],
        }

    def fingerprint(self) -> str:
        """Return the sha256 of images, boxes and categories, whatever their order in the file: results with different
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


class CocoNumbers(NamedTuple):
    """All metrics of one split."""

    metrics: Metrics
    metrics_defects: Metrics
    """The same over all categories but NORMAL."""
    per_class: dict[str, dict[str, Any]]
    """By name: AP, AP50, AP75, AP_small, AP_medium, AP_large, AR_100, AR_small, AR_medium, AR_large, and num_gt, the
    number of boxes."""


def coco_numbers(truth: GroundTruth, predictions: Predictions) -> CocoNumbers:
    """Compute COCO's twelve numbers, with and without NORMAL, and AP per class.

    Leaving a category out of the arrays equals evaluating without it: COCO matches and ranks within a category.
    """
    # Built as COCO(dict) on both sides: `loadRes` would copy everything and invent a polygon for every box.
    evaluator = COCOeval_faster(*map(COCO, _datasets(truth, predictions)), iouType="bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    # [T, R, K, A, D] and [T, K, A, D], -1 where there is no ground truth
    precision, recall = np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])

    def metrics(labels: Sequence[int]) -> Metrics:
        chosen, recalled = precision[:, :, labels], recall[:, labels]
        values = [_mean(chosen[..., 0, -1]), _mean(chosen[0, ..., 0, -1]), _mean(chosen[5, ..., 0, -1])]
        values += [_mean(chosen[..., area, -1]) for area in (1, 2, 3)]
        values += [_mean(recalled[..., 0, limit]) for limit in (0, 1, 2)]
        values += [_mean(recalled[..., area, -1]) for area in (1, 2, 3)]
        return dict(zip(METRIC_NAMES, values, strict=True))

    counts = Counter(box["category_id"] for box in truth.annotations if not box["iscrowd"])
    per_class: dict[str, dict[str, Any]] = {}
    for label, (name, category_id) in enumerate(
        zip(unique_names(truth.classes), truth.classes.category_ids, strict=True)
    ):
        row = metrics([label])
        per_class[name] = {key: row[key] for key in _CLASS_METRICS} | {"num_gt": counts[category_id]}
    labels = range(len(truth.classes))
    return CocoNumbers(
        metrics(labels), metrics([label for label in labels if label != truth.classes.normal_label]), per_class
    )


def _datasets(truth: GroundTruth, predictions: Predictions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and predictions as COCO's matchers take them."""
    there = truth.to_coco()
    areas = (predictions.boxes_xywh[:, 2] * predictions.boxes_xywh[:, 3]).tolist()
    found = [
        {**one, "id": number, "area": area, "iscrowd": 0}
        for number, (one, area) in enumerate(zip(predictions.to_coco(), areas, strict=True), start=1)
    ]
    return there, {**there, "annotations": found}


def _mean(values: FloatArray) -> float | None:
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


class Threshold(TypedDict):
    """A score threshold, and what it gives at IoU 0.5."""

    score: float
    f1: float
    precision: float
    recall: float


def best_threshold(scores: FloatArray, hits: BoolArray, num_gt: int) -> Threshold | None:
    """Find the score with the best F1, the highest of several; None where nothing is hit.

    `scores` [M] are of the detections that count, in any order; `hits` [M]: is it a true positive?
    """
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each group of equal scores
    hit = np.cumsum(hits[order])[last]
    if not num_gt or not len(hit) or not hit[-1]:
        return None
    f1 = 2 * hit / (last + 1 + num_gt)
    best = int(f1.argmax())
    return Threshold(
        score=float(scores[order][last[best]]),
        f1=float(f1[best]),
        precision=float(hit[best] / (last[best] + 1)),
        recall=float(hit[best] / num_gt),
    )


def best_thresholds(truth: GroundTruth, predictions: Predictions) -> dict[str, Any]:
    """Find the best thresholds over all classes (`overall`) and of each (`per_class`), as results.json keeps them.

    It matches at IoU 0.5.
    """
    matched = matches_of_images(*_datasets(truth, predictions), ious=np.array([0.5]))
    cells = np.array(matched, dtype=object).reshape(len(truth.classes), len(truth.images))

    def best(labels: slice) -> Threshold | None:
        of_labels = [cell for cell in cells[labels].ravel() if cell is not None]
        counted = [~cell["dtIgnore"][0].astype(bool) for cell in of_labels]
        scores = [np.array(cell["dtScores"])[kept] for cell, kept in zip(of_labels, counted, strict=True)]
        hits = [cell["dtMatches"][0][kept] > 0 for cell, kept in zip(of_labels, counted, strict=True)]
        num_gt = sum(int((np.array(cell["gtIgnore"]) == 0).sum()) for cell in of_labels)
        nothing = np.empty(0)
        return best_threshold(np.concatenate([nothing, *scores]), np.concatenate([nothing > 0, *hits]), num_gt)

    names = unique_names(truth.classes)
    return {
        "overall": best(slice(None)),
        "per_class": {name: best(slice(label, label + 1)) for label, name in enumerate(names)},
    }


def matches_of_images(
    truth: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    ious: FloatArray,
    any_class: bool = False,
) -> list[dict[str, Any] | None]:
    """Match with pycocotools, which tells what hit what; faster-coco-eval keeps that to itself.

    Args:
        truth: COCO's form of the ground truth; `found`: of the detections, annotations with `area` and `score`.
        any_class: A detection may take a box of another class.

    Returns:
        Its `evalImgs`: by class (all in one with `any_class`), then image; None where there is
        neither a box nor a detection.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
        pair = [pycocotools.coco.COCO(), pycocotools.coco.COCO()]
        for one, dataset in zip(pair, (truth, found), strict=True):
            one.dataset = dataset
            one.createIndex()
        evaluator = pycocotools.cocoeval.COCOeval(*pair, "bbox")
        evaluator.params.iouThrs, evaluator.params.areaRng = ious, [_ANY_AREA]
        evaluator.params.useCats = int(not any_class)
        evaluator.params.maxDets = [MAX_DETECTIONS * (len(truth["categories"]) if any_class else 1)]
        evaluator.evaluate()
    cells: list[dict[str, Any] | None] = evaluator.evalImgs
    return cells


def unique_names(classes: ClassMap) -> list[str]:
    """Return [K] names as keys: two categories of one name are told apart by their ids."""
    times = Counter(classes.names)
    return [
        name if times[name] == 1 else f"{name} (id {category_id})"
        for name, category_id in zip(classes.names, classes.category_ids, strict=True)
    ]
