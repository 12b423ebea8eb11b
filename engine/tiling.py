"""Make one set of boxes of what was detected in each tile of an image (`data/tiles.py`).

Two tiles that overlap both see the region they share. Detections of one class from different tiles are one object
if, *within that region*, they cover the same pixels. This one test holds for an object that both tiles see whole, for
a fragment beside the whole object, and for two fragments however long the object is; a plain IoU or IoS of the boxes
holds for the first, or the first two. Merging by rows of a sorted list is known as NMM (F. C. Akyon et al., Slicing
Aided Hyper Inference, 2022); here an object takes at most one detection of each tile, so that two objects that one
tile tells apart stay two.

Legend: N detections, T tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.types import BoolArray, FloatArray, IntArray, Window
from models.detections import Detections

SAME_IOU = 0.5
"""IoU, within the region that two tiles share, from which on two detections are one object."""
SAME_IOS = 0.6
"""The same for a detection that its tile cuts: intersection over the smaller of both parts."""
_MOST_PER_TILE = 100
"""Detections of a tile that are merged, the best ones: as many as COCO judges of an image and class."""
_BORDER_SHARE = 0.03
"""A box that ends within this share of the tile's side from an inner border counts as cut by it: networks are not exact
about where an object leaves the picture."""


def merge_tiles(parts: Sequence[Detections], tiles: Sequence[Window], size_wh: tuple[int, int]) -> Detections:
    """Make one set of boxes, best first, in which each object stands once.

    An object gets the one of its boxes, or their union, that best explains what each tile saw of it: the whole box
    where a tile saw all of it, else the union of the fragments. Its score is the best of all.

    Args:
        parts: [T] what was detected in each tile, best first, boxes in pixels of the tile.
        tiles: [T] where the tiles lie.
        size_wh: Of the image.
    """
    if len(tiles) == 1:
        return parts[0]
    parts = [part.rows(slice(_MOST_PER_TILE)) for part in parts]
    tile_of = np.repeat(np.arange(len(tiles)), [len(part) for part in parts])
    found, cut = _in_the_image(Detections.joined(parts), np.array(tiles)[tile_of], size_wh)
    order = np.argsort(-found.scores, kind="stable")
    found, cut, tile_of = found.rows(order), cut[order], tile_of[order]
    objects = [[row] for row in range(len(found))]  # the detections of each one's object: one list for all of them
    for i, j in _pairs(found, cut, tile_of, tiles):
        ours, others = objects[i], objects[j]
        if not {*tile_of[ours]} & {*tile_of[others]}:
            ours += others
            for row in others:
                objects[row] = ours
    groups = [list(rows) for rows in sorted({tuple(sorted(rows)) for rows in objects})]
    merged = found.rows(np.array([rows[0] for rows in groups], dtype=np.int64))
    windows = np.array(tiles)
    for place, rows in enumerate(groups):
        if len(rows) > 1:
            merged.boxes_xyxy[place] = _box(found.boxes_xyxy[rows], windows[tile_of[rows]])
    fragments = np.array([cut[rows].all() for rows in groups], dtype=bool)
    return _without_leftovers(merged, fragments, [{*tile_of[rows].tolist()} for rows in groups], size_wh)


def _in_the_image(found: Detections, seen_in: IntArray, size_wh: tuple[int, int]) -> tuple[Detections, BoolArray]:
    """Move boxes from their tiles [N, 4] to the image; also which of them end where the image goes on."""
    size = seen_in[:, 2:] - seen_in[:, :2]
    boxes = np.clip(found.boxes_xyxy, 0, np.tile(size, 2))
    margin = np.maximum(size * _BORDER_SHARE, 1)
    near = np.concatenate([boxes[:, :2] <= margin, boxes[:, 2:] >= size - margin], axis=1)
    inner = seen_in != np.array([0, 0, *size_wh])
    boxes += np.tile(seen_in[:, :2], 2)
    return replace(found, boxes_xyxy=boxes), (near & inner).any(axis=1)


def _pairs(found: Detections, cut: BoolArray, tile_of: IntArray, tiles: Sequence[Window]) -> list[tuple[int, int]]:
    """Detections of different tiles that are one object, the surest first."""
    pairs: list[tuple[float, int, int]] = []
    used, counts = np.unique(tile_of, return_counts=True)
    rows, seen = np.split(np.argsort(tile_of, kind="stable"), counts.cumsum()[:-1]), np.array(tiles)[used]
    for a, tile in enumerate(seen):
        shared = np.concatenate([np.maximum(tile[:2], seen[:, :2]), np.minimum(tile[2:], seen[:, 2:])], axis=1)
        for b in np.flatnonzero((shared[a + 1 :, :2] < shared[a + 1 :, 2:]).all(axis=1)) + a + 1:
            pairs += _pairs_within(found, cut, rows[a], rows[b], shared[b])
    return [(i, j) for _, i, j in sorted(pairs)]


def _pairs_within(
    found: Detections, cut: BoolArray, rows_a: IntArray, rows_b: IntArray, shared: IntArray
) -> list[tuple[float, int, int]]:
    """Pairs that agree within the `shared` region of two tiles, and their agreement with a minus."""
    seen_a, seen_b = (_seen(found.boxes_xyxy[rows], shared) for rows in (rows_a, rows_b))
    iou, ios = _overlaps(seen_a[:, None], seen_b)
    either_cut = cut[rows_a][:, None] | cut[rows_b]
    same_class = found.labels[rows_a][:, None] == found.labels[rows_b]
    # Of equal agreement, the pair of the better scores first: junk must not take its partner away.
    strength = iou + 0.5 * (found.scores[rows_a][:, None] + found.scores[rows_b])
    agree = np.nonzero(same_class & ((iou >= SAME_IOU) | (either_cut & (ios >= SAME_IOS))))
    return list(zip((-strength[agree]).tolist(), rows_a[agree[0]].tolist(), rows_b[agree[1]].tolist(), strict=True))


def _seen(boxes: FloatArray, window: IntArray) -> FloatArray:
    """What of the boxes lies within the window; both [..., 4]."""
    low, high = np.tile(window[..., :2], 2), np.tile(window[..., 2:], 2)
    return np.clip(boxes, low, high)


def _overlaps(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """IoU and intersection over the smaller area of boxes [..., 4]; 0 where a box has no area."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    area_a, area_b = ((boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (a, b))
    union, smaller = area_a + area_b - shared, np.minimum(area_a, area_b)
    return shared / np.where(union > 0, union, 1), shared / np.where(smaller > 0, smaller, 1)


