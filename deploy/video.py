"""Read videos, cameras and streams frame by frame, and write annotated videos, through OpenCV."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import cv2

from data.errors import UserError
from data.files import could_not_write
from data.types import PixelArray

log = logging.getLogger(__name__)

ELSEWHERE = "Free some space or choose another --output-dir."
_USUAL_RATE = 25.0
_RATES = (0.01, 1000.0)
"""Frames per second that a file can be written with."""
_LOST_FRAMES_SHARE = 0.95
_RESERVE_BYTES = 32 * 2**20
"""A video without room for its index cannot be opened, so it ends while there is some."""


class UnreadableVideo(UserError):
    """The video itself is the trouble: others can go on."""


class Recording:
    """An opened video file, camera (its number) or stream (its address).

    Raises:
        UnreadableVideo: It cannot be opened.
    """

    def __init__(self, source: Path | int | str, name: str, max_frames: int | None) -> None:
        self._name = name
        self._max_frames = math.inf if max_frames is None else max_frames
        self.is_live = not isinstance(source, Path)
        named = opencv_path(source) if isinstance(source, Path) else contextlib.nullcontext(source)
        with quiet_opencv(), named as opened:
            self._capture = cv2.VideoCapture(opened)
        if not self._capture.isOpened():
            what = {
                int: "no such camera, or another program uses it",
                str: "the address does not answer, or sends no video OpenCV can read",
            }.get(type(source), "not a video OpenCV can read")
            raise UnreadableVideo(f"{name}: cannot be opened ({what}).")
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.rate = rate if _RATES[0] <= rate <= _RATES[1] else _USUAL_RATE
        """Frames per second."""
        stated = float(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        known = int(stated) if not self.is_live and math.isfinite(stated) and stated >= 1 else math.inf
        self.expected_frames = min(known, self._max_frames)
        """How many will be read; infinite where nobody knows."""

    def frames(self) -> Iterator[PixelArray]:
        """Yield frames in RGB, turned upright as the file asks for.

        Raises:
            UnreadableVideo: There is not a single one.
        """
        number = 0
        try:
            while number < self._max_frames:
                read, pixels = self._capture.read()
                if not read:
                    break
                yield cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # type: ignore[misc]  # uint8 stays uint8
                number += 1
        finally:
            self._capture.release()
        expected = self.expected_frames
        if number == 0:
            raise UnreadableVideo(f"{self._name}: no frame could be read.")
        if self.is_live and number != expected:
            log.warning("%s: no more frames after %d; the camera or the connection is gone", self._name, number)
        elif math.isfinite(expected) and number < _LOST_FRAMES_SHARE * expected:
            log.warning("%s: %d of %d frames could be read; the file may be damaged", self._name, number, expected)


class VideoFile(AbstractContextManager["VideoFile"]):
    """An annotated video: MPEG-4, or Motion JPEG where OpenCV has no such encoder.

    The file is made with the first frame, whose size is that of all. It gets its name when it is complete and can be
    read.
    """

    def __init__(self, stem: Path, frames_per_second: float) -> None:
        """`stem` is the path without suffix."""
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
        try:
            if self._writer is None:
                self._size_wh = even.shape[1], even.shape[0]
                self._writer = self._open()
            if shutil.disk_usage(self._path.parent).free < _RESERVE_BYTES:  # OpenCV tells nobody when a disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise could_not_write(self._path, error, ELSEWHERE) from error
        if even.shape[1::-1] != self._size_wh:
            even = cv2.resize(even, self._size_wh)
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self._num_frames += 1

    def _open(self) -> Any:
        self._stem.parent.mkdir(parents=True, exist_ok=True)
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

    def __exit__(self, *error: object) -> None:
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
            raise could_not_write(self._path, fault, ELSEWHERE) from fault
        if readable < self._num_frames:
            found = f"only {readable} of {self._num_frames} frames could be written"
            raise UserError(f"{self._path}: {found}. {ELSEWHERE}")


def count_frames(path: Path) -> int:
    """Count the frames that can be read from a video file; 0 where it cannot be opened.

    If the last one is there, those before it are: a full disk cuts off everything behind one place.
    """
    with quiet_opencv(), opencv_path(path) as name:
        capture = cv2.VideoCapture(name)
        stated = int(max(capture.get(cv2.CAP_PROP_FRAME_COUNT), 0))
        capture.set(cv2.CAP_PROP_POS_FRAMES, stated - 1)
        if stated and capture.grab():
            return stated
        capture, read = cv2.VideoCapture(name), 0
        while capture.grab():
            read += 1
        return read


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """Hold back what OpenCV says to its developers of a file it cannot open or write."""
    logging: Any = getattr(cv2.utils, "logging", cv2)  # until 4.12 in cv2 itself
    level = logging.getLogLevel()
    logging.setLogLevel(0)
    try:
        yield
    finally:
        logging.setLogLevel(level)


@contextlib.contextmanager
def opencv_path(path: Path) -> Iterator[str]:
    """Give a path that OpenCV can open while the context lasts: absolute, since FFmpeg takes what stands before a colon
    for a protocol, and by a link where it is no UTF-8, which crashes OpenCV."""
    absolute = os.path.abspath(path)
    try:
        absolute.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, f"video{path.suffix.encode('ascii', 'replace').decode()}")
            os.symlink(absolute, link)
            yield link
    else:
        yield absolute
