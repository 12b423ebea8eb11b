"""An image that is planned before it is drawn: augmentation moves a plan, and each pixel is computed once.

A scene is one image, or four on a canvas, seen through a map from canvas to view. Geometric steps change the map
and the boxes only; `draw` then reads each source at the smallest size that suffices, and brings it to its place
in one resize (one warp, where the canvas is turned).

Legend: N boxes, H, W size of the view, [3, 3] maps of points (x, y, 1); a pixel's centre is at its index + 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from data.colour import Change, apply_changes, apply_steps, needs_mean, steps_of
from data.images import REDUCTIONS, as_pixels
from data.types import BoolArray, FloatArray, IntArray, PixelArray

Matrix = FloatArray
_HAIR = 1e-6
_SAMPLE_SIDE = 96
"""Of a sketch that shows the mean grey of a view."""
_SMALLEST_UNSMOOTHED = 0.65
"""Pixels are dropped without a loss that shows down to this scale."""


class Source(Protocol):
    """Where a scene's pixels come from."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels, known before anything is read."""

    def pixels(self, reduction: int) -> PixelArray:
        """Return uint8 [ceil(H / reduction), ceil(W / reduction), 3], RGB, not to be written to."""

    def at_most(self, size_hw: tuple[int, int]) -> PixelArray:
        """Return what the function `at_most` gives, not to be written to."""


@dataclass(frozen=True, eq=False)
class Tile:
    """A whole source on the canvas."""

    source: Source
    box_xyxy: tuple[float, float, float, float]
    """Canvas pixels."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is to be drawn, with its boxes."""

    tiles: tuple[Tile, ...]
    canvas_hw: tuple[int, int]
    matrix: Matrix
    """Canvas -> view."""
    size_hw: tuple[int, int]
    """Of the view, pixels."""
    window_xyxy: FloatArray
    """[4] The part of the view that the canvas covers; the rest is filled."""
    boxes_xyxy: FloatArray
    """[N, 4] View pixels."""
    labels: IntArray
    """[N]"""
    pseudo: BoolArray
    """[N] Labelled by a network."""
    fill: int = 0
    """Grey around the window, and between the tiles."""
    changes: tuple[Change, ...] = ()
    """Of colour, inside the window."""
    detail: float = 1.0
    """Up to 1: the scale of a step of the original that keeps every so manieth pixel and drops the others."""

    def moved(self, matrix: Matrix, size_hw: tuple[int, int]) -> Scene:
        """Return the scene in a view of another size, after a map; boxes become hulls, clipped to the view."""
        height, width = size_hw
        moved = hulls(np.concatenate([self.boxes_xyxy, self.window_xyxy[None]]), matrix)
        moved = moved.clip(0.0, np.array((width, height, width, height), dtype=np.float64))
        return replace(self, matrix=matrix @ self.matrix, size_hw=size_hw, window_xyxy=moved[-1], boxes_xyxy=moved[:-1])

    def resized(self, size_hw: tuple[int, int]) -> Scene:
        """Return the whole view at another size."""
        if self.size_hw == size_hw:
            return self
        (height, width), (new_height, new_width) = self.size_hw, size_hw
        return self.moved(scaling(new_width / width, new_height / height), size_hw)

    def select(self, keep: BoolArray) -> Scene:
        """Keep only the boxes that a mask [N] keeps."""
        return replace(self, boxes_xyxy=self.boxes_xyxy[keep], labels=self.labels[keep], pseudo=self.pseudo[keep])


def scene_of(
    source: Source, boxes_xyxy: npt.ArrayLike, labels: npt.ArrayLike, pseudo: npt.ArrayLike | None = None
) -> Scene:
    """Take one image as it is, with its boxes [N, 4] in pixels, labels [N], and which of them a network made, [N]."""
    height, width = source.size_hw
    known = np.asarray(labels, dtype=np.int64).reshape(-1)
    return Scene(
        tiles=(Tile(source, (0, 0, width, height)),),
        canvas_hw=(height, width),
        matrix=np.eye(3),
        size_hw=(height, width),
        window_xyxy=np.array([0.0, 0.0, width, height]),
        boxes_xyxy=np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4),
        labels=known,
        pseudo=np.zeros(len(known), dtype=bool) if pseudo is None else np.asarray(pseudo, dtype=bool).reshape(-1),
    )


