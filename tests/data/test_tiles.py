"""Tiles: one grid, boxes that map back, an epoch that is a function of seed and epoch."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.classes import ClassMap
from data.coco import CocoSplit, read_split
from data.coco_reader import ImageRecord
from data.config import TilesConfig
from data.errors import UserError
from data.images import REDUCTIONS, reduced
from data.industrial_dataset import IndustrialDataset, SampleKey, SplitImage, build_cache
from data.loader import build_eval_loader, build_train_loader
from data.tiles import TileRecord, tiled, windows
from tests.support.coco_files import CocoFiles, data_config

CLASSES = ClassMap((1, 2), ("holes", "scratches"))
TILES = TilesConfig(size=32, overlap=0.25, keep_empty=0.5)


def split_of(size_wh: tuple[int, int], boxes_xywh: list[list[float]]) -> CocoSplit:
    """One image."""
    count = len(boxes_xywh)
    boxes = np.array(boxes_xywh, dtype=np.float64).reshape(-1, 4)
    image = ImageRecord(7, "a.png", Path("a.png"), *size_wh, slice(0, count))
    ids, labels = np.arange(1, count + 1), np.arange(count) % 2
    crowd = np.zeros(count, np.bool_)
    areas = boxes[:, 2:].prod(axis=1)
    return CocoSplit("train", Path("a.json"), Path(), CLASSES, (image,), boxes, labels, areas, crowd, crowd, ids)


@given(st.integers(1, 700), st.integers(1, 700), st.integers(32, 200), st.floats(0.05, 0.8))
def test_tiles_cover_the_image_with_overlap(width: int, height: int, size: int, overlap: float) -> None:
    cut = windows((width, height), TilesConfig(size=size, overlap=overlap))
    seen = np.zeros((height, width), dtype=bool)
    for tile in cut:
        assert tile.size_wh == (min(size, width), min(size, height))
        seen[tile.top : tile.bottom, tile.left : tile.right] = True
    assert seen.all()
    columns = sorted({(tile.left, tile.right) for tile in cut})
    for (_, end), (start, _) in zip(columns, columns[1:], strict=False):
        assert end - start >= overlap * size - 2  # two edges rounded to pixels


@given(st.data(), st.floats(0.05, 0.6), st.floats(0, 1))
@settings(max_examples=60)
def test_boxes_of_tiles_are_the_images_boxes(data: st.DataObject, overlap: float, min_visible: float) -> None:
    """Clipped exactly; every box is somewhere, and together the tiles that show it show all of it."""
    boxes = []
    for _ in range(data.draw(st.integers(0, 6))):
        x, y = data.draw(st.integers(0, 190)), data.draw(st.integers(0, 140))
        boxes.append([x, y, data.draw(st.integers(1, 200 - x)), data.draw(st.integers(1, 150 - y))])
    split = split_of((200, 150), boxes)
    tiles = TilesConfig(size=64, overlap=overlap, min_visible=min_visible)
    cut = tiled(split, tiles)
    seen: dict[int, list[np.ndarray]] = {}
    for record in cut.images:
        assert isinstance(record, TileRecord) and record.id == 7 and record.image is split.images[0]
        left, top, right, bottom = record.window
        for row in range(record.rows.start, record.rows.stop):
            original = int(cut.annotation_ids[row]) - 1
            assert cut.labels[row] == split.labels[original]
            back = cut.boxes_xyxy[row] + np.array([left, top, left, top])
            inside = np.clip(split.boxes_xyxy[original], [left, top, left, top], [right, bottom, right, bottom])
            np.testing.assert_array_equal(back, inside)
            assert (back[2:] > back[:2]).all() and cut.areas[row] == (back[2:] - back[:2]).prod()
            seen.setdefault(original, []).append(back)
    assert sorted(seen) == list(range(len(boxes)))
    for original, parts in seen.items():
        if min_visible == 0:
            hull = np.concatenate([np.min(parts, axis=0)[:2], np.max(parts, axis=0)[2:]])
            np.testing.assert_array_equal(hull, split.boxes_xyxy[original])
    assert tiled(split, None) is split


@pytest.mark.parametrize(
    ("box", "min_visible", "shown_by"),
    [  # tiles 0..100 and 50..150
        ([60, 10, 30, 30], 0.5, [0, 1]),
        ([20, 10, 40, 40], 0.3, [0]),  # the second sees 25 %
        ([20, 10, 40, 40], 0.25, [0, 1]),
        ([0, 10, 150, 40], 0.5, [0, 1]),  # longer than a tile: of what fits into one, both see all
    ],
)
def test_a_tile_has_the_boxes_it_shows_enough_of(box: list[float], min_visible: float, shown_by: list[int]) -> None:
    tiles = TilesConfig(size=100, overlap=0.5, min_visible=min_visible)
    cut = tiled(split_of((150, 60), [box]), tiles)
    assert [number for number, tile in enumerate(cut.images) if tile.rows.start < tile.rows.stop] == shown_by


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of 3 x 2 tiles, one of them without boxes."""
    root = tmp_path_factory.mktemp("tiles")
    for name in ("train", "val"):
        files = CocoFiles(root, name, num_images=4, boxes_per_image=1, size_wh=(77, 50))
        files.content["annotations"] = files.content["annotations"][:3]
        files.save()
    return root


