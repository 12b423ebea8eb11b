"""report.html in headless Chromium, at desktop and phone width: no fault in the console, no overflow, tables sort."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from analysis.figures import DRAWERS
from analysis.report import write_report
from analysis.style import FigureFiles, figure_style, save_figure
from tests.support.analysis_factory import changed, make_analysis
from texts import number, texts_of

NAMES_OF_CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES_OF_CHROMIUM)), None)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

WIDTHS_PX = (1280, 375)
NAMES = (
    "<script>window.hurt = 1</script>",
    'a & "b"',
    "<img src=x onerror=window.hurt=1>",
    "PERFORACIÓN",
    "unbroken" * 20,
    "Z",
)

# Looks into the report in frames of the two widths and into a page that does all that must not be done.
HARNESS = """<!DOCTYPE html><html><head><meta charset="utf-8"><link rel="icon" href="data:,"></head><body>
<iframe src="report.html" style="width:1280px;height:900px;border:0"></iframe>
<iframe src="report.html" style="width:375px;height:700px;border:0"></iframe>
<iframe src="faulty.html" style="width:375px;height:700px;border:0"></iframe>
<pre id="result"></pre>
<script>
"use strict";
function look(frame) {
  const page = frame.contentDocument, root = page.scrollingElement;
  const inScroll = (e) => e.closest(".scroll") !== null && !e.classList.contains("scroll");
  return {
    width: frame.contentWindow.innerWidth,
    overflow: root.scrollWidth - root.clientWidth,
    outside: [...page.body.querySelectorAll("*")]
      .filter((e) => !inScroll(e) && e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.tagName),
    hurt: frame.contentWindow.hurt === 1,
    images: [...page.images].map((i) => i.complete && i.naturalWidth > 0 && i.alt !== ""),
    widths: [...page.images].map((i) => i.getBoundingClientRect().width / root.clientWidth),
    cues: [...page.querySelectorAll(".scroll")].filter((e) => e.scrollWidth > e.clientWidth)
      .map((e) => frame.contentWindow.getComputedStyle(e).backgroundAttachment),
    headings: [...page.querySelectorAll("h2")].map((h) => h.offsetHeight > 0),
  };
}
function column(table, k) { return [...table.tBodies[0].rows].map((row) => row.cells[k].textContent); }
function sorted(page) {
  const table = page.querySelector("#classes table"), steps = [];
  const titles = [...table.tHead.rows[0].cells].map((c) => c.textContent);
  for (const title of ["AP", "AP", "AP_small", "Clase"]) {
    const k = titles.indexOf(title), heading = table.tHead.rows[0].cells[k], button = heading.querySelector("button");
    button.focus();
    const reachable = page.activeElement === button && button.tabIndex === 0;
    button.click();
    const state = [...table.tHead.rows[0].cells].map((c) => c.getAttribute("aria-sort"));
    steps.push({ title, reachable, order: heading.getAttribute("aria-sort"), values: column(table, k),
      others: state.filter((s, j) => j !== k && s !== "none").length });
  }
  return steps;
}
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  const result = { pages: frames.map(look), steps: sorted(frames[1].contentDocument) };
  document.getElementById("result").textContent = JSON.stringify(result);
});
</script></body></html>"""
FAULTY = """<!DOCTYPE html><html><body><h2>x</h2><div style="width:900px">x</div><script>window.hurt = 1;
console.error("canary");</script></body></html>"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the harness saw, and the console."""
    folder = tmp_path_factory.mktemp("browser")
    analysis = make_analysis(NAMES, facts={"checkpoint": NAMES[0], "versions": {"torch": "x" * 200}})
    of_classes = {name: {**one, "AP_small": None} for name, one in analysis.results["per_class"].items()}
    of_classes[NAMES[0]]["AP_small"] = 0.5
    analysis = changed(analysis, per_class=of_classes)
    with figure_style():
        drawn = DRAWERS["errors"](analysis, texts_of("es", "figures"))
        png, pdf = save_figure(drawn.figure, folder, "errors")
    write_report(analysis, folder, lang="es", figures=[FigureFiles("errors", drawn.title, drawn.description, png, pdf)])
    (folder / "faulty.html").write_text(FAULTY, encoding="utf-8")
    (folder / "harness.html").write_text(HARNESS, encoding="utf-8")
    assert CHROMIUM is not None
    options = "headless no-sandbox disable-gpu disable-dev-shm-usage no-first-run disable-extensions dump-dom"
    options += " disable-background-networking allow-file-access-from-files enable-logging=stderr"
    options += " virtual-time-budget=20000 window-size=1400,1000"  # no sandbox: the page is ours, and root has none
    command = [CHROMIUM, *(f"--{option}" for option in options.split()), f"--user-data-dir={folder / 'profile'}"]
    page = (folder / "harness.html").resolve().as_uri()
    done = subprocess.run([*command, page], capture_output=True, timeout=120, check=True)
    (text,) = re.findall(r'<pre id="result">(.*?)</pre>', done.stdout.decode("utf-8", "replace"), re.DOTALL)
    console = re.findall(r"CONSOLE[^\"]*\"(.*)\", source", done.stderr.decode("utf-8", "replace"))
    return analysis, json.loads(html.unescape(text)), console


def test_the_console_stays_empty_but_for_the_page_with_a_fault(seen: Any) -> None:
    assert seen[2] == ["canary"]


@pytest.mark.parametrize("place", range(len(WIDTHS_PX)))
def test_nothing_overflows(seen: Any, place: int) -> None:
    page = seen[1]["pages"][place]
    assert page["width"] == WIDTHS_PX[place]
    assert page["overflow"] <= 0 and page["outside"] == []
    assert len(page["headings"]) == 11 and all(page["headings"])
    assert page["images"] == [True] and all(0.75 < width <= 1 for width in page["widths"])
    assert {*page["cues"]} == {"local, local, scroll, scroll"}, "wide tables have shadows that say so"


def test_names_from_the_data_do_nothing(seen: Any) -> None:
    assert [page["hurt"] for page in seen[1]["pages"]] == [False, False, True]


def test_the_harness_sees_overflow(seen: Any) -> None:
    faulty = seen[1]["pages"][2]
    assert faulty["overflow"] > 400 and "DIV" in faulty["outside"]


def test_headings_sort_by_number_by_text_and_keep_gaps_last(seen: Any) -> None:
    analysis, result, _ = seen
    down, up, gaps, names = result["steps"]
    values = [number(one["AP"], 3, "es") for one in analysis.results["per_class"].values()]
    assert (down["order"], down["values"]) == ("descending", sorted(values, reverse=True))
    assert (up["order"], up["values"]) == ("ascending", sorted(values))
    assert gaps["values"] == ["0,500", *["–"] * 5]
    assert names["order"] == "ascending" and sorted(names["values"]) == sorted(NAMES)
    assert names["values"].index("PERFORACIÓN") < names["values"].index("Z")
    assert all(step["reachable"] and step["others"] == 0 for step in result["steps"])
    assert np.all(np.diff([float(v.replace(",", ".")) for v in up["values"]]) >= 0)
