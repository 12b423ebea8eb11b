"""Everything the project says to its users in Spanish and English, and how each language writes numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Literal, get_args

import yaml

Language = Literal["es", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
NOTHING = "–"
"""Stands where there is no number."""
_MINUS = "\u2212"


class _Counts(Formatter):
    """Also reads `{images:image|images}`: the number and what fits it."""

    def format_field(self, value: object, format_spec: str) -> str:
        one, both, many = format_spec.partition("|")
        if not both:
            return str(super().format_field(value, format_spec))
        return f"{value} {one if str(value) == '1' else many}"


class Texts:
    """One section of a language: `texts["key"]` as it stands, `texts("key", count=3)` with values filled in."""

    def __init__(self, language: Language, section: str, texts: dict[str, str]) -> None:
        self.language = language
        self._section = section
        self._texts = texts

    def __getitem__(self, key: str) -> str:
        return self._texts[key]

    def __call__(self, key: str, **values: object) -> str:
        return _Counts().format(self._texts[key], **values)

    def number(self, value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
        """See `number`."""
        return number(value, decimals, self.language, signed=signed)

    def percent(self, fraction: float | None, decimals: int = 1) -> str:
        """See `percent`."""
        return percent(fraction, self.language, decimals)

    def interval(self, ends: tuple[float, float] | None, decimals: int = 3) -> str:
        """Write `[low, high]`, with a semicolon where the comma is the decimal mark; a dash for None."""
        between = "; " if self.language == "es" else ", "
        return NOTHING if ends is None else f"[{between.join(self.number(end, decimals) for end in ends)}]"

    def __contains__(self, key: str) -> bool:
        return key in self._texts


def texts_of(language: Language, section: str) -> Texts:
    """Return the texts of one section in a language."""
    return Texts(language, section, catalogue(language)[section])


@cache
def catalogue(language: Language) -> dict[str, dict[str, str]]:
    """Return section -> key -> text, as `<language>.yml` holds them.

    Raises:
        ValueError: The file is no YAML; names the line.
    """
    path = Path(str(files(__name__).joinpath(f"{language}.yml")))
    try:
        content: dict[str, dict[str, str]] = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else path
        found = " ".join(str(getattr(error, "problem", error)).split())
        expected = "expected `key: text`, in quotes where the text holds `: ` or begins with a sign"
        raise ValueError(f"{where}: {found}; {expected}") from None
    return content


def missing_texts(language: Language) -> list[str]:
    """List the texts that another language has and this one has not, as `section.key`."""
    own = catalogue(language)
    every = [(section, key) for one in LANGUAGES for section, keys in catalogue(one).items() for key in keys]
    return [f"{section}.{key}" for section, key in every if not (own.get(section) or {}).get(key)]


def plain_table(rows: Sequence[Sequence[str]], *, text_columns: Sequence[int] = (0,)) -> str:
    """Lay rows of cells out for a console: numbers to the right, the columns of `text_columns` to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [
            f"{cell:{'<' if k in text_columns else '>'}{width}}"
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join("  ".join(["", *cells]).rstrip() for cells in aligned)


def number(value: float | None, decimals: int, language: Language, *, signed: bool = False) -> str:
    """Write a number with a fixed count of decimals and the language's decimal mark; a dash for None and NaN.

    Thousands are set apart from five digits on, as both languages do in tables; zero has no sign.
    """
    if value is None or math.isnan(value):
        return NOTHING
    text = "∞" if math.isinf(value) else f"{abs(value):{',' if abs(value) >= 10_000 else ''}.{decimals}f}"
    if language == "es":
        text = text.translate({ord(","): "\u202f", ord("."): ","})
    if not any(digit in text for digit in "123456789∞"):
        return text
    return f"{_MINUS}{text}" if value < 0 else f"{'+' if signed else ''}{text}"


def percent(fraction: float | None, language: Language, decimals: int = 1) -> str:
    """Write a fraction as a percentage, with the space both languages want (ISO 80000-1); a dash for None and NaN."""
    text = number(None if fraction is None else 100 * fraction, decimals, language)
    return text if text == NOTHING else f"{text}\u00a0%"
