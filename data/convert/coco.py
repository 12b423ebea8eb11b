"""COCO as tools export it, to COCO as it should be: what can be repaired is, and every repair is counted and said."""

from __future__ import annotations

import json
import math
import posixpath
import re
import reprlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeGuard
from urllib.parse import unquote

from data.coco_reader import box_around, finite, is_turned
from data.convert.common import (
    Corners,
    ForeignBox,
    ForeignImage,
    Gathered,
    ImageIndex,
    files_below,
    split_of,
    split_of_path,
    warn_left_out,
)
from data.errors import UserError
from data.images import IMAGE_SUFFIXES, read_facts
from data.names import composed, name_key

_LISTS = ("images", "annotations", "categories")
_SLACK_PX = 1.0
"""Boxes whose pixels are counted from another corner leave the image by one."""
_LEAST_FRACTIONS = 2
"""A single box within 0..1 may be a pixel."""
_NO_GROUP = ("", "none", None)
"""Supercategories that say nothing."""
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,18}(\.0{0,18})?")
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d{0,18})?")
_Key = int | str
_Form = Literal["xywh", "xyxy", "fractions"]


@dataclass(frozen=True)
class _Shape:
    """An annotation whose box may still be written in any form."""

    path: Path
    """Of its image."""
    name: str
    numbers: Corners
    """In the file's form; of outlines: x, y, width, height around them."""
    is_bbox: bool
    """Else made from an outline."""
    area: float | None
    crowd: bool
    where: str


def read_coco(source: Path, *, class_names: Sequence[str] | None = None) -> Gathered:
    """Gather all COCO files below a folder with the images they name, wherever these lie in it.

    `source` may be one file in the folder or in its `annotations`. Without `class_names`, in the order of their ids,
    classes are the categories in the order of theirs.

    Raises:
        UserError: `source` does not exist. Faults of the files are in the result.
    """
    is_file = source.is_file()
    inner = is_file and name_key(source.parent.name).startswith("annotation")
    root = source.parent.parent if inner else source.parent if is_file else source
    gathered = Gathered(root, slack_px=_SLACK_PX)
    images = files_below(root, IMAGE_SUFFIXES)
    files = [source] if is_file else files_below(root, [".json"])
    index = ImageIndex(images, of_other_machines=True)
    readers = [_CocoFile(gathered, file, content, index) for file in files if (content := _load(gathered, file))]
    if not readers:
        found = "there is no COCO file (JSON with the lists images, annotations, categories) in it"
        gathered.error(root, "folder", found, "Give the folder of the COCO set", "no annotations")
    file_of: dict[Path, Path] = {}
    for reader in readers:
        split = split_of(reader.file.stem) or split_of_path(reader.file.relative_to(root))
        for image in reader.read():
            other = file_of.setdefault(image.path, reader.file)
            if other != reader.file:
                fix = "Keep it in one of the files, or give one file as SRC"
                gathered.error(reader.file, "images", f"{image.path} is in {other} too", fix, "image in two files")
                continue
            gathered.images.append(image)
            if split is not None:
                gathered.splits[image.path] = split
    folder_splits = {split_of_path(image.path.relative_to(root)) for image in gathered.images} - {None}
    if len(readers) == 1 and len(folder_splits) > 1:
        gathered.splits.clear()  # one file for all, and the folders tell
    gathered.splits_by = "the annotation files"
    gathered.class_names = class_names or _class_names(gathered, readers)
    warn_left_out(gathered, images, "entry in the COCO file")
    return gathered


def _load(gathered: Gathered, file: Path) -> dict[str, list[Any]] | None:
    try:
        data = file.read_bytes()
        try:
            content = json.loads(data)  # UTF-8, 16 and 32, with a mark at the beginning or without
        except UnicodeDecodeError:
            content = json.loads(data.decode("cp1252"))
            gathered.notes.append(f"repaired: {file}: read as Windows text (cp1252), as it is not UTF-8")
    except (OSError, ValueError, RecursionError) as error:
        found, fix = f"cannot be read as JSON ({str(error)[:120]})", "Export the annotations again"
        gathered.error(file, "file", found, fix, "annotation file")
        return None
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in _LISTS):
        return content
    fix = "It is passed over; a COCO file has the lists images, annotations, categories"
    gathered.warn(file, "file", "is no COCO file of objects", fix, "other JSON files")
    return None


def _class_names(gathered: Gathered, readers: Sequence[_CocoFile]) -> tuple[str, ...]:
    """Names in the order of their ids, without those that only group others (Roboflow has one with the id 0)."""
    names = list(dict.fromkeys(name for reader in readers for name in reader.categories.values()))
    used = {box.name for image in gathered.images for box in image.boxes}
    groups = {name for reader in readers for name in reader.groups} - used
    if groups:
        shown = ", ".join(sorted(groups))
        gathered.notes.append(f"repaired: the category {shown} only groups others and has no boxes: left out")
    if any(reader.categories != readers[0].categories for reader in readers):
        gathered.notes.append("repaired: ids of categories differ between the files: classes go by their names")
    return tuple(name for name in names if name not in groups)


