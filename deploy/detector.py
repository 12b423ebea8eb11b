"""A checkpoint as a function from pixels to detections, with the preprocessing of the evaluation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from data.classes import ClassMap
from data.errors import UserError
from data.images import PixelArray, resize_antialiased
from data.industrial_dataset import pixel_mean_std
from data.transforms import output_size_hw
from engine.amp import choose_amp_dtype
from engine.config import ExperimentConfig
from engine.source import load_source
from models.detections import Detections
from models.detector import normalize_images
from models.postprocess import build_postprocessor

log = logging.getLogger(__name__)


class Detector(Protocol):
    """What prediction needs of a network."""

    def prepare(self, pixels: PixelArray) -> Tensor:
        """uint8 [H, W, 3] RGB -> uint8 [3, h, w], the network's input size. Called from several threads."""

    def detect(self, inputs: Sequence[Tensor], sizes_wh: Sequence[tuple[int, int]]) -> list[Detections]:
        """What is in each prepared image, all of it; boxes in pixels of images of `sizes_wh`."""


class NetworkDetector:
    """A detector of `build_detector`, whatever its kind, in evaluation mode."""

    def __init__(
        self, model: nn.Module, config: ExperimentConfig, device: torch.device, *, use_amp: bool = False
    ) -> None:
        """The network goes to the device.

        Args:
            model: With its weights.
            config: What it was built from; images become what `val_dataloader` makes of them.
            device: Where to compute.
            use_amp: Mixed precision on a GPU.
        """
        self._model = model.to(device).eval()
        self._device = device
        self._size_hw = output_size_hw(config.val_dataloader.dataset.transforms)
        self._mean, self._std = pixel_mean_std(config)
        self._amp_dtype = choose_amp_dtype(use_amp, device)
        self._process = build_postprocessor(config)

    def prepare(self, pixels: PixelArray) -> Tensor:
        """Stretched to the network's size, as in evaluation."""
        return torch.from_numpy(resize_antialiased(pixels, self._size_hw)).permute(2, 0, 1)

    @torch.no_grad()
    def detect(self, inputs: Sequence[Tensor], sizes_wh: Sequence[tuple[int, int]]) -> list[Detections]:
        """One batch.

        Raises:
            UserError: Out of memory.
        """
        device = self._device
        try:
            images = torch.stack(list(inputs)).to(device)
            with torch.autocast(device.type, dtype=self._amp_dtype, enabled=self._amp_dtype is not None):
                outputs = self._model(normalize_images(images, self._mean, self._std))
            found = self._process(outputs, torch.tensor(sizes_wh, dtype=torch.int64, device=device))
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"Out of memory with {len(inputs)} images at once: {str(error).splitlines()[0]}. Use a smaller "
                "--batch-size, or --use-amp."
            ) from error
        return [_finite(one) for one in found]


def _finite(one: Detections) -> Detections:
    finite = np.isfinite(one.scores) & np.isfinite(one.boxes_xyxy).all(axis=1)
    if not finite.all():
        log.warning("%d of %d detections are not finite and left out", int((~finite).sum()), len(finite))
    return one.rows(finite)


class Loaded(NamedTuple):
    """A checkpoint ready for prediction."""

    detector: NetworkDetector
    classes: ClassMap
    epoch: int | None
    """Epochs it was trained for; None where the file does not tell."""
    input_size_hw: tuple[int, int]


def load_detector(
    path: Path,
    device: torch.device,
    *,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    use_amp: bool = False,
) -> Loaded:
    """The EMA weights of a checkpoint of any kind of detector.

    Args:
        path: The checkpoint; no data set is needed.
        device: Where to compute.
        config_path: Config to use instead of the one in the checkpoint (official files have none).
        overrides: `a.b=c`, on top of either.
        use_amp: Mixed precision on a GPU.

    Raises:
        UserError: The checkpoint or the config cannot be used.
    """
    source = load_source(path, config_path, overrides)
    detector = NetworkDetector(source.model, source.config, device, use_amp=use_amp)
    return Loaded(detector, source.classes, source.epoch, source.config.eval_spatial_size)
