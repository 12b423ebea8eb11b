"""One split as a data set: image and target, in the manner of torchvision's CocoDetection.

A sample depends only on (seed, epoch, index): not on the worker that makes it, nor on what came before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.batch import Target
from data.coco import CocoSplit, size_problem
from data.config import DataConfig, LoaderConfig
from data.errors import UserError
from data.images import read_image, resize_antialiased
from data.mix import mosaic
from data.schedule import EpochPlan, epoch_plan
from data.transforms import LabelledImage, TrainTransform, labelled_image, output_size_hw, to_target

SAMPLE_STREAM, BATCH_STREAM, SHUFFLE_STREAM = 1, 2, 3
"""First number of every random seed, so that no two purposes share one."""


@dataclass(frozen=True, slots=True)
class SampleKey:
    """What is asked of a data set. The epoch travels with the index, so that no worker can use a stale policy."""

    epoch: int
    batch: int
    """Number of the micro-batch in the epoch."""
    index: int
    """Position in the split."""


@dataclass(frozen=True)
class Sample:
    """One image, ready for a batch."""

    image: Tensor
    """uint8 [3, H, W], RGB."""
    target: Target
    image_id: int
    orig_size_wh: tuple[int, int]
    """Size of the original image in pixels."""
    key: SampleKey


def pixel_mean_std(config: DataConfig) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel, in units of [0, 1], that the network's input is normalised with.

    Without a Normalize op (spec section 10.1, op 10) mean 0 and deviation 1.
    """
    normalize = config.train_dataloader.dataset.transforms.normalize
    if normalize is None:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return normalize.mean, normalize.std


class IndustrialDataset(Dataset[Sample]):
    """Images of a split with their boxes; augmented in training, only resized otherwise."""

    def __init__(self, split: CocoSplit, loader: LoaderConfig, *, training: bool, seed: int = 0) -> None:
        """Nothing is read yet.

        Args:
            split: Checked annotations.
            loader: Transforms, and the collate section for the schedule.
            training: Whether to augment.
            seed: Of the run.

        Raises:
            UserError: The transforms cannot work (see `TrainTransform`).
        """
        self.split = split
        self._config = loader
        self._seed = seed
        self._size_hw = output_size_hw(loader.dataset.transforms)
        self._transform = TrainTransform(loader.dataset.transforms) if training else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        """Image and target.

        Args:
            key: An index alone stands for epoch 0.

        Raises:
            UserError: The image is unreadable, or its size is not what the annotations say.
        """
        key = SampleKey(0, 0, key) if isinstance(key, int) else key
        image = self.split.images[key.index]
        transform = self._transform
        source = self._resized(key.index) if transform is None else self._augmented(transform, key)
        pixels, target = to_target(source)
        return Sample(pixels, target, image.id, (image.width, image.height), key)

    def plan(self, epoch: int) -> EpochPlan:
        """What is on in an epoch."""
        return epoch_plan(self._config.dataset.transforms, self._config.collate_fn, epoch)

    def load(self, index: int) -> LabelledImage:
        """The image as it is, with its boxes; crowd boxes are left out."""
        image = self.split.images[index]
        pixels, facts = read_image(image.path)
        problem = size_problem(self.split, image, facts, (pixels.shape[1], pixels.shape[0]))
        if problem is not None:
            raise UserError(str(problem))
        rows = self.split.training_rows(image)
        return labelled_image(pixels, self.split.boxes_xyxy[rows], self.split.labels[rows])

    def _resized(self, index: int) -> LabelledImage:
        source = self.load(index)
        height, width = source.size_hw
        pixels = resize_antialiased(source.image.permute(1, 2, 0).numpy(), self._size_hw)
        scale = np.array([self._size_hw[1] / width, self._size_hw[0] / height] * 2)
        return labelled_image(pixels, source.boxes_xyxy * scale, source.labels)

    def _augmented(self, transform: TrainTransform, key: SampleKey) -> LabelledImage:
        plan, op = self.plan(key.epoch), transform.mosaic
        seeds = np.random.SeedSequence([SAMPLE_STREAM, self._seed, key.epoch, key.index])
        rng = np.random.default_rng(seeds)
        with seeded_torch(int(seeds.generate_state(1, np.uint64)[0])):
            source = self.load(key.index)
            is_mosaic = op is not None and rng.random() < plan.mosaic_prob and rng.random() < op.probability
            if op is not None and is_mosaic:
                partners = rng.integers(len(self), size=3).tolist()
                source = mosaic([source, *map(self.load, partners)], op, rng)
            return transform(source, plan, rng, mosaic=is_mosaic)


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Inside, torch's global CPU generator starts from `seed`; afterwards it goes on where it was.

    `torch.manual_seed` would reseed the GPUs too, in the middle of training when there are no workers.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)
