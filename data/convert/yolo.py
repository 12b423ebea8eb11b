"""YOLO: a text file per image, class index and box in fractions of the image a line."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from data.convert.common import (
    Corners,
    ForeignBox,
    ForeignImage,
    Gathered,
    around,
    files_below,
    is_in_image_folder,
    is_mask,
    sides,
    split_of,
)
from data.convert.yolo_config import find_config, find_names, is_class_list, read_splits
from data.errors import UserError
from data.images import IMAGE_SUFFIXES, read_facts
from data.names import name_key

_LINE = "class index, then x centre, y centre, width, height"
_LEAST_VALUES = 5
_FARTHEST_OUTSIDE = 0.5
"""Numbers that leave 0..1 by more than this are no fractions of the image."""
_Note = tuple[str, str]
_SCORE = ("lines have a sixth number", "It is taken as a score and dropped")
_POLYGON = ("lines are polygons", "The boxes around them are taken")
_KEYPOINTS = ("lines hold keypoints", "They are dropped and the boxes kept")


def read_yolo(root: Path, *, class_names: Sequence[str] | None = None) -> Gathered:
    """Gather all images below `root` with their text files.

    These lie in the same folders with `labels` in place of `images`, or beside the images, or in a folder of their own.

    An image without a text file has no objects; it counts if `data.yaml` lists it, other images of its folder have
    text files, or the folder is one for images. A line of more than six numbers is a polygon, and its bounds are the
    box, unless `data.yaml` has `kpt_shape`; a sixth number is a score and is dropped.

    Args:
        root: The folder.
        class_names: By index; None reads `data.yaml` (its `names`), `classes.txt` or `obj.names` below `root`.

    Raises:
        UserError: `root` is no folder, or nothing or too much names the classes. Faults of the files are in the result.
    """
    images, texts = files_below(root, IMAGE_SUFFIXES), files_below(root, [".txt"])
    gathered = Gathered(root)
    config = find_config(gathered, required=class_names is None)
    names = tuple(class_names) if class_names is not None else find_names(root, config)
    gathered.class_names = names
    labels = [path for path in texts if not is_class_list(path) and not name_key(path.name).startswith("readme")]
    if labels and not images:
        found, fix = f"it has {len(labels)} text files, but no image", "Export once more, with the images"
        gathered.error(root, "folder", found, fix, "missing image")
        return gathered
    owners, left_over = _match(gathered, images, labels)
    if not owners:
        fix = "Give the YOLO set's folder"
        gathered.error(root, "folder", "there is no label file (.txt) for any image", fix, "no annotations")
    read_splits(gathered, config, images, _lists(gathered, left_over))
    notes = Counter[_Note]()
    for image in _of_the_set(gathered, images, owners):
        file = owners.get(image)
        boxes = _boxes(gathered, file, image, names, config.num_keypoint_values, notes) if file else ()
        gathered.images.append(ForeignImage(image, file, None, tuple(boxes)))
    for (found, fix), count in notes.items():
        gathered.warn(root, "labels", f"{count} {found}", fix, found)
    return gathered


def _match(gathered: Gathered, images: Sequence[Path], labels: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """Return image -> its label file, and the files that are of no image."""
    places: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for file in labels:
        stem = unquote(file.stem)
        bare = Path(stem).stem if Path(stem).suffix.lower() in IMAGE_SUFFIXES else stem  # of a.jpg.txt
        for name in {name_key(file.stem), name_key(stem), name_key(bare)}:
            places[_place(file, gathered.root, name)].append(file)
    owners: dict[Path, Path] = {}
    image_of: dict[Path, Path] = {}
    for image in images:
        files = places.get(_place(image, gathered.root, name_key(image.stem)), [])
        kind = "ambiguous image"
        if any(image_of.setdefault(file, image) != image for file in files):
            found = f"stands for {image_of[files[0]].name} and for {image.name}"
            gathered.error(files[0], "file", found, "Rename one of the images and give each its file", kind)
        elif len(files) > 1 and files[0].read_bytes() != files[1].read_bytes():
            found = f"is for {image}, and so is {files[1]}, which differs"
            gathered.error(files[0], "file", found, "Remove one of the two", kind)
        elif files:
            owners[image] = files[0]
    used = {path.parent for pair in image_of.items() for path in pair}
    apart = _match_apart(images, [file for file in labels if file not in image_of], used)
    owned = {*image_of, *apart.values()}
    return owners | apart, [file for file in labels if file not in owned]


def _match_apart(images: Iterable[Path], labels: Iterable[Path], used: Container[Path]) -> dict[Path, Path]:
    """Match whole folders of label files that lie elsewhere, such as LabelImg's, by names that are unique."""
    images_of: dict[str, list[Path]] = defaultdict(list)
    files_of: dict[str, list[Path]] = defaultdict(list)
    for paths, by_stem in ((images, images_of), (labels, files_of)):
        for path in paths:
            if path.parent not in used:
                by_stem[name_key(path.stem)].append(path)
    single = {stem: files[0] for stem, files in files_of.items() if len(files) == 1}
    return {images_of[stem][0]: file for stem, file in single.items() if len(images_of[stem]) == 1}


