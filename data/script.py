"""What every program of the project shares: its exit code, and the line of `--json` that says what came of it."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import logging
import math
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from data.errors import UserError
from data.signals import HANGUP, STOP_SIGNALS, handlers

EXIT_USER_ERROR = 2
EXIT_INCOMPLETE = 3
"""Done, but something was left out or found at fault; the report names it."""
EXIT_INTERRUPTED = 130
_EXITS_OF_SIGNALS = [128 + number for number in STOP_SIGNALS]

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_MOST_WARNINGS = 100
_stdout = 1
"""Descriptor of the program's own output; another one once 1 leads to stderr."""


@dataclass
class Report:
    """What a script says of itself to a program, filled while it works."""

    outputs: dict[str, Path] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """With one of them the exit code is 3, where it would be 0."""
    error: str | None = None
    """What ended the script; None: it came to its end."""
    started: float = field(default_factory=time.time)

    def wrote(self, **paths: Path | None) -> None:
        """Name outputs; those that are not there at the end are not told of."""
        self.outputs |= {name: path for name, path in paths.items() if path is not None}

    def take(self, path: Path, *keys: str) -> None:
        """Take metrics from a JSON file that was written: its values at `keys`, mappings without their own name."""
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for key in content.keys() & set(keys):
            self.metrics |= content[key] if isinstance(content[key], dict) else {key: content[key]}

    def line(self, code: int) -> str:
        """Return the report as one line of JSON in ASCII."""
        script, done = Path(sys.argv[0]), code in (0, EXIT_INCOMPLETE)
        there = {name: path for name, path in self.outputs.items() if path.exists()}
        # What a run that failed did not get to is of an earlier one.
        content = {
            "script": script.name if script.stem != "__main__" else ".".join(script.parts[-3:-1]),
            "exit_code": code,
            "outputs": {k: v for k, v in there.items() if done or v.stat().st_mtime >= self.started},
            "metrics": self.metrics,
            "warnings": list(dict.fromkeys(self.warnings))[:_MOST_WARNINGS],
            "error": self.error,
            "problems": self.problems,
        }
        return json.dumps(_plain(content), allow_nan=False, default=str)


def _plain(value: Any) -> Any:
    """Numbers that JSON does not know become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class ScriptParser(argparse.ArgumentParser):
    """A parser with `--json`, whose errors get into the line too."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        what = "print one line of JSON about the outcome, and all else on stderr (docs/guide/programs.md)"
        self.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=what)

    def error(self, message: str) -> NoReturn:
        try:
            super().error(message)
        except SystemExit as leaving:
            leaving.add_note(message)
            raise


def run_script(main: Callable[[Report], int | None], *, own_json: bool = False) -> int:
    """Run a script's `main` and turn its outcome into an exit code, see docs/guide/programs.md.

    A `UserError`, or a name too long for a file, becomes one message on stderr and exit code 2; Ctrl-C becomes 130,
    SIGTERM 143, a closed terminal 129; None and 0 count as 3 where the report has problems. Anything else is a fault
    of the program and keeps its traceback. `own_json`: the script has a `--json` of another meaning.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or a Windows program without a console
            setattr(sys, name, os.fdopen(_nowhere(), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        # A Windows console may not know a character of a class name; an escape is better than a crash.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    report, code = Report(), 1
    if own_json or not _json_wanted():
        return _run(main, report)
    with _stdout_to_stderr() as out, _collected(report.warnings):
        try:
            code = _run(main, report)
        except BaseException as error:
            code = _code_of(error)
            report.error = "\n".join(getattr(error, "__notes__", ())) or report.error or _words(error)
            raise
        finally:
            if _speaks():
                _write(out, report.line(code))
    return code


def _run(main: Callable[[Report], int | None], report: Report) -> int:
    try:
        with handlers(_terminate, signal.SIGTERM, *HANGUP):
            _require_working_folder()
            return main(report) or (EXIT_INCOMPLETE if report.problems else 0)
    except UserError as error:
        return _explain(error, report)
    except RuntimeError as error:
        from data.loader import explain_worker_error  # here, or every script would load OpenCV

        # torch raises it wherever the main process happens to be when it hears of a worker's end.
        explained = explain_worker_error(error)
        if explained is None:
            raise
        return _explain(explained, report)
    except BrokenPipeError:
        unread = [stream for stream in (sys.stdout, sys.stderr) if _is_unread(stream)]
        if not unread:
            raise  # of a socket, say
        for stream in unread:  # nor shall Python complain at its end, when it writes what is left
            os.dup2(_nowhere(), stream.fileno())
        return _explain(UserError("Nobody reads the output any more: the program behind | has ended."), report)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = str(error.filename)[:60]
            long = UserError(f"{name!r}...: no file or folder can have a name that long; shorten it")
            return _explain(long, report)
        if error.errno in _DISK_FULL:
            return _explain(UserError(f"{error}. Free some space; what was written before is kept."), report)
        raise
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        report.error = "interrupted"
        return EXIT_INTERRUPTED
    except SystemExit as leaving:
        if leaving.code in _EXITS_OF_SIGNALS:
            # torchrun sends one more to whoever takes long to leave; it must not change the exit code.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise


def _is_unread(stream: TextIO) -> bool:
    """Tell whether the program that read a pipe has ended."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    try:
        poll.register(stream, select.POLLOUT)
    except (OSError, ValueError):  # no file, as in a notebook
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY)


