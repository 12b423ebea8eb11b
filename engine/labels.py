"""Place the names of boxes: none hides another one or a small box, and no line crosses a name or another line.

Areas, boxes and lines are float [N, 4] x1, y1, x2, y2; a line goes from a name to its box. A row of NaN: there is none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.types import FloatArray

_RINGS = ((0.0,), (1.0, 2.0, 3.5))
"""Gaps between a box and its name, in heights of the name, tried together."""
_UNUSABLE, _UNCLEAR = 10.0, 2.0
"""No place is worse than these, the latter where `strict`."""
_ON_AN_EDGE, _ON_A_BOX, _ON_OWN_BOX, _WHOLE_BOX = 1.0, 0.6, 0.4, 2.0
_LEADER, _OVER_AN_EDGE, _DISTANCE, _LATER_PLACE = 0.2, 0.4, 0.05, 0.001
"""What makes a place bad; the distance counts per height of the name."""
_LEADER_FROM = 0.5
"""A name this far off, in its heights, needs a line to its box."""
_SMALL = 2.0
"""A box whose longer side has fewer heights of the name may not be covered."""


def place_labels(
    boxes_xyxy: npt.ArrayLike, sizes_wh: npt.ArrayLike, canvas_xyxy: tuple[float, ...], *, strict: bool = False
) -> tuple[FloatArray, FloatArray]:
    """Place a name of each size at each box, the first ones first, all inside the canvas if they fit into it.

    A name stands above its box, below or beside it; where it would hide something there, a little further off with a
    line. `strict` leaves out also what would hide edges of large boxes or need a long line. Returns areas and lines.
    """
    low, high = np.array(canvas_xyxy[:2], np.float64), np.array(canvas_xyxy[2:], np.float64)
    boxes = np.clip(np.asarray(boxes_xyxy, np.float64).reshape(-1, 4), np.tile(low, 2), np.tile(high, 2))
    areas, lines = np.full((2, len(boxes), 4), np.nan)
    for number, size in enumerate(np.asarray(sizes_wh, np.float64).reshape(-1, 2)):
        if strict and (size > high - low).any():
            continue
        least = _UNCLEAR if strict else _UNUSABLE
        for ring in _RINGS if strict else (*_RINGS, None):
            # No place further off can be better.
            if least < (_UNUSABLE if ring is None else _LEADER + _DISTANCE * ring[0]):
                break
            corners = _anywhere(size, low, high) if ring is None else _around(boxes[number], size, ring)
            corners = np.clip(corners, low, np.maximum(high - size, low))
            tried = np.hstack([corners, corners + size])
            theirs = _leaders(tried, boxes[number])
            theirs[_lengths(theirs) <= _LEADER_FROM * size[1]] = np.nan
            costs = _costs(tried, theirs, boxes, number, areas, lines)
            best = costs.argmin()
            if costs[best] < least:
                least, areas[number], lines[number] = costs[best], tried[best], theirs[best]
    return areas, lines


def place_around(
    boxes_xyxy: FloatArray, size_wh: npt.ArrayLike, canvas_xyxy: tuple[float, ...], areas: FloatArray, lines: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Place names that have no place around the canvas, and those that the lines to them would cross."""
    from scipy.optimize import linear_sum_assignment

    areas, lines = areas.copy(), lines.copy()
    low, high = np.array(canvas_xyxy[:2], np.float64), np.array(canvas_xyxy[2:], np.float64)
    boxes, size = np.clip(boxes_xyxy, np.tile(low, 2), np.tile(high, 2)), np.asarray(size_wh, np.float64)
    while (outside := np.flatnonzero(np.isnan(areas[:, 0]))).size:
        ports = _ports(boxes, outside, size, areas, lines)
        # Of two lines that cross, the ends could be exchanged for a smaller sum.
        links = np.stack([_leaders(ports, box) for box in boxes[outside]])
        chosen = linear_sum_assignment([_lengths(one) for one in links])
        drawn = links[chosen]
        in_the_way = _crossed(drawn, areas).any(axis=0) | _meet(drawn, lines).any(axis=0)
        if not in_the_way.any():
            areas[outside], lines[outside] = ports[chosen[1]], drawn
            break
        areas[in_the_way] = lines[in_the_way] = np.nan
    return areas, lines


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


