"""Reads a COCO annotation file entry by entry and notes every fault, whatever the file holds.

Nothing here raises on bad content: wrong types, NaN, huge numbers, missing keys all become a `Problem`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.classes import ClassMap
from data.problems import Problem

_OUTSIDE_TOLERANCE_PX = 0.5
"""Boxes may leave the image by this much: coordinates are rounded in many exports. They are clipped."""
_LARGEST_ID = 2**53
_KEYS = ("images", "annotations", "categories")
_MISSING: Any = object()


@dataclass(frozen=True)
class ImageRecord:
    """One image of a split."""

    id: int
    file_name: str
    """As in the annotation file."""
    path: Path
    width: int
    """Pixels, upright."""
    height: int
    rows: slice
    """Its boxes in the arrays of the split."""


@dataclass(frozen=True)
class BoxEntry:
    """One sound annotation."""

    annotation_id: int
    image_id: int
    label: int
    box_xywh: tuple[float, float, float, float]
    area: float
    crowd: bool


class AnnotationReader:
    """Reads one file and collects what is wrong with it."""

    def __init__(self, name: str, ann_file: Path, img_folder: Path) -> None:
        self.name = name
        self.ann_file = ann_file
        self.img_folder = img_folder
        self.problems: list[Problem] = []

    def error(self, where: str, found: str, fix: str, kind: str, *, skippable: bool = False) -> None:
        """Note an error; a skippable one can be left out of the result."""
        self.problems.append(Problem("error", str(self.ann_file), where, found, fix, kind, skippable))

    def warn(self, where: str, found: str, fix: str, kind: str) -> None:
        """Note a warning."""
        self.problems.append(Problem("warning", str(self.ann_file), where, found, fix, kind, skippable=True))

    def load(self) -> dict[str, Any]:
        """The three lists of the file; empty lists where something is amiss."""
        kind = "annotation file"
        raw: Any = {}
        try:
            raw = json.loads(self.ann_file.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            key = f"{self.name}_dataloader.dataset.ann_file"
            self.error("file", "does not exist", f"Correct the path, or set {key}", kind)
        except (OSError, UnicodeDecodeError) as error:
            self.error("file", f"cannot be read ({error})", "Expected a COCO JSON file in UTF-8", kind)
        except json.JSONDecodeError as error:
            found = f"is no valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
            self.error("file", found, "Export the annotations again", kind)
        except (ValueError, RecursionError) as error:
            self.error("file", f"is no usable JSON ({shorten(str(error))})", "Export the annotations again", kind)
        else:
            if not isinstance(raw, dict):
                found = f"holds a {_type_name(raw)}, expected an object with images, annotations, categories"
                self.error("file", found, "Give the ground truth's file, not one of results", kind)
                raw = {}
            else:
                self._require_lists(raw)
        return {key: raw[key] if isinstance(raw.get(key), list) else [] for key in _KEYS}

    def _require_lists(self, raw: dict[str, Any]) -> None:
        fix = "Expected a COCO detection file with the lists images, annotations, categories"
        for key in _KEYS:
            if key not in raw:
                found = f"is missing (the file has: {shorten(', '.join(map(str, raw))) or 'nothing'})"
                self.error(key, found, fix, "annotation file")
            elif not isinstance(raw[key], list):
                self.error(key, f"is a {_type_name(raw[key])}, expected a list", fix, "annotation file")
        if raw.get("images") == []:
            self.error("images", "the list is empty, there is nothing to read", "Add images", "empty data set")

    def categories(self, raw: Mapping[str, list[Any]]) -> dict[int, str]:
        """Category id -> name."""
        found: dict[int, str] = {}
        for index, entry in enumerate(raw["categories"]):
            where, kind = f"categories[{index}]", "malformed category"
            category_id, name = _integer(_get(entry, "id")), _get(entry, "name")
            if category_id is None or category_id < 0:
                self.error(where, f"id is {_show(_get(entry, 'id'))}, expected an integer >= 0", "Correct it", kind)
            elif not isinstance(name, str) or not name.strip():
                self.error(where, f"name is {_show(name)}, expected text", "Name the category", kind)
            elif category_id in found:
                text = f"id {category_id} is used twice ({found[category_id]!r} and {name!r})"
                self.error(where, text, "Give each category its own id", "repeated category")
            elif name.strip().casefold() in {other.strip().casefold() for other in found.values()}:
                text = f"the name {name!r} is used twice; results per class could not be told apart"
                self.error(where, text, "Merge the two categories or rename one", "repeated category")
            else:
                found[category_id] = name
        if not found and not self.problems:
            self.error("categories", "the list is empty", "List the classes with id and name", "malformed category")
        return found

    def compare_classes(self, categories: Mapping[int, str], classes: ClassMap) -> None:
        """This file's categories against those of the training split or the checkpoint."""
        known = dict(zip(classes.category_ids, classes.names, strict=True))
        for category_id, name in categories.items():
            if known and category_id not in known:
                self.error(
                    f"category {category_id} ({name})",
                    f"is unknown to the network, which knows {shorten(str(known))}",
                    "Use the training split's categories in every split",
                    "classes differ between splits",
                )
            elif known and known[category_id].strip().casefold() != name.strip().casefold():
                self.error(
                    f"category {category_id}",
                    f"is called {name!r} here and {known[category_id]!r} in the training split or checkpoint",
                    "Use the same ids and names in every split",
                    "classes differ between splits",
                )

    def images(self, raw: Mapping[str, list[Any]]) -> dict[int, ImageRecord]:
        """Sound images by id, in the file's order."""
        found: dict[int, ImageRecord] = {}
        names: dict[str, int] = {}
        for index, entry in enumerate(raw["images"]):
            image_id, name = _integer(_get(entry, "id")), _get(entry, "file_name")
            width, height = _integer(_get(entry, "width")), _integer(_get(entry, "height"))
            where = f"images[{index}]" if image_id is None else f"image {image_id}"
            fix, kind = "Correct the entry", "malformed image entry"
            if image_id is None:
                text = f"id is {_show(_get(entry, 'id'))}, expected an integer"
                self.error(where, text, fix, kind, skippable=True)
            elif not isinstance(name, str) or not name.strip() or "\0" in name:
                text = f"file_name is {_show(name)}, expected a path below the image folder"
                self.error(where, text, fix, kind, skippable=True)
            elif width is None or height is None or width < 1 or height < 1:
                text = f"width and height are {_show(_get(entry, 'width'))} and {_show(_get(entry, 'height'))}"
                text += ", expected positive integers"
                self.error(f"{where} ({name})", text, "Write the image's size in pixels", kind, skippable=True)
            elif image_id in found:
                text = f"the id is used twice (for {found[image_id].file_name} and {name})"
                fix = "Give each image its own id, and its annotations with it"
                self.error(where, text, fix, "repeated image id", skippable=True)
            elif name in names:
                text = f"the file is listed twice (as image {names[name]} and image {image_id})"
                fix = "Merge the two entries and their annotations"
                self.error(f"{where} ({name})", text, fix, "repeated image file", skippable=True)
            else:
                names[name] = image_id
                path = self.img_folder / name
                found[image_id] = ImageRecord(image_id, name, path, width, height, slice(0, 0))
        return found

    def annotations(
        self,
        raw: Mapping[str, list[Any]],
        images: Mapping[int, ImageRecord],
        categories: Mapping[int, str],
        classes: ClassMap,
    ) -> list[BoxEntry]:
        """Sound annotations in the file's order."""
        label_of = classes.label_of
        # An image that was refused has its own message; its boxes go with it silently.
        refused = {_integer(_get(entry, "id")) for entry in raw["images"]} - set(images)
        boxes: list[BoxEntry] = []
        seen: set[int] = set()
        num_without_area = 0
        for index, entry in enumerate(raw["annotations"]):
            annotation_id, image_id = _integer(_get(entry, "id")), _integer(_get(entry, "image_id"))
            where = f"annotations[{index}]" if annotation_id is None else f"annotation {annotation_id}"
            if image_id is not None and image_id in refused:
                continue
            image = None if image_id is None else images.get(image_id)
            if image is not None:
                where = f"{where} (image {image.id}, {image.file_name})"
            if annotation_id is None:
                text, kind = f"id is {_show(_get(entry, 'id'))}, expected an integer", "malformed annotation id"
                self.error(where, text, "Number the annotations", kind, skippable=True)
            elif annotation_id in seen:
                text = f"the id {annotation_id} is used by more than one annotation"
                fix, kind = "Number the annotations anew", "repeated annotation id"
                self.error(where, text, fix, kind, skippable=True)
            if annotation_id is not None:
                seen.add(annotation_id)
            sound = self._annotation(entry, where, image, categories, label_of)
            if sound is None or image is None:
                continue
            label, box_xywh, crowd = sound
            area = _number(_get(entry, "area"))
            if area is None or area <= 0:
                num_without_area += 1
                area = box_xywh[2] * box_xywh[3]
            number = -1 if annotation_id is None else annotation_id
            boxes.append(BoxEntry(number, image.id, label, box_xywh, area, crowd))
        if num_without_area:
            text = f"{num_without_area} of {len(raw['annotations'])} annotations have no usable area"
            self.warn("annotations", text, "Nothing to do: it is computed as width x height", "missing area")
        return boxes

    def _annotation(
        self,
        entry: Any,
        where: str,
        image: ImageRecord | None,
        categories: Mapping[int, str],
        label_of: Mapping[int, int],
    ) -> tuple[int, tuple[float, float, float, float], bool] | None:
        """Label, box and crowd flag, or None after noting every fault of the entry."""
        before = len(self.problems)
        if not isinstance(entry, dict):
            text = f"is a {_type_name(entry)}, expected an object"
            self.error(where, text, "Correct or remove it", "malformed annotation", skippable=True)
            return None
        if image is None:
            text = f"belongs to image {_show(entry.get('image_id', _MISSING))}, which is not in the file"
            fix = "Correct image_id, or remove the annotation"
            self.error(where, text, fix, "annotation without an image", skippable=True)
        category_id = _integer(_get(entry, "category_id"))
        if category_id is None or category_id not in categories:
            text = f"category_id is {_show(_get(entry, 'category_id'))}, "
            text += f"which is not among the categories {shorten(str(sorted(categories)))}"
            fix = "Correct the id, or add the category"
            self.error(where, text, fix, "unknown category", skippable=True)
        crowd = _crowd_flag(_get(entry, "iscrowd"))
        if crowd is None:
            text = f"iscrowd is {_show(entry['iscrowd'])}, expected 0 or 1"
            self.error(where, text, "Correct it", "malformed annotation", skippable=True)
        box_xywh = self._box(entry, where, image)
        label = None if category_id is None else label_of.get(category_id)
        if len(self.problems) > before or box_xywh is None or crowd is None or label is None:
            return None
        return label, box_xywh, crowd

    def _box(
        self, entry: Mapping[str, Any], where: str, image: ImageRecord | None
    ) -> tuple[float, float, float, float] | None:
        raw = entry.get("bbox", _MISSING)
        numbers = [_number(value) for value in raw] if isinstance(raw, list) and len(raw) == 4 else [None] * 4
        x, y, width, height = numbers
        if x is None or y is None or width is None or height is None:
            text = f"bbox is {_show(raw)}, expected four finite numbers [x, y, width, height] in pixels"
            self.error(where, text, "Correct or remove the annotation", "malformed box", skippable=True)
            return None
        if width <= 0 or height <= 0:
            text = f"bbox {_show(raw)} has no area (width {width:g}, height {height:g})"
            fix = "Expected [x, y, width, height]; correct or remove the annotation"
            self.error(where, text, fix, "box without area", skippable=True)
            return None
        if image is not None:
            right, bottom = x + width - image.width, y + height - image.height
            outside = max(-x, -y, right, bottom) > _OUTSIDE_TOLERANCE_PX
            if outside or x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
                text = f"bbox {_show(raw)} reaches outside the image of {image.width} x {image.height} pixels"
                fix = "Expected [x, y, width, height] in pixels, inside the image; correct the annotation"
                self.error(where, text, fix, "box outside the image", skippable=True)
                return None
        return x, y, width, height


def _get(entry: Any, key: str) -> Any:
    return entry.get(key, _MISSING) if isinstance(entry, dict) else _MISSING


def _number(value: Any) -> float | None:
    """A finite number, or None; True and "3" are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _integer(value: Any) -> int | None:
    """A whole number that fits int64, or None; 3.0 counts, True and "3" do not."""
    number = _number(value)
    if number is None or not number.is_integer() or abs(number) > _LARGEST_ID:
        return None
    return int(value)


def _crowd_flag(value: Any) -> bool | None:
    if value is _MISSING:
        return False
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def _type_name(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")


def _show(value: Any) -> str:
    return "missing" if value is _MISSING else shorten(repr(value))


def shorten(text: str, limit: int = 120) -> str:
    """The beginning of a long text."""
    return text if len(text) <= limit else text[: limit - 4] + " ..."