def _box(boxes: FloatArray, seen_in: IntArray) -> FloatArray:
    """Of the boxes [M, 4] of one object, best first, and their union: what the M tiles saw is explained best by."""
    union = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    candidates = np.concatenate([boxes, union[None]])
    explained, _ = _overlaps(_seen(candidates[:, None], seen_in), boxes)
    best: FloatArray = candidates[explained.mean(axis=1).round(3).argmax()]  # of equals the first, the union last
    return best


def _without_leftovers(
    objects: Detections, fragments: BoolArray, tiles: Sequence[set[int]], size_wh: tuple[int, int]
) -> Detections:
    """Drop, class by class, repeats that found no partner left to join: non-maximum suppression between tiles.

    Objects of one tile are not compared, since the network told them apart, unless a border cut one of them.
    """
    kept, boxes, axis = np.zeros(len(objects), dtype=bool), objects.boxes_xyxy, int(size_wh[1] > size_wh[0])
    for label in np.unique(objects.labels):
        own = np.flatnonzero(objects.labels == label)
        by_start = own[boxes[own, axis].argsort()]
        starts, longest = boxes[by_start, axis], (boxes[own, axis + 2] - boxes[own, axis]).max()
        for row in own.tolist():
            # Only those nearby, that reach it along the image's longer side: there may be 100,000 of them.
            near = slice(*np.searchsorted(starts, [boxes[row, axis] - longest, boxes[row, axis + 2]]))
            rivals = by_start[near][kept[by_start[near]]]
            iou, ios = _overlaps(boxes[row], boxes[rivals])
            repeated = any(not tiles[row] & tiles[rival] for rival in rivals[iou >= SAME_IOU].tolist())
            kept[row] = not repeated and not (fragments[row] and (ios >= SAME_IOS).any())
    return objects.rows(kept)
