"""Which images to look at: files, folders, or images of the validation split with their ground truth.

Legend: N boxes of an image.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from data.errors import UserError
from data.images import decode_image
from data.splits import build_datasets
from engine.detector import Detector
from engine.pictures import Picture

_TAKEN = frozenset({"score", "overview"})
"""Names in the output folder that are not an image's."""


@dataclass(frozen=True)
class Truth:
    """What is annotated in an image."""

    boxes_xyxy: NDArray[np.float32]
    """[N, 4] in pixels of the original image."""
    labels: tuple[int, ...]


@dataclass(frozen=True)
class SourceImage:
    """An image that has not been opened yet."""

    path: Path
    name: str
    """Unique among the images of a run, fit for a file name."""
    truth: Truth | None
    """None: not known, as for a file that the user names."""


@dataclass(frozen=True)
class OpenedImage:
    """An image in memory."""

    source: SourceImage
    pixels: Picture
    """uint8 [H, W, 3] RGB, upright, original size."""
    network_input: Tensor
    """float32 [1, 3, h, w], resized and normalised as in evaluation, on the detector's device."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Of the original image, pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def find_images(images: Sequence[Path], from_val: int, detector: Detector) -> list[SourceImage]:
    """The images to look at, in a fixed order.

    Args:
        images: Files, and folders, of which every image file below is taken.
        from_val: So many images of the validation split, spread evenly over it.
        detector: For the config of the data and the classes.

    Raises:
        UserError: Nothing was asked for, a path does not exist, a folder holds no image, or the validation split
            cannot be read.
    """
    if not images and not from_val:
        raise UserError("No images: give --images PATH_OR_FOLDER, or --from-val N for images of the validation split.")
    if from_val < 0:
        raise UserError(f"--from-val {from_val}: expected the number of images, 1 or more.")
    paths: list[Path] = []
    problems: list[str] = []
    for path in images:
        if path.is_dir():
            inside = _images_below(path)
            paths += inside
            if not inside:
                problems.append(f"{path}: no image file in this folder or below it (looked for .png, .jpg, .bmp, ...)")
        elif path.is_file():
            paths.append(path)
        else:
            problems.append(f"{path}: there is no such file or folder")
    if problems:
        raise UserError("--images: nothing to look at there.", problems)
    found = [(path, None) for path in dict.fromkeys(paths)]
    names = _unique_names([path for path, _ in found], _TAKEN)
    sources = [SourceImage(path, name, truth) for (path, truth), name in zip(found, names, strict=True)]
    return sources + (_from_validation(from_val, detector, taken=_TAKEN | set(names)) if from_val else [])


def _images_below(folder: Path) -> list[Path]:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())


def _unique_names(paths: Sequence[Path], taken: Collection[str]) -> list[str]:
    """Stems; where two are the same (ignoring case, as Windows does), the later ones get a number."""
    used = {name.casefold() for name in taken}
    names = []
    for path in paths:
        name, number = path.stem, 2
        while name.casefold() in used:
            name, number = f"{path.stem}_{number}", number + 1
        used.add(name.casefold())
        names.append(name)
    return names


def _from_validation(count: int, detector: Detector, taken: Collection[str]) -> list[SourceImage]:
    classes = detector.classes if detector.names_classes else None
    split = build_datasets(detector.config, splits=("val",), classes=classes).splits["val"]
    chosen = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)).tolist()
    images = [split.images[index] for index in chosen]
    names = _unique_names([image.path for image in images], taken)
    rows = [split.training_rows(image) for image in images]
    truths = [Truth(split.boxes_xyxy[of_image], tuple(split.labels[of_image].tolist())) for of_image in rows]
    return [SourceImage(i.path, name, truth) for i, name, truth in zip(images, names, truths, strict=True)]


def open_image(source: SourceImage, detector: Detector) -> OpenedImage:
    """Read and prepare one image of any size and mode.

    Raises:
        UserError: It cannot be read.
    """
    try:
        pixels = decode_image(source.path)
    except MemoryError as error:
        raise UserError(f"{source.path}: not enough memory to read it.") from error
    return OpenedImage(source, pixels, detector.normalize(detector.prepare(pixels)[None]))
