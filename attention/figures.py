"""The attention figures: panels put together, with a caption that says what may be read into them.

Blocks and heads of the ViT count from 0, as in the config; decoder layers from 1, because 0 is the encoder's proposal.

Legend: M heads of the ViT, L decoder layers, Q queries, C classes.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.style import MAX_HEIGHT_CM, WIDTH_CM, AxisNumbers, new_figure
from analysis.tables import Table
from attention.backbone_maps import CLASS_TOKEN, HeadMaps, PatchColours, head_maps, rollout, similarity
from attention.capture import Captured
from attention.decoder_maps import (
    SamplingPoints,
    box_steps,
    edge_distributions,
    object_attention,
    query_attention,
    sampling_points,
)
from attention.objects import PredictedObject
from attention.panels import (
    COLOUR_MAP,
    Scene,
    bare,
    draw_edge,
    draw_focus,
    draw_query_graph,
    draw_refinement,
    draw_sampling,
    draw_truth_and_objects,
    level_handles,
    outline_objects,
    say_no_object,
    show_colours,
    show_image,
    show_map,
    window_of,
    zoom,
)
from attention.wording import Wording
from models.boxes import paired_iou

FloatArray = NDArray[np.float32]

OVERVIEW_ROWS = 5
_BACKGROUND_GREY = 0.6
_BAR_CM, _BAR_THICK_CM = 1.1, 0.22
"""A colour bar with its numbers, and without."""
_CAPTION_CM = 1.8
_SCALE_PERCENTILE = 99.5
"""Of all values of a figure: a few patches that soak up attention must not turn all the others black."""
_MATRIX_QUERIES = 8
_SAME_OBJECT_IOU = 0.5


@dataclass(frozen=True)
class Focus:
    """The patches whose attention and similarity are shown."""

    patches: tuple[int, ...]
    """Row by row, without prefix tokens."""
    centre_xy: tuple[float, float]
    """0..1 over the image."""
    text: str
    """As captions say it."""


@dataclass(frozen=True)
class View:
    """One image and what DEIMv2 did with it."""

    scene: Scene
    captured: Captured
    everything: Sequence[PredictedObject]
    """All queries, best first."""
    objects: Sequence[PredictedObject]
    """Those to draw."""
    focus: Focus
    layers: Sequence[int]
    """ViT blocks to draw."""


@dataclass(frozen=True)
class DrawnView:
    """A figure in memory."""

    name: str
    """End of the file name."""
    figure: Figure
    caption: str
    facts: Mapping[str, Any]
    """What was drawn, for the sidecar: layers, tokens, queries."""
    table: Table | None = None
    """Numbers that belong to it: a CSV and a LaTeX file of the same name."""


@dataclass(frozen=True)
class OverviewRow:
    """What the overview keeps of an image."""

    scene: Scene
    objects: Sequence[PredictedObject]
    maps: HeadMaps | None
    """Of the last read block; None for a baseline."""
    points: Sequence[SamplingPoints]
    """Of the last decoder layer, per object."""
    evidence: FloatArray | None
    """Of the best detection; None without one, and for DEIMv2."""
    name: str


def overview_row(view: View, name: str) -> OverviewRow:
    """The light part of a view."""
    layer = len(view.captured.cross_attention) - 1
    points = [sampling_points(view.captured, layer, one.query) for one in view.objects]
    return OverviewRow(view.scene, view.objects, _focus_maps(view, _last_read(view)), points, None, name)


def draw_main(view: View) -> DrawnView:
    """Image | truth and predictions | mean of the heads | sampling points, and below every head."""
    wording, row = view.scene.wording, overview_row(view, "")
    assert row.maps is not None
    heads = len(row.maps.maps)
    aspect = _aspect(view.scene)
    top_cm, heads_cm = WIDTH_CM / 4 * aspect + 0.5, WIDTH_CM / max(heads, 4) * aspect + 0.5
    figure = new_figure(min(top_cm + heads_cm + _BAR_CM + _CAPTION_CM, MAX_HEIGHT_CM))
    # One grid, in which both four panels and the heads fit: nested ones leave no room for the bars' numbers.
    cells = figure.add_gridspec(3, 4 * heads, height_ratios=(top_cm, heads_cm, _BAR_THICK_CM))
    axes = [figure.add_subplot(cells[0, k * heads : (k + 1) * heads]) for k in range(4)]
    high = _high([row.maps.maps])
    heaviest = max((float(points.weights.max()) for points in row.points), default=1.0)
    heat, dots = _draw_row(axes, row, high, heaviest)
    block, layer = _last_read(view), len(view.captured.cross_attention)
    titles = (
        wording.image,
        wording.truth_and_predictions if view.scene.truth is not None else wording.predictions,
        wording.mean_of_heads.format(block=block),
        wording.sampling.format(layer=layer),
    )
    for one, title in zip(axes, titles, strict=True):
        one.set_title(title, fontsize=6)
    for head in range(heads):
        one = figure.add_subplot(cells[1, 4 * head : 4 * head + 4])
        heat = show_map(one, view.scene, row.maps.maps[head], 0, high)
        outline_objects(one, view.scene, view.objects)
        one.set_title(wording.head.format(head=head), fontsize=6)
    _bar_in(figure, cells[2, : 3 * heads], heat, wording.attention_share, wording, extend="max")
    if dots is not None:
        _bar_in(figure, cells[2, 3 * heads :], dots, wording.sampling_weight, wording)
    caption = _caption(figure, wording.main_caption.format(focus=view.focus.text, block=block, layer=layer))
    return DrawnView("main", figure, caption, {"vit_block": block, "decoder_layer": layer, **_focus_facts(view)})


def draw_overview(rows: Sequence[OverviewRow], page: int, wording: Wording) -> DrawnView:
    """One row an image, as the top of `draw_main`; a baseline's shows evidence in place of attention."""
    has_points, method = rows[0].maps is not None, wording.evidence["grad_cam"]
    columns = 4 if has_points else 3
    rows_cm = [WIDTH_CM / columns * min(_aspect(row.scene), 1.3) for row in rows]
    figure = new_figure(min(sum(rows_cm) + _BAR_CM + _CAPTION_CM, MAX_HEIGHT_CM))
    heights = (*rows_cm, _BAR_THICK_CM)
    cells = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    high = _high([row.maps.maps for row in rows if row.maps is not None]) if has_points else 1.0
    heaviest = max((float(points.weights.max()) for row in rows for points in row.points), default=1.0)
    heat = dots = None
    for place, row in enumerate(rows):
        axes = [figure.add_subplot(cells[place, column]) for column in range(columns)]
        mapped, drawn = _draw_row(axes, row, high, heaviest)
        heat, dots = mapped or heat, drawn or dots
        if place == 0:
            predicted = wording.predictions if row.scene.truth is None else wording.truth_and_predictions
            shown = (wording.attention, wording.sampling_points) if has_points else (method,)
            for one, title in zip(axes, (wording.image, predicted, *shown), strict=True):
                one.set_title(title, fontsize=6)
    if has_points:
        _bar_in(figure, cells[-1, 2], heat, wording.attention_share, wording, extend="max")
    elif heat is not None:
        _bar_in(figure, cells[-1, 2], heat, wording.relative_evidence, wording)
    if dots is not None:
        _bar_in(figure, cells[-1, 3], dots, wording.sampling_weight, wording)
    text = wording.overview_caption if has_points else wording.baseline_caption.format(method=method)
    name = "overview" if page == 0 else f"overview_{page + 1}"
    return DrawnView(name, figure, _caption(figure, text), {"images": [row.name for row in rows]})