def _ports(
    boxes: FloatArray, outside: npt.NDArray[np.int64], size: FloatArray, areas: FloatArray, lines: FloatArray
) -> FloatArray:
    """Free areas in a frame around the boxes numbered `outside`, as close as there are enough for them."""
    low, high = boxes[outside, :2].min(axis=0), boxes[outside, 2:].max(axis=0)
    ports = np.empty((0, 4))
    while len(ports) < len(outside):
        low, high = low - size[1] / 2, high + size[1] / 2
        xs = np.arange(low[0] - size[0], high[0], 1.15 * size[0])  # over the corners too
        ys = np.arange(low[1] + 0.15 * size[1], high[1] - size[1], 1.15 * size[1])
        corners = [(x, y) for x in xs for y in (low[1] - size[1], high[1])]
        corners += [(x, y) for x in (low[0] - size[0], high[0]) for y in ys]
        ports = np.hstack([corners, corners + size])
        taken = _shared(ports, np.vstack([boxes, areas])).any(axis=1) | _crossed(lines, ports).any(axis=0)
        ports = ports[~taken]
    return ports


def _costs(
    tried: FloatArray, theirs: FloatArray, boxes: FloatArray, number: int, areas: FloatArray, lines: FloatArray
) -> FloatArray:
    """How bad each area and its line is for the name of a box, given all boxes and the names placed before."""
    size = tried[0, 2:] - tried[0, :2]
    sides, shared = boxes[:, 2:] - boxes[:, :2], _shared(tried, boxes)
    unusable = (shared > 0)[:, sides.max(axis=1) < _SMALL * size[1]].any(axis=1)
    unusable |= (_shared(tried, areas) > 0).any(axis=1) | _crossed(lines, tried).any(axis=0)
    unusable |= _crossed(theirs, areas).any(axis=1) | _meet(theirs, lines).any(axis=1)
    part = _WHOLE_BOX * shared / sides.prod(axis=1).clip(1)
    on_edges = (shared > 0) & (shared < 0.999 * size.prod())
    hidden = (shared > 0) * _ON_A_BOX + on_edges * _ON_AN_EDGE + part
    hidden[:, number] = _ON_OWN_BOX * shared[:, number] / size.prod() + part[:, number]
    over = np.delete(_crossed(theirs, boxes, edges=True), number, axis=1).sum(axis=1)
    far = np.nan_to_num(_LEADER + _DISTANCE * _lengths(theirs) / size[1]) + _OVER_AN_EDGE * over
    # Much hidden is still better than what may not be.
    bad = np.minimum(hidden.sum(axis=1) + far, 0.9 * _UNUSABLE) + _LATER_PLACE * np.arange(len(tried))
    return np.asarray(np.where(unusable, _UNUSABLE, bad))


def _shared(areas: FloatArray, boxes: FloatArray) -> FloatArray:
    """Overlap [N, M] of areas with boxes; rounding does not make an overlap of names that touch."""
    width, height = (
        np.minimum(areas[:, k + 2, None], boxes[:, k + 2]) - np.maximum(areas[:, k, None], boxes[:, k]) for k in (0, 1)
    )
    return np.asarray(np.where((width > 1e-6) & (height > 1e-6), width * height, 0))


def _leaders(areas: FloatArray, box: FloatArray) -> FloatArray:
    """The shortest lines [N, 4] from areas to a box."""
    start = np.clip((box[:2] + box[2:]) / 2, areas[:, :2], areas[:, 2:])
    return np.hstack([start, np.clip(start, box[:2], box[2:])])


def _lengths(lines: FloatArray) -> FloatArray:
    return np.asarray(np.hypot(*(lines[:, 2:] - lines[:, :2]).T))


def _crossed(lines: FloatArray, boxes: FloatArray, *, edges: bool = False) -> npt.NDArray[np.bool_]:
    """Whether each line runs through each box [N, M]; with `edges`, whether it is not wholly inside."""
    spans = []
    for k in (0, 1):
        start, along = lines[:, k, None], lines[:, k + 2, None] - lines[:, k, None]
        along = np.where(along == 0, 1e-9, along)
        one, two = (boxes[:, k] - start) / along, (boxes[:, k + 2] - start) / along
        spans.append((np.minimum(one, two), np.maximum(one, two)))
    enters, leaves = np.maximum(spans[0][0], spans[1][0]), np.minimum(spans[0][1], spans[1][1])
    through = np.maximum(enters, 0) < np.minimum(leaves, 1) - 1e-6
    return np.asarray(through & ((enters > 0) | (leaves < 1)) if edges else through)


def _meet(lines: FloatArray, others: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether each line crosses each other one [N, M]."""

    def sides(lines: FloatArray, points: FloatArray) -> FloatArray:
        along, to = lines[:, None, 2:] - lines[:, None, :2], points - lines[:, None, :2]
        return np.asarray(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])

    one, two = (sides(a, b[:, :2]) * sides(a, b[:, 2:]) <= 0 for a, b in ((lines, others), (others, lines)))
    return np.asarray(one & two.T)
