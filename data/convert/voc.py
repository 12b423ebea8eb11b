"""Pascal VOC: an XML file per image."""

from __future__ import annotations

import codecs
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree
from xml.parsers import expat

from data.convert.common import (
    AnnotationFile,
    Corners,
    ForeignBox,
    Gathered,
    ImageIndex,
    around,
    files_below,
    read_file_per_image,
    split_of,
)

VocOrigin = Literal["auto", "0", "1"]
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SLACK_PX = 1
"""Corners are whole pixels."""
_FEW_FRACTIONS = 0.1
"""Up to this part of the boxes, corners with fractions are accidents of a set of whole pixels, as VOC 2012 has some."""
_UNKNOWN_TO_EXPAT = re.compile(
    rb"""\s*<\?xml[^>]*encoding=["'](utf-16|gb2312|gbk|gb18030|cp936|big5|shift_jis|cp932|euc-jp|euc-kr|cp949)["'][^>]*>""",
    re.IGNORECASE,
)
_MARKS = {
    "difficult": ("are marked difficult", "They are taken as all others; --skip-difficult leaves them out"),
    "deleted": ("are marked deleted", "They are left out"),
    "rotated": ("have a rotation", "The box is taken unrotated; draw an upright one where that does not fit"),
    "turned": ("are turned boxes (robndbox)", "The upright box around each is taken"),
}


@dataclass(frozen=True)
class _VocBox(ForeignBox):
    """One object."""

    is_whole: bool = True
    """Whether its corners are whole pixels, so that the origin matters."""


class _Refused(ValueError):
    """XML that is not read."""


def read_voc(
    root: Path,
    *,
    class_names: Sequence[str] | None = None,
    origin: VocOrigin = "auto",
    skip_difficult: bool = False,
) -> Gathered:
    """Gather all XML files below `root`, wherever they lie, with their images.

    Rotated boxes (roLabelImg) and polygons (LabelMe 3, as CVAT writes it) become the boxes around them.

    Without `class_names`, in the order of their ids, those that occur are sorted. `origin` 1: pixels are counted from 1
    and both ends belong to the box, as the VOC challenge has it; 0: corners as they stand; auto: 0 if some box of any
    subset begins at 0 or corners have fractions, else 1. Corners with fractions are never shifted.

    Raises:
        UserError: `root` is no folder. Faults of the files are in the result.
    """
    gathered, tally = Gathered(root, class_names=class_names, slack_px=_SLACK_PX), Counter[str]()
    read = partial(_read_file, gathered, tally, skip_difficult)
    read_file_per_image(gathered, ".xml", "Give the folder of the VOC set", "filename", read)
    for mark, (found, fix) in _MARKS.items():
        if tally[mark]:
            fix = "They are left out" if skip_difficult and mark == "difficult" else fix
            text = f"{tally[mark]} of {tally['object']} {found}"
            gathered.warn(root, "objects", text, fix, f"objects that {found}")
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

    declaration = _UNKNOWN_TO_EXPAT.match(data)
    if declaration:
        name = declaration[1].decode().lower()
        # A declaration that can be read is not in UTF-16; GB 18030 holds all of the older sets.
        codec = "utf-8" if name == "utf-16" else "gb18030" if name.startswith(("gb", "cp936")) else name
        data = data[declaration.end() :].decode(codec).encode()
    scout = expat.ParserCreate()
    scout.StartDoctypeDeclHandler = refuse
    try:
        scout.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise ValueError(f"it is no valid XML ({error})") from error


def _read_file(gathered: Gathered, tally: Counter[str], skip_difficult: bool, file: Path) -> AnnotationFile | None:
    kind = "malformed XML"
    try:
        tree = parse_xml(file.read_bytes())
    except (OSError, ValueError, LookupError) as error:
        fix = "Remove the document type" if isinstance(error, _Refused) else "Export the file again, in UTF-8"
        gathered.error(file, "file", str(error), fix, kind)
        return None
    if tree.tag != "annotation":
        fix = "Export it as Pascal VOC or COCO" if tree.tag == "annotations" else "Move it elsewhere"  # CVAT's own
        gathered.error(file, "file", f"begins with <{tree.tag}>, expected <annotation>", fix, kind)
        return None
    boxes = []
    for number, entry in enumerate(tree.iter("object"), 1):
        marks = [tag for tag in ("difficult", "deleted") if _text(entry, tag).casefold() in ("1", "true", "yes")]
        tally.update(["object", *marks])
        if "deleted" in marks or (skip_difficult and marks):
            continue
        tally["rotated"] += bool(_number(entry, "attributes/attribute[name='rotation']/value"))
        tally["turned"] += entry.find("robndbox") is not None
        if box := _box(gathered, file, number, entry):
            boxes.append(box)
    width, height = (int(_number(tree, f"size/{side}") or 0) for side in ("width", "height"))
    stated = (width, height) if width and height else None  # some tools write 0
    return AnnotationFile(_text(tree, "filename") or _text(tree, "path"), tuple(boxes), stated)


