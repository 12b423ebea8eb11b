"""labelme files as they come out of labelme and its relatives."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.convert.common import Converted, write_coco
from data.convert.labelme import read_labelme
from data.errors import UserError

Shape = dict[str, Any]


def shape(label: str, form: str, *points: tuple[float, float], group: int | None = None) -> Shape:
    """As labelme 5 writes it."""
    return {
        "label": label,
        "points": [list(point) for point in points],
        "group_id": group,
        "description": "",
        "shape_type": form,
        "flags": {},
        "mask": None,
    }


def write(root: Path, shapes: list[Shape], name: str = "a.json", image: str = "a.jpg", **changes: Any) -> Path:
    """A picture of 64 x 48 with its file; `imageData` embedded, as labelme does unless told otherwise."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.parent / image.replace("\\", "/")
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(place)
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": image,
        "imageData": base64.b64encode(place.read_bytes()).decode(),
        "imageHeight": 48,
        "imageWidth": 64,
        **changes,
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    return path


def convert(root: Path, names: tuple[str, ...] | None = None) -> tuple[list[tuple[str, list[float]]], Converted]:
    """Class and box of every annotation, in order."""
    target = root.with_name("new")
    converted = write_coco(read_labelme(root, class_names=names), target, copy_images=False)
    content = json.loads(converted.ann_files[0].read_text(encoding="utf-8"))
    known = {one["id"]: one["name"] for one in content["categories"]}
    return [(known[one["category_id"]], one["bbox"]) for one in content["annotations"]], converted


@pytest.mark.parametrize(
    ("shapes", "boxes"),
    [
        ([shape("d", "rectangle", (15, 20), (5, 6))], [[5, 6, 10, 14]]),
        ([shape("d", "rectangle", (15, 20), (5, 20), (5, 6), (15, 6))], [[5, 6, 10, 14]]),
        ([shape("d", "circle", (5, 5), (12, 5))], [[0, 0, 12, 12]]),
        ([shape("d", "polygon", (30, 20), (65.2, 20), (40, 44))], [[30, 20, 34, 24]]),
        ([shape("d", "mask", (5, 6), (14, 19))], [[5, 6, 10, 14]]),
        ([shape("d", "mask", (0, 47), (63, 47))], [[0, 47, 64, 1]]),
        ([shape("d", "rotation", (10, 5), (15, 10), (10, 15), (5, 10))], [[5, 5, 10, 10]]),
        ([shape("d", "polygon", (5, 5), (9, 5), (9, 9)) | {"shape_type": None}], [[5, 5, 4, 4]]),
        (
            [
                shape("d", "polygon", (5, 5), (15, 5), (15, 15), group=1),
                shape("e", "rectangle", (1, 1), (4, 4), group=1),
                shape("d", "polygon", (30, 20), (45, 20), (45, 40), group=1),
                shape("d", "rectangle", (50, 5), (60, 12)),
                shape("d", "rectangle", (50, 25), (60, 32)),
                shape("d", "circle", (60, 40), (63, 40), group=0),
            ],
            [[5, 5, 40, 35], [1, 1, 3, 3], [50, 5, 10, 7], [50, 25, 10, 7], [57, 37, 6, 6]],
        ),
    ],
)
def test_the_box_around_what_was_drawn(shapes: list[Shape], boxes: list[list[float]], tmp_path: Path) -> None:
    write(tmp_path / "src", shapes)
    found, converted = convert(tmp_path / "src")
    assert [box for _, box in found] == boxes
    assert [line for line in converted.notes if "1 shapes are joined" in line] == list(converted.notes)
    assert len(converted.notes) == (len(shapes) > 1)


@pytest.mark.parametrize("names", [None, ("__ignore__", "_background_", "dent")])
def test_what_is_no_class_is_left_out_and_counted(names: tuple[str, ...] | None, tmp_path: Path) -> None:
    ignored = [shape("__ignore__", "point", (5, 5)), shape("__ignore__", "rectangle", (5, 5), (40, 30))]
    write(tmp_path / "src", [*ignored, shape("dent", "rectangle", (5, 5), (15, 15))])
    found, converted = convert(tmp_path / "src", names)
    assert found == [("dent", [5, 5, 10, 10])] and converted.class_names == ("dent",)
    assert any("2 are labelled" in problem.found for problem in converted.warnings)


