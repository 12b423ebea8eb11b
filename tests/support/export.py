"""A tiny checkpoint to export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from data.classes import ClassMap
from engine.checkpoint import save_checkpoint
from engine.config import config_to_dict
from models.detector import DEIM
from tests.support.models import NUM_CLASSES, images, shake, tiny_config, tiny_model

NAMES = ("PERFORACIONES", "RAYONES", "ROTURA", "DEFORMACIONES", "CONTAMINACIÓN", "NORMAL")
CLASSES = ClassMap(tuple(range(NUM_CLASSES)), NAMES)


def write_tiny_checkpoint(folder: Path, model: DEIM | None = None, **sections: Any) -> Path:
    """`best.pth` whose raw and EMA weights differ, and results.json beside it."""
    config = tiny_config(**sections)
    raw, ema = tiny_model(**sections), model or tiny_model(**sections)
    shake(ema, seed=4)
    with torch.no_grad():
        ema.train()(2 * images())  # BatchNorm statistics off their initial values
    path = folder / "best.pth"
    save_checkpoint(
        path,
        {
            "last_epoch": 4,
            "model": raw.state_dict(),
            "ema": {"module": ema.state_dict(), "updates": 9},
            "config": config_to_dict(config),
            "classes": CLASSES.to_dict(),
            "object_scale": {"scale": 0.5, "sides_px": [8.0, 20.0, 40.0]},
        },
    )
    results = {
        "checkpoint": "best.pth",
        "epoch": 5,
        "split": "val",
        "gt_hash": "0123",
        "metrics": {"AP": 0.4567, "AP50": 0.7},
        "per_class": {"RAYONES": {"AP": 0.1234, "AP50": None, "num_gt": 12}},
    }
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return path
