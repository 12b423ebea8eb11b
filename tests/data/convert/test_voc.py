"""Pascal VOC files as they come out of LabelImg, Label Studio, CVAT and Roboflow, and as people keep them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.convert.common import Converted, write_coco
from data.convert.voc import read_voc
from data.errors import UserError


def box(*corners: float | str, name: str = "dent", more: str = "") -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    return f"<object><name>{name}</name>{more}<bndbox>{''.join(f'<{s}>{v}</{s}>' for s, v in sides)}</bndbox></object>"


def write(root: Path, xml: str, image: str, objects: str, *, filename: str | None = None, head: str = "") -> Path:
    """A picture of 64 x 48 and its annotation."""
    for path in (root / xml, root / image):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(root / image)
    name = f"<filename>{Path(image).name if filename is None else filename}</filename>"
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    text = f"<annotation>{name}{head}{size}<segmented>0</segmented>{objects}</annotation>"
    (root / xml).write_text(text, encoding="utf-8")
    return root / xml


def convert(root: Path, **options: Any) -> tuple[dict[str, list[list[float]]], Converted]:
    """Boxes by `split/file name`."""
    target = root.with_name("new")
    converted = write_coco(read_voc(root, **options), target, copy_images=False)
    found: dict[str, list[list[float]]] = {}
    for path in converted.ann_files:
        content = json.loads(path.read_text(encoding="utf-8"))
        split = path.stem.removeprefix("instances").removeprefix("_")
        names = {one["id"]: f"{split}/{one['file_name']}" for one in content["images"]}
        found |= {name: [] for name in names.values()}
        for one in content["annotations"]:
            found[names[one["image_id"]]].append(one["bbox"])
    return found, converted


def labelimg(root: Path) -> None:
    """XML beside the image, an old absolute path, corners never below 1."""
    head = "<folder>fotos</folder><path>C:\\Users\\ana\\a 1.JPG</path><source><database>Unknown</database></source>"
    more = "<pose>Unspecified</pose><truncated>1</truncated><difficult>0</difficult>"
    write(root, "a 1.xml", "a 1.JPG", box(1, 5, 20, 30, more=more), head=head)
    (root / "classes.txt").write_text("dent\n")


def label_studio(root: Path) -> None:
    """File names without suffix, whole corners from 0."""
    head = "<folder>images</folder><source><database>MyDatabase</database></source>"
    head += "<owner><name>Label Studio</name></owner>"
    write(root, "Annotations/0f3c-a.xml", "images/0f3c-a.jpg", box(0, 5, 20, 30), filename="0f3c-a", head=head)


def cvat(root: Path) -> None:
    """File names with folders, corners with fractions, the list `default`, masks, attributes."""
    turned = "<attributes><attribute><name>rotation</name><value>30.0</value></attribute></attributes>"
    flat = (
        "<occluded>0</occluded><attributes><attribute><name>rotation</name><value>0.0</value></attribute></attributes>"
    )
    objects = box(10.5, 5.25, 20.5, 30.25, more=flat) + box("30.0", "5.0", "40.0", "30.0", more=turned)
    head = "<folder></folder><source><database>Unknown</database><image>Unknown</image></source>"
    write(root, "Annotations/s/a.xml", "JPEGImages/s/a.png", objects, filename="s/a.png", head=head)
    write(root, "Annotations/s/b.xml", "JPEGImages/s/b.png", "", filename="s/b.png", head=head)
    for name in ("ImageSets/Main/default.txt", "ImageSets/Main/dent_default.txt", "labelmap.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("s/a\ns/b\n")
    for name in ("SegmentationClass", "SegmentationObject"):
        (root / name / "s").mkdir(parents=True)
        Image.new("P", (64, 48)).save(root / name / "s/a.png")


def cvat_labelme(root: Path) -> None:
    """CVAT's "LabelMe 3.0": polygons in XML, and what was deleted."""
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((10.5, 5.25), (20, 6), (12, 30.5)))
    one = "<object><name>dent</name><deleted>{}</deleted><occluded>no</occluded><polygon>{}</polygon></object>"
    head = "<imagesize><nrows>48</nrows><ncols>64</ncols></imagesize>"
    write(root, "a.xml", "a.jpg", one.format(0, points) + one.format(1, points), head=head)
    (root / "Masks").mkdir()
    Image.new("L", (64, 48)).save(root / "Masks/a_mask_0.png")


