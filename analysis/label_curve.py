"""An ablation over parts of the training set: one table, one figure and one page of all their answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.ablation_report import Answer, Task, answer_to_json, judged_cells, sentences_of, subset_title
from analysis.compare_report import metric_name, spread_cell
from analysis.style import class_line, figure_style, in_language, new_figure, remove_figure, save_figure
from analysis.tables import Cell, Number, Table, bullets, write_tables
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
    shown = [(subset, images, found) for images, found in parts if (subset := found.subset) is not None]
    said = [f"{subset_title(one, texts)}: {line}" for one, _, found in shown for line in sentences_of(found, lang)]
    pages = ", ".join(f"[{subset.name}]({subset.name}/ablation.md)" for subset, _, _ in shown)
    curve = sorted((part for part in parts if part[1].judged == "AP"), key=lambda part: part[0])
    figure = []
    if len(curve) < 2:
        remove_figure(folder, FIGURE_NAME)
    else:
        figure = [f"![{texts['parts_figure']}]({FIGURE_NAME}.png)"]
        with figure_style():
            caption = None if captions else texts["parts_figure"]
            save_figure(_curve(curve, texts), folder, FIGURE_NAME, text_beside=caption)
    table = _table(parts, texts)
    blocks = [f"# {texts['parts_title']}", *figure, bullets(said), table.to_markdown(lang), texts["parts_note"]]
    markdown = "\n\n".join([*blocks, texts("parts_pages", pages=pages)]) + "\n"
    content = [{"name": one.name, "images": images, **answer_to_json(found, lang)} for one, images, found in shown]
    write_tables(folder, "labels", {"labels": table}, lang, markdown=markdown, content={"parts": content})
    return markdown


def _table(parts: Sequence[Part], texts: Texts) -> Table:
    rows: list[list[Cell]] = []
    for images, found in parts:
        title = "" if found.subset is None else subset_title(found.subset, texts)
        for one in found.modes:
            row: list[Cell] = [title, Number(images, 0), one.label, metric_name(found.judged, texts)]
            row.append(spread_cell(one.metrics[found.judged]))
            rows.append(row + judged_cells(one, found, found.references, texts))
    columns = [texts[key] for key in ("part", "training_images", "mode", "metric", "value")]
    for names in zip(*(found.references for _, found in parts), strict=True):
        columns.append(texts("minus", reference=" / ".join(dict.fromkeys(names))))
    return Table([*columns, texts["bound"], texts["verdict"]], rows, texts["parts_caption"], "tab:ablation-labels")


def _curve(curve: Sequence[Part], texts: Texts) -> Figure:
    """AP against labels, mean and standard deviation over the seeds."""
    images, answers = zip(*curve, strict=True)
    figure = new_figure(8.0)
    axis = figure.subplots()
    for number, mode in enumerate(answers[0].modes):
        found = [next(m for m in one.modes if m.label == mode.label).metrics["AP"] for one in answers]
        values = np.array([one.value if one.value is not None else np.nan for one in found])
        spread = np.array([one.sd or 0.0 for one in found])
        look = class_line(number)
        axis.plot(images, values, label=mode.label, **look)
        axis.fill_between(images, values - spread, values + spread, color=look["color"], alpha=0.15, linewidth=0)
    axis.set(xscale="log", xlabel=texts["training_images"], ylabel="AP")
    axis.set_xticks(images, [f"{count:.0f}" for count in images])
    axis.minorticks_off()
    in_language(texts.language, axis.yaxis)
    axis.legend()
    return figure
