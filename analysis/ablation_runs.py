"""The runs of an ablation: which there are, which are done, and doing the rest.

`ablation_runs.json` says of every run folder beside it what it was made from, because a run folder itself does not:
the content of the phase 1 checkpoint, the config and the encoder. It is written before a run starts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from tqdm import tqdm

from analysis.compare_groups import config_differences, training_config
from analysis.matching import FILE_NAME as TABLES_NAME
from data.errors import UserError
from engine.checkpoint import write_atomically
from engine.config import ExperimentConfig, config_to_dict

log = logging.getLogger(__name__)

MANIFEST_NAME = "ablation_runs.json"
_RESULTS = ("results.json", "best.pth", TABLES_NAME)
_MOST_KEYS = 5

State = Literal["missing", "interrupted", "finished"]


@dataclass(frozen=True)
class Task:
    """One run: a mode with a seed."""

    mode: str
    seed: int
    folder: Path
    config: ExperimentConfig

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name


class Record(BaseModel):
    """What the manifest knows of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    phase_1: str
    """sha256 of the checkpoint's file."""
    texts: str | None
    """Encoder and its hash, where the mode reads texts."""
    config: dict[str, Any]
    """What decides which model comes out."""
    finished: bool = False
    seconds: float | None = None
    """Wall-clock time from start to end, of a run that was not interrupted."""


class Manifest:
    """`ablation_runs.json` in the folder of an ablation.

    Args:
        folder: Of the ablation.

    Raises:
        UserError: The file is there but damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / MANIFEST_NAME
        self.records: dict[str, Record] = {}
        if not self._path.is_file():
            return
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self.records = {name: Record.model_validate(record) for name, record in content["runs"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise UserError(
                f"{self._path}: damaged ({str(error).splitlines()[0][:160]}), so nobody knows what the runs beside it "
                "were made from. Restore it, or choose another folder with --output-dir."
            ) from error

    def put(self, name: str, record: Record) -> None:
        """Set one record and write the file.

        Raises:
            UserError: It cannot be written.
        """
        self.records[name] = record
        content = {"version": 1, "runs": {key: one.model_dump(mode="json") for key, one in self.records.items()}}
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_atomically(self._path, lambda file: file.write(text.encode()), what="list of the runs")

    @property
    def usual_seconds(self) -> float | None:
        """Mean duration of the runs that were timed."""
        timed = [record.seconds for record in self.records.values() if record.seconds is not None]
        return sum(timed) / len(timed) if timed else None


def record_of(task: Task, phase_1: str, texts: str | None) -> Record:
    """What `task` would be made from.

    Args:
        task: The run.
        phase_1: `file_sha256` of the checkpoint.
        texts: Source of the texts' vectors, if any run has some.
    """
    section = task.config.MultimodalFusion
    reads = section is not None and section.reads_texts
    # Through JSON, as the manifest stores it: tuples become lists.
    config = json.loads(json.dumps(training_config(config_to_dict(task.config))))
    return Record(phase_1=phase_1, texts=texts if reads else None, config=config)


def states_of(tasks: Sequence[Task], records: Sequence[Record], manifest: Manifest) -> list[State]:
    """Which of the runs are missing, interrupted or finished.

    Raises:
        UserError: Run folders that were made from something else, all of them.
    """
    problems: list[str] = []
    states = [
        _state(task, record, manifest.records.get(task.name), problems)
        for task, record in zip(tasks, records, strict=True)
    ]
    if problems:
        raise UserError(
            "The output folder holds runs of another ablation. Choose another folder with --output-dir, move these "
            "runs away, or go back to the settings they were made with:",
            problems,
        )
    return states


def _state(task: Task, wanted: Record, known: Record | None, problems: list[str]) -> State:
    folder = task.folder
    if not folder.is_dir() or not any(folder.iterdir()):
        return "missing"
    if known is None:
        problems.append(f"{folder}: is not in {MANIFEST_NAME}, so ablate_text.py did not make it")
        return "missing"
    differences = _differences(wanted, known)
    if differences:
        problems.append(f"{folder}: {'; '.join(differences)}")
    if known.finished:
        return "finished" if all((folder / name).is_file() for name in _RESULTS) else "missing"
    return "interrupted" if (folder / "last.pth").is_file() else "missing"


def _differences(wanted: Record, known: Record) -> list[str]:
    found = []
    if wanted.phase_1 != known.phase_1:
        found.append(f"started from another phase 1 checkpoint ({known.phase_1[:12]}, -r has {wanted.phase_1[:12]})")
    if wanted.texts != known.texts:
        found.append(f"its texts are from {known.texts}, now from {wanted.texts}")
    keys = config_differences([known.config, wanted.config])
    if keys:
        more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
        found.append(f"another config ({', '.join(keys[:_MOST_KEYS])}{more})")
    return found


Runner = Callable[[Task, Path | None], None]
"""Does one run; the second argument is the checkpoint to go on from."""


def run_all(
    tasks: Sequence[Task], records: Sequence[Record], states: Sequence[State], manifest: Manifest | None, runner: Runner
) -> None:
    """Do what is not finished, in order, and say how long the rest will take.

    Args:
        tasks: All runs.
        records: `record_of` each.
        states: `states_of` them.
        manifest: None in processes that only take part.
        runner: Trains; leaves with an exception when it is interrupted.

    Raises:
        SystemExit, KeyboardInterrupt: Interrupted; the same command goes on.
        UserError: A run failed; the finished ones are kept.
    """
    counts = {state: states.count(state) for state in ("finished", "interrupted", "missing")}
    log.info(
        "%d runs: %d finished, %d to resume, %d to start%s",
        len(tasks),
        counts["finished"],
        counts["interrupted"],
        counts["missing"],
        _time_left(manifest, len(tasks) - counts["finished"]),
    )
    left = len(tasks) - counts["finished"]
    for number, (task, record, state) in enumerate(zip(tasks, records, states, strict=True), start=1):
        if state == "finished":
            continue
        what = "resumed" if state == "interrupted" else "started"
        log.info("run %d/%d, %s, %s", number, len(tasks), task.name, what)
        started = time.monotonic()
        if manifest is not None:
            manifest.put(task.name, record)
        try:
            runner(task, task.folder / "last.pth" if state == "interrupted" else None)
        except (SystemExit, KeyboardInterrupt):
            log.warning("interrupted in %s; the same command goes on from there", task.name)
            raise
        seconds = time.monotonic() - started
        left -= 1
        if manifest is not None:
            timed = seconds if state == "missing" else None
            manifest.put(task.name, record.model_copy(update={"finished": True, "seconds": timed}))
        log.info("%s took %s%s", task.name, tqdm.format_interval(seconds), _time_left(manifest, left))


def _time_left(manifest: Manifest | None, runs: int) -> str:
    usual = manifest.usual_seconds if manifest is not None else None
    if not runs or usual is None:
        return ""
    return f"; {runs} left, about {tqdm.format_interval(runs * usual)}"
