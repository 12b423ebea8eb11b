"""What `export_deimv2.py` does: load once, write every wanted format, check the graphs against PyTorch."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from data.errors import UserError
from deploy import graph
from deploy.thresholds import Nms, Thresholds, choose_thresholds
from deploy.weights_out import write_hub_folder, write_official, write_safetensors
from engine.cli import command_line, ending, require_output_folder
from engine.detector import Detector, load_detector
from engine.named_files import checkpoint_of
from engine.options import Options
from models.deploy import DeployedDetector
from models.hub import output_folder
from texts import NOTHING, Language, plain_table, texts_of

log = logging.getLogger(__name__)

Format = Literal["official", "safetensors", "hub", "torch_export", "onnx", "openvino"]
TOLERANCE = 1e-3
"""Of scores, and of boxes over the image's longer side."""
ACCELERATED_TOLERANCE = 1e-2
"""Where TF32 or float16 round: 40 times what float16 changed in a trained network, and less than any wrong box."""
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}


class _ExportOptions(Options):
    nms: Nms = "auto"


class Exported(NamedTuple):
    """One written format."""

    format: Format
    path: Path
    agreement: graph.Agreement | None
    """With PyTorch; None for weights alone, or if the check was switched off."""


def export_checkpoint(
    path: Path,
    formats: Sequence[Format],
    *,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    size_hw: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    check: bool = True,
    nms: str | float | None = "auto",
) -> list[Exported]:
    """Write a checkpoint in the given formats, each once, in the order of `Format`; by default into the folder
    `export_<checkpoint>` beside it, with graphs for `eval_spatial_size`.

    The suppression (`nms`) is chosen as in `predict_deimv2.py`, so that graphs detect what prediction detects.

    Raises:
        UserError: Bad input of any kind, or a graph that detects something else than PyTorch.
    """
    wanted = _ExportOptions(nms=nms).nms
    path = checkpoint_of(path)
    folder = output_dir or output_folder(path, "export")
    require_output_folder(folder)
    for name in formats:
        graph.require_packages(*_PACKAGES.get(name, ()))
    detector = load_detector(path, config_path=config_path, overrides=overrides)
    options = graph.GraphOptions(size_hw or detector.config.eval_spatial_size, dynamic_size)
    graph.require_size(options)
    writers: dict[Format, tuple[Callable[[Detector, Path], Path], str]] = {
        "official": (write_official, f"{path.stem}_official.pth"),
        "safetensors": (write_safetensors, "model.safetensors"),
        "hub": (write_hub_folder, "hub"),
    }
    written = [
        Exported(name, write(detector, folder / file), None)
        for name, (write, file) in writers.items()
        if name in formats
    ]
    if {"torch_export", "onnx", "openvino"} & {*formats}:
        thresholds = choose_thresholds(detector, None, (), wanted, size_hw=options.size_hw)
        if thresholds.nms_iou is not None:
            log.info("the graphs suppress repeats as predict_deimv2.py --nms %g does", thresholds.nms_iou)
        written += _write_graphs(detector, formats, folder, options, thresholds, check=check)
    return written


def format_exports(written: Sequence[Exported], lang: Language, checkpoint: Path) -> str:
    """Say what was written, how far the graphs differ from PyTorch, and what to type next."""
    texts = texts_of(lang, "export")
    rows = [[texts[key] for key in ("format", "file", "size", "scores", "boxes")]]
    for name, path, found in written:
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        size = texts.number(sum(one.stat().st_size for one in files) / 1e6, 2)
        rows.append([name, path.name, size, *(f"{x:.0e}" if found else NOTHING for x in (found or (0, 0))[:2])])
    times = command_line("benchmarks/inference.py", "-r", checkpoint)
    return f"{plain_table(rows, text_columns=(0, 1))}\n{ending(lang, written[0].path.parent, times)}"


def _write_graphs(
    detector: Detector,
    formats: Sequence[Format],
    folder: Path,
    options: graph.GraphOptions,
    thresholds: Thresholds,
    *,
    check: bool,
) -> list[Exported]:
    iou = thresholds.nms_iou
    program = graph.torch_program(graph.graph_module(detector, folded=True, nms_iou=iou), options)
    expected = graph.graph_module(detector, folded=False, nms_iou=iou)
    written: list[Exported] = []

    def add(name: Format, path: Path, runner: Callable[[Path], graph.Runner]) -> None:
        found = check_against_torch(expected, runner(path), options, path) if check else None
        written.append(Exported(name, path, found))

    if "torch_export" in formats:
        add("torch_export", graph.write_program(program, folder / "model.pt2"), graph.program_runner)
    if not {"onnx", "openvino"} & {*formats}:
        return written
    with tempfile.TemporaryDirectory() as temporary:
        onnx_path = (folder if "onnx" in formats else Path(temporary)) / "model.onnx"
        graph.write_onnx(program, onnx_path, graph.graph_metadata(detector, options, thresholds))
        if "onnx" in formats:
            add("onnx", onnx_path, graph.onnx_runner)
            for name, runner in (graph.accelerated_runners(onnx_path) if check else {}).items():
                what = f"{onnx_path} with ONNX Runtime's {name}"
                check_against_torch(expected, runner, options, what, ACCELERATED_TOLERANCE)
        if "openvino" in formats:
            add("openvino", graph.write_openvino(onnx_path, folder / "model.xml"), graph.openvino_runner)
    return written


def check_against_torch(
    module: DeployedDetector,
    runner: graph.Runner,
    options: graph.GraphOptions,
    what: object,
    tolerance: float = TOLERANCE,
) -> graph.Agreement:
    """Run both on one and on three images, with a dynamic size also on another size, and compare. The `module` is the
    model as it was trained, so that the deploy form is checked with the graph.

    Raises:
        UserError: Scores or boxes differ by more than `tolerance`; `what` names the graph.
    """
    height, width = options.size_hw
    cases = [(1, options.size_hw), (3, options.size_hw)]
    if options.dynamic_size:
        cases.append((2, (height + 32, width + 64)))
    found = []
    for seed, (batch, size_hw) in enumerate(cases, start=1):
        inputs = graph.example_inputs(size_hw, batch, seed)
        expected = graph.torch_runner(module)(*inputs)
        found.append(graph.agreement(expected, runner(*inputs), inputs[1], tolerance=tolerance))
    scores, boxes, unmatched = zip(*found, strict=True)
    worst = graph.Agreement(max(scores), max(boxes), sum(unmatched))
    if not worst.within(tolerance):
        raise UserError(
            f"{what}: detects something else than PyTorch: scores differ by up to {worst.score:.2g}, boxes by "
            f"{worst.box:.2g} of the image's side (allowed: {tolerance:g}), {worst.unmatched} detections are missing. "
            "Do not use it; please report this with the versions of torch, onnx and the runtime (--no-check "
            "writes it regardless)."
        )
    return worst
