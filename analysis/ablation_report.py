"""From finished runs to the answer: what every mode reaches, whether that is more than without text, and the files
that say so.

Two references: `none` trained the same epochs without any text head, so the difference from it is what the head as a
whole does. `learned` has the head `control_head` with free vectors instead of texts, so the difference of a mode of
the same head from it is what the texts' meaning adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from analysis.compare import EvaluatedRun, Results, class_estimates, estimates, read_runs, resample
from analysis.compare_report import HASH_SHOWN, estimates_to_json, metric_name
from analysis.differences import LEAST_SEEDS, Effect, Estimate, Verdict, effect, verdict
from analysis.style import INK, AxisNumbers, figure_style, new_figure, save_figure, tidy
from analysis.tables import Cell, Number, Table, escape_markdown, format_cell, format_number, write_tables
from analysis.zero_shot import Accuracy, ZeroShot
from engine.config import ExperimentConfig
from engine.text_embeddings import alike_pairs, class_similarity
from models.config import FusionConfig
from models.text_encoder import TextEmbeddings
from texts import Language, Texts, number, percent, texts_of

MODES: tuple[str, ...] = get_args(FusionConfig.model_fields["mode"].annotation)
TEXT_MODES = ("cosine", "concat", "cross_attention")
"""Modes that are given the texts of their classes; all others are controls."""
REFERENCES = ("none", "learned")
JUDGED = "AP"
"""The metric of the verdicts."""
FIGURE_NAME = "text_similarity"
BOOTSTRAP_SEED = 0
_TABLES = ("modes", "differences", "classes", "similarity", "zero_shot")
_FALSE_ALARM = 0.05
_NAME_CHARACTERS = 24
_LARGEST_ANNOTATED = 16

Reason = Literal["reference", "control", "random_weights", "few_seeds", "no_reference", "no_boxes"]


class Task(NamedTuple):
    """One run: a mode with a seed."""

    mode: str
    seed: int
    folder: Path
    config: ExperimentConfig

    @property
    def reads_texts(self) -> bool:
        """Whether the mode is given the texts of its classes."""
        section = self.config.MultimodalFusion
        return section is not None and section.reads_texts


class Judgement(NamedTuple):
    """What may be said of a mode: a verdict, or why there is none."""

    verdict: Verdict | None
    """Against `none`."""
    reason: Reason | None
    texts: Verdict | None = None
    """Against `learned`, where there is a verdict and `learned` has the same head: whether the texts' meaning does
    it."""


@dataclass(frozen=True, eq=False)
class ModeResult:
    """One mode over its seeds."""

    mode: str
    runs: Sequence[EvaluatedRun]
    metrics: Mapping[str, Estimate]
    """AP, AP50, AP75 and, where NORMAL has boxes, AP_defects."""
    per_class: Mapping[str, Mapping[str, Estimate]]
    against: Mapping[str, Mapping[str, Effect]]
    """Reference -> metric -> effect; a mode is not compared with itself, `none` with nothing."""
    judgement: Judgement


class TextFacts(NamedTuple):
    """What is known of the texts before any training."""

    embeddings: TextEmbeddings
    language: Language
    zero_shot: ZeroShot | None
    no_zero_shot: str | None
    """Why there is none: `text_only`, `no_boxes`, or what the encoder said."""

    @property
    def similarity(self) -> Tensor:
        """[C, C], cosine similarities of the classes' averaged texts."""
        return class_similarity(self.embeddings)


@dataclass(frozen=True, eq=False)
class Answer:
    """Everything that is written."""

    modes: Sequence[ModeResult]
    seeds: Sequence[int]
    samples: int
    control_head: str
    """Of `learned`, `random` and `shuffled`."""
    texts: TextFacts | None
    """None where no mode reads texts."""

    @property
    def judged_on(self) -> Results:
        """Any run's results: split, number of images and hash of the ground truth are the same for all."""
        return self.modes[0].runs[0].results

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.modes[0].per_class)


