import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.classes import ClassMap
from data.coco import CocoSplit, check_annotations, check_overlap, read_split
from data.problems import Problem, errors_of, warnings_of
from tests.support.coco_files import CocoFiles


def _read(files: CocoFiles, **options: Any) -> tuple[CocoSplit, list[Problem]]:
    files.save()
    split, problems = read_split(files.name, files.ann_file, files.img_folder, **options)
    return split, problems + check_annotations(split)


def _only(problems: list[Problem]) -> str:
    assert len(problems) == 1, [str(problem) for problem in problems]
    return str(problems[0])


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path)


def test_a_sound_file_has_no_errors(files: CocoFiles) -> None:
    split, problems = _read(files)
    assert not errors_of(problems)
    assert len(split) == 4 and len(split.labels) == 8
    assert split.classes == ClassMap((1, 2), ("holes", "scratches"))
    for image in split.images:
        wanted = [a for a in files.content["annotations"] if a["image_id"] == image.id]
        assert split.boxes_xywh[image.rows].tolist() == [a["bbox"] for a in wanted]
        assert split.labels[image.rows].tolist() == [a["category_id"] - 1 for a in wanted]
        assert split.annotation_ids[image.rows].tolist() == [a["id"] for a in wanted]


def test_to_coco_gives_the_data_sets_own_ids_back(files: CocoFiles) -> None:
    files.content["annotations"][0]["iscrowd"] = 1
    split, _ = _read(files)
    coco = split.to_coco()
    assert coco["categories"] == files.content["categories"] and coco["images"] == files.content["images"]
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    found = sorted(([a[key] for key in keys] for a in coco["annotations"]), key=str)
    assert found == sorted(([a[key] for key in keys] for a in files.content["annotations"]), key=str)
    assert json.loads(json.dumps(coco)) == coco


MALFORMED_BOXES: list[tuple[Any, str]] = [
    ([float("nan"), 1, 5, 5], "bbox is [nan, 1, 5, 5], expected four finite numbers"),
    ([1, 1, 5, 5, 5], "expected four finite numbers"),
    (["1", 1, 5, 5], "bbox is ['1', 1, 5, 5], expected four finite numbers"),
    ([True, 1, 5, 5], "expected four finite numbers"),
    ("1 1 5 5", "bbox is '1 1 5 5', expected four finite numbers"),
    (None, "bbox is None, expected four finite numbers"),
    ([10**400, 1, 5, 5], "expected four finite numbers"),
    ([1, 1, 5, -3], "bbox [1, 1, 5, -3] has a negative side (width 5, height -3)"),
    ([-1, 1, 5, 5], "bbox [-1, 1, 5, 5] reaches outside the image of 48 x 40 pixels"),
    ([44, 1, 5, 5], "reaches outside the image of 48 x 40 pixels"),
    ([1, 36, 5, 5], "reaches outside the image of 48 x 40 pixels"),
    ([48.1, 1, 0.2, 5], "reaches outside the image of 48 x 40 pixels"),
    ([1e300, 1e300, 1e308, 1e308], "reaches outside the image of 48 x 40 pixels"),
]


@pytest.mark.parametrize(("bbox", "message"), MALFORMED_BOXES)
def test_bad_boxes(files: CocoFiles, bbox: Any, message: str) -> None:
    files.content["annotations"][3]["bbox"] = bbox
    split, problems = _read(files)
    text = _only(errors_of(problems))
    assert text.startswith(f"{files.ann_file}: annotation 4 (image 2, train_2.png): ")
    assert message in text
    assert 4 not in split.annotation_ids and len(split.labels) == 7


@pytest.mark.parametrize("bbox", [None, [], [0, 0, 0, 0]])
@pytest.mark.parametrize(
    "outline", [[[5, 6, 15, 6, 15, 26]], [5, 6, 15.0, 26, 5, 8], {"size": [40, 48], "counts": [206, 20, 380, 1, 1313]}]
)
def test_a_box_that_is_missing_is_made_from_the_outline(files: CocoFiles, bbox: Any, outline: Any) -> None:
    files.content["annotations"][3] |= {"bbox": bbox, "segmentation": outline}
    split, problems = _read(files)
    assert not errors_of(problems) and split.boxes_xywh[3].tolist() == [5, 6, 10 + isinstance(outline, dict), 20]


@pytest.mark.parametrize("bbox", [[1, 1, 0, 5], [1, 1, 5, 0.0], [90, 90, 0, 0]])
def test_a_box_without_area_is_left_out_with_a_warning(files: CocoFiles, bbox: list[float]) -> None:
    files.content["annotations"][3]["bbox"] = bbox
    split, problems = _read(files)
    (problem,) = (problem for problem in problems if problem.kind == "box without area")
    assert not errors_of(problems) and 4 not in split.annotation_ids and len(split.labels) == 7
    assert f"annotation 4 (image 2, train_2.png): bbox {bbox} has no area. It marks nothing and is left" in str(problem)


