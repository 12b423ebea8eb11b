"""The figures of an evaluation, each as PNG and as PDF.

Legend: K classes, S score thresholds, R recall points, as in `analysis/analyse.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.analyse import Analysis
from analysis.bootstrap import RECALL_POINTS
from analysis.curves import SCORE_THRESHOLDS
from analysis.errors import ERROR_KINDS
from analysis.style import (
    FAINT,
    FOUND_COLOUR,
    HATCHES,
    INK,
    LARGEST_ANNOTATED,
    MAX_HEIGHT_CM,
    MAX_NAMED_CLASSES,
    NAME_CHARACTERS,
    TRUTH_COLOUR,
    FigureFiles,
    class_line,
    decimal_mark,
    figure_style,
    in_language,
    new_figure,
    save_figure,
    shaded_table,
    tidy,
)
from data.types import FloatArray
from texts import NOTHING, Language, Texts, texts_of

_MAX_SIZE_LABELS = 12
_COCO_SIZES_PX = (32, 96)
_LINTHRESH = 0.1
_MEAN_STYLE: dict[str, Any] = {"color": INK, "linewidth": 2.2, "zorder": 3}
_MARK_STYLE: dict[str, Any] = {"color": INK, "linestyle": ":", "linewidth": 0.9}


class DrawnFigure(NamedTuple):
    """A figure in memory, with what `FigureFiles` says of it."""

    figure: Figure
    title: str
    description: str


def write_figures(analysis: Analysis, folder: Path, lang: Language, *, captions: bool = True) -> list[FigureFiles]:
    """Draw every figure and write it as `<name>.png` (200 dpi) and `<name>.pdf` (text as text) into `folder`.

    What has nothing to show (no ground truth, no clean images, ...) says so in its place. For `captions` see
    `save_figure`.
    """
    texts = texts_of(lang, "figures")
    files = []
    with figure_style():
        for name, draw in DRAWERS.items():  # one at a time: a figure of 80 classes is large
            drawn = draw(analysis, texts)
            text = None if captions else f"{drawn.title}. {drawn.description}"
            png, pdf = save_figure(drawn.figure, folder, name, text_beside=text)
            files.append(FigureFiles(name, drawn.title, drawn.description, png, pdf))
    return files


def draw_precision_recall(analysis: Analysis, texts: Texts) -> DrawnFigure:
    """Draw each class and the mean, at IoU 0.5, 0.75 and averaged; the fourth panel is the legend."""
    figure = new_figure(13.0)
    axes = figure.subplots(2, 2).ravel()
    titles = (f"IoU {texts.number(0.5, 2)}", f"IoU {texts.number(0.75, 2)}", texts["pr_mean_iou"])
    curves = analysis.precision_at_recall
    measured = np.flatnonzero(np.isfinite(curves).any(axis=(1, 2)))
    lines: dict[str, Any] = {}
    for row, (axis, title) in enumerate(zip(axes, titles, strict=False)):
        _fraction_axes(axis, texts, texts["recall"], texts["precision"])
        axis.set_title(title)
        lines = _class_lines(axis, RECALL_POINTS, curves[:, row], measured, analysis, texts)
        if len(measured) > 1:
            mean = curves[measured, row].mean(axis=0)
            (lines[texts["mean_of_classes"]],) = axis.plot(RECALL_POINTS, mean, **_MEAN_STYLE)
        if not len(measured):
            _say(axis, texts["no_ground_truth"])
    axes[3].axis("off")
    if lines:
        axes[3].legend(lines.values(), lines.keys(), loc="center", handlelength=3.5)
    metrics = {key.lower(): texts.number(analysis.results["metrics"][key]) for key in ("AP", "AP50", "AP75")}
    return DrawnFigure(figure, texts["pr_title"], texts("pr_alt", classes=len(curves), **metrics))


def draw_f1(analysis: Analysis, texts: Texts) -> DrawnFigure:
    """Draw F1 of each class (left); precision, recall and F1 of all together with the best threshold (right)."""
    figure = new_figure(8.5)
    left, right = axes = figure.subplots(1, 2)
    thresholds, f1 = analysis.results["thresholds"], analysis.curves[:-1, 2]
    measured = np.flatnonzero(np.isfinite(f1).any(axis=1))
    _fraction_axes(left, texts, texts["score_threshold"], texts["f1"])
    lines = _class_lines(left, SCORE_THRESHOLDS, f1, measured, analysis, texts)
    for label, one in enumerate(thresholds["per_class"].values()):
        if one is not None and len(measured) <= MAX_NAMED_CLASSES:
            left.plot([one["score"]], [one["f1"]], "*", markersize=7, color=class_line(label)["color"])
    _fraction_axes(right, texts, texts["score_threshold"], "")
    styles = {
        "precision": {"color": TRUTH_COLOUR, "linestyle": "--"},
        "recall": {"color": FOUND_COLOUR, "linestyle": "-."},
        "f1": _MEAN_STYLE,
    }
    for values, (name, style) in zip(analysis.curves[-1], styles.items(), strict=True):
        right.plot(SCORE_THRESHOLDS, values, label=texts[name], **style)
    left.set_title(texts["f1_each_class"])
    best, said = thresholds["overall"], texts["f1_no_best"]
    if best is not None:
        right.plot([best["score"]], [best["f1"]], "*", markersize=10, color=INK, markerfacecolor="white", zorder=4)
        for axis in axes:
            axis.axvline(best["score"], **_MARK_STYLE)
        said = texts("f1_best", f1=texts.number(best["f1"], 2), score=texts.number(best["score"], 2))
    right.set_title(f"{texts['all_classes']}\n{said}")
    for axis in () if len(measured) else axes:
        _say(axis, texts["no_ground_truth"])
    # Below both panels: inside either it would hide a curve of some detector.
    of_all, names = right.get_legend_handles_labels()
    figure.legend([*lines.values(), *of_all], [*lines, *names], loc="outside lower center", ncols=4, handlelength=3.5)
    numbers = {key: texts.number(best and best[key], 2) for key in ("score", "f1", "precision", "recall")}
    return DrawnFigure(figure, texts["f1_title"], texts("f1_alt", **numbers))


def draw_confusion(analysis: Analysis, texts: Texts, *, in_counts: bool = False) -> DrawnFigure:
    """Draw the confusion matrix [K + 1, K + 1], each row divided by its sum, or in counts."""
    confusion, name = analysis.results["confusion"], "confusion_counts" if in_counts else "confusion"
    names, counts = confusion["names"], np.array(confusion["counts"], dtype=np.float64)
    columns, rows = [*names, texts["confusion_missed"]], [*names, texts["confusion_background"]]
    if in_counts:
        # The square root keeps rare confusions visible beside a frequent class.
        scale = PowerNorm(0.5, 0, max(float(counts.max(initial=0)), 1.0))
        figure, axis = shaded_table(counts, rows, columns, scale, texts["count"], texts.language, 0)
    else:
        sums = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, sums, out=np.full(counts.shape, np.nan), where=sums > 0)
        figure, axis = shaded_table(shares, rows, columns, Normalize(0, 1), texts["confusion_share"], texts.language)
    if len(names) < LARGEST_ANNOTATED:  # background taken for nothing is not a thing that is counted
        corner = len(names) + 0.5
        axis.text(corner, corner, NOTHING, ha="center", va="center", color=FAINT)
    setting = {key: texts.number(confusion[key], 2) for key in ("iou", "score")}
    title = texts("confusion_setting", **setting)
    axis.set(xlabel=texts["confusion_predicted"], ylabel=texts["confusion_true"], title=title)
    right, total = texts.number(np.trace(counts[:-1]), 0), texts.number(counts[:-1].sum(), 0)
    alt = texts(f"{name}_alt", classes=len(names), right=right, total=total, **setting)
    return DrawnFigure(figure, texts[f"{name}_title"], alt)


def draw_errors(analysis: Analysis, texts: Texts) -> DrawnFigure:
    """Draw AP50 cost and number of each kind of error."""
    figure = new_figure(6.5)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    errors, kinds = analysis.results["errors"], texts_of(texts.language, "error_kinds")
    at_score = texts("errors_at_score", score=texts.number(analysis.results["confusion"]["score"], 2))
    written = []
    for axis, key, colour, decimals, title, least in (
        (left, "ap50_cost", FOUND_COLOUR, 3, texts["errors_cost"], 1e-2),
        (middle, "counts_at_score", TRUTH_COLOUR, 0, at_score, 1.0),
        (right, "counts", TRUTH_COLOUR, 0, texts["errors_count"], 1.0),
    ):
        values = [errors[key][kind] for kind in ERROR_KINDS]
        written.append([texts.number(value, decimals) for value in values])
        bars = axis.barh(range(len(values)), values, color="white", edgecolor=colour, linewidth=0.9, hatch=HATCHES)
        axis.bar_label(bars, written[-1], padding=3, fontsize=7)
        axis.set(xlabel=title, xlim=(0, max(max(values) * 1.25, least)))  # room for the numbers beside the bars
        in_language(texts.language, axis.xaxis)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4))
    left.set_yticks(range(len(ERROR_KINDS)), [kinds[kind] for kind in ERROR_KINDS])
    left.invert_yaxis()
    if errors["base_ap50"] is None:
        left.set_title(texts["no_ground_truth"])
    rows = zip(ERROR_KINDS, *written, strict=True)
    items = "; ".join(f"{kinds[kind]}: {cost}, {n} ({every})" for kind, cost, n, every in rows)
    return DrawnFigure(figure, texts["errors_title"], texts("errors_alt", items=items))


def draw_image_level(analysis: Analysis, texts: Texts) -> DrawnFigure:
    """Draw what a factory asks: how often does it cry wolf, and how often does it miss?"""
    level, best = analysis.results["image_level"], analysis.results["thresholds"]["overall"]
    figure = new_figure(7.0)
    axes: Sequence[Any] = figure.subplots(1, 2)
    alarms, missed = _column(level["false_alarms_per_clean_image"]), _column(level["miss_rate"])
    marks = []
    for axis, title, values, of, style in (
        (axes[0], "false_alarms", alarms, "clean", {"color": FOUND_COLOUR}),
        (axes[1], "miss_rate", missed, "defective", {"color": TRUTH_COLOUR, "linestyle": "--"}),
    ):
        _fraction_axes(axis, texts, texts["score_threshold"], "")
        axis.set_title(texts[f"image_level_{title}"])
        axis.plot(level["scores"], values, drawstyle="steps-pre", **style)
        if not level[f"num_{of}"]:
            _say(axis, texts[f"image_level_no_{of}"])
        elif best is not None:
            marks.append(axis.axvline(best["score"], **_MARK_STYLE))
    # From hundreds (no threshold) down to a hundredth (what a line can bear), and 0 has its place.
    axes[0].set_yscale("symlog", linthresh=_LINTHRESH, linscale=0.5)
    axes[0].set_ylim(0, max(float(np.nanmax(alarms, initial=0.0)) * 1.5, 1.0))
    axes[0].yaxis.set_major_formatter(lambda value, _: decimal_mark(f"{value:g}", texts.language))
    if marks:
        said = f"{texts['best_threshold']}: {texts.number(best['score'], 2)}"
        figure.legend(marks[:1], [said], loc="outside lower center")
    auroc = texts.number(level["auroc"])
    if level["auroc_interval"] is not None:
        auroc += f" {texts.interval(level['auroc_interval'])}"
    title = texts("image_level_title", auroc=auroc)
    figure.suptitle(title)
    images = {key: texts.number(level[f"num_{key}"], 0) for key in ("clean", "defective")}
    return DrawnFigure(figure, title, texts("image_level_alt", auroc=auroc, **images))


def draw_reliability(analysis: Analysis, texts: Texts) -> DrawnFigure:
    """Draw the share of right detections against their score, and how many there are, before and after calibration."""
    measured, own = analysis.results["calibration"], texts_of(texts.language, "acceptance")
    figure = new_figure(8.5)
    left, right = figure.subplots(1, 2)
    _fraction_axes(left, texts, own["score"], own["share_right"])
    left.plot([0, 1], [0, 1], label=own["perfect"], **_MARK_STYLE)
    after = own("after", method=own[measured["method"]]) if measured["after"] else ""
    for key, label, colour, marker, dashes in (
        ("before", own["before"], TRUTH_COLOUR, "o", "-"),
        ("after", after, FOUND_COLOUR, "s", "--"),
    ):
        if measured[key] is None:
            continue
        scores, hits, counts = (np.array(measured[key]["bins"][part]) for part in ("scores", "hits", "counts"))
        style = {"color": colour, "linestyle": dashes, "label": label}
        left.plot(scores[counts > 0], hits[counts > 0], marker=marker, markersize=3.5, **style)
        right.stairs(counts, np.linspace(0, 1, len(counts) + 1), **style)
    if not measured["before"]["detections"]:
        _say(left, texts["no_ground_truth"])
    right.set(xlim=(0, 1), xlabel=own["score"], title=own["detections"])
    right.set_yscale("symlog", linthresh=1)
    in_language(texts.language, right.xaxis, right.yaxis)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    ece = " → ".join(texts.number(measured[key]["ece"]) for key in ("before", "after") if measured[key] is not None)
    return DrawnFigure(figure, own("reliability_title", ece=ece), own("reliability_alt", ece=ece))


def draw_sizes(analysis: Analysis, texts: Texts) -> DrawnFigure:
    """Draw annotated and found boxes by size (top), share found (bottom). Every bin has the same width on paper."""
    edges, there, found = (_column(analysis.results["sizes"][key]) for key in ("edges_px", "ground_truth", "found"))
    figure = new_figure(9.5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    bins = np.arange(len(there), dtype=np.float64)
    share = np.divide(found, there, out=np.full(len(bins), np.nan), where=there > 0)
    top.bar(bins + 0.31, there, 0.36, color="white", edgecolor=INK, label=texts["sizes_annotated"])
    top.bar(bins + 0.69, found, 0.36, color=TRUTH_COLOUR, edgecolor=INK, hatch="////", label=texts["sizes_found"])
    top.set(ylabel=texts["sizes_boxes"], ylim=(0, max(float(there.max(initial=0)) * 1.1, 1.0)))
    top.legend(loc="best")
    bottom.plot(bins + 0.5, share, color=FOUND_COLOUR, marker="o")
    bottom.set(xlabel=texts["sizes_axis"], ylabel=texts["sizes_share_found"], ylim=(-0.03, 1.03))
    shown = np.arange(0, len(edges), max(-(-len(edges) // _MAX_SIZE_LABELS), 1))
    bottom.set_xticks(shown, [texts.number(edge, 0) for edge in edges[shown]])
    bottom.set_xlim(0, max(len(bins), 1))
    in_language(texts.language, top.yaxis, bottom.yaxis)
    for axis in (top, bottom):
        for size in _COCO_SIZES_PX:
            if edges[0] < size < edges[-1]:
                axis.axvline(np.interp(size, edges, np.arange(len(edges))), **_MARK_STYLE)
    if not there.any():
        _say(top, texts["no_ground_truth"])
    counts = {"found": texts.number(found.sum(), 0), "total": texts.number(there.sum(), 0)}
    return DrawnFigure(figure, texts["sizes_title"], texts("sizes_alt", **counts))


def draw_class_ap(analysis: Analysis, texts: Texts) -> DrawnFigure:
    """Draw AP and AP50 of each class with their intervals, and the means."""
    classes, metrics = analysis.results["per_class"], analysis.results["metrics"]
    figure = new_figure(min(max(0.75 * len(classes) + 2.5, 4.5), MAX_HEIGHT_CM))
    axis = figure.subplots()
    for key, offset, colour, marker, fill, dashes in (
        ("AP", -0.17, TRUTH_COLOUR, "o", TRUTH_COLOUR, "-"),
        ("AP50", 0.17, FOUND_COLOUR, "s", "white", "--"),
    ):
        places = np.arange(len(classes)) + offset
        intervals = [one["intervals"][key] or (np.nan, np.nan) for one in classes.values()]
        lows, highs = np.array(intervals).reshape(-1, 2).T
        axis.hlines(places, lows, highs, color=colour, linewidth=1.1, linestyle=dashes)
        axis.plot(np.r_[lows, highs], np.r_[places, places], "|", color=colour, markersize=4)
        values = _column(one[key] for one in classes.values())
        axis.plot(values, places, marker, color=colour, markerfacecolor=fill, label=key, zorder=3)
        if metrics[key] is not None:
            name = f"{key}, {texts['mean']} ({texts.number(metrics[key], 2)})"
            axis.axvline(metrics[key], color=colour, linestyle=dashes, linewidth=0.8, label=name)
    names = [tidy(name, NAME_CHARACTERS) for name in classes]
    axis.set_yticks(range(len(classes)), names, fontsize=7 if len(classes) <= 30 else 5)
    axis.set(xlim=(0, 1), ylim=(len(classes) - 0.4, -0.6), xlabel=texts["class_ap_axis"])
    in_language(texts.language, axis.xaxis)
    items = []
    for place, (name, one) in enumerate(zip(names, classes.values(), strict=True)):
        if one["AP"] is None:
            axis.text(0.01, place, texts["no_ground_truth"], va="center", fontsize=6, color=FAINT)
        interval = one["intervals"]["AP"]
        items.append(f"{name}: AP {texts.number(one['AP'])}" + (f" {texts.interval(interval)}" if interval else ""))
    figure.legend(loc="outside upper center", ncols=4, handlelength=3)
    return DrawnFigure(figure, texts["class_ap_title"], texts("class_ap_alt", items="; ".join(items)))


DRAWERS: Mapping[str, Callable[[Analysis, Texts], DrawnFigure]] = {
    "precision_recall": draw_precision_recall,
    "f1": draw_f1,
    "class_ap": draw_class_ap,
    "confusion": draw_confusion,
    "confusion_counts": partial(draw_confusion, in_counts=True),
    "errors": draw_errors,
    "image_level": draw_image_level,
    "reliability": draw_reliability,
    "sizes": draw_sizes,
}
"""Name -> function, in the order of the report. To be called inside `figure_style`."""


def _class_lines(
    axis: Any, xs: FloatArray, curves: FloatArray, labels: Iterable[int], analysis: Analysis, texts: Texts
) -> dict[str, Any]:
    """One line a class of `labels`; legend text -> line. Too many to tell apart are all grey under one text."""
    labels, names = list(labels), list(analysis.results["per_class"])
    if len(labels) > MAX_NAMED_CLASSES:
        lines = [axis.plot(xs, curves[label], color=FAINT, linewidth=0.5, alpha=0.6)[0] for label in labels]
        return {texts("classes_together", count=len(labels)): lines[0]}
    named = {}
    for place, label in enumerate(labels):
        # Marks at different places of different lines, so that they do not hide one another.
        step = max(len(xs) // 6, 1)
        (line,) = axis.plot(xs, curves[label], markevery=(place * step // len(labels), step), **class_line(label))
        name = tidy(names[label], NAME_CHARACTERS)
        # matplotlib hides names that begin with an underscore; two classes may share a name.
        name = f"\u200b{name}" if name.startswith("_") else name
        named[f"{name} ({label})" if name in named else name] = line
    return named


def _fraction_axes(axis: Any, texts: Texts, x: str, y: str) -> None:
    """Both axes from 0 to 1."""
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
    in_language(texts.language, axis.xaxis, axis.yaxis)


def _say(axis: Any, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center", color=FAINT, fontsize=9)


def _column(values: Iterable[float | None]) -> FloatArray:
    """An array with NaN for None."""
    return np.array(list(values), dtype=np.float64)
