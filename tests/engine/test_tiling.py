"""Tiles and their merging, with a detector that knows the truth."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.config import TilesConfig
from data.tiles import windows
from data.types import PixelArray, Window
from deploy.pipeline import make_frame, predict_frames
from engine.tiling import merge_tiles
from models.detections import Detections

Box = tuple[int, int, int, int]


class PaintDetector:
    """Finds what it can see of each object: object k of class c is painted (k, c, 255); nothing is resized."""

    def __init__(self, tiles: TilesConfig | None = None) -> None:
        self.batches: list[int] = []
        self.config = SimpleNamespace(tiles=tiles)

    def prepare(self, pixels: PixelArray) -> Tensor:
        return torch.from_numpy(pixels.copy())

    def detect(self, inputs: Sequence[Tensor], sizes_wh: Sequence[tuple[int, int]]) -> list[Detections]:
        self.batches.append(len(inputs))
        return [self._find(one.numpy()) for one in inputs]

    def _find(self, pixels: PixelArray) -> Detections:
        parts = []
        for number in np.unique(pixels[pixels[..., 2] == 255][:, 0]):
            rows, columns = np.nonzero((pixels[..., 0] == number) & (pixels[..., 2] == 255))
            box = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]
            label = pixels[rows[0], columns[0], 1]
            score = 0.5 + 0.4 * len(rows) / pixels[..., 0].size
            parts.append(Detections(np.array(box, dtype=np.float64), np.array([score]), np.array([label])))
        return Detections.joined(parts)


def paint(size_wh: tuple[int, int], objects: Sequence[tuple[int, Box]]) -> PixelArray:
    pixels = np.zeros((size_wh[1], size_wh[0], 3), dtype=np.uint8)
    for number, (label, (left, top, right, bottom)) in enumerate(objects):
        pixels[top:bottom, left:right] = number, label, 255
    return pixels


def find(pixels: PixelArray, tiles: TilesConfig | None, batch_size: int = 4) -> tuple[Detections, PaintDetector]:
    detector = PaintDetector(tiles)
    frames = [make_frame("image", pixels, detector)]
    ((_, found),) = predict_frames(frames, detector, np.zeros(3), batch_size)
    return found, detector


def as_set(found: Detections) -> list[tuple[int, Box]]:
    boxes = found.boxes_xyxy.astype(int).tolist()
    return sorted((label, tuple(box)) for label, box in zip(found.labels.tolist(), boxes, strict=True))


@pytest.mark.parametrize(
    "box",
    [
        (70, 20, 130, 60),  # across one border
        (10, 80, 290, 110),  # longer than three tiles
        (75, 75, 125, 125),  # on a corner: four fragments
        (85, 30, 95, 40),  # within the shared strip: whole in both tiles
        (0, 0, 300, 200),  # larger than every tile
    ],
)
def test_an_object_on_a_border_comes_out_once_and_whole(box: Box) -> None:
    found, _ = find(paint((300, 200), [(1, box)]), TilesConfig(size=100))
    assert as_set(found) == [(1, box)]


def test_neighbours_and_other_classes_stay_apart() -> None:
    objects = [(0, (60, 20, 98, 60)), (0, (100, 20, 140, 60)), (1, (60, 62, 140, 90)), (2, (60, 92, 140, 110))]
    found, detector = find(paint((300, 200), objects), TilesConfig(size=100), batch_size=5)
    assert as_set(found) == sorted(objects)
    assert detector.batches == [5, 5, 2]


@given(st.data(), st.integers(32, 120), st.floats(0.05, 0.6))
@settings(max_examples=40)
def test_tiles_change_nothing(data: st.DataObject, tile_px: int, overlap: float) -> None:
    """Any number of objects apart from one another, of any size, with any tiles."""
    cells = data.draw(st.lists(st.integers(0, 11), unique=True, max_size=8))
    objects = []
    for cell in cells:
        left, top = 60 * (cell % 4), 60 * (cell // 4)
        width, height = data.draw(st.integers(3, 58)), data.draw(st.integers(3, 58))
        x, y = data.draw(st.integers(left, left + 58 - width)), data.draw(st.integers(top, top + 58 - height))
        objects.append((data.draw(st.integers(0, 2)), (x, y, x + width, y + height)))
    pixels = paint((240, 180), objects)
    found, _ = find(pixels, TilesConfig(size=tile_px, overlap=overlap))
    assert as_set(found) == sorted(objects)
    assert (np.diff(found.scores) <= 0).all()


def test_a_sliver_joins_the_whole_and_the_best_score_counts() -> None:
    """The right tile sees the object's last pixels only, as another's worth: the whole box stays."""
    tiles = (Window(0, 0, 100, 100), Window(80, 0, 180, 100))
    whole = Detections(np.array([[40.0, 10, 90, 50]]), np.array([0.6]), np.array([0]))
    sliver = Detections(np.array([[0.0, 12, 8, 44]]), np.array([0.9]), np.array([0]))
    found = merge_tiles([whole, sliver], tiles, (180, 100))
    assert as_set(found) == [(0, (40, 10, 90, 50))] and found.scores.tolist() == [0.9]


def test_fragments_that_end_short_of_the_border() -> None:
    """As networks see it (DEIMv2 on a scratch): the lower tile's box begins where it is sure, not at the border."""
    tiles = (Window(0, 0, 200, 200), Window(0, 134, 200, 334))
    upper = Detections(np.array([[141.0, 72, 155, 197]]), np.array([0.5]), np.array([1]))
    lower = Detections(np.array([[137.0, 11, 154, 133]]), np.array([0.64]), np.array([1]))
    found = merge_tiles([upper, lower], tiles, (200, 400))
    assert as_set(found) == [(1, (137, 72, 155, 267))] and found.scores.tolist() == [0.64]


