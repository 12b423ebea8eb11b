"""One panel each: an image, boxes, a map, sampling points. Everything is in pixels of the original image.

Legend: H, W height and width of the original image in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from analysis.style import FAINT, FOUND_COLOUR, INK, TRUTH_COLOUR, AxisNumbers, tidy
from attention.decoder_maps import BoxSteps, EdgeDistribution, SamplingPoints
from attention.objects import PredictedObject
from attention.sources import Truth
from attention.wording import Wording
from engine.pictures import Picture

FloatArray = NDArray[np.float32]

COLOUR_MAP = "viridis"
"""Perceptually uniform, readable without colour vision and in grey."""
LONGEST_SHOWN_PX = 720
"""5 cm of paper at 200 dpi are 400 pixels; zoomed panels show a part."""
_LEVEL_MARKERS = ("o", "s", "^")
_STRIDES = (8, 16, 32)
_LEAST_WINDOW = 0.2
_LEAST_WINDOW_ASPECT = 0.6
_TALLEST_PANEL = 1.6
_CHARACTER, _LINE = 0.034, 0.062
"""Of a name in a picture, as shares of the panel's width where four panels stand in a row."""
_SHOWN_TAIL = 0.002


@dataclass(frozen=True)
class Scene:
    """What every panel of an image draws on."""

    picture: Picture
    """uint8 [h, w, 3], scaled down for paper."""
    size_wh: tuple[int, int]
    """W and H."""
    truth: Truth | None
    names: tuple[str, ...]
    wording: Wording

    def name(self, label: int) -> str:
        """Of a class, short enough for a picture."""
        return tidy(self.names[label], 16) if 0 <= label < len(self.names) else f"class {label}"

    def score(self, value: float) -> str:
        """Two decimals in the language."""
        return self.wording.labels.number(value, 2)

    def in_pixels(self, xy: Any) -> NDArray[np.float64]:
        """[..., 2k] in 0..1, x and y in turn -> pixels of the original image."""
        values = np.asarray(xy, dtype=np.float64)
        sides = np.tile(np.asarray(self.size_wh, dtype=np.float64), values.shape[-1] // 2)
        return np.asarray(values * sides)


def make_scene(
    pixels: Picture, truth: Truth | None, names: Sequence[str], wording: Wording, longest_px: int = LONGEST_SHOWN_PX
) -> Scene:
    """From the original image, uint8 [H, W, 3]; its longer side is shown with `longest_px` pixels at most."""
    height, width = pixels.shape[:2]
    factor = min(longest_px / max(height, width), 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    small = pixels if factor == 1 else np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    return Scene(small, (width, height), truth, tuple(names), wording)


def bare(axes: Any) -> None:
    """No ticks, grid or frame."""
    axes.axis("off")


def show_image(axes: Any, scene: Scene, *, dimmed: bool = False) -> None:
    """The image; `dimmed` in dark grey, as a ground for bright marks."""
    bare(axes)
    width, height = scene.size_wh
    picture = scene.picture
    if dimmed:
        picture = np.repeat((picture.mean(axis=2, keepdims=True) * 0.45).astype(np.uint8), 3, axis=2)
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="antialiased")
    axes.set(xlim=(0, width), ylim=(height, 0))


def show_map(axes: Any, scene: Scene, values: FloatArray, low: float, high: float) -> Any:
    """A map of cells [h, w] over the whole image, unsmoothed: its resolution is what it is. Returns what a colour bar
    needs."""
    bare(axes)
    width, height = scene.size_wh
    drawn = axes.imshow(
        values,
        extent=(0, width, height, 0),
        cmap=COLOUR_MAP,
        vmin=low,
        vmax=high if high > low else low + 1,
        interpolation="nearest",
    )
    axes.set(xlim=(0, width), ylim=(height, 0))
    return drawn


def show_colours(axes: Any, scene: Scene, colours: FloatArray) -> None:
    """RGB cells [h, w, 3] over the whole image."""
    bare(axes)
    width, height = scene.size_wh
    axes.imshow(colours, extent=(0, width, height, 0), interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0))


def draw_box(axes: Any, box_xyxy: Any, colour: str, style: str = "-", width: float = 1.0) -> None:
    """A box in pixels, with a white rim that shows it on dark ground."""
    x1, y1, x2, y2 = (float(value) for value in box_xyxy)
    rim = [withStroke(linewidth=width + 1.2, foreground="white" if colour != "white" else INK)]
    axes.add_patch(
        Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width, linestyle=style, path_effects=rim
        )
    )