def _draw_row(axes: Sequence[Any], row: OverviewRow, high: float, heaviest: float) -> tuple[Any, Any]:
    """Four panels (three for a baseline); what the colour bars of attention and weights need."""
    show_image(axes[0], row.scene)
    show_image(axes[1], row.scene)
    draw_truth_and_objects(axes[1], row.scene, row.objects)
    if row.maps is None:
        if row.evidence is None:
            show_image(axes[2], row.scene, dimmed=True)
            say_no_object(axes[2], row.scene)
            return None, None
        heat = show_map(axes[2], row.scene, row.evidence, 0, 1)
        outline_objects(axes[2], row.scene, row.objects[:1])
        return heat, None
    heat = show_map(axes[2], row.scene, row.maps.maps.mean(axis=0), 0, high)
    outline_objects(axes[2], row.scene, row.objects)
    show_image(axes[3], row.scene, dimmed=True)
    dots = None
    if not row.objects:
        say_no_object(axes[3], row.scene)
    for one, points in zip(row.objects, row.points, strict=True):
        dots = draw_sampling(axes[3], row.scene, points, one.box_xyxy, heaviest)
    return heat, dots


def draw_baseline(row: OverviewRow) -> DrawnView:
    """Image | truth and predictions | evidence of the best detection, for a CNN."""
    drawn = draw_overview([row], 0, row.scene.wording)
    return DrawnView("main", drawn.figure, drawn.caption, {})


