"""The attention figures: panels put together, with a caption that says what may be read into them.

Blocks and heads of the ViT count from 0, as in the config; decoder layers from 1, because 0 is the encoder's proposal.

Legend: M heads of the ViT, Q queries, h x w cells of a map (Hp x Wp patches).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analysis.style import MAX_HEIGHT_CM, WIDTH_CM, AxisNumbers, new_figure
from analysis.tables import Table
from attention import maps, panels
from attention.capture import Captured, PredictedObject
from attention.evidence import ODAM_EDGES
from attention.maps import CLASS_TOKEN, Edge, EdgeDistribution, MapArray, PatchColours, SamplingPoints
from attention.panels import Scene
from data.types import FloatArray
from engine.detector import Detector
from models.boxes import paired_iou
from texts import Texts, texts_of

OVERVIEW_ROWS = 5
_BACKGROUND_GREY = 0.6
_BAR_CM, _BAR_THICK_CM = 1.1, 0.22
"""A colour bar with its numbers, and without."""
_CAPTION_CM = 1.8
_SCALE_PERCENTILE = 99.5
"""Of all values of a figure: a few patches that soak up attention must not turn all the others black."""
_SAME_OBJECT_IOU = 0.5


class Drawn(NamedTuple):
    """A figure in memory."""

    figure: Figure
    caption: str
    facts: Mapping[str, Any]
    """What was drawn, for its JSON file: layers, tokens, queries."""
    suffix: str = ""
    """Of its name, where there are several of a kind."""
    table: Table | None = None
    """Numbers that belong to it: a CSV and a LaTeX file of the same name."""


class Row(NamedTuple):
    """What the overview keeps of an image."""

    name: str
    scene: Scene
    objects: Sequence[PredictedObject]
    heat: MapArray | None
    """[M, Hp, Wp] attention of the focus in the last block read; of a baseline [1, h, w], the evidence of its best
    detection, relative to the maximum; None without one."""
    points: Sequence[SamplingPoints] | None
    """Of the last decoder layer, per object; None for a baseline."""


class Focus(NamedTuple):
    """Whose attention and similarity are shown."""

    patches: Sequence[int]
    """Row by row, without prefix tokens."""
    xy: tuple[float, float]
    """Their centre, 0..1 over the image."""
    text: str
    """As captions say it."""


@dataclass(frozen=True)
class View:
    """One image and what a detector did with it."""

    detector: Detector
    name: str
    scene: Scene
    image: Tensor
    """float32 [1, 3, H, W], the network's input."""
    objects: Sequence[PredictedObject]
    """Those to draw."""
    evidence: Sequence[Mapping[str, MapArray]] = ()
    """Of each object, method -> class evidence [h, w], relative to the map's own maximum; empty if not asked for."""
    evidence_layer: str = ""
    captured: Captured | None = None
    """None: a CNN baseline. Then what follows means nothing."""
    layers: Sequence[int] = ()
    """ViT blocks to draw."""
    focus: Focus = Focus((), (0.5, 0.5), "")
    colours: PatchColours | None = None

    @property
    def attention(self) -> Captured:
        """What DEIMv2 did with the image."""
        assert self.captured is not None
        return self.captured

    @property
    def focus_tokens(self) -> list[int]:
        """The focus among all tokens of the ViT."""
        return [self.attention.num_prefix + patch for patch in self.focus.patches]

    @cached_property
    def row(self) -> Row:
        """For the overview and the top of the image's main figure."""
        captured = self.captured
        if captured is None:
            heat = self.evidence[0]["grad_cam"][None] if self.evidence else None
            return Row(self.name, self.scene, self.objects, heat, None)
        heat, _ = maps.head_maps(captured, captured.returned_blocks[-1], self.focus_tokens)
        layer = len(captured.cross_attention) - 1
        points = [maps.sampling_points(captured, layer, one.query) for one in self.objects]
        return Row(self.name, self.scene, self.objects, heat, points)

    @property
    def focus_facts(self) -> dict[str, Any]:
        """The focus for a figure's JSON file."""
        patches, grid = list(self.focus.patches), list(self.attention.grid_hw)
        return {"focus": self.focus.text, "focus_patches": patches, "grid_hw": grid}


