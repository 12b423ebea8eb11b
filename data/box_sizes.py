"""Sizes of boxes as the network sees them; boxes that vanish: too small for its input, or not in pixels at all.

Legend: N boxes of a split without its crowd boxes, C classes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from data.coco import CocoSplit
from data.config import ResizeOp, SanitizeBoundingBoxesOp, TilesConfig, TransformsConfig
from data.problems import Problem
from data.tiles import view_sizes_wh, windows
from data.transforms import output_size_hw
from data.types import BoolArray, FloatArray, IntArray
from texts import Texts

SIDE_EDGES_PX = (0, 8, 16, 32, 64, 128)
_SMALL_EDGES_PX = (8, 16, 32)
_LEAST_SIDE_PX = 16
_LARGEST_INPUT_PX = 1280
_SMALL_PX = 4
"""Half a cell of the finest feature map (stride 8)."""
_FIX = "Set a larger eval_spatial_size, cut the images into tiles, or correct the boxes"


def object_scale(split: CocoSplit, transforms: TransformsConfig, tiles: TilesConfig | None) -> dict[str, Any]:
    """Say at what scale the network sees the objects of a split: median network pixels per image pixel, `scale`, and
    the sides of the objects in network pixels that 10, 50 and 90 % do not exceed, `sides_px`."""
    input_hw = output_size_hw(transforms)
    scales = scales_of(split.image_sizes_wh[~split.crowd], input_hw, tiles)
    if not len(scales):
        return {"scale": None, "sides_px": None}
    sides = np.quantile(object_sides(split, input_hw, tiles), (0.1, 0.5, 0.9))
    return {"scale": float(np.median(scales)), "sides_px": sides.tolist()}


def scales_of(sizes_wh: npt.ArrayLike, input_hw: tuple[int, int], tiles: TilesConfig | None) -> FloatArray:
    """Return network pixels per pixel of images of these sizes [..., 2], mean of both directions."""
    seen = view_sizes_wh(np.asarray(sizes_wh, dtype=np.float64), tiles)
    scales: FloatArray = np.sqrt((np.array(input_hw[::-1]) / seen).prod(axis=-1))
    return scales


def object_sides(split: CocoSplit, input_hw: tuple[int, int], tiles: TilesConfig | None) -> FloatArray:
    """Return the side of each box that is no crowd box, square root of its area, in network pixels [N]."""
    rows = np.flatnonzero(~split.crowd)
    sides = np.sqrt(np.maximum(split.boxes_xywh[rows, 2:], 0).prod(axis=1))
    scaled: FloatArray = sides * scales_of(split.image_sizes_wh[rows], input_hw, tiles)
    return scaled


def size_advice(
    split: CocoSplit, input_hw: tuple[int, int], tiles: TilesConfig | None, texts: Texts
) -> tuple[list[str], dict[str, Any]]:
    """Say how large the network sees the objects of a split, and what to set where many are too small for it, or do not
    fit into the tiles.

    A tenth of the objects may be smaller than `_LEAST_SIDE_PX`; nothing is enlarged beyond an image's own pixels.

    Returns:
        Lines for people; for programs `object_sides_px`, which 10, 50 and 90 % do not exceed, the shares `below_8_px`,
        `below_16_px` and `below_32_px`, and as `advice` lines of a config, any one of which will do.
    """
    sides = object_sides(split, input_hw, tiles)
    if not len(sides):
        return [], {}

    def px(side: float) -> str:
        return texts.number(side, 0 if side >= 10 else 1)

    seen = f"eval_spatial_size {list(input_hw)}" + (texts("in_tiles", size=tiles.size) if tiles else "")
    smallest, half, largest = np.quantile(sides, (0.1, 0.5, 0.9)).tolist()
    quantiles = {"low": px(smallest), "half": px(half), "high": px(largest)}
    lines = [texts("object_sides", split=split.name, seen=seen, **quantiles)]
    for low, high in pairwise([*SIDE_EDGES_PX, np.inf]):
        share = float(((sides >= low) & (sides < high)).mean())
        below = texts("below", high=f"{high:g}", share=texts.percent((sides < high).mean(), 0))
        row = texts("sides_from" if high == np.inf else "sides_between", low=low, high=f"{high:g}")
        bar = f"{'#' * round(40 * share):40} {texts.percent(share, 0)}"
        lines.append(f"  {row:>15}  {bar}{below if high in _SMALL_EDGES_PX else ''}")
    sizes_wh = split.image_sizes_wh[~split.crowd]
    now = float(np.median(scales_of(sizes_wh, input_hw, tiles)))
    wanted = min(now * _LEAST_SIDE_PX / max(smallest, 1e-6), 1.0)
    choices: dict[str, str] = {}
    if smallest < _LEAST_SIDE_PX and wanted > 1.05 * now:
        choices = _larger(input_hw, now, wanted, largest, np.median(sizes_wh, axis=0), texts)
    elif smallest < _LEAST_SIDE_PX:
        lines.append("  " + texts["no_more_pixels"])
    if choices:
        lines.append("  " + texts("so_that", side=px(smallest * wanted / now)))
    longest = split.boxes_xywh[~split.crowd, 2:].max(axis=1)
    fitting = 32 * math.ceil(np.quantile(longest, 0.9) / 32)
    if tiles is not None and fitting > tiles.size and not choices:
        lines.append("  " + texts("longer_than_tiles", share=texts.percent((longest > tiles.size).mean(), 0)))
        choices = {f"tiles: {{size: {fitting}}}": ""}
    lines += [f"    {line}" for line in f"\n# {texts['or']}\n".join(map("".join, choices.items())).splitlines()]
    shares = {f"below_{edge}_px": float((sides < edge).mean()) for edge in _SMALL_EDGES_PX}
    return lines, {"object_sides_px": [smallest, half, largest], **shares, "advice": [*choices]}


def _larger(
    input_hw: tuple[int, int], now: float, wanted: float, largest: float, image_wh: FloatArray, texts: Texts
) -> dict[str, str]:
    """What shows objects at the scale `wanted`, network pixels per image pixel, instead of `now`, where 90 % have sides
    of up to `largest` network pixels: lines of a config, and what is to be said behind each."""
    enlarged = [32 * math.ceil(side * wanted / now / 32) for side in input_hw]
    choices = {f"eval_spatial_size: {enlarged}": ""} if max(enlarged) <= _LARGEST_INPUT_PX else {}
    size = round(math.sqrt(math.prod(input_hw)) / wanted)
    width, height = image_wh.round().astype(int).tolist()
    if size < 0.75 * min(width, height):
        overlap = min(max(math.ceil(20 * largest / now / size) / 20, 0.1), 0.5)
        count = len(windows((width, height), TilesConfig(size=max(size, 32), overlap=overlap)))
        choices[f"tiles: {{size: {max(size, 32)}, overlap: {overlap:g}}}"] = f"  # {texts('passes', count=count)}"
    return choices


def check_box_sizes(
    split: CocoSplit, transforms: TransformsConfig, tiles: TilesConfig | None = None, *, training: bool
) -> list[Problem]:
    """Count the boxes of each class that the network's input size leaves too small to be learnt or found.

    In training the transforms' own limits decide which boxes are lost, 1 px otherwise. Errors where nothing is left of
    the set or, in training, of a class; else one warning with all counts.
    """
    rows = np.flatnonzero(~split.crowd)
    file, where = str(split.ann_file), f"split {split.name}"
    if not len(rows) or transforms.resize is None:
        return []
    if (split.boxes_xywh[rows] <= 1).all():
        text = f"all coordinates of its {len(rows)} boxes are within 0 and 1: fractions of the image, expected pixels"
        fix = "Multiply x and width by the image's width, y and height by its height, or export pixels"
        return [Problem("error", file, where, text, fix, "boxes in fractions")]
    lost, small = _too_small(split, rows, transforms, tiles, training=training)
    at = "{1} x {0}".format(*transforms.resize.size)
    if tiles is not None:
        at = f"tiles of {tiles.size} px resized to {at}"
    how = f"lost in training (too small at {at})" if training else f"below 1 px at {at}, too small to be found"
    if lost.all():
        return [Problem("error", file, where, f"all {len(rows)} boxes are {how}", _FIX, "lost boxes")]
    counts, num_lost, num_small = (
        np.bincount(split.labels[rows[mask]], minlength=len(split.classes)) for mask in (lost | ~lost, lost, small)
    )
    problems = []
    for label in np.flatnonzero((counts > 0) & (num_lost == counts)) if training else ():
        text = f"all {counts[label]} boxes of the class {split.classes.names[label]} are {how}"
        problems.append(Problem("error", file, where, text, f"{_FIX}, or remove the class", "lost boxes", True))
    if lost.any() or small.any():
        per_class = ", ".join(
            f"{split.classes.names[label]} {num_lost[label]} and {num_small[label]} of {counts[label]}"
            for label in np.flatnonzero(num_lost + num_small)
        )
        example = split.annotation_ids[rows[lost if lost.any() else small]][0]
        text = f"{lost.sum()} boxes are {how}, {small.sum()} more are smaller than {_SMALL_PX} px there ({per_class})"
        text += f", e.g. annotation {example}"
        problems.append(split.warning(where, text, _FIX, "small boxes"))
    return problems


def _too_small(
    split: CocoSplit,
    rows: IntArray,
    transforms: TransformsConfig,
    tiles: TilesConfig | None,
    *,
    training: bool,
) -> tuple[BoolArray, BoolArray]:
    """[N] lost, [N] kept but smaller than `_SMALL_PX`: what the ops do to an image that is only resized."""
    sides = (split.boxes_xyxy[rows, 2:] - split.boxes_xyxy[rows, :2]).astype(np.float64)
    seen_wh = view_sizes_wh(split.image_sizes_wh[rows], tiles)
    lost = np.zeros(len(rows), np.bool_)
    for op in transforms.ops:
        if isinstance(op, ResizeOp):
            sides *= np.array(op.size[::-1]) / seen_wh
        elif isinstance(op, SanitizeBoundingBoxesOp) and training:
            lost |= (sides < op.min_size).any(axis=1)
            lost |= sides.prod(axis=1) < op.min_area
    if not training:
        lost |= (sides < 1).any(axis=1)
    return lost, ~lost & (sides < _SMALL_PX).any(axis=1)
