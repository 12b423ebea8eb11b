import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest
import torch
from PIL import Image

from data.batch import Batch
from data.coco import CocoSplit
from data.config import DataConfig
from data.errors import UserError
from data.loader import EvalLoader, TrainLoader, build_eval_loader, build_train_loader, explain_worker_error
from data.signals import STOP_SIGNALS, handlers
from data.splits import build_datasets
from engine.config import load_config
from tests.support.coco_files import CocoFiles, data_config
from tests.support.tiny_run import write_tiny_config, write_tiny_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    CocoFiles(folder, num_images=11).save()
    CocoFiles(folder, "val", num_images=7).save()
    return folder


def _train(root: Path, *, seed: int = 0, rank: int = 0, world_size: int = 1, **changes: Any) -> TrainLoader:
    config = data_config(root, **changes)
    split = build_datasets(config).splits["train"]
    return build_train_loader(config, split, split.classes, seed=seed, rank=rank, world_size=world_size)


def _val(root: Path, rank: int = 0, world_size: int = 1, **changes: Any) -> EvalLoader:
    config = data_config(root, **changes)
    split = build_datasets(config).splits["val"]
    return build_eval_loader(config, split, split.classes, rank=rank, world_size=world_size)


def _epoch(loader: TrainLoader, epoch: int, first_batch: int = 0) -> list[Batch]:
    loader.set_epoch(epoch, first_batch)
    return list(loader)


def _ids(batches: list[Batch]) -> list[int]:
    return [image_id for batch in batches for image_id in batch.image_ids]


def _same(a: list[Batch], b: list[Batch]) -> bool:
    if len(a) != len(b):
        return False
    for one, other in zip(a, b, strict=True):
        if not torch.equal(one.images, other.images) or one.image_ids != other.image_ids:
            return False
        for target, twin in zip(one.targets, other.targets, strict=True):
            if not all(torch.equal(target[k], twin[k]) for k in ("labels", "boxes", "area")):  # type: ignore[literal-required]
                return False
    return True


class TestOrder:
    def test_every_image_at_most_once_an_epoch_in_changing_order(self, root: Path) -> None:
        loader = _train(root)
        epochs = [_ids(_epoch(loader, epoch)) for epoch in range(3)]
        assert len(loader) == 5 and all(len(set(ids)) == 10 for ids in epochs)
        assert len({tuple(ids) for ids in epochs}) == 3
        assert epochs[1] != _ids(_epoch(_train(root, seed=1), 1))

    @pytest.mark.parametrize(
        ("changes", "sizes", "steps"),
        [
            ({"total_batch_size": 6, "accumulation": 3}, [2, 2, 2], 1),
            ({"total_batch_size": 6, "accumulation": 3, "drop_last": False}, [2, 2, 2, 2, 2, 1], 2),
            ({"total_batch_size": None, "batch_size": 4}, [4, 4], 2),
        ],
    )
    def test_windows_of_accumulation_are_whole_or_kept(
        self, root: Path, changes: dict[str, Any], sizes: list[int], steps: int
    ) -> None:
        section = {f"train_dataloader__{key}": value for key, value in changes.items() if key != "accumulation"}
        loader = _train(
            root, accumulation_steps=changes.get("accumulation", 1), **section, train_dataloader__shuffle=False
        )
        batches = _epoch(loader, 4)
        assert len(loader) == len(sizes) and loader.steps_per_epoch == steps
        assert [len(batch.targets) for batch in batches] == sizes and _ids(batches) == list(range(1, sum(sizes) + 1))

    def test_a_batch_size_that_cannot_be_shared_or_filled(self, root: Path) -> None:
        with pytest.raises(UserError, match="4 cannot be shared by 3 processes x 1 accumulation steps.*multiple of 3"):
            _train(root, world_size=3, train_dataloader__total_batch_size=4)
        with pytest.raises(
            UserError, match="an epoch has 11 images, fewer than one step of 12.*total_batch_size to at most 11"
        ):
            _train(root, train_dataloader__total_batch_size=12)

    @pytest.mark.parametrize("drop_last", [True, False])
    def test_processes_share_an_epoch(self, root: Path, drop_last: bool) -> None:
        loaders = [
            _train(
                root,
                rank=rank,
                world_size=2,
                train_dataloader__total_batch_size=4,
                train_dataloader__drop_last=drop_last,
            )
            for rank in (0, 1)
        ]
        parts = [_epoch(loader, 3) for loader in loaders]
        assert len({len(loader) for loader in loaders}) == len({len(part) for part in parts}) == 1
        assert [len(b.targets) for b in parts[0]] == [len(b.targets) for b in parts[1]]
        ids = _ids(parts[0]) + _ids(parts[1])
        assert len(set(ids)) == (8 if drop_last else 11) and len(ids) == (8 if drop_last else 12)

    def test_more_processes_than_images(self, root: Path) -> None:
        changes = {"train_dataloader__total_batch_size": 16, "train_dataloader__drop_last": False}
        for rank in range(16):
            assert len(_epoch(_train(root, rank=rank, world_size=16, **changes), 0)) == 1


