"""Training transforms: each op as a step from one scene to the next (docs/deimv2.md, Training ops in order).

Steps draw their random numbers and move the plan; no pixel is touched before `data.scene.draw`. Pixels stay uint8;
scaling to [0, 1] and normalisation happen on the device.

Legend: N boxes, H, W size of the current view in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from data.batch import Target
from data.colour import Brightness, Change, ChannelOrder, Contrast, GreyCurve, Hue, Saturation
from data.config import (
    MosaicOp,
    Op,
    RandomGammaOp,
    RandomHorizontalFlipOp,
    RandomIoUCropOp,
    RandomPhotometricDistortOp,
    RandomRotate90Op,
    RandomVerticalFlipOp,
    RandomZoomOutOp,
    ResizeOp,
    SanitizeBoundingBoxesOp,
    TransformsConfig,
)
from data.errors import UserError
from data.scene import FloatArray, Matrix, Scene, shift
from data.schedule import EpochPlan

Step = Callable[[Scene, np.random.Generator], Scene]


class TrainTransform:
    """The training ops of the config in their order, without Mosaic, which needs other images."""

    def __init__(self, config: TransformsConfig) -> None:
        """Build the steps.

        Raises:
            UserError: There is no Resize op, or Mosaic is not the first op.
        """
        output_size_hw(config)
        self.mosaic = config.mosaic
        if self.mosaic is not None and not isinstance(config.ops[0], MosaicOp):
            raise UserError("transforms.ops: Mosaic is not the first op. Move it to the top of the list.")
        built = [(op.type, _build_step(op)) for op in config.ops]
        self._steps: list[tuple[str, Step]] = [(name, step) for name, step in built if step is not None]

    def __call__(self, source: Scene, plan: EpochPlan, rng: np.random.Generator, *, mosaic: bool) -> Scene:
        """Run the steps that the plan has on.

        Args:
            source: Image or mosaic.
            plan: Of the sample's epoch.
            rng: All draws come from it.
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


def to_target(boxes_xyxy: FloatArray, labels: npt.NDArray[np.int64], size_hw: tuple[int, int]) -> Target:
    """The target as the network sees it; boxes without area are dropped, areas computed from the boxes."""
    height, width = size_hw
    boxes = boxes_xyxy.clip(0, (width, height, width, height))
    sizes = boxes[:, 2:] - boxes[:, :2]
    keep = (sizes > 0).all(axis=1)
    boxes, sizes = boxes[keep], sizes[keep]
    boxes_cxcywh = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, sizes], axis=1) / (width, height, width, height)
    return Target(
        labels=torch.from_numpy(labels[keep]),
        boxes=torch.from_numpy(boxes_cxcywh.astype(np.float32)),
        area=torch.from_numpy(sizes.prod(axis=1).astype(np.float32)),
    )


def _build_step(op: Op) -> Step | None:
    """The step of an op; None for what happens elsewhere (mosaic in the data set, conversions on the device)."""
    match op:
        case RandomPhotometricDistortOp():
            return _PhotometricDistort(op)
        case RandomGammaOp():
            return _Gamma(op)
        case RandomZoomOutOp():
            return _ZoomOut(op)
        case RandomIoUCropOp():
            return _IoUCrop(op)
        case SanitizeBoundingBoxesOp():
            return _Sanitize(op)
        case RandomHorizontalFlipOp():
            return _Flip(op.p, horizontal=True)
        case RandomVerticalFlipOp():
            return _Flip(op.p, horizontal=False)
        case RandomRotate90Op():
            return _Rotate90(op)
        case ResizeOp():
            return _Resize(op)
    return None


class _PhotometricDistort:
    """torchvision's RandomPhotometricDistort: which changes, in which order. Filled areas are left as they are."""

    def __init__(self, op: RandomPhotometricDistortOp) -> None:
        self._op = op

    def __call__(self, source: Scene, rng: np.random.Generator) -> Scene:
        op = self._op
        ranges = (op.brightness, op.contrast, op.saturation, op.hue)
        kinds: tuple[Callable[[float], Change], ...] = (Brightness, Contrast, Saturation, Hue)
        brightness, contrast, saturation, hue = (
            [kind(float(rng.uniform(*limits)))] if rng.random() < op.p else []
            for kind, limits in zip(kinds, ranges, strict=True)
        )
        contrast_before = rng.random() < 0.5
        order = [ChannelOrder(tuple(rng.permutation(3).tolist()))] if rng.random() < op.p else []
        middle = [*contrast, *saturation, *hue] if contrast_before else [*saturation, *hue, *contrast]
        changes: list[Change] = [*brightness, *middle, *order]
        return replace(source, changes=(*source.changes, *changes))


class _Gamma:
    def __init__(self, op: RandomGammaOp) -> None:
        self._op = op

    def __call__(self, source: Scene, rng: np.random.Generator) -> Scene:
        if rng.random() >= self._op.p:
            return source
        low, high = np.log(self._op.gamma)
        curve = GreyCurve(float(np.exp(rng.uniform(low, high))), float(rng.uniform(*self._op.shift)))
        return replace(source, changes=(*source.changes, curve))


