"""Curves and pictures at MLflow and Weights & Biases: fake packages in a training, the real ones where installed."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.errors import UserError
from engine.config import load_config
from engine.loggers import open_boards, require_loggers
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import stop_after, train_here

BOTH = "loggers=[mlflow, wandb]"
PICTURE = np.zeros((8, 8, 3), np.uint8)


class Calls(list[tuple[str, Any]]):
    """Notes every call of a service, and fails at those named in `broken`."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()

    def note(self, name: str, result: Any = None) -> Callable[..., Any]:
        def call(*args: Any, **settings: Any) -> Any:
            if name in self.broken:
                raise ConnectionError(f"{name}: no answer")
            self.append((name, settings or args))
            return result

        return call

    def of(self, name: str) -> list[Any]:
        return [given for called, given in self if called == name]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Of fakes of both packages."""
    made = Calls()
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = SimpleNamespace(
        get_experiment_by_name=made.note("experiment", SimpleNamespace(experiment_id="7")),
        create_run=made.note("create_run", SimpleNamespace(info=SimpleNamespace(run_id="m1"))),
        **{name: made.note(name) for name in ("update_run", "log_dict", "log_batch", "log_image", "set_terminated")},
    )
    run = SimpleNamespace(**{name: made.note(name) for name in ("define_metric", "log", "finish")})
    entities = SimpleNamespace(Metric=lambda *of: of, Param=lambda *of: of)
    fakes = {
        "mlflow": {"MlflowClient": made.note("client", client), "entities": entities},
        "wandb": {"init": made.note("init", run), "Settings": dict, "Image": lambda _: "picture"},
    }
    for name, content in fakes.items():
        module = ModuleType(name)
        module.__dict__.update(content, __file__=f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module)
    return made


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_tiny_data(tmp_path)
    return write_tiny_config(tmp_path)


def curve(calls: Calls, key: str) -> list[int]:
    """Steps of the points at MLflow, which must be those at W&B."""
    points = [point for given in calls.of("log_batch") for point in given.get("metrics", ())]
    steps = [step for name, _, _, step in points if name == key]
    assert steps == [given[0]["step"] for given in calls.of("log") if key in given[0]]
    return steps


def test_a_stopped_run_goes_on_in_the_same_runs(
    calls: Calls, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(SystemExit):
            train_here(config, folder, [BOTH])
    assert calls.of("set_terminated") == [("m1", "KILLED")] and calls.of("finish") == [{"exit_code": 1}]
    ids = json.loads((folder / "loggers.json").read_bytes())
    train_here(config, folder, [BOTH], resume=folder / "last.pth")
    assert calls.of("set_terminated")[1:] == [("m1", "FINISHED")] and calls.of("finish")[1:] == [{"exit_code": 0}]
    assert len(calls.of("create_run")) == 1 and len(calls.of("update_run")) == 1
    starts = calls.of("init")
    assert [one["id"] for one in starts] == 2 * [ids["wandb"]] and ids["mlflow"] == "m1"
    assert {(one["mode"], one["dir"], one["resume"]) for one in starts} == {("offline", folder, "allow")}
    assert calls.of("client")[0] == {"tracking_uri": (folder / "mlflow").resolve().as_uri()}
    assert curve(calls, "train/loss") == [1, 2, 3, 4, 5, 6] and curve(calls, "val/AP") == [2, 4, 6]
    assert len(calls.of("log_image")) == len([one for one in calls.of("log") if "picture" in one[0].values()]) > 0
    assert ("epoches", "3") in [param for given in calls.of("log_batch") for param in given.get("params", ())]
    assert not (folder / "tensorboard").exists()


@pytest.mark.parametrize("broken", [{"client", "init"}, {"log_batch", "log"}, {"set_terminated", "finish"}])
def test_a_service_that_fails_does_not_end_the_training(
    calls: Calls, config: Path, tmp_path: Path, broken: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    calls.broken = broken
    with caplog.at_level(logging.WARNING):
        train_here(config, tmp_path / "run", [BOTH, "epoches=1", "flat_epoch=0", "no_aug_epoch=0"])
    said = [record.getMessage() for record in caplog.records if "nothing more is logged there" in record.getMessage()]
    assert len(said) == 2 and all("no answer" in line for line in said), said
    assert (tmp_path / "run/best.pth").is_file()


def test_what_is_not_installed_is_said_before_anything_is_written(
    calls: Calls, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))  # as a folder `wandb` of an earlier run
    with pytest.raises(UserError, match="run: pip install mlflow\n.*run: pip install wandb"):
        train_here(config, tmp_path / "run", [BOTH])
    assert not (tmp_path / "run").exists() and calls == []
    require_loggers(["tensorboard"])


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_the_real_package_offline(
    name: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = pytest.importorskip(name)
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    folder = tmp_path / "run"
    folder.mkdir()
    for first_step in (0, 2):
        (board,) = open_boards(load_config(config, [f"loggers=[{name}]"]), folder, first_step)
        board.scalars({"train/loss": 3.5, "val_per_class/año (1)": 0.5}, first_step + 1)
        board.image("training_images", PICTURE, first_step + 1)
        board.close()
    assert not caplog.records
    if name == "wandb":
        run_id = json.loads((folder / "loggers.json").read_bytes())["wandb"]
        parts = list((folder / "wandb").glob("offline-run-*"))
        assert parts and all(part.name.endswith(run_id) for part in parts)
        return
    client = package.MlflowClient((folder / "mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("deimv2-industrial").experiment_id])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 3]
    assert run.data.params["epoches"] == "3" and run.info.status == "FINISHED" and run.info.run_name == "run"
    assert len(client.list_artifacts(run.info.run_id, "training_images")) == 2
