"""The figures of an evaluation, each as PNG and as PDF.

Legend: K classes, S score thresholds, R recall points, as in `analysis/result.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.labels import Labels, Language, labels_of
from analysis.result import ERROR_KINDS, Analysis, ClassAnalysis, Interval, Threshold
from analysis.style import (
    FAINT,
    FOUND_COLOUR,
    HATCHES,
    INK,
    MAX_HEIGHT_CM,
    MAX_NAMED_CLASSES,
    TRUTH_COLOUR,
    AxisNumbers,
    FigureFiles,
    class_line,
    figure_style,
    new_figure,
    save_figure,
    tidy,
)

FloatArray = NDArray[np.float64]

_NAME_CHARACTERS = 24
_RECALLS = np.linspace(0, 1, 101)
_LARGEST_ANNOTATED_MATRIX = 16
_MAX_SIZE_LABELS = 12
_COCO_SIZES_PX = (32, 96)
_LINTHRESH = 0.1
_MEAN_STYLE: dict[str, Any] = {"color": INK, "linewidth": 2.2, "zorder": 3}


@dataclass(frozen=True)
class DrawnFigure:
    """A figure in memory. Fields as in `FigureFiles`."""

    name: str
    title: str
    description: str
    figure: Figure


def write_figures(analysis: Analysis, folder: Path, lang: Language) -> list[FigureFiles]:
    """Draw every figure and write it as `<name>.png` (200 dpi) and `<name>.pdf` (text as text) into `folder`.

    What has nothing to show (no ground truth, no clean images, ...) says so in its place.

    Raises:
        UserError: The folder cannot be written.
    """
    labels = labels_of(lang)
    files = []
    with figure_style():
        for draw in DRAWERS.values():  # one at a time: a figure of 80 classes is large
            drawn = draw(analysis, labels)
            png, pdf = save_figure(drawn.figure, folder, drawn.name)
            files.append(FigureFiles(drawn.name, drawn.title, drawn.description, png, pdf))
    return files


def draw_precision_recall(analysis: Analysis, labels: Labels) -> DrawnFigure:
    """Per class and mean, at IoU 0.5, 0.75 and averaged; the fourth panel is the legend."""
    figure = new_figure(13.0)
    axes = figure.subplots(2, 2).ravel()
    titles = (f"IoU {labels.number(0.5, 2)}", f"IoU {labels.number(0.75, 2)}", labels.pr_mean_iou)
    measured = [c for c in analysis.per_class if np.isfinite(c.precision_at_recall).any()]
    lines: dict[str, Any] = {}
    for row, (axis, title) in enumerate(zip(axes, titles, strict=False)):
        _fraction_axes(axis, labels, labels.recall, labels.precision)
        axis.set_title(title)
        lines = _class_lines(axis, [(c, _RECALLS, c.precision_at_recall[row]) for c in measured], labels)
        if len(measured) > 1:
            mean = _nan_mean(np.stack([c.precision_at_recall[row] for c in measured]))
            lines[labels.mean_of_classes] = axis.plot(_RECALLS, mean, **_MEAN_STYLE)[0]
        if not measured:
            _say(axis, labels.no_ground_truth)
    axes[3].axis("off")
    if lines:
        axes[3].legend(lines.values(), lines.keys(), loc="center", handlelength=3.5)
    description = labels.pr_alt.format(
        classes=len(analysis.per_class),
        **{key.lower(): labels.number(analysis.metrics.get(key)) for key in ("AP", "AP50", "AP75")},
    )
    return DrawnFigure("precision_recall", labels.pr_title, description, figure)


def draw_f1(analysis: Analysis, labels: Labels) -> DrawnFigure:
    """F1 of each class (left); precision, recall and F1 of all together with the best threshold (right)."""
    figure = new_figure(8.5)
    left, right = figure.subplots(1, 2)
    measured = [c for c in analysis.per_class if c.num_gt > 0 and np.isfinite(c.curves.f1).any()]
    _fraction_axes(left, labels, labels.score_threshold, labels.f1)
    lines = _class_lines(left, [(c, c.curves.scores, c.curves.f1) for c in measured], labels)
    if len(measured) <= MAX_NAMED_CLASSES:
        for one in measured:
            if one.best is not None:
                left.plot([one.best.score], [one.best.f1], "*", markersize=7, color=class_line(one.label)["color"])
    curves, best = analysis.curves, analysis.best
    _fraction_axes(right, labels, labels.score_threshold, "")
    together = [
        right.plot(curves.scores, values, label=name, **style)[0]
        for values, name, style in (
            (curves.precision, labels.precision, {"color": TRUTH_COLOUR, "linestyle": "--"}),
            (curves.recall, labels.recall, {"color": FOUND_COLOUR, "linestyle": "-."}),
            (curves.f1, labels.f1, _MEAN_STYLE),
        )
    ]
    left.set_title(labels.f1_each_class)
    best_text = labels.f1_no_best
    if best is not None:
        right.plot([best.score], [best.f1], "*", markersize=10, color=INK, markerfacecolor="white", zorder=4)
        for axis in (left, right):
            axis.axvline(best.score, color=INK, linestyle=":", linewidth=0.9)
        best_text = labels.f1_best.format(f1=labels.number(best.f1, 2), score=labels.number(best.score, 2))
    right.set_title(f"{labels.all_classes}\n{best_text}")
    if not measured:
        for axis in (left, right):
            _say(axis, labels.no_ground_truth)
    # Below both panels: inside either it would hide a curve of some detector.
    handles, names = [*lines.values(), *together], [*lines, *(line.get_label() for line in together)]
    figure.legend(handles, names, loc="outside lower center", ncols=4, handlelength=3.5)
    return DrawnFigure("f1", labels.f1_title, labels.f1_alt.format(**_threshold_texts(best, labels)), figure)


def draw_confusion(analysis: Analysis, labels: Labels) -> DrawnFigure:
    """Each row divided by its sum."""
    counts = analysis.confusion.counts
    sums = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, sums, out=np.full(counts.shape, np.nan), where=sums > 0)
    figure = _matrix(
        analysis, labels, shares, lambda v: labels.number(v, 2), PowerNorm(1, 0, 1), labels.confusion_share
    )
    return DrawnFigure(
        "confusion", labels.confusion_title, _confusion_text(analysis, labels, labels.confusion_alt), figure
    )


def draw_confusion_counts(analysis: Analysis, labels: Labels) -> DrawnFigure:
    """How often."""
    counts = analysis.confusion.counts.astype(np.float64)
    # The square root keeps rare confusions visible beside a frequent class.
    scale = PowerNorm(0.5, 0, max(float(counts.max(initial=0)), 1.0))
    figure = _matrix(analysis, labels, counts, lambda v: labels.integer(round(v)), scale, labels.count)
    text = _confusion_text(analysis, labels, labels.confusion_counts_alt)
    return DrawnFigure("confusion_counts", labels.confusion_counts_title, text, figure)


def draw_errors(analysis: Analysis, labels: Labels) -> DrawnFigure:
    """AP50 cost and number of each kind of error."""
    figure = new_figure(6.5)
    left, right = figure.subplots(1, 2, sharey=True)
    errors = analysis.errors
    places = np.arange(len(ERROR_KINDS))
    cost = np.nan_to_num([float(errors.ap50_cost.get(kind, np.nan)) for kind in ERROR_KINDS])
    counts = np.array([errors.counts.get(kind, 0) for kind in ERROR_KINDS], dtype=np.float64)
    cost_texts = [labels.number(value) for value in cost.tolist()]
    count_texts = [labels.integer(int(value)) for value in counts.tolist()]
    for axis, values, colour, texts, title, least in (
        (left, cost, FOUND_COLOUR, cost_texts, labels.errors_cost, 1e-2),
        (right, counts, TRUTH_COLOUR, count_texts, labels.errors_count, 1.0),
    ):
        bars = axis.barh(places, values, color="white", edgecolor=colour, linewidth=0.9)
        for bar, hatch in zip(bars, HATCHES, strict=True):
            bar.set_hatch(hatch)
        axis.bar_label(bars, texts, padding=3, fontsize=7)
        axis.set_xlabel(title)
        # Room for the numbers beside the bars.
        axis.set_xlim(min(float(values.min()) * 1.3, 0.0), max(float(values.max()) * 1.25, least))
        axis.xaxis.set_major_formatter(AxisNumbers(labels))
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
    left.set_yticks(places, [labels.error_kinds[kind] for kind in ERROR_KINDS])
    left.invert_yaxis()
    if errors.base_ap50 is None:
        left.set_title(labels.no_ground_truth)
    items = "; ".join(
        f"{labels.error_kinds[kind]}: {cost_texts[k]}, {count_texts[k]}" for k, kind in enumerate(ERROR_KINDS)
    )
    return DrawnFigure("errors", labels.errors_title, labels.errors_alt.format(items=items), figure)


def draw_image_level(analysis: Analysis, labels: Labels) -> DrawnFigure:
    """What a factory asks: how often does it cry wolf, and how often does it miss?"""
    level = analysis.image_level
    figure = new_figure(7.0)
    left, right = figure.subplots(1, 2)
    alarms = level.false_alarms_per_clean_image
    _fraction_axes(left, labels, labels.score_threshold, "")
    left.set_title(labels.image_level_false_alarms)
    # From hundreds (no threshold) down to a hundredth (what a line can bear), and 0 has its place.
    left.set_yscale("symlog", linthresh=_LINTHRESH, linscale=0.5)
    left.set_ylim(0, max(float(np.nanmax(alarms, initial=0.0)) * 1.5, 1.0))
    left.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace(".", labels.decimal_mark))
    left.plot(level.scores, alarms, color=FOUND_COLOUR, linestyle="-", drawstyle="steps-pre")
    _fraction_axes(right, labels, labels.score_threshold, "")
    right.set_title(labels.image_level_miss_rate)
    right.plot(level.scores, level.miss_rate, color=TRUTH_COLOUR, linestyle="--", drawstyle="steps-pre")
    said = (
        (left, level.num_clean, labels.image_level_no_clean),
        (right, level.num_defective, labels.image_level_no_defective),
    )
    for axis, images, text in said:
        if not images:
            _say(axis, text)
    best = analysis.best
    if best is not None:
        text = f"{labels.best_threshold}: {labels.number(best.score, 2)}"
        line = {"color": INK, "linestyle": ":", "linewidth": 0.9}
        lines = [axis.axvline(best.score, **line) for axis, images, _ in said if images]
        figure.legend(lines[:1], [text] * len(lines[:1]), loc="outside lower center")
    auroc = labels.number(level.auroc)
    if level.auroc_interval is not None:
        auroc += f" {labels.interval(level.auroc_interval)}"
    title = labels.image_level_title.format(auroc=auroc)
    figure.suptitle(title)
    description = labels.image_level_alt.format(
        clean=labels.integer(level.num_clean), defective=labels.integer(level.num_defective), auroc=auroc
    )
    return DrawnFigure("image_level", title, description, figure)


def draw_sizes(analysis: Analysis, labels: Labels) -> DrawnFigure:
    """Annotated and found boxes by size (top), share found (bottom). Every bin has the same width on paper."""
    sizes = analysis.sizes
    figure = new_figure(9.5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    bins = np.arange(len(sizes.ground_truth), dtype=np.float64)
    share = np.divide(
        sizes.found, sizes.ground_truth, out=np.full(len(bins), np.nan), where=np.asarray(sizes.ground_truth) > 0
    )
    top.bar(bins + 0.31, sizes.ground_truth, 0.36, color="white", edgecolor=INK, label=labels.sizes_annotated)
    top.bar(bins + 0.69, sizes.found, 0.36, color=TRUTH_COLOUR, edgecolor=INK, hatch="////", label=labels.sizes_found)
    top.set_ylabel(labels.sizes_boxes)
    top.set_ylim(0, max(float(np.max(sizes.ground_truth, initial=0)) * 1.1, 1.0))
    top.yaxis.set_major_formatter(AxisNumbers(labels))
    top.legend(loc="best")
    bottom.plot(bins + 0.5, share, color=FOUND_COLOUR, marker="o")
    bottom.set(xlabel=labels.sizes_axis, ylabel=labels.sizes_share_found, ylim=(-0.03, 1.03))
    bottom.yaxis.set_major_formatter(AxisNumbers(labels))
    edges = np.asarray(sizes.edges_px, dtype=np.float64)
    shown = np.arange(0, len(edges), max(-(-len(edges) // _MAX_SIZE_LABELS), 1))
    bottom.set_xticks(shown, [labels.number(edges[k], _edge_decimals(edges[k])) for k in shown])
    bottom.set_xlim(0, max(len(bins), 1))
    finite = np.isfinite(edges)
    for size in _COCO_SIZES_PX:
        if finite.any() and edges[finite][0] < size < edges[finite][-1]:
            for axis in (top, bottom):
                axis.axvline(np.interp(size, edges[finite], np.flatnonzero(finite)), color=INK, ls=":", lw=0.9)
    if not np.any(sizes.ground_truth):
        _say(top, labels.no_ground_truth)
    description = labels.sizes_alt.format(
        found=labels.integer(int(np.sum(sizes.found))), total=labels.integer(int(np.sum(sizes.ground_truth)))
    )
    return DrawnFigure("sizes", labels.sizes_title, description, figure)


def draw_class_ap(analysis: Analysis, labels: Labels) -> DrawnFigure:
    """AP and AP50 of each class with their intervals, and the means."""
    classes = analysis.per_class
    figure = new_figure(min(max(0.75 * len(classes) + 2.5, 4.5), MAX_HEIGHT_CM))
    axis = figure.subplots()
    kinds = (("AP", -0.17, TRUTH_COLOUR, "o", TRUTH_COLOUR, "-"), ("AP50", 0.17, FOUND_COLOUR, "s", "white", "--"))
    for key, offset, colour, marker, fill, dashes in kinds:
        values = np.array([_or_nan(c.metrics.get(key)) for c in classes])
        places = np.arange(len(classes)) + offset
        lows, highs = np.array([c.intervals.get(key) or (np.nan, np.nan) for c in classes]).reshape(-1, 2).T
        axis.hlines(places, lows, highs, color=colour, linewidth=1.1, linestyle=dashes)
        axis.plot(np.r_[lows, highs], np.r_[places, places], "|", color=colour, markersize=4)
        axis.plot(values, places, marker, color=colour, markerfacecolor=fill, label=key, zorder=3)
        mean = analysis.metrics.get(key)
        if mean is not None:
            name = f"{key}, {labels.mean} ({labels.number(mean, 2)})"
            axis.axvline(mean, color=colour, linestyle=dashes, linewidth=0.8, label=name)
    names = [tidy(c.name, _NAME_CHARACTERS) for c in classes]
    axis.set_yticks(np.arange(len(classes)), names, fontsize=7 if len(classes) <= 30 else 5)
    axis.set(xlim=(0, 1), ylim=(len(classes) - 0.4, -0.6), xlabel=labels.class_ap_axis)
    axis.xaxis.set_major_formatter(AxisNumbers(labels))
    for place, one in enumerate(classes):
        if one.metrics.get("AP") is None:
            axis.text(0.01, place, labels.no_ground_truth, va="center", fontsize=6, color=FAINT)
    figure.legend(loc="outside upper center", ncols=4, handlelength=3)
    items = "; ".join(f"{name}: AP {_with_interval(c, 'AP', labels)}" for name, c in zip(names, classes, strict=True))
    return DrawnFigure("class_ap", labels.class_ap_title, labels.class_ap_alt.format(items=items), figure)


DRAWERS: Mapping[str, Callable[[Analysis, Labels], DrawnFigure]] = {
    "precision_recall": draw_precision_recall,
    "f1": draw_f1,
    "class_ap": draw_class_ap,
    "confusion": draw_confusion,
    "confusion_counts": draw_confusion_counts,
    "errors": draw_errors,
    "image_level": draw_image_level,
    "sizes": draw_sizes,
}
"""Name -> function, in the order of the report. To be called inside `figure_style`."""


def _class_lines(
    axis: Any, curves: Sequence[tuple[ClassAnalysis, FloatArray, FloatArray]], labels: Labels
) -> dict[str, Any]:
    """One line a class (class, xs, ys); legend text -> line. Too many to tell apart are all grey under one text."""
    if len(curves) > MAX_NAMED_CLASSES:
        lines = [axis.plot(xs, ys, color=FAINT, linewidth=0.5, alpha=0.6)[0] for _, xs, ys in curves]
        return {labels.classes_together.format(count=len(curves)): lines[0]}
    named = {}
    for place, (one, xs, ys) in enumerate(curves):
        # Marks at different places of different lines, so that they do not hide one another.
        step = max(len(xs) // 6, 1)
        (line,) = axis.plot(xs, ys, markevery=(place * step // len(curves), step), **class_line(one.label))
        name = tidy(one.name, _NAME_CHARACTERS)
        # matplotlib hides names that begin with an underscore; two classes may share a name.
        name = f"\u200b{name}" if name.startswith("_") else name
        named[f"{name} ({one.label})" if name in named else name] = line
    return named


def _matrix(
    analysis: Analysis,
    labels: Labels,
    values: FloatArray,
    text_of: Callable[[float], str],
    scale: PowerNorm,
    scale_title: str,
) -> Figure:
    """A shaded table [K + 1, K + 1] with names at its sides; numbers in the cells where they are legible."""
    confusion = analysis.confusion
    count = len(values)
    figure = new_figure(float(np.clip(0.95 * count + 4.0, 8.0, 17.0)))
    axis = figure.subplots()
    mesh = axis.pcolormesh(
        np.ma.masked_invalid(values),
        cmap="Blues",
        norm=scale,
        edgecolors="#cccccc",
        linewidth=0.3 if count <= 40 else 0,
    )
    figure.colorbar(mesh, ax=axis, label=scale_title, format=AxisNumbers(labels), shrink=0.8)
    names = [tidy(name, _NAME_CHARACTERS) for name in confusion.names]
    size = 7 if count <= 12 else 6 if count <= 25 else 4
    places = np.arange(count) + 0.5
    axis.set_xticks(places, [*names, labels.confusion_missed], fontsize=size)
    slanted = {"rotation": 45, "rotation_mode": "anchor", "ha": "right"}
    for text in axis.get_xticklabels():
        text.set(**slanted if count <= _LARGEST_ANNOTATED_MATRIX else {"rotation": 90})
    axis.set_yticks(places, [*names, labels.confusion_background], fontsize=size)
    axis.invert_yaxis()
    axis.grid(False)
    axis.set(xlabel=labels.confusion_predicted, ylabel=labels.confusion_true)
    setting = {"iou": labels.number(confusion.iou, 2), "score": labels.number(confusion.score, 2)}
    axis.set_title(labels.confusion_setting.format(**setting))
    if count <= _LARGEST_ANNOTATED_MATRIX:
        _write_cells(axis, values, text_of, scale)
    return figure


def _write_cells(axis: Any, values: FloatArray, text_of: Callable[[float], str], scale: PowerNorm) -> None:
    """Numbers other than 0, white on dark cells. Background taken for nothing is not a thing that is counted."""
    last = len(values) - 1
    size = 7 if last < 9 else 5
    for row, column in np.ndindex(values.shape):
        value = float(values[row, column])
        if np.isnan(value) or value == 0 or row == column == last:
            continue
        colour = "white" if float(scale(value)) > 0.55 else INK
        axis.text(column + 0.5, row + 0.5, text_of(value), ha="center", va="center", color=colour, fontsize=size)
    axis.text(last + 0.5, last + 0.5, "–", ha="center", va="center", color=FAINT, fontsize=size)


def _confusion_text(analysis: Analysis, labels: Labels, template: str) -> str:
    confusion = analysis.confusion
    annotated = confusion.counts[:-1]
    return template.format(
        classes=len(confusion.names),
        iou=labels.number(confusion.iou, 2),
        score=labels.number(confusion.score, 2),
        right=labels.integer(int(np.trace(annotated))),
        total=labels.integer(int(annotated.sum())),
    )


def _fraction_axes(axis: Any, labels: Labels, x: str, y: str) -> None:
    """Both axes from 0 to 1."""
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(AxisNumbers(labels))


def _say(axis: Any, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=FAINT, fontsize=9)


def _nan_mean(rows: FloatArray) -> FloatArray:
    """Mean over rows without NaN; NaN where all are."""
    known = np.isfinite(rows)
    total = np.where(known, rows, 0.0).sum(axis=0)
    count = known.sum(axis=0)
    mean: FloatArray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _edge_decimals(edge: float) -> int:
    return 0 if not np.isfinite(edge) or edge >= 10 or edge == round(edge) else 1


def _with_interval(one: ClassAnalysis, key: str, labels: Labels) -> str:
    interval: Interval | None = one.intervals.get(key)
    value = labels.number(one.metrics.get(key))
    return value if interval is None else f"{value} {labels.interval(interval)}"


def _threshold_texts(best: Threshold | None, labels: Labels) -> dict[str, str]:
    values = dict.fromkeys(Threshold._fields) if best is None else best._asdict()
    return {name: labels.number(value, 2) for name, value in values.items()}
