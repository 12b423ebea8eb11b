import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from data.files import GrowingFile
from engine.run_folder import JsonLines, prepare_run_folder, require_unlocked
from tests.support.full_disk import full_disk
from tests.support.tiny_run import ROOT, script_environment


def test_an_earlier_run_is_moved_aside_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for content in ("first", "second", "third"):
        prepare_run_folder(folder, keep_existing=False).release(folder)
        (folder / "best.pth").write_text(content, encoding="utf-8")
    kept = {path.read_text(encoding="utf-8") for path in tmp_path.glob("run*/best.pth")}
    assert kept == {"first", "second", "third"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", encoding="utf-8")
    for name, told in (
        ("run", r"run: a file of that name is in the way; .*--output-dir"),
        ("run/x", "cannot be written"),
    ):
        with pytest.raises(UserError, match=told):
            prepare_run_folder(tmp_path / name, keep_existing=False)
    (tmp_path / "mine" / "run.lock").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"mine: run.lock cannot be opened \(.*\), it may be another user's; .*--output-dir"
    ):
        require_unlocked(tmp_path / "mine")


def test_a_resumed_log_holds_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"step": 4', encoding="utf-8")
    lines = JsonLines(path, first_step=20)
    lines.write({"step": 30, "again": True})
    lines.close()
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert records == [{"step": 10}, {"step": 20}, {"step": 30, "again": True}]


def test_a_second_training_is_refused_until_the_first_ends_however_it_ends(tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_text("weights", encoding="utf-8")
    code = "lock = prepare_run_folder(Path(sys.argv[1]), keep_existing=True); print('held', flush=True); time.sleep(60)"
    imports = "import sys, time; from pathlib import Path; from engine.run_folder import prepare_run_folder; "
    holder = subprocess.Popen(
        [sys.executable, "-c", imports + code, str(tmp_path)],
        cwd=ROOT,
        env=script_environment(),
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline().strip() == b"held"
        for keep in (False, True):
            expected = f"{re.escape(str(tmp_path))}: another training .*process {holder.pid} on .*--output-dir"
            with pytest.raises(UserError, match=expected):
                prepare_run_folder(tmp_path, keep_existing=keep)
        assert (tmp_path / "best.pth").is_file()
    finally:
        holder.kill()
        holder.communicate()
    lock = prepare_run_folder(tmp_path, keep_existing=True)
    lock.release(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pth"]


def test_the_lock_stays_with_the_folder_that_is_trained_in(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare_run_folder(folder, keep_existing=False).release(folder)
    (folder / "best.pth").write_text("first", encoding="utf-8")
    lock = prepare_run_folder(folder, keep_existing=False)
    moved = next(path for path in tmp_path.iterdir() if path != folder)
    assert [path.name for path in moved.iterdir()] == ["best.pth"]
    with pytest.raises(UserError, match="another training"):
        prepare_run_folder(folder, keep_existing=False)
    lock.release(folder)


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "last.pth.1a2b3c4d.tmp").write_text("half", encoding="utf-8")
    prepare_run_folder(tmp_path, keep_existing=True).release(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_growing_file_on_a_full_disk_keeps_whole_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log"
    file = GrowingFile(path)
    file.write(b"first\n")
    with full_disk(10), pytest.raises(UserError, match=r"log: could not be written \(File too large\).* -r last.pth"):
        file.write(b"second\n")
    assert path.read_bytes() == b"first\n"
    file.write(b"third\n")
    file.close()
    assert path.read_bytes() == b"first\nthird\n"


@pytest.mark.parametrize(("evaluated", "expected"), [(True, [1, 2, 2]), (False, [1, 2])])
def test_an_evaluation_that_is_made_again_stands_in_the_log_once(
    tmp_path: Path, evaluated: bool, expected: list[int]
) -> None:
    """Also where a run goes on in another folder, which gets the history of the first."""
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "metrics": {}}\n[]\n', encoding="utf-8")
    for path, earlier in ((tmp_path / "new.jsonl", tmp_path / "log.jsonl"), (tmp_path / "log.jsonl", None)):
        JsonLines(path, first_step=2, evaluated=evaluated, earlier=earlier).close()
        assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == expected