def draw_heads(view: View, *, from_class_token: bool) -> list[DrawnView]:
    """Attention of the class token, or of the focus, by block (rows) and head (columns); several pages if need be."""
    wording = view.scene.wording
    maps = [
        head_maps(view.captured, layer, [CLASS_TOKEN]) if from_class_token else _focus_maps(view, layer)
        for layer in view.layers
    ]
    high = _high([one.maps for one in maps])
    heads = maps[0].maps.shape[0]
    row_cm = min(WIDTH_CM / heads, 5.0) * _aspect(view.scene) + 0.5
    per_page = max(int((MAX_HEIGHT_CM - 2.5) / row_cm), 1)
    name = "heads_cls" if from_class_token else "heads_patch"
    text = wording.class_caption if from_class_token else wording.patch_caption.format(focus=view.focus.text)
    pages = []
    for page in range(math.ceil(len(maps) / per_page)):
        rows = slice(page * per_page, (page + 1) * per_page)
        figure = _head_page(view, view.layers[rows], maps[rows], high, row_cm, from_class_token)
        caption = _caption(figure, text + wording.prefix_note)
        facts = {"vit_blocks": list(view.layers[rows]), "token": "cls" if from_class_token else "patches"}
        focus = {} if from_class_token else _focus_facts(view)
        pages.append(DrawnView(name if page == 0 else f"{name}_{page + 1}", figure, caption, facts | focus))
    return pages


def _head_page(
    view: View, layers: Sequence[int], maps: Sequence[HeadMaps], high: float, row_cm: float, from_class_token: bool
) -> Figure:
    wording = view.scene.wording
    figure = new_figure(min(len(layers) * row_cm + 2.8, MAX_HEIGHT_CM))
    axes = figure.subplots(len(layers), maps[0].maps.shape[0], squeeze=False)
    heat = None
    for layer, of_layer, row in zip(layers, maps, axes, strict=True):
        read = layer in view.captured.returned_blocks
        title = (wording.block_read if read else wording.block).format(block=layer)
        for head, one in enumerate(row):
            heat = show_map(one, view.scene, of_layer.maps[head], 0, high)
            outline_objects(one, view.scene, view.objects)
            if not from_class_token:
                draw_focus(one, view.scene, view.focus.centre_xy)
            share = wording.labels.percent(float(of_layer.to_prefix[head]), 0)
            place = f"{title} · " if head == 0 else ""
            one.set_title(f"{place}{wording.head.format(head=head)} [{share}]", fontsize=5.5)
    _colour_bar(figure, heat, axes.ravel().tolist(), wording.attention_share, wording, extend="max")
    return figure


