"""From finished runs to the answer: what every mode reaches, whether that is more than without text, and the files
that say so.

Two references: `none` trained the same epochs without any text head, so the difference from it is what the head as a
whole does. `learned` has the head `control_head` with free vectors instead of texts, so the difference of a mode of
the same head from it is what the texts' meaning adds. For a class that was held out the references are `random` and
`shuffled`: without a vector it has no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from matplotlib.colors import Normalize
from torch import Tensor

from analysis.compare import EvaluatedRun, Results, Row, estimates, read_runs, resample
from analysis.compare_report import (
    class_table,
    difference_cell,
    judged_facts,
    judged_to_json,
    metric_name,
    page,
    row_to_json,
    spread_cell,
)
from analysis.curves import SCORE_THRESHOLDS, ranked_hits, score_curves
from analysis.differences import (
    LEAST_SEEDS,
    Effect,
    Equivalence,
    RankCorrelation,
    Verdict,
    effect,
    mean_of,
    rank_correlation,
    tost,
    verdict,
)
from analysis.errors import confusion
from analysis.style import figure_style, remove_figure, save_figure, shaded_table
from analysis.tables import (
    Cell,
    Number,
    Table,
    bullets,
    escape_markdown,
    format_cell,
    format_number,
    p_value,
    write_tables,
)
from analysis.zero_shot import Accuracy, ZeroShot
from data.subsets import Subset
from engine.checkpoint import load_checkpoint, model_state
from engine.config import ExperimentConfig
from engine.text_embeddings import alike_pairs, class_similarity
from models.config import FusionConfig
from models.text_encoder import TextEmbeddings
from models.text_fusion import HARDLY_LOGITS, largest_say
from texts import Language, Texts, percent, texts_of

MODES: tuple[str, ...] = get_args(FusionConfig.model_fields["mode"].annotation)
TEXT_MODES = ("cosine", "concat", "cross_attention")
"""Modes that are given the texts of their classes; all others are controls."""
REFERENCES = ("none", "learned")
HELD_OUT_REFERENCES = ("random", "shuffled")
MARGIN_AP = 0.005
"""A difference smaller than this is none, for the equivalence test."""
FIGURE_NAME = "text_similarity"
_LABEL = "tab:ablation"
BOOTSTRAP_SEED = 0
_TABLES = ("modes", "differences", "classes", "similarity", "zero_shot")
_FALSE_ALARM = 0.05

Reason = Literal["reference", "control", "random_weights", "few_seeds", "no_reference", "no_boxes", "floor"]


class Task(NamedTuple):
    """One run: a mode with a seed; or, of a part of the training set, its phase 1."""

    mode: str
    seed: int
    folder: Path
    config: ExperimentConfig
    start: Path | None = None
    """Checkpoint of phase 1; None: it starts as a detector without text does."""
    subset: Subset | None = None
    """What of the training set it is given; None: all, from a phase 1 that was there."""

    @property
    def name(self) -> str:
        """Of the run, in its ablation."""
        return self.folder.name if self.subset is None else f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def reads_texts(self) -> bool:
        """Whether the mode is given the texts of its classes."""
        section = self.config.MultimodalFusion
        return section is not None and section.reads_texts


class Judgement(NamedTuple):
    """What may be said of a mode: a verdict, or why there is none."""

    verdict: Verdict | None
    """Against the first reference."""
    reason: Reason | None
    texts: Verdict | None = None
    """Against the second, where there is a verdict and it has the same head: whether the texts' meaning does it."""
    equivalence: Equivalence | None = None
    """Against the first."""


@dataclass(frozen=True, eq=False)
class ModeResult(Row):
    """One mode over its seeds; of a question about one class its metrics hold the class's own AP, too."""

    against: Mapping[str, Mapping[str, Effect]]
    """Reference -> metric -> effect; a mode is not compared with itself, the first reference with nothing."""
    judgement: Judgement
    say_logits: float | None = None
    """`largest_say` of its text head, mean over the seeds; None without one, or without all checkpoints."""


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
    references: tuple[str, ...]
    """Modes that the others are compared with."""
    judged: str
    """The metric of the verdicts."""
    control_head: str
    """Of `learned`, `random` and `shuffled`."""
    texts: TextFacts | None
    """None where no mode reads texts."""
    subset: Subset | None = None
    """What of the training set was used, see `Task`."""
    from_start: bool = False
    """Trained with text from the first step."""
    margin: float = MARGIN_AP
    confused: RankCorrelation | None = None
    """Of the similarity of two classes' texts and how often the first reference's models take one for the other."""

    @property
    def judged_on(self) -> Results:
        """Any run's results: split, number of images and hash of the ground truth are the same for all."""
        return self.modes[0].runs[0].results

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.modes[0].per_class)


