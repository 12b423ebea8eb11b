"""A comparison on disk: Markdown, CSV, LaTeX, JSON, and plots of AP against what it costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.bootstrap import DEFECTS
from analysis.compare import Comparison, GroupResult, Results, Row, identity
from analysis.differences import Difference, Effect, Estimate, mean_of
from analysis.style import class_line, figure_style, in_language, new_figure, remove_figure, save_figure, tidy
from analysis.tables import Cell, Number, Table, bullets, escape_markdown, format_number, p_value, write_tables
from engine.yaml_dialect import get_path
from texts import Language, Texts, texts_of

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
PLOTS = {"parameters": "parameters", "latency": "latency", "memory": "inference_memory"}
"""Name of a plot and of its axis' text -> column of its cost."""
_HASH_SHOWN = 12
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
    texts, tables = texts_of(lang, "compare"), comparison_tables(comparison, lang)
    drawn = {"samples": comparison.samples, "seed": comparison.seed}
    intro = texts("intro", **judged_facts(comparison.judged_on), **drawn)
    markdown = page(texts, [intro], tables, notes_of(comparison, lang))
    write_plots(comparison, folder, lang, captions=captions)
    content = comparison_to_json(comparison, lang)
    write_tables(folder, "comparison", tables, lang, markdown=markdown, content=content, possible=("folds",))
    return markdown


def comparison_tables(comparison: Comparison, lang: Language) -> dict[str, Table]:
    """Return `models`, `folds` where there are any, `cost`, `classes` and, where there is more than the reference,
    `differences`."""
    texts, groups = texts_of(lang, "compare"), comparison.groups
    images, count, with_seeds = comparison.judged_on.num_images, comparison.num_folds, _has_seeds(comparison)
    metrics = [metric_name(name, texts) for name in groups[0].metrics]
    caption = texts("models_caption", images=images) + (f" {texts['seeds_caption']}" if with_seeds else "")
    caption += f" {texts('folds_caption', folds=count)}" if count > 1 else ""

    def of_models(columns: Sequence[str], cells: Callable[[GroupResult], Iterable[Cell]], *about: str) -> Table:
        return Table([texts["model"], *columns], [[one.label, *cells(one)] for one in groups], *about)

    def cell(one: Estimate) -> Number:  # over all folds; the spread of their values is about another number, their mean
        return Number(one.value, interval=one.interval, spread=one.sd if count == 1 else None)

    def quality(one: GroupResult) -> list[Cell]:
        return [*([len(one.runs)] if with_seeds else []), *map(cell, one.metrics.values())]

    def fold_means(one: GroupResult) -> list[Cell]:
        return [Number(mean_of(found.per_run), spread=found.sd) for found in one.metrics.values()]

    def costs(one: GroupResult) -> Iterator[Cell]:
        for name, factor, digits in COSTS.values():
            value = one.cost[name]
            between = name == "epochs" and value is not None and not value.is_integer()  # of runs of different length
            yield Number(value and value * factor, 1 if between else digits)

    tables = {"models": of_models([*([texts["seeds"]] if with_seeds else []), *metrics], quality, caption, _LABEL)}
    if count > 1:
        tables["folds"] = of_models(metrics, fold_means, texts("fold_means_caption", folds=count), "tab:folds")
    tables["cost"] = of_models([texts[name] for name in COSTS], costs, texts["cost_caption"], f"{_LABEL}-cost")
    tables["classes"] = class_table(groups, cell, texts("classes_caption", images=images), texts, _LABEL)
    rows: list[list[Cell]] = [
        [one.label, metric_name(name, texts), difference_cell(found), p_value(found.p_value), p_value(found.p_holm)]
        for one in groups
        for name, found in one.differences.items()
    ]
    columns = [texts[name] for name in ("model", "metric", "difference", "p", "p_holm")]
    caption = texts("differences_caption", reference=groups[0].label)
    tables["differences"] = Table(columns, rows, caption, f"{_LABEL}-differences")
    return {name: table for name, table in tables.items() if table.rows}


def class_table(rows: Sequence[Row], cell: Callable[[Estimate], Cell], caption: str, texts: Texts, label: str) -> Table:
    """Return the AP of every class, a column for each row of a comparison."""
    aps: list[list[Cell]] = [[name, *(cell(one.per_class[name]["AP"]) for one in rows)] for name in rows[0].per_class]
    return Table([texts["class"], *(one.label for one in rows)], aps, caption, f"{label}-classes")


def metric_name(name: str, texts: Texts) -> str:
    """Return a metric's name in a table."""
    return texts["ap_defects"] if name == DEFECTS else name


def spread_cell(estimate: Estimate) -> Number:
    """Return an estimate with its spread over seeds alone."""
    return Number(estimate.value, spread=estimate.sd)


def difference_cell(found: Difference | Effect) -> Number:
    """Return a difference with its interval."""
    return Number(found.value, interval=found.interval, interval_digits=3, signed=True)


def _has_seeds(comparison: Comparison) -> bool:
    return comparison.num_folds == 1 and any(len(result.runs) > 1 for result in comparison.groups)


def judged_facts(results: Results) -> dict[str, Any]:
    """Return what was judged, for the introduction of a page."""
    return {
        "split": escape_markdown(results.split),
        "images": results.num_images,
        "gt_hash": results.gt_hash[:_HASH_SHOWN],
    }


