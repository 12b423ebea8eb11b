"""Random detection problems, and what pycocotools says of them."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.classes import ClassMap
from engine.metrics import METRIC_NAMES, GroundTruth, Predictions

CLASSES = ClassMap((0, 3, 4, 9, 20), ("hole", "NORMAL", "scratch", "dent", "never seen"))
TOLERANCE = 1e-9


def random_case(
    seed: int, *, num_images: int = 12, crowds: float = 0.2, classes: ClassMap = CLASSES, unseen: int = 1
) -> tuple[GroundTruth, Predictions]:
    """Boxes of all sizes, some crowds; detections near them and anywhere, with ties in score; some images are
    without boxes, some without detections; the last `unseen` classes have no ground truth but detections."""
    ids = classes.category_ids
    rng = np.random.default_rng(seed)
    images = {int(image_id): f"{image_id}.jpg" for image_id in rng.permutation(100)[:num_images]}
    boxes: list[dict[str, Any]] = []
    rows: list[list[float]] = []
    for image_id in images:
        for _ in range(int(rng.integers(0, 6))):
            size = rng.uniform(4, 150, 2)
            corner = rng.uniform(0, 300, 2)
            category_id = int(rng.choice(ids[: len(ids) - unseen]))
            boxes.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [*corner.tolist(), *size.tolist()],
                    "area": float(size.prod() * rng.uniform(0.5, 1.0)),
                    "iscrowd": int(rng.random() < crowds),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                label = category_id if rng.random() < 0.7 else int(rng.choice(ids))
                near = np.concatenate([corner, corner + size]) + rng.normal(0, 6, 4)
                rows.append([image_id, label, round(rng.random(), 2), *near])
        for _ in range(int(rng.integers(0, 3))):
            rows.append([image_id, int(rng.choice(ids)), rng.random(), 5, 5, 60, 90])
    table = np.array(rows).reshape(-1, 7)
    rng.shuffle(table)
    scores, corners = table[:, 2].astype(np.float32), table[:, 3:].astype(np.float32)
    detections = Predictions.from_xyxy(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), scores, corners)
    return GroundTruth(images, boxes, classes), detections


def reference_stats(
    truth: GroundTruth, results: list[Any], category_ids: list[int] | None = None
) -> list[float | None]:
    """The twelve numbers of pycocotools; -1 becomes None."""
    evaluator = reference_evaluator(truth, results, category_ids)
    return [None if value == -1 else float(value) for value in evaluator.stats]


def reference_evaluator(truth: GroundTruth, results: list[Any], category_ids: list[int] | None = None) -> Any:
    """pycocotools after its evaluation, with `evalImgs`, `eval` and `stats`."""
    truth_file = {
        "images": [{"id": image_id, "file_name": name} for image_id, name in truth.images.items()],
        "annotations": [{**box, "id": number} for number, box in enumerate(truth.annotations, start=1)],
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in zip(truth.classes.category_ids, truth.classes.names, strict=True)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth_file
        reference.createIndex()
        found = COCO()
        found.dataset = {
            **truth_file,
            "annotations": [
                {**one, "id": number, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}
                for number, one in enumerate(results, start=1)
            ],
        }
        found.createIndex()
        evaluator = COCOeval(reference, found, "bbox")
        if category_ids is not None:
            evaluator.params.catIds = category_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def assert_equal(ours: dict[str, float | None], theirs: list[float | None]) -> None:
    assert tuple(ours) == METRIC_NAMES
    for name, value, expected in zip(METRIC_NAMES, ours.values(), theirs, strict=True):
        assert value == (None if expected is None else pytest.approx(expected, abs=TOLERANCE, rel=0)), name
