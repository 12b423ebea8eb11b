"""results.json, predictions.json and the table."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from data.classes import ClassMap
from data.errors import UserError
from engine.evaluate import EvalResult
from engine.metrics import METRIC_NAMES, coco_numbers
from engine.results import read_evaluation, write_results
from tests.support.coco_reference import CLASSES, random_case

TRUTH, DETECTIONS = random_case(3)


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


def test_what_is_written_is_what_was_judged(result: EvalResult, tmp_path: Path) -> None:
    classes = ClassMap(CLASSES.category_ids, ("CONTAMINACIÓN 划痕", *CLASSES.names[1:]))
    truth = dataclasses.replace(TRUTH, images={**TRUTH.images, 1000: "a\udcff.png"}, classes=classes)
    folder = tmp_path / "run" / "eval_val_best"
    write_results(folder, truth, DETECTIONS, result.to_json() | {"note": "CONTAMINACIÓN", "curve": [0.5] * 99})
    assert {path.name for path in folder.iterdir()} == {"ground_truth.json", "predictions.json", "results.json"}
    text = (folder / "results.json").read_text(encoding="utf-8")
    assert json.loads(text) == {**result.to_json(), "note": "CONTAMINACIÓN", "curve": [0.5] * 99}
    assert "CONTAMINACIÓN" in text and max(map(len, text.splitlines())) > 99, "a curve stands on one line"
    assert tuple(json.loads(text)["metrics"]) == METRIC_NAMES
    there, found = read_evaluation(folder)
    assert there.fingerprint() == truth.fingerprint() and there.classes == classes
    assert found.to_coco() == DETECTIONS.to_coco()
    coco = COCO(folder / "ground_truth.json")
    assert coco.loadRes(str(folder / "predictions.json")).getAnnIds(), "COCO's own form"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Could not write ground truth .*ground_truth\.json"):
        write_results(tmp_path / "file", truth, DETECTIONS, {})


@pytest.mark.parametrize("name", ["ground_truth.json", "predictions.json"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: "{}",
        lambda text: '["a"]',
        lambda text: text.replace('"bbox":[', '"bbox":[1,'),
        lambda text: text.replace('"bbox":[', '"bbox":[NaN,'),
        lambda text: text.replace('"image_id":', '"image_id":1e3'),
        lambda text: text.replace('"image_id":', '"image_id":9' + 30 * "0"),
        lambda text: text.replace('"category_id":', '"category":'),
    ],
)
def test_damaged_files_are_refused(name: str, spoil: Callable[[str], str], tmp_path: Path) -> None:
    write_results(tmp_path, TRUTH, DETECTIONS, {})
    path = tmp_path / name
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=f"{name}: damaged, cut short or of another version .* Evaluate the checkpoint"):
        read_evaluation(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{name}: no such file. Evaluate the checkpoint again"):
        read_evaluation(tmp_path)
