"""Running an exported detector, whatever runs it: the same call everywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.graph import INPUT_NAMES, OUTPUT_NAMES, require_packages

log = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_ACCELERATORS: dict[str, tuple[str, dict[str, str]]] = {
    "CUDA": ("CUDAExecutionProvider", {}),
    "TensorRT float32": ("TensorrtExecutionProvider", {}),
    "TensorRT float16": ("TensorrtExecutionProvider", {"trt_fp16_enable": "1"}),
}
"""ONNX Runtime's providers that may compute something else than its CPU's: TensorRT fuses GridSample wrongly in some
versions, in float16 and in float32 (Intellindust-AI-Lab/DEIMv2, issues 60 and 112; NVIDIA/TensorRT, issue 4813)."""


@dataclass(frozen=True)
class GraphOutput:
    """Detections of a batch, best first."""

    labels: NDArray[np.int64]
    """[B, K]."""
    boxes: NDArray[np.float32]
    """[B, K, 4], xyxy in pixels of the original images."""
    scores: NDArray[np.float32]
    """[B, K]."""


Runner = Callable[[Tensor, Tensor], GraphOutput]
"""images float32 [B, 3, H, W] and orig_target_sizes int64 [B, 2], as `DeployedDetector` takes them."""


def torch_runner(module: nn.Module | Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Runner:
    """A `DeployedDetector`, compiled or not, or the module of a loaded program."""

    def run(images: Tensor, sizes: Tensor) -> GraphOutput:
        with torch.inference_mode():
            labels, boxes, scores = module(images, sizes)
        return GraphOutput(labels.numpy(), boxes.numpy(), scores.numpy())

    return run


def program_runner(path: Path) -> Runner:
    """A `.pt2` file."""
    return torch_runner(torch.export.load(path).module())


def onnx_runner(path: Path, threads: int | None = None) -> Runner:
    """An ONNX file on ONNX Runtime's CPU provider.

    Raises:
        UserError: onnxruntime is not installed.
    """
    return _session_runner(_session(path, threads, [_CPU]))


def accelerated_runners(path: Path) -> dict[str, Runner]:
    """An ONNX file on every accelerator that ONNX Runtime has here, by name; without a GPU build of it, none."""
    require_packages("onnxruntime")
    import onnxruntime

    runners = {}
    for name, (provider, settings) in _ACCELERATORS.items():
        if provider not in onnxruntime.get_available_providers():
            continue
        session = _session(path, None, [(provider, settings), _CPU])
        if provider in session.get_providers():
            runners[name] = _session_runner(session)
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


def _session_runner(session: Any) -> Runner:

    def run(images: Tensor, sizes: Tensor) -> GraphOutput:
        feed = dict(zip(INPUT_NAMES, (images.numpy(), sizes.numpy()), strict=True))
        return GraphOutput(*session.run(OUTPUT_NAMES, feed))

    return run


def openvino_runner(path: Path, threads: int | None = None, precision: str = "f32") -> Runner:
    """An OpenVINO model (or an ONNX file) on the CPU.

    Args:
        path: `.xml` or `.onnx`.
        threads: None: as many as torch uses.
        precision: `f32`, or `bf16` where the CPU has it; OpenVINO's own default is the fastest, not the exact one.

    Raises:
        UserError: OpenVINO is not installed.
    """
    require_packages("openvino")
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": str(threads or torch.get_num_threads()),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(images: Tensor, sizes: Tensor) -> GraphOutput:
        found = compiled([images.numpy(), sizes.numpy()])
        return GraphOutput(*(np.array(found[name]) for name in OUTPUT_NAMES))

    return run


@dataclass(frozen=True)
class Agreement:
    """How far two runs of the same images differ in their best detections."""

    score: float
    """Largest difference of scores."""
    box: float
    """Largest difference of box coordinates, over the image's longer side."""
    unmatched: int
    """Detections without a counterpart: no other of the same label and nearly the same score."""

    def within(self, tolerance: float) -> bool:
        """Whether both differences are small enough and nothing is missing."""
        return not self.unmatched and max(self.score, self.box) <= tolerance


def agreement(
    expected: GraphOutput, found: GraphOutput, sizes: Tensor, *, top: int = 100, tolerance: float = 1e-3
) -> Agreement:
    """Compare the `top` best detections of every image.

    Each is compared with the nearest box of those with its label whose scores are within `tolerance`, because two
    runtimes may order detections of equal scores differently.
    """
    top = min(top, expected.scores.shape[1])
    worst_score = float(np.abs(expected.scores[:, :top] - found.scores[:, :top]).max())
    worst_box, unmatched = 0.0, 0
    for image, longest in enumerate(sizes.max(dim=1).values.tolist()):
        near = np.abs(expected.scores[image, :top, None] - found.scores[image]) <= tolerance
        near &= expected.labels[image, :top, None] == found.labels[image]
        distance = np.abs(expected.boxes[image, :top, None] - found.boxes[image]).max(axis=-1) / longest
        best = np.where(near, distance, np.inf).min(axis=1)
        unmatched += int(np.isinf(best).sum())
        worst_box = max(worst_box, float(best[np.isfinite(best)].max(initial=0.0)))
    return Agreement(worst_score, worst_box, unmatched)
