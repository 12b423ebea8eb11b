"""Finds train, val and test in a folder of data: COCO as it stands; YOLO, Pascal VOC and labelme converted to a cache.

The cache holds annotation files alone, in a folder named after the data's state: what changed is converted anew. Other
code converts anew in the same place, and which image the user put into which split stays.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from data.convert.coco import read_coco
from data.convert.common import Gathered, files_below, split_of, split_of_path, write_coco
from data.convert.labelme import read_labelme
from data.convert.voc import read_voc
from data.convert.yolo import read_yolo
from data.convert.yolo_config import is_class_list
from data.errors import UserError
from data.files import write_json
from data.images import IMAGE_SUFFIXES
from data.names import name_key
from data.problems import errors_of, problem_lines, warnings_of

log = logging.getLogger(__name__)

CACHE = Path("outputs/data_cache")
_SOURCE = "source.json"
"""Written last: a cache folder with it is complete."""
_DIVIDED = "-splits"
"""Ends the folder of the splits that the user made, beside what is converted anew."""
_LOOKED_FOR = (
    "COCO: JSON files with images, annotations and categories, such as annotations/instances_train.json and "
    "instances_val.json, or train/_annotations.coco.json and valid/_annotations.coco.json",
    "YOLO: data.yaml or classes.txt, and text files under labels",
    "Pascal VOC: XML files, such as Annotations, JPEGImages and ImageSets/Main",
    "labelme: a JSON file with shapes beside each image",
    'Other text files are converted first: python -m data.convert txt FOLDER DST --format "x1 y1 x2 y2 class"',
)
_READERS: dict[str, Callable[[Path], Gathered]] = {"YOLO": read_yolo, "Pascal VOC": read_voc, "labelme": read_labelme}
_COMMANDS = {"COCO": "coco", "YOLO": "yolo", "Pascal VOC": "voc", "labelme": "labelme"}
_SHOWN = 5


@dataclass(frozen=True)
class Split:
    """One split of a data set."""

    img_folder: Path
    ann_file: Path


def find_data(folder: Path, cache: Path = CACHE) -> dict[str, Split]:
    """Return train, val and, if there is one, test of the data set in `folder`; says in the log what was found.

    Raises:
        UserError: There is no data set or no validation split in it, or more than one thing that may be meant; or it
            has faults that forbid its conversion.
    """
    files = _files(folder)
    kinds = _kinds(files)
    if len(kinds) != 1:
        raise _not_one(folder, files, kinds)
    (kind, paths), state = next(iter(kinds.items())), _state(folder, files)
    place = cache / f"{folder.resolve().name}-{state}"
    splits, made = _coco_splits(folder, files, paths) if kind == "COCO" else (None, None)
    if splits is None:
        splits = _converted(folder, kind, place, made)
    splits = _divided(folder, splits, place)
    found = ", ".join(f"{name} {split.ann_file.as_posix()}" for name, split in splits.items())
    log.info("--data %s: %s; %s", folder, kind, found)
    return splits


def _files(folder: Path) -> dict[str, list[Path]]:
    """Group the files below `folder` by suffix, all images under "image"; what the scripts wrote there is left out."""
    suffixes = (".json", ".xml", ".txt", ".yaml", ".yml", ".data", ".names")
    files: dict[str, list[Path]] = defaultdict(list)
    ours = CACHE.parent.resolve()
    inside = folder.resolve() in ours.parents  # the scripts are started in the folder of the data
    ours = folder / ours.relative_to(folder.resolve()) if inside else ours
    for path in files_below(folder, (*suffixes, *IMAGE_SUFFIXES)):
        if inside and path.is_relative_to(ours):
            continue
        suffix = path.suffix.lower()
        files["image" if suffix in IMAGE_SUFFIXES else suffix].append(path)
    return files


def _kinds(files: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """Return the formats that are there, each with the files that show it."""
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in files.get(".json", ()):
        content = _json(path)
        if content is None and (split_of(path.stem) or name_key(path.stem).startswith(("instances", "_annotations"))):
            kinds["COCO"].append(path)  # broken, which its reader tells
        elif isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "categories")):
            kinds["COCO"].append(path)
        elif isinstance(content, dict) and isinstance(content.get("shapes"), list):
            kinds["labelme"].append(path)
    kinds["Pascal VOC"] = [*files.get(".xml", ())]
    texts = files.get(".txt", ())
    kinds["YOLO"] = [path for path in texts if is_class_list(path) or "labels" in map(name_key, path.parts[:-1])]
    kinds["YOLO"] += [path for end in (".yaml", ".yml") for path in files.get(end, ()) if path.stem.lower() == "data"]
    kinds["YOLO"] += [*files.get(".data", ()), *files.get(".names", ())]
    return {kind: paths for kind, paths in kinds.items() if paths}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _not_one(folder: Path, files: Mapping[str, Sequence[Path]], kinds: Mapping[str, Sequence[Path]]) -> UserError:
    if kinds:
        found = [f"{kind}: {len(paths)} files, e.g. {paths[0]}" for kind, paths in kinds.items()]
        fixes = " or ".join(f"`python -m data.convert {_COMMANDS[kind]} {folder} DST`" for kind in kinds)
        return UserError(
            f"--data {folder}: holds annotations of several formats. Move away those that are not meant, or convert "
            f"the right ones with {fixes} and give DST:",
            found,
        )
    counts = ", ".join(f"{len(paths)} {suffix} files" for suffix, paths in files.items() if paths) or "nothing of these"
    return UserError(f"--data {folder}: holds no annotations (found: {counts}). Looked for:", _LOOKED_FOR)


def _state(folder: Path, files: Mapping[str, Sequence[Path]]) -> str:
    """Return the state of the data's files as a short hash."""
    digest = hashlib.sha256(str(folder.resolve()).encode(errors="surrogateescape"))
    for path in sorted(path for paths in files.values() for path in paths):
        facts = path.stat()
        digest.update(f"{path.relative_to(folder)}|{facts.st_size}|{facts.st_mtime_ns}\n".encode(errors="replace"))
    return digest.hexdigest()[:8]


