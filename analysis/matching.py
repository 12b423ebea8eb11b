"""Which detection hit what, for every IoU threshold and size: judged once, resampled and thresholded at will.

Legend: I images, K classes, M detections, A area ranges (all, small, medium, large), T IoU thresholds
(0.50:0.05:0.95).
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from analysis.overlaps import BoolArray, Overlaps, match_best_first
from analysis.result import FloatArray, IntArray
from data.errors import UserError
from engine.checkpoint import write_atomically
from engine.coco_metrics import Detections, GroundTruth, unique_names
from models.weight_files import parse_json

FILE_NAME = "match_tables.npz"
IOU_THRESHOLDS: FloatArray = np.linspace(0.5, 0.95, 10)
AREA_RANGES_PX2: dict[str, tuple[float, float]] = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
"""COCO's, both ends included."""

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2
_VERSION = 1


@dataclass(frozen=True, eq=False)
class MatchTables:
    """COCO's matching of a whole split."""

    names: tuple[str, ...]
    """[K], unique."""
    gt_hash: str
    """`GroundTruth.fingerprint()`."""
    image_ids: IntArray
    """[I], ascending."""
    class_starts: IntArray
    """[K + 1]: the detections of class k are `class_starts[k]:class_starts[k + 1]`, in COCO's ranking."""
    scores: FloatArray
    """[M], descending within a class."""
    images: NDArray[np.int32]
    """[M], index into `image_ids`."""
    outcomes: NDArray[np.int8]
    """[A, T, M]: FALSE_POSITIVE, TRUE_POSITIVE or IGNORED (in a crowd, or of another size)."""
    gt_counts: NDArray[np.int32]
    """[A, I, K]: boxes that count."""

    @classmethod
    def of(cls, truth: GroundTruth, detections: Detections) -> MatchTables:
        """Match `detections` as COCO does."""
        return cls.from_overlaps(Overlaps.of(truth, detections), truth)

    @classmethod
    def from_overlaps(cls, overlaps: Overlaps, truth: GroundTruth) -> MatchTables:
        """As `of`, where the pairs have been made already."""
        ignored = ignored_truths(overlaps)
        counts = np.zeros((len(AREA_RANGES_PX2), len(overlaps.image_ids), overlaps.num_classes), dtype=np.int32)
        for area, row in enumerate(ignored):
            np.add.at(counts[area], (overlaps.truth_images[~row], overlaps.truth_labels[~row]), 1)
        return cls(
            names=tuple(unique_names(truth.classes)),
            gt_hash=truth.fingerprint(),
            image_ids=overlaps.image_ids,
            class_starts=np.searchsorted(overlaps.labels, np.arange(overlaps.num_classes + 1)).astype(np.int64),
            scores=overlaps.scores,
            images=overlaps.images.astype(np.int32),
            outcomes=_outcomes(overlaps, ignored),
            gt_counts=counts,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def rows(self, label: int) -> slice:
        """The detections of one class."""
        return slice(int(self.class_starts[label]), int(self.class_starts[label + 1]))

    @property
    def labels(self) -> IntArray:
        """[M], contiguous."""
        return np.repeat(np.arange(len(self.names), dtype=np.int64), np.diff(self.class_starts))

    @property
    def num_gt(self) -> IntArray:
        """[K], boxes of any size, crowds left out."""
        counts: IntArray = self.gt_counts[0].sum(axis=0, dtype=np.int64)
        return counts

    def save(self, path: Path) -> None:
        """Write an .npz file without pickled objects, atomically.

        Raises:
            UserError: It cannot be written.
        """
        head = json.dumps({"version": _VERSION, "names": self.names, "gt_hash": self.gt_hash})
        arrays = {name: getattr(self, name) for name in _ARRAYS}

        def write(file: BinaryIO) -> None:
            np.savez_compressed(file, head=np.frombuffer(head.encode("utf-8"), dtype=np.uint8), **arrays)

        write_atomically(path, write, what="match tables")

    @classmethod
    def load(cls, path: Path) -> MatchTables:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            UserError: It is missing, damaged, or not such a file.
        """
        if not path.is_file():
            raise UserError(
                f"Match tables {path}: no such file. Evaluate the checkpoint again with evaluate_deimv2.py, which "
                "writes it beside results.json."
            )
        try:
            _require_modest(path)
            with np.load(path, allow_pickle=False) as file:
                head = parse_json(bytes(file["head"]))
                if head["version"] != _VERSION:
                    raise ValueError(f"version {head['version']}, expected {_VERSION}")
                arrays = {name: file[name] for name in _ARRAYS}
            tables = cls(names=tuple(head["names"]), gt_hash=str(head["gt_hash"]), **arrays)
            _require_sound(tables)
        except _DAMAGE as error:
            raise UserError(
                f"Match tables {path}: damaged, cut short or of another version ({str(error)[:160]}). Evaluate the "
                "checkpoint again with evaluate_deimv2.py."
            ) from error
        return tables


# TypeError and AttributeError: a plain .npy file gives an array instead of an archive, other JSON other types.
# MemoryError: a header may claim any shape. RuntimeError: an archive may be encrypted.
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, MemoryError, RuntimeError),
    *(zlib.error, zipfile.BadZipFile),
)
_MOST_BYTES, _MOST_PER_BYTE = 128 * 2**20, 64
_ARRAYS = ("image_ids", "class_starts", "scores", "images", "outcomes", "gt_counts")


def ignored_truths(overlaps: Overlaps) -> BoolArray:
    """[A, G]: boxes that do not count in an area range."""
    areas = overlaps.truth_areas
    outside = [(areas < low) | (areas > high) for low, high in AREA_RANGES_PX2.values()]
    return np.stack(outside) | overlaps.truth_crowd


def impossible_detections(overlaps: Overlaps) -> BoolArray:
    """[M]: sides of different signs, or gigantic. Of no size that COCO knows, so it ignores them."""
    low, high = AREA_RANGES_PX2["all"]
    return (overlaps.areas < low) | (overlaps.areas > high)


def match_within_classes(overlaps: Overlaps, thresholds: FloatArray, ignored: BoolArray) -> tuple[IntArray, ...]:
    """COCO's matching for settings [S]: settings, detections and boxes of all matches, each [number of matches].

    Args:
        overlaps: Boxes and pairs.
        thresholds: [S], least IoU.
        ignored: [S, G]
    """
    detections, truths = overlaps.pair_detections, overlaps.pair_truths
    kept = np.flatnonzero(
        (overlaps.labels[detections] == overlaps.truth_labels[truths]) & (overlaps.pair_ious >= thresholds.min() - 1e-9)
    )
    detections, truths = detections[kept], truths[kept]
    matches = match_best_first(
        rounds=overlaps.ranks[detections],
        detections=detections,
        truths=truths,
        ious=overlaps.pair_ious[kept],
        thresholds=thresholds,
        crowd=overlaps.truth_crowd,
        ignored=ignored,
    )
    return matches.settings, detections[matches.pairs], truths[matches.pairs]


def _outcomes(overlaps: Overlaps, ignored: BoolArray) -> NDArray[np.int8]:
    """[A, T, M]"""
    num_thresholds = len(IOU_THRESHOLDS)
    ignored_by_setting = np.repeat(ignored, num_thresholds, axis=0)
    thresholds = np.tile(IOU_THRESHOLDS, len(ignored))
    settings, detections, truths = match_within_classes(overlaps, thresholds, ignored_by_setting)
    outcomes = np.empty((len(ignored), num_thresholds, len(overlaps.scores)), dtype=np.int8)
    for area, (low, high) in enumerate(AREA_RANGES_PX2.values()):
        outside = (overlaps.areas < low) | (overlaps.areas > high)
        outcomes[area] = np.where(outside, IGNORED, FALSE_POSITIVE)
    flat = outcomes.reshape(len(thresholds), len(overlaps.scores))
    flat[settings, detections] = np.where(ignored_by_setting[settings, truths], IGNORED, TRUE_POSITIVE)
    return outcomes


def _require_modest(path: Path) -> None:
    """Raise a ValueError if an archive unpacks to far more than match tables of its size do."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        claimed = sum(record.file_size for record in archive.infolist())
    if claimed > max(_MOST_BYTES, _MOST_PER_BYTE * size):
        raise ValueError(f"a file of {size:,} bytes that unpacks to {claimed:,}")


def _require_sound(tables: MatchTables) -> None:
    """Raise a ValueError if arrays from a file do not fit together."""
    if not all(isinstance(name, str) for name in tables.names):
        raise ValueError("names are not all text")
    num_images, num_classes, num_rows = len(tables.image_ids), len(tables.names), len(tables.scores)
    shapes: dict[str, tuple[Any, ...]] = {
        "image_ids": (num_images,),
        "class_starts": (num_classes + 1,),
        "scores": (num_rows,),
        "images": (num_rows,),
        "outcomes": (len(AREA_RANGES_PX2), len(IOU_THRESHOLDS), num_rows),
        "gt_counts": (len(AREA_RANGES_PX2), num_images, num_classes),
    }
    kinds = {"scores": "f"}
    for name, shape in shapes.items():
        array = getattr(tables, name)
        if array.shape != shape or array.dtype.kind != kinds.get(name, "i"):
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected shape {list(shape)}")
    starts = tables.class_starts
    if starts[0] != 0 or starts[-1] != num_rows or (np.diff(starts) < 0).any():
        raise ValueError("class_starts do not divide the detections")
    if num_rows and not (int(tables.images.min()) >= 0 and int(tables.images.max()) < num_images):
        raise ValueError("images point outside image_ids")
