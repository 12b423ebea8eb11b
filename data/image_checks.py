"""The full check of a data set: every image is opened once. Sizes, odd pixel formats, copies across splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.coco import CocoSplit, overlap_problem, size_problem
from data.coco_reader import ImageRecord
from data.errors import UserError
from data.images import UNREADABLE_FIX, ImageFacts, open_image, read_facts, read_image
from data.problems import Problem
from data.progress import progress_bar
from data.types import IntArray, PixelArray

_HASH_SIDE = 16
_HASH_BITS = _HASH_SIDE * _HASH_SIDE
NEAR_DUPLICATE_BITS = 22
"""Two images look alike when their difference hashes differ in at most so many of 256 bits, and nothing stands out of
one of them alone. On NEU-DET recompression (JPEG quality 60) changes 3 bits, resizing 2, brightness 1 (medians), a
shift by 1 % about 21; of 360 x 1440 images two that overlap differ in 22, the most alike of other scenes in 25, 43."""
_UNDECIDED, _ROUNDING_LEVELS = 0.3, 0.3
"""Neighbours that differ by less than this share of the standard deviation, or by fewer grey levels, have no bit:
chance or rounding would decide it, and so it would be the same in all images that are blank but for a small thing."""
_FLAT_LEVELS = 0.5
"""Standard deviation of the detail, in grey levels, below which an image has nothing to compare."""
_SEEN_LEVELS, _SEEN_TEXTURES, _SEEN_SHARE = 6.0, 3.0, 1 / 3
"""What is in one image only makes two images different if it stands out by so many grey levels, by so many times the
range of 3 x 3 neighbours (median), and by this share of the strongest detail. So parts photographed in one light, or in
one holder, are told apart by what is on them; on NEU-DET none of 150 recompressed, resized or brighter copies is."""
_SIDE, _SEEN_SIDE = 64, 32
_ORDINARY_MODES = ("RGB", "L", "1")
_REMARKS = {
    "16-bit grey": ("16-bit grey images", "Nothing to do: they are divided by 257"),
    "12-bit": (
        "images with 12-bit values in 16 bits (none above 4095), which are stretched from 0..4095",
        "Nothing to do if the camera has 12 bits; where it has more, save with 8 bits, all on one scale",
    ),
    "CMYK": ("CMYK images", "They are converted without a colour profile; save them as RGB to be sure of the colours"),
    "transparent": (
        "images with transparent pixels",
        "Nothing to do if the stored colours are right: alpha is dropped",
    ),
    "frames": ("files with several frames", "Only the first frame is used; save frames as single images"),
    "rotated": ("images with an EXIF rotation", "Nothing to do if the boxes fit the upright image (see --show)"),
}


@dataclass(frozen=True, eq=False)
class _Look:
    """What two images are compared by."""

    bits: npt.NDArray[np.float32]
    """[256] difference hash, see `_look`."""
    detail: npt.NDArray[np.float16]
    """[32, 32] grey levels without the light."""

    @cached_property
    def seen(self) -> tuple[npt.NDArray[np.float32], float]:
        """[3, 1024] the detail, and the highest and lowest of each pixel's neighbours, in standard deviations; and by
        how much something must stand out of them."""
        deviation = float(self.detail.std(dtype=np.float32))
        detail = self.detail.astype(np.float32) / deviation
        highest, lowest = maximum_filter(detail, 3), minimum_filter(detail, 3)
        texture, strongest = float(np.median(highest - lowest)), float(np.abs(detail).max())
        least = max(_SEEN_LEVELS / deviation, _SEEN_TEXTURES * texture, _SEEN_SHARE * strongest)
        return np.stack([detail, highest, lowest]).reshape(3, -1), least


@dataclass(frozen=True)
class _Inspection:
    """What one image file holds."""

    error: str = ""
    facts: ImageFacts | None = None
    pixel_hash: bytes = b""
    look: _Look | None = None
    """None for a flat image."""
    transparent: bool = False


def check_images(splits: Sequence[CocoSplit], *, allow_split_overlap: bool = False) -> list[Problem]:
    """Open every image of the splits (in threads) and report what is wrong with them.

    Missing files are reported by `check_annotations` and passed over here.
    """
    every = chain.from_iterable(map(_inspect_all, splits))
    opened = iter(progress_bar(every, "open images", total=sum(map(len, splits)), show=None))
    problems, inspections = [], []
    for split in splits:
        inspections.append(list(islice(opened, len(split))))
        problems += _file_problems(split, inspections[-1]) + _remarks(split, inspections[-1])
    problems += _copies(splits, inspections, allow_split_overlap)
    if not allow_split_overlap:
        problems += _near_duplicates(splits, inspections)
    return problems


def alike_groups(split: CocoSplit) -> tuple[IntArray, list[Problem]]:
    """Group the images of a split that look alike, directly or through others, as `check_images` compares splits.

    Returns:
        [I] the number of each image's group, from 0 in order of appearance; and what is wrong with the images.
    """
    found = list(progress_bar(_inspect_all(split), "open images", total=len(split), leave=True, show=None))
    first_of: dict[bytes, int] = {}
    pairs = [(i, first_of.setdefault(one.pixel_hash, i)) for i, one in enumerate(found) if one.pixel_hash]
    pairs += [(i, j) for i, j, _ in _pairs_alike(found, found)]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    alike = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(found), len(found)))
    return connected_components(alike, directed=False)[1].astype(np.int64), _file_problems(split, found)


def check_headers(split: CocoSplit) -> list[Problem]:
    """Compare the images' headers with the annotations: unreadable files, other sizes. No pixel is decoded."""
    return _file_problems(split, list(_inspect_all(split, pixels=False)))