class TestEvaluation:
    def test_every_image_once(self, root: Path) -> None:
        loader = _val(root)
        assert len(loader) == 3 and _ids(list(loader)) == list(range(1, 8)) == _ids(list(loader))
        batch = next(iter(loader))
        assert batch.images.shape == (3, 3, 64, 64) and batch.images.dtype == torch.uint8
        assert batch.orig_sizes_wh.tolist() == [[48, 40]] * 3

    @pytest.mark.parametrize("world_size", [2, 3, 9])
    def test_no_image_twice_over_processes(self, root: Path, world_size: int) -> None:
        ids = [_ids(list(_val(root, rank, world_size))) for rank in range(world_size)]
        assert sorted(i for part in ids for i in part) == list(range(1, 8))

    def test_training_images_without_augmentation(self, root: Path) -> None:
        config = data_config(root)
        split = build_datasets(config).splits["train"]
        batches = list(build_eval_loader(config, split, split.classes, which="train"))
        assert _ids(batches) == list(range(1, 12)) and batches[0].images.shape[-2:] == (64, 64)


class TestRepeatability:
    def test_processes_mix_differently(self, root: Path) -> None:
        draws = []
        for rank in (0, 1):
            loader = _train(root, rank=rank, world_size=2)
            draws.append([batch.images.shape[-1] for epoch in range(5) for batch in _epoch(loader, epoch)])
        assert len(set(draws[0])) > 1 and draws[0] != draws[1]

    def test_the_middle_of_an_epoch(self, root: Path) -> None:
        loader = _train(root)
        whole = _epoch(loader, 2)
        assert _same(_epoch(loader, 2, first_batch=3), whole[3:])
        assert len(loader) == 5
        assert _same(_epoch(loader, 3), _epoch(_train(root), 3))

    def test_the_number_of_threads_does_not_matter(self, root: Path) -> None:
        threads, opencv_threads = torch.get_num_threads(), cv2.getNumThreads()
        try:
            torch.set_num_threads(3)
            cv2.setNumThreads(3)
            many = _epoch(_train(root), 3)
            torch.set_num_threads(1)
            cv2.setNumThreads(1)
            assert _same(many, _epoch(_train(root), 3))
        finally:
            torch.set_num_threads(threads)
            cv2.setNumThreads(opencv_threads)


class TestSchedule:
    def test_stages_in_the_batches(self, root: Path) -> None:
        """Epoch 0 and 5 on are plain, [1, 3) has mixed images: boxes tell."""
        loader = _train(root)
        boxes = {epoch: sum(batch.num_boxes for batch in _epoch(loader, epoch)) for epoch in range(7)}
        assert boxes[0] <= 20 and boxes[5] <= 20 and boxes[6] <= 20
        assert boxes[1] > 24 and boxes[2] > 24
        assert {batch.images.shape[-1] for batch in _epoch(loader, 5)} == {64}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DataLoader timed out after 600 seconds", "a data worker hangs"),
        ("DataLoader worker (pid(s) 12) exited unexpectedly", "--shm-size=8g"),
        ("DataLoader worker (pid 12) is killed by signal: Killed. ", "--shm-size=8g"),
    ],
)
def test_the_data_loaders_complaints(text: str, message: str) -> None:
    assert message in str(explain_worker_error(RuntimeError(text)))
    assert explain_worker_error(RuntimeError("something else")) is None


