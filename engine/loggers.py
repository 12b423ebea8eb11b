"""Where the curves and pictures of a training go beside log.jsonl: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from data.errors import UserError
from data.files import GrowingFile, write_json
from data.types import PixelArray
from engine.config import ExperimentConfig, config_to_dict
from engine.yaml_dialect import leaves

log = logging.getLogger(__name__)

_PACKAGES = ("mlflow", "wandb")
_PROJECT = "deimv2-industrial"
_IDS_NAME = "loggers.json"
"""The runs' ids at the services; a resumed training goes on in the same runs."""


class Board(Protocol):
    """What shows a run."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point of every curve."""

    def image(self, key: str, picture: PixelArray, step: int) -> None:
        """One picture."""

    def close(self) -> None:
        """The run is over, or what raises an exception right now ended it."""


def require_loggers(names: Sequence[str]) -> None:
    """Import the packages behind the loggers.

    Raises:
        UserError: One is not installed, or does not load.
    """
    problems = []
    for name in names:
        try:
            # A folder of that name in the working directory is taken for a package, an empty one.
            if name in _PACKAGES and getattr(import_module(name), "__file__", None) is None:
                raise ImportError(f"No module named '{name}'")
        except ImportError as error:
            problems.append(f"{name}: {error}; run: pip install {name}")
    if problems:
        raise UserError("loggers: not installed here; install what is missing or take it out of the list:", problems)


def open_boards(config: ExperimentConfig, folder: Path, first_step: int) -> list[Board]:
    """Open what `loggers` names, for a run in `folder` that has done `first_step` steps."""
    services: dict[str, Callable[[Path, ExperimentConfig, str | None], Any]] = {"mlflow": _Mlflow, "wandb": _Wandb}
    boards: list[Board] = []
    for name in dict.fromkeys(config.loggers):
        if name == "tensorboard":
            boards.append(_TensorBoard(config.summary_dir or folder / "tensorboard", first_step=first_step))
        else:
            boards.append(_Service(name, partial(services[name], folder, config), folder))
    return boards


class _TensorBoard:
    """TensorBoard's event file. torch's own writer works in a thread, whose errors nobody can catch.

    Args:
        folder: Gets a new event file.
        first_step: What an earlier file has of later steps is not shown: they are trained again.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{uuid4().hex[:8]}"
        self._file = GrowingFile(folder / name)
        self._write(Event(file_version="brain.Event:2"))
        if first_step:
            self._write(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._write(Event(step=step, summary=summary.scalar(key, value)))

    def image(self, key: str, picture: PixelArray, step: int) -> None:
        self._write(Event(step=step, summary=summary.image(key, picture, dataformats="HWC")))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.write(record.getvalue())

    def close(self) -> None:
        self._file.close()


class _Service:
    """A board out of the project's hands: after its first error it is told nothing more, and the training goes on."""

    def __init__(self, name: str, start: Callable[[str | None], Any], folder: Path) -> None:
        self._name = name
        self._board: Any = None
        self._try(lambda: self._start(start, folder / _IDS_NAME))

    def _start(self, start: Callable[[str | None], Any], path: Path) -> None:
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._board = start(known.get(self._name))
        write_json(path, known | {self._name: self._board.id}, what="ids of the loggers")

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # of any kind: network, server, disk, versions
            self._board = None
            log.warning(
                "%s: nothing more is logged there, the training goes on: %s: %s. log.jsonl has every value.",
                *(self._name, type(error).__name__, error),
            )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if (board := self._board) is not None:
            self._try(lambda: board.scalars(values, step))

    def image(self, key: str, picture: PixelArray, step: int) -> None:
        if (board := self._board) is not None:
            self._try(lambda: board.image(key, picture, step))

    def close(self) -> None:
        completed = sys.exception() is None
        if (board := self._board) is not None:
            self._try(lambda: board.close(completed=completed))


class _Mlflow:
    """A run of MLflow: at the server of MLFLOW_TRACKING_URI, else in files in the run folder."""

    def __init__(self, folder: Path, config: ExperimentConfig, known: str | None) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # version 3 asks for it before it writes files
        self._mlflow = import_module("mlflow")
        address = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow").resolve().as_uri()
        self._client = self._mlflow.MlflowClient(tracking_uri=address)
        if known is not None:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self.id = self._client.create_run(experiment, run_name=folder.name).info.run_id
        settings = config_to_dict(config)
        self._client.log_dict(self.id, settings, "config.yaml")
        entities = self._mlflow.entities
        params = [entities.Param(_mlflow_name(key), str(value)[:500]) for key, value in leaves(settings)]
        for first in range(0, len(params), 100):  # what a server takes at once
            self._client.log_batch(self.id, params=params[first : first + 100])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now_ms, metric = int(time.time() * 1000), self._mlflow.entities.Metric
        points = [metric(_mlflow_name(key), float(value), now_ms, step) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=points)

    def image(self, key: str, picture: PixelArray, step: int) -> None:
        self._client.log_image(self.id, picture, artifact_file=f"{key}/{step:06d}.png")

    def close(self, *, completed: bool) -> None:
        self._client.set_terminated(self.id, "FINISHED" if completed else "KILLED")


def _mlflow_name(key: str) -> str:
    return re.sub(r"[^\w.\- /]", "_", key)


class _Wandb:
    """A run of Weights & Biases: in files in the run folder, unless WANDB_MODE is online."""

    def __init__(self, folder: Path, config: ExperimentConfig, known: str | None) -> None:
        self._wandb = import_module("wandb")
        self.id = known or uuid4().hex[:8]
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            name=folder.name,
            id=self.id,
            resume="allow",
            dir=folder,
            config=config_to_dict(config),
            allow_val_change=True,
            mode=os.environ.get("WANDB_MODE") or "offline",
            settings=self._wandb.Settings(console="off"),  # the console has a progress bar
        )
        # Of a resumed run, steps come again; the service's own count of steps only grows.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def image(self, key: str, picture: PixelArray, step: int) -> None:
        self._run.log({key: self._wandb.Image(picture), "step": step})

    def close(self, *, completed: bool) -> None:
        self._run.finish(exit_code=int(not completed))
