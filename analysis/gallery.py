"""The worst misses and false alarms as pictures: each a crop around the finding, ground truth and predictions drawn."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from analysis.labels import Labels, Language, labels_of
from analysis.result import ERROR_KINDS, Analysis, Finding
from analysis.style import (
    FOUND_COLOUR,
    TRUTH_COLOUR,
    FigureFiles,
    figure_style,
    new_figure,
    save_figure,
    tidy,
)
from data.coco import CocoSplit
from data.errors import UserError
from data.images import decode_image
from engine.coco_metrics import Prediction
from engine.pictures import Picture

log = logging.getLogger(__name__)

FloatArray = NDArray[np.float64]

_COLUMNS = 3
_ROWS = 4
_CONTEXT = 2.5
"""Side of the crop, in sides of the box."""
_LEAST_CROP_PX = 96
_CROP_FILE_PX = 480
"""No crop is stored finer: 5 cm of paper at 200 dpi are 400 pixels."""
_MAX_PREDICTIONS = 12
_SAME_BOX_PX = 0.1
_CHARACTER_WIDTH, _NAME_HEIGHT = 0.024, 0.045
"""What a name takes of a crop, about: a character, and the line."""


@dataclass(frozen=True)
class GalleryFiles:
    """The sheets on disk, and which images are not on them."""

    sheets: tuple[FigureFiles, ...]
    left_out: tuple[str, ...]
    """One sentence an image that could not be read."""


@dataclass(frozen=True)
class _DrawnBox:
    """Corners in pixels of the original image."""

    xyxy: tuple[float, float, float, float]
    text: str
    is_truth: bool
    is_finding: bool


@dataclass(frozen=True)
class _Crop:
    """What one cell of a sheet shows."""

    pixels: Picture
    window_xyxy: tuple[int, int, int, int]
    boxes: tuple[_DrawnBox, ...]
    caption: str
    file_name: str


def write_gallery(
    analysis: Analysis,
    split: CocoSplit,
    predictions: Sequence[Prediction],
    folder: Path,
    lang: Language,
    *,
    count: int = _COLUMNS * _ROWS,
) -> GalleryFiles:
    """Write gallery_missed.png/.pdf and gallery_false_alarm.png/.pdf, further sheets as `..._2`, into `folder`.

    One image is in memory at a time, and of it only the crops are kept. An image that cannot be read is left out,
    logged and named in the result.

    Args:
        analysis: Its `gallery` is drawn, and the confidence of its confusion matrix is what predictions need to be
            drawn.
        split: Where the images and boxes are.
        predictions: COCO results of the split.
        folder: Created if need be.
        lang: Of the texts.
        count: Findings of each kind; a sheet holds twelve.

    Raises:
        UserError: The folder cannot be written.
    """
    labels = labels_of(lang)
    chosen = [f for kind in ("missed", "false_alarm") for f in [g for g in analysis.gallery if g.kind == kind][:count]]
    crops, left_out = _crops(analysis, split, predictions, chosen, labels)
    sheets = []
    with figure_style():
        for kind, title in (("missed", labels.gallery_missed), ("false_alarm", labels.gallery_false_alarms)):
            of_kind = [crops[k] for k, finding in enumerate(chosen) if finding.kind == kind and k in crops]
            pages = math.ceil(len(of_kind) / (_COLUMNS * _ROWS))
            for page in range(pages):
                shown = of_kind[page * _COLUMNS * _ROWS : (page + 1) * _COLUMNS * _ROWS]
                heading = title if pages == 1 else labels.gallery_page.format(title=title, page=page + 1, pages=pages)
                name = f"gallery_{kind}" + (f"_{page + 1}" if page else "")
                sheets.append(_write_sheet(shown, folder, name, heading, analysis.confusion.score, labels))
    return GalleryFiles(tuple(sheets), tuple(left_out))


def _crops(
    analysis: Analysis,
    split: CocoSplit,
    predictions: Sequence[Prediction],
    findings: Sequence[Finding],
    labels: Labels,
) -> tuple[dict[int, _Crop], list[str]]:
    """Crops by position in `findings`, and what could not be read."""
    by_image: dict[int, list[int]] = defaultdict(list)
    for k, finding in enumerate(findings):
        if np.isfinite(finding.box_xywh).all():
            by_image[finding.image_id].append(k)
    found: dict[int, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction["image_id"] in by_image and prediction["score"] >= analysis.confusion.score:
            found[prediction["image_id"]].append(prediction)
    crops, left_out = {}, []
    for image in split.images:
        if image.id not in by_image:
            continue
        try:
            pixels = decode_image(image.path)
        except (UserError, MemoryError) as error:
            reason = str(error) or f"{image.path}: not enough memory to read it."
            log.warning("Gallery: left out: %s", reason)
            left_out.append(reason)
            continue
        rows = split.training_rows(image)
        truth = [(split.boxes_xywh[row], int(split.labels[row])) for row in rows]
        for k in by_image[image.id]:
            boxes = _boxes(findings[k], truth, found[image.id], split, labels)
            window = _window(findings[k].box_xywh, (pixels.shape[1], pixels.shape[0]))
            caption = _caption(findings[k], split, labels)
            crops[k] = _Crop(_cut(pixels, window), window, boxes, caption, image.file_name)
    return crops, left_out


def _caption(finding: Finding, split: CocoSplit, labels: Labels) -> str:
    name = tidy(_name(split, finding.label), 18)
    if finding.kind == "missed":
        near = labels.gallery_touched.format(score=labels.number(finding.score, 2))
        return f"{name} · {near if finding.score > 0 else labels.gallery_not_touched}"
    kinds: Mapping[str, str] = {kind: labels.error_kinds[kind] for kind in ERROR_KINDS}
    return f"{name} {labels.number(finding.score, 2)} · {kinds.get(finding.note, tidy(finding.note, 20))}"


def _boxes(
    finding: Finding,
    truth: Sequence[tuple[FloatArray, int]],
    found: Sequence[Prediction],
    split: CocoSplit,
    labels: Labels,
) -> tuple[_DrawnBox, ...]:
    """The boxes of the image, the finding last, so that it lies on top; predictions best first up to a limit."""
    is_miss = finding.kind == "missed"
    target = np.asarray(finding.box_xywh, dtype=np.float64)

    def is_finding(box_xywh: FloatArray, label: int) -> bool:
        return label == finding.label and bool(np.abs(box_xywh - target).max() < _SAME_BOX_PX)

    def predicted(label: int, score: float) -> str:
        return f"{tidy(_name(split, label), 16)} {labels.number(score, 2)}"

    drawn = [
        _DrawnBox(_corners(box), tidy(_name(split, label), 16), True, False)
        for box, label in truth
        if not (is_miss and is_finding(box, label))
    ]
    label_of = split.classes.label_of
    best = sorted(found, key=lambda p: -p["score"])[:_MAX_PREDICTIONS]
    for prediction in best:
        box, label = np.asarray(prediction["bbox"], dtype=np.float64), label_of[prediction["category_id"]]
        if is_miss or not is_finding(box, label):
            drawn.append(_DrawnBox(_corners(box), predicted(label, prediction["score"]), False, False))
    text = tidy(_name(split, finding.label), 16) if is_miss else predicted(finding.label, finding.score)
    return (*drawn, _DrawnBox(_corners(target), text, is_miss, True))


def _window(box_xywh: Sequence[float], size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
    """Corners of a square around the box, moved and cut so that it lies inside the image; at least one pixel."""
    x, y, w, h = box_xywh
    side = max(_CONTEXT * max(w, h), _LEAST_CROP_PX)
    ends = []
    for centre, limit in ((x + w / 2, size_wh[0]), (y + h / 2, size_wh[1])):
        length = max(min(round(side), limit), 1)
        start = int(np.clip(round(centre - length / 2), 0, limit - length))
        ends.append((start, start + length))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def _cut(pixels: Picture, window: tuple[int, int, int, int]) -> Picture:
    """A copy, so that the whole image can be let go."""
    left, top, right, bottom = window
    part = pixels[top:bottom, left:right]
    factor = _CROP_FILE_PX / max(part.shape[:2])
    if factor >= 1:
        return part.copy()
    size = max(round(part.shape[1] * factor), 1), max(round(part.shape[0] * factor), 1)
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _write_sheet(
    crops: Sequence[_Crop], folder: Path, name: str, title: str, min_score: float, labels: Labels
) -> FigureFiles:
    rows = math.ceil(len(crops) / _COLUMNS)
    figure = new_figure(5.2 * rows + 1.2)
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for cell in cells:
        cell.axis("off")
    for cell, crop in zip(cells, crops, strict=False):
        _draw_crop(cell, crop)
    handles = [
        Line2D([], [], color=TRUTH_COLOUR, linestyle="-", linewidth=1.2),
        Line2D([], [], color=FOUND_COLOUR, linestyle="--", linewidth=1.2),
        Line2D([], [], color="black", linestyle="-", linewidth=2.6),
    ]
    texts = [
        labels.gallery_truth,
        labels.gallery_prediction.format(score=labels.number(min_score, 2)),
        labels.gallery_finding,
    ]
    figure.legend(handles, texts, loc="outside lower center", ncols=3)
    png, pdf = save_figure(figure, folder, name)
    items = "; ".join(f"{crop.caption} ({tidy(crop.file_name, 40)})" for crop in crops)
    return FigureFiles(name, title, labels.gallery_alt.format(title=title, count=len(crops), items=items), png, pdf)


def _draw_crop(cell: Any, crop: _Crop) -> None:
    """The crop in pixels of the original image; truth solid, predictions dashed, the finding thick."""
    left, top, right, bottom = crop.window_xyxy
    cell.imshow(crop.pixels, extent=(left, right, bottom, top))
    cell.set(xlim=(left, right), ylim=(bottom, top))
    cell.set_title(f"{crop.caption}\n{tidy(crop.file_name, 34)}", fontsize=6)
    visible = [
        box
        for box in crop.boxes
        if box.xyxy[0] < right and box.xyxy[1] < bottom and box.xyxy[2] > left and box.xyxy[3] > top
    ]
    for box in visible:
        x1, y1, x2, y2 = box.xyxy
        colour = TRUTH_COLOUR if box.is_truth else FOUND_COLOUR
        width = 2.4 if box.is_finding else 1.0
        # A white rim shows dark lines on dark steel.
        rim = [withStroke(linewidth=width + 1.2, foreground="white")]
        dashes = "-" if box.is_truth else "--"
        shape = Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=colour,
            linewidth=width,
            linestyle=dashes,
            path_effects=rim,
        )
        cell.add_patch(shape)
    _write_names(cell, crop.window_xyxy, visible)


def _write_names(cell: Any, window_xyxy: tuple[int, int, int, int], visible: Sequence[_DrawnBox]) -> None:
    """The names of the boxes, moved into the crop where they would reach beyond it; those without room are left out."""
    left, top, right, bottom = window_xyxy
    taken: list[tuple[float, float, float]] = []
    for box in reversed(visible):  # the finding first: later names give way
        # Truth is named at the upper corner, predictions at the lower one: the same box needs both.
        x, y = max(box.xyxy[0], left), max(box.xyxy[1], top) if box.is_truth else min(box.xyxy[3], bottom)
        width = min(_CHARACTER_WIDTH * len(box.text), 1.0)
        start, height = min((x - left) / (right - left), 1 - width), (y - top) / (bottom - top)
        if any(start < u + w and u < start + width and abs(height - v) < _NAME_HEIGHT for u, v, w in taken):
            continue
        taken.append((start, height, width))
        cell.text(
            left + start * (right - left),
            y,
            box.text,
            fontsize=5,
            color=TRUTH_COLOUR if box.is_truth else FOUND_COLOUR,
            va="top" if box.is_truth else "bottom",
            clip_on=True,
            path_effects=[withStroke(linewidth=1.4, foreground="white")],
        )


def _corners(box_xywh: FloatArray) -> tuple[float, float, float, float]:
    x, y, w, h = (float(v) for v in box_xywh)
    return x, y, x + w, y + h


def _name(split: CocoSplit, label: int) -> str:
    names = split.classes.names
    return names[label] if 0 <= label < len(names) else f"class {label}"
