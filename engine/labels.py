"""Place the names of boxes so that none hides another name or another object's box."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data.types import FloatArray

_RINGS = ((0.0,), (1.0, 2.0, 3.5), (5.5, 8.0, 11.0))
"""Gaps between a box and its name, in heights of the name, tried together."""
_ON_A_NAME, _ON_AN_EDGE, _ON_A_BOX, _ON_OWN_BOX, _WHOLE_BOX = 10.0, 1.0, 0.6, 0.4, 2.0
_LEADER, _DISTANCE, _LATER_PLACE = 0.2, 0.05, 0.001
"""What makes a place bad; the distance counts per height of the name."""
_LEADER_FROM = 0.5
"""A name this far off, in its heights, needs a line to its box."""


class Placed(NamedTuple):
    """Where a name stands, and a line from there to its box unless it stands beside it."""

    xyxy: tuple[float, ...]
    leader: tuple[float, ...] | None


def place_labels(
    boxes_xyxy: npt.ArrayLike, sizes_wh: npt.ArrayLike, canvas_xyxy: tuple[float, ...]
) -> list[Placed | None]:
    """Place a name of each size at each box, the first ones first, all inside the canvas if they fit into it.

    A name stands above its box, below or beside it; where it would hide something there, further off with a line.
    None: it would hide another name wherever it stood.
    """
    low, high = np.array(canvas_xyxy[:2], np.float64), np.array(canvas_xyxy[2:], np.float64)
    boxes = np.clip(np.asarray(boxes_xyxy, np.float64).reshape(-1, 4), np.tile(low, 2), np.tile(high, 2))
    sizes, names = np.asarray(sizes_wh, np.float64).reshape(-1, 2), np.empty((0, 4))
    placed: list[Placed | None] = []
    for number, (box, size) in enumerate(zip(boxes, sizes, strict=True)):
        others, best, least = np.delete(boxes, number, axis=0), box, np.inf
        for ring in (*_RINGS, None):
            # No place further off can be better.
            if least < (_ON_A_NAME if ring is None else _LEADER + _DISTANCE * ring[0]):
                break
            corners = _anywhere(size, low, high) if ring is None else _around(box, size, ring)
            corners = np.clip(corners, low, np.maximum(high - size, low))
            areas = np.hstack([corners, corners + size])
            costs = _costs(areas, box, _within(others, areas), _within(names, areas))
            if costs.min() < least:
                best, least = areas[costs.argmin()], float(costs.min())
        if _shared(best[None], names).any():
            placed.append(None)
            continue
        names = np.vstack([names, best])
        placed.append(Placed(tuple(best.tolist()), _leader(best, box)))
    return placed


def _around(box: FloatArray, size: FloatArray, gaps: tuple[float, ...]) -> FloatArray:
    """Upper left corners [N, 2] of names around a box, above first."""
    (x1, y1, x2, y2), (width, height) = box.tolist(), size.tolist()
    corners = []
    for gap in (height * one for one in gaps):
        above, below = y1 - height - gap, y2 + gap
        ys = (y1, y2 - height, (y1 + y2 - height) / 2, above, below)
        corners += [(x, y) for x in (x1, x2 - width, (x1 + x2 - width) / 2) for y in (above, below, y1, y2 - height)]
        corners += [(x, y) for x in (x2 + gap, x1 - width - gap) for y in ys]
    return np.array(corners)


def _anywhere(size: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Corners [N, 2] all over the canvas, by rows."""
    xs, ys = (np.arange(low[k], max(high[k] - size[k], low[k]) + 1e-9, size[k] / (2 - k)) for k in (0, 1))
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


def _within(boxes: FloatArray, areas: FloatArray) -> FloatArray:
    """The boxes that can meet an area: most are far away."""
    low, high = areas[:, :2].min(axis=0), areas[:, 2:].max(axis=0)
    return np.asarray(boxes[((boxes[:, :2] < high) & (boxes[:, 2:] > low)).all(axis=1)])


def _costs(areas: FloatArray, box: FloatArray, others: FloatArray, names: FloatArray) -> FloatArray:
    """How bad each area [N, 4] is for a box's name, given the other boxes and the names placed before."""
    size = areas[0, 2:] - areas[0, :2]
    on_names = (_shared(areas, names) / size.prod()).sum(axis=1)
    shared = _shared(areas, others)
    on_edges = (shared > 0) & (shared < 0.999 * size.prod())
    sides = others[:, 2:] - others[:, :2]
    on_boxes = (shared > 0) * _ON_A_BOX + on_edges * _ON_AN_EDGE + _WHOLE_BOX * shared / sides.prod(axis=1).clip(1)
    own = _shared(areas, box[None])[:, 0]
    on_own = _ON_OWN_BOX * own / size.prod() + _WHOLE_BOX * own / max(float((box[2:] - box[:2]).prod()), 1.0)
    distance = _gaps(areas, box) / size[1]
    far = (distance > _LEADER_FROM) * _LEADER + _DISTANCE * distance
    hidden = np.where(on_names > 0, _ON_A_NAME * (1 + on_names), 0) + on_boxes.sum(axis=1) + on_own
    return np.asarray(hidden + far + _LATER_PLACE * np.arange(len(areas)))


def _shared(areas: FloatArray, boxes: FloatArray) -> FloatArray:
    """Overlap [N, M] of areas with boxes; rounding does not make an overlap of names that touch."""
    width, height = (
        np.minimum(areas[:, k + 2, None], boxes[:, k + 2]) - np.maximum(areas[:, k, None], boxes[:, k]) for k in (0, 1)
    )
    return np.asarray(np.where((width > 1e-6) & (height > 1e-6), width * height, 0))


def _gaps(areas: FloatArray, box: FloatArray) -> FloatArray:
    between = np.maximum(box[:2] - areas[:, 2:], areas[:, :2] - box[2:]).clip(0)
    return np.asarray(np.hypot(*between.T))


def _leader(area: FloatArray, box: FloatArray) -> tuple[float, ...] | None:
    if _gaps(area[None], box)[0] <= _LEADER_FROM * (area[3] - area[1]):
        return None
    start = np.clip((box[:2] + box[2:]) / 2, area[:2], area[2:])
    return (*start.tolist(), *np.clip(start, box[:2], box[2:]).tolist())
