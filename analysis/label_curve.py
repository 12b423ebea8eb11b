"""An ablation over parts of the training set: one table, one figure and one page of all their answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis.ablation_report import Answer, Task, answer_to_json, sentences_of, short_verdict, subset_title
from analysis.compare_report import metric_name
from analysis.style import AxisNumbers, class_line, figure_style, new_figure, remove_figure, save_figure
from analysis.tables import Cell, Number, Table, escape_markdown, write_tables
from data.subsets import Subset
from texts import Language, Texts, texts_of

FIGURE_NAME = "label_curve"


class Part(NamedTuple):
    """One part of the training set and what was found with it."""

    subset: Subset
    images: float
    """Training images, mean over the seeds."""
    answer: Answer


def part_of(tasks: Sequence[Task], found: Answer) -> Part:
    """Join an answer with the number of images that its runs were trained on."""
    assert found.subset is not None, "an ablation of the whole set has no parts"
    files = {task.config.train_dataloader.dataset.ann_file for task in tasks}
    counts = [len(json.loads(file.read_text(encoding="utf-8"))["images"]) for file in files]
    return Part(found.subset, float(np.mean(counts)), found)


def write_parts(parts: Sequence[Part], folder: Path, lang: Language, *, captions: bool = True) -> str:
    """Write labels.md, .tex, .csv and .json, and with two fractions or more the curve; return the Markdown.

    Raises:
        UserError: A file cannot be written.
    """
    texts = texts_of(lang, "ablation")
    table = _table(parts, texts)
    said = [
        f"- {escape_markdown(f'{subset_title(part.subset, texts)}: {sentence}')}"
        for part in parts
        for sentence in sentences_of(part.answer, lang)
    ]
    pages = ", ".join(f"[{part.subset.name}]({part.subset.name}/ablation.md)" for part in parts)
    found = [
        f"# {texts['parts_title']}",
        *_figure_link(parts, folder, texts, captions),
        "\n".join(said),
        table.to_markdown(lang),
    ]
    markdown = "\n\n".join([*found, texts["parts_note"], texts("parts_pages", pages=pages)]) + "\n"
    content = {
        "parts": [
            {"name": part.subset.name, "images": part.images, **answer_to_json(part.answer, lang)} for part in parts
        ]
    }
    write_tables(folder, "labels", {"labels": table}, lang, markdown=markdown, content=content)
    return markdown


def _table(parts: Sequence[Part], texts: Texts) -> Table:
    rows: list[list[Cell]] = []
    for part in parts:
        answer = part.answer
        for one in answer.modes:
            value, equivalence = one.metrics[answer.judged], one.judgement.equivalence
            row: list[Cell] = [subset_title(part.subset, texts), Number(part.images, 0), one.mode]
            row += [metric_name(answer.judged, texts), Number(value.value, spread=value.sd)]
            for reference in answer.references:
                found = one.against[reference][answer.judged] if reference in one.against else None
                row.append(found and Number(found.value, interval=found.interval, interval_digits=3, signed=True))
            row.append(Number(equivalence and equivalence.bound))
            rows.append([*row, short_verdict(one.judgement, texts, answer.margin)])
    columns = [texts[key] for key in ("part", "training_images", "mode", "metric", "value")]
    for names in zip(*(part.answer.references for part in parts), strict=True):
        columns.append(texts("minus", reference=" / ".join(dict.fromkeys(names))))
    return Table([*columns, texts["bound"], texts["verdict"]], rows, texts["parts_caption"], "tab:ablation-labels")


def _figure_link(parts: Sequence[Part], folder: Path, texts: Texts, captions: bool) -> list[str]:
    """AP against labels, mean and standard deviation over the seeds; removed where there are fewer than two."""
    curve = sorted((part for part in parts if part.subset.judged_class is None), key=lambda part: part.images)
    if len(curve) < 2:
        remove_figure(folder, FIGURE_NAME)
        return []
    images = [part.images for part in curve]
    with figure_style():
        figure = new_figure(8.0)
        axis = figure.subplots()
        for number, mode in enumerate(curve[0].answer.modes):
            found = [next(m for m in part.answer.modes if m.mode == mode.mode).metrics["AP"] for part in curve]
            values = np.array([one.value if one.value is not None else np.nan for one in found])
            spread = np.array([one.sd or 0.0 for one in found])
            look = class_line(number)
            axis.plot(images, values, label=mode.mode, **look)
            axis.fill_between(images, values - spread, values + spread, color=look["color"], alpha=0.15, linewidth=0)
        axis.set_xscale("log")
        axis.set_xticks(images, [f"{count:.0f}" for count in images])
        axis.minorticks_off()
        axis.set_xlabel(texts["training_images"])
        axis.set_ylabel("AP")
        axis.yaxis.set_major_formatter(AxisNumbers(texts.language))
        axis.legend()
        save_figure(figure, folder, FIGURE_NAME, text_beside=None if captions else texts["parts_figure"])
    return [f"![{texts['parts_figure']}]({FIGURE_NAME}.png)"]
