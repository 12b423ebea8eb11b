"""Whether LaTeX tables fit: by the metrics of Computer Modern, and compiled where LaTeX is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import unicodedata
from functools import cache
from pathlib import Path

import matplotlib
import pytest
from matplotlib.ft2font import FT2Font, LoadFlags

LINE_PT = 360.0
"""\\linewidth of \\documentclass[a4paper,11pt]{article}."""
MACROS = {
    "textbackslash": "\\",
    "textasciitilde": "~",
    "textasciicircum": "^",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textasciigrave": "`",
    "textperiodcentered": ".",
    "ldots": "...",
}


def tabular_widths_pt(source: str) -> list[float]:
    """Widths of all tabulars."""
    widths = []
    for table in re.findall(r"\\begin\{table\}.*?\\end\{table\}", source, flags=re.DOTALL):
        size_pt, between_pt = (9.0, 6.0) if r"\footnotesize\setlength{\tabcolsep}{3pt}" in table else (10.95, 12.0)
        for tabular in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", table, flags=re.DOTALL):
            rows = [
                re.split(r"(?<!\\)&", line[: -len(r" \\")]) for line in tabular.splitlines() if line.endswith(r" \\")
            ]
            widths.append(sum(between_pt + size_pt * max(map(_width_em, cells)) for cells in zip(*rows, strict=True)))
    return widths


def compile_article(tables: str, folder: Path, babel: str | None = None) -> None:
    """Compile tables in an article on A4 at 11 pt; skips the test without LaTeX, or without this language of babel."""
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    if babel and subprocess.run(["kpsewhich", f"{babel}.ldf"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip(f"babel's {babel} is not installed")
    head = r"\documentclass[a4paper,11pt]{article}\usepackage{booktabs}"
    head += rf"\usepackage[{babel}]{{babel}}" if babel else ""
    (folder / "x.tex").write_text(rf"{head}\begin{{document}}{tables}\end{{document}}", encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "x.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
    log = done.stdout.decode("utf-8", errors="replace")
    assert done.returncode == 0, log[-3000:]
    assert "Missing character" not in log and "Overfull" not in log


def _width_em(cell: str) -> float:
    text = re.sub(r"\$(?:\\[A-Za-z]+|[-+<])\$", "+", cell.strip())
    text = re.sub(r"\\([A-Za-z]+)\{\}", lambda found: MACROS[found[1]], text)
    text = re.sub(r"\\([{}$&#%_])", "\\1", text.replace("-{}", "-").replace("{[}", "[").replace("{]}", "]"))
    return sum(map(_advance_em, unicodedata.normalize("NFD", text.replace("{*}", "*"))))


@cache
def _advance_em(char: str) -> float:
    if unicodedata.combining(char):
        return 0.0
    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "cmr10.ttf"))
    font.set_size(1000, 72)
    advance: float = font.load_char(ord(char), flags=LoadFlags.NO_HINTING).linearHoriAdvance / 65536 / 1000
    return advance
