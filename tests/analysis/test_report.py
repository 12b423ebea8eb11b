"""report.html: complete, self-contained, in either language, and every name from the data escaped."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import tempfile
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from analysis.analyse import Analysis
from analysis.gallery import GalleryFiles
from analysis.report import write_report
from analysis.style import FigureFiles
from data.errors import UserError
from engine.metrics import METRIC_NAMES
from tests.support.analysis_factory import NUM_IMAGES, changed, make_analysis
from texts import Language

ROOT = Path(__file__).parents[2]
HOSTILE = (
    "<script>alert(1)</script>",
    'a & "b"',
    "'><img src=x onerror=alert(2)>",
    "{{ 7 * 7 }}",
    "\ud800",
    "x\u202ey",
)
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def one_figure(folder: Path, name: str = "errors", text: str = "An error figure") -> FigureFiles:
    path = folder / f"{name}.png"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
    return FigureFiles(name, text, text, path, path.with_suffix(".pdf"))


def write(folder: Path, analysis: Analysis, lang: Language = "en", **options: Any) -> str:
    return write_report(analysis, folder, lang=lang, **options).read_text(encoding="utf-8")


class Cell(NamedTuple):
    text: str
    value: float | None


def table(analysis: Analysis, title: str, lang: Language = "en") -> list[list[Cell]]:
    """Heading and rows of the page's table of this title."""
    with tempfile.TemporaryDirectory() as folder:
        content = write(Path(folder), analysis, lang)
    tables = re.findall(r"<caption>(.*?)</caption>(.*?)</table>", content, re.DOTALL)
    (inside,) = (rows for caption, rows in tables if html.unescape(caption) == title)
    rows = [re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row, re.DOTALL) for row in inside.split("<tr")[1:]]

    def cell(attributes: str, content: str) -> Cell:
        value = re.search(r'data-value="(.*?)"', attributes)
        return Cell(html.unescape(re.sub(r"<.*?>|\n", "", content)), float(value[1]) if value else None)

    return [[cell(*one) for one in row] for row in rows]


@pytest.mark.parametrize("lang", ["es", "en"])
def test_the_page_has_every_section_once_and_links_to_it(tmp_path: Path, lang: Language) -> None:
    page = Page(write(tmp_path, make_analysis(), lang))
    assert page.all("html")[0]["lang"] == lang
    keys = [attributes["id"] for attributes in page.all("section")]
    assert keys == [
        *("summary", "classes", "curves", "confusion", "errors", "image-level"),
        "acceptance",
        *("sizes", "gallery", "cost", "run"),
    ]
    assert [attributes["href"] for attributes in page.all("a")] == [f"#{key}" for key in keys]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("facts", "lang", "expected"),
    [
        ({}, "en", f"split val, {NUM_IMAGES} images"),
        (
            {
                "run": "quickstart",
                "config_file": "configs/quickstart.yml",
                "data": "datasets/quickstart/val.json",
                "checkpoint": "best.pth",
                "epoch": 5,
                "epochs": 6,
                "checkpoint_sha256": "0123456789" * 6,
                "date": "2026-01-02 03:04",
                "machine": "GPU, Linux",
            },
            "es",
            f"quickstart · configs/quickstart.yml · partición val, {NUM_IMAGES} imágenes, datasets/quickstart/val.json"
            " · best.pth, época 5 de 6, sha256 01234567 · 2026-01-02 03:04 · GPU, Linux",
        ),
    ],
)
def test_title_and_top_say_what_was_judged(
    tmp_path: Path, facts: dict[str, Any], lang: Language, expected: str
) -> None:
    content = write(tmp_path, make_analysis(facts=facts), lang)
    (title,) = re.findall("<title>(.*) – .*</title>", content)
    assert title == expected
    assert re.findall("<dd>([^<]*)</dd></div>\n", content.partition("<nav")[0]) == expected.split(" · ")