class TestWorkers:
    """One pair of workers for all: starting them takes seconds."""

    @pytest.fixture(scope="class")
    def loader(self, root: Path) -> Iterator[TrainLoader]:
        loader = _train(root, train_dataloader__num_workers=2)
        yield loader
        loader.close()

    def test_the_same_batches_as_without_workers(self, root: Path, loader: TrainLoader) -> None:
        """Also that no worker uses a stale policy: the workers live on from epoch to epoch and prefetch."""
        plain = _train(root)
        for epoch in (0, 1, 2, 5, 3, 1):
            assert _same(_epoch(loader, epoch), _epoch(plain, epoch)), epoch
        assert _same(_epoch(loader, 2, first_batch=3), _epoch(plain, 2)[3:])

    def test_workers_share_one_cache(self, loader: TrainLoader) -> None:
        """What the workers decoded is there for this process, too, and the batches above did not change by it."""
        _epoch(loader, 0)
        cache = loader.dataset.cache
        assert sum(any(cache.get(index, version) is not None for version in range(5)) for index in range(11)) >= 10

    def test_an_epoch_left_early(self, root: Path, loader: TrainLoader) -> None:
        loader.set_epoch(1)
        next(iter(loader))
        assert _same(_epoch(loader, 2), _epoch(_train(root), 2))

    def test_global_generators_are_left_alone(self, root: Path, loader: TrainLoader) -> None:
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        _epoch(loader, 2)
        list(_val(root))
        assert torch.equal(torch.rand(4), expected)

    @pytest.mark.skipif(sys.platform == "win32", reason="signals to single processes")
    def test_signals_to_the_group_leave_the_workers_running(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """From their first moment on, and for as long as the main process wants batches."""
        monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # torch's patience with each
        loader = _train(root, train_dataloader__num_workers=2)
        loader.set_epoch(1)
        batches = iter(loader)
        first = next(batches)
        workers = loader._loader._iterator._workers  # type: ignore[union-attr]
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        assert _same([first, *batches], _epoch(_train(root), 1))
        os.kill(workers[0].pid, signal.SIGSTOP)  # as one that hangs in a read
        started = time.monotonic()
        loader.close()
        workers[0].join(5)
        assert time.monotonic() - started < 20
        assert not any(worker.is_alive() for worker in workers)

    @pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL, SIGSTOP")
    @pytest.mark.parametrize(
        ("number", "message"), [("SIGKILL", "A data worker was killed"), ("SIGSTOP", "No batch arrived for 1.5 s")]
    )
    def test_a_worker_gone_or_stalled_with_nothing_on_its_way_is_noticed_in_seconds(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, number: str, message: str
    ) -> None:
        monkeypatch.setattr("data.loader._CHECKED_EVERY_SECONDS", 1)
        monkeypatch.setattr("data.loader._STALLED_AFTER_SECONDS", 1.5)
        monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)  # torch's patience with each
        loader = _train(root, train_dataloader__num_workers=1)
        start = loader._loader._get_iterator

        def hit() -> object:
            iterator = start()
            os.kill(iterator._workers[0].pid, getattr(signal, number))  # it is still importing torch
            return iterator

        loader._loader._get_iterator = hit  # type: ignore[method-assign, assignment]
        started = time.monotonic()
        with pytest.raises(UserError, match=message):
            next(iter(loader))
        assert time.monotonic() - started < 20
        loader.close()

    def test_a_batch_that_takes_longer_than_a_check_is_waited_for(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("data.loader._CHECKED_EVERY_SECONDS", 0.01)
        loader = _train(root, train_dataloader__num_workers=1)
        assert _same(_epoch(loader, 0), _epoch(_train(root), 0))
        loader.close()

    @pytest.mark.skipif(sys.platform == "win32", reason="no signal masks")
    def test_workers_start_without_the_signals(self, root: Path) -> None:
        """A signal that comes while they start is for this process, afterwards."""
        loader = _train(root, train_dataloader__num_workers=1)
        start = loader._loader._get_iterator
        order: list[object] = []

        def started() -> object:
            signal.raise_signal(signal.SIGINT)
            iterator = start()
            os.kill(iterator._workers[0].pid, signal.SIGTERM)  # it is still importing torch
            order.append("started")
            return iterator

        loader._loader._get_iterator = started  # type: ignore[method-assign, assignment]
        with handlers(lambda number, frame: order.append(number), *STOP_SIGNALS):
            assert _same(_epoch(loader, 0), _epoch(_train(root), 0))
        assert order == ["started", signal.SIGINT]
        loader.close()


def _broken(folder: Path, num_workers: int) -> tuple[DataConfig, CocoSplit]:
    CocoFiles(folder).save()
    CocoFiles(folder, "val").save()
    config = data_config(folder, val_dataloader__num_workers=num_workers)
    split = build_datasets(config).splits["val"]
    Image.new("RGB", (7, 7)).save(folder / "images" / "val" / "val_4.png")
    return config, split


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_images_met_on_the_way_are_user_errors(tmp_path: Path, num_workers: int) -> None:
    config, split = _broken(tmp_path, num_workers)
    loader = build_eval_loader(config, split, split.classes)
    iterator = iter(loader)
    assert next(iterator).image_ids == [1, 2, 3]
    with pytest.raises(UserError) as caught:
        next(iterator)
    assert "image 4 (val_4.png): the image is 7 x 7 pixels, but the annotation file says 48 x 40" in str(caught.value)
    assert "Traceback" not in str(caught.value) and "DataLoader" not in str(caught.value)
    loader.close()


def test_a_worker_loads_no_network_and_not_the_script(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start is what the first batch waits for."""
    probe = "import sys\ndef init(worker_id):\n    open(__file__ + '.txt', 'w').write(' '.join(sys.modules))\n"
    (tmp_path / "probe.py").write_text(probe, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    script = ModuleType("__main__")
    script.__file__ = str(Path(__file__).parents[2] / "train_deimv2.py")
    monkeypatch.setitem(sys.modules, "__main__", script)
    loader = _train(root, train_dataloader__num_workers=1)
    loader._loader.worker_init_fn = importlib.import_module("probe").init
    next(iter(loader))
    loader.close()
    assert script.__file__ == vars(script)["__file__"] and script.__file__.endswith("train_deimv2.py")
    modules = set((tmp_path / "probe.py.txt").read_text(encoding="utf-8").split())
    unneeded = {"torchvision", "models", "engine", "analysis", "transformers", "matplotlib", "faster_coco_eval"}
    assert {"torch", "cv2", "data.loader"} <= modules and not unneeded & modules


def test_who_labelled_a_box_stays_with_it_through_every_mixture(tmp_path: Path) -> None:
    """In this file a network labelled all bars and people all squares; mosaic, crops, mixup and copies keep it so."""
    write_tiny_data(tmp_path, num_train=8)
    content = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    for box in content["annotations"]:
        box |= {"pseudo": 1} if box["category_id"] == 7 else {}
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8")
    collate = "train_dataloader.collate_fn"
    mixing = [f"{collate}.{kind}_{key}" for kind in ("mixup", "copyblend") for key in ("prob=0.5", "epochs=[0,3]")]
    config = load_config(write_tiny_config(tmp_path), [*mixing, "train_dataloader.dataset.transforms.mosaic_prob=0.5"])
    split = build_datasets(config, ("train",)).splits["train"]
    loader = build_train_loader(config, split, split.classes, seed=0)
    seen = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            for target in batch.targets:
                assert target["pseudo"].tolist() == [label == 1 for label in target["labels"].tolist()]
                seen += target["pseudo"].tolist()
    loader.close()
    assert 0 < sum(seen) < len(seen)
