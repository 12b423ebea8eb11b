import logging
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.classes import ClassMap
from data.errors import UserError
from data.splits import build_datasets
from tests.support.coco_files import CocoFiles, data_config


@pytest.fixture
def train(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path).save()


@pytest.fixture
def val(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path, "val").save()


def test_all_errors_of_all_splits_come_at_once(tmp_path: Path, train: CocoFiles, val: CocoFiles) -> None:
    train.content["annotations"][0]["bbox"] = [1, 1, -5, 5]
    train.save()
    val.content["annotations"][1]["category_id"] = 9
    val.save()
    (val.img_folder / "val_3.png").unlink()
    with pytest.raises(UserError) as caught:
        build_datasets(data_config(tmp_path, num_classes=6))
    text = str(caught.value)
    assert text.startswith("The data set has 5 errors (`python check_data.py -c CONFIG` looks at the images as well")
    for part in (
        "train.json: annotation 1 (image 1, train_1.png): bbox [1, 1, -5, 5] has a negative side",
        "val.json: annotation 2 (image 1, val_1.png): category_id is 9",
        "val.json: image 3 (val_3.png): there is no file",
        "train.json: categories: the file has 2 categories (1=holes, 2=scratches), but the config says num_classes: 6",
        "val.json: categories: the file has 2 categories",
    ):
        assert part in text
    assert len(caught.value.problems) == 5


def test_skip_leaves_faulty_entries_out(
    tmp_path: Path, train: CocoFiles, val: CocoFiles, caplog: pytest.LogCaptureFixture
) -> None:
    train.content["annotations"][0]["bbox"] = [1, 1, -5, 5]
    train.content["images"][3]["width"] = 49  # only the opened image tells
    train.save()
    (train.img_folder / "train_2.png").write_bytes(b"no image")
    (val.img_folder / "val_3.png").unlink()
    with caplog.at_level(logging.WARNING):
        data = build_datasets(data_config(tmp_path, on_bad_data="skip"))
    assert [image.id for image in data.splits["train"].images] == [1, 3]
    assert [image.id for image in data.splits["val"].images] == [1, 2, 4]
    assert 1 not in data.splits["train"].annotation_ids and len(data.splits["train"].labels) == 3
    heads = [record.getMessage().split(" (check_data.py lists them); e.g. ")[0] for record in caplog.records]
    kinds = ("malformed box", "missing image", "unreadable image", "size mismatch")
    assert [f"on_bad_data: skip left out faulty entries: 1 x {kind}" for kind in kinds] == heads[:4]
    assert "annotation 1 (image 1" in caplog.text


def _remove(folder: Path) -> None:
    for image in (folder / "images/train").iterdir():
        image.unlink()