def draw_main(view: View) -> Iterator[Drawn]:
    """Draw image | truth and predictions | mean of the heads | sampling points, and below every head."""
    if view.captured is None:
        yield draw_overview([view.row], view.scene.texts)._replace(facts={})
        return
    texts, row, scene = view.scene.texts, view.row, view.scene
    assert row.heat is not None
    heads, aspect = len(row.heat), _aspect(scene)
    # One grid, in which both four panels and the heads fit: nested ones leave no room for the bars' numbers.
    heights_cm = WIDTH_CM / 4 * aspect + 0.5, WIDTH_CM / max(heads, 4) * aspect + 0.5, None
    figure, cells = _grid(heights_cm, 4 * heads)
    axes = [figure.add_subplot(cells[0, k * heads : (k + 1) * heads]) for k in range(4)]
    high = _high([row.heat])
    block, layer = view.captured.returned_blocks[-1], len(view.captured.cross_attention)
    heat, dots = _draw_row(axes, row, high, _heaviest(row.points or ()))
    _title(axes, row, texts("mean_of_heads", block=block), texts("sampling", layer=layer))
    for head, cells_of_head in enumerate(row.heat):
        axis, title = figure.add_subplot(cells[1, 4 * head : 4 * head + 4]), texts("head", head=head)
        heat = panels.show_map(axis, scene, cells_of_head, title, scale=(0, high), outlined=view.objects)
    _bar(figure, heat, texts, "attention_share", cell=cells[2, : 3 * heads], extend="max")
    if dots is not None:
        _bar(figure, dots, texts, "sampling_weight", cell=cells[2, 3 * heads :])
    caption = add_caption(figure, texts("main_caption", focus=view.focus.text, block=block, layer=layer), scene)
    yield Drawn(figure, caption, {"vit_block": block, "decoder_layer": layer, **view.focus_facts})


def draw_overview(rows: Sequence[Row], texts: Texts) -> Drawn:
    """Draw one row an image, as the top of `draw_main`; a baseline's shows evidence in place of attention."""
    has_points, method = rows[0].points is not None, texts_of(texts.language, "attention_methods")["grad_cam"]
    columns = 4 if has_points else 3
    figure, cells = _grid([*(WIDTH_CM / columns * min(_aspect(row.scene), 1.3) for row in rows), None], columns)
    high = _high([row.heat for row in rows if row.heat is not None]) if has_points else 1.0
    heaviest = _heaviest([points for row in rows for points in row.points or ()])
    heat = dots = None
    for place, row in enumerate(rows):
        axes = [figure.add_subplot(cells[place, column]) for column in range(columns)]
        mapped, drawn = _draw_row(axes, row, high, heaviest)
        heat, dots = mapped or heat, drawn or dots
        if place == 0:
            _title(axes, row, *((texts["attention"], texts["sampling_points"]) if has_points else (method,)))
    if has_points:
        _bar(figure, heat, texts, "attention_share", cell=cells[-1, 2], extend="max")
    elif heat is not None:
        _bar(figure, heat, texts, "relative_evidence", cell=cells[-1, 2])
    if dots is not None:
        _bar(figure, dots, texts, "sampling_weight", cell=cells[-1, 3])
    text = texts["overview_caption"] if has_points else texts("baseline_caption", method=method)
    return Drawn(figure, add_caption(figure, text, rows[0].scene), {"images": [row.name for row in rows]})


def _draw_row(axes: Sequence[Any], row: Row, high: float, heaviest: float) -> tuple[Any, Any]:
    """Four panels (three for a baseline); what the colour bars of maps and weights need."""
    scene = row.scene
    panels.show_image(axes[0], scene)
    panels.show_image(axes[1], scene)
    panels.draw_truth_and_objects(axes[1], scene, row.objects)
    if row.heat is None:
        panels.show_image(axes[2], scene, dimmed=True)
        panels.say_no_object(axes[2], scene)
        return None, None
    # A baseline's map is of its best detection alone.
    outlined = row.objects[:1] if row.points is None else row.objects
    heat = panels.show_map(axes[2], scene, row.heat.mean(axis=0), scale=(0, high), outlined=outlined)
    if row.points is None:
        return heat, None
    panels.show_image(axes[3], scene, dimmed=True)
    if not row.objects:
        panels.say_no_object(axes[3], scene)
    dots = None
    for one, points in zip(row.objects, row.points, strict=True):
        dots = panels.draw_sampling(axes[3], scene, points, one.box_xyxy, heaviest)
    return heat, dots