def answer(tasks: Sequence[Task], texts: TextFacts | None, *, samples: int, margin: float = MARGIN_AP) -> Answer:
    """Compare finished runs, all modes with the same seeds, mode by mode.

    Raises:
        UserError: Results are missing, damaged, or were judged on different data.
    """
    runs = read_runs([task.folder for task in tasks])
    drawn = resample(runs, samples=samples, seed=BOOTSTRAP_SEED)
    subset, section = tasks[0].subset, tasks[0].config.MultimodalFusion
    references = REFERENCES if subset is None or subset.held_out is None else HELD_OUT_REFERENCES
    judged = "AP"
    if subset is not None and subset.judged_class is not None:
        judged = f"AP {subset.judged_class}"
        for one in drawn:
            one.metrics[judged] = one.per_class[subset.judged_class]["AP"]
    rows = {task.mode: [i for i, other in enumerate(tasks) if other.mode == task.mode] for task in tasks}
    images, control_head = runs[0].results.num_images, "cosine" if section is None else section.control_head

    def effects(*modes: str) -> dict[str, Effect]:
        own, others = ([drawn[i].metrics for i in rows[mode]] for mode in modes)
        return {name: effect([one[name] for one in own], [one[name] for one in others], images) for name in own[0]}

    results = []
    for mode, own in rows.items():
        there = [name for name in references if name in rows and name != mode != references[0]]
        against = {reference: effects(mode, reference) for reference in there}
        numbers = estimates([drawn[i] for i in own])
        judgement = judge(
            mode,
            {reference: of_metrics[judged] for reference, of_metrics in against.items()},
            reached=numbers[0][judged].value,
            num_seeds=len(own),
            real=texts is not None and texts.embeddings.has_real_weights,
            control_head=control_head,
            references=references,
            margin=margin,
        )
        say = _say([tasks[i] for i in own])
        results.append(ModeResult(mode, [runs[i] for i in own], *numbers, against, judgement, say))
    confused = None
    if texts is not None and references[0] in rows:
        confused = _confused(texts.similarity.numpy(), [runs[i] for i in rows[references[0]]])
    seeds, from_start = [*dict.fromkeys(task.seed for task in tasks)], section is not None and section.from_start
    return Answer(
        results, seeds, samples, references, judged, control_head, texts, subset, from_start, margin, confused
    )


def _say(tasks: Sequence[Task]) -> float | None:
    paths = [task.folder / "best.pth" for task in tasks]
    return mean_of([largest_say(model_state(load_checkpoint(path))) if path.is_file() else None for path in paths])


def _confused(similarity: np.ndarray[Any, Any], runs: Sequence[EvaluatedRun]) -> RankCorrelation | None:
    """Over pairs of classes: boxes of either that the models take for the other, at IoU 0.5 and the best F1."""
    counts = np.zeros(np.add(similarity.shape, 1))
    for run in runs:
        f1 = score_curves(*ranked_hits(run.matches, None))[2]
        score = float(SCORE_THRESHOLDS[f1.argmax()])  # the first where there is no ground truth, and nothing to count
        counts += confusion(run.matches, iou=0.5, score=score)
    boxes = counts[:-1].sum(axis=1)
    first, second = np.triu_indices(len(similarity), k=1)
    known = boxes[first] * boxes[second] > 0
    first, second = first[known], second[known]
    shares = (counts[first, second] + counts[second, first]) / (boxes[first] + boxes[second])
    return rank_correlation(similarity[first, second], shares)


def judge(
    mode: str,
    against: Mapping[str, Effect],
    *,
    reached: float | None,
    num_seeds: int,
    real: bool,
    control_head: str,
    references: Sequence[str] = REFERENCES,
    margin: float = MARGIN_AP,
) -> Judgement:
    """Say what may be said of a mode, given what it has `reached` in the judged metric and its effects there by
    reference; `real`: the text encoder has learned weights. Only a mode of the controls' head differs from them by its
    texts alone. Two that detect nothing are no larger apart than any margin, which is no answer.
    """
    first, second = references
    if mode not in TEXT_MODES:
        return Judgement(None, "reference" if mode == first else "control")
    if not real:
        return Judgement(None, "random_weights")
    if first not in against:
        return Judgement(None, "no_reference")
    if against[first].value is None:
        return Judgement(None, "no_boxes")
    interval = against[first].interval
    if num_seeds < LEAST_SEEDS or interval is None:
        return Judgement(None, "few_seeds")
    control = against[second].interval if second in against and mode == control_head else None
    found, equivalence = verdict(interval), tost(against[first], margin)
    if found == "no_difference" and equivalence is not None and equivalence.p_value < _FALSE_ALARM:
        if max(reached or 0.0, (reached or 0.0) - (against[first].value or 0.0)) < margin:
            return Judgement(None, "floor")
        found = "equivalent"
    return Judgement(found, None, None if control is None else verdict(control), equivalence)


