"""Text files with a box a line, in the forms that data sets have."""

import json
from pathlib import Path

import pytest

from tests.data.convert.test_convert import boxes_of, run
from tests.support.foreign_formats import write_tree

Capture = pytest.CaptureFixture[str]
BOX = ("dent", [40.0, 15.0, 20.0, 20.0])
"""In an image of 100 x 50 pixels."""
NAMES = "crack\ndent\n"
FORMS: dict[str, tuple[str, str, str, list[str]]] = {
    "corners": ("x1 y1 x2 y2 class", "", "40 15 60 35 dent\n", []),
    "class first, as NEU-like sets": ("class x1 y1 x2 y2", "", "dent 40 15 60 35\n\n", []),
    "a line of names": ("x1,y1,x2,y2,class", "", "x1,y1,x2,y2,class\n40,15,60,35,dent\n", []),
    "DeepPCB: numbers from 1": ("x1 y1 x2 y2 class", NAMES, "40 15 60 35 2\n", ["--first-class", "1"]),
    "numbers from 0": ("class x1 y1 x2 y2", NAMES, "1\t40 15  60 35\n", []),
    "a corner and a size": ("x;y;w;h;class", "", "40,0; 15; 20; 20; dent;\n", []),
    "VisDrone": ("x,y,w,h,score,class,-,-", NAMES, "40,15,20,20,1,1,0,0\n", []),
    "centre, tabs": (r"class\tcx\tcy\tw\th", "", "dent\t50\t25\t20\t20\n", []),
    "fractions, other order": ("cy cx h w class", "", ".5 .5 .4 .2 dent\n", ["--units", "fractions"]),
    "one class": ("x1 y1 x2 y2", "dent\n", "40 15 60 35\n", []),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path, capsys: Capture) -> None:
    text, names, lines, more = FORMS[form]
    files = {"labels/a.txt": lines, "labels/b.txt": ""} | ({"classes.txt": names} if names else {})
    source = write_tree(tmp_path / "src", "images/a.jpg images/b.jpg", files)
    code, out, err = run(capsys, "txt", source, tmp_path / "new", "--format", text, *more)
    assert code == 0, err
    found = boxes_of(json.loads((tmp_path / "new/annotations/instances.json").read_text(encoding="utf-8")))
    ((name, xywh),) = found.pop("a.jpg")
    assert name == BOX[0] and xywh == pytest.approx(BOX[1]) and found == {"b.jpg": []}
    assert f'lines: "{text}" in ' in out
    assert ("a line of names" in out) == ("names" in form) and ("have a score" in out) == ("score" in text)


def test_names_that_differ_from_their_images(tmp_path: Path, capsys: Capture) -> None:
    """As DeepPCB has them: pictures of the perfect board beside, lists of pairs, classes as numbers."""
    files = {"g1/1_not/01.txt": "40 15 60 35 2\n", "trainval.txt": "g1/1/01.jpg g1/1_not/01.txt\n"}
    source = write_tree(tmp_path / "src", "g1/1/01_test.jpg g1/1/01_temp.jpg", files)
    form = ("--format", "x1 y1 x2 y2 class", "--image-ending", "_test")
    code, out, err = run(capsys, "txt", source, tmp_path / "new", *form)
    assert code == 0 and "1 images, 1 boxes; classes: 1=2" in out, err
    assert "are numbers, which become their names. --classes FILE" in out


@pytest.mark.parametrize(
    ("form", "files", "messages"),
    [
        ("x1 y1 x2 class", {}, ['--format "x1 y1 x2 class": expected the fields of a line in their order']),
        ("x1 y1 x2 y2 class class", {}, ["each once: x1 y1 x2 y2 | x y w h | cx cy w h"]),
        ("x1 y1 x2 y2", {}, ["without the field class, name the one class with --classes FILE"]),
        (
            "x1 y1 x2 y2 class",
            {"a.txt": "0 0 9 9 b\n1 2 3 c\n5 5 4 9 b\n5 x 9 9 b\n5 5 900 9 b\n", "gone.txt": "0 0 9 9 b\n"},
            [
                "a.txt: line 2: is '1 2 3 c', of 4 fields; expected 5: x1 y1 x2 y2 class",
                "line 3: the box from corner to corner (5, 5, 4, 9) has its corners exchanged",
                "line 4: is '5 x 9 9 b', expected: x1 y1 x2 y2 class",
                "line 5: the box from corner to corner (5, 5, 900, 9) leaves the image of 100 x 50",
                "gone.txt: file: there is no image gone.* for it",
                "5 errors",
            ],
        ),
        ("x1 y1 x2 y2 class", {"a.txt": "4,4,60,9,b\n"}, ['looks like "x1,y1,x2,y2,class" in pixels']),
        (
            "x1 y1 x2 y2 class",
            {"a.txt": "4 4 60 9\n"},
            ['looks like "x1 y1 x2 y2" in pixels', '--format "x1 y1 x2 y2" --classes FILE, a text file'],
        ),
        ("cx cy w h class", {"a.txt": ".5 .5 .9 .9 b\n"}, ["Type: python", '"cx cy w h class" --units fractions']),
        (
            "class x1 y1 x2 y2",
            {"a.txt": "2 0 0 9 9\n1 0 0 9 9\n", "classes.txt": "b\nc\n"},
            ["2 (1 boxes) is none of 0 to 1"],
        ),
    ],
)
def test_faults(form: str, files: dict[str, str], messages: list[str], tmp_path: Path, capsys: Capture) -> None:
    source = write_tree(tmp_path / "src", "a.jpg", {"a.txt": "0 0 9 9\n", **files})
    code, _, err = run(capsys, "txt", source, tmp_path / "new", "--format", form)
    assert code == 2 and not [one for one in messages if one not in err], err
