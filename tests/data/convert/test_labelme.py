"""labelme files as they come out of labelme and its relatives."""

import base64
import json
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