@pytest.mark.parametrize("bbox", [[0, 0, 48, 40], [-0.3, 0.2, 48.4, 40.1], [47.5, 39, 0.5, 1], [0.0, 1.0, 1e-3, 5.0]])
def test_boxes_on_the_border_are_clipped(files: CocoFiles, bbox: list[float]) -> None:
    files.content["annotations"][0]["bbox"] = bbox
    split, problems = _read(files)
    assert not errors_of(problems)
    x0, y0, x1, y1 = split.boxes_xyxy[split.annotation_ids.tolist().index(1)]
    assert 0 <= x0 < x1 <= 48 and 0 <= y0 < y1 <= 40


def test_bad_annotations(files: CocoFiles) -> None:
    """All at once, each with its place and a fix."""
    files.add_box(1, [1, 1, 5, 5], 99)
    files.add_box(1, [1, 1, 5, 5], "1")
    files.add_box(77, [1, 1, 5, 5], 1)
    files.add_box(1, [2, 2, 5, 5], 1, iscrowd=5)
    files.add_box(2, [3, 3, 5, 5], 1)["id"] = 1
    del files.add_box(2, [4, 4, 5, 5], 1)["id"]
    del files.add_box(2, [5, 5, 5, 5], 1)["image_id"]
    files.content["annotations"] += ["text", None]
    split, problems = _read(files)
    errors = [str(problem) for problem in errors_of(problems)]
    expected = [
        "annotation 9 (image 1, train_1.png): category_id is 99, which is not among the categories [1, 2]. Correct",
        "annotation 10 (image 1, train_1.png): category_id is '1', which is not among the categories [1, 2]. Correct",
        "annotation 11: belongs to image 77, which is not in the file. Correct image_id",
        "annotation 12 (image 1, train_1.png): iscrowd is 5, expected 0 or 1. Correct",
        "annotation 1 (image 2, train_2.png): the id 1 is used by more than one annotation. Number the",
        "annotations[13] (image 2, train_2.png): id is missing, expected an integer. Number the annotations",
        "annotation 15: belongs to image missing, which is not in the file",
        "annotations[15]: id is missing, expected an integer",
        "annotations[15]: is a text, expected an object",
        "annotations[16]: id is missing, expected an integer",
        "annotations[16]: is a null, expected an object",
    ]
    assert len(errors) == len(expected)
    for error, text in zip(errors, expected, strict=True):
        assert text in error
    assert all(problem.skippable for problem in problems)
    assert len(split.labels) == 10  # the eight sound ones and the two whose id alone is at fault


def test_bad_image_entries(files: CocoFiles) -> None:
    images = files.content["images"]
    images[0]["id"] = "1"
    images[1]["width"] = 0
    images[2]["file_name"] = ""
    images += [dict(images[3]), {**images[3], "id": 50}, "image", {"id": 51, "file_name": "x.png"}]
    split, problems = _read(files)
    errors = [str(problem) for problem in errors_of(problems)]
    expected = [
        "images[0]: id is '1', expected an integer",
        "image 2 (train_2.png): width and height are 0 and 40, expected positive integers",
        "image 3: file_name is '', expected a path below the image folder",
        "image 4: the id is used twice (for train_4.png and train_4.png). Give each image its own id",
        "image 50 (train_4.png): the file is listed twice (as image 4 and image 50). Merge the two entries",
        "images[6]: id is missing, expected an integer",
        "image 51 (x.png): width and height are missing and missing, expected positive integers",
    ]
    # The boxes of a refused image are not reported one by one, those of an id that no image has are.
    assert [error for error in errors if ": annotation " not in error] != []
    for text in expected:
        assert sum(text in error for error in errors) == 1, text
    assert len([error for error in errors if "belongs to image 1, which is not in the file" in error]) == 2
    assert len(errors) == len(expected) + 2
    assert [image.id for image in split.images] == [4]


def test_bad_categories(files: CocoFiles) -> None:
    files.content["categories"] = [
        {"id": 1, "name": "holes"},
        {"id": 1, "name": "scratches"},
        {"id": 2, "name": "Holes "},
        {"id": -3, "name": "x"},
        {"id": 4},
        "dents",
    ]
    _, problems = _read(files)
    text = "\n".join(str(problem) for problem in errors_of(problems) if "annotation " not in problem.where)
    assert "categories[1]: id 1 is used twice ('holes' and 'scratches')" in text
    assert "categories[2]: the name 'Holes ' is used twice" in text
    assert "categories[3]: id is -3, expected an integer >= 0" in text
    assert "categories[4]: name is missing, expected text" in text
    assert "categories[5]: id is missing, expected an integer >= 0" in text
    assert not any(problem.skippable for problem in errors_of(problems) if "categories[" in problem.where)


