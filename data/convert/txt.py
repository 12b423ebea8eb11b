"""Text files, one for each image and a box a line: what their lines hold is a format such as `x1 y1 x2 y2 class`.

YOLO's are of this kind, too, and found the same way.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote

from data.convert.common import (
    Corners,
    ForeignBox,
    ForeignImage,
    Gathered,
    files_below,
    is_in_image_folder,
    is_mask,
    sides,
    split_of,
)
from data.convert.yolo_config import YoloConfig, find_names, is_class_list, read_splits
from data.errors import UserError
from data.images import IMAGE_SUFFIXES, read_facts
from data.names import name_key

Units = Literal["pixels", "fractions"]
_UNITS: tuple[Units, ...] = ("pixels", "fractions")
FARTHEST_OUTSIDE = 0.5
"""Numbers that leave 0..1 by more than this are no fractions of the image."""
Note = tuple[str, str]
ReadLine = Callable[[str, tuple[int, int]], tuple[str, Corners, Note | None]]
"""Line and size of the image -> class, corners in pixels, what was dropped; raises `Fault`."""
IsBox = Callable[[str], bool]
_CORNERS: Mapping[tuple[str, ...], Callable[[float, float, float, float], Corners]] = {
    ("x1", "y1", "x2", "y2"): lambda x1, y1, x2, y2: (x1, y1, x2, y2),
    ("x", "y", "w", "h"): lambda x, y, w, h: (x, y, x + w, y + h),
    ("cx", "cy", "w", "h"): lambda x, y, w, h: (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
}
_OTHER_FIELDS = ("class", "score", "-")
_SEPARATORS = (None, ",", ";", "\t")
"""None: blanks and tabs."""
MALFORMED = "malformed label"
_NO_NUMBERS = "line without numbers"
_SCORE = ("lines have a score", "It is dropped")
_HEADER = ("files begin with a line of names", "It is passed over")
_LIKELY = [(units, box) for units in _UNITS for box in sorted(_CORNERS, reverse=units == "pixels")]
_SAMPLED_FILES = 200
_SLACK_PX = 1


class Fault(Exception):
    """A line that is no box: what was found, the kind of fault, and what to do."""


class TextFiles(NamedTuple):
    """Images and text files below a folder."""

    images: Sequence[Path]
    owners: Mapping[Path, Path]
    """Image -> its file."""
    left_over: Sequence[Path]
    """Files of no image."""


@dataclass(frozen=True)
class LineFormat:
    """What a line holds."""

    fields: tuple[str, ...]
    separator: str | None
    units: Units

    @classmethod
    def of(cls, text: str, units: Units) -> LineFormat:
        """Read it as people write it: the fields with what stands between them.

        Raises:
            UserError: It holds unknown fields, too many or too few.
        """
        text = text.replace("\\t", "\t").strip(" ")
        separator = next((one for one in _SEPARATORS[1:] if one and one in text), None)
        fields = tuple(field.strip() for field in text.split(separator))
        named = [field for field in fields if field != "-"]
        boxes = [corners for corners in _CORNERS if set(corners) == set(named) - set(_OTHER_FIELDS)]
        if len(named) != len(set(named)) or not boxes:
            shown = " | ".join(map(" ".join, _CORNERS))
            raise UserError(
                f'--format "{text}": expected the fields of a line in their order, each once: {shown}, with class, '
                'score (dropped) or - (passed over), as in "x1 y1 x2 y2 class" or "class,-,cx,cy,w,h".'
            )
        return cls(fields, separator, units)

    def __str__(self) -> str:
        return (" " if self.separator is None else self.separator.replace("\t", "\\t")).join(self.fields)

    def read(self, line: str, size_wh: tuple[int, int]) -> tuple[str, Corners, Note | None]:
        """Return class ("0" without such a field), corners in pixels, and what was dropped.

        Raises:
            Fault: The line is not of this format.
        """
        cells, kind, fix = [cell.strip() for cell in line.split(self.separator)], MALFORMED, "Correct the line"
        if len(cells) == len(self.fields) + 1 and not cells[-1]:
            cells.pop()
        if len(cells) != len(self.fields):
            found = f"is {line[:80]!r}, of {len(cells)} fields; expected {len(self.fields)}: {self}"
            fix = f"{fix}, or write --format as the lines are, with what stands between their fields"
            raise Fault(found, kind, fix)
        of = dict(zip(self.fields, cells, strict=True))
        names = next(names for names in _CORNERS if set(names) <= set(of))
        values = [_number(of[name], self.separator) for name in names]
        if None in values or not of.get("class", "x"):
            kind = _NO_NUMBERS if not any(value is not None for value in values) else kind
            raise Fault(f"is {line[:80]!r}, expected: {self}", kind, fix)
        numbers = [value for value in values if value is not None]
        if self.units == "fractions" and any(not -FARTHEST_OUTSIDE <= one <= 1 + FARTHEST_OUTSIDE for one in numbers):
            raise Fault(f"{line[:80]!r} is not in fractions of the image (0 to 1)", kind, f"{fix}, or --units")
        scale_x, scale_y = size_wh if self.units == "fractions" else (1, 1)
        left, top, right, bottom = _CORNERS[names](*numbers)
        corners = (left * scale_x, top * scale_y, right * scale_x, bottom * scale_y)
        return of.get("class", "0"), corners, _SCORE if "score" in of else None

    def is_box(self, line: str) -> bool:
        """Tell whether a line is of this format, in these units."""
        try:
            corners = self.read(line, (1, 1))[1]
        except Fault:
            return False
        return self.units == "fractions" or max(corners) > 1 + FARTHEST_OUTSIDE


def _number(text: str, separator: str | None) -> float | None:
    """Read a number, with a decimal comma where the comma does not part fields."""
    try:
        value = float(text if separator == "," else text.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_txt(
    root: Path,
    *,
    class_names: Sequence[str] | None = None,
    format: str,
    units: Units = "pixels",
    first_class: int = 0,
    image_ending: str = "",
) -> Gathered:
    """Gather all images below `root` with their text files, found as YOLO's are.

    Args:
        class_names: In the order of their ids; None reads `classes.txt` below `root`, or sorts the names that occur.
        format: See `LineFormat.of`.
        units: Of the numbers; corners are taken as they stand, the image's first pixel beginning at 0.
        first_class: Number of the first class, where classes are numbers.
        image_ending: What images' names have behind their files' (DeepPCB: `_test`); other images are left out.

    Raises:
        UserError: `root` is no folder, the format is none, or lists of classes differ.
    """
    form, gathered = LineFormat.of(format, units), Gathered(root)
    files = find_text_files(gathered, image_ending)
    expected = f'"{form}" in {units}'
    if tell_other_format(gathered, files, form.is_box, expected):
        return gathered
    if class_names is None and any(map(is_class_list, files_below(root, [".txt", ".names"]))):
        class_names = find_names(root, YoloConfig())
    if "class" not in form.fields and (class_names is None or len(class_names) != 1):
        raise UserError(f'--format "{form}": without the field class, name the one class with --classes FILE.')
    add_images(gathered, files, YoloConfig(), form.read, form.is_box, expected)
    gathered.notes.append(f"lines: {expected}")
    gathered.class_names = class_names
    _name_classes(gathered, first_class)
    return gathered


def _name_classes(gathered: Gathered, first: int) -> None:
    """Give boxes the names that their numbers stand for."""
    counts = Counter(box.name for image in gathered.images for box in image.boxes)
    names, root = gathered.class_names, gathered.root
    if not counts or not all(map(str.isdecimal, counts)) or (names and set(counts) <= set(names)):
        return
    if names is None:
        found, fix = "are numbers, which become their names", "--classes FILE gives them names, one a line"
        gathered.warn(root, "classes", found, fix, "class numbers")
        return
    labels = {str(number): name for number, name in enumerate(names, start=first)}
    for number in sorted(set(counts) - set(labels), key=int):
        found = f"number {number} ({counts[number]} boxes) is none of {first} to {first + len(names) - 1}"
        fix = "Correct it, complete the list of classes, or say with --first-class from what number they count"
        gathered.error(root, "classes", found, fix, "unknown class index")
    if str(first) not in counts:
        found, fix = f"number {first} does not occur", "If they count from another number, say it with --first-class"
        gathered.warn(root, "classes", found, fix, "class numbers")
    for index, image in enumerate(gathered.images):
        boxes = tuple(replace(box, name=labels.get(box.name, names[0])) for box in image.boxes)
        gathered.images[index] = replace(image, boxes=boxes)


# --- files -----------------------------------------------------------------------------------------------------------


def find_text_files(gathered: Gathered, ending: str = "") -> TextFiles:
    """Find images and their text files; these lie in the same folders with `labels` in place of `images`, or beside
    the images, or in a folder of their own."""
    root = gathered.root
    images = [path for path in files_below(root, IMAGE_SUFFIXES) if path.stem.endswith(ending)]
    texts = files_below(root, [".txt"])
    labels = [path for path in texts if not is_class_list(path) and not name_key(path.name).startswith("readme")]
    if labels and not images:
        found, fix = f"it has {len(labels)} text files, but no image", "Export once more, with the images"
        gathered.error(root, "folder", found, fix, "missing image")
        return TextFiles((), {}, ())
    owners, left_over = _match(gathered, {path: path.stem.removesuffix(ending) for path in images}, labels)
    if not owners:
        fix = "Give the folder of images and text files"
        gathered.error(root, "folder", "there is no label file (.txt) for any image", fix, "no annotations")
    return TextFiles(images, owners, left_over)


def tell_other_format(gathered: Gathered, files: TextFiles, is_box: IsBox, expected: str) -> bool:
    """Note one fault if no line is as expected, but all are of another format, with the command that reads it."""
    samples = []
    for image, file in list(files.owners.items())[:_SAMPLED_FILES]:
        try:
            lines, size_wh = list(_lines(file).values()), read_facts(image).upright_wh
        except (UserError, OSError, UnicodeDecodeError):
            continue  # told with all others
        if any(map(is_box, lines)):
            return False
        samples += [(line, size_wh) for line in lines if re.search(r"(?<![\w.])[-+.]?\d", line)]
    fitting = _fitting(samples)
    if not fitting:
        return False
    likely, *others = fitting
    looks = f'looks like "{likely}" in {likely.units}'
    if others:
        also = " or ".join(f'"{one}" in {one.units}' for one in others[:3])
        looks += f" ({also} would fit as well: look at some boxes with check_data.py --show)"
    options = f'--format "{likely}"' + (" --units fractions" if likely.units == "fractions" else "")
    if "class" not in likely.fields:
        options += " --classes FILE, a text file with the name of the one class"
    fix = f'Type: python -m data.convert txt "{gathered.root.as_posix()}" DST {options}'
    found = f"no line is {expected}; the first is {samples[0][0][:80]!r}, which {looks}"
    gathered.error(gathered.root, "labels", found, fix, "another format")
    return True


def _fitting(samples: Sequence[tuple[str, tuple[int, int]]]) -> list[LineFormat]:
    """Return formats in which every line is a box inside its image; those that need the fewest classes."""
    for separator in _SEPARATORS:
        counts = {len(line.split(separator)) for line, _ in samples}
        width = counts.pop() if len(counts) == 1 else 0
        found: dict[LineFormat, int] = {}
        for units, box in _LIKELY:
            for start in (("class", *box), (*box, "class"), ("class", "-", *box), (*box, "-", "class"), box):
                more = ["-"] * (width - len(start)) if "class" in start else []
                form = LineFormat((*start, *more), separator, units)
                if len(form.fields) == width and (classes := _classes_if_inside(form, samples)):
                    found[form] = len(classes)
        if found:
            return [form for form, number in found.items() if number == min(found.values())]
    return []


def _classes_if_inside(form: LineFormat, samples: Sequence[tuple[str, tuple[int, int]]]) -> set[str]:
    classes = set()
    for line, (width, height) in samples:
        try:
            name, (left, top, right, bottom), _ = form.read(line, (width, height))
        except Fault:
            return set()
        inside = -_SLACK_PX <= left < right <= width + _SLACK_PX and -_SLACK_PX <= top < bottom <= height + _SLACK_PX
        if not inside or re.fullmatch(r"[-+]?\d*\.\d*|-\d+|\d{5,}", name):
            return set()
        classes.add(name)
    return classes if any(map(form.is_box, (line for line, _ in samples))) else set()


def _match(
    gathered: Gathered, stems: Mapping[Path, str], labels: Sequence[Path]
) -> tuple[dict[Path, Path], list[Path]]:
    """Return image -> its label file, and the files that are of no image."""
    places: dict[tuple[str, ...], list[Path]] = defaultdict(list)  # the folders and the name that both have

    def place(path: Path, name: str) -> tuple[str, ...]:
        return (*sides(path.relative_to(gathered.root)), name)

    for file in labels:
        stem = unquote(file.stem)
        bare = Path(stem).stem if Path(stem).suffix.lower() in IMAGE_SUFFIXES else stem  # of a.jpg.txt
        for name in {name_key(file.stem), name_key(stem), name_key(bare)}:
            places[place(file, name)].append(file)
    owners: dict[Path, Path] = {}
    image_of: dict[Path, Path] = {}
    for image, stem in stems.items():
        files, kind = places.get(place(image, name_key(stem)), []), "ambiguous image"
        if any(image_of.setdefault(file, image) != image for file in files):
            found = f"stands for {image_of[files[0]].name} and for {image.name}"
            gathered.error(files[0], "file", found, "Rename one of the images and give each its file", kind)
        elif len(files) > 1 and files[0].read_bytes() != files[1].read_bytes():
            found = f"is for {image}, and so is {files[1]}, which differs"
            gathered.error(files[0], "file", found, "Remove one of the two", kind)
        elif files:
            owners[image] = files[0]
    used = {path.parent for pair in image_of.items() for path in pair}
    apart = _match_apart(stems, [file for file in labels if file not in image_of], used)
    owned = {*image_of, *apart.values()}
    return owners | apart, [file for file in labels if file not in owned]


def _match_apart(stems: Mapping[Path, str], labels: Iterable[Path], used: Container[Path]) -> dict[Path, Path]:
    """Match whole folders of label files that lie elsewhere, such as LabelImg's, by names that are unique."""
    images_of: dict[str, list[Path]] = defaultdict(list)
    files_of: dict[str, list[Path]] = defaultdict(list)
    for pairs, by_stem in ((stems.items(), images_of), (((file, file.stem) for file in labels), files_of)):
        for path, stem in pairs:
            if path.parent not in used:
                by_stem[name_key(stem)].append(path)
    single = {stem: files[0] for stem, files in files_of.items() if len(files) == 1}
    return {images_of[stem][0]: file for stem, file in single.items() if len(images_of[stem]) == 1}


