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
from deploy.detector import Detector
from deploy.found import Found
from deploy.tiling import Tiling, Window, merge_tiles, windows
from engine.coco_metrics import FloatArray

Key = TypeVar("Key")


@dataclass(frozen=True, eq=False)
class Frame(Generic[Key]):
    """One image on its way through the network."""

    key: Key
    """What it is."""
    pixels: PixelArray
    """uint8 [H, W, 3], RGB."""
    tiles: tuple[Window, ...]
    whole: Tensor | None
    """Prepared, where it is a single tile; several are prepared batch by batch, since together they take many times the
    memory of the image."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Of the image, pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def prepared(self, number: int, detector: Detector) -> Tensor:
        """A tile as the network takes it."""
        if self.whole is not None:
            return self.whole
        tile = self.tiles[number]
        return detector.prepare(self.pixels[tile.top : tile.bottom, tile.left : tile.right])


def make_frame(key: Key, pixels: PixelArray, detector: Detector, tiling: Tiling | None) -> Frame[Key]:
    """Decide how to cut an image, and prepare it if it stays whole."""
    tiles = windows((pixels.shape[1], pixels.shape[0]), tiling)
    return Frame(key, pixels, tiles, detector.prepare(pixels) if len(tiles) == 1 else None)


def read_frames(
    images: Iterable[tuple[Key, Callable[[], PixelArray]]],
    detector: Detector,
    tiling: Tiling | None,
    failed: Callable[[Key, UserError], object],
) -> Iterator[Frame[Key]]:
    """Frames in the order of `images`, read and prepared in threads, a few ahead.

    Args:
        images: What to read, and how: raises UserError for what cannot be read.
        detector: Prepares the pixels.
        tiling: None takes images whole.
        failed: Called with what could not be read; it is left out.
    """
    # An image to be tiled may have hundreds of megabytes.
    workers = 1 if tiling is not None else min(4, os.cpu_count() or 1)

    def load(key: Key, read: Callable[[], PixelArray]) -> Frame[Key]:
        return make_frame(key, read(), detector, tiling)

    def result(key: Key, future: Future[Frame[Key]]) -> Iterator[Frame[Key]]:
        try:
            yield future.result()
        except UserError as error:
            failed(key, error)

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[Key, Future[Frame[Key]]]] = deque()
        try:
            for key, read in images:
                ahead.append((key, pool.submit(load, key, read)))
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
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for frame in frames:
            opened = _Open(frame, [None] * len(frame.tiles))
            waiting.append(opened)
            todo += [(opened, number) for number in range(len(frame.tiles))]
            while len(todo) >= batch_size:
                _detect(todo[:batch_size], detector, thresholds, pool)
                del todo[:batch_size]
            yield from _finished(waiting, nms_iou)
        if todo:
            _detect(todo, detector, thresholds, pool)
        yield from _finished(waiting, nms_iou)


def _detect(
    batch: Sequence[tuple[_Open[Key], int]], detector: Detector, thresholds: FloatArray, pool: ThreadPoolExecutor
) -> None:
    tiles = [opened.frame.tiles[number] for opened, number in batch]
    inputs = list(pool.map(lambda one: one[0].frame.prepared(one[1], detector), batch))
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
