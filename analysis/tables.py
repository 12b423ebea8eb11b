"""Tables of results for people: Markdown, CSV and LaTeX, in Spanish or English, and the files they are written to.

A cell is text, a number, a number with an interval or a spread, a p-value, or None for "not known". What comes from
data (names of classes and runs) is escaped in each format.
"""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from data.files import write_json, write_text
from data.script import Report
from engine.cli import ending
from texts import Language, number, plain_table

MISSING = "-"


class Number(NamedTuple):
    """A measured value; shown as `0.512`, `0.512 [0.48, 0.54]`, `0.512 ± 0.012` or all of it."""

    value: float | None
    """None is shown as missing, whatever else is given; so is what is not finite."""
    digits: int = 3
    """Decimals of the value and its spread."""
    interval: tuple[float, float] | None = None
    interval_digits: int | None = None
    """Decimals of the interval; None: one fewer than `digits`."""
    spread: float | None = None
    """Standard deviation."""
    signed: bool = False
    """Show + too, for differences."""
    least: float = -math.inf
    """Smaller values are shown as `<` this one."""


def p_value(value: float | None) -> Number:
    """Return a p-value, three decimals; what is smaller than they can show is `<0.001`."""
    return Number(value, least=0.001)


Cell = str | int | float | None | Number


@dataclass(frozen=True)
class Table:
    """Rows of equal length under their columns; a column holds text or numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    label: str = ""
    """For `\\ref` in LaTeX; letters, digits, `:`, `-` and `_`."""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {index} has {len(row)} cells, the table {len(self.columns)} columns")
        if not self.columns:
            raise ValueError("a table needs a column")

    def to_markdown(self, lang: Language) -> str:
        """Return a table as GitHub reads it, padded so that it can be read as it is; no line break at the end."""
        # Our own lines: for these pandas needs one more package, which does not escape either.
        cells = [
            [escape_markdown(cell) if isinstance(cell, str) else format_cell(cell, lang) for cell in row]
            for row in (self.columns, *self.rows)
        ]
        signs = [">" if self._is_numeric(column) else "<" for column in range(len(self.columns))]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        rule = ["-" * (width - 1) + (":" if sign == ">" else "-") for sign, width in zip(signs, widths, strict=True)]
        lines = [
            " | ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(line, signs, widths, strict=True))
            for line in (cells[0], rule, *cells[1:])
        ]
        caption = [escape_markdown(self.caption), ""] if self.caption else []
        return "\n".join([*caption, *(f"| {line} |" for line in lines)])

    def to_csv(self, lang: Language) -> str:
        """Return it for spreadsheets: limits and spreads in columns of their own, six significant digits, missing
        cells empty.

        English: `,` and decimal point. Spanish: `;` and decimal comma, as a Spanish spreadsheet reads and writes it.
        """
        names, columns = [], []
        for column, name in enumerate(self.columns):
            parts = [*zip(*(_csv_parts(row[column]) for row in self.rows), strict=True)] or [()]
            for suffix, values in zip(_CSV_SUFFIXES[lang], parts, strict=False):
                if not suffix or any(value is not None for value in values):
                    known = [one if not isinstance(one, float) or math.isfinite(one) else None for one in values]
                    columns.append(pd.Series(known, dtype=object).convert_dtypes())
                    names.append(_csv_text(name + suffix))
        frame = pd.concat(columns, axis=1, keys=range(len(columns)))
        separator, decimal = (";", ",") if lang == "es" else (",", ".")
        text: str = frame.to_csv(
            index=False, header=names, sep=separator, decimal=decimal, float_format="%.6g", lineterminator="\r\n"
        )
        return text

    def to_latex(self, lang: Language) -> str:
        """Return a `table` float that fits the line of an article on A4 at 11 pt; it needs `\\usepackage{booktabs}`.

        A table that is too wide has its intervals below their values, then smaller letters (`\\footnotesize`), then
        its texts broken; at last its columns stand in several tabulars, each behind the first column. Latin letters
        with accents stay as they are (pdfLaTeX reads UTF-8); names in other scripts need XeLaTeX or LuaLaTeX.
        """
        for layout in _LAYOUTS:
            columns = [
                _latex_column(name, [row[k] for row in self.rows], "r" if self._is_numeric(k) else "l", layout, lang)
                for k, name in enumerate(self.columns)
            ]
            if sum(column.width_pt for column in columns) <= _LINE_PT:
                break
        tabulars = [_tabular(group) for group in _side_by_side(columns)]
        lines = [
            r"\begin{table}[htbp]",
            r"\centering",
            *([rf"\caption{{{escape_latex(self.caption)}}}"] if self.caption else []),
            *([rf"\label{{{self.label}}}"] if self.label else []),
            *([r"\footnotesize\setlength{\tabcolsep}{3pt}"] if layout[1] else []),
            "\\par\\medskip\n".join(tabulars) + r"\end{table}",
        ]
        return "\n".join(lines)

    def _is_numeric(self, column: int) -> bool:
        """Right-aligned: no text in it. A column of missing cells is one of numbers."""
        return bool(self.rows) and not any(isinstance(row[column], str) for row in self.rows)


class _LatexColumn(NamedTuple):
    """Escaped lines of a head and of the cells below it."""

    head: list[str]
    cells: list[list[str]]
    alignment: str
    width_pt: float


_LAYOUTS = ((False, False, 0), (True, False, 0), (True, True, 0), (True, True, 18))
"""Intervals below their values; small letters; characters of a line of text, 0: it is not broken."""
_LINE_PT = 360.0
"""Of LaTeX's article on A4 at 11 pt; the lines of most other classes are longer."""


