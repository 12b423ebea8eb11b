"""A script as a user starts it, in this process, which spares loading torch again."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from tests.support.tiny_run import ROOT, script_environment


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


_SERVER = forkserver.ForkServer()
_SERVER.set_forkserver_preload(["analysis.evaluate", "engine.train", "engine.multimodal", __name__])


def start_process(target: Callable[..., object], *arguments: object, daemon: bool = False) -> Process:
    """Start a process, forked from a server that has imported everything once, which takes seconds.

    The server is our own: that of multiprocessing is for data workers, which import as little as they can.
    """
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments, daemon=daemon)
    with patch.object(forkserver, "connect_to_new_process", _SERVER.connect_to_new_process):
        process.start()
    return process


def start_beside(name: str, *arguments: str | Path, cwd: Path, environment: Mapping[str, str]) -> tuple[Process, Any]:
    """Run the script in a process of its own; returns it, and the connection on which its `Outcome` comes."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = start_process(_send_outcome, sender, name, arguments, cwd, dict(environment))
    sender.close()
    return process, receiver


def _send_outcome(
    sender: Any, name: str, arguments: tuple[str | Path, ...], cwd: Path, environment: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sender.send(start_script(name, *arguments, cwd=cwd))


def start_two_processes(
    name: str,
    *arguments: str | Path,
    cwd: Path,
    timeout_s: float = 240,
    code: int = 0,
    meanwhile: Callable[[Process], None] = lambda other: None,
) -> list[Outcome]:
    """Run the script as torchrun does: rank 0 in this process, rank 1 in one of its own. Both must end with `code`.

    `meanwhile` runs in a thread and gets the other process.
    """
    here, there = ranks()
    before = signal.getsignal(signal.SIGTERM)
    other, receiver = start_beside(name, *arguments, cwd=cwd, environment=script_environment() | there)
    thread = threading.Thread(target=meanwhile, args=(other,))
    thread.start()
    try:
        with patch.dict(os.environ, here):
            outcome = start_script(name, *arguments, cwd=cwd)
        assert receiver.poll(timeout_s), f"the other process does not end; this one: {outcome}"
        outcomes = [outcome, receiver.recv()]
    finally:
        other.kill()
        thread.join()
        signal.signal(signal.SIGTERM, before)  # a script that was asked to stop hears of it no more
    assert [one.code for one in outcomes] == [code, code], [one.err[-3000:] for one in outcomes]
    return outcomes
