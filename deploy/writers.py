"""Write what was detected: pictures, COCO JSON, CSV, YOLO text files, crops.

Boxes in COCO JSON are exactly those that the evaluation would judge, so they may leave the image by a little;
everywhere else they end at its edges.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from data.classes import ClassMap
from data.errors import printable
from data.files import GrowingFile, write_json, write_text
from data.types import PixelArray
from deploy.sources import ImageSource, safe_name
from deploy.video import ELSEWHERE
from engine.metrics import Predictions
from engine.pictures import draw_boxes, save_picture
from models.detections import Detections
from texts import Language, texts_of

Form = Literal["images", "coco", "csv", "yolo", "crops"]
FORMS: tuple[Form, ...] = get_args(Form)

_LONGEST_JPEG_SIDE = 65_500


class ImageWriter(AbstractContextManager["ImageWriter"]):
    """Writes still images. Nothing is written before the first one; leaving the context, also by an exception,
    completes the tables."""

    def __init__(
        self,
        folder: Path,
        forms: Iterable[Form],
        classes: ClassMap,
        lang: Language,
        info: Mapping[str, object] | None = None,
    ) -> None:
        """`info` says where the detections come from, for COCO JSON."""
        self._folder, self._classes, self._lang, self._info = folder, classes, lang, info or {}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._table = Table(folder / "predictions.csv", "image_columns", lang)
        self._verdicts = Table(folder / "verdicts.csv", "verdict_columns", lang)
        writers = {
            "images": self._write_picture,
            "coco": self._add_to_coco,
            "csv": self._add_to_table,
            "yolo": self._write_yolo,
            "crops": self._write_crops,
        }
        self._writers = {form: writers[form] for form in forms}

    def add(
        self,
        source: ImageSource,
        pixels: PixelArray,
        found: Detections,
        judged: tuple[str, float] | None = None,
    ) -> None:
        """Write what was detected in one image, and its verdict and score where it was judged.

        Raises:
            UserError: A file cannot be written.
        """
        inside = found.clipped((pixels.shape[1], pixels.shape[0]))
        for form, write in self._writers.items():
            write(source, pixels, found if form == "coco" else inside)
        if judged is not None and "csv" in self._writers:
            self._verdicts.add([[source.name, *judged]])
        if judged is not None and "coco" in self._writers:
            self._images[-1] |= {"verdict": judged[0], "defect_score": judged[1]}

    def _write_picture(self, source: ImageSource, pixels: PixelArray, found: Detections) -> None:
        suffix = "jpg" if max(pixels.shape[:2]) <= _LONGEST_JPEG_SIDE else "png"
        path = self._folder / "images" / f"{source.stem}.{suffix}"
        save_picture(path, drawn(pixels, found, self._classes, self._lang), durable=False)

    def _add_to_coco(self, source: ImageSource, pixels: PixelArray, found: Detections) -> None:
        image_id = len(self._images) + 1
        height, width = pixels.shape[:2]
        self._images.append({"id": image_id, "file_name": source.name, "width": width, "height": height})
        self._annotations += coco_annotations(found, self._classes, image_id, len(self._annotations) + 1)

    def _add_to_table(self, source: ImageSource, pixels: PixelArray, found: Detections) -> None:
        height, width = pixels.shape[:2]
        self._table.add([[source.name, width, height, *cells] for cells in table_cells(found, self._classes)])

    def _write_yolo(self, source: ImageSource, pixels: PixelArray, found: Detections) -> None:
        """`label cx cy width height score` in fractions of the image; the score comes last, as most tools read it."""
        corners = found.boxes_xyxy / np.tile(pixels.shape[1::-1], 2)
        centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        rows = np.column_stack([centres, sizes, found.scores]).tolist()
        lines = [
            f"{label} {' '.join(f'{value:.6f}' for value in row)}"
            for label, row in zip(found.labels.tolist(), rows, strict=True)
        ]
        _write_lines(self._folder / "yolo" / "labels" / f"{source.stem}.txt", lines)

    def _write_crops(self, source: ImageSource, pixels: PixelArray, found: Detections) -> None:
        low, high = np.floor(found.boxes_xyxy[:, :2]).astype(int), np.ceil(found.boxes_xyxy[:, 2:]).astype(int)
        boxes = zip(found.labels.tolist(), low.tolist(), high.tolist(), strict=True)
        for number, (label, (left, top), (right, bottom)) in enumerate(boxes, start=1):
            path = self._folder / "crops" / safe_name(self._classes.names[label]) / f"{source.stem}_{number}.png"
            save_picture(path, pixels[top:bottom, left:right], durable=False)

    def __exit__(self, *error: object) -> None:
        self._table.close()
        self._verdicts.close()
        if self._images:
            verdicts = Counter(image["verdict"] for image in self._images if "verdict" in image)
            classes = zip(self._classes.category_ids, self._classes.names, strict=True)
            content = {
                "info": {**self._info, **({"verdicts": verdicts} if verdicts else {})},
                "images": self._images,
                "annotations": self._annotations,
                "categories": [{"id": key, "name": name} for key, name in classes],
            }
            write_json(self._folder / "coco.json", content, what="predictions")
        if (self._folder / "yolo").is_dir():
            _write_lines(self._folder / "yolo" / "classes.txt", self._classes.names)


class Table(AbstractContextManager["Table"]):
    """A CSV file that grows line by line, so that a camera can run for days. In Spanish `;` and decimal comma."""

    def __init__(self, path: Path, columns: str, lang: Language) -> None:
        """The file is made with the first call of `add`; its head is the text `columns`."""
        self._path = path
        self._head = texts_of(lang, "prediction")[columns].split(", ")
        self._is_spanish = lang == "es"
        self._file: GrowingFile | None = None

    def add(self, rows: Iterable[Sequence[str | int | float]]) -> None:
        """Write rows; none writes the head alone, once.

        Raises:
            UserError: The file cannot be written; it ends with the last row that fitted.
        """
        if self._file is None:
            self._file = GrowingFile(self._path, ELSEWHERE)
            self._file.write(f"\ufeff{self._lines([self._head])}".encode())  # a spreadsheet needs the mark
        self._file.write(self._lines(rows).encode())

    def _lines(self, rows: Iterable[Sequence[str | int | float]]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=";" if self._is_spanish else ",", lineterminator="\r\n")
        writer.writerows([[self._cell(cell) for cell in row] for row in rows])
        return text.getvalue()

    def _cell(self, cell: str | int | float) -> str:
        if isinstance(cell, float):
            digits = f"{cell:.6f}".rstrip("0").rstrip(".")
            return digits.replace(".", ",") if self._is_spanish else digits
        text = printable(str(cell))
        # A file name that starts like a formula would be computed by the spreadsheet.
        return f"'{text}" if isinstance(cell, str) and text.startswith(("=", "+", "-", "@")) else text

    def close(self) -> None:
        """No more rows."""
        if self._file is not None:
            self._file.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def drawn(
    pixels: PixelArray, found: Detections, classes: ClassMap, lang: Language, *, same_size: bool = False
) -> PixelArray:
    """Draw boxes, names and scores; smaller images are enlarged so that they can be read."""
    labels, scores = found.labels.tolist(), found.scores.tolist()
    return draw_boxes(pixels, found.boxes_xyxy, labels, classes.names, scores, same_size=same_size, lang=lang)


def coco_annotations(found: Detections, classes: ClassMap, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Every detection of an image as COCO's annotation, with its score; rounded as the evaluation does."""
    image_ids, category_ids = np.full(len(found), image_id), np.array(classes.category_ids, dtype=np.int64)
    rows = Predictions.from_xyxy(image_ids, category_ids[found.labels], found.scores, found.boxes_xyxy).to_coco()
    more = [{"area": round(one["bbox"][2] * one["bbox"][3], 4), "iscrowd": 0} for one in rows]
    return [{"id": k, **one, **other} for k, (one, other) in enumerate(zip(rows, more, strict=True), start=first_id)]


def table_cells(found: Detections, classes: ClassMap) -> list[list[str | int | float]]:
    """Class, category id, score and corners of every detection."""
    columns = zip(found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.round(2).tolist(), strict=True)
    return [[classes.names[label], classes.category_ids[label], score, *box] for label, score, box in columns]


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines), what="file", durable=False)
