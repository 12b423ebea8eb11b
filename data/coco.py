"""COCO annotation files: read, checked, packed. No pixel is read here (see `data/image_checks.py`).

Legend: I images, N boxes of a split, n boxes of one image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from data.classes import ClassMap
from data.coco_reader import AnnotationReader, BoxColumns, ImageRecord, garbage_collector_paused
from data.errors import UserError
from data.image_files import check_image_files
from data.images import ImageFacts
from data.problems import Problem, errors_of, problem_lines, shorten
from data.types import BoolArray, FloatArray, IntArray

log = logging.getLogger(__name__)

NormalBoxes = Literal["keep", "as_negative"]

_WHOLE_IMAGE_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class CocoSplit:
    """The sound entries of one annotation file; the boxes of all images in common arrays, in order."""

    name: str
    """train, val or test."""
    ann_file: Path
    img_folder: Path
    classes: ClassMap
    images: tuple[ImageRecord, ...]
    boxes_xywh: FloatArray
    """[N, 4], pixels, as in the file."""
    labels: IntArray
    """[N], contiguous."""
    areas: FloatArray
    """[N], square pixels, as in the file or computed."""
    crowd: BoolArray
    """[N], crowd boxes: never trained on, ignored regions in evaluation."""
    pseudo: BoolArray
    """[N], boxes with `pseudo: 1`: drawn by a network, not by a person; `DEIMCriterion.pseudo_weight` weighs them."""
    annotation_ids: IntArray
    """[N], as in the file, for messages."""

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def image_sizes_wh(self) -> FloatArray:
        """[N, 2], pixels, of each box's image."""
        sizes = np.array([(image.width, image.height) for image in self.images], dtype=np.float64).reshape(-1, 2)
        return sizes.repeat([image.rows.stop - image.rows.start for image in self.images], axis=0)

    @cached_property
    def boxes_xyxy(self) -> npt.NDArray[np.float32]:
        """[N, 4], pixels, clipped to the image."""
        corners = np.concatenate([self.boxes_xywh[:, :2], self.boxes_xywh[:, :2] + self.boxes_xywh[:, 2:]], axis=1)
        clipped: npt.NDArray[np.float32] = np.clip(corners, 0, np.tile(self.image_sizes_wh, 2)).astype(np.float32)
        return clipped

    def training_rows(self, image: ImageRecord) -> IntArray:
        """Return the rows of the image's boxes without the crowd boxes, [n]."""
        rows = np.arange(image.rows.start, image.rows.stop)
        return rows[~self.crowd[rows]]

    def boxes_per_class(self) -> list[int]:
        """Count the boxes of each class that are not crowd boxes, [C]."""
        return [int(n) for n in np.bincount(self.labels[~self.crowd], minlength=len(self.classes))]

    def warning(self, where: str, found: str, fix: str, kind: str) -> Problem:
        """Note what is legal but deserves a look."""
        return Problem("warning", str(self.ann_file), where, found, fix, kind)

    def without_images(self, image_ids: Collection[int | None]) -> CocoSplit:
        """Return the split with some images and their boxes left out."""
        gone = set(image_ids)
        kept = [image for image in self.images if image.id not in gone]
        rows = np.concatenate([np.empty(0, np.int64), *(np.arange(i.rows.start, i.rows.stop) for i in kept)])
        return self.with_rows(rows, _with_rows(kept, [image.rows.stop - image.rows.start for image in kept]))

    def with_rows(self, rows: IntArray, images: Sequence[ImageRecord]) -> CocoSplit:
        """Return the split with chosen boxes, and images whose `rows` are numbers among them."""
        columns = ("boxes_xywh", "labels", "areas", "crowd", "pseudo", "annotation_ids")
        return replace(self, images=tuple(images), **{name: getattr(self, name)[rows] for name in columns})

    def to_coco(self) -> dict[str, list[dict[str, Any]]]:
        """Return COCO's own form, with the data set's category ids; annotations are numbered anew from 1."""
        category_ids = [self.classes.category_ids[label] for label in self.labels.tolist()]
        annotations = [
            {
                "id": row + 1,
                "image_id": image.id,
                "category_id": category_ids[row],
                "bbox": self.boxes_xywh[row].tolist(),
                "area": float(self.areas[row]),
                "iscrowd": int(self.crowd[row]),
            }
            | ({"pseudo": 1} if self.pseudo[row] else {})
            for image in self.images
            for row in range(image.rows.start, image.rows.stop)
        ]
        images = [{"id": i.id, "file_name": i.file_name, "width": i.width, "height": i.height} for i in self.images]
        named = zip(self.classes.category_ids, self.classes.names, strict=True)
        categories = [{"id": category_id, "name": name} for category_id, name in named]
        return {"images": images, "annotations": annotations, "categories": categories}


