"""How fast is one image on the CPU, and on which runtime?

    python benchmarks/inference.py -r outputs/quickstart/best.pth
    python benchmarks/inference.py -c configs/deimv2/deimv2_dinov3_s_coco.yml      # random weights

PyTorch eager, compiled and in the deploy form, ONNX Runtime and OpenVINO (float32, and bfloat16 if asked for) side by
side in one process: every round times each of them once, in a changing order, so what else happens on the machine hits
all alike. Reported are medians over the rounds, wall clock and CPU time. Network and post-processing are in, reading
images is not. The graphs have a fixed size and a batch of 1.

The last line is the limit: how much faster than eager a runtime would be that made all multiplications of the deploy
form at the rate of a 1024 x 1024 float32 matrix product (timed in the same rounds) and everything else in no time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script: the repository is not on the path

from data.classes import ClassMap  # noqa: E402
from data.errors import UserError  # noqa: E402
from deploy.graph import (  # noqa: E402
    GraphOptions,
    deployed_detector,
    example_inputs,
    plain_detector,
    torch_program,
    write_onnx,
)
from deploy.runtimes import Runner, agreement, onnx_runner, openvino_runner, torch_runner  # noqa: E402
from engine.cli import run_script  # noqa: E402
from engine.config import load_config  # noqa: E402
from engine.detector import Detector, load_detector  # noqa: E402
from models.detector import build_detector  # noqa: E402

TARGET = 1.5
EAGER = "PyTorch eager"
MATMUL, MATMUL_SIDE = "matrix product", 1024


def build_source(arguments: argparse.Namespace) -> Detector:
    """The checkpoint's model, or the config's with random weights."""
    if arguments.checkpoint is not None:
        return load_detector(arguments.checkpoint, config_path=arguments.config, overrides=arguments.update)
    if arguments.config is None:
        raise UserError("Give a checkpoint (-r) or a config (-c).")
    config = load_config(arguments.config, arguments.update)
    torch.manual_seed(0)
    labels = tuple(range(config.num_classes))
    classes = ClassMap(labels, tuple(map(str, labels)))
    return Detector(build_detector(config).eval(), config, classes, path=arguments.config, names_classes=False)


def build_runners(source: Detector, folder: Path, *, threads: int, compiled: bool, bf16: bool) -> dict[str, Runner]:
    """Every way to run the detector that works on this machine; what does not is said on stderr."""
    size_hw = source.config.eval_spatial_size
    eager = plain_detector(source)
    deployed = deployed_detector(source)
    runners = {
        EAGER: torch_runner(eager),
        "deploy form": torch_runner(deployed),
    }
    if compiled:
        runners["PyTorch compiled"] = torch_runner(torch.compile(eager))
    try:
        onnx_path = write_onnx(torch_program(deployed, GraphOptions(size_hw)), folder / "model.onnx", {})
        runners["ONNX Runtime"] = onnx_runner(onnx_path, threads)
        runners["OpenVINO"] = openvino_runner(onnx_path, threads)
        if bf16:
            runners["OpenVINO bfloat16"] = openvino_runner(onnx_path, threads, "bf16")
    except UserError as error:
        sys.stderr.write(f"left out: {error}\n")
    return runners


def warm_up(runners: dict[str, Runner], inputs: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Runner]:
    """Those that run; torch.compile needs a C++ compiler."""
    working = {}
    for name, runner in runners.items():
        try:
            for _ in range(3):
                runner(*inputs)
        except (RuntimeError, OSError) as error:
            sys.stderr.write(f"left out: {name}: {str(error).strip().splitlines()[0]}\n")
            continue
        working[name] = runner
    return working


@dataclass
class Times:
    """Milliseconds of every round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Of all threads of this process: what other work on the machine does not lengthen."""

    def medians(self) -> tuple[float, float]:
        """Wall clock and CPU."""
        return statistics.median(self.wall), statistics.median(self.cpu)


def time_interleaved(
    runners: dict[str, Runner], inputs: tuple[torch.Tensor, torch.Tensor], rounds: int
) -> dict[str, Times]:
    """Every runner, and a plain matrix product (`MATMUL`), once a round, in an order that changes."""
    square = torch.ones(MATMUL_SIDE, MATMUL_SIDE)
    calls: dict[str, Callable[[], object]] = {name: partial(runner, *inputs) for name, runner in runners.items()}
    calls[MATMUL] = lambda: square @ square
    order, times = random.Random(0), {name: Times() for name in calls}
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            times[name].wall.append(1e3 * (time.perf_counter() - wall))
            times[name].cpu.append(1e3 * (time.process_time() - cpu))
    return times


def speed_limit(
    source: Detector, inputs: tuple[torch.Tensor, torch.Tensor], eager_ms: float, matmul_ms: float
) -> tuple[float, float]:
    """Floating-point operations of the deploy form in units of 1e9, and the best possible speed-up over eager."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        deployed_detector(source)(*inputs)
    operations = float(counter.get_total_flops())
    return operations / 1e9, eager_ms / (matmul_ms * operations / (2 * MATMUL_SIDE**3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("-c", "--config", type=Path)
    parser.add_argument("-u", "--update", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out: minutes")
    parser.add_argument("--bf16", action="store_true", help="OpenVINO in bfloat16 too: faster, other numbers")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = build_source(arguments)
    size_hw = source.config.eval_spatial_size
    inputs = example_inputs(size_hw, batch=1)
    with tempfile.TemporaryDirectory() as folder:
        built = build_runners(
            source, Path(folder), threads=arguments.threads, compiled=arguments.compile, bf16=arguments.bf16
        )
        runners = warm_up(built, inputs)
        times = time_interleaved(runners, inputs, arguments.rounds)
        expected = runners[EAGER](*inputs)
        differences = {name: agreement(expected, runner(*inputs), inputs[1]) for name, runner in runners.items()}
    medians = {name: values.medians() for name, values in times.items()}
    matmul_cpu = medians.pop(MATMUL)[1]
    limit = speed_limit(source, inputs, medians[EAGER][1], matmul_cpu)
    report(source, medians, {name: (one.score, one.box) for name, one in differences.items()}, limit, arguments)
    return 0


def report(
    source: Detector,
    medians: dict[str, tuple[float, float]],
    differences: dict[str, tuple[float, float]],
    limit: tuple[float, float],
    arguments: argparse.Namespace,
) -> None:
    height, width = source.config.eval_spatial_size
    lines = [
        f"{source.path.name}, {height} x {width}, batch 1, {arguments.threads} threads, {arguments.rounds} rounds",
        f"{'':20}{'wall ms':>9}{'x eager':>9}{'CPU ms':>9}{'x eager':>9}{'scores':>9}{'boxes':>9}",
    ]
    eager_wall, eager_cpu = medians[EAGER]
    for name, (wall, cpu) in medians.items():
        score, box = differences[name]
        lines.append(
            f"{name:20}{wall:9.1f}{eager_wall / wall:9.2f}{cpu:9.1f}{eager_cpu / cpu:9.2f}{score:9.1g}{box:9.1g}"
        )
    exact = {name: pair for name, pair in medians.items() if "bfloat16" not in name}
    best = min(exact, key=lambda name: exact[name][0])
    speedups = [eager / fast for eager, fast in zip(medians[EAGER], exact[best], strict=True)]
    verdict = "met" if min(speedups) >= TARGET else "MISSED"
    lines.append(
        f"best in float32: {best}, {speedups[0]:.2f} x eager by the clock, {speedups[1]:.2f} x by CPU time; "
        f"target >= {TARGET:g} x by both: {verdict}"
    )
    lines.append(f"limit in float32: {limit[0]:.1f} GFLOP at this machine's matrix products are {limit[1]:.2f} x eager")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * arguments.threads:
        lines.append(
            f"load average {load:.1f}: other work held this machine, trust the CPU time more"
            + (" and measure with --threads 1: PyTorch's threads wait for each other" if arguments.threads > 1 else "")
        )
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json is not None:
        content: dict[str, Any] = {
            "model": source.path.as_posix(),
            "size_hw": [height, width],
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "median_wall_and_cpu_ms": medians,
            "gflop_and_limit_of_speedup": limit,
            "largest_difference_of_scores_and_boxes": differences,
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_script(main))
