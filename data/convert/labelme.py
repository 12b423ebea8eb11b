"""labelme: a JSON file per image, with shapes of several kinds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
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

_LEAST_POINTS = {"rectangle": 2, "polygon": 3, "mask": 2, "circle": 2, "rotation": 4, "oriented_rectangle": 4}


def read_labelme(root: Path, *, class_names: Sequence[str] | None = None) -> Gathered:
    """All JSON files below `root` with their images. Polygons, circles and masks become the boxes around them; points
    and lines have no area and are errors.

    Args:
        root: The folder.
        class_names: In the order of their ids; None sorts the names that occur.

    Raises:
        UserError: `root` is no folder. Faults of the files are in the result.
    """
    gathered = Gathered(root, class_names=None if class_names is None else tuple(class_names))
    images = files_below(root, IMAGE_SUFFIXES)
    index = ImageIndex(images)
    files = files_below(root, [".json"])
    if not files:
        gathered.error(root, "folder", "there is no JSON file in it", "Give the labelme folder", "no annotations")
    for file in files:
        content = _load(gathered, file)
        if content is not None:
            _read_file(gathered, file, content, index)
    warn_left_out(gathered, images, "JSON file")
    return gathered


def _load(gathered: Gathered, file: Path) -> dict[str, Any] | None:
    kind = "malformed labelme file"
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        gathered.error(file, "file", f"cannot be read as JSON ({error})", "Save it again in labelme", kind)
        return None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        gathered.error(file, "file", "has no list `shapes`, so it is not labelme's", "Move it elsewhere", kind)
        return None
    return content


def _read_file(gathered: Gathered, file: Path, content: dict[str, Any], index: ImageIndex) -> None:
    boxes = [
        box
        for number, shape in enumerate(content["shapes"], start=1)
        if (box := _box(gathered, file, number, shape)) is not None
    ]
    named = content.get("imagePath")
    named = named if isinstance(named, str) else ""
    hint = "; the JSON file embeds a copy of it" if content.get("imageData") else ""
    image = _named_image(file, named) or index.require(gathered, named, file, "imagePath", hint)
    if image is None:
        return
    width, height = content.get("imageWidth"), content.get("imageHeight")
    stated = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    gathered.images.append(ForeignImage(image, file, stated, tuple(boxes)))


def _named_image(file: Path, named: str) -> Path | None:
    """`imagePath` starts from the JSON file; on Windows it is written with backslashes."""
    if not named or "\0" in named:
        return None
    path = file.parent / PurePosixPath(named.replace("\\", "/"))
    path = Path(*path.parts)
    folder = file.parent.resolve()
    if not path.is_file():
        return None
    resolved = path.resolve()
    return path if resolved.is_relative_to(folder) and ".." not in path.parts else None


def _box(gathered: Gathered, file: Path, number: int, shape: Any) -> ForeignBox | None:
    entry = shape if isinstance(shape, dict) else {}
    label, form, points = entry.get("label"), entry.get("shape_type") or "polygon", entry.get("points")
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
    columns, rows = zip(*corners, strict=True)
    return ForeignBox(str(label).strip(), (min(columns), min(rows), max(columns), max(rows)), where)


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
