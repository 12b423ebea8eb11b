"""Two gloo processes through the command line, as torchrun starts them."""

import json
import os
import signal
import sys
import time
from multiprocessing.process import BaseProcess as Process
from pathlib import Path

import pytest
import torch

from tests.support.scripts import start_two_processes
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import checkpoint, log_records


def only_first_image_keeps_boxes(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    path.write_text(json.dumps(content), encoding="utf-8")


def test_two_processes_train_also_where_one_has_no_boxes_and_accumulate(tmp_path: Path) -> None:
    """With boxes in one of eight images, one rank is without boxes in every step: no hang, no unused parameter."""
    write_tiny_data(tmp_path)
    only_first_image_keeps_boxes(tmp_path / "train.json")
    config = write_tiny_config(tmp_path, extra="accumulation_steps: 2\nuse_amp: True\n")
    single_size = "train_dataloader.collate_fn.base_size_repeat=null"  # one image of 32 px is too small for BatchNorm
    short = ("epoches=1", "flat_epoch=1", "no_aug_epoch=0")
    arguments = ("-c", config, "--output-dir", tmp_path / "run", "-d", "cpu", "-u", single_size, *short)
    start_two_processes("train_deimv2.py", *arguments, cwd=tmp_path)
    state = checkpoint(tmp_path / "run" / "last.pth")
    assert state["last_epoch"] == 0 and state["step"] == 2
    assert all(torch.isfinite(value).all() for value in state["model"].values() if value.is_floating_point())
    assert len([r for r in log_records(tmp_path / "run") if "loss" in r]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM for another process")
def test_sigterm_to_the_processes_of_torchrun_saves_and_is_143(tmp_path: Path) -> None:
    """torchrun sends it once more to whoever is still there when the first process has left."""
    write_tiny_data(tmp_path)
    config = write_tiny_config(tmp_path)
    single_size = "train_dataloader.collate_fn.base_size_repeat=null"
    arguments = ("-c", config, "--output-dir", tmp_path / "run", "-d", "cpu", "-u", "epoches=200", single_size)
    log = tmp_path / "run" / "log.jsonl"

    def ask_to_stop(other: Process) -> None:
        deadline = time.monotonic() + 120
        while not (log.is_file() and '"step": 3,' in log.read_text(encoding="utf-8")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        asked = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        while other.is_alive() and time.monotonic() - asked < 0.8:  # later ones would mean: at once
            other.terminate()
            time.sleep(0.05)

    outcomes = start_two_processes("train_deimv2.py", *arguments, cwd=tmp_path, code=143, meanwhile=ask_to_stop)
    assert all("Traceback" not in one.err for one in outcomes)
    assert checkpoint(tmp_path / "run" / "last.pth")["step"] >= 3
