"""`python -m data.convert voc|yolo|labelme`, in this process."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.convert.__main__ import main
from data.convert.voc import parse_xml
from tests.support.coco_files import CocoFiles
from tests.support.foreign_formats import write_labelme, write_voc, write_yolo

Outcome = tuple[int, str, str]
Capture = pytest.CaptureFixture[str]
WRITERS: dict[str, Callable[[CocoFiles, Path], Path]] = {
    "voc": write_voc,
    "yolo": write_yolo,
    "labelme": write_labelme,
}


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    """Four images, the third without a box; one box starts at the very corner."""
    files = CocoFiles(tmp_path / "coco")
    kept = [one for one in files.content["annotations"] if one["image_id"] != 3]
    files.content["annotations"] = kept
    files.add_box(1, [0, 0, 48, 40], 2)
    return files


def run(capsys: Capture, *arguments: str | Path) -> Outcome:
    code = main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def boxes_of(content: dict[str, Any]) -> dict[str, list[tuple[str, list[float]]]]:
    """File name -> class names and boxes, in order."""
    names = {one["id"]: one["name"] for one in content["categories"]}
    images = {one["id"]: one["file_name"] for one in content["images"]}
    found: dict[str, list[tuple[str, list[float]]]] = {name: [] for name in images.values()}
    for one in content["annotations"]:
        found[images[one["image_id"]]].append((names[one["category_id"]], one["bbox"]))
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("form", WRITERS)
def test_round_trip(form: str, files: CocoFiles, tmp_path: Path, capsys: Capture) -> None:
    source = WRITERS[form](files, tmp_path / form)
    before = snapshot(source)
    code, out, err = run(capsys, form, source, tmp_path / "new")
    assert code == 0, err
    content = json.loads((tmp_path / "new/annotations/instances.json").read_text(encoding="utf-8"))
    expected, found = boxes_of(files.content), boxes_of(content)
    assert set(found) == set(expected)
    for name, boxes in expected.items():
        assert [label for label, _ in found[name]] == [label for label, _ in boxes]
        for (_, one), (_, other) in zip(found[name], boxes, strict=True):
            assert one == pytest.approx(other, abs=1e-3)
        assert (tmp_path / "new/images" / name).read_bytes() == (files.img_folder / name).read_bytes()
    assert [(one["width"], one["height"]) for one in content["images"]] == [(48, 40)] * 4
    assert snapshot(source) == before, "the source is untouched"
    assert "4 images, 7 boxes; classes: 1=holes, 2=scratches" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["coco", form, "new"])


def test_images_can_stay_and_splits_are_kept(files: CocoFiles, tmp_path: Path, capsys: Capture) -> None:
    source = write_yolo(files, tmp_path / "yolo")
    for number, split in enumerate(("train", "train", "valid", "test"), start=1):
        for kind, suffix in (("images", "png"), ("labels", "txt")):
            path = source / kind / f"train_{number}.{suffix}"
            path.parent.joinpath(split).mkdir(exist_ok=True)
            if path.exists():
                path.rename(path.parent / split / path.name)
    code, out, err = run(capsys, "yolo", source, tmp_path / "new", "--reference")
    assert code == 0, err
    folder = tmp_path / "new/annotations"
    assert sorted(path.name for path in folder.iterdir()) == [f"instances_{s}.json" for s in ("test", "train", "val")]
    train = json.loads((folder / "instances_train.json").read_text(encoding="utf-8"))
    assert [one["file_name"] for one in train["images"]] == ["train/train_1.png", "train/train_2.png"]
    assert not (tmp_path / "new/images").exists() and f"img_folder: {(source / 'images').as_posix()}" in out
    assert "1 of 4 images have no label file" in out


def test_voc_image_sets(files: CocoFiles, tmp_path: Path, capsys: Capture) -> None:
    source = write_voc(files, tmp_path / "voc")
    sets = source / "ImageSets/Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("train_1\ntrain_2\n")
    (sets / "val.txt").write_text("train_3\ntrain_4\n")
    code, _, err = run(capsys, "voc", source, tmp_path / "new")
    assert code == 0, err
    assert len(list((tmp_path / "new/annotations").iterdir())) == 2
    (sets / "val.txt").write_text("train_2\ngone\n")
    code, _, err = run(capsys, "voc", source, tmp_path / "newer")
    assert code == 2
    assert "train_2 is in train.txt too" in err and "line 2: there is no gone.xml" in err


BOMB = """<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]><annotation>&c;</annotation>"""
FILE_READER = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize("text", [BOMB, FILE_READER])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_entities_is_refused(text: str, encoding: str) -> None:
    with pytest.raises(ValueError, match="document type"):
        parse_xml(text.encode(encoding))


def test_all_faults_of_voc_at_once(files: CocoFiles, tmp_path: Path, capsys: Capture) -> None:
    source = write_voc(files, tmp_path / "voc")
    folder = source / "Annotations"
    (folder / "bomb.xml").write_text(BOMB)
    (folder / "broken.xml").write_text("<annotation><object></annotation>")
    (folder / "other.xml").write_text("<svg/>")
    (folder / "gone.xml").write_text("<annotation><filename>gone.jpg</filename></annotation>")
    outside = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>60</xmax><ymax>20</ymax></bndbox>"
    half = "<bndbox><xmin>5</xmin><ymin>nan</ymin><ymax>20</ymax></bndbox>"
    objects = f"<object><name>holes</name>{outside}</object><object>{half}</object>"
    turned = (
        "<object><name>Holes</name><bndbox><xmin>9</xmin><ymin>5</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object>"
    )
    size = "<size><width>480</width><height>40</height></size>"
    (folder / "train_1.xml").write_text(f"<annotation>{size}{objects}{turned}</annotation>")
    (source / "JPEGImages/train_2.png").write_bytes(b"nonsense")
    code, _, err = run(capsys, "voc", source, tmp_path / "new")
    assert code == 2 and not (tmp_path / "new").exists()
    for message in (
        "bomb.xml: file: it has a document type",
        "broken.xml: file: it is no valid XML",
        "other.xml: file: begins with <svg>",
        "gone.xml: filename: the image 'gone.jpg' is not below the folder",
        "train_1.xml: object 1 (holes): the box from corner to corner (4, 4, 60, 20) leaves the image of 48 x 40",
        "train_1.xml: object 2: it has no <name>",
        "train_1.xml: object 2: ymin, xmax of <bndbox>: expected finite numbers",
        "train_1.xml: object 3 (Holes): the box from corner to corner (8, 4, 5, 9) has its corners exchanged",
        "train_1.xml: size: says 480 x 40 pixels, but train_1.png has 48 x 40",
        "'Holes' (1 boxes), 'holes' (",
        "train_2.png: cannot be read as an image",
    ):
        assert message in err, (message, err)
    assert "11 errors; nothing was written" in err and ".." not in err.replace(str(tmp_path), "")


def test_all_faults_of_yolo_at_once(files: CocoFiles, tmp_path: Path, capsys: Capture) -> None:
    source = write_yolo(files, tmp_path / "yolo")
    lines = [
        "7 .5 .5 .1 .1",
        "0 .5 .5 .1",
        "0 .5 .5 x .1",
        "0 .5 .5 48 .1",
        "1.5 .5 .5 .1 .1",
        "0 .9 .5 .4 .1",
        "0 .5 .5 0 .1",
    ]
    (source / "labels/train_1.txt").write_text("\n".join(lines))
    (source / "labels/gone.txt").write_text("0 .5 .5 .1 .1\n")
    code, _, err = run(capsys, "yolo", source, tmp_path / "new")
    assert code == 2 and not (tmp_path / "new").exists()
    for message in (
        "line 1: the class index is 7, but there are 2 classes (0 to 1)",
        "line 2: is '0 .5 .5 .1', expected: class index, then",
        "line 3: is '0 .5 .5 x .1'",
        "line 4: '0 .5 .5 48 .1' is not in fractions",
        "line 5: the class index is 1.5",
        "line 6: the box from corner to corner (33.6, 18, 52.8, 22) leaves the image",
        "gone.txt: file: there is no image gone.* for it",
        "7 errors",  # without the last line, whose box has no area
    ):
        assert message in err, (message, err)
    (source / "data.yaml").unlink()
    assert "nothing names the classes" in run(capsys, "yolo", source, tmp_path / "new")[2]
    (source / "classes.txt").write_text("holes\n\nscratches\n")
    assert "class 1 has no name" in run(capsys, "yolo", source, tmp_path / "new")[2]
    (source / "data.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\n")
    assert "data.yaml: names no classes" in run(capsys, "yolo", source, tmp_path / "new")[2]


def test_yolo_images_of_one_stem(files: CocoFiles, tmp_path: Path, capsys: Capture) -> None:
    """Otherwise one of them would silently count as free of objects."""
    source = write_yolo(files, tmp_path / "yolo")
    Image.open(source / "images/train_1.png").save(source / "images/train_1.bmp")
    code, _, err = run(capsys, "yolo", source, tmp_path / "new")
    assert code == 2 and "train_1.txt: file: stands for train_1.bmp and for train_1.png" in err


def test_all_faults_of_labelme_at_once(files: CocoFiles, tmp_path: Path, capsys: Capture) -> None:
    source = write_labelme(files, tmp_path / "labelme")
    shapes: list[Any] = [
        {"label": "holes", "shape_type": "point", "points": [[1, 2]]},
        {"label": "holes", "shape_type": "polygon", "points": [[1, 2], [3, 4]]},
        {"label": "holes", "shape_type": "rectangle", "points": [[1, 2], [3, float("nan")]]},
        {"label": "holes", "shape_type": "rectangle", "points": [[1, 2], [3, 10**400]]},
        {"label": " ", "shape_type": "rectangle", "points": [[1, 2], [3, 4]]},
        "nonsense",
        {"label": True, "shape_type": "ellipse", "points": [[1, 2], [3, 4]]},
        {"label": "holes", "shape_type": "circle", "points": [[20, 20], [23, 24]]},
        {"label": 3, "shape_type": "rectangle", "points": [[1, 2], [3, 4]]},
    ]
    path = source / "json/train_1.json"
    content = json.loads(path.read_text(encoding="utf-8")) | {"shapes": shapes}
    path.write_text(json.dumps(content), encoding="utf-8")
    (source / "json/settings.json").write_text("{}")
    (source / "json/broken.json").write_text("{")
    gone = {"shapes": [], "imagePath": "gone.png", "imageData": "abc"}
    (source / "json/gone.json").write_text(json.dumps(gone))
    code, _, err = run(capsys, "labelme", source, tmp_path / "new")
    assert code == 2 and not (tmp_path / "new").exists()
    for message in (
        "shape 1 (holes): shape_type is 'point', expected one that has an area: rectangle, polygon, mask, circle. Draw",
        "shape 3 (holes): points of a rectangle: expected 2 or more pairs of finite numbers",
        "shape 4 (holes): points of a rectangle: expected 2 or more pairs of finite numbers",
        "shape 5: label is ' ', expected text",
        "shape 6: label is None, expected text",
        "shape 7: label is True, expected text",
        "shape 7: shape_type is 'ellipse', expected one that has an area",
        "settings.json: file: has no list `shapes`",
        "broken.json: file: cannot be read as JSON",
        "the image 'gone.png' is not below the folder; the JSON file embeds a copy of it",
    ):
        assert message in err, (message, err)
    for name in ("settings", "broken", "gone"):
        (source / f"json/{name}.json").unlink()
    path.write_text(json.dumps(content | {"shapes": shapes[-2:]}), encoding="utf-8")
    assert run(capsys, "labelme", source, tmp_path / "new")[0] == 0
    made = json.loads((tmp_path / "new/annotations/instances.json").read_text(encoding="utf-8"))
    assert boxes_of(made)["train_1.png"] == [("holes", [15.0, 15.0, 10.0, 10.0]), ("3", [1.0, 2.0, 2.0, 2.0])]


def test_boxes_on_a_rotated_image(files: CocoFiles, tmp_path: Path, capsys: Capture) -> None:
    source = write_voc(files, tmp_path / "voc")
    exif = Image.Exif()
    exif[0x0112] = 6
    path = source / "JPEGImages/train_3.png"
    Image.open(path).save(path, exif=exif)
    code, _, err = run(capsys, "voc", source, tmp_path / "new")
    assert code == 2 and "has 40 x 48 once its EXIF orientation 6 is applied" in err


def test_nothing_is_overwritten(
    files: CocoFiles, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_voc(files, tmp_path / "voc")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/mine.txt").write_text("mine")
    assert "exists and is not an empty folder" in run(capsys, "voc", source, tmp_path / "new")[2]
    assert "lies in the data set" in run(capsys, "voc", source, source / "coco")[2]
    assert "gone: does not exist" in run(capsys, "voc", tmp_path / "gone", tmp_path / "newer")[2]
    (tmp_path / "list.txt").write_text("scratches\n")
    arguments = ("voc", source, tmp_path / "newer", "--classes", tmp_path / "list.txt")
    assert "'holes' (" in (err := run(capsys, *arguments)[2]) and "is not among the given classes scratches" in err

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    code, _, err = run(capsys, "voc", source, tmp_path / "newer")
    assert code == 2 and "No space left on device" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "list.txt", "new", "voc"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"]
