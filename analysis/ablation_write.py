"""An ablation on disk: Markdown, LaTeX, CSV, JSON, and the figure of the texts' similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.ablation_answer import JUDGED, REFERENCES, Answer, ModeResult
from analysis.ablation_figure import write_similarity_figure
from analysis.ablation_sentences import notes_of, sentences_of, short_verdict
from analysis.ablation_statistics import Effect
from analysis.ablation_texts import Texts, texts_of
from analysis.compare_statistics import Estimate
from analysis.labels import Language, labels_of
from analysis.tables import Cell, Number, Table, escape_markdown, write_tables
from analysis.zero_shot import Accuracy, ZeroShot

FIGURE_NAME = "text_similarity"
_HASH_SHOWN = 12
_TABLES = ("modes", "differences", "classes", "similarity", "zero_shot")


def write_answer(answer: Answer, folder: Path, lang: Language) -> str:
    """Write everything into `folder` and return the Markdown.

    ablation.md and ablation.tex hold all tables; each table is a CSV of its own; ablation.json has every number
    unrounded and comes last. What an earlier writing left and this one has not is removed.

    Raises:
        UserError: A file cannot be written.
    """
    tables = answer_tables(answer, lang)
    markdown = to_markdown(answer, tables, lang)
    if answer.texts is None:
        for suffix in ("png", "pdf"):
            (folder / f"{FIGURE_NAME}.{suffix}").unlink(missing_ok=True)
    else:
        write_similarity_figure(answer.texts.similarity, answer.classes, folder, FIGURE_NAME, lang)
    content = answer_to_json(answer, lang)
    write_tables(folder, "ablation", tables, lang, markdown=markdown, content=content, possible=_TABLES)
    return markdown


def answer_tables(answer: Answer, lang: Language) -> dict[str, Table]:
    """The tables that there is something for, by the names of `_TABLES`."""
    texts = texts_of(lang)
    tables = {"modes": _modes_table(answer, texts)}
    if any(result.against for result in answer.modes):
        tables["differences"] = _differences_table(answer, texts)
    tables["classes"] = _classes_table(answer, texts)
    if answer.texts is not None:
        tables["similarity"] = _similarity_table(answer, texts)
        if answer.texts.zero_shot is not None:
            tables["zero_shot"] = _zero_shot_table(answer.texts.zero_shot, texts, lang)
    return tables


def _modes_table(answer: Answer, texts: Texts) -> Table:
    compared = [name for name in REFERENCES if any(name in result.against for result in answer.modes)]
    metrics = [name for name in answer.modes[0].metrics if name != "AP75"]
    rows: list[list[Cell]] = []
    for result in answer.modes:
        seconds = [run.results.train_seconds for run in result.runs]
        known = [value for value in seconds if value is not None]
        rows.append(
            [
                result.mode,
                len(result.runs),
                *(_estimate_cell(result.metrics[name]) for name in metrics),
                *(_effect_cell(result, name) for name in compared),
                Number(sum(known) / len(known) / 60 if known else None, 1),
                short_verdict(result.judgement, texts),
            ]
        )
    columns = [
        texts.mode,
        texts.seeds,
        *(texts.metrics[name] for name in metrics),
        *(texts.against.format(reference=name) for name in compared),
        texts.training_minutes,
        texts.verdict,
    ]
    return Table(columns, rows, texts.modes_caption, "tab:ablation")


def _effect_cell(result: ModeResult, reference: str) -> Number | None:
    if reference not in result.against:
        return None
    found = result.against[reference][JUDGED]
    return Number(found.value, interval=found.interval, interval_digits=3, signed=True)


def _differences_table(answer: Answer, texts: Texts) -> Table:
    rows: list[list[Cell]] = []
    for result in answer.modes:
        for reference, effects in result.against.items():
            for name, found in effects.items():
                rows.append(
                    [
                        result.mode,
                        reference,
                        texts.metrics[name],
                        Number(found.value, interval=found.image_interval, interval_digits=3, signed=True),
                        Number(found.seed_sd),
                        Number(found.value, interval=found.interval, interval_digits=3, signed=True),
                    ]
                )
    columns = [texts.mode, texts.reference, texts.metric, texts.of_images, texts.seed_sd, texts.of_both]
    return Table(columns, rows, texts.differences_caption.format(samples=answer.samples), "tab:ablation-differences")


def _classes_table(answer: Answer, texts: Texts) -> Table:
    """A row per class, a column per mode."""
    rows: list[list[Cell]] = [
        [name, *(_estimate_cell(result.per_class_ap[name]) for result in answer.modes)] for name in answer.classes
    ]
    columns = [texts.class_, *(result.mode for result in answer.modes)]
    return Table(columns, rows, texts.classes_caption, "tab:ablation-classes")


def _similarity_table(answer: Answer, texts: Texts) -> Table:
    assert answer.texts is not None
    rows: list[list[Cell]] = [
        [name, *(Number(value) for value in row)]
        for name, row in zip(answer.classes, answer.texts.similarity, strict=True)
    ]
    caption = texts.similarity_caption.format(source=answer.texts.embeddings.source)
    return Table([texts.class_, *answer.classes], rows, caption, "tab:ablation-similarity")


def _zero_shot_table(scores: ZeroShot, texts: Texts, lang: Language) -> Table:
    labels = labels_of(lang)
    rows: list[list[Cell]] = [[name, *_accuracy_cells(one)] for name, one in scores.per_class.items()]
    rows.append([texts.all_boxes, *_accuracy_cells(scores.overall)])
    rows.append([texts.mean_of_classes, None, None, Number(scores.mean_of_classes)])
    caption = texts.zero_shot_caption.format(
        chance=labels.percent(1 / len(scores.per_class)), share=labels.percent(scores.largest_class_share)
    )
    return Table([texts.class_, texts.boxes, texts.images, texts.accuracy], rows, caption, "tab:ablation-zero-shot")


def _accuracy_cells(one: Accuracy) -> list[Cell]:
    return [one.boxes, one.images, Number(one.value, interval=one.interval)]


def _estimate_cell(estimate: Estimate) -> Number:
    return Number(estimate.value, spread=estimate.sd)


def to_markdown(answer: Answer, tables: Mapping[str, Table], lang: Language) -> str:
    """The whole ablation as one page."""
    texts = texts_of(lang)
    intro = texts.intro.format(
        split=escape_markdown(answer.split),
        images=answer.num_images,
        gt_hash=answer.gt_hash[:_HASH_SHOWN],
        seeds=", ".join(map(str, answer.seeds)),
    )
    parts = [
        f"# {texts.title}",
        intro,
        f"{texts.answer}:\n\n{_list(sentences_of(answer, lang))}",
        *(table.to_markdown(lang) for table in tables.values()),
        f"{texts.notes}:\n\n{_list(notes_of(answer, lang))}",
    ]
    return "\n\n".join(parts) + "\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def answer_to_json(answer: Answer, lang: Language = "en") -> dict[str, Any]:
    """Every number, unrounded; keys are English whatever the language."""
    facts = answer.texts
    return {
        "split": answer.split,
        "num_images": answer.num_images,
        "gt_hash": answer.gt_hash,
        "samples": answer.samples,
        "bootstrap_seed": answer.bootstrap_seed,
        "seeds": list(answer.seeds),
        "answer": sentences_of(answer, lang),
        "modes": [_mode_to_json(result) for result in answer.modes],
        "texts": None
        if facts is None
        else {
            "source": facts.embeddings.source,
            "real_weights": facts.embeddings.has_real_weights,
            "classes": list(answer.classes),
            "similarity": [list(row) for row in facts.similarity],
            "nearly_the_same": [pair._asdict() for pair in facts.alike],
            "zero_shot": None if facts.zero_shot is None else asdict(facts.zero_shot),
            "no_zero_shot": facts.no_zero_shot,
        },
        "notes": notes_of(answer, lang),
    }


def _mode_to_json(result: ModeResult) -> dict[str, Any]:
    return {
        "mode": result.mode,
        "runs": [{"folder": run.folder.as_posix(), "seed": run.seed} for run in result.runs],
        "metrics": {name: asdict(one) for name, one in result.metrics.items()},
        "per_class": {
            name: {"AP": asdict(ap), "AP50": asdict(result.per_class_ap50[name])}
            for name, ap in result.per_class_ap.items()
        },
        "differences": {
            reference: {name: _effect_to_json(found) for name, found in effects.items()}
            for reference, effects in result.against.items()
        },
        "verdict": result.judgement.verdict,
        "no_verdict": result.judgement.reason,
        "against_learned": result.judgement.texts,
    }


def _effect_to_json(found: Effect) -> dict[str, Any]:
    return {
        "difference": found.value,
        "interval": found.interval,
        "interval_over_images": found.image_interval,
        "sd_over_seeds": found.seed_sd,
        "per_seed": found.per_seed,
    }
