"""Headless Chromium for tests: open a page, get its text back and what it wrote to the console."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Visit:
    """What came of opening a page."""

    dom: str
    """The document as HTML, after its scripts have run."""
    console: list[str]
    """Every line that any page wrote to the console, faults that the browser reports there included."""


def find_chromium() -> str | None:
    """The browser: environment variable CHROMIUM, or the first on the path; None if there is none."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in _NAMES if (path := shutil.which(name))), None)


def visit(page: Path, profile: Path, *, width_px: int = 1400, timeout_s: float = 120) -> Visit:
    """Open a local page, wait until its scripts rest, and read it.

    Args:
        page: An HTML file. It may look into local files that it shows in frames.
        profile: An empty folder.
        width_px: Of the window.
        timeout_s: Wall-clock limit.
    """
    browser = find_chromium()
    assert browser is not None
    command = [
        browser,
        "--headless",
        "--no-sandbox",  # the page is ours, and root has no sandbox
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--user-data-dir={profile}",
        f"--window-size={width_px},1000",
        "--dump-dom",
        page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=True)
    log = done.stderr.decode("utf-8", "replace")
    return Visit(done.stdout.decode("utf-8", "replace"), re.findall(r"CONSOLE[^\"]*\"(.*)\", source", log))