def _title(axes: Sequence[Any], row: Row, *titles: str) -> None:
    texts = row.scene.texts
    predicted = texts["predictions" if row.scene.truth is None else "truth_and_predictions"]
    for axis, title in zip(axes, (texts["image"], predicted, *titles), strict=True):
        axis.set_title(title, fontsize=6)


def draw_heads(view: View, *, from_class_token: bool) -> Iterator[Drawn]:
    """Draw attention of the class token, or of the focus, by block (rows) and head (columns), on pages."""
    texts, captured, scene = view.scene.texts, view.attention, view.scene
    tokens = [CLASS_TOKEN] if from_class_token else view.focus_tokens
    blocks = [(layer, *maps.head_maps(captured, layer, tokens)) for layer in view.layers]
    high, num_heads = _high([of_heads for _, of_heads, _ in blocks]), len(blocks[0][1])
    row_cm = min(WIDTH_CM / num_heads, 5.0) * _aspect(scene) + 0.5
    per_page = max(int((MAX_HEIGHT_CM - 2.5) / row_cm), 1)
    text = texts["class_caption"] if from_class_token else texts("patch_caption", focus=view.focus.text)
    focus = {"token": "cls"} if from_class_token else {"token": "patches", **view.focus_facts}
    for page, first in enumerate(range(0, len(blocks), per_page), 1):
        on_page = blocks[first : first + per_page]
        figure = new_figure(min(len(on_page) * row_cm + 2.8, MAX_HEIGHT_CM))
        axes = figure.subplots(len(on_page), num_heads, squeeze=False)
        heat = None
        for (layer, of_heads, to_prefix), row in zip(on_page, axes, strict=True):
            block = texts("block_read" if layer in captured.returned_blocks else "block", block=layer)
            for head, (axis, cells, share) in enumerate(zip(row, of_heads, to_prefix, strict=True)):
                heat = panels.show_map(axis, scene, cells, scale=(0, high), outlined=view.objects)
                if not from_class_token:
                    panels.draw_focus(axis, scene, view.focus.xy)
                title = f"{texts('head', head=head)} [{texts.percent(float(share), 0)}]"
                axis.set_title(title if head else f"{block} · {title}", fontsize=5.5)
        _bar(figure, heat, texts, "attention_share", axes=axes.ravel().tolist(), extend="max")
        caption = add_caption(figure, f"{text} {texts['prefix_note']}", scene)
        facts = {"vit_blocks": [layer for layer, *_ in on_page]} | focus
        yield Drawn(figure, caption, facts, f"_{page}" if page > 1 else "")


def draw_features(view: View) -> Iterator[Drawn]:
    """Draw rollout, patch features as colours, and patches like the focus."""
    texts, captured, scene, colours = view.scene.texts, view.attention, view.scene, view.colours
    if colours is None:
        return
    row_cm = WIDTH_CM / 3 * _aspect(scene) + 0.4
    figure, cells = _grid((row_cm, None, row_cm, None), 3)
    above, below = ([figure.add_subplot(cells[row, column]) for column in range(3)] for row in (0, 2))
    rollouts = [maps.rollout(captured, tokens) for tokens in ([CLASS_TOKEN], view.focus_tokens)]
    heat, scale = None, (0, _high(rollouts))
    for axis, values, title in zip(above, rollouts, ("rollout_class", "rollout_focus"), strict=False):
        heat = panels.show_map(axis, scene, values, texts[title], scale=scale, outlined=view.objects)
    _bar(figure, heat, texts, "attention_share", cell=cells[1, :2], extend="max")
    last = captured.returned_blocks[-1]
    features = captured.features[-1][0].flatten(1).T.float().cpu().numpy()
    shown, foreground = colours.colours(features)
    shown[~foreground] = _BACKGROUND_GREY
    panels.show_map(above[2], scene, shown.reshape(*captured.grid_hw, 3), texts("features_pca", block=last))
    for axis in below:
        axis.axis("off")
    for axis, of_block, block in zip(below, captured.features, captured.returned_blocks, strict=False):
        alike, title = maps.similarity(of_block[0], view.focus.patches), texts("similarity_block", block=block)
        heat = panels.show_map(axis, scene, alike, title, scale=(-1, 1))
        panels.draw_focus(axis, scene, view.focus.xy)
    _bar(figure, heat, texts, "similarity", cell=cells[3, :])
    text = texts(
        "features_caption",
        blocks=len(captured.vit_layers),
        focus=view.focus.text,
        count=colours.num_images,
        explained=texts.percent(sum(colours.explained), 0),
    )
    facts = {"vit_block": last, "pca_images": colours.num_images, "pca_explained": list(colours.explained)}
    yield Drawn(figure, add_caption(figure, text, scene), facts | view.focus_facts)


