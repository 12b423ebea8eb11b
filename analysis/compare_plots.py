"""AP against what it costs: one figure for parameters, latency and memory each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.compare import Comparison, GroupCost, GroupResult
from analysis.compare_texts import Texts, texts_of
from analysis.labels import Language, labels_of
from analysis.style import AxisNumbers, class_line, figure_style, new_figure, save_figure, tidy

PLOT_NAMES = ("ap_vs_parameters", "ap_vs_latency", "ap_vs_memory")

_MAX_LABEL = 48
_LEGEND_ROW_CM = 0.45
_MARK_SHARE = 0.012
"""Width of a mark over the width of the axis."""


def write_plots(comparison: Comparison, folder: Path, lang: Language) -> list[Path]:
    """Write PNG and PDF of every plot that at least one model has a number for.

    Raises:
        UserError: They cannot be written.
    """
    texts = texts_of(lang)
    axes: dict[str, tuple[str, Callable[[GroupCost], float | None]]] = {
        "ap_vs_parameters": (texts.axis_parameters, lambda cost: _scaled(cost.parameters, 1e-6)),
        "ap_vs_latency": (texts.axis_latency, lambda cost: cost.latency_ms),
        "ap_vs_memory": (texts.axis_memory, lambda cost: cost.inference_memory_mb),
    }
    written: list[Path] = []
    for name, (title, cost_of) in axes.items():
        points = [
            (number, result, x)
            for number, result in enumerate(comparison.groups)
            if (x := cost_of(result.cost)) is not None and result.metrics["AP"].value is not None
        ]
        if points:
            with figure_style():
                written += save_figure(_plot(points, title, texts, lang), folder, name)
    return written


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def side_by_side(values: Sequence[float], width: float) -> list[float]:
    """Positions on an axis of this width, those that would coincide moved to the right by a mark each."""
    placed: list[float] = []
    for value in values:
        while any(abs(value - other) < 0.9 * _MARK_SHARE * width for other in placed):
            value += _MARK_SHARE * width
        placed.append(value)
    return placed


def _plot(points: Sequence[tuple[int, GroupResult, float]], title: str, texts: Texts, lang: Language) -> Figure:
    """Points with error bars; a model has the same mark in every plot.

    Models of one cost, such as a model with and without text, would hide one another: they stand side by side.
    """
    figure = new_figure(7.0 + _LEGEND_ROW_CM * ((len(points) + 1) // 2))
    axes = figure.subplots()
    handles: list[Any] = []
    right = 1.1 * max(x for _, _, x in points) or 1.0
    places = side_by_side([x for _, _, x in points], right)
    for (number, result, _), x in zip(points, places, strict=True):
        estimate = result.metrics["AP"]
        assert estimate.value is not None
        y, interval = estimate.value, estimate.interval
        error = None if interval is None else [[max(y - interval.low, 0.0)], [max(interval.high - y, 0.0)]]
        line = class_line(number)
        handles.append(
            axes.errorbar(
                [x],
                [y],
                yerr=error,
                color=line["color"],
                marker=line["marker"],
                markersize=6,
                markeredgecolor="black",
                markeredgewidth=0.5,
                capsize=3,
                linestyle="none",
            )
        )
    axes.set_xlabel(title)
    axes.set_ylabel(texts.axis_ap)
    axes.set_xlim(0, max(right, 1.05 * max(places)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(AxisNumbers(labels_of(lang)))
    legend = figure.legend(handles, ["-"] * len(handles), loc="outside lower center", ncols=2)
    # Set afterwards: matplotlib would hide a name that begins with an underscore.
    for text, (_, result, _) in zip(legend.get_texts(), points, strict=True):
        text.set_text(tidy(result.group.label, _MAX_LABEL))
    return figure