_WIDTHS_EM = {" .,:;!'[]ilfj-": 0.34, "()Irst": 0.4, "0123456789acegoz/": 0.51, "bdhknpquvxy": 0.57, "MW": 1.03}


def _latex_column(
    name: str, cells: Sequence[Cell], alignment: str, layout: tuple[bool, bool, int], lang: Language
) -> _LatexColumn:
    below, small, longest = layout

    def lines(cell: Cell) -> list[str]:
        text = format_cell(cell, lang)
        if isinstance(cell, str):
            return _broken(text, longest) if longest else [text]
        return text.replace(" [", "\n[").split("\n") if below else [text]

    rows = [lines(cell) for cell in cells]
    # A head is about as wide as what stands below it.
    head_width = max(8, *(len(line) for row in rows for line in row), *map(len, name.split()))
    head = _broken(name, min(head_width, longest or head_width))
    escapes = [escape_latex if isinstance(cell, str) else _latex_number for cell in cells]
    # In Computer Modern, rather too much than too little.
    size_pt, between_pt = (9.0, 6.0) if small else (10.95, 12.0)
    widest_em = max(sum(map(_width_em, line)) for row in (head, *rows) for line in row)
    return _LatexColumn(
        head=[escape_latex(line) for line in head],
        cells=[[escape(line) for line in row] for escape, row in zip(escapes, rows, strict=True)],
        alignment=alignment,
        width_pt=between_pt + size_pt * widest_em,
    )


def _width_em(char: str) -> float:
    plain = unicodedata.normalize("NFD", char)[0]
    return next((width for chars, width in _WIDTHS_EM.items() if plain in chars), 0.84)


def _side_by_side(columns: Sequence[_LatexColumn]) -> list[list[_LatexColumn]]:
    """Groups of columns that fit a line, the first column in each."""
    groups = [[columns[0]]]
    for column in columns[1:]:
        if len(groups[-1]) > 1 and sum(one.width_pt for one in [*groups[-1], column]) > _LINE_PT:
            groups.append([columns[0]])
        groups[-1].append(column)
    return groups


def _tabular(columns: Sequence[_LatexColumn]) -> str:
    # A head ends on the rule below it, a cell begins at the top of its row.
    heads = [*zip_longest(*(column.head[::-1] for column in columns), fillvalue="")][::-1]
    rows = zip(*(column.cells for column in columns), strict=True)
    lines = [line for row in rows for line in zip_longest(*row, fillvalue="")]
    names = pd.MultiIndex.from_arrays(heads) if len(heads) > 1 else pd.Index(heads[0])
    style = pd.DataFrame(lines, columns=names).style.hide(axis="index")
    alignment = "".join(column.alignment for column in columns)
    text: str = style.to_latex(hrules=True, column_format=alignment, sparse_columns=False)
    return text


def _broken(text: str, longest: int) -> list[str]:
    """Lines of a text, broken at spaces and behind `_` and `/` where that will do."""
    places = re.sub(r"(?<=[_/])(?=.)", "\v", _one_line(text))
    lines = textwrap.wrap(places, longest, replace_whitespace=False)
    return [line.replace("\v", "") for line in lines] or [""]


_CSV_SUFFIXES: dict[Language, tuple[str, ...]] = {
    "en": ("", " low", " high", " sd"),
    "es": ("", " inf.", " sup.", " d.e."),
}
_LATEX_SIGNS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",  # active in Spanish babel, and the straight one is missing in TeX's own fonts
    "`": r"\textasciigrave{}",
    "-": "-{}",  # two would become a dash
    "[": "{[}",  # the first of a row would be read as an option of the line break before it
    "]": "{]}",
    "*": "{*}",  # likewise
    "±": r"$\pm$",
    "−": "$-$",
    "·": r"\textperiodcentered{}",
    "…": r"\ldots{}",
    "Δ": r"$\Delta$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}
_LATEX = str.maketrans(_LATEX_SIGNS)
_LATEX_NUMBER = str.maketrans(_LATEX_SIGNS | {"-": "$-$", "+": "$+$", "<": "$<$"})


def escape_markdown(text: str) -> str:
    """Return text as a Markdown cell that shows exactly it. Inside a word `_` is plain: names are easier to read."""
    return re.sub(r"[\\|*`~<>\[\]&$#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", _one_line(text))


def bullets(lines: Iterable[str]) -> str:
    """Return a list of sentences in Markdown."""
    return "\n".join(f"- {escape_markdown(line)}" for line in lines)


