"""A comparison on disk: Markdown, CSV, LaTeX, JSON and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.compare import Comparison, GroupResult
from analysis.compare_groups import identity
from analysis.compare_plots import PLOT_NAMES, write_plots
from analysis.compare_statistics import Estimate
from analysis.compare_texts import Texts, texts_of
from analysis.labels import Language
from analysis.tables import Cell, Number, PValue, Table, escape_markdown, format_number, write_tables

_HASH_SHOWN = 12


def write_comparison(comparison: Comparison, folder: Path, lang: Language) -> str:
    """Write everything into `folder` and return the Markdown.

    comparison.md and comparison.tex hold all tables; each table is a CSV of its own; comparison.json has every number
    unrounded and comes last. Plots of an earlier comparison that this one has no numbers for are removed.

    Raises:
        UserError: A file cannot be written.
    """
    tables = comparison_tables(comparison, lang)
    markdown = to_markdown(comparison, tables, lang)
    drawn = write_plots(comparison, folder, lang)
    for path in (folder / f"{name}.{suffix}" for name in PLOT_NAMES for suffix in ("png", "pdf")):
        if path not in drawn:
            path.unlink(missing_ok=True)
    content = comparison_to_json(comparison, lang)
    write_tables(folder, "comparison", tables, lang, markdown=markdown, content=content)
    return markdown


def comparison_tables(comparison: Comparison, lang: Language) -> dict[str, Table]:
    """`models`, `classes` and, where there is more than the reference, `differences`."""
    texts = texts_of(lang)
    tables = {"models": _models_table(comparison, texts), "classes": _classes_table(comparison, texts)}
    if len(comparison.groups) > 1:
        tables["differences"] = _differences_table(comparison, texts)
    return tables


def _models_table(comparison: Comparison, texts: Texts) -> Table:
    groups = comparison.groups
    has_seeds = _has_seeds(comparison)
    rows: list[list[Cell]] = []
    for result in groups:
        cost = result.cost
        seconds = cost.train_seconds
        rows.append(
            [
                result.group.label,
                *([len(result.group.runs)] if has_seeds else []),
                *(_estimate_cell(estimate) for estimate in result.metrics.values()),
                Number(None if cost.parameters is None else cost.parameters / 1e6, 2),
                Number(cost.gflops, 1),
                Number(cost.latency_ms, 1),
                Number(cost.inference_memory_mb, 0),
                Number(cost.training_memory_mb, 0),
                Number(cost.epochs, 0 if cost.epochs is None or cost.epochs.is_integer() else 1),
                Number(None if seconds is None else seconds / 3600, 2),
            ]
        )
    columns = [
        texts.model,
        *([texts.seeds] if has_seeds else []),
        *(texts.metrics[name] for name in groups[0].metrics),
        *(texts.parameters, texts.gflops, texts.latency, texts.inference_memory, texts.training_memory),
        *(texts.epochs, texts.training_hours),
    ]
    caption = texts.main_caption.format(images=comparison.num_images)
    if has_seeds:
        caption += f" {texts.seeds_caption}"
    return Table(columns, rows, caption, "tab:comparison")


def _classes_table(comparison: Comparison, texts: Texts) -> Table:
    """A row per class, a column per model."""
    groups = comparison.groups
    rows: list[list[Cell]] = [
        [name, *(_estimate_cell(result.per_class_ap[name]) for result in groups)] for name in groups[0].per_class_ap
    ]
    columns = [texts.class_, *(result.group.label for result in groups)]
    return Table(columns, rows, texts.classes_caption.format(images=comparison.num_images), "tab:comparison-classes")


def _differences_table(comparison: Comparison, texts: Texts) -> Table:
    rows: list[list[Cell]] = []
    for result in comparison.groups[1:]:
        for name, corrected in result.differences.items():
            found = corrected.difference
            rows.append(
                [
                    result.group.label,
                    texts.metrics[name],
                    Number(found.value, interval=found.interval, interval_digits=3, signed=True),
                    PValue(found.p_value),
                    PValue(corrected.p_holm),
                ]
            )
    caption = texts.differences_caption.format(reference=comparison.groups[0].group.label)
    columns = [texts.model, texts.metric, texts.difference, texts.p, texts.p_holm]
    return Table(columns, rows, caption, "tab:comparison-differences")


def _estimate_cell(estimate: Estimate) -> Number:
    return Number(estimate.value, interval=estimate.interval, spread=estimate.sd)


def _has_seeds(comparison: Comparison) -> bool:
    return any(len(result.group.runs) > 1 for result in comparison.groups)


def to_markdown(comparison: Comparison, tables: Mapping[str, Table], lang: Language) -> str:
    """The whole comparison as one page."""
    texts = texts_of(lang)
    intro = texts.intro.format(
        split=escape_markdown(comparison.split),
        images=comparison.num_images,
        gt_hash=comparison.gt_hash[:_HASH_SHOWN],
        samples=comparison.samples,
        seed=comparison.seed,
    )
    notes = [f"- {escape_markdown(note)}" for note in notes_of(comparison, lang)]
    parts = [f"# {texts.title}", intro, *(table.to_markdown(lang) for table in tables.values())]
    return "\n\n".join([*parts, f"{texts.notes}:\n\n" + "\n".join(notes)]) + "\n"


def notes_of(comparison: Comparison, lang: Language) -> list[str]:
    """What a reader must know to read the numbers, cautions last."""
    texts = texts_of(lang)
    smallest = format_number(2 / (comparison.samples + 1), 4, lang)
    notes = [texts.note_cost]
    if _has_seeds(comparison):
        notes.append(texts.note_seeds)
    if len(comparison.groups) > 1:
        notes.append(texts.note_differences.format(samples=comparison.samples, smallest=smallest))
    notes += _grouping_notes(comparison.groups, texts)
    devices = sorted({device for result in comparison.groups for device in result.cost.measured_on})
    if len(devices) > 1:
        notes.append(texts.note_devices.format(devices="; ".join(devices)))
    return notes


def _grouping_notes(groups: Sequence[GroupResult], texts: Texts) -> list[str]:
    notes = []
    alone = [result.group.runs[0] for result in groups if len(result.group.runs) == 1]
    unknown = [str(run.folder) for run in alone if run.config is None]
    if unknown:
        notes.append(texts.note_unknown_config.format(folders=", ".join(unknown)))
    by_config: dict[object, list[str]] = {}
    for run in alone:
        if run.config is not None:
            by_config.setdefault(identity(run), []).append(str(run.folder))
    for folders in by_config.values():
        if len(folders) > 1:
            notes.append(texts.note_same_seed.format(folders=", ".join(folders)))
    for result in groups:
        if result.group.config_differences:
            keys = ", ".join(result.group.config_differences)
            notes.append(texts.note_configs.format(label=result.group.label, keys=keys))
    return notes


def comparison_to_json(comparison: Comparison, lang: Language = "en") -> dict[str, Any]:
    """Every number, unrounded; keys are English whatever the language."""
    return {
        "split": comparison.split,
        "num_images": comparison.num_images,
        "gt_hash": comparison.gt_hash,
        "samples": comparison.samples,
        "seed": comparison.seed,
        "reference": comparison.groups[0].group.label,
        "models": [_group_to_json(result) for result in comparison.groups],
        "notes": notes_of(comparison, lang),
    }


def _group_to_json(result: GroupResult) -> dict[str, Any]:
    return {
        "label": result.group.label,
        "runs": [{"folder": run.folder.as_posix(), "seed": run.seed} for run in result.group.runs],
        "metrics": {name: _estimate_to_json(estimate) for name, estimate in result.metrics.items()},
        "per_class": {
            name: {"AP": _estimate_to_json(ap), "AP50": _estimate_to_json(result.per_class_ap50[name])}
            for name, ap in result.per_class_ap.items()
        },
        "cost": asdict(result.cost),
        "differences": {
            name: {
                "difference": corrected.difference.value,
                "interval": _list(corrected.difference.interval),
                "p": corrected.difference.p_value,
                "p_holm": corrected.p_holm,
            }
            for name, corrected in result.differences.items()
        },
    }


def _estimate_to_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "value": estimate.value,
        "interval": _list(estimate.interval),
        "sd": estimate.sd,
        "per_run": list(estimate.per_run),
    }


def _list(interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else list(interval)
