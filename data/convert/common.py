"""What all converters share: images and boxes gathered from a foreign format, checked, written as a new COCO folder.

Nothing that exists is ever changed: the result is built in a temporary folder beside its place, checked there, and
moved in one step.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from data.coco import check_annotations, check_overlap, read_split
from data.coco_reader import NO_AREA
from data.errors import UserError
from data.files import write_json
from data.image_checks import check_images
from data.images import IMAGE_SUFFIXES, UNREADABLE_FIX, ImageFacts, read_facts
from data.names import composed, name_key
from data.problems import Problem, errors_of, problem_lines, warnings_of

log = logging.getLogger(__name__)

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom, pixels; the first pixel's outer edge is 0."""
SHOWN_PER_KIND = 50
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "entrenamiento"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validacion", "validación"), "val"),
    **dict.fromkeys(("test", "testing", "prueba", "pruebas"), "test"),
}
_WORDS_BESIDE = frozenset(
    ("", "set", "split", "data", "dataset", "obj", "image", "images", "imgs", "label", "labels", "instances", "ann")
    + ("annotation", "annotations", "coco", "default")
)
"""What names of folders and files say beside the split: `obj_train_data`, `instances_val2017.json`."""
_MASK_FOLDERS = frozenset({"mask", "masks", "mascaras", "máscaras", "segmentationclass", "segmentationobject"}) | {
    f"segmentation{what}{form}" for what in ("class", "object") for form in ("png", "visualization", "npy")
}
_IMAGE_FOLDERS = frozenset(
    ("images", "image", "img", "imgs", "jpegimages", "pictures", "photos", "frames", "imagenes", "imágenes", "fotos")
)
_SIDE_BY_SIDE = _IMAGE_FOLDERS | frozenset(
    ("labels", "label", "annotations", "annotation", "annots", "anns", "ann", "xml", "xmls", "json", "jsons")
    + ("anotaciones", "etiquetas", "imagesets", "main")
)
"""Folders that stand for each other: images/train/a.jpg belongs to labels/train/a.json."""
_OUTSIDE_FRACTION = 0.01
"""Of an image's side: boxes this far outside are cut off, those further out are errors."""
_DECIMALS = 4
"""Of the pixels that are written."""
_ROUNDING_PX = 0.01
"""What is cut off is counted above this."""


@dataclass(frozen=True)
class ForeignBox:
    """One object as the foreign file has it."""

    name: str
    """Of its class."""
    corners_xyxy: Corners
    where: str
    """Line or object, for messages."""
    may_leave: bool = False
    """Whether it is the bounds of a shape that can leave the image although it was drawn inside: cut off anywhere."""
    crowd: bool = False
    """Whether it is a region of many objects, as COCO has them."""
    area_px: float | None = None
    """Of the object's outline, if that is known; None takes the box's."""


@dataclass(frozen=True)
class ForeignImage:
    """One image with its boxes."""

    path: Path
    annotation: Path | None
    """The file its boxes are from; None for an image without one."""
    stated_wh: tuple[int, int] | None
    """The size its annotations say; None where they say none."""
    boxes: tuple[ForeignBox, ...]