class _ZoomOut:
    """The image at a random place of a canvas up to four times as wide and high."""

    def __init__(self, op: RandomZoomOutOp) -> None:
        self._op = op

    def __call__(self, source: Scene, rng: np.random.Generator) -> Scene:
        if rng.random() >= self._op.p:
            return source
        ratio = rng.uniform(*self._op.side_range)
        height, width = source.size_hw
        canvas_h, canvas_w = int(height * ratio), int(width * ratio)
        left, top = int((canvas_w - width) * rng.random()), int((canvas_h - height) * rng.random())
        return replace(source.moved(shift(left, top), (canvas_h, canvas_w)), fill=self._op.fill)


class _IoUCrop:
    """A random crop that keeps at least one box centre. Boxes whose centre is outside are dropped.

    All trials of an option are drawn at once: forty small loops took 6 ms a sample.
    """

    _LEAST_SIDE_PX = 4
    """Below, a crop could be 0 pixels wide."""
    _DEFAULT_OPTIONS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)

    def __init__(self, op: RandomIoUCropOp) -> None:
        self._op = op
        self._options = self._DEFAULT_OPTIONS if op.sampler_options is None else op.sampler_options

    def __call__(self, source: Scene, rng: np.random.Generator) -> Scene:
        if rng.random() >= self._op.p or not len(source.labels) or min(source.size_hw) < self._LEAST_SIDE_PX:
            return source
        found = self.crop(source.boxes_xyxy, source.size_hw, rng)
        if found is None:
            return source
        (left, top, width, height), inside = found
        return source.select(inside).moved(shift(-left, -top), (height, width))

    def crop(
        self, boxes_xyxy: FloatArray, size_hw: tuple[int, int], rng: np.random.Generator
    ) -> tuple[tuple[int, int, int, int], npt.NDArray[np.bool_]] | None:
        """Left, top, width and height, and which box centres are inside [N]; None leaves the image as it is."""
        op, (height, width) = self._op, size_hw
        x0, y0, x1, y1 = boxes_xyxy.T
        centre_x, centre_y, areas = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) * (y1 - y0)
        while True:
            least_iou = self._options[int(rng.integers(len(self._options)))]
            if least_iou >= 1.0:
                return None
            draws = rng.random((op.trials, 4))  # [T, 4]
            scale = op.min_scale + (op.max_scale - op.min_scale) * draws[:, :2]
            w, h = (width * scale[:, 0]).astype(np.int64), (height * scale[:, 1]).astype(np.int64)
            left, top = ((width - w) * draws[:, 2]).astype(np.int64), ((height - h) * draws[:, 3]).astype(np.int64)
            right, bottom = left + w, top + h
            aspect = w / np.maximum(h, 1)
            possible = (w > 0) & (h > 0) & (op.min_aspect_ratio <= aspect) & (aspect <= op.max_aspect_ratio)
            inside = (left[:, None] < centre_x) & (centre_x < right[:, None])  # [T, N]
            inside &= (top[:, None] < centre_y) & (centre_y < bottom[:, None])
            overlap_w = np.minimum(right[:, None], x1) - np.maximum(left[:, None], x0)
            overlap_h = np.minimum(bottom[:, None], y1) - np.maximum(top[:, None], y0)
            overlap = overlap_w.clip(min=0) * overlap_h.clip(min=0)
            iou = overlap / ((w * h)[:, None] + areas - overlap).clip(min=1e-9)
            accepted = possible & (inside & (iou >= least_iou)).any(axis=1)
            if accepted.any():
                t = int(accepted.argmax())
                return (int(left[t]), int(top[t]), int(w[t]), int(h[t])), inside[t]


class _Sanitize:
    """Drops boxes that are too small. They are clipped to the image by every step, so none can lie outside: the
    rounding of a resize must not cost a box of the full width."""

    def __init__(self, op: SanitizeBoundingBoxesOp) -> None:
        self._min_size, self._min_area = op.min_size, op.min_area

    def __call__(self, source: Scene, rng: np.random.Generator) -> Scene:
        sizes = source.boxes_xyxy[:, 2:] - source.boxes_xyxy[:, :2]
        return source.select((sizes >= self._min_size).all(axis=1) & (sizes.prod(axis=1) >= self._min_area))


class _Flip:
    def __init__(self, p: float, *, horizontal: bool) -> None:
        self._p, self._horizontal = p, horizontal

    def __call__(self, source: Scene, rng: np.random.Generator) -> Scene:
        if rng.random() >= self._p:
            return source
        height, width = source.size_hw
        across = np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        down = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, height], [0.0, 0.0, 1.0]])
        return source.moved(across if self._horizontal else down, source.size_hw)


class _Rotate90:
    """One, two or three quarter turns, each as likely."""

    def __init__(self, op: RandomRotate90Op) -> None:
        self._p = op.p

    def __call__(self, source: Scene, rng: np.random.Generator) -> Scene:
        if rng.random() >= self._p:
            return source
        for _ in range(int(rng.integers(1, 4))):
            height, width = source.size_hw
            clockwise: Matrix = np.array([[0.0, -1.0, height], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
            source = source.moved(clockwise, (width, height))
        return source


class _Resize:
    def __init__(self, op: ResizeOp) -> None:
        self._size_hw = op.size

    def __call__(self, source: Scene, rng: np.random.Generator) -> Scene:
        return source.resized(self._size_hw)