def for_console(markdown: str) -> str:
    """Return a page of ours as plain text: its tables laid out, without the signs of Markdown."""
    return "\n\n".join(map(_plain_block, markdown.split("\n\n")))


def _plain_block(block: str) -> str:
    if not block.startswith("| "):
        plain = re.sub(r"(?<!\\)`|^#+ ", "", block)
        return _unescaped(re.sub(r"(?<!\\)!?\[(.+?)(?<!\\)\]\((.+?)\)", r"\1 (\2)", plain))
    head, rule, *rows = ([cell.strip() for cell in line[2:-2].split(" | ")] for line in block.split("\n"))
    left = [number for number, dashes in enumerate(rule) if not dashes.endswith(":")]
    return plain_table([[*map(_unescaped, row)] for row in (head, *rows)], text_columns=left)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([^\w\s]|_)", r"\1", text)


def escape_latex(text: str) -> str:
    """Return text for LaTeX, whichever language babel is set to."""
    return _one_line(text).translate(_LATEX)


def format_number(value: float, digits: int, lang: Language, *, signed: bool = False) -> str:
    """Write fixed decimals as programs read them: the language's decimal sign, plain signs, no groups of digits."""
    text = number(value, digits, "en", signed=signed).translate({ord("−"): "-", ord(","): None})
    return text.replace(".", ",") if lang == "es" else text


def format_cell(cell: Cell, lang: Language) -> str:
    """Write a cell as plain text, unescaped."""
    if isinstance(cell, str):
        return _one_line(cell)
    if isinstance(cell, int):
        return str(cell)
    value, digits, interval, interval_digits, spread, signed, least = cell if isinstance(cell, Number) else Number(cell)
    if value is None or not math.isfinite(value):
        return MISSING
    if value < least:
        return f"<{format_number(least, digits, lang)}"
    text = format_number(value, digits, lang, signed=signed)
    if spread is not None and math.isfinite(spread):
        text += f" ± {format_number(spread, digits, lang)}"
    if interval is not None and all(map(math.isfinite, interval)):
        decimals = max(digits - 1, 0) if interval_digits is None else interval_digits
        low, high = (format_number(limit, decimals, lang, signed=signed) for limit in interval)
        text += f" [{low}{'; ' if lang == 'es' else ', '}{high}]"
    return text


def _latex_number(text: str) -> str:
    """Signs of numbers are minus signs, not hyphens."""
    return "--" if text == MISSING else text.translate(_LATEX_NUMBER)


def _csv_parts(cell: Cell) -> tuple[str | int | float | None, ...]:
    """Value, limits and spread."""
    if isinstance(cell, Number):
        return cell.value, *(cell.interval or (None, None)), cell.spread
    return _csv_text(cell) if isinstance(cell, str) else cell, None, None, None


def _csv_text(text: str) -> str:
    """A name that starts like a formula would be computed by the spreadsheet; an apostrophe keeps it text."""
    line = _one_line(text)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def write_tables(
    folder: Path,
    stem: str,
    tables: Mapping[str, Table],
    lang: Language,
    *,
    markdown: str,
    content: Mapping[str, Any],
    possible: Collection[str] = (),
) -> None:
    """Write `stem`.md, .tex with all tables, a CSV for each (`stem`.csv of the first, `stem`_<name>.csv), and .json,
    which comes last. Of the `possible` tables those that an earlier writing left are removed.
    """
    first = next(iter(tables), None)
    write_text(folder / f"{stem}.md", markdown, what="table")
    _write_latex(folder / f"{stem}.tex", tables.values(), lang)
    for name, table in tables.items():
        _write_csv(folder / (f"{stem}.csv" if name == first else f"{stem}_{name}.csv"), table, lang)
    for name in set(possible) - set(tables):
        (folder / f"{stem}_{name}.csv").unlink(missing_ok=True)
    write_json(folder / f"{stem}.json", content, what="table", indent=2)


def say_tables(markdown: str, folder: Path, stem: str, lang: Language, report: Report) -> str:
    """Return what a script prints of the tables that `write_tables` wrote; the report gets their files."""
    report.wrote(folder=folder, **{kind: folder / f"{stem}.{kind}" for kind in ("json", "md", "tex")})
    in_latex = f"\\input{{{(folder / f'{stem}.tex').as_posix()}}}"
    return f"{for_console(markdown)}\n{ending(lang, folder, in_latex)}"


def write_table(table: Table, path: Path, lang: Language) -> None:
    """Write `path`.csv and `path`.tex."""
    _write_csv(path.with_name(f"{path.name}.csv"), table, lang)
    _write_latex(path.with_name(f"{path.name}.tex"), [table], lang)


def _write_latex(path: Path, tables: Collection[Table], lang: Language) -> None:
    head = "% \\usepackage[utf8]{inputenc}\n% \\usepackage{booktabs}\n"
    write_text(path, head + "\n\n".join(table.to_latex(lang) for table in tables) + "\n", what="table")


def _write_csv(path: Path, table: Table, lang: Language) -> None:
    write_text(path, f"\ufeff{table.to_csv(lang)}", what="table")  # the mark tells a spreadsheet that this is UTF-8