def test_names_from_data_are_text_and_nothing_else(tmp_path: Path) -> None:
    facts = {"checkpoint": HOSTILE[0], HOSTILE[1]: HOSTILE[2], "nested": {HOSTILE[2]: [HOSTILE[0]]}}
    gallery = GalleryFiles((one_figure(tmp_path, "gallery_missed", HOSTILE[2]),), (HOSTILE[0],))
    analysis = changed(make_analysis(HOSTILE, facts=facts), split=HOSTILE[1])
    content = write(tmp_path, analysis, figures=[one_figure(tmp_path, text=HOSTILE[1])], gallery=gallery)
    page = Page(content)
    assert len(page.all("script")) == 1 and len(page.all("img")) == 2
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text and HOSTILE[3] in page.text
    assert [image["alt"] for image in page.all("img")] == [HOSTILE[1], HOSTILE[2]]
    assert f"Left out of the gallery: {HOSTILE[0]}" in page.text


def test_everything_is_inside_the_page(tmp_path: Path) -> None:
    content = write(tmp_path, make_analysis(), figures=[one_figure(tmp_path)])
    page = Page(content)
    (image,) = page.all("img")
    assert image["src"] and base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))[:4] == b"\x89PNG"
    assert (image["width"], image["height"]) == ("6", "4")
    addresses = [a.get(key) or "" for _, a in page.elements for key in ("src", "href", "action", "data") if key in a]
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"https?:|@import|url\(", content)


def test_the_policy_allows_this_style_and_this_script_only(tmp_path: Path) -> None:
    content = write(tmp_path, make_analysis())
    (policy,) = [a["content"] for a in Page(content).all("meta") if "http-equiv" in a]
    assert policy and policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("style", "script"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode("utf-8")).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_summary_has_the_twelve_numbers_with_intervals_and_the_threshold() -> None:
    analysis = changed(make_analysis(), metrics={"AP_small": None})
    results = analysis.results
    head, *rows = table(analysis, "COCO's twelve numbers")
    assert [row[0].text for row in rows] == list(METRIC_NAMES) and len(head) == 5, "with and without NORMAL"
    assert rows[0][1] == (f"{results['metrics']['AP']:.3f}", results["metrics"]["AP"])
    low, high = results["intervals"]["AP"]
    assert rows[0][2] == (f"[{low:.3f}, {high:.3f}]", pytest.approx(high - low))
    assert rows[3][1] == ("–", None)
    same = changed(analysis, metrics_defects=results["metrics"])
    assert len(table(same, "COCO's twelve numbers")[0]) == 4
    _, threshold = table(analysis, "Confidence threshold with the best F1 (IoU 0.5)")
    best = results["thresholds"]["overall"]
    assert [cell.value for cell in threshold[1:]] == [best[key] for key in ("score", "f1", "precision", "recall")]


def test_the_class_table_has_every_class_and_its_numbers() -> None:
    analysis = make_analysis()
    head, *rows = table(analysis, "Clases", "es")
    classes = analysis.results["per_class"]
    assert [row[0].text for row in rows] == list(classes)
    by_title = dict(zip([column.text for column in head], rows[1], strict=True))
    name, one = list(classes.items())[1]
    assert by_title["Cajas"].value == one["num_gt"] and by_title["AP75"].value == one["AP75"]
    assert by_title["Umbral"].value == analysis.results["thresholds"]["per_class"][name]["score"]
    assert by_title["AP"].text == f"{one['AP']:.3f}".replace(".", ",")
    assert "; " in by_title["AP, IC 95\u00a0%"].text