def _box(gathered: Gathered, file: Path, number: int, entry: ElementTree.Element) -> _VocBox | None:
    name, kind = _text(entry, "name"), "malformed object"
    where = f"object {number}{f' ({name})' if name else ''}"
    if not name:
        gathered.error(file, where, "it has no <name>", "Name the class", kind)
    bounds = None if entry.find("bndbox") is not None else _bounds(entry)
    corners = bounds or tuple(_number(entry, f"bndbox/{side}") for side in _SIDES)
    missing = [side for side, value in zip(_SIDES, corners, strict=True) if value is None]
    if missing:
        found = f"{', '.join(missing)} of <bndbox>: expected finite numbers"
        gathered.error(file, where, found, "Correct or remove the object", kind)
    left, top, right, bottom = corners
    if not name or left is None or top is None or right is None or bottom is None:
        return None
    is_whole = bounds is None and all(value.is_integer() for value in (left, top, right, bottom))
    is_turned = bounds is not None and entry.find("robndbox") is not None
    return _VocBox(name, (left, top, right, bottom), where, may_leave=is_turned, is_whole=is_whole)


def _bounds(entry: ElementTree.Element) -> Corners | None:
    """Return the bounds of a turned box or a polygon; None for an object with neither."""
    x, y, width, height, angle = (_number(entry, f"robndbox/{key}") for key in ("cx", "cy", "w", "h", "angle"))
    if x is not None and y is not None and width is not None and height is not None and angle is not None:
        cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
        half_width, half_height = (width * cosine + height * sine) / 2, (width * sine + height * cosine) / 2
        return x - half_width, y - half_height, x + half_width, y + half_height
    points = [(_number(point, "x"), _number(point, "y")) for point in entry.iterfind("polygon/pt")]
    sound = [(x, y) for x, y in points if x is not None and y is not None]
    return around(sound) if points and len(sound) == len(points) else None


def _text(entry: ElementTree.Element, path: str) -> str:
    return (entry.findtext(path) or "").strip()


def _number(entry: ElementTree.Element, path: str) -> float | None:
    try:
        value = float(entry.findtext(path) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _apply_origin(gathered: Gathered, origin: VocOrigin) -> None:
    """Turn both ends inclusive and counted from 1 into outer edges counted from 0."""
    boxes = [box for image in gathered.images for box in image.boxes if isinstance(box, _VocBox)]
    fractions = sum(not box.is_whole for box in boxes)
    if origin != "auto":
        why = "as given"
    elif any(min(box.corners_xyxy[:2]) < 1 for box in boxes):
        origin, why = "0", "a box begins at 0: corners stand as they are"
    elif fractions > _FEW_FRACTIONS * len(boxes):
        origin, why = "0", "corners have fractions: they stand as they are"
    else:
        origin, why = "1", "no box begins at 0: left and top lose 1; --origin 0 keeps them, as LabelImg means them"
    kept = f"; {fractions} boxes with fractions stand as they are" if fractions and origin == "1" else ""
    gathered.notes.append(f"pixel origin: {origin} ({why}{kept}). Convert all subsets of a set with the same one")
    for number, image in enumerate(gathered.images if origin == "1" else ()):
        moved = []
        for box in image.boxes:
            left, top, right, bottom = box.corners_xyxy
            is_whole = isinstance(box, _VocBox) and box.is_whole
            moved.append(replace(box, corners_xyxy=(left - 1, top - 1, right, bottom)) if is_whole else box)
        gathered.images[number] = replace(image, boxes=tuple(moved))


def _read_splits(gathered: Gathered) -> None:
    """Take `ImageSets/Main/{train,val,test}.txt`, where they are; train and val in one list are train."""
    owners = {image.annotation: image.path for image in gathered.images if image.annotation is not None}
    index = ImageIndex(owners)
    texts = files_below(gathered.root, [".txt"])
    files = [file for file in texts if file.parent.name.casefold() in ("imagesets", "main")]
    splits = {file: split_of(file.stem) for file in files}
    if not {"train", "val"}.intersection(splits.values()):
        splits |= {file: "train" for file in files if file.stem.casefold() == "trainval"}
    for file, split in ((file, split) for file, split in splits.items() if split):
        for number, name in enumerate(map(str.strip, _lines(gathered, file)), start=1):
            error = partial(gathered.error, file, f"line {number}")
            flagged = re.fullmatch(r"(.+?)\s+-?[01]", name)
            found = index.find(name.strip('"'), file) or (index.find(flagged[1].strip('"'), file) if flagged else [])
            if len(found) == 1 and gathered.splits.setdefault(owners[found[0]], split) != split:
                text = f"{name} is in {gathered.splits[owners[found[0]]]}.txt too"
                error(text, "Keep it in one of them", "image in two splits")
            elif len(found) > 1:
                text = f"{name} may be {', '.join(map(str, found[:3]))}"
                error(text, "Write it with its folder", "ambiguous image")
            elif name and not found:
                error(f"there is no {name}.xml", "Restore the file, or remove the line", "missing annotation")


def _lines(gathered: Gathered, file: Path) -> list[str]:
    try:
        data = file.read_bytes()
    except OSError as error:
        gathered.error(file, "file", f"cannot be read ({error.strerror})", "Allow reading it", "unreadable list")
        return []
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell's > writes it
    return data.decode("utf-16" if is_wide else "utf-8-sig", errors="replace").splitlines()