def draw_features(view: View, colours: PatchColours, num_images: int) -> DrawnView:
    """Rollout, patch features as colours, and patches like the focus."""
    wording, captured, scene = view.scene.wording, view.captured, view.scene
    row_cm = WIDTH_CM / 3 * _aspect(scene) + 0.4
    figure = new_figure(min(2 * (row_cm + _BAR_CM) + _CAPTION_CM, MAX_HEIGHT_CM))
    cells = figure.add_gridspec(4, 3, height_ratios=(row_cm, _BAR_THICK_CM, row_cm, _BAR_THICK_CM))
    axes = [[figure.add_subplot(cells[row, column]) for column in range(3)] for row in (0, 2)]
    focus = [captured.num_prefix + patch for patch in view.focus.patches]
    rollouts = rollout(captured, [CLASS_TOKEN]), rollout(captured, focus)
    high = _high(rollouts)
    heat = None
    for one, values, title in zip(axes[0], rollouts, (wording.rollout_class, wording.rollout_focus), strict=False):
        heat = show_map(one, scene, values, 0, high)
        outline_objects(one, scene, view.objects)
        one.set_title(title, fontsize=6)
    _bar_in(figure, cells[1, :2], heat, wording.attention_share, wording, extend="max")
    last = captured.returned_blocks[-1]
    show_colours(axes[0][2], scene, colour_map(captured, colours))
    axes[0][2].set_title(wording.features_pca.format(block=last), fontsize=6)
    for one in axes[1]:
        bare(one)
    for one, features, block in zip(axes[1], captured.features, captured.returned_blocks, strict=False):
        heat = show_map(one, scene, similarity(features[0], view.focus.patches), -1, 1)
        draw_focus(one, scene, view.focus.centre_xy)
        one.set_title(wording.similarity_block.format(block=block), fontsize=6)
    _bar_in(figure, cells[3, :], heat, wording.similarity, wording)
    explained = wording.labels.percent(sum(colours.explained), 0)
    text = wording.features_caption.format(
        blocks=len(captured.vit_layers), focus=view.focus.text, count=num_images, explained=explained
    )
    facts = {"vit_block": last, "pca_images": num_images, "pca_explained": list(colours.explained)}
    return DrawnView("features", figure, _caption(figure, text), facts | _focus_facts(view))


def colour_map(captured: Captured, colours: PatchColours) -> FloatArray:
    """Patch features of the last read block as colours, background grey: [Hp, Wp, 3]."""
    features = captured.features[-1][0].flatten(1).T.float().cpu().numpy()
    shown, foreground = colours.colours(features)
    shown[~foreground] = _BACKGROUND_GREY
    return shown.reshape(*captured.grid_hw, 3)


def draw_object(view: View, one: PredictedObject) -> DrawnView:
    """Sampling points by layer; below the box by layer, the queries it attends to, and its edges' distributions."""
    wording, captured, scene = view.scene.wording, view.captured, view.scene
    points = [sampling_points(captured, layer, one.query) for layer in range(len(captured.cross_attention))]
    window = window_of(points, one.box_xyxy)
    figure = new_figure(min(WIDTH_CM / len(points) * _aspect(scene, window) + 9.2, MAX_HEIGHT_CM))
    halves = figure.add_gridspec(2, 1)
    layers = halves[0].subgridspec(1, len(points))
    axes = [figure.add_subplot(layers[0, k]) for k in range(len(points))]
    heaviest = max(float(of_layer.weights.max()) for of_layer in points)
    dots = None
    for layer, (axis, of_layer) in enumerate(zip(axes, points, strict=True)):
        show_image(axis, scene, dimmed=True)
        dots = draw_sampling(axis, scene, of_layer, one.box_xyxy, heaviest)
        zoom(axis, scene, window)
        axis.set_title(wording.sampling_layer.format(layer=layer + 1), fontsize=6)
    _colour_bar(figure, dots, axes, wording.sampling_weight, wording)
    _draw_decision(figure, halves[1], view, one, window)
    figure.legend(*level_handles(scene), loc="outside upper center", ncols=4, fontsize=5.5)
    name = scene.name(one.label)
    caption = wording.object_caption.format(query=one.query, name=name, score=scene.score(one.score))
    return DrawnView(f"object_q{one.query}", figure, _caption(figure, caption), _object_facts(captured, one))