# --- COCO ------------------------------------------------------------------------------------------------------------


def _coco_splits(
    folder: Path, files: Mapping[str, Sequence[Path]], paths: Sequence[Path]
) -> tuple[dict[str, Split] | None, Gathered | None]:
    """Return the splits as they stand; or None and what was read where reading them repaired something."""
    chosen = _one_file_a_split(folder, paths)
    gathered = [read_coco(path) for path in chosen.values()]
    broken = any(errors_of(part.problems) for part in gathered)
    folders = {split_of_path(image.path.relative_to(folder)) for part in gathered for image in part.images} - {None}
    needs = any(note.startswith("repaired") for part in gathered for note in part.notes)
    if not broken and (needs or (len(chosen) == 1 and len(folders) > 1)):
        whole = Gathered(folder, slack_px=gathered[0].slack_px, splits_by="the annotation files")
        for name, part in zip(chosen, gathered, strict=True):
            whole.images += part.images
            whole.problems += warnings_of(part.problems)
            whole.notes += part.notes
            whole.class_names = tuple(dict.fromkeys((*(whole.class_names or ()), *(part.class_names or ()))))
            if not (len(chosen) == 1 and len(folders) > 1):
                whole.splits |= {image.path: name for image in part.images if name != "all"}
        return None, whole
    return {name: Split(_img_folder(name, path, files["image"], folder), path) for name, path in chosen.items()}, None


def _one_file_a_split(folder: Path, paths: Sequence[Path]) -> dict[str, Path]:
    """Return split -> its file; "all" where one file is for everything."""
    groups: dict[str, list[Path]] = {name: [] for name in ("train", "val", "test", "all")}
    for path in paths:
        groups[split_of(path.stem) or split_of_path(path.relative_to(folder)) or "all"].append(path)
    if groups["train"]:
        groups["all"] = []
    chosen, problems = {}, []
    for name, candidates in groups.items():
        candidates = [path for path in candidates if name_key(path.name).startswith("instances")] or candidates
        if len(candidates) > 1:
            problems += [f"{'the whole set' if name == 'all' else name}: {path}" for path in candidates[:_SHOWN]]
        if candidates:
            chosen[name] = candidates[0]
    if problems:
        fix = "Move away those that are not meant, or state the paths in a config or with -u"
        raise UserError(f"--data {folder}: several annotation files for one split. {fix}:", problems)
    return chosen


def _img_folder(name: str, ann_file: Path, images: Sequence[Path], root: Path) -> Path:
    """Return the folder that the names in an annotation file start from: where most of its images are."""
    content = _json(ann_file)
    entries = content.get("images", []) if isinstance(content, dict) else []
    names = (one.get("file_name") for one in entries if isinstance(one, dict))
    asked: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for file in (PurePosixPath(text) for text in names if isinstance(text, str)):
        asked[file.name].append(file.parts)
    ends = ((path, parts) for path in images for parts in asked.get(path.name, ()))
    votes = Counter(path.parents[len(parts) - 1] for path, parts in ends if path.parts[-len(parts) :] == parts)

    def likely(base: Path) -> tuple[int, bool, bool]:
        inside = base.relative_to(root) / "x" if base.is_relative_to(root) else Path("x")
        return votes[base], split_of_path(inside) == name, base == ann_file.parent

    if votes:
        return max(sorted(votes), key=likely)
    called_so = (place for place in sorted((*root.glob("*/"), *root.glob("*/*/"))) if split_of(place.name) == name)
    return next(called_so, ann_file.parent)


