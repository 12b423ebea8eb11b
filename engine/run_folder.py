"""The folder of one training run and what is written into it while training goes on."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from data.errors import UserError
from engine.checkpoint import write_atomically

log = logging.getLogger(__name__)


def prepare_run_folder(folder: Path, *, keep_existing: bool) -> None:
    """Make `folder` an empty, writable run folder; an earlier run in it is moved aside, never deleted.

    Args:
        folder: The run folder.
        keep_existing: True when the run in it is being resumed.

    Raises:
        UserError: `folder` is a file, or cannot be created or written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"Output folder {folder}: a file of that name is in the way; rename the file or choose another "
            "folder with --output-dir."
        )
    try:
        if folder.is_dir() and any(folder.iterdir()) and not keep_existing:
            log.info("Earlier run in %s moved aside to %s", folder, _move_aside(folder))
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"Output folder {folder}: cannot be written ({error.strerror or error}); check its permissions and the "
            "free space, or choose another folder with --output-dir."
        ) from error


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
    """`log.jsonl`: one JSON object a line, flushed at once so that a crash loses nothing.

    A resumed run goes on in the same file; lines of steps that are trained again are dropped first, so every
    step stands in the file once.
    """

    def __init__(self, path: Path, *, first_step: int) -> None:
        if path.exists():
            _drop_steps_from(path, first_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_steps_from(path: Path, first_step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # the torn last line of a killed run
        if int(record.get("step", 0)) <= first_step:
            kept.append(line)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
