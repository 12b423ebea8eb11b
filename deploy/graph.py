"""The detector as a graph for other runtimes: torch.export program, ONNX, OpenVINO.

All have the inputs and outputs of the official exports (`models.deploy.DeployedDetector`).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.files import write_atomically
from data.industrial_dataset import pixel_mean_std
from deploy.weights_out import require_deim
from engine.detector import Detector
from models.deploy import DeployedDetector, deploy
from models.detector import DEIM, SIZE_DIVISOR
from models.postprocess import PostProcessor

log = logging.getLogger(__name__)

INPUT_NAMES = ["images", "orig_target_sizes"]
OUTPUT_NAMES = ["labels", "boxes", "scores"]
OPSET = 20
"""TensorRT 10 and ONNX Runtime 1.17 know it; GridSample needs 16, GELU in one node 20."""
_MOST_IMAGES = 1024
_LONGEST_SIDE = 4096


@dataclass(frozen=True)
class GraphOptions:
    """What the graph accepts. A dynamic batch is always part of it."""

    size_hw: tuple[int, int]
    """Input, pixels; with `dynamic_size` the size it is traced and checked with."""
    dynamic_size: bool = False
    """Any height and width that are multiples of 32."""


def deployed_detector(detector: Detector) -> DeployedDetector:
    """The deploy form with post-processing.

    Raises:
        UserError: The model is a baseline.
    """
    return _with_postprocessing(detector, deploy(_deim(detector)))


def plain_detector(detector: Detector) -> DeployedDetector:
    """The same inputs and outputs from the model as it was trained: what everything else is measured against.

    Raises:
        UserError: The model is a baseline.
    """
    return _with_postprocessing(detector, _deim(detector))


def _deim(detector: Detector) -> DEIM:
    return require_deim(detector, "a graph (torch_export, onnx, openvino)")


def _with_postprocessing(detector: Detector, model: DEIM) -> DeployedDetector:
    return DeployedDetector(model, PostProcessor(detector.config.num_classes, detector.config.num_top_queries)).eval()


def example_inputs(size_hw: tuple[int, int], batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normalised images with structures of several sizes, and their original sizes: inputs of the graph."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(batch, 3, *size_hw)
    for cells in (2, 5, 13):
        coarse = torch.randn(batch, 3, cells, cells, generator=generator)
        images += nn.functional.interpolate(coarse, size=size_hw, mode="bilinear", align_corners=False)
    height, width = size_hw
    return images, torch.tensor([[width, height]]).repeat(batch, 1)


@torch.no_grad()
def torch_program(detector: DeployedDetector, options: GraphOptions) -> torch.export.ExportedProgram:
    """The detector as a `torch.export` program.

    Raises:
        UserError: A side is no multiple of 32.
    """
    require_size(options)
    inputs = example_inputs(options.size_hw, batch=2)
    detector(*inputs)  # fills what is cached by size, which then becomes a constant of the graph
    dynamic: dict[str, dict[int, Any]] = {
        name: {0: torch.export.Dim("batch", min=1, max=_MOST_IMAGES)} for name in INPUT_NAMES
    }
    if options.dynamic_size:
        most = _LONGEST_SIDE // SIZE_DIVISOR
        dynamic["images"][2] = SIZE_DIVISOR * torch.export.Dim("height_32", min=2, max=most)
        dynamic["images"][3] = SIZE_DIVISOR * torch.export.Dim("width_32", min=2, max=most)
    return torch.export.export(
        detector,
        inputs,
        dynamic_shapes=dynamic,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=options.dynamic_size,
    )


def require_size(options: GraphOptions) -> None:
    """Check that the network can read images of this size.

    Raises:
        UserError: It cannot.
    """
    least = 2 * SIZE_DIVISOR if options.dynamic_size else SIZE_DIVISOR
    if any(side < least or side > _LONGEST_SIDE or side % SIZE_DIVISOR for side in options.size_hw):
        raise UserError(
            f"--size {options.size_hw[0]} {options.size_hw[1]}: both sides must be multiples of {SIZE_DIVISOR} from "
            f"{least} to {_LONGEST_SIDE}, such as 640."
        )


def write_program(program: torch.export.ExportedProgram, path: Path) -> Path:
    """A `.pt2` file, for `torch.export.load(path).module()`."""
    content = io.BytesIO()  # into a file on a full disk, torch.export.save ends the process
    torch.export.save(program, content)
    write_atomically(path, lambda file: file.write(content.getbuffer()), what="program")
    return path


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str], *, optimize: bool = True
) -> Path:
    """A `.onnx` file with the weights in it.

    Args:
        program: From `torch_program`.
        path: Target.
        metadata: Stored in the file as `metadata_props`.
        optimize: Fold constants and simplify the graph; off is faster and leaves it to the runtime.

    Raises:
        UserError: The packages of the extra `export` are not installed, or the file cannot be written.
    """
    require_packages("onnx", "onnxscript")
    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUT_NAMES,
            output_names=OUTPUT_NAMES,
            optimize=optimize,
            verbose=False,
        )
    assert made is not None
    made.model.metadata_props.update(metadata)
    content = made.model_proto.SerializeToString()
    write_atomically(path, lambda file: file.write(content), what="ONNX model")
    return path


def write_openvino(onnx_path: Path, path: Path) -> Path:
    """OpenVINO's `.xml` and `.bin` out of an ONNX file, float32.

    Raises:
        UserError: OpenVINO is not installed.
    """
    require_packages("openvino")
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(openvino.convert_model(onnx_path), path, compress_to_fp16=False)
    return path


def graph_metadata(detector: Detector, options: GraphOptions) -> dict[str, str]:
    """What a program that runs the ONNX file has to know, each value as JSON."""
    mean, std = pixel_mean_std(detector.config)
    facts = {
        "names": list(detector.classes.names),
        "category_ids": list(detector.classes.category_ids),
        "input_size_hw": list(options.size_hw),
        "dynamic_size": options.dynamic_size,
        "resize": "stretched to the input size, bilinear, antialiased",
        "colour": "RGB",
        "scale": 1 / 255,
        "mean": list(mean),
        "std": list(std),
        "checkpoint": detector.path.name,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


def require_packages(*names: str) -> None:
    """Check that optional packages are installed.

    Raises:
        UserError: Some are not; says how to install them.
    """
    import importlib.util

    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        extra = "openvino" if missing == ["openvino"] else "export"
        raise UserError(f'{", ".join(missing)}: not installed. Run: pip install -e ".[{extra}]"')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter writes its progress to stdout and its internals to the log."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