def shift(x: float, y: float) -> Matrix:
    """Return the map that moves by (x, y)."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def scaling(x: float, y: float) -> Matrix:
    """Return the map that scales about the origin."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def hulls(boxes_xyxy: FloatArray, matrix: Matrix) -> FloatArray:
    """Map boxes [N, 4] to the upright boxes around their mapped corners, [N, 4]."""
    if matrix[0, 1] == 0 and matrix[1, 0] == 0:
        (scale_x, _, x), (_, scale_y, y) = matrix[:2].tolist()  # plain numbers: fancy indexing took most of the time
        mapped: FloatArray = boxes_xyxy * (scale_x, scale_y, scale_x, scale_y) + (x, y, x, y)
        if scale_x < 0 or scale_y < 0:
            left, top = (2 if scale_x < 0 else 0), (3 if scale_y < 0 else 1)
            mapped = mapped[:, [left, top, 2 - left, 4 - top]]
        return mapped
    corners = boxes_xyxy[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # [N, 4, 2]
    points = corners @ matrix[:2, :2].T + matrix[:2, 2]
    return np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1)


def draw(scene: Scene, size_hw: tuple[int, int] | None = None) -> tuple[PixelArray, Scene]:
    """Draw the pixels; return them, and the scene with its boxes where they came to lie.

    Whole pixels are cut from a source and land on whole pixels of the view, so a window's edge may lie up to half a
    pixel from where it was planned; the boxes go with it.

    Pixels are uint8 [H, W, 3] RGB, boxes in pixels of them; `size_hw` is the view's, the scene's own if None.
    """
    scene = scene if size_hw is None else scene.resized(size_hw)
    height, width = scene.size_hw
    x0, y0, x1, y1 = (math.floor(edge + 0.5) for edge in scene.window_xyxy.tolist())
    if (x0, y0, x1, y1) == (0, 0, width, height):
        image: PixelArray = np.empty((height, width, 3), np.uint8)
    else:
        image = np.full((height, width, 3), scene.fill, np.uint8)
    if x1 <= x0 or y1 <= y0:
        return image, scene
    if len(scene.tiles) == 1 and _is_upright(scene.matrix):
        return image, _draw_upright(scene, image, (x0, y0, x1, y1))
    view = image[y0:y1, x0:x1]
    _draw_canvas(scene, view, shift(-x0, -y0) @ scene.matrix)
    return image, scene


def at_most(source: Source, size_hw: tuple[int, int]) -> PixelArray:
    """Read a source at another size where that is smaller in both directions, otherwise all its pixels."""
    (height, width), (own_height, own_width) = size_hw, source.size_hw
    if height >= own_height or width >= own_width:
        return source.pixels(1)
    part = source.pixels(_reduction(min(own_height / height, own_width / width)))
    result: PixelArray = np.empty((height, width, 3), np.uint8)
    _fit(part, result)
    return result


def _is_upright(matrix: Matrix) -> bool:
    """Edges stay parallel to the axes: no turn, or quarter turns."""
    straight = abs(matrix[0, 1]) < _HAIR and abs(matrix[1, 0]) < _HAIR
    return bool(straight or (abs(matrix[0, 0]) < _HAIR and abs(matrix[1, 1]) < _HAIR))


