"""YOLO: a text file per image, class index and box in fractions of the image a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from data.convert.common import Corners, Gathered, around
from data.convert.txt import FARTHEST_OUTSIDE, MALFORMED, Fault, Note, add_images, find_text_files, tell_other_format
from data.convert.yolo_config import find_config, find_names

_LINE = "class index, then x centre, y centre, width, height"
_EXPECTED = f"YOLO's ({_LINE}, in fractions of the image)"
_LEAST_VALUES = 5
_SCORE = ("lines have a sixth number", "It is taken as a score and dropped")
_POLYGON = ("lines are polygons", "The boxes around them are taken")
_KEYPOINTS = ("lines hold keypoints", "They are dropped and the boxes kept")


def read_yolo(root: Path, *, class_names: Sequence[str] | None = None) -> Gathered:
    """Gather all images below `root` with their text files, see `find_text_files` and `add_images`.

    A line of more than six numbers is a polygon, and its bounds are the box, unless `data.yaml` has `kpt_shape`; a
    sixth number is a score and is dropped.

    Without `class_names`, by index, they are read from `data.yaml` (its `names`), `classes.txt` or `obj.names`.

    Raises:
        UserError: `root` is no folder, or nothing or too much names the classes. Faults of the files are in the result.
    """
    gathered = Gathered(root)
    config = find_config(gathered, required=class_names is None)
    files = find_text_files(gathered)
    if tell_other_format(gathered, files, _is_box, _EXPECTED):
        return gathered
    gathered.class_names = names = class_names or find_names(root, config)
    read = partial(_read, names=names, num_keypoint_values=config.num_keypoint_values)
    add_images(gathered, files, config, read, lambda line: bool(_values(line)), _EXPECTED)
    return gathered


def _is_box(line: str) -> bool:
    """Tell whether a line is YOLO's, whatever the class."""
    values = _values(line)
    return bool(values) and values[0].is_integer() and all(map(_is_fraction, values[1:_LEAST_VALUES]))


def _is_fraction(value: float) -> bool:
    return -FARTHEST_OUTSIDE <= value <= 1 + FARTHEST_OUTSIDE


def _read(
    line: str, size_wh: tuple[int, int], *, names: Sequence[str], num_keypoint_values: int
) -> tuple[str, Corners, Note | None]:
    """Return class, corners in pixels, and what was dropped.

    Raises:
        Fault: The line is no box.
    """
    values, fix = _values(line), "Correct or remove the line"
    has_keypoints = bool(num_keypoint_values) and len(values) == _LEAST_VALUES + num_keypoint_values
    is_polygon = len(values) > 6 and not has_keypoints
    if not values or (is_polygon and len(values) % 2 == 0):
        raise Fault(f"is {line[:80]!r}, expected: {_LINE}", MALFORMED, fix)
    label = int(values[0])
    if label != values[0] or not 0 <= label < len(names):
        found = f"the class index is {line.split()[0]}, but there are {len(names)} classes (0 to {len(names) - 1})"
        raise Fault(found, "unknown class index", "Correct it, or complete the list of classes")
    shape = values[1:] if is_polygon else values[1:_LEAST_VALUES]
    if not all(map(_is_fraction, shape)):
        raise Fault(f"{line[:80]!r} is not in fractions of the image (0 to 1)", MALFORMED, fix)
    scale_x, scale_y = size_wh
    if is_polygon:
        points = zip(shape[::2], shape[1::2], strict=True)
        return names[label], around((x * scale_x, y * scale_y) for x, y in points), _POLYGON
    x, y, width, height = shape
    note = _KEYPOINTS if has_keypoints else _SCORE if len(values) > _LEAST_VALUES else None
    left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return names[label], (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y), note


def _values(line: str) -> list[float]:
    """Return the numbers of a line; none if it holds anything else or too few."""
    try:
        values = [float(text) for text in line.split()]
    except ValueError:
        return []
    return values if len(values) >= _LEAST_VALUES and all(map(math.isfinite, values)) else []
