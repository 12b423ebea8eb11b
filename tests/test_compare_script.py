"""`compare_models.py` as a user meets it."""

from __future__ import annotations

import csv
import io
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from analysis.compare import read_runs
from data.errors import UserError
from engine.results import PREDICTIONS_NAME
from tests.support.comparison import WITH_NORMAL, change_results, make_cost, make_truth, write_folds, write_run
from tests.support.latex import LINE_PT, compile_article, tabular_widths_pt
from tests.support.scripts import start_script

CONFIG = {"num_classes": 2, "epoches": 40}
ALL_RUNS = ("base", "ours_seed0", "ours_seed1", "ours_seed2", "twin")


run_here = partial(start_script, "compare_models.py")


def read(folder: Path) -> Any:
    return json.loads((folder / "comparison.json").read_text(encoding="utf-8"))


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time."""
    monkeypatch.setattr("analysis.compare_report.write_plots", lambda *arguments, **options: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, three seeds of `ours`, which is better, and `twin`, which is base again."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "base", quality=0.3, seed=0, config={**CONFIG, "epoches": 20})
    for seed in range(3):
        cost = make_cost(9_000_000 + seed, 20.0 + seed)
        write_run(root / f"ours_seed{seed}", quality=0.8, seed=seed, config=CONFIG, cost=cost)
    write_run(root / "twin", quality=0.3, seed=0, cost=None, train_seconds=None)
    return root


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `ours` on all images, and in three folds each; `ours` is another detector, trained with one file."""
    root = tmp_path_factory.mktemp("folds")
    write_folds(root / "base", 3, quality=0.3)
    config = {"num_classes": 2, "epoches": 7, "train_dataloader": {"dataset": {"ann_file": "all.json"}}}
    write_folds(root / "ours", 3, quality=0.8, seed=1, config=config)
    return root


def test_folds_are_judged_as_one_set(folds: Path, no_plots: None) -> None:
    parts = [f"{name}_fold_{number}" for name in ("base", "ours") for number in (1, 2, 3)]
    outcome = run_here(*parts, "--output-dir", "k", "--lang", "es", cwd=folds)
    assert outcome.code == 0 and run_here("base", "ours", "--output-dir", "plain", cwd=folds).code == 0, outcome.err
    whole, pooled = read(folds / "plain"), read(folds / "k")
    assert (pooled["folds"], whole["folds"]) == (3, 1)
    assert [model["label"] for model in pooled["models"]] == ["base", "ours"]
    assert {key: pooled[key] for key in ("gt_hash", "num_images")} == {
        key: whole[key] for key in ("gt_hash", "num_images")
    }
    for one, other in zip(pooled["models"], whole["models"], strict=True):
        assert one["differences"] == other["differences"], "the same images drawn for both, as if there were no folds"
        for name, found in one["metrics"].items():
            stated = [
                json.loads((folds / run["folder"] / "results.json").read_text())["metrics"] for run in one["runs"]
            ]
            values = [metrics[name] for metrics in stated]
            assert (found["value"], found["interval"]) == (
                other["metrics"][name]["value"],
                other["metrics"][name]["interval"],
            )
            assert found["per_run"] == pytest.approx(values) and found["sd"] == pytest.approx(np.std(values, ddof=1))
    markdown = (folds / "k" / "comparison.md").read_text(encoding="utf-8")
    assert "Validación cruzada de 3 pliegues: cada imagen la juzga una vez" in markdown and "Semillas" not in markdown
    assert "ATENCIÓN: varias ejecuciones de ours se entrenaron con all.json" in markdown and "de base" not in markdown
    rows = (folds / "k" / "comparison_folds.csv").read_text(encoding="utf-8-sig").splitlines()
    assert float(rows[1].split(";")[1].replace(",", ".")) == pytest.approx(
        np.mean(pooled["models"][0]["metrics"]["AP"]["per_run"]), abs=1e-5
    )
    assert (folds / "k" / "comparison.tex").read_text(encoding="utf-8").count(r"\begin{table}") == 5