def roboflow(root: Path) -> None:
    for split in ("train", "valid", "test"):
        name = f"{split}_png.rf.{split}"
        head = f"<folder></folder><path>{name}.jpg</path><source><database>roboflow.com</database></source>"
        write(root, f"{split}/{name}.xml", f"{split}/{name}.jpg", box(0, 5, 20, 30), head=head)
    (root / "README.roboflow.txt").write_text("exported\n")


ROBOFLOW = {
    f"{split}/{folder}/{folder}_png.rf.{folder}.jpg": [[0, 5, 20, 25]]
    for folder, split in (("train", "train"), ("valid", "val"), ("test", "test"))
}


@pytest.mark.parametrize(
    ("tool", "boxes", "said"),
    [
        (labelimg, {"/a 1.JPG": [[0, 4, 20, 26]]}, "pixel origin: 1 (no box begins at 0"),
        (label_studio, {"/0f3c-a.jpg": [[0, 5, 20, 25]]}, "pixel origin: 0 (a box begins at 0"),
        (cvat, {"/a.png": [[10.5, 5.25, 10, 25], [30, 5, 10, 25]], "/b.png": []}, "1 of 2 have a rotation"),
        (cvat_labelme, {"/a.jpg": [[10.5, 5.25, 9.5, 25.25]]}, "1 of 2 are marked deleted"),
        (roboflow, ROBOFLOW, "pixel origin: 0"),
    ],
)
def test_exports_convert_untouched(tool: Any, boxes: dict[str, list[list[float]]], said: str, tmp_path: Path) -> None:
    root = tmp_path / "src"
    tool(root)
    found, converted = convert(root)
    assert found == boxes
    told = [*converted.notes, *map(str, converted.warnings)]
    assert sum(said in line for line in told) == 1, told
    assert not any("no XML file" in line for line in told), "masks are no images that were left out"


@pytest.mark.parametrize(
    ("corners", "origin", "chosen", "lefts"),
    [
        ([(0, 12, 30, 40), (10, 12, 30, 40)], "auto", "0", [0, 10]),
        ([(5, 12, 30, 40), (10, 12, 30, 40)], "auto", "1", [4, 9]),
        ([(5.5, 12, 30, 40), (10, 12, 30, 40)], "auto", "0", [5.5, 10]),
        ([(5.5, 12, 30, 40), *[(10, 12, 30, 40)] * 11], "auto", "1", [5.5, *[9] * 11]),
        ([(5.5, 12, 30, 40), (10, 12, 30, 40)], "1", "1", [5.5, 9]),
        ([(5, 12, 30, 40), (10, 12, 30, 40)], "0", "0", [5, 10]),
        ([(0, 12, 30, 40), (10, 12, 30, 40)], "1", "1", [0, 9]),
    ],
)
def test_one_pixel_origin_for_all_subsets(
    corners: list[tuple[float, ...]], origin: str, chosen: str, lefts: list[float], tmp_path: Path
) -> None:
    """The first box is in train, the others in val."""
    write(tmp_path / "src", "train/Annotations/a.xml", "train/JPEGImages/a.png", box(*corners[0]))
    write(tmp_path / "src", "val/Annotations/b.xml", "val/JPEGImages/b.png", "".join(box(*c) for c in corners[1:]))
    found, converted = convert(tmp_path / "src", origin=origin)
    assert [left for boxes in found.values() for left, *_ in boxes] == lefts
    assert [line[:15] for line in converted.notes if line.startswith("pixel")] == [f"pixel origin: {chosen}"]


FORMS = ("{}", "{}.jpg", "{}.xml", '"{}"', "{} 1", "{}  -1", '"{}" 1', "JPEGImages/{}.jpg", "sub\\..\\{}")


STEMS = ("d0", "pieza 12", "part 1", "v1.2", "día")


