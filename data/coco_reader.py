"""Reads a COCO annotation file entry by entry and notes every fault, whatever the file holds.

Nothing here raises on bad content: wrong types, NaN, huge numbers, missing keys all become a `Problem`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.classes import ClassMap, class_name
from data.image_files import ImageFolder, require_regular_file
from data.names import name_key
from data.problems import Problem, shorten

_OUTSIDE_TOLERANCE_PX = 0.5
"""Boxes may leave the image by this much: coordinates are rounded in many exports. They are clipped."""
_LARGEST_ID = 2**53
_KEYS = ("images", "annotations", "categories")
NO_AREA = ("It marks nothing and is left out", "box without area")
"""What happens to a box of no width or height, and the kind: a slip of the mouse is no reason to stop."""
_LEAST_NUMBERS = 6
"""Of three points."""
_COUNTS = re.compile(r"(?:[P-o]{0,6}[0-O])+")
"""Complete numbers of a compressed mask: C code would read on behind half a one."""
_MISSING: Any = object()


@dataclass(frozen=True)
class ImageRecord:
    """One image of a split."""

    id: int
    file_name: str
    """As in the annotation file."""
    path: Path
    """As the disk spells it."""
    width: int
    """Pixels, upright."""
    height: int
    rows: slice
    """Its boxes in the arrays of the split."""

    @property
    def where(self) -> str:
        """For messages."""
        return f"image {self.id} ({self.file_name})"


@dataclass(frozen=True)
class BoxColumns:
    """The sound annotations in the file's order: packed numbers, because a million objects would fill the memory."""

    annotation_ids: array[int] = field(default_factory=lambda: array("q"))
    places: array[int] = field(default_factory=lambda: array("q"))
    """Of each box's image among the images."""
    labels: array[int] = field(default_factory=lambda: array("q"))
    boxes_xywh: array[float] = field(default_factory=lambda: array("d"))
    """Four a box."""
    areas: array[float] = field(default_factory=lambda: array("d"))
    crowd: array[int] = field(default_factory=lambda: array("b"))
    pseudo: array[int] = field(default_factory=lambda: array("b"))


