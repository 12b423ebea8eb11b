"""labelme: a JSON file per image, with shapes of several kinds."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data.coco_reader import NO_AREA, finite
from data.convert.common import AnnotationFile, ForeignBox, Gathered, around, read_file_per_image
from data.names import composed
from data.problems import shorten

_LEAST_POINTS = {"rectangle": 2, "polygon": 3, "mask": 2, "circle": 2, "rotation": 4, "oriented_rectangle": 4}
_NO_CLASSES = frozenset(("__ignore__", "_background_"))
"""Labels that labelme's own converters leave out."""
_NO_SIDE = 10**9
"""No image has as many pixels in a row."""
_SLACK_PX = 2
"""Points are set by hand."""


def read_labelme(root: Path, *, class_names: Sequence[str] | None = None) -> Gathered:
    """Gather all JSON files below `root` with their images.

    Polygons, circles and masks become the boxes around them, shapes of one label and `group_id` the box around all of
    them; points and lines have no area and are errors. Labels `__ignore__` and `_background_` are left out.

    Without `class_names`, in the order of their ids, those that occur are sorted.

    Raises:
        UserError: `root` is no folder. Faults of the files are in the result.
    """
    names = None if class_names is None else tuple(name for name in class_names if name not in _NO_CLASSES)
    gathered, tally = Gathered(root, class_names=names, slack_px=_SLACK_PX), Counter[str]()
    advice = "Give the labelme folder; XML files of LabelMe 3, as CVAT writes them, are read by `voc`"
    read_file_per_image(gathered, ".json", advice, "imagePath", partial(_read_file, gathered, tally))
    if tally["joined"]:
        gathered.notes.append(f"group_id: {tally['joined']} shapes are joined to another of their group and label")
    if tally["left out"]:
        found = f"{tally['left out']} are labelled {' or '.join(sorted(_NO_CLASSES))}"
        gathered.warn(gathered.root, "shapes", found, "They are no class and left out", "shapes left out")
    return gathered


def _read_file(gathered: Gathered, tally: Counter[str], file: Path) -> AnnotationFile | None:
    kind = "malformed labelme file"
    try:
        content = json.loads(file.read_bytes())  # in whichever form of Unicode
    except (OSError, ValueError, RecursionError) as error:
        gathered.error(file, "file", f"cannot be read as JSON ({error})", "Save it again in labelme, or as UTF-8", kind)
        return None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        gathered.error(file, "file", "has no list `shapes`, so it is not labelme's", "Move it elsewhere", kind)
        return None
    boxes: dict[tuple[str, str], ForeignBox] = {}
    for number, shape in enumerate(content["shapes"], start=1):
        if isinstance(shape, dict) and str(shape.get("label")).strip() in _NO_CLASSES:
            tally["left out"] += 1
        elif (box := _box(gathered, file, number, shape if isinstance(shape, dict) else {})) is not None:
            group = shape.get("group_id")
            key = (f"shape {number}" if group is None else f"group {group}", composed(box.name))
            tally["joined"] += key in boxes
            boxes[key] = _joined(boxes[key], box) if key in boxes else box
    name, width, height = content.get("imagePath"), content.get("imageWidth", 0), content.get("imageHeight", 0)
    is_size = all(type(side) is int and 0 < side < _NO_SIDE for side in (width, height))
    hint = "; the JSON file embeds a copy of it, which labelme_export_json writes" if content.get("imageData") else ""
    stated = (width, height) if is_size else None
    return AnnotationFile(name if isinstance(name, str) else "", tuple(boxes.values()), stated, hint)


def _joined(one: ForeignBox, other: ForeignBox) -> ForeignBox:
    ends = (box.corners_xyxy[start : start + 2] for box in (one, other) for start in (0, 2))
    return replace(one, corners_xyxy=around(ends), may_leave=one.may_leave or other.may_leave)


def _box(gathered: Gathered, file: Path, number: int, shape: dict[str, Any]) -> ForeignBox | None:
    label, form = shape.get("label"), str(shape.get("shape_type") or "polygon")
    name = str(label).strip() if type(label) in (str, int) else ""  # some scripts write numbers
    where, kind = f"shape {number}{f' ({name})' if name else ''}", "malformed shape"
    if not name:
        gathered.error(file, where, f"label is {shorten(repr(label))}, expected text", "Name the class", kind)
    if form not in _LEAST_POINTS:
        found = f"shape_type is {form!r}, expected one that has an area: {', '.join(list(_LEAST_POINTS)[:4])}"
        gathered.error(file, where, found, "Draw a rectangle or polygon", "shape without area")
        return None
    points, least = _points(shape.get("points")), _LEAST_POINTS[form]
    if points is None:
        found = f"points of a {form}: expected {least} or more pairs of finite numbers"
        gathered.error(file, where, found, "Correct or remove the shape", kind)
        return None
    if len(points) < least:
        gathered.warn(file, where, f"a {form} of {len(points)} points has no area", *NO_AREA)
        return None
    if form == "circle":
        (x, y), radius = points[0], math.dist(*points[:2])
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    if form == "mask":  # whose corners are its first and last pixels
        _, _, right, bottom = around(points)
        points.append((right + 1, bottom + 1))
    return ForeignBox(name, around(points), where, may_leave=form == "circle") if name else None


def _points(values: Any) -> list[tuple[float, float]] | None:
    """Return pairs of finite numbers; None for anything else."""
    points = []
    for pair in values if isinstance(values, list) else [None]:
        x, y = map(finite, pair if isinstance(pair, list) and len(pair) == 2 else (None, None))
        if x is None or y is None:
            return None
        points.append((x, y))
    return points
