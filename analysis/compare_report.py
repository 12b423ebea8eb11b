"""A comparison on disk: Markdown, CSV, LaTeX, JSON, and plots of AP against what it costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.bootstrap import DEFECTS
from analysis.compare import Comparison, GroupResult, identity
from analysis.differences import Difference, Effect, Estimate
from analysis.style import AxisNumbers, class_line, figure_style, new_figure, remove_figure, save_figure, tidy
from analysis.tables import Cell, Number, PValue, Table, bullets, escape_markdown, format_number, write_tables
from texts import Language, Texts, texts_of

PLOTS = {"parameters": ("parameters", 1e-6), "latency": ("latency_ms", 1.0), "memory": ("inference_memory_mb", 1.0)}
"""Cost and its factor on the axis of `ap_vs_<name>`."""
COSTS = {
    "parameters": ("parameters", 1e-6, 2),
    "gflops": ("gflops", 1.0, 1),
    "latency": ("latency_ms", 1.0, 1),
    "inference_memory": ("inference_memory_mb", 1.0, 0),
    "training_memory": ("training_memory_mb", 1.0, 0),
    "epochs": ("epochs", 1.0, 0),
    "training_hours": ("train_seconds", 1 / 3600, 2),
}
"""Text of a column -> cost, its factor and its decimals."""
HASH_SHOWN = 12
_LABEL = "tab:comparison"
_MAX_LABEL = 48
_LEGEND_ROW_CM = 0.45
_MARK_SHARE = 0.012
"""Width of a mark over the width of the axis."""


def write_comparison(comparison: Comparison, folder: Path, lang: Language, *, captions: bool = True) -> str:
    """Write everything into `folder` and return the Markdown.

    comparison.md and comparison.tex hold all tables; each table is a CSV of its own; comparison.json has every number
    unrounded and comes last. Plots of an earlier comparison that this one has no numbers for are removed.
    """
    tables = comparison_tables(comparison, lang)
    markdown = _markdown(comparison, tables, lang)
    write_plots(comparison, folder, lang, captions=captions)
    content = comparison_to_json(comparison, lang)
    write_tables(folder, "comparison", tables, lang, markdown=markdown, content=content, possible=("folds",))
    return markdown


def comparison_tables(comparison: Comparison, lang: Language) -> dict[str, Table]:
    """Return `models`, `folds` where there are any, `cost`, `classes` and, where there is more than the reference,
    `differences`."""
    texts, groups = texts_of(lang, "compare"), comparison.groups
    labels, images, count = [one.group.label for one in groups], comparison.judged_on.num_images, comparison.num_folds
    with_seeds, cell = _has_seeds(comparison), pooled_cell if count > 1 else estimate_cell
    metrics = [metric_name(name, texts) for name in groups[0].metrics]
    caption = texts("models_caption", images=images) + (f" {texts['seeds_caption']}" if with_seeds else "")
    caption += f" {texts('folds_caption', folds=count)}" if count > 1 else ""

    def of_models(columns: Sequence[str], cells: Callable[[GroupResult], Iterable[Cell]], *about: str) -> Table:
        return Table([texts["model"], *columns], [[one.group.label, *cells(one)] for one in groups], *about)

    def quality(one: GroupResult) -> list[Cell]:
        return [*([len(one.group.runs)] if with_seeds else []), *map(cell, one.metrics.values())]

    def fold_means(one: GroupResult) -> list[Cell]:
        return [Number(_fold_mean(found), spread=found.sd) for found in one.metrics.values()]

    def costs(one: GroupResult) -> list[Cell]:
        return [_cost_cell(one, *column) for column in COSTS.values()]

    tables = {"models": of_models([*([texts["seeds"]] if with_seeds else []), *metrics], quality, caption, _LABEL)}
    if count > 1:
        tables["folds"] = of_models(metrics, fold_means, texts("fold_means_caption", folds=count), "tab:folds")
    tables["cost"] = of_models([texts[name] for name in COSTS], costs, texts["cost_caption"], f"{_LABEL}-cost")
    rows: list[list[Cell]] = [
        [name, *(cell(one.per_class[name]["AP"]) for one in groups)] for name in groups[0].per_class
    ]
    caption = texts("classes_caption", images=images)
    tables["classes"] = Table([texts["class"], *labels], rows, caption, f"{_LABEL}-classes")
    rows = [
        [label, metric_name(name, texts), difference_cell(found), PValue(found.p_value), PValue(found.p_holm)]
        for label, one in zip(labels, groups, strict=True)
        for name, found in one.differences.items()
    ]
    columns = [texts[name] for name in ("model", "metric", "difference", "p", "p_holm")]
    caption = texts("differences_caption", reference=labels[0])
    tables["differences"] = Table(columns, rows, caption, f"{_LABEL}-differences")
    return {name: table for name, table in tables.items() if table.rows}


def metric_name(name: str, texts: Texts) -> str:
    """Return a metric's name in a table."""
    return texts["ap_defects"] if name == DEFECTS else name


