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
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a script: the repository is not on the path

from data.classes import ClassMap  # noqa: E402
from data.errors import UserError  # noqa: E402
from data.script import run_script  # noqa: E402
from deploy import graph  # noqa: E402
from engine.config import load_config  # noqa: E402
from engine.detector import Detector, load_detector  # noqa: E402
from models.detector import build_detector  # noqa: E402

TARGET = 1.5
EAGER = "PyTorch eager"
MATMUL, MATMUL_SIDE = "matrix product", 1024


def read_detector(arguments: argparse.Namespace) -> Detector:
    """The checkpoint's detector, or the config's with random weights."""
    if arguments.checkpoint is not None:
        return load_detector(arguments.checkpoint, config_path=arguments.config, overrides=arguments.update)
    if arguments.config is None:
        raise UserError("Give a checkpoint (-r) or a config (-c).")
    config = load_config(arguments.config, arguments.update)
    torch.manual_seed(0)
    labels = tuple(range(config.num_classes))
    classes = ClassMap(labels, tuple(map(str, labels)))
    return Detector(build_detector(config).eval(), config, classes, path=arguments.config, names_classes=False)


def build_runners(detector: Detector, folder: Path, arguments: argparse.Namespace) -> dict[str, graph.Runner]:
    """Every way to run the detector, warmed up; what does not work on this machine is said on stderr."""
    eager, folded = (graph.graph_module(detector, folded=folded) for folded in (False, True))
    onnx_path, threads = folder / "model.onnx", arguments.threads

    def onnx() -> graph.Runner:
        program = graph.torch_program(folded, graph.GraphOptions(detector.config.eval_spatial_size))
        return graph.onnx_runner(graph.write_onnx(program, onnx_path, {}), threads)

    ways: dict[str, Callable[[], graph.Runner]] = {
        EAGER: lambda: graph.torch_runner(eager),
        "deploy form": lambda: graph.torch_runner(folded),
        "PyTorch compiled": lambda: graph.torch_runner(torch.compile(eager)),  # needs a C++ compiler
        "ONNX Runtime": onnx,
        "OpenVINO": lambda: graph.openvino_runner(onnx_path, threads),
        "OpenVINO bfloat16": lambda: graph.openvino_runner(onnx_path, threads, "bf16"),
    }
    left_out = ["PyTorch compiled"] * (not arguments.compile) + ["OpenVINO bfloat16"] * (not arguments.bf16)
    inputs, runners = graph.example_inputs(detector.config.eval_spatial_size, batch=1), {}
    for name in (name for name in ways if name not in left_out):
        try:
            runner = ways[name]()
            for _ in range(3):
                runner(*inputs)
            runners[name] = runner
        except (UserError, RuntimeError, OSError) as error:
            sys.stderr.write(f"left out: {name}: {str(error).strip().splitlines()[0]}\n")
    return runners


def median_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Wall clock and CPU of all threads, which other work on the machine does not lengthen; each call is made once a
    round, in an order that changes."""
    order = random.Random(0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            wall, cpu = time.perf_counter(), time.process_time()
            calls[name]()
            times[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
    columns = {name: tuple(zip(*pairs, strict=True)) for name, pairs in times.items()}
    return {name: (statistics.median(wall), statistics.median(cpu)) for name, (wall, cpu) in columns.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--checkpoint", type=Path, metavar="CKPT")
    parser.add_argument("-c", "--config", type=Path)
    parser.add_argument("-u", "--update", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out: minutes")
    parser.add_argument("--bf16", action="store_true", help="OpenVINO in bfloat16 too: faster, other numbers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    detector = read_detector(arguments)
    inputs = graph.example_inputs(detector.config.eval_spatial_size, batch=1)
    square = torch.ones(MATMUL_SIDE, MATMUL_SIDE)
    with tempfile.TemporaryDirectory() as folder:
        runners = build_runners(detector, Path(folder), arguments)
        calls: dict[str, Callable[[], object]] = {name: partial(runner, *inputs) for name, runner in runners.items()}
        medians = median_ms(calls | {MATMUL: lambda: square @ square}, arguments.rounds)
        expected = runners[EAGER](*inputs)
        agreements = {name: graph.agreement(expected, run(*inputs), inputs[1]) for name, run in runners.items()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        graph.graph_module(detector, folded=True)(*inputs)
    height, width = detector.config.eval_spatial_size
    print(f"{detector.path.name}, {height} x {width}, batch 1, {arguments.threads} threads, {arguments.rounds} rounds")
    print(f"{'':20}{'wall ms':>9}{'x eager':>9}{'CPU ms':>9}{'x eager':>9}{'scores':>9}{'boxes':>9}")
    (eager_wall, eager_cpu), flops = medians[EAGER], counter.get_total_flops()
    for name, differences in agreements.items():
        wall, cpu = medians[name]
        times = f"{wall:9.1f}{eager_wall / wall:9.2f}{cpu:9.1f}{eager_cpu / cpu:9.2f}"
        print(f"{name:20}{times}{differences.score:9.1g}{differences.box:9.1g}")
    limit = eager_cpu / (medians[MATMUL][1] * flops / (2 * MATMUL_SIDE**3))
    print(f"target: {TARGET:g} x eager, by the clock and by CPU time, in float32")
    print(f"limit in float32: {flops / 1e9:.1f} GFLOP at this machine's matrix products are {limit:.2f} x eager")
    if (load := os.getloadavg()[0]) > 1.5 * arguments.threads:
        print(f"load average {load:.1f}: other work held this machine, trust the CPU time more, with --threads 1")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(lambda _: main()))
