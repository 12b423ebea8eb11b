from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.coco import read_split
from data.loader import build_train_loader
from data.sampling import epoch_length, repeat_factors, repeated
from tests.support.coco_files import CocoFiles, data_config


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    """Ten images: `holes` in eight, `scratches` in one of them, one image without boxes, one of a crowd only."""
    files = CocoFiles(tmp_path, num_images=10, boxes_per_image=0)
    for image_id in range(1, 9):
        files.add_box(image_id, [1, 1, 20, 20], 1)
    files.add_box(3, [5, 5, 9, 9], 2)
    files.add_box(9, [5, 5, 9, 9], 2, iscrowd=1)
    CocoFiles(tmp_path, "val").save()
    return files.save()


def test_factors_by_hand(files: CocoFiles) -> None:
    split = read_split("train", files.ann_file, files.img_folder)[0]
    expected = np.ones(10)
    expected[2] = np.sqrt(0.4 / 0.1)
    np.testing.assert_allclose(repeat_factors(split, 0.4), expected)
    np.testing.assert_allclose(repeat_factors(split, 0.1), 1)
    assert epoch_length(expected) == 11


@given(factors=st.lists(st.floats(1, 6), min_size=1, max_size=30), seed=st.integers(0, 10**6))
def test_every_image_comes_as_often_as_its_factor_says(factors: list[float], seed: int) -> None:
    array = np.array(factors)
    positions, copies = repeated(array, np.random.default_rng(seed))
    assert len(positions) == len(copies) == epoch_length(array)
    scaled = array * epoch_length(array) / array.sum()
    counts = np.bincount(positions, minlength=len(array))
    assert (np.abs(counts - scaled) < 1 + 1e-9).all()
    assert len({*zip(positions.tolist(), copies.tolist(), strict=True)}) == len(positions)
    assert all(copies[positions == k].tolist() == list(range(n)) for k, n in enumerate(counts))


def test_in_the_loader(files: CocoFiles, tmp_path: Path) -> None:
    config = data_config(
        tmp_path, train_dataloader__repeat_factor_threshold=0.8, train_dataloader__collate_fn={"base_size": 64}
    )
    split = read_split("train", files.ann_file, files.img_folder)[0]
    loaders = [build_train_loader(config, split, split.classes, seed=0) for _ in range(2)]
    assert len(loaders[0]) == epoch_length(repeat_factors(split, 0.8)) // 2 == 6
    counts = np.zeros(11)
    for epoch in range(6):
        for loader in loaders:
            loader.set_epoch(epoch)
        batches, again = (list(loader) for loader in loaders)
        ids = [image_id for batch in batches for image_id in batch.image_ids]
        assert ids == [image_id for batch in again for image_id in batch.image_ids]
        counts += np.bincount(ids, minlength=11)
    assert counts[3] >= 10 and counts[3] > counts[[1, 2, 4, 5, 6, 7, 8, 9, 10]].max()