def write_answer(answer: Answer, folder: Path, lang: Language, *, captions: bool = True) -> str:
    """Write everything into `folder` and return the Markdown.

    ablation.md and ablation.tex hold all tables; each table is a CSV of its own; ablation.json has every number
    unrounded and comes last. What an earlier writing left and this one has not is removed.
    """
    texts, tables = texts_of(lang, "ablation"), answer_tables(answer, lang)
    said = f"{texts['answer']}:\n\n{bullets(sentences_of(answer, lang))}"
    markdown = page(texts, [_introduction(answer, texts), said], tables, notes_of(answer, lang))
    if answer.texts is None:
        remove_figure(folder, FIGURE_NAME)
    else:
        similarity = answer.texts.similarity.numpy()
        # From the least similar pair, or 0: sentence encoders seldom go below 0.
        scale = Normalize(min(0.0, float(similarity.min())), 1)
        with figure_style():
            figure, _ = shaded_table(similarity, answer.classes, answer.classes, scale, texts["figure_axis"], lang)
            text = None if captions else tables["similarity"].caption
            save_figure(figure, folder, FIGURE_NAME, text_beside=text)
    content = answer_to_json(answer, lang)
    write_tables(folder, "ablation", tables, lang, markdown=markdown, content=content, possible=_TABLES)
    return markdown


def answer_tables(answer: Answer, lang: Language) -> dict[str, Table]:
    """Return the tables that there is something for, by the names of `_TABLES`."""
    texts, facts, modes = texts_of(lang, "ablation"), answer.texts, answer.modes
    tables = {"modes": _modes_table(answer, texts), "differences": _differences_table(answer, texts)}
    tables["classes"] = class_table(modes, spread_cell, texts["classes_caption"], texts, _LABEL)
    if facts is not None:
        rows: list[list[Cell]] = [
            [name, *of] for name, of in zip(answer.classes, facts.similarity.tolist(), strict=True)
        ]
        caption = texts("similarity_caption", source=facts.embeddings.source)
        tables["similarity"] = Table([texts["class"], *answer.classes], rows, caption, f"{_LABEL}-similarity")
        if facts.zero_shot is not None:
            tables["zero_shot"] = _zero_shot_table(facts.zero_shot, texts)
    return {name: table for name, table in tables.items() if table.rows}


def _modes_table(answer: Answer, texts: Texts) -> Table:
    compared = [name for name in answer.references if any(name in one.against for one in answer.modes)]
    metrics = [name for name in answer.modes[0].metrics if name != "AP75"]
    rows: list[list[Cell]] = []
    for one in answer.modes:
        seconds = [run.results.train_seconds for run in one.runs if run.results.train_seconds is not None]
        minutes = Number(float(np.mean(seconds)) / 60 if seconds else None, 1)
        row: list[Cell] = [one.label, len(one.runs), *(spread_cell(one.metrics[name]) for name in metrics), minutes]
        rows.append(row + judged_cells(one, answer, compared, texts))
    judged = metric_name(answer.judged, texts)
    columns = [texts["mode"], texts["seeds"], *(metric_name(name, texts) for name in metrics)]
    columns += [texts["training_minutes"], *(texts("against", metric=judged, reference=name) for name in compared)]
    return Table([*columns, texts["bound"], texts["verdict"]], rows, texts["modes_caption"], _LABEL)


def judged_cells(one: ModeResult, answer: Answer, references: Sequence[str], texts: Texts) -> list[Cell]:
    """Return differences from the references in the judged metric, the least margin that holds, and the verdict."""
    against = [one.against.get(reference) for reference in references]
    bound, verdict = one.judgement.equivalence, short_verdict(one.judgement, texts, answer.margin)
    cells = [None if effects is None else difference_cell(effects[answer.judged]) for effects in against]
    return [*cells, Number(bound and bound.bound), verdict]


