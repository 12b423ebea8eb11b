"""The benchmark of the training step, on a toy run."""

import json
from pathlib import Path

import pytest

from benchmarks.train_step import PARTS, default_config, main, summary
from engine.cli import resolve_device
from tests.support.tiny_run import write_tiny_config, write_tiny_data


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_part_of_a_step_is_timed(tmp_path: Path, accumulation: int, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_data(tmp_path)
    config, file = write_tiny_config(tmp_path), tmp_path / "numbers.json"
    arguments = ["-c", str(config), "-d", "cpu", "--workers", "0", "--steps", "3", "--warmup", "1", "--json", str(file)]
    assert main([*arguments, "-u", f"accumulation_steps={accumulation}"]) == 0
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found["ms"]) == {*PARTS, "step"} and found["setting"]["steps"] == 3
    means = {part: row["mean"] for part, row in found["ms"].items()}
    assert all(value > 0 for value in means.values())
    assert sum(means[part] for part in PARTS) == pytest.approx(means["step"])
    assert found["waiting_share"] == pytest.approx(means["wait"] / means["step"])
    assert "waiting for data" in capsys.readouterr().out


def test_summary_by_hand() -> None:
    steps = [{"wait": 0.001 * k, "forward": 0.01} for k in range(1, 5)]
    found = summary(steps)
    assert found["ms"]["wait"] == pytest.approx({"mean": 2.5, "p50": 2.5, "p95": 4.0})
    assert found["ms"]["loss"]["p95"] == 0
    assert found["waiting_share"] == pytest.approx(10 / 50)


def test_without_neu_det_images_are_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEU_DET_ROOT", raising=False)
    assert default_config(resolve_device("cpu")).name == "quickstart.yml"
    monkeypatch.setenv("NEU_DET_ROOT", "/somewhere")
    assert default_config(resolve_device("cpu")).name == "neu_det_small.yml"