@pytest.mark.parametrize("form", FORMS)
def test_image_sets_with_any_spelling(form: str, tmp_path: Path) -> None:
    for name in (*STEMS, "other"):
        write(tmp_path / "src", f"Annotations/{name}.xml", f"JPEGImages/{name}.jpg", box(0, 5, 20, 30))
    main = tmp_path / "src/ImageSets/Main"
    main.mkdir(parents=True)
    encoding = "utf-16" if form == "{}" else "utf-8-sig"
    (main / "trainval.txt").write_text("\n\n".join(form.format(stem) for stem in STEMS), encoding=encoding)
    (main / "Test.txt").write_text("other\n")
    assert set(convert(tmp_path / "src")[0]) == {*(f"train/{stem}.jpg" for stem in STEMS), "test/other.jpg"}


def test_image_sets_of_two_years(tmp_path: Path) -> None:
    """The same names in both; and what a list alone cannot tell."""
    root = tmp_path / "src"
    for year, split in (("VOC2007", "train"), ("VOC2012", "val")):
        write(root, f"{year}/Annotations/0.xml", f"{year}/JPEGImages/0.jpg", box(0, 5, 20, 30))
        (root / year / "ImageSets/Main").mkdir(parents=True)
        (root / year / f"ImageSets/Main/{split}.txt").write_text("0\n")
    assert set(convert(root)[0]) == {"train/VOC2007/JPEGImages/0.jpg", "val/VOC2012/JPEGImages/0.jpg"}
    (root / "ImageSets").mkdir()
    (root / "ImageSets/train.txt").write_text("VOC2007/Annotations/0\n0\n")
    with pytest.raises(UserError, match=r"ImageSets/train.txt: line 2: 0 may be .*VOC2007.*VOC2012"):
        read = read_voc(root)
        write_coco(read, tmp_path / "newer", copy_images=False)


@pytest.mark.parametrize("skip", [False, True])
def test_difficult_objects_are_told(skip: bool, tmp_path: Path) -> None:
    flag = "<difficult>1</difficult>"
    write(tmp_path / "src", "a.xml", "a.png", box(0, 5, 20, 30) + box(30, 5, 50, 30, more=flag))
    found, converted = convert(tmp_path / "src", skip_difficult=skip)
    assert len(found["/a.png"]) == (1 if skip else 2)
    (said,) = [str(problem) for problem in converted.warnings if "1 of 2 are marked difficult" in problem.found]
    assert ("left out" if skip else "--skip-difficult") in said


def test_turned_boxes(tmp_path: Path) -> None:
    """roLabelImg: centre, size, angle in radians; upright bounds, which may leave the image."""
    numbers = {"cx": 30, "cy": 20, "w": 20, "h": 8, "angle": math.pi / 6}
    turned = "<object><type>robndbox</type><name>dent</name><robndbox>{}</robndbox></object>"
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in numbers.items())
    edge = inner.replace("<cy>20", "<cy>1")
    write(tmp_path / "src", "a.xml", "a.png", turned.format(inner) + turned.format(edge))
    found, converted = convert(tmp_path / "src")
    half_w, half_h = 10 * math.cos(math.pi / 6) + 4 * 0.5, 10 * 0.5 + 4 * math.cos(math.pi / 6)
    assert found["/a.png"][0] == pytest.approx([30 - half_w, 20 - half_h, 2 * half_w, 2 * half_h], abs=1e-3)
    assert found["/a.png"][1] == pytest.approx([30 - half_w, 0, 2 * half_w, 1 + half_h], abs=1e-3)
    assert any("2 of 2 are turned boxes" in problem.found for problem in converted.warnings)


@pytest.mark.parametrize(
    ("declared", "actual"),
    [
        ("GB2312", "gb2312"),
        ("gbk", "gb18030"),
        ("Shift_JIS", "shift_jis"),
        ("UTF-16", "utf-16"),
        ("utf-16", "utf-8"),
        ("UTF-8", "utf-8-sig"),
        ("utf-8", "utf-8"),
    ],
)
def test_encodings(declared: str, actual: str, tmp_path: Path) -> None:
    path = write(tmp_path / "src", "a.xml", "a.png", box(0, 5, 20, 30, name="大"))
    text = f'<?xml version="1.0" encoding="{declared}"?>\n{path.read_text(encoding="utf-8")}'
    path.write_text(text, encoding=actual)
    assert convert(tmp_path / "src")[1].class_names == ("大",)


def test_cvat_s_own_xml_is_named(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    with pytest.raises(UserError, match="Export it as Pascal VOC or COCO"):
        convert(tmp_path / "src")
