"""report.html: everything an evaluation found, on one page that needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from analysis.gallery import GalleryFiles
from analysis.labels import Labels, Language, labels_of
from analysis.report_sections import Card, HtmlTable, Section, build_sections
from analysis.result import Analysis
from analysis.style import FigureFiles, tidy
from data.errors import UserError
from data.images import open_image
from engine.checkpoint import write_atomically


@dataclass(frozen=True)
class _Picture:
    """An image inside the page."""

    title: str
    description: str
    source: str
    """A data URI."""
    width_px: int
    height_px: int


@dataclass(frozen=True)
class _PageSection:
    """A section with its pictures read."""

    key: str
    title: str
    cards: Sequence[Card]
    paragraphs: Sequence[str]
    tables: Sequence[HtmlTable]
    pictures: Sequence[_Picture]


def write_report(
    analysis: Analysis,
    folder: Path,
    *,
    lang: Language,
    figures: Sequence[FigureFiles] = (),
    gallery: GalleryFiles | None = None,
) -> Path:
    """Write `report.html` into `folder`.

    Images are inlined. A content security policy lets the page run its own script and style only and load nothing,
    so that even a name that got through the escaping could do no harm.

    Args:
        analysis: What is reported.
        folder: Created if need be.
        lang: Of the texts.
        figures: From `write_figures`.
        gallery: From `write_gallery`; None for none.

    Raises:
        UserError: An image cannot be read or the page cannot be written.
    """
    labels = labels_of(lang)
    sections = build_sections(analysis, figures, gallery, labels)
    page = _render([_with_pictures(section) for section in sections], _subtitle(analysis, labels), labels)
    path = folder / "report.html"
    # A lone surrogate in a name is no character; it becomes a question mark.
    write_atomically(path, lambda file: file.write(page.encode("utf-8", "replace")), what="report")
    return path


def _subtitle(analysis: Analysis, labels: Labels) -> str:
    parts = [
        f"{labels.report_split} {analysis.split}",
        f"{labels.report_images}: {labels.integer(analysis.num_images)}",
    ]
    checkpoint = analysis.facts.get("checkpoint")
    return " · ".join([*parts, tidy(str(checkpoint))] if checkpoint else parts)


def _with_pictures(section: Section) -> _PageSection:
    pictures = [_picture(figure) for figure in section.figures]
    return _PageSection(section.key, section.title, section.cards, section.paragraphs, section.tables, pictures)


def _picture(figure: FigureFiles) -> _Picture:
    try:
        with open_image(figure.png) as image:
            width, height = image.size
        data = base64.b64encode(figure.png.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"{figure.png}: the figure cannot be read for the report ({error}). Evaluate again.") from error
    return _Picture(figure.title, figure.description, f"data:image/png;base64,{data}", width, height)


def _render(sections: Sequence[_PageSection], subtitle: str, labels: Labels) -> str:
    style, script = _resource("report.css"), _resource("report.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_resource("report_template.html")).render(
        sections=sections,
        subtitle=subtitle,
        labels=labels,
        # Our own files, the only text that is not escaped; the browser compares their hashes.
        style=Markup(style),
        script=Markup(script),
        style_hash=_policy_hash(style),
        script_hash=_policy_hash(script),
    )


def _resource(name: str) -> str:
    return files("analysis").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _policy_hash(text: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return Markup(f"sha256-{digest}")
