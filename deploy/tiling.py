"""Large images in overlapping tiles, and one set of boxes from what was found in each.

Two tiles that overlap both see the region they share. Detections of one class from different tiles are one object
if, *within that region*, they cover the same pixels. This one test holds for an object that both tiles see whole, for
a fragment beside the whole object, and for two fragments however long the object is; a plain IoU or IoS of the boxes
holds for the first, or the first two. Merging by rows of a sorted list is known as NMM (F. C. Akyon et al., Slicing
Aided Hyper Inference, 2022); here an object takes at most one detection of each tile, so that two objects that one
tile tells apart stay two.

Legend: N detections, T tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data.errors import UserError
from data.types import BoolArray
from deploy.found import Found, joined
from engine.coco_metrics import FloatArray, IntArray

SAME_IOU = 0.5
"""IoU, within the region that two tiles share, from which on two detections are one object."""
SAME_IOS = 0.6
"""The same for a detection that its tile cuts: intersection over the smaller of both parts."""
_BORDER_SHARE = 0.03
"""A box that ends within this share of the tile's side from an inner border counts as cut by it: networks are not exact
about where an object leaves the picture."""
MIN_OVERLAP, MAX_OVERLAP = 0.05, 0.8
MIN_TILE_PX = 32


class Window(NamedTuple):
    """Part of an image, pixels; right and bottom are outside."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Raises:
        UserError: A number is out of its range; both at once.
    """

    tile_px: int
    """Side of a tile."""
    overlap: float = 0.2
    """Least share of a tile that its neighbour sees too."""

    def __post_init__(self) -> None:
        problems = []
        if self.tile_px < MIN_TILE_PX:
            problems.append(f"--tile {self.tile_px}: expected at least {MIN_TILE_PX} pixels, e.g. the network's input")
        if not MIN_OVERLAP <= self.overlap <= MAX_OVERLAP:
            expected = f"expected {MIN_OVERLAP:g} to {MAX_OVERLAP:g}, e.g. 0.2"
            problems.append(f"--overlap {self.overlap:g}: {expected}; objects on a border are joined through it")
        if problems:
            raise UserError("Tiles that cannot work:", problems)


def windows(size_wh: tuple[int, int], tiling: Tiling | None) -> tuple[Window, ...]:
    """The tiles of an image, row by row, evenly spread; the whole image where it is no larger than a tile."""
    width, height = size_wh
    if tiling is None:
        return (Window(0, 0, width, height),)
    columns, rows = _spans(width, tiling), _spans(height, tiling)
    return tuple(Window(left, top, right, bottom) for top, bottom in rows for left, right in columns)


def _spans(length: int, tiling: Tiling) -> list[tuple[int, int]]:
    rest = length - tiling.tile_px
    if rest <= 0:
        return [(0, length)]
    step = max(math.floor(tiling.tile_px * (1 - tiling.overlap)), 1)
    starts = np.linspace(0, rest, math.ceil(rest / step) + 1).round().astype(int).tolist()
    return [(start, start + tiling.tile_px) for start in starts]


def merge_tiles(parts: Sequence[Found], tiles: Sequence[Window], size_wh: tuple[int, int]) -> Found:
    """One set of boxes, each object once.

    Args:
        parts: [T] what was found in each tile, boxes in pixels of the tile.
        tiles: [T] where the tiles lie.
        size_wh: Of the image.

    Returns:
        Best first; boxes in pixels of the image. An object has the one of its boxes, or their union, that best explains
        what each tile saw of it: the whole box where a tile saw all of it, else the union of the fragments. Its
        score is the best of all.
    """
    if len(tiles) == 1:
        return parts[0]
    pieces = _Pieces.of(parts, tiles, size_wh)
    groups = _Groups(pieces)
    for i, j in _pairs(pieces, tiles):
        groups.join(i, j)
    merged = [_combine(pieces, np.array(rows), tiles) for rows in groups.members()]
    return _without_leftovers(merged)


@dataclass(frozen=True, eq=False)
class _Pieces:
    """All detections of all tiles, in pixels of the image."""

    found: Found
    tile: IntArray
    """[N] the tile it comes from."""
    cut: BoolArray
    """[N] it ends at a border behind which the image goes on."""

    @classmethod
    def of(cls, parts: Sequence[Found], tiles: Sequence[Window], size_wh: tuple[int, int]) -> _Pieces:
        moved, cut = [], []
        for part, tile in zip(parts, tiles, strict=True):
            size = np.array([tile.right - tile.left, tile.bottom - tile.top])
            boxes = np.clip(part.boxes_xyxy, 0, np.tile(size, 2))
            margin = np.maximum(size * _BORDER_SHARE, 1)
            inner = np.array([tile.left > 0, tile.top > 0, tile.right < size_wh[0], tile.bottom < size_wh[1]])
            near = np.concatenate([boxes[:, :2] <= margin, boxes[:, 2:] >= size - margin], axis=1)
            cut.append((near & inner).any(axis=1))
            moved.append(Found(boxes + np.array([tile.left, tile.top] * 2), part.scores, part.labels))
        numbers = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return cls(joined(moved), numbers, np.concatenate(cut))


def _pairs(pieces: _Pieces, tiles: Sequence[Window]) -> list[tuple[int, int]]:
    """Detections of different tiles that are one object, the surest first."""
    rows, scores = [np.empty((0, 2), np.int64)], [np.empty(0)]
    of_tile = [np.flatnonzero(pieces.tile == tile) for tile in range(len(tiles))]
    for a in range(len(tiles)):
        for b in range(a + 1, len(tiles)):
            shared = _intersection(tiles[a], tiles[b])
            if shared is not None and len(of_tile[a]) and len(of_tile[b]):
                pairs, agreement = _pairs_of_tiles(pieces, of_tile[a], of_tile[b], shared)
                rows.append(pairs)
                scores.append(agreement)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return [(i, j) for i, j in np.concatenate(rows)[order].tolist()]


def _intersection(a: Window, b: Window) -> Window | None:
    shared = Window(max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom))
    return shared if shared.left < shared.right and shared.top < shared.bottom else None


def _pairs_of_tiles(pieces: _Pieces, rows_a: IntArray, rows_b: IntArray, shared: Window) -> tuple[IntArray, FloatArray]:
    """Pairs [P, 2] that agree within `shared`, and how much [P]."""
    low, high = np.array(shared[:2]), np.array(shared[2:])
    boxes = pieces.found.boxes_xyxy
    seen_a, seen_b = (
        np.concatenate([np.clip(boxes[rows, :2], low, high), np.clip(boxes[rows, 2:], low, high)], axis=1)
        for rows in (rows_a, rows_b)
    )
    iou, ios = _overlaps(seen_a, seen_b)
    labels = pieces.found.labels
    same_class = labels[rows_a][:, None] == labels[rows_b]
    either_cut = pieces.cut[rows_a][:, None] | pieces.cut[rows_b]
    agree = same_class & ((iou >= SAME_IOU) | (either_cut & (ios >= SAME_IOS)))
    i, j = np.nonzero(agree)
    # Of equal agreement, the pair of the better scores first: junk must not take its partner away.
    scores = pieces.found.scores
    strength = iou[i, j] + 0.5 * (scores[rows_a[i]] + scores[rows_b[j]])
    return np.stack([rows_a[i], rows_b[j]], axis=1), strength


def _overlaps(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """IoU and intersection over the smaller area, [len(a), len(b)]; 0 where a box has no area."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b))
    union = area_a[:, None] + area_b - shared
    smaller = np.minimum(area_a[:, None], area_b)
    nothing = np.zeros_like(shared)
    return (
        np.divide(shared, union, out=nothing.copy(), where=union > 0),
        np.divide(shared, smaller, out=nothing.copy(), where=smaller > 0),
    )


