"""YOLO sets as tools export them and as people keep them."""

import json
from pathlib import Path

import pytest

from tests.data.convert.test_convert import boxes_of, run
from tests.support.foreign_formats import write_tree

Capture = pytest.CaptureFixture[str]
BOX, BOX_XYWH = "1 0.5 0.5 0.2 0.4\n", [40.0, 15.0, 20.0, 20.0]
YAML = "nc: 2\nnames: ['crack', 'dent']\n"
LIST = "crack\ndent\n"


def convert(capsys: Capture, source: Path, *more: str | Path) -> tuple[dict[str, dict[str, list[str]]], str]:
    """Annotation file -> image -> names of its boxes, which all lie at `BOX_XYWH`; and what was printed."""
    target = source.parent / "new"
    code, out, err = run(capsys, "yolo", source, target, *more)
    assert code == 0, err
    sets = {}
    for path in sorted((target / "annotations").iterdir()):
        found = boxes_of(json.loads(path.read_text(encoding="utf-8")))
        assert all(xywh == pytest.approx(BOX_XYWH) for boxes in found.values() for _, xywh in boxes)
        sets[path.stem.removeprefix("instances_")] = {name: [one for one, _ in boxes] for name, boxes in found.items()}
    return sets, out


ROBOFLOW = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n" + YAML
CVAT_DARKNET = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
COLAB = "path: /content/datasets/parts\ntrain: images/train2024\nval: [images/val2024]\ntest:\n" + YAML
EXPORTS: dict[str, tuple[str, dict[str, str], dict[str, dict[str, list[str]]]]] = {
    "Roboflow": (
        "train/images/a_jpg.rf.1.jpg valid/images/b_jpg.rf.2.jpg",  # and test has none
        {
            "data.yaml": ROBOFLOW,
            "README.dataset.txt": "parts - v3\n\nhttps://universe\n",
            "README.roboflow.txt": "exported\n",
            "train/labels/a_jpg.rf.1.txt": BOX,
            "valid/labels/b_jpg.rf.2.txt": "",
        },
        {"train": {"train/images/a_jpg.rf.1.jpg": ["dent"]}, "val": {"valid/images/b_jpg.rf.2.jpg": []}},
    ),
    "CVAT, YOLO 1.1": (
        "obj_train_data/a.jpg obj_train_data/b.jpg obj_valid_data/a.jpg",
        {
            "obj.data": CVAT_DARKNET,
            "obj.names": LIST,
            "train.txt": "data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n",
            "valid.txt": "data/obj_valid_data/a.jpg\n",
            "obj_train_data/a.txt": BOX,
            "obj_train_data/b.txt": "",
            "obj_valid_data/a.txt": BOX,
        },
        {
            "train": {"obj_train_data/a.jpg": ["dent"], "obj_train_data/b.jpg": []},
            "val": {"obj_valid_data/a.jpg": ["dent"]},
        },
    ),
    "CVAT, Ultralytics": (
        "images/Train/a.jpg images/Train/b.jpg images/Validation/c.jpg",
        {
            "data.yaml": "path: ./\ntrain: Train.txt\nval: Validation.txt\nnames:\n  0: crack\n  1: dent\n",
            "Train.txt": "data/images/Train/a.jpg\ndata/images/Train/b.jpg\n",
            "Validation.txt": "data/images/Validation/c.jpg\n",
            "labels/Train/a.txt": BOX,
            "labels/Validation/c.txt": BOX,
        },
        {"train": {"Train/a.jpg": ["dent"], "Train/b.jpg": []}, "val": {"Validation/c.jpg": ["dent"]}},
    ),
    "Label Studio": (
        "images/1f-pieza_0.jpg images/2f-pieza_1.jpg",
        {
            "classes.txt": LIST,
            "notes.json": "{}",
            "labels/1f-pieza_0.txt": BOX,
            "labels/2f-pieza_1.txt": "",
        },
        {"instances": {"1f-pieza_0.jpg": ["dent"], "2f-pieza_1.jpg": []}},
    ),
    "LabelImg": (
        "a.JPG b.png",
        {"classes.txt": LIST, "a.txt": BOX},
        {"instances": {"a.JPG": ["dent"], "b.png": []}},
    ),
    "LabelImg, saved elsewhere": (
        "linea1/a.jpg linea2/b.jpg",
        {"yolo/classes.txt": LIST, "yolo/a.txt": BOX, "yolo/b.txt": BOX},
        {"instances": {"linea1/a.jpg": ["dent"], "linea2/b.jpg": ["dent"]}},
    ),
    "Ultralytics, from another machine": (
        "images/train2024/a.jpg images/val2024/b.jpg images/more/c.jpg",
        {
            "data.yaml": COLAB,
            "hyp.yaml": "lr0: 0.01\n",
            "other.yaml": "names: [x]\n",
            "labels/train2024/a.txt": BOX,
            "labels/val2024/b.txt": BOX,
            "labels/more/c.txt": BOX,
        },
        {
            "train": {"train2024/a.jpg": ["dent"]},
            "val": {"val2024/b.jpg": ["dent"]},
            "rest": {"more/c.jpg": ["dent"]},
        },
    ),
    "from Windows, by folders": (
        "Images/Train/A.JPG Images/Valid/B.JPG",
        {"Data.yaml": YAML, "Labels/Train/a.TXT": BOX, "Labels/Valid/B.TXT": BOX},
        {"train": {"Train/A.JPG": ["dent"]}, "val": {"Valid/B.JPG": ["dent"]}},
    ),
    "darknet, lists alone": (
        "JPEGImages/a.jpg JPEGImages/b.jpg",
        {
            "classes.names": LIST,
            "train.txt": "/home/x/VOC/JPEGImages/a.jpg\n",
            "val.txt": "JPEGImages\\b.jpg\n",
            "labels/a.txt": BOX,
            "labels/b.txt": BOX,
        },
        {"train": {"a.jpg": ["dent"]}, "val": {"b.jpg": ["dent"]}},
    ),
    "pictures that lie about": (
        "images/a.jpg images/b.jpg masks/a.png labels.jpg runs/train/results.png images/masks/a.png",
        {"data.yaml": YAML, "labels/a.txt": BOX, "runs/train/args.yaml": "lr0: 1\n", "requirements.txt": "torch\n"},
        {"instances": {"a.jpg": ["dent"], "b.jpg": []}},
    ),
    "names as addresses have them, with the image's suffix, twice": (
        "images/p-ñ.jpg images/b.jpg images/c.jpg",
        {
            "data.yaml": YAML,
            "labels/p-n%CC%83.txt": BOX,
            "labels/b.jpg.txt": BOX,
            "labels/c.txt": BOX,
            "images/c.txt": BOX,
        },
        {"instances": {"b.jpg": ["dent"], "c.jpg": ["dent"], "p-ñ.jpg": ["dent"]}},
    ),
}


