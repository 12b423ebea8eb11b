"""Whole runs of a toy model: what they leave, that they repeat, resume, skip and stop as promised."""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import engine.train as training
from data.errors import UserError
from data.files import write_atomically
from data.schedule import stage_starts
from engine.config import load_config, with_batch
from engine.interrupt import StopSignal
from engine.nonfinite import keep_step, replay
from engine.resume import Position
from engine.run import build_run
from engine.train import _shows_images, fit, out_of_memory
from models.decoder import DecoderLayer
from tests.support.full_disk import full_disk
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import alone, assert_same_state, checkpoint, keep_early, log_records, stop_after, train_here

pytestmark = pytest.mark.usefixtures("no_training_pictures")


def test_a_run_leaves_its_folder_complete(finished: tuple[Path, Path]) -> None:
    _, folder = finished
    expected = {
        *("config.yaml", "log.jsonl", "last.pth", "best.pth", "results.json", "predictions.json"),
        *("ground_truth.json", "tensorboard", "predictions.png", "predictions.pdf"),
    }
    assert expected <= {path.name for path in folder.iterdir()}
    assert any((folder / "tensorboard").iterdir())
    steps = [record for record in log_records(folder) if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 7))  # 3 epochs of 2 steps, print_freq 1
    assert all(math.isfinite(record["loss"]) for record in steps)
    assert all(abs(sum(record["losses"].values()) - record["loss"]) < 1e-3 for record in steps)
    content = checkpoint(folder / "last.pth")
    assert {"date", "last_epoch", "model", "ema", "optimizer"} <= set(content)
    assert {"module", "updates"} <= set(content["ema"])
    assert content["last_epoch"] == 2 and content["step"] == 6
    assert content["classes"] == {"category_ids": [3, 7], "names": ["square", "bar"]}