def estimate_cell(estimate: Estimate) -> Number:
    """Return an estimate with its interval and its spread over seeds."""
    return Number(estimate.value, interval=estimate.interval, spread=estimate.sd)


def spread_cell(estimate: Estimate) -> Number:
    """Return an estimate with its spread over seeds alone."""
    return Number(estimate.value, spread=estimate.sd)


def difference_cell(found: Difference | Effect) -> Number:
    """Return a difference with its interval."""
    return Number(found.value, interval=found.interval, interval_digits=3, signed=True)


def pooled_cell(estimate: Estimate) -> Number:
    """Return an estimate over all folds; its spread is about another number, the folds' mean."""
    return estimate_cell(estimate._replace(sd=None))


def _fold_mean(estimate: Estimate) -> float | None:
    values = [value for value in estimate.per_run if value is not None]
    return sum(values) / len(values) if len(values) == len(estimate.per_run) else None


def _cost_cell(result: GroupResult, name: str, factor: float, digits: int) -> Number:
    value = result.cost[name]
    if name == "epochs" and value is not None and not value.is_integer():
        digits = 1
    return Number(None if value is None else value * factor, digits)


def _has_seeds(comparison: Comparison) -> bool:
    return comparison.num_folds == 1 and any(len(result.group.runs) > 1 for result in comparison.groups)


def _markdown(comparison: Comparison, tables: Mapping[str, Table], lang: Language) -> str:
    texts, results = texts_of(lang, "compare"), comparison.judged_on
    intro = texts(
        "intro",
        split=escape_markdown(results.split),
        images=results.num_images,
        gt_hash=results.gt_hash[:HASH_SHOWN],
        samples=comparison.samples,
        seed=comparison.seed,
    )
    notes = bullets(notes_of(comparison, lang))
    parts = [f"# {texts['title']}", intro, *(table.to_markdown(lang) for table in tables.values())]
    return "\n\n".join([*parts, f"{texts['notes']}:\n\n{notes}"]) + "\n"


def notes_of(comparison: Comparison, lang: Language) -> list[str]:
    """Return what a reader must know to read the numbers, cautions last."""
    texts, groups = texts_of(lang, "compare"), comparison.groups
    notes = [texts["note_cost"]]
    if _has_seeds(comparison):
        notes.append(texts["note_seeds"])
    if comparison.num_folds > 1:
        notes.append(texts("note_folds", images=comparison.judged_on.num_images))
    if len(groups) > 1:
        smallest = format_number(2 / (comparison.samples + 1), 4, lang)
        notes.append(texts("note_differences", samples=comparison.samples, smallest=smallest))
    alone = [result.group.runs[0] for result in groups if len(result.group.runs) == 1]
    by_config = defaultdict(list)
    for run in alone:
        by_config["unknown" if run.config is None else identity(run)].append(str(run.folder))
    if unknown := by_config.pop("unknown", []):
        notes.append(texts("note_unknown_config", folders=", ".join(unknown)))
    notes += [texts("note_same_seed", folders=", ".join(same)) for same in by_config.values() if len(same) > 1]
    notes += [
        texts("note_configs", label=result.group.label, keys=", ".join(result.group.config_differences))
        for result in groups
        if result.group.config_differences
    ]
    devices = sorted({device for result in groups for device in result.cost["measured_on"]})
    if len(devices) > 1:
        notes.append(texts("note_devices", devices="; ".join(devices)))
    return notes


