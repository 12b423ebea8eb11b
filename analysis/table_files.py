"""A set of tables on disk: Markdown, LaTeX, one CSV for each table, and every number unrounded as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from analysis.labels import Language
from analysis.tables import Table
from engine.checkpoint import write_atomically

_LATEX_HEAD = "% \\usepackage[utf8]{inputenc}\n% \\usepackage{booktabs,graphicx}\n"


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
    """`stem`.md, .tex with all tables, a CSV for each, and .json, which comes last.

    Args:
        folder: Where to.
        stem: Name of the files; the first table's CSV is `stem`.csv, the others are `stem`_<name>.csv.
        tables: By name, the main one first.
        lang: Of the numbers' marks.
        markdown: The page.
        content: For JSON.
        possible: Names of tables that an earlier writing may have left: those not in `tables` are removed.

    Raises:
        UserError: A file cannot be written.
    """
    first = next(iter(tables), None)
    _write(folder / f"{stem}.md", markdown)
    _write_latex(folder / f"{stem}.tex", tables.values(), lang)
    for name, table in tables.items():
        _write_csv(folder / (f"{stem}.csv" if name == first else f"{stem}_{name}.csv"), table, lang)
    for name in set(possible) - set(tables):
        (folder / f"{stem}_{name}.csv").unlink(missing_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / f"{stem}.json", f"{text}\n")


def write_table(table: Table, path: Path, lang: Language) -> None:
    """`path`.csv and `path`.tex.

    Raises:
        UserError: A file cannot be written.
    """
    _write_csv(path.with_name(f"{path.name}.csv"), table, lang)
    _write_latex(path.with_name(f"{path.name}.tex"), [table], lang)


def _write_latex(path: Path, tables: Collection[Table], lang: Language) -> None:
    _write(path, _LATEX_HEAD + "\n\n".join(table.to_latex(lang) for table in tables) + "\n")


def _write_csv(path: Path, table: Table, lang: Language) -> None:
    # The mark tells a spreadsheet that this is UTF-8.
    _write(path, "\ufeff" + table.to_csv(lang))


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode("utf-8")), what="table")