def _place(path: Path, root: Path, name: str) -> tuple[str, ...]:
    """Return what is the same for an image and its label file."""
    return (*sides(path.relative_to(root)), name)


def _lists(gathered: Gathered, files: Iterable[Path]) -> list[Path]:
    """Choose those called like a split among text files of no image. What could be labels is an error."""
    lists, unknown = [], []
    for file in files:
        text = file.read_bytes().decode("utf-8-sig", errors="replace")
        first = next((line for line in text.splitlines() if line.strip()), "")
        if _values(first):
            fix = "Restore the image, or remove the label file"
            gathered.error(file, "file", f"there is no image {file.stem}.* for it", fix, "missing image")
        elif split_of(file.stem):
            lists.append(file)
        else:
            unknown.append(file)
    if unknown:
        found = f"{len(unknown)} text files are of no image and hold no boxes, e.g. {unknown[0].name}"
        gathered.warn(gathered.root, "folder", found, "They are passed over", "other text files")
    return lists


def _of_the_set(gathered: Gathered, images: Sequence[Path], owners: Mapping[Path, Path]) -> list[Path]:
    """Leave out pictures that only lie about, such as masks or plots of a training."""
    labelled = {image.parent for image in owners}

    def belongs(path: Path) -> bool:
        place = path.relative_to(gathered.root)
        return path in gathered.splits or path.parent in labelled or (is_in_image_folder(place) and not is_mask(place))

    kept = [path for path in images if belongs(path)]
    without = "images without labels"
    alone, outside = set(kept) - set(owners), set(images) - set(kept)
    if alone and owners:
        found = f"{len(alone)} of {len(kept)} images have no label file, e.g. {min(alone)}"
        gathered.warn(gathered.root, "images", found, "They are taken to be free of objects", without)
    if outside and owners:
        found = f"{len(outside)} more without a label file lie apart from those that have one, e.g. {min(outside)}"
        fix = "They are left out; an empty text file for each makes them images without objects"
        gathered.warn(gathered.root, "images", found, fix, without)
    return kept


class _Fault(Exception):
    """A line that is no box: what was found, the kind of fault, and what to do."""


def _boxes(
    gathered: Gathered, file: Path, image: Path, names: Sequence[str], num_keypoint_values: int, notes: Counter[_Note]
) -> Iterator[ForeignBox]:
    """Read the boxes of a text file; faults go to `gathered`."""
    try:
        width, height = read_facts(image).upright_wh
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UserError:
        return  # the image is reported with all others
    except (OSError, UnicodeDecodeError) as error:
        gathered.error(file, "file", f"cannot be read ({error})", "Export it again", "malformed label file")
        return
    filled = {f"line {number}": line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    if filled and not any(map(_values, filled.values())):
        found = f"no line is YOLO's ({_LINE}); the first is {next(iter(filled.values()))[:80]!r}"
        gathered.error(file, "file", found, "Export as YOLO, or use the converter of this format", "not YOLO")
        return
    for where, line in filled.items():
        try:
            label, (left, top, right, bottom), note = _box(line, len(names), num_keypoint_values)
        except _Fault as fault:
            found, kind, fix = fault.args
            gathered.error(file, where, found, fix, kind)
            continue
        notes.update([note] if note else [])
        yield ForeignBox(names[label], (left * width, top * height, right * width, bottom * height), where)


def _box(line: str, num_classes: int, num_keypoint_values: int) -> tuple[int, Corners, _Note | None]:
    """Return label and corners in fractions of the image, and what was dropped.

    Raises:
        _Fault: The line is no box.
    """
    values, fix = _values(line), "Correct or remove the line"
    has_keypoints = bool(num_keypoint_values) and len(values) == _LEAST_VALUES + num_keypoint_values
    is_polygon = len(values) > 6 and not has_keypoints
    if not values or (is_polygon and len(values) % 2 == 0):
        raise _Fault(f"is {line[:80]!r}, expected: {_LINE}", "malformed label", fix)
    label = int(values[0])
    if label != values[0] or not 0 <= label < num_classes:
        found = f"the class index is {line.split()[0]}, but there are {num_classes} classes (0 to {num_classes - 1})"
        raise _Fault(found, "unknown class index", "Correct it, or complete the list of classes")
    shape = values[1:] if is_polygon else values[1:_LEAST_VALUES]
    if any(not -_FARTHEST_OUTSIDE <= value <= 1 + _FARTHEST_OUTSIDE for value in shape):
        raise _Fault(f"{line[:80]!r} is not in fractions of the image (0 to 1)", "malformed label", fix)
    if is_polygon:
        return label, around(zip(shape[::2], shape[1::2], strict=True)), _POLYGON
    x, y, width, height = shape
    note = _KEYPOINTS if has_keypoints else _SCORE if len(values) > _LEAST_VALUES else None
    return label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), note


def _values(line: str) -> list[float]:
    """Return the numbers of a line; none if it holds anything else or too few."""
    try:
        values = [float(text) for text in line.split()]
    except ValueError:
        return []
    return values if len(values) >= _LEAST_VALUES and all(map(math.isfinite, values)) else []