def answer(tasks: Sequence[Task], texts: TextFacts | None, *, samples: int, progress: bool = True) -> Answer:
    """Compare finished runs.

    Args:
        tasks: All modes with the same seeds, mode by mode.
        texts: What the modes that read texts were given.
        samples: Bootstrap resamples.
        progress: Show a bar on stderr.

    Raises:
        UserError: Results are missing, damaged, or were judged on different data.
    """
    runs = read_runs([task.folder for task in tasks])
    drawn = resample(runs, samples=samples, seed=BOOTSTRAP_SEED, progress=progress)
    of_modes = {task.mode: [i for i, other in enumerate(tasks) if other.mode == task.mode] for task in tasks}
    real = texts is not None and texts.embeddings.has_real_weights
    section = tasks[0].config.MultimodalFusion
    control_head = "cosine" if section is None else section.control_head
    modes = []
    for mode, own in of_modes.items():
        against: dict[str, dict[str, Effect]] = {}
        for reference in REFERENCES:
            if reference in of_modes and reference != mode != "none":
                others = of_modes[reference]
                against[reference] = {
                    name: effect(
                        [drawn[i].metrics[name] for i in own],
                        [drawn[i].metrics[name] for i in others],
                        runs[0].results.num_images,
                    )
                    for name in drawn[0].metrics
                }
        judged = {reference: of_metrics[JUDGED] for reference, of_metrics in against.items()}
        modes.append(
            ModeResult(
                mode=mode,
                runs=[runs[i] for i in own],
                metrics=estimates([drawn[i].metrics for i in own]),
                per_class=class_estimates([drawn[i] for i in own]),
                against=against,
                judgement=judge(mode, judged, num_seeds=len(own), real=real, control_head=control_head),
            )
        )
    return Answer(modes, list(dict.fromkeys(task.seed for task in tasks)), samples, control_head, texts)


def judge(mode: str, against: Mapping[str, Effect], *, num_seeds: int, real: bool, control_head: str) -> Judgement:
    """Say what may be said of a mode.

    Args:
        mode: One of `MODES`.
        against: Its effects in `JUDGED` by reference.
        num_seeds: Runs of the mode.
        real: The text encoder has learned weights.
        control_head: Head of `learned`; only a mode of the same head differs from it by its texts alone.
    """
    if mode not in TEXT_MODES:
        return Judgement(None, "reference" if mode == "none" else "control")
    if not real:
        return Judgement(None, "random_weights")
    if "none" not in against:
        return Judgement(None, "no_reference")
    if against["none"].value is None:
        return Judgement(None, "no_boxes")
    interval = against["none"].interval
    if num_seeds < LEAST_SEEDS or interval is None:
        return Judgement(None, "few_seeds")
    learned = against["learned"].interval if "learned" in against and mode == control_head else None
    return Judgement(verdict(interval), None, None if learned is None else verdict(learned))


def write_answer(answer: Answer, folder: Path, lang: Language, *, captions: bool = True) -> str:
    """Write everything into `folder` and return the Markdown.

    ablation.md and ablation.tex hold all tables; each table is a CSV of its own; ablation.json has every number
    unrounded and comes last. What an earlier writing left and this one has not is removed.

    Raises:
        UserError: A file cannot be written.
    """
    tables = answer_tables(answer, lang)
    markdown = _markdown(answer, tables, lang)
    if answer.texts is None:
        for suffix in ("png", "pdf", "txt"):
            (folder / f"{FIGURE_NAME}.{suffix}").unlink(missing_ok=True)
    else:
        text = None if captions else tables["similarity"].caption
        _write_similarity_figure(answer.texts.similarity.numpy(), answer.classes, folder, lang, text)
    content = answer_to_json(answer, lang)
    write_tables(folder, "ablation", tables, lang, markdown=markdown, content=content, possible=_TABLES)
    return markdown


