"""The whole analysis: gallery and sizes, what it agrees with, and JSON for every corner case."""

import dataclasses
import json

import numpy as np
import pytest

from analysis.analyse import Analysis, AnalysisOptions, analyse
from analysis.bootstrap import bootstrap
from analysis.cost import Cost, Latency
from analysis.errors import GALLERY_SIZE, Finding, classify_errors, gallery, size_histogram
from analysis.evaluate import format_results
from analysis.matching import match
from data.classes import ClassMap
from engine.metrics import METRIC_NAMES, GroundTruth, Predictions, best_thresholds, coco_numbers
from tests.support.coco_reference import CLASSES, random_case, reference_stats
from tests.support.scenes import Box, scene

POINTS = AnalysisOptions(bootstrap=0)
A: Box = (10, 10, 20, 20)
BIG: Box = (50, 50, 100, 100)


def findings(boxes, detections, *, score=0.3, **options) -> list[Finding]:  # type: ignore[no-untyped-def]
    truth, found = scene(boxes, detections, **options)
    matches = match(truth, found)
    return gallery(matches, classify_errors(matches), truth.classes.normal_label, score=score)


def test_a_duplicate_says_who_found_its_box_first() -> None:
    (alarm,) = findings([(1, "hole", A)], [(1, "hole", A, 0.9), (1, "hole", (A[0], A[1], A[2], A[3] / 2 + 1), 0.8)])
    assert (alarm.note, alarm.first_score) == ("duplicate", 0.9)
    assert alarm.first_iou == pytest.approx((A[3] / 2 + 1) / A[3])


def test_gallery_shows_the_worst_first() -> None:
    boxes = [(1, "hole", A), (1, "hole", BIG), (2, "scratch", A), (2, "NORMAL", BIG), (3, "hole", A)]
    detections = [
        (2, "hole", A, 0.9),
        (3, "hole", A, 0.2),
        (3, "scratch", BIG, 0.5),
        (3, "scratch", (300, 0, 9, 9), 0.7),
        (3, "NORMAL", (300, 50, 9, 9), 0.8),
    ]
    found = findings(boxes, detections)
    rows = [(f.kind, f.image_id, f.label, f.box_xywh, f.score, f.note) for f in found]
    assert rows == [
        ("missed", 1, 0, BIG, 0.0, "missed"),
        ("missed", 1, 0, A, 0.0, "missed"),
        ("missed", 3, 0, A, 0.2, "missed"),
        ("missed", 2, 1, A, 0.9, "classification"),
        ("false_alarm", 2, 0, A, 0.9, "classification"),
        ("false_alarm", 3, 1, (300, 0, 9, 9), 0.7, "background"),
        ("false_alarm", 3, 1, BIG, 0.5, "background"),
    ]
    assert findings([(1, "hole", A)], [(1, "hole", A, 0.9)]) == []
    assert findings([], [(1, "hole", A, 0.9)], crowds=[(1, "hole", A)]) == []


def test_gallery_is_not_one_image_only() -> None:
    many = [(1, "hole", (30.0 * i, 0.0, 20.0, 20.0)) for i in range(10)]
    found = findings(many, [(2, name, box, 0.9) for _, name, box in many])
    assert [f.kind for f in found] == ["missed"] * 3 + ["false_alarm"] * 3
    spread = [(i, "hole", A) for i in range(1, 40)]
    assert len(findings(spread, [], num_images=40)) == GALLERY_SIZE


def test_size_histogram() -> None:
    boxes = [(1, "hole", A), (2, "hole", A), (3, "hole", BIG), (3, "scratch", (0, 0, 32, 32))]
    detections = [(1, "hole", A, 0.9), (2, "hole", A, 0.2)]
    assert size_histogram(match(*scene(boxes, detections, crowds=[(1, "hole", BIG)])), score=0.5) == {
        "edges_px": [0, 8, 16, 24, 32, 48, 64, 96, 128],
        "ground_truth": [0, 0, 2, 0, 1, 0, 0, 1],
        "found": [0, 0, 1, 0, 0, 0, 0, 0],
    }
    assert sum(size_histogram(match(*scene([], [])), score=0.5)["ground_truth"]) == 0


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    cost = Cost(5, 0.5, (64, 64), [Latency(1, 2.0, 3.0, 500.0)], None, 7.5, "cpu", "float32", 1)
    truth, detections = random_case(3, num_images=20)
    return analyse(truth, detections, "val", AnalysisOptions(bootstrap=30), seed=5, cost=cost, facts={"epoch": 3})


