"""The embedded default data set: surface-defect images drawn from a `SyntheticConfig`, written once.

Boxes are exact: a defect is laid over a clean surface, and its box encloses the pixels that visibly changed.
Legend: N image side in pixels, S patch side in pixels.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from filelock import FileLock

from data.config import DefectName, SyntheticConfig
from data.errors import UserError
from data.files import write_json
from data.progress import progress_bar
from data.section import require_variables
from data.synthetic_draw import DEFECTS, Array, clean_surface
from data.types import BoolArray

logger = logging.getLogger(__name__)

CLASS_NAMES = ("PERFORACIONES", "RAYONES", "ROTURA", "DEFORMACIONES", "CONTAMINACION", "NORMAL")
"""Category id k + 1 stands for CLASS_NAMES[k]. NORMAL is a category without boxes."""
GENERATOR_VERSION = 1
"""Raise it with every change that alters a pixel: older folders are then refused instead of mixed."""
MARKER_NAME = "synthetic.json"

_SPLITS = ("train", "val", "test")
_IMAGE, _JPEG, _NORMAL = 0, 1, 2
"""What a random stream is for."""
_ATTEMPTS = 20
_GAP_PX = 2

Key = TypeVar("Key", bound=str)


@dataclass(frozen=True)
class DrawnDefect:
    """One defect as it was drawn."""

    name: DefectName
    box_xyxy: tuple[int, int, int, int]
    """Pixels; the right and bottom edges are exclusive."""
    contrast: float
    """Measured as `SyntheticConfig.contrast_range` has it."""
    mask: BoolArray
    """[N, N], the visibly changed pixels."""


@dataclass(frozen=True)
class DrawnImage:
    """One generated image with all that is known about it."""

    image: npt.NDArray[np.uint8]
    """[N, N, 3] RGB, after blur and noise."""
    texture: str
    defects: tuple[DrawnDefect, ...]


def _random_stream(config: SyntheticConfig, split: str, index: int, purpose: int) -> np.random.Generator:
    # All four numbers always: NumPy pads a shorter key with zeros, and [s, 1] would be [s, 1, 0].
    return np.random.default_rng([config.seed, _SPLITS.index(split), index, purpose])


def _pick(rng: np.random.Generator, weights: Mapping[Key, float]) -> Key:
    names = sorted(weights)
    values = np.array([weights[name] for name in names])
    return names[int(rng.choice(len(names), p=values / values.sum()))]


def _draw_size_px(rng: np.random.Generator, config: SyntheticConfig) -> float:
    low, high = (math.log(bound) for bound in config.size_range)
    size = math.exp(rng.triangular(low, math.log(config.size_mode), high)) if low < high else math.exp(low)
    return size * config.image_size


def _crop(image: Array, left: int, top: int, side: int) -> Array:
    """A [side, side, 3] patch; beyond the border the edge pixels are repeated."""
    last = image.shape[0] - 1
    patch: Array = image[np.arange(top, top + side).clip(0, last)][:, np.arange(left, left + side).clip(0, last)]
    return patch


def _paste(image: Array, patch: Array, left: int, top: int) -> None:
    """Writes the part of a patch that lies inside the image, in place."""
    side, size = image.shape[0], patch.shape[0]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + size, side), min(top + size, side)
    image[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return any(a[axis + 2] + _GAP_PX <= b[axis] or b[axis + 2] + _GAP_PX <= a[axis] for axis in (0, 1))


def _percentile_95(values: Array) -> float:
    """Of a flat, non-empty array (np.percentile takes three times as long)."""
    k = round(0.95 * (values.size - 1))
    return float(np.partition(values, k)[k])


def _at_contrast(surface: Array, drawn: Array, contrast: float) -> Array:
    """Strengthens or weakens a drawn defect so that its strong pixels change by `contrast` of full scale."""
    change = drawn - surface
    strength = np.abs(change).max(-1)
    strong = strength[strength > 0.2 * strength.max()]
    factor = 255 * contrast / max(_percentile_95(strong), 1.0) if strong.size else 0.0
    return np.clip(surface + change * factor, 0, 255)


def _add_defect(
    rng: np.random.Generator,
    image: Array,
    name: DefectName,
    size_px: float,
    defects: list[DrawnDefect],
    light_xy: Array,
    config: SyntheticConfig,
) -> DrawnDefect | None:
    """Draws one defect of about `size_px` into `image` (in place), clear of `defects`; None if none fits."""
    side = config.image_size
    least, most = config.contrast_range
    least = max(least, config.contrast_floor.get(name, 0.0))
    contrast = math.exp(rng.uniform(math.log(least), math.log(most)))
    drawn_size, drawn_contrast = size_px, contrast
    for _ in range(_ATTEMPTS):
        margin = 0.35 * size_px + 1
        centre_xy = rng.uniform(margin, side - margin, 2)
        patch_side = math.ceil(1.2 * drawn_size + 6) + int(rng.integers(2))  # even and odd box sides
        left, top = (int(value) for value in np.round(centre_xy - patch_side / 2))
        surface = _crop(image, left, top, patch_side)
        drawn = DEFECTS[name](rng, surface, drawn_size, light_xy, side / 160)
        drawn = _at_contrast(surface, drawn, drawn_contrast)
        change = np.abs(drawn - surface).max(-1)
        mask = change > max(config.visible_levels, 255 * contrast * config.visible_share)
        if not mask.any():
            continue
        rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
        x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        box = (left + x0, top + y0, left + x1, top + y1)
        longer, shorter = max(x1 - x0, y1 - y0), min(x1 - x0, y1 - y0)
        measured = _percentile_95(change[mask]) / 255
        if (
            config.size_range[0] * side <= longer <= config.size_range[1] * side
            and shorter >= config.min_box_side * side
            and least <= measured <= most
            and min(box) >= 1
            and max(box) <= side - 1
            and all(_apart(box, other.box_xyxy) for other in defects)
        ):
            full_mask = np.zeros((side, side), np.bool_)
            full_mask[box[1] : box[3], box[0] : box[2]] = mask[y0:y1, x0:x1]
            _paste(image, drawn, left, top)
            return DrawnDefect(name, box, measured, full_mask)
        # The next attempt makes up for what thresholds and clipping took away.
        drawn_size = float(np.clip(drawn_size * size_px / longer, 0.8 * size_px, 1.5 * size_px))
        drawn_contrast = float(np.clip(drawn_contrast * contrast / measured, 0.7 * contrast, 1.5 * contrast))
    return None


def _add_defects(rng: np.random.Generator, image: Array, light_xy: Array, config: SyntheticConfig) -> list[DrawnDefect]:
    """Draws at least one defect into `image` (in place)."""
    defects: list[DrawnDefect] = []
    weights = np.array(config.objects_per_image)
    count = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    # Large ones first: they would find no place later.
    sizes = sorted((_draw_size_px(rng, config) for _ in range(count)), reverse=True)
    for _ in range(_ATTEMPTS):
        for size_px in sizes:
            name = _pick(rng, config.class_weights)
            defect = _add_defect(rng, image, name, size_px, defects, light_xy, config)
            if defect is not None:
                defects.append(defect)
        if defects:
            return defects
        sizes = [_draw_size_px(rng, config)]
    raise UserError(
        "synthetic: no defect could be drawn that meets size_range, min_box_side and contrast_range on this surface. "
        f"Found size_range {list(config.size_range)}, contrast_range {list(config.contrast_range)}; widen them."
    )


def draw_image(config: SyntheticConfig, split: str, index: int, *, normal: bool) -> DrawnImage:
    """Draws image `index` of a split, the same for the same (config, split, index, normal)."""
    rng = _random_stream(config, split, index, _IMAGE)
    side = config.image_size
    texture = _pick(rng, config.texture_weights)
    azimuth = rng.uniform(0, 2 * np.pi)
    light_xy = np.array([math.cos(azimuth), math.sin(azimuth)], np.float32)
    image = clean_surface(rng, texture, side, light_xy, rng.uniform(*config.light_range))
    defects = [] if normal else _add_defects(rng, image, light_xy, config)
    sigma_px = rng.uniform(*config.blur_sigma_px)
    if sigma_px > 0.2:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), dtype=np.float32)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= rng.uniform(*config.noise_levels)
    noise += image
    pixels = np.clip(np.rint(noise, out=noise), 0, 255, out=noise).astype(np.uint8)
    return DrawnImage(pixels, texture, tuple(defects))


def _write_split(config: SyntheticConfig, split: str, count: int, root: Path) -> None:
    """Writes images/<split>/ and annotations/instances_<split>.json under `root`."""
    folder = root / "images" / split
    folder.mkdir(parents=True)
    order = _random_stream(config, split, 0, _NORMAL).permutation(count)
    normal = set(order[: round(config.normal_fraction * count)].tolist())  # an exact share, spread at random
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    side = config.image_size
    for index in progress_bar(range(count), f"drawing {split}", show=None):
        drawn = draw_image(config, split, index, normal=index in normal)
        low, high = config.jpeg_quality
        quality = int(_random_stream(config, split, index, _JPEG).integers(low, high + 1))
        ok, jpeg = cv2.imencode(".jpg", drawn.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not ok:
            raise RuntimeError(f"OpenCV could not encode image {index} as JPEG")
        file_name = f"{split}_{index:05d}.jpg"
        (folder / file_name).write_bytes(jpeg.tobytes())
        size = {"width": side, "height": side}
        images.append({"id": index + 1, "file_name": file_name, **size, "texture": drawn.texture})
        for defect in drawn.defects:
            left, top, right, bottom = defect.box_xyxy
            place = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            ids = {"image_id": index + 1, "category_id": CLASS_NAMES.index(defect.name) + 1}
            contrast = round(defect.contrast, 3)
            annotations.append({"id": len(annotations) + 1, **ids, **place, "iscrowd": 0, "contrast": contrast})
    categories = [{"id": k + 1, "name": name, "supercategory": "surface"} for k, name in enumerate(CLASS_NAMES)]
    info = {"description": f"generated surface defects, seed {config.seed}", "version": str(GENERATOR_VERSION)}
    coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / f"instances_{split}.json", coco, what="annotations", indent=1)


def _identity(config: SyntheticConfig) -> dict[str, Any]:
    return {"generator_version": GENERATOR_VERSION, **config.model_dump(mode="json", exclude={"root"})}


def _hash(config: SyntheticConfig) -> str:
    return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()


def _split_counts(config: SyntheticConfig) -> dict[str, int]:
    counts = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    return {split: count for split, count in counts.items() if count}


def _check_existing(config: SyntheticConfig) -> None:
    """Raises UserError unless `config.root` holds exactly this data set."""
    remedy = (
        f"Delete the folder {config.root} if you don't need it, or choose another synthetic.root "
        "(and the loaders' img_folder and ann_file with it)."
    )
    marker = config.root / MARKER_NAME
    if not config.root.is_dir():
        raise UserError(f"{config.root}: expected a folder for the generated data set, found a file. {remedy}")
    if not marker.is_file():
        lacks = f"the folder exists and holds no generated data set ({MARKER_NAME} is missing)"
        raise UserError(f"{config.root}: {lacks}; nothing was written. {remedy}")
    try:
        found = dict(json.loads(marker.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{marker}: not readable ({error}). {remedy}") from error
    if found.pop("hash", None) != _hash(config):
        expected = _identity(config)
        differences = [
            f"{key}: the folder was made with {found.get(key)}, the config has {expected.get(key)}"
            for key in sorted(expected.keys() | found.keys())
            if found.get(key) != expected.get(key)
        ]
        other = "holds a data set generated from other settings than those of the config's section 'synthetic'"
        raise UserError(f"{config.root}: {other}. {remedy}", differences)
    problems = []
    for split, count in _split_counts(config).items():
        folder, annotations = config.root / "images" / split, config.root / "annotations" / f"instances_{split}.json"
        if (present := len([*folder.glob("*.jpg")])) != count:
            problems.append(f"{folder}: expected {count} images, found {present}")
        if not annotations.is_file():
            problems.append(f"{annotations}: missing")
    if problems:
        raise UserError(f"{config.root}: the generated data set is not complete. {remedy}", problems)


def ensure_dataset(config: SyntheticConfig) -> Path:
    """Makes sure the data set lies under `config.root` and returns that folder.

    Writes it if the folder is absent or empty, reuses it if it was made from the same settings. It is written
    to a folder beside and renamed at the end, so an interrupted run leaves no half data set under `root`; what a
    killed one left beside it is removed. Of several processes, one draws and the others wait for its result.

    Raises:
        UserError: `root` needs an environment variable, holds something else (nothing of it is touched), or cannot be
            written.
    """
    root = config.root
    require_variables({"synthetic.root": root})
    lock = root.parent / f".{root.name}.lock"
    try:
        if not is_filled(root):
            root.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):  # the system lets go of it when a process is killed
                if not is_filled(root):
                    _draw(config)
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        reason, fix = getattr(error, "strerror", None) or error, "Free some space or choose a writable synthetic.root"
        raise UserError(f"{root}: the data set could not be written ({reason}). {fix}.") from error
    finally:
        with contextlib.suppress(OSError):  # Windows keeps it while another process waits
            lock.unlink()
    _check_existing(config)
    return root


def is_filled(root: Path) -> bool:
    """Say whether something is there, so that nothing is drawn."""
    return root.exists() and not (root.is_dir() and not any(root.iterdir()))


def _draw(config: SyntheticConfig) -> None:
    """Only ever by one process at a time."""
    root = config.root
    for left in root.parent.glob(f".{glob.escape(root.name)}.*partial"):
        shutil.rmtree(left)
    logger.info("Drawing %d images into %s", sum(_split_counts(config).values()), root)
    partial = root.parent / f".{root.name}.drawing.partial"
    try:
        for split, count in _split_counts(config).items():
            _write_split(config, split, count, partial)
        write_json(partial / MARKER_NAME, {"hash": _hash(config), **_identity(config)}, what="marker", indent=1)
        if root.is_dir():
            root.rmdir()  # Windows cannot rename onto a folder, not even an empty one.
        partial.rename(root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
