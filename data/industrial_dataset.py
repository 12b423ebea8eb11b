"""One split as a data set: image and target, in the manner of torchvision's CocoDetection.

A sample depends only on (seed, epoch, index): not on the worker that makes it, nor on what came before.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.batch import Target
from data.coco import CocoSplit, size_problem
from data.coco_reader import ImageRecord
from data.config import DataConfig, LoaderConfig
from data.errors import UserError
from data.images import REDUCTIONS, ImageFacts, read_image, read_reduced, reduced, resize_antialiased
from data.mix import mosaic, shorter_side
from data.pixel_cache import PixelCache
from data.scene import Scene, at_most, draw, scene_of
from data.schedule import EpochPlan, epoch_plan
from data.tiles import TileRecord, image_numbers
from data.transforms import TrainTransform, output_size_hw, to_target
from data.types import FloatArray, IntArray, PixelArray, Window

LabelArray = IntArray

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
    copy: int = 0
    """Which one, where an epoch has the image several times (`repeat_factor_threshold`)."""


@dataclass(frozen=True)
class Sample:
    """One image, ready for a batch."""

    image: Tensor
    """uint8 [3, H, W], RGB."""
    target: Target
    image_id: int
    orig_size_wh: tuple[int, int]
    """Size of the original image, or of its tile, in pixels."""
    window: Window | None
    """Where the tile lies in the image; None: it is whole."""
    key: SampleKey


_VERSIONS = ("tile", *REDUCTIONS[::-1])
"""Of an image, as they are numbered in the cache."""


def build_cache(split: CocoSplit, loader: LoaderConfig, max_bytes: int, *, shared: bool) -> PixelCache:
    """Make room for the split's pixels in all versions that training reads: mosaic tiles, then all reductions.

    Small ones get their places first, because a byte spent on them serves more samples: three of a mosaic's four
    images are read as tiles only.
    """
    op = loader.dataset.transforms.mosaic
    sizes = []
    for image in split.images:
        size_hw = (image.height, image.width)
        tile_hw = None if op is None else _tile_size(size_hw, op.output_size)
        sizes.append(
            [tile_hw or (0, 0)] + [(-(-image.height // step), -(-image.width // step)) for step in REDUCTIONS[::-1]]
        )
    return PixelCache(sizes, max_bytes, shared=shared)


def _tile_size(size_hw: tuple[int, int], side: int) -> tuple[int, int] | None:
    """Height and width of an image's tile in a mosaic; None if it is not smaller than the image."""
    tile_hw = shorter_side(size_hw, side)
    return tile_hw if tile_hw[0] < size_hw[0] and tile_hw[1] < size_hw[1] else None


