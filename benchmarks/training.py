"""A training of about so many steps on some images; what benchmarks of labels and of small data have in common."""

import json
from pathlib import Path

import torch

from data.coco import CocoSplit
from data.splits import build_datasets
from engine.config import load_config
from engine.distributed import Distributed
from engine.train import train
from engine.yaml_dialect import as_override


def write_part(part: CocoSplit, ann_file: Path) -> list[str]:
    """Write a part of a training split; returns the overrides that train on it."""
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(json.dumps(part.to_coco()), encoding="utf-8")
    paths = {"ann_file": ann_file, "img_folder": part.img_folder}
    return [as_override(f"train_dataloader.dataset.{key}", path.resolve().as_posix()) for key, path in paths.items()]


def train_steps(
    config: Path,
    overrides: list[str],
    run: Path,
    *,
    steps: int,
    seed: int,
    tuning: Path | None,
    no_aug_epoch: int = 0,
) -> Path:
    """Train for about so many optimiser steps (whole epochs) and judge at the end, unless the run is there; returns its
    best.pth."""
    if not (run / "results.json").is_file():
        plain = load_config(config, overrides)
        images = len(build_datasets(plain, ("train",)).splits["train"])
        epochs = max(round(steps / max(images // (plain.train_dataloader.images_per_step or 1), 1)), 1)
        length = [f"epoches={epochs}", f"flat_epoch={epochs // 2}", f"no_aug_epoch={min(no_aug_epoch, epochs - 1)}"]
        whole = load_config(config, [*overrides, *length, f"eval_interval_epochs={epochs}", f"seed={seed}"])
        train(whole, Distributed(0, 1, 0, torch.device("cpu")), run, resume=None, tuning=tuning)
    return run / "best.pth"
