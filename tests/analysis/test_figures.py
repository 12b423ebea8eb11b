"""Figures say what the analysis says, in either language, and odd analyses do no harm."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from analysis.analyse import Analysis
from analysis.bootstrap import Interval
from analysis.errors import ERROR_KINDS
from analysis.figures import DRAWERS, DrawnFigure, write_figures
from analysis.style import DPI, FAINT, WIDTH_CM, class_line, figure_style, new_figure, save_figure, tidy
from data.errors import UserError
from engine.pictures import CLASS_COLOURS
from tests.support.analysis_factory import NAMES, changed, make_analysis
from texts import Language, texts_of


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    """Of numpy (all NaN) and matplotlib (layout does not fit, missing glyphs)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def drawn(name: str, analysis: Analysis, lang: Language = "en", *, render: bool = False) -> DrawnFigure:
    with figure_style():
        figure = DRAWERS[name](analysis, texts_of(lang, "figures"))
        if render:
            # Laying out and pixels are slow; the figures of the fixture `written` have both.
            figure.figure.set_layout_engine("none")
            figure.figure.draw_without_rendering()
    return figure


def words(figure: DrawnFigure) -> list[str]:
    return [text.get_text() for text in figure.figure.findobj(Text) if text.get_text()]


ODD: dict[str, Any] = {
    "no ground truth": {"boxes": False},
    "no detections": {"detections": False},
    "one class": {"names": ["x"]},
    "one class, no ground truth": {"names": ["x"], "boxes": False},
    "a class without ground truth": {"unseen": 1},
    "80 classes": {"names": [f"a rather long class name, number {k}" for k in range(80)]},
    "hostile names": {"names": ["$\\frac{", "_hidden", "a\nb\x00c", "<b>&amp;", "", "%s {0} {x}"]},
}


@pytest.mark.parametrize("name", DRAWERS)
@pytest.mark.parametrize("case", ODD)
def test_odd_analyses_are_drawn(case: str, name: str) -> None:
    figure = drawn(name, make_analysis(**ODD[case]), "es", render=case != "80 classes")
    assert (
        figure.title
        and figure.description
        and "{" not in figure.description.replace("{0} {x}", "").replace("frac{", "")
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("figures")
    return folder, write_figures(make_analysis(), folder, "es")


def test_every_figure_is_written_twice_at_thesis_width(written: Any) -> None:
    folder, files = written
    assert [file.name for file in files] == list(DRAWERS)
    assert {path.name for path in folder.iterdir()} == {f"{n}.{kind}" for n in DRAWERS for kind in ("png", "pdf")}
    for file in files:
        with Image.open(file.png) as image:
            assert image.width == pytest.approx(WIDTH_CM / 2.54 * DPI, abs=1)
            assert image.height <= 22.5 / 2.54 * DPI
            assert np.asarray(image.convert("L")).std() > 5, "something is drawn"


def test_pdf_text_is_text_in_an_embedded_truetype_font_and_has_no_date(written: Any) -> None:
    for file in written[1]:
        content = file.pdf.read_bytes()
        assert content.startswith(b"%PDF") and b"/FontFile2" in content
        assert b"/Type3" not in content and b"CreationDate" not in content


def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, written: Any) -> None:
    with figure_style():
        again = DRAWERS["errors"](make_analysis(), texts_of("es", "figures"))
        for path in save_figure(again.figure, tmp_path, "errors"):
            assert path.read_bytes() == (written[0] / path.name).read_bytes()


def test_axes_group_digits_as_the_numbers_beside_them() -> None:
    analysis = make_analysis()
    many = changed(analysis, errors={"counts": dict.fromkeys(ERROR_KINDS, 42_567)})
    seen = words(drawn("errors", many, "es", render=True))
    assert "42\u202f567" in seen and "15000" not in seen and "15\u202f000" in seen


def test_spanish_axes_have_decimal_commas_and_english_ones_points() -> None:
    for name in DRAWERS:
        numbers = [w for w in words(drawn(name, make_analysis(), "es", render=True)) if w[:1].isdigit()]
        assert numbers and not [w for w in numbers if "." in w], name
    assert {"0,2", "Exhaustividad"} <= set(words(drawn("f1", make_analysis(), "es", render=True)))
    assert {"0.2", "Recall"} <= set(words(drawn("f1", make_analysis(), "en", render=True)))


def test_precision_recall_shows_each_class_and_the_mean_at_three_ious() -> None:
    analysis = make_analysis()
    axes = drawn("precision_recall", analysis).figure.axes
    for row in range(3):
        lines = [line.get_ydata() for line in axes[row].lines]
        expected = analysis.precision_at_recall[:, row]
        assert np.allclose(lines[:-1], expected) and np.allclose(lines[-1], expected.mean(axis=0))


def test_the_mean_leaves_classes_without_ground_truth_out() -> None:
    analysis = make_analysis(unseen=1)
    measured = analysis.precision_at_recall[:-1, 0]
    line = drawn("precision_recall", analysis).figure.axes[0].lines[-1]
    assert len(measured) == len(NAMES) - 1 and np.allclose(line.get_ydata(), np.mean(measured, axis=0))


def test_lines_differ_in_more_than_colour() -> None:
    lines = drawn("precision_recall", make_analysis()).figure.axes[0].lines[:-1]
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines)
    ten = [class_line(k) for k in range(10)]
    assert len({(str(one["linestyle"]), one["marker"]) for one in ten}) == 10
    assert class_line(0)["color"] == tuple(v / 255 for v in CLASS_COLOURS[0])


