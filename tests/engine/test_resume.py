"""A training state that does not fit the run is refused as a whole, before any of it is used; which epochs count."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from engine.checkpoint import save_checkpoint
from engine.config import load_config
from engine.resume import Selection, decide, restore
from engine.run import Run, build_run, save
from models.weights import load_state_dict_strict
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import alone, assert_same_state, checkpoint

State = dict[str, Any]
NAN = float("nan")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that refuses states: nothing of them is used, so that one serves all."""
    folder = tmp_path_factory.mktemp("refusing")
    write_tiny_data(folder)
    return start(write_tiny_config(folder), folder / "run", None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    """A config, and the state of its run after one step of made-up gradients."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder)
    config = write_tiny_config(folder)
    run = start(config, folder / "run", None)
    for parameter in run.model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    run.optimizer.step()
    assert run.ema is not None
    run.ema.update(run.model)
    save(run, "last.pth", finished_epoch=0)
    return config, checkpoint(folder / "run" / "last.pth")


def start(config: Path, folder: Path, resume: Path | None) -> Run:
    run = build_run(load_config(config), alone(), folder, resume=resume, tuning=None)
    run.monitor.close()
    return run


def resumed(config: Path, folder: Path, state: State) -> Run:
    path = folder / "changed.pth"
    save_checkpoint(path, state)
    return start(config, folder / "resumed", path)


def test_what_was_saved_is_restored_bit_for_bit(tiny: tuple[Path, State], tmp_path: Path) -> None:
    config, state = tiny
    run = resumed(config, tmp_path, state)
    assert run.position.epoch == 1 and run.ema is not None and run.ema.updates == 1
    save(run, "again.pth")
    save_checkpoint(tmp_path / "before.pth", state)
    assert_same_state(tmp_path / "before.pth", tmp_path / "resumed" / "again.pth")


def test_an_official_state_lacks_what_only_we_store(tiny: tuple[Path, State], tmp_path: Path) -> None:
    """The EMA starts from the weights, the step follows from the epoch."""
    config, state = tiny
    official = copy.deepcopy({key: state[key] for key in ("date", "last_epoch", "model", "optimizer")})
    official["optimizer"]["param_groups"][0]["initial_lr"] = 0.5
    run = resumed(config, tmp_path, official)
    assert run.optimizer.param_groups[0]["initial_lr"] == 0.5, "the rates it was trained with, whatever the config says"
    assert run.position.epoch == 1 and run.position.step == run.train_loader.steps_per_epoch
    assert run.ema is not None and run.ema.updates == 0
    assert all(torch.equal(value, state["model"][key]) for key, value in run.ema.module.state_dict().items())


def test_one_number_shown_many_times_gets_memory_of_its_own(tiny: tuple[Path, State], tmp_path: Path) -> None:
    """The fused step writes to every element of what has the right shape."""
    config, state = tiny
    state = copy.deepcopy(state)
    entry = state["optimizer"]["state"][0]
    entry["exp_avg"] = entry["exp_avg"].flatten()[:1].expand(entry["exp_avg"].numel()).view(entry["exp_avg"].shape)
    run = resumed(config, tmp_path, state)
    moments = [value for entry in run.optimizer.state.values() for value in entry.values()]
    assert all(value.is_contiguous() and value.nbytes <= value.untyped_storage().nbytes() for value in moments)


def _put(value: Any, *keys: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


def _drop(*keys: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


def _nan_in(*keys: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys:
            state = state[key]
        state.flatten()[0] = NAN  # type: ignore[attr-defined]

    return change


GROUP = ("optimizer", "param_groups", 0)
MOMENTS = ("optimizer", "state", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put(torch.zeros(3), *MOMENTS, "exp_avg"), r"state\[0\]: exp_avg: found float32 \[3\], expected \["),
        (_nan_in(*MOMENTS, "exp_avg"), r"state\[0\]: exp_avg: holds NaN"),
        (_drop(*MOMENTS, "exp_avg_sq"), r"state\[0\]: expected the tensors"),
        (_put(torch.zeros(2), *MOMENTS, "step"), r"state\[0\]: step: expected one number of at least 0"),
        (_put(torch.tensor(-1.0), *MOMENTS, "step"), r"state\[0\]: step: expected one number"),
        (_put(torch.zeros(2), "optimizer", "state", 0), r"state\[0\]: expected the tensors"),
        (_put({}, "optimizer", "state", 10_000), r"state\[10000\]: there is no such parameter"),
        (_put({}, "optimizer", "state"), "state: empty, although whole epochs were trained"),
        (_put(None, "optimizer"), "optimizer: expected a dict with the dict `state`"),
        (_put([], "optimizer", "param_groups"), "does not fit optimizer.params of this config"),
        (_put({}, *GROUP), "does not fit optimizer.params of this config"),
        (_put(NAN, *GROUP, "lr"), r"param_groups\[0\]\.lr: expected a number of at least 0"),
        (_put([0.9, 1.5], *GROUP, "betas"), r"param_groups\[0\]\.betas: expected .* below 1"),
        (_put(10**400, *GROUP, "weight_decay"), r"param_groups\[0\]\.weight_decay: expected a number"),
        (_nan_in("ema", "module", "decoder.enc_score_head.bias"), "ema.module: decoder.enc_score_head.bias holds NaN"),
        (_put(torch.zeros(7), "ema", "module", "decoder.enc_score_head.bias"), r"ema.module: .*found \[7\], expected"),
        (_drop("ema", "module", "decoder.enc_score_head.bias"), "ema.module: .*bias: missing in the file"),
        (_drop("ema", "updates"), "ema.updates: Field required"),
        (_put("many", "ema", "updates"), "ema.updates: .*valid integer; found 'many'"),
        (_put(NAN, "ema", "decay"), "ema.decay: .*finite number"),
        (_drop("ema"), "ema: missing"),
        (_nan_in("model", "decoder.enc_score_head.bias"), "model: decoder.enc_score_head.bias holds NaN"),
        (_put(torch.zeros(2, dtype=torch.int32), "model", "decoder.enc_score_head.bias"), r"found int32 \[2\]"),
        (_drop("selection"), "selection: missing"),
        (_put({"best": 1}, "selection"), "selection.best: Extra inputs are not permitted"),
        (_put(NAN, "selection", "top_ap"), "selection.top_ap: .*; found nan"),
        (_put(7.0, "selection", "best_ap"), "selection.best_ap: .*less than or equal to 1"),
        (_drop("last_epoch"), "changed.pth: holds weights but no training state .*-t .*changed.pth"),
        (_put(1.5, "last_epoch"), "last_epoch: .*valid integer.*; found 1.5"),
        (_put(-7, "last_epoch"), "last_epoch: .*greater than or equal to -1"),
        (_drop("step"), "step: missing"),
        (_put(10**6, "batch_in_epoch"), "batch_in_epoch: 1000000, but an epoch has 2 batches"),
        (_put(-1.0, "train_seconds"), "train_seconds: .*greater than or equal to 0"),
        (_put({}, "scaler"), "scaler.scale: Field required"),
        (_put({"scale": NAN}, "scaler"), "scaler.scale: .*finite number; found nan"),
    ],
)
def test_a_malformed_state_is_one_message(
    tiny: tuple[Path, State], run: Run, change: Callable[[State], None], message: str
) -> None:
    state, path = copy.deepcopy(tiny[1]), Path("changed.pth")
    change(state)
    before = copy.deepcopy((run.optimizer.state_dict(), run.ema.state_dict()["updates"] if run.ema else 0))
    parts = {"optimizer": run.optimizer, "ema": run.ema, "scaler": run.scaler, "train_loader": run.train_loader}
    with pytest.raises(UserError, match=message):
        load_state_dict_strict(run.model, state["model"], source=path)
        restore(state, path, **parts)
    assert before == (run.optimizer.state_dict(), run.ema.state_dict()["updates"] if run.ema else 0)


def test_everything_is_said_at_once(tiny: tuple[Path, State], tmp_path: Path) -> None:
    config, state = tiny
    state = copy.deepcopy(state) | {"step": -1, "train_seconds": -1.0}
    state["optimizer"]["state"][1]["exp_avg"] = torch.zeros(5, 5, 5)
    with pytest.raises(UserError, match="Resume with the config the run was started with") as error:
        resumed(config, tmp_path, state)
    assert [line.split(":")[0] for line in error.value.problems] == ["step", "train_seconds", "optimizer"]
    assert not (tmp_path / "resumed").exists()


# The two-stage selection (docs/deimv2.md, Epoch loop and checkpoints): AP per epoch in, decisions out


def decisions(aps: list[float], stop_epoch: int, first_epoch: int = 0) -> tuple[list[str], Selection]:
    """Each epoch's decisions as letters: b best.pth, 1 best_stg1.pth, r restart."""
    selection, letters = Selection(), []
    for epoch, ap in enumerate(aps, start=first_epoch):
        decision = decide(selection, ap=ap, epoch=epoch, stop_epoch=stop_epoch)
        selection = decision.selection
        letters.append("b" * decision.write_best + "1" * decision.write_stage1 + "r" * decision.restart)
    return letters, selection


@pytest.mark.parametrize(
    ("aps", "stop_epoch", "expected"),
    [
        ([0.1, 0.2, 0.15], 10, ["b1", "b1", ""]),
        ([0.0, 0.0], 10, ["b1", ""]),  # best_stg1 exists after the first epoch even at AP 0
        ([0.3, 0.2, 0.25], 1, ["b1", "r", ""]),  # after a restart the next epoch is "new" but not the top
        ([0.3, 0.2, 0.4], 1, ["b1", "r", "b"]),
        ([0.3, 0.2, 0.25, 0.2, 0.35], 1, ["b1", "r", "", "r", "b"]),
        ([0.3, 0.4, 0.35], 1, ["b1", "b", "r"]),
        ([0.2], 0, ["b"]),  # no stage 1 at all
    ],
)
def test_decisions(aps: list[float], stop_epoch: int, expected: list[str]) -> None:
    assert decisions(aps, stop_epoch)[0] == expected


def test_the_top_survives_restarts_and_restarts_are_counted() -> None:
    _, selection = decisions([0.3, 0.2, 0.25, 0.2], 1)
    assert (selection.top_ap, selection.top_epoch, selection.restarts) == (0.3, 0, 2)


def test_a_resumed_run_decides_as_an_uninterrupted_one() -> None:
    _, before = decisions([0.3, 0.2], 1)
    restored = Selection.model_validate(before.model_dump())
    assert restored == before
    assert decide(restored, ap=0.31, epoch=2, stop_epoch=1).write_best
