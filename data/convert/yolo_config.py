"""What a YOLO set says of itself: classes, train, val and test, in `data.yaml`, `obj.data` or lists."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.convert.common import Gathered, ImageIndex, files_below, split_of
from data.errors import UserError

_YAML_SUFFIXES = (".yaml", ".yml")
_CLASS_LISTS = ("classes.txt", "obj.names", "classes.names")
_NOTHING = ("", "~", "null", "None")
_READ_ERRORS = (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError)


@dataclass(frozen=True)
class YoloConfig:
    """`data.yaml` or what stands for it."""

    file: Path | None = None
    """None where there is none."""
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_keypoint_values(self) -> int:
        """How many numbers `kpt_shape` adds to a line."""
        shape = self.content.get("kpt_shape")
        numbers = [int(text) for text in shape if str(text).isdecimal()] if isinstance(shape, list) else []
        return math.prod(numbers) if numbers else 0


def read_class_file(path: Path) -> tuple[str, ...]:
    """Read the names of a `data.yaml` (`names`: a list, or index -> name) or of a text file with one a line.

    They are taken as they are written: `NO` and `1e3` are names, too.

    Raises:
        UserError: It is neither.
    """
    try:
        is_yaml = path.suffix.lower() in _YAML_SUFFIXES
        content: Any = _load_yaml(path) if is_yaml else path.read_text(encoding="utf-8-sig").splitlines()
    except _READ_ERRORS as error:
        raise UserError(f"{path}: cannot be read as a list of classes ({error}).") from error
    if isinstance(content, dict):
        content = content.get("names")
    if isinstance(content, dict):
        by_index = {str(key).strip(): name for key, name in content.items()}
        content = [by_index.get(str(index)) for index in range(len(content))]
    if not isinstance(content, list) or not content or not all(isinstance(name, str) for name in content):
        raise UserError(f"{path}: names no classes; expected `names` with a list, or index: name from 0 on.")
    names = [name.strip() for name in content]
    while names and not names[-1]:
        names.pop()
    if not all(names) or not names:
        raise UserError(f"{path}: class {names.index('') if names else 0} has no name; each line stands for an index.")
    return tuple(names)


def find_config(gathered: Gathered, *, required: bool) -> YoloConfig:
    """Find the set's `data.yaml`, else its one YAML file with `names`, else darknet's `obj.data`.

    Where there are several none of them counts, which is a warning, or a UserError where one is required.
    """
    yamls = {path: _yaml_content(path) for path in files_below(gathered.root, _YAML_SUFFIXES)}
    texts = {path: path.read_text("utf-8-sig", "replace") for path in files_below(gathered.root, [".data"])}
    darknet = {
        path: dict(re.findall(r"^[ \t]*(.*?)[ \t]*=[ \t]*(.*?)[ \t]*$", text, re.M)) for path, text in texts.items()
    }
    groups = (
        {path: content for path, content in yamls.items() if path.stem.casefold() == "data"},
        {path: content for path, content in yamls.items() if "names" in content},
        {path: content for path, content in darknet.items() if any(map(split_of, content))},
    )
    group = next(filter(None, groups), {})
    depth = min((len(path.parts) for path in group), default=0)
    found = [YoloConfig(path, content) for path, content in group.items() if len(path.parts) == depth]
    files = [str(config.file) for config in found]
    if len(found) > 1 and required:
        fix = "Keep one (data.yaml goes before others), or give the classes with --classes FILE:"
        raise UserError(f"{gathered.root}: several files describe the set. {fix}", files)
    if len(found) > 1:
        shown = f"{len(found)} files describe the set: {', '.join(files)}"
        fix = "Their train, val and test are not read; keep one of them for that"
        gathered.warn(gathered.root, "splits", shown, fix, "split")
    return found[0] if len(found) == 1 else YoloConfig()


def find_names(root: Path, config: YoloConfig) -> tuple[str, ...]:
    """Return the classes by index: those of `data.yaml`, else of a list such as `classes.txt`.

    Raises:
        UserError: There are none, or lists that differ.
    """
    lists = [path for path in files_below(root, [".txt", ".names"]) if is_class_list(path)]
    is_yaml = config.file is not None and config.file.suffix.lower() in _YAML_SUFFIXES
    if config.file is not None and is_yaml and ("names" in config.content or not lists):
        return read_class_file(config.file)
    found = {path: read_class_file(path) for path in lists}
    if not found:
        raise UserError(
            f"{root}: nothing names the classes; expected data.yaml with `names`, or classes.txt with one name a line. "
            "Give one with --classes FILE."
        )
    if len(set(found.values())) > 1:
        shown = [f"{path}: {', '.join(names)}" for path, names in found.items()]
        raise UserError(f"{root}: lists of classes that differ. Give one with --classes FILE:", shown)
    return next(iter(found.values()))


def is_class_list(path: Path) -> bool:
    """Tell whether a file is called as lists of classes are."""
    return path.name.casefold() in _CLASS_LISTS


def read_splits(gathered: Gathered, config: YoloConfig, images: Sequence[Path], lists: Iterable[Path]) -> None:
    """Take train, val and test as the config has them, or else from lists, text files of that name."""
    entries = {key: value for key, value in config.content.items() if split_of(key) and value not in _NOTHING}
    if not entries:
        config = YoloConfig(gathered.root / "train.txt")  # for its folder and its name
        entries = {path.stem: path.name for path in lists if path.parent == gathered.root}
    file = config.file
    if file is None or not entries:
        return
    index = ImageIndex(images, of_other_machines=True)
    sets: dict[str, set[Path]] = {}
    for key, value in entries.items():
        paths: set[Path] = set()
        for text in value if isinstance(value, list) else [value]:
            found = _images_of(gathered, text, file.parent, images, index) if isinstance(text, str) else set()
            if not found:
                what = repr(text[:80]) if isinstance(text, str) else "no path"
                fix = "It is left out; if it should not be, correct the path"
                gathered.warn(file, key, f"names {what}, where no image of the set lies", fix, "split")
            paths |= found
        same = next((other for other, known in sets.items() if known == paths), None)
        if same is not None and paths:
            fix = f"They are written as {same} alone; `python -m data.convert split` divides a set"
            gathered.warn(file, key, f"names the same images as {same}", fix, "split")
        else:
            name = split_of(key) or key
            sets[name] = sets.get(name, set()) | paths
    for name, paths in sets.items():
        for path in sorted(paths):
            if gathered.splits.setdefault(path, name) != name:
                found_text = f"{path} is in {gathered.splits[path]} too"
                gathered.error(file, name, found_text, "Keep it in one of them", "image in two splits")
    gathered.splits_by = file.name


def _images_of(gathered: Gathered, text: str, folder: Path, images: Sequence[Path], index: ImageIndex) -> set[Path]:
    """Images of an entry, which is a folder or a list of images, wherever the set lay when it was written: folders
    before the one that names the split may have been left behind."""
    parts = [part for part in text.replace("\\", "/").split("/") if part not in ("", ".", "..") and part[-1] != ":"]
    last_split = max((number for number, part in enumerate(parts) if split_of(part)), default=len(parts) - 1)
    for start in range(max(0, last_split) + 1):
        place = Path(folder, *parts[start:])
        if os.path.isfile(place):
            lines = enumerate(place.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1)
            named = {f"line {number}": line.strip() for number, line in lines if line.strip()}
            return {path for where, name in named.items() if (path := index.require(gathered, name, place, where))}
        found = {path for path in images if path.is_relative_to(place)}
        if found:
            return found
    return set()


def _load_yaml(path: Path) -> Any:
    """All scalars as text: YAML would read `NO` as false and `0x1F` as a number."""
    return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=yaml.BaseLoader)


def _yaml_content(path: Path) -> dict[str, Any]:
    try:
        content = _load_yaml(path)
    except _READ_ERRORS:
        return {}  # the fault of a data.yaml is told when its names are read
    return content if isinstance(content, dict) else {}
