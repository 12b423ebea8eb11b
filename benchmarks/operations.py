"""How many operations does a training step launch? Counted, so the same on every machine.

    python benchmarks/operations.py [-c CONFIG] [--batch 4] [--size 320] [--float32] [--top 12] [--json FILE]

ATen operations that compute (views and allocations are free) of forward, loss and backward, under bfloat16 autocast as
on a GPU, where a step of a small model takes as long as launching them does. The size of the images changes nothing.
On a GPU there are fewer: RMS normalisation is one operation there (two in the backward pass), on a CPU six (fourteen).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script: the repository is not on the path

from engine.config import load_config  # noqa: E402
from models.criterion import build_criterion  # noqa: E402
from models.detector import build_detector  # noqa: E402

BOXES_PER_IMAGE = (1, 3, 2, 5)
CASTS = {"_to_copy"}
FREE = {"detach", "_unsafe_view", "is_same_size", "_local_scalar_dense", "empty", "empty_like", "new_empty_strided"}
"""Views of another name, and allocations: nothing is launched for them."""


class OperationCounter(TorchDispatchMode):
    """Counts what reaches the device; operations that only make views are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in FREE:
            self.counts[name] += 1
        return func(*args, **kwargs or {})


def count(config_path: Path, *, batch: int, size: int, float32: bool) -> dict[str, Counter[str]]:
    """Count one training step's operations by part, after a first step that fills the caches."""
    overrides = ["device=cpu", f"eval_spatial_size=[{size}, {size}]", "DINOv3STAs.weights_path=null"]
    config = load_config(config_path, overrides)
    torch.manual_seed(0)
    model, criterion = build_detector(config).train(), build_criterion(config)
    images = torch.randn(batch, 3, size, size)
    targets = [
        {"labels": torch.randint(0, config.num_classes, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.3}
        for n in (BOXES_PER_IMAGE * batch)[:batch]
    ]
    parts: dict[str, Counter[str]] = {}
    for _ in range(2):
        model.zero_grad()
        counters = {part: OperationCounter() for part in ("forward", "loss", "backward")}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not float32), counters["forward"]:
            outputs = model(images, targets)
        with counters["loss"]:
            losses = criterion(outputs, targets, epoch=0)
            total = torch.stack(list(losses.values())).sum()
        with counters["backward"]:
            total.backward()
        parts = {part: counter.counts for part, counter in counters.items()}
    return parts


def main(command: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", type=Path, default=ROOT / "configs/deimv2_industrial_defects.yml")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=320, help="pixels, a multiple of 32")
    parser.add_argument("--float32", action="store_true", help="without autocast")
    parser.add_argument("--top", type=int, default=12, help="how many kinds of operations to list")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args(command)
    parts = count(arguments.config, batch=arguments.batch, size=arguments.size, float32=arguments.float32)
    for part, counts in parts.items():
        listed = ", ".join(f"{name} {number}" for name, number in counts.most_common(arguments.top))
        print(f"{part:9}{counts.total():6}  {listed}")
    total = sum(parts.values(), Counter())
    print(f"{'sum':9}{total.total():6}  of which casts {sum(total[name] for name in CASTS)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({part: dict(counts) for part, counts in parts.items()}, indent=1))


if __name__ == "__main__":
    main()