def page(texts: Texts, blocks: Sequence[str], tables: Mapping[str, Table], notes: Iterable[str]) -> str:
    """Return the Markdown of a comparison: title, blocks of text, tables and notes."""
    shown = [table.to_markdown(texts.language) for table in tables.values()]
    parts = [f"# {texts['title']}", *blocks, *shown, f"{texts['notes']}:\n\n{bullets(notes)}"]
    return "\n\n".join(parts) + "\n"


def notes_of(comparison: Comparison, lang: Language) -> list[str]:
    """Return what a reader must know to read the numbers, cautions last."""
    texts, groups = texts_of(lang, "compare"), comparison.groups
    notes = [texts["note_cost"]]
    if _has_seeds(comparison):
        notes.append(texts["note_seeds"])
    if comparison.num_folds > 1:
        notes.append(texts("note_folds", images=comparison.judged_on.num_images))
        notes += [texts("note_fold_training", label=one.label, file=file) for one in groups for file in _shared(one)]
    if len(groups) > 1:
        smallest = format_number(2 / (comparison.samples + 1), 4, lang)
        notes.append(texts("note_differences", samples=comparison.samples, smallest=smallest))
    alone = [result.runs[0] for result in groups if len(result.runs) == 1]
    by_config = defaultdict(list)
    for run in alone:
        by_config["unknown" if run.config is None else identity(run)].append(str(run.folder))
    if unknown := by_config.pop("unknown", []):
        notes.append(texts("note_unknown_config", folders=", ".join(unknown)))
    notes += [texts("note_same_seed", folders=", ".join(same)) for same in by_config.values() if len(same) > 1]
    notes += [
        texts("note_configs", label=result.label, keys=", ".join(result.config_differences))
        for result in groups
        if result.config_differences
    ]
    devices = sorted({device for result in groups for device in result.cost["measured_on"]})
    if len(devices) > 1:
        notes.append(texts("note_devices", devices="; ".join(devices)))
    return notes


def _shared(result: GroupResult) -> list[str]:
    """Return the annotation files that several runs were trained with: those of folds have one each."""
    files = Counter(get_path(run.config, "train_dataloader.dataset.ann_file") for run in result.runs)
    return [file for file, runs in files.items() if file is not None and runs > 1]


def comparison_to_json(comparison: Comparison, lang: Language = "en") -> dict[str, Any]:
    """Return every number, unrounded; keys are English whatever the language."""
    return {
        **judged_to_json(comparison.judged_on),
        "samples": comparison.samples,
        "seed": comparison.seed,
        "folds": comparison.num_folds,
        "reference": comparison.groups[0].label,
        "models": [
            {
                "label": one.label,
                **row_to_json(one),
                "cost": one.cost,
                "differences": {
                    name: {"difference": found.value, "interval": found.interval}
                    | {"p": found.p_value, "p_holm": found.p_holm}
                    for name, found in one.differences.items()
                },
            }
            for one in comparison.groups
        ],
        "notes": notes_of(comparison, lang),
    }


def judged_to_json(results: Results) -> dict[str, Any]:
    """Return what was judged."""
    return {"split": results.split, "num_images": results.num_images, "gt_hash": results.gt_hash}


def row_to_json(row: Row) -> dict[str, Any]:
    """Return runs and numbers of a row."""
    return {
        "runs": [{"folder": run.folder.as_posix(), "seed": run.seed} for run in row.runs],
        "metrics": {name: one._asdict() for name, one in row.metrics.items()},
        "per_class": {name: {k: one._asdict() for k, one in of.items()} for name, of in row.per_class.items()},
    }


def write_plots(comparison: Comparison, folder: Path, lang: Language, *, captions: bool = True) -> None:
    """Write PNG and PDF of every plot that at least one model has a number for, and remove those of the others."""
    texts = texts_of(lang, "compare")
    for name, column in PLOTS.items():
        cost, factor, _ = COSTS[column]
        points = [
            (number, one, one.cost[cost] * factor)
            for number, one in enumerate(comparison.groups)
            if one.cost[cost] is not None and one.metrics["AP"].value is not None
        ]
        if not points:
            remove_figure(folder, f"ap_vs_{name}")
            continue
        about = {"axis": texts[f"axis_{name}"], "images": comparison.judged_on.num_images}
        caption = texts("plot_caption", models=", ".join(one.label for _, one, _ in points), **about)
        with figure_style():
            figure = _plot(points, texts[f"axis_{name}"], texts, lang)
            save_figure(figure, folder, f"ap_vs_{name}", text_beside=None if captions else caption)


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
    right = 1.1 * max(x for _, _, x in points) or 1.0
    places = side_by_side([x for _, _, x in points], right)
    look = {"markersize": 6, "markeredgecolor": "black", "markeredgewidth": 0.5, "capsize": 3, "linestyle": "none"}
    handles: list[Any] = []
    for (number, one, _), x in zip(points, places, strict=True):
        ap, interval = one.metrics["AP"].value or 0.0, one.metrics["AP"].interval
        error = None if interval is None else [[max(ap - interval.low, 0.0)], [max(interval.high - ap, 0.0)]]
        handles.append(axes.errorbar([x], [ap], yerr=error, **(class_line(number) | look)))
    axes.set(xlabel=title, ylabel=texts["axis_ap"], xlim=(0, max(right, 1.05 * max(places))))
    in_language(lang, axes.xaxis, axes.yaxis)
    legend = figure.legend(handles, ["-"] * len(handles), loc="outside lower center", ncols=2)
    # Set afterwards: matplotlib would hide a name that begins with an underscore.
    for text, (_, one, _) in zip(legend.get_texts(), points, strict=True):
        text.set_text(tidy(one.label, _MAX_LABEL))
    return figure