@pytest.mark.parametrize(
    ("runs", "messages"),
    [
        (
            "base_fold_1 base_fold_2 base_fold_3 ours_fold_1 ours_fold_2",
            ["ours: no runs on the 20 images of base_fold_3", "each row has one run on every fold"],
        ),
        ("base_fold_1 base_fold_2 ours", ["nor are they folds of one set: ", "base_fold_1 and ours share 20 images"]),
        ("base_fold_1 ours_fold_2", ["base_fold_1: no runs on the 20 images of ours_fold_2"]),
        ("base_fold_1 base_fold_2 again_fold_2", ["base: 2 runs on the 20 images of base_fold_2"]),
    ],
)
def test_folds_that_make_no_rows(folds: Path, runs: str, messages: list[str]) -> None:
    if not (folds / "again").exists():
        write_folds(folds / "again", 3, quality=0.3, seed=3)
    outcome = run_here(*runs.split(), "--output-dir", "none", cwd=folds)
    assert outcome.code == 2 and not [one for one in messages if one not in outcome.err], outcome.err
    assert not (folds / "none").exists()
    with pytest.raises(UserError, match="judged on different images"):  # where folds make no sense
        read_runs([folds / "base_fold_1", folds / "ours_fold_2"])


@pytest.fixture(scope="module")
def compared(runs: Path) -> Path:
    """Everything at once, in English."""
    outcome = run_here(*ALL_RUNS, "--output-dir", "out", cwd=runs)
    assert outcome.code == 0, outcome.err
    assert " INFO " not in outcome.err, "nothing but the progress bar"
    assert outcome.out.startswith("Model comparison") and outcome.out.endswith(
        "Written to out\nNext: \\input{out/comparison.tex}\n"
    )
    return runs / "out"


def test_numbers(compared: Path) -> None:
    content = read(compared)
    base, ours, twin = content["models"]
    assert [model["label"] for model in content["models"]] == ["base", "ours", "twin"]
    assert content["reference"] == "base" and content["samples"] == 1000 and content["num_images"] == 60
    per_run = ours["metrics"]["AP"]["per_run"]
    stated = [
        json.loads((compared.parent / f"ours_seed{seed}" / "results.json").read_text(encoding="utf-8"))["metrics"]
        for seed in range(3)
    ]
    assert per_run == pytest.approx([metrics["AP"] for metrics in stated])
    assert ours["metrics"]["AP50"]["value"] == pytest.approx(sum(metrics["AP50"] for metrics in stated) / 3)
    assert ours["metrics"]["AP"]["sd"] > 0 and base["metrics"]["AP"]["sd"] is None
    low, high = ours["metrics"]["AP"]["interval"]
    assert low < ours["metrics"]["AP"]["value"] < high
    assert set(ours["per_class"]) == {"scratch", "dent & hole"}
    assert base["differences"] == {}
    found = ours["differences"]["AP"]
    assert found["difference"] == pytest.approx(ours["metrics"]["AP"]["value"] - base["metrics"]["AP"]["value"])
    assert found["p"] == pytest.approx(2 / 1001) and found["p_holm"] == pytest.approx(4 / 1001), "two are compared"
    same = twin["differences"]["AP"]
    assert (same["difference"], same["interval"], same["p"], same["p_holm"]) == (0.0, [0.0, 0.0], 1.0, 1.0)
    assert ours["cost"]["parameters"] == 9_000_001 and ours["cost"]["latency_ms"] == 21.0
    assert twin["cost"]["latency_ms"] is None and twin["cost"]["parameters"] == 1_500_000
    assert [run["seed"] for run in ours["runs"]] == [0, 1, 2]
    cells = [*csv.DictReader(io.StringIO((compared / "comparison.csv").read_text(encoding="utf-8-sig")))]
    assert [row["Seeds"] for row in cells] == ["1", "3", "1"]
    cells = [*csv.DictReader(io.StringIO((compared / "comparison_cost.csv").read_text(encoding="utf-8-sig")))]
    assert [(row["Training (h)"], row["Latency (ms)"]) for row in cells] == [("1.5", "12.5"), ("1.5", "21"), ("", "")]
    markdown = (compared / "comparison.md").read_text(encoding="utf-8")
    assert "twin: not joined" in markdown and "mean ± standard deviation" in markdown
    for path in compared.glob("*.png"):
        with Image.open(path) as image:
            assert image.width > 500 and len(image.getcolors(1 << 24) or []) > 20, "something is drawn"
    assert {path.stem for path in compared.glob("*.pdf") if path.read_bytes().startswith(b"%PDF")} == {
        f"ap_vs_{what}" for what in ("latency", "memory", "parameters")
    }


