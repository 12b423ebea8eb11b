"""A detector at work: loaded from a checkpoint of any origin, and the one way from pixels to detections."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.box_sizes import scales_of
from data.classes import COCO_CLASSES, ClassMap
from data.coco_reader import AnnotationReader
from data.config import TilesConfig
from data.errors import UserError
from data.files import file_sha256
from data.images import resize_antialiased
from data.industrial_dataset import pixel_mean_std
from data.transforms import output_size_hw
from data.types import PixelArray
from engine.acceleration import choose_amp_dtype, compiler
from engine.calibration import Calibration
from engine.checkpoint import checkpoint_classes, checkpoint_config, load_checkpoint, model_state
from engine.config import ExperimentConfig, apply_overrides, load_config
from engine.multimodal import with_stored_texts
from models.detections import Detections
from models.detector import build_detector, normalize_images
from models.hub import hub_overrides, hub_weights
from models.postprocess import build_postprocessor
from models.weights import load_state_dict_strict

log = logging.getLogger(__name__)

_OTHER_SCALE = 1.5
"""Ratio of scales from which on images are not what the network was trained for: multi-scale varies by 1.25."""


@dataclass(frozen=True, eq=False)
class Detector:
    """A network with all that turns pixels into detections. Legend: B images of H x W, the network's input size."""

    model: nn.Module
    """From `build_detector`, on `device`; `load_detector` leaves it in evaluation mode."""
    config: ExperimentConfig
    classes: ClassMap
    """What the labels mean; of a checkpoint that names none: its data's, COCO's if there are 80, or "class 1", ..."""
    device: torch.device = torch.device("cpu")
    amp_dtype: torch.dtype | None = None
    """Autocast to this type; None computes in float32, as evaluation does (docs/deimv2.md, AMP, EMA)."""
    path: Path = Path()
    """The checkpoint it was loaded from."""
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's content without the weights."""
    names_classes: bool = True
    """Whether the checkpoint names its classes."""
    compiled: str | None = None
    """Backend of torch.compile to compute with, anew for each size of a batch."""
    calibration: Calibration | None = None
    """Turns scores into chances; None leaves them as they are, as evaluation judges them."""

    def __post_init__(self) -> None:
        if self.compiled:
            self.model.compile(dynamic=False, backend=self.compiled)

    @property
    def epoch(self) -> int | None:
        """Epochs it was trained for; None where the checkpoint does not tell."""
        last_epoch = self.checkpoint.get("last_epoch")
        return last_epoch + 1 if isinstance(last_epoch, int) else None

    @cached_property
    def sha256(self) -> str:
        """Of the checkpoint's file."""
        return file_sha256(hub_weights(self.path))

    @property
    def input_size_hw(self) -> tuple[int, int]:
        """Of the network's input, pixels, as evaluation resizes to it."""
        return output_size_hw(self.config.val_dataloader.dataset.transforms)

    @property
    def usual_batch(self) -> int:
        """Images, or tiles, to detect on at once: on a CPU more take memory and no less time."""
        return 4 if self.device.type == "cpu" else 8

    @property
    def tile(self) -> tuple[int, float] | None:
        """Size, in pixels, and overlap of the tiles in which it sees images; None: whole."""
        tiles = self.config.tiles
        return None if tiles is None else (tiles.size, tiles.overlap)

    def with_tiles(self, tiles: TilesConfig | None) -> Detector:
        """Return the same detector for images that are cut so; None: they are whole."""
        return replace(self, config=self.config.model_copy(update={"tiles": tiles}))

    def other_scale(self, size_wh: tuple[float, float]) -> str | None:
        """Say so, with both numbers, where images of this size reach the network at another scale than in training."""
        trained = self.checkpoint.get("object_scale")
        try:
            before, (low, _, high) = float(trained["scale"]), map(float, trained["sides_px"])  # type: ignore[index]
        except (KeyError, TypeError, ValueError):
            return None  # of another version, or without boxes
        now = float(scales_of(size_wh, self.input_size_hw, self.config.tiles))
        if not before > 0 or 1 / _OTHER_SCALE < now / before < _OTHER_SCALE:
            return None
        tiles, ratio = self.config.tiles, now / before
        seen = round(math.sqrt(math.prod(self.input_size_hw)) / before)  # pixels at once, in training
        can_cut = now < before or (tiles is not None and tiles.size < seen)
        cut = f"tiles of {tiles.size} pixels" if tiles else "no tiles"
        advice = (
            f"Unless the objects are larger or smaller in these images, cut tiles of {seen} pixels"
            if can_cut
            else f"Images of less than the {seen} x {seen} pixels that it saw at once there are enlarged"
        )
        return (
            f"{size_wh[0]:g} x {size_wh[1]:g} pixels with {cut} reach the network at {now:.3g} pixels per image "
            f"pixel, in training it was {before:.3g}: what had a side of {low:.0f} to {high:.0f} pixels there has "
            f"{low * ratio:.3g} to {high * ratio:.3g} here. {advice}"
        )

    def prepare(self, pixels: PixelArray) -> Tensor:
        """Resize uint8 [H, W, 3] RGB to the network's input, uint8 [3, H, W], as evaluation does; thread-safe."""
        return torch.from_numpy(resize_antialiased(pixels, self.input_size_hw)).permute(2, 0, 1)

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 [B, 3, H, W] into the network's float32 of the same shape, on its device."""
        return normalize_images(images.to(self.device, non_blocking=True), *pixel_mean_std(self.config))

    @torch.no_grad()  # not inference_mode: embeddings cached by a module must stay usable in training
    def outputs(self, images: Tensor) -> Any:
        """Run the network on uint8 [B, 3, H, W]: what `build_postprocessor` takes."""
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None):
            return self.model(self.normalize(images))

    def detect(
        self, images: Tensor | Sequence[Tensor], sizes_wh: Tensor | Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detect on uint8 [B, 3, H, W], without a threshold; boxes are in pixels of images of `sizes_wh` [B, 2].

        Detections that are not finite are left out, with a warning: JSON and COCO know no NaN.

        Raises:
            UserError: Out of memory.
        """
        try:
            batch = images if isinstance(images, Tensor) else torch.stack(list(images))
            sizes = torch.as_tensor(sizes_wh, dtype=torch.int64, device=self.device)
            detections = build_postprocessor(self.config)(self.outputs(batch), sizes)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"Out of memory with {len(images)} images at once: {str(error).splitlines()[0]}. Use smaller batches "
                "(prediction: a smaller --batch-size; evaluation: -u val_dataloader.total_batch_size=1, or the split's "
                "own), or --use-amp."
            ) from error
        if self.calibration is not None:
            detections = [one.rescored(self.calibration(one.scores, one.labels)) for one in detections]
        finite = [np.isfinite(one.scores) & np.isfinite(one.boxes_xyxy).all(axis=1) for one in detections]
        strange = sum(int((~rows).sum()) for rows in finite)
        if not strange:
            return detections
        log.warning(
            "%d of %d detections are not finite and left out; the weights have probably diverged",
            strange,
            sum(map(len, detections)),
        )
        return [
            replace(one.rows(rows), is_whole=bool(rows.all())) for one, rows in zip(detections, finite, strict=True)
        ]


def load_detector(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    use_amp: bool = False,
    compiled: bool = False,
) -> Detector:
    """Load a checkpoint's judged weights, the EMA's where there are any; no data set or other weight file is needed.

    Args:
        path: Ours, an official one (which needs `config_path`), or a hub folder or name.
        config_path: Config to use instead of the checkpoint's own; `overrides`: `a.b=c`, on top of either.
        use_amp: Mixed precision on a GPU.
        compiled: Compute with torch.compile, where it can be.

    Raises:
        UserError: Bad input of any kind.
    """
    device = torch.device(device)
    checkpoint = load_checkpoint(path)
    config = judged_config(checkpoint, path, config_path, overrides)
    model = build_detector(config)
    load_state_dict_strict(model, model_state(checkpoint), source=path)
    stored = checkpoint_classes(checkpoint, path)
    classes = stored or _classes_of(config, path)
    if len(classes) != config.num_classes:
        raise UserError(
            f"{path}: it names {len(classes)} classes, but the config says num_classes: {config.num_classes}"
        )
    rest = {key: value for key, value in checkpoint.items() if key not in ("model", "ema", "optimizer")}
    ema = checkpoint.get("ema")
    if isinstance(ema, dict):
        rest["ema"] = {key: value for key, value in ema.items() if key != "module"}
    amp_dtype = choose_amp_dtype(use_amp, device)
    model.to(device).eval()
    backend = compiler(model, device) if compiled else None
    return Detector(model, config, classes, device, amp_dtype, path, rest, stored is not None, backend)


def judged_config(
    checkpoint: Mapping[str, Any], path: Path, config_path: Path | None, overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """Return the config to judge a checkpoint with: its own, or the file `config_path`; `overrides` on top.

    A checkpoint's own config draws no data: it may come from anybody, and would write where it says. With
    `config_path`, what a hub folder's `config.json` says beyond the tensors is taken from there, and the sizes of class
    texts from the checkpoint.

    Raises:
        UserError: There is no usable config, or it does not fit the checkpoint's class texts.
    """
    if config_path is None:
        stored = checkpoint_config(checkpoint, path)
        if stored.synthetic is not None and not stored.synthetic.root.exists():
            log.info("%s: the data are not drawn again for a checkpoint; -c CONFIG draws them", stored.synthetic.root)
        return apply_overrides(stored.model_copy(update={"synthetic": None}), overrides)
    config = load_config(config_path, overrides)
    decided = hub_overrides(checkpoint, config)
    if decided:
        log.warning("taken from there (-u overrides it): %s", ", ".join(decided))
        config = load_config(config_path, [*decided, *overrides])
    return with_stored_texts(config, checkpoint, path)


def _classes_of(config: ExperimentConfig, path: Path) -> ClassMap:
    """Classes for a file that names none."""
    dataset = config.val_dataloader.dataset
    if dataset.ann_file.is_file():
        reader = AnnotationReader("val", dataset.ann_file, dataset.img_folder)
        categories = reader.categories(reader.load())
        if len(categories) == config.num_classes:
            return ClassMap.from_categories([{"id": key, "name": name} for key, name in categories.items()])
    if config.num_classes == len(COCO_CLASSES):
        log.info("the %d classes are taken to be COCO's", len(COCO_CLASSES))
        return COCO_CLASSES
    numbers = tuple(range(1, config.num_classes + 1))
    classes = ClassMap(numbers, tuple(f"class {number}" for number in numbers))
    log.warning("%s names no classes; they are called %s, ...", path, classes.names[0])
    return classes
