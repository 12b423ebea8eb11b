"""Files are whole or not there, whatever happens while they are written."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from data import files
from data.files import file_sha256, write_atomically, write_json, write_text


def test_a_folder_that_cannot_be_flushed_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    write_text(tmp_path / "a", "a", what="file")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "a"


def test_faults_of_the_writer_are_not_disguised(tmp_path: Path) -> None:
    def broken(file: BinaryIO) -> None:
        raise RuntimeError("a bug")

    for error in (RuntimeError, KeyboardInterrupt):
        try:
            raise OSError("an earlier, unrelated error")
        except OSError:
            with pytest.raises(error):
                write_atomically(tmp_path / "x", broken if error is RuntimeError else _interrupt, what="file")
    assert list(tmp_path.iterdir()) == []


def _interrupt(file: BinaryIO) -> None:
    raise KeyboardInterrupt


def test_windows_tries_again_while_the_target_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_text("new", encoding="utf-8")
    (tmp_path / "old").write_text("old", encoding="utf-8")
    real_replace, calls = os.replace, []

    def held_twice(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) < 3:
            raise PermissionError
        real_replace(source, target)

    monkeypatch.setattr(files, "_IS_WINDOWS", True)
    monkeypatch.setattr(os, "replace", held_twice)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    files._replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text(encoding="utf-8") == "new" and len(calls) == 3


def test_json_is_compact_or_readable(tmp_path: Path) -> None:
    content = {"name": "RAYÓN, [\n1,\n2]", "curve": [1, 2.5, None, -3e-05], "matrix": [[0, 1], [2, 3]], "none": []}
    write_json(tmp_path / "compact.json", content, what="results")
    compact = (tmp_path / "compact.json").read_text(encoding="utf-8")
    assert compact.startswith('{"name":"RAY\\u00d3N, [\\n1,\\n2]","curve":[1,2.5,null,-3e-05],')
    assert compact.endswith("}\n")
    write_json(tmp_path / "readable.json", content, what="results", indent=2)
    readable = (tmp_path / "readable.json").read_text(encoding="utf-8")
    assert '  "curve": [1, 2.5, null, -3e-05],\n  "matrix": [\n    [0, 1],\n    [2, 3]\n  ],' in readable
    assert json.loads(readable) == json.loads(compact) == content
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", float("nan"), what="results")
    assert file_sha256(tmp_path / "compact.json") == hashlib.sha256(compact.encode()).hexdigest()
