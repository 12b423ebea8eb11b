"""The benchmark of the data pipeline: does it compare like with like?"""

from itertools import islice
from pathlib import Path

import pytest
import torch

import benchmarks.data_pipeline as benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = tmp_path_factory.mktemp("sources") / "images"
    benchmark.write_images(images, (200, 200), copies=2)
    return images


def test_copies_are_files_of_their_own_with_the_same_boxes(folder: Path) -> None:
    assert len(list(folder.glob("*.jpg"))) == 2 * benchmark.NUM_IMAGES
    labels = folder.parent / "labels"
    assert (labels / "1.txt").read_text() == (labels / "17.txt").read_text()
    assert (folder / "1.jpg").read_bytes() == (folder / "17.jpg").read_bytes()


@pytest.mark.parametrize("reuse_tiles", [False, True])
def test_all_pipelines_give_batches_of_one_shape(folder: Path, reuse_tiles: bool) -> None:
    theirs = next(benchmark.PilPipeline(folder, 1.0, reuse_tiles=reuse_tiles).batches())
    ours = next(benchmark.our_batches(benchmark.our_loader(folder, 1.0, 0)))
    shape = (benchmark.BATCH, 3, benchmark.SIDE, benchmark.SIDE)
    assert isinstance(theirs, torch.Tensor) and theirs.shape == shape and theirs.dtype == torch.float32
    assert ours.images.shape == shape and ours.images.dtype == torch.uint8  # type: ignore[attr-defined]


def test_our_batches_go_on_from_epoch_to_epoch(folder: Path) -> None:
    loader = benchmark.our_loader(folder, 0.0, 0)
    batches = list(islice(benchmark.our_batches(loader), len(loader) + 1))
    assert batches[0].image_ids != batches[-1].image_ids  # type: ignore[attr-defined]


def test_the_keys_of_a_cell(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "POLICIES", {"mosaic": 1.0})
    monkeypatch.setattr(benchmark, "NUM_IMAGES", 4)
    monkeypatch.setattr(benchmark, "ultralytics_batches", lambda *_, **__: None)
    cell = benchmark.measure_cell("200", folder, 0, repeats=1)
    assert cell["mosaic"]["ms"] > 0 and cell["mosaic"]["ratio_pil"] > 0
    assert cell["mosaic"]["ratio_ultralytics"] is None
    assert "not installed" in benchmark.report({"200": cell})[1]