@pytest.mark.parametrize("tool", EXPORTS)
def test_exports_convert_untouched(tool: str, tmp_path: Path, capsys: Capture) -> None:
    images, files, expected = EXPORTS[tool]
    sets, out = convert(capsys, write_tree(tmp_path / "src", images, files))
    assert sets == expected
    if len(sets) > 1:
        counts = [f"{name} {len(sets[name])}" for name in ("train", "val", "test", "rest") if name in sets]
        assert f"splits: {', '.join(counts)} images, by " in out


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [OK, NG, NO]", "OK NG NO"),
        ("names: {0: on, 1: 0x1F, 2: 1e3, 3: 2024-01-01, 4: ~}", "on 0x1F 1e3 2024-01-01 ~"),
        ("names:\n  '1': dent\n  '0': crack", "crack dent"),
        ('names: ["da\\u00f1o", óxido]', "daño óxido"),
    ],
)
def test_names_are_text_as_written(text: str, names: str, tmp_path: Path, capsys: Capture) -> None:
    source = write_tree(tmp_path / "src", "images/a.jpg", {"data.yaml": text, "labels/a.txt": f"0{BOX[1:]}"})
    classes = ", ".join(f"{number}={name}" for number, name in enumerate(names.split(), start=1))
    assert f"classes: {classes}\n" in convert(capsys, source)[1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.yaml": YAML, "b.yml": YAML}, "several files describe the set. Keep one (data.yaml goes before others)"),
        ({"classes.txt": LIST, "labels/classes.txt": "dent\ncrack\n"}, "lists of classes that differ"),
        ({"data.yaml": "names: {1: crack, 2: dent}"}, "index: name from 0 on"),
        ({"data.yaml": YAML, "images/a.txt": f"0{BOX[1:]}"}, "images/a.jpg, and so is"),
        ({"data.yaml": YAML + "train: t.txt\n", "t.txt": "images/a.jpg\nb.jpg\n"}, "line 2: the image 'b.jpg' is not"),
        (
            {"data.yaml": YAML + "train: images\nval: v.txt\n", "v.txt": "images/c.jpg\n"},
            "images/c.jpg is in train too",
        ),
        ({"data.yaml": YAML, "labels/a.txt": "Car 0 0 -1.5 5 5 9 9\n"}, "file: no line is YOLO's (class index, then"),
        (
            {"data.yaml": YAML, "labels/a.txt": "0,0.5,0.5,0.2,0.2\n"},
            "the first is '0,0.5,0.5,0.2,0.2', which looks like \"class,cx,cy,w,h\" in fractions (",
        ),
        ({"data.yaml": YAML, "labels/a.txt": "0 40 20 100 100\n"}, "no line is YOLO's (class index, then"),
        ({"data.yaml": YAML, "labels/a.txt": BOX + "0 40 20 10 10\n"}, "is not in fractions of the image"),
        ({"labels/a.txt": "10 20 40 50 crack\n5 5 9 9 dent\n"}, ' DST --format "x1 y1 x2 y2 class"\n'),
        ({"labels/a.txt": "0 10 20 30 40\n3 5 5 90 45\n"}, '"class x1 y1 x2 y2" in pixels. Type: '),
        ({"labels/a.txt": "crack .5 .5 .2 .2\n"}, '--format "class cx cy w h" --units fractions\n'),
        ({"data.yaml": 'names: [a, "\\ud800"]'}, "name: '\\ud800' holds what is no text"),
    ],
)
def test_faults_are_told(files: dict[str, str], message: str, tmp_path: Path, capsys: Capture) -> None:
    source = write_tree(tmp_path / "src", "images/a.jpg images/c.jpg", {"labels/a.txt": BOX, **files})
    code, _, err = run(capsys, "yolo", source, tmp_path / "new")
    assert code == 2 and message in err, err