def say_no_object(axes: Any, scene: Scene) -> None:
    """In the middle of a panel that would show a detected object."""
    rim = [withStroke(linewidth=1.4, foreground="white")]
    text, place = scene.wording.no_object, axes.transAxes
    axes.text(0.5, 0.5, text, transform=place, ha="center", va="center", fontsize=6, color=INK, path_effects=rim)


def draw_truth_and_objects(axes: Any, scene: Scene, objects: Sequence[PredictedObject]) -> None:
    """Annotated boxes solid, predicted ones dashed, with names; "no object" where nothing was predicted."""
    if not objects:
        say_no_object(axes, scene)
    written: list[_Area] = []
    if scene.truth is not None:
        for box, label in zip(scene.truth.boxes_xyxy, scene.truth.labels, strict=True):
            draw_box(axes, box, TRUTH_COLOUR)
            written.append(_write(axes, scene, box, scene.name(label), TRUTH_COLOUR, written, at_top=True))
    for one in objects:
        box, text = scene.in_pixels(one.box_xyxy), f"{scene.name(one.label)} {scene.score(one.score)}"
        draw_box(axes, box, FOUND_COLOUR, "--")
        written.append(_write(axes, scene, box, text, FOUND_COLOUR, written, at_top=False))


def outline_objects(axes: Any, scene: Scene, objects: Sequence[PredictedObject]) -> None:
    """Thin white boxes, to find one's way on a map."""
    for one in objects:
        draw_box(axes, scene.in_pixels(one.box_xyxy), "white", "--", 0.6)


def _write(
    axes: Any, scene: Scene, box: Any, text: str, colour: str, written: Sequence[_Area], *, at_top: bool
) -> _Area:
    """A name in a corner of a box, within the image, clear of those written before."""
    width, height = scene.size_wh
    panel = max(width, height / _TALLEST_PANEL)
    length, line = len(text) * _CHARACTER * panel, _LINE * panel
    left = float(np.clip(box[0], 0, max(width - length, 0)))
    top = float(np.clip(box[1] if at_top else box[3] - line, 0, max(height - line, 0)))
    into_the_box = line if at_top else -line
    places = [_Area(left, top + k * into_the_box, length, line) for k in (0, 1, 2, 3, -1, -2, -3)]
    inside = [place for place in places if 0 <= place.top <= max(height - line, 0)]
    area = next((place for place in inside if not any(place.meets(other) for other in written)), places[0])
    rim = [withStroke(linewidth=1.4, foreground="white")]
    y, anchor = (area.top, "top") if at_top else (area.top + line, "bottom")
    axes.text(area.left, y, text, fontsize=5, color=colour, va=anchor, clip_on=True, path_effects=rim)
    return area


class _Area(NamedTuple):
    """Where a name is, in pixels of the original image."""

    left: float
    top: float
    width: float
    height: float

    def meets(self, other: _Area) -> bool:
        beside = self.left + self.width <= other.left or other.left + other.width <= self.left
        return not (beside or self.top + self.height <= other.top or other.top + other.height <= self.top)


def draw_focus(axes: Any, scene: Scene, focus_xy: tuple[float, float]) -> None:
    """A cross at a point in 0..1: whose attention or similarity a map shows."""
    x, y = scene.in_pixels(focus_xy)
    axes.plot(x, y, "+", color="white", markersize=7, path_effects=[withStroke(linewidth=2.4, foreground=INK)])


