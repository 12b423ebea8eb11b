"""The count of a training step's operations, and that it stays as low as it got."""

import json
from pathlib import Path

import pytest

from benchmarks.operations import main
from tests.support.configs import INDUSTRIAL


def test_a_step_of_the_industrial_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "counts.json"
    main(["-c", str(INDUSTRIAL), "--batch", "2", "--size", "320", "--json", str(file)])
    parts = json.loads(file.read_text(encoding="utf-8"))
    total = sum(sum(counts.values()) for counts in parts.values())
    assert total <= 2600 and sum(counts.get("_to_copy", 0) for counts in parts.values()) <= 280
    assert f"{total} " in capsys.readouterr().out
