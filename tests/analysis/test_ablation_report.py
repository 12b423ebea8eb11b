"""From simulated runs to verdicts, and the files that tell them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.ablation_report import (
    Answer,
    answer,
    answer_tables,
    answer_to_json,
    judge,
    notes_of,
    sentences_of,
    short_verdict,
    write_answer,
)
from analysis.bootstrap import Interval
from analysis.differences import Effect, RankCorrelation
from analysis.tables import Number
from analysis.zero_shot import Accuracy, ZeroShot
from data.errors import UserError
from data.subsets import Subset
from engine.config import ExperimentConfig, load_config
from tests.support.ablation import QUALITY, facts, tasks_of, write_runs
from tests.support.configs import CONFIGS
from tests.support.latex import LINE_PT, compile_article, tabular_widths_pt
from texts import texts_of

SAMPLES = 200
ZERO_SHOT = ZeroShot(
    overall=Accuracy(40, 20, 30, 0.75, Interval(0.53, 0.89)),
    mean_of_classes=0.7,
    per_class={
        "scratch": Accuracy(30, 18, 24, 0.8, Interval(0.6, 0.9)),
        "dent & hole": Accuracy(10, 5, 6, 0.6, Interval(0.2, 0.9)),
    },
    largest_class_share=0.75,
)


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load_config(CONFIGS / "quickstart_multimodal.yml")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder, QUALITY)
    return folder


@pytest.fixture(scope="module")
def found(runs: Path, config: ExperimentConfig) -> Answer:
    return answer(tasks_of(runs, config, list(QUALITY)), facts(), samples=SAMPLES)


def mode(found: Answer, name: str) -> Any:
    return next(result for result in found.modes if result.label == name)


def test_verdicts(found: Answer) -> None:
    verdicts = {result.label: (result.judgement.verdict, result.judgement.reason) for result in found.modes}
    assert verdicts == {
        "cosine": ("helps", None),
        "concat": ("no_difference", None),
        "cross_attention": ("hurts", None),
        "learned": (None, "control"),
        "random": (None, "control"),
        "none": (None, "reference"),
    }
    assert mode(found, "cosine").judgement.texts == "helps"
    assert mode(found, "concat").judgement.texts is None, "learned has another head"
    assert found.seeds == [0, 1, 2] and found.judged_on.num_images == 60


def test_numbers_are_those_of_the_runs(found: Answer, runs: Path) -> None:
    def aps(name: str) -> list[float]:
        files = [runs / f"{name}_seed{seed}" / "results.json" for seed in range(3)]
        return [json.loads(file.read_text(encoding="utf-8"))["metrics"]["AP"] for file in files]

    result = mode(found, "cosine")
    assert result.metrics["AP"].value == pytest.approx(np.mean(aps("cosine")))
    assert result.metrics["AP"].sd == pytest.approx(np.std(aps("cosine"), ddof=1))
    for reference in ("none", "learned"):
        assert result.against[reference]["AP"].per_seed == pytest.approx(np.subtract(aps("cosine"), aps(reference)))
    assert set(mode(found, "learned").against) == {"none"} and not mode(found, "none").against
    assert set(result.per_class) == {"scratch", "dent & hole"}


SMALL = Effect(0.001, (0.001,) * 3, 0.0, None, Interval(-0.002, 0.004), 0.001, 8.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"real": False}, "random_weights"),
        ({"num_seeds": 2}, "few_seeds"),
        ({"against": {}}, "no_reference"),
        ({"against": {"none": Effect(None, (), None, None, None)}}, "no_boxes"),
        ({"against": {"none": SMALL}, "reached": 0.004}, "floor"),
    ],
)
def test_no_verdict_without_grounds(found: Answer, changes: dict[str, Any], reason: str) -> None:
    good = Effect(0.1, (0.1,) * 3, 0.0, Interval(0.05, 0.15), Interval(0.05, 0.15))
    arguments: dict[str, Any] = {
        "against": {"none": good},
        "reached": 0.3,
        "num_seeds": 3,
        "real": True,
        "control_head": "cosine",
    }
    assert judge("cosine", **arguments).verdict == "helps"
    judged = judge("cosine", **{**arguments, **changes})
    assert judged.verdict is None and judged.reason == reason
    result = dataclasses.replace(mode(found, "cosine"), judgement=judged)
    for lang, start in (("en", "cosine: no verdict. "), ("es", "cosine: sin veredicto. ")):
        (sentence,) = sentences_of(dataclasses.replace(found, modes=[result]), lang)
        assert sentence.startswith(start)
        assert short_verdict(judged, texts_of(lang, "ablation"), 0.005).startswith(start[8:-2])


def test_a_missing_run_is_an_error(found: Answer, runs: Path, config: ExperimentConfig) -> None:
    with pytest.raises(UserError, match="cosine_seed7: no such folder"):
        answer(tasks_of(runs, config, ["none", "cosine"], [0, 7]), None, samples=SAMPLES)


def test_sentences(found: Answer) -> None:
    english = {sentence.split()[0].rstrip(":"): sentence for sentence in sentences_of(found, "en")}
    assert set(english) == set(QUALITY) - {"none"}
    number = r"[+-]0\.\d{3} \[[+-]0\.\d{3}, [+-]0\.\d{3}\]"
    assert re.fullmatch(
        rf"cosine helps: AP {number} against none\. It is also better than learned, .*\({number}\).*adds something\.",
        english["cosine"],
    )
    other_head = rf"Against learned: {number}, but that has the head cosine, .*control_head=cross_attention .*"
    assert re.fullmatch(rf"cross_attention hurts: AP {number} against none\. {other_head}", english["cross_attention"])
    assert re.match(rf"concat: no difference shown: AP {number} against none\. Against learned: ", english["concat"])
    assert re.fullmatch(rf"learned \(control\): AP {number} against none\.", english["learned"])
    spanish = sentences_of(found, "es")
    assert spanish[0].startswith("cosine ayuda: AP +0,") and "; +0," in spanish[0]


@pytest.mark.parametrize(
    ("low", "texts", "sentence"),
    [
        (0.05, "helps", "It is also better than learned, "),
        (-0.1, "no_difference", "Against learned, the same head with free vectors, no difference is shown "),
        (-0.3, "hurts", "It is worse than learned, "),
        (None, None, "Mode learned was not run, "),
    ],
)
def test_a_gain_is_of_the_texts_only_if_learned_lacks_it(
    found: Answer, low: float | None, texts: str | None, sentence: str
) -> None:
    against = {"none": effect_of(0.05)} | ({} if low is None else {"learned": effect_of(low)})
    judged = judge("cosine", against, reached=0.3, num_seeds=3, real=True, control_head="cosine")
    assert (judged.verdict, judged.texts) == ("helps", texts)
    result = dataclasses.replace(
        mode(found, "cosine"), judgement=judged, against={name: {"AP": one} for name, one in against.items()}
    )
    (english,) = sentences_of(dataclasses.replace(found, modes=[result]), "en")
    assert f" against none. {sentence}" in english


def effect_of(low: float) -> Effect:
    """With an interval of 0.2 from `low` on."""
    return Effect(low + 0.1, (low + 0.1,) * 3, 0.0, None, Interval(low, low + 0.2))


def test_a_small_difference_is_said_to_be_no_larger(found: Answer) -> None:
    arguments: dict[str, Any] = {"num_seeds": 3, "real": True, "control_head": "cosine"}
    judged = judge("cosine", {"none": SMALL}, reached=0.006, **arguments)
    assert judged.verdict == "equivalent" and judged.equivalence is not None
    assert judge("cosine", {"none": SMALL}, reached=0.3, margin=0.002, **arguments).verdict == "no_difference"
    result = dataclasses.replace(mode(found, "cosine"), judgement=judged, against={"none": {"AP": SMALL}})
    changed = dataclasses.replace(found, modes=[result])
    (english,), (spanish,) = (sentences_of(changed, lang) for lang in ("en", "es"))
    assert english.startswith("cosine: a difference, if any, is smaller than 0.005: AP +0.001 [-0.002, +0.004] against")
    assert "two one-sided tests, p 0.00" in english and spanish.startswith(
        "cosine: si hay diferencia, es menor que 0,005"
    )
    rows = answer_tables(changed, "en")["modes"].rows
    assert rows[0][-1] == "no larger than 0.005" and rows[0][-2] == Number(judged.equivalence.bound)


def test_one_class_held_out_and_rare(runs: Path, config: ExperimentConfig) -> None:
    names = ["cosine", "random", "learned", "none"]
    tasks = [task._replace(subset=Subset(held_out="scratch")) for task in tasks_of(runs, config, names[:2])]
    held_out = answer(tasks, facts(), samples=SAMPLES)
    assert held_out.judged == "AP scratch" and set(mode(held_out, "cosine").against) == {"random"}
    assert mode(held_out, "cosine").judgement.verdict == "helps"
    first, *rest = sentences_of(held_out, "en")
    assert first.startswith("cosine helps: AP scratch +0.") and "against random" in first
    assert all(re.match(r"(\w+): AP of scratch by its vector alone: 0\.\d+ \[0\.\d", line) for line in rest[-2:])
    tasks = [task._replace(subset=Subset(rare=("scratch", 3))) for task in tasks_of(runs, config, ["cosine", "none"])]
    rare = answer(tasks, facts(), samples=SAMPLES)
    own = mode(rare, "cosine").per_class["scratch"]["AP"].value
    assert rare.judged == "AP scratch" and mode(rare, "cosine").metrics["AP scratch"].value == own
    assert "Of scratch only 3 training images" in write_answer(rare, runs, "en")


def test_similar_texts_and_confused_classes(found: Answer) -> None:
    assert found.confused is None, "two classes are one pair"
    shown = dataclasses.replace(found, confused=RankCorrelation(0.41, Interval(-0.13, 0.76), 15))
    note = next(note for note in notes_of(shown, "en") if note.startswith("Similarity of class texts"))
    assert "confusion of none: Spearman +0.41 [-0.13, +0.76] over 15 pairs of classes" in note


def test_notes(found: Answer) -> None:
    notes = "\n".join(notes_of(found, "en"))
    assert "3 modes are compared with none, each at 95 %" in notes and "about 14 % of all such" in notes.replace(
        "\u00a0", " "
    )
    assert "the encoder reads text only" in notes and "some encoder sha256:0123, language en" in notes
    assert "CAUTION" not in notes
    changed = dataclasses.replace(
        found,
        texts=facts(real=False, alike=True, no_zero_shot="the hub is down"),
        modes=[mode(found, "cosine")],
        seeds=[0],
    )
    for lang, caution in (("en", "CAUTION"), ("es", "ATENCIÓN")):
        notes = notes_of(changed, lang)
        assert [note.startswith(caution) for note in notes[:5]] == [True, True, True, False, True]
        text = "\n".join(notes)
        assert "(random weights)" in notes[0] and "scratch / dent & hole" in notes[4] and "the hub is down" in text
    nothing = notes_of(dataclasses.replace(found, texts=None), "en")
    assert any(note.startswith("No mode that reads texts was run") for note in nothing)
    no_boxes = notes_of(dataclasses.replace(found, texts=facts(no_zero_shot="no_boxes")), "en")
    assert no_boxes[-1] == "No text-only scores: the split has no boxes."


@pytest.mark.parametrize(
    ("say", "caution"), [(0.0, True), (0.19, True), (0.21, False), (None, False)], ids=["0", "0.19", "0.21", "unknown"]
)
def test_closed_gates_are_said(found: Answer, say: float | None, caution: bool) -> None:
    modes = [dataclasses.replace(one, say_logits=say if one.label == "cosine" else None) for one in found.modes]
    notes = "\n".join(notes_of(dataclasses.replace(found, modes=modes), "en"))
    assert ("CAUTION: cosine: after this training" in notes) is caution
    assert ("by its gates (mean over the seeds): cosine 0." in notes) is (say is not None)


def test_a_class_that_nobody_finds_is_said(runs: Path, config: ExperimentConfig) -> None:
    tasks = [task._replace(subset=Subset(rare=("scratch", 3))) for task in tasks_of(runs, config, ["cosine", "none"])]
    for margin, said in ((0.005, False), (0.99, True)):
        notes = "\n".join(notes_of(answer(tasks, facts(), samples=SAMPLES, margin=margin), "en"))
        assert ("no mode finds the class (AP scratch below 0.990 in all)" in notes) is said


def test_tables(found: Answer) -> None:
    tables = answer_tables(dataclasses.replace(found, texts=facts(zero_shot=ZERO_SHOT, no_zero_shot=None)), "en")
    assert list(tables) == ["modes", "differences", "classes", "similarity", "zero_shot"]
    last = {row[0]: row[-1] for row in tables["modes"].rows}
    verdicts = ("helps", "no difference shown", "hurts", "control", "reference")
    assert tuple(last[name] for name in ("cosine", "concat", "cross_attention", "learned", "none")) == verdicts
    assert {"AP minus none", "AP minus learned"} <= {*tables["modes"].columns}
    assert [row[0] for row in tables["zero_shot"].rows][2:] == ["all boxes", "mean of the classes"]
    assert "0.750 [0.53, 0.89]" in tables["zero_shot"].to_markdown("en")
    assert len(tables["differences"].rows) == 3 * (4 * 2 + 1)


@pytest.mark.usefixtures("unpainted")
def test_files_in_both_languages(found: Answer, tmp_path: Path) -> None:
    (tmp_path / "ablation_zero_shot.csv").write_text("of an earlier writing", encoding="utf-8")
    markdown = write_answer(found, tmp_path, "es", captions=False)
    assert not (tmp_path / "ablation_zero_shot.csv").exists() and (tmp_path / "text_similarity.txt").exists()
    assert markdown.startswith("# ¿Ayuda el texto?") and "sin diferencia demostrada" in markdown
    content = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    assert content["modes"][0]["verdict"] == "helps" and content["modes"][3]["no_verdict"] == "control"
    low, high = content["modes"][0]["differences"]["none"]["AP"]["interval"]
    assert 0 < low < content["modes"][0]["differences"]["none"]["AP"]["difference"] < high
    table = csv.reader(io.StringIO((tmp_path / "ablation.csv").read_text(encoding="utf-8-sig")), delimiter=";")
    head, first, *_ = table
    assert head[:2] == ["Modo", "Semillas"] and first[:2] == ["cosine", "3"] and "," in first[2]
    latex = (tmp_path / "ablation.tex").read_text(encoding="utf-8")
    assert latex.count(r"\begin{table}") == 4 and r"cross\_attention" in latex and "dent \\& hole" in latex
    compile_article(latex, tmp_path, "spanish")
    english = write_answer(dataclasses.replace(found, texts=None), tmp_path, "en")
    assert english.startswith("# Does text help?") and not list(tmp_path.glob("text_similarity.*"))
    latex_en = (tmp_path / "ablation.tex").read_text(encoding="utf-8")
    compile_article(latex_en, tmp_path, None)
    assert max(*tabular_widths_pt(latex), *tabular_widths_pt(latex_en)) <= LINE_PT


def test_every_text_is_used_and_filled(found: Answer) -> None:
    shown = dataclasses.replace(found, texts=facts(zero_shot=ZERO_SHOT, no_zero_shot=None))
    for lang in ("en", "es"):
        tables = answer_tables(shown, lang)
        text = "\n".join(
            [
                *sentences_of(shown, lang),
                *notes_of(shown, lang),
                *(table.to_markdown(lang) for table in tables.values()),
            ]
        )
        assert not re.search(r"\{[a-z_]*\}|None|nan", text)
        assert answer_to_json(shown, lang)["texts"]["zero_shot"]["overall"]["correct"] == 30
