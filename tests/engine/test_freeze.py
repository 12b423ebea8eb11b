"""Runs with a frozen backbone: what is frozen stays bit for bit, in the weights, the EMA and the optimiser."""

import logging
import shutil
from pathlib import Path

import pytest

from data.errors import UserError
from engine.config import load_config
from engine.run import build_run
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import alone, assert_same_state, checkpoint, keep_early, stop_after, train_here

pytestmark = pytest.mark.usefixtures("no_training_pictures")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a tiny run whose weights are in `start/best.pth`."""
    folder = tmp_path_factory.mktemp("freeze")
    write_tiny_data(folder)
    config = write_tiny_config(folder)
    train_here(config, folder / "start", ["epoches=1"])
    return config


FROZEN = [
    ("all", ("backbone.",)),
    ("2", tuple(f"backbone.dinov3._model.{part}" for part in ("cls", "patch", "blocks.0", "blocks.1"))),
]


@pytest.mark.parametrize(("freeze", "prefixes"), FROZEN)
def test_nothing_frozen_moves_and_a_resumed_run_is_the_same(
    start: Path, tmp_path: Path, freeze: str, prefixes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_early(monkeypatch)
    options, first = [f"DINOv3STAs.freeze={freeze}"], start.parent / "start" / "best.pth"
    options += ["epoches=1", "flat_epoch=1", "no_aug_epoch=0"] if freeze == "all" else []
    whole = train_here(start, tmp_path / "whole", options, tuning=first)
    before, after = checkpoint(first)["ema"]["module"], checkpoint(whole / "last.pth")
    for weights in (after["model"], after["ema"]["module"]):
        still = {key for key in before if before[key].equal(weights[key])}
        frozen = {key for key in before if key.startswith(prefixes)}
        assert frozen <= still
        assert not {key for key in still - frozen if key.endswith(("running_mean", "norm1.weight", "conv.weight"))}
    learn = sum(state["exp_avg"].numel() for state in after["optimizer"]["state"].values())
    assert learn == sum(
        value.numel()
        for key, value in build_run(
            load_config(start, options), alone(), tmp_path / "new", resume=None, tuning=first
        ).model.named_parameters()
        if value.requires_grad and not key.startswith(prefixes)
    )
    if freeze == "all":
        return
    shutil.copytree(whole, tmp_path / "resumed")
    early = (tmp_path / "resumed" / "early.pth").rename(tmp_path / "resumed" / "best_stg1.pth")
    train_here(start, tmp_path / "resumed", options, resume=early)
    assert_same_state(whole / "last.pth", tmp_path / "resumed" / "last.pth")
    with pytest.raises(UserError, match="its training state does not fit this run") as error:
        train_here(start, tmp_path / "resumed", ["DINOv3STAs.freeze=1"], resume=whole / "last.pth")
    assert "changed since the checkpoint: DINOv3STAs.freeze: 2 -> 1" in error.value.problems


@pytest.mark.parametrize(
    ("option", "row"),
    [
        ("freeze=none", None),
        ("freeze=all", "the backbone, weights and statistics"),
        ("freeze=2", "the ViT's patch embedding and first 2 of 3 blocks"),
        ("finetune=False", "the ViT of the backbone"),
    ],
)
def test_the_start_says_what_is_frozen_and_warns_of_random_weights(
    start: Path,
    tmp_path: Path,
    option: str,
    row: str | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop_after(monkeypatch, 1)
    with caplog.at_level(logging.INFO), pytest.raises(SystemExit):
        train_here(start, tmp_path / "run", [f"DINOv3STAs.{option}"])
    assert (f"  frozen          {row}\n" in caplog.text) is (row is not None)
    assert ("frozen at random weights" in caplog.text) is (row is not None)