def test_repeats_are_counted_and_what_suppression_gives_is_shown() -> None:
    analysis = make_analysis()
    suppression = analysis.results["suppression"]
    _, *rows = table(analysis, "Repeated detections")
    assert [row[0].text for row in rows] == ["not suppressed", "0.9", "0.8", "0.7", "0.6", "0.5"]
    assert [cell.value for cell in rows[4][1:4]] == [suppression["tried"][4][key] for key in ("AP", "AP50", "f1")]
    best = [one["iou"] for one in suppression["tried"]].index(suppression["iou"])
    with tempfile.TemporaryDirectory() as folder:
        (chosen,) = re.findall('class="chosen"><th scope="row">(.*?)<', write(Path(folder), analysis, "en"))
    assert chosen == rows[best][0].text, "what prediction takes"


def test_an_image_in_tiles_takes_several_passes() -> None:
    plain = make_analysis()
    _, passes, *others = table(changed(plain, cost={"passes": 16}), "Cost")
    assert passes[0].text.startswith("Passes of the network an image") and passes[1].text == "16"
    assert others == table(plain, "Cost")[1:]


def test_confusions_are_listed_most_frequent_first() -> None:
    counts = {"counts": [[9, 4, 1], [0, 9, 3], [2, 0, 0]]}
    _, *rows = table(changed(make_analysis(["a", "b"]), confusion=counts), "Most frequent confusions")
    assert [[cell.text for cell in row] for row in rows] == [
        ["a", "b", "4", "28.6\u00a0%"],
        ["b", "missed", "3", "25.0\u00a0%"],
        ["background", "a", "2", "100.0\u00a0%"],
        ["a", "missed", "1", "7.1\u00a0%"],
    ]


def test_operating_points_ring_least_for_the_misses_they_allow() -> None:
    level = {
        "scores": [0.0, 0.25, 0.5, 1.0],
        "false_alarms_per_clean_image": [9.0, 3.0, 1.0, 0.0],
        "miss_rate": [0.0, 0.0, 0.05, 0.8],
    }
    _, *rows = table(changed(make_analysis(), image_level=level, thresholds={"overall": None}), "Operating points")
    values = [[cell.value for cell in row[1:]] for row in rows]
    assert values == [[None] * 3, [0.25, 3.0, 0.0], [0.25, 3.0, 0.0], [0.5, 1.0, 0.05], [0.5, 1.0, 0.05]]


def test_facts_are_flattened_named_and_written_in_the_language() -> None:
    facts = {
        "epoch": 3,
        "epochs": 9,
        "use_amp": True,
        "train_seconds": 5400.5,
        "seed": None,
        "versions": {"torch": "2.9"},
        "own": [1, 2],
    }
    rows = {row[0].text: row[1].text for row in table(make_analysis(facts=facts), "Ejecución", "es")}
    assert rows["Época"] == "3" and rows["Precisión mixta"] == "sí" and rows["Tiempo de entrenamiento (s)"] == "5400,5"
    assert rows["Semilla"] == "–" and rows["Versiones torch"] == "2.9" and rows["own"] == "1; 2"
    assert rows["Hash de imágenes y anotaciones"] == make_analysis().results["gt_hash"]


def test_an_analysis_of_nothing_is_a_page_too(tmp_path: Path) -> None:
    page = Page(write(tmp_path, make_analysis(facts={}, boxes=False), "es"))
    assert all(f"Versiones {name}" in page.text for name in ("python", "torch")), "though the run says none"
    assert "No se ha medido." in page.text and "Ninguna." in page.text and "nan" not in page.text.lower()


def test_a_figure_that_is_gone_is_named(tmp_path: Path) -> None:
    figure = one_figure(tmp_path)
    figure.png.unlink()
    with pytest.raises(UserError, match=r"errors\.png: the figure cannot be read for the report"):
        write_report(make_analysis(), tmp_path, lang="en", figures=[figure])


def test_an_installed_package_has_the_files_of_the_page() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folder = ROOT / "analysis"
    assert set(settings["package-data"]["analysis"]) == {
        path.name for path in folder.iterdir() if path.suffix in (".css", ".js", ".html")
    }
    packages = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for top in ("texts", "data", "models", "engine", "analysis", "deploy", "attention")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(settings["packages"]) == packages