def _differences_table(answer: Answer, texts: Texts) -> Table:
    rows: list[list[Cell]] = [
        [
            one.label,
            reference,
            metric_name(name, texts),
            difference_cell(found)._replace(interval=found.image_interval),
            Number(found.seed_sd),
            difference_cell(found),
        ]
        for one in answer.modes
        for reference, effects in one.against.items()
        for name, found in effects.items()
    ]
    columns = [texts[name] for name in ("mode", "reference", "metric", "of_images", "seed_sd", "of_both")]
    return Table(columns, rows, texts("differences_caption", samples=answer.samples), f"{_LABEL}-differences")


def _zero_shot_table(scores: ZeroShot, texts: Texts) -> Table:
    def cells(one: Accuracy) -> list[Cell]:
        return [one.boxes, one.images, Number(one.value, interval=one.interval)]

    rows: list[list[Cell]] = [[name, *cells(one)] for name, one in scores.per_class.items()]
    rows.append([texts["all_boxes"], *cells(scores.overall)])
    rows.append([texts["mean_of_classes"], None, None, Number(scores.mean_of_classes)])
    shares = {"chance": 1 / len(scores.per_class), "share": scores.largest_class_share}
    caption = texts("zero_shot_caption", **{name: percent(one, texts.language) for name, one in shares.items()})
    columns = [texts[name] for name in ("class", "boxes", "images", "accuracy")]
    return Table(columns, rows, caption, f"{_LABEL}-zero-shot")


def _introduction(answer: Answer, texts: Texts) -> str:
    intro = texts("intro", **judged_facts(answer.judged_on), seeds=", ".join(map(str, answer.seeds)))
    start = "from_start" if answer.from_start else "start" if answer.subset is None else "own_start"
    part = "" if answer.subset is None else f"{escape_markdown(subset_title(answer.subset, texts))}. "
    return f"{part}{intro} {texts[f'intro_{start}']}"


def answer_to_json(answer: Answer, lang: Language = "en") -> dict[str, Any]:
    """Return every number, unrounded; keys are English whatever the language."""
    facts = answer.texts
    return {
        **judged_to_json(answer.judged_on),
        "samples": answer.samples,
        "bootstrap_seed": BOOTSTRAP_SEED,
        "seeds": list(answer.seeds),
        "subset": answer.subset and asdict(answer.subset),
        "from_start": answer.from_start,
        "judged": answer.judged,
        "margin": answer.margin,
        "text_similarity_and_confusion": answer.confused and answer.confused._asdict(),
        "answer": sentences_of(answer, lang),
        "modes": [_mode_to_json(one) for one in answer.modes],
        "texts": facts
        and {
            "source": facts.embeddings.source,
            "real_weights": facts.embeddings.has_real_weights,
            "classes": list(answer.classes),
            "similarity": facts.similarity.tolist(),
            "nearly_the_same": [pair._asdict() for pair in alike_pairs(facts.similarity, answer.classes)],
            "zero_shot": facts.zero_shot and asdict(facts.zero_shot),
            "no_zero_shot": facts.no_zero_shot,
        },
        "notes": notes_of(answer, lang),
    }


def _mode_to_json(one: ModeResult) -> dict[str, Any]:
    return {
        "mode": one.label,
        **row_to_json(one),
        "differences": {
            reference: {
                name: {"difference": found.value, "interval": found.interval}
                | {"interval_over_images": found.image_interval, "sd_over_seeds": found.seed_sd}
                | {"per_seed": found.per_seed}
                for name, found in effects.items()
            }
            for reference, effects in one.against.items()
        },
        "verdict": one.judgement.verdict,
        "no_verdict": one.judgement.reason,
        "against_control": one.judgement.texts,
        "largest_say_logits": one.say_logits,
        "equivalence": one.judgement.equivalence and one.judgement.equivalence._asdict(),
    }


def short_verdict(judgement: Judgement, texts: Texts, margin: float) -> str:
    """Return a judgement for a cell of a table."""
    if judgement.verdict is None:
        return texts[f"reason_{judgement.reason}"]
    return texts(f"verdict_{judgement.verdict}", margin=format_number(margin, 3, texts.language))


def subset_title(subset: Subset, texts: Texts) -> str:
    """Return what of the training set was used."""
    if subset.rare is not None:
        return texts("subset_rare", name=subset.rare[0], images=subset.rare[1])
    if subset.held_out is not None:
        return texts("subset_held_out", name=subset.held_out)
    digits = 0 if round(100 * subset.fraction, 6).is_integer() else 1
    return texts("subset_fraction", share=percent(subset.fraction, texts.language, digits))


