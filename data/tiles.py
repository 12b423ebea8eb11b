"""Large images in overlapping tiles: the one grid of training, evaluation and prediction, and a split cut by it.

A tile is an image of its own to everything that samples, draws or counts. Legend: N boxes, T tiles of an image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from data.coco import CocoSplit
from data.coco_reader import ImageRecord
from data.config import TilesConfig
from data.types import FloatArray, IntArray, Window


def windows(size_wh: tuple[int, int], tiles: TilesConfig | None) -> tuple[Window, ...]:
    """Return the tiles of an image, row by row, evenly spread; the whole image where it is no larger than a tile."""
    if tiles is None:
        return (Window(0, 0, *size_wh),)
    columns, rows = (_spans(side, tiles) for side in size_wh)
    return tuple(Window(left, top, right, bottom) for top, bottom in rows for left, right in columns)


def _spans(length: int, tiles: TilesConfig) -> list[tuple[int, int]]:
    rest = length - tiles.size
    if rest <= 0:
        return [(0, length)]
    step = max(math.floor(tiles.size * (1 - tiles.overlap)), 1)
    starts = np.linspace(0, rest, math.ceil(rest / step) + 1).round().astype(int).tolist()
    return [(start, start + tiles.size) for start in starts]


def view_sizes_wh(sizes_wh: FloatArray, tiles: TilesConfig | None) -> FloatArray:
    """Return what of images of these sizes [..., 2] the network sees at once: a tile, or all of a smaller one."""
    return sizes_wh if tiles is None else np.minimum(sizes_wh, tiles.size)


@dataclass(frozen=True)
class TileRecord(ImageRecord):
    """A tile of an image as an image of its own; `width` and `height` are the tile's."""

    window: Window
    image: ImageRecord
    """All of it."""
    number: int
    """Position of the image in its split."""


def tiled(split: CocoSplit, tiles: TilesConfig | None) -> CocoSplit:
    """Return the split with a `TileRecord` for every tile, in order; without `tiles` the split itself.

    Boxes are clipped to their tiles. A tile has those that it shows enough of (`min_visible`), and every box is in the
    tile that shows most of it.
    """
    if tiles is None:
        return split
    images: list[TileRecord] = []
    rows, boxes = [np.empty(0, np.int64)], [np.empty((0, 4))]
    start = 0
    for number, image in enumerate(split.images):
        cut = windows((image.width, image.height), tiles)
        seen, share = _seen(split.boxes_xyxy[image.rows].astype(np.float64), np.array(cut, dtype=np.float64))
        first_best = np.arange(len(cut))[:, None] == share.argmax(axis=0)
        for window, own, kept in zip(cut, seen, (share >= tiles.min_visible) & (share > 0) | first_best, strict=True):
            found = np.flatnonzero(kept)
            place = {"width": window.size_wh[0], "height": window.size_wh[1], "rows": slice(start, start + len(found))}
            own_fields = {field.name: getattr(image, field.name) for field in fields(image)} | place
            images.append(TileRecord(**own_fields, window=window, image=image, number=number))
            rows.append(found + image.rows.start)
            boxes.append(own[found] - np.tile(window[:2], 2))
            start += len(found)
    kept_rows, xyxy = np.concatenate(rows), np.concatenate(boxes)
    xywh = np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1)
    return replace(split.with_rows(kept_rows, images), boxes_xywh=xywh, areas=xywh[:, 2:].prod(axis=1))


def _seen(boxes_xyxy: FloatArray, cut: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What each tile shows of each box, [T, N, 4], and its share of what a tile of that size can show, [T, N]."""
    low, high = np.tile(cut[:, None, :2], 2), np.tile(cut[:, None, 2:], 2)
    seen = boxes_xyxy.clip(low, high)
    sides = np.minimum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], (cut[:, 2:] - cut[:, :2])[:, None])
    possible = sides.prod(axis=-1)
    return seen, (seen[..., 2:] - seen[..., :2]).prod(axis=-1) / np.where(possible > 0, possible, 1)


def image_numbers(split: CocoSplit) -> IntArray:
    """Return of each image, or tile, of a split the position of its whole image."""
    return np.array([getattr(image, "number", place) for place, image in enumerate(split.images)], dtype=np.int64)


def thinned(factors: FloatArray, split: CocoSplit, tiles: TilesConfig | None) -> FloatArray:
    """Lower how often an epoch has each tile where it has no object, [tiles]: `keep_empty` times, on average.

    The sum stays whole, so that in each epoch every other tile comes as often as it should.
    """
    if tiles is None:
        return factors
    empty = np.array([not len(split.training_rows(image)) for image in split.images])
    kept = round(tiles.keep_empty * int(empty.sum())) / max(int(empty.sum()), 1)
    return np.where(empty, kept, factors)
