"""The gallery shows what was missed and what was imagined, where it is; bad files and odd boxes do no harm."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from analysis import gallery
from analysis.errors import Finding
from analysis.gallery import write_gallery
from analysis.style import BoxNames, new_figure
from data.coco import CocoSplit, read_split
from data.images import decode_image
from engine.metrics import Prediction
from tests.support.analysis_factory import changed, make_analysis, make_findings
from tests.support.coco_files import CocoFiles
from texts import texts_of

NAMES = ("holes", "scratches")


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    files = CocoFiles(tmp_path, "val", num_images=4).save()
    return read_split("val", files.ann_file, files.img_folder)[0]


def analysis_of(findings: list[Finding], score: float = 0.4) -> Any:
    return changed(make_analysis(NAMES, findings=findings), confusion={"score": score})


def predictions_of(split: CocoSplit, score: float) -> list[Prediction]:
    return [Prediction(image_id=i.id, category_id=1, bbox=[10.0, 8.0, 12.0, 9.0], score=score) for i in split.images]


def missed_boxes(split: CocoSplit) -> list[Finding]:
    return [
        Finding("missed", image.id, int(split.labels[row]), 0.0, tuple(split.boxes_xywh[row].tolist()), "missed")
        for image in split.images
        for row in range(image.rows.start, image.rows.stop)
    ]


def test_one_sheet_a_kind_as_png_and_pdf(tmp_path: Path, split: CocoSplit) -> None:
    findings = make_findings([image.id for image in split.images])
    files = write_gallery(
        analysis_of(findings), split, predictions_of(split, 0.9), tmp_path / "out", "es", captions=False
    )
    assert [sheet.name for sheet in files.sheets] == ["gallery_missed", "gallery_false_alarm"]
    assert [sheet.title for sheet in files.sheets] == ["Peores cajas no detectadas", "Peores falsas alarmas"]
    assert files.left_out == ()
    for sheet in files.sheets:
        assert sheet.pdf.read_bytes().startswith(b"%PDF")
        assert sheet.png.with_suffix(".txt").read_text(encoding="utf-8") == f"{sheet.description}\n"
        with Image.open(sheet.png) as image:
            assert image.width == pytest.approx(1260, abs=1)
    assert "0,80 · fondo" in files.sheets[1].description and "val_1.png" in files.sheets[1].description


@pytest.mark.parametrize("damage", ["no image", "no memory"])
def test_an_image_that_cannot_be_read_is_left_out_and_said(
    tmp_path: Path, split: CocoSplit, damage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(path: Path) -> Any:
        if damage == "no memory" and path == split.images[1].path:
            raise MemoryError
        return decode_image(path)

    monkeypatch.setattr(gallery, "decode_image", decode)
    split.images[1].path.write_bytes(b"no image")
    findings = [f for f in make_findings([image.id for image in split.images]) if f.kind == "missed"]
    with caplog.at_level(logging.WARNING):
        files = write_gallery(analysis_of(findings), split, [], tmp_path / "out", "en")
    (reason,) = files.left_out
    said = {"no image": "cannot be read as an image", "no memory": "not enough memory"}[damage]
    assert "val_2.png" in reason and said in reason and "val_2.png" in caplog.text
    assert "val_2.png" not in files.sheets[0].description and "3 crops" in files.sheets[0].description
    for nothing in ([], make_findings([999])):
        assert write_gallery(analysis_of(nothing), split, [], tmp_path / "out", "en").sheets == ()


def crops_of(split: CocoSplit, findings: list[Finding], predictions: list[Prediction]) -> dict[int, Any]:
    return gallery._crops(findings, split, predictions, 0.4, texts_of("en", "gallery"))[0]


def test_truth_predictions_and_finding_are_drawn_once(split: CocoSplit) -> None:
    finding = missed_boxes(split)[0]
    alarm = Finding("false_alarm", split.images[0].id, 0, 0.9, (10.0, 8.0, 12.0, 9.0), "background")
    weak = predictions_of(split, 0.1)
    crops = crops_of(split, [finding, alarm], [*predictions_of(split, 0.9), *weak])
    truths = split.images[0].rows.stop - split.images[0].rows.start
    for k in (0, 1):
        boxes = crops[k].boxes
        assert sum(box.is_truth for box in boxes) == truths
        assert sum(not box.is_truth for box in boxes) == 1, "below the threshold nothing is drawn"
        assert [box.is_finding for box in boxes] == [False] * (len(boxes) - 1) + [True]
    assert crops[0].boxes[-1].is_truth and not crops[1].boxes[-1].is_truth
    assert crops[1].boxes[-1].text == "holes 0.90"


def test_captions(split: CocoSplit) -> None:
    image_id = split.images[0].id
    box = (5.0, 5.0, 9.0, 9.0)
    findings = [
        Finding("missed", image_id, 1, 0.0, box, "missed"),
        Finding("missed", image_id, 1, 0.31, box, "missed"),
        Finding("false_alarm", image_id, 0, 0.8, box, "localisation"),
        Finding("false_alarm", image_id, 0, 0.7, box, "duplicate", first_score=0.82, first_iou=0.71),
    ]
    captions = [crop.caption for _, crop in sorted(crops_of(split, findings, []).items())]
    expected: tuple[str, ...]
    expected = ("scratches · nothing near", "scratches · touched with confidence 0.31", "holes 0.80 · localisation")
    expected += ("holes 0.70 · duplicate\nof the box with 0.82 (IoU with it 0.71)",)
    assert captions == [*expected]


def test_crops_show_the_pixels_around_the_box_and_own_them(split: CocoSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.zeros((900, 1200, 3), np.uint8)
    large[300:310, 500:510] = 255
    monkeypatch.setattr(gallery, "decode_image", lambda path: large)
    small = Finding("missed", split.images[0].id, 0, 0.0, (500.0, 300.0, 10.0, 10.0), "missed")
    whole = small._replace(box_xywh=(0.0, 0.0, 1200.0, 900.0))
    crops = crops_of(split, [small, whole], [])
    left, top, right, bottom = crops[0].window_xyxy
    assert (right - left, bottom - top) == (96, 96) and crops[0].pixels.shape == (96, 96, 3)
    assert (crops[0].pixels[300 - top : 310 - top, 500 - left : 510 - left] == 255).all()
    assert crops[1].window_xyxy == (0, 0, 1200, 900) and max(crops[1].pixels.shape) == 480
    assert not any(np.shares_memory(crop.pixels, large) for crop in crops.values())


def test_names_stay_in_the_crop(split: CocoSplit) -> None:
    """A box at the right edge is named to its left, not beyond the picture."""
    width = split.images[0].width
    alarm = Finding("false_alarm", split.images[0].id, 0, 0.9, (width - 6.0, 8.0, 6.0, 9.0), "background")
    (crop,) = crops_of(split, [alarm], []).values()
    cell = new_figure(5.0).subplots()
    gallery._draw_crop(cell, crop)
    cell.figure.canvas.draw()
    (names,) = [artist for artist in cell.artists if isinstance(artist, BoxNames)]
    assert "holes 0.90" in [text.get_text() for text in names.texts]
    extents = [text.get_window_extent() for text in names.texts]
    assert all(cell.bbox.x0 <= one.x0 and one.x1 <= cell.bbox.x1 for one in extents)


@given(
    *(st.floats(-500, 3000) for _ in range(2)),
    *(st.floats(0, 3000) for _ in range(2)),
    *(st.integers(1, 2000) for _ in range(2)),
)
def test_windows_lie_in_the_image(x: float, y: float, w: float, h: float, width: int, height: int) -> None:
    left, top, right, bottom = gallery.window_around((x, y, w, h), (width, height))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


def test_odd_boxes_are_drawn(tmp_path: Path, split: CocoSplit) -> None:
    image_id = split.images[0].id
    boxes = [(900.0, 900.0, 5.0, 5.0), (-50.0, -50.0, 500.0, 500.0), (3.0, 3.0, 0.0, 0.0)]
    findings = [Finding("false_alarm", image_id, 1, 0.5, box, "both") for box in boxes]
    files = write_gallery(analysis_of(findings), split, [], tmp_path, "en")
    assert "3 crops" in files.sheets[0].description
