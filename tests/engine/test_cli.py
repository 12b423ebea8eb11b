"""What the scripts share: exit codes, messages, arguments, choice of the device."""

import argparse
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from engine import cli
from tests.support.tiny_run import ROOT, script_environment

ARGUMENTS = {
    "compare_models": ["a", "b"],
    "predict_deimv2": ["-r", "x.pth", "x.png"],
    "check_data": ["-c", "x.yml"],
    "adapt_backbone": ["-c", "x.yml", "--images", "x"],
    "suggest_labels": ["errors", "-r", "x.pth"],
    "export_deimv2": ["-r", "x.pth", "--format", "onnx"],
    "evaluate_deimv2": ["-r", "x.pth"],
    "visualize_attention": ["-r", "x.pth", "--images", "x.png"],
    "ablate_text": ["-c", "x.yml", "-r", "x.pth", "--modes", "none"],
}
LIGHT = {path.stem for path in ROOT.glob("*.py")} - {"ablate_text", "compare_models"}
HEAVY = {"torch", "torchvision", "numpy", "cv2", "pydantic", "transformers", "matplotlib", "pandas", "faster_coco_eval"}


@pytest.mark.parametrize("script", [ROOT / f"{name}.py" for name in sorted(LIGHT)], ids=lambda path: path.stem)
def test_help_loads_nothing_heavy(script: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{script.name!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(script)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=script_environment(), cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals for another process")
@pytest.mark.parametrize("script", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_a_signal_during_the_imports_is_an_exit_code_without_a_traceback(script: Path, tmp_path: Path) -> None:
    """The imports take seconds; here torch takes a minute."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)", encoding="utf-8")
    which = len(script.stem) % 2  # half of the scripts each, as all begin alike
    number, code, option = ((signal.SIGINT, 130, []), (signal.SIGTERM, 143, ["--json"]))[which]
    process = subprocess.Popen(
        [sys.executable, str(script), *ARGUMENTS.get(script.stem, ["-c", "x.yml", "-r", "x.pth"]), *option],
        env=script_environment() | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    first = process.stderr if option else process.stdout
    assert first is not None and first.readline() == b"importing\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (code, b"interrupted\n")
    assert [json.loads(line)["exit_code"] for line in out.splitlines()[-1:]] == [code] * len(option)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "required: -c/--config"),
        (["-c", "x", "-r", "a", "-t", "b"], "-r resumes a run, -t starts a new one from weights: give one of them"),
        (["-c", "x", "--test-only"], "--test-only needs the checkpoint to evaluate: -r CKPT"),
    ],
)
def test_arguments_of_a_training_that_do_not_go_together(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
    with pytest.raises(SystemExit) as leaving:
        cli.training_arguments("trains")
    assert leaving.value.code == 2 and told in capsys.readouterr().err


@pytest.fixture
def logging_as_it_was() -> Any:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("logging_as_it_was")
def test_logging_goes_to_stderr_once_and_other_processes_only_warn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("engine.test")
    cli.setup_logging()
    cli.setup_logging()
    log.info("hello")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("INFO hello") == 1
    cli.setup_logging(is_main=False)
    log.info("hidden")
    log.warning("shown")
    captured = capsys.readouterr()
    assert "hidden" not in captured.err and "WARNING shown" in captured.err


def _without_cuda(monkeypatch: pytest.MonkeyPatch, *, card: str | None, built_for: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(cli, "_nvidia_card", lambda: card)


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:x", "meta", "cuda:-1"])
def test_unknown_device_names_the_choices(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is not supported: expected cpu, cuda or cuda:N"):
        cli.resolve_device(name)


@pytest.mark.parametrize(
    ("card", "built_for", "message"),
    [
        (None, None, r"'cuda:0' was asked for.*No NVIDIA card was found.*use -d cpu"),
        ("RTX 3060", None, r"RTX 3060.*built without CUDA.*pip install.*pytorch\.org"),
        ("RTX 3060", "13.0", r"built for CUDA 13\.0\) cannot use it\. Update the NVIDIA driver"),
    ],
)
def test_cuda_that_cannot_be_used(
    card: str | None, built_for: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_cuda(monkeypatch, card=card, built_for=built_for)
    assert cli.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=message):
        cli.resolve_device("cuda:0")


def test_card_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cli.resolve_device("cuda:1") == torch.device("cuda", 1)
    assert cli.resolve_device() == torch.device("cuda")
    with pytest.raises(UserError, match="'cuda:2' was asked for, but this machine has 2: cuda:0 to cuda:1"):
        cli.resolve_device("cuda:2")


def test_an_unused_card_is_said_loudly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _without_cuda(monkeypatch, card="RTX 3060", built_for=None)
    assert cli.resolve_device("") == torch.device("cpu")
    assert "RUNNING ON THE CPU" in caplog.text and "RTX 3060" in caplog.text
    caplog.clear()
    _without_cuda(monkeypatch, card=None, built_for=None)
    assert cli.resolve_device(None) == torch.device("cpu")
    assert caplog.text == ""


def test_card_is_read_from_the_driver_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(returncode: int, text: str) -> None:
        done = subprocess.CompletedProcess([], returncode, stdout=text)
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)

    monkeypatch.setattr(cli.shutil, "which", lambda name: "nvidia-smi")
    answer(0, "NVIDIA GeForce RTX 3060\nNVIDIA T4\n")
    assert cli._nvidia_card() == "NVIDIA GeForce RTX 3060"
    answer(9, "NVIDIA-SMI has failed\n")
    assert cli._nvidia_card() is None

    def broken(*args: object, **kwargs: object) -> None:
        raise OSError

    monkeypatch.setattr(subprocess, "run", broken)
    assert cli._nvidia_card() is None
    monkeypatch.setattr(cli.shutil, "which", lambda name: None)
    assert cli._nvidia_card() is None


def test_output_folder_is_checked_without_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.require_output_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    for folder in (file, file / "below"):
        with pytest.raises(UserError, match="file is a file; rename it or choose another folder with --output-dir"):
            cli.require_output_folder(folder)
    monkeypatch.setattr(cli.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="not writable; check its permissions"):
        cli.require_output_folder(tmp_path / "new")


@pytest.mark.parametrize(("value", "expected"), [(None, "en"), ("es", "es"), ("fr", None)])
def test_the_environment_chooses_the_language(
    value: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEIMV2_LANG", raising=False)
    if value is not None:
        monkeypatch.setenv("DEIMV2_LANG", value)
    parser = argparse.ArgumentParser()
    if expected is None:
        with pytest.raises(SystemExit) as leaving:
            cli.add_language_argument(parser, "the console")
        assert leaving.value.code == 2 and "DEIMV2_LANG is 'fr' in the environment" in capsys.readouterr().err
        return
    cli.add_language_argument(parser, "the console")
    assert parser.parse_args([]).lang == expected and parser.parse_args(["--lang", "en"]).lang == "en"