def answer_tables(answer: Answer, lang: Language) -> dict[str, Table]:
    """Return the tables that there is something for, by the names of `_TABLES`."""
    texts, facts, modes = texts_of(lang, "ablation"), answer.texts, answer.modes
    tables = {"modes": _modes_table(answer, texts), "differences": _differences_table(answer, texts)}
    rows: list[list[Cell]] = [
        [name, *(Number(one.per_class[name]["AP"].value, spread=one.per_class[name]["AP"].sd) for one in modes)]
        for name in answer.classes
    ]
    columns = [texts["class"], *(one.mode for one in modes)]
    tables["classes"] = Table(columns, rows, texts["classes_caption"], "tab:ablation-classes")
    if facts is not None:
        rows = [[name, *of] for name, of in zip(answer.classes, facts.similarity.tolist(), strict=True)]
        caption = texts("similarity_caption", source=facts.embeddings.source)
        tables["similarity"] = Table([texts["class"], *answer.classes], rows, caption, "tab:ablation-similarity")
        if facts.zero_shot is not None:
            tables["zero_shot"] = _zero_shot_table(facts.zero_shot, texts)
    return {name: table for name, table in tables.items() if table.rows}


def _modes_table(answer: Answer, texts: Texts) -> Table:
    compared = [name for name in REFERENCES if any(name in one.against for one in answer.modes)]
    metrics = [name for name in answer.modes[0].metrics if name != "AP75"]
    rows: list[list[Cell]] = []
    for one in answer.modes:
        seconds = [run.results.train_seconds for run in one.runs if run.results.train_seconds is not None]
        row: list[Cell] = [one.mode, len(one.runs)]
        row += [Number(one.metrics[name].value, spread=one.metrics[name].sd) for name in metrics]
        row.append(Number(float(np.mean(seconds)) / 60 if seconds else None, 1))
        row += [_both(one.against[name][JUDGED]) if name in one.against else None for name in compared]
        rows.append([*row, short_verdict(one.judgement, texts)])
    columns = [texts["mode"], texts["seeds"], *(metric_name(name, texts) for name in metrics)]
    columns += [texts["training_minutes"], *(texts("against", reference=name) for name in compared), texts["verdict"]]
    return Table(columns, rows, texts["modes_caption"], "tab:ablation")


def _differences_table(answer: Answer, texts: Texts) -> Table:
    rows: list[list[Cell]] = [
        [
            one.mode,
            reference,
            metric_name(name, texts),
            _both(found)._replace(interval=found.image_interval),
            Number(found.seed_sd),
            _both(found),
        ]
        for one in answer.modes
        for reference, effects in one.against.items()
        for name, found in effects.items()
    ]
    columns = [texts[name] for name in ("mode", "reference", "metric", "of_images", "seed_sd", "of_both")]
    return Table(columns, rows, texts("differences_caption", samples=answer.samples), "tab:ablation-differences")


def _both(found: Effect) -> Number:
    """A difference with its interval over images and seeds."""
    return Number(found.value, interval=found.interval, interval_digits=3, signed=True)


def _zero_shot_table(scores: ZeroShot, texts: Texts) -> Table:
    def cells(one: Accuracy) -> list[Cell]:
        return [one.boxes, one.images, Number(one.value, interval=one.interval)]

    rows: list[list[Cell]] = [[name, *cells(one)] for name, one in scores.per_class.items()]
    rows.append([texts["all_boxes"], *cells(scores.overall)])
    rows.append([texts["mean_of_classes"], None, None, Number(scores.mean_of_classes)])
    shares = {"chance": 1 / len(scores.per_class), "share": scores.largest_class_share}
    caption = texts("zero_shot_caption", **{name: percent(one, texts.language) for name, one in shares.items()})
    columns = [texts[name] for name in ("class", "boxes", "images", "accuracy")]
    return Table(columns, rows, caption, "tab:ablation-zero-shot")


