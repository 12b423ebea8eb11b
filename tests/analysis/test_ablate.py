"""The whole ablation: what it refuses, resumes and skips, and a tiny one from end to end."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.ablate import (
    MANIFEST_NAME,
    Manifest,
    Record,
    State,
    ablate,
    plan,
    record_of,
    run_all,
    states_of,
    text_facts,
)
from analysis.ablation_report import MODES, Task
from data.errors import UserError
from data.splits import build_datasets
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.config import ExperimentConfig, load_config
from models.text_encoder import encode_texts
from tests.support.ablation import tasks_of
from tests.support.comparison import make_truth, write_run
from tests.support.configs import CONFIGS, changed
from tests.support.scripts import start_script
from tests.support.text_towers import write_bert, write_clip
from tests.support.tiny_run import ROOT, write_tiny_config, write_tiny_data
from tests.support.training import alone, train_here

pytestmark = pytest.mark.usefixtures("no_training_pictures")

FUSION = """
MultimodalFusion: {{proj_dim: 8, lr: 0.01}}
texts:
  own: {{square: [a bright square, a light block], bar: [a dark bar]}}
  encoder: {{name: "{encoder}", allow_download: False}}
"""
PHASE_1 = "a" * 64
TEXTS = "encoder sha256:01"
SHORT = ("epoches=1", "flat_epoch=1", "no_aug_epoch=0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, configs of both phases, an encoder of random weights, phase 1, and weights from elsewhere; two images hold
    no bar, and all that hold one a square, too."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder, num_train=16)
    content = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 3 or a["image_id"] > 2]
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")
    write_tiny_config(folder)
    write_tiny_config(folder, name="fused", extra=FUSION.format(encoder=write_bert(folder / "bert").as_posix()))
    train_here(folder / "tiny.yml", folder / "phase_1", SHORT)
    weights = load_checkpoint(folder / "phase_1" / "best.pth")
    weights["classes"]["names"] = ["dog", "cat"]
    weights["config"]["train_dataloader"]["dataset"]["ann_file"] = "elsewhere.json"
    (folder / "elsewhere").mkdir()
    save_checkpoint(folder / "elsewhere" / "best.pth", weights)
    return folder


def options(tiny: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    given = {"config": tiny / "fused.yml", "resume": tiny / "phase_1" / "best.pth", "output_dir": folder}
    return given | {"modes": ["cosine", "none"], "seeds": [0], "update": list(SHORT), "samples": 100} | changes


def test_every_fault_at_once(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong: dict[str, Any] = {
        "resume": tiny / "absent.pth",
        "modes": ["cosine", "cosine", "magic"],
        "update": ["seed=3", "MultimodalFusion.mode=none"],
        "samples": 3,
    }
    with pytest.raises(UserError, match="The ablation cannot start") as error:
        plan(options(tiny, tmp_path / "file", seeds=[0, 0, -1], **wrong))
    problems = "\n".join(error.value.problems)
    for expected in (
        f"--modes: there is no magic; the modes are {', '.join(MODES)}",
        "--modes: cosine given twice; leave one out",
        "--seeds: 0 given twice; leave one out",
        "--seeds: -1; expected 0 or more",
        "--samples 3: expected 100 to 1000000; 1000 is usual",
        "-u seed=3: --seeds decides seed; leave it out",
        "-u MultimodalFusion.mode=none: --modes decides MultimodalFusion.mode; leave it out",
        "is a file; rename it or choose another folder with --output-dir",
        "absent.pth: no such file",
    ):
        assert expected in problems
    with pytest.raises(UserError) as error:
        plan(options(tiny, tmp_path / "out", modes=["none"], resume=tiny / "absent.pth"))
    assert "--modes and --seeds give one run, which cannot be compared" in error.value.problems[0]
    assert "absent.pth: no such file" in error.value.problems[1] and len(error.value.problems) == 2
    with pytest.raises(UserError, match="The config has no section MultimodalFusion"):
        plan(options(tiny, tmp_path / "out", config=tiny / "tiny.yml"))
    assert not (tmp_path / "out").exists()


def test_phase_2_is_no_start(tiny: Path, tmp_path: Path) -> None:
    content = load_checkpoint(tiny / "phase_1" / "best.pth")
    content["model"]["text_fusion.gates"] = torch.zeros(2)
    save_checkpoint(tmp_path / "fused.pth", content)
    with pytest.raises(UserError, match="fused.pth: is of phase 2 .*all modes must start from the same checkpoint"):
        plan(options(tiny, tmp_path / "out", resume=tmp_path / "fused.pth"))


def test_tasks(tiny: Path, tmp_path: Path) -> None:
    _, tasks = plan(options(tiny, tmp_path / "out", seeds=[4, 5]))
    assert [task.folder.name for task in tasks] == ["cosine_seed4", "cosine_seed5", "none_seed4", "none_seed5"]
    for task in tasks:
        section = task.config.MultimodalFusion
        assert section is not None and (section.mode, section.seed) == (task.mode, task.seed)
        assert task.config.seed == task.seed and task.config.epoches == 1 and task.config.output_dir == task.folder


def test_the_encoder_decides_what_is_known_of_the_texts(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(tiny / "fused.yml")
    data = build_datasets(config)
    texts = encode_texts([["a hole"], ["a crack"]], config.texts.encoder)
    text_only = text_facts(texts, config, data)
    assert (
        text_only.no_zero_shot == "text_only" and text_only.zero_shot is None and text_only.similarity.shape == (2, 2)
    )
    clip = write_clip(tmp_path / "clip").as_posix()
    config = load_config(tiny / "fused.yml", [f"texts.encoder.name={clip}"])
    texts = encode_texts([["a hole"], ["a crack"]], config.texts.encoder)
    both = text_facts(texts, config, data)
    assert both.no_zero_shot is None and both.zero_shot is not None
    assert both.zero_shot.overall.boxes == 6 and both.zero_shot.overall.images == 3
    (tmp_path / "clip" / "config.json").unlink()
    gone = text_facts(texts, config, data)
    assert gone.zero_shot is None and gone.no_zero_shot is not None and "lacks config.json" in gone.no_zero_shot
    assert "no text-only scores of the boxes" in caplog.text


def test_the_script_names_all_modes_and_exits_with_2(tiny: Path, tmp_path: Path) -> None:
    assert runpy.run_path(str(ROOT / "ablate_text.py"))["MODES"] == MODES
    arguments = ("-c", tiny / "fused.yml", "-r", tiny / "none.pth", "--output-dir", tmp_path / "out", "--seeds", "0")
    outcome = start_script("ablate_text.py", *arguments, "-d", "cpu")
    assert outcome.code == 2 and "error: The ablation cannot start:\n  - Checkpoint" in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load_config(CONFIGS / "quickstart_multimodal.yml")


@pytest.fixture
def tasks(tmp_path: Path, config: ExperimentConfig) -> list[Task]:
    found = tasks_of(tmp_path, config, ["cosine", "none"], [0, 1])
    return [
        Task(task.mode, task.seed, task.folder, changed(config, MultimodalFusion__mode=task.mode)) for task in found
    ]


class Trainer:
    """Writes the files of a run; is interrupted in the middle of the run of that name."""

    def __init__(self, interrupted_in: str = "", *, how: BaseException | None = None) -> None:
        self.done: list[tuple[str, str | None]] = []
        self._interrupted_in = interrupted_in
        self._how = how or SystemExit(130)

    def __call__(self, task: Task, checkpoint: Path | None) -> None:
        self.done.append((task.folder.name, checkpoint.name if checkpoint else None))
        task.folder.mkdir(exist_ok=True)
        (task.folder / "last.pth").touch()
        if task.folder.name == self._interrupted_in:
            raise self._how
        for name in ("best.pth", "results.json", "predictions.json"):
            (task.folder / name).touch()


def go(tasks: list[Task], trainer: Trainer, *, phase_1: str = PHASE_1, texts: str | None = TEXTS) -> list[State]:
    """As `ablate` does it; the states before."""
    records = [record_of(task, phase_1, texts) for task in tasks]
    manifest = Manifest(tasks[0].folder.parent)
    states = states_of(tasks, records, manifest)
    run_all(tasks, records, states, manifest, trainer)
    return states


def test_what_is_finished_is_not_done_again(tasks: list[Task], caplog: pytest.LogCaptureFixture) -> None:
    """Nor if settings without effect change; more seeds and modes join."""
    first, more, second = Trainer(), Trainer(), Trainer()
    with caplog.at_level(logging.INFO):
        assert go(tasks[:1], first) == ["missing"]
        assert go(tasks, more) == ["finished", "missing", "missing", "missing"]
        same = [Task(t.mode, t.seed, t.folder, changed(t.config, print_freq=1, device="cpu")) for t in tasks]
        assert go(same, second) == ["finished"] * 4
    assert first.done == [("cosine_seed0", None)] and second.done == []
    assert more.done == [("cosine_seed1", None), ("none_seed0", None), ("none_seed1", None)]
    for said in ("4 runs: 1 finished, 0 to resume, 3 to start", "run 2/4, cosine_seed1, started"):
        assert said in caplog.text
    assert "cosine_seed1 took 00:00; 2 left, about 00:00" in caplog.text
    content = json.loads((tasks[0].folder.parent / MANIFEST_NAME).read_text(encoding="utf-8"))
    record = Record.model_validate(content["runs"]["none_seed0"])
    assert record.finished and record.texts is None and record.phase_1 == PHASE_1
    assert record.config["epoches"] == tasks[0].config.epoches and "output_dir" not in record.config


@pytest.mark.parametrize("how", [SystemExit(130), KeyboardInterrupt(), UserError("out of memory")])
def test_a_run_that_ends_early_keeps_the_others_and_goes_on(
    tasks: list[Task], how: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(how)):
        go(tasks, Trainer("cosine_seed1", how=how))
    told = "interrupted in cosine_seed1; the same command goes on from there" in caplog.text
    assert told is not isinstance(how, UserError)
    second, third = Trainer(), Trainer()
    assert go(tasks, second) == ["finished", "interrupted", "missing", "missing"]
    assert second.done == [("cosine_seed1", "last.pth"), ("none_seed0", None), ("none_seed1", None)]
    seconds = {name: record.seconds for name, record in Manifest(tasks[0].folder.parent).records.items()}
    assert seconds["cosine_seed1"] is None and seconds["none_seed0"] is not None
    for name in ("results.json", "last.pth"):
        (tasks[0].folder / name).unlink()
    assert go(tasks, third) == ["missing", "finished", "finished", "finished"]
    assert third.done == [("cosine_seed0", None)], "without a checkpoint it starts again"


def test_runs_of_something_else_are_refused(tasks: list[Task], tmp_path: Path) -> None:
    go(tasks, Trainer())
    longer = [Task(t.mode, t.seed, t.folder, changed(t.config, epoches=9, optimizer__lr=0.5)) for t in tasks]
    (tmp_path / "cosine_seed2").mkdir()
    (tmp_path / "cosine_seed2" / "notes.txt").touch()
    stranger = Task("cosine", 2, tmp_path / "cosine_seed2", tasks[0].config)
    trainer = Trainer()
    with pytest.raises(UserError) as error:
        go([*longer, stranger], trainer, phase_1="b" * 64, texts="other sha256:02")
    message = str(error.value)
    assert message.startswith(
        "The output folder holds runs of another ablation. Choose another folder with --output-dir"
    )
    assert len(error.value.problems) == 5 and trainer.done == []
    assert (
        "cosine_seed0: started from another phase 1 or training set (aaaaaaaaaaaa, now bbbbbbbbbbbb); its texts are"
        in (message)
    )
    assert "from encoder sha256:01, now from other sha256:02; another config (epoches, optimizer.lr)" in message
    assert (
        "none_seed1: started from another phase 1 or training set (aaaaaaaaaaaa, now bbbbbbbbbbbb); another" in message
    )
    assert f"cosine_seed2: is not in {MANIFEST_NAME}, so ablate_text.py did not make it" in message


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": {"a": {}}}', '{"runs": 3}'])
def test_a_damaged_list_of_runs(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"{MANIFEST_NAME}: damaged .*Restore it, or choose another folder"):
        Manifest(tmp_path)


def test_every_fault_of_the_parts_at_once(tiny: Path, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "fractions": [0.5, 0, 1.5, 0.5],
        "rare": ["square", "=3", "square=0", "round=2", "square=13"],
        "held_out": ["triangle"],
        "margin": 0,
        "update": [*SHORT, "MultimodalFusion.held_out=1"],
    }
    with pytest.raises(UserError, match="The ablation cannot start") as error:
        plan(options(tiny, tmp_path / "out", **wrong))
    expected = (
        "--fractions 0: expected above 0, at most 1",
        "--fractions 1.5: expected above 0, at most 1",
        "--rare square: expected CLASS=N, a class and how many of its images to keep, 1 or more",
        "--rare =3: expected CLASS=N",
        "--rare square=0: expected CLASS=N",
        "--fractions, --rare, --held-out: fraction_0.5 given twice; leave one out",
        "--margin 0: expected a difference in AP above 0 and below 1; 0.005 is usual",
        "-u MultimodalFusion.held_out=1: --held-out decides MultimodalFusion.held_out; leave it out",
        "best.pth: has seen all labels; leave it out, phase 1 is trained anew on each part of the training set",
        "--rare round: no class of the data set; the classes are square, bar",
        "--rare square=13: only 12 training images hold the class",
        "--held-out triangle: no class of the data set; the classes are square, bar",
    )
    problems = list(error.value.problems)
    assert len(problems) == len(expected)
    assert all(any(one in problem for problem in problems) for one in expected), problems
    for changes, message in (
        (
            {"resume": None},
            "-r: missing; give best.pth of phase 1 or its run folder, or -u MultimodalFusion.from_start",
        ),
        ({"resume": None, "fractions": [0.5]}, "includes no config without text that phase 1 could be trained with"),
        ({"update": ["tuning=any.pth"]}, "tuning: any.pth: phase 1 on parts of the training set starts there, and"),
    ):
        with pytest.raises(UserError, match=message):
            plan(options(tiny, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def phases(tiny: Path) -> Path:
    """A config of phase 2 that includes phase 1's."""
    path = tiny / "phases.yml"
    path.write_text("__include__: [tiny.yml]\n" + FUSION.format(encoder=(tiny / "bert").as_posix()), encoding="utf-8")
    return path