_Fault = tuple[str, str, str]
"""What was found, the fix, the kind."""


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
        """Return the three lists of the file; empty lists where something is amiss."""
        kind = "annotation file"
        raw: Any = {}
        try:
            require_regular_file(self.ann_file)
            raw = json.loads(self.ann_file.read_bytes(), object_hook=_box_for_outline)
        except FileNotFoundError:
            of_config = self.name in ("train", "val", "test")
            key = f", or set {self.name}_dataloader.dataset.ann_file" if of_config else ""
            self.error("file", "does not exist", f"Correct the path{key}", kind)
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
        """Return category id -> name."""
        found: dict[int, str] = {}
        keys: set[str] = set()
        for index, entry in enumerate(raw["categories"]):
            where, kind = f"categories[{index}]", "malformed category"
            category_id, name = _integer(_get(entry, "id")), _get(entry, "name")
            name = class_name(name) if isinstance(name, str) else name
            if category_id is None or category_id < 0:
                self.error(where, f"id is {_show(_get(entry, 'id'))}, expected an integer >= 0", "Correct it", kind)
            elif not isinstance(name, str) or not name.strip():
                self.error(where, f"name is {_show(name)}, expected text", "Name the category", kind)
            elif category_id in found:
                text = f"id {category_id} is used twice ({found[category_id]!r} and {name!r})"
                self.error(where, text, "Give each category its own id", "repeated category")
            elif name_key(name) in keys:
                text = f"the name {name!r} is used twice; results per class could not be told apart"
                self.error(where, text, "Merge the two categories or rename one", "repeated category")
            else:
                found[category_id] = name
                keys.add(name_key(name))
        if not found and not self.problems:
            self.error("categories", "the list is empty", "List the classes with id and name", "malformed category")
        self._warn_of_groups(raw["categories"], found)
        return found

    def _warn_of_groups(self, categories: list[Any], names: Mapping[int, str]) -> None:
        groups = {
            group
            for entry in categories
            if isinstance(group := _get(entry, "supercategory"), str) and group != _get(entry, "name")
        }
        for category_id, name in names.items():
            if name in groups:
                text = f"category {category_id} ({name}) is the supercategory of others, as Roboflow exports it"
                fix = "If it is no class of its own, remove it, or let `python -m data.convert coco` do so"
                self.warn("categories", text, fix, "grouping category")

    def compare_classes(self, categories: Mapping[int, str], classes: ClassMap) -> None:
        """Compare this file's categories with those of the training split or the checkpoint."""
        known, kind = dict(zip(classes.category_ids, classes.names, strict=True)), "classes differ between splits"
        for category_id, name in categories.items():
            if known and category_id not in known:
                found, fix = f"is unknown to the network, which knows {shorten(str(known))}", "Use the training split's"
                self.error(f"category {category_id} ({name})", found, f"{fix} categories in every split", kind)
            elif known and name_key(known[category_id]) != name_key(name):
                found = f"is called {name!r} here and {known[category_id]!r} in the training split or checkpoint"
                self.error(f"category {category_id}", found, "Use the same ids and names in every split", kind)

    def images(self, raw: Mapping[str, list[Any]]) -> dict[int, ImageRecord]:
        """Return the sound images by id, in the file's order."""
        found: dict[int, ImageRecord] = {}
        listed: dict[Path, int] = {}
        folder = ImageFolder(self.img_folder)
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
                self.error(f"{where} ({shorten(name)})", text, "Write the image's size in pixels", kind, skippable=True)
            elif image_id in found:
                text = f"the id is used twice (for {shorten(found[image_id].file_name)} and {shorten(name)})"
                fix = "Give each image its own id, and its annotations with it"
                self.error(where, text, fix, "repeated image id", skippable=True)
            elif (path := folder.path(name)) in listed:
                text = f"the file is listed twice (as image {listed[path]} and image {image_id})"
                fix = "Merge the two entries and their annotations"
                self.error(f"{where} ({shorten(name)})", text, fix, "repeated image file", skippable=True)
            else:
                listed[path] = image_id
                found[image_id] = ImageRecord(image_id, name, path, width, height, slice(0, 0))
        return found

    def annotations(
        self,
        raw: Mapping[str, list[Any]],
        images: Mapping[int, ImageRecord],
        categories: Mapping[int, str],
        classes: ClassMap,
    ) -> BoxColumns:
        """Return the sound annotations in the file's order; `raw` loses its annotations on the way, to make room."""
        label_of, places = classes.label_of, {image_id: place for place, image_id in enumerate(images)}
        # An image that was refused has its own message; its boxes go with it silently.
        refused = {_integer(_get(entry, "id")) for entry in raw["images"]} - set(images) - {None}
        boxes, seen = BoxColumns(), set[int]()
        total, num_without_area, turned = len(raw["annotations"]), 0, []
        raw["annotations"].reverse()
        for index in range(total):
            entry = raw["annotations"].pop()
            annotation_id, image_id = _integer(_get(entry, "id")), _integer(_get(entry, "image_id"))
            if image_id in refused:
                continue
            image = None if image_id is None else images.get(image_id)
            faults, id_faults = _faults(entry, image, categories), _id_faults(entry, annotation_id, seen)
            for fault in (*id_faults, *faults):
                self.error(_where(index, annotation_id, image), *fault, skippable=True)
            label = None if faults else label_of.get(int(entry["category_id"]))
            if label is None or image is None:
                continue
            box_xywh = entry["bbox"]
            if 0 in box_xywh[2:]:
                self.warn(_where(index, annotation_id, image), f"bbox {_show(box_xywh)} has no area", *NO_AREA)
                continue
            area = finite(entry.get("area"))
            if area is None or area <= 0:
                num_without_area += 1
                area = box_xywh[2] * box_xywh[3]
            if is_turned(entry):
                turned.append(annotation_id)
            boxes.annotation_ids.append(-1 if annotation_id is None else annotation_id)
            boxes.places.append(places[image.id])
            boxes.labels.append(label)
            boxes.boxes_xywh.extend(box_xywh)
            boxes.areas.append(area)
            boxes.crowd.append(bool(entry.get("iscrowd")))
            boxes.pseudo.append(entry.get("pseudo") in (True, 1))
        if num_without_area:
            text = f"{num_without_area} of {total} annotations have no usable area"
            self.warn("annotations", text, "Nothing to do: it is computed as width x height", "missing area")
        if turned:
            text = f"{len(turned)} of {total} boxes are turned (attributes.rotation of CVAT)"
            text += f", e.g. annotation {turned[0]}"
            fix = "The box before it was turned is used; draw upright boxes around the defects where it does not fit"
            self.warn("annotations", text, fix, "turned boxes")
        return boxes


@contextlib.contextmanager
def garbage_collector_paused() -> Iterator[None]:
    """Pause the collector inside the context: looking through a million entries took it a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _box_for_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines would often be most of what is in memory; they are used where a box is missing."""
    outline, box = entry.pop("segmentation", None), entry.get("bbox")
    is_missing = not box or (isinstance(box, list) and 0 in box[2:])
    if is_missing and outline and (around := box_around(outline)) is not None:
        entry["bbox"] = [*around]
    return entry


def box_around(outline: Any) -> tuple[float, float, float, float] | None:
    """Return x, y, width, height around all polygons, or a mask (RLE, compressed or not); None for anything else."""
    if isinstance(outline, dict):
        return _box_around_mask(outline.get("size"), outline.get("counts"))
    if not isinstance(outline, list):
        return None
    parts = outline if all(isinstance(part, list) for part in outline) else [outline]
    numbers = [number for part in parts for value in part if (number := finite(value)) is not None]
    are_pairs = len(numbers) == sum(map(len, parts)) and not any(len(part) % 2 for part in parts)
    if not are_pairs or len(numbers) < _LEAST_NUMBERS:
        return None
    left, top = min(numbers[::2]), min(numbers[1::2])
    return left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top


