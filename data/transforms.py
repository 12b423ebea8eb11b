"""Transforms of one image with its boxes, through torchvision.transforms.v2 (spec section 10.1).

Pixels stay uint8; scaling to [0, 1] and normalisation happen on the device. torchvision draws from torch's
global generator, which the data set seeds per sample; our own draws use the generator that is passed in.

Legend: N boxes, H, W size of the current image in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data.batch import Target
from data.config import (
    MosaicOp,
    Op,
    RandomHorizontalFlipOp,
    RandomIoUCropOp,
    RandomPhotometricDistortOp,
    RandomVerticalFlipOp,
    RandomZoomOutOp,
    ResizeOp,
    SanitizeBoundingBoxesOp,
    TransformsConfig,
)
from data.errors import UserError
from data.images import PixelArray
from data.schedule import EpochPlan


@dataclass(frozen=True)
class LabelledImage:
    """An image with its boxes, between decoding and batch. Boxes are arrays: for a few of them numpy is ten times
    as fast as torchvision's tensors."""

    image: Tensor
    """uint8 [3, H, W], RGB."""
    boxes_xyxy: FloatArray
    """float64 [N, 4], pixels of this image."""
    labels: npt.NDArray[np.int64]
    """[N]"""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[-2], self.image.shape[-1]

    def with_boxes(self, image: Tensor, boxes_xyxy: FloatArray) -> LabelledImage:
        """Another image with moved boxes, clipped to it; the labels stay."""
        height, width = image.shape[-2:]
        return LabelledImage(image, boxes_xyxy.clip(0, (width, height, width, height)), self.labels)

    def select(self, keep: npt.NDArray[np.bool_]) -> LabelledImage:
        """Only the boxes that a mask [N] keeps."""
        return LabelledImage(self.image, self.boxes_xyxy[keep], self.labels[keep])


FloatArray = npt.NDArray[np.float64]
Step = Callable[[LabelledImage, np.random.Generator], LabelledImage]