@pytest.mark.parametrize("lang", ["en", "es"])
def test_long_names_and_seeds_fit_a_page(runs: Path, no_plots: None, lang: str, tmp_path: Path) -> None:
    detectors = ("Faster R-CNN, EfficientNet-B0, 640 px", "DEIMv2-S, text, concat", "DEIMv2-S, 1 seed", "FCOS_resnet18")
    labels = [detectors[number] for number in (0, 1, 1, 2, 3)]
    outcome = run_here(*ALL_RUNS, "--labels", *labels, "--lang", lang, "--output-dir", tmp_path, cwd=runs)
    assert outcome.code == 0, outcome.err
    latex = (tmp_path / "comparison.tex").read_text(encoding="utf-8")
    quality, cost, classes, differences = latex.split(r"\end{table}")[:4]
    sizes = {*re.findall(r"\\(?:\w*small|tiny|footnotesize|scriptsize|resizebox|scalebox)", latex)}
    assert sizes == {r"\footnotesize"} and max(tabular_widths_pt(latex)) <= LINE_PT
    assert r"$\pm$" in quality and "AP75" in quality and "FPS" not in quality and "AP75" not in cost
    compile_article(latex, tmp_path, "spanish" if lang == "es" else None)


def test_plots_of_an_earlier_comparison_do_not_stay(tmp_path: Path) -> None:
    for name in ("ap_vs_latency.png", "ap_vs_latency.pdf", "ap_vs_memory.png", "mine.png"):
        (tmp_path / name).touch()
    copies = [write_run(tmp_path / "runs" / name, cost=None, seed=seed) for seed, name in enumerate("ab")]
    assert run_here(*copies, "--samples", "100", "--no-caption", "--output-dir", tmp_path, cwd=tmp_path).code == 0
    caption = (tmp_path / "ap_vs_parameters.txt").read_text(encoding="utf-8")
    assert caption.startswith("AP of ") and "Horizontal: Parameters (millions)." in caption
    assert sorted(path.name for path in tmp_path.glob("*.p*")) == [
        "ap_vs_parameters.pdf",
        "ap_vs_parameters.png",
        "mine.png",
    ]


def test_cautions_and_a_column_without_normal(tmp_path: Path, no_plots: None) -> None:
    truth = make_truth(classes=WITH_NORMAL)
    folders = [
        write_run(tmp_path / "a", truth=truth, config=CONFIG),
        write_run(tmp_path / "b", truth=truth, config=CONFIG, cost=make_cost(device="NVIDIA H100", passes=16)),
        write_run(tmp_path / "c", truth=truth, seed=1, config={**CONFIG, "epoches": 5}),
    ]
    arguments = ("--samples", "100", "--output-dir", "out")
    notes = run_here(*folders, *arguments, cwd=tmp_path).out
    assert "measured under different conditions" in notes and "NVIDIA H100" in notes
    assert "kept apart because their seeds are not different" in notes and "AP without NORMAL" in notes
    models = read(tmp_path / "out")["models"]
    whole, tiles = (models[place]["cost"] for place in (0, 1))
    for key, factor in (("latency_ms", 16), ("gflops", 16), ("images_per_s", 1 / 16), ("parameters", 1)):
        assert tiles[key] == pytest.approx(factor * whole[key]), "per image, which takes 16 passes in tiles"
    for model, folder in zip(models, folders, strict=True):
        stated = json.loads((folder / "results.json").read_text(encoding="utf-8"))["metrics_defects"]["AP"]
        assert model["metrics"]["AP_defects"]["value"] == pytest.approx(stated)
    notes = run_here(*folders, "--labels", "x", "y", "x", *arguments, cwd=tmp_path).out
    assert "joined under the label x have different configs: epoches" in notes


BAD_YAML = {
    "bomb": "a0: &a0 [1]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 20)),
    "circular": "a: &a [*a]\n",
    "deep": "a: " + "[" * 5000 + "]" * 5000,
}