@pytest.mark.parametrize("form", ["line", "linestrip", "point", "points"])
def test_shapes_without_area_are_errors(form: str, tmp_path: Path) -> None:
    write(tmp_path / "src", [shape("d", form, (5, 5), (40, 30)), shape("d", "rectangle", (5, 5), (15, 15))])
    with pytest.raises(UserError, match=f"shape 1 .d.: is a {form}, which has no area"):
        convert(tmp_path / "src")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_form_of_unicode_is_read(encoding: str, tmp_path: Path) -> None:
    path = write(tmp_path / "src", [shape("划痕", "rectangle", (5, 5), (15, 15))])
    path.write_text(path.read_text(encoding="utf-8"), encoding=encoding)
    assert convert(tmp_path / "src")[0] == [("划痕", [5, 5, 10, 10])]


def test_odd_values_are_told(tmp_path: Path) -> None:
    box = shape("d", "rectangle", (5, 5), (15, 15))
    write(tmp_path / "src", [box | {"label": "\ud800"}], name="0.json", image="0.png")
    write(tmp_path / "src", [box | {"shape_type": ["mask"]}], name="1.json", image="1.png", imageWidth=True)
    raw = os.fsdecode(b"\xff.png")
    write(tmp_path / "src", [box], name="2.json", image="2.png", imageHeight=10**400, imagePath=raw)
    (tmp_path / "src/2.png").rename(tmp_path / "src" / raw)
    with pytest.raises(UserError) as raised:
        convert(tmp_path / "src")
    assert "has 3 errors" in str(raised.value)
    for message in ("name: '\\ud800' holds what is no text", "is a ['mask'], which has no area", "\\udcff.png' holds"):
        assert message in str(raised.value)


def test_the_exact_path_wins_in_every_folder(tmp_path: Path) -> None:
    """Masks of the same name, the same name in each folder, and paths as Windows writes them."""
    root = tmp_path / "src"
    for number, cam in enumerate(("cam1", "cam2"), start=1):
        box = [shape("d", "rectangle", (number, 1), (20, 20))]
        write(root, box, f"{cam}/labels/0.json", "..\\images\\0.png")
        write(root, box, f"{cam}/1.json", "1.png")
        (root / cam / "masks").mkdir()
        Image.new("L", (64, 48)).save(root / cam / "masks/0.png")
    converted = convert(root)[1]
    content = json.loads(converted.ann_files[0].read_text(encoding="utf-8"))
    names = {one["id"]: one["file_name"] for one in content["images"]}
    found = {names[one["image_id"]]: one["bbox"][0] for one in content["annotations"]}
    assert found == {"cam1/1.png": 1, "cam1/images/0.png": 1, "cam2/1.png": 2, "cam2/images/0.png": 2}
    assert all(one.kind == "same image twice in a split" for one in converted.warnings), (
        "masks are no images that were left out"
    )


def test_what_cannot_be_decided_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "src"
    box = [shape("d", "rectangle", (5, 5), (15, 15))]
    old = "C:\\Users\\ana\\x.png"
    for folder in ("a", "b"):
        write(root, box, f"{folder}/x.json", "x.png", imagePath=old)  # beside the file: decided
    write(root, box, "c/x.json", "y.png", imagePath=old)
    write(root, box, "d/p.json", "p q.png", imagePath="p%20q.png")
    write(root, box, "e/first.json", "z.png")
    write(root, box, "e/second.json", "z.png")
    with pytest.raises(UserError) as raised:
        convert(root)
    assert "has 3 errors" in str(raised.value)
    for message in (
        f"c/x.json: imagePath: the image {old!r} may be {root / 'a/x.png'}, {root / 'b/x.png'}",
        "d/p.json: imagePath: the image 'p%20q.png' is not below the folder; 'p q.png' is: the name is percent-encoded",
        "z.png has two annotation files",
    ):
        assert message in str(raised.value)