DEEP = 100_000


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ("", ["file: is no valid JSON (line 1, column 1"]),
        ("{'images': []}", ["is no valid JSON (line 1, column 2"]),
        ('{"images": [', ["is no valid JSON"]),
        ("[" * DEEP + "]" * DEEP, ["is no usable JSON (maximum recursion depth"]),
        ('{"a":' * DEEP + "1" + "}" * DEEP, ["is no usable JSON (maximum recursion depth"]),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", ["is no usable JSON (Exceeds the limit"]),
        (b'{"a": "da\xf1o"}', ["cannot be read ('utf-8' codec can't decode byte 0xf1", "a COCO JSON file in UTF-8"]),
        ("[]", ["holds a list, expected an object with images, annotations, categories"]),
        ("3", ["holds a number, expected an object"]),
        ("{}", ["annotations: is missing (the file has: nothing)"]),
        ('{"images": [], "annotations": [], "categories": []}', ["images: the list is empty"]),
        ('{"images": {}, "annotations": 3, "categories": "a"}', ["images: is a object, expected a list"]),
        (None, ["does not exist. Correct the path, or set train_dataloader.dataset.ann_file"]),
    ],
    ids=range(13),
)
def test_a_useless_file_gives_an_empty_split_and_a_message(
    tmp_path: Path, content: str | bytes | None, messages: list[str]
) -> None:
    path = tmp_path / "train.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    split, problems = read_split("train", path, tmp_path)
    text = "\n".join(map(str, problems))
    assert len(split) == 0 and len(problems) <= 3 and all(message in text for message in messages)
    assert not any(problem.skippable for problem in errors_of(problems))


def test_warnings(files: CocoFiles) -> None:
    first = files.content["annotations"][0]
    files.add_box(first["image_id"], list(first["bbox"]), first["category_id"])
    files.content["annotations"][2]["iscrowd"] = 1
    for entry in files.content["annotations"][:3]:
        del entry["area"]
    files.content["annotations"][3]["area"] = float("nan")
    files.content["categories"].append({"id": 3, "name": "dents"})
    split, problems = _read(files)
    assert not errors_of(problems)
    text = "\n".join(map(str, warnings_of(problems)))
    assert "annotations: 4 of 9 annotations have no usable area. Nothing to do" in text
    assert "image 1 (train_1.png): annotations 1 and 9 have the same box" in text
    assert "annotations: 1 crowd boxes (iscrowd: 1), e.g. annotation 3" in text
    assert "split train: category 3 (dents) has no boxes" in text
    assert len(warnings_of(problems)) == 4
    np.testing.assert_allclose(split.areas[0], first["bbox"][2] * first["bbox"][3])
    image = split.images[1]
    assert len(split.training_rows(image)) == 1 and len(split.labels[image.rows]) == 2
    assert split.boxes_per_class()[2] == 0


class TestNormal:
    CATEGORIES = ({"id": 1, "name": "holes"}, {"id": 4, "name": "Normal"})

    def _files(self, tmp_path: Path) -> CocoFiles:
        files = CocoFiles(tmp_path, categories=self.CATEGORIES[:1])
        files.content["categories"] = list(self.CATEGORIES)
        files.add_box(1, [0, 0, 48, 40], 4)
        files.add_box(2, [0, 0, 10, 10], 4)
        return files

    def test_keep_warns_where_boxes_cover_whole_images(self, tmp_path: Path) -> None:
        split, problems = _read(self._files(tmp_path))
        text = _only(problems)
        assert "1 of 2 boxes of the class Normal cover the whole image (e.g. annotation 9)" in text
        assert "normal_boxes: as_negative" in text and "metrics_defects" in text
        assert split.boxes_per_class() == [8, 2]

    def test_as_negative_drops_the_boxes_and_keeps_the_class(self, tmp_path: Path) -> None:
        split, problems = _read(self._files(tmp_path), normal_boxes="as_negative")
        assert problems == []
        assert split.classes.names == ("holes", "Normal")
        assert split.boxes_per_class() == [8, 0]
        assert {a["category_id"] for a in split.to_coco()["annotations"]} == {1}


