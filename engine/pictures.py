"""Draw boxes on images: for TensorBoard, for the run folder, for predictions.

Images are uint8 [H, W, 3] RGB arrays, boxes float [N, 4] xyxy in pixels of their image, labels index `names`.
Nothing is changed in place.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from data.batch import Batch
from data.classes import ClassMap
from data.coco import CocoSplit
from data.errors import printable
from data.files import write_atomically
from data.images import decode_image
from data.types import FloatArray, PixelArray
from engine.labels import place_around, place_labels
from engine.metrics import Prediction
from models.boxes import cxcywh_to_xyxy
from texts import Language, number, texts_of

CLASS_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)
"""Okabe and Ito's palette, told apart by colour-blind readers; class k has colour k modulo 7."""
SHEET_IMAGES = 12
_LEGIBLE_SIDE_PX = 320

_MARGIN = 6
_FONT_PX = 13
_FRAME_GREY = 190
_FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 92},
    ".pdf": {"format": "PDF", "resolution": 150.0, "quality": 95},
}


def class_colour(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class, the same in every picture."""
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]


def class_name(label: int, names: Sequence[str], lang: Language) -> str:
    """Return the name of a class, or its number in words where it has none."""
    return names[label] if 0 <= label < len(names) else texts_of(lang, "common")("unnamed_class", label=label)


def draw_boxes(
    image: PixelArray,
    boxes_xyxy: npt.ArrayLike,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    same_size: bool = False,
    factor: float | None = None,
    lang: Language = "en",
) -> PixelArray:
    """Draw boxes with class names and, if given, scores. Boxes may reach outside; what is not finite is left out.

    Images whose shorter side is below 320 pixels are enlarged by a whole factor so that text stays legible; with
    `factor` the image is that much larger already than what the boxes are of. Where not all names fit, numbers stand
    at the boxes, some around the image, and a key below; with `same_size` such names are left out instead.
    """
    if factor is None:
        # A thin strip must not become a huge one.
        fitting = min(math.ceil(_LEGIBLE_SIDE_PX / min(image.shape[:2])), 2048 // max(image.shape[:2]))
        factor = 1 if same_size else max(fitting, 1)
        image = _zoomed(image, factor)
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4) * factor
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    # Lines and letters grow with large pictures.
    line, font_px = (max(round(max(canvas.size) / share), least) for share, least in ((400, 1), (60, _FONT_PX)))
    font, colours = _font(font_px), [class_colour(label) for label in labels]
    drawn = [k for k in range(len(boxes)) if np.isfinite(boxes[k]).all()]
    if scores is not None:
        drawn.sort(key=lambda k: -scores[k])
    for k in reversed(drawn):  # the best score last, on top
        _draw_box(draw, canvas.size, boxes[k], colours[k], line)
    named = [(colours[k], printable(class_name(labels[k], names, lang))) for k in drawn]
    values = ["" if scores is None else number(scores[k], 2, lang) for k in drawn]
    tags = [(colour, f"{name} {value}".rstrip()) for (colour, name), value in zip(named, values, strict=True)]

    def sizes() -> list[tuple[int, int]]:
        return [(math.ceil(font.getlength(text)) + 6, font_px + 5) for _, text in tags]

    outer, frame = np.round(boxes[drawn]) + np.array([-1, -1, 1, 1]) * (line + 1), (0.0, 0.0, *canvas.size)
    areas, lines = place_labels(outer, sizes(), frame, strict=not same_size)
    if not same_size and np.isnan(areas).any():
        key = [*dict.fromkeys(named)]
        codes = [f"{key.index(one) + 1}: {value}".rstrip(": ") for one, value in zip(named, values, strict=True)]
        tags = [(colour, code) for (colour, _), code in zip(named, codes, strict=True)]
        areas, lines = place_labels(outer, sizes(), frame, strict=True)
        areas, lines = place_around(outer, np.max(sizes(), axis=0), frame, areas, lines)
        canvas, shift, key_areas = _with_key(canvas, [name for _, name in key], areas, font)
        draw = ImageDraw.Draw(canvas)
        areas, lines = np.vstack([areas + shift, key_areas]), lines + shift
        tags += [(colour, f"{k}") for k, (colour, _) in enumerate(key, start=1)]
    for (colour, _), leader in zip(tags, lines.tolist(), strict=False):
        if math.isfinite(leader[0]):
            # White where edges of boxes are black, and with a head: no edge that it crosses is taken for its end.
            (x, y), radius = leader[2:], line + 2
            draw.line(leader, fill=(255, 255, 255), width=line + 2)
            draw.line(leader, fill=colour, width=line)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(255, 255, 255))
    for (colour, text), area in zip(tags, areas, strict=True):
        if math.isfinite(area[0]):
            left, top, right, bottom = np.round(area).astype(int).tolist()
            draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
            bright = np.dot((0.299, 0.587, 0.114), colour) > 125
            draw.text((left + 3, top + 1), text, font=font, fill=(0, 0, 0) if bright else (255, 255, 255))
    return np.asarray(canvas)


def _with_key(canvas: Any, texts: Sequence[str], areas: FloatArray, font: Any) -> tuple[Any, FloatArray, FloatArray]:
    """Put white around an image where areas [N, 4] lie outside, and texts below, in columns.

    Returns it with the shift of what lies in the image and the areas [K, 4] of the numbers before the texts.
    """
    low = np.floor(areas[:, :2].min(axis=0).clip(max=0)).astype(int)
    width, height = (np.ceil(areas[:, 2:].max(axis=0).clip(min=canvas.size)).astype(int) - low).tolist()
    row, tag = font.size + 7, math.ceil(font.getlength(f"{len(texts)}")) + 6
    column = tag + math.ceil(max(font.getlength(text) for text in texts)) + row
    columns = max(width // column, 1)
    rows = math.ceil(len(texts) / columns)
    sheet = Image.new("RGB", (max(width, column), height + rows * row + 4), (255, 255, 255))
    sheet.paste(canvas, (-low).tolist())
    draw = ImageDraw.Draw(sheet)
    places = [(k // rows * column + 2, height + k % rows * row + 4) for k in range(len(texts))]
    for (x, y), text in zip(places, texts, strict=True):
        draw.text((x + tag + font.size // 3, y + 1), text, font=font, fill=(0, 0, 0))
    return sheet, np.tile(-low, 2), np.array([(x, y, x + tag, y + row - 2) for x, y in places], np.float64)


def _draw_box(draw: Any, size_wh: tuple[int, int], box: FloatArray, colour: tuple[int, int, int], line: int) -> None:
    width, height = size_wh
    left, top, right, bottom = (int(v) for v in np.clip(np.round(box), 0, [width, height, width, height]))
    # Right and bottom are the outer edges of the last pixel.
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    # A dark outline around the coloured one shows on every surface.
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=line + 1)
    draw.rectangle((left, top, right, bottom), outline=colour, width=line)


@lru_cache(maxsize=8)
def _font(size_px: int) -> Any:
    # PIL's own font has no accented letters and OpenCV's has ASCII only; matplotlib brings DejaVu Sans along.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size_px)


def _zoomed(image: PixelArray, factor: float) -> PixelArray:
    if factor == 1:
        return image
    size = (max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def grid(images: Sequence[PixelArray], columns: int | None = None) -> PixelArray:
    """Put images side by side on white, in thin frames, in rows; by default about as many rows as columns.

    Images of different sizes stand at the top of cells of the largest width and height, so that a row has one head.
    """
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    height, width = np.max([image.shape[:2] for image in images], axis=0).tolist()
    step_y, step_x = height + _MARGIN, width + _MARGIN
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * step_y + _MARGIN, columns * step_x + _MARGIN, 3), 255, np.uint8)
    for k, image in enumerate(images):
        y = _MARGIN + (k // columns) * step_y
        x = _MARGIN + (k % columns) * step_x + (width - image.shape[1]) // 2
        sheet[y - 1 : y + image.shape[0] + 1, x - 1 : x + image.shape[1] + 1] = _FRAME_GREY
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def batch_pictures(batch: Batch, names: Sequence[str]) -> list[PixelArray]:
    """Draw every image of a training batch with its boxes and class names, as the network sees it."""
    height, width = batch.images.shape[-2:]
    scale = torch.tensor([width, height, width, height])
    return [
        draw_boxes(
            image.permute(1, 2, 0).numpy(),
            (cxcywh_to_xyxy(target["boxes"]) * scale).numpy(),
            target["labels"].tolist(),
            names,
        )
        for image, target in zip(batch.images, batch.targets, strict=True)
    ]


def prediction_pictures(
    split: CocoSplit,
    predictions: Sequence[Prediction],
    classes: ClassMap,
    *,
    count: int,
    min_score: float = 0.3,
    panel_px: int = 320,
    lang: Language = "en",
) -> list[PixelArray]:
    """Draw, for `count` images spread evenly over the split: image | ground truth | predictions, side by side.

    Predictions with a score below `min_score` are left out; each panel's longer side is `panel_px`.
    """
    chosen = np.unique(np.linspace(0, len(split.images) - 1, count).round().astype(int))
    sure: dict[int, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction["score"] >= min_score:
            sure[prediction["image_id"]].append(prediction)
    pictures, texts = [], texts_of(lang, "gallery")
    for record in (split.images[index] for index in chosen):
        image = decode_image(record.path)
        factor = panel_px / max(image.shape[:2])
        image = _zoomed(image, factor)
        rows, found = split.training_rows(record), sure[record.id]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (one["bbox"] for one in found)]
        labels = [classes.label_of[one["category_id"]] for one in found]
        draw = partial(draw_boxes, image, names=classes.names, factor=factor, lang=lang)
        panels = (
            (image, record.file_name),
            (draw(split.boxes_xyxy[rows], split.labels[rows].tolist()), texts["truth"]),
            (
                draw(boxes, labels, scores=[one["score"] for one in found]),
                texts("prediction", score=texts.number(min_score, 2)),
            ),
        )
        pictures.append(grid([captioned(panel, caption) for panel, caption in panels], columns=3))
    return pictures


def captioned(image: PixelArray, caption: str) -> PixelArray:
    """The image with one line of text on white above it, shortened to fit."""
    strip = Image.new("RGB", (image.shape[1], _FONT_PX + 7), (255, 255, 255))
    draw, font = ImageDraw.Draw(strip), _font(_FONT_PX)
    caption = printable(caption)
    while len(caption) > 1 and draw.textlength(caption, font=font) > image.shape[1]:
        caption = caption[:-2] + "…"
    draw.text((0, 2), caption, font=font, fill=(0, 0, 0))
    return np.concatenate([np.asarray(strip), image])


def write_prediction_sheets(
    folder: Path, split: CocoSplit, predictions: Sequence[Prediction], classes: ClassMap, lang: Language = "en"
) -> None:
    """Write predictions.png and predictions.pdf into `folder`.

    Raises:
        UserError: They cannot be written.
    """
    sheet = grid(prediction_pictures(split, predictions, classes, count=SHEET_IMAGES, lang=lang), columns=2)
    save_picture(folder / "predictions.png", sheet)
    save_picture(folder / "predictions.pdf", sheet)


def save_picture(path: Path, picture: PixelArray, *, durable: bool = True) -> None:
    """Write a .png, .jpg or one-page .pdf file; folders are created. For `durable` see `write_atomically`.

    Raises:
        UserError: The file could not be written.
    """
    # Through memory: into a file Pillow's JPEG encoder writes past Python, and does not see that a disk is full.
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, **_FORMATS[path.suffix])
    write_atomically(path, lambda file: file.write(content.getbuffer()), what="picture", durable=durable)