def read_split(
    name: str,
    ann_file: Path,
    img_folder: Path,
    *,
    normal_boxes: NormalBoxes = "keep",
    classes: ClassMap | None = None,
) -> tuple[CocoSplit, list[Problem]]:
    """Return the sound entries of an annotation file, and all its faults; a useless file gives an empty split.

    `normal_boxes` "as_negative" drops the boxes of the class NORMAL; the class itself stays. Labels refer to `classes`
    (the training split's or a checkpoint's), or the file's own.
    """
    reader = AnnotationReader(name, ann_file, img_folder)
    with garbage_collector_paused():
        raw = reader.load()
        categories = reader.categories(raw)
        if classes is None:
            classes = ClassMap.from_categories([{"id": key, "name": text} for key, text in categories.items()])
        else:
            reader.compare_classes(categories, classes)
        images = reader.images(raw)
        boxes = reader.annotations(raw, images, categories, classes)
    split = _pack(reader, classes, images, boxes, as_negative=normal_boxes == "as_negative")
    return split, reader.problems + _content_warnings(split, normal_boxes)


def count_classes(ann_file: Path, img_folder: Path) -> int:
    """Count the categories of a training split's annotation file, for `num_classes: auto`.

    Raises:
        UserError: There is no usable one.
    """
    reader = AnnotationReader("train", ann_file, img_folder)
    count = len(reader.categories(reader.load()))
    if not count:
        message = "num_classes: auto counts the categories of the training annotations, which say none:"
        raise UserError(message, problem_lines(errors_of(reader.problems), None))
    return count


def check_annotations(split: CocoSplit) -> list[Problem]:
    """Check that the image files exist inside the image folder, which `read_split` does not."""
    return check_image_files(str(split.ann_file), split.img_folder, [(i.id, i.file_name) for i in split.images])


def check_class_count(split: CocoSplit, num_classes: int) -> list[Problem]:
    """Compare the config's `num_classes` with the file's categories."""
    count = len(split.classes)
    if count == num_classes or count == 0:
        return []
    names = ", ".join(f"{i}={shorten(n)}" for i, n in zip(split.classes.category_ids, split.classes.names, strict=True))
    found = f"the file has {count} categories ({names}), but the config says num_classes: {num_classes}"
    fix = f"Set num_classes: {count} in the config, or -u num_classes={count}"
    return [Problem("error", str(split.ann_file), "categories", found, fix, "class count")]


def check_overlap(splits: Sequence[CocoSplit]) -> list[Problem]:
    """Find the same image file in two splits. Copies under other names are found by `check_images`."""
    problems = []
    seen: dict[Path, CocoSplit] = {}
    for split in splits:
        real = cache(os.path.realpath)
        paths = {Path(real(image.path.parent), image.path.name): image for image in split.images}
        for path, image in paths.items():
            if path in seen:
                problems.append(overlap_problem(split, image, seen[path].name, image.file_name, "the same file"))
        seen = dict.fromkeys(paths, split) | seen
    return problems


def overlap_problem(split: CocoSplit, image: ImageRecord, other: str, other_file: str, how: str) -> Problem:
    """Report an image that is in two splits."""
    return Problem(
        "error",
        str(split.ann_file),
        f"{image.where} of split {split.name}",
        f"is also in split {other} ({other_file}; {how}): results on {split.name} would flatter",
        "Remove it from one split, or set allow_split_overlap: True if this is meant",
        kind="same image in two splits",
    )


def size_problem(split: CocoSplit, image: ImageRecord, facts: ImageFacts) -> Problem | None:
    """Compare an image's upright size with what the annotations say."""
    expected, (width, height) = (image.width, image.height), facts.upright_wh
    if (width, height) == expected:
        return None
    found = f"the image is {width} x {height} pixels, but the annotation file says {expected[0]} x {expected[1]}"
    fix = "Correct width and height; if the image was resized after annotation, scale its boxes as well"
    if facts.size_wh == expected:
        found += f" (its size before EXIF orientation {facts.orientation} is applied)"
        fix = "The boxes were drawn on the unrotated image: remove the EXIF orientation from the file, or annotate anew"
    return Problem("error", str(split.ann_file), image.where, found, fix, "size mismatch", True, image.id)