UNUSABLE: dict[str, tuple[dict[str, Any], Callable[[Path], object], str]] = {
    "classes that skip cannot mend": ({"on_bad_data": "skip", "num_classes": 3}, lambda folder: None, "num_classes: 3"),
    "nothing left": ({"on_bad_data": "skip"}, _remove, "split train is empty: it has no usable image. Add images, or"),
    "no file": ({}, lambda folder: (folder / "train.json").unlink(), "train.json: file: does not exist"),
    "no folder": ({}, lambda folder: shutil.rmtree(folder / "images/train"), "images/train: does not exist"),
    "a variable": (
        {"train_dataloader__dataset__ann_file": "${NO_SUCH_ROOT}/train.json"}, lambda folder: None, "NO_SUCH_ROOT",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_data_that_cannot_be_used(case: str, tmp_path: Path, train: CocoFiles, val: CocoFiles) -> None:
    changes, spoil, message = UNUSABLE[case]
    spoil(tmp_path)
    with pytest.raises(UserError) as caught:
        build_datasets(data_config(tmp_path, **changes))
    assert message in str(caught.value)


def test_overlap_is_an_error_unless_it_is_allowed(tmp_path: Path, train: CocoFiles) -> None:
    same = {
        "val_dataloader__dataset__ann_file": train.ann_file,
        "val_dataloader__dataset__img_folder": train.img_folder,
    }
    told = r"image 1 \(train_1.png\) of split val: is also in split train \(train_1.png; the same file\)"
    with pytest.raises(UserError, match=f"(?s)4 errors.*{told}.*allow_split_overlap: True"):
        build_datasets(data_config(tmp_path, **same))
    assert build_datasets(data_config(tmp_path, allow_split_overlap=True, **same)).problems == []


def test_a_split_without_section(tmp_path: Path, train: CocoFiles) -> None:
    with pytest.raises(UserError, match="has no section test_dataloader"):
        build_datasets(data_config(tmp_path), splits=("test",))


def test_normal_boxes_reach_the_split(tmp_path: Path) -> None:
    for name in ("train", "val"):
        files = CocoFiles(tmp_path, name, categories=({"id": 1, "name": "NORMAL"}, {"id": 2, "name": "b"}))
        files.save()
    kept = build_datasets(data_config(tmp_path)).splits["val"]
    dropped = build_datasets(data_config(tmp_path, normal_boxes="as_negative")).splits["val"]
    assert kept.boxes_per_class()[0] > 0 and dropped.boxes_per_class()[0] == 0
    assert kept.boxes_per_class()[1] == dropped.boxes_per_class()[1]


def test_warnings_are_logged_once(
    tmp_path: Path, train: CocoFiles, val: CocoFiles, caplog: pytest.LogCaptureFixture
) -> None:
    train.content["annotations"] = []
    train.save()
    (problem,) = build_datasets(data_config(tmp_path)).problems
    assert problem.severity == "warning" and "split train: there is not a single box. Export" in str(problem)
    caplog.clear()
    train.content["annotations"] = CocoFiles(tmp_path).content["annotations"]
    del train.content["annotations"][0]["area"]
    train.save()
    with caplog.at_level(logging.WARNING):
        data = build_datasets(data_config(tmp_path))
    assert len(data.problems) == 1
    (message,) = (record.getMessage() for record in caplog.records)
    assert message.startswith("data warnings: 1 x missing area (check_data.py lists them)")


def test_what_headers_tell_stops_training_before_it_starts(tmp_path: Path, train: CocoFiles, val: CocoFiles) -> None:
    train.content["images"][0]["width"] = 49
    train.content["images"][1]["height"] = 41
    train.save()
    Image.new("RGB", (40, 48)).save(val.img_folder / "val_1.png")  # turned
    (val.img_folder / "val_2.png").write_bytes(b"GIF")
    with pytest.raises(UserError) as caught:
        build_datasets(data_config(tmp_path))
    for part in (
        "train.json: image 1 (train_1.png): the image is 48 x 40 pixels, but the annotation file says 49 x 40",
        "train.json: image 2 (train_2.png): the image is 48 x 40 pixels, but the annotation file says 48 x 41",
        "val.json: image 1 (val_1.png): the image is 40 x 48 pixels, but the annotation file says 48 x 40",
        "val.json: image 2 (val_2.png)",
    ):
        assert part in str(caught.value)
    assert len(caught.value.problems) == 4


@given(st.permutations([0, 1, 2, 3]), st.sets(st.integers(0, 3), min_size=1), st.sampled_from(["NFC", "NFD"]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_class_has_one_label_in_every_split(
    tmp_path: Path, order: list[int], in_val: set[int], accents: Literal["NFC", "NFD"]
) -> None:
    """Whatever the order of the categories in the files, and whichever of them the second file lists."""
    names, ids = ("ñ", "b", "c", "d"), (7, 2, 90, 11)
    every = [{"id": ids[k], "name": names[k]} for k in order]
    some = [
        {"id": ids[k], "name": unicodedata.normalize(accents, names[k].upper())} for k in reversed(order) if k in in_val
    ]
    train = CocoFiles(tmp_path, num_images=2, categories=tuple(every)).save()
    val = CocoFiles(tmp_path, "val", num_images=2, categories=tuple(some)).save()
    data = build_datasets(data_config(tmp_path, num_classes=4))
    assert data.classes == ClassMap((2, 7, 11, 90), ("b", "ñ", "d", "c"))
    for split, files in ((data.splits["train"], train), (data.splits["val"], val)):
        assert split.classes == data.classes
        truth = {a["id"]: a["category_id"] for a in files.content["annotations"]}
        label_ids = [data.classes.category_ids[label] for label in split.labels]
        assert label_ids == [truth[annotation_id] for annotation_id in split.annotation_ids.tolist()]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([(1, "scratches"), (2, "holes")], "category 1: is called 'scratches' here and 'holes' in the training split"),
        ([(0, "holes"), (1, "scratches")], "category 0 (holes): is unknown to the network"),
        ([(1, "holes"), (2, "scratch")], "category 2: is called 'scratch' here"),
        ([(1, "holes"), (2, "scratches"), (3, "dents")], "category 3 (dents): is unknown to the network"),
    ],
)
def test_other_classes_in_the_second_split_are_an_error(
    tmp_path: Path, train: CocoFiles, val: CocoFiles, categories: list[tuple[int, str]], message: str
) -> None:
    val.content["categories"] = [{"id": number, "name": name} for number, name in categories]
    val.save()
    for on_bad_data in ("error", "skip"):
        with pytest.raises(UserError) as caught:
            build_datasets(data_config(tmp_path, on_bad_data=on_bad_data))
        assert message in str(caught.value)
