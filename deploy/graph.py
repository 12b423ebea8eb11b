"""The detector as a graph for other runtimes, torch.export, ONNX and OpenVINO: written, run and compared.

All have the inputs and outputs of the official exports (`models.deploy.DeployedDetector`).
Legend: B images, K detections of each, best first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.errors import UserError
from data.files import write_atomically
from data.industrial_dataset import pixel_mean_std
from deploy.thresholds import Thresholds
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
_CPU = "CPUExecutionProvider"
_ACCELERATORS: dict[str, tuple[str, dict[str, str]]] = {
    "CUDA": ("CUDAExecutionProvider", {}),
    "TensorRT float32": ("TensorrtExecutionProvider", {}),
    "TensorRT float16": ("TensorrtExecutionProvider", {"trt_fp16_enable": "1"}),
}
"""ONNX Runtime's providers that may compute something else than its CPU's: TensorRT fuses GridSample wrongly in some
versions, in float16 and in float32 (Intellindust-AI-Lab/DEIMv2, issues 60 and 112; NVIDIA/TensorRT, issue 4813)."""


class GraphOptions(NamedTuple):
    """What the graph accepts. A dynamic batch is always part of it."""

    size_hw: tuple[int, int]
    """Input, pixels; with `dynamic_size` the size it is traced and checked with."""
    dynamic_size: bool = False
    """Any height and width that are multiples of 32."""


class GraphOutput(NamedTuple):
    """Detections of a batch."""

    labels: NDArray[np.int64]
    """[B, K]."""
    boxes: NDArray[np.float32]
    """[B, K, 4], xyxy in pixels of the original images."""
    scores: NDArray[np.float32]
    """[B, K]."""


Runner = Callable[[Tensor, Tensor], GraphOutput]
"""images float32 [B, 3, H, W] and orig_target_sizes int64 [B, 2], as `DeployedDetector` takes them."""


def graph_module(detector: Detector, *, folded: bool, nms_iou: float | None = None) -> DeployedDetector:
    """Join network and post-processing: in the deploy form (`folded`), or as trained, what all else is compared with.

    Raises:
        UserError: The model is a baseline.
    """
    model = require_deim(detector, "a graph (torch_export, onnx, openvino)")
    postprocessor = PostProcessor(detector.config.num_classes, detector.config.num_top_queries)
    return DeployedDetector(deploy(model) if folded else model, postprocessor, nms_iou).eval()


def require_deim(detector: Detector, target: str) -> DEIM:
    """Return the network, if it is a DEIMv2.

    Raises:
        UserError: It is a baseline.
    """
    if isinstance(detector.model, DEIM):
        return detector.model
    assert detector.config.Baseline is not None
    raise UserError(
        f"{detector.path}: is the baseline {detector.config.Baseline.name}, which cannot be exported to {target}; only "
        "DEIMv2 can. `--format safetensors` takes its weights out."
    )


def example_inputs(size_hw: tuple[int, int], batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw normalised images with structures of several sizes, and their original sizes: inputs of the graph."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(batch, 3, *size_hw)
    for cells in (2, 5, 13):
        coarse = torch.randn(batch, 3, cells, cells, generator=generator)
        images += nn.functional.interpolate(coarse, size=size_hw, mode="bilinear", align_corners=False)
    height, width = size_hw
    return images, torch.tensor([[width, height]]).repeat(batch, 1)


def require_size(options: GraphOptions) -> None:
    """Raise a UserError if the network cannot read images of this size."""
    least = 2 * SIZE_DIVISOR if options.dynamic_size else SIZE_DIVISOR
    if any(side < least or side > _LONGEST_SIDE or side % SIZE_DIVISOR for side in options.size_hw):
        raise UserError(
            f"--size {options.size_hw[0]} {options.size_hw[1]}: both sides must be multiples of {SIZE_DIVISOR} from "
            f"{least} to {_LONGEST_SIDE}, such as 640."
        )


def require_packages(*names: str) -> None:
    """Raise a UserError that says how to install them, if optional packages are not here."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        extra = "openvino" if missing == ["openvino"] else "export"
        raise UserError(f'{", ".join(missing)}: not installed. Run: pip install -e ".[{extra}]"')


@torch.no_grad()
def torch_program(module: DeployedDetector, options: GraphOptions) -> torch.export.ExportedProgram:
    """Trace the detector as a `torch.export` program; its size is one that `require_size` lets pass."""
    inputs = example_inputs(options.size_hw, batch=2)
    module(*inputs)  # fills what is cached by size, which then becomes a constant of the graph
    dynamic: dict[str, dict[int, Any]] = {
        name: {0: torch.export.Dim("batch", min=1, max=_MOST_IMAGES)} for name in INPUT_NAMES
    }
    if options.dynamic_size:
        most = _LONGEST_SIDE // SIZE_DIVISOR
        dynamic["images"][2] = SIZE_DIVISOR * torch.export.Dim("height_32", min=2, max=most)
        dynamic["images"][3] = SIZE_DIVISOR * torch.export.Dim("width_32", min=2, max=most)
    return torch.export.export(
        module,
        inputs,
        dynamic_shapes=dynamic,
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=options.dynamic_size,
    )


