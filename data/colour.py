"""Changes of colour, one by one as torchvision has them, on uint8 [H, W, 3] RGB. Inputs are never written to.

Each takes the place of torchvision's function of the same name and gives its grey levels up to rounding; OpenCV
needs a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data.images import PixelArray, as_pixels

_GREY = np.array([0.2989, 0.587, 0.114])
"""Weights of R, G, B in torchvision's grey."""
_TRUNCATE = -0.499
"""torchvision cuts fractions off, OpenCV rounds."""
_ROWS = 64
"""Float pixels are made for so many rows at a time, to stay in the processor's cache."""


@dataclass(frozen=True)
class Brightness:
    """All values times a factor."""

    factor: float


@dataclass(frozen=True)
class Contrast:
    """Distances from the image's mean grey times a factor."""

    factor: float


@dataclass(frozen=True)
class Saturation:
    """Distances from each pixel's grey times a factor."""

    factor: float


@dataclass(frozen=True)
class Hue:
    """Turned around the colour circle by a fraction of a turn."""

    turn: float


@dataclass(frozen=True)
class ChannelOrder:
    """Channel i of the result is channel `order[i]` of the image."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class GreyCurve:
    """255 (value / 255) ^ `gamma` + `shift` x 255."""

    gamma: float
    shift: float


Change = Brightness | Contrast | Saturation | Hue | ChannelOrder | GreyCurve


def apply_changes(pixels: PixelArray, changes: Sequence[Change], sample: PixelArray) -> PixelArray:
    """The pixels with all changes made in turn.

    Args:
        pixels: What to change; perhaps only a part of the image.
        changes: In their order.
        sample: Pixels from all over the image, for the mean that Contrast needs.
    """
    for index, change in enumerate(changes):
        mean = _mean_grey(sample) if isinstance(change, Contrast) else 0.0
        if any(isinstance(later, Contrast) for later in changes[index + 1 :]):
            sample = _changed(sample, change, mean)
        pixels = _changed(pixels, change, mean)
    return pixels


def sample_of(pixels: PixelArray, about: int = 16384) -> PixelArray:
    """Every k-th pixel of every k-th row: about so many, all of a small image."""
    step = max(1, int((pixels.shape[0] * pixels.shape[1] / about) ** 0.5))
    return np.ascontiguousarray(pixels[::step, ::step])


def _mean_grey(sample: PixelArray) -> float:
    # torchvision cuts the fraction of every pixel's grey off: half a level on average.
    return max(0.0, float(np.dot(cv2.mean(sample)[:3], _GREY)) - 0.5)


def _changed(pixels: PixelArray, change: Change, mean: float) -> PixelArray:
    match change:
        case Brightness(factor):
            return _linear(pixels, factor * np.eye(3), 0.0)
        case Contrast(factor):
            return _linear(pixels, factor * np.eye(3), (1 - factor) * mean)
        case Saturation(factor):
            return _linear(pixels, factor * np.eye(3) + (1 - factor) * _GREY[None, :], 0.0)
        case Hue(turn):
            return _turned(pixels, turn)
        case ChannelOrder(order):
            channels = cv2.split(pixels)
            return as_pixels(cv2.merge([channels[source] for source in order]))
        case GreyCurve(gamma, shift):
            curve = 255 * ((np.arange(256) / 255) ** gamma + shift)
            return as_pixels(cv2.LUT(pixels, np.rint(curve).clip(0, 255).astype(np.uint8)))


def _linear(pixels: PixelArray, matrix: npt.NDArray[np.float64], offset: float) -> PixelArray:
    """Each pixel's colour times a 3 x 3 matrix, plus an offset, clipped."""
    full = np.concatenate([matrix, np.full((3, 1), offset + _TRUNCATE)], axis=1).astype(np.float32)
    return as_pixels(cv2.transform(pixels, full))


def _turned(pixels: PixelArray, turn: float) -> PixelArray:
    """In float: OpenCV's 8-bit hues are several grey levels apart."""
    result = np.empty(pixels.shape, np.uint8)
    for row in range(0, len(pixels), _ROWS):
        hsv: Any = cv2.cvtColor(pixels[row : row + _ROWS].astype(np.float32), cv2.COLOR_RGB2HSV)
        hsv[..., 0] += np.float32(turn % 1 * 360)  # OpenCV takes hues beyond a whole turn, but none below 0
        cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB, dst=hsv), dst=result[row : row + _ROWS])
    return result
