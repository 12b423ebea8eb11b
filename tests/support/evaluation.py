"""A split without image files and a network that answers from a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.batch import Batch, Target
from data.coco import CocoSplit, read_split
from engine.config import ExperimentConfig, load_config
from engine.detector import Detector
from engine.evaluate import EvalResult, evaluate
from models.detector import IMAGE_MEAN, IMAGE_STD
from tests.support.coco_reference import CLASSES

ROOT = Path(__file__).parents[2]
NUM_IMAGES = 7
NUM_QUERIES = 30
SIDE_PX = 32


def make_config() -> ExperimentConfig:
    return load_config(
        ROOT / "configs" / "deimv2" / "deimv2_dinov3_s_coco.yml", ["use_amp=True", f"num_classes={len(CLASSES)}"]
    )


def make_split(folder: Path, *, boxes: bool = True) -> CocoSplit:
    """Image ids 100, 90, ..., sizes that differ, some images without boxes, the last class without any."""
    rng = np.random.default_rng(0)
    images = [
        {"id": 100 - 10 * i, "file_name": f"{i}.png", "width": 200 + 20 * i, "height": 150 + 30 * i}
        for i in range(NUM_IMAGES)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images if boxes else []:
        for _ in range(int(rng.integers(0, 5))):
            width, height = (int(value) for value in rng.integers(10, 120, 2))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(CLASSES.category_ids[:-1])),
                    "bbox": [int(rng.integers(0, 60)), int(rng.integers(0, 30)), width, height],
                    "area": 0.8 * width * height,
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
    categories = [{"id": key, "name": name} for key, name in zip(CLASSES.category_ids, CLASSES.names, strict=True)]
    path = folder / "annotations.json"
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}), encoding="utf-8"
    )
    return read_split("val", path, folder)[0]


class TableDetector(nn.Module):
    """Finds the index of an image in its first pixel and returns that row of its table."""

    def __init__(self, split: CocoSplit) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.frozen = nn.BatchNorm2d(1).eval()
        self.logits = nn.Parameter(torch.randn(NUM_IMAGES, NUM_QUERIES, len(CLASSES), generator=generator) - 1)
        boxes = torch.rand(NUM_IMAGES, NUM_QUERIES, 4, generator=generator) * 0.4 + 0.1
        # Some queries are close to the truth, so that the metrics are not all zero.
        for i, image in enumerate(split.images):
            size = np.array([image.width, image.height])
            for query, row in enumerate(range(image.rows.start, image.rows.stop)):
                corner, extent = split.boxes_xywh[row, :2] / size, split.boxes_xywh[row, 2:] / size
                boxes[i, query] = torch.tensor(np.concatenate([corner + extent / 2, extent * 1.05]))
                self.logits.data[i, query, split.labels[row]] += 2.5
        self.boxes = nn.Parameter(boxes)
        self.seen_training: list[bool] = []
        self.seen_autocast: list[bool] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.seen_training.append(self.training or self.frozen.training)
        self.seen_autocast.append(torch.is_autocast_enabled(images.device.type))
        index = ((images[:, 0, 0, 0] * IMAGE_STD[0] + IMAGE_MEAN[0]) * 255).round().long()
        return {"pred_logits": self.logits[index], "pred_boxes": self.boxes[index]}


def make_batches(split: CocoSplit, indices: Sequence[int], batch_size: int = 2) -> list[Batch]:
    batches = []
    for start in range(0, len(indices), batch_size):
        chosen = list(indices[start : start + batch_size])
        images = torch.zeros(len(chosen), 3, SIDE_PX, SIDE_PX, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.tensor(chosen, dtype=torch.uint8)
        records = [split.images[i] for i in chosen]
        empty = Target(labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4), area=torch.zeros(0))
        sizes = torch.tensor([[record.width, record.height] for record in records])
        batches.append(Batch(images, [empty] * len(chosen), [record.id for record in records], sizes))
    return batches


def judge(
    split: CocoSplit,
    indices: Sequence[int] = range(NUM_IMAGES),
    *,
    model: TableDetector | None = None,
    device: str = "cpu",
    progress: bool = False,
    amp_dtype: torch.dtype | None = None,
) -> EvalResult:
    """`evaluate` on the images at `indices`."""
    place = torch.device(device)
    detector = Detector((model or TableDetector(split)).to(place), make_config(), CLASSES, place, amp_dtype)
    return evaluate(detector, make_batches(split, indices), split, progress=progress)


def judge_as_one_of_two(rank: int, folder: Path, divisions: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """A process of a group of two: judges its part of each division and leaves its results in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=2)
    split = read_split("val", folder / "annotations.json", folder)[0]
    results = [judge(split, parts[rank]) for parts in divisions]
    torch.save([{"json": r.to_json(), "predictions": r.predictions} for r in results], folder / f"{rank}.pth")
    dist.destroy_process_group()