def pixel_mean_std(config: DataConfig) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation per channel, in units of [0, 1], that the network's input is normalised with.

    Without a Normalize op (docs/deimv2.md, Training ops in order: 10) mean 0 and deviation 1.
    """
    normalize = config.train_dataloader.dataset.transforms.normalize
    if normalize is None:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return normalize.mean, normalize.std


class IndustrialDataset(Dataset[Sample]):
    """Images of a split with their boxes; augmented in training, only resized otherwise."""

    def __init__(
        self,
        split: CocoSplit,
        loader: LoaderConfig,
        *,
        training: bool,
        seed: int = 0,
        cache: PixelCache | None = None,
        weights: FloatArray | None = None,
    ) -> None:
        """Prepare the transforms; nothing is read yet. The loader's collate section is needed for the schedule.

        `split` may be one of `data.tiles.tiled`. Mosaic draws its partners by `weights` [images], or all alike.

        Raises:
            UserError: The transforms cannot work (see `TrainTransform`).
        """
        self.split = split
        self._config = loader
        self._seed = seed
        self.size_hw = output_size_hw(loader.dataset.transforms)
        """Height and width of the Resize op."""
        self.cache = build_cache(split, loader, 0, shared=False) if cache is None else cache
        self.mosaic = loader.dataset.transforms.mosaic
        self._weights = None if weights is None else weights.cumsum()
        self._opened: tuple[ImageRecord, PixelArray] | None = None
        self._planned: tuple[int, EpochPlan] | None = None
        self._transform = TrainTransform(loader.dataset.transforms) if training else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        """Make image and target; an index alone stands for epoch 0. Errors are those of `sample`."""
        return self.sample(SampleKey(0, 0, key) if isinstance(key, int) else key)

    def sample(self, key: SampleKey, out: Tensor | None = None) -> Sample:
        """Make image and target; `out` is uint8 [3, h, w] to draw into, of any size in training.

        Raises:
            UserError: The image is unreadable, or its size is not what the annotations say.
        """
        out = torch.empty((3, *self.size_hw), dtype=torch.uint8) if out is None else out
        size_hw = (out.shape[1], out.shape[2])
        image = self.split.images[key.index]
        if self._transform is None:
            pixels, boxes, labels = self._resized(key.index, size_hw)
            pseudo = None
        else:
            pixels, scene = draw(self._augmented(self._transform, key), size_hw)
            boxes, labels, pseudo = scene.boxes_xyxy, scene.labels, scene.pseudo
        cv2.split(pixels, list(out.numpy()))
        window = image.window if isinstance(image, TileRecord) else None
        target = to_target(boxes, labels, size_hw, pseudo)
        return Sample(out, target, image.id, (image.width, image.height), window, key)

    def plan(self, epoch: int) -> EpochPlan:
        """Return what is on in an epoch."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, epoch_plan(self._config.dataset.transforms, self._config.collate_fn, epoch)
        return self._planned[1]

    @cached_property
    def image_numbers(self) -> LabelArray:
        """Positions of the tiles' images."""
        return image_numbers(self.split)

    def whole(self, index: int, *, fast: bool) -> PixelArray:
        """Return all pixels of the image that a tile is of; the latest is kept, since tiles come one after another."""
        tile = self.split.images[index]
        image = tile.image if isinstance(tile, TileRecord) else tile
        if self._opened is not None and self._opened[0] is image:
            return self._opened[1]
        self._opened = None  # before the next one takes its memory
        pixels, facts = read_reduced(image.path, 1) if fast else read_image(image.path)
        self.require_size(image, facts)
        if image is not tile:
            self._opened = image, pixels
        return pixels

    def _resized(self, index: int, size_hw: tuple[int, int]) -> tuple[PixelArray, FloatArray, LabelArray]:
        """Pixels, boxes and labels for evaluation."""
        pixels = _tile_of(self.whole(index, fast=False), self.split.images[index])
        height, width = pixels.shape[:2]
        boxes, labels = self._boxes(index)
        scale = np.array([size_hw[1] / width, size_hw[0] / height] * 2)
        return resize_antialiased(pixels, size_hw), boxes * scale, labels

    def require_size(self, image: ImageRecord, facts: ImageFacts) -> None:
        """Raise UserError if an image has another size than the annotations say."""
        if (problem := size_problem(self.split, image, facts)) is not None:
            raise UserError(str(problem))

    def _boxes(self, index: int) -> tuple[FloatArray, LabelArray]:
        """xyxy [N, 4] in pixels and labels [N]; crowd boxes are left out."""
        rows = self.split.training_rows(self.split.images[index])
        return self.split.boxes_xyxy[rows].astype(np.float64), self.split.labels[rows]

    def _scene(self, index: int) -> Scene:
        pseudo = self.split.pseudo[self.split.training_rows(self.split.images[index])]
        return scene_of(SplitImage(self, index), *self._boxes(index), pseudo)

    def _augmented(self, transform: TrainTransform, key: SampleKey) -> Scene:
        plan, op = self.plan(key.epoch), transform.mosaic
        rng = np.random.default_rng([SAMPLE_STREAM, self._seed, key.epoch, key.index, key.copy])
        scene = self._scene(key.index)
        is_mosaic = op is not None and rng.random() < plan.mosaic_prob and rng.random() < op.probability
        if op is not None and is_mosaic:
            scene = mosaic([scene, *map(self._scene, self._partners(rng))], op, rng)
        return transform(scene, plan, rng, mosaic=is_mosaic)

    def _partners(self, rng: np.random.Generator) -> list[int]:
        if self._weights is None:
            return [int(index) for index in rng.integers(len(self), size=3)]
        points = rng.random(3) * self._weights[-1]
        return [int(index) for index in np.searchsorted(self._weights, points, side="right")]


def _tile_of(pixels: PixelArray, record: ImageRecord) -> PixelArray:
    """A tile's pixels out of its image's; all of them for an image."""
    if not isinstance(record, TileRecord):
        return pixels
    left, top, right, bottom = record.window
    return pixels[top:bottom, left:right]


@dataclass(frozen=True, eq=False)
class SplitImage:
    """An image of the split as the source of a scene, for training; nothing is read before it is drawn."""

    dataset: IndustrialDataset
    index: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """As the annotations have it; checked when the file is read."""
        record = self.dataset.split.images[self.index]
        return record.height, record.width

    def pixels(self, reduction: int) -> PixelArray:
        """Read them from the file (see `read_reduced`), or the cache."""
        data, record, version = self.dataset, self.dataset.split.images[self.index], _VERSIONS.index(reduction)
        if (cached := data.cache.get(self.index, version)) is not None:
            return cached
        if isinstance(record, TileRecord):
            return self._cut(reduction, version)
        pixels, facts = read_reduced(record.path, reduction)
        data.require_size(record, facts)
        data.cache.put(self.index, version, pixels)
        return pixels

    def _cut(self, reduction: int, version: int) -> PixelArray:
        """Return a tile; a large image is not read again for those beside it while there is memory for them."""
        data, numbers = self.dataset, self.dataset.image_numbers
        image = data.whole(self.index, fast=True)
        siblings = range(*np.searchsorted(numbers, [numbers[self.index], numbers[self.index] + 1]).tolist())
        for other in siblings:
            if data.cache.lacks(other, version):
                data.cache.put(other, version, reduced(_tile_of(image, data.split.images[other]), reduction))
        return reduced(_tile_of(image, data.split.images[self.index]), reduction)

    def at_most(self, size_hw: tuple[int, int]) -> PixelArray:
        """Read them at another size (see `data.scene.at_most`), a mosaic's tile perhaps from the cache."""
        cache, op, version = self.dataset.cache, self.dataset.mosaic, _VERSIONS.index("tile")
        if op is None or size_hw != _tile_size(self.size_hw, op.output_size):
            return at_most(self, size_hw)
        cached = cache.get(self.index, version)
        if cached is None:
            cached = at_most(self, size_hw)
            cache.put(self.index, version, cached)
        return cached
