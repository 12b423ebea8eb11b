"""An ablation over parts of the training set: one table, one figure and one page of all their answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.ablation_report import Answer, Task, answer_to_json, sentences_of, short_verdict, subset_title
from analysis.compare_report import difference_cell, metric_name, spread_cell
from analysis.style import AxisNumbers, class_line, figure_style, new_figure, remove_figure, save_figure
from analysis.tables import Cell, Number, Table, bullets, write_tables
from data.subsets import Subset
from texts import Language, Texts, texts_of

FIGURE_NAME = "label_curve"


Part = tuple[float, Answer]
"""Training images of one part of the set, mean over the seeds, and what was found with it."""


def part_of(tasks: Sequence[Task], found: Answer) -> Part:
    """Join an answer with the number of images that its runs were trained on."""
    files = {task.config.train_dataloader.dataset.ann_file for task in tasks}
    return float(np.mean([len(json.loads(file.read_text(encoding="utf-8"))["images"]) for file in files])), found


def write_parts(parts: Sequence[Part], folder: Path, lang: Language, *, captions: bool = True) -> str:
    """Write labels.md, .tex, .csv and .json, and with two fractions or more the curve; return the Markdown."""
    texts = texts_of(lang, "ablation")
    table, answers = _table(parts, texts), [found for _, found in parts]
    said = [f"{_title(one, texts)}: {sentence}" for one in answers for sentence in sentences_of(one, lang)]
    names = [_subset(one).name for one in answers]
    pages = texts("parts_pages", pages=", ".join(f"[{name}]({name}/ablation.md)" for name in names))
    figure = _figure_link(parts, folder, texts, captions)
    blocks = [f"# {texts['parts_title']}", *figure, bullets(said), table.to_markdown(lang), texts["parts_note"], pages]
    markdown = "\n\n".join(blocks) + "\n"
    content = [
        {"name": name, "images": images, **answer_to_json(one, lang)}
        for name, (images, one) in zip(names, parts, strict=True)
    ]
    write_tables(folder, "labels", {"labels": table}, lang, markdown=markdown, content={"parts": content})
    return markdown


def _subset(answer: Answer) -> Subset:
    assert answer.subset is not None, "an ablation of the whole set has no parts"
    return answer.subset


def _title(answer: Answer, texts: Texts) -> str:
    return subset_title(_subset(answer), texts)


def _table(parts: Sequence[Part], texts: Texts) -> Table:
    rows: list[list[Cell]] = []
    for images, answer in parts:
        for one in answer.modes:
            equivalence = one.judgement.equivalence
            row: list[Cell] = [_title(answer, texts), Number(images, 0), one.label, metric_name(answer.judged, texts)]
            row.append(spread_cell(one.metrics[answer.judged]))
            for reference in answer.references:
                of_metrics = one.against.get(reference)
                row.append(None if of_metrics is None else difference_cell(of_metrics[answer.judged]))
            row.append(Number(equivalence and equivalence.bound))
            rows.append([*row, short_verdict(one.judgement, texts, answer.margin)])
    columns = [texts[key] for key in ("part", "training_images", "mode", "metric", "value")]
    for names in zip(*(answer.references for _, answer in parts), strict=True):
        columns.append(texts("minus", reference=" / ".join(dict.fromkeys(names))))
    return Table([*columns, texts["bound"], texts["verdict"]], rows, texts["parts_caption"], "tab:ablation-labels")


def _figure_link(parts: Sequence[Part], folder: Path, texts: Texts, captions: bool) -> list[str]:
    """AP against labels, mean and standard deviation over the seeds; removed where there are fewer than two."""
    curve = sorted((part for part in parts if _subset(part[1]).judged_class is None), key=lambda part: part[0])
    if len(curve) < 2:
        remove_figure(folder, FIGURE_NAME)
        return []
    images, answers = zip(*curve, strict=True)
    with figure_style():
        figure = new_figure(8.0)
        axis = figure.subplots()
        for number, mode in enumerate(answers[0].modes):
            found = [next(m for m in one.modes if m.label == mode.label).metrics["AP"] for one in answers]
            values = np.array([one.value if one.value is not None else np.nan for one in found])
            spread = np.array([one.sd or 0.0 for one in found])
            look = class_line(number)
            axis.plot(images, values, label=mode.label, **look)
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
