"""What prediction leaves behind: pictures, COCO JSON, CSV, YOLO text files, crops, videos.

Boxes in COCO JSON are exactly those that the evaluation would judge, so they may leave the image by a little;
everywhere else they end at its edges.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

import cv2
import numpy as np

from analysis.labels import Language
from data.classes import ClassMap
from data.errors import UserError, printable
from data.images import PixelArray
from deploy.found import Found
from deploy.opencv_video import count_frames, opencv_path, quiet_opencv
from deploy.prediction_texts import TEXTS
from deploy.sources import ImageSource, safe_name
from engine.checkpoint import write_atomically
from engine.coco_metrics import Detections
from engine.pictures import draw_boxes, save_picture

Form = Literal["images", "coco", "csv", "yolo", "crops"]
FORMS: tuple[Form, ...] = get_args(Form)

_JPEG_QUALITY = 92
_LONGEST_JPEG_SIDE = 65_500
_VIDEO_RESERVE_BYTES = 32 * 2**20
"""A video without room for its index cannot be opened, so it ends while there is some."""


class ImageWriter(AbstractContextManager["ImageWriter"]):
    """Files for still images. Leaving the context, also by an exception, completes the tables."""

    def __init__(
        self,
        folder: Path,
        forms: Iterable[Form],
        classes: ClassMap,
        lang: Language,
        info: Mapping[str, object] | None = None,
    ) -> None:
        """Nothing is written before the first image.

        Args:
            folder: Of this prediction.
            forms: What to write.
            classes: Of the network.
            lang: Of the table's head and numbers.
            info: Where the detections come from, for COCO JSON.
        """
        self._info = dict(info or {})
        self._folder = folder
        self._forms = frozenset(forms)
        self._classes = classes
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        columns = TEXTS[lang].image_columns
        self._table = Table(folder / "predictions.csv", columns, lang) if "csv" in self._forms else None

    def add(self, source: ImageSource, pixels: PixelArray, found: Found) -> None:
        """Write what was found in one image.

        Raises:
            UserError: A file cannot be written.
        """
        size_wh = pixels.shape[1], pixels.shape[0]
        inside = found.clipped(size_wh)
        if "coco" in self._forms:
            self._add_coco(source, size_wh, found)
        if self._table is not None:
            self._table.add([[source.name, *size_wh, *cells] for cells in table_cells(inside, self._classes)])
        if "images" in self._forms:
            _save_picture(self._folder / "images" / source.stem, drawn(pixels, inside, self._classes))
        if "yolo" in self._forms:
            write_text(self._folder / "yolo" / "labels" / f"{source.stem}.txt", yolo_lines(inside, size_wh))
        if "crops" in self._forms:
            self._write_crops(source, pixels, inside)

    def _add_coco(self, source: ImageSource, size_wh: tuple[int, int], found: Found) -> None:
        image_id = len(self._images) + 1
        width, height = size_wh
        self._images.append({"id": image_id, "file_name": source.name, "width": width, "height": height})
        detections = Detections.from_xyxy(
            np.full(len(found), image_id),
            np.array(self._classes.category_ids, dtype=np.int64)[found.labels],
            found.scores,
            found.boxes_xyxy,
        )
        for one in detections.to_coco():
            number = len(self._annotations) + 1
            area = round(one["bbox"][2] * one["bbox"][3], 4)
            self._annotations.append({"id": number, **one, "area": area, "iscrowd": 0})

    def _write_crops(self, source: ImageSource, pixels: PixelArray, found: Found) -> None:
        for number, (label, box) in enumerate(zip(found.labels.tolist(), found.boxes_xyxy, strict=True), start=1):
            left, top = np.floor(box[:2]).astype(int).tolist()
            right, bottom = np.ceil(box[2:]).astype(int).tolist()
            folder = self._folder / "crops" / safe_name(self._classes.names[label])
            path = folder / f"{source.stem}_{number}.png"
            save_picture(path, pixels[top:bottom, left:right], durable=False, format="PNG")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._table is not None:
            self._table.close()
        if "coco" in self._forms and self._images:
            classes = zip(self._classes.category_ids, self._classes.names, strict=True)
            content = {
                "info": self._info,
                "images": self._images,
                "annotations": self._annotations,
                "categories": [{"id": key, "name": name} for key, name in classes],
            }
            text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            path = self._folder / "coco.json"
            # Half a character, which JSON files can hold in the names of classes, becomes its escape again.
            write_atomically(
                path, lambda file: file.write(f"{text}\n".encode(errors="backslashreplace")), what="predictions"
            )
        if "yolo" in self._forms and (self._folder / "yolo").is_dir():
            write_text(self._folder / "yolo" / "classes.txt", [printable(name) for name in self._classes.names])


class Table(AbstractContextManager["Table"]):
    """A CSV file that grows line by line, so that a camera can run for days. In Spanish `;` and decimal comma."""

    def __init__(self, path: Path, columns: Sequence[str], lang: Language) -> None:
        """The file is made with the first call of `add`."""
        self.path = path
        self._columns = columns
        self._texts = TEXTS[lang]
        self._file: io.FileIO | None = None
        self._size = 0

    def add(self, rows: Iterable[Sequence[str | int | float]]) -> None:
        """Write rows; none writes the head alone, once.

        Raises:
            UserError: The file cannot be written; it ends with the last row that fitted.
        """
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb", buffering=0)
                self._write(f"\ufeff{self._lines([self._columns])}")  # a spreadsheet needs the mark
            self._write(self._lines(rows))
        except OSError as error:
            self._cut_off()
            raise _unwritable(self.path, error) from error

    def _write(self, text: str) -> None:
        assert self._file is not None
        content = memoryview(text.encode())
        while content:  # a disk that gets full takes a part first
            content = content[self._file.write(content) :]
        self._size = self._file.tell()

    def _cut_off(self) -> None:
        """No part of a row stays, and no empty file."""
        if self._file is not None:
            self._file.truncate(self._size)
            self._file.close()
            if not self._size:
                self.path.unlink()

    def _lines(self, rows: Iterable[Sequence[str | int | float]]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self._texts.delimiter, lineterminator="\r\n")
        writer.writerows([[self._cell(cell) for cell in row] for row in rows])
        return text.getvalue()

    def _cell(self, cell: str | int | float) -> str:
        if isinstance(cell, float):
            digits = f"{cell:.6f}".rstrip("0").rstrip(".")
            return digits.replace(".", self._texts.decimal_mark)
        text = printable(str(cell))
        # A file name that starts like a formula would be computed by the spreadsheet.
        return f"'{text}" if isinstance(cell, str) and text.startswith(("=", "+", "-", "@")) else text

    def close(self) -> None:
        """No more rows."""
        if self._file is not None:
            self._file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VideoFile(AbstractContextManager["VideoFile"]):
    """An annotated video: MPEG-4, or Motion JPEG where OpenCV has no such encoder. It gets its name when it is complete
    and can be read."""

    def __init__(self, stem: Path, frames_per_second: float) -> None:
        """The file is made with the first frame, whose size is that of all.

        Args:
            stem: Path without suffix.
            frames_per_second: Of the source.
        """
        self._stem = stem
        self._rate = frames_per_second
        self._writer: Any = None
        self._path = self._temporary = stem
        self._size_wh = (0, 0)
        self._num_frames = 0

    def add(self, pixels: PixelArray) -> None:
        """Append a frame, RGB. An odd side is continued by a pixel: encoders take even ones only. A frame of another
        size than the first, as streams may send, is resized.

        Raises:
            UserError: There is no encoder, or no room: leaving the context completes what there is.
        """
        height, width = pixels.shape[:2]
        even = cv2.copyMakeBorder(pixels, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._writer is None:
            self._size_wh = even.shape[1], even.shape[0]
            self._writer = self._open()
        elif even.shape[1::-1] != self._size_wh:
            even = cv2.resize(even, self._size_wh)
        self._require_room()
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self._num_frames += 1

    def _require_room(self) -> None:
        """OpenCV tells nobody when a disk is full."""
        try:
            if shutil.disk_usage(self._path.parent).free < _VIDEO_RESERVE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _open(self) -> Any:
        try:
            self._stem.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self._stem, error) from error
        for code, suffix in (("mp4v", ".mp4"), ("MJPG", ".avi")):
            self._path = self._stem.with_name(f"{self._stem.name}{suffix}")
            self._temporary = self._stem.with_name(f"{self._stem.name}.{os.getpid()}.tmp{suffix}")
            with quiet_opencv(), opencv_path(self._temporary) as path:
                writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*code), self._rate, self._size_wh)
            if writer.isOpened():
                return writer
            self._temporary.unlink(missing_ok=True)
        raise UserError(
            f"{self._stem}.mp4: the annotated video cannot be written (no encoder, no room or no permission). "
            "Choose another --output-dir, or leave images out of --save."
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        readable = count_frames(self._temporary)
        try:
            if readable:
                self._temporary.replace(self._path)
            else:
                self._temporary.unlink(missing_ok=True)
        except OSError as fault:
            raise _unwritable(self._path, fault) from fault
        if readable < self._num_frames:
            raise UserError(
                f"{self._path}: only {readable} of {self._num_frames} frames could be written. Free some space or "
                "choose another --output-dir."
            )


def drawn(pixels: PixelArray, found: Found, classes: ClassMap, *, min_side_px: int = 320) -> PixelArray:
    """The image with boxes, names and scores; smaller ones are enlarged so that they can be read."""
    labels, scores = found.labels.tolist(), found.scores.tolist()
    return draw_boxes(pixels, found.boxes_xyxy, labels, classes.names, scores, min_side_px=min_side_px)


def table_cells(found: Found, classes: ClassMap) -> list[list[str | int | float]]:
    """Class, category id, score and corners of every detection."""
    columns = zip(found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.round(2).tolist(), strict=True)
    return [[classes.names[label], classes.category_ids[label], score, *box] for label, score, box in columns]


def yolo_lines(found: Found, size_wh: tuple[int, int]) -> list[str]:
    """`label cx cy width height score` in fractions of the image; the score comes last, as most tools read it."""
    scale = np.array([*size_wh, *size_wh], dtype=np.float64)
    corners = found.boxes_xyxy / scale
    centres, sizes = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    rows = zip(found.labels.tolist(), np.concatenate([centres, sizes], axis=1), found.scores.tolist(), strict=True)
    return [f"{label} {' '.join(f'{value:.6f}' for value in box)} {score:.6f}" for label, box, score in rows]


def write_text(path: Path, lines: Sequence[str]) -> None:
    """A text file of these lines.

    Raises:
        UserError: It cannot be written.
    """
    content = "".join(f"{line}\n" for line in lines).encode()
    write_atomically(path, lambda file: file.write(content), what="file", durable=False)


def _save_picture(stem: Path, pixels: PixelArray) -> None:
    """A JPEG file; PNG where a side is longer than JPEG can have it."""
    if max(pixels.shape[:2]) > _LONGEST_JPEG_SIDE:
        save_picture(stem.with_name(f"{stem.name}.png"), pixels, durable=False, format="PNG")
    else:
        path = stem.with_name(f"{stem.name}.jpg")
        save_picture(path, pixels, durable=False, format="JPEG", quality=_JPEG_QUALITY)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}). Free some space or choose another --output-dir."
    )
