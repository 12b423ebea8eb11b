"""How fast is the criterion? One run, side by side with the plain oracle the tests trust.

    python benchmarks/criterion.py [--threads 2] [--repeats 9] [--json FILE]

Batch 16, 30 boxes an image, 300 queries, 4 decoder layers, denoising on; forward + backward in float32 on the
CPU, the two alternating so that both meet the same machine: medians, and the best for when it is busy. Where there
is a CUDA device, its own time and the waits for the device (device-to-host synchronisations) of one call are
measured too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
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


def measure_cuda(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Median time on the GPU, and how often one call waits for it; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    generator = torch.Generator().manual_seed(0)
    cpu_targets = made_up_targets([arguments.boxes] * arguments.batch, arguments.classes, generator)
    cpu_outputs = made_up_outputs(cpu_targets, generator, num_queries=arguments.queries, num_classes=arguments.classes)
    outputs, targets, criterion = to_cuda(cpu_outputs), to_cuda(cpu_targets), make_criterion()
    leaves, times = named_leaves(outputs), []
    for repeat in range(arguments.repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        torch.stack(list(criterion(outputs, targets, epoch=EPOCH).values())).sum().backward()
        torch.cuda.synchronize()
        if repeat >= 3:
            times.append((time.perf_counter() - start) * 1e3)
        for leaf in leaves.values():
            leaf.grad = None
    return {
        "device": torch.cuda.get_device_name(),
        "criterion_ms": statistics.median(times),
        "syncs": count_syncs(lambda: criterion(outputs, targets, epoch=EPOCH)),
    }


def count_syncs(losses: Callable[[], Mapping[str, Tensor]]) -> int:
    """Synchronising CUDA calls of one forward and backward, as PyTorch's debug mode reports them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            torch.stack(list(losses().values())).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def to_cuda(value: Any) -> Any:
    """Copy nested lists and dicts of tensors; leaves that want a gradient stay leaves."""
    if isinstance(value, Tensor):
        return value.detach().cuda().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: to_cuda(item) for key, item in value.items()}
    return [to_cuda(item) for item in value] if isinstance(value, list) else value


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
    cpu, cuda = measure_cpu(arguments), measure_cuda(arguments)
    passed = cpu["ratio"] >= TARGET_RATIO and cpu["criterion_ms"] < TARGET_MS
    lines = [
        f"batch {arguments.batch}, {arguments.boxes} boxes an image, {arguments.queries} queries, forward + backward",
        f"CPU ({arguments.threads} threads): criterion {cpu['criterion_ms']:.1f} ms "
        f"(best {cpu['criterion_ms_best']:.1f}), oracle {cpu['oracle_ms']:.1f} ms (best {cpu['oracle_ms_best']:.1f}), "
        f"{cpu['ratio']:.1f} times faster (totals differ by {cpu['total_relative_difference']:.1e})",
        f"target: >= {TARGET_RATIO:g} times and < {TARGET_MS:g} ms: {'met' if passed else 'MISSED'}",
        "GPU: not measured on a GPU (no CUDA device)"
        if cuda is None
        else f"GPU ({cuda['device']}): criterion {cuda['criterion_ms']:.1f} ms, waits for the device: {cuda['syncs']}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json is not None:
        report = {"setting": {k: v for k, v in vars(arguments).items() if k != "json"}, "cpu": cpu, "cuda": cuda}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
