"""Images in, detections out: read ahead, cut into tiles, computed in full batches whatever the images' sizes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from data.errors import UserError
from data.tiles import windows
from data.types import FloatArray, PixelArray, Window
from engine.detector import Detector
from engine.tiling import merge_tiles
from models.detections import Detections

Key = TypeVar("Key")
_THREADS = min(4, os.cpu_count() or 1)


@dataclass(eq=False)
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
    detections: list[Detections] = field(default_factory=list)
    """Of the tiles done so far."""

    @property
    def size_wh(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[0]

    def prepared(self, tile: Window, detector: Detector) -> Tensor:
        """Return a tile as the network takes it."""
        if self.whole is not None:
            return self.whole
        return detector.prepare(self.pixels[tile.top : tile.bottom, tile.left : tile.right])


def make_frame(key: Key, pixels: PixelArray, detector: Detector) -> Frame[Key]:
    """Decide how to cut an image, and prepare it if it stays whole."""
    cut = windows((pixels.shape[1], pixels.shape[0]), detector.config.tiles)
    return Frame(key, pixels, cut, detector.prepare(pixels) if len(cut) == 1 else None)


def read_frames(
    images: Iterable[tuple[Key, Callable[[], PixelArray]]],
    detector: Detector,
    failed: Callable[[UserError], object],
) -> Iterator[Frame[Key]]:
    """Yield frames in the order of `images`, read and prepared in threads, a few ahead. Of an image that cannot be read
    `failed` gets the reason."""

    def load(key: Key, read: Callable[[], PixelArray]) -> Frame[Key]:
        return make_frame(key, read(), detector)

    def done() -> Iterator[Frame[Key]]:
        try:
            yield ahead.popleft().result()
        except UserError as error:
            failed(error)

    workers = _THREADS if detector.config.tiles is None else 1  # an image to be tiled may have hundreds of megabytes
    ahead: deque[Future[Frame[Key]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for key, read in images:
                ahead.append(pool.submit(load, key, read))
                if len(ahead) > workers:
                    yield from done()
            while ahead:
                yield from done()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def predict_frames(
    frames: Iterable[Frame[Key]],
    detector: Detector,
    thresholds: FloatArray,
    batch_size: int,
    nms_iou: float | None = None,
) -> Iterator[tuple[Frame[Key], Detections]]:
    """Yield every frame with its detections of at least the `thresholds` [C], in order; boxes in pixels of the frame.

    A batch takes tiles of several frames, and only the last one may be smaller. Of boxes of one class that overlap more
    than `nms_iou`, the best is kept; None keeps all, as the evaluation does.
    """
    waiting: deque[Frame[Key]] = deque()
    todo: list[tuple[Frame[Key], Window]] = []

    def detect(batch: Sequence[tuple[Frame[Key], Window]]) -> None:
        inputs = list(pool.map(lambda one: one[0].prepared(one[1], detector), batch))
        for (frame, _), found in zip(batch, detector.detect(inputs, [tile.size_wh for _, tile in batch]), strict=True):
            frame.detections.append(found)

    def finished() -> Iterator[tuple[Frame[Key], Detections]]:
        while waiting and len(waiting[0].detections) == len(waiting[0].tiles):
            frame = waiting.popleft()
            found = merge_tiles(frame.detections, frame.tiles, frame.size_wh).above(thresholds)
            yield frame, found if nms_iou is None else found.without_repeats(nms_iou)

    with ThreadPoolExecutor(_THREADS) as pool:
        for frame in frames:
            waiting.append(frame)
            todo += [(frame, tile) for tile in frame.tiles]
            while len(todo) >= batch_size:
                detect(todo[:batch_size])
                del todo[:batch_size]
            yield from finished()
        if todo:
            detect(todo)
        yield from finished()
