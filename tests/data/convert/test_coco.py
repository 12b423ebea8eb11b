"""COCO files of other tools: what is repaired and said, what is an error, and exports as they come."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest

from data.convert.coco import read_coco
from tests.data.convert.test_convert import boxes_of, run
from tests.support.foreign_formats import write_tree

Capture = pytest.CaptureFixture[str]
Content = dict[str, Any]
IMAGES = "images/pieza_ñ.jpg images/b.jpg"


def content(*names: str) -> Content:
    """Sound: every image with a box of each class, the second a crowd; the classes' ids have gaps."""
    images = [{"id": 7 + k, "file_name": name, "width": 100, "height": 50} for k, name in enumerate(names)]
    boxes = ([10.0, 5.0, 40.0, 20.0], 150.0, 0, 2), ([60.0, 30.0, 20.0, 20.0], 400.0, 1, 5)
    annotations: list[Content] = []
    for image in images:
        for bbox, area, crowd, category in boxes:
            one = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": [*bbox]}
            annotations.append({**one, "area": area, "iscrowd": crowd})
    categories = [{"id": 5, "name": "abolladura"}, {"id": 2, "name": "grieta"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def each(key: str, change: Callable[[Content], object]) -> Callable[[Content], None]:
    """A change of every entry of a list."""

    def apply(whole: Content) -> None:
        for entry in whole[key]:
            change(entry)

    return apply


def polygon(entry: Content) -> None:
    x, y, width, height = entry.pop("bbox")
    entry["segmentation"] = [[x, y, x + width, y], [x + width, y + height, x, y + height / 2]]


def mask(entry: Content) -> None:
    """Compressed for crowds; in both forms a run is of a column, as COCO has it."""
    x, y, width, height = map(int, entry.pop("bbox"))
    pixels = np.zeros((50, 100), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    starts = np.flatnonzero(np.diff(pixels.ravel("F"), prepend=0, append=0))
    runs = np.diff(starts, prepend=0, append=pixels.size).tolist()
    counts = pycocotools.mask.encode(pixels)["counts"].decode() if entry["iscrowd"] else runs
    entry["segmentation"] = {"size": [50, 100], "counts": counts}


def corners(entry: Content) -> None:
    x, y, width, height = entry["bbox"]
    entry.update(bbox=[x, y, x + width, y + height], area=width * height)


def fractions(entry: Content) -> None:
    entry["bbox"] = [value / side for value, side in zip(entry["bbox"], (100, 50) * 2, strict=True)]


def rename(change: Callable[[str], str]) -> Callable[[Content], None]:
    return each("images", lambda entry: entry.update(file_name=change(entry["file_name"])))


def group(whole: Content) -> None:
    each("categories", lambda entry: entry.update(supercategory="defectos"))(whole)
    whole["categories"].insert(0, {"id": 0, "name": "defectos", "supercategory": "none"})


def list_twice(whole: Content) -> None:
    whole["images"].append({**whole["images"][0], "id": 99})
    whole["annotations"][0]["image_id"] = 99


def split_category(whole: Content) -> None:
    whole["categories"].append({"id": 9, "name": " grieta"})
    whole["annotations"][0]["category_id"] = 9


REPAIRS: dict[str, tuple[Callable[[Content], object], str]] = {
    "nothing to do": (lambda whole: None, "classes: 1=grieta, 2=abolladura"),
    "crowd null": (
        each("annotations", lambda e: e["iscrowd"] or e.update(iscrowd=None)),
        "2 iscrowd were null or text",
    ),
    "crowd text": (each("annotations", lambda e: e.update(iscrowd=str(e["iscrowd"]))), "4 iscrowd were null or text"),
    "ids text": (each("images", lambda e: e.update(id=str(e["id"]))), "2 values of id were text or had decimals"),
    "ids float": (each("annotations", lambda e: e.update(image_id=float(e["image_id"]))), "4 values of image_id"),
    "ids names": (
        lambda whole: [
            e.update({key: f"img-{e[key]}"})
            for k, key in (("images", "id"), ("annotations", "image_id"))
            for e in whole[k]
        ],
        "2 values of id were text",
    ),
    "ids large": (
        lambda whole: [
            e.update({key: f"90071992547409{e[key]:02}"})
            for part, key in (("images", "id"), ("annotations", "image_id"))
            for e in whole[part]
        ],
        "4 values of image_id were text",
    ),
    "boxes text": (each("annotations", lambda e: e.update(bbox=[str(v) for v in e["bbox"]])), "16 numbers were text"),
    "no size": (each("images", lambda e: (e.pop("width"), e.update(height=0))), "2 images had no width and height"),
    "polygons": (each("annotations", polygon), "4 annotations had no box: made from their outlines"),
    "empty box": (
        each("annotations", lambda e: (polygon(e), e.update(bbox=[0, 0, 0, 0]))),
        "4 annotations had no box: made from their outlines",
    ),
    "masks": (each("annotations", mask), "4 annotations had no box: made from their outlines"),
    "corners": (lambda whole: (each("annotations", corners)(whole),), "4 boxes were two corners"),
    "fractions": (each("annotations", fractions), "4 boxes were in fractions of the image"),
    "drawn backwards": (
        each(
            "annotations",
            lambda e: e.update(bbox=[e["bbox"][0] + e["bbox"][2], e["bbox"][1], -e["bbox"][2], e["bbox"][3]]),
        ),
        "4 boxes had a negative width",
    ),
    "group": (group, "the category defectos only groups others and has no boxes: left out"),
    "category twice": (split_category, "1 categories had the name of another"),
    "listed twice": (list_twice, "1 images were listed once more"),
    "backslashes": (rename(lambda name: f"..\\fotos\\{name}"), "2 file names did not lead to the image"),
    "percent": (rename(lambda name: name.replace("ñ", "%C3%B1")), "1 file names did not lead to the image"),
    "decomposed": (rename(lambda name: unicodedata.normalize("NFD", name)), "1 file names did not lead to the image"),
    "case": (rename(str.upper), "2 file names did not lead to the image"),
    "absolute": (rename(lambda name: f"C:\\Users\\ana\\{name}"), "2 file names did not lead to the image"),
    "address": (rename(lambda name: f"/data/local-files/?d=a/{name}"), "2 file names did not lead to the image"),
}


def convert(capsys: Capture, source: Path) -> tuple[dict[str, Content], str]:
    target = source.parent / "new" if source.is_dir() else source.parents[1] / "new"
    code, out, err = run(capsys, "coco", source, target)
    assert code == 0, err
    files = sorted((target / "annotations").iterdir())
    return {path.stem.removeprefix("instances_"): json.loads(path.read_text(encoding="utf-8")) for path in files}, out


@pytest.mark.parametrize("repair", REPAIRS)
def test_repairs(repair: str, tmp_path: Path, capsys: Capture) -> None:
    change, said = REPAIRS[repair]
    sound, broken = (content("pieza_ñ.jpg", "b.jpg") for _ in range(2))
    change(broken)
    source = write_tree(tmp_path / "src", IMAGES, {"ann.json": json.dumps(broken)})
    sets, out = convert(capsys, source)
    made = sets["instances"]
    assert said in out and ("repaired:" in out) == (repair != "nothing to do")
    assert boxes_of(made) == boxes_of(sound)
    assert [one["iscrowd"] for one in made["annotations"]] == [0, 1, 0, 1]
    assert [one["id"] for one in made["annotations"]] == [1, 2, 3, 4]
    area = 800 if repair == "corners" else 150
    assert [one["area"] for one in made["annotations"]] == [area, 400, area, 400]
    assert [(one["width"], one["height"]) for one in made["images"]] == [(100, 50)] * 2
    assert made["categories"] == [{"id": 1, "name": "grieta"}, {"id": 2, "name": "abolladura"}]


def test_from_the_folder_itself(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_tree(tmp_path / "src", IMAGES, {"ann.json": json.dumps(content("images/b.jpg"))}))
    code, out, err = run(capsys, "coco", "ann.json", "../new")
    assert code == 0 and "repaired" not in out, out + err


def test_boxes_slightly_outside_and_turned_ones(tmp_path: Path, capsys: Capture) -> None:
    whole = content("b.jpg")
    whole["annotations"][0]["bbox"] = [-1, 4.0, 102, 20]
    whole["annotations"][1]["attributes"] = {"occluded": False, "rotation": 38.0}
    sets, out = convert(capsys, write_tree(tmp_path / "src", IMAGES, {"ann.json": json.dumps(whole)}))
    assert sets["instances"]["annotations"][0]["bbox"] == [0, 4, 100, 20]
    assert "boxes: 1 reach outside of their images, by up to 1 pixels" in out
    assert "1 boxes are turned (attributes.rotation of CVAT). The unrotated boxes are taken" in out
    assert "1 images have no entry in the COCO file" in out


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings_of_windows(encoding: str, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", IMAGES, {})
    (source / "ann.json").write_bytes(json.dumps(content("pieza_ñ.jpg"), ensure_ascii=False).encode(encoding))
    gathered = read_coco(source / "ann.json")
    assert [image.path.name for image in gathered.images] == ["pieza_ñ.jpg"]
    assert any("cp1252" in note for note in gathered.notes) == (encoding == "cp1252")


def test_all_faults_at_once(tmp_path: Path, capsys: Capture) -> None:
    whole = content("b.jpg", "gone.jpg", "x/pieza_ñ.jpg", "y/pieza_ñ.jpg")
    whole["images"] += [
        [],
        {"id": None},
        {"id": 30, "file_name": 5},
        {**whole["images"][0], "file_name": "pieza_ñ.jpg"},
    ]
    sound = whole["annotations"][0]
    changes: list[Content] = [
        {"image_id": 55}, {"category_id": 56}, {"category_id": None}, {"iscrowd": 2}, {"bbox": []},
        {"bbox": [1, 2, 3, float("nan")]}, {"bbox": None, "segmentation": [[1, 2, 3, 4]]},
        {"bbox": [1, 2, 3, 10**400]}, {"bbox": [1, 2, 0, 4]}, {"bbox": [50, 2, 60, 4]},
        {"bbox": None, "segmentation": {"counts": "abc", "size": [50, 100]}},
        {"bbox": None, "segmentation": {"counts": [3, -1], "size": [50, 100]}},
        {"bbox": None, "segmentation": {"counts": [30], "size": [0, 100]}},
        {"bbox": None, "segmentation": [[1, 2, 3, 4, 5], [6]]},
    ]  # fmt: skip
    whole["annotations"] += [{**sound, "id": 100 + k, **change} for k, change in enumerate(changes)] + ["text"]
    whole["categories"] += [
        {"id": 5, "name": "again"},
        {"id": 12},
        {"id": 13, "name": "\ud800"},
        {"id": 1.5, "name": "half"},
    ]
    source = write_tree(
        tmp_path / "src", IMAGES, {"ann.json": json.dumps(whole), "broken.json": "{", "other.json": "[]"}
    )
    code, out, err = run(capsys, "coco", source, tmp_path / "new")
    assert code == 2 and not (tmp_path / "new").exists()
    for message in (
        "broken.json: file: cannot be read as JSON",
        "image 8: the image 'gone.jpg' is not below the folder",
        "y/pieza_ñ.jpg both lead to",
        "images[4]: is [], expected an object",
        "images[5]: id is None, expected a whole number",
        "image 30: file_name is 5, expected a path",
        "image 7: the id is used twice, the second time for pieza_ñ.jpg",
        "annotation 100: the image 55 is not in the file",
        "annotation 101: the category 56 is not in the file",
        "category_id is None, expected a whole number",
        "annotation 103: iscrowd is 2, expected 0 or 1",
        "annotation 104: bbox is [], expected x, y, width, height; and there is no outline",
        "annotation 105: bbox is [1, 2, 3, nan]",
        "annotation 106: bbox is None",
        "annotation 107: bbox is [1, 2, 3, 1000",
        "annotation 109: the box from corner to corner (50, 2, 110, 6) leaves the image",
        *(f"annotation {number}: bbox is None" for number in (110, 111, 112, 113)),
        "is 'text', expected an object",
        "categories[2]: the id 5 is used twice",
        "categories[3]: name is None, expected text",
        "categories[4]: name is '\\ud800', expected text",
        "categories[5]: id is 1.5, expected a whole number",
    ):
        assert message in err, (message, err)
    code, out, err = run(capsys, "coco", write_tree(tmp_path / "src2", IMAGES, {"a.json": "[]"}), tmp_path / "new")
    assert code == 2 and "there is no COCO file" in err
    assert "gone: does not exist" in run(capsys, "coco", tmp_path / "gone", tmp_path / "new")[2]


def _text(*names: str, **more: Any) -> str:
    return json.dumps({**content(*names), **more})


STUDIO = (
    "images\\1/a.jpg",
    "..\\..\\label-studio\\media\\upload\\4\\b.jpg",
    "/data/upload/1/c%2Bc.jpg",
    "images/d.jpg",
)
EXPORTS: dict[str, tuple[str, dict[str, str], dict[str, list[str]]]] = {
    "Roboflow": (
        "train/a.jpg valid/a.jpg test/c.jpg",
        {
            "train/_annotations.coco.json": _text("a.jpg"),
            "valid/_annotations.coco.json": _text("a.jpg"),
            "test/_annotations.coco.json": _text("c.jpg"),
            "README.roboflow.txt": "exported",
        },
        {"train": ["train/a.jpg"], "val": ["valid/a.jpg"], "test": ["test/c.jpg"]},
    ),
    "CVAT": (
        "images/a.jpg images/x/b.jpg",
        {"annotations/instances_default.json": _text("a.jpg", "x/b.jpg")},
        {"instances": ["a.jpg", "x/b.jpg"]},
    ),
    "CVAT, subsets": (
        "images/Train/a.jpg images/Validation/a.jpg",
        {"annotations/instances_Train.json": _text("a.jpg"), "annotations/instances_Validation.json": _text("a.jpg")},
        {"train": ["Train/a.jpg"], "val": ["Validation/a.jpg"]},
    ),
    "Label Studio": (
        "images/a.jpg images/b.jpg images/c+c.jpg images/d.jpg",
        {"result.json": _text(*STUDIO)},
        {"instances": ["a.jpg", "b.jpg", "c+c.jpg", "d.jpg"]},
    ),
    "COCO 2017": (
        "train2017/1.jpg val2017/2.jpg",
        {
            "annotations/instances_train2017.json": _text("1.jpg"),
            "annotations/instances_val2017.json": _text("2.jpg"),
            "annotations/captions_val2017.json": json.dumps({"images": [], "annotations": []}),
        },
        {"train": ["train2017/1.jpg"], "val": ["val2017/2.jpg"]},
    ),
    "one file for all splits": (
        "data/train/a.jpg data/val/a.jpg data/val/b.jpg",
        {"data/train.json": _text("/srv/set/train/a.jpg", "/srv/set/val/a.jpg", "b.jpg")},
        {"train": ["train/a.jpg"], "val": ["val/a.jpg", "val/b.jpg"]},
    ),
    "ids of categories differ": (
        "train/a.jpg val/b.jpg",
        {
            "train.json": _text("a.jpg"),
            "val.json": _text("b.jpg", categories=[*content()["categories"], {"id": 1, "name": "sarro"}]),
        },
        {"train": ["train/a.jpg"], "val": ["val/b.jpg"]},
    ),
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_exports_convert_untouched(tool: str, tmp_path: Path, capsys: Capture) -> None:
    images, files, expected = EXPORTS[tool]
    sets, out = convert(capsys, write_tree(tmp_path / "src", images, files))
    assert {name: list(boxes_of(one)) for name, one in sets.items()} == expected
    box_names = [[name for name, _ in boxes] for one in sets.values() for boxes in boxes_of(one).values()]
    assert box_names == [["grieta", "abolladura"]] * len(box_names)
    assert len({json.dumps(one["categories"]) for one in sets.values()}) == 1
    assert ("splits: " in out) == (len(sets) > 1)


def test_an_image_in_two_files(tmp_path: Path, capsys: Capture) -> None:
    files = {"instances_train.json": _text("b.jpg"), "keypoints.json": _text("b.jpg")}
    source = write_tree(tmp_path / "src", IMAGES, files)
    code, _, err = run(capsys, "coco", source, tmp_path / "new")
    assert code == 2 and "keypoints.json: images:" in err and "Keep it in one of the files, or give one file" in err
    sets, _ = convert(capsys, source / "instances_train.json")
    assert list(sets) == ["train"]
