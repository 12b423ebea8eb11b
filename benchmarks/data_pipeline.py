"""CPU milliseconds per 640-pixel training sample, beside a straightforward PIL pipeline in the official order.

`python benchmarks/data_pipeline.py [--json FILE]`. One thread, `time.process_time`, writing the batch included;
sources are drawn on the fly and saved as JPEG (200 x 200 and 1280 x 960). "plain": all strong augmentations but
mosaic, every sample. "mosaic": every sample is a mosaic (the recipes make half of them one). "cached": the decoded
images are in memory; otherwise every image is decoded from its file, for a mosaic four of them.

Ultralytics' loader is a peer to time where it is installed (also in a folder on PYTHONPATH): `build_yolo_dataset` with
its default augmentation, mosaic never or always, uint8 batches. It keeps the last 8 x batch images in memory even
without a cache, so the uncached cells have eight times as many files (copies of 16 images). The ratios are of this
run.

The PIL pipeline reuses the tiles of earlier mosaics, as the official recipe does ("PIL"), or reads four images per
mosaic as ours does ("PIL, 4 reads", the official `use_cache: False`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.config import DataConfig
from data.images import open_image
from data.loader import TrainLoader, build_train_loader
from data.splits import build_datasets

SIDE, TILE_SIDE, BATCH, NUM_IMAGES = 640, 320, 4, 16
COPIES = 16
"""Of every image in the uncached cells: Ultralytics keeps 32 images, an eighth of the 256."""
SIZES = {"200": (200, 200), "1280": (1280, 960)}
CELLS = (("200", 0), ("1280", 0), ("1280_cached", 1024))
TARGET_RATIO_PIL = {"200": 4.0, "1280": 6.0, "1280_cached": 12.0}
POLICIES = {"plain": 0.0, "mosaic": 1.0, "mosaic_half": 0.5}
STRONG = ("Mosaic", "RandomPhotometricDistort", "RandomZoomOut", "RandomIoUCrop")


def write_images(folder: Path, size_wh: tuple[int, int], copies: int = 1) -> None:
    """Blotches with some noise and three boxes each, as JPEG, for COCO and YOLO readers."""
    rng, (width, height) = np.random.default_rng(0), size_wh
    labels = folder.parent / "labels"
    for path in (folder, labels):
        path.mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "defect"}]}
    for image_id in range(1, NUM_IMAGES + 1):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        noise = rng.normal(64, 2, (height, width, 1))
        pixels = cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC) * 0.5 + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{image_id}.jpg", quality=90)
        sides = rng.integers(np.array(size_wh) // 12, np.array(size_wh) // 3, (3, 2))
        boxes = np.concatenate([rng.integers(size_wh - sides), sides], axis=1).tolist()
        rows = (f"0 {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}" for x, y, w, h in boxes)
        lines = "\n".join(rows) + "\n"
        for copy_id in range(image_id, copies * NUM_IMAGES + 1, NUM_IMAGES):
            if copy_id != image_id:
                shutil.copy(folder / f"{image_id}.jpg", folder / f"{copy_id}.jpg")
            content["images"].append({"id": copy_id, "file_name": f"{copy_id}.jpg", "width": width, "height": height})
            for x, y, w, h in boxes:
                entry = {"id": len(content["annotations"]) + 1, "image_id": copy_id, "category_id": 1}
                content["annotations"].append({**entry, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
            (labels / f"{copy_id}.txt").write_text(lines, encoding="utf-8")
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")


def our_loader(folder: Path, mosaic_prob: float, cache_mib: int, num_workers: int = 0) -> TrainLoader:
    """The project's loader with the official ops, in the epochs with mosaic; no mixing of whole batches."""
    settings: dict[str, dict[str, Any]] = {
        "Mosaic": {"output_size": TILE_SIDE},
        "RandomIoUCrop": {"p": 0.8},
        "Resize": {"size": [SIDE, SIDE]},
    }
    order = (*STRONG, "SanitizeBoundingBoxes", "RandomHorizontalFlip", "Resize", "SanitizeBoundingBoxes")
    ops = [{"type": name, **settings.get(name, {})} for name in order]
    policy = {"name": "stop_epoch", "epoch": [0, 100_000, 100_000], "ops": STRONG}
    transforms = {"ops": ops, "policy": policy, "mosaic_prob": mosaic_prob}
    where = {"img_folder": folder, "ann_file": folder / "annotations.json"}
    train = {"dataset": where | {"cache_mib": cache_mib, "transforms": transforms}, "shuffle": True, "drop_last": True}
    content = {
        "num_classes": 1,
        "allow_split_overlap": True,
        "train_dataloader": train | {"total_batch_size": BATCH},
        "val_dataloader": {"dataset": where | {"transforms": {"ops": [ops[6]]}}, "total_batch_size": BATCH},
    }
    config = DataConfig.model_validate(content)
    split = build_datasets(config).splits["train"]
    return build_train_loader(config, split, split.classes, seed=0, num_workers=num_workers)


