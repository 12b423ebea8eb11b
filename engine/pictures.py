"""Pictures with boxes: for TensorBoard, for the run folder and for print.

Images are uint8 [H, W, 3] RGB arrays, boxes float [N, 4] xyxy in pixels of their image, labels index `names`.
Nothing is changed in place.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from data.batch import Batch
from data.errors import printable
from data.files import write_atomically
from models.boxes import cxcywh_to_xyxy

Picture = npt.NDArray[np.uint8]

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

_MARGIN = 6
_FONT_PX = 13


@dataclass(frozen=True)
class SheetExample:
    """One image of a prediction sheet with what is in it and what was found."""

    image: Picture
    true_boxes: npt.ArrayLike
    true_labels: Sequence[int]
    predicted_boxes: npt.ArrayLike
    predicted_labels: Sequence[int]
    predicted_scores: Sequence[float]
    title: str = ""
    """Shown above the example, e.g. the file name."""


@lru_cache(maxsize=8)
def _font(size_px: int) -> Any:
    # PIL's own font has no accented letters and OpenCV's has ASCII only; matplotlib brings DejaVu Sans along.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size_px)


def class_colour(label: int) -> tuple[int, int, int]:
    """RGB of a class, the same in every picture."""
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]


def _check(image: Picture) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected a uint8 [H, W, 3] image, found {image.dtype} {list(image.shape)}")


def _zoomed(image: Picture, factor: float) -> Picture:
    if factor == 1:
        return image
    size = (max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8)


def _annotate(
    image: Picture,
    boxes_xyxy: npt.ArrayLike,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None,
    factor: float,
) -> Picture:
    """The image enlarged by `factor`, boxes drawn at the new size."""
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4) * factor
    if len(boxes) != len(labels) or (scores is not None and len(scores) != len(boxes)):
        raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels and scores {scores}: lengths differ")
    canvas = Image.fromarray(_zoomed(image, factor))
    draw = ImageDraw.Draw(canvas)
    order = range(len(boxes)) if scores is None else np.argsort(np.asarray(scores), kind="stable").tolist()
    for k in order:  # the best score last, on top
        if not np.isfinite(boxes[k]).all():
            continue
        name = names[labels[k]] if 0 <= labels[k] < len(names) else f"class {labels[k]}"
        text = name if scores is None else f"{name} {scores[k]:.2f}"
        _draw_box(draw, canvas.size, boxes[k], printable(text), class_colour(labels[k]))
    return np.asarray(canvas)


def _draw_box(
    draw: Any, size_wh: tuple[int, int], box: npt.NDArray[np.float64], text: str, colour: tuple[int, int, int]
) -> None:
    width, height = size_wh
    limits = np.array([width, height, width, height])
    left, top, right, bottom = (int(v) for v in np.clip(np.round(box), 0, limits))
    # Right and bottom are the outer edges of the last pixel.
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    # A dark outline around the coloured one shows on every surface; both grow with large pictures.
    line = max(round(max(width, height) / 400), 1)
    font_px = max(round(max(width, height) / 60), _FONT_PX)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=line + 1)
    draw.rectangle((left, top, right, bottom), outline=colour, width=line)
    font = _font(font_px)
    text_width, text_height = math.ceil(draw.textlength(text, font=font)) + 5, font_px + 5
    x = max(min(left, width - text_width), 0)
    above, below = top - text_height - 1, bottom + 2
    y = above if above >= 0 else below if below + text_height <= height else max(top, 0)
    draw.rectangle((x, y, x + text_width, y + text_height - 1), fill=colour)
    bright = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 125
    draw.text((x + 3, y + 1), text, font=font, fill=(0, 0, 0) if bright else (255, 255, 255))


def draw_boxes(
    image: Picture,
    boxes_xyxy: npt.ArrayLike,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    min_side_px: int = 320,
) -> Picture:
    """The image with boxes, class names and scores, if given.

    Images whose shorter side is below `min_side_px` are enlarged by a whole factor so that text stays legible;
    the result is then larger than the image. Boxes may reach outside; boxes that are not finite are left out.

    Raises:
        ValueError: The image is not uint8 [H, W, 3], or boxes, labels and scores differ in number.
    """
    _check(image)
    factor = max(math.ceil(min_side_px / min(image.shape[:2])), 1)
    # A thin strip must not become a huge one.
    factor = max(min(factor, 2048 // max(image.shape[:2])), 1)
    return _annotate(image, boxes_xyxy, labels, names, scores, factor)


def batch_pictures(batch: Batch, names: Sequence[str]) -> list[Picture]:
    """Every image of a training batch with its boxes and class names, as the network sees it."""
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


def grid(images: Sequence[Picture], columns: int | None = None) -> Picture:
    """Images side by side on white, in rows; by default about as many rows as columns.

    Images of different sizes are centred in cells of the largest width and height.

    Raises:
        ValueError: No image, or one that is not uint8 [H, W, 3].
    """
    if not images:
        raise ValueError("grid: at least one image is needed")
    for image in images:
        _check(image)
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    step_y, step_x = height + _MARGIN, width + _MARGIN
    sheet = np.full((rows * step_y + _MARGIN, columns * step_x + _MARGIN, 3), 255, np.uint8)
    for k, image in enumerate(images):
        y = _MARGIN + (k // columns) * step_y + (height - image.shape[0]) // 2
        x = _MARGIN + (k % columns) * step_x + (width - image.shape[1]) // 2
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
    return sheet


def _captioned(image: Picture, caption: str) -> Picture:
    """The image with one line of text on white above it, shortened to fit."""
    strip = Image.new("RGB", (image.shape[1], _FONT_PX + 7), (255, 255, 255))
    draw, font = ImageDraw.Draw(strip), _font(_FONT_PX)
    caption = printable(caption)
    while len(caption) > 1 and draw.textlength(caption, font=font) > image.shape[1]:
        caption = caption[:-2] + "…"
    draw.text((0, 2), caption, font=font, fill=(0, 0, 0))
    return np.concatenate([np.asarray(strip), image])


def prediction_panels(
    example: SheetExample, names: Sequence[str], *, min_score: float = 0.3, panel_px: int = 320
) -> Picture:
    """Image | ground truth | predictions with a score of at least `min_score`, side by side.

    Each panel's longer side is `panel_px`.
    """
    image = example.image
    _check(image)
    factor = panel_px / max(image.shape[:2])
    scores = np.asarray(example.predicted_scores, dtype=np.float64)
    kept = np.flatnonzero(scores >= min_score)
    predicted = np.asarray(example.predicted_boxes, dtype=np.float64).reshape(-1, 4)[kept]
    found = np.asarray(example.predicted_labels, dtype=np.int64)[kept].tolist()
    panels = (
        (_zoomed(image, factor), example.title or "image"),
        (_annotate(image, example.true_boxes, example.true_labels, names, None, factor), "ground truth"),
        (
            _annotate(image, predicted, found, names, scores[kept].tolist(), factor),
            f"predictions, score ≥ {min_score:g}",
        ),
    )
    return grid([_captioned(panel, caption) for panel, caption in panels], columns=3)


def prediction_sheet(
    examples: Sequence[SheetExample],
    names: Sequence[str],
    *,
    min_score: float = 0.3,
    panel_px: int = 320,
    columns: int = 2,
) -> Picture:
    """Several examples, each as image | ground truth | predictions; `columns` examples in a row.

    Raises:
        ValueError: No example, or images and boxes of the wrong shape.
    """
    rows = [prediction_panels(e, names, min_score=min_score, panel_px=panel_px) for e in examples]
    return grid(rows, columns=columns)


def save_picture(path: Path, picture: Picture, *, durable: bool = True, **options: Any) -> None:
    """Writes a picture with Pillow's `options`; folders are created. For `durable` see `write_atomically`.

    Raises:
        UserError: The file could not be written.
    """
    _check(picture)
    # Through memory: into a file Pillow's JPEG encoder writes past Python, and does not see that a disk is full.
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(content, **options)
    write_atomically(path, lambda file: file.write(content.getbuffer()), what="picture", durable=durable)


def save_png(path: Path, picture: Picture) -> None:
    """Writes a PNG file; folders are created.

    Raises:
        UserError: The file could not be written.
    """
    save_picture(path, picture, format="PNG")


def save_pdf(path: Path, picture: Picture) -> None:
    """Writes a one-page PDF file with the picture at 150 dots per inch; folders are created.

    Raises:
        UserError: The file could not be written.
    """
    save_picture(path, picture, format="PDF", resolution=150.0, quality=95)