def comparison_to_json(comparison: Comparison, lang: Language = "en") -> dict[str, Any]:
    """Return every number, unrounded; keys are English whatever the language."""
    return {
        "split": comparison.judged_on.split,
        "num_images": comparison.judged_on.num_images,
        "gt_hash": comparison.judged_on.gt_hash,
        "samples": comparison.samples,
        "seed": comparison.seed,
        "folds": comparison.num_folds,
        "reference": comparison.groups[0].group.label,
        "models": [
            {
                "label": result.group.label,
                "runs": [{"folder": run.folder.as_posix(), "seed": run.seed} for run in result.group.runs],
                **estimates_to_json(result.metrics, result.per_class),
                "cost": result.cost,
                "differences": {
                    name: {"difference": one.value, "interval": one.interval, "p": one.p_value, "p_holm": one.p_holm}
                    for name, one in result.differences.items()
                },
            }
            for result in comparison.groups
        ],
        "notes": notes_of(comparison, lang),
    }


def estimates_to_json(
    metrics: Mapping[str, Estimate], per_class: Mapping[str, Mapping[str, Estimate]]
) -> dict[str, Any]:
    """Return the metrics of a row for JSON."""
    return {
        "metrics": {name: one._asdict() for name, one in metrics.items()},
        "per_class": {name: {k: one._asdict() for k, one in of.items()} for name, of in per_class.items()},
    }


def write_plots(comparison: Comparison, folder: Path, lang: Language, *, captions: bool = True) -> None:
    """Write PNG and PDF of every plot that at least one model has a number for, and remove those of the others."""
    texts = texts_of(lang, "compare")
    for name, (cost, factor) in PLOTS.items():
        points = [
            (number, result, result.cost[cost] * factor)
            for number, result in enumerate(comparison.groups)
            if result.cost[cost] is not None and result.metrics["AP"].value is not None
        ]
        if points:
            axis, images = texts[f"axis_{name}"], comparison.judged_on.num_images
            models = ", ".join(result.group.label for _, result, _ in points)
            text = None if captions else texts("plot_caption", models=models, axis=axis, images=images)
            with figure_style():
                save_figure(_plot(points, axis, texts, lang), folder, f"ap_vs_{name}", text_beside=text)
        else:
            remove_figure(folder, f"ap_vs_{name}")


def side_by_side(values: Sequence[float], width: float) -> list[float]:
    """Return positions on an axis of this width, those that would coincide moved to the right by a mark each."""
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
    look = {"markersize": 6, "markeredgecolor": "black", "markeredgewidth": 0.5, "capsize": 3, "linestyle": "none"}
    for (number, result, _), x in zip(points, places, strict=True):
        ap, interval = result.metrics["AP"].value, result.metrics["AP"].interval
        assert ap is not None
        error = None if interval is None else [[max(ap - interval.low, 0.0)], [max(interval.high - ap, 0.0)]]
        handles.append(axes.errorbar([x], [ap], yerr=error, **(class_line(number) | look)))
    axes.set_xlabel(title)
    axes.set_ylabel(texts["axis_ap"])
    axes.set_xlim(0, max(right, 1.05 * max(places)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(AxisNumbers(lang))
    legend = figure.legend(handles, ["-"] * len(handles), loc="outside lower center", ncols=2)
    # Set afterwards: matplotlib would hide a name that begins with an underscore.
    for text, (_, result, _) in zip(legend.get_texts(), points, strict=True):
        text.set_text(tidy(result.group.label, _MAX_LABEL))
    return figure
