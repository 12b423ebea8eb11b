"""The look of every figure: thesis width, colours for colour-blind readers, marks that survive a grey printer.

Figures are plain `matplotlib.figure.Figure` objects on an Agg canvas: no pyplot, no window, no state left behind.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import ScalarFormatter

from data.files import write_atomically
from engine.pictures import class_colour
from texts import Language, number

WIDTH_CM = 16.0
"""Text width of an A4 thesis."""
MAX_HEIGHT_CM = 22.0
DPI = 200
MAX_NAMED_CLASSES = 10
"""More lines than these cannot be told apart; then the classes are drawn in grey and only their mean has a name."""

INK = "#000000"
FAINT = "#8a8a8a"
TRUTH_COLOUR = "#0072B2"
FOUND_COLOUR = "#D55E00"
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")

_CM_PER_INCH = 2.54
_YELLOW = (240, 228, 66)
_DARK_GREY = (90, 90, 90)
_LINE_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 9,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.6,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Text stays text in PDF (searchable, editable); type 3 fonts are refused by some printers and journals.
    "pdf.fonttype": 42,
    # A class may be called "$HOLE$".
    "text.parse_math": False,
    "savefig.dpi": DPI,
}


class FigureFiles(NamedTuple):
    """A figure on disk, with what a page needs to show it."""

    name: str
    """File name without suffix, e.g. "confusion"."""
    title: str
    description: str
    """What a reader who cannot see it should know."""
    png: Path
    pdf: Path


@contextmanager
def figure_style() -> Iterator[None]:
    """Put our settings on top of matplotlib's own defaults, not of the user's; restored on leaving."""
    with matplotlib.style.context(["default", _SETTINGS]):
        yield


def new_figure(height_cm: float) -> Figure:
    """Make an empty figure of thesis width that lays itself out."""
    # matplotlib's own margins (inches) let titles touch the edge of the paper.
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(WIDTH_CM / _CM_PER_INCH, height_cm / _CM_PER_INCH), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name`.png and `name`.pdf; the same figure gives the same bytes.

    Raises:
        UserError: They cannot be written.
    """
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    write_atomically(png, lambda file: figure.savefig(file, format="png"), what="figure")
    figure.set_layout_engine("none")  # it is laid out now; both files shall look the same
    undated = {"CreationDate": None}
    write_atomically(pdf, lambda file: figure.savefig(file, format="pdf", metadata=undated), what="figure")
    return png, pdf


def class_line(label: int) -> dict[str, Any]:
    """Return colour, dashes and marker of a class's line: the colour it has in pictures, but for yellow, which white
    paper swallows."""
    colour = class_colour(label)
    red, green, blue = _DARK_GREY if colour == _YELLOW else colour
    return {
        "color": (red / 255, green / 255, blue / 255),
        "linestyle": _LINE_STYLES[label % len(_LINE_STYLES)],
        "marker": _MARKERS[label % len(_MARKERS)],
    }


def tidy(text: str, limit: int | None = None) -> str:
    """Make one printable line: line breaks, control and direction marks become spaces.

    Beyond `limit` characters the middle is cut: names of classes and files often differ at their ends.
    """
    kept = (c if c.isprintable() else " " for c in unicodedata.normalize("NFC", text))
    line = " ".join("".join(kept).split())
    if limit is None or len(line) <= limit:
        return line
    head = (limit - 1) * 2 // 3
    return f"{line[:head]}…{line[len(line) - (limit - 1 - head) :]}"


def decimal_mark(text: str, language: Language) -> str:
    """Put the language's decimal mark into a number that Python wrote."""
    return text.replace(".", ",") if language == "es" else text


class AxisNumbers(ScalarFormatter):
    """Matplotlib's own choice of digits with the language's decimal mark and groups of digits."""

    def __init__(self, language: Language) -> None:
        super().__init__(useOffset=False, useLocale=False)
        self.set_scientific(False)
        self._language: Language = language

    def __call__(self, value: float, pos: int | None = None) -> str:
        if abs(value) >= 1000 and value == round(value):
            return number(value, 0, self._language)  # grouped as the numbers beside the axis are
        return decimal_mark(str(super().__call__(value, pos)), self._language)
