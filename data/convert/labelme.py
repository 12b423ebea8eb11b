"""labelme: a JSON file per image, with shapes of several kinds."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.convert.common import (
    ForeignBox,
    ForeignImage,
    Gathered,
    ImageIndex,
    files_below,
    warn_left_out,
)
from data.images import IMAGE_SUFFIXES
from data.names import composed

_LEAST_POINTS = {"rectangle": 2, "polygon": 3, "mask": 2, "circle": 2, "rotation": 4, "oriented_rectangle": 4}
_NO_CLASSES = frozenset(("__ignore__", "_background_"))
"""Labels that labelme's own converters leave out."""
_NO_SIDE = 10**9
"""No image has as many pixels in a row."""
_SLACK_PX = 2
"""Points are set by hand."""


def read_labelme(root: Path, *, class_names: Sequence[str] | None = None) -> Gathered:
    """All JSON files below `root` with their images. Polygons, circles and masks become the boxes around them,
    shapes of one label and `group_id` the box around all of them; points and lines have no area and are errors. Labels
    `__ignore__` and `_background_` are left out.

    Args:
        root: The folder.
        class_names: In the order of their ids; None sorts the names that occur.

    Raises:
        UserError: `root` is no folder. Faults of the files are in the result.
    """
    names = None if class_names is None else tuple(name for name in class_names if name not in _NO_CLASSES)
    gathered = Gathered(root, class_names=names, slack_px=_SLACK_PX)
    images = files_below(root, IMAGE_SUFFIXES)
    index = ImageIndex(images)
    files = files_below(root, [".json"])
    if not files:
        fix = "Give the labelme folder; XML files of LabelMe 3, as CVAT writes them, are read by `voc`"
        gathered.error(root, "folder", "there is no JSON file in it", fix, "no annotations")
    tally = Counter[str]()
    for file in files:
        content = _load(gathered, file)
        if content is not None:
            _read_file(gathered, file, content, index, tally)
    _report(gathered, tally)
    warn_left_out(gathered, images, "JSON file")
    return gathered


def _load(gathered: Gathered, file: Path) -> dict[str, Any] | None:
    kind = "malformed labelme file"
    try:
        content = json.loads(file.read_bytes())  # in whichever form of Unicode
    except (OSError, ValueError, RecursionError) as error:
        gathered.error(file, "file", f"cannot be read as JSON ({error})", "Save it again in labelme, or as UTF-8", kind)
        return None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        gathered.error(file, "file", "has no list `shapes`, so it is not labelme's", "Move it elsewhere", kind)
        return None
    return content


def _read_file(gathered: Gathered, file: Path, content: dict[str, Any], index: ImageIndex, tally: Counter[str]) -> None:
    boxes: dict[tuple[str, str], ForeignBox] = {}
    for number, shape in enumerate(content["shapes"], start=1):
        if isinstance(shape, dict) and str(shape.get("label")).strip() in _NO_CLASSES:
            tally["left out"] += 1
        elif (box := _box(gathered, file, number, shape)) is not None:
            group = shape.get("group_id")
            key = (f"shape {number}" if group is None else f"group {group}", composed(box.name))
            tally["joined"] += key in boxes
            boxes[key] = _around(boxes[key], box) if key in boxes else box
    named = content.get("imagePath")
    hint = "; the JSON file embeds a copy of it, which labelme_export_json writes" if content.get("imageData") else ""
    image = index.require(gathered, named if isinstance(named, str) else "", file, "imagePath", hint)
    if image is None:
        return
    width, height = content.get("imageWidth", 0), content.get("imageHeight", 0)
    stated = (width, height) if all(type(side) is int and 0 < side < _NO_SIDE for side in (width, height)) else None
    gathered.images.append(ForeignImage(image, file, stated, tuple(boxes.values())))


def _around(one: ForeignBox, other: ForeignBox) -> ForeignBox:
    (left, top, right, bottom), (x1, y1, x2, y2) = one.corners_xyxy, other.corners_xyxy
    corners = (min(left, x1), min(top, y1), max(right, x2), max(bottom, y2))
    return replace(one, corners_xyxy=corners, may_leave=one.may_leave or other.may_leave)


def _report(gathered: Gathered, tally: Counter[str]) -> None:
    if tally["joined"]:
        gathered.notes.append(f"group_id: {tally['joined']} shapes are joined to another of their group and label")
    if tally["left out"]:
        found = f"{tally['left out']} are labelled {' or '.join(sorted(_NO_CLASSES))}"
        gathered.warn(gathered.root, "shapes", found, "They are no class and left out", "shapes left out")


def _box(gathered: Gathered, file: Path, number: int, shape: Any) -> ForeignBox | None:
    entry = shape if isinstance(shape, dict) else {}
    label, form, points = entry.get("label"), str(entry.get("shape_type") or "polygon"), entry.get("points")
    named = isinstance(label, str) and bool(label.strip())
    where = f"shape {number}{f' ({label})' if named else ''}"
    fix, kind = "Correct or remove the shape", "malformed shape"
    if not named:
        gathered.error(file, where, "it has no label", "Name the class", kind)
    if form not in _LEAST_POINTS:
        found = f"is a {form}, which has no area; expected one of {', '.join(list(_LEAST_POINTS)[:4])}"
        gathered.error(file, where, found, "Draw a rectangle or polygon", "shape without area")
        return None
    corners = _points(points)
    least = _LEAST_POINTS[form]
    if corners is None or len(corners) < least:
        found = f"points of a {form}: expected {least} or more pairs of finite numbers"
        gathered.error(file, where, found, fix, kind)
        return None
    if not named:
        return None
    if form == "circle":
        (x, y), edge = corners[0], corners[1]
        radius = math.dist((x, y), edge)
        corners = [(x - radius, y - radius), (x + radius, y + radius)]
    if form == "mask":  # whose corners are its first and last pixels
        corners.append((max(x for x, _ in corners) + 1, max(y for _, y in corners) + 1))
    columns, rows = zip(*corners, strict=True)
    box = (min(columns), min(rows), max(columns), max(rows))
    return ForeignBox(str(label).strip(), box, where, may_leave=form == "circle")


def _points(points: Any) -> list[tuple[float, float]] | None:
    if not isinstance(points, list):
        return None
    pairs = []
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            return None
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in point):
            return None
        try:
            x, y = float(point[0]), float(point[1])
        except OverflowError:  # a whole number of hundreds of digits
            return None
        if not (math.isfinite(x) and math.isfinite(y)):
            return None
        pairs.append((x, y))
    return pairs