def _require_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError as error:  # of which torch would end the process
        raise UserError("The folder that you are in does not exist any more; cd to one that does.") from error


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _explain(error: UserError, report: Report) -> int:
    rank = os.environ.get("RANK", "0")
    report.error, report.problems = error.message, [*error.problems]
    with contextlib.suppress(OSError):  # stderr may be a file on a full disk; the exit code still tells
        sys.stderr.write(f"error{'' if rank == '0' else f' (process {rank})'}: {error}\n")
    return EXIT_USER_ERROR


@contextlib.contextmanager
def leaving_quietly() -> Iterator[None]:
    """End the process without a traceback on a signal during a script's imports, which take seconds."""
    with handlers(_leave, *STOP_SIGNALS):
        yield


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    # An exception would come out of an import, where libraries turn it into others or go on without a part.
    os.write(2, b"interrupted\n")
    if _json_wanted() and _speaks():
        os.write(_stdout, f"{Report(error='interrupted').line(128 + number)}\n".encode())
    os._exit(128 + number)


def _json_wanted() -> bool:
    """Whether `--json` was given; asked before any parser is there, so that its errors are told too."""
    words = [word.partition("=")[0] for word in takewhile("--".__ne__, sys.argv[1:])]
    return any(len(word) > len("--") and "--json".startswith(word) for word in words)


def _speaks() -> bool:
    """Of several processes one prints the line."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[TextIO]:
    """Lead what anybody prints, libraries in C and child processes included, to stderr; yields the true output."""
    global _stdout
    out = sys.stdout
    with contextlib.suppress(OSError, ValueError):  # no file, as in a notebook
        out.flush()
        if out.fileno() == _stdout:
            _stdout = os.dup(1)
            os.dup2(2, 1)  # for good: nothing may follow the line
            out = os.fdopen(_stdout, "w", encoding="ascii", closefd=False)
    with contextlib.redirect_stdout(sys.stderr):
        yield out


@contextlib.contextmanager
def _collected(lines: list[str]) -> Iterator[None]:
    """Keep what is logged as a warning, or worse, beside showing it."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            if logging.root.handlers == [self] and logging.lastResort is not None:
                logging.lastResort.handle(record)

    collector = Collector(logging.WARNING)
    logging.root.addHandler(collector)
    try:
        yield
    finally:
        logging.root.removeHandler(collector)


def _code_of(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1


def _words(error: BaseException) -> str | None:
    if isinstance(error, SystemExit):
        return "interrupted" if error.code in _EXITS_OF_SIGNALS else None
    return "".join(traceback.format_exception_only(error)).strip()


def _write(out: TextIO, line: str) -> None:
    try:
        out.write(f"{line}\n")
        out.flush()
    except OSError as error:  # the exit code still tells
        sys.stderr.write(f"error: the line of --json could not be written ({error.strerror})\n")
