"""What is in memory while images are cut, prepared and computed."""

import threading
import weakref
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from data.config import TilesConfig
from data.types import PixelArray
from deploy.pipeline import predict_frames, read_frames
from models.detections import Detections


class _Counting:
    """Knows the most prepared inputs that there were at once."""

    def __init__(self) -> None:
        self.alive, self.most, self.seen = 0, 0, 0
        self.config = SimpleNamespace(tiles=TilesConfig(size=64))
        self._lock = threading.Lock()

    def prepare(self, pixels: PixelArray) -> Tensor:
        made = torch.zeros(3, 4, 4)
        weakref.finalize(made, self._add, -1)
        self._add(1)
        return made

    def _add(self, number: int) -> None:
        with self._lock:
            self.alive += number
            self.most = max(self.most, self.alive)

    def detect(self, inputs: Sequence[Tensor], sizes_wh: Sequence[tuple[int, int]]) -> list[Detections]:
        self.seen += len(inputs)
        return [Detections.empty() for _ in inputs]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_no_more_tiles_than_a_batch(batch_size: int) -> None:
    """All tiles of an image together take many times its memory."""
    detector = _Counting()
    images = [(number, partial(np.zeros, (300, 260, 3), np.uint8)) for number in range(3)]
    frames = read_frames(images, detector, failed=lambda error: None)
    done = [frame.key for frame, _ in predict_frames(frames, detector, np.zeros(1), batch_size)]
    assert done == [0, 1, 2] and detector.seen == 3 * 6 * 5
    assert detector.most <= batch_size