class PilPipeline:
    """The official order with torchvision on PIL images, float images stacked; tiles of earlier mosaics are reused."""

    def __init__(self, folder: Path, mosaic_prob: float, *, reuse_tiles: bool) -> None:
        content = json.loads((folder / "annotations.json").read_text(encoding="utf-8"))
        self._images = [
            (folder / image["file_name"], [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]])
            for image in content["images"]
        ]
        self._mosaic_prob, self._reuse_tiles = mosaic_prob, reuse_tiles
        self._tiles: list[dict[str, Any]] = []
        self._colour = v2.RandomPhotometricDistort()
        self._moves = v2.Compose([v2.RandomZoomOut(fill=0), v2.RandomApply([v2.RandomIoUCrop()], p=0.8)])
        self._rest = v2.Compose(
            [
                v2.SanitizeBoundingBoxes(),
                v2.RandomHorizontalFlip(),
                v2.Resize((SIDE, SIDE)),
                v2.SanitizeBoundingBoxes(),
                v2.PILToTensor(),
                v2.ToDtype({"image": torch.float32, torch.Tensor: torch.float32, "others": None}, scale=True),
            ]
        )
        self._normalize = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def batches(self) -> Iterator[object]:
        """Epoch after epoch."""
        torch.manual_seed(0)
        while True:
            order = torch.randperm(len(self._images)).tolist()
            for start in range(0, len(order), BATCH):
                yield torch.stack([self._sample(index) for index in order[start : start + BATCH]])

    def _sample(self, index: int) -> torch.Tensor:
        sample = self._read(index)
        is_mosaic = float(torch.rand(())) < self._mosaic_prob
        sample = self._colour(self._mosaic(sample) if is_mosaic else sample)
        return self._normalize(self._rest(sample if is_mosaic else self._moves(sample))["image"])

    def _read(self, index: int) -> dict[str, Any]:
        path, boxes = self._images[index]
        with open_image(path) as file:
            image = file.convert("RGB")
        size_hw = (image.height, image.width)
        xyxy = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32)
        return {
            "image": image,
            "boxes": BoundingBoxes(xyxy, format=BoundingBoxFormat.XYXY, canvas_size=size_hw),
            "labels": torch.zeros(len(boxes), dtype=torch.int64),
        }

    def _mosaic(self, sample: dict[str, Any]) -> dict[str, Any]:
        resize = v2.Resize(TILE_SIDE)
        if self._reuse_tiles:
            self._tiles = [*self._tiles, resize(sample)][-50:]
            tiles = [self._tiles[-1], *(self._tiles[int(torch.randint(len(self._tiles), ()))] for _ in range(3))]
        else:
            others = [self._read(int(torch.randint(len(self._images), ()))) for _ in range(3)]
            tiles = [resize(tile) for tile in (sample, *others)]
        width, height = (max(tile["image"].size[axis] for tile in tiles) for axis in (0, 1))
        canvas, boxes = Image.new("RGB", (2 * width, 2 * height)), []
        for tile, (x, y) in zip(tiles, ((0, 0), (width, 0), (0, height), (width, height)), strict=True):
            canvas.paste(tile["image"], (x, y))
            boxes.append(tile["boxes"].as_subclass(torch.Tensor) + torch.tensor([x, y, x, y]))
        merged = BoundingBoxes(torch.cat(boxes), format=BoundingBoxFormat.XYXY, canvas_size=(2 * height, 2 * width))
        affine = v2.RandomAffine(10, (0.1, 0.1), (0.5, 1.5))
        image, turned = affine(canvas, merged)
        return {"image": image, "boxes": turned, "labels": torch.cat([tile["labels"] for tile in tiles])}