def test_without_images_keeps_boxes_and_images_together(files: CocoFiles) -> None:
    split, _ = _read(files)
    rest = split.without_images({1, 3})
    assert [image.id for image in rest.images] == [2, 4]
    for image in rest.images:
        original = next(i for i in split.images if i.id == image.id)
        assert rest.annotation_ids[image.rows].tolist() == split.annotation_ids[original.rows].tolist()
        np.testing.assert_array_equal(rest.boxes_xyxy[image.rows], split.boxes_xyxy[original.rows])
    assert len(rest.labels) == 4


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_unicode_in_any_form(files: CocoFiles, encoding: str) -> None:
    files.content["categories"][0]["name"] = "daño"
    files.ann_file.write_text(json.dumps(files.content, ensure_ascii=False), encoding=encoding)
    split, problems = read_split("train", files.ann_file, files.img_folder)
    assert split.classes.names[0] == "daño" and problems == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dan\u0303o", "daño"),
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\ud800", "\\ud800"),
        ("\u202egnp", "\\u202egnp"),
        ("日本 (ñ) 50 %", "日本 (ñ) 50 %"),
    ],
)
def test_class_names_are_composed_and_printable_everywhere(files: CocoFiles, name: str, expected: str) -> None:
    files.content["categories"] = [{"id": 1, "name": name}, {"id": 2, "name": "b"}]
    split, problems = _read(files)
    assert split.classes.names == (expected, "b") and problems == []
    assert ClassMap.from_dict({"category_ids": [1, 2], "names": [name, "b"]}) == split.classes
    split, problems = _read(files, classes=split.classes)
    assert problems == []
    files.content["categories"].append({"id": 3, "name": unicodedata.normalize("NFC", name).upper()})
    assert "is used twice; results per class" in str(_read(files)[1][0])


def test_one_file_under_two_spellings_is_listed_twice(files: CocoFiles) -> None:
    (files.img_folder / "train_1.png").rename(files.img_folder / unicodedata.normalize("NFD", "ñ.png"))
    files.content["images"][0]["file_name"] = "ñ.png"
    split, problems = _read(files)
    assert problems == [] and split.images[0].path.is_file() and split.images[0].file_name == "ñ.png"
    files.content["images"][1]["file_name"] = unicodedata.normalize("NFD", "ñ.png")
    assert "the file is listed twice (as image 1 and image 2)" in _only(_read(files)[1])


def test_turned_boxes_of_cvat(files: CocoFiles) -> None:
    rotations = [38.0, 0, 360.0, -90, "x", None, float("inf")]
    for annotation, rotation in zip(files.content["annotations"], rotations, strict=False):
        annotation["attributes"] = {"occluded": False, "rotation": rotation}
    files.content["annotations"][-1]["attributes"] = ["rotation"]
    text = _only(_read(files)[1])
    assert "2 of 8 boxes are turned (attributes.rotation of CVAT), e.g. annotation 1" in text


@pytest.mark.parametrize(
    "group, warned", [("surface", True), ("none", False), ("holes", True), (3, False), (None, False)]
)
def test_categories_that_group_others(files: CocoFiles, group: object, warned: bool) -> None:
    files.content["categories"] = [
        {"id": 0, "name": "surface", "supercategory": "none"},
        {"id": 1, "name": "holes", "supercategory": "holes"},
        {"id": 2, "name": "scratches", "supercategory": group},
    ]
    found = [problem for problem in _read(files)[1] if problem.kind == "grouping category"]
    assert [group in str(problem) for problem in found] == ([True] if warned else [])


@pytest.mark.skipif(os.name == "nt", reason="no such files there")
def test_an_annotation_file_that_never_ends_is_not_opened(files: CocoFiles, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/zero"), tmp_path):
        _, problems = read_split("train", path, files.img_folder)
        assert "is no ordinary file" in _only(problems)


@pytest.mark.parametrize("value", [float("nan"), 1e300, 10**400, -(2**63), "1", True, []])
@pytest.mark.parametrize(
    ("part", "key"),
    [
        *(("images", key) for key in ("id", "width", "height", "file_name")),
        *(("annotations", key) for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "attributes")),
        *(("categories", key) for key in ("id", "name", "supercategory")),
    ],
)
def test_no_value_ends_the_check(files: CocoFiles, part: str, key: str, value: object) -> None:
    files.content[part][0][key] = value
    split, problems = _read(files)
    tolerated = {"annotations.attributes", "annotations.area", "categories.supercategory"}
    tolerated |= {"categories.name"} if value == "1" else {"annotations.iscrowd"} if value is True else set()
    assert bool(errors_of(problems)) != (f"{part}.{key}" in tolerated)
    for problem in problems:
        assert len(str(problem)) < 600
    assert np.isfinite(split.boxes_xyxy).all() and np.isfinite(split.areas).all()


def test_different_folders_may_use_the_same_names(tmp_path: Path) -> None:
    train, _ = _read(CocoFiles(tmp_path / "a"))
    val, _ = read_split("val", train.ann_file, tmp_path / "b")
    assert check_overlap([train, val]) == []
