"""`train_deimv2.py` as a user meets it: every bad input gets one clear message and exit code 2."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from engine.run_folder import FolderLock
from tests.support.scripts import Outcome, start_beside, start_script
from tests.support.tiny_run import ROOT, script_environment, write_tiny_config, write_tiny_data
from tests.support.training import assert_same_state, keep_early

pytestmark = pytest.mark.usefixtures("no_training_pictures")

run_here = partial(start_script, "train_deimv2.py")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder)
    write_tiny_config(folder)
    return folder


class Bomb:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


def bad_inputs() -> list[tuple[str, list[str], str]]:
    """(id, arguments after the script, words of the message); the files are made by `prepare`."""
    return [
        ("missing config", ["-c", "nowhere.yml"], "nowhere.yml"),
        ("bad yaml", ["-c", "bad.yml"], "bad.yml"),
        ("unknown key", ["-c", "tiny.yml", "-u", "epochz=3"], "epoches"),
        ("wrong type", ["-c", "tiny.yml", "-u", "optimizer.lr=fast"], "optimizer.lr"),
        ("impossible value", ["-c", "tiny.yml", "-u", "eval_spatial_size=[65,64]"], "32"),
        ("long checkpoint name", ["-c", "tiny.yml", "-r", "x" * 300], "shorten it"),
        ("long folder name", ["-c", "tiny.yml", "--output-dir", "x" * 300], "output_dir"),
        ("long config name", ["-c", "x" * 300], "File name too long"),
        ("malformed override", ["-c", "tiny.yml", "-u", "epoches"], "epoches"),
        (
            "missing data",
            ["-c", "tiny.yml", "-u", "train_dataloader.dataset.ann_file=gone.json"],
            "gone.json",
        ),
        ("class count", ["-c", "tiny.yml", "-u", "num_classes=5"], "num_classes"),
        (
            "empty data",
            ["-c", "tiny.yml", "-u", "train_dataloader.dataset.ann_file=empty.json"],
            "empty.json",
        ),
        (
            "missing weights",
            ["-c", "tiny.yml", "-u", "DINOv3STAs.weights_path=gone.pt"],
            "weights_path: null",
        ),
        ("missing checkpoint", ["-c", "tiny.yml", "-r", "gone.pth"], "gone.pth"),
        ("truncated checkpoint", ["-c", "tiny.yml", "-r", "truncated.pth"], "truncated.pth"),
        ("hostile checkpoint", ["-c", "tiny.yml", "-r", "hostile.pth"], "hostile.pth"),
        ("another model's checkpoint", ["-c", "tiny.yml", "-r", "other.pth"], "other.pth"),
        ("no cuda", ["-c", "tiny.yml", "-d", "cuda"], "CUDA"),
        ("output is a file", ["-c", "tiny.yml", "--output-dir", "bad.yml"], "--output-dir"),
        ("curves are a file", ["-c", "tiny.yml", "-u", "summary_dir=bad.yml"], "bad.yml is a file"),
        ("another model's weights", ["-c", "tiny.yml", "-t", "other.pth"], "other.pth"),
        ("no validation", ["-c", "tiny.yml", "-u", "val_dataloader.dataset.ann_file=empty.json"], "empty.json"),
        ("no logger", ["-c", "tiny.yml", "-u", "loggers=[wandb]"], "pip install wandb"),
        ("busy folder", ["-c", "tiny.yml", "--output-dir", "busy"], f"running in it (process {os.getpid()} on "),
    ]


def prepare(folder: Path) -> None:
    (folder / "bad.yml").write_text("a: [1, 2\nb: }", encoding="utf-8")
    (folder / "empty.json").write_text('{"images": [], "annotations": [], "categories": []}', encoding="utf-8")
    torch.save({"model": {"weight": torch.zeros(3)}}, folder / "other.pth")
    (folder / "truncated.pth").write_bytes((folder / "other.pth").read_bytes()[:200])
    torch.save({"model": Bomb()}, folder / "hostile.pth")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_bad_input_gets_one_message_and_exit_code_2(
    dry: list[str], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a start, and of a dry run, which refuses what a start would."""
    prepare(tiny)
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tiny / "busy").mkdir(exist_ok=True)
    lock = FolderLock(tiny / "busy")
    before = {path for path in tiny.rglob("*")}
    for name, arguments, words in bad_inputs():
        outcome = run_here(*arguments, *dry, cwd=tiny)
        assert outcome.code == 2, (name, outcome.code, outcome.err[-1500:])
        assert "Traceback" not in outcome.err, name
        assert words in outcome.err, (name, outcome.err)
    assert not (tiny / "exploded").exists()
    assert {path for path in tiny.rglob("*")} == before, "bad input left files behind"
    lock.release(tiny / "busy")


