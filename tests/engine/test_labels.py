"""Names of boxes hide no other name and no other object's box."""

from typing import Any

import numpy as np
import pytest

from engine.labels import Placed, place_labels

CANVAS = (10.0, 20.0, 1010.0, 820.0)


def overlaps(areas: Any, boxes: Any) -> Any:
    """[N, M] shared area, without the diagonal."""
    low, high = np.maximum(areas[:, None, :2], boxes[:, :2]), np.minimum(areas[:, None, 2:], boxes[:, 2:])
    shared = np.where((high - low > 1e-6).all(-1), (high - low).prod(-1), 0)
    return shared * ~np.eye(len(areas), dtype=bool)


def scattered(seed: int, count: int, largest: float) -> tuple[Any, Any]:
    """Boxes, some beyond the canvas, and sizes of their names."""
    random = np.random.default_rng(seed)
    centres, sides = random.uniform((0, 0), (1020, 840), (count, 2)), random.uniform(2, largest, (count, 2))
    sizes = np.stack([random.uniform(30, 120, count), np.full(count, 18.0)], axis=1)
    return np.hstack([centres - sides / 2, centres + sides / 2]), sizes


def placed_names(boxes: Any, sizes: Any) -> list[Placed]:
    """There is room for all."""
    placed = [one for one in place_labels(boxes, sizes, CANVAS) if one]
    assert len(placed) == len(boxes)
    return placed


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("count", "largest", "on_boxes"), [(30, 60, 0), (60, 20, 0), (12, 600, None), (100, 120, None)]
)
def test_names_are_inside_and_hide_nothing(seed: int, count: int, largest: float, on_boxes: int | None) -> None:
    boxes, sizes = scattered(seed, count, largest)
    placed = placed_names(boxes, sizes)
    areas = np.array([one.xyxy for one in placed])
    np.testing.assert_allclose(areas[:, 2:] - areas[:, :2], sizes)
    assert (areas[:, :2] >= CANVAS[:2]).all() and (areas[:, 2:] <= CANVAS[2:]).all()
    assert not overlaps(areas, areas).any()
    shown = np.clip(boxes, CANVAS[:2] * 2, CANVAS[2:] * 2)
    if on_boxes is not None:
        assert np.count_nonzero(overlaps(areas, shown)) == on_boxes
    for (area, leader), box in zip(placed, shown, strict=True):
        gap = np.hypot(*np.maximum(box[:2] - area[2:], area[:2] - box[2:]).clip(0))
        if leader is None:
            assert gap <= 9, "a name without a line stands at its box"
        else:
            near = np.array(leader).reshape(2, 2)
            for point, of in zip(near, (np.array(area), box), strict=True):
                assert (point >= of[:2]).all() and (point <= of[2:]).all(), "the line joins the name and its box"


@pytest.mark.parametrize("canvas", [(0, 0, 30, 10), (0, 0, 200, 19)])
def test_the_first_name_is_kept_where_there_is_no_room_for_all(canvas: tuple[int, ...]) -> None:
    first, *others = place_labels([(0, 0, 5, 5), (3, 3, 40, 40), (3, 3, 9, 9)], [(90, 18)] * 3, canvas)
    assert first and first.xyxy[:2] >= (0, 0)
    assert None in others
    assert place_labels([], [], canvas) == []
