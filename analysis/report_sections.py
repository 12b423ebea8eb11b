"""What the report page says, section by section, as plain data: texts and numbers, no markup."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.gallery import GalleryFiles
from analysis.labels import NOTHING, Labels
from analysis.result import ERROR_KINDS, Analysis, ClassAnalysis, Cost, Interval, Threshold
from analysis.style import FigureFiles, tidy
from engine.coco_metrics import METRIC_NAMES

_MAX_CONFUSIONS = 20
_MISS_RATES = (0.0, 0.01, 0.05, 0.1)
_PACKAGES = ("torch", "torchvision", "faster-coco-eval", "numpy", "matplotlib")
_FIGURES_OF = {
    "classes": ("class_ap",),
    "curves": ("precision_recall", "f1"),
    "confusion": ("confusion", "confusion_counts"),
    "errors": ("errors",),
    "image-level": ("image_level",),
    "sizes": ("sizes",),
}


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | None = None
    """What a column of numbers is sorted by; None is sorted last."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    is_number: bool = True


@dataclass(frozen=True)
class HtmlTable:
    """A table of the page; the first cell of a row names the row."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    sortable: bool = False


@dataclass(frozen=True)
class Card:
    """One number, large."""

    title: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    key: str
    """Its anchor."""
    title: str
    cards: Sequence[Card] = ()
    paragraphs: Sequence[str] = ()
    figures: Sequence[FigureFiles] = ()
    tables: Sequence[HtmlTable] = ()


def build_sections(
    analysis: Analysis, figures: Sequence[FigureFiles], gallery: GalleryFiles | None, labels: Labels
) -> list[Section]:
    """The whole page, in order."""
    by_name = {figure.name: figure for figure in figures}
    figures_of = {key: [by_name[n] for n in names if n in by_name] for key, names in _FIGURES_OF.items()}
    sections = [
        _summary(analysis, labels),
        Section(
            "classes",
            labels.report_per_class,
            figures=figures_of["classes"],
            tables=[_class_table(analysis.per_class, labels)],
        ),
        Section("curves", labels.report_curves, figures=figures_of["curves"]),
        _confusion(analysis, figures_of["confusion"], labels),
        Section("errors", labels.report_errors, figures=figures_of["errors"], tables=[_error_table(analysis, labels)]),
        _image_level(analysis, figures_of["image-level"], labels),
        Section("sizes", labels.report_sizes, figures=figures_of["sizes"], tables=[_size_table(analysis, labels)]),
        _gallery(gallery, labels),
        _cost(analysis.cost, labels),
        _facts(analysis, labels),
    ]
    return sections


def _number(labels: Labels, value: float | None, decimals: int = 3) -> Cell:
    known = value is not None and not np.isnan(value)
    return Cell(labels.number(value, decimals), float(value) if known and value is not None else None)


def _integer(labels: Labels, value: int) -> Cell:
    return Cell(labels.integer(value), float(value))


def _summary(analysis: Analysis, labels: Labels) -> Section:
    level, best = analysis.image_level, analysis.best
    at_best = _at(analysis, None if best is None else best.score)
    cards = [
        *(
            Card(key, labels.number(analysis.metrics.get(key)), labels.interval(analysis.intervals.get(key)))
            for key in ("AP", "AP50", "AP75")
        ),
        Card("AUROC", labels.number(level.auroc), labels.interval(level.auroc_interval)),
        Card(
            labels.best_threshold,
            labels.number(best.score if best else None, 2),
            f"F1 {labels.number(best.f1 if best else None, 2)}",
        ),
        Card(labels.image_level_false_alarms, labels.number(at_best[0], 2), labels.best_threshold),
        Card(labels.image_level_miss_rate, labels.percent(at_best[1]), labels.best_threshold),
    ]
    bootstrap = labels.report_bootstrap.format(samples=labels.integer(analysis.bootstrap_samples))
    return Section(
        "summary",
        labels.report_summary,
        cards=cards,
        paragraphs=[bootstrap] if analysis.bootstrap_samples else [],
        tables=[_metric_table(analysis, labels), _threshold_table(best, labels)],
    )


def _metric_table(analysis: Analysis, labels: Labels) -> HtmlTable:
    """COCO's twelve; without NORMAL only where that makes a difference."""
    with_defects = any(analysis.metrics.get(key) != analysis.metrics_defects.get(key) for key in METRIC_NAMES)
    columns = [Column(labels.report_metric, False), Column(labels.report_all), Column(labels.interval_95)]
    columns += [Column(labels.report_defects)] if with_defects else []
    rows = []
    for key in METRIC_NAMES:
        row = [Cell(key), _number(labels, analysis.metrics.get(key)), _interval(labels, analysis.intervals.get(key))]
        row += [_number(labels, analysis.metrics_defects.get(key))] if with_defects else []
        rows.append([*row, Cell(labels.metric_meanings[key])])
    return HtmlTable(labels.report_metrics, [*columns, Column(labels.report_meaning, False)], rows)