def test_explain_says_what_the_run_will_have(tiny: Path) -> None:
    outcome = run_here(
        "-c", "tiny.yml", "--explain", "ema.decay", "-u", "train_dataloader.total_batch_size=2", cwd=tiny
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert "ema.decay: Share of the old average" in outcome.out and "derived: 0.9999 ->" in outcome.out
    for key in ("ema.deca", ""):  # as a variable of the shell that is not set
        assert run_here("-c", "tiny.yml", "--explain", key, cwd=tiny).code == 2


def test_dry_run_of_data_that_are_not_there_yet(tmp_path: Path) -> None:
    """Generated images are counted, not drawn; without data the values that need them are said to be open."""
    config = str(ROOT / "configs" / "quickstart.yml")
    outcome = run_here("-c", config, "--dry-run", "--use-amp", "--seed", "5", "-u", "epoches=1", cwd=tmp_path)
    planned = yaml.safe_load(outcome.out)
    assert outcome.code == 0 and planned["warmup_iter"] == 940 // 6 // 20
    assert planned["use_amp"] is True and planned["seed"] == 5
    assert "WARNING derived: flat_epoch: 3 -> 0 (rescaled: -u epoches 1, 6 in the config files)" in outcome.err
    outcome = run_here("-c", config, "--dry-run", "-u", "synthetic=~", cwd=tmp_path)
    assert outcome.code == 2 and yaml.safe_load(outcome.out)["warmup_iter"] == 2000, "shown, though no start would do"
    assert "WARNING warm-up and EMA are not shown as the run will have them" in outcome.err
    assert not list(tmp_path.iterdir())


SMALL = ("train_dataloader.total_batch_size=2", "val_dataloader.total_batch_size=2")


def wait_for_step(log: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not (log.is_file() and f'"step": {step},' in log.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, f"no step {step} in {log}"
        time.sleep(0.02)


def test_a_killed_run_continues_exactly(tmp_path: Path) -> None:
    """SIGKILL in the middle of the second epoch: last.pth of the first one is whole, and nothing is lost but time."""
    write_tiny_data(tmp_path)
    write_tiny_config(tmp_path)
    arguments = ("-c", "tiny.yml", "-u", *SMALL, "--output-dir")
    whole = run_here(*arguments, "whole", "--verbose", cwd=tmp_path)
    assert whole.code == 0, whole.err[-2000:]
    planned = run_here(*arguments, "whole", "--dry-run", "--verbose", cwd=tmp_path)
    used = (tmp_path / "whole" / "config.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(planned.out) == yaml.safe_load(used)
    derived = [[line[9:] for line in one.err.splitlines() if " derived: " in line] for one in (whole, planned)]
    assert derived[0] == derived[1] and any("ema.decay" in line for line in derived[0])
    process, _ = start_beside("train_deimv2.py", *arguments, "killed", cwd=tmp_path, environment=script_environment())
    wait_for_step(tmp_path / "killed" / "log.jsonl", 5)  # 4 steps an epoch
    process.kill()
    process.join()
    state = torch.load(tmp_path / "killed" / "last.pth", weights_only=True)
    assert state["last_epoch"] == 0, "it was not killed midway"
    resumed = run_here(*arguments, "killed", "-r", "killed/last.pth", cwd=tmp_path)
    assert resumed.code == 0, resumed.err[-2000:]
    assert_same_state(tmp_path / "whole" / "last.pth", tmp_path / "killed" / "last.pth")


def interrupted(interfere: Callable[[], None], folder: Path) -> Outcome:
    """A training in `folder`/run with one data worker, to which something happens after its tenth step."""
    write_tiny_data(folder, num_train=16)
    write_tiny_config(folder)

    def wait_and_interfere() -> None:
        wait_for_step(folder / "run" / "log.jsonl", 10)
        interfere()

    thread = threading.Thread(target=wait_and_interfere)
    thread.start()
    long = ("epoches=50", "train_dataloader.num_workers=1", *SMALL)
    outcome = run_here("-c", "tiny.yml", "--output-dir", "run", "-u", *long, cwd=folder)
    thread.join()
    return outcome


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_saves_the_position_and_exits_130(tmp_path: Path) -> None:
    outcome = interrupted(lambda: os.kill(os.getpid(), signal.SIGINT), tmp_path)
    assert outcome.code == 130, outcome.err[-2000:]
    assert torch.load(tmp_path / "run" / "last.pth", weights_only=True)["step"] >= 10
    assert "To go on: python train_deimv2.py -c run/config.yaml -r run/last.pth" in outcome.err


def test_a_run_goes_on_where_its_checkpoint_is_unless_told_otherwise(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_early(monkeypatch)
    assert run_here("-c", "tiny.yml", "--output-dir", "a", cwd=tiny).code == 0
    before = (tiny / "a" / "last.pth").read_bytes()
    (tiny / "b").mkdir()
    (tiny / "b" / "best.pth").write_text("of another run", encoding="utf-8")
    resume = ("-c", "tiny.yml", "-r", "a/early.pth")
    elsewhere = run_here(*resume, "--output-dir", "b", cwd=tiny)
    assert elsewhere.code == 0 and "results in b" in elsewhere.err
    kept = next(path for path in tiny.iterdir() if path.name.startswith("b."))
    assert (kept / "best.pth").read_text(encoding="utf-8") == "of another run"
    assert (tiny / "a" / "last.pth").read_bytes() == before
    in_place = run_here(*resume, cwd=tiny)
    assert in_place.code == 0 and "results in a" in in_place.err and not (tiny / "outputs").exists()
    assert (tiny / "a" / "last.pth").read_bytes() != before, "the date in it tells that it was written again"


def data_workers() -> set[int]:
    """Of this process: they are children of multiprocessing's fork server."""

    def children_of(pid: int | str) -> list[str]:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()

    servers = [p for p in children_of(os.getpid()) if b"forkserver" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return {int(worker) for server in servers for worker in children_of(server)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the worker in /proc")
def test_a_killed_worker_is_explained(tmp_path: Path) -> None:
    before = data_workers()

    def kill() -> None:
        (worker,) = data_workers() - before
        os.kill(worker, signal.SIGKILL)

    outcome = interrupted(kill, tmp_path)
    assert outcome.code == 2, outcome.err[-2000:]
    assert "error: A data worker was killed" in outcome.err and "Traceback" not in outcome.err


def test_own_data_need_no_config(tmp_path: Path) -> None:
    """A folder as Roboflow exports it, other classes than the config's; the run folder is all that the rest needs."""
    write_tiny_data(tmp_path / "mine")
    shutil.copytree(tmp_path / "mine" / "val", tmp_path / "mine" / "test")
    for index, image in enumerate((tmp_path / "mine" / "test").iterdir()):
        image.write_bytes(image.read_bytes() + bytes(index + 1))
    shutil.copy(tmp_path / "mine" / "val.json", tmp_path / "mine" / "test.json")
    for split in ("train", "val", "test"):
        (tmp_path / "mine" / f"{split}.json").rename(tmp_path / "mine" / split / "_annotations.coco.json")
    write_tiny_config(tmp_path)
    short = ("epoches=1", "flat_epoch=1", "no_aug_epoch=0", "allow_split_overlap=True")
    (tmp_path / "other.yml").write_text("__include__: [tiny.yml]\nnum_classes: 6\nsynthetic: {}\n", encoding="utf-8")
    command = ("-c", "other.yml", "--data", "mine", "-d", "cpu", "-u", *short)
    trained = run_here(*command, cwd=tmp_path)
    assert trained.code == 0, trained.err[-2000:]
    assert "--data mine: COCO; train mine/train/_annotations.coco.json, val mine/val/" in trained.err
    run = tmp_path / "outputs" / "other"
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (config["num_classes"], config["synthetic"]) == (2, None)
    assert config["test_dataloader"]["dataset"]["img_folder"] == "mine/test"
    again = run_here("-c", "outputs/other/config.yaml", "--dry-run", cwd=tmp_path)
    assert again.code == 0 and yaml.safe_load(again.out)["num_classes"] == 2
    fast = ("--bootstrap", "0", "--no-report", "--no-cost", "-d", "cpu")
    judged = start_script("evaluate_deimv2.py", "-r", "outputs/other", "--split", "test", *fast, cwd=tmp_path)
    assert judged.code == 0 and "outputs/other/best.pth is used" in judged.err, judged.err[-2000:]
    assert (run / "eval_test_best" / "results.json").is_file()
    seen = start_script("predict_deimv2.py", "-r", "outputs/other", "mine/test", "-d", "cpu", cwd=tmp_path)
    assert seen.code == 0 and (run / "predict_best").is_dir()