def sentences_of(answer: Answer, lang: Language) -> list[str]:
    """Return one plain sentence or two for every mode but the reference."""
    texts = texts_of(lang, "ablation")
    sentences = [_sentence(one, answer, texts) for one in answer.modes]
    if answer.subset is not None and (name := answer.subset.held_out) is not None:
        for one in answer.modes:
            found = one.per_class[name]["AP"]
            shown = format_cell(Number(found.value, interval=found.interval, interval_digits=3), lang)
            sentences.append(texts("sentence_zero_shot", mode=one.label, name=name, value=shown))
    return [sentence for sentence in sentences if sentence]


def _sentence(result: ModeResult, answer: Answer, texts: Texts) -> str:
    judgement, against, (none, learned) = result.judgement, {}, answer.references
    margin = format_number(answer.margin, 3, texts.language)
    for reference, effects in result.against.items():
        difference, _, interval = format_cell(difference_cell(effects[answer.judged]), texts.language).partition(" ")
        facts = {"mode": result.label, "metric": metric_name(answer.judged, texts), "reference": reference}
        against[reference] = {**facts, "difference": difference, "interval": interval}
    if judgement.reason == "control":
        return texts("control_sentence", **against[none]) if none in against else ""
    if judgement.verdict is None:
        facts = {"mode": result.label, "metric": metric_name(answer.judged, texts), "reference": none, "margin": margin}
        return "" if judgement.reason == "reference" else texts(f"sentence_{judgement.reason}", **facts)
    p = format_cell(p_value(judgement.equivalence and judgement.equivalence.p_value), texts.language)
    first = texts(f"sentence_{judgement.verdict}", **against[none], margin=margin, p_value=p)
    if judgement.texts is not None:
        control = {**against[learned], "reference": texts[f"said_{learned}"]}
        return f"{first} {texts(f'texts_{judgement.texts}', **control)}"
    if learned in against:
        return f"{first} {texts('text_other_head', head=answer.control_head, **against[learned])}"
    return f"{first} {texts['text_unknown']}"


def notes_of(answer: Answer, lang: Language) -> list[str]:
    """Return what a reader must know to read the numbers; cautions first."""
    texts, facts, modes = texts_of(lang, "ablation"), answer.texts, {one.label for one in answer.modes}
    first = answer.references[0]
    notes = _cautions(answer, modes, texts)
    notes += [texts[f"note_references_{first}"], texts("note_interval", reference=first)]
    notes += [texts("note_margin", margin=format_number(answer.margin, 3, lang)), texts["note_images"]]
    judged = [one.label for one in answer.modes if one.judgement.verdict is not None]
    if len(judged) > 1:
        chance = percent(1 - (1 - _FALSE_ALARM) ** len(judged), lang, 0)
        notes.append(texts("note_several", count=len(judged), chance=chance, reference=first))
    notes.append(texts("note_selection", split=answer.judged_on.split))
    if modes & {"random", "shuffled", "waffle"}:
        notes.append(texts["note_controls"])
    if say := {one.label: one.say_logits for one in answer.modes if one.say_logits is not None}:
        values = ", ".join(f"{mode} {format_number(most, 2, lang)}" for mode, most in say.items())
        notes.append(texts("note_say", values=values))
    if facts is None:
        return [*notes, texts["note_no_texts"]]
    if answer.confused is not None:
        shown = Number(answer.confused.value, 2, answer.confused.interval, 2, signed=True)
        notes.append(texts("note_confused", value=format_cell(shown, lang), count=answer.confused.pairs, mode=first))
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
    says = [(one.label, one.say_logits) for one in answer.modes if one.label in TEXT_MODES]
    if closed := [mode for mode, say in says if say is not None and say < HARDLY_LOGITS]:
        most = format_number(HARDLY_LOGITS, 1, texts.language)
        notes.append(texts("note_closed", modes=", ".join(closed), most=most))
    values = [one.metrics[answer.judged].value for one in answer.modes]
    if answer.judged != "AP" and all(value is not None and value < answer.margin for value in values):
        margin = format_number(answer.margin, 3, texts.language)
        notes.append(texts("note_not_found", metric=metric_name(answer.judged, texts), margin=margin))
    if "none" in answer.references and "none" not in modes:
        notes.append(texts["note_no_none"])
    if "learned" in answer.references and "learned" not in modes and modes & set(TEXT_MODES):
        notes.append(texts["note_no_learned"])
    if facts is not None and (alike := alike_pairs(facts.similarity, answer.classes)):
        pairs = (f"{one} / {two} ({format_number(similarity, 3, texts.language)})" for one, two, similarity in alike)
        notes.append(texts("note_alike", pairs=", ".join(pairs)))
    return notes
