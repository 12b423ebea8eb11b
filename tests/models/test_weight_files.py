"""Published weight files are recognised by their content, never trusted for their name."""

from __future__ import annotations

import hashlib
import logging
import pickle
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data.errors import UserError
from models.weights import (
    KNOWN_FILES,
    MAX_JSON_BYTES,
    KnownFile,
    identify,
    is_state_dict,
    parse_json,
    read_metadata,
    read_weight_file,
)

CONTENT = b"weights of somebody"
KNOWN = (
    KnownFile("known.pth", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "a model"),
    KnownFile("unsized-abc.pth", hashlib.sha256(b"other").hexdigest()[:8], None, "a backbone"),
)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["known.pth", "renamed.pth"])
def test_known_by_content(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    with caplog.at_level(logging.INFO):
        assert identify(write(tmp_path / name, CONTENT), KNOWN) is KNOWN[0]
    assert f"{name}: is known.pth (a model), sha256" in caplog.text
    assert identify(write(tmp_path / "unsized-abc.pth", b"other"), KNOWN) is KNOWN[1], "by the start of its hash"
    caplog.clear()
    assert identify(write(tmp_path / "mine.pth", b"x"), KNOWN) is None and caplog.text == ""


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("known.pth", CONTENT[::-1], f"expected {len(CONTENT)} bytes, sha256"),
        ("known.pth", CONTENT[:5], "found 5 bytes"),
        ("unsized-abc.pth", b"another", "expected sha256"),
    ],
)
def test_another_content_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes, expected: str
) -> None:
    assert identify(write(tmp_path / name, content), KNOWN) is None
    assert f"is not the {name} known here" in caplog.text and expected in caplog.text
    assert "loading it all the same" in caplog.text
    torch.save({"cls_token": torch.ones(1)}, tmp_path / "vitt_distill.pt")
    assert is_state_dict(read_weight_file(tmp_path / "vitt_distill.pt"))
    assert "is not the vitt_distill.pt known here" in caplog.text


def test_the_published_files() -> None:
    """As they are published; DINOv3's names state the start of their hash."""
    sizes = {known.name: known.size_bytes for known in KNOWN_FILES}
    assert sizes["deimv2_dinov3_s_coco.pth"] == 39_537_357
    assert sizes["vitt_distill.pt"] == 21_996_698 and sizes["vittplus_distill.pt"] == 38_749_082
    for known in KNOWN_FILES:
        assert len(known.sha256) == 24 or known.name.endswith(f"-{known.sha256}.pth")
        int(known.sha256, 16)


def test_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path, {"format": "pt"})
    assert read_metadata(path) == {"format": "pt"}
    path.write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.safetensors: damaged or not a safetensors file"):
        read_metadata(path)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A .pth file with other bytes in its records."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


def claimed_size(elements: int) -> Callable[[str, bytes], bytes]:
    """The four elements of the saved tensor's storage become so many."""
    number = pickle.dumps(elements, 2)[2:-1]
    return lambda name, content: content.replace(b"K\x04", number) if name.endswith("data.pkl") else content


def shared(levels: int) -> list[Any]:
    part: list[Any] = ["x"]
    for _ in range(levels):
        part = [part] * 10
    return part


def deep(levels: int) -> list[Any]:
    part: list[Any] = []
    for _ in range(levels):
        part = [part]
    return part


def pth(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def unpacks_to_much(path: Path) -> None:
    torch.save({"w": torch.zeros(8 * 2**20)}, path)
    rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)


def claims_a_storage(elements: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({"w": torch.arange(4.0)}, path)
        rewritten(path, claimed_size(elements))

    return write


def claims_a_storage_in_the_old_format(path: Path) -> None:
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(claimed_size(10**13)("data.pkl", path.read_bytes()))


def nested_without_end(path: Path) -> None:
    """Deeper than Python itself can follow: so many lists, each appended to the one before."""
    torch.save([], path)
    pickled = b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."
    rewritten(path, lambda name, content: pickled if name.endswith("data.pkl") else content)


def safetensors_header(header: bytes, length: int | None = None) -> Callable[[Path], None]:
    size = len(header) if length is None else length
    return lambda path: path.write_bytes(size.to_bytes(8, "little") + header)  # type: ignore[return-value]


HUGE = b'{"w":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("deflated.pth", unpacks_to_much),
        ("storage.pth", claims_a_storage(10**12)),
        ("storage.pth", claims_a_storage(10**3)),
        ("old.pth", claims_a_storage_in_the_old_format),
        ("expanded.pth", pth({"w": torch.zeros(1).expand(10**6, 10**6)})),
        ("aliases.pth", pth(dict.fromkeys(map(str, range(500)), torch.zeros(10_000)))),
        ("shared.pth", pth({"model": {}, "config": shared(30)})),
        ("keys.pth", pth({"model": {}, "config": {"a": [["x" * 100_000] * 1000] * 1000}})),
        ("deep.pth", pth({"model": {}, "config": deep(150)})),
        ("deeper.pth", nested_without_end),
        ("many.pth", pth({"model": {}, "config": list(range(10**6))})),
        ("sparse.pth", pth({"w": torch.zeros(10**4, 10**4).to_sparse()})),
        ("meta.pth", pth({"w": torch.zeros(10**6, 10**6, device="meta")})),
        ("complex.pth", pth({"w": torch.zeros(3, dtype=torch.complex64)})),
        ("length.safetensors", safetensors_header(b"{}", 2**62)),
        ("length.safetensors", safetensors_header(b" " * (MAX_JSON_BYTES + 1))),
        ("offsets.safetensors", safetensors_header(HUGE)),
        ("deep.safetensors", safetensors_header(b'{"a":' + b"[" * 10**6)),
    ],
)
def test_what_a_file_claims_is_not_believed(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    """One message, within 5 s of CPU time and 1 GB."""
    resource = pytest.importorskip("resource")
    write(tmp_path / name)
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=rf"Weight file .*{name}: damaged") as error:
        read_weight_file(tmp_path / name)
    assert time.process_time() - started < 5 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "text", ["[" * 10**6, b"[" * 50 + b"]" * 50 + b" " * MAX_JSON_BYTES, "[" * 200 + "]" * 200, "{"]
)
def test_json_of_others(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}


def test_honest_files_are_read(tmp_path: Path) -> None:
    """Aliases, views, old format, half precision, nested settings."""
    weight = torch.randn(100, 10)
    content = {
        "a": weight,
        "b": weight,
        "c": weight[3:5],
        "d": weight.half(),
        "e": torch.zeros(0),
        "f": torch.tensor(True),
    }
    for is_new in (True, False):
        torch.save({"model": content, "lr": OrderedDict(steps=Counter({5: 1})), "x": deep(30)}, tmp_path / "x.pth",
                   _use_new_zipfile_serialization=is_new)  # fmt: skip
        read = read_weight_file(tmp_path / "x.pth")
        assert isinstance(read, dict) and all(torch.equal(read["model"][key], value) for key, value in content.items())
