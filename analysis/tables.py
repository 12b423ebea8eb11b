"""Tables of results for people: Markdown, CSV and LaTeX, in Spanish or English.

A cell is text, a number, a number with an interval or a spread, a p-value, or None for "not known". What comes from
data (names of classes and runs) is escaped in each format.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.labels import Language

MISSING = "-"


@dataclass(frozen=True)
class Number:
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


@dataclass(frozen=True)
class PValue:
    """A p-value, three decimals; what is smaller than they can show is `<0.001`."""

    value: float | None


Cell = str | int | float | None | Number | PValue


@dataclass(frozen=True)
class Table:
    """Rows of equal length under their columns.

    Raises:
        ValueError: A row is not as long as the columns are many.
    """

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
        """GitHub's tables, padded so that they can be read as they are; no line break at the end."""
        head = [escape_markdown(column) for column in self.columns]
        body = [[_plain(cell, lang, escape=escape_markdown) for cell in row] for row in self.rows]
        numeric = [self._is_numeric(column) for column in range(len(self.columns))]
        widths = [max(3, *(len(line[i]) for line in [head, *body])) for i in range(len(head))]
        rule = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
        lines = [_padded(line, widths, numeric) for line in [head, rule, *body]]
        caption = [escape_markdown(self.caption), ""] if self.caption else []
        return "\n".join([*caption, *lines])

    def to_csv(self, lang: Language) -> str:
        """For spreadsheets: limits and spreads in columns of their own, six significant digits, missing cells empty.

        English: `,` and decimal point. Spanish: `;` and decimal comma, as a Spanish spreadsheet reads and writes it.
        Write it as `utf-8-sig`, or Excel takes accents for something else.
        """
        out = io.StringIO()
        writer = csv.writer(out, delimiter=";" if lang == "es" else ",", lineterminator="\r\n")
        parts = [self._parts(column) for column in range(len(self.columns))]
        writer.writerow(
            [
                _csv_text(f"{name} {_PART_NAMES[lang][part]}".strip())
                for name, of_column in zip(self.columns, parts, strict=True)
                for part in of_column
            ]
        )
        for row in self.rows:
            writer.writerow(
                [_csv_part(cell, part, lang) for cell, of_column in zip(row, parts, strict=True) for part in of_column]
            )
        return out.getvalue()

    def to_latex(self, lang: Language) -> str:
        """A `table` float; the document needs `\\usepackage{booktabs,graphicx}`.

        Wider than the line it is shrunk to it. Latin letters with accents stay as they are (pdfLaTeX reads UTF-8);
        names in other scripts need XeLaTeX or LuaLaTeX.
        """
        alignment = "".join("r" if self._is_numeric(column) else "l" for column in range(len(self.columns)))
        body = [[_latex_cell(cell, lang) for cell in row] for row in self.rows]
        lines = [
            r"\begin{table}[htbp]",
            r"  \centering",
            *([rf"  \caption{{{escape_latex(self.caption)}}}"] if self.caption else []),
            *([rf"  \label{{{self.label}}}"] if self.label else []),
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{{alignment}}}",
            r"    \toprule",
            "    " + " & ".join(escape_latex(column) for column in self.columns) + r" \\",
            r"    \midrule",
            *("    " + " & ".join(line) + r" \\" for line in body),
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"\end{table}",
        ]
        return "\n".join(lines)

    def _is_numeric(self, column: int) -> bool:
        """Right-aligned: no text in it. A column of missing cells is one of numbers."""
        return bool(self.rows) and not any(isinstance(row[column], str) for row in self.rows)

    def _parts(self, column: int) -> list[str]:
        numbers = [row[column] for row in self.rows]
        parts = ["value"]
        if any(isinstance(cell, Number) and cell.interval is not None for cell in numbers):
            parts += ["low", "high"]
        if any(isinstance(cell, Number) and cell.spread is not None for cell in numbers):
            parts.append("sd")
        return parts