def _threshold_table(best: Threshold | None, labels: Labels) -> HtmlTable:
    names = (labels.report_threshold, labels.f1, labels.precision, labels.recall)
    values: Sequence[float | None] = best if best is not None else (None,) * len(names)
    row = [Cell(labels.all_classes), *(_number(labels, value) for value in values)]
    return HtmlTable(labels.report_thresholds, [Column("", False), *(Column(name) for name in names)], [row])


def _class_table(classes: Sequence[ClassAnalysis], labels: Labels) -> HtmlTable:
    metrics = ("AP75", "AR_100", "AP_small", "AP_medium", "AP_large")
    titles = (
        *(labels.report_boxes, labels.report_class_images, "AP", labels.interval_of.format(name="AP")),
        *("AP50", labels.interval_of.format(name="AP50"), *metrics),
        *(labels.report_threshold, labels.f1, labels.precision, labels.recall),
    )
    rows = []
    for one in classes:
        best: Sequence[float | None] = one.best if one.best is not None else (None,) * 4
        rows.append(
            [
                Cell(tidy(one.name)),
                _integer(labels, one.num_gt),
                _integer(labels, one.num_images),
                _number(labels, one.metrics.get("AP")),
                _interval(labels, one.intervals.get("AP")),
                _number(labels, one.metrics.get("AP50")),
                _interval(labels, one.intervals.get("AP50")),
                *(_number(labels, one.metrics.get(key)) for key in metrics),
                *(_number(labels, value, 2) for value in best),
            ]
        )
    columns = [Column(labels.report_class, False), *(Column(title) for title in titles)]
    return HtmlTable(labels.report_per_class, columns, rows, sortable=True)


def _interval(labels: Labels, interval: Interval | None) -> Cell:
    """Sorted by its width: which number is the least certain?"""
    return Cell(labels.interval(interval), None if interval is None else interval.high - interval.low)


def _confusion(analysis: Analysis, figures: Sequence[FigureFiles], labels: Labels) -> Section:
    confusion = analysis.confusion
    setting = labels.confusion_setting.format(
        iou=labels.number(confusion.iou, 2), score=labels.number(confusion.score, 2)
    )
    names = [tidy(name) for name in confusion.names]
    truths, guesses = [*names, labels.confusion_background], [*names, labels.confusion_missed]
    sums = confusion.counts.sum(axis=1)
    pairs = [
        (int(confusion.counts[row, column]), row, column)
        for row, column in np.ndindex(confusion.counts.shape)
        if row != column and confusion.counts[row, column] > 0
    ]
    pairs.sort(key=lambda pair: -pair[0])
    rows = [
        [
            Cell(truths[row]),
            Cell(guesses[column]),
            _integer(labels, count),
            Cell(labels.percent(count / sums[row]), float(count / sums[row])),
        ]
        for count, row, column in pairs[:_MAX_CONFUSIONS]
    ]
    columns = [
        Column(labels.report_confusion_truth, False),
        Column(labels.report_confusion_taken_for, False),
        Column(labels.count),
        Column(labels.report_confusion_share),
    ]
    tables = [HtmlTable(labels.report_confusions, columns, rows, sortable=True)] if rows else []
    paragraphs = [setting] if rows else [setting, labels.report_no_confusions]
    return Section("confusion", labels.report_confusion, paragraphs=paragraphs, figures=figures, tables=tables)