def labelled_image(pixels: PixelArray, boxes_xyxy: npt.ArrayLike, labels: npt.ArrayLike) -> LabelledImage:
    """From uint8 [H, W, 3], [N, 4] in pixels, [N]. The pixels are not copied."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return LabelledImage(image, boxes, np.asarray(labels, dtype=np.int64).reshape(-1))


class TrainTransform:
    """The training ops of the config in their order, without Mosaic, which needs other images."""

    def __init__(self, config: TransformsConfig) -> None:
        """Build the steps.

        Raises:
            UserError: There is no Resize op, or Mosaic is not the first op.
        """
        size_hw = output_size_hw(config)
        self.mosaic = next((op for op in config.ops if isinstance(op, MosaicOp)), None)
        if self.mosaic is not None and not isinstance(config.ops[0], MosaicOp):
            raise UserError("transforms.ops: Mosaic is not the first op. Move it to the top of the list.")
        built = [(op.type, _build_step(op, size_hw)) for op in config.ops]
        self._steps: list[tuple[str, Step]] = [(name, step) for name, step in built if step is not None]

    def __call__(
        self, source: LabelledImage, plan: EpochPlan, rng: np.random.Generator, *, mosaic: bool
    ) -> LabelledImage:
        """Run the steps that the plan has on.

        Args:
            source: Image or mosaic.
            plan: Of the sample's epoch.
            rng: For our own draws; torchvision's come from torch's global generator.
            mosaic: Whether `source` is a mosaic: the plan leaves some steps out then.
        """
        for name, step in self._steps:
            if plan.is_on(name, mosaic=mosaic):
                source = step(source, rng)
        return source


def output_size_hw(config: TransformsConfig) -> tuple[int, int]:
    """Height and width that leave the transforms.

    Raises:
        UserError: There is no Resize op.
    """
    if config.resize is None:
        raise UserError("transforms.ops: there is no Resize op, so images cannot form a batch. Add one.")
    return config.resize.size


def to_target(source: LabelledImage) -> tuple[Tensor, Target]:
    """Image and target as the network sees them; boxes without area are dropped, areas computed from the boxes."""
    height, width = source.size_hw
    boxes = source.boxes_xyxy.clip(0, (width, height, width, height))
    sizes = boxes[:, 2:] - boxes[:, :2]
    keep = (sizes > 0).all(axis=1)
    boxes, sizes = boxes[keep], sizes[keep]
    boxes_cxcywh = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, sizes], axis=1) / (width, height, width, height)
    return source.image, Target(
        labels=torch.from_numpy(source.labels[keep]),
        boxes=torch.from_numpy(boxes_cxcywh.astype(np.float32)),
        area=torch.from_numpy(sizes.prod(axis=1).astype(np.float32)),
    )


def _build_step(op: Op, size_hw: tuple[int, int]) -> Step | None:
    """The step of an op; None for what happens elsewhere (mosaic in the data set, conversions on the device)."""
    if isinstance(op, RandomPhotometricDistortOp):
        return _PhotometricDistort(op)
    if isinstance(op, RandomZoomOutOp):
        return _ZoomOut(op, size_hw)
    if isinstance(op, RandomIoUCropOp):
        return _IoUCrop(op)
    if isinstance(op, SanitizeBoundingBoxesOp):
        return _Sanitize(op)
    if isinstance(op, RandomHorizontalFlipOp):
        return _HorizontalFlip(op)
    if isinstance(op, RandomVerticalFlipOp):
        return _VerticalFlip(op)
    if isinstance(op, ResizeOp):
        return _Resize(op)
    return None


class _PhotometricDistort:
    def __init__(self, op: RandomPhotometricDistortOp) -> None:
        self._op = v2.RandomPhotometricDistort(op.brightness, op.contrast, op.saturation, op.hue, op.p)

    def __call__(self, source: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        return LabelledImage(self._op(source.image), source.boxes_xyxy, source.labels)


class _ZoomOut:
    """The image at a random place of a canvas up to four times as large.

    Sources far larger than the network's input are shrunk first, or a 12-megapixel image would be laid on a
    canvas of half a gigabyte: a canvas `_ENOUGH` times the output keeps at least the output's resolution even
    after the smallest crop, so nothing that the network could see is lost.
    """

    _ENOUGH = 1 / 0.3

    def __init__(self, op: RandomZoomOutOp, size_hw: tuple[int, int]) -> None:
        self._p = op.p
        self._fill = op.fill
        self._op = v2.RandomZoomOut(fill=op.fill, side_range=op.side_range, p=1.0)
        self._enough_hw = (size_hw[0] * self._ENOUGH, size_hw[1] * self._ENOUGH)

    def __call__(self, source: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        if rng.random() >= self._p:
            return source
        left, top, right, bottom = self._op.make_params([source.image])["padding"]
        height, width = source.size_hw
        canvas_hw = (top + height + bottom, left + width + right)
        scale = max(enough / side for enough, side in zip(self._enough_hw, canvas_hw, strict=True))
        if scale < 1:
            source = _resized(source, (max(1, round(height * scale)), max(1, round(width * scale))))
            left, top, right, bottom = (int(side * scale) for side in (left, top, right, bottom))
        image = F.pad(source.image, [left, top, right, bottom], fill=self._fill)
        return source.with_boxes(image, source.boxes_xyxy + (left, top, left, top))


class _IoUCrop:
    """A random crop that keeps at least one box centre. Boxes whose centre is outside are dropped."""

    _LEAST_SIDE_PX = 4
    """Below, a crop could be 0 pixels wide."""

    def __init__(self, op: RandomIoUCropOp) -> None:
        self._p = op.p
        options = None if op.sampler_options is None else list(op.sampler_options)
        self._op = _FastIoUCrop(
            op.min_scale, op.max_scale, op.min_aspect_ratio, op.max_aspect_ratio, options, op.trials
        )

    def __call__(self, source: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        if rng.random() >= self._p or not len(source.labels) or min(source.size_hw) < self._LEAST_SIDE_PX:
            return source
        params = self._op.make_params([source.image, source.boxes_xyxy])
        if not params:
            return source
        kept = source.select(params.pop("is_within_crop_area"))
        left, top = params["left"], params["top"]
        return kept.with_boxes(F.crop(source.image, **params), kept.boxes_xyxy - (left, top, left, top))


class _FastIoUCrop(v2.RandomIoUCrop):  # type: ignore[misc]
    """torchvision's crop with all trials of an option drawn at once: 40 small loops took 6 ms a sample."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """As torchvision's: the crop and which box centres lie in it, or nothing to leave the image as it is."""
        image, corners = flat_inputs
        height, width = image.shape[-2:]
        centre_x, centre_y = corners[:, 0::2].mean(axis=1), corners[:, 1::2].mean(axis=1)
        areas = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        while True:
            least_iou = self.options[int(torch.randint(len(self.options), ()))]
            if least_iou >= 1.0:
                return {}
            draws = torch.rand(self.trials, 4).numpy()  # [T, 4]
            scale = self.min_scale + (self.max_scale - self.min_scale) * draws[:, :2]
            w, h = (width * scale[:, 0]).astype(np.int64), (height * scale[:, 1]).astype(np.int64)
            x0, y0 = ((width - w) * draws[:, 2]).astype(np.int64), ((height - h) * draws[:, 3]).astype(np.int64)
            x1, y1 = x0 + w, y0 + h
            aspect = w / np.maximum(h, 1)
            possible = (w > 0) & (h > 0) & (self.min_aspect_ratio <= aspect) & (aspect <= self.max_aspect_ratio)
            inside = (x0[:, None] < centre_x) & (centre_x < x1[:, None])  # [T, N]
            inside &= (y0[:, None] < centre_y) & (centre_y < y1[:, None])
            overlap_w = np.minimum(x1[:, None], corners[:, 2]) - np.maximum(x0[:, None], corners[:, 0])
            overlap_h = np.minimum(y1[:, None], corners[:, 3]) - np.maximum(y0[:, None], corners[:, 1])
            overlap = overlap_w.clip(min=0) * overlap_h.clip(min=0)
            iou = overlap / ((w * h)[:, None] + areas - overlap).clip(min=1e-9)
            accepted = possible & (inside & (iou >= least_iou)).any(axis=1)
            if accepted.any():
                t = int(accepted.argmax())
                return {
                    "top": int(y0[t]),
                    "left": int(x0[t]),
                    "height": int(h[t]),
                    "width": int(w[t]),
                    "is_within_crop_area": inside[t],
                }


class _Sanitize:
    """Drops boxes that are too small. They are clipped to the image by every step, so none can lie outside: the
    rounding of a resize must not cost a box of the full width."""

    def __init__(self, op: SanitizeBoundingBoxesOp) -> None:
        self._min_size, self._min_area = op.min_size, op.min_area

    def __call__(self, source: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        sizes = source.boxes_xyxy[:, 2:] - source.boxes_xyxy[:, :2]
        return source.select((sizes >= self._min_size).all(axis=1) & (sizes.prod(axis=1) >= self._min_area))


class _HorizontalFlip:
    def __init__(self, op: RandomHorizontalFlipOp) -> None:
        self._p = op.p

    def __call__(self, source: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        if rng.random() >= self._p:
            return source
        x0, y0, x1, y1 = source.boxes_xyxy.T
        width = source.size_hw[1]
        return source.with_boxes(F.horizontal_flip(source.image), np.stack([width - x1, y0, width - x0, y1], axis=1))


class _VerticalFlip:
    def __init__(self, op: RandomVerticalFlipOp) -> None:
        self._p = op.p

    def __call__(self, source: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        if rng.random() >= self._p:
            return source
        x0, y0, x1, y1 = source.boxes_xyxy.T
        height = source.size_hw[0]
        return source.with_boxes(F.vertical_flip(source.image), np.stack([x0, height - y1, x1, height - y0], axis=1))


class _Resize:
    def __init__(self, op: ResizeOp) -> None:
        self._size_hw = op.size

    def __call__(self, source: LabelledImage, rng: np.random.Generator) -> LabelledImage:
        return _resized(source, self._size_hw)


def _resized(source: LabelledImage, size_hw: tuple[int, int]) -> LabelledImage:
    (height, width), (new_height, new_width) = source.size_hw, size_hw
    if source.size_hw == size_hw:
        return source
    image = F.resize(source.image, [new_height, new_width], antialias=True)
    return source.with_boxes(image, source.boxes_xyxy * np.tile([new_width / width, new_height / height], 2))


def resized_shorter_side(source: LabelledImage, side: int) -> LabelledImage:
    """Scaled so that the shorter side has `side` pixels; the aspect is kept."""
    height, width = source.size_hw
    longer = max(1, math.floor(side * max(height, width) / min(height, width)))
    return _resized(source, (side, longer) if height <= width else (longer, side))