def _object_facts(captured: Captured, one: PredictedObject) -> dict[str, Any]:
    edges = {
        edge.edge: {"expected": edge.expected, "start": edge.start, "spread": edge.spread}
        for edge in edge_distributions(captured, one.query)
    }
    return {
        "query": one.query,
        "label": one.label,
        "score": one.score,
        "box_xyxy": list(one.box_xyxy),
        "decoder_layers": list(range(1, len(captured.cross_attention) + 1)),
        "edges": edges,
    }


def _draw_decision(figure: Figure, cell: Any, view: View, one: PredictedObject, window: Sequence[float]) -> None:
    """Refinement | self-attention | four edges."""
    wording, captured, scene = view.scene.wording, view.captured, view.scene
    grid = cell.subgridspec(2, 4, width_ratios=(1.15, 1.15, 1, 1))
    refined, graph = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[:, 1])
    show_image(refined, scene, dimmed=True)
    draw_refinement(refined, scene, box_steps(captured, one.query))
    zoom(refined, scene, window)
    refined.set_title(wording.refinement, fontsize=6)
    layer = len(captured.query_attention) - 1
    shares = query_attention(captured, layer, one.query)
    show_image(graph, scene, dimmed=True)
    lines = draw_query_graph(graph, scene, one.query, shares, captured.outputs["pred_boxes"][0, :, :2].cpu().numpy())
    own = wording.self_attention_to_itself.format(share=wording.labels.percent(float(shares[one.query]), 0))
    graph.set_title(f"{wording.self_attention.format(layer=layer + 1)}\n({own})", fontsize=6)
    _colour_bar(figure, lines, [graph], wording.attention_share, wording)
    truth = _matching_truth(scene, one)
    for place, edge in enumerate(edge_distributions(captured, one.query)):
        axes = figure.add_subplot(grid[place // 2, 2 + place % 2])
        draw_edge(axes, scene, edge, None if truth is None else float(truth[place]))
        if place % 2 == 0:
            axes.set_ylabel(wording.probability, fontsize=6)


def _matching_truth(scene: Scene, one: PredictedObject) -> NDArray[np.float64] | None:
    """The annotated box that overlaps most with an object (IoU 0.5 at least), in pixels."""
    if scene.truth is None or not len(scene.truth.boxes_xyxy):
        return None
    boxes = scene.truth.boxes_xyxy.astype(np.float64)
    overlap = paired_iou(torch.from_numpy(boxes), torch.from_numpy(scene.in_pixels(one.box_xyxy)))
    best = int(overlap.argmax())
    return boxes[best] if overlap[best] >= _SAME_OBJECT_IOU else None


def draw_queries(view: View) -> DrawnView:
    """Who attends to whom among the best queries, one matrix a decoder layer."""
    wording = view.scene.wording
    chosen = dict.fromkeys(one.query for one in (*view.objects, *view.everything[:_MATRIX_QUERIES]))
    queries = list(chosen)[: max(_MATRIX_QUERIES, len(view.objects))]
    by_query = {one.query: one for one in view.everything}
    matrices = object_attention(view.captured, queries)
    figure = new_figure(min(WIDTH_CM * 0.85 / max(len(matrices), 3) + 3.2, MAX_HEIGHT_CM))
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    high, drawn = float(matrices.max()), None
    names = [
        f"{query} {view.scene.name(by_query[query].label)} {view.scene.score(by_query[query].score)}"
        for query in queries
    ]
    for layer, (axis, matrix) in enumerate(zip(axes, matrices, strict=True)):
        drawn = axis.imshow(matrix, cmap=COLOUR_MAP, vmin=0, vmax=high)
        axis.grid(False)
        axis.set_title(wording.self_attention_layer.format(layer=layer + 1), fontsize=6)
        axis.set_xticks(range(len(queries)), [str(query) for query in queries], fontsize=5, rotation=90)
        axis.set_yticks(range(len(queries)), names if layer == 0 else [""] * len(names), fontsize=5)
    _colour_bar(figure, drawn, axes.tolist(), wording.attention_share, wording)
    return DrawnView("queries", figure, _caption(figure, wording.queries_caption), {"queries": queries})


@dataclass(frozen=True)
class ObjectEvidence:
    """What the class score of one object rests on."""

    object: PredictedObject
    maps: Mapping[str, FloatArray]
    """Method -> [h, w], >= 0."""


def draw_evidence(scene: Scene, evidence: Sequence[ObjectEvidence], layer: str, title: str) -> DrawnView:
    """One row an object: where it is, and a map a method, all taken at one layer of the detector.

    `title` is the wording's `query` or, for a baseline, `detection`.
    """
    wording = scene.wording
    methods = list(evidence[0].maps)
    columns = 1 + len(methods)
    row_cm = WIDTH_CM / columns * min(_aspect(scene), 1.3) + 0.5
    figure = new_figure(min(len(evidence) * row_cm + _BAR_CM + _CAPTION_CM, MAX_HEIGHT_CM))
    heights = (*[row_cm] * len(evidence), _BAR_THICK_CM)
    cells = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    heat = None
    for place, one in enumerate(evidence):
        row = [figure.add_subplot(cells[place, column]) for column in range(columns)]
        show_image(row[0], scene)
        draw_truth_and_objects(row[0], scene, [one.object])
        row[0].set_title(title.format(query=one.object.query), fontsize=6)
        for method, axis in zip(methods, row[1:], strict=True):
            heat = show_map(axis, scene, one.maps[method] / max(float(one.maps[method].max()), 1e-12), 0, 1)
            outline_objects(axis, scene, [one.object])
            axis.set_title(wording.evidence[method], fontsize=6)
    _bar_in(figure, cells[-1, 1:], heat, wording.relative_evidence, wording)
    facts = {"queries": [one.object.query for one in evidence], "methods": methods, "layer": layer}
    return DrawnView("evidence", figure, _caption(figure, wording.evidence_caption.format(layer=layer)), facts)


def _last_read(view: View) -> int:
    return view.captured.returned_blocks[-1]


def _focus_maps(view: View, layer: int) -> HeadMaps:
    return head_maps(view.captured, layer, [view.captured.num_prefix + patch for patch in view.focus.patches])


def _focus_facts(view: View) -> dict[str, Any]:
    return {"focus": view.focus.text, "focus_patches": list(view.focus.patches), "grid_hw": list(view.captured.grid_hw)}


def _high(maps: Sequence[FloatArray]) -> float:
    """The bright end of a shared scale."""
    return float(np.percentile(np.concatenate([np.ravel(one) for one in maps]), _SCALE_PERCENTILE))


def _aspect(scene: Scene, window: Sequence[float] = (0, 0, 1, 1)) -> float:
    """Height over width of a panel, within bounds: a strip of steel may be 20 times as long as wide."""
    left, top, right, bottom = scene.in_pixels(window)
    return float(np.clip((bottom - top) / max(right - left, 1), 0.3, 1.6))


def _colour_bar(
    figure: Figure, drawn: Any, axes: Sequence[Any], text: str, wording: Wording, extend: str = "neither"
) -> None:
    """Below panels that all make room for it."""
    bar = figure.colorbar(drawn, ax=list(axes), location="bottom", aspect=40, pad=0.02, fraction=0.05, extend=extend)
    _finish_bar(bar, text, wording)


def _bar_in(figure: Figure, cell: Any, drawn: Any, text: str, wording: Wording, extend: str = "neither") -> None:
    """In a cell of its own, so that panels beside each other stay level."""
    axes = figure.add_subplot(cell)
    _finish_bar(figure.colorbar(drawn, cax=axes, orientation="horizontal", extend=extend), text, wording)


def _finish_bar(bar: Any, text: str, wording: Wording) -> None:
    bar.set_label(text, fontsize=6)
    bar.ax.tick_params(labelsize=5.5)
    bar.ax.grid(False)
    bar.formatter = AxisNumbers(wording.labels)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.outline.set_linewidth(0.4)


def _caption(figure: Figure, text: str) -> str:
    figure.supxlabel(textwrap.fill(text, 132), x=0.01, ha="left", fontsize=6)
    return text