def _markdown(answer: Answer, tables: Mapping[str, Table], lang: Language) -> str:
    texts, results = texts_of(lang, "ablation"), answer.judged_on
    intro = texts(
        "intro",
        split=escape_markdown(results.split),
        images=results.num_images,
        gt_hash=results.gt_hash[:HASH_SHOWN],
        seeds=", ".join(map(str, answer.seeds)),
    )
    said, notes = (
        "\n".join(f"- {escape_markdown(line)}" for line in lines)
        for lines in (sentences_of(answer, lang), notes_of(answer, lang))
    )
    shown = [table.to_markdown(lang) for table in tables.values()]
    parts = [f"# {texts['title']}", intro, f"{texts['answer']}:\n\n{said}", *shown, f"{texts['notes']}:\n\n{notes}"]
    return "\n\n".join(parts) + "\n"


def answer_to_json(answer: Answer, lang: Language = "en") -> dict[str, Any]:
    """Return every number, unrounded; keys are English whatever the language."""
    facts, results = answer.texts, answer.judged_on
    return {
        "split": results.split,
        "num_images": results.num_images,
        "gt_hash": results.gt_hash,
        "samples": answer.samples,
        "bootstrap_seed": BOOTSTRAP_SEED,
        "seeds": list(answer.seeds),
        "answer": sentences_of(answer, lang),
        "modes": [
            {
                "mode": one.mode,
                "runs": [{"folder": run.folder.as_posix(), "seed": run.seed} for run in one.runs],
                **estimates_to_json(one.metrics, one.per_class),
                "differences": {
                    reference: {
                        name: {
                            "difference": found.value,
                            "interval": found.interval,
                            "interval_over_images": found.image_interval,
                            "sd_over_seeds": found.seed_sd,
                            "per_seed": found.per_seed,
                        }
                        for name, found in effects.items()
                    }
                    for reference, effects in one.against.items()
                },
                "verdict": one.judgement.verdict,
                "no_verdict": one.judgement.reason,
                "against_learned": one.judgement.texts,
            }
            for one in answer.modes
        ],
        "texts": None
        if facts is None
        else {
            "source": facts.embeddings.source,
            "real_weights": facts.embeddings.has_real_weights,
            "classes": list(answer.classes),
            "similarity": facts.similarity.tolist(),
            "nearly_the_same": [pair._asdict() for pair in alike_pairs(facts.similarity, answer.classes)],
            "zero_shot": None if facts.zero_shot is None else asdict(facts.zero_shot),
            "no_zero_shot": facts.no_zero_shot,
        },
        "notes": notes_of(answer, lang),
    }


def short_verdict(judgement: Judgement, texts: Texts) -> str:
    """Return a judgement for a cell of a table."""
    return texts[f"verdict_{judgement.verdict}" if judgement.verdict else f"reason_{judgement.reason}"]


def sentences_of(answer: Answer, lang: Language) -> list[str]:
    """Return one plain sentence or two for every mode but the reference."""
    sentences = (_sentence(one, answer.control_head, texts_of(lang, "ablation")) for one in answer.modes)
    return [sentence for sentence in sentences if sentence]


def _sentence(result: ModeResult, control_head: str, texts: Texts) -> str:
    judgement, against = result.judgement, {}
    for reference, effects in result.against.items():
        difference, _, interval = format_cell(_both(effects[JUDGED]), texts.language).partition(" ")
        against[reference] = {"mode": result.mode, "difference": difference, "interval": interval}
    if judgement.verdict is not None:
        first = texts(f"sentence_{judgement.verdict}", **against["none"])
        if judgement.texts is not None:
            return f"{first} {texts(f'texts_{judgement.texts}', **against['learned'])}"
        if "learned" in against:
            return f"{first} {texts('text_other_head', head=control_head, **against['learned'])}"
        return f"{first} {texts['text_unknown']}"
    if judgement.reason == "control":
        return texts("control_sentence", **against["none"]) if "none" in against else ""
    return "" if judgement.reason == "reference" else texts(f"sentence_{judgement.reason}", mode=result.mode)


