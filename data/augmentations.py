"""Augmentations of one image: a function each, and a line in the table `AUGMENTATIONS` (docs/guide/data.md adds one).

The keyword parameters of a function are its keys in the config, under `transforms.ops`; their types and descriptions
make the checks, the page docs/reference/config.md and the JSON Schema. A function draws its random numbers and moves
the plan; no pixel is touched before `data.scene.draw`.

Legend: N boxes, H, W size of the current view in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from data.colour import Brightness, Change, ChannelOrder, Contrast, GreyCurve, Hue, Saturation
from data.scene import Scene, shift
from data.section import RISING, Chance, Fraction, Grey, Pair, PositiveFloat, PositiveInt, within
from data.types import BoolArray, FloatArray

Augmentation = Callable[..., Scene]
Rng = np.random.Generator
AtLeast1 = Annotated[float, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Factors = Annotated[Pair, within(0)]
Signed = Annotated[float, Field(ge=-1, le=1)]
_LEAST_SIDE_PX = 4
"""Of an image that is cropped; below, a crop could be 0 pixels wide."""
_LEAST_IOUS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def photometric_distort(
    scene: Scene,
    rng: Rng,
    *,
    brightness: Annotated[Factors, Field(description="Range of the factor of the brightness.")] = (0.875, 1.125),
    contrast: Annotated[Factors, Field(description="Range of the factor of the contrast.")] = (0.5, 1.5),
    saturation: Annotated[Factors, Field(description="Range of the factor of the saturation.")] = (0.5, 1.5),
    hue: Annotated[
        Pair,
        within(-0.5, 0.5),
        Field(description="Range of the shift of the hue, turns of the colour circle, -0.5 to 0.5."),
    ] = (-0.05, 0.05),
    p: Annotated[Fraction, Field(description="Chance of each change.")] = 0.5,
) -> Scene:
    """Changes brightness, contrast, saturation, hue and the order of the channels; each with its own coin."""
    # torchvision's RandomPhotometricDistort: which changes, in which order. Filled areas are left as they are.
    kinds: tuple[tuple[Callable[[float], Change], Pair], ...] = (
        (Brightness, brightness), (Contrast, contrast), (Saturation, saturation), (Hue, hue),
    )  # fmt: skip
    first, second, third, fourth = (
        [kind(float(rng.uniform(*limits)))] if rng.random() < p else [] for kind, limits in kinds
    )
    contrast_before = rng.random() < 0.5
    order = [ChannelOrder(tuple(rng.permutation(3).tolist()))] if rng.random() < p else []
    middle = [*second, *third, *fourth] if contrast_before else [*third, *fourth, *second]
    changes: list[Change] = [*first, *middle, *order]
    return replace(scene, changes=(*scene.changes, *changes))


def gamma(
    scene: Scene,
    rng: Rng,
    *,
    gamma: Annotated[
        tuple[PositiveFloat, PositiveFloat],
        RISING,
        Field(description="Range of the exponent, drawn evenly on a logarithmic scale; below 1 is brighter."),
    ] = (0.7, 1.4),
    shift: Annotated[
        tuple[Signed, Signed], RISING, Field(description="Range of the shift, fraction of the range of values.")
    ] = (-0.05, 0.05),
    p: Chance = 0.5,
) -> Scene:
    """Varies the grey levels: value^gamma + shift, values in [0, 1], the same for all channels."""
    if rng.random() >= p:
        return scene
    low, high = np.log(gamma)
    curve = GreyCurve(float(np.exp(rng.uniform(low, high))), float(rng.uniform(*shift)))
    return replace(scene, changes=(*scene.changes, curve))


def zoom_out(
    scene: Scene,
    rng: Rng,
    *,
    fill: Annotated[Grey, Field(description="Grey level of the canvas.")] = 0,
    side_range: Annotated[
        tuple[AtLeast1, AtLeast1], RISING, Field(description="Range of the canvas' sides over the image's.")
    ] = (1.0, 4.0),
    p: Chance = 0.5,
) -> Scene:
    """Puts the image at a random place of a larger canvas."""
    if rng.random() >= p:
        return scene
    ratio = rng.uniform(*side_range)
    height, width = scene.size_hw
    canvas_h, canvas_w = int(height * ratio), int(width * ratio)
    left, top = int((canvas_w - width) * rng.random()), int((canvas_h - height) * rng.random())
    return replace(scene.moved(shift(left, top), (canvas_h, canvas_w)), fill=fill)


def iou_crop(
    scene: Scene,
    rng: Rng,
    *,
    min_scale: Annotated[
        Share, Field(description="Least width and height of the crop, fraction of the image's.")
    ] = 0.3,
    max_scale: Annotated[
        Share, Field(description="Largest width and height of the crop, fraction of the image's.")
    ] = 1.0,
    min_aspect_ratio: Annotated[PositiveFloat, Field(description="Least width over height of the crop.")] = 0.5,
    max_aspect_ratio: Annotated[PositiveFloat, Field(description="Largest width over height of the crop.")] = 2.0,
    sampler_options: Annotated[
        tuple[float, ...] | None,
        Field(description="Minimum IoUs to draw from; null means 0, 0.1, 0.3, 0.5, 0.7, 0.9, 1."),
    ] = None,
    trials: Annotated[PositiveInt, Field(description="Crops tried for each minimum IoU.")] = 40,
    p: Chance = 1.0,
) -> Scene:
    """Crops the image at random so that at least one box centre is left."""
    if rng.random() >= p or not len(scene.labels) or min(scene.size_hw) < _LEAST_SIDE_PX:
        return scene
    least_ious = _LEAST_IOUS if sampler_options is None else sampler_options
    scales, aspects = (min_scale, max_scale), (min_aspect_ratio, max_aspect_ratio)
    found = find_crop(scene.boxes_xyxy, scene.size_hw, rng, scales, aspects, least_ious, trials)
    if found is None:
        return scene
    (left, top, width, height), inside = found
    return scene.select(inside).moved(shift(-left, -top), (height, width))


def find_crop(
    boxes_xyxy: FloatArray,
    size_hw: tuple[int, int],
    rng: Rng,
    scales: Pair = (0.3, 1.0),
    aspects: Pair = (0.5, 2.0),
    least_ious: tuple[float, ...] = _LEAST_IOUS,
    trials: int = 40,
) -> tuple[tuple[int, int, int, int], BoolArray] | None:
    """Return left, top, width and height, and which box centres are inside [N]; None leaves the image as it is."""
    height, width = size_hw
    x0, y0, x1, y1 = boxes_xyxy.T
    centre_x, centre_y, areas = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) * (y1 - y0)
    while True:
        least_iou = least_ious[int(rng.integers(len(least_ious)))]
        if least_iou >= 1.0:
            return None
        # All trials [T] at once: forty small loops took 6 ms a sample.
        draws = rng.random((trials, 4))
        scale = scales[0] + (scales[1] - scales[0]) * draws[:, :2]
        w, h = (width * scale[:, 0]).astype(np.int64), (height * scale[:, 1]).astype(np.int64)
        left, top = ((width - w) * draws[:, 2]).astype(np.int64), ((height - h) * draws[:, 3]).astype(np.int64)
        right, bottom = left + w, top + h
        aspect = w / np.maximum(h, 1)
        possible = (w > 0) & (h > 0) & (aspects[0] <= aspect) & (aspect <= aspects[1])
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


def horizontal_flip(scene: Scene, rng: Rng, *, p: Chance = 0.5) -> Scene:
    """Mirrors left and right."""
    if rng.random() >= p:
        return scene
    mirror = np.array([[-1.0, 0.0, scene.size_hw[1]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    return scene.moved(mirror, scene.size_hw)


def vertical_flip(scene: Scene, rng: Rng, *, p: Chance = 0.5) -> Scene:
    """Mirrors top and bottom: for surfaces without an up and down."""
    if rng.random() >= p:
        return scene
    mirror = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, scene.size_hw[0]], [0.0, 0.0, 1.0]])
    return scene.moved(mirror, scene.size_hw)


def rotate_90(scene: Scene, rng: Rng, *, p: Chance = 0.5) -> Scene:
    """Makes one, two or three quarter turns: for surfaces without a direction."""
    if rng.random() >= p:
        return scene
    for _ in range(int(rng.integers(1, 4))):
        height, width = scene.size_hw
        clockwise = np.array([[0.0, -1.0, height], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        scene = scene.moved(clockwise, (width, height))
    return scene


AUGMENTATIONS: dict[str, Augmentation] = {
    "RandomPhotometricDistort": photometric_distort,
    "RandomZoomOut": zoom_out,
    "RandomIoUCrop": iou_crop,
    "RandomHorizontalFlip": horizontal_flip,
    "RandomVerticalFlip": vertical_flip,
    "RandomRotate90": rotate_90,
    "RandomGamma": gamma,
}
"""Name in the config -> function. Names begin with `Random`, by which the log tells augmentations from other ops."""