def draw_objects(view: View) -> Iterator[Drawn]:
    """Draw for each object its sampling points by layer; below the box by layer, the queries it attends to, and its
    edges' distributions."""
    texts, captured, scene = view.scene.texts, view.attention, view.scene
    for one in view.objects:
        points = [maps.sampling_points(captured, layer, one.query) for layer in range(len(captured.cross_attention))]
        window, heaviest = panels.window_of(points, one.box_xyxy), _heaviest(points)
        figure = new_figure(min(WIDTH_CM / len(points) * _aspect(scene, window) + 9.2, MAX_HEIGHT_CM))
        halves = figure.add_gridspec(2, 1)
        layers = halves[0].subgridspec(1, len(points))
        axes = [figure.add_subplot(layers[0, k]) for k in range(len(points))]
        dots = None
        for layer, (axis, of_layer) in enumerate(zip(axes, points, strict=True), 1):
            panels.show_image(axis, scene, texts("layer", layer=layer), dimmed=True)
            dots = panels.draw_sampling(axis, scene, of_layer, one.box_xyxy, heaviest)
            panels.zoom(axis, scene, window)
        _bar(figure, dots, texts, "sampling_weight", axes=axes)
        edges = maps.edge_distributions(captured, one.query)
        _draw_decision(figure, halves[1], view, one, window, edges)
        figure.legend(*panels.level_handles(texts), loc="outside upper center", ncols=4, fontsize=5.5)
        name, score = scene.name(one.label), scene.score(one.score)
        caption = add_caption(figure, texts("object_caption", query=one.query, name=name, score=score))
        stored = {
            side: {key: getattr(edge, key) for key in ("expected", "start", "spread")} for side, edge in edges.items()
        }
        facts = one._asdict() | {"decoder_layers": list(range(1, len(points) + 1)), "edges": stored}
        yield Drawn(figure, caption, facts, str(one.query))