def window_of(points: Sequence[SamplingPoints], box_xyxy: Sequence[float]) -> tuple[float, float, float, float]:
    """The part of the image (0..1) that holds a box and nearly all of the weight of its sampling points.

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
    """Dots by weight with lines to the box's centre, the reference box and its point. Returns what a colour bar needs.

    Args:
        axes: Shows the image already.
        scene: Of the image.
        points: Of one layer.
        box_xyxy: The final box, 0..1.
        heaviest: Weight at the bright end of the scale.
    """
    places = scene.in_pixels(points.points_xy)
    box = scene.in_pixels(box_xyxy)
    centre = (box[:2] + box[2:]) / 2
    share = np.clip(points.weights / heaviest, 0, 1)
    lines = [(place, centre) for place in places]
    shade = [(1.0, 1.0, 1.0, 0.05 + 0.35 * float(value)) for value in share]
    axes.add_collection(LineCollection(lines, colors=shade, linewidths=0.4))
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
    x, y = scene.in_pixels(points.reference_cxcywh[:2])
    rim = [withStroke(linewidth=2.6, foreground=INK)]
    axes.plot(x, y, "x", color="white", markersize=6, markeredgewidth=1.3, path_effects=rim, zorder=4)
    return drawn


def level_handles(scene: Scene) -> tuple[list[Any], list[str]]:
    """Legend of the sampling points: shapes by level, and the cross."""
    plain: dict[str, Any] = {"linestyle": "", "color": FAINT, "markersize": 4}
    handles = [Line2D([], [], marker=marker, **plain) for marker in _LEVEL_MARKERS]
    handles.append(Line2D([], [], marker="x", linestyle="", color=INK, markersize=5))
    texts = [scene.wording.stride.format(stride=stride) for stride in _STRIDES]
    return handles, [*texts, scene.wording.reference]


def draw_refinement(axes: Any, scene: Scene, steps: BoxSteps) -> None:
    """The box after every layer, from faint to strong; the first is the encoder's proposal."""
    shades = matplotlib.colormaps[COLOUR_MAP]
    last = len(steps.boxes_xyxy) - 1
    handles = []
    for step, box in enumerate(steps.boxes_xyxy):
        colour = shades(0.35 + 0.65 * step / max(last, 1))
        style = ":" if step == 0 else "-"
        x1, y1, x2, y2 = scene.in_pixels(box)
        patch = Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=0.7 + 0.9 * step / max(last, 1),
            linestyle=style,
        )  # fmt: skip
        handles.append(axes.add_patch(patch))
    texts = [
        scene.wording.refinement_step.format(layer=step, iou=scene.score(float(iou)))
        for step, iou in enumerate(steps.iou_with_last)
    ]
    axes.legend(
        handles, texts, fontsize=5, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, handlelength=1.2,
        columnspacing=0.8, labelspacing=0.3,
    )  # fmt: skip


def draw_query_graph(
    axes: Any, scene: Scene, query: int, shares: FloatArray, centres_xy: FloatArray, count: int = 10
) -> Any:
    """Lines from a query's box to those that it attends to most, thick and bright by share.

    Args:
        axes: Shows the image already.
        scene: Of the image.
        query: The one that attends.
        shares: [Q].
        centres_xy: [Q, 2] in 0..1.
        count: How many of the others.
    """
    others = [int(k) for k in np.argsort(-shares, kind="stable") if int(k) != query][:count]
    places = scene.in_pixels(centres_xy)
    strength = shares[others]
    top = float(strength.max()) if len(others) else 1.0
    lines = LineCollection(
        [(places[query], places[k]) for k in others],
        array=strength,
        cmap=COLOUR_MAP,
        linewidths=0.4 + 2.2 * strength / max(top, 1e-12),
    )
    lines.set_clim(0, top)
    axes.add_collection(lines)
    axes.scatter(*places[others].T, c=strength, cmap=COLOUR_MAP, vmin=0, vmax=top, s=14, zorder=3, edgecolors="white",
                 linewidths=0.3)  # fmt: skip
    axes.plot(*places[query], "o", color=FOUND_COLOUR, markersize=5, markeredgecolor="white", zorder=4)
    return lines


def draw_edge(axes: Any, scene: Scene, edge: EdgeDistribution, truth_px: float | None) -> None:
    """Probability over the places where one side may lie, in pixels of the original image."""
    wording, side = scene.wording, scene.size_wh[0] if edge.edge in ("left", "right") else scene.size_wh[1]
    places, expected, start = edge.positions * side, edge.expected * side, edge.start * side
    shown = np.r_[places[edge.probabilities > _SHOWN_TAIL], expected, start]
    margin = max(float(np.ptp(shown)) * 0.08, 1.0)
    axes.vlines(places, 0, edge.probabilities, color=INK, linewidth=1.4)
    axes.axvline(expected, color=FOUND_COLOUR, linestyle="--", linewidth=1.2)
    axes.axvline(start, color=FAINT, linestyle=":", linewidth=1.2)
    if truth_px is not None and shown.min() - margin < truth_px < shown.max() + margin:
        axes.axvline(truth_px, color=TRUTH_COLOUR, linestyle="-", linewidth=1.0)
    axes.set(xlim=(shown.min() - margin, shown.max() + margin), ylim=(0, None))
    axes.set_xlabel(wording.edge_axis_x if edge.edge in ("left", "right") else wording.edge_axis_y, fontsize=6)
    value, spread = wording.labels.number(expected, 1), wording.labels.number(edge.spread * side, 1)
    axes.set_title(wording.edge_title.format(edge=wording.edges[edge.edge], value=value, spread=spread), fontsize=6.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(AxisNumbers(wording.labels))
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=5.5)
