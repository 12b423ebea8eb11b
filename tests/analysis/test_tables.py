"""Tables as text: structure, numbers of each language, and names that try to break out of their cell."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.tables import (
    Number,
    Table,
    bullets,
    escape_latex,
    escape_markdown,
    for_console,
    format_cell,
    format_number,
    p_value,
)
from tests.support.latex import LINE_PT, compile_article, tabular_widths_pt
from texts import Language

NASTY = r"50 % of_a & b|c #1 $x$ {y} ~^ \end{table} <b> `k` [link](url) *é ñ* -- \\ "
TABLE = Table(
    ["Modelo", "AP", "Δ", "p", "n"],
    [
        ["ResNet-18", Number(0.5123, interval=(0.4801, 0.5449)), Number(-0.0123, signed=True), p_value(0.0004), 3],
        [NASTY, Number(0.5, spread=0.0126), Number(0.02, signed=True), p_value(0.25), None],
    ],
    "Título: 95 %",
    "tab:x",
)


def markdown_cells(line: str) -> list[str]:
    """Split at the bars that are not escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def test_markdown() -> None:
    caption, empty, head, rule, first, second = TABLE.to_markdown("en").split("\n")
    assert caption == "Título: 95 %" and empty == ""
    assert markdown_cells(head) == ["Modelo", "AP", "Δ", "p", "n"]
    assert [cell.endswith(":") for cell in markdown_cells(rule)] == [False, True, True, True, True]
    assert markdown_cells(first) == ["ResNet-18", "0.512 [0.48, 0.54]", "-0.012", r"<0.001", "3"]
    assert markdown_cells(second)[1:] == ["0.500 ± 0.013", "+0.020", "0.250", "-"]
    assert len({len(line) for line in (head, rule, first, second)}) == 1, "padded to be read as it is"


def test_decimal_comma_in_spanish() -> None:
    row = markdown_cells(TABLE.to_markdown("es").split("\n")[4])
    assert row == ["ResNet-18", "0,512 [0,48; 0,54]", "-0,012", "<0,001", "3"]


def test_csv_has_a_column_for_each_limit() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.to_csv("en"))))
    assert rows[0] == ["Modelo", "AP", "AP low", "AP high", "AP sd", "Δ", "p", "n"]
    assert rows[1] == ["ResNet-18", "0.5123", "0.4801", "0.5449", "", "-0.0123", "0.0004", "3"]
    assert rows[2][1:] == ["0.5", "", "", "0.0126", "0.02", "0.25", ""]
    rows = list(csv.reader(io.StringIO(TABLE.to_csv("es")), delimiter=";"))
    assert rows[0][:5] == ["Modelo", "AP", "AP inf.", "AP sup.", "AP d.e."]
    assert rows[1][1:4] == ["0,5123", "0,4801", "0,5449"]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1+1"])
def test_csv_names_are_no_formulas(name: str) -> None:
    cell = next(csv.reader(io.StringIO(Table(["x"], [[name]]).to_csv("en").splitlines()[1])))[0]
    assert cell == f"'{name.strip()}"


def test_latex() -> None:
    shorter = Table(TABLE.columns, [TABLE.rows[0], ["a_b", *TABLE.rows[1][1:]]], TABLE.caption, TABLE.label)
    lines = shorter.to_latex("es").splitlines()
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert lines.count(rule) == 1
    assert r"\caption{Título: 95 \%}" in lines and r"\label{tab:x}" in lines
    assert r"\begin{tabular}{lrrrr}" in lines
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert body[0] == r"ResNet-{}18 & 0,512 {[}0,48; 0,54{]} & $-$0,012 & $<$0,001 & 3 \\"
    assert body[1] == r"a\_b & 0,500 $\pm$ 0,013 & $+$0,020 & 0,250 & -- \\"
    assert lines[0] == r"\begin{table}[htbp]" and lines[-1] == r"\end{table}"


def test_missing_and_not_finite() -> None:
    for cell in (None, Number(None, interval=(0.0, 1.0)), Number(float("nan")), p_value(None), float("inf")):
        assert format_cell(cell, "en") == "-"
    unknown_limits = Number(0.5, interval=(float("nan"), 1.0), spread=float("nan"))
    assert format_cell(unknown_limits, "en") == "0.500"
    assert list(csv.reader(io.StringIO(Table(["x"], [[unknown_limits]]).to_csv("en"))))[1] == ["0.5", "", "1", ""]


def test_numbers() -> None:
    difference = Number(0.0123, interval=(-0.0049, 0.03), interval_digits=3, signed=True)
    assert format_cell(difference, "en") == "+0.012 [-0.005, +0.030]"
    assert format_number(-0.0001, 3, "en") == "0.000" and format_number(0.0, 2, "en", signed=True) == "0.00"
    assert format_number(1234.5, 0, "es") == "1234" and format_number(2.5, 1, "es", signed=True) == "+2,5"
    assert format_cell(p_value(1.0), "es") == "1,000" and format_cell(7, "es") == "7"
    assert format_cell(0.12345, "en") == "0.123"


def test_rows_must_fit_the_columns() -> None:
    with pytest.raises(ValueError, match="row 1 has 2 cells, the table 1 columns"):
        Table(["a"], [["x"], ["y", "z"]])
    with pytest.raises(ValueError, match="needs a column"):
        Table([], [])