# --- images and boxes ------------------------------------------------------------------------------------------------


def add_images(
    gathered: Gathered, files: TextFiles, config: YoloConfig, read: ReadLine, is_box: IsBox, expected: str
) -> None:
    """Gather the images with their boxes and splits.

    An image without a text file has no objects; it counts if the config lists it, other images of its folder have text
    files, or the folder is one for images.
    """
    read_splits(gathered, config, files.images, _lists(gathered, files.left_over, is_box))
    notes = Counter[Note]()
    for image in _of_the_set(gathered, files.images, files.owners):
        file = files.owners.get(image)
        boxes = _boxes(gathered, file, image, read, notes, expected) if file else ()
        gathered.images.append(ForeignImage(image, file, None, tuple(boxes)))
    for (found, fix), count in notes.items():
        gathered.warn(gathered.root, "labels", f"{count} {found}", fix, found)


def _lists(gathered: Gathered, files: Iterable[Path], is_box: IsBox) -> list[Path]:
    """Choose those called like a split among text files of no image. What could be labels is an error."""
    lists, unknown = [], []
    for file in files:
        text = file.read_bytes().decode("utf-8-sig", errors="replace")
        if any(map(is_box, [line for line in text.splitlines() if line.strip()][:2])):
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


def _lines(file: Path) -> dict[str, str]:
    lines = enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1)
    return {f"line {number}": line.strip(" ") for number, line in lines if line.strip()}


