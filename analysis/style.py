"""The look of every figure: thesis width, colours for colour-blind readers, marks that survive a grey printer.

Figures are plain `matplotlib.figure.Figure` objects on an Agg canvas: no pyplot, no window, no state left behind.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import ScalarFormatter

from data.files import write_atomically, write_text
from data.types import FloatArray
from engine.labels import place_labels
from engine.pictures import class_colour
from texts import Language, number

WIDTH_CM = 16.0
"""Text width of an A4 thesis."""
MAX_HEIGHT_CM = 22.0
DPI = 200
NAME_CHARACTERS = 24
"""Of a class at an axis or in a legend."""
MAX_NAMED_CLASSES = 10
"""More lines than these cannot be told apart; then the classes are drawn in grey and only their mean has a name."""

INK = "#000000"
FAINT = "#8a8a8a"
TRUTH_COLOUR = "#0072B2"
FOUND_COLOUR = "#D55E00"
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")

_CM_PER_INCH = 2.54
LARGEST_ANNOTATED = 16
"""Classes of a table with numbers in its cells."""
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


def save_figure(figure: Figure, folder: Path, name: str, *, text_beside: str | None = None) -> tuple[Path, Path]:
    """Write `name`.png and `name`.pdf; the same figure gives the same bytes.

    With `text_beside` the figure loses its caption and title, and that text becomes `name`.txt: documents have captions
    of their own.
    """
    png, pdf, txt = (folder / f"{name}.{suffix}" for suffix in ("png", "pdf", "txt"))
    if text_beside is not None:
        _drop_texts(figure)
    write_atomically(png, lambda file: figure.savefig(file, format="png"), what="figure")
    figure.set_layout_engine("none")  # it is laid out now; both files shall look the same
    undated = {"CreationDate": None}
    write_atomically(pdf, lambda file: figure.savefig(file, format="pdf", metadata=undated), what="figure")
    if text_beside is None:
        txt.unlink(missing_ok=True)  # an earlier call's
    else:
        write_text(txt, f"{text_beside}\n", what="caption")
    return png, pdf


def remove_figure(folder: Path, name: str) -> None:
    """Remove an earlier writing's figure that there is nothing for now."""
    for suffix in ("png", "pdf", "txt"):
        (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def _drop_texts(figure: Figure) -> None:
    """Take away caption and title, and the height that they would need."""
    for text in figure.texts:
        height = text.get_window_extent().height / figure.dpi
        figure.set_figheight(figure.get_figheight() - height)
        text.set(visible=False, in_layout=False)


class BoxNames(Artist):
    """Names at boxes of axes, placed when the figure is painted: only then is known how large everything is."""

    def __init__(self, axes: Any, boxes_xyxy: Sequence[Any], names: Sequence[str], colours: Sequence[str]) -> None:
        """Boxes are in the axes' coordinates; the first names are the last to give way."""
        super().__init__()
        self.texts = [
            Text(
                text=name,
                fontsize=5,
                color=colour,
                va="bottom",
                path_effects=[withStroke(linewidth=1.4, foreground="white")],
            )
            for name, colour in zip(names, colours, strict=True)
        ]
        self._corners = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 2)
        self.set(zorder=6, in_layout=False)
        axes.add_artist(self)

    def draw(self, renderer: Any) -> None:
        """Place and paint the names, and the lines to boxes that are not beside them."""
        axes: Any = self.axes
        down = np.array([1, -1])  # pixels count from the bottom here
        corners = (axes.transData.transform(self._corners) * down).reshape(-1, 2, 2)
        boxes = np.hstack([corners.min(axis=1), corners.max(axis=1)])
        for text in self.texts:
            text.set_figure(axes.figure)
        extents = [text.get_window_extent(renderer) for text in self.texts]
        margin = renderer.points_to_pixels(1.2)  # lines and rims have a width
        boxes += np.array([-1, -1, 1, 1]) * margin
        sizes = [(one.width + 2 * margin, one.height) for one in extents]
        (left, bottom), (right, top) = axes.bbox.get_points()
        areas, lines = place_labels(boxes, sizes, (left, -top, right, -bottom))
        for text, (x1, y1, x2, y2) in zip(self.texts, lines.tolist(), strict=True):
            rim = [withStroke(linewidth=1.6, foreground="white")]
            line = Line2D([x1, x2], [-y1, -y2], linewidth=0.6, color=text.get_color(), path_effects=rim)
            line.set_figure(axes.figure)
            line.draw(renderer)
        for text, (x1, _, _, y2) in zip(self.texts, areas.tolist(), strict=True):
            text.set_visible(math.isfinite(x1))
            text.set_position((x1 + margin, -y2))
            text.draw(renderer)


def shaded_table(
    values: FloatArray,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: Normalize,
    scale_title: str,
    lang: Language,
    decimals: int = 2,
) -> tuple[Figure, Any]:
    """Make a figure of a table [R, C] whose cells are shaded; numbers other than 0 in them where they
    are legible."""
    count = len(values)
    figure = new_figure(float(np.clip(0.95 * count + 4.0, 8.0, 17.0)))
    axes: Any = figure.subplots()
    edges = {"edgecolors": "#cccccc", "linewidth": 0.3 if count <= 40 else 0}
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap="Blues", norm=scale, **edges)
    figure.colorbar(mesh, ax=axes, label=scale_title, format=AxisNumbers(lang), shrink=0.8)
    size = 7 if count <= 12 else 6 if count <= 25 else 4
    places = np.arange(count) + 0.5
    axes.set_xticks(places, [tidy(name, NAME_CHARACTERS) for name in columns], fontsize=size)
    legible = count <= LARGEST_ANNOTATED
    for text in axes.get_xticklabels():
        text.set(**{"rotation": 45, "rotation_mode": "anchor", "ha": "right"} if legible else {"rotation": 90})
    axes.set_yticks(places, [tidy(name, NAME_CHARACTERS) for name in rows], fontsize=size)
    axes.invert_yaxis()
    axes.grid(False)
    for row, column in np.argwhere(np.nan_to_num(values) != 0) if legible else ():
        value = float(values[row, column])
        look = {"color": "white" if float(scale(value)) > 0.55 else INK, "fontsize": 7 if count < 10 else 5}
        axes.text(column + 0.5, row + 0.5, number(value, decimals, lang), ha="center", va="center", **look)
    return figure, axes


def frame(axes: Any) -> None:
    """Show an image without axes, in a thin frame: white steel ends somewhere on white paper."""
    axes.axis("off")
    edge = {"transform": axes.transAxes, "edgecolor": FAINT, "linewidth": 0.4, "clip_on": False}
    axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, **edge))


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


def in_language(language: Language, *sides: Any) -> None:
    """Write the numbers along axes, `axes.xaxis` say, as the language does."""
    for side in sides:
        side.set_major_formatter(AxisNumbers(language))