@given(st.text())
def test_any_name_stays_in_its_markdown_cell(name: str) -> None:
    lines = Table(["a", "b"], [[name, 1]]).to_markdown("en").splitlines()
    assert len(lines) == 3
    cells = markdown_cells(lines[2])
    assert len(cells) == 2 and cells[1] == "1"
    plain = for_console("\n".join(lines)).splitlines()[1]
    assert plain.removesuffix("1").strip() == " ".join("".join(c if c.isprintable() else " " for c in name).split())


@pytest.mark.parametrize(
    ("lang", "interval", "number"), [("en", "[-0.89, +0.18]", "0.500"), ("es", "[-0,89; +0,18]", "0,500")]
)
def test_a_console_shows_pages_without_the_signs_of_markdown(lang: Language, interval: str, number: str) -> None:
    table = Table(["run *a*", "AP"], [["a|b_1_", Number(0.5)], ["c", None]], f"Caption {interval}").to_markdown(lang)
    link = "![AP `x`](ap.png), [rare](rare/ablation.md)"
    page = f"# Title\n\n{bullets([f'cosine: {interval} *', 'x'])}\n\n{table}\n\n{link}\n"
    assert for_console(page).splitlines() == [
        *("Title", "", f"- cosine: {interval} *", "- x", "", f"Caption {interval}", ""),
        *("  run *a*     AP", f"  a|b_1_   {number}", "  c            -", "", "AP x (ap.png), rare (rare/ablation.md)"),
    ]


@given(st.text())
def test_any_name_stays_in_its_latex_cell(name: str) -> None:
    text = escape_latex(name)
    assert "\n" not in text and not re.match(r"\s*[\[*]", text)
    bare = re.sub(
        r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textasciigrave"
        r"|textperiodcentered|ldots)\{\}",
        "",
        text,
    )
    bare = re.sub(r"\\[{}$&#%_]", "", bare)
    bare = re.sub(r"\$(\\pm|-|\\Delta|\\times|\\geq|\\leq)\$", "", bare)
    bare = bare.replace("-{}", "").replace("{[}", "").replace("{]}", "").replace("{*}", "")
    assert not set(bare) & set('\\{}$&#%_~^<>|"`')


def test_markdown_escapes() -> None:
    assert escape_markdown("rolled-in_scale") == "rolled-in_scale", "plain inside a word"
    assert escape_markdown("_x_ a|b\n<i>") == r"\_x\_ a\|b \<i\>"


WIDE = [
    TABLE,
    Table([NASTY] * 12, [[NASTY] * 12], NASTY),
    Table(["WWW" * 9, *["M" * 30] * 3], [["W" * 50, 1, None, 0.5]]),
    Table(["Modell", "Erläuterung"], [["a_model_with_text" * 3, "no verdict: encoder with random weights " * 3]]),
    Table(
        ["Class", *(f"model_{number}" for number in range(9))],
        [[name, *[Number(0.5123, interval=(0.48, 0.54), spread=0.01)] * 9] for name in ("scratch", "rolled-in_scale")],
    ),
]


@pytest.mark.parametrize("table", WIDE, ids=range(len(WIDE)))
@pytest.mark.parametrize("lang", ["en", "es"])
def test_latex_fits_a_page(table: Table, lang: Language) -> None:
    source = table.to_latex(lang)
    widths_pt = tabular_widths_pt(source)
    assert widths_pt and max(widths_pt) <= LINE_PT
    assert not set(re.findall(r"\\(?:\w*small|tiny|resizebox|scalebox)", source)) - {r"\footnotesize"}


def test_a_wide_latex_table_is_laid_out_step_by_step() -> None:
    """Intervals below the values, `\\footnotesize`, broken texts, then groups of columns behind the first."""

    def laid_out(models: int, name: str) -> str:
        value = Number(0.5, interval=(0.4, 0.6), spread=0.1)
        return Table(["Class", *"ABCDEFGH"[:models]], [[name, *[value] * models]]).to_latex("en")

    assert "dent & 0.500 $\\pm$ 0.100 {[}0.40, 0.60{]} & " in laid_out(2, "dent")
    below = laid_out(3, "dent")
    assert "dent & 0.500 $\\pm$ 0.100 & " in below and "\n & {[}0.40, 0.60{]} & " in below and "small" not in below
    small = laid_out(4, "rolled-in_scale")
    assert r"\footnotesize" in small and r"rolled-{}in\_scale &" in small
    broken = laid_out(4, "a_surface_with_rolled-in_scale")
    assert "a\\_surface\\_with\\_ & 0.5" in broken and "\nrolled-{}in\\_scale & {[}" in broken
    parts = laid_out(8, "dent")
    assert parts.count("\nClass & ") == 2 and parts.count("\ndent & ") == 2 and parts.count(r"\begin{table}") == 1


@pytest.mark.parametrize("spanish", [False, True])
def test_latex_compiles(tmp_path: Path, spanish: bool) -> None:
    rows = [
        [character, Number(0.5, interval=(0.4, 0.6))] for character in "\\{}$&#%_~^<>|\"`[]*-±−·…Δ×≥≤ñÁ¿?!'.,;:/=+@()"
    ]
    parts = [*WIDE, Table(["x", "y"], rows, "characters"), Table(["empty"], [])]
    text = "\n".join(table.to_latex("es" if spanish else "en") for table in parts)
    compile_article(text, tmp_path, "spanish" if spanish else None)
