"""What is run, resumed and skipped, with a runner that only pretends."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from analysis.ablation_runs import (
    MANIFEST_NAME,
    Manifest,
    Record,
    State,
    Task,
    record_of,
    run_all,
    states_of,
)
from data.errors import UserError
from engine.config import ExperimentConfig, load_config
from tests.support.ablation import tasks_of
from tests.support.configs import CONFIGS, changed

MODES = ("cosine", "none")
SEEDS = (0, 1)
PHASE_1 = "a" * 64
TEXTS = "encoder sha256:01"


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load_config(CONFIGS / "quickstart_multimodal.yml")


@pytest.fixture
def tasks(tmp_path: Path, config: ExperimentConfig) -> list[Task]:
    found = tasks_of(tmp_path, config, MODES, SEEDS)
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
        self.done.append((task.name, checkpoint.name if checkpoint else None))
        task.folder.mkdir(exist_ok=True)
        (task.folder / "last.pth").touch()
        if task.name == self._interrupted_in:
            raise self._how
        for name in ("best.pth", "results.json", "match_tables.npz"):
            (task.folder / name).touch()


def go(tasks: list[Task], trainer: Trainer, *, phase_1: str = PHASE_1, texts: str | None = TEXTS) -> list[State]:
    """As `ablate` does it; the states before."""
    records = [record_of(task, phase_1, texts) for task in tasks]
    manifest = Manifest(tasks[0].folder.parent)
    states = states_of(tasks, records, manifest)
    run_all(tasks, records, states, manifest, trainer)
    return states


def test_everything_runs_once(tasks: list[Task], caplog: pytest.LogCaptureFixture) -> None:
    first, second = Trainer(), Trainer()
    with caplog.at_level(logging.INFO):
        assert go(tasks, first) == ["missing"] * 4
    assert first.done == [("cosine_seed0", None), ("cosine_seed1", None), ("none_seed0", None), ("none_seed1", None)]
    assert "4 runs: 0 finished, 0 to resume, 4 to start" in caplog.text
    assert "run 2/4, cosine_seed1, started" in caplog.text
    assert "cosine_seed0 took 00:00; 3 left, about 00:00" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert go(tasks, second) == ["finished"] * 4
    assert second.done == [] and "4 runs: 4 finished, 0 to resume, 0 to start" in caplog.text


@pytest.mark.parametrize("how", [SystemExit(130), KeyboardInterrupt()])
def test_an_interrupted_ablation_goes_on(
    tasks: list[Task], how: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Trainer("cosine_seed1", how=how), Trainer()
    with pytest.raises(type(how)):
        go(tasks, first)
    assert "interrupted in cosine_seed1; the same command goes on from there" in caplog.text
    assert go(tasks, second) == ["finished", "interrupted", "missing", "missing"]
    assert second.done == [("cosine_seed1", "last.pth"), ("none_seed0", None), ("none_seed1", None)]
    seconds = {name: record.seconds for name, record in Manifest(tasks[0].folder.parent).records.items()}
    assert seconds["cosine_seed1"] is None and seconds["none_seed0"] is not None


def test_a_failed_run_keeps_the_others(tasks: list[Task]) -> None:
    with pytest.raises(UserError, match="out of memory"):
        go(tasks, Trainer("none_seed0", how=UserError("out of memory")))
    assert go(tasks, Trainer())[:3] == ["finished", "finished", "interrupted"]


def test_runs_without_a_checkpoint_start_again(tasks: list[Task]) -> None:
    go(tasks, Trainer())
    (tasks[0].folder / "results.json").unlink()
    with pytest.raises(SystemExit):
        go(tasks, Trainer("cosine_seed0"))
    (tasks[0].folder / "last.pth").unlink()
    third = Trainer()
    assert go(tasks, third) == ["missing", "finished", "finished", "finished"]
    assert third.done == [("cosine_seed0", None)]


def test_more_seeds_and_modes_join(tasks: list[Task], config: ExperimentConfig, tmp_path: Path) -> None:
    go(tasks[:1], Trainer())
    added = Trainer()
    assert go(tasks, added) == ["finished", "missing", "missing", "missing"] and len(added.done) == 3


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
        "cosine_seed0: started from another phase 1 checkpoint (aaaaaaaaaaaa, -r has bbbbbbbbbbbb); its texts are"
        in (message)
    )
    assert "from encoder sha256:01, now from other sha256:02; another config (epoches, optimizer.lr)" in message
    assert "none_seed1: started from another phase 1 checkpoint (aaaaaaaaaaaa, -r has bbbbbbbbbbbb); another" in message
    assert f"cosine_seed2: is not in {MANIFEST_NAME}, so ablate_text.py did not make it" in message


def test_settings_without_effect_do_not_matter(tasks: list[Task]) -> None:
    go(tasks, Trainer())
    same = [Task(t.mode, t.seed, t.folder, changed(t.config, print_freq=1, device="cpu")) for t in tasks]
    assert go(same, Trainer()) == ["finished"] * 4


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": {"a": {}}}', '{"runs": 3}'])
def test_a_damaged_list_of_runs(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"{MANIFEST_NAME}: damaged .*Restore it, or choose another folder"):
        Manifest(tmp_path)


def test_the_list_is_plain_json(tasks: list[Task]) -> None:
    go(tasks, Trainer())
    content = json.loads((tasks[0].folder.parent / MANIFEST_NAME).read_text(encoding="utf-8"))
    record = Record.model_validate(content["runs"]["none_seed0"])
    assert record.finished and record.texts is None and record.phase_1 == PHASE_1
    assert record.config["epoches"] == tasks[0].config.epoches and "output_dir" not in record.config
