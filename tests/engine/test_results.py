"""results.json, predictions.json and the table."""

import dataclasses
import json
from pathlib import Path

import pytest

from analysis.analyse import analyse
from analysis.matching import MatchTables
from data.errors import UserError
from engine.coco_metrics import METRIC_NAMES, coco_numbers
from engine.evaluate import EvalResult
from engine.results import write_results
from tests.support.coco_reference import random_case

TRUTH, DETECTIONS = random_case(3)
TABLES = MatchTables.of(TRUTH, DETECTIONS)


@pytest.fixture
def result() -> EvalResult:
    truth, detections = TRUTH, DETECTIONS
    numbers = coco_numbers(truth, detections)
    return EvalResult(
        metrics=numbers.metrics,
        metrics_defects=numbers.metrics_defects,
        per_class=numbers.per_class,
        gt_hash=truth.fingerprint(),
        split="val",
        num_images=len(truth.images),
        seconds_per_image=0.25,
        detections=detections,
    )


def test_files_hold_the_result(result: EvalResult, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "eval_val_best"
    write_results(folder, result, TABLES, extra={"checkpoint": "best.pth", "epoch": 3})
    assert sorted(path.name for path in folder.iterdir()) == ["match_tables.npz", "predictions.json", "results.json"]
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    thresholds = content.pop("thresholds")
    assert content == {**result.to_json(), "checkpoint": "best.pth", "epoch": 3}
    assert list(thresholds["per_class"]) == list(result.per_class) and thresholds["per_class"]["never seen"] is None
    assert set(thresholds["overall"]) == set(thresholds["per_class"]["hole"]) == {"score", "f1", "precision", "recall"}
    assert (MatchTables.load(folder / "match_tables.npz").found.scores == TABLES.found.scores).all()
    assert tuple(content["metrics"]) == tuple(content["metrics_defects"]) == METRIC_NAMES
    assert content["per_class"]["never seen"]["AP"] is None
    predictions = (folder / "predictions.json").read_text(encoding="utf-8")
    assert json.loads(predictions) == result.predictions
    assert ", " not in predictions and predictions.endswith("]\n"), "compact"
    write_results(folder, result, TABLES)
    assert "epoch" not in json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_names_of_any_language_survive(result: EvalResult, tmp_path: Path) -> None:
    named = dataclasses.replace(result, per_class={"CONTAMINACIÓN 划痕": result.per_class["hole"]})
    write_results(tmp_path, named, TABLES)
    assert "CONTAMINACIÓN 划痕" in (tmp_path / "results.json").read_text(encoding="utf-8")


def test_extra_facts_cannot_hide_a_metric(result: EvalResult, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="results.json already has metrics, split"):
        write_results(tmp_path, result, TABLES, extra={"split": "x", "metrics": {}})
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(result: EvalResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"Could not write predictions .*predictions\.json"):
        write_results(tmp_path / "file", result, TABLES)


def test_an_analysis_adds_to_the_files(result: EvalResult, tmp_path: Path) -> None:
    analysis = analyse(TRUTH, DETECTIONS, split="val", samples=20, facts={"epoch": 7})[0]
    write_results(tmp_path, result, TABLES, analysis=analysis)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    content = json.loads(text)
    before = result.to_json()
    assert {key: content[key] for key in before if key != "per_class"} == {
        key: value for key, value in before.items() if key != "per_class"
    }
    for name, row in before["per_class"].items():
        assert {key: content["per_class"][name][key] for key in row} == row
    assert content["epoch"] == 7 and content["bootstrap_samples"] == 20
    assert max(len(line) for line in text.splitlines()) > 200, "a curve stands on one line"