class _Groups:
    """Detections joined into objects, at most one of each tile."""

    def __init__(self, pieces: _Pieces) -> None:
        self._group = list(range(len(pieces.found)))
        self._members = [[row] for row in range(len(pieces.found))]
        self._tiles = [{tile} for tile in pieces.tile.tolist()]

    def join(self, i: int, j: int) -> None:
        a, b = self._group[i], self._group[j]
        if a == b or self._tiles[a] & self._tiles[b]:
            return
        for row in self._members[b]:
            self._group[row] = a
        self._members[a] += self._members[b]
        self._tiles[a] |= self._tiles[b]
        self._members[b] = []

    def members(self) -> list[list[int]]:
        return [rows for rows in self._members if rows]


@dataclass(frozen=True, eq=False)
class _Object:
    score: float
    label: int
    box_xyxy: FloatArray
    tiles: frozenset[int]
    whole: bool
    """Some tile saw all of it, by the look of it."""


def _combine(pieces: _Pieces, rows: IntArray, tiles: Sequence[Window]) -> _Object:
    found = pieces.found
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    boxes = found.boxes_xyxy[rows]
    union = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    candidates = np.concatenate([boxes, union[None]])
    seen_in = np.array([tiles[tile] for tile in pieces.tile[rows].tolist()], dtype=np.float64)  # [members, 4]
    low, high = seen_in[None, :, :2], seen_in[None, :, 2:]
    visible = np.concatenate(
        [np.clip(candidates[:, None, :2], low, high), np.clip(candidates[:, None, 2:], low, high)], axis=-1
    )
    explained = [_overlaps(visible[:, member], boxes[[member]])[0][:, 0] for member in range(len(rows))]
    best = int(np.argmax(np.mean(explained, axis=0).round(3)))  # of equals the best score, the union last
    return _Object(
        score=float(found.scores[rows[0]]),
        label=int(found.labels[rows[0]]),
        box_xyxy=candidates[best],
        tiles=frozenset(pieces.tile[rows].tolist()),
        whole=not pieces.cut[rows].all(),
    )


def _without_leftovers(objects: Sequence[_Object]) -> Found:
    """Non-maximum suppression between tiles, class by class: repeats that found no partner left to join.

    Objects of one tile are not compared, since the network told them apart, unless a border cut one of them.
    """
    if not objects:
        return Found.empty()
    ordered = sorted(objects, key=lambda one: -one.score)
    scores = np.array([one.score for one in ordered])
    labels = np.array([one.label for one in ordered], dtype=np.int64)
    boxes = np.stack([one.box_xyxy for one in ordered])
    kept: list[int] = []
    for row, one in enumerate(ordered):
        rivals = [k for k in kept if labels[k] == labels[row]]
        iou, ios = (part[0] for part in _overlaps(boxes[[row]], boxes[rivals]))
        apart = np.array([not one.tiles & ordered[k].tiles for k in rivals], dtype=bool)
        repeated = (apart & (iou >= SAME_IOU)).any()
        fragment = not one.whole and (ios >= SAME_IOS).any()
        if not (repeated or fragment):
            kept.append(row)
    return Found(boxes, scores, labels).rows(np.array(kept, dtype=np.int64))