def _pack(
    reader: AnnotationReader,
    classes: ClassMap,
    images: Mapping[int, ImageRecord],
    boxes: BoxColumns,
    *,
    as_negative: bool,
) -> CocoSplit:
    split = CocoSplit(
        name=reader.name,
        ann_file=reader.ann_file,
        img_folder=reader.img_folder,
        classes=classes,
        images=(),
        boxes_xywh=np.array(boxes.boxes_xywh, dtype=np.float64).reshape(-1, 4),
        labels=np.array(boxes.labels, dtype=np.int64),
        areas=np.array(boxes.areas, dtype=np.float64),
        crowd=np.array(boxes.crowd, dtype=np.bool_),
        pseudo=np.array(boxes.pseudo, dtype=np.bool_),
        annotation_ids=np.array(boxes.annotation_ids, dtype=np.int64),
    )
    places = np.array(boxes.places, dtype=np.int64)
    order = np.argsort(places, kind="stable")  # the file's order within an image
    if as_negative and classes.normal_label is not None:
        order = order[split.labels[order] != classes.normal_label]
        if dropped := len(places) - len(order):
            log.info("%s: normal_boxes: as_negative: %d NORMAL boxes dropped", reader.ann_file, dropped)
    return split.with_rows(order, _with_rows(images.values(), np.bincount(places[order], minlength=len(images))))


def _with_rows(images: Collection[ImageRecord], counts: npt.ArrayLike) -> tuple[ImageRecord, ...]:
    """Tell each image which rows are its boxes, from how many it has."""
    ends = np.cumsum(counts, dtype=np.int64).tolist()
    starts = [0, *ends][: len(images)]
    return tuple(replace(image, rows=slice(a, b)) for image, a, b in zip(images, starts, ends, strict=True))


def _content_warnings(split: CocoSplit, normal_boxes: NormalBoxes) -> list[Problem]:
    """What is legal but deserves a look."""
    problems, where = list(_repeated_boxes(split)), f"split {split.name}"
    crowd_ids = split.annotation_ids[split.crowd].tolist()
    if crowd_ids:
        text = f"{len(crowd_ids)} crowd boxes (iscrowd: 1), e.g. annotation {crowd_ids[0]}"
        fix = "They are not trained on and count neither way in evaluation; split them into single objects"
        problems.append(split.warning("annotations", text, fix, "crowd boxes"))
    normal, counts = split.classes.normal_label, split.boxes_per_class()
    if len(split) and not sum(counts):
        text, fix = "there is not a single box", "Export the annotations again, unless all images are free of objects"
        problems.append(split.warning(where, text, fix, "no boxes"))
    for label, count in enumerate(counts if len(split) and sum(counts) else ()):
        if count == 0 and label != normal:
            text = f"category {split.classes.category_ids[label]} ({split.classes.names[label]}) has no boxes"
            fix = "Annotate some, or remove the class" if split.name == "train" else "Its AP will be empty (null)"
            problems.append(split.warning(where, text, fix, "class without boxes"))
    is_normal = split.labels == (-1 if normal is None or normal_boxes != "keep" else normal)
    shares = split.boxes_xywh[:, 2:].prod(axis=1) / split.image_sizes_wh.prod(axis=1)
    whole = split.annotation_ids[is_normal & (shares >= _WHOLE_IMAGE_SHARE)]
    if normal is not None and len(whole):
        found = f"{len(whole)} of {is_normal.sum()} boxes of the class {split.classes.names[normal]} cover the whole "
        found += f"image (e.g. annotation {whole[0]}): easy AP that flatters the mean"
        fix = "Set normal_boxes: as_negative to make these images negatives, or read metrics_defects"
        problems.append(split.warning(where, found, fix, "whole-image NORMAL boxes"))
    return problems


def _repeated_boxes(split: CocoSplit) -> Iterator[Problem]:
    boxes = split.boxes_xywh.round(2)
    for image in split.images:
        first: dict[tuple[float, ...], int] = {}
        for row, box in enumerate(boxes[image.rows].tolist(), image.rows.start):
            key = tuple(box)
            earlier = first.setdefault(key, row)
            if earlier == row:
                continue
            a, b = (int(split.annotation_ids[r]) for r in (earlier, row))
            names = {split.classes.names[split.labels[r]] for r in (earlier, row)}
            text = f"annotations {a} and {b} have the same box {list(key)} (class {' / '.join(sorted(names))})"
            yield split.warning(image.where, text, "Remove one of them", "repeated box")