def _error_table(analysis: Analysis, labels: Labels) -> HtmlTable:
    errors = analysis.errors
    columns = [
        Column(labels.report_error, False),
        Column(labels.errors_cost),
        Column(labels.errors_count),
        Column(labels.report_meaning, False),
    ]
    rows = [
        [
            Cell(labels.error_kinds[kind]),
            _number(labels, errors.ap50_cost.get(kind)),
            _integer(labels, errors.counts.get(kind, 0)),
            Cell(labels.error_meanings[kind]),
        ]
        for kind in ERROR_KINDS
    ]
    return HtmlTable(labels.errors_title, columns, rows, sortable=True)


def _image_level(analysis: Analysis, figures: Sequence[FigureFiles], labels: Labels) -> Section:
    level = analysis.image_level
    columns = [
        Column(labels.report_operating_point, False),
        Column(labels.report_threshold),
        Column(labels.image_level_false_alarms),
        Column(labels.image_level_miss_rate),
    ]
    points = [(labels.report_at_best_f1, analysis.best.score if analysis.best else None)]
    points += [
        (labels.report_miss_at_most.format(share=labels.percent(rate, 0)), _highest_threshold(analysis, rate))
        for rate in _MISS_RATES
    ]
    rows = []
    for name, score in points:
        false_alarms, missed = _at(analysis, score)
        share = Cell(labels.percent(missed), missed)
        rows.append([Cell(name), _number(labels, score), _number(labels, false_alarms, 2), share])
    paragraphs = [
        f"{labels.report_clean_images}: {labels.integer(level.num_clean)}. "
        f"{labels.report_defective_images}: {labels.integer(level.num_defective)}."
    ]
    table = HtmlTable(labels.report_operating_points, columns, rows)
    return Section("image-level", labels.report_image_level, paragraphs=paragraphs, figures=figures, tables=[table])


def _at(analysis: Analysis, score: float | None) -> tuple[float | None, float | None]:
    """False alarms per clean image and miss rate at the threshold of the grid nearest to `score`."""
    level = analysis.image_level
    if score is None or not len(level.scores):
        return None, None
    k = int(np.abs(level.scores - score).argmin())
    pair = float(level.false_alarms_per_clean_image[k]), float(level.miss_rate[k])
    false_alarms, missed = (None if np.isnan(value) else value for value in pair)
    return false_alarms, missed


def _highest_threshold(analysis: Analysis, miss_rate: float) -> float | None:
    """The highest threshold that misses no more than this share of the defective images; it rings least."""
    level = analysis.image_level
    (good,) = np.nonzero(level.miss_rate <= miss_rate + 1e-12)
    return float(level.scores[good[-1]]) if len(good) else None


def _size_table(analysis: Analysis, labels: Labels) -> HtmlTable:
    sizes = analysis.sizes
    columns = [
        Column(labels.report_size_bin, False),
        Column(labels.sizes_annotated),
        Column(labels.sizes_found),
        Column(labels.sizes_share_found),
    ]
    rows = []
    for k, (total, found) in enumerate(zip(sizes.ground_truth.tolist(), sizes.found.tolist(), strict=True)):
        low, high = (_edge(labels, sizes.edges_px[j]) for j in (k, k + 1))
        share = found / total if total else None
        size = Cell(f"{low} – {high}")
        row = [size, _integer(labels, total), _integer(labels, found), Cell(labels.percent(share), share)]
        rows.append(row)
    return HtmlTable(labels.sizes_title, columns, rows)


