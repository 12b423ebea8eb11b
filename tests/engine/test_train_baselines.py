"""Baselines in the same loop: train, resume, tune, evaluate, two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analysis.evaluate import AnalysisOptions, evaluate_checkpoint
from data.errors import UserError
from engine.config import load_config
from engine.run import build_run
from engine.train import out_of_memory
from tests.engine.test_train_distributed import only_first_image_keeps_boxes
from tests.support.baselines import write_tiny_baseline
from tests.support.scripts import start_two_processes
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import alone, assert_same_state, checkpoint, log_records, stop_after, train_here

QUICK = (
    "epoches=2",
    "flat_epoch=1",
    "no_aug_epoch=0",
    "eval_interval_epochs=2",
    "train_dataloader.collate_fn.base_size_repeat=null",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(config, run folder) of an uninterrupted run of two epochs of two steps."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder)
    config = write_tiny_baseline(folder)
    return config, train_here(config, folder / "run", QUICK)


def test_a_run_leaves_losses_results_and_pictures(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    steps = [record for record in log_records(folder) if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    names = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
    assert all(set(record["losses"]) == names for record in steps)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert set(results["per_class"]) == {"square", "bar"}
    assert (folder / "predictions.png").is_file()
    stored = checkpoint(folder / "last.pth")["config"]
    assert stored["DINOv3STAs"] is None and stored["Baseline"]["name"] == "fasterrcnn_efficientnet_b0"


def test_a_stopped_run_continues_exactly(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The samplers of proposals draw from the step's own seed."""
    config, folder = finished
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 3)
        train_here(config, tmp_path / "run", QUICK)
    assert checkpoint(tmp_path / "run" / "last.pth")["step"] == 3
    train_here(config, tmp_path / "run", QUICK, resume=tmp_path / "run" / "last.pth")
    assert_same_state(folder / "last.pth", tmp_path / "run" / "last.pth")


def test_evaluation_needs_no_config_and_no_backbone_weights(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """The checkpoint says that ImageNet weights were used; they are not there, and not needed."""
    _, folder = finished
    state = checkpoint(folder / "best.pth")
    state["config"]["Baseline"] |= {"weights": "nowhere/resnet18.pth", "norm": "batch"}
    torch.save(state, tmp_path / "best.pth")
    evaluate_checkpoint(tmp_path / "best.pth", alone(), options=AnalysisOptions(bootstrap=0, report=False, cost=False))
    evaluated = json.loads((tmp_path / "eval_val_best" / "results.json").read_text(encoding="utf-8"))
    trained = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert evaluated["metrics"] == trained["metrics"]


def test_missing_weights_stop_the_run_before_it_writes(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, folder = finished
    weights = f"Baseline.weights={tmp_path.as_posix()}/none.pth"
    with pytest.raises(UserError, match=r"Baseline.weights: there is no file .*none.pth"):
        train_here(config, tmp_path / "run", [*QUICK, weights])
    assert not (tmp_path / "run").exists()
    # Weights of a checkpoint take their place.
    tuned = load_config(config, [*QUICK, weights, "Baseline.norm=batch", "Baseline.trainable_layers=5"])
    run = build_run(tuned, alone(), tmp_path / "run", resume=None, tuning=folder / "best.pth")
    run.monitor.close()
    ema = checkpoint(folder / "best.pth")["ema"]["module"]
    assert all(torch.equal(value, ema[key]) for key, value in run.model.state_dict().items())


def test_a_checkpoint_of_deimv2_is_refused_and_the_other_way_round(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, folder = finished
    write_tiny_data(tmp_path)
    deimv2 = write_tiny_config(tmp_path)
    run = build_run(load_config(deimv2), alone(), tmp_path / "deimv2", resume=None, tuning=None)
    run.monitor.close()
    state = checkpoint(folder / "last.pth") | {"model": run.model.state_dict()}
    del state["ema"]
    torch.save(state, tmp_path / "deimv2.pth")
    for path, other in ((config, tmp_path / "deimv2.pth"), (deimv2, folder / "last.pth")):
        with pytest.raises(UserError, match="not the weights of the configured model"):
            train_here(path, tmp_path / "run", resume=other)
        with pytest.raises(UserError, match="fill only 0% of the configured model"):
            train_here(path, tmp_path / "run", tuning=other)


@pytest.mark.slow
def test_two_processes_where_one_has_no_boxes(tmp_path: Path) -> None:
    """No parameter of DistributedDataParallel goes without gradient, and no process waits for ever."""
    write_tiny_data(tmp_path)
    only_first_image_keeps_boxes(tmp_path / "train.json")
    config = write_tiny_baseline(tmp_path, extra="accumulation_steps: 2\nuse_amp: True\n")
    arguments = ("-c", config, "--output-dir", tmp_path / "run", "-d", "cpu", "-u", *QUICK, "epoches=1", "flat_epoch=0")
    start_two_processes("train_deimv2.py", *arguments, cwd=tmp_path)
    state = checkpoint(tmp_path / "run" / "last.pth")
    assert state["last_epoch"] == 0 and state["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values() if value.is_floating_point())


def test_the_out_of_memory_message_names_what_there_is(finished: tuple[Path, Path]) -> None:
    text = str(out_of_memory(load_config(finished[0]), RuntimeError("out of memory")))
    assert "gradient_checkpointing" not in text and "Baseline.roi_batch_per_image" in text
