"""YOLO: a text file per image, class index and box in fractions of the image a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data.convert.common import ForeignBox, ForeignImage, Gathered, files_below
from data.errors import UserError
from data.images import IMAGE_SUFFIXES, read_facts

_LISTS = ("classes.txt", "obj.names", "classes.names")
_NO_LABELS = frozenset((*_LISTS, "train.txt", "val.txt", "test.txt", "readme.txt", "README.txt"))


def read_yolo(root: Path, *, class_names: Sequence[str] | None = None) -> Gathered:
    """All images below `root` with their text files: beside them, or below `labels` where they are below `images`.

    An image without a text file has no objects. A line of more than six numbers is a polygon, and its bounds are the
    box; a sixth number is a score and is dropped.

    Args:
        root: The folder.
        class_names: By index; None reads `data.yaml` (its `names`), `classes.txt` or `obj.names` below `root`.

    Raises:
        UserError: `root` is no folder, or nothing names the classes. Faults of the files are in the result.
    """
    images = files_below(root, IMAGE_SUFFIXES)
    names = tuple(class_names) if class_names is not None else _find_names(root)
    gathered = Gathered(root, class_names=names)
    labels = {path for path in files_below(root, [".txt"]) if path.name not in _NO_LABELS}
    if not labels:
        gathered.error(
            root, "folder", "there is no label file (.txt) in it", "Give the YOLO set's folder", "no annotations"
        )
    owners: dict[Path, Path] = {}
    for image in images:
        file = next((path for path in _label_places(image, root) if path in labels), None)
        if file is not None and owners.setdefault(file, image) != image:
            found = f"stands for {owners[file].name} and for {image.name}"
            gathered.error(file, "file", found, "Rename one of the images and give each its file", "ambiguous image")
            continue
        boxes = [] if file is None else _read_file(gathered, file, image, names)
        gathered.images.append(ForeignImage(image, file, None, tuple(boxes)))
    for file in sorted(labels - set(owners)):
        fix = "Restore the image, or remove the label file"
        gathered.error(file, "file", f"there is no image {file.stem}.* for it", fix, "missing image")
    alone = sum(image.annotation is None for image in gathered.images)
    if alone and alone < len(gathered.images):
        found, fix = f"{alone} of {len(images)} images have no label file", "They are taken to be free of objects"
        gathered.warn(root, "images", found, fix, "images without labels")
    return gathered


def read_class_file(path: Path) -> tuple[str, ...]:
    """Names of a `data.yaml` (`names`: a list, or index -> name) or of a text file with one a line.

    Raises:
        UserError: It is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content: Any = yaml.safe_load(text) if path.suffix.lower() in (".yaml", ".yml") else text.splitlines()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a list of classes ({error}).") from error
    if isinstance(content, dict):
        content = content.get("names")
    if isinstance(content, dict) and sorted(content) == list(range(len(content))):
        content = [content[index] for index in range(len(content))]
    if not isinstance(content, list) or not content or any(isinstance(name, list | dict) for name in content):
        raise UserError(f"{path}: names no classes; expected `names` with a list, or index: name from 0 on.")
    names = [str(name).strip() for name in content]
    while names and not names[-1]:
        names.pop()
    if not all(names) or not names:
        raise UserError(f"{path}: class {names.index('') if names else 0} has no name; each line stands for an index.")
    return tuple(names)


def _find_names(root: Path) -> tuple[str, ...]:
    yamls = [path for path in sorted(root.glob("*.y*ml")) if _names_classes(path)]
    lists = [path for name in _LISTS for path in (root / name, root / "labels" / name) if path.is_file()]
    if not yamls and not lists:
        raise UserError(
            f"{root}: nothing names the classes; expected data.yaml with `names`, or classes.txt with one name a line. "
            "Give one with --classes FILE."
        )
    return read_class_file((yamls or lists)[0])


def _names_classes(path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return path.name == "data.yaml"  # whose fault is told when it is read
    return isinstance(content, dict) and "names" in content


def _label_places(image: Path, root: Path) -> list[Path]:
    beside = image.with_suffix(".txt")
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    places = []
    for position in reversed([k for k, part in enumerate(parts[:-1]) if part == "images"]):
        places.append(root.joinpath(*parts[:position], "labels", *parts[position + 1 :]))
    return [*places, beside]


def _read_file(gathered: Gathered, file: Path, image: Path, names: Sequence[str]) -> list[ForeignBox]:
    try:
        width, height = read_facts(image).upright_wh
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UserError:
        return []  # the image is reported with all others
    except (OSError, UnicodeDecodeError) as error:
        gathered.error(file, "file", f"cannot be read ({error})", "Export it again", "malformed label file")
        return []
    boxes = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            box = _read_line(gathered, file, number, line, names)
            if box is not None:
                label, (left, top, right, bottom) = box
                corners = (left * width, top * height, right * width, bottom * height)
                boxes.append(ForeignBox(names[label], corners, f"line {number}"))
    return boxes


def _read_line(
    gathered: Gathered, file: Path, number: int, line: str, names: Sequence[str]
) -> tuple[int, tuple[float, float, float, float]] | None:
    """Label and corners in fractions of the image."""
    where, fix, kind = f"line {number}", "Correct or remove the line", "malformed label"
    try:
        values = [float(text) for text in line.split()]
    except ValueError:
        values = []
    if not all(map(math.isfinite, values)) or len(values) < 5 or (len(values) > 6 and len(values) % 2 == 0):
        found = f"is {line.strip()[:80]!r}, expected: class index, then x centre, y centre, width, height"
        gathered.error(file, where, found, fix, kind)
        return None
    label = int(values[0])
    if label != values[0] or not 0 <= label < len(names):
        found = f"the class index is {line.split()[0]}, but there are {len(names)} classes (0 to {len(names) - 1})"
        gathered.error(file, where, found, "Correct it, or complete the list of classes", "unknown class index")
        return None
    shape = values[1:5] if len(values) <= 6 else values[1:]
    if any(not -0.01 <= value <= 1.01 for value in shape):
        gathered.error(file, where, f"{line.strip()[:80]!r} is not in fractions of the image (0 to 1)", fix, kind)
        return None
    if len(values) > 6:
        return label, (min(shape[::2]), min(shape[1::2]), max(shape[::2]), max(shape[1::2]))
    x, y, width, height = shape
    return label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