def test_many_classes_share_one_line_of_the_legend() -> None:
    analysis = make_analysis(**ODD["80 classes"])
    figure = drawn("precision_recall", analysis).figure
    measured = sum(one["num_gt"] > 0 for one in analysis.results["per_class"].values())
    legend = figure.axes[3].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [f"Single classes ({measured})", "Mean of the classes"]
    assert sum(line.get_color() == FAINT for line in figure.axes[0].lines) == measured > 40


def test_a_class_that_begins_with_an_underscore_is_in_the_legend() -> None:
    legend = drawn("precision_recall", make_analysis(["_x", "_x "]), render=True).figure.axes[3].get_legend()
    assert legend is not None
    assert [text.get_text().strip("\u200b") for text in legend.get_texts()][:2] == ["_x", "_x (1)"]


def test_figures_show_the_numbers_of_the_analysis() -> None:
    """Of confusions shares of rows and counts, of errors a bar and a hatch each, of sizes both histograms."""
    analysis = changed(make_analysis(), image_level={"auroc": 0.943, "auroc_interval": Interval(0.91, 0.97)})
    results = analysis.results
    f1, shares, number, errors, level, sizes = (
        drawn(name, analysis, "es" if name == "image_level" else "en")
        for name in ("f1", "confusion", "confusion_counts", "errors", "image_level", "sizes")
    )
    best, star = results["thresholds"]["overall"], f1.figure.axes[1].lines[3]
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (best["score"], best["f1"])
    said = f"best F1 {best['f1']:.2f} at confidence {best['score']:.2f}"
    assert f1.figure.axes[1].get_title() == f"All classes together\n{said}"
    counts = np.array(results["confusion"]["counts"])
    for figure, expected in ((shares, counts / counts.sum(axis=1, keepdims=True)), (number, counts)):
        shown = np.asarray(figure.figure.axes[0].collections[0].get_array())
        assert np.allclose(shown.reshape(counts.shape), expected)
    assert str(counts[0, 0]) in words(number)
    for axes, key in zip(errors.figure.axes, ("ap50_cost", "counts_at_score", "counts"), strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(results["errors"][key].values()))
    assert len({bar.get_hatch() for bar in errors.figure.axes[0].patches}) == 6
    assert "AUROC 0,943 [0,910; 0,970]" in level.title
    for axes, key in zip(level.figure.axes, ("false_alarms_per_clean_image", "miss_rate"), strict=True):
        assert np.array_equal(axes.lines[0].get_ydata(), results["image_level"][key])
    heights = [bar.get_height() for bar in sizes.figure.axes[0].patches]
    assert heights == [*results["sizes"]["ground_truth"], *results["sizes"]["found"]]


def test_class_ap_draws_intervals_even_where_the_estimate_lies_outside() -> None:
    analysis = make_analysis()
    name, one = next(iter(analysis.results["per_class"].items()))
    odd = {**one, "AP": 0.9, "AP50": None, "intervals": {"AP": Interval(0.1, 0.2), "AP50": None}}
    axis = drawn("class_ap", changed(analysis, per_class={name: odd}), render=True).figure.axes[0]
    segment = axis.collections[0].get_segments()[0]
    assert segment[:, 0].tolist() == [0.1, 0.2]


def test_long_names_leave_room_for_the_matrix() -> None:
    """matplotlib warns, and so the test fails, where labels take all the space."""
    with figure_style():
        figure = DRAWERS["confusion"](
            make_analysis([f"{k} {'long name ' * 5}" for k in range(20)]), texts_of("es", "figures")
        )
        figure.figure.draw_without_rendering()
    assert figure.figure.axes[0].get_position().width > 0.4


def test_our_style_leaves_no_trace() -> None:
    before = dict(matplotlib.rcParams)
    with figure_style():
        assert matplotlib.rcParams["pdf.fonttype"] == 42
        drawn("errors", make_analysis())
    assert dict(matplotlib.rcParams) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with figure_style(), pytest.raises(UserError, match="Could not write figure"):
        save_figure(new_figure(4.0), tmp_path / "file", "errors")


def test_a_caption_goes_into_a_file_beside_and_leaves_no_room(tmp_path: Path) -> None:
    def figure() -> Figure:
        made = new_figure(6.0)
        made.subplots().plot([0, 1])
        made.suptitle("A title")
        made.supxlabel("What is\nto be seen")
        return made

    with figure_style():
        save_figure(figure(), tmp_path, "with", text_beside=None)
        bare = figure()
        save_figure(bare, tmp_path, "bare", text_beside="What is to be seen, as á text")
    assert (tmp_path / "bare.txt").read_text(encoding="utf-8") == "What is to be seen, as á text\n"
    assert not any(text.get_visible() for text in bare.texts)
    with Image.open(tmp_path / "with.png") as whole, Image.open(tmp_path / "bare.png") as image:
        assert image.width == whole.width and whole.height - 120 < image.height < whole.height - 60
        assert (np.asarray(image.convert("L"))[-1] == 255).all()
    with figure_style():
        save_figure(figure(), tmp_path, "bare")
    assert {path.name for path in tmp_path.glob("bare.*")} == {"bare.png", "bare.pdf"}, "no caption of an earlier call"


@pytest.mark.usefixtures("unpainted")
def test_every_description_goes_beside_its_figure(tmp_path: Path) -> None:
    for file in write_figures(make_analysis(), tmp_path, "es", captions=False):
        assert file.png.with_suffix(".txt").read_text(encoding="utf-8") == f"{file.title}. {file.description}\n"


def test_names_become_one_printable_line() -> None:
    assert tidy(" a\n\tb\x00\u202ec ") == "a b c"
    assert tidy("PERFORACIÓN") == "PERFORACIÓN"
    assert tidy("scratch_0001.png", 9) == "scrat…png"
    assert len(tidy("x" * 100, 24)) == 24
