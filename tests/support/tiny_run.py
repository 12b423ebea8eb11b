"""A data set and a config so small that a whole training run takes seconds."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.classes import ClassMap
from engine.checkpoint import save_checkpoint
from engine.config import config_to_dict, load_config
from models.detector import build_detector

ROOT = Path(__file__).parents[2]
CLASS_NAMES = ("square", "bar")
CLASSES = ClassMap((3, 7), CLASS_NAMES)
IMAGE_SIZE_PX = 64


def write_tiny_data(folder: Path, *, num_train: int = 8, num_val: int = 4, boxes: bool = True) -> None:
    """Bright squares and dark bars on grey noise; every fourth image is empty. Category ids 3 and 7."""
    for split, count, offset in (("train", num_train, 0), ("val", num_val, 1000)):
        rng = np.random.default_rng(offset)
        (folder / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for index in range(count):
            pixels = rng.integers(90, 130, (IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), dtype=np.uint8)
            image_id = offset + index + 1
            images.append(
                {"id": image_id, "file_name": f"{index}.png", "width": IMAGE_SIZE_PX, "height": IMAGE_SIZE_PX}
            )
            for category_id in (3, 7) if boxes and index % 4 != 3 else ():
                width, height = (20, 20) if category_id == 3 else (36, 8)
                x, y = int(rng.integers(0, 64 - width)), int(rng.integers(0, 64 - height))
                pixels[y : y + height, x : x + width] = 240 if category_id == 3 else 10
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": [x, y, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
            Image.fromarray(pixels).save(folder / split / f"{index}.png")
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 7, "name": CLASS_NAMES[1]}, {"id": 3, "name": CLASS_NAMES[0]}],
        }
        (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def write_tiny_config(folder: Path, *, name: str = "tiny", extra: str = "") -> Path:
    """A two-epoch run of a DEIMv2 of every real part at toy widths, on the data of `write_tiny_data`."""
    path = folder / f"{name}.yml"
    path.write_text(_CONFIG.format(root=ROOT.as_posix(), data=folder.as_posix()) + extra, encoding="utf-8")
    return path


def write_tiny_checkpoint(path: Path, config: Path, overrides: Sequence[str] = (), *, with_ema: bool = False) -> Path:
    """What an untrained network of the config would leave after its fifth epoch, always the same one; EMA: another."""
    settings = load_config(config, overrides)
    torch.manual_seed(0)
    content = {"last_epoch": 4, "seed": 0, "model": build_detector(settings).state_dict()}
    content |= {"config": config_to_dict(settings), "classes": CLASSES.to_dict()}
    if with_ema:
        content["ema"] = {"module": build_detector(settings).state_dict(), "updates": 3}
    save_checkpoint(path, content)
    return path


def command(script: str, arguments: Sequence[str | Path]) -> list[str]:
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def script_environment(threads: int = 1) -> dict[str, str]:
    """The environment without torchrun's or the user's data variables, and with few threads."""
    keep = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "NEU_DET_ROOT"}}
    return keep | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "1"}


_CONFIG = """
__include__: ["{root}/configs/deimv2/deimv2_dinov3_s_coco.yml"]
num_classes: 2
remap_mscoco_category: False
eval_spatial_size: [64, 64]
epoches: 3
flat_epoch: 1
no_aug_epoch: 1
warmup_iter: 2
num_workers: 0
print_freq: 1
DINOv3STAs:
  name: vit_custom
  embed_dim: 32
  num_heads: 2
  depth: 3
  mlp_ratio: 2
  interaction_indexes: [0, 1, 2]
  conv_inplane: 4
  hidden_dim: 32
  weights_path: null
HybridEncoder:
  in_channels: [32, 32, 32]
  hidden_dim: 32
  dim_feedforward: 48
  depth_mult: 0.34
DEIMTransformer:
  feat_channels: [32, 32, 32]
  hidden_dim: 32
  num_layers: 2
  num_queries: 12
  num_denoising: 8
  dim_feedforward: 48
PostProcessor:
  num_top_queries: 20
optimizer:
  lr: 0.001
train_dataloader:
  total_batch_size: 4
  num_workers: 0
  dataset:
    img_folder: "{data}/train"
    ann_file: "{data}/train.json"
    transforms:
      ops:
        - {{type: Mosaic, output_size: 32}}
        - {{type: RandomPhotometricDistort, p: 0.5}}
        - {{type: RandomZoomOut, fill: 0}}
        - {{type: RandomIoUCrop, p: 0.8}}
        - {{type: SanitizeBoundingBoxes, min_size: 1}}
        - {{type: RandomHorizontalFlip}}
        - {{type: Resize, size: [64, 64]}}
        - {{type: SanitizeBoundingBoxes, min_size: 1}}
        - {{type: ConvertPILImage, dtype: float32, scale: True}}
        - {{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
        - {{type: ConvertBoxes, fmt: cxcywh, normalize: True}}
  collate_fn:
    base_size: 64
    base_size_repeat: 2
val_dataloader:
  total_batch_size: 4
  num_workers: 0
  dataset:
    img_folder: "{data}/val"
    ann_file: "{data}/val.json"
    transforms:
      ops:
        - {{type: Resize, size: [64, 64]}}
        - {{type: ConvertPILImage, dtype: float32, scale: True}}
        - {{type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
"""
