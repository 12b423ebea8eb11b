import json
from pathlib import Path

import pytest
import yaml

from data.errors import UserError
from engine.run_folder import JsonLines, prepare_run_folder, write_yaml


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    prepare_run_folder(tmp_path / "a" / "b", keep_existing=False)
    assert (tmp_path / "a" / "b").is_dir()


def test_an_earlier_run_is_moved_aside_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for content in ("first", "second", "third"):
        prepare_run_folder(folder, keep_existing=False)
        (folder / "best.pth").write_text(content, encoding="utf-8")
    kept = {path.read_text(encoding="utf-8") for path in tmp_path.glob("run*/best.pth")}
    assert kept == {"first", "second", "third"}


def test_a_resumed_run_stays_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_text("weights", encoding="utf-8")
    prepare_run_folder(tmp_path, keep_existing=True)
    assert (tmp_path / "best.pth").read_text(encoding="utf-8") == "weights"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"run: a file of that name is in the way; .*--output-dir"):
        prepare_run_folder(tmp_path / "run", keep_existing=False)


def test_a_file_in_the_way_higher_up(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        prepare_run_folder(tmp_path / "outputs" / "run", keep_existing=False)


def test_lines_are_written_at_once(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "log.jsonl", first_step=0)
    lines.write({"step": 10, "loss": 1.5})
    assert json.loads((tmp_path / "log.jsonl").read_text(encoding="utf-8")) == {"step": 10, "loss": 1.5}
    lines.close()


def test_a_resumed_log_holds_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"step": 4', encoding="utf-8")
    lines = JsonLines(path, first_step=20)
    lines.write({"step": 30, "again": True})
    lines.close()
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert records == [{"step": 10}, {"step": 20}, {"step": 30, "again": True}]


def test_yaml_round_trip_keeps_order_and_accents(tmp_path: Path) -> None:
    content = {"b": 1, "a": ["ARAÑAZOS", 0.0001, None]}
    write_yaml(tmp_path / "config.yaml", content)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == content
