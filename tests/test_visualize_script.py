"""`visualize_attention.py` as a user meets it."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from analysis.style import save_figure
from attention.faithfulness import ScoreOptions
from tests.support.baselines import write_tiny_baseline
from tests.support.scripts import start_script
from tests.support.tiny_run import write_tiny_checkpoint, write_tiny_config, write_tiny_data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with ground truth, a folder of odd images, a checkpoint of DEIMv2 and one of a baseline."""
    folder = tmp_path_factory.mktemp("look")
    write_tiny_data(folder, num_val=4)
    configs = {
        "tiny": write_tiny_config(folder),
        "cnn": write_tiny_baseline(folder, "fcos_resnet18", extra="  score_thresh: 0.0\n"),
    }
    for name, path in configs.items():
        write_tiny_checkpoint(folder / "run" / f"{name}.pth", path)
    odd = folder / "odd"
    (odd / "below").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "empty" / "figure.pdf").write_bytes(b"%PDF")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65535, (30, 90), dtype=np.uint16)).save(odd / "deep.png")
    Image.fromarray(rng.integers(0, 255, (70, 50, 4), dtype=np.uint8)).save(odd / "below" / "DEEP.png")
    (odd / "broken.png").write_bytes(b"\x89PNG no more")
    (odd / "notes.txt").write_text("not an image", encoding="utf-8")
    return folder


run_here = partial(start_script, "visualize_attention.py", "-d", "cpu")


class Drawn(dict[str, Figure]):
    """Figures by name, put together but painted only where `painted` says so: that takes most of the time."""

    painted: tuple[str, ...] = ()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    figures = Drawn()

    def touch(figure: Figure, folder: Path, name: str, **how: Any) -> tuple[Path, Path]:
        figures[name] = figure
        if name in figures.painted:
            return save_figure(figure, folder, name, **how)
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / f"{name}.png", folder / f"{name}.pdf"
        for path in paths:
            path.touch()
        return paths

    monkeypatch.setattr("attention.run.save_figure", touch)
    return figures


ANY = ("--min-score", "0")
"""Untrained networks are sure of nothing."""


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_figures_of_a_validation_image(tiny: Path, drawn: Drawn) -> None:
    """What is drawn, and the files beside, are in tests/contract; here is how."""
    drawn.painted = ("main", "overview")
    done = run_here("-r", "run/tiny.pth", "--from-val", "1", "--top", "1", *ANY, "--lang", "es", cwd=tiny)
    assert done.code == 0, done.err
    folder = tiny / "run" / "attention_tiny"
    caption = read(folder / "0" / "heads_cls.json")["caption"]
    assert "El CLS del último bloque nunca llega al detector" in caption
    bar = next(axes for axes in drawn["main"].axes if axes.get_xlabel() == "Proporción de la atención")
    ticks = [tick.get_text() for tick in bar.get_xticklabels()]
    assert any("," in tick for tick in ticks) and not any("." in tick for tick in ticks)
    assert b"/Font" in (folder / "0" / "main.pdf").read_bytes(), "text stays text"
    with Image.open(folder / "overview.png") as picture:
        assert picture.size[0] == 1259, "16 cm at 200 dpi"
    assert "8 figuras de 1 imagen" in done.out


def test_unreadable_files_come_last_and_the_rest_is_done(tiny: Path, drawn: Drawn) -> None:
    chosen = ["--what", "decoder", "--query", "5", "--output-dir", "odd_out"]
    done = run_here("-r", "run/tiny.pth", "--images", "odd", *chosen, cwd=tiny)
    assert done.code == 3, done.err
    assert "1 image left out:" in done.out and "broken.png" in done.out and "notes.txt" not in done.out
    folders = {path.name for path in (tiny / "odd_out").iterdir() if path.is_dir()}
    assert folders == {"DEEP", "deep_2"}, "names that Windows would take for the same get a number"
    assert (tiny / "odd_out" / "deep_2" / "object_q5.png").is_file()
    assert not (tiny / "odd_out" / "deep_2" / "features.png").exists()
    assert "broken.png" in read(tiny / "odd_out" / "run.json")["left_out"][0]


