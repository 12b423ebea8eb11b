"""A script as a user starts it, in this process, which spares loading torch again."""

from __future__ import annotations

import contextlib
import io
import logging
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.tiny_run import ROOT


class Outcome(NamedTuple):
    """What a script left behind."""

    code: int
    out: str
    err: str


def start_script(name: str, *arguments: str | Path, cwd: Path | None = None) -> Outcome:
    """Run the project's script `name` with these arguments, from the folder `cwd`."""
    out, err = io.StringIO(), io.StringIO()
    before, handlers, level = sys.argv, logging.root.handlers[:], logging.root.level
    sys.argv = [name, *map(str, arguments)]
    try:
        with (
            contextlib.chdir(cwd or Path.cwd()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as leave:
        code = leave.code
    finally:
        sys.argv = before
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())
