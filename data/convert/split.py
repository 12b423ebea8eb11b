"""One annotated set into train, val and test, or into folds: every class in its share, what looks alike together.

Iterative stratification (K. Sechidis et al., On the Stratification of Multi-Label Data, 2011), with groups of images
that look alike in place of single images.

Legend: G groups, L kinds (classes, and "no boxes"), S splits.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.coco import CocoSplit, check_annotations, read_split
from data.convert.common import folder_beside, require_no_errors, write_checked
from data.errors import UserError
from data.files import write_json
from data.image_checks import alike_groups
from data.problems import Problem
from data.script import Report
from data.subsets import kinds_held
from data.types import FloatArray, IntArray

_NAMES = ("train", "val", "test")


def split_set(
    ann_file: Path,
    fractions: Mapping[str, float],
    *,
    folds: int | None,
    img_folder: Path | None,
    output_dir: Path | None,
    seed: int,
    report: Report,
) -> tuple[list[str], list[Problem]]:
    """Write `<name>_train.json`, ... or `<name>_fold_1_train.json`, `<name>_fold_1_val.json`, ... beside the annotation
    file (or in `output_dir`); entries are taken over as they stand, ids included.

    `fractions` of train, val, test add up to 1, and 0 leaves a split out; with `folds` equal parts there are none.
    `img_folder` None looks for `images` beside the file or its folder, then takes the file's folder. The seed decides
    which of equally good divisions is made.

    Returns:
        What was made, in lines for the person; and warnings.

    Raises:
        UserError: Faults of the arguments or the data, all at once; nothing has been written then.
    """
    names = _check_arguments(fractions, folds, seed)
    folder = output_dir or ann_file.parent
    targets = {name: folder / f"{ann_file.stem}_{name}.json" for name in names}
    existing = [str(path) for path in targets.values() if path.exists()]
    if existing:
        raise UserError("Files that exist are not overwritten; move them, or choose another --output-dir:", existing)
    usual = [place for place in (ann_file.parent / "images", ann_file.parent.parent / "images") if place.is_dir()]
    images = img_folder or (*usual, ann_file.parent)[0]
    split, problems = read_split("all", ann_file, images)
    problems += check_annotations(split)
    require_no_errors(problems)
    groups, found = alike_groups(split)
    require_no_errors(found)
    sets = fold_sets(split, groups, folds, seed) if folds else divide(split, groups, fractions, seed)
    warnings = _write(ann_file, sets, targets, images)
    report.wrote(**targets)
    report.metrics["images"] = {name: len(ids) for name, ids in sets.items()}
    lines = []
    for name, ids in sets.items():
        if folds and name.endswith("train"):
            continue  # all but the val beside it
        counts = split.without_images({image.id for image in split.images} - ids).boxes_per_class()
        boxes = ", ".join(f"{label} {count}" for label, count in zip(split.classes.names, counts, strict=True))
        lines.append(f"{name}: {len(ids)} images; boxes: {boxes}; {targets[name].as_posix()}")
    if folds:
        warnings += _classes_of_one_fold(split, sets)
    sizes = np.bincount(groups)
    if sizes.max() > 1:
        size = f"up to {sizes.max()} images"
        lines.append(f"{(sizes > 1).sum()} groups of images that look alike ({size}) stayed together")
    lines.append(f"img_folder: {images.as_posix()}")
    return lines + (_training_of_folds(targets, images) if folds else []), warnings


def _classes_of_one_fold(split: CocoSplit, sets: Mapping[str, set[int]]) -> Iterator[Problem]:
    """Warn of classes that a fold is judged on and not trained with."""
    holds, ids = kinds_held(split), np.array([image.id for image in split.images])
    for name, label in zip(split.classes.names, holds.T, strict=False):
        for fold, train in sets.items():
            if fold.endswith("train") and label.any() and not np.isin(ids[label], list(train)).any():
                found = f"{name}: all its {label.sum()} images validate in this fold, which trains without the class"
                yield split.warning(fold, found, "Add images of it, or read its AP as 0 there", "class of one fold")


def _training_of_folds(ann_files: Mapping[str, Path], img_folder: Path) -> list[str]:
    """What to type next: a training for each fold, then the comparison."""
    lines = ["Next, for each model (CONFIG: its config, NAME: what to call it):"]
    folds = [name.removesuffix("_train") for name in ann_files if name.endswith("train")]
    for fold in folds:
        updates = ["synthetic=null", "num_classes=auto"]
        for kind in ("train", "val"):
            section = f"{kind}_dataloader.dataset"
            updates.append(f"{section}.ann_file={ann_files[f'{fold}_{kind}'].as_posix()}")
            updates.append(f"{section}.img_folder={img_folder.as_posix()}")
        run = ["--output-dir", f"outputs/NAME_{fold}", "-u", *updates]
        lines.append(shlex.join(["python", "train_deimv2.py", "-c", "CONFIG", *run]))
    compare = shlex.join(["python", "compare_models.py", *(f"outputs/NAME_{fold}" for fold in folds)])
    return [*lines, "then all models in one table, each a row (more models: more runs behind these):", compare]


def fold_sets(split: CocoSplit, groups: IntArray, count: int, seed: int = 0) -> dict[str, set[int]]:
    """Return the ids of the images of `fold_1_train`, `fold_1_val`, `fold_2_train`, ...: each image in one val.

    Raises:
        UserError: There are too few groups.
    """
    every = {image.id for image in split.images}
    parts = divide(split, groups, {f"fold_{number}": 1 / count for number in range(1, count + 1)}, seed)
    return {
        f"{name}_{kind}": ids for name, val in parts.items() for kind, ids in (("train", every - val), ("val", val))
    }


def divide(split: CocoSplit, groups: IntArray, fractions: Mapping[str, float], seed: int) -> dict[str, set[int]]:
    """Return the ids of the images of each part; parts of 0 are left out.

    Raises:
        UserError: A part would be empty.
    """
    names = [name for name, fraction in fractions.items() if fraction > 0]
    ratios = np.array([fractions[name] for name in names])
    chosen = assign_groups(kinds_of_groups(split, groups), np.bincount(groups), ratios, seed)
    sets = {name: {split.images[i].id for i in np.flatnonzero(chosen[groups] == k)} for k, name in enumerate(names)}
    empty = [name for name, ids in sets.items() if not ids]
    if empty:
        count = int(groups.max()) + 1
        less = "Set --test 0, or add" if "test" in fractions else f"Give --folds {count}, or add"
        raise UserError(
            f"{split.ann_file}: {len(split)} images, of which {count} do not look alike, are too few: "
            f"{', '.join(empty)} would be empty. {less if count > 1 else 'Add'} images."
        )
    return sets


def assign_groups(kinds: IntArray, sizes: IntArray, ratios: FloatArray, seed: int) -> IntArray:
    """Choose the split of every group.

    A kind that is in S groups or more is in every split, if no rarer one stands against it. The seed decides between
    equals.

    Args:
        kinds: [G, L] images of the group that hold the kind; every group holds one.
        sizes: [G] images.
        ratios: [S] that add up to 1.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    wanted = np.outer(ratios, kinds.sum(axis=0)).astype(np.float64)  # [S, L] still to be given
    wanted_images = ratios * sizes.sum()
    has = np.zeros(wanted.shape, dtype=bool)
    chosen = np.full(len(sizes), -1, dtype=np.int64)
    while (chosen < 0).any():
        open_groups = order[chosen[order] < 0]
        left = (kinds[open_groups] > 0).sum(axis=0)
        # The rarest first: later there may be no choice for it.
        kind = int(np.argmin(np.where(left > 0, left, np.iinfo(np.int64).max)))
        members = open_groups[kinds[open_groups, kind] > 0]
        group = int(members[np.argmax(sizes[members])])  # large groups are hard to place: first
        lacking = np.flatnonzero(~has[:, kind])
        must_share = len(lacking) > 0 and len(members) <= len(lacking)
        candidates = lacking if must_share else np.arange(len(ratios))
        place = max(candidates.tolist(), key=lambda s: (round(wanted[s, kind], 9), round(wanted_images[s], 9)))
        chosen[group] = place
        wanted[place] -= kinds[group]
        wanted_images[place] -= sizes[group]
        has[place] |= kinds[group] > 0
    return chosen