# --- conversion ------------------------------------------------------------------------------------------------------


def _converted(folder: Path, kind: str, place: Path, made: Gathered | None) -> dict[str, Split]:
    """Return the splits in the cache folder `place`, converted now unless they are there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_name(f"{place.name}.lock")):  # the processes of a torchrun come together
        source, code = _json(place / _SOURCE) or {}, _code_state()
        if source.get("converters") != code:
            shutil.rmtree(place, ignore_errors=True)
            converted = write_coco(made or _READERS[kind](folder), place, copy_images=False)
            _renew_divided(place, Path(source.get("img_folder", converted.img_folder)), converted.img_folder)
            source = {"folder": str(folder.resolve()), "format": kind, "img_folder": str(converted.img_folder)}
            source["converters"] = code
            (place / _SOURCE).write_text(json.dumps(source, indent=1), encoding="utf-8")
            for line in (*converted.notes, *problem_lines(converted.warnings, _SHOWN)):
                log.info("%s: %s", folder, line)
            what = "repaired" if made else "converted"
            log.info("%s: %s %s to %s; the images stay where they are", folder, kind, what, place)
        else:
            log.info("%s: %s converted before and unchanged: %s is used", folder, kind, place)
    files = {path.stem.removeprefix("instances").strip("_") or "all": path for path in place.glob("annotations/*.json")}
    order = ("train", "val", "test", "all")
    return {name: Split(Path(source["img_folder"]), files[name]) for name in order if name in files}


def _code_state() -> str:
    """Return the state of the converters as a short hash."""
    modules = sorted((Path(__file__).parent / "convert").glob("*.py"))
    return hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()[:8]


def _renew_divided(place: Path, old_img_folder: Path, img_folder: Path) -> None:
    """Take the annotations of the splits that the user made from a new conversion; the images of each stay."""
    for path in sorted(place.with_name(f"{place.name}{_DIVIDED}").glob("*.json")):
        old, whole = _json(path), _json(place / "annotations" / f"{path.stem.rpartition('_')[0]}.json")
        if not (isinstance(old, dict) and isinstance(whole, dict)):
            continue  # broken, which the checks tell; or the converter itself divides now
        kept = {old_img_folder / image["file_name"] for image in old["images"]}
        images = [image for image in whole["images"] if img_folder / image["file_name"] in kept]
        ids = {image["id"] for image in images}
        annotations = [one for one in whole["annotations"] if one["image_id"] in ids]
        write_json(path, {**whole, "images": images, "annotations": annotations}, what="annotations")


def _divided(folder: Path, splits: dict[str, Split], place: Path) -> dict[str, Split]:
    """Return the splits with a train and a val: those that `data.convert split` made of them before, if it did."""
    if {"train", "val"} <= {*splits}:
        return splits
    source = splits.get("train") or splits.get("all")
    if source is None:
        raise UserError(f"--data {folder}: has no training split; found {', '.join(splits)} alone. Looked for train.")
    target = place.with_name(f"{place.name}{_DIVIDED}")
    made = {name: target / f"{source.ann_file.stem}_{name}.json" for name in ("train", "val", "test")}
    if made["train"].is_file() and made["val"].is_file():
        log.info("%s: divided as %s says", folder, target)
        divided = {name: Split(source.img_folder, path) for name, path in made.items() if path.is_file()}
        return {name: split for name, split in (splits | divided).items() if name != "all"}
    parts = {"train": 0.8, "val": 0.2, "test": 0} if "test" in splits else {"train": 0.7, "val": 0.15, "test": 0.15}
    content = _json(source.ann_file)
    entries = content.get("images") if isinstance(content, dict) else None
    count = len(entries) if isinstance(entries, list) else 0
    numbers = ", ".join(f"{name} about {round(part * count)}" for name, part in parts.items() if part)
    texts = (path.as_posix() for path in (source.ann_file, source.img_folder, target))
    paths = [f'"{text}"' if " " in text else text for text in texts]
    command = "python -m data.convert split {} --images {} --output-dir {}".format(*paths)
    command = " ".join([command, *(f"--{name} {part:g}" for name, part in parts.items())])
    raise UserError(
        f"--data {folder}: has no validation split (looked for val, valid or validation in the names of files and "
        f"folders; found {', '.join(name for name in splits if name != 'all') or 'one undivided set'} of {count} "
        f"images). Divide it ({numbers} images), then type the same command "
        f"again:\n{command}"
    )