def test_repeats_within_a_tile_are_the_networks_own() -> None:
    tiles = (Window(0, 0, 100, 100), Window(80, 0, 180, 100))
    twice = Detections(np.array([[10.0, 10, 50, 50], [12, 10, 50, 50]]), np.array([0.9, 0.8]), np.array([0, 0]))
    assert len(merge_tiles([twice, Detections.empty()], tiles, (180, 100))) == 2
    assert len(merge_tiles([Detections.empty(), Detections.empty()], tiles, (180, 100))) == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_tall_image_is_a_wide_one_on_its_side(seed: int) -> None:
    """Of any detections, junk too: those nearby are sought along the longer side."""
    rng = np.random.default_rng(seed)
    size_wh = (int(rng.integers(50, 800)), int(rng.integers(50, 800)))
    cut = windows(size_wh, TilesConfig(size=120, overlap=0.3))
    parts = []
    for tile in cut:
        low, side = rng.uniform(0, 110, (30, 2)), rng.uniform(3, 90, (30, 2))
        boxes = np.concatenate([low, low + side], axis=1).clip(0, np.tile(tile.size_wh, 2))
        parts.append(Detections(boxes, np.sort(rng.random(30))[::-1], rng.integers(0, 2, 30)))
    on_its_side = [replace(part, boxes_xyxy=part.boxes_xyxy[:, [1, 0, 3, 2]]) for part in parts]
    turned = [Window(tile.top, tile.left, tile.bottom, tile.right) for tile in cut]
    found, other = merge_tiles(parts, cut, size_wh), merge_tiles(on_its_side, turned, size_wh[::-1])
    np.testing.assert_array_equal(other.boxes_xyxy[:, [1, 0, 3, 2]], found.boxes_xyxy)
    np.testing.assert_array_equal(other.scores, found.scores)


def test_repeats_go_where_asked_for() -> None:
    """The second object is painted over all of the first but its left column: their boxes overlap by 0.9."""
    pixels = paint((40, 30), [(1, (10, 10, 20, 20)), (1, (11, 10, 20, 20))])
    detector = PaintDetector()
    pixels[10:20, 19, 0] = 0  # and the first one shows again on the right
    for nms_iou, expected in ((None, 2), (0.7, 1)):
        frames = [make_frame("image", pixels, detector)]
        ((_, found),) = predict_frames(frames, detector, np.zeros(3), 1, nms_iou)
        assert len(found) == expected
