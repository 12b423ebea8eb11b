"""Pictures with boxes: they are drawn where the boxes are, and odd input does no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw

from data.coco import CocoSplit
from data.splits import read_splits
from engine.metrics import Prediction
from engine.pictures import (
    class_colour,
    draw_boxes,
    grid,
    prediction_pictures,
)
from tests.support.coco_files import CocoFiles, data_config

NAMES = ("PERFORACIÓN", "RAYÓN", "ROTURA")


def grey(height: int = 400, width: int = 400) -> Any:
    return np.full((height, width, 3), 128, np.uint8)


def test_the_edges_of_a_box_have_the_class_colour() -> None:
    image = grey()
    picture = draw_boxes(image, [[100, 150, 200, 260]], [1], NAMES)
    assert picture.shape == image.shape and picture.dtype == np.uint8
    for y, x in [(150, 180), (259, 150), (200, 100), (200, 199)]:
        assert tuple(picture[y, x]) == class_colour(1)
    assert (picture[160:250, 110:190] == 128).all(), "the inside stays visible"
    assert (image == 128).all(), "the input is not drawn on"


def test_small_images_are_enlarged_with_their_boxes() -> None:
    picture = draw_boxes(grey(160, 200), np.array([[20.0, 30.0, 60.0, 70.0]]), [0], NAMES, [0.5])
    assert picture.shape == (320, 400, 3)
    assert tuple(picture[60 + 40, 40]) == class_colour(0)
    assert tuple(picture[139, 80]) == class_colour(0)


@pytest.mark.parametrize(
    "box",
    [[5, 5, 6, 6], [0, 0, 400, 400], [-50, -50, 900, 900], [500, 500, 600, 600], [399, 399, 400, 400], [9, 9, 9, 9]],
)
def test_boxes_of_one_pixel_and_beyond_the_border(box: list[float]) -> None:
    picture = draw_boxes(grey(), [box], [2], NAMES, [0.1])
    assert (picture != 128).any()
    assert (draw_boxes(grey(), [[np.nan, 0, 9, np.inf]], [0], NAMES) == 128).all(), "not finite: left out"
    assert draw_boxes(grey(8, 1500), [], [], NAMES).shape == (8, 1500, 3), "a thin strip is not blown up"


def test_names_scores_and_accents_are_written() -> None:
    def text_of(name: str, scores: list[float] | None = None) -> Any:
        return draw_boxes(grey(), [[100, 100, 200, 200]], [0], [name], scores)

    assert not np.array_equal(text_of("RAYÓN"), text_of("RAYON"))
    assert not np.array_equal(text_of("Ó"), text_of("Ñ")), "both missing from a font would look alike"
    assert not np.array_equal(text_of("RAYÓN"), text_of("RAYÓN", [0.5]))


def test_the_label_stays_inside_at_the_top_right_corner() -> None:
    picture = draw_boxes(grey(), [[390, 0, 400, 30]], [0], ["CONTAMINACIÓN"])
    assert tuple(picture[34, 398]) == class_colour(0), "below the box, moved to the left"
    picture = draw_boxes(grey(), [[10, 50, 90, 90], [10, 50, 90, 90]], [0, 1], NAMES, [0.9, 0.2])
    assert tuple(picture[70, 10]) == class_colour(0), "the best is drawn on top"


def test_a_crowd_has_numbers_and_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, labels = [[190 + k, 190 + k, 220 + 2 * k, 240 - k] for k in range(20)], [k % 2 for k in range(20)]
    scores = [0.9 - k / 100 for k in range(20)]
    picture = draw_boxes(grey(), boxes, labels, NAMES, scores, lang="es")
    assert picture.shape[0] > 400 and (picture[-1] == 255).all(), "the key is below"
    assert np.count_nonzero((picture == 128).all(-1)) > 0.8 * 400 * 400, "the image is not covered"
    assert draw_boxes(grey(), boxes, labels, NAMES, scores, same_size=True).shape == (400, 400, 3)
    strip = draw_boxes(grey(3000, 40), [[5, 5, 30, 30]], [0], NAMES)
    assert strip.shape[1] > 40, "room for the name, which is wider than the image"
    written: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, **how: written.append(text))
    draw_boxes(grey(), boxes, labels, NAMES, scores, lang="es")
    codes = [f"{1 + k % 2}: 0,{90 - k}" for k in range(20)]
    assert sorted(written) == sorted([*codes, "1", "2", *NAMES[:2]])
    written.clear()
    draw_boxes(grey(), boxes, labels, NAMES)
    assert sorted(written) == sorted([*(f"{1 + k % 2}" for k in range(20)), "1", "2", *NAMES[:2]])


def test_grid_of_different_sizes() -> None:
    sheet = grid([grey(10, 20), grey(30, 10), grey(30, 20)])
    assert sheet.shape == (2 * 36 + 6, 2 * 26 + 6, 3)
    assert (sheet == 128).all(-1).sum() == 10 * 20 + 30 * 10 + 30 * 20
    assert grid([grey(10, 10)] * 3, columns=3).shape == (22, 54, 3)


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    """Three images, one box, the first with a long name."""
    files = CocoFiles(tmp_path, num_images=3, boxes_per_image=0, size_wh=(160, 160))
    files.add_box(1, [10, 40, 50, 50], files.content["categories"][0]["id"])
    name = "a_file_with_a_very_long_name_that_does_not_fit_over_one_panel_of_the_sheet.png"
    (files.img_folder / files.content["images"][0]["file_name"]).rename(files.img_folder / name)
    files.content["images"][0]["file_name"] = name
    files.save()
    (found,), _ = read_splits(data_config(tmp_path), ["train"])
    return found


def predictions(split: CocoSplit) -> list[Prediction]:
    ids = split.classes.category_ids
    return [
        {"image_id": 1, "category_id": ids[0], "bbox": [12, 40, 50, 50], "score": 0.8},
        {"image_id": 1, "category_id": ids[1], "bbox": [100, 100, 50, 50], "score": 0.1},
    ]


def test_truth_and_sure_predictions_side_by_side(split: CocoSplit) -> None:
    pictures = prediction_pictures(split, predictions(split), split.classes, count=8, panel_px=160)
    assert len(pictures) == 3, "each image once"
    image, truth, found = (pictures[0][:, left : left + 160] for left in (6, 172, 338))
    orange, blue = (np.array(class_colour(k)) for k in (0, 1))
    assert not (image == orange).all(-1).any()
    assert (truth == orange).all(-1).any()
    assert (found == orange).all(-1).any()
    assert not (pictures[0] == blue).all(-1).any(), "a score of 0.1 is not shown"
    assert not (pictures[1] == orange).all(-1).any()
    (all_of_them, *_) = prediction_pictures(split, predictions(split), split.classes, count=1, min_score=0.05)
    assert (all_of_them == blue).all(-1).any()


def test_drawn_numbers_and_words_are_in_the_language(split: CocoSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, at, text, **how: written.append(text))
    prediction_pictures(split, predictions(split), split.classes, count=1, lang="es", panel_px=640)
    assert {"anotado", "predicho (confianza ≥ 0,30)", f"{split.classes.names[0]} 0,80"} <= {*written}
    draw_boxes(grey(), [[2, 2, 30, 30]], [0], ["a"], [0.5], lang="en")
    assert written[-1] == "a 0.50"
    for lang, name in (("en", "class 7"), ("es", "clase 7")):
        draw_boxes(grey(), [[2, 2, 30, 30]], [7], ["a"], lang=lang)
        assert written[-1] == name


def test_names_that_are_no_line_of_text() -> None:
    drawn = [draw_boxes(grey(), [[2.0, 2, 30, 30]], [0], [name]) for name in ("a\nb", r"a\nb", "\ud800\x1b")]
    np.testing.assert_array_equal(drawn[0], drawn[1])
