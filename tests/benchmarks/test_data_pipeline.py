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


def test_a_cell_and_its_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "POLICIES", {"mosaic": 1.0})
    monkeypatch.setattr(benchmark, "NUM_IMAGES", 4)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    cell = benchmark.measure_cell(folder, 0, repeats=1)
    assert [*cell["mosaic"]] == ["ours", "PIL", "PIL, 4 reads"] and min(cell["mosaic"].values()) > 0
    (line,) = benchmark.report("200", {"mosaic": {"ours": 4.0, "PIL": 18.0}})
    assert line.endswith("ms: ours 4.00 (1.00x), PIL 18.00 (4.50x); aim: PIL >= 4x")