def notes_of(answer: Answer, lang: Language) -> list[str]:
    """Return what a reader must know to read the numbers; cautions first."""
    texts, facts, modes = texts_of(lang, "ablation"), answer.texts, {one.mode for one in answer.modes}
    notes = [*_cautions(answer, modes, texts), texts["note_references"], texts["note_interval"], texts["note_images"]]
    judged = [one.mode for one in answer.modes if one.judgement.verdict is not None]
    if len(judged) > 1:
        chance = percent(1 - (1 - _FALSE_ALARM) ** len(judged), lang, 0)
        notes.append(texts("note_several", count=len(judged), chance=chance))
    notes.append(texts("note_selection", split=answer.judged_on.split))
    if modes & {"random", "shuffled"}:
        notes.append(texts["note_controls"])
    if facts is None:
        return [*notes, texts["note_no_texts"]]
    notes.append(texts("note_source", source=facts.embeddings.source, language=facts.language))
    known = {"text_only": "note_text_only", "no_boxes": "note_no_boxes", None: "note_zero_shot"}
    notes.append(texts(known.get(facts.no_zero_shot, "note_zero_shot_failed"), reason=facts.no_zero_shot))
    return notes


def _cautions(answer: Answer, modes: set[str], texts: Texts) -> list[str]:
    facts, notes = answer.texts, []
    if facts is not None and not facts.embeddings.has_real_weights:
        notes.append(texts("note_random_weights", source=facts.embeddings.source))
    if len(answer.seeds) < LEAST_SEEDS:
        notes.append(texts("note_few_seeds", count=len(answer.seeds)))
    if "none" not in modes:
        notes.append(texts["note_no_none"])
    if "learned" not in modes and modes & set(TEXT_MODES):
        notes.append(texts["note_no_learned"])
    if facts is not None and (alike := alike_pairs(facts.similarity, answer.classes)):
        pairs = (f"{one} / {two} ({format_number(similarity, 3, texts.language)})" for one, two, similarity in alike)
        notes.append(texts("note_alike", pairs=", ".join(pairs)))
    return notes


def _write_similarity_figure(
    values: np.ndarray[Any, Any], names: Sequence[str], folder: Path, lang: Language, text_beside: str | None
) -> None:
    """Shaded from the least similar pair (or 0) to 1: sentence encoders seldom go below 0."""
    count, lowest = len(values), min(0.0, float(values.min()))
    size = 7 if count <= 12 else 5
    with figure_style():
        figure = new_figure(float(np.clip(0.95 * count + 3.5, 7.0, 17.0)))
        axis = figure.subplots()
        mesh = axis.pcolormesh(values, cmap="Blues", vmin=lowest, vmax=1.0, edgecolors="#cccccc", linewidth=0.3)
        title = texts_of(lang, "ablation")["figure_axis"]
        figure.colorbar(mesh, ax=axis, label=title, format=AxisNumbers(lang), shrink=0.8)
        places, shown = np.arange(count) + 0.5, [tidy(name, _NAME_CHARACTERS) for name in names]
        axis.set_xticks(places, shown, fontsize=size, rotation=45, rotation_mode="anchor", ha="right")
        axis.set_yticks(places, shown, fontsize=size)
        axis.invert_yaxis()
        axis.grid(False)
        for row, column in np.ndindex(values.shape) if count <= _LARGEST_ANNOTATED else ():
            value = float(values[row, column])
            colour = "white" if (value - lowest) / (1 - lowest) > 0.65 else INK
            place = {"x": column + 0.5, "y": row + 0.5, "ha": "center", "va": "center"}
            axis.text(**place, s=number(value, 2, lang), color=colour, fontsize=size)
        save_figure(figure, folder, FIGURE_NAME, text_beside=text_beside)
