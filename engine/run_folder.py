"""The folder of one training run and what is written into it while training goes on."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from data.errors import UserError
from data.files import GrowingFile, write_atomically

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

LOCK_NAME = "run.lock"
_LOCKED_BYTE = 1 << 20
"""Far behind the text: Windows lets nobody else read what is locked."""


class FolderLock:
    """The right of one training to write into a run folder, for as long as its process lives.

    The system drops the lock when the process ends, however it ends, so the file that a killed run leaves behind holds
    nobody up. Its text, process and host, is for the message alone.

    Raises:
        UserError: Another training has it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / LOCK_NAME).open("a+", encoding="utf-8")
        if not _try_lock(self._file.fileno()):
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise UserError(
                f"Output folder {folder}: another training is running in it ({holder}). Wait for it or stop it, or "
                "choose another folder with --output-dir."
            )
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        try:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n")
            self._file.flush()
        except OSError:
            self.release(folder)
            raise

    def release(self, folder: Path) -> None:
        """Let others in; `folder` is where the folder is by now."""
        if not self._file.closed:
            with contextlib.suppress(OSError):  # a full disk
                self._file.close()
            with contextlib.suppress(OSError):  # a removed folder
                (folder / LOCK_NAME).unlink()


def require_unlocked(folder: Path) -> None:
    """Check that no other training is running in `folder`; the lock that a killed one left is removed.

    Raises:
        UserError: One is, or nobody can tell.
    """
    if not (folder / LOCK_NAME).exists():
        return
    try:
        FolderLock(folder).release(folder)
    except OSError as error:
        raise UserError(
            f"Output folder {folder}: {LOCK_NAME} cannot be opened ({error.strerror}), it may be another user's; "
            "choose another folder with --output-dir."
        ) from error


def _try_lock(descriptor: int) -> bool:
    """Whether this process has the lock now."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        log.warning("this file system has no locks (%s); let no other training write into the folder", error)
    return True


def prepare_run_folder(folder: Path, *, keep_existing: bool) -> FolderLock:
    """Make `folder` an empty, writable run folder; an earlier run in it is moved aside, never deleted, unless it is
    the one that goes on (`keep_existing`).

    Raises:
        UserError: `folder` is a file, cannot be created or written, or another training is running in it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"Output folder {folder}: a file of that name is in the way; rename the file or choose another "
            "folder with --output-dir."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        if keep_existing:
            for left in folder.glob("*.tmp"):  # by a process that was killed while it wrote
                left.unlink()
        elif any(path.name != LOCK_NAME for path in folder.iterdir()):
            if os.name == "nt":
                lock.release(folder)  # Windows moves no folder with an open file in it
            moved = _move_aside(folder)
            log.info("Earlier run in %s moved aside to %s", folder, moved)
            lock.release(moved)
            folder.mkdir(exist_ok=True)
            lock = FolderLock(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"Output folder {folder}: cannot be written ({error.strerror or error}); check its permissions and the "
            "free space, or choose another folder with --output-dir."
        ) from error
    return lock


def _move_aside(folder: Path) -> Path:
    stamp = datetime.fromtimestamp(folder.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    for attempt in range(1000):
        target = folder.with_name(f"{folder.name}.{stamp}" + (f"-{attempt}" if attempt else ""))
        if not target.exists():
            return folder.rename(target)
    raise OSError(f"no free name beside {folder}")


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a plain dict as YAML, keys in their own order."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, lambda file: file.write(text.encode()), what="config")


class JsonLines:
    """`log.jsonl`: one JSON object a line, written at once so that a crash loses nothing.

    A resumed run goes on in the same file; lines of steps that are trained again are dropped first, so every
    step stands in the file once.

    Args:
        path: The file.
        first_step: Steps done before.
        evaluated: Whether the evaluation after the last of them is done, too, and not made again.
        earlier: The log to continue, where it is another run folder's.
    """

    def __init__(self, path: Path, *, first_step: int, evaluated: bool = True, earlier: Path | None = None) -> None:
        source = earlier or path
        if source.is_file():
            kept = "".join(f"{line}\n" for line in _lines_up_to(source, first_step, evaluated))
            write_atomically(path, lambda file: file.write(kept.encode()), what="log")
        self._file = GrowingFile(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            UserError: It cannot be written.
        """
        self._file.write(f"{json.dumps(record)}\n".encode())

    def close(self) -> None:
        self._file.close()


def _lines_up_to(path: Path, last_step: int, evaluated: bool) -> list[str]:
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the torn last line of a killed run
        step = record.get("step", 0) if isinstance(record, dict) else None
        if isinstance(step, int) and (
            step < last_step or (step == last_step and (evaluated or "metrics" not in record))
        ):
            kept.append(line)
    return kept
