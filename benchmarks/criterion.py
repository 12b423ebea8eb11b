"""How fast is the criterion? One run, side by side with the plain oracle the tests trust.

    python benchmarks/criterion.py [--threads 2] [--repeats 9] [--json FILE]

Batch 16, 30 boxes an image, 300 queries, 4 decoder layers, denoising on; forward + backward in float32 on the
CPU, the two alternating so that both meet the same machine: medians, and the best for when it is busy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script: the repository is not on the path

from models.config import CriterionConfig  # noqa: E402
from models.criterion import DEIMCriterion  # noqa: E402
from tests.support.criterion_cases import made_up_outputs, made_up_targets, named_leaves  # noqa: E402
from tests.support.criterion_oracle import WEIGHTS, OracleSettings, oracle_losses  # noqa: E402

EPOCH = 0
TARGET_RATIO, TARGET_MS = 4.0, 360.0


def make_criterion() -> DEIMCriterion:
    """The official recipe."""
    matcher = {"change_matcher": True, "iou_order_alpha": 4.0, "matcher_change_epoch": 100}
    section = {"weight_dict": WEIGHTS, "gamma": 1.5, "matcher": matcher}
    return DEIMCriterion(CriterionConfig.model_validate(section))


def forward_backward(losses: Callable[[], Mapping[str, Tensor]], leaves: Mapping[str, Tensor]) -> tuple[float, float]:
    """Milliseconds of one forward and backward, and the total loss."""
    for leaf in leaves.values():
        leaf.grad = None
    start = time.perf_counter()
    total = torch.stack(list(losses().values())).sum()
    total.backward()
    return (time.perf_counter() - start) * 1e3, float(total.detach())


def measure_cpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternate criterion and oracle; medians and their ratio."""
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    targets = made_up_targets([arguments.boxes] * arguments.batch, arguments.classes, generator)
    outputs = made_up_outputs(targets, generator, num_queries=arguments.queries, num_classes=arguments.classes)
    leaves, criterion = named_leaves(outputs), make_criterion()
    contestants: dict[str, Callable[[], Mapping[str, Tensor]]] = {
        "criterion": lambda: criterion(outputs, targets, epoch=EPOCH),
        "oracle": lambda: oracle_losses(outputs, targets, EPOCH, OracleSettings()).losses,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    totals: dict[str, float] = {}
    for repeat in range(arguments.repeats + 1):
        for name, losses in contestants.items():
            milliseconds, totals[name] = forward_backward(losses, leaves)
            if repeat:  # the first is the warm-up
                times[name].append(milliseconds)
    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    fastest = {f"{name}_ms_best": min(values) for name, values in times.items()}
    return {
        **medians,
        **fastest,
        "ratio": medians["oracle_ms"] / medians["criterion_ms"],
        "criterion_ms_all": times["criterion"],
        "oracle_ms_all": times["oracle"],
        "total_relative_difference": abs(totals["criterion"] / totals["oracle"] - 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("threads", 2),
        ("repeats", 9),
        ("batch", 16),
        ("boxes", 30),
        ("queries", 300),
        ("classes", 6),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    cpu = measure_cpu(arguments)
    passed = cpu["ratio"] >= TARGET_RATIO and cpu["criterion_ms"] < TARGET_MS
    lines = [
        f"batch {arguments.batch}, {arguments.boxes} boxes an image, {arguments.queries} queries, forward + backward",
        f"CPU ({arguments.threads} threads): criterion {cpu['criterion_ms']:.1f} ms "
        f"(best {cpu['criterion_ms_best']:.1f}), oracle {cpu['oracle_ms']:.1f} ms (best {cpu['oracle_ms_best']:.1f}), "
        f"{cpu['ratio']:.1f} times faster (totals differ by {cpu['total_relative_difference']:.1e})",
        f"target: >= {TARGET_RATIO:g} times and < {TARGET_MS:g} ms: {'met' if passed else 'MISSED'}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json is not None:
        report = {"setting": {k: v for k, v in vars(arguments).items() if k != "json"}, "cpu": cpu}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
