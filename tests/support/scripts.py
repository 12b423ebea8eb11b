"""A script as a user starts it, in this process, which spares loading torch again."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from tests.support.tiny_run import ROOT, command, script_environment


class Outcome(NamedTuple):
    """What a script left behind."""

    code: int
    out: str
    err: str


def start_script(name: str, *arguments: str | Path, cwd: Path | None = None) -> Outcome:
    """Run the project's script `name`, or the module of that name, with these arguments, from the folder `cwd`."""
    out, err = io.StringIO(), io.StringIO()
    before, handlers, level = sys.argv, logging.root.handlers[:], logging.root.level
    sys.argv = [name, *map(str, arguments)]
    try:
        with (
            contextlib.chdir(cwd or Path.cwd()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            if name.endswith(".py"):
                runpy.run_path(str(ROOT / name), run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as leave:
        code = leave.code
    finally:
        sys.argv = before
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def ranks() -> list[dict[str, str]]:
    """What torchrun sets for each of two processes on the CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]


def start_two_processes(name: str, *arguments: str | Path, cwd: Path, timeout_s: float = 240) -> list[Outcome]:
    """Run the script as torchrun does: rank 0 in this process, rank 1 in one of its own. Both must end well."""
    here, there = ranks()
    other = subprocess.Popen(
        command(name, arguments),
        cwd=cwd,
        env=script_environment() | there,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        with patch.dict(os.environ, here):
            outcome = start_script(name, *arguments, cwd=cwd)
        out, err = other.communicate(timeout=timeout_s)
    finally:
        other.kill()
    outcomes = [outcome, Outcome(other.returncode, out, err)]
    assert [one.code for one in outcomes] == [0, 0], [one.err[-3000:] for one in outcomes]
    return outcomes
