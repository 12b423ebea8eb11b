"""What OpenCV needs to be told, or asked twice, about video files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """What OpenCV says of a file it cannot open or write is for its developers."""
    logging: Any = getattr(cv2.utils, "logging", cv2)  # until 4.12 in cv2 itself
    level = logging.getLogLevel()
    logging.setLogLevel(0)
    try:
        yield
    finally:
        logging.setLogLevel(level)


@contextlib.contextmanager
def opencv_path(path: Path) -> Iterator[str]:
    """A path that OpenCV can open while the context lasts: absolute, since FFmpeg takes what stands before a colon for
    a protocol, and by a link where it is no UTF-8, which crashes OpenCV."""
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


def count_frames(path: Path) -> int:
    """The frames that can be read from a video file; 0 where it cannot be opened.

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