def _box_around_mask(size_hw: Any, counts: Any) -> tuple[float, float, float, float] | None:
    from pycocotools import mask  # here, or every script would load it

    is_size = isinstance(size_hw, list) and len(size_hw) == 2 and all(type(n) is int and 0 < n < 2**15 for n in size_hw)
    if not is_size or (isinstance(counts, str) and not _COUNTS.fullmatch(counts)):
        return None
    try:
        runs = {"size": size_hw, "counts": counts}
        x, y, width, height = mask.toBbox(runs if isinstance(counts, str) else mask.frPyObjects(runs, *size_hw))
    except (TypeError, ValueError, OverflowError):
        return None
    return float(x), float(y), float(width), float(height)


def _where(index: int, annotation_id: int | None, image: ImageRecord | None) -> str:
    of_image = "" if image is None else f" (image {image.id}, {shorten(image.file_name)})"
    return (f"annotations[{index}]" if annotation_id is None else f"annotation {annotation_id}") + of_image


def _id_faults(entry: Any, annotation_id: int | None, seen: set[int]) -> list[_Fault]:
    """Wrong in itself, but its box can be used."""
    if annotation_id is None:
        text = f"id is {_show(_get(entry, 'id'))}, expected an integer"
        return [(text, "Number the annotations", "malformed annotation id")]
    if annotation_id in seen:
        text = f"the id {annotation_id} is used by more than one annotation"
        return [(text, "Number the annotations anew", "repeated annotation id")]
    seen.add(annotation_id)
    return []


def _faults(entry: Any, image: ImageRecord | None, categories: Mapping[int, str]) -> list[_Fault]:
    """Everything that is wrong with an annotation but its id."""
    if not isinstance(entry, dict):
        return [(f"is a {_type_name(entry)}, expected an object", "Correct or remove it", "malformed annotation")]
    faults = []
    if image is None:
        text = f"belongs to image {_show(entry.get('image_id', _MISSING))}, which is not in the file"
        faults.append((text, "Correct image_id, or remove the annotation", "annotation without an image"))
    category_id = _integer(entry.get("category_id"))
    if category_id is None or category_id not in categories:
        text = f"category_id is {_show(_get(entry, 'category_id'))}, "
        text += f"which is not among the categories {shorten(str(sorted(categories)))}"
        faults.append((text, "Correct the id, or add the category", "unknown category"))
    crowd = entry.get("iscrowd", 0)
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
        faults.append((f"iscrowd is {_show(crowd)}, expected 0 or 1", "Correct it", "malformed annotation"))
    return [*faults, *_box_faults(entry.get("bbox", _MISSING), image)]


def _box_faults(raw: Any, image: ImageRecord | None) -> list[_Fault]:
    numbers = [finite(value) for value in raw] if isinstance(raw, list) and len(raw) == 4 else [None] * 4
    x, y, width, height = numbers
    if x is None or y is None or width is None or height is None:
        text = f"bbox is {_show(raw)}, expected four finite numbers [x, y, width, height] in pixels"
        return [(text, "Correct or remove the annotation", "malformed box")]
    if width < 0 or height < 0:
        text = f"bbox {_show(raw)} has a negative side (width {width:g}, height {height:g})"
        return [(text, "Expected [x, y, width, height]; correct or remove the annotation", "malformed box")]
    if image is not None and width and height:
        right, bottom = x + width - image.width, y + height - image.height
        outside = max(-x, -y, right, bottom) > _OUTSIDE_TOLERANCE_PX
        if outside or x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
            text = f"bbox {_show(raw)} reaches outside the image of {image.width} x {image.height} pixels"
            fix = "Expected [x, y, width, height] in pixels, inside the image; correct the annotation"
            return [(text, fix, "box outside the image")]
    return []


def is_turned(entry: Mapping[str, Any]) -> bool:
    """Tell whether CVAT says that a box is to be turned."""
    attributes = entry.get("attributes")
    return isinstance(attributes, dict) and bool((finite(attributes.get("rotation")) or 0) % 360)


def _get(entry: Any, key: str) -> Any:
    return entry.get(key, _MISSING) if isinstance(entry, dict) else _MISSING


def finite(value: Any) -> float | None:
    """Return a finite number as a float, or None; True and "3" are none, nor is one of hundreds of digits."""
    kind = type(value)
    if kind is not float and kind is not int:
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _integer(value: Any) -> int | None:
    """A whole number that fits int64, or None; 3.0 counts, True and "3" do not."""
    number = finite(value)
    if number is None or not number.is_integer() or abs(number) > _LARGEST_ID:
        return None
    return int(value)


def _type_name(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    return names.get(type(value), "number")


def _show(value: Any) -> str:
    return "missing" if value is _MISSING else shorten(repr(value))