def _boxes(
    gathered: Gathered, file: Path, image: Path, read: ReadLine, notes: Counter[Note], expected: str
) -> list[ForeignBox]:
    """Read the boxes of a text file; faults go to `gathered`."""
    try:
        size_wh, lines = read_facts(image).upright_wh, _lines(file)
    except UserError:
        return []  # the image is reported with all others
    except (OSError, UnicodeDecodeError) as error:
        gathered.error(file, "file", f"cannot be read ({error})", "Export it again", "malformed label file")
        return []
    boxes, faults = [], []
    for index, (where, line) in enumerate(lines.items()):
        try:
            name, corners, note = read(line, size_wh)
        except Fault as fault:
            found, kind, fix = fault.args
            if index == 0 and kind == _NO_NUMBERS:
                notes.update([_HEADER])
            else:
                faults.append((where, found, fix, kind))
            continue
        notes.update([note] if note else [])
        boxes.append(ForeignBox(name, corners, where))
    if len(faults) == len(lines) and {kind for *_, kind in faults} == {MALFORMED}:
        first = next(iter(lines.values()))[:80]
        faults = [("file", f"no line is {expected}; the first is {first!r}", "Correct or remove it", MALFORMED)]
    for one in faults:
        gathered.error(file, *one)
    return boxes