def test_given_classes_decide(tmp_path: Path, capsys: Capture) -> None:
    files = {"a.yaml": "names: [x, y]", "b.yml": YAML, "labels/a.txt": BOX}
    source = write_tree(tmp_path / "src", "images/a.jpg", files)
    sets, out = convert(capsys, source, "--classes", source / "b.yml")
    assert sets == {"instances": {"a.jpg": ["dent"]}} and "Their train, val and test are not read" in out


def test_labels_without_images(tmp_path: Path, capsys: Capture) -> None:
    source = write_tree(tmp_path / "src", "", {"classes.txt": LIST, "labels/a.txt": BOX, "labels/b.txt": BOX})
    code, _, err = run(capsys, "yolo", source, tmp_path / "new")
    assert code == 2 and "it has 2 text files, but no image. Export once more, with the images" in err


@pytest.mark.parametrize(
    ("yaml", "line", "said"),
    [
        ("", "1 0.5 0.5 0.2 0.4 0.93\n", "1 lines have a sixth number"),
        ("", "1 0.4 0.3 0.6 0.3 0.6 0.7 0.4 0.7\n", "1 lines are polygons"),
        ("kpt_shape: [2, 3]\n", "1 0.5 0.5 0.2 0.4 0.45 0.45 2 0.55 0.55 2\n", "1 lines hold keypoints"),
        ("val: null\ntest: ../test/images\n", BOX, "test: names '../test/images', where no image of the set lies"),
        ("train: images\nval: images\n", BOX, "val: names the same images as train"),
    ],
)
def test_what_is_decided_is_said(yaml: str, line: str, said: str, tmp_path: Path, capsys: Capture) -> None:
    source = write_tree(tmp_path / "src", "images/a.jpg", {"data.yaml": YAML + yaml, "labels/a.txt": line})
    sets, out = convert(capsys, source)
    assert [list(images.values()) for images in sets.values()] == [[["dent"]]] and said in out


def test_boxes_slightly_outside_are_cut_off(tmp_path: Path, capsys: Capture) -> None:
    lines = "0 0.05 0.5 0.119 0.5\n0 0.5 0.99 0.1 0.039\n0 0.5 0.5 0.1 0.1\n"
    source = write_tree(tmp_path / "src", "images/a.jpg", {"data.yaml": YAML, "labels/a.txt": lines})
    code, out, err = run(capsys, "yolo", source, tmp_path / "new")
    assert code == 0, err
    assert "boxes: 2 reach outside of their images, by up to 0.95 pixels" in out
    content = json.loads((tmp_path / "new/annotations/instances.json").read_text(encoding="utf-8"))
    assert [one["bbox"] for one in content["annotations"][:2]] == [
        pytest.approx([0, 12.5, 10.95, 25]),
        pytest.approx([45, 48.525, 10, 1.475]),
    ]
