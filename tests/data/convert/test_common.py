"""What the converters share: which image is meant, what is cut off, which spellings are one."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from data.convert.common import Converted, ForeignBox, ForeignImage, Gathered, ImageIndex, files_below, write_coco
from data.errors import UserError

Corners = tuple[float, float, float, float]


def make_images(root: Path, *names: str) -> list[Path]:
    """Pictures of 100 x 50."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(root / name)
    return [root / name for name in names]


def convert(tmp_path: Path, boxes: list[ForeignBox], slack_px: float = 0.5, names: tuple[str, ...] = ()) -> Converted:
    (image,) = make_images(tmp_path / "src", "a.png")
    gathered = Gathered(tmp_path / "src", class_names=names or None, slack_px=slack_px)
    gathered.images.append(ForeignImage(image, image.with_suffix(".txt"), None, tuple(boxes)))
    return write_coco(gathered, tmp_path / "new", copy_images=False)


@pytest.mark.parametrize(
    ("asked", "names", "meant"),
    [
        ("x.png", "img/x.png masks/x.png", "img/x.png"),
        ("../masks/x.png", "img/x.png masks/x.png", "masks/x.png"),
        ("..\\img\\x.png", "img/x.png other/x.png", "img/x.png"),
        ("x", "img/x.jpg SegmentationClass/x.png", "img/x.jpg"),
        ("x.png", "img/x.PNG", "img/x.PNG"),
        ("x.png", "img/X.png img/x.png", "img/x.png"),
        ("y.1", "img/y.1.png img/y.png", "img/y.1.png"),
        ("C:\\old\\cam2\\x.png", "cam1/x.png cam2/x.png", None),
        ("cam2/x.png", "cam1/x.png cam2/x.png", "cam2/x.png"),
        ("x.png", "train/x.png val/x.png", None),
        ("x.png", "images/x.png val/images/x.png", "images/x.png"),
        ("gone.png", "img/x.png", "img/x.png"),
        ("", "img/x.png", "img/x.png"),
        ("gone.png", "img/y.png", None),
        ("x.png", "img/x.jpg img/x.bmp", None),
        ("día.png", unicodedata.normalize("NFD", "img/día.png"), unicodedata.normalize("NFD", "img/día.png")),
    ],
)
def test_only_the_image_that_is_surely_meant(asked: str, names: str, meant: str | None, tmp_path: Path) -> None:
    """Seen from ann/x.json."""
    gathered = Gathered(tmp_path)
    found = ImageIndex(make_images(tmp_path, *names.split())).require(
        gathered, asked, tmp_path / "ann/x.json", "imagePath"
    )
    assert found == (None if meant is None else tmp_path / meant)
    assert any(problem.severity == "error" for problem in gathered.problems) == (meant is None)
    is_guess = asked == "gone.png" and meant is not None
    assert any("called like this file" in problem.found for problem in gathered.problems) == is_guess


def test_an_exact_path_out_of_the_folder_is_said(tmp_path: Path) -> None:
    make_images(tmp_path, "all/img/x.png", "all/ann/x.png")
    gathered = Gathered(tmp_path / "all/ann")
    index = ImageIndex(files_below(gathered.root, [".png"]))
    assert index.require(gathered, "../img/x.png", gathered.root / "x.json", "imagePath") is None
    assert f"Give the folder of both as SRC: {tmp_path / 'all'}" in str(gathered.problems[0])


@pytest.mark.parametrize(
    ("corners", "slack_px", "may_leave", "expected"),
    [
        ((-1, -0.5, 50, 20), 0.5, False, [0, 0, 50, 20]),
        ((-1.01, 0, 50, 20), 0.5, False, None),
        ((10, 10, 101, 50.5), 0.5, False, [10, 10, 90, 40]),
        ((10, 10, 100, 50.6), 0.5, False, None),
        ((10, 10, 101.9, 51.9), 2, False, [10, 10, 90, 40]),
        ((-30, 10, 5, 90), 0.5, True, [0, 10, 5, 40]),
        ((-30, 10, -5, 40), 0.5, True, None),
        ((-1, 10, 0, 40), 0.5, False, None),
        ((-0.005, 0, 50, 20), 0.5, False, [0, 0, 50, 20]),
    ],
)
def test_what_is_slightly_outside_is_cut_off_and_counted(
    corners: Corners, slack_px: float, may_leave: bool, expected: list[float] | None, tmp_path: Path
) -> None:
    boxes = [ForeignBox("dent", corners, "line 1", may_leave), ForeignBox("dent", (1, 1, 2, 2), "line 2")]
    if expected is None:
        with pytest.raises(UserError, match=r"line 1: .* leaves the image of 100 x 50"):
            convert(tmp_path, boxes, slack_px)
        return
    converted = convert(tmp_path, boxes, slack_px)
    content = json.loads(converted.ann_files[0].read_text(encoding="utf-8"))
    assert content["annotations"][0]["bbox"] == expected
    said = [str(problem) for problem in converted.warnings if problem.kind == "boxes cut off"]
    assert len(said) == (0 if corners[0] == -0.005 else 1)
    assert all("1 reach outside of their images" in line for line in said)


@pytest.mark.parametrize("corners", [(9, 4, 9, 20), (9, 4, 30, 4), (200, 4, 200, 4), (9, 4, 9.00002, 20)])
def test_a_box_without_area_is_left_out_with_a_warning(corners: Corners, tmp_path: Path) -> None:
    boxes = [ForeignBox("dent", (1, 1, 2, 2), "line 1"), ForeignBox("dent", corners, "line 2")]
    converted = convert(tmp_path, boxes)
    (problem,) = (problem for problem in converted.warnings if problem.kind == "box without area")
    assert converted.num_boxes == 1 and "line 2: the box from corner to corner (" in str(problem)
    assert str(problem).endswith("has no area. It marks nothing and is left out")


@pytest.mark.parametrize("given", [(), ("daño", "dent"), (unicodedata.normalize("NFD", "daño"), "dent")])
def test_spellings_of_one_name_are_one_class(given: tuple[str, ...], tmp_path: Path) -> None:
    names = ("daño", unicodedata.normalize("NFD", "daño"), "dent")
    boxes = [ForeignBox(name, (1, 1, 20, 20 + k), f"line {k}") for k, name in enumerate(names)]
    assert convert(tmp_path, boxes, names=given).class_names == ("daño", "dent")


def test_no_link_leads_out_and_no_pipe_is_opened(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "src"
    make_images(tmp_path, "src/a.png", "other/b.png")
    (root / "inside.png").symlink_to(root / "a.png")
    os.mkfifo(root / "pipe.png")
    assert files_below(root, [".png"]) == [root / "a.png", root / "inside.png"]
    assert "pipe.png: is no file" in caplog.text
    (root / "file.png").symlink_to(tmp_path / "other/b.png")
    (root / "folder").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"(?s)links lead out of the folder.*folder -> .*other\n.*file.png -> .*b.png"):
        files_below(root, [".png"])