def test_layers_a_point_and_evidence_of_vit_tokens(tiny: Path, drawn: Drawn) -> None:
    chosen = ["--what", "backbone", "evidence", "--layers", "0", "2", "--point", "40", "10", "--output-dir", "point"]
    done = run_here("-r", "run/tiny.pth", "--images", "val/0.png", *ANY, *chosen, "--evidence-layer", "vit.1", cwd=tiny)
    assert done.code == 0, done.err
    shown = read(tiny / "point" / "0" / "heads_patch.json")["drawn"]
    assert shown["vit_blocks"] == [0, 2] and shown["focus_patches"] == [2] and shown["grid_hw"] == [4, 4]
    sidecar = read(tiny / "point" / "0" / "evidence.json")
    assert sidecar["drawn"]["layer"] == "vit.1" and "in vit.1," in sidecar["caption"]
    maps = [np.shape(axes.images[0].get_array()) for axes in drawn["evidence"].axes if axes.images]
    assert maps[1:4] == [(4, 4)] * 3, "one cell a patch"


def test_maps_over_the_image_and_captions_beside(tiny: Path, drawn: Drawn) -> None:
    drawn.painted = ("main",)
    chosen = [*ANY, "--what", "decoder", "--overlay", "--no-caption", "--lang", "es", "--output-dir", "over"]
    done = run_here("-r", "run/tiny.pth", "--images", "val/0.png", *chosen, cwd=tiny)
    assert done.code == 0, done.err
    caption = (tiny / "over" / "0" / "main.txt").read_text(encoding="utf-8")
    assert caption.strip() == read(tiny / "over" / "0" / "main.json")["caption"]
    assert "se superponen a la imagen en gris" in caption
    assert not any(text.get_visible() for text in drawn["main"].texts)
    ground, over = drawn["main"].axes[2].images
    picture = np.asarray(Image.open(tiny / "val" / "0.png").convert("RGB"), np.float64).mean(axis=2)
    np.testing.assert_allclose(ground.get_array(), picture)
    alpha, values = np.ravel(over.get_alpha()), np.ravel(over.get_array())
    assert (np.diff(alpha[np.argsort(values)]) >= 0).all() and 0.2 < alpha.min() < alpha.max() <= 0.75
    bar = next(axes for axes in drawn["main"].axes if axes.get_xlabel() == "Proporción de la atención")
    assert all(drawing.get_alpha() is None for drawing in bar.collections), "the bar shows the colours themselves"