def _draw_upright(scene: Scene, image: PixelArray, window: tuple[int, int, int, int]) -> Scene:
    """Draw a single source into the window; the scene with corrected boxes."""
    matrix, to_source = scene.matrix, np.linalg.inv(scene.matrix).astype(np.float64)
    x0, y0, x1, y1 = window
    view = image[y0:y1, x0:x1]
    is_turned = abs(matrix[0, 0]) < abs(matrix[0, 1])
    drawn_wh = (y1 - y0, x1 - x0) if is_turned else (x1 - x0, y1 - y0)
    left, top, right, bottom = hulls(scene.window_xyxy[None], to_source)[0].tolist()
    reduction = _reduction(min((right - left) / drawn_wh[0], (bottom - top) / drawn_wh[1]))
    pixels = scene.tiles[0].source.pixels(reduction)
    left, right = _whole_pixels(left / reduction, right / reduction, pixels.shape[1])
    top, bottom = _whole_pixels(top / reduction, bottom / reduction, pixels.shape[0])
    part = pixels[top:bottom, left:right]
    flips = (matrix[0, 1] < 0, matrix[1, 0] < 0) if is_turned else (matrix[0, 0] < 0, matrix[1, 1] < 0)
    changes_first = part.size <= view.size
    if scene.changes and changes_first:
        part = apply_changes(part, scene.changes, pixels)
    _fit(as_pixels(cv2.transpose(part)) if is_turned else part, view, flips)
    if scene.changes and not changes_first:
        view[...] = apply_changes(view, scene.changes, pixels)
    # Source -> unit square -> turned -> flipped -> window.
    drawn = scaling(1 / (right - left), 1 / (bottom - top)) @ shift(-left, -top) @ scaling(1 / reduction, 1 / reduction)
    if is_turned:
        drawn = drawn[[1, 0, 2]]
    drawn = scaling(*(-1.0 if flip else 1.0 for flip in flips)) @ drawn
    drawn = shift(x0, y0) @ scaling(x1 - x0, y1 - y0) @ shift(*(float(flip) for flip in flips)) @ drawn
    moved = drawn @ to_source
    moved[np.abs(moved) < 1e-9] = 0.0  # rounding errors off the diagonal
    return scene.moved(moved, scene.size_hw)


def _reduction(ratio: float) -> int:
    """The largest reduction that leaves at least one source pixel for every pixel drawn."""
    return max(step for step in REDUCTIONS if step == 1 or step <= ratio + _HAIR)


def _whole_pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """At least one pixel of `size`."""
    first = min(max(math.floor(low + 0.5), 0), size - 1)
    return first, min(max(math.floor(high + 0.5), first + 1), size)


def _fit(part: PixelArray, view: PixelArray, flips: tuple[bool, bool] = (False, False)) -> None:
    """Resize a picture into a view of another, flipped in x or y."""
    size_wh = (view.shape[1], view.shape[0])
    flip_x, flip_y = flips
    if not (flip_x or flip_y):
        if part.shape == view.shape:
            view[...] = part
        else:
            cv2.resize(_smoothed(part, size_wh), size_wh, dst=view, interpolation=cv2.INTER_LINEAR)
        return
    if part.shape != view.shape:
        part = as_pixels(cv2.resize(_smoothed(part, size_wh), size_wh, interpolation=cv2.INTER_LINEAR))
    cv2.flip(part, -1 if flip_x and flip_y else 1 if flip_x else 0, dst=view)


def _smoothed(part: PixelArray, size_wh: tuple[int, int]) -> PixelArray:
    """Blurred as much as bilinear interpolation lacks to the antialiased resize, a triangle as wide as the ratio.

    A triangle of half-width r has variance r^2 / 6, and interpolation is one of half-width 1. Up to a ratio of 1.5
    interpolation alone will do: it passes over no pixel. Several times as fast as OpenCV's INTER_AREA, which is fast
    at whole ratios only.
    """
    sides, sigmas = [], []
    for side, new in zip(part.shape[1::-1], size_wh, strict=True):
        variance = ((side / new) ** 2 - 1) / 6
        if side <= 1.5 * new:
            taps, sigma = 1, 0.1
        elif variance <= 0.5:  # three taps a, 1 - 2 a, a have variance 2 a
            taps, sigma = 3, math.sqrt(-0.5 / math.log(variance / 2 / (1 - variance)))
        else:
            taps, sigma = 2 * math.ceil(2 * math.sqrt(variance)) + 1, math.sqrt(variance)
        sides.append(taps)
        sigmas.append(sigma)
    if sides == [1, 1]:
        return part
    border = cv2.BORDER_REPLICATE
    return as_pixels(cv2.GaussianBlur(part, sides, sigmaX=sigmas[0], sigmaY=sigmas[1], borderType=border))


