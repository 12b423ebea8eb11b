"""Names of boxes hide no other name and no small box, and no line to a box crosses a name or another line."""

from typing import Any

import numpy as np
import pytest

from engine.labels import place_around, place_labels

CANVAS = (10.0, 20.0, 1010.0, 820.0)
HEIGHT = 18.0


def overlaps(areas: Any, boxes: Any) -> Any:
    """[N, M] shared area."""
    low, high = np.maximum(areas[:, None, :2], boxes[:, :2]), np.minimum(areas[:, None, 2:], boxes[:, 2:])
    return np.where((high - low > 1e-6).all(-1), (high - low).prod(-1), 0)


def crossings(lines: Any, edges: Any) -> list[tuple[int, int]]:
    """Pairs of lines and edges [4] that cross, by exact signs; lines that only touch do not."""

    def turn(a: Any, b: Any, c: Any) -> float:
        return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    def apart(one: Any, two: Any) -> bool:
        return turn(one[:2], one[2:], two[:2]) * turn(one[:2], one[2:], two[2:]) >= -1e-6

    pairs = ((i, k) for i in range(len(lines)) for k in range(len(edges)))
    return [(i, k) for i, k in pairs if not (apart(lines[i], edges[k]) or apart(edges[k], lines[i]))]


def edges_of(areas: Any) -> Any:
    """The two diagonals of each area: a line through an area that ends outside crosses one of them."""
    return np.vstack([areas, areas[:, [0, 3, 2, 1]]])


def scene(seed: int, kind: str, count: int) -> Any:
    """Boxes, some beyond the canvas."""
    random = np.random.default_rng(seed)
    low, high = np.array(CANVAS[:2]), np.array(CANVAS[2:])
    centres, sides = random.uniform(low, high, (count, 2)), random.uniform(2, 30, (count, 2))
    if kind == "clustered":
        centres = random.uniform(low, high, (3, 2))[random.integers(0, 3, count)] + random.normal(0, 40, (count, 2))
    elif kind == "corner":
        centres = high - random.uniform(0, 100, (count, 2))
    elif kind == "nested":
        centres, sides = (low + high) / 2 + random.normal(0, 9, (count, 2)), np.geomspace(700, 9, count)[:, None]
    elif kind == "large":
        sides = random.uniform(2, 600, (count, 2))
    return np.hstack([centres - sides / 2, centres + sides / 2])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", ["scattered", "clustered", "corner", "nested", "large"])
def test_names_hide_nothing_and_no_line_crosses_anything(kind: str, strict: bool, seed: int) -> None:
    boxes = scene(seed, kind, 40)
    sizes = np.stack([np.random.default_rng(seed).uniform(20, 120, len(boxes)), np.full(len(boxes), HEIGHT)], axis=1)
    areas, lines = place_labels(boxes, sizes, CANVAS, strict=strict)
    shown = np.clip(boxes, CANVAS[:2] * 2, CANVAS[2:] * 2)
    within = np.isfinite(areas[:, 0])
    assert within.any() and not np.isfinite(lines[~within]).any()
    assert (areas[within, :2] >= CANVAS[:2]).all() and (areas[within, 2:] <= CANVAS[2:]).all()
    check(areas[within], lines[within], shown[within], shown)
    assert np.allclose((areas[:, 2:] - areas[:, :2])[within], sizes[within])

    size = sizes.max(axis=0)
    everywhere, all_lines = place_around(boxes, size, CANVAS, areas, lines)
    assert np.isfinite(everywhere).all(), "around the canvas is room for all"
    check(everywhere, all_lines, shown, shown)


def check(areas: Any, lines: Any, boxes: Any, every_box: Any) -> None:
    assert not (overlaps(areas, areas) * ~np.eye(len(areas), dtype=bool)).any(), "names on names"
    small = every_box[(every_box[:, 2:] - every_box[:, :2]).max(axis=1) < 2 * HEIGHT]
    assert not overlaps(areas, small).any(), "names on small boxes"
    gaps = np.hypot(*np.maximum(boxes[:, :2] - areas[:, 2:], areas[:, :2] - boxes[:, 2:]).clip(0).T)
    drawn = np.isfinite(lines[:, 0])
    assert (gaps[~drawn] <= HEIGHT / 2).all(), "a name without a line stands at its box"
    for ends, of in ((lines[drawn, :2], areas[drawn]), (lines[drawn, 2:], boxes[drawn])):
        assert (ends >= of[:, :2]).all() and (ends <= of[:, 2:]).all(), "a line joins the name and its box"
    drawn_lines = lines[drawn]
    assert not crossings(drawn_lines, drawn_lines)
    assert not crossings(drawn_lines, edges_of(areas))


def test_few_names_stand_at_their_boxes() -> None:
    boxes = [(100, 100, 160, 160), (400, 300, 900, 700), (10, 20, 30, 40)]
    areas, lines = place_labels(boxes, [(90, HEIGHT)] * 3, CANVAS, strict=True)
    assert np.isfinite(areas).all() and np.isnan(lines).all()
    for unchanged, before in zip(place_around(boxes, (90, HEIGHT), CANVAS, areas, lines), (areas, lines), strict=True):
        np.testing.assert_array_equal(unchanged, before)


def test_the_first_name_is_kept_where_there_is_no_room_for_all() -> None:
    canvas, boxes = (0, 0, 200, 19), [(0, 0, 90, 90), (3, 3, 140, 40), (3, 3, 90, 90)]
    areas, lines = place_labels(boxes, [(90, 18)] * 3, canvas)
    assert np.isfinite(areas[0]).all() and np.isnan(areas[1:]).any() and np.isnan(lines).all()
    assert np.isfinite(place_around(boxes, (90, 18), canvas, areas, lines)[0]).all()
    assert np.isnan(place_labels([(0, 0, 9, 9)], [(90, 18)], (0, 0, 30, 10))[0]).all(), "it would hide a small box"
    assert [len(one) for one in place_labels([], [], canvas)] == [0, 0]
