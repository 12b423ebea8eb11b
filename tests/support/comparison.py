"""Evaluated runs on disk, simulated: images of differing difficulty, and models of differing quality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.cost import Cost, Latency
from analysis.matching import Matches, match
from data.classes import ClassMap
from engine.metrics import GroundTruth, Predictions, coco_numbers
from engine.results import write_results

CLASSES = ClassMap((1, 2), ("scratch", "dent & hole"))
WITH_NORMAL = ClassMap((1, 2), ("scratch", "NORMAL"))


def make_truth(num_images: int = 60, classes: ClassMap = CLASSES, seed: int = 0) -> GroundTruth:
    """One to three boxes an image."""
    rng = np.random.default_rng(seed)
    annotations = [
        {
            "image_id": image,
            "category_id": int(rng.choice(classes.category_ids)),
            "bbox": [40.0 * box, 10.0, 30.0, 30.0],
            "area": 900.0,
            "iscrowd": 0,
        }
        for image in range(num_images)
        for box in range(int(rng.integers(1, 4)))
    ]
    return GroundTruth({image: f"{image}.png" for image in range(num_images)}, annotations, classes)


def detect(truth: GroundTruth, *, quality: float, seed: int) -> Predictions:
    """Boxes found the more often the better the model and the easier the image, and false alarms.

    The difficulty of an image is the same for every model.
    """
    rng = np.random.default_rng(seed)
    easy = np.random.default_rng(99).random(len(truth.images))
    found: list[tuple[int, int, float, list[float]]] = []
    for box in truth.annotations:
        shift = float(rng.uniform(0, 4))
        left, top, width, height = box["bbox"]
        if rng.random() < quality + 0.8 * (easy[box["image_id"]] - 0.5):
            corners = [left + shift, top, left + shift + width, top + height]
            found.append((box["image_id"], box["category_id"], float(rng.uniform(0.3, 1)), corners))
    for image in truth.images:
        category = int(rng.choice(truth.classes.category_ids))
        found.append((image, category, float(rng.uniform(0, 0.7)), [200.0, 200.0, 230.0, 230.0]))
    images, categories, scores, boxes = (np.asarray(column) for column in zip(*found, strict=True))
    return Predictions.from_xyxy(images, categories, scores, boxes)


def make_tables(truth: GroundTruth, *, quality: float, seed: int) -> Matches:
    return match(truth, detect(truth, quality=quality, seed=seed))


def make_cost(parameters: int = 1_500_000, latency_ms: float = 12.5, **changes: Any) -> dict[str, Any]:
    """As results.json holds it."""
    cost = Cost(
        parameters=parameters,
        gflops=4.25,
        image_size_hw=(64, 64),
        latencies=[Latency(1, latency_ms, latency_ms * 1.1, 80.0, 10), Latency(8, 60.0, 66.0, 133.0, 10)],
        inference_memory_mb=210.0,
        training_memory_mb=1900.0,
        device="cpu",
        dtype="float32",
        threads=1,
    )
    return {**asdict(cost), **changes}


def write_run(
    folder: Path,
    *,
    quality: float = 0.6,
    seed: int = 0,
    truth: GroundTruth | None = None,
    config: Mapping[str, Any] | None = None,
    detections_seed: int | None = None,
    detections: Predictions | None = None,
    **facts: Any,
) -> Path:
    """A run folder with results.json, what it was computed from and config.yaml; `seed` is that of training."""
    truth = truth or make_truth()
    if detections is None:
        detections = detect(truth, quality=quality, seed=seed + 1 if detections_seed is None else detections_seed)
    numbers = coco_numbers(truth, detections)
    results = {
        "metrics": numbers.metrics,
        "metrics_defects": numbers.metrics_defects,
        "per_class": numbers.per_class,
        "gt_hash": truth.fingerprint(),
        "split": "val",
        "num_images": len(truth.images),
        "checkpoint": "best.pth",
        "epoch": 30,
        "epochs": 40,
        "seed": seed,
        "parameters": 1_500_000,
        "train_seconds": 5400.0,
        "cost": make_cost(),
        **facts,
    }
    folder.mkdir(parents=True)
    write_results(folder, truth, detections, results)
    if config is not None:
        content = {"seed": seed, "output_dir": folder.as_posix(), **config}
        (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def write_folds(root: Path, count: int, *, quality: float, seed: int = 0, **facts: Any) -> list[Path]:
    """The run `root` on all of `make_truth()`, and its detections in parts, as those of runs `root`_fold_1, ..."""
    truth = make_truth()
    found = detect(truth, quality=quality, seed=seed)
    write_run(root, truth=truth, detections=found, **facts)
    folders = []
    for fold in range(count):
        images = {image: name for image, name in truth.images.items() if image % count == fold}
        part = GroundTruth(images, [box for box in truth.annotations if box["image_id"] in images], truth.classes)
        rows = np.isin(found.image_ids, list(images))
        config = {"num_classes": 2, "train_dataloader": {"dataset": {"ann_file": f"{fold}.json", "img_folder": "a"}}}
        folder = root.with_name(f"{root.name}_fold_{fold + 1}")
        detections = found.rows(rows)
        folders.append(write_run(folder, truth=part, detections=detections, **{"config": config, **facts}))
    return folders


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def change_results(folder: Path, **changes: Any) -> None:
    """Replace values in results.json; None-valued keys named in `changes` are removed by `...`."""
    path = folder / "results.json"
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {key: value for key, value in content.items() if value is not ...})
