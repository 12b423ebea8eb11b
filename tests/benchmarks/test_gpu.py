"""The benchmark of everything that needs a GPU, in small on a CPU and a toy run."""

import json
from pathlib import Path

import pytest
import torch

import benchmarks.gpu as benchmark
from engine.cli import resolve_device
from tests.support.tiny_run import write_tiny_config, write_tiny_data


def test_every_section_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_data(tmp_path)
    file = tmp_path / "numbers.json"
    arguments = ["-c", str(write_tiny_config(tmp_path)), "-d", "cpu", "--workers", "0", "--json", str(file)]
    assert benchmark.main(arguments) == 0
    sections = json.loads(file.read_text(encoding="utf-8"))["sections"]
    assert [*sections] == [*benchmark.SECTIONS]
    notes = {name: section["note"] for name, section in sections.items() if section["note"]}
    assert notes == dict.fromkeys(("tests", "syncs", "amp"), "skipped, needs a GPU: not measured on a GPU")
    numbers = {what: number for section in sections.values() for what, number, _ in section["rows"]}
    assert 0 < numbers["losses, largest relative difference from the original's"] < 1e-4
    assert 0 <= numbers["AP after 2 epochs"] <= 1 and 0 <= numbers["share of waiting for data"] < 100
    assert {"step, batch 2, eager", "step, batch 2, checkpointed", "inference, batch 1, deploy form"} <= numbers.keys()
    assert "images/s" in capsys.readouterr().out


def test_what_no_longer_fits_and_what_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: benchmark.Bench) -> None:
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setitem(benchmark.SECTIONS, "loop", breaks)
    bench = benchmark.Bench(torch.device("cpu"), tmp_path, tmp_path, [], 0, float("inf"), tmp_path)
    assert benchmark.measure(bench, ["loop"]) == {"loop": {"rows": [], "note": "failed, RuntimeError: no such kernel"}}
    bench.deadline = 0.0
    assert benchmark.measure(bench, ["loop"])["loop"]["note"] == "skipped, the minutes are over"


def test_without_neu_det_images_are_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEU_DET_ROOT", raising=False)
    assert benchmark.default_config(resolve_device("cpu")).name == "quickstart.yml"
    monkeypatch.setenv("NEU_DET_ROOT", "/somewhere")
    assert benchmark.default_config(resolve_device("cpu")).name == "neu_det_small.yml"
