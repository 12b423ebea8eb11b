"""Pascal VOC: an XML file per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree
from xml.parsers import expat

from data.convert.common import (
    ForeignBox,
    ForeignImage,
    Gathered,
    ImageIndex,
    files_below,
    warn_left_out,
)
from data.images import IMAGE_SUFFIXES

VocOrigin = Literal["auto", "0", "1"]
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class _Refused(ValueError):
    """XML that is not read."""


def read_voc(root: Path, *, class_names: Sequence[str] | None = None, origin: VocOrigin = "auto") -> Gathered:
    """All XML files below `root` with their images.

    Args:
        root: The folder; files may lie anywhere below it, `JPEGImages` and `Annotations` being usual.
        class_names: In the order of their ids; None sorts the names that occur.
        origin: `1`: pixels are counted from 1 and both ends belong to the box, as the VOC challenge has it; `0`:
            corners as they stand; `auto`: `0` if some box begins at 0, else `1`.

    Raises:
        UserError: `root` is no folder. Faults of the files are in the result.
    """
    gathered = Gathered(root, class_names=None if class_names is None else tuple(class_names))
    images = files_below(root, IMAGE_SUFFIXES)
    index = ImageIndex(images)
    files = files_below(root, [".xml"])
    if not files:
        gathered.error(root, "folder", "there is no XML file in it", "Give the folder of the VOC set", "no annotations")
    for file in files:
        tree = _parse(gathered, file)
        if tree is not None:
            _read_file(gathered, file, tree, index)
    warn_left_out(gathered, images, "XML file")
    _apply_origin(gathered, origin)
    _read_splits(gathered)
    return gathered


def parse_xml(data: bytes) -> ElementTree.Element:
    """Parse annotation XML, which never needs a document type: without one there are no entities, so neither a bomb
    of nested ones nor one that reads a file or the network.

    Raises:
        ValueError: It has a document type, or is malformed; the message says where.
    """

    def refuse(*_: object) -> None:
        raise _Refused("it has a document type (<!DOCTYPE>), which could hide an attack")

    scout = expat.ParserCreate()
    scout.StartDoctypeDeclHandler = refuse
    try:
        scout.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise ValueError(f"it is no valid XML ({error})") from error


def _parse(gathered: Gathered, file: Path) -> ElementTree.Element | None:
    fix, kind = "Export the file again", "malformed XML"
    try:
        tree = parse_xml(file.read_bytes())
    except (OSError, ValueError, LookupError) as error:
        fix = "Remove the document type" if isinstance(error, _Refused) else fix
        gathered.error(file, "file", str(error), fix, kind)
        return None
    if tree.tag != "annotation":
        gathered.error(file, "file", f"begins with <{tree.tag}>, expected <annotation>", "Move it elsewhere", kind)
        return None
    return tree


def _read_file(gathered: Gathered, file: Path, tree: ElementTree.Element, index: ImageIndex) -> None:
    named = (tree.findtext("filename") or "").strip()
    boxes = [box for number, entry in enumerate(tree.iter("object"), 1) if (box := _box(gathered, file, number, entry))]
    image = index.require(gathered, named, file, "filename")
    if image is None:
        return
    width, height = (_whole(tree.findtext(f"size/{side}")) for side in ("width", "height"))
    stated = (width, height) if width and height else None  # some tools write 0
    gathered.images.append(ForeignImage(image, file, stated, tuple(boxes)))


def _box(gathered: Gathered, file: Path, number: int, entry: ElementTree.Element) -> ForeignBox | None:
    name = (entry.findtext("name") or "").strip()
    where = f"object {number}{f' ({name})' if name else ''}"
    corners = [_number(entry.findtext(f"bndbox/{side}")) for side in _SIDES]
    kind = "malformed object"
    if not name:
        gathered.error(file, where, "it has no <name>", "Name the class", kind)
    missing = [side for side, value in zip(_SIDES, corners, strict=True) if value is None]
    if missing:
        found = f"{', '.join(missing)} of <bndbox>: expected finite numbers"
        gathered.error(file, where, found, "Correct or remove the object", kind)
    left, top, right, bottom = corners
    if not name or left is None or top is None or right is None or bottom is None:
        return None
    return ForeignBox(name, (left, top, right, bottom), where)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(text: str | None) -> int:
    value = _number(text)
    return 0 if value is None else int(value)


def _apply_origin(gathered: Gathered, origin: VocOrigin) -> None:
    """Both ends inclusive and counted from 1 become outer edges counted from 0."""
    starts = [min(box.corners_xyxy[:2]) for image in gathered.images for box in image.boxes]
    if origin == "0" or (origin == "auto" and min(starts, default=1) < 1):
        return
    for number, image in enumerate(gathered.images):
        boxes = tuple(
            ForeignBox(box.name, (left - 1, top - 1, right, bottom), box.where)
            for box in image.boxes
            for left, top, right, bottom in [box.corners_xyxy]
        )
        gathered.images[number] = ForeignImage(image.path, image.annotation, image.stated_wh, boxes)


def _read_splits(gathered: Gathered) -> None:
    """`ImageSets/Main/{train,val,test}.txt`, where they are."""
    by_stem = {image.annotation.stem: image.path for image in gathered.images if image.annotation is not None}
    for split in ("train", "val", "test"):
        for file in sorted(gathered.root.glob(f"**/ImageSets/Main/{split}.txt")):
            for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
                stem = line.split(maxsplit=1)[0] if line.strip() else ""
                if stem in by_stem and gathered.splits.setdefault(by_stem[stem], split) != split:
                    found = f"{stem} is in {gathered.splits[by_stem[stem]]}.txt too"
                    gathered.error(file, f"line {number}", found, "Keep it in one of them", "image in two splits")
                elif stem and stem not in by_stem:
                    fix = "Restore the file, or remove the line"
                    gathered.error(file, f"line {number}", f"there is no {stem}.xml", fix, "missing annotation")
