"""Images in, detections out: read ahead, cut into windows, computed in full batches whatever the images' sizes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from data.errors import UserError
from data.images import PixelArray
from engine.coco_metrics import FloatArray
from engine.prediction.detector import Detector
from engine.prediction.found import Found
from engine.prediction.tiling import Tiling, Window, merge_tiles, windows

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class Frame(Generic[Key]):
    """One image on its way through the network."""

    key: Key
    """What it is."""
    pixels: PixelArray
    """uint8 [H, W, 3], RGB."""
    tiles: tuple[Window, ...]
    inputs: tuple[Tensor, ...]
    """The prepared tiles."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Of the image, pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def make_frame(key: Key, pixels: PixelArray, detector: Detector, tiling: Tiling | None) -> Frame[Key]:
    """Cut and prepare an image."""
    tiles = windows((pixels.shape[1], pixels.shape[0]), tiling)
    inputs = tuple(detector.prepare(pixels[w.top : w.bottom, w.left : w.right]) for w in tiles)
    return Frame(key, pixels, tiles, inputs)


def read_frames(
    keys: Iterable[Key],
    read: Callable[[Key], PixelArray],
    detector: Detector,
    tiling: Tiling | None,
    failed: Callable[[Key, UserError], object],
) -> Iterator[Frame[Key]]:
    """Frames in the order of `keys`, read and prepared in threads, a few ahead.

    Args:
        keys: What to read.
        read: Raises UserError for what cannot be read.
        detector: Prepares the pixels.
        tiling: None takes images whole.
        failed: Called with what could not be read; it is left out.
    """
    # An image to be tiled may have hundreds of megabytes, and as many again in tiles.
    workers = 1 if tiling is not None else min(4, os.cpu_count() or 1)

    def load(key: Key) -> Frame[Key]:
        return make_frame(key, read(key), detector, tiling)

    def result(key: Key, future: Future[Frame[Key]]) -> Iterator[Frame[Key]]:
        try:
            yield future.result()
        except UserError as error:
            failed(key, error)

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[Key, Future[Frame[Key]]]] = deque()
        try:
            for key in keys:
                ahead.append((key, pool.submit(load, key)))
                if len(ahead) > workers:
                    yield from result(*ahead.popleft())
            while ahead:
                yield from result(*ahead.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass(eq=False)
class _Open(Generic[Key]):
    """A frame some of whose windows are not done yet."""

    frame: Frame[Key]
    parts: list[Found | None] = field(default_factory=list)


def predict_frames(
    frames: Iterable[Frame[Key]],
    detector: Detector,
    thresholds: FloatArray,
    batch_size: int,
    nms_iou: float | None = None,
) -> Iterator[tuple[Frame[Key], Found]]:
    """Every frame with what is in it, in order; boxes in pixels of the frame.

    Args:
        frames: From `make_frame` or `read_frames`.
        detector: Computes.
        thresholds: [C] least scores.
        batch_size: Windows at once; a batch takes windows of several frames, and only the last one may be smaller.
        nms_iou: Of boxes of one class that overlap more, the best is kept; None keeps all, as the evaluation does.
    """
    waiting: deque[_Open[Key]] = deque()
    todo: list[tuple[_Open[Key], int]] = []
    for frame in frames:
        opened = _Open(frame, [None] * len(frame.tiles))
        waiting.append(opened)
        todo += [(opened, number) for number in range(len(frame.tiles))]
        while len(todo) >= batch_size:
            _detect(todo[:batch_size], detector, thresholds)
            del todo[:batch_size]
        yield from _finished(waiting, nms_iou)
    if todo:
        _detect(todo, detector, thresholds)
    yield from _finished(waiting, nms_iou)


def _detect(batch: Sequence[tuple[_Open[Key], int]], detector: Detector, thresholds: FloatArray) -> None:
    tiles = [opened.frame.tiles[number] for opened, number in batch]
    inputs = [opened.frame.inputs[number] for opened, number in batch]
    sizes_wh = [(tile.right - tile.left, tile.bottom - tile.top) for tile in tiles]
    for (opened, number), found in zip(batch, detector.detect(inputs, sizes_wh), strict=True):
        opened.parts[number] = found.above(thresholds)


def _finished(waiting: deque[_Open[Key]], nms_iou: float | None) -> Iterator[tuple[Frame[Key], Found]]:
    while waiting:
        frame = waiting[0].frame
        parts = [part for part in waiting[0].parts if part is not None]
        if len(parts) < len(frame.tiles):
            return
        waiting.popleft()
        found = merge_tiles(parts, frame.tiles, frame.size_wh)
        yield frame, found if nms_iou is None else found.without_repeats(nms_iou)
