"""Published weight files are recognised by their content, never trusted for their name."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data.errors import UserError
from models.weight_files import KNOWN_FILES, KnownFile, identify, is_state_dict, read_metadata, read_weight_file

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


def test_known_by_the_start_of_its_hash(tmp_path: Path) -> None:
    assert identify(write(tmp_path / "unsized-abc.pth", b"other"), KNOWN) is KNOWN[1]


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


def test_other_files_are_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert identify(write(tmp_path / "mine.pth", b"x"), KNOWN) is None
    assert caplog.text == ""


def test_the_published_files() -> None:
    """As issue 7 lists them; DINOv3's names state the start of their hash."""
    sizes = {known.name: known.size_bytes for known in KNOWN_FILES}
    assert sizes["deimv2_dinov3_s_coco.pth"] == 39_537_357
    assert sizes["vitt_distill.pt"] == 21_996_698 and sizes["vittplus_distill.pt"] == 38_749_082
    for known in KNOWN_FILES:
        complete = len(known.sha256) == 64
        assert complete or known.name.endswith(f"-{known.sha256}.pth")
        int(known.sha256, 16)


def test_a_mismatch_does_not_block(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "vitt_distill.pt"
    torch.save({"cls_token": torch.ones(1)}, path)
    assert is_state_dict(read_weight_file(path))
    assert "is not the vitt_distill.pt known here" in caplog.text


def test_metadata(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path, {"format": "pt"})
    assert read_metadata(path) == {"format": "pt"}
    path.write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.safetensors: damaged or not a safetensors file"):
        read_metadata(path)