def _edge(labels: Labels, edge: float) -> str:
    return labels.number(edge, 0 if edge == round(edge, 0) or edge >= 10 else 1) if np.isfinite(edge) else "∞"


def _gallery(gallery: GalleryFiles | None, labels: Labels) -> Section:
    if gallery is None or not (gallery.sheets or gallery.left_out):
        return Section("gallery", labels.report_gallery, paragraphs=[labels.gallery_empty])
    said = [f"{labels.gallery_left_out} {tidy(reason)}" for reason in gallery.left_out]
    return Section("gallery", labels.report_gallery, paragraphs=said, figures=gallery.sheets)


def _cost(cost: Cost | None, labels: Labels) -> Section:
    if cost is None:
        return Section("cost", labels.report_cost, paragraphs=[labels.report_no_cost])
    height, width = cost.image_size_hw
    gflops = labels.report_gflops_value.format(gflops=labels.number(cost.gflops, 1), height=height, width=width)
    setting = labels.report_cost_setting.format(device=tidy(cost.device), dtype=cost.dtype, threads=cost.threads)
    pairs = [
        (labels.report_parameters, labels.integer(cost.parameters)),
        (labels.report_gflops, gflops),
        (labels.report_inference_memory, _megabytes(cost.inference_memory_mb, labels)),
        (labels.report_training_memory, _megabytes(cost.training_memory_mb, labels)),
        (labels.report_device, setting),
    ]
    columns = (
        *(Column(labels.report_batch, False), Column(labels.report_median), Column(labels.report_p95)),
        *(Column(labels.report_throughput), Column(labels.report_repeats)),
    )
    rows = [
        [
            Cell(labels.integer(one.batch_size)),
            _number(labels, one.median_ms, 1),
            _number(labels, one.p95_ms, 1),
            _number(labels, one.images_per_s, 1),
            _integer(labels, one.repeats) if one.repeats else Cell(NOTHING),
        ]
        for one in cost.latencies
    ]
    tables = [_pairs(labels.report_cost, pairs, labels), HtmlTable(labels.report_latency, columns, rows)]
    return Section("cost", labels.report_cost, tables=tables)


def _megabytes(value: float | None, labels: Labels) -> str:
    return NOTHING if value is None else f"{labels.number(value, 0)}\u00a0MB"


def _facts(analysis: Analysis, labels: Labels) -> Section:
    facts: dict[str, Any] = {"split": analysis.split, "gt_hash": analysis.gt_hash, **analysis.facts}
    facts.setdefault("versions", package_versions())
    pairs = [(" ".join([labels.facts.get(key, tidy(key)), *rest]), text) for key, rest, text in _flat(facts, labels)]
    return Section("run", labels.report_facts, tables=[_pairs(labels.report_facts, pairs, labels)])


def _flat(facts: Mapping[str, Any], labels: Labels) -> Iterator[tuple[str, list[str], str]]:
    """Top key, keys below it, value as text."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            for inner, rest, text in _flat(value, labels):
                yield str(key), [tidy(inner), *rest], text
        else:
            yield str(key), [], _fact_text(str(key), value, labels)


def _fact_text(key: str, value: Any, labels: Labels) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return labels.yes if value else labels.no
    if isinstance(value, float):
        # Six digits of what may be 0.0123 or 5400.
        return f"{value:.6g}".replace(".", labels.decimal_mark)
    if isinstance(value, int):
        return labels.integer(value) if key == "parameters" else str(value)
    if isinstance(value, (list, tuple)):
        return "; ".join(_fact_text(key, item, labels) for item in value)
    return tidy(str(value))


def _pairs(title: str, pairs: Sequence[tuple[str, str]], labels: Labels) -> HtmlTable:
    columns = [Column(labels.report_fact, False), Column(labels.report_value, False)]
    return HtmlTable(title, columns, [[Cell(name), Cell(text)] for name, text in pairs])


def package_versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = NOTHING
    return versions