def read(root: Path, name: str = "train") -> CocoSplit:
    return read_split(name, root / f"{name}.json", root / "images" / name)[0]


def test_an_epoch_is_a_function_of_seed_and_epoch(files: Path) -> None:
    """Every tile with an object once, half of the others, by turns; processes share them."""
    config, split = data_config(files, tiles=TILES.model_dump(), train_dataloader__drop_last=False), read(files)
    cut = tiled(split, TILES)
    empty = {place for place, tile in enumerate(cut.images) if tile.rows.start == tile.rows.stop}
    shown = Counter[int]()
    for epoch in range(4):
        loader, again, *shared = (
            build_train_loader(config, split, split.classes, seed=3, rank=rank, world_size=processes)
            for rank, processes in ((0, 1), (0, 1), (0, 2), (1, 2))
        )
        orders = []
        for one in (loader, again, *shared):
            one.set_epoch(epoch)
            orders.append([key.index for keys in one._order for key in keys])
        assert orders[0] == orders[1] and sorted(orders[2] + orders[3]) == sorted(orders[0])
        objects = [place for place in orders[0] if place not in empty]
        assert sorted(objects) == sorted(set(range(len(cut))) - empty)
        assert len(orders[0]) - len(objects) == round(len(empty) / 2)
        shown.update(orders[0])
        loader.set_epoch(epoch, first_batch=1)
        assert [key.index for keys in loader._order for key in keys] == orders[0][2:], "resumed"
    assert set(shown) == set(range(len(cut))), "empty tiles take turns"


def test_an_epoch_without_a_step(files: Path) -> None:
    config = data_config(files, tiles=TILES.model_dump() | {"keep_empty": 0}, train_dataloader__total_batch_size=99)
    with pytest.raises(UserError, match=r"an epoch has \d tiles, fewer than one step of 99 .* to at most \d, or"):
        build_train_loader(config, read(files), CLASSES, seed=0)
    with pytest.raises(
        UserError, match="none of its 48 tiles has an object, and with tiles.keep_empty: 0 an epoch shows"
    ):
        build_train_loader(config, split_of((200, 150), []), CLASSES, seed=0)


def test_tiles_are_cut_from_the_decoded_image(files: Path) -> None:
    """With a cache of any size, at every reduction, in evaluation; Mosaic draws from the tiles of the epoch."""
    config, split = data_config(files, tiles=TILES.model_dump()), read(files)
    cut, loader = tiled(split, TILES), config.train_dataloader
    for megabytes in (0, 0.02, 10):
        cache = build_cache(cut, loader, int(megabytes * 2**20), shared=False)
        dataset = IndustrialDataset(cut, loader, training=True, cache=cache)
        for place in (5, 0, 7, 5):
            record = cut.images[place]
            left, top, right, bottom = record.window
            pixels = np.asarray(Image.open(record.path))[top:bottom, left:right]
            for reduction in REDUCTIONS:
                np.testing.assert_array_equal(SplitImage(dataset, place).pixels(reduction), reduced(pixels, reduction))
    weights = np.zeros(len(cut))
    weights[[2, 9]] = 1
    dataset = IndustrialDataset(cut, loader, training=True, weights=weights)
    assert {*dataset._partners(np.random.default_rng(0)), *dataset._partners(np.random.default_rng(1))} == {2, 9}
    assert torch.equal(dataset[SampleKey(1, 0, 3)].image, dataset[SampleKey(1, 0, 3)].image)


def test_evaluation_keeps_the_tiles_of_an_image_together(files: Path) -> None:
    config, split = data_config(files, tiles=TILES.model_dump()), read(files, "val")
    seen = []
    for rank in (0, 1):
        loader = build_eval_loader(config, split, split.classes, rank=rank, world_size=2)
        batches = list(loader)
        seen.append([(i, w) for batch in batches for i, w in zip(batch.image_ids, batch.windows or [], strict=True)])
    assert [{i for i, _ in part} for part in seen] == [{1, 3}, {2, 4}]
    expected = [(image.id, window) for image in split.images for window in windows((77, 50), TILES)]
    assert sorted(seen[0] + seen[1]) == sorted(expected)


def test_rare_classes_are_counted_in_images(files: Path) -> None:
    """A tile comes as often as the rarest class that it shows asks for, whatever the number of tiles."""
    config = data_config(files, tiles=TILES.model_dump(), train_dataloader__repeat_factor_threshold=1.0)
    split = read(files)
    loader = build_train_loader(config, split, split.classes, seed=0)
    cut, factors = tiled(split, TILES), loader._order.factors
    share = np.array([sum(label in split.labels[i.rows] for i in split.images) for label in (0, 1)]) / len(split)
    for tile, factor in zip(cut.images, factors, strict=True):
        labels = cut.labels[tile.rows]
        if len(labels):
            assert factor == pytest.approx(max(np.sqrt(1 / share[label]) for label in labels))
