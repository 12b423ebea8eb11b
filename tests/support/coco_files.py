"""Tiny COCO data sets on disk for tests: each object is a rectangle in a colour of its own.

A test changes `CocoFiles.content` to plant a fault, then calls `save`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.config import DataConfig

CATEGORIES = ({"id": 1, "name": "holes"}, {"id": 2, "name": "scratches"})
TRAIN_OPS: tuple[dict[str, Any], ...] = (
    {"type": "Mosaic", "output_size": 32},
    {"type": "RandomPhotometricDistort"},
    {"type": "RandomZoomOut"},
    {"type": "RandomIoUCrop", "p": 0.8},
    {"type": "SanitizeBoundingBoxes"},
    {"type": "RandomHorizontalFlip"},
    {"type": "Resize", "size": [64, 64]},
    {"type": "SanitizeBoundingBoxes"},
)
STRONG_OPS = ("Mosaic", "RandomPhotometricDistort", "RandomZoomOut", "RandomIoUCrop")


class CocoFiles:
    """One split: annotation content in memory, images on disk."""

    def __init__(
        self,
        root: Path,
        name: str = "train",
        *,
        num_images: int = 4,
        boxes_per_image: int = 2,
        size_wh: tuple[int, int] = (48, 40),
        categories: tuple[dict[str, Any], ...] = CATEGORIES,
        seed: int = 0,
    ) -> None:
        self.name = name
        self.img_folder = root / "images" / name
        self.ann_file = root / f"{name}.json"
        self.img_folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, *name.encode()])
        width, height = size_wh
        self.content: dict[str, Any] = {"images": [], "annotations": [], "categories": [dict(c) for c in categories]}
        for image_id in range(1, num_images + 1):
            pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
            for _ in range(boxes_per_image):
                w, h = int(rng.integers(4, width // 2)), int(rng.integers(4, height // 2))
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                pixels[y : y + h, x : x + w] = rng.integers(120, 256, 3, dtype=np.uint8)
                category = categories[int(rng.integers(len(categories)))]["id"]
                self.add_box(image_id, [x, y, w, h], category)
            file_name = f"{name}_{image_id}.png"
            Image.fromarray(pixels).save(self.img_folder / file_name)
            self.content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})

    def add_box(self, image_id: int, bbox: Any, category_id: Any, **extra: Any) -> dict[str, Any]:
        """One more annotation; returned for changing."""
        entry = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": bbox,
            "area": 20,
            "iscrowd": 0,
            **extra,
        }
        self.content["annotations"].append(entry)
        return entry

    def save(self) -> CocoFiles:
        """Write the annotation file."""
        self.ann_file.write_text(json.dumps(self.content), encoding="utf-8")
        return self


def data_config(root: Path, **changes: Any) -> DataConfig:
    """A config for `CocoFiles(root, "train")` and `CocoFiles(root, "val")`: 64 x 64, all augmentations from epoch 1.

    Args:
        root: The folder.
        changes: Dotted keys with `__` for the dots, such as `train_dataloader__num_workers=2`.
    """
    values: dict[str, Any] = {
        "num_classes": 2,
        "train_dataloader": {
            "dataset": {
                "img_folder": root / "images" / "train",
                "ann_file": root / "train.json",
                "transforms": {
                    "ops": list(TRAIN_OPS),
                    "policy": {"name": "stop_epoch", "epoch": [1, 3, 5], "ops": list(STRONG_OPS)},
                    "mosaic_prob": 0.5,
                },
            },
            "shuffle": True,
            "drop_last": True,
            "total_batch_size": 2,
            "collate_fn": {
                "stop_epoch": 5,
                "base_size": 64,
                "base_size_repeat": 2,
                "mixup_prob": 0.5,
                "mixup_epochs": [1, 3],
                "copyblend_prob": 0.5,
                "copyblend_epochs": [1, 5],
                "area_threshold": 10,
                "with_expand": True,
            },
        },
        "val_dataloader": {
            "dataset": {
                "img_folder": root / "images" / "val",
                "ann_file": root / "val.json",
                "transforms": {"ops": [{"type": "Resize", "size": [64, 64]}]},
            },
            "total_batch_size": 3,
        },
    }
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        section = values
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
    return DataConfig.model_validate(values)
