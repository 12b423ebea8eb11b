"""Files that are whole or not there, and their fingerprints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from data.errors import UserError

log = logging.getLogger(__name__)

_IS_WINDOWS = os.name == "nt"
_GO_ON_TRAINING = "Free some space or bring the folder back, then go on from the last checkpoint, -r last.pth."


def write_atomically(path: Path, write: Callable[[BinaryIO], object], *, what: str, durable: bool = True) -> None:
    """Call `write` on a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    The folder is created if need be; `what` is written ("checkpoint") is for the message. `durable` waits until the
    disk has it, so that it survives a power cut: not worth the while for thousands of files that can be made again.

    Raises:
        UserError: Any fault of the file system, a full disk above all. The old file survives, the temporary is gone.
    """
    # Of this call alone: another process may be writing the same file. Cut, for names may have 255 bytes at most.
    temporary = path.with_name(f"{path.name[:40]}.{uuid4().hex[:8]}.tmp")
    handled_by_caller = sys.exception()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        _replace(temporary, path)
        if durable:
            _fsync_folder(path.parent)
    except BaseException as error:
        _remove_quietly(temporary)
        cause = _os_error(error, handled_by_caller)
        if cause is None:
            raise
        kept = "The file that was there before is untouched." if path.exists() else "No file was written."
        raise UserError(
            f"Could not write {what} {path}: {cause.strerror or cause}. {kept} "
            "Free some space or check the permissions of the folder."
        ) from error


def write_text(path: Path, text: str, *, what: str, durable: bool = True) -> None:
    """Write `text` as UTF-8, half characters, which JSON can hold, as their escapes; see `write_atomically`."""
    content = text.encode(errors="backslashreplace")
    write_atomically(path, lambda file: file.write(content), what=what, durable=durable)


def write_json(path: Path, content: object, *, what: str, indent: int | None = None, durable: bool = True) -> None:
    """Write JSON: compact, in ASCII whatever is in it, or indented for people, with a list of numbers on one line.

    Raises:
        ValueError: `content` holds a number that is not finite, which JSON does not know.
        UserError: See `write_atomically`.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=indent is None, allow_nan=False)
    if indent is not None:
        rows = r"\[\n((?:null|[\s\d.,eE+-])+)\n\s*\]"  # a line break is in no JSON string
        text = re.sub(rows, lambda row: f"[{' '.join(row[1].split())}]", text)
    write_text(path, f"{text}\n", what=what, durable=durable)


class GrowingFile:
    """A file that grows: each piece is there at once, whole or not at all."""

    def __init__(self, path: Path, advice: str = _GO_ON_TRAINING) -> None:
        """Continue the file if it exists; a UserError says what to do (`advice`) when it cannot be written."""
        self._path, self._advice = path, advice
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise could_not_write(self._path, error, self._advice) from error

    def write(self, piece: bytes) -> None:
        """Append `piece`; a UserError if the disk is full, or the file was removed."""
        before = self._file.seek(0, os.SEEK_END)
        rest = memoryview(piece)
        try:
            os.stat(self._path)  # writing to a removed file would succeed
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise could_not_write(self._path, error, self._advice) from error

    def close(self) -> None:
        """Close the file; since everything is written already, no fault here is worth hiding another error."""
        try:
            self._file.close()
            if self._path.stat().st_size == 0:
                self._path.unlink()
        except OSError as error:
            log.warning("%s: %s", self._path, error)


def could_not_write(path: Path, error: OSError, advice: str) -> UserError:
    """Say what went wrong with a file, and what to do."""
    return UserError(f"{path}: could not be written ({error.strerror or error}). {advice}")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _os_error(error: BaseException, unrelated: BaseException | None) -> OSError | None:
    """The OSError behind `error`: torch's zip writer closes its archive after one and then raises on its own."""
    seen: BaseException | None = error
    while isinstance(seen, (OSError, RuntimeError)) and seen is not unrelated:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__context__
    return None


def _replace(source: Path, target: Path) -> None:
    """`os.replace`; Windows refuses while a virus scanner or a reader holds the target, so there it tries again."""
    for _ in range(20 if _IS_WINDOWS else 0):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(0.1)
    os.replace(source, target)


def _fsync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform can: Windows and some network drives cannot."""
    if _IS_WINDOWS:
        return
    with contextlib.suppress(OSError):  # the new file is complete and in place whatever happens here
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("could not remove the temporary file %s: %s", path, error)