def write_program(program: torch.export.ExportedProgram, path: Path) -> Path:
    """Write a `.pt2` file, for `torch.export.load(path).module()`."""
    content = io.BytesIO()  # into a file on a full disk, torch.export.save ends the process
    torch.export.save(program, content)
    write_atomically(path, lambda file: file.write(content.getbuffer()), what="program")
    return path


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]) -> Path:
    """Write a `.onnx` file with the weights in it, and `metadata` as its `metadata_props`."""
    require_packages("onnx", "onnxscript")
    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUT_NAMES,
            output_names=OUTPUT_NAMES,
            optimize=True,
            verbose=False,
        )
    assert made is not None
    made.model.metadata_props.update(metadata)
    content = made.model_proto.SerializeToString()
    write_atomically(path, lambda file: file.write(content), what="ONNX model")
    return path


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


def graph_metadata(detector: Detector, options: GraphOptions, thresholds: Thresholds) -> dict[str, str]:
    """Collect what a program that runs the ONNX file has to know, each value as JSON."""
    mean, std = pixel_mean_std(detector.config)
    facts = {
        "names": detector.classes.names,
        "category_ids": detector.classes.category_ids,
        "input_size_hw": options.size_hw,
        "dynamic_size": options.dynamic_size,
        "resize": "stretched to the input size, bilinear, antialiased",
        "colour": "RGB",
        "scale": 1 / 255,
        "mean": mean,
        "std": std,
        "score_thresholds": thresholds.scores.tolist(),
        "nms_iou": thresholds.nms_iou,
        "tile": detector.tile,
        "checkpoint": detector.path.name,
    }
    return {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}


def write_openvino(onnx_path: Path, path: Path) -> Path:
    """Write OpenVINO's `.xml` and `.bin` out of an ONNX file, float32; needs the extra `openvino`."""
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(openvino.convert_model(onnx_path), path, compress_to_fp16=False)
    return path


def torch_runner(module: nn.Module | Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Runner:
    """Run a `DeployedDetector`, compiled or not, or the module of a loaded program."""

    def run(images: Tensor, sizes: Tensor) -> GraphOutput:
        with torch.inference_mode():
            return GraphOutput(*(output.numpy() for output in module(images, sizes)))

    return run


def program_runner(path: Path) -> Runner:
    """Run a `.pt2` file."""
    return torch_runner(torch.export.load(path).module())


def onnx_runner(path: Path, threads: int | None = None) -> Runner:
    """Run an ONNX file on ONNX Runtime's CPU provider."""
    return _run(_session(path, threads, [_CPU]))


def accelerated_runners(path: Path) -> dict[str, Runner]:
    """Run an ONNX file on every accelerator that ONNX Runtime has here, by name; without a GPU build of it, none."""
    import onnxruntime

    runners = {}
    for name, (provider, settings) in _ACCELERATORS.items():
        if provider not in onnxruntime.get_available_providers():
            continue
        session = _session(path, None, [(provider, settings), _CPU])
        if provider in session.get_providers():
            runners[name] = _run(session)
        else:
            log.warning("ONNX Runtime has %s, but cannot start it here: %s is not checked with it", name, path)
    return runners


def _session(path: Path, threads: int | None, providers: list[Any]) -> Any:
    require_packages("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=providers)


def _run(session: Any) -> Runner:
    return lambda *inputs: GraphOutput(
        *session.run(OUTPUT_NAMES, {name: one.numpy() for name, one in zip(INPUT_NAMES, inputs, strict=True)})
    )


def openvino_runner(path: Path, threads: int | None = None, precision: str = "f32") -> Runner:
    """Run an OpenVINO model (or an ONNX file) on the CPU, on as many threads as torch by default.

    `precision` is `f32`, or `bf16` where the CPU has it; OpenVINO's own default is the fastest, not the exact one.
    """
    require_packages("openvino")
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": str(threads or torch.get_num_threads()),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(*inputs: Tensor) -> GraphOutput:
        found = compiled([one.numpy() for one in inputs])
        return GraphOutput(*(np.array(found[name]) for name in OUTPUT_NAMES))

    return run


class Agreement(NamedTuple):
    """How far two runs of the same images differ in their best detections."""

    score: float
    """Largest difference of scores."""
    box: float
    """Largest difference of box coordinates, over the image's longer side."""
    unmatched: int
    """Detections without a counterpart: no other of the same label and nearly the same score."""

    def within(self, tolerance: float) -> bool:
        """Tell whether both differences are small enough and nothing is missing."""
        return not self.unmatched and max(self.score, self.box) <= tolerance


def agreement(
    expected: GraphOutput, found: GraphOutput, sizes: Tensor, *, top: int = 100, tolerance: float = 1e-3
) -> Agreement:
    """Compare the `top` best detections of every image.

    Each is compared with the nearest box of those with its label whose scores are within `tolerance`, because two
    runtimes may order detections of equal scores differently.
    """
    scores, labels, boxes = expected.scores[:, :top], expected.labels[:, :top], expected.boxes[:, :top]
    near = np.abs(scores[:, :, None] - found.scores[:, None]) <= tolerance
    near &= labels[:, :, None] == found.labels[:, None]
    distances = np.abs(boxes[:, :, None] - found.boxes[:, None]).max(axis=-1) / sizes.amax(dim=1).numpy()[:, None, None]
    best = np.where(near, distances, np.inf).min(axis=-1)
    matched = np.isfinite(best)
    worst_score = float(np.abs(scores - found.scores[:, :top]).max())
    return Agreement(worst_score, float(best[matched].max(initial=0.0)), int((~matched).sum()))