@pytest.mark.parametrize(
    ("name", "figures"), [("tiny", {"main", "heads_cls", "heads_patch", "features"}), ("cnn", {"main"})]
)
def test_what_was_not_detected_is_not_drawn(tiny: Path, drawn: Drawn, name: str, figures: set[str]) -> None:
    arguments = ("-r", f"run/{name}.pth", "--from-val", "1", "--output-dir", f"clean_{name}")
    assert run_here(*arguments, *ANY, cwd=tiny).code == 0
    if name == "cnn":
        drawn_before = {path.stem for path in (tiny / "clean_cnn" / "0").glob("*.png")}
        titles = [axes.get_title() for axes in drawn["evidence"].axes]
        assert drawn_before == {"main", "evidence", "edges"} and titles[0].startswith("Detection "), "no queries"
    done = run_here(*arguments, "--min-score", "0.99", "--lang", "es", cwd=tiny)
    assert done.code == 0, done.err
    assert "Ningún objeto con confianza de 0,99 o más (--min-score) en 1 de ellas: 0" in done.out
    folder = tiny / f"clean_{name}"
    assert {path.stem for path in (folder / "0").iterdir()} == figures, "nothing is left of the call before"
    assert read(folder / "run.json")["without_object"] == ["0"]
    for figure in (drawn["main"], drawn["overview"]):
        texts = [[text.get_text() for text in axes.texts if text.get_text() == "Ningún objeto"] for axes in figure.axes]
        assert sum(map(len, texts)) == 2, "instead of a predicted box, and of its sampling points or evidence"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-r", "run/tiny.pth"], "give --images PATH_OR_FOLDER, or --from-val N"),
        (["-r", "run/tiny.pth", "--images", "nowhere"], "nowhere: there is no such file or folder"),
        (["-r", "run/tiny.pth", "--images", "empty"], "no image file in this folder"),
        (["-r", "run/tiny.pth", "--from-val", "-1"], "--from-val -1: expected"),
        (["-r", "run/tiny.pth", "--from-val", "1", "--layers", "3", "7"], "--layers 3 7: the ViT runs blocks 0 to 2"),
        (["-r", "run/tiny.pth", "--from-val", "1", "--top", "0", "--min-score", "2"], "--min-score 2: expected 0 to 1"),
        (["-r", "run/tiny.pth", "--from-val", "1", "--point", "-1", "3"], "--point -1 3: expected pixels"),
        (["-r", "run/tiny.pth", "--images", "val/0.png", "--point", "64", "3"], "lies outside the image"),
        (["-r", "run/tiny.pth", "--images", "val/0.png", "--query", "12"], "they go from 0 to 11"),
        (["-r", "run/tiny.pth", "--images", "odd/broken.png"], "None of the 1 images could be drawn"),
        (["-r", "run/cnn.pth", "--from-val", "1", "--what", "decoder"], "--what decoder: not defined for a CNN"),
        (["-r", "run/cnn.pth", "--from-val", "1", "--layers", "all"], "--layers: not defined for a CNN"),
        (["-r", "run/tiny.pth", "--score", "0"], "--score 0: expected the number of images"),
        (["-r", "run/tiny.pth", "--score", "2", "--score-steps", "1"], "--score-steps 1: expected 2 or more"),
        (["-r", "run/tiny.pth", "--score", "2", "--drise-masks", "-1"], "--drise-masks -1: expected 0 (no D-RISE) or"),
        (["-r", "run/tiny.pth", "--score", "2", "--on", "tn"], "argument --on: invalid choice: 'tn'"),
        (
            ["-r", "run/tiny.pth", "--score", "2", "--evidence-layer", "fpn"],
            "Layer 'fpn': this model has no",
        ),
    ],
)
def test_mistakes_are_named(tiny: Path, arguments: list[str], message: str) -> None:
    done = run_here(*arguments, "--output-dir", "wrong", cwd=tiny)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_scoring_gets_what_was_asked_for(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def record(*arguments: Any, **options: Any) -> str:
        calls.append((arguments, options))
        return "the table"

    monkeypatch.setattr("attention.score.score", record)
    chosen = ["--score", "7", "--min-score", "0.2", "--score-steps", "5", "--score-baseline", "mean"]
    more = ["--bootstrap", "9", "--evidence-layer", "vit.1", "--seed", "3", "--lang", "es", "--output-dir", "judged"]
    more += ["--on", "tp", "fp", "--drise-masks", "4"]
    done = run_here("-r", "run/tiny.pth", *chosen, *more, cwd=tiny)
    assert done.code == 0, done.err
    assert "the table" in done.out and not (tiny / "judged").exists(), "no figures unless images are named"
    (((detector, count, folder), options),) = calls
    assert (detector.path, count, folder) == (Path("run/tiny.pth"), 7, Path("judged/score"))
    asked = ScoreOptions(
        steps=5, baseline="mean", score_threshold=0.2, samples=9, seed=3, on=("tp", "fp"), drise_masks=4
    )
    assert options == {"lang": "es", "layer": "vit.1", "options": asked}