def test_parts_agree(analysis: Analysis) -> None:
    truth, detections = random_case(3, num_images=20)
    numbers, matches, results = coco_numbers(truth, detections), match(truth, detections), analysis.results
    assert results["metrics"] == numbers.metrics and results["metrics_defects"] == numbers.metrics_defects
    assert tuple(results["metrics"]) == METRIC_NAMES and results["thresholds"] == best_thresholds(truth, detections)
    assert (results["gt_hash"], results["num_images"], results["split"]) == (truth.fingerprint(), 20, "val")
    resampled = bootstrap(matches, samples=30, seed=5)
    assert results["intervals"]["AP75"] == resampled.metrics["AP75"].interval
    for label, (name, one) in enumerate(results["per_class"].items()):
        row = numbers.per_class[name]
        assert {key: one[key] for key in row} == row
        assert one["intervals"]["AP50"] == resampled.per_class[name]["AP50"].interval
        if one["num_gt"]:
            assert analysis.precision_at_recall[label, 2].mean() == pytest.approx(row["AP"])
            assert analysis.precision_at_recall[label, 1].mean() == pytest.approx(row["AP75"])
        category_id = CLASSES.category_ids[label]
        own = (box for box in truth.annotations if box["category_id"] == category_id and not box["iscrowd"])
        assert one["num_images"] == len({box["image_id"] for box in own})
    counts = np.array(results["confusion"]["counts"])
    assert results["confusion"]["score"] == results["thresholds"]["overall"]["score"]
    assert results["errors"]["base_ap50"] == pytest.approx(results["metrics"]["AP50"])
    assert sum(results["sizes"]["ground_truth"]) == matches.num_gt.sum() == counts[:-1].sum()
    assert sum(results["sizes"]["found"]) == counts.diagonal().sum()


def test_facts_may_not_hide_results() -> None:
    with pytest.raises(ValueError, match="already has cost, metrics"):
        analyse(*random_case(3), "val", POINTS, facts={"metrics": 1, "cost": 2, "epoch": 3})


def test_false_alarms_in_a_crowd_region_count_nowhere() -> None:
    """pycocotools agrees with and without them, and every other table is as if they had never been there."""
    boxes = [(1, "hole", A), (2, "scratch", BIG)]
    good = [(1, "hole", A, 0.5), (2, "scratch", BIG, 0.6)]
    in_crowd = [(3, "hole", (60, 60, 20, 20), 0.9), (3, "hole", (90, 90, 30, 30), 0.8)]
    crowds = [(3, "hole", BIG)]
    truth, found = scene(boxes, good + in_crowd, crowds=crowds)
    without = analyse(truth, scene(boxes, good)[1], "val", POINTS)
    analysis = analyse(truth, found, "val", POINTS)
    ours, expected = analysis.results, without.results
    assert list(ours["metrics"].values()) == pytest.approx(reference_stats(truth, found.to_coco()))
    assert ours["metrics"]["AP"] == ours["per_class"]["hole"]["AP"] == 1
    for part in ("metrics", "per_class", "thresholds", "confusion", "errors"):
        assert ours[part] == expected[part], part
    assert [one for one in analysis.findings if one.kind == "false_alarm"] == []


def test_corner_cases_give_json_without_nan() -> None:
    truth, detections = random_case(3)
    no_boxes = dataclasses.replace(truth, annotations=[])
    crowds = dataclasses.replace(truth, annotations=[{**box, "iscrowd": 1} for box in truth.annotations])
    same_names = dataclasses.replace(truth, classes=ClassMap(CLASSES.category_ids, ("a", "a", "b", "b", "NORMAL")))
    nothing = GroundTruth({}, [], CLASSES)
    for case, found in (
        (truth, Predictions.empty()),
        (no_boxes, detections),
        (no_boxes, Predictions.empty()),
        (crowds, detections),
        (same_names, detections),
        (nothing, Predictions.empty()),
    ):
        content = analyse(case, found, "val", AnalysisOptions(bootstrap=10)).results
        text = json.dumps(content, allow_nan=False)
        assert len(json.loads(text)["per_class"]) == 5


def test_the_printed_table_of_nothing_says_so() -> None:
    truth = dataclasses.replace(random_case(3)[0], annotations=[])
    nothing = format_results(analyse(truth, Predictions.empty(), "val", POINTS).results)
    assert "there is no best score threshold" in nothing and "95\u00a0% interval" not in nothing and " –" in nothing
