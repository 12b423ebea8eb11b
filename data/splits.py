"""From the config to checked splits: everything that can be known before the first pixel is read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from data.box_sizes import check_box_sizes
from data.classes import ClassMap
from data.coco import CocoSplit, check_annotations, check_class_count, check_overlap, read_split
from data.config import DataConfig, DatasetConfig, loaders
from data.errors import UserError
from data.image_checks import check_headers, check_images
from data.problems import Problem, errors_of, problem_lines, warnings_of
from data.synthetic import ensure_dataset

log = logging.getLogger(__name__)

_SHOWN_PER_KIND = 10


@dataclass(frozen=True)
class DataBundle:
    """The splits of one run and what is known about them."""

    classes: ClassMap
    splits: dict[str, CocoSplit]
    problems: list[Problem]


def build_datasets(
    config: DataConfig, splits: Sequence[str] = ("train", "val"), classes: ClassMap | None = None
) -> DataBundle:
    """Read the annotation files and the headers of the images; draw generated data first.

    With `on_bad_data: skip` every image is opened once, so that unreadable ones can be left out.

    The first split's categories are the classes, unless those of a checkpoint are given.

    Raises:
        UserError: The data have errors, all of them listed; or nothing is left after skipping.
    """
    found, problems = read_splits(config, splits, classes)
    if config.on_bad_data == "skip" and all(problem.skippable for problem in errors_of(problems)):
        log.info("on_bad_data: skip: opening every image once")
        opened = check_images(found, allow_split_overlap=True)
        problems += [problem for problem in opened if problem.severity == "error"]
        bad = [{problem.bad_image_id for problem in problems if problem.file == str(one.ann_file)} for one in found]
        found = [split.without_images(image_ids) for split, image_ids in zip(found, bad, strict=True)]
        _log_summary("on_bad_data: skip left out faulty entries", errors_of(problems))
    else:
        problems = list(dict.fromkeys([*problems, *chain.from_iterable(map(check_headers, found))]))
        if errors := errors_of(problems):
            raise UserError(
                f"The data set has {len(errors)} error{'s' if len(errors) > 1 else ''} (`python check_data.py -c "
                "CONFIG` looks at the images as well; `python -m data.convert coco` repairs much of what tools export; "
                "`on_bad_data: skip` leaves single faulty entries out):",
                problem_lines(errors, _SHOWN_PER_KIND),
            )
    for split in found:
        if not len(split):
            raise UserError(
                f"{split.ann_file}: split {split.name} is empty: it has no usable image. Add images, or correct "
                f"{split.name}_dataloader.dataset."
            )
    _log_summary("data warnings", warnings_of(problems))
    return DataBundle(found[0].classes, {split.name: split for split in found}, problems)


def read_splits(
    config: DataConfig, names: Sequence[str], classes: ClassMap | None = None
) -> tuple[list[CocoSplit], list[Problem]]:
    """Read the splits with their sound entries, and all problems that need no image to be opened.

    Raises:
        UserError: A path holds an environment variable that is not set, there is no such split, or generated
            data cannot be written.
    """
    sections = [_dataset_section(config, name) for name in names]
    synthetic = config.synthetic
    if synthetic is not None and any(dataset.ann_file.is_relative_to(synthetic.root) for dataset in sections):
        ensure_dataset(synthetic)
    splits: list[CocoSplit] = []
    problems: list[Problem] = []
    for name, dataset in zip(names, sections, strict=True):
        split, found = read_split(
            name, dataset.ann_file, dataset.img_folder, normal_boxes=config.normal_boxes, classes=classes
        )
        splits.append(split)
        problems += found + check_class_count(split, config.num_classes) + check_annotations(split)
        problems += check_box_sizes(split, dataset.transforms, config.tiles, training=name == "train")
        if len(split.classes):
            classes = split.classes
    if not config.allow_split_overlap:
        problems += check_overlap(splits)
    return splits, list(dict.fromkeys(problems))


def _dataset_section(config: DataConfig, name: str) -> DatasetConfig:
    key, sections = f"{name}_dataloader", loaders(config)
    if key not in sections:
        raise UserError(f"The config has no section {key}. Add it, or choose one of {', '.join(sections)}.")
    dataset = sections[key].dataset
    dataset.require_paths(f"{key}.dataset")
    return dataset


def _log_summary(title: str, problems: Sequence[Problem]) -> None:
    """One line for each kind of problem in each file."""
    examples = {(problem.file, problem.kind): problem for problem in reversed(problems)}
    counts = Counter((problem.file, problem.kind) for problem in problems)
    for (file, kind), count in counts.items():
        log.warning("%s: %d x %s (check_data.py lists them); e.g. %s", title, count, kind, examples[file, kind])
