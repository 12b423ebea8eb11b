"""Label errors are found where predictions are perfect, corrections mend what was spoilt, and nothing else changes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.label_errors import Kind, corrected, find_label_errors
from benchmarks.labels import inject, right
from data.coco import CocoSplit, read_split
from engine.metrics import GroundTruth, Predictions

BOXES = {1: [10, 10, 30, 30], 2: [60, 60, 30, 20], 3: [10, 70, 20, 20]}
CLASSES = {1: 1, 2: 1, 3: 2}


def make_split(folder: Path, boxes: dict[int, list[float]], classes: dict[int, int], images: int = 1) -> CocoSplit:
    """Images of 100 x 100 pixels, all with the same boxes; annotation ids n, 100 + n, ..."""
    annotations = [
        {"id": 100 * k + n, "image_id": k + 1, "category_id": classes[n], "bbox": box, "area": 1, "iscrowd": 0}
        for k in range(images)
        for n, box in boxes.items()
    ]
    content = {
        "images": [{"id": k + 1, "file_name": f"{k}.png", "width": 100, "height": 100} for k in range(images)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "hole"}, {"id": 2, "name": "scratch"}],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_split("val", path, folder)[0]


def perfect(split: CocoSplit, scores: float = 0.9) -> Predictions:
    """What a network would say that sees everything as annotated."""
    truth = GroundTruth.of(split)
    return Predictions.from_coco(
        [
            {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": scores}
            for one in truth.annotations
        ]
    )


SPOILT: dict[Kind, tuple[dict[int, list[float]], dict[int, int]]] = {
    "missing": ({1: BOXES[1], 3: BOXES[3]}, CLASSES),
    "class": (BOXES, CLASSES | {2: 2}),
    "place": (BOXES | {2: [70, 66, 30, 20]}, CLASSES),
    "extra": (BOXES | {4: [50, 5, 15, 15]}, CLASSES | {4: 1}),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_each_kind_is_found_first_and_mended(kind: Kind, tmp_path: Path) -> None:
    right_one = make_split(tmp_path, BOXES, CLASSES)
    wanted = perfect(right_one)
    split = make_split(tmp_path, *SPOILT[kind])
    first, *others = find_label_errors(split, wanted)
    assert first["kind"] == kind
    assert all(one["suspicion"] < first["suspicion"] or one["kind"] == "extra" for one in others)
    content = json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8"))
    mended = corrected(content, [first])
    assert content == json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8")), "a copy is changed"
    found = sorted((one["category_id"], one["bbox"]) for one in mended["annotations"])
    assert found == sorted((CLASSES[n], box) for n, box in BOXES.items())
    assert len({one["id"] for one in mended["annotations"]}) == 3


def test_sound_labels_are_doubted_by_their_support_alone(tmp_path: Path) -> None:
    split = make_split(tmp_path, BOXES, CLASSES)
    assert {one["kind"] for one in find_label_errors(split, perfect(split))} == {"extra"}
    assert {one["kind"] for one in find_label_errors(split, Predictions.empty())} == {"extra"}


def test_an_annotation_is_listed_once_and_repeats_are_no_second_missing_box(tmp_path: Path) -> None:
    split = make_split(tmp_path, BOXES, CLASSES)
    spoilt = make_split(tmp_path, {1: BOXES[1], 3: BOXES[3]}, CLASSES)
    whole = perfect(split)
    twice = Predictions(*(np.concatenate([column, column]) for column in vars(whole).values()))
    found = find_label_errors(spoilt, twice)
    assert [one["kind"] for one in found].count("missing") == 1
    ids = [one["annotation_id"] for one in found if one["annotation_id"] is not None]
    assert len(ids) == len(set(ids)) == 2


def test_suggested_boxes_lie_in_the_image(tmp_path: Path) -> None:
    split = make_split(tmp_path, {1: BOXES[1]}, CLASSES)
    outside: Any = [{"image_id": 1, "category_id": 1, "bbox": [80, 80, 50, 50], "score": 0.8}]
    outside.append({"image_id": 1, "category_id": 1, "bbox": [120, 20, 9, 9], "score": 0.9})
    missing = [one for one in find_label_errors(split, Predictions.from_coco(outside)) if one["kind"] == "missing"]
    assert [one["suggested_bbox"] for one in missing] == [[80, 80, 20, 20]]


def test_unknown_annotations_are_not_guessed(tmp_path: Path) -> None:
    split = make_split(tmp_path, BOXES, CLASSES)
    suggestion = find_label_errors(split, Predictions.empty())[0] | {"annotation_id": 77}
    with pytest.raises(KeyError, match="77"):
        corrected(json.loads((tmp_path / "annotations.json").read_text(encoding="utf-8")), [suggestion])  # type: ignore[list-item]


def test_injected_errors_are_found_by_perfect_predictions(tmp_path: Path) -> None:
    """The benchmark's own injection and count: with perfect predictions nearly all are found first."""
    split = make_split(tmp_path, BOXES, CLASSES, images=20)
    injected = inject(split, seed=0, share=0.05)
    assert sorted(injected.kind_of.values()) == sorted(["class", "place", "extra"] * 3) and len(injected.removed) == 3
    suggestions = [one for one in find_label_errors(injected.split, perfect(split)) if one["suspicion"] > 0.5]
    assert right(suggestions, injected).mean() > 0.8 and right(suggestions, injected).sum() >= 11