def _inspect_all(split: CocoSplit, *, pixels: bool = True) -> Iterator[_Inspection]:
    paths = [image.path for image in split.images]
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 1)) as pool:  # decoding releases the interpreter lock
        yield from pool.map(partial(_inspect, pixels=pixels), paths)


def _inspect(path: Path, *, pixels: bool) -> _Inspection:
    if not os.path.isfile(path):  # unlike Path's, it knows names that are too long
        return _Inspection()
    try:
        if not pixels:
            return _Inspection(facts=read_facts(path))
        image, facts = read_image(path)
    except UserError as error:
        return _Inspection(error=str(error))
    height, width = image.shape[:2]
    return _Inspection(
        facts=facts,
        pixel_hash=hashlib.blake2b(f"{width}x{height}".encode() + image.tobytes(), digest_size=16).digest(),
        look=_look(image),
        transparent=facts.may_have_alpha and _is_transparent(path),
    )


def _look(pixels: PixelArray) -> _Look | None:
    """Which neighbours on a 16 x 17 grid get brighter from left to right (dHash, N. Krawetz 2013): 1, else -1.

    0 where they hardly differ; the length of the whole is 1. Uneven light is taken away first, a cubic surface and what
    is left of lamps: on smooth surfaces it would decide all bits.
    """
    # Not in whole grey levels, which would be steps in smooth light.
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    detail -= (_SURFACES @ (_SURFACES.T @ detail.ravel())).reshape(detail.shape)
    detail -= cv2.GaussianBlur(detail, (0, 0), 8)
    if float(detail.std()) < _FLAT_LEVELS:
        return None
    small = cv2.resize(detail, (_HASH_SIDE + 1, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    steps = np.diff(small, axis=1).ravel()
    signs = np.sign(steps) * (np.abs(steps) > max(_UNDECIDED * steps.std(), _ROUNDING_LEVELS))
    seen = cv2.resize(detail, (_SEEN_SIDE, _SEEN_SIDE), interpolation=cv2.INTER_AREA).astype(np.float16)
    if not signs.any() or not seen.any():
        return None
    return _Look((signs / np.linalg.norm(signs)).astype(np.float32), seen)


def _cubic_surfaces() -> npt.NDArray[np.float32]:
    """[64 x 64, 10] an orthonormal basis of the polynomials up to degree 3."""
    y, x = np.mgrid[-1 : 1 : _SIDE * 1j, -1 : 1 : _SIDE * 1j]
    terms = [(x**i * y**j).ravel() for i in range(4) for j in range(4 - i)]
    return np.linalg.qr(np.stack(terms, axis=1))[0].astype(np.float32)


_SURFACES = _cubic_surfaces()


def _is_transparent(path: Path) -> bool:
    with open_image(path) as image:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return int(lowest) < 255  # type: ignore[arg-type]


def _file_problems(split: CocoSplit, inspections: Sequence[_Inspection]) -> list[Problem]:
    problems = []
    for image, inspection in zip(split.images, inspections, strict=True):
        if inspection.error:
            found, file = inspection.error.removesuffix(f" {UNREADABLE_FIX}."), str(split.ann_file)
            kind = "unreadable image"
            problems.append(Problem("error", file, image.where, found, UNREADABLE_FIX, kind, True, image.id))
        elif inspection.facts is not None and (mismatch := size_problem(split, image, inspection.facts)):
            problems.append(mismatch)
    return problems


def _remarks(split: CocoSplit, inspections: Sequence[_Inspection]) -> list[Problem]:
    """Odd pixel formats, counted: one line for each."""
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    brightest_16_bit = 0
    for image, inspection in zip(split.images, inspections, strict=True):
        facts = inspection.facts
        if facts is None:
            continue
        remarks = {
            "16-bit grey": facts.is_16_bit and not facts.is_12_bit,
            "12-bit": facts.is_12_bit,
            "CMYK": facts.mode == "CMYK",
            "transparent": inspection.transparent,
            "frames": facts.num_frames > 1,
            "rotated": facts.orientation != 1,
        }
        found = [key for key, applies in remarks.items() if applies]
        if not found and facts.mode not in _ORDINARY_MODES and not facts.may_have_alpha:
            found = [facts.mode]
        for key in found:
            counts[key] += 1
            examples.setdefault(key, image.file_name)
        brightest_16_bit = max(brightest_16_bit, facts.largest_value)
    problems = []
    for key, count in counts.items():
        what, fix = _REMARKS.get(key, (f"images of mode {key}", "They are converted to RGB; look at them with --show"))
        if key == "16-bit grey" and brightest_16_bit < 32768:
            what += f", the brightest value is {brightest_16_bit} of 65535, so that they come out dark"
            fix = "Stretch the values to the full 16 bits, or save them with 8 bits"
        if key == "16-bit grey" and counts["12-bit"]:
            what += f"; {counts['12-bit']} others have none above 4095 and come out 16 times as bright"
        text = f"{count} {what}, e.g. {examples[key]}"
        problems.append(split.warning(f"split {split.name}", text, fix, "pixel format"))
    return problems


def _copies(
    splits: Sequence[CocoSplit], inspections: Sequence[Sequence[_Inspection]], allow_split_overlap: bool
) -> list[Problem]:
    """Images with equal pixels: errors across splits, warnings within one."""
    groups: dict[bytes, list[tuple[CocoSplit, ImageRecord]]] = defaultdict(list)
    for split, found in zip(splits, inspections, strict=True):
        for image, inspection in zip(split.images, found, strict=True):
            if inspection.pixel_hash:
                groups[inspection.pixel_hash].append((split, image))
    problems = []
    for group in groups.values():
        firsts: dict[str, ImageRecord] = {}
        for split, image in group:
            if split.name in firsts:
                text = f"has the same pixels as {firsts[split.name].file_name} of the same split"
                problems.append(split.warning(image.where, text, "Remove one of them", "same image twice in a split"))
                continue
            # The same file in both splits is met by `check_overlap` already.
            others = {name: o for name, o in firsts.items() if o.path.resolve() != image.path.resolve()}
            if others and not allow_split_overlap:
                name, other = next(iter(others.items()))
                problems.append(overlap_problem(split, image, name, other.file_name, "the same pixels"))
            firsts[split.name] = image
    return problems


def _near_duplicates(splits: Sequence[CocoSplit], inspections: Sequence[Sequence[_Inspection]]) -> list[Problem]:
    """Images of different splits that look alike without being equal."""
    problems = []
    for later in range(1, len(splits)):
        for earlier in range(later):
            a, b = splits[later], splits[earlier]
            nearest: dict[int, tuple[int, int]] = {}
            for i, j, bits in _pairs_alike(inspections[later], inspections[earlier]):
                is_copy = inspections[later][i].pixel_hash == inspections[earlier][j].pixel_hash  # an error already
                if not is_copy and bits < nearest.get(i, (_HASH_BITS, 0))[0]:
                    nearest[i] = bits, j
            for i, (bits, j) in nearest.items():
                where = f"{a.images[i].where} of split {a.name}"
                text = f"looks like {b.images[j].file_name} of split {b.name} ({bits} of {_HASH_BITS} bits differ)"
                fix, kind = "If it is the same scene, keep both in one split", "near-duplicate across splits"
                problems.append(a.warning(where, text, fix, kind))
    return problems


def _pairs_alike(a: Sequence[_Inspection], b: Sequence[_Inspection]) -> Iterator[tuple[int, int, int]]:
    """Yield index in a, index in b and number of differing bits of all pairs within `NEAR_DUPLICATE_BITS` that show the
    same."""
    (index_a, looks_a, bits_a), (index_b, looks_b, bits_b) = _looks(a), _looks(b)
    for start in range(0, len(index_a), 256):
        # If all 256 are decided, 256 x dot product is those that are equal less those that differ.
        differing = _HASH_BITS * (1 - bits_a[start : start + 256] @ bits_b.T) / 2
        for row in np.flatnonzero((differing <= NEAR_DUPLICATE_BITS).any(axis=1)).tolist():
            columns = np.flatnonzero(differing[row] <= NEAR_DUPLICATE_BITS)
            same = _show_the_same(looks_a[start + row], [looks_b[column] for column in columns])
            for column in columns[same].tolist():
                yield index_a[start + row], index_b[column], round(float(differing[row, column]))


def _show_the_same(one: _Look, others: Sequence[_Look]) -> npt.NDArray[np.bool_]:
    """Tell of each of the others whether nothing stands out that only one of the two shows."""
    (detail, highest, lowest), least = one.seen
    seen, leasts = zip(*(other.seen for other in others), strict=True)
    details, highests, lowests = np.stack(seen, axis=1)
    outside = (details - highest, lowest - details, detail - highests, lowests - detail)
    shown: npt.NDArray[np.bool_] = np.max([part.max(axis=1) for part in outside], axis=0) <= np.maximum(leasts, least)
    return shown


def _looks(inspections: Sequence[_Inspection]) -> tuple[list[int], list[_Look], npt.NDArray[np.float32]]:
    """Return the indices of images that are not flat, their looks, and the bits of these, [images, 256]."""
    looks = {index: one.look for index, one in enumerate(inspections) if one.look is not None}
    bits = np.array([look.bits for look in looks.values()], dtype=np.float32).reshape(-1, _HASH_BITS)
    return list(looks), list(looks.values()), bits