class _CocoFile:
    """Reads one file; faults go to `gathered`, repairs to its notes."""

    def __init__(self, gathered: Gathered, file: Path, content: dict[str, list[Any]], index: ImageIndex) -> None:
        self.file = file
        self.categories: dict[_Key, str] = {}
        self.groups: set[str] = set()
        self._gathered, self._content, self._index = gathered, content, index
        self._error = partial(gathered.error, file)
        self._repairs: Counter[str] = Counter()
        self._num_turned = 0
        self._paths: dict[_Key, Path | None] = {}

    def read(self) -> list[ForeignImage]:
        """Return the images with their boxes."""
        self._read_categories()
        sizes = self._read_images()
        shapes = [shape for n, entry in enumerate(self._content["annotations"]) if (shape := self._shape(n, entry))]
        form = _form([shape for shape in shapes if shape.is_bbox])
        sizes_wh = {path: stated or _size_of(path) for path, stated in sizes.items()} if form == "fractions" else {}
        boxes: dict[Path, list[ForeignBox]] = defaultdict(list)
        for shape in shapes:
            boxes[shape.path].append(self._box(shape, form if shape.is_bbox else "xywh", sizes_wh))
        for repair, count in self._repairs.items():
            self._gathered.notes.append(f"repaired: {self.file}: {count} {repair}")
        if self._num_turned:
            found = f"{self._num_turned} boxes are turned (attributes.rotation of CVAT)"
            fix = "The unrotated boxes are taken, which do not bound the objects: draw these as polygons"
            self._gathered.warn(self.file, "annotations", found, fix, "rotated boxes")
        return [ForeignImage(path, self.file, stated, tuple(boxes[path])) for path, stated in sizes.items()]

    def _read_categories(self) -> None:
        """Sort them by id; those of one name are one."""
        entries: dict[_Key, dict[str, Any]] = {}
        for number, entry in enumerate(self._content["categories"]):
            where = f"categories[{number}]"
            key = self._key(entry, "id", where)
            if key is None:
                continue
            name = entry.get("name")
            if isinstance(name, int) and not isinstance(name, bool):
                name = str(name)
                self._repairs["names of categories were numbers: now text"] += 1
            if not _is_text(name):
                self._expected(where, "name", name, "text", "Name the category", "malformed category")
            elif key in entries:
                self._error(where, f"the id {key} is used twice", "Give each category its own id", "repeated id")
            else:
                entries[key] = {**entry, "name": composed(name.strip())}
        for key in sorted(entries, key=lambda key: (isinstance(key, str), key)):
            if entries[key]["name"] in self.categories.values():
                self._repairs["categories had the name of another: merged with it"] += 1
            self.categories[key] = entries[key]["name"]
        grouped = {entry.get("supercategory") for entry in entries.values() if _is_text(entry.get("supercategory"))}
        for entry in entries.values():
            if entry["name"] in grouped.difference(_NO_GROUP) and entry.get("supercategory", "") in _NO_GROUP:
                self.groups.add(entry["name"])

    def _read_images(self) -> dict[Path, tuple[int, int] | None]:
        """Return path -> the size that the file states."""
        sizes: dict[Path, tuple[int, int] | None] = {}
        names: dict[Path, str] = {}
        for number, entry in enumerate(self._content["images"]):
            key = self._key(entry, "id", f"images[{number}]")
            if key is None:
                continue
            name, where, path = entry.get("file_name"), f"image {key}", None
            if _is_text(name):
                path = self._index.require(self._gathered, name, self.file, where)
            else:
                self._expected(where, "file_name", name, "a path", "Name the image", "malformed image entry")
            if self._paths.setdefault(key, path) != path:
                found = f"the id is used twice, the second time for {name}"
                self._error(where, found, "Give each image its own id", "repeated id")
            elif path in names and names[path] != _plain(name):
                found = f"{names[path]} and {name} both lead to {path}"
                self._error(where, found, "Restore the other image", "missing image")
            elif path in names:
                self._repairs["images were listed once more: merged with the first entry"] += 1
            elif path is not None:
                names[path], sizes[path] = _plain(name), self._size(entry)
                if not f"/{path.as_posix()}".endswith(f"/{name}"):
                    why = "(folder, \\, %20, accents, case)"
                    self._repairs[f"file names did not lead to the image {why}: it was found"] += 1
        return sizes

    def _size(self, entry: dict[str, Any]) -> tuple[int, int] | None:
        width, height = (self._number(entry.get(side)) or 0 for side in ("width", "height"))
        if width < 1 or height < 1 or width % 1 or height % 1:
            self._repairs["images had no width and height: taken from the image"] += 1
            return None
        return int(width), int(height)

    def _shape(self, number: int, entry: Any) -> _Shape | None:
        where = f"annotations[{number}]"
        image = self._key(entry, "image_id", where)
        category = None if image is None else self._key(entry, "category_id", where)
        if image is None or category is None:
            return None
        where = f"annotation {reprlib.repr(entry.get('id', number))}"
        if image not in self._paths:
            fix = "Correct image_id, or remove the annotation"
            self._error(where, f"the image {image} is not in the file", fix, "annotation without an image")
        if category not in self.categories:
            fix = "Correct category_id, or add the category"
            self._error(where, f"the category {category} is not in the file", fix, "unknown category")
        crowd, numbers = self._crowd(entry, where), self._numbers(entry.get("bbox"))
        is_bbox = numbers is not None and 0 not in numbers[2:]
        if not is_bbox and (bounds := box_around(entry.get("segmentation"))) is not None:
            numbers = bounds
            self._repairs["annotations had no box: made from their outlines"] += 1
        if numbers is None:
            expected, fix = "x, y, width, height; and there is no outline", "Correct or remove the annotation"
            self._expected(where, "bbox", entry.get("bbox"), expected, fix, "malformed box")
        path, name = self._paths.get(image), self.categories.get(category)
        if path is None or name is None or crowd is None or numbers is None:
            return None
        self._num_turned += is_turned(entry)
        return _Shape(path, name, numbers, is_bbox, finite(entry.get("area")), crowd, where)

    def _box(self, shape: _Shape, form: _Form, sizes_wh: Mapping[Path, tuple[int, int]]) -> ForeignBox:
        x, y, width, height = shape.numbers
        if form == "fractions":
            across, down = sizes_wh[shape.path]
            x, y, width, height = x * across, y * down, width * across, height * down
            self._repairs["boxes were in fractions of the image: now pixels"] += 1
        elif form == "xyxy":
            width, height = width - x, height - y
            self._repairs["boxes were two corners (their area shows it): now x, y, width, height"] += 1
        if width < 0 or height < 0:
            x, y, width, height = min(x, x + width), min(y, y + height), abs(width), abs(height)
            self._repairs["boxes had a negative width or height: turned round"] += 1
        least, most = 1.0 if form == "fractions" else 0.0, width * height
        area = shape.area if shape.area and least < shape.area <= most else None
        return ForeignBox(shape.name, (x, y, x + width, y + height), shape.where, crowd=shape.crowd, area_px=area)

    def _crowd(self, entry: dict[str, Any], where: str) -> bool | None:
        value = entry.get("iscrowd", 0)
        if value is None or (isinstance(value, str) and value.strip() in ("0", "1")):
            self._repairs["iscrowd were null or text: now 0 or 1"] += 1
            return value is not None and value.strip() == "1"
        if value in (0, 1):
            return bool(value)
        self._expected(where, "iscrowd", value, "0 or 1", "Correct it", "malformed crowd flag")
        return None

    def _numbers(self, values: Any) -> Corners | None:
        if not isinstance(values, list) or len(values) != 4:
            return None
        x, y, width, height = map(self._number, values)
        return None if x is None or y is None or width is None or height is None else (x, y, width, height)

    def _number(self, value: Any) -> float | None:
        """As `finite`, text included."""
        if not isinstance(value, str) or not _NUMBER.fullmatch(value.strip()):
            return finite(value)
        self._repairs["numbers were text: now numbers"] += 1
        return float(value)

    def _key(self, entry: Any, field: str, where: str) -> _Key | None:
        """Return an id: a whole number, or text where tools give names."""
        if not isinstance(entry, dict):
            found = f"is {reprlib.repr(entry)}, expected an object"
            self._error(where, found, "Correct or remove it", "malformed entry")
            return None
        value = entry.get(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        number = finite(value)
        if not _is_text(value) and (number is None or number % 1):
            self._expected(where, field, value, "a whole number", "Correct it", "malformed id")
            return None
        self._repairs[f"values of {field} were text or had decimals: now whole numbers"] += 1
        if number is not None:
            return int(number)
        text = str(value).strip()
        return int(text.split(".")[0]) if _WHOLE_NUMBER.fullmatch(text) else text

    def _expected(self, where: str, key: str, value: Any, expected: str, fix: str, kind: str) -> None:
        self._error(where, f"{key} is {reprlib.repr(value)}, expected {expected}", fix, kind)


def _form(shapes: Sequence[_Shape]) -> _Form:
    """Tell how the file's boxes are written: fractions do not reach over 1, and for corners the areas tell."""
    if len(shapes) >= _LEAST_FRACTIONS and all(min(s.numbers) >= -0.01 and max(s.numbers) <= 1.01 for s in shapes):
        return "fractions"
    areas = [(shape.area, *shape.numbers) for shape in shapes if shape.area]
    by_corners = [math.isclose(area, (c - a) * (d - b), rel_tol=0.01) and c > a for area, a, b, c, d in areas]
    by_sides = [math.isclose(area, c * d, rel_tol=0.01) for area, a, b, c, d in areas]
    return "xyxy" if len(areas) == len(shapes) and all(by_corners) and not all(by_sides) else "xywh"


def _plain(name: str) -> str:
    """Return one text for the spellings of a path within the set."""
    return posixpath.normpath(name_key(unquote(name)).replace("\\", "/"))


def _size_of(path: Path) -> tuple[int, int]:
    try:
        return read_facts(path).upright_wh
    except UserError:
        return 1, 1  # the image is reported with all others


def _is_text(value: Any) -> TypeGuard[str]:
    """Tell whether it is text that can be a name."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\0\ud800-\udfff]", value)
