"""The worst misses and false alarms as pictures: each a crop around the finding, ground truth and predictions drawn."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from analysis.analyse import Analysis
from analysis.errors import Finding
from analysis.style import (
    FOUND_COLOUR,
    TRUTH_COLOUR,
    BoxNames,
    FigureFiles,
    figure_style,
    frame,
    new_figure,
    save_figure,
    tidy,
)
from data.coco import CocoSplit
from data.errors import UserError
from data.images import decode_image
from data.types import PixelArray
from engine.metrics import Prediction
from texts import Language, Texts, texts_of

log = logging.getLogger(__name__)

_COLUMNS = 3
_CONTEXT = 2.5
"""Side of the crop, in sides of the box."""
_LEAST_CROP_PX = 96
_CROP_FILE_PX = 480
"""No crop is stored finer: 5 cm of paper at 200 dpi are 400 pixels."""
_MAX_PREDICTIONS = 12
_SAME_BOX_PX = 0.1


class GalleryFiles(NamedTuple):
    """The sheets on disk, and which images are not on them."""

    sheets: tuple[FigureFiles, ...]
    left_out: tuple[str, ...]
    """One sentence an image that could not be read."""


class _DrawnBox(NamedTuple):
    xyxy: tuple[float, float, float, float]
    """Corners in pixels of the original image."""
    text: str
    is_truth: bool
    is_finding: bool

    @property
    def colour(self) -> str:
        return TRUTH_COLOUR if self.is_truth else FOUND_COLOUR


class _Crop(NamedTuple):
    """What one cell of a sheet shows."""

    pixels: PixelArray
    window_xyxy: tuple[int, int, int, int]
    boxes: Sequence[_DrawnBox]
    caption: str
    file_name: str


def write_gallery(
    analysis: Analysis,
    split: CocoSplit,
    predictions: Sequence[Prediction],
    folder: Path,
    lang: Language,
    *,
    captions: bool = True,
) -> GalleryFiles:
    """Write gallery_missed.png/.pdf and gallery_false_alarm.png/.pdf into `folder`.

    Predictions are drawn from the confidence of the confusion matrix on. One image is in memory at a time, and of it
    only the crops are kept. An image that cannot be read is left out, logged and named in the result.
    """
    texts, min_score = texts_of(lang, "gallery"), analysis.results["confusion"]["score"]
    crops, left_out = _crops(analysis.findings, split, predictions, min_score, texts)
    sheets = []
    with figure_style():
        for kind, title in (("missed", texts["missed"]), ("false_alarm", texts["false_alarms"])):
            shown = [crops[k] for k, finding in enumerate(analysis.findings) if finding.kind == kind and k in crops]
            if shown:
                sheets.append(_write_sheet(shown, folder, f"gallery_{kind}", title, min_score, texts, captions))
    return GalleryFiles(tuple(sheets), tuple(left_out))


def _crops(
    findings: Sequence[Finding],
    split: CocoSplit,
    predictions: Sequence[Prediction],
    min_score: float,
    texts: Texts,
) -> tuple[dict[int, _Crop], list[str]]:
    """Crops by position in `findings`, and what could not be read."""
    sure = [one for one in predictions if one["score"] >= min_score]
    crops, left_out = {}, []
    for image in split.images:
        own = [k for k, finding in enumerate(findings) if finding.image_id == image.id]
        if not own:
            continue
        try:
            pixels = decode_image(image.path)
        except (UserError, MemoryError) as error:
            left_out.append(str(error) or f"{image.path}: not enough memory to read it.")
            log.warning("Gallery: left out: %s", left_out[-1])
            continue
        truth = [(split.boxes_xywh[row].tolist(), int(split.labels[row])) for row in split.training_rows(image)]
        predicted = [one for one in sure if one["image_id"] == image.id]
        for k in own:
            boxes = _boxes(findings[k], truth, predicted, split, texts)
            window = window_around(findings[k].box_xywh, (pixels.shape[1], pixels.shape[0]))
            caption = _caption(findings[k], split.classes.names[findings[k].label], texts)
            crops[k] = _Crop(cut(pixels, window), window, boxes, caption, image.file_name)
    return crops, left_out


def _caption(finding: Finding, name: str, texts: Texts) -> str:
    name, score = tidy(name, 18), texts.number(finding.score, 2)
    if finding.kind == "missed":
        return f"{name} · {texts('touched', score=score) if finding.score > 0 else texts['not_touched']}"
    caption = f"{name} {score} · {texts_of(texts.language, 'error_kinds')[finding.note]}"
    if finding.first_score is None:
        return caption
    first = {"score": texts.number(finding.first_score, 2), "iou": texts.number(finding.first_iou, 2)}
    return f"{caption}\n{texts('duplicate_of', **first)}"


def _boxes(
    finding: Finding,
    truth: Sequence[tuple[Sequence[float], int]],
    predicted: Sequence[Prediction],
    split: CocoSplit,
    texts: Texts,
) -> list[_DrawnBox]:
    """The boxes of the image, the finding last, so that it lies on top; predictions best first up to a limit."""
    missed, label_of = finding.kind == "missed", split.classes.label_of

    def drawn(box_xywh: Sequence[float], label: int, score: float | None) -> _DrawnBox:
        x, y, width, height = box_xywh
        text = tidy(split.classes.names[label], 16) + ("" if score is None else f" {texts.number(score, 2)}")
        away_px = float(np.abs(np.subtract(box_xywh, finding.box_xywh)).max())
        is_finding = (score is None) == missed and label == finding.label and away_px < _SAME_BOX_PX
        return _DrawnBox((x, y, x + width, y + height), text, score is None, is_finding)

    best = sorted(predicted, key=lambda one: -one["score"])[:_MAX_PREDICTIONS]
    others = [drawn(box, label, None) for box, label in truth]
    others += [drawn(one["bbox"], label_of[one["category_id"]], one["score"]) for one in best]
    target = drawn(finding.box_xywh, finding.label, None if missed else finding.score)
    return [*(box for box in others if not box.is_finding), target]


def window_around(box_xywh: Sequence[float], size_wh: tuple[int, int]) -> tuple[int, int, int, int]:
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


def cut(pixels: PixelArray, window: tuple[int, int, int, int]) -> PixelArray:
    """A copy, so that the whole image can be let go."""
    left, top, right, bottom = window
    part = pixels[top:bottom, left:right]
    factor = _CROP_FILE_PX / max(part.shape[:2])
    if factor >= 1:
        return part.copy()
    size = max(round(part.shape[1] * factor), 1), max(round(part.shape[0] * factor), 1)
    return np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _write_sheet(
    crops: Sequence[_Crop], folder: Path, name: str, title: str, min_score: float, texts: Texts, captions: bool
) -> FigureFiles:
    rows = math.ceil(len(crops) / _COLUMNS)
    figure = new_figure(5.2 * rows + 1.2)
    cells = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for cell in cells:
        cell.axis("off")
    for cell, crop in zip(cells, crops, strict=False):
        _draw_crop(cell, crop)
    prediction = texts("prediction", score=texts.number(min_score, 2))
    looks: tuple[tuple[str, dict[str, Any]], ...] = (
        (texts["truth"], {"color": TRUTH_COLOUR, "linewidth": 1.2}),
        (prediction, {"color": FOUND_COLOUR, "linewidth": 1.2, "linestyle": "--"}),
        (texts["finding"], {"color": "black", "linewidth": 2.6}),
    )
    legend = [Line2D([], [], label=label, **look) for label, look in looks]
    figure.legend(handles=legend, loc="outside lower center", ncols=3)
    items = "; ".join(f"{' '.join(crop.caption.split())} ({tidy(crop.file_name, 40)})" for crop in crops)
    description = texts("alt", title=title, count=len(crops), items=items)
    png, pdf = save_figure(figure, folder, name, text_beside=None if captions else description)
    return FigureFiles(name, title, description, png, pdf)


def _draw_crop(cell: Any, crop: _Crop) -> None:
    """The crop in pixels of the original image; truth solid, predictions dashed, the finding thick."""
    left, top, right, bottom = crop.window_xyxy
    cell.imshow(crop.pixels, extent=(left, right, bottom, top))
    cell.set(xlim=(left, right), ylim=(bottom, top))
    frame(cell)
    cell.set_title(f"{crop.caption}\n{tidy(crop.file_name, 34)}", fontsize=6)
    boxes: list[_DrawnBox] = []
    for box in crop.boxes:
        x1, y1, x2, y2 = box.xyxy
        if not (x1 < right and y1 < bottom and x2 > left and y2 > top):
            continue
        boxes.insert(0, box)  # the finding, which is last, first: other names give way
        width = 2.4 if box.is_finding else 1.0
        look: dict[str, Any] = {"edgecolor": box.colour, "linestyle": "-" if box.is_truth else "--"}
        # A white rim shows dark lines on dark steel.
        rim = [withStroke(linewidth=width + 1.2, foreground="white")]
        cell.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=width, path_effects=rim, **look))
    BoxNames(cell, [box.xyxy for box in boxes], [box.text for box in boxes], [box.colour for box in boxes])