def _draw_decision(
    figure: Figure,
    cell: Any,
    view: View,
    one: PredictedObject,
    window: Sequence[float],
    edges: Mapping[Edge, EdgeDistribution],
) -> None:
    """Refinement | self-attention | four edges."""
    texts, captured, scene = view.scene.texts, view.attention, view.scene
    grid = cell.subgridspec(2, 4, width_ratios=(1.15, 1.15, 1, 1))
    refined, graph = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[:, 1])
    panels.show_image(refined, scene, texts["refinement"], dimmed=True)
    panels.draw_refinement(refined, scene, *maps.box_steps(captured, one.query))
    panels.zoom(refined, scene, window)
    layer = len(captured.query_attention) - 1
    shares = maps.query_attention(captured, layer, one.query)
    own = texts("self_attention_to_itself", share=texts.percent(float(shares[one.query]), 0))
    panels.show_image(graph, scene, f"{texts('self_attention', layer=layer + 1)}\n({own})", dimmed=True)
    centres = captured.outputs["pred_boxes"][0, :, :2].cpu().numpy()
    lines = panels.draw_query_graph(graph, scene, one.query, shares, centres)
    _bar(figure, lines, texts, "attention_share", axes=[graph])
    truth = _matching_truth(scene, one)
    for place, (side, edge) in enumerate(edges.items()):
        axes = figure.add_subplot(grid[place // 2, 2 + place % 2])
        panels.draw_edge(axes, scene, side, edge, None if truth is None else float(truth[place]))
        if place % 2 == 0:
            axes.set_ylabel(texts["probability"], fontsize=6)


def _matching_truth(scene: Scene, one: PredictedObject) -> FloatArray | None:
    """The annotated box that overlaps most with an object (IoU 0.5 at least), in pixels."""
    if not scene.truth:
        return None
    boxes = np.stack([box for box, _ in scene.truth]).astype(np.float64)
    overlap = paired_iou(torch.from_numpy(boxes), torch.from_numpy(scene.in_pixels(one.box_xyxy)))
    best = int(overlap.argmax())
    return boxes[best] if overlap[best] >= _SAME_OBJECT_IOU else None


def draw_evidence(view: View, methods: Sequence[str]) -> Iterator[Drawn]:
    """Draw one row an object: where it is, and some of its maps, all taken at one layer of the detector."""
    if not view.evidence:
        return
    scene, texts, names = view.scene, view.scene.texts, texts_of(view.scene.texts.language, "attention_methods")
    columns = 1 + len(methods)
    row_cm = WIDTH_CM / columns * min(_aspect(scene), 1.3) + 0.5
    figure, cells = _grid([*[row_cm] * len(view.objects), None], columns)
    heat = None
    for place, (one, by_method) in enumerate(zip(view.objects, view.evidence, strict=True)):
        first, *row = [figure.add_subplot(cells[place, column]) for column in range(columns)]
        panels.show_image(first, scene, texts("query" if view.captured else "detection", query=one.query))
        panels.draw_truth_and_objects(first, scene, [one])
        for method, axis in zip(methods, row, strict=True):
            heat = panels.show_map(axis, scene, by_method[method], names[method], outlined=[one])
    _bar(figure, heat, texts, "relative_evidence", cell=cells[-1, 1:])
    layer, queries = view.evidence_layer, [one.query for one in view.objects]
    facts = {"queries": queries, "methods": list(methods), "layer": layer}
    caption = "edges_caption" if set(methods) <= set(ODAM_EDGES) else "evidence_caption"
    yield Drawn(figure, add_caption(figure, texts(caption, layer=layer), scene), facts)


def _grid(heights_cm: Sequence[float | None], columns: int) -> tuple[Figure, Any]:
    """A figure with a grid of rows of these heights, and a caption below; None: a row of colour bars."""
    total_cm = sum(_BAR_CM if height is None else height for height in heights_cm) + _CAPTION_CM
    figure = new_figure(min(total_cm, MAX_HEIGHT_CM))
    ratios = [_BAR_THICK_CM if height is None else height for height in heights_cm]
    return figure, figure.add_gridspec(len(ratios), columns, height_ratios=ratios)


def _heaviest(points: Sequence[SamplingPoints]) -> float:
    return max((float(one.weights.max()) for one in points), default=1.0)


def _high(values: Sequence[MapArray]) -> float:
    """The bright end of a shared scale."""
    return float(np.percentile(np.concatenate([np.ravel(one) for one in values]), _SCALE_PERCENTILE))


def _aspect(scene: Scene, window: Sequence[float] = (0, 0, 1, 1)) -> float:
    """Height over width of a panel, within bounds: a strip of steel may be 20 times as long as wide."""
    left, top, right, bottom = scene.in_pixels(window)
    return float(np.clip((bottom - top) / max(right - left, 1), 0.3, 1.6))


def _bar(
    figure: Figure,
    drawn: Any,
    texts: Texts,
    label: str,
    *,
    cell: Any = None,
    axes: Sequence[Any] = (),
    extend: str = "neither",
) -> None:
    """A colour bar in a cell of its own, so that panels beside each other stay level, or below `axes`, which all make
    room for it."""
    if cell is None:
        bar = figure.colorbar(drawn, ax=axes, location="bottom", aspect=40, pad=0.02, fraction=0.05, extend=extend)
    else:
        bar = figure.colorbar(drawn, cax=figure.add_subplot(cell), orientation="horizontal", extend=extend)
    bar.set_label(texts[label], fontsize=6)
    bar.ax.tick_params(labelsize=5.5)
    bar.ax.grid(False)
    bar.formatter = AxisNumbers(texts.language)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.outline.set_linewidth(0.4)


def add_caption(figure: Figure, text: str, with_maps: Scene | None = None) -> str:
    """Write the caption below a figure and return it; of a figure with maps it says how they lie."""
    if with_maps is not None and with_maps.overlay:
        text = f"{text} {with_maps.texts['overlay_note']}"
    figure.supxlabel(textwrap.fill(text, 132), x=0.01, ha="left", fontsize=6)
    return text
