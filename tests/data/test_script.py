"""What the scripts share: exit codes, and the line of `--json`."""

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.script import Report, ScriptParser, run_script
from tests.support.tiny_run import ROOT, script_environment


def _fail(error: BaseException) -> Any:
    def main(_: Report) -> int:
        raise error

    return main


def test_user_error_is_one_message_and_exit_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert run_script(_fail(UserError("config x.yml: two faults", ["first", "second"]))) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: config x.yml: two faults\n  - first\n  - second\n"
    assert captured.out == ""
    monkeypatch.setenv("RANK", "3")
    run_script(_fail(UserError("no")))
    assert capsys.readouterr().err == "error (process 3): no\n"


def test_a_name_that_is_too_long_is_the_users_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def main(_: Report) -> None:
        (tmp_path / ("x" * 300)).stat()

    assert run_script(main) == 2
    assert "no file or folder can have a name that long; shorten it" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        run_script(_fail(FileNotFoundError()))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes, signals and folders")
@pytest.mark.parametrize(
    ("start", "code", "error"),
    [
        ("{run} | true; exit ${{PIPESTATUS[0]}}", 2, "error: Nobody reads the output any more"),
        ("{run} 2>&1 | true; exit ${{PIPESTATUS[0]}}", 2, ""),
        ("{run} >&- 2>&-", 0, ""),
        ("mkdir {gone}; cd {gone}; rmdir {gone}; {run}", 2, "error: The folder that you are in does not exist any"),
        ("{run} hangup", 129, ""),
        ("trap '' HUP; {run} hangup > /dev/null", 0, ""),  # nohup
    ],
)
def test_a_shell_that_goes_away(start: str, code: int, error: str, tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.write_text(
        "import signal, sys\n"
        "from data.script import run_script\n"
        "def main(report):\n"
        "    if sys.argv[1:]: signal.raise_signal(signal.SIGHUP)\n"
        "    sys.stdout.write('a line\\n' * 50_000)\n"
        "sys.exit(run_script(main))\n",
        encoding="utf-8",
    )
    line = start.format(run=f"{sys.executable} {script}", gone=tmp_path / "gone")
    environment = script_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr[: len(error)]) == (code, error) and done.stderr.count("\n") == bool(error)


def test_sigterm_is_143_and_another_one_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as info:
            run_script(lambda _: signal.raise_signal(signal.SIGTERM))
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert info.value.code == 143


def test_a_killed_data_worker_is_explained_wherever_it_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    killed = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    assert run_script(_fail(killed)) == 2
    assert "error: A data worker was killed (DataLoader worker (pid 12)" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_under_the_output_is_exit_2(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w", buffering=1, encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run_script(lambda _: full.write("a line\n")) == 2
        monkeypatch.setattr(sys, "stderr", sys.__stderr__)
        with contextlib.suppress(OSError):
            full.close()


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="asks the system who reads a pipe")


@pytest.mark.parametrize("error", [ZeroDivisionError(), pytest.param(BrokenPipeError("a socket's"), marks=POSIX)])
def test_faults_of_the_program_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_script(_fail(error))


KEYS = ["script", "exit_code", "outputs", "metrics", "warnings", "error", "problems"]


def _arguments_wrong(_: Report) -> None:
    ScriptParser(prog="x.py").parse_args(["--json", "--nothing"])


def _report_problems(report: Report) -> None:
    report.problems.append("one file is broken")


@pytest.mark.parametrize(
    ("main", "code", "error", "problems"),
    [
        (lambda _: None, 0, None, []),
        (_report_problems, 3, None, ["one file is broken"]),
        (_fail(UserError("two faults", ["first", "second"])), 2, "two faults", ["first", "second"]),
        (_arguments_wrong, 2, "unrecognized arguments: --nothing", []),
        (_fail(KeyboardInterrupt()), 130, "interrupted", []),
        (_fail(SystemExit(130)), 130, "interrupted", []),
        (lambda _: signal.raise_signal(signal.SIGTERM), 143, "interrupted", []),
        (_fail(ZeroDivisionError("a fault")), 1, "ZeroDivisionError: a fault", []),
        (_fail(SystemExit("a text")), 1, None, []),
    ],
)
@pytest.mark.parametrize("option", ["--json", "--js"])
def test_every_end_is_one_line(
    option: str,
    main: Any,
    code: int,
    error: str | None,
    problems: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["folder/x.py", option])
    before = signal.getsignal(signal.SIGTERM)
    returned = None
    with contextlib.suppress(SystemExit, ZeroDivisionError):
        returned = run_script(main)
    signal.signal(signal.SIGTERM, before)
    out = capsys.readouterr().out
    assert out.endswith("\n") and out.count("\n") == 1
    line = json.loads(out)
    assert list(line) == KEYS
    assert (line["script"], line["exit_code"], line["error"], line["problems"]) == ("x.py", code, error, problems)
    assert returned in (None, code)


def test_the_line_is_valid_json_of_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").mkdir()
    os.utime(tmp_path / "old", (1e9, 1e9))

    def main(report: Report) -> int:
        (tmp_path / "new.json").write_text('{"metrics": {"AP": 0.5}, "loss": 2, "other": 1}', encoding="utf-8")
        os.utime(tmp_path / "new.json", (report.started + 1,) * 2)
        report.wrote(new=tmp_path / "new.json", old=tmp_path / "old", absent=tmp_path / "absent", none=None)
        report.take(tmp_path / "new.json", "metrics", "loss")
        report.metrics["AR"] = {"a": [math.nan, math.inf]}
        logging.getLogger("engine").warning("caf\u00e9 %d", 1)
        logging.getLogger("engine").warning("caf\u00e9 %d", 1)
        sys.stdout.write("a table\n")
        return int(sys.argv[-1])

    for code in (0, 143):
        monkeypatch.setattr(sys, "argv", ["x.py", "--json", str(code)])
        assert run_script(main) == code
        out, err = capsys.readouterr()
        line = json.loads(out)
        new = {"new": str(tmp_path / "new.json")}
        assert line["outputs"] == (new | {"old": str(tmp_path / "old")} if code == 0 else new)
        assert line["metrics"] == {"AP": 0.5, "loss": 2, "AR": {"a": [None, None]}}
        assert line["warnings"] == ["caf\u00e9 1"] and "a table" in err and out.isascii()
    monkeypatch.setenv("RANK", "1")
    run_script(main)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["x.py", "--", "--json", "0"])
    run_script(main)
    assert capsys.readouterr().out == "a table\n"


def test_libraries_and_children_write_to_stderr() -> None:
    code = (
        "import os, sys, subprocess\n"
        "from data.script import run_script\n"
        "def main(report):\n"
        "    print('a'); os.write(1, b'b\\n'); subprocess.run([sys.executable, '-c', 'print(\"c\")'])\n"
        "sys.argv = ['x.py', '--json']\n"
        "code = run_script(main)\n"
        "print('late'); os.write(1, b'later\\n')\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=script_environment(), cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["script"] == "x.py" and done.stdout.count(b"\n") == 1
    assert set(done.stderr.split()) == {b"a", b"b", b"c", b"late", b"later"}