def prepare_bad_runs(root: Path) -> None:
    write_run(root / "good")
    write_run(root / "other", truth=make_truth(seed=5))
    write_run(root / "test_split", split="test")
    (root / "empty").mkdir()
    (root / "a_file").touch()
    for name in ("torn", "list", "keys", "no_tables", "torn_tables", "mixed", "other_ap", *BAD_YAML):
        write_run(root / name)
    write_run(root / "twice", config=CONFIG)
    (root / "twice" / "config.yaml").write_text("{: [", encoding="utf-8")
    (root / "twice" / PREDICTIONS_NAME).unlink()
    for name, text in BAD_YAML.items():
        (root / name / "config.yaml").write_text(text, encoding="utf-8")
    (root / "torn" / "results.json").write_text('{"metrics": {', encoding="utf-8")
    (root / "list" / "results.json").write_text("[1]", encoding="utf-8")
    change_results(root / "keys", gt_hash=..., num_images="many")
    (root / "no_tables" / PREDICTIONS_NAME).unlink()
    whole = (root / "torn_tables" / PREDICTIONS_NAME).read_bytes()
    (root / "torn_tables" / PREDICTIONS_NAME).write_bytes(whole[: len(whole) // 2])
    change_results(root / "mixed", gt_hash="f" * 64)
    change_results(root / "other_ap", metrics={"AP": 0.99}, metrics_defects={"AP": 0.99})


BAD_INPUTS: list[tuple[list[str], list[str]]] = [
    (["good"], ["one run alone cannot be compared; give two or more"]),
    (["good", "gone"], ["gone: no such folder; expected a run folder or an evaluation folder"]),
    (["good", "a_file"], ["a_file: a file; expected a run folder"]),
    (["good", "empty"], ["results.json: no such file", "ground_truth.json: no such file"]),
    (["good", "torn"], ["results.json: damaged or cut short"]),
    (["good", "list"], ["results.json: not as expected"]),
    (["good", "keys"], ["gt_hash: Field required; num_images: Input should be a valid integer"]),
    (["good", "no_tables"], ["predictions.json: no such file. Evaluate the checkpoint again"]),
    (["good", "torn_tables"], ["predictions.json: damaged, cut short or of another version"]),
    (["good", "mixed"], ["mixed: results.json and predictions.json are of different evaluations"]),
    (["good", "other_ap"], ["other_ap: results.json says AP 0.99, predictions.json gives 0."]),
    (["good", "bomb", "circular", "deep"], [f"{name}/config.yaml" for name in BAD_YAML]),
    (["good", "twice"], ["twice/config.yaml", "Evaluate the checkpoint again"]),
    (["good", "good"], ["good: given twice; leave one out"]),
    (["good", "empty/../good"], ["given twice (also as good); leave one out"]),
    (["good", "test_split"], ["judged on different splits", "good: split val", "test_split: split test, 60 images"]),
    (
        ["good", "other", "gone", "torn"],
        [
            "judged on different images or ground truth; evaluate all on the same data",
            f"good: split val, 60 images, gt_hash {make_truth().fingerprint()[:12]}",
            f"other: split val, 60 images, gt_hash {make_truth(seed=5).fingerprint()[:12]}",
            "gone: no such folder",
            "damaged or cut short",
        ],
    ),
    (["good", "good2", "--labels", "a"], ["--labels: found 1 (a), expected 2"]),
    (
        ["good", "gone", "--samples", "5", "--seed", "-1", "--labels", "a", "b", "c"],
        ["--samples 5: expected 100", "--seed -1: expected 0", "found 3 (a, b, c), expected 2", "gone: no such folder"],
    ),
    (["good", "good2", "--output-dir", "a_file"], ["a_file is a file; rename it or choose another folder"]),
]


def test_bad_input_gets_one_message_and_no_output(tmp_path: Path) -> None:
    prepare_bad_runs(tmp_path)
    write_run(tmp_path / "good2")
    before = sorted(tmp_path.rglob("*"))
    for arguments, messages in BAD_INPUTS:
        outcome = run_here("--output-dir", "new", *arguments, cwd=tmp_path)
        assert outcome.code == 2, (arguments, outcome)
        assert [message for message in messages if message not in outcome.err] == [], (arguments, outcome.err)
        assert outcome.err.count("error: ") == 1 and "Traceback" not in outcome.err, outcome.err
        assert outcome.out == ""
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
