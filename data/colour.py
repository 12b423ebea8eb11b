"""Changes of colour, one by one as torchvision has them, on uint8 [H, W, 3] RGB. Inputs are never written to.

Each takes the place of torchvision's function of the same name and gives its grey levels up to rounding; OpenCV
needs a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from data.images import as_pixels
from data.types import FloatArray, PixelArray

_GREY = np.array([0.2989, 0.587, 0.114])
"""Weights of R, G, B in torchvision's grey."""
_TRUNCATE = -0.499
"""torchvision cuts fractions off, OpenCV rounds."""
_ROWS = 64
"""Float pixels are made for so many rows at a time, to stay in the processor's cache."""


class Brightness(NamedTuple):
    """All values times a factor."""

    factor: float


class Contrast(NamedTuple):
    """Distances from the image's mean grey times a factor."""

    factor: float


class Saturation(NamedTuple):
    """Distances from each pixel's grey times a factor."""

    factor: float


class Hue(NamedTuple):
    """Turned around the colour circle by a fraction of a turn."""

    turn: float


class ChannelOrder(NamedTuple):
    """Channel i of the result is channel `order[i]` of the image."""

    order: tuple[int, ...]


class GreyCurve(NamedTuple):
    """255 (value / 255) ^ `gamma` + `shift` x 255."""

    gamma: float
    shift: float


Change = Brightness | Contrast | Saturation | Hue | ChannelOrder | GreyCurve

Linear = FloatArray
"""[3, 4]: a matrix for colours, and what is added."""
Step = Linear | Hue | GreyCurve
"""What is done to pixels; numbers that depend on the image are filled in."""


def apply_changes(pixels: PixelArray, changes: Sequence[Change], whole: PixelArray) -> PixelArray:
    """Return the pixels with all changes made in turn.

    `pixels` may be a part of the image; `whole` are pixels from all over it, for the mean that Contrast needs.
    """
    return apply_steps(pixels, steps_of(changes, whole))


def apply_steps(pixels: PixelArray, steps: Sequence[Step]) -> PixelArray:
    """Return the pixels after steps from `steps_of`, which may serve several parts of one image."""
    for step in steps:
        pixels = _made(pixels, step)
    return pixels


def steps_of(changes: Sequence[Change], whole: PixelArray) -> list[Step]:
    """Merge changes into as few passes over the pixels as will do."""
    return _fused(_steps(changes, whole))


def needs_mean(changes: Sequence[Change]) -> bool:
    """Tell whether `whole` is looked at."""
    return any(isinstance(change, Contrast) for change in changes)


def sample_of(pixels: PixelArray, about: int = 16384) -> PixelArray:
    """Return every k-th pixel of every k-th row: about so many, all of a small image."""
    height, width = pixels.shape[:2]
    step = max(1, int((height * width / about) ** 0.5))
    if step == 1:
        return pixels
    return as_pixels(cv2.resize(pixels, (width // step, height // step), interpolation=cv2.INTER_NEAREST))


def _steps(changes: Sequence[Change], whole: PixelArray) -> list[Step]:
    """The changes with their numbers: Contrast needs the mean of what the changes before it leave."""
    num_before_last_mean = max((i for i, change in enumerate(changes) if isinstance(change, Contrast)), default=0)
    sample = sample_of(whole) if needs_mean(changes) else whole
    steps = []
    for index, change in enumerate(changes):
        step = _step(change, sample)
        steps.append(step)
        if index < num_before_last_mean:
            sample = _made(sample, step)
    return steps


def _step(change: Change, sample: PixelArray) -> Step:
    match change:
        case Brightness(factor):
            return _linear(factor * np.eye(3), 0.0)
        case Contrast(factor):
            # torchvision cuts the fraction of every pixel's grey off: half a level on average.
            mean = max(0.0, float(np.dot(cv2.mean(sample)[:3], _GREY)) - 0.5)
            return _linear(factor * np.eye(3), (1 - factor) * mean)
        case Saturation(factor):
            return _linear(factor * np.eye(3) + (1 - factor) * _GREY[None, :], 0.0)
        case ChannelOrder(order):
            return np.concatenate([np.eye(3)[list(order)], np.zeros((3, 1))], axis=1)
    return change


def _linear(matrix: FloatArray, offset: float) -> Linear:
    return np.concatenate([matrix, np.full((3, 1), offset + _TRUNCATE)], axis=1)


def _fused(steps: Sequence[Step]) -> list[Step]:
    """Neighbouring matrices made one, unless values would have to be clipped to 0..255 between them."""
    fused: list[Step] = []
    for step in steps:
        before = fused[-1] if fused else None
        if isinstance(step, np.ndarray) and isinstance(before, np.ndarray) and (_stays(before) or _is_order(step)):
            fused[-1] = np.concatenate([step[:, :3] @ before[:, :3], step[:, :3] @ before[:, 3:] + step[:, 3:]], axis=1)
        else:
            fused.append(step)
    return fused


def _stays(linear: Linear) -> bool:
    """Whether no colour leaves 0..255, but for rounding."""
    high = 255 * linear[:, :3].clip(min=0).sum(axis=1) + linear[:, 3]
    low = 255 * linear[:, :3].clip(max=0).sum(axis=1) + linear[:, 3]
    return bool((high <= 255.5).all() and (low >= -0.5).all())


def _is_order(linear: Linear) -> bool:
    """A change of places makes no difference to clipping."""
    return bool(((linear == 0) | (linear == 1)).all())


def _made(pixels: PixelArray, step: Step) -> PixelArray:
    match step:
        case Hue(turn):
            return _turned(pixels, turn)
        case GreyCurve(gamma, shift):
            curve = 255 * ((np.arange(256) / 255) ** gamma + shift)
            return as_pixels(cv2.LUT(pixels, np.rint(curve).clip(0, 255).astype(np.uint8)))
    return as_pixels(cv2.transform(pixels, step.astype(np.float32)))


def _turned(pixels: PixelArray, turn: float) -> PixelArray:
    """In float: OpenCV's 8-bit hues are several grey levels apart."""
    result = np.empty(pixels.shape, np.uint8)
    for row in range(0, len(pixels), _ROWS):
        hsv: Any = cv2.cvtColor(pixels[row : row + _ROWS].astype(np.float32), cv2.COLOR_RGB2HSV)
        hsv[..., 0] += np.float32(turn % 1 * 360)  # OpenCV takes hues beyond a whole turn, but none below 0
        cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv), dst=result[row : row + _ROWS])
    return result
