"""A folder of data as people have it -> its splits."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from data.convert.__main__ import main as convert
from data.errors import UserError
from data.own_data import Split, find_data
from tests.support.coco_files import CocoFiles
from tests.support.foreign_formats import write_labelme, write_voc, write_yolo

LAYOUTS = {
    "Roboflow": ("{valid}/_annotations.coco.json", "{valid}"),
    "ours": ("annotations/instances_{split}.json", "{split}"),
    "COCO 2017": ("annotations/instances_{split}2017.json", "{split}2017"),
    "images in one folder": ("annotations/{split}.json", "images/{split}"),
    "all images together": ("annotations/{valid}.json", "images"),
    "files at the top": ("{split}.json", "data/{split}"),
    "quickstart": ("annotations/instances_{split}.json", "images/{split}"),
    "Spanish": ("{spanish}/anotaciones.json", "{spanish}/imagenes"),
}
"""Annotation file and image folder of each split."""
SPLITS = {
    "train": {"split": "train", "valid": "train", "spanish": "entrenamiento"},
    "val": {"split": "val", "valid": "valid", "spanish": "validacion"},
    "test": {"split": "test", "valid": "test", "spanish": "prueba"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_coco(root: Path, layout: str, splits: tuple[str, ...] = ("train", "val", "test")) -> dict[str, Split]:
    """Write splits of four images; return where they are."""
    written = {}
    for number, name in enumerate(splits):
        files = CocoFiles(root.parent / "made", name, seed=number)
        files.save()
        ann_file, img_folder = (root / text.format(**SPLITS[name]) for text in LAYOUTS[layout])
        ann_file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(files.img_folder, img_folder, dirs_exist_ok=True)
        shutil.copy(files.ann_file, ann_file)
        written[name] = Split(img_folder, ann_file)
    return written


@pytest.mark.parametrize("layout", LAYOUTS)
def test_coco_is_found_where_it_is(here: Path, layout: str) -> None:
    expected = write_coco(Path("mine"), layout)
    Path("mine/README.dataset.txt").write_text("https://example.org", encoding="utf-8")
    Path("mine/notes.json").write_text('{"info": 1}', encoding="utf-8")
    assert find_data(Path("mine")) == expected
    assert not Path("outputs").exists()


def test_of_several_files_of_a_split_that_of_the_instances_is_meant(here: Path) -> None:
    expected = write_coco(Path("mine"), "COCO 2017", ("train", "val"))
    folder = Path("mine/annotations")
    shutil.copy(folder / "instances_train2017.json", folder / "person_keypoints_train2017.json")
    shutil.copy(folder / "instances_train2017.json", folder / "instances_all.json")
    assert find_data(Path("mine")) == expected
    shutil.copy(folder / "instances_train2017.json", folder / "instances_train.json")
    with pytest.raises(UserError, match="several annotation files for one split") as error:
        find_data(Path("mine"))
    assert len(error.value.problems) == 2 and "instances_train2017.json" in str(error.value)


def names_of(ann_file: Path) -> list[str]:
    return [one["name"] for one in json.loads(ann_file.read_text(encoding="utf-8"))["categories"]]


def test_a_category_that_only_groups_is_left_out(here: Path) -> None:
    """Roboflow puts one with the id 0 in front."""
    for split in write_coco(Path("mine"), "Roboflow", ("train", "val")).values():
        content = json.loads(split.ann_file.read_text(encoding="utf-8"))
        content["categories"] = [{"id": 0, "name": "defects", "supercategory": "none"}] + [
            {**one, "supercategory": "defects"} for one in content["categories"]
        ]
        split.ann_file.write_text(json.dumps(content), encoding="utf-8")
    found = find_data(Path("mine"))
    assert [*found] == ["train", "val"] and names_of(found["train"].ann_file) == ["holes", "scratches"]
    assert found["val"].ann_file.is_relative_to("outputs/data_cache")


def write_foreign(kind: str, root: Path) -> None:
    for number, name in enumerate(("train", "val", "test")):
        files = CocoFiles(root.parent / "made", name, seed=number)
        files.save()
        {"Pascal VOC": write_voc, "YOLO": write_yolo, "labelme": write_labelme}[kind](files, root / name)
    if kind == "YOLO":
        for name in ("data.yaml", "classes.txt"):
            for path in sorted(root.glob(f"*/{name}")):
                path.replace(root / name)


def other_converters(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "data" / "convert").mkdir(parents=True)
    (here / "data" / "convert" / "yolo.py").write_text("# another version", encoding="utf-8")
    monkeypatch.setattr("data.own_data.__file__", str(here / "data" / "own_data.py"))


@pytest.mark.parametrize("kind", ["Pascal VOC", "YOLO", "labelme"])
def test_other_formats_are_converted_once(
    here: Path, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("mine")
    write_foreign(kind, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for path in (folder, *before):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with caplog.at_level("INFO"):
        first = find_data(folder)
    assert [*first] == ["train", "val", "test"] and f"{kind} converted to outputs/data_cache/mine-" in caplog.text
    for split in first.values():
        content = json.loads(split.ann_file.read_text(encoding="utf-8"))
        assert len(content["images"]) == 4 and len(content["annotations"]) == 8
        assert all((split.img_folder / image["file_name"]).is_file() for image in content["images"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "nothing of the data is touched"
    written = first["train"].ann_file.stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert find_data(folder) == first and first["train"].ann_file.stat().st_mtime_ns == written
    assert "converted before and unchanged" in caplog.text
    for path in (folder, *before):
        path.chmod(0o755)
    next(path for path in before if path.suffix == ".png").touch()
    second = find_data(folder)
    assert second != first, "what changed is converted anew"
    caplog.clear()
    other_converters(here, monkeypatch)
    with caplog.at_level("INFO"):
        assert find_data(folder) == second and f"{kind} converted to" in caplog.text, "by other converters, too"


def test_half_a_conversion_is_made_again(here: Path) -> None:
    write_foreign("YOLO", Path("mine"))
    first = find_data(Path("mine"))
    place = first["train"].ann_file.parents[1]
    (place / "source.json").unlink()
    first["train"].ann_file.write_text("half", encoding="utf-8")
    assert find_data(Path("mine")) == first and names_of(first["train"].ann_file) == ["holes", "scratches"]


@pytest.mark.parametrize("case", ["train and test", "one set", "a space in the name", "YOLO", "inside"])
def test_a_missing_val_is_offered_as_a_command_that_works(
    here: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("my data" if "space" in case else "mine")
    if case == "YOLO":
        files = CocoFiles(here / "made", "train", num_images=12)
        files.save()
        write_yolo(files, folder)
    elif case == "train and test":
        write_coco(folder, "ours", ("train", "test"))
    else:
        write_coco(folder, "files at the top", ("train",))
        (folder / "train.json").rename(folder / "annotations.json")
        (folder / "data" / "train").rename(folder / "data" / "photos")
    if case == "inside":
        monkeypatch.chdir(folder)
        folder = Path(".")
    with pytest.raises(UserError, match="has no validation split .looked for val, valid or validation") as error:
        find_data(folder)
    command = str(error.value).splitlines()[-1]
    assert command.startswith("python -m data.convert split ")
    assert command.endswith(
        "--train 0.8 --val 0.2 --test 0" if "test" in case else "--train 0.7 --val 0.15 --test 0.15"
    )
    assert convert(shlex.split(command)[3:]) == 0, capsys.readouterr().err
    divided = find_data(folder)
    assert {"train", "val"} <= {*divided} <= {"train", "val", "test"}
    before = {name: json.loads(split.ann_file.read_bytes()) for name, split in divided.items()}
    if case == "YOLO":  # which is converted: by other code here, so its annotations are others
        divided["train"].ann_file.write_text(json.dumps({**before["train"], "annotations": []}), encoding="utf-8")
    other_converters(here, monkeypatch)
    assert find_data(folder) == divided, "another version of the code asks for no other division"
    assert before == {name: json.loads(split.ann_file.read_bytes()) for name, split in divided.items()}


def broken(folder: Path) -> None:
    for split in write_coco(folder, "ours", ("train", "val")).values():
        split.ann_file.write_text("{", encoding="utf-8")


def images_missing(folder: Path) -> None:
    for split in write_coco(folder, "ours", ("train", "val")).values():
        for image in split.img_folder.iterdir():
            image.unlink()


@pytest.mark.parametrize("make", [broken, images_missing])
def test_faults_of_coco_are_left_to_the_checks(here: Path, make: object) -> None:
    assert callable(make)
    make(Path("mine"))
    expected = {
        name: Split(Path("mine", name), Path(f"mine/annotations/instances_{name}.json")) for name in ("train", "val")
    }
    assert find_data(Path("mine")) == expected


def test_what_is_not_found_or_may_be_several_things(here: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=r"\(found: nothing of these\)\. Looked for") as error:
        find_data(Path("empty"))
    *formats, others = [line.partition(":")[0] for line in error.value.problems]
    assert formats == ["COCO", "YOLO", "Pascal VOC", "labelme"] and others.startswith("Other text files")
    with pytest.raises(UserError, match="gone: does not exist. Give the folder of the data set"):
        find_data(Path("gone"))
    shutil.copytree(write_coco(Path("photos"), "ours", ("train",))["train"].img_folder, "only_images")
    with pytest.raises(UserError, match="found: 4 image files"):
        find_data(Path("only_images"))
    write_coco(Path("both"), "ours")
    write_foreign("Pascal VOC", Path("both/voc"))
    with pytest.raises(UserError, match="annotations of several formats.*data.convert coco both DST.*voc") as error:
        find_data(Path("both"))
    assert len(error.value.problems) == 2
    write_coco(Path("untrained"), "ours", ("val", "test"))
    with pytest.raises(UserError, match="has no training split; found val, test alone"):
        find_data(Path("untrained"))