def test_parts_train_a_phase_1_each_as_many_steps(phases: Path, tiny: Path, tmp_path: Path) -> None:
    wanted = {"config": phases, "resume": None, "fractions": [0.25, 1.0], "rare": ["bar=2"], "held_out": ["bar"]}
    weights = tiny / "elsewhere" / "best.pth"
    update = [*SHORT, f"tuning={weights.parent.as_posix()}"]
    with pytest.raises(UserError, match=r"Checkpoint nowhere\.pth"):
        plan(options(tiny, tmp_path / "out", update=["tuning=nowhere.pth"], **wanted))
    _, tasks = plan(options(tiny, tmp_path / "out", modes=["cosine", "learned", "none"], update=update, **wanted))
    assert {task.start for task in tasks if task.mode == "phase_1"} == {weights}
    assert [task.name for task in tasks] == [
        *(f"{part}/{mode}_seed0" for part in ("fraction_0.25", "fraction_1", "rare_bar_2") for mode in
          ("phase_1", "cosine", "learned", "none")),
        *(f"held_out_bar/{mode}_seed0" for mode in ("phase_1", "cosine", "random", "shuffled")),
    ]  # fmt: skip
    first, fused = tasks[0], tasks[1]
    assert first.config.MultimodalFusion is None and (first.config.epoches, first.config.flat_epoch) == (4, 4)
    assert fused.start == first.folder / "best.pth" and fused.config.epoches == 4 and tasks[4].config.epoches == 1
    assert fused.config.train_dataloader.dataset.ann_file == first.folder.parent / "train_seed0.json"
    section = tasks[-1].config.MultimodalFusion
    assert section is not None and section.held_out == 1 and section.mode == "shuffled"
    one = {"config": phases, "resume": None, "held_out": ["bar"], "modes": ["cosine"]}
    assert len(plan(options(tiny, tmp_path / "out", **one))[1]) == 4, "controls join a single mode"
    from_start = [*SHORT, "MultimodalFusion.from_start=True"]
    _, tasks = plan(options(tiny, tmp_path / "out", **{**wanted, "held_out": []}, update=from_start))
    assert {task.mode for task in tasks} == {"cosine", "none"} and all(task.start is None for task in tasks)


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"fractions": [0.1, 0.5], "rare": ["square=1"], "update": [*SHORT, "train_dataloader.total_batch_size=6"]},
            [
                "fraction_0.1/train_seed0.json: an epoch has 2 images, fewer than",
                "rare_square_1/train_seed0.json: an epoch has 5 images",
            ],
        ),
        (
            {"held_out": ["square"], "modes": ["none", "learned"]},
            [
                "--modes: --held-out finds a class by its text",
                "--held-out square: no training image with another class",
            ],
        ),
        (
            {"held_out": ["bar"], "update": ["tuning=phase_1"]},
            ["phase_1: knows the class bar, which --held-out leaves out", "phase_1: has seen all labels ("],
        ),
    ],
)
def test_parts_that_would_not_answer(
    phases: Path, tiny: Path, changes: dict[str, Any], messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny)
    with pytest.raises(UserError, match="The ablation cannot start") as error:
        plan(options(tiny, Path("out"), config=phases, resume=None, **changes))
    assert len(error.value.problems) == len(messages)
    assert all(one in problem for one, problem in zip(messages, error.value.problems, strict=True))
    assert not Path("out").exists()


