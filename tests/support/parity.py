"""Golden numbers of the original DEIMv2, and the weights they were computed with.

Small cases lie in tests/golden (cut: fewer images, channels and queries than the public set). Where the environment
variable PARITY_ROOT names the folder of the complete public set, tests read that instead, and further cases run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.config import load_config
from models.detector import DEIM, build_detector
from models.weights import load_state_dict_strict
from tests.support.configs import official

GOLDEN = Path(__file__).parents[1] / "golden"
COMPLETE = Path(os.environ["PARITY_ROOT"]) if "PARITY_ROOT" in os.environ else None

needs_complete_set = pytest.mark.skipif(COMPLETE is None, reason="needs PARITY_ROOT, the complete golden set")

SIX_CLASSES = ("num_classes=6", "remap_mscoco_category=False", "DINOv3STAs.weights_path=null")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def golden_tensors(name: str) -> dict[str, Tensor]:
    """Tensors of a golden file, from the complete set where there is one."""
    return load_file((COMPLETE or GOLDEN) / f"{name}.safetensors")


def golden_json(name: str) -> dict[str, Any]:
    """Content of a golden JSON file."""
    content: dict[str, Any] = json.loads(((COMPLETE or GOLDEN) / f"{name}.json").read_text(encoding="utf-8"))
    return content


def network_input(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> normalised float32, written out plainly."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    assert found.shape == expected.shape
    return float((found.detach() - expected).norm() / expected.norm())


@cache
def golden_weights() -> dict[str, Tensor]:
    """Weights of the S model with six classes; every tensor depends on its key, its kind and the seed only."""
    spec = json.loads((GOLDEN / "keys.json").read_text(encoding="utf-8"))
    weights = {key: _draw(key, shape, kind, spec["seed"]) for key, shape, kind in spec["keys"] if kind != "constant"}
    digest = hashlib.sha256()
    for key in sorted(weights):
        digest.update(weights[key].numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == spec["sha256"], "the recipe of the golden weights is not followed"
    for key, shape, kind in spec["keys"]:
        if kind == "constant" and key in spec["constants"]:
            constant = spec["constants"][key]
            weights[key] = torch.tensor(constant["value"], dtype=getattr(torch, constant["dtype"])).reshape(shape)
        elif key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(0)
    return weights


def _draw(key: str, shape: list[int], kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}:{key}".encode()))
    if kind == "bn_var":
        return (0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)).float()
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    match kind:
        case "weight":
            x = x / math.sqrt(math.prod(shape[1:]))
        case "embedding":
            x = x / math.sqrt(shape[1])
            x[-1] = 0
        case "class_bias":
            x = -2 + 0.05 * x
        case "scale":
            x = 1 + 0.1 * x
        case _:
            x = x * {"bn_mean": 0.1, "bias": 0.05, "offset_bias": 2.0, "token": 0.02}[kind]
    return x.float()


def golden_keys() -> dict[str, tuple[int, ...]]:
    """Key -> shape of the S model's complete state dict, six classes."""
    spec = json.loads((GOLDEN / "keys.json").read_text(encoding="utf-8"))
    return {key: tuple(shape) for key, shape, _ in spec["keys"]}


def golden_model(*, num_denoising: int = 0) -> DEIM:
    """DEIMv2-S with six classes and the golden weights, in training mode."""
    config = load_config(official("s"), [*SIX_CLASSES, f"DEIMTransformer.num_denoising={num_denoising}"])
    model = build_detector(config)
    load_state_dict_strict(model, golden_weights())
    return model
