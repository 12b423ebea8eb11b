"""One panel each: an image, boxes, a map, sampling points. Everything is in pixels of the original image.

Legend: H, W height and width of the original image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from analysis.style import FAINT, FOUND_COLOUR, INK, TRUTH_COLOUR, BoxNames, frame, in_language, tidy
from attention.capture import PredictedObject
from attention.maps import STRIDES, EdgeDistribution, MapArray, SamplingPoints
from data.images import as_pixels
from data.types import FloatArray, PixelArray
from engine.pictures import class_name
from texts import Texts

COLOUR_MAP = "viridis"
"""Perceptually uniform, readable without colour vision and in grey."""
LONGEST_SHOWN_PX = 720
"""5 cm of paper at 200 dpi are 400 pixels; zoomed panels show a part."""
_CONTOURS = (0.25, 0.5, 0.75)
"""As shares of the scale."""
_LEVEL_MARKERS = ("o", "s", "^")
_LEAST_WINDOW = 0.2
_LEAST_WINDOW_ASPECT = 0.6
_SHOWN_TAIL = 0.002


@dataclass(frozen=True)
class Scene:
    """What every panel of an image draws on."""

    picture: PixelArray
    """Scaled down for paper."""
    size_wh: tuple[int, int]
    """W and H."""
    truth: Sequence[tuple[FloatArray, int]] | None
    """Annotated boxes [4] xyxy with their labels; None: not known."""
    names: tuple[str, ...]
    texts: Texts
    overlay: bool = False
    """Maps lie over the image."""

    def name(self, label: int) -> str:
        """Return a class's name, short enough for a picture."""
        return tidy(class_name(label, self.names, self.texts.language), 16)

    def score(self, value: float) -> str:
        """Write two decimals in the language."""
        return self.texts.number(value, 2)

    def in_pixels(self, xy: Any) -> FloatArray:
        """[..., 2k] in 0..1, x and y in turn -> pixels of the original image."""
        values = np.asarray(xy, dtype=np.float64)
        sides = np.tile(np.asarray(self.size_wh, dtype=np.float64), values.shape[-1] // 2)
        return np.asarray(values * sides)


def shrunk(pixels: PixelArray, longest_px: int = LONGEST_SHOWN_PX) -> PixelArray:
    """Scale an image down until its longer side has `longest_px` pixels at most."""
    height, width = pixels.shape[:2]
    factor = min(longest_px / max(height, width), 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    return pixels if factor == 1 else as_pixels(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def show_image(axes: Any, scene: Scene, title: str = "", *, dimmed: bool = False) -> None:
    """Show the image; `dimmed` in dark grey, as a ground for bright marks."""
    picture = scene.picture
    if dimmed:
        picture = np.repeat((picture.mean(axis=2, keepdims=True) * 0.45).astype(np.uint8), 3, axis=2)
    axes.set_title(title, fontsize=6)
    _spread(axes, scene, picture, interpolation="antialiased")


def show_map(
    axes: Any,
    scene: Scene,
    cells: MapArray,
    title: str = "",
    *,
    scale: tuple[float, float] = (0, 1),
    outlined: Sequence[PredictedObject] = (),
) -> Any:
    """Show cells [h, w], or RGB [h, w, 3], over the whole image, unsmoothed: their resolution is what it is. Thin white
    boxes of the `outlined` help to find one's way.

    With `Scene.overlay` values [h, w] lie over the greyed image, smoothed, the higher the less transparent, with
    contours. Returns what a colour bar needs.
    """
    axes.set_title(title, fontsize=6)
    for one in outlined:
        draw_box(axes, scene.in_pixels(one.box_xyxy), "white", "--", 0.6)
    if cells.ndim == 3:
        return _spread(axes, scene, cells, interpolation="nearest")
    low, high = scale
    high = high if high > low else low + 1
    colours = {"cmap": COLOUR_MAP, "vmin": low, "vmax": high}
    if not scene.overlay:
        return _spread(axes, scene, cells, interpolation="nearest", **colours)
    grey = scene.picture.mean(axis=2)
    _spread(axes, scene, grey, interpolation="antialiased", cmap="gray", vmin=0, vmax=255)
    height, width = grey.shape
    smooth = np.asarray(cv2.resize(cells.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR))
    alpha = 0.25 + 0.5 * np.clip((smooth - low) / (high - low), 0, 1)
    xs, ys = (np.linspace(0, side, count) for side, count in zip(scene.size_wh, (width, height), strict=True))
    levels = [low + share * (high - low) for share in _CONTOURS]
    if smooth.min() < levels[-1] and smooth.max() > levels[0]:
        axes.contour(xs, ys, smooth, levels=levels, colors="white", linewidths=0.5)
    return _spread(axes, scene, smooth, interpolation="nearest", alpha=alpha, **colours)


def _spread(axes: Any, scene: Scene, cells: Any, **options: Any) -> Any:
    width, height = scene.size_wh
    drawn = axes.imshow(cells, extent=(0, width, height, 0), **options)
    frame(axes)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return drawn


def _rim(width: float, colour: str = "white") -> list[Any]:
    """Around marks, so that they show on any ground."""
    return [withStroke(linewidth=width, foreground=colour)]


def _rectangle(box_xyxy: Any, **options: Any) -> Rectangle:
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    return Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, **options)


def draw_box(axes: Any, box_xyxy: Any, colour: str, style: str = "-", width: float = 1.0) -> None:
    """Draw a box in pixels, with a rim that shows it on any ground."""
    rim = _rim(width + 1.2, INK if colour == "white" else "white")
    axes.add_patch(_rectangle(box_xyxy, edgecolor=colour, linewidth=width, linestyle=style, path_effects=rim))


def say_no_object(axes: Any, scene: Scene) -> None:
    """Write it in the middle of a panel that would show a detected object."""
    middle = {"transform": axes.transAxes, "ha": "center", "va": "center"}
    axes.text(0.5, 0.5, scene.texts["no_object"], fontsize=6, color=INK, path_effects=_rim(1.4), **middle)


def draw_truth_and_objects(axes: Any, scene: Scene, objects: Sequence[PredictedObject]) -> None:
    """Draw annotated boxes solid, predicted ones dashed, with names; "no object" where nothing was predicted."""
    if not objects:
        say_no_object(axes, scene)
    named = [(box, scene.name(label), TRUTH_COLOUR, "-") for box, label in scene.truth or ()]
    for one in objects:
        text = f"{scene.name(one.label)} {scene.score(one.score)}"
        named.append((scene.in_pixels(one.box_xyxy), text, FOUND_COLOUR, "--"))
    for box, _, colour, style in named:
        draw_box(axes, box, colour, style)
    BoxNames(axes, [one[0] for one in named], [one[1] for one in named], [one[2] for one in named])


def draw_focus(axes: Any, scene: Scene, focus_xy: tuple[float, float]) -> None:
    """Draw a cross at a point in 0..1: whose attention or similarity a map shows."""
    x, y = scene.in_pixels(focus_xy)
    axes.plot(x, y, "+", color="white", markersize=7, path_effects=_rim(2.4, INK))


def window_of(points: Sequence[SamplingPoints], box_xyxy: Sequence[float]) -> tuple[float, float, float, float]:
    """Choose the part of the image (0..1) that holds a box and nearly all of the weight of its sampling points.

    It is never very narrow or flat: a scratch needs its surroundings, and a panel room.
    """
    heavy = [p.points_xy[p.weights >= np.quantile(p.weights, 0.5)] for p in points]
    corners = np.asarray(box_xyxy, dtype=np.float64).reshape(2, 2)
    low = np.minimum(*[np.quantile(np.concatenate(heavy), 0.02, axis=0), corners[0]])
    high = np.maximum(*[np.quantile(np.concatenate(heavy), 0.98, axis=0), corners[1]])
    half = np.maximum((high - low) / 2 * 1.15, _LEAST_WINDOW / 2)
    half = np.minimum(np.maximum(half, half.max() * _LEAST_WINDOW_ASPECT), 0.5)
    centre = np.clip((low + high) / 2, half, 1 - half)
    low, high = centre - half, centre + half
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def zoom(axes: Any, scene: Scene, window: Sequence[float]) -> None:
    """Show a part of the image only."""
    left, top, right, bottom = scene.in_pixels(window)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def draw_sampling(axes: Any, scene: Scene, points: SamplingPoints, box_xyxy: Sequence[float], heaviest: float) -> Any:
    """Draw dots by weight with lines to the centre of the final box (0..1), that box, and the reference's point.

    `heaviest` is the weight at the bright end of the scale. Returns what a colour bar needs.
    """
    places, box = scene.in_pixels(points.points_xy), scene.in_pixels(box_xyxy)
    centre = (box[:2] + box[2:]) / 2
    share = np.clip(points.weights / heaviest, 0, 1)
    shade = [(1.0, 1.0, 1.0, 0.05 + 0.35 * float(value)) for value in share]
    axes.add_collection(LineCollection([(place, centre) for place in places], colors=shade, linewidths=0.4))
    drawn = None
    order = np.argsort(points.weights, kind="stable")
    for level in range(int(points.levels.max()) + 1):
        chosen = order[points.levels[order] == level]
        drawn = axes.scatter(
            *places[chosen].T,
            c=points.weights[chosen],
            s=2 + 22 * share[chosen],
            cmap=COLOUR_MAP,
            vmin=0,
            vmax=heaviest,
            marker=_LEVEL_MARKERS[level % len(_LEVEL_MARKERS)],
            linewidths=0.2,
            edgecolors="white",
            zorder=3,
        )
    draw_box(axes, box, FOUND_COLOUR, "--")
    x, y = scene.in_pixels(points.reference_xy)
    axes.plot(x, y, "x", color="white", markersize=6, markeredgewidth=1.3, path_effects=_rim(2.6, INK), zorder=4)
    return drawn


def level_handles(texts: Texts) -> tuple[list[Any], list[str]]:
    """Make the legend of the sampling points: shapes by level, and the cross."""
    handles = [Line2D([], [], marker=marker, linestyle="", color=FAINT, markersize=4) for marker in _LEVEL_MARKERS]
    handles.append(Line2D([], [], marker="x", linestyle="", color=INK, markersize=5))
    return handles, [*(texts("stride", stride=stride) for stride in STRIDES), texts["reference"]]


def draw_refinement(axes: Any, scene: Scene, boxes_xyxy: MapArray, ious: MapArray) -> None:
    """Draw the box after every layer, from faint to strong; the first is the encoder's proposal."""
    shades = matplotlib.colormaps[COLOUR_MAP]
    handles, captions = [], []
    for step, (box, iou) in enumerate(zip(boxes_xyxy, ious, strict=True)):
        share = step / max(len(boxes_xyxy) - 1, 1)
        look = {"edgecolor": shades(0.35 + 0.65 * share), "linewidth": 0.7 + 0.9 * share}
        handles.append(axes.add_patch(_rectangle(scene.in_pixels(box), linestyle=":" if step == 0 else "-", **look)))
        captions.append(scene.texts("refinement_step", layer=step, iou=scene.score(float(iou))))
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": 2}
    axes.legend(handles, captions, fontsize=5, handlelength=1.2, columnspacing=0.8, labelspacing=0.3, **below)


def draw_query_graph(axes: Any, scene: Scene, query: int, shares: MapArray, centres_xy: MapArray) -> Any:
    """Draw lines from a query's box to the ten that it attends to most, thick and bright by share.

    `shares` [Q] and `centres_xy` [Q, 2] (0..1) are of all queries. Returns what a colour bar needs.
    """
    others = [int(k) for k in np.argsort(-shares, kind="stable") if int(k) != query][:10]
    places, strength = scene.in_pixels(centres_xy), shares[others]
    top = float(strength.max()) if len(others) else 1.0
    ends = [(places[query], places[k]) for k in others]
    widths = 0.4 + 2.2 * strength / max(top, 1e-12)
    lines = LineCollection(ends, array=strength, cmap=COLOUR_MAP, linewidths=widths)
    lines.set_clim(0, top)
    axes.add_collection(lines)
    dots = {"c": strength, "cmap": COLOUR_MAP, "vmin": 0, "vmax": top, "edgecolors": "white", "linewidths": 0.3}
    axes.scatter(*places[others].T, s=14, zorder=3, **dots)
    axes.plot(*places[query], "o", color=FOUND_COLOUR, markersize=5, markeredgecolor="white", zorder=4)
    return lines


def draw_edge(axes: Any, scene: Scene, side: str, edge: EdgeDistribution, truth_px: float | None) -> None:
    """Draw the probability over the places where one side may lie, in pixels of the original image."""
    texts, axis = scene.texts, "x" if side in ("left", "right") else "y"
    length = scene.size_wh["xy".index(axis)]
    places, expected, start = edge.positions * length, edge.expected * length, edge.start * length
    shown = np.r_[places[edge.probabilities > _SHOWN_TAIL], expected, start]
    margin = max(float(np.ptp(shown)) * 0.08, 1.0)
    axes.vlines(places, 0, edge.probabilities, color=INK, linewidth=1.4)
    axes.axvline(expected, color=FOUND_COLOUR, linestyle="--", linewidth=1.2)
    axes.axvline(start, color=FAINT, linestyle=":", linewidth=1.2)
    if truth_px is not None and shown.min() - margin < truth_px < shown.max() + margin:
        axes.axvline(truth_px, color=TRUTH_COLOUR, linestyle="-", linewidth=1.0)
    axes.set(xlim=(shown.min() - margin, shown.max() + margin), ylim=(0, None))
    axes.set_xlabel(texts[f"edge_axis_{axis}"], fontsize=6)
    value, spread = texts.number(expected, 1), texts.number(edge.spread * length, 1)
    axes.set_title(texts("edge_title", edge=texts[side], value=value, spread=spread), fontsize=6.5)
    in_language(texts.language, axes.xaxis, axes.yaxis)
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=5.5)