def _draw_canvas(scene: Scene, view: PixelArray, to_view: Matrix) -> None:
    """Lay the tiles side by side on a canvas, then turn them all into the window by nearest neighbour.

    Colours are changed wherever fewer pixels are, in the sources or in the view.
    """
    size_hw = _canvas_size(scene, to_view)
    parts = _seen_parts(scene, size_hw, to_view, view)
    fill: PixelArray = np.full((1, 1, 3), scene.fill, np.uint8)
    if not scene.changes or sum(part.size for _, part in parts) >= view.size:
        _turn(scene, _laid_out(scene, size_hw, parts, fill), to_view, view, fill)
        if scene.changes:
            view[...] = apply_changes(view, scene.changes, view)
        return
    sample: PixelArray = np.empty((_SAMPLE_SIDE, _SAMPLE_SIDE, 3), np.uint8)
    if needs_mean(scene.changes):
        small = scaling(_SAMPLE_SIDE / view.shape[1], _SAMPLE_SIDE / view.shape[0]) @ to_view
        sketch = _laid_out(scene, (2 * _SAMPLE_SIDE, 2 * _SAMPLE_SIDE), parts, fill, sketch=True)
        _turn(scene, sketch, small, sample, fill)
    steps = steps_of(scene.changes, sample)
    parts = [(tile, apply_steps(part, steps)) for tile, part in parts]
    fill = apply_steps(fill, steps)
    _turn(scene, _laid_out(scene, size_hw, parts, fill), to_view, view, fill)


def _canvas_size(scene: Scene, to_view: Matrix) -> tuple[int, int]:
    """Height and width to draw the canvas with: its own, unless the view is so much smaller that dropping pixels
    would show more noise than the original, whose last step smooths them."""
    height, width = scene.canvas_hw
    scale_y = math.hypot(to_view[0, 1], to_view[1, 1]) / scene.detail
    scale_x = math.hypot(to_view[0, 0], to_view[1, 0]) / scene.detail
    if min(scale_x, scale_y) >= _SMALLEST_UNSMOOTHED:
        return height, width
    # Even, so that the tiles' seam stays on a pixel's edge; never more than the side has.
    return min(height, 2 * max(1, round(height * scale_y / 2))), min(width, 2 * max(1, round(width * scale_x / 2)))


def _seen_parts(
    scene: Scene, canvas_hw: tuple[int, int], to_view: Matrix, view: PixelArray
) -> list[tuple[Tile, PixelArray]]:
    """The pixels of all tiles that are seen, no more of them than the canvas has room for."""
    limits = np.array([view.shape[1], view.shape[0]] * 2, dtype=np.float64)
    parts = []
    for tile in scene.tiles:
        seen = hulls(np.array([tile.box_xyxy], dtype=np.float64), to_view)[0].clip(0, limits)
        left, top, right, bottom = _place(scene, tile, canvas_hw)
        if (seen[2:] > seen[:2]).all() and right > left and bottom > top:
            parts.append((tile, tile.source.at_most((bottom - top, right - left))))
    return parts


def _place(scene: Scene, tile: Tile, canvas_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Of a tile on the canvas when that is drawn at a size, xyxy in whole pixels."""
    scale_y, scale_x = canvas_hw[0] / scene.canvas_hw[0], canvas_hw[1] / scene.canvas_hw[1]
    left, top, right, bottom = tile.box_xyxy
    return tuple(math.floor(edge + 0.5) for edge in (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y))  # type: ignore[return-value]


def _laid_out(
    scene: Scene,
    canvas_hw: tuple[int, int],
    parts: list[tuple[Tile, PixelArray]],
    fill: PixelArray,
    *,
    sketch: bool = False,
) -> PixelArray:
    """The canvas with its tiles; a sketch drops pixels."""
    canvas: PixelArray = np.empty((*canvas_hw, 3), np.uint8)
    cv2.rectangle(canvas, (0, 0), canvas_hw[::-1], fill[0, 0].tolist(), cv2.FILLED)
    for tile, part in parts:
        left, top, right, bottom = _place(scene, tile, canvas_hw)
        place = canvas[top:bottom, left:right]
        if sketch:
            cv2.resize(part, (right - left, bottom - top), dst=place, interpolation=cv2.INTER_NEAREST)
        else:
            _fit(part, place)
    return canvas


def _turn(scene: Scene, canvas: PixelArray, to_view: Matrix, view: PixelArray, fill: PixelArray) -> None:
    matrix = to_view @ scaling(scene.canvas_hw[1] / canvas.shape[1], scene.canvas_hw[0] / canvas.shape[0])
    in_indices = shift(-0.5, -0.5) @ matrix @ shift(0.5, 0.5)  # OpenCV has a pixel's centre at its index
    cv2.warpAffine(
        canvas,
        in_indices[:2],
        (view.shape[1], view.shape[0]),
        dst=view,
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill[0, 0].tolist(),
    )