def test_the_same_seed_gives_the_same_weights_with_any_number_of_workers(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    config, folder = finished
    other = train_here(config, tmp_path / "workers", ["train_dataloader.num_workers=2"])
    assert_same_state(folder / "last.pth", other / "last.pth")


@pytest.mark.parametrize("stop_after_steps", [2, 5])
def test_a_stopped_run_continues_exactly(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after_steps: int
) -> None:
    """SIGTERM after any step, in the middle or at the end of an epoch, in either stage."""
    config, folder = finished
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as info:
        stop_after(patch, stop_after_steps)
        train_here(config, tmp_path / "run")
    assert info.value.code == 143
    assert checkpoint(tmp_path / "run" / "last.pth")["step"] == stop_after_steps
    train_here(config, tmp_path / "run", resume=tmp_path / "run" / "last.pth")
    assert_same_state(folder / "last.pth", tmp_path / "run" / "last.pth")
    assert [r["step"] for r in log_records(tmp_path / "run") if "loss" in r] == list(range(1, 7))
    results = [json.loads((f / "results.json").read_text(encoding="utf-8")) for f in (folder, tmp_path / "run")]
    assert all(results[0][key] == results[1][key] for key in ("metrics", "thresholds", "suppression"))


def test_resuming_in_another_folder_says_what_stays_behind(
    finished: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = finished
    with caplog.at_level("INFO"):
        train_here(config, tmp_path / "elsewhere", resume=folder / "last.pth")
        assert (
            f"without --output-dir, -r {folder / 'last.pth'} goes on in place" in caplog.text
            and "; not in this folder" in caplog.text
        )
        caplog.clear()
        train_here(config, folder, resume=folder / "last.pth")
    assert "goes on in place" not in caplog.text and str(folder / "best.pth") in caplog.text


def test_a_finished_run_keeps_what_further_epochs_need_once(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """best.pth is for use, last.pth for going on; what stage 2 started from is gone."""
    config, folder = finished
    assert not (folder / "best_stg1.pth").exists()
    assert [*checkpoint(folder / "best.pth")] == [key for key in checkpoint(folder / "last.pth") if key != "optimizer"]
    longer = tmp_path / "run"
    shutil.copytree(folder, longer)
    train_here(config, longer, ["epoches=5"], resume=longer / "last.pth")
    assert checkpoint(longer / "last.pth")["last_epoch"] == 4 and not (longer / "best_stg1.pth").exists()
    with pytest.raises(UserError, match=r"best.pth: holds weights .* Go on with -r .*last.pth, or start a new run"):
        train_here(config, longer, ["epoches=6"], resume=longer / "best.pth")


def test_tuning_starts_a_new_run_from_the_ema_weights(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, folder = finished
    run = build_run(load_config(config), alone(), tmp_path / "run", resume=None, tuning=folder / "best.pth")
    run.monitor.close()
    assert run.position.epoch == 0 and run.position.step == 0
    expected = checkpoint(folder / "best.pth")["ema"]["module"]
    for key, value in run.model.state_dict().items():
        assert torch.equal(value, expected[key]), key
        assert torch.equal(run.ema.module.state_dict()[key], expected[key]), key


def test_stage_2_starts_from_the_best_of_stage_1(finished: tuple[Path, Path], tmp_path: Path) -> None:
    config, _ = finished
    run = build_run(load_config(config), alone(), tmp_path / "run", resume=None, tuning=None)
    training.restart_from_stage_1(run)  # of which there is nothing yet
    with StopSignal() as stop:
        training.train_one_epoch(run, 0, stop)
    training.save(run, "best_stg1.pth", finished_epoch=0)
    step = run.position.step
    with torch.no_grad():
        for parameter in run.model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    training.restart_from_stage_1(run)
    run.monitor.close()
    stored = checkpoint(tmp_path / "run" / "best_stg1.pth")
    assert all(torch.equal(value, stored["model"][key]) for key, value in run.model.state_dict().items())
    assert run.position.step == step  # the counters go on


def test_training_without_any_box_stops_early_where_asked_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """AP stays at "nothing", so no epoch improves on the first."""
    write_tiny_data(tmp_path, boxes=False)
    overrides = ["epoches=12", "no_aug_epoch=2", "flat_epoch=4", "early_stopping_patience=2"]
    with caplog.at_level("INFO"):
        folder = train_here(write_tiny_config(tmp_path), tmp_path / "run", overrides)
    assert checkpoint(folder / "last.pth")["last_epoch"] == 2
    assert "epoch 3: no AP, the validation split has no boxes" in caplog.text and "None" not in caplog.text
    assert all(math.isfinite(r["loss"]) for r in log_records(folder) if "loss" in r)
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics"]["AP"] is None


def test_non_finite_losses_change_nothing_and_in_the_end_stop_the_run(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = finished
    run = build_run(load_config(config, ["max_nonfinite_steps=2"]), alone(), tmp_path / "run", resume=None, tuning=None)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    original = run.criterion.forward

    def poisoned(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        losses = original(*args, **kwargs)
        return losses | {"loss_giou_pre": losses["loss_giou_pre"] * float("inf")}

    monkeypatch.setattr(run.criterion, "forward", poisoned)
    with (
        pytest.raises(UserError, match=r"not finite in 2 steps in a row \(last: loss_giou_pre.*last.pth"),
        StopSignal() as stop,
    ):
        fit(run, stop)
    run.monitor.close()
    assert (tmp_path / "run" / "last.pth").is_file() and run.ema is not None and run.ema.updates == 0
    for key, value in run.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_non_finite_step_is_kept_and_can_be_replayed(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one only; the replay names where the trouble begins."""
    config, _ = finished
    run = build_run(load_config(config, ["accumulation_steps=2"]), alone(), tmp_path / "run", resume=None, tuning=None)
    healthy = {key: value.clone() for key, value in run.model.state_dict().items()}
    part, weight = next((n, p) for n, p in run.model.named_parameters() if "decoder.layers.1.swish_ffn" in n)
    with torch.no_grad():
        weight.fill_(math.nan)
    with StopSignal() as stop:
        training.train_one_epoch(run, 0, stop)
    run.close()
    file = tmp_path / "run" / "nonfinite_step.pt"
    kept = checkpoint(file)
    assert kept["step"] == 0 and kept["epoch"] == 0 and len(kept["batches"]) == 2
    assert len(kept["files"]) == 4 and not math.isfinite(kept["losses"]["loss_mal"])
    text = replay(file, torch.device("cpu"))
    assert f"step 1 of epoch 1, process 0; images: {', '.join(kept['files'])}" in text
    assert f"first that is not finite: weight {part}" in text
    kept["model"] = healthy
    torch.save(kept, file)
    assert "first that is not finite: nothing, on one cpu device" in replay(file, torch.device("cpu"))
    forward = DecoderLayer.forward
    monkeypatch.setattr(DecoderLayer, "forward", lambda *args: forward(*args) / 0)
    found = "first that is not finite: output of decoder.decoder.layers.0 (DecoderLayer) (and "
    assert found in replay(file, torch.device("cpu"))


def test_a_replayed_step_has_the_losses_of_the_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Denoising noise and BatchNorm included."""
    config, _ = finished
    run = build_run(load_config(config), alone(), tmp_path / "run", resume=None, tuning=None)
    run.wrapped.train()
    window = [next(iter(run.train_loader))]
    statistics = training.BatchNormStatistics(run.model)
    weights = [parameter.detach().clone() for parameter in run.model.parameters()]
    with StopSignal() as stop:
        losses = training.train_step(run, 0, window, statistics, stop).losses
    statistics.restore()
    with torch.no_grad():
        torch._foreach_copy_(list(run.model.parameters()), weights)
    run.position = run.position.but(step=1)
    text = replay(keep_step(run, 0, window, losses, torch.tensor(math.nan)), torch.device("cpu"))
    run.close()
    assert ", ".join(f"{key} {float(value):.4f}" for key, value in losses.items()) in text
    assert "not finite then: grad_norm" in text


def test_a_file_that_cannot_be_replayed(finished: tuple[Path, Path], tmp_path: Path) -> None:
    stored = checkpoint(finished[1] / "best.pth")
    for content in ({}, {"batches": 3}, {"batches": [{"images": 3}]}):
        torch.save(stored | content, tmp_path / "x.pt")
        with pytest.raises(UserError, match=r"x.pt: (holds no kept step|damaged)"):
            replay(tmp_path / "x.pt", torch.device("cpu"))


def test_the_ema_follows_every_step_once_but_no_skipped_one(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = finished
    overrides = ["accumulation_steps=2", "ema.decay=0.9"]
    run = build_run(load_config(config, overrides), alone(), tmp_path / "run", resume=None, tuning=None)
    original, calls = run.criterion.forward, 0

    def poisoned(*args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        losses = original(*args, **kwargs)
        return {key: value * math.nan for key, value in losses.items()} if calls == 2 else losses

    monkeypatch.setattr(run.criterion, "forward", poisoned)
    with StopSignal() as stop:
        for epoch in range(2):
            run.position = run.position.but(batch_in_epoch=0)
            training.train_one_epoch(run, epoch, stop)
    training.save(run, "last.pth")
    run.close()
    assert calls == 8 and run.position.step == 4
    assert run.ema is not None and run.ema.updates == 3
    last = tmp_path / "run" / "last.pth"
    resumed = build_run(load_config(config, overrides), alone(), tmp_path / "run", resume=last, tuning=None)
    resumed.close()
    assert resumed.ema is not None and resumed.ema.updates == 3 and resumed.ema.decay == run.ema.decay
    for key, value in run.ema.module.state_dict().items():
        assert torch.equal(value, resumed.ema.module.state_dict()[key]), key


def test_the_history_of_the_metrics_survives_a_resume(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In log.jsonl and TensorBoard, also of the step at which the run was stopped, and in another folder.

    No evaluation comes before an epoch's last step, in a new run or a resumed one.
    """
    keep_early(monkeypatch)
    steps: list[int] = []
    judge = training.judge_epoch
    watched = lambda run, epoch: (steps.append(run.position.step), judge(run, epoch))  # noqa: E731
    monkeypatch.setattr(training, "judge_epoch", watched)
    config, _ = finished
    folder = train_here(config, tmp_path / "run")
    best = checkpoint(folder / "best.pth")
    assert best["step"] == 2 * (best["last_epoch"] + 1) > 0
    before = [record for record in log_records(folder) if "metrics" in record]
    assert checkpoint(folder / "early.pth")["step"] == 2
    for other in (tmp_path / "other", folder):
        train_here(config, other, resume=folder / "early.pth")
        after = [record for record in log_records(other) if "metrics" in record]
        assert after[0] == before[0] and [record["step"] for record in after] == [2, 4, 6]
    assert steps == [2, 4, 6] + 2 * [4, 6]
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("val/AP")] == [2, 4, 6]


def _fill(folder: Path, disk: ExitStack) -> None:
    disk.enter_context(full_disk(0))


def _remove(folder: Path, disk: ExitStack) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("accident", [_fill, _remove])
def test_a_full_disk_or_a_removed_folder_is_one_message(
    finished: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accident: Callable[[Path, ExitStack], None],
) -> None:
    """Closing the files does not hide it, and neither empty nor half files stay."""
    config, _ = finished
    folder, original, steps = tmp_path / "run", training.set_learning_rates, 0
    disk = ExitStack()

    def count(optimizer: torch.optim.Optimizer, ratio: float) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            accident(folder, disk)
        original(optimizer, ratio)

    monkeypatch.setattr(training, "set_learning_rates", count)
    with disk, pytest.raises(UserError, match=r"log.jsonl: could not be written"):
        train_here(config, folder)
    assert steps == 4
    if accident is _fill:
        assert all(path.stat().st_size and path.suffix != ".tmp" for path in folder.rglob("*") if path.is_file())
        assert [record["step"] for record in log_records(folder)] == [1, 2, 2, 3]
        assert checkpoint(folder / "last.pth")["step"] == 2


@pytest.mark.usefixtures("training_pictures")
@pytest.mark.parametrize("name", ["last.pth", "results.json", "predictions.png", "config.yaml"])
def test_a_disk_that_is_full_when_a_file_is_due(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, _ = finished
    folder, disk = tmp_path / "run", ExitStack()

    def fill_before(path: Path, write: Callable[[BinaryIO], object], **options: Any) -> None:
        if path.name == name:
            disk.enter_context(full_disk(100))
        write_atomically(path, write, **options)

    for module in ("data.files", "engine.checkpoint", "engine.pictures", "engine.run_folder"):
        monkeypatch.setattr(f"{module}.write_atomically", fill_before)
    with disk, pytest.raises(UserError, match=rf"Could not write .*{name}: File too large. No file was written"):
        train_here(config, folder)
    assert not list(folder.rglob("*.tmp")) and not (folder / name).exists()
    assert all(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_out_of_memory_names_the_remedies_in_order(finished: tuple[Path, Path]) -> None:
    message = str(out_of_memory(load_config(finished[0]), RuntimeError("CUDA out of memory. Tried 2 GiB\nmore")))
    order = [
        "--use-amp",
        "accumulation_steps=2",
        "gradient_checkpointing=True",
        "base_size_repeat=null",
        "smaller image size",
    ]
    positions = [message.index(word) for word in order]
    assert positions == sorted(positions)
    assert "Tried 2 GiB" in message and "more" not in message.splitlines()[0]
    on_a_gpu = torch.OutOfMemoryError("CUDA out of memory")
    assert "accumulation_steps=auto (" in str(out_of_memory(load_config(finished[0]), on_a_gpu))
    tried = with_batch(load_config(finished[0], ["accumulation_steps=auto"]), 4, 2, "by a trial step")
    assert "accumulation_steps=4 (" in str(out_of_memory(tried, on_a_gpu)), "a trial was not enough"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "Out of memory: .*2 GiB. Try, in this"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "Out of memory: .*9 bytes"),
        (RuntimeError("shape mismatch"), None),
    ],
)
def test_running_out_of_memory_is_one_message(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, raised: str | None
) -> None:
    def failing(*args: object) -> None:
        raise error

    monkeypatch.setattr(training, "train_step", failing)
    with pytest.raises(UserError if raised else RuntimeError, match=raised or "shape mismatch"):
        train_here(finished[0], tmp_path / "run")


def test_tensorboard_sees_the_first_batch_of_every_stage(tmp_path: Path) -> None:
    experiment = load_config(write_tiny_config(tmp_path), ["epoches=12", "flat_epoch=4", "no_aug_epoch=2"])
    section = experiment.train_dataloader
    shown = [epoch for epoch in range(12) if _shows_images(experiment, Position(last_epoch=epoch - 1))]
    assert shown == stage_starts(section.dataset.transforms, section.collate_fn, 12) == [0, 1, 4, 10]
    assert not _shows_images(experiment, Position(last_epoch=3, batch_in_epoch=1))
