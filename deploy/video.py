"""Videos, cameras and streams, frame by frame."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
from tqdm import tqdm

from analysis.labels import Language
from data.classes import ClassMap
from data.errors import UserError
from data.images import PixelArray
from deploy.detector import Detector
from deploy.found import Found
from deploy.opencv_video import opencv_path, quiet_opencv
from deploy.pipeline import Frame, make_frame, predict_frames
from deploy.prediction_texts import TEXTS
from deploy.sources import VideoSource
from deploy.tiling import Tiling
from deploy.writers import Table, VideoFile, drawn, table_cells
from engine.coco_metrics import FloatArray

log = logging.getLogger(__name__)

_USUAL_RATE = 25.0
_RATES = (0.01, 1000.0)
"""Frames per second that a file can be written with."""
_LOST_FRAMES_SHARE = 0.95


class UnreadableVideo(UserError):
    """The video itself is the trouble: others can go on."""


@dataclass(frozen=True)
class FrameTime:
    """Which frame of a video."""

    number: int
    """From 0."""
    seconds: float


@dataclass
class Recording:
    """An opened video file, camera or stream."""

    source: VideoSource
    max_frames: int | None
    capture: Any = field(repr=False)
    rate: float
    """Frames per second."""
    num_frames: int | None
    """As the file says; None for what is live."""

    @classmethod
    def open(cls, source: VideoSource, max_frames: int | None) -> Recording:
        """Open it.

        Raises:
            UnreadableVideo: It cannot be opened.
        """
        file = source.source
        named = opencv_path(file) if isinstance(file, Path) else contextlib.nullcontext(file)
        with quiet_opencv(), named as name:
            capture = cv2.VideoCapture(name)
        if not capture.isOpened():
            what = "no such camera, or another program uses it" if source.is_live else "not a video OpenCV can read"
            if isinstance(file, str):
                what = "the address does not answer, or sends no video OpenCV can read"
            raise UnreadableVideo(f"{source.name}: cannot be opened ({what}).")
        rate = float(capture.get(cv2.CAP_PROP_FPS))
        stated = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        known = not source.is_live and math.isfinite(stated) and stated >= 1
        count = int(stated) if known else None
        usable = _RATES[0] <= rate <= _RATES[1]
        return cls(source, max_frames, capture, rate if usable else _USUAL_RATE, count)

    @property
    def expected_frames(self) -> int | None:
        """How many will be looked at, if that is known."""
        limits = [count for count in (self.num_frames, self.max_frames) if count is not None]
        return min(limits, default=None)

    def frames(self) -> Iterator[tuple[FrameTime, PixelArray]]:
        """Frames in RGB, turned upright as the file asks for.

        Raises:
            UnreadableVideo: There is not a single one.
        """
        number = 0
        try:
            while self.max_frames is None or number < self.max_frames:
                read, pixels = self.capture.read()
                if not read:
                    break
                yield FrameTime(number, number / self.rate), cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
                number += 1
        finally:
            self.capture.release()
        if number == 0:
            raise UnreadableVideo(f"{self.source.name}: no frame could be read.")
        expected = self.expected_frames
        if self.source.is_live and number != expected:
            log.warning("%s: no more frames after %d; the camera or the connection is gone", self.source.name, number)
        elif expected is not None and number < _LOST_FRAMES_SHARE * expected:
            log.warning(
                "%s: %d of %d frames could be read; the file may be damaged", self.source.name, number, expected
            )


def predict_video(
    recording: Recording,
    detector: Detector,
    thresholds: FloatArray,
    classes: ClassMap,
    folder: Path,
    *,
    write_video: bool,
    write_table: bool,
    tiling: Tiling | None,
    batch_size: int,
    nms_iou: float | None,
    lang: Language,
    progress: bool = True,
) -> Iterator[Found]:
    """What is in each frame, in order; the annotated video and its table grow on the way.

    Args:
        recording: Opened.
        detector: Computes.
        thresholds: [C] least scores.
        classes: Of the network.
        folder: Of this prediction; files go to `videos/` in it.
        write_video: `videos/NAME.mp4`, same size and rate.
        write_table: `videos/NAME.csv`, a line per detection.
        tiling: None takes frames whole.
        batch_size: Of the network; a live source's frames go through one by one.
        nms_iou: As `predict_frames` has it.
        lang: Of the table.
        progress: Show a bar with the time left on stderr.

    Raises:
        UnreadableVideo: No frame can be read.
        UserError: A file cannot be written.
    """
    source = recording.source
    stem = folder / "videos" / source.stem
    frames: Iterator[Frame[FrameTime]] = (
        make_frame(time, pixels, detector, tiling) for time, pixels in recording.frames()
    )
    size = 1 if source.is_live else batch_size
    bar = tqdm(total=recording.expected_frames, desc=source.name, unit="frame", leave=False, disable=not progress)
    table = Table(stem.with_name(f"{stem.name}.csv"), TEXTS[lang].video_columns, lang)
    with bar, VideoFile(stem, recording.rate) as video, table:
        for frame, found in predict_frames(frames, detector, thresholds, size, nms_iou):
            inside = found.clipped(frame.size_wh)
            if write_video:
                video.add(drawn(frame.pixels, inside, classes, min_side_px=1))
            if write_table:
                time = frame.key
                table.add([[time.number, round(time.seconds, 3), *cells] for cells in table_cells(inside, classes)])
            bar.update()
            yield found