_PART_NAMES: dict[Language, dict[str, str]] = {
    "en": {"value": "", "low": "low", "high": "high", "sd": "sd"},
    "es": {"value": "", "low": "inf.", "high": "sup.", "sd": "d.e."},
}
_MARKDOWN_SPECIAL = frozenset("\\|*_`~<>[]&$#")
_LATEX_SPECIAL = {
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
_FORMULA_STARTS = ("=", "+", "-", "@")


def escape_markdown(text: str) -> str:
    """Text as a Markdown cell that shows exactly it."""
    line = _one_line(text)
    return "".join("\\" + char if _needs_escape(line, i) else char for i, char in enumerate(line))


def _needs_escape(line: str, index: int) -> bool:
    char = line[index]
    if char == "_":  # inside a word it is a plain character, and names are easier to read without the backslash
        around = line[max(index - 1, 0) : index] + line[index + 1 : index + 2]
        return not (len(around) == 2 and around.isalnum())
    return char in _MARKDOWN_SPECIAL


def escape_latex(text: str) -> str:
    """Text for LaTeX, whichever language babel is set to."""
    return "".join(_LATEX_SPECIAL.get(char, char) for char in _one_line(text))


def format_number(value: float, digits: int, lang: Language, *, signed: bool = False) -> str:
    """Fixed decimals, the language's decimal sign, no minus before a zero."""
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace(".", ",") if lang == "es" else text


def format_cell(cell: Cell, lang: Language) -> str:
    """A cell as plain text, unescaped."""
    return _plain(cell, lang, escape=_one_line)


def _plain(cell: Cell, lang: Language, escape: Callable[[str], str]) -> str:
    if isinstance(cell, str):
        return escape(cell)
    if isinstance(cell, bool):
        return str(cell)
    if isinstance(cell, int):
        return str(cell)
    if isinstance(cell, PValue):
        return _p_value(cell.value, lang)
    number = cell if isinstance(cell, Number) else Number(cell)
    value, spread = _finite(number.value), _finite(number.spread)
    if value is None:
        return MISSING
    text = format_number(value, number.digits, lang, signed=number.signed)
    if spread is not None:
        text += f" ± {format_number(spread, number.digits, lang)}"
    if number.interval is not None and all(map(math.isfinite, number.interval)):
        digits = max(number.digits - 1, 0) if number.interval_digits is None else number.interval_digits
        low, high = (format_number(limit, digits, lang, signed=number.signed) for limit in number.interval)
        text += f" [{low}{'; ' if lang == 'es' else ', '}{high}]"
    return text


def _p_value(p_value: float | None, lang: Language) -> str:
    value = _finite(p_value)
    if value is None:
        return MISSING
    text = "<0.001" if value < 0.001 else f"{value:.3f}"
    return text.replace(".", ",") if lang == "es" else text


def _latex_cell(cell: Cell, lang: Language) -> str:
    if isinstance(cell, str):
        return escape_latex(cell)
    text = _plain(cell, lang, escape=escape_latex)
    if text == MISSING:
        return "--"
    # Signs are minus signs, not hyphens; brackets inside a cell are harmless, but one rule is easier to trust.
    for char, latex in {"-": "$-$", "+": "$+$", "±": r"$\pm$", "<": "$<$", "[": "{[}", "]": "{]}"}.items():
        text = text.replace(char, latex)
    return text


def _csv_part(cell: Cell, part: str, lang: Language) -> str:
    if isinstance(cell, str):
        return _csv_text(cell) if part == "value" else ""
    if isinstance(cell, Number):
        low, high = cell.interval or (None, None)
        value = {"value": cell.value, "low": low, "high": high, "sd": cell.spread}[part]
    elif part != "value":
        return ""
    else:
        value = cell.value if isinstance(cell, PValue) else cell
    if isinstance(value, int):
        return str(value)
    known = _finite(value)
    if known is None:
        return ""
    text = f"{known:.6g}"
    return text.replace(".", ",") if lang == "es" else text


def _csv_text(text: str) -> str:
    """A name that starts like a formula would be computed by the spreadsheet; an apostrophe keeps it text."""
    line = _one_line(text)
    return f"'{line}" if line.startswith(_FORMULA_STARTS) else line


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _padded(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    )
    return f"| {' | '.join(padded)} |"