def _check_arguments(fractions: Mapping[str, float], folds: int | None, seed: int) -> list[str]:
    """Return the names of the files to be written."""
    problems = [f"--{name} {value:g}: expected 0 to 1" for name, value in fractions.items() if not 0 <= value <= 1]
    problems += [f"--{name} 0: expected a part of the images" for name in ("train", "val") if fractions.get(name) == 0]
    total = sum(fractions.values())
    if folds is not None and fractions:
        problems = [f"--{name}: not with --folds, where each image validates once" for name in fractions]
        problems.append("a test set is divided off first; then its train file into folds")
    if folds is not None and not 2 <= folds <= 20:
        problems.append(f"--folds {folds}: expected 2 to 20")
    if not problems and folds is None and abs(total - 1) > 1e-6:
        shown = " + ".join(f"{fractions[name]:g}" for name in _NAMES if name in fractions)
        problems.append(f"{shown} = {total:g}: the parts must add up to 1")
    if seed < 0:
        problems.append(f"--seed {seed}: expected 0 or more")
    if problems:
        raise UserError("Parts that cannot be used:", problems)
    if folds is not None:
        return [f"fold_{number}_{kind}" for number in range(1, folds + 1) for kind in ("train", "val")]
    return [name for name in _NAMES if fractions.get(name, 0) > 0]


def kinds_of_groups(split: CocoSplit, groups: IntArray) -> IntArray:
    """[G, C + 1] images of the group with a box of the class; last column: images without any."""
    kinds = np.zeros((groups.max() + 1, len(split.classes) + 1), dtype=np.int64)
    np.add.at(kinds, groups, kinds_held(split))
    return kinds


def _write(
    ann_file: Path, sets: Mapping[str, set[int]], targets: Mapping[str, Path], img_folder: Path
) -> list[Problem]:
    """Write all files or none: they are made and checked in a folder of their own, then moved."""
    content: dict[str, Any] = json.loads(ann_file.read_text(encoding="utf-8-sig"))
    folder = next(iter(targets.values())).parent
    with folder_beside(folder / ann_file.stem, "cannot be written", "Choose another --output-dir") as work:
        contents: dict[Path, dict[str, Any]] = {}
        trains: dict[Path, dict[str, Any]] = {}
        for name, ids in sets.items():
            images = [entry for entry in content["images"] if entry["id"] in ids]
            annotations = [entry for entry in content["annotations"] if entry["image_id"] in ids]
            # What a fold trains on validates in the others, and is checked there.
            chosen = trains if name.startswith("fold") and name.endswith("train") else contents
            chosen[work / targets[name].name] = {**content, "images": images, "annotations": annotations}
        try:
            for path, part in trains.items():
                write_json(path, part, what="annotations")
            warnings = write_checked(contents, img_folder, work, folder)
        except ValueError as error:
            raise UserError(f"{ann_file}: holds a number that JSON does not know ({error}).") from error
        for path in targets.values():
            os.replace(work / path.name, path)
    return warnings
