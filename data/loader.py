"""Batches: the same ones for any number of workers, from any point of an epoch on.

Whole batches are made in one place (a worker, or this process), from keys that carry the epoch. Seeds:
(seed, epoch, index, copy) per sample, (seed, epoch, batch, rank) per batch, (seed, epoch) for the order.
"""

from __future__ import annotations

import atexit
import hashlib
import math
import multiprocessing
import os
import signal
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data.batch import Batch
from data.classes import ClassMap
from data.coco import CocoSplit
from data.compat import shared_bytes, stop_workers, workers_of
from data.config import CollateConfig, DataConfig, LoaderConfig, loaders
from data.errors import UserError
from data.industrial_dataset import BATCH_STREAM, SHUFFLE_STREAM, IndustrialDataset, Sample, SampleKey, build_cache
from data.mix import batch_size_hw, mix_batch
from data.pixel_cache import memory_to_spare
from data.sampling import epoch_length, repeat_factors, repeated
from data.signals import STOP_SIGNALS, held_back
from data.splits import build_datasets
from data.tiles import image_numbers, thinned, tiled
from data.types import FloatArray

_STALLED_AFTER_SECONDS = 600
_CHECKED_EVERY_SECONDS = 5
"""Whether the workers live: a fork server's children send this process no signal when they are killed."""
_PREFETCHED_BATCHES = 2

Keys = list[SampleKey]


def build_train_loader(
    config: DataConfig,
    split: CocoSplit,
    classes: ClassMap,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    num_workers: int | None = None,
) -> TrainLoader:
    """Build the training loader of process `rank`; `seed` and the epoch decide order and augmentation.

    `num_workers` replaces the config's; the batches are the same for any number.

    Raises:
        UserError: The batch size cannot be split over processes and accumulation steps, or the split is too small
            for a single step.
    """
    _require_same_classes(split, classes)
    loader = config.train_dataloader
    split, factors = _tiles_and_factors(config, split)
    order = _train_order(config, factors, seed=seed, rank=rank, world_size=world_size)
    workers = loader.num_workers if num_workers is None else num_workers
    spare, max_bytes = memory_to_spare(), loader.dataset.cache_mib * 2**20
    max_bytes = max_bytes if spare is None else min(max_bytes, spare)
    cache = build_cache(split, loader, max_bytes, shared=workers > 0)
    weights = None if config.tiles is None else factors
    dataset = IndustrialDataset(split, loader, training=True, seed=seed, cache=cache, weights=weights)
    batches = _Batches(dataset, loader.collate_fn, seed, rank)
    return TrainLoader(batches, order, workers, pin_memory, config.micro_batches)


def steps_per_epoch(config: DataConfig, split: CocoSplit | None = None) -> int:
    """Count the optimiser steps of an epoch in one process; `split`: the training images, instead of the config's.

    Nothing is drawn, and no image opened but for `on_bad_data: skip`.

    Raises:
        UserError: As `build_datasets` for the training split, or it is too small for a single step.
    """
    synthetic, ann_file = config.synthetic, config.train_dataloader.dataset.ann_file
    is_drawn = synthetic is None or not ann_file.is_relative_to(synthetic.root) or ann_file.exists()
    if split is None and synthetic is not None and not is_drawn and config.tiles is None:
        factors = np.ones(synthetic.num_train)
    else:
        config = config.model_copy(update={"synthetic": None})
        _, factors = _tiles_and_factors(config, split or build_datasets(config, ("train",)).splits["train"])
    return math.ceil(len(_train_order(config, factors)) / config.micro_batches)


def _tiles_and_factors(config: DataConfig, split: CocoSplit) -> tuple[CocoSplit, FloatArray]:
    """Return the images, or tiles, of an epoch and how often each comes."""
    threshold, cut = config.train_dataloader.repeat_factor_threshold, tiled(split, config.tiles)
    factors = np.ones(len(cut)) if threshold is None else repeat_factors(split, threshold, cut)
    return cut, thinned(factors, cut, config.tiles)