@dataclass
class Gathered:
    """A foreign data set."""

    root: Path
    images: list[ForeignImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    class_names: Sequence[str] | None = None
    """In the order of their ids; None sorts the names that occur."""
    splits: dict[Path, str] = field(default_factory=dict)
    """Image -> train, val or test, where the format says so itself."""
    splits_by: str = "lists of the set"
    """What says so, for the person to know."""
    slack_px: float = 0.5
    """Boxes may lie this far outside of the image, or 1 % of its side if that is more."""
    notes: list[str] = field(default_factory=list)
    """What was decided, for the person to know."""

    def error(self, file: Path, where: str, found: str, fix: str, kind: str) -> None:
        """Note a fault."""
        self.problems.append(Problem("error", str(file), where, found, fix, kind))

    def warn(self, file: Path, where: str, found: str, fix: str, kind: str) -> None:
        """Note an oddity."""
        self.problems.append(Problem("warning", str(file), where, found, fix, kind))


@dataclass(frozen=True)
class Converted:
    """What a conversion has written."""

    ann_files: tuple[Path, ...]
    img_folder: Path
    num_images: int
    num_boxes: int
    class_names: tuple[str, ...]
    warnings: tuple[Problem, ...]
    notes: tuple[str, ...]


class AnnotationFile(NamedTuple):
    """The content of an annotation file of one image."""

    image_name: str
    """As the file has it, perhaps empty."""
    boxes: tuple[ForeignBox, ...]
    stated_wh: tuple[int, int] | None
    hint: str = ""
    """Added to the message about a missing image."""


def read_file_per_image(
    gathered: Gathered, suffix: str, advice: str, key: str, read: Callable[[Path], AnnotationFile | None]
) -> None:
    """Gather all annotation files below the folder, one for each image, which the entry `key` of it names.

    `read` notes what is wrong with a file itself, and gives None; `advice` says what to do where there is no file.
    """
    kind = suffix[1:].upper()
    images, files = files_below(gathered.root, IMAGE_SUFFIXES), files_below(gathered.root, [suffix])
    if not files:
        gathered.error(gathered.root, "folder", f"there is no {kind} file in it", advice, "no annotations")
    index = ImageIndex(images)
    for file in files:
        content = read(file)
        if content and (image := index.require(gathered, content.image_name, file, key, content.hint)):
            gathered.images.append(ForeignImage(image, file, content.stated_wh, content.boxes))
    warn_left_out(gathered, images, f"{kind} file")


def around(points: Iterable[Sequence[float]]) -> Corners:
    """Return the upright box around points (x, y)."""
    columns, rows = zip(*points, strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def files_below(root: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files with these suffixes (lower case) below `root`, sorted; hidden ones are passed over.

    Raises:
        UserError: `root` is no folder, or a link in it leads out of it.
    """
    if not root.is_dir():
        found = "is a file, expected a folder" if root.exists() else "does not exist"
        raise UserError(f"{root}: {found}. Give the folder of the data set.")
    wanted, real_root = frozenset(suffixes), Path(os.path.realpath(root))
    files: list[Path] = []
    leaving: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        chosen = sorted(name for name in names if not name.startswith(".") and Path(name).suffix.lower() in wanted)
        for path in (Path(folder, name) for name in [*folders, *chosen]):
            if path.is_symlink() and not Path(real := os.path.realpath(path)).is_relative_to(real_root):
                leaving.append(f"{path} -> {real}")
            elif path.is_file():
                files.append(path)
            elif not path.is_dir():
                log.warning("%s: is no file but a pipe, a device or a broken link; it is passed over", path)
    if leaving:
        more = [f"... and {len(leaving) - SHOWN_PER_KIND} more"] if len(leaving) > SHOWN_PER_KIND else []
        fix = "They are not followed; copy the data set with what they lead to (cp -rL)"
        raise UserError(f"{root}: links lead out of the folder. {fix}:", leaving[:SHOWN_PER_KIND] + more)
    return files


def warn_left_out(gathered: Gathered, images: Sequence[Path], what: str) -> None:
    """Warn of images that nothing annotates: nobody says that they are free of objects."""
    used = {image.path for image in gathered.images}
    unused = [path for path in images if path not in used and not is_mask(path.relative_to(gathered.root))]
    if unused and used:
        found = f"{len(unused)} images have no {what}, e.g. {unused[0]}"
        fix = "They are left out; to use them as images without objects, save an annotation without objects for them"
        gathered.warn(gathered.root, "images", found, fix, "images without annotations")


def is_mask(path: Path) -> bool:
    """Tell whether a picture lies in a folder of masks."""
    return any(name_key(part) in _MASK_FOLDERS for part in path.parts[:-1])


def is_in_image_folder(path: Path) -> bool:
    """Tell whether a picture lies in a folder that is called as folders of images are."""
    return any(name_key(part) in _IMAGE_FOLDERS for part in path.parts[:-1])


def sides(path: Path) -> list[str]:
    """Return the folders that an image and its annotation file have in common."""
    return [key for part in path.parent.parts if (key := name_key(part)) not in _SIDE_BY_SIDE]


def split_of(name: str) -> str | None:
    """Return train, val or test, if a folder or file is called so and nothing else: `Valid`, `obj_train_data`."""
    words = set(re.split(r"[\W\d_]+", name_key(name))) - _WORDS_BESIDE
    return _SPLIT_WORDS.get(words.pop()) if len(words) == 1 else None


def split_of_path(path: Path) -> str | None:
    """Return the split that the outermost telling folder of a path names."""
    return next(filter(None, map(split_of, path.parts[:-1])), None)


class ImageIndex:
    """Finds the image that an annotation file means: the one at the very place, else the only one of its name."""

    def __init__(self, images: Iterable[Path], *, of_other_machines: bool = False) -> None:
        """Take all images that may be meant.

        `of_other_machines`: names are from one file for the whole set; their last folders tell images of one name
        apart, and they may be addresses, but no image is meant by the file's own name.
        """
        self._of_other_machines = of_other_machines
        self._by_place: dict[str, list[Path]] = defaultdict(list)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in images:
            self._by_place[name_key(os.path.abspath(path))].append(path)
            self._by_name[name_key(path.name)].append(path)
            self._by_stem[name_key(path.stem)].append(path)

    def require(self, gathered: Gathered, name: str, annotation: Path, where: str, hint: str = "") -> Path | None:
        """Return the one image that is meant; None, and a fault noted, if there is none or several may be.

        `name` is a path from the annotation file, or any path of the machine it was written on; `where` is the place
        in the file that holds it, `hint` is added to the message about a missing image.
        """
        asked = PurePosixPath(name.replace("\\", "/"))
        place = os.path.abspath(annotation.parent / asked)
        if ".." in asked.parts and name_key(place) not in self._by_place and os.path.isfile(place):
            both = os.path.commonpath([place, os.path.abspath(gathered.root)])
            found = f"the image {name!r} lies outside of {gathered.root}"
            gathered.error(annotation, where, found, f"Give the folder of both as SRC: {both}", "image outside")
            return None
        # Without percent signs and what makes it an address (Label Studio's /data/local-files/?d=folder/a.jpg).
        address = [unquote(name), unquote(re.sub(r".*\?d=|\?.*", "", name))]
        tries = [name, *(address if self._of_other_machines else [annotation.stem])]
        images = next(filter(None, (self.find(one, annotation) for one in tries)), [])
        if len(images) == 1:
            if name and name_key(images[0].stem) not in (name_key(asked.name), name_key(asked.stem)):
                found = f"the image {name!r} is not there; {images[0].name}, which is called like this file, is taken"
                fix = "Make sure that it is the right one"
                gathered.warn(annotation, where, found, fix, "image by its file's name")
            return images[0]
        if decoded := self._by_name.get(name_key(unquote(asked.name)), []):
            hint = f"; {decoded[0].name!r} is: the name is percent-encoded"
        what = f"may be {', '.join(map(str, images[:3]))}" if images else f"is not below the folder{hint}"
        fix, kind = f"Restore or rename the image, or correct {where}", "ambiguous image" if images else "missing image"
        gathered.error(annotation, where, f"the image {name or annotation.stem!r} {what}", fix, kind)
        return None

    def find(self, name: str, near: Path) -> list[Path]:
        """Return the images that a name in the file `near` may mean: the one at that place; else those called so,
        with another suffix or without. Of several, no masks; those in the folders that the name gives; those of the
        split that the file is called after; those in the folder that stands beside the file's; those that are written
        the same."""
        asked = PurePosixPath(name.replace("\\", "/"))
        stem = asked.stem if asked.suffix.lower() in IMAGE_SUFFIXES else asked.name
        place = name_key(os.path.abspath(near.parent / asked)) if name else ""
        by_stem = self._by_stem
        tries = ((self._by_place, place), (self._by_name, asked.name), (by_stem, asked.name), (by_stem, stem))
        images: list[Path] = next((found for index, key in tries if (found := index.get(name_key(key)))), [])
        folders = [name_key(part) for part in asked.parent.parts if part != ".."]
        shared = {path: _shared_end(path.parent.parts, folders) for path in images}
        least = max(shared.values(), default=0) if self._of_other_machines else len(folders)
        split = split_of(near.stem)
        for rule in (
            lambda path: not is_mask(path),
            lambda path: shared[path] >= least,
            lambda path: split is not None and split in map(split_of, path.parts[:-1]),
            lambda path: sides(path) == sides(near),
            lambda path: composed(path.name) == composed(asked.name),
        ):
            if len(images) > 1:
                images = list(filter(rule, images)) or images
        return images


def _shared_end(folders: Sequence[str], keys: Sequence[str]) -> int:
    """Count how many of the last folders are the same."""
    pairs = list(zip(map(name_key, reversed(folders)), reversed(keys), strict=False))
    return next((number for number, (one, other) in enumerate(pairs) if one != other), len(pairs))


def write_coco(gathered: Gathered, target: Path, *, copy_images: bool) -> Converted:
    """Check everything, then write `annotations/instances*.json` and, if wanted, `images/` to a new or empty folder.

    Images that are not copied stay where they are; `img_folder` is their common folder then.

    Raises:
        UserError: Faults of the data, all at once; nothing has been written then.
    """
    if target.resolve().is_relative_to(gathered.root.resolve()):
        raise UserError(f"{target}: lies in the data set {gathered.root} itself. Choose a folder outside.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not an empty folder; nothing is overwritten. Choose a new one.")
    facts = _check_images(gathered)
    names = _class_names(gathered)
    sets = _assign_splits(gathered)
    require_no_errors(gathered.problems)
    root = Path(os.path.commonpath([image.path.parent for image in gathered.images]))
    with folder_beside(target, "cannot be made", "Choose another folder") as private:
        work = private / target.name  # with ordinary permissions
        (work / "annotations").mkdir(parents=True)
        for image in gathered.images if copy_images else ():
            place = work / "images" / image.path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(image.path, place)
        contents = {work / "annotations" / name: _coco(images, root, names, facts) for name, images in sets.items()}
        warnings = write_checked(contents, work / "images" if copy_images else root, work, target)
        if target.is_dir():
            target.rmdir()  # it is empty, and Windows renames onto nothing only
        os.replace(work, target)
    return Converted(
        tuple(target / "annotations" / name for name in sets),
        target / "images" if copy_images else root,
        len(gathered.images),
        sum(len(image.boxes) for image in gathered.images),
        names,
        tuple(warnings_of([*gathered.problems, *warnings])),
        tuple(gathered.notes),
    )


@contextmanager
def folder_beside(target: Path, refused: str, advice: str) -> Iterator[Path]:
    """Make a temporary folder beside `target`, on the same disk, and remove it at the end.

    Raises:
        UserError: It cannot be made (`refused`, with `advice`), or written to.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: {refused} ({error.strerror or error}). {advice}.") from error
    try:
        yield folder
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error}). Free some space.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_checked(contents: dict[Path, dict[str, Any]], img_folder: Path, work: Path, target: Path) -> list[Problem]:
    """Write annotation files below `work`, check them as check_data.py does; return the warnings, as of `target`.

    The same image in two of them is a warning: the foreign set was split by someone else.

    Raises:
        UserError: The checks find errors.
    """
    splits, problems = [], []
    for path, content in contents.items():
        write_json(path, content, what="annotations")
        split, found = read_split(path.stem.rpartition("_")[2], path, img_folder)
        splits.append(split)
        problems += found + check_annotations(split)
    problems += check_overlap(splits) + check_images(splits)

    def moved(problem: Problem) -> Problem:
        file, found = (text.replace(str(work), str(target)) for text in (problem.file, problem.found))
        is_overlap = problem.kind == "same image in two splits"
        return replace(problem, file=file, found=found, severity="warning" if is_overlap else problem.severity)

    told = list(map(moved, dict.fromkeys(problems)))
    require_no_errors(told)
    return warnings_of(told)


def require_no_errors(problems: Sequence[Problem]) -> None:
    """Raise one UserError with all errors among `problems`."""
    errors = errors_of(problems)
    if errors:
        count = f"{len(errors)} error{'s' if len(errors) > 1 else ''}"
        raise UserError(f"The data set has {count}; nothing was written:", problem_lines(errors, SHOWN_PER_KIND))


def _class_names(gathered: Gathered) -> tuple[str, ...]:
    root, kind = gathered.root, "class names"
    counts = Counter(box.name for image in gathered.images for box in image.boxes)
    names = tuple(map(composed, gathered.class_names or sorted(counts)))
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in names:
        spellings[name_key(name)].append(f"{name!r} ({counts[name]} boxes)")
    for same in spellings.values():
        if len(same) > 1:
            found = f"{', '.join(same)} differ in case or spaces only"
            gathered.error(root, "classes", found, "Give the class one name", kind)
    for name in sorted(set(names) - set(counts)):  # the others are told with their boxes
        _check_text(gathered, root, name)
    for name in sorted(set(counts) - set(names)):
        found = f"{name!r} ({counts[name]} boxes) is not among the given classes {', '.join(names)}"
        gathered.error(root, "classes", found, "Add it to the list, or rename the boxes", kind)
    if not counts and not errors_of(gathered.problems):
        gathered.error(root, "boxes", "there is not a single one", "Give the folder with the annotations", kind)
    return names


def _check_images(gathered: Gathered) -> dict[Path, ImageFacts]:
    """Return the sizes as they are, and cut the boxes to them; faults go to `gathered`."""
    facts: dict[Path, ImageFacts] = {}
    cut: list[tuple[float, str]] = []
    for number, image in enumerate(gathered.images):
        file = image.annotation or image.path
        for name in {str(image.path), *(box.name for box in image.boxes)}:
            _check_text(gathered, file, name)
        if image.path in facts:
            gathered.error(file, "image", f"{image.path} has two annotation files", "Remove one", "repeated image")
            continue
        try:
            facts[image.path] = read_facts(image.path)
        except UserError as error:
            found = str(error).removesuffix(f" {UNREADABLE_FIX}.")
            gathered.error(file, "image", found, UNREADABLE_FIX, "unreadable image")
            continue
        _check_size(gathered, image, facts[image.path])
        boxes = (_fitted(gathered, file, box, facts[image.path].upright_wh, cut) for box in image.boxes)
        gathered.images[number] = replace(image, boxes=tuple(filter(None, boxes)))
    if cut:
        most_px, where = max(cut)
        found = f"{len(cut)} reach outside of their images, by up to {most_px:.3g} pixels ({where})"
        gathered.warn(gathered.root, "boxes", found, "They are cut off at the edge", "boxes cut off")
    return facts


def _check_text(gathered: Gathered, file: Path, name: str) -> None:
    if not name.isascii() and name != name.encode(errors="replace").decode():
        fix = "Rename the file or class"
        gathered.error(file, "name", f"{name!r} holds what is no text in UTF-8", fix, "name without text")


def _check_size(gathered: Gathered, image: ForeignImage, facts: ImageFacts) -> None:
    stated, real = image.stated_wh, facts.upright_wh
    if stated is None or stated == real or image.annotation is None:
        return
    found = f"says {stated[0]} x {stated[1]} pixels, but {image.path.name} has {real[0]} x {real[1]}"
    fix = "Annotate the image anew, or restore the one that was annotated"
    if stated == facts.size_wh:
        found += f" once its EXIF orientation {facts.orientation} is applied"
        fix = "The boxes were drawn on the unrotated image: remove the EXIF orientation from the file"
    gathered.error(image.annotation, "size", found, fix, "size mismatch")


def _fitted(
    gathered: Gathered, file: Path, box: ForeignBox, size_wh: tuple[int, int], cut: list[tuple[float, str]]
) -> ForeignBox | None:
    """Return the box inside its image, its class in NFC, or None for one without area; what is cut off goes to `cut`,
    faults to `gathered`."""
    left, top, right, bottom = box.corners_xyxy
    width, height = size_wh
    inside = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    outside_px = (max(-left, right - width), max(-top, bottom - height))
    allowed_px = (max(gathered.slack_px, _OUTSIDE_FRACTION * side) for side in size_wh)
    is_near = box.may_leave or all(one <= limit for one, limit in zip(outside_px, allowed_px, strict=True))
    shown = f"the box from corner to corner ({', '.join(f'{value:g}' for value in box.corners_xyxy)})"
    fix = "Correct or remove it"
    if right < left or bottom < top:
        gathered.error(file, box.where, f"{shown} has its corners exchanged", fix, "malformed box")
    elif round(right - left, _DECIMALS) == 0 or round(bottom - top, _DECIMALS) == 0:
        gathered.warn(file, box.where, f"{shown} has no area", *NO_AREA)
        return None
    elif not is_near or inside[2] <= inside[0] or inside[3] <= inside[1]:
        found = f"{shown} leaves the image of {width} x {height} pixels"
        gathered.error(file, box.where, found, fix, "box outside the image")
    elif max(outside_px) > _ROUNDING_PX:
        cut.append((max(outside_px), f"{file}: {box.where}"))
    return replace(box, name=composed(box.name), corners_xyxy=inside)


def _assign_splits(gathered: Gathered) -> dict[str, list[ForeignImage]]:
    """Name of the annotation file -> its images: the splits that the format or its folders know, else one file."""
    splits, images = dict(gathered.splits), gathered.images
    if not splits:
        named = {image.path: split_of_path(image.path.relative_to(gathered.root)) for image in images}
        splits = {path: split for path, split in named.items() if split}
    if not splits or not images:
        return {"instances.json": list(images)}
    if without := [image.path for image in images if image.path not in splits]:
        found = f"{len(without)} of {len(images)} images are in none of train, val, test, e.g. {without[0].name}"
        fix = "They go to instances_rest.json"
        gathered.warn(gathered.root, "splits", found, fix, "images without a split")
    sets: dict[str, list[ForeignImage]] = {name: [] for name in ("train", "val", "test", "rest")}
    for image in images:
        sets[splits.get(image.path, "rest")].append(image)
    counts = ", ".join(f"{name} {len(images)}" for name, images in sets.items() if images)
    gathered.notes.append(f"splits: {counts} images, by {gathered.splits_by if gathered.splits else 'folder names'}")
    return {f"instances_{name}.json": images for name, images in sets.items() if images}


def _coco(
    images: Sequence[ForeignImage], root: Path, names: Sequence[str], facts: dict[Path, ImageFacts]
) -> dict[str, Any]:
    ids = {name: number for number, name in enumerate(names, start=1)}
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        width, height = facts[image.path].upright_wh
        name = image.path.relative_to(root).as_posix()
        records.append({"id": number, "file_name": name, "width": width, "height": height})
        for box in image.boxes:
            left, top, right, bottom = box.corners_xyxy
            bbox = [round(value, _DECIMALS) for value in (left, top, right - left, bottom - top)]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[box.name], "bbox": bbox}
            area = min(bbox[2] * bbox[3], box.area_px or math.inf)
            annotations.append({**entry, "area": round(area, _DECIMALS), "iscrowd": int(box.crowd)})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": records, "annotations": annotations, "categories": categories}
