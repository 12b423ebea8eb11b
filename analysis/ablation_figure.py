"""How alike the class texts are to the encoder, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.ablation_texts import texts_of
from analysis.labels import Language, labels_of
from analysis.style import INK, AxisNumbers, figure_style, new_figure, save_figure, tidy

_NAME_CHARACTERS = 24
_LARGEST_ANNOTATED = 16


def write_similarity_figure(
    similarity: Sequence[Sequence[float]], names: Sequence[str], folder: Path, file_name: str, lang: Language
) -> tuple[Path, Path]:
    """Write the matrix [C][C] of cosine similarities as PNG and PDF.

    Raises:
        UserError: They cannot be written.
    """
    with figure_style():
        return save_figure(_draw(np.asarray(similarity), names, lang), folder, file_name)


def _draw(values: np.ndarray[tuple[int, int], np.dtype[np.float64]], names: Sequence[str], lang: Language) -> Figure:
    """Shaded from the least similar pair (or 0) to 1: sentence encoders seldom go below 0."""
    labels, count = labels_of(lang), len(values)
    figure = new_figure(float(np.clip(0.95 * count + 3.5, 7.0, 17.0)))
    axis = figure.subplots()
    lowest = min(0.0, float(values.min()))
    mesh = axis.pcolormesh(values, cmap="Blues", vmin=lowest, vmax=1.0, edgecolors="#cccccc", linewidth=0.3)
    figure.colorbar(mesh, ax=axis, label=texts_of(lang).figure_axis, format=AxisNumbers(labels), shrink=0.8)
    places, shown = np.arange(count) + 0.5, [tidy(name, _NAME_CHARACTERS) for name in names]
    size = 7 if count <= 12 else 5
    axis.set_xticks(places, shown, fontsize=size, rotation=45, rotation_mode="anchor", ha="right")
    axis.set_yticks(places, shown, fontsize=size)
    axis.invert_yaxis()
    axis.grid(False)
    for row, column in np.ndindex(values.shape) if count <= _LARGEST_ANNOTATED else ():
        value = float(values[row, column])
        colour = "white" if (value - lowest) / (1 - lowest) > 0.65 else INK
        axis.text(
            column + 0.5, row + 0.5, labels.number(value, 2), ha="center", va="center", color=colour, fontsize=size
        )
    return figure