def our_batches(loader: TrainLoader) -> Iterator[object]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def ultralytics_batches(folder: Path, mosaic_prob: float, *, cached: bool) -> Iterator[object]:
    """Epoch after epoch of the peer's data set, by its public functions."""
    os.environ.setdefault("YOLO_CONFIG_DIR", str(folder.parent))
    os.environ.update(YOLO_OFFLINE="true", YOLO_VERBOSE="false")
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset

    config = get_cfg(overrides={"imgsz": SIDE, "mosaic": mosaic_prob, "cache": "ram" if cached else False})
    facts = {"names": {0: "defect"}, "nc": 1, "channels": 3}
    dataset = build_yolo_dataset(config, str(folder), BATCH, facts, mode="train", rect=False)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    while True:
        order = torch.randperm(len(dataset)).tolist()
        for start in range(0, len(order), BATCH):
            yield dataset.collate_fn([dataset[index] for index in order[start : start + BATCH]])


def milliseconds(pipelines: dict[str, Iterator[object]], repeats: int, warmup: int) -> dict[str, float]:
    """Median CPU milliseconds per sample of pipelines that take turns, four batches at a time.

    `warmup`: samples before, enough to fill caches; the PIL pipelines, which have none but tiles, get fewer.
    """
    for name, batches in pipelines.items():
        for _ in islice(batches, (NUM_IMAGES if name.startswith("pil") else warmup) // BATCH):
            pass
    times: dict[str, list[float]] = {name: [] for name in pipelines}
    for _ in range(repeats):
        for name, batches in pipelines.items():
            start = time.process_time()
            for _ in islice(batches, NUM_IMAGES // BATCH):
                pass
            times[name].append((time.process_time() - start) * 1e3 / NUM_IMAGES)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_cell(folder: Path, cache_mib: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds by policy and pipeline, of one kind of source."""
    result: dict[str, dict[str, float]] = {}
    for policy, probability in POLICIES.items():
        pipelines = {
            "ours": our_batches(our_loader(folder, probability, cache_mib)),
            "PIL": PilPipeline(folder, probability, reuse_tiles=True).batches(),
        }
        if probability:
            pipelines["PIL, 4 reads"] = PilPipeline(folder, probability, reuse_tiles=False).batches()
        if importlib.util.find_spec("ultralytics") is not None:
            pipelines["Ultralytics"] = ultralytics_batches(folder, probability, cached=cache_mib > 0)
        result[policy] = milliseconds(pipelines, repeats, warmup=6 * NUM_IMAGES if cache_mib else 3 * NUM_IMAGES)
    return result


def samples_per_second(folder: Path, num_workers: int, samples: int = 192) -> float:
    """Wall-clock throughput of the recipe (half mosaics), without a cache."""
    loader = our_loader(folder, 0.5, 0, num_workers)
    batches = our_batches(loader)
    for _ in islice(batches, NUM_IMAGES // BATCH):
        pass
    start = time.perf_counter()
    for _ in islice(batches, samples // BATCH):
        pass
    seconds = time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    loader.close()
    return samples / seconds


def report(cell: str, policies: dict[str, dict[str, float]]) -> list[str]:
    """A line a policy: every pipeline's milliseconds, and over ours."""
    lines = []
    for policy, ms in policies.items():
        beside = (f"{name} {value:.2f} ({value / ms['ours']:.2f}x)" for name, value in ms.items())
        lines.append(f"{cell:12}{policy:12} ms: {', '.join(beside)}; aim: PIL >= {TARGET_RATIO_PIL[cell]:g}x")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="turns of 16 samples per cell")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--skip-workers", action="store_true", help="no throughput with worker processes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folders = {(size, n): Path(name, f"{size}x{n}/images") for size in SIZES for n in (1, COPIES)}
        for (size, copies), images in folders.items():
            write_images(images, SIZES[size], copies)
        for cell, cache_mib in CELLS:
            images = folders[cell.removesuffix("_cached"), 1 if cache_mib else COPIES]
            results[cell] = measure_cell(images, cache_mib, arguments.repeats)
            print("\n".join(report(cell, results[cell])), flush=True)
        for size in () if arguments.skip_workers else SIZES:
            rates = {workers: samples_per_second(folders[size, COPIES], workers) for workers in (0, 2)}
            results[f"samples_per_second_{size}"] = rates
            print(f"samples/s {size}, half mosaics: {rates[0]:.0f} in one process, {rates[2]:.0f} with 2 workers")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
