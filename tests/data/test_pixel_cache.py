from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.coco import read_split
from data.images import REDUCTIONS, read_reduced, reduced
from data.industrial_dataset import IndustrialDataset, SampleKey, build_cache
from data.pixel_cache import PixelCache
from tests.support.coco_files import CocoFiles, data_config

SIZES = [[(5, 9), (0, 0), (17, 31)], [(4, 4), (6, 6), (8, 8)], [(20, 2), (1, 1), (40, 3)]]
"""Three versions of three images; one is never kept."""
KEYS = [(index, version) for version in range(3) for index in range(3)]


def _pixels(index: int, version: int) -> np.ndarray:
    return np.random.default_rng([index, version]).integers(0, 256, (*SIZES[index][version], 3), dtype=np.uint8)


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_put_comes_out(shared: bool) -> None:
    cache = PixelCache(SIZES, 10**6, shared=shared)
    assert all(cache.get(*key) is None for key in KEYS)
    for key in KEYS:
        cache.put(*key, _pixels(*key))
    for key in KEYS:
        found = cache.get(*key)
        assert found is not None and not found.flags.writeable
        np.testing.assert_array_equal(found, _pixels(*key))


@pytest.mark.parametrize("max_bytes", [0, 1, 100, 800, 2000, 3000])
def test_the_limit_holds_and_first_versions_come_first(max_bytes: int) -> None:
    cache = PixelCache(SIZES, max_bytes, shared=False)
    assert cache.num_bytes <= max_bytes
    held = {}
    for key in reversed(KEYS):
        cache.put(*key, _pixels(*key))
        held[key] = cache.get(*key) is not None
    assert sum(_pixels(*key).size for key, there in held.items() if there) == cache.num_bytes
    order = [held[key] for key in KEYS if _pixels(*key).size]
    assert order == sorted(order, reverse=True)


def _jpegs(folder: Path) -> IndustrialDataset:
    """Large enough that mosaics read them at a half or less."""
    files = CocoFiles(folder, num_images=4, size_wh=(181, 163))
    for record in files.content["images"]:
        path = files.img_folder / record["file_name"]
        record["file_name"] = path.with_suffix(".jpg").name
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
    split = read_split("train", files.save().ann_file, files.img_folder)[0]
    config = data_config(folder).train_dataloader
    cache = build_cache(split, config, 150_000, shared=False)  # not enough for all
    return IndustrialDataset(split, config, training=True, cache=cache)


def test_a_cache_never_changes_a_sample(tmp_path: Path) -> None:
    cached = _jpegs(tmp_path)
    plain = IndustrialDataset(cached.split, data_config(tmp_path).train_dataloader, training=True)
    for _ in range(2):
        for epoch in (1, 2, 3):
            for index in range(4):
                key = SampleKey(epoch, 0, index)
                assert torch.equal(cached[key].image, plain[key].image)
    versions = [version for version in range(5) if cached.cache.get(0, version) is not None]
    assert 0 in versions and len(versions) > 1, "tiles and reductions are in use"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reduced_jpegs_are_means_of_squares(tmp_path: Path, reduction: int) -> None:
    smooth = np.add.outer(np.arange(101), np.arange(143))[..., None].repeat(3, axis=2).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth).save(path, quality=98, subsampling=0)
    pixels, facts = read_reduced(path, reduction)
    full = read_reduced(path, 1)[0]
    assert facts.upright_wh == (143, 101) and pixels.shape == reduced(full, reduction).shape
    inside = np.s_[: 101 // reduction, : 143 // reduction]
    assert np.abs(pixels[inside].astype(int) - reduced(full, reduction)[inside].astype(int)).max() <= 3
