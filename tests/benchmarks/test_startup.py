"""The benchmark of the start-up, on a toy run."""

import json
from pathlib import Path

import pytest

from benchmarks.startup import main
from tests.support.tiny_run import write_tiny_config, write_tiny_data


@pytest.mark.slow
def test_every_wait_is_timed(tmp_path: Path) -> None:
    write_tiny_data(tmp_path)
    file = tmp_path / "numbers.json"
    main(["-c", str(write_tiny_config(tmp_path)), "--workers", "1", "--json", str(file)])
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert rows["train_deimv2.py --help"]["cpu_seconds"] < 0.5 < rows["training to its first step"]["wall_seconds"]
    assert rows["first batch, 1 workers"]["wall_seconds"] > 0