def test_a_held_out_class_needs_an_encoder_that_learned(phases: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--held-out: .*\(random weights\) was never trained, so a text means nothing"):
        ablate(options(tiny, tmp_path / "out", config=phases, resume=None, held_out=["bar"]), alone())


def test_parts_from_the_question_to_the_curve(phases: Path, tiny: Path, tmp_path: Path) -> None:
    """With runs that are simulated; training them is `test_two_fractions_are_trained`."""
    out, done = tmp_path / "out", []

    def simulated(task: Task, checkpoint: Path | None) -> None:
        done.append(task.name)
        quality = 0.85 if task.mode == "cosine" else 0.4
        number = sum(map(ord, task.mode)) + task.seed
        write_run(task.folder, quality=quality, seed=task.seed, truth=make_truth(60), detections_seed=number)
        shutil.copy(tiny / "phase_1" / "best.pth", task.folder)
        (task.folder / "last.pth").touch()

    wanted = options(tiny, out, config=phases, resume=None, fractions=[0.5, 1.0], modes=["cosine", "none"])
    markdown = ablate(wanted | {"seeds": [0, 1, 2]}, alone(), runner=simulated)
    assert len(done) == 2 * 3 * 3 and done[0] == "fraction_0.5/phase_1_seed0"
    assert markdown is not None and "50 % of the training images: cosine: no verdict. The text encoder has" in markdown
    assert {"labels.md", "labels.tex", "labels.csv", "labels.json", "label_curve.png"} <= {
        p.name for p in out.iterdir()
    }
    content = json.loads((out / "labels.json").read_text(encoding="utf-8"))
    assert [part["images"] for part in content["parts"]] == [8, 16]
    files = [out / name / "train_seed1.json" for name in ("fraction_0.5", "fraction_1")]
    small, whole = ({i["id"] for i in json.loads(file.read_text(encoding="utf-8"))["images"]} for file in files)
    assert small < whole
    assert ablate(wanted | {"seeds": [0, 1, 2], "lang": "es"}, alone(), runner=simulated) is not None
    assert len(done) == 18, "what is finished is not done again"
    assert "# ¿Ayuda el texto con pocas anotaciones?" in (out / "labels.md").read_text(encoding="utf-8")
    (out / "fraction_0.5" / "train_seed0.json").write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="train_seed0.json: is of another training set"):
        ablate(wanted, alone(), runner=simulated)


@pytest.mark.slow
def test_two_fractions_are_trained(phases: Path, tiny: Path, tmp_path: Path) -> None:
    wanted = {"config": phases, "resume": None, "fractions": [0.5, 1.0]}
    tuned = (*SHORT, f"tuning={(tiny / 'elsewhere' / 'best.pth').as_posix()}")
    for name, update in (("phases", tuned), ("from_start", (*SHORT, "MultimodalFusion.from_start=True"))):
        out = tmp_path / name
        assert ablate(options(tiny, out, update=list(update), **wanted), alone()) is not None
        assert (out / "fraction_0.5" / "phase_1_seed0").exists() == (name == "phases")
        assert (out / "fraction_1" / "cosine_seed0" / "best.pth").is_file() and (out / "label_curve.pdf").is_file()