def _train_order(
    config: DataConfig, factors: FloatArray, *, seed: int = 0, rank: int = 0, world_size: int = 1
) -> _EpochOrder:
    loader = config.train_dataloader
    micro_batch = _micro_batch_size(loader, world_size, config.micro_batches)
    window = config.micro_batches if loader.drop_last else None
    order = _EpochOrder(factors, micro_batch, window, loader.shuffle, seed, rank, world_size)
    if not len(order):
        total = micro_batch * world_size * config.micro_batches
        count, what = epoch_length(factors), "images" if config.tiles is None else "tiles"
        if config.tiles is not None and not count:
            raise UserError(
                f"{loader.dataset.ann_file}: none of its {len(factors)} tiles has an object, and with "
                f"tiles.keep_empty: {config.tiles.keep_empty:g} an epoch shows none of those. Raise it, or correct the "
                "annotations."
            )
        raise UserError(
            f"{loader.dataset.ann_file}: an epoch has {count} {what}, fewer than one step of {total} (processes x "
            f"micro-batch x accumulation steps), and drop_last leaves nothing. Set train_dataloader.total_batch_size "
            f"to at most {count}, or train_dataloader.drop_last: False."
        )
    return order


def build_eval_loader(
    config: DataConfig,
    split: CocoSplit,
    classes: ClassMap,
    *,
    which: Literal["val", "test", "train"] = "val",
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> EvalLoader:
    """Give every image of the split, or every tile, once over all processes, only resized, in the file's order.

    `which` chooses the loader section; `train` takes val's transforms. The config's `total_batch_size` is shared among
    the processes.
    """
    _require_same_classes(split, classes)
    split, sections = tiled(split, config.tiles), loaders(config)
    loader = sections["val_dataloader" if which == "train" else f"{which}_dataloader"]
    batch_size = loader.images_per_batch(world_size)
    batches = _Batches(IndustrialDataset(split, loader, training=False))
    mine = np.flatnonzero(image_numbers(split) % world_size == rank).tolist()  # an image goes with all its tiles
    starts = enumerate(range(0, len(mine), batch_size))
    order = [[SampleKey(0, batch, i) for i in mine[start : start + batch_size]] for batch, start in starts]
    return EvalLoader(batches, order, loader.num_workers, pin_memory)


def _worker_context() -> BaseContext:
    """Start workers from a helper process that has imported this module once for all of them, or, where the platform
    has none, each for itself. Forking this process would copy locked mutexes of CUDA and thread pools."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Workers started meanwhile do not run the main script again: they need none of it, nor what it imports."""
    main = vars(sys.modules["__main__"])
    kept = {name: main.pop(name, None) for name in ("__file__", "__spec__")}
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update({name: value for name, value in kept.items() if value is not None})


def collate(images: Tensor, samples: Sequence[Sample]) -> Batch:
    """Join the samples that were drawn into `images` [B, 3, H, W]."""
    return Batch(
        images=images,
        targets=[sample.target for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        orig_sizes_wh=torch.tensor([sample.orig_size_wh for sample in samples], dtype=torch.int64),
        windows=[sample.window for sample in samples if sample.window is not None] or None,
    )


class _Loader:
    """A DataLoader of whole batches, with readable errors."""

    def __init__(self, batches: _Batches, order: _EpochOrder | list[Keys], num_workers: int, pin_memory: bool) -> None:
        workers: dict[str, Any] = {}
        if num_workers:
            workers = {
                "multiprocessing_context": _worker_context(),
                "persistent_workers": True,
                "prefetch_factor": _PREFETCHED_BATCHES,
                "worker_init_fn": _init_worker,
                "timeout": _CHECKED_EVERY_SECONDS,
            }
        self._order = order
        self.dataset = batches.dataset
        """The samples behind the batches."""
        self._loader: DataLoader[Any] = DataLoader(
            batches,
            sampler=order,
            batch_size=None,  # the keys of a whole batch go to one worker
            collate_fn=_unchanged,  # a lambda could not be sent to a worker
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # or each epoch would draw from the global one
            **workers,
        )
        if num_workers:
            # Before multiprocessing sends SIGTERM to what is left, which workers ignore, and waits for their end.
            atexit.register(_end_workers, weakref.ref(self))

    def __len__(self) -> int:
        """Batches of this process, in training micro-batches of a whole epoch."""
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        if self._loader.num_workers and os.name == "posix":
            # multiprocessing's own helper, which would unblock the signals if it were started below.
            resource_tracker.ensure_running()
        # Workers stop when the main process says so; a signal to the whole group is for that one.
        with held_back(), _main_hidden():
            iterator = iter(self._loader)
        last_batch = time.monotonic()
        while True:
            try:
                item = next(iterator, None)
            except (RuntimeError, OSError, EOFError) as error:  # the last two: a batch whose worker is gone
                if "DataLoader timed out" in str(error) and time.monotonic() - last_batch < _STALLED_AFTER_SECONDS:
                    continue  # the iterator goes on waiting for the same batch
                explained = explain_worker_error(error, workers_of(iterator))
                if explained is None:
                    raise
                raise explained from error
            if item is None:
                return
            if isinstance(item, UserError):
                raise item
            yield item
            last_batch = time.monotonic()

    def close(self) -> None:
        """Stop the workers now; iterating again starts new ones."""
        stop_workers(self._loader)


def _end_workers(loader: weakref.ref[_Loader]) -> None:
    alive = loader()
    if alive is not None:
        alive.close()
    for worker in multiprocessing.active_children():  # of loaders that were dropped without closing them
        worker.kill()


class TrainLoader(_Loader):
    """Shuffled, augmented micro-batches of one process. Same number of batches on every process."""

    _order: _EpochOrder

    def __init__(
        self, batches: _Batches, order: _EpochOrder, num_workers: int, pin_memory: bool, accumulation_steps: int
    ) -> None:
        super().__init__(batches, order, num_workers, pin_memory)
        self._accumulation_steps = accumulation_steps

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch of the next iteration, and how many of its micro-batches are passed over (resuming)."""
        self._order.epoch, self._order.first_batch = epoch, first_batch

    @property
    def epoch_images(self) -> str:
        """Hash of the images, or tiles, of an epoch and how often each comes: what the rest of one must find again."""
        images, order = self.dataset.split.images, self._order
        names = "\n".join(f"{image.file_name} {often}" for image, often in zip(images, order.factors, strict=True))
        return hashlib.sha256(names.encode(errors="surrogatepass")).hexdigest()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of a whole epoch; the last one may have fewer micro-batches."""
        return math.ceil(len(self) / self._accumulation_steps)

    @property
    def images_per_epoch(self) -> int:
        """Images, or tiles, that an epoch chooses from the `dataset`, over all processes."""
        return epoch_length(self._order.factors)


class EvalLoader(_Loader):
    """Every image of this process's share once, in order."""


@dataclass(eq=False)
class _EpochOrder(Sampler[Keys]):
    """Keys of the micro-batches of one process; the order is a permutation drawn from (seed, epoch)."""

    factors: FloatArray
    """How often each image comes, see `repeated`."""
    micro_batch: int
    window: int | None
    """Micro-batches of a step, an incomplete one of which is dropped; None keeps it."""
    shuffle: bool
    seed: int
    rank: int
    world_size: int
    epoch: int = 0
    first_batch: int = 0

    @property
    def _images_per_rank(self) -> int:
        num_images, step = epoch_length(self.factors), self.micro_batch * (self.window or 1)
        if self.window is None:
            return math.ceil(num_images / self.world_size)
        return num_images // (step * self.world_size) * step

    def __len__(self) -> int:
        return math.ceil(self._images_per_rank / self.micro_batch)

    def __iter__(self) -> Iterator[Keys]:
        epoch, first_batch, num_images = self.epoch, self.first_batch, epoch_length(self.factors)
        rng = np.random.default_rng([SHUFFLE_STREAM, self.seed, epoch])
        order = rng.permutation(num_images) if self.shuffle else np.arange(num_images)
        images, copies = repeated(self.factors, rng)
        # Repeats the first few where the last step is kept and the processes cannot share it evenly.
        order = np.resize(order, self._images_per_rank * self.world_size)
        mine = order[self.rank :: self.world_size].tolist()
        for batch in range(first_batch, len(self)):
            places = mine[batch * self.micro_batch : (batch + 1) * self.micro_batch]
            yield [SampleKey(epoch, batch, int(images[place]), int(copies[place])) for place in places]


@dataclass(eq=False)
class _Batches(Dataset[Any]):
    """Makes a whole batch from its keys, mixed in training."""

    dataset: IndustrialDataset
    collate_fn: CollateConfig | None = None
    """None: images are not mixed."""
    seed: int = 0
    rank: int = 0

    def __getitem__(self, keys: Keys) -> Batch | UserError:
        """The batch; a UserError comes as a value, because the DataLoader would bury its text in a traceback."""
        try:
            return self._batch(keys)
        except UserError as error:
            return error

    def _batch(self, keys: Keys) -> Batch:
        first, size_hw, config = keys[0], self.dataset.size_hw, self.collate_fn
        if config is None:
            return self._drawn(keys, size_hw)
        rng = np.random.default_rng([BATCH_STREAM, self.seed, first.epoch, first.batch, self.rank])
        plan = self.dataset.plan(first.epoch)
        batch = self._drawn(keys, batch_size_hw(size_hw, plan, config.base_size, rng))
        batch.images, batch.targets = mix_batch(batch.images, batch.targets, plan, config, rng, size_hw=size_hw)
        return batch

    def _drawn(self, keys: Keys, size_hw: tuple[int, int]) -> Batch:
        """Every sample is drawn at its place in the batch: in a worker, in memory that the main process sees."""
        shape = (len(keys), 3, *size_hw)
        if get_worker_info() is None:
            images = torch.empty(shape, dtype=torch.uint8)
        else:
            images = shared_bytes(math.prod(shape)).view(shape)
        return collate(images, [self.dataset.sample(key, image) for key, image in zip(keys, images, strict=True)])


def _unchanged(item: Any) -> Any:
    return item


def _init_worker(worker_id: int) -> None:
    """In each worker: one thread, and signals that are meant for the main process do not end it."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the main process finishes its step, however long, and then closes
    atexit.register(_leave_at_once)


def _leave_at_once() -> None:
    """End a worker without taking the interpreter apart, which takes seconds with torch loaded."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def explain_worker_error(error: Exception, workers: Sequence[BaseProcess] = ()) -> UserError | None:
    """Say the DataLoader's own complaints in the user's words; None for other errors."""
    text = str(error)
    if workers and not isinstance(error, RuntimeError):  # the fork server tells of a worker's end a moment later
        connection.wait([worker.sentinel for worker in workers], timeout=5)
    gone = [worker.pid for worker in workers if not worker.is_alive()]
    if gone and not isinstance(error, RuntimeError):
        text = f"DataLoader worker (pid(s) {', '.join(map(str, gone))}) exited unexpectedly"
    if "DataLoader timed out" in text:
        return UserError(
            f"No batch arrived for {_STALLED_AFTER_SECONDS} s: a data worker hangs, perhaps on a network drive. Copy "
            "the images to a local disk, or try train_dataloader.num_workers: 0 to see where."
        )
    if "DataLoader worker" in text and ("exited unexpectedly" in text or "is killed by signal" in text):
        return UserError(
            f"A data worker was killed ({text.splitlines()[0]}). If memory ran out, lower num_workers or the batch "
            "size; in a container, enlarge its shared memory (docker run --shm-size=8g)."
        )
    return None


def _micro_batch_size(loader: LoaderConfig, world_size: int, accumulation_steps: int) -> int:
    if loader.total_batch_size == "auto":
        raise UserError("train_dataloader.total_batch_size: auto becomes a number when the training starts")
    parts = world_size * accumulation_steps
    if (loader.images_per_step or 0) % parts:
        raise UserError(
            f"train_dataloader.total_batch_size: {loader.total_batch_size} cannot be shared by {world_size} processes "
            f"x {accumulation_steps} accumulation steps. Choose a multiple of {parts}."
        )
    return loader.images_per_batch(parts)


def _require_same_classes(split: CocoSplit, classes: ClassMap) -> None:
    if split.classes != classes:
        raise ValueError(f"split {split.name} was read with other classes than the network's")
