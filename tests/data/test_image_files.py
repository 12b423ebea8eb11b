import os
import unicodedata
from pathlib import Path

import pytest

from data.errors import UNPRINTABLE, UserError
from data.image_files import ImageFolder, check_image_files
from data.images import read_facts, read_image
from data.problems import Problem

no_windows = pytest.mark.skipif(os.name == "nt", reason="no such names there")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    (root / "deep").mkdir(parents=True)
    for name in ("a.png", "B.PNG", "deep/c.png"):
        (root / name).write_bytes(b"x")
    (tmp_path / "outside.png").write_bytes(b"x")
    return root


def _check(folder: Path, name: str) -> list[Problem]:
    return check_image_files("ann.json", folder, [(7, name)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", "there is no file"),
        ("deep/a.png", "a.png: img_folder and file_name both name the folder deep"),
        ("nowhere/c.png", "there is no file"),
        ("deep", "is not a file. Correct file_name: it is a folder, pipe, device or broken link"),
        ("../outside.png", "the path leaves the image folder. Move the image below"),
        ("deep/../../outside.png", "the path leaves the image folder"),
        ("/etc/passwd", "file_name is an absolute path. Write file_name relative to the image folder"),
        ("C:\\images\\a.png", "file_name is an absolute path"),
        ("\\\\server\\share\\a.png", "file_name is an absolute path"),
        pytest.param("deep\\c.png", "Write file_name with / instead of \\", marks=no_windows),
    ],
)
def test_faults(folder: Path, name: str, message: str) -> None:
    (problem,) = _check(folder, name)
    assert problem.severity == "error" and problem.skippable and problem.bad_image_id == 7
    assert str(problem).startswith(f"ann.json: image 7 ({name}): ")
    assert message in str(problem)


def test_files_that_are_there_and_the_case_of_their_names(folder: Path) -> None:
    for name in ("a.png", "B.PNG", "deep/c.png", "deep/../a.png", "./a.png"):
        assert _check(folder, name) == []
    (problem,) = _check(folder, "b.png")
    assert "B.PNG" in str(problem) and "Linux" in str(problem)
    assert problem.severity == ("warning" if (folder / "A.PNG").is_file() else "error")


def test_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.png").write_bytes(b"x")
    try:
        (folder / "inside.png").symlink_to(folder / "a.png")
        (folder / "leaving.png").symlink_to(tmp_path / "outside.png")
        (folder / "away").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (folder / "broken.png").symlink_to(tmp_path / "gone.png")
        (tmp_path / "alias").symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("links need a privilege here")
    assert _check(folder, "inside.png") == []
    assert _check(tmp_path / "alias", "a.png") == []  # the folder itself may be a link
    for name in ("leaving.png", "away/d.png"):
        (problem,) = _check(folder, name)
        assert "is a link that leaves the image folder" in str(problem)
    assert "is not a file" in str(_check(folder, "broken.png")[0])


def test_the_image_folder_itself(tmp_path: Path) -> None:
    (problem,) = _check(tmp_path / "gone", "a.png")
    assert "image folder" in str(problem) and "does not exist. Correct img_folder" in str(problem)
    (tmp_path / "file").write_bytes(b"x")
    (problem,) = _check(tmp_path / "file", "a.png")
    assert "is a file, expected a folder" in str(problem)


def test_accents_may_be_composed_differently_on_disk(tmp_path: Path) -> None:
    on_disk = unicodedata.normalize("NFD", "daños/uña.png")
    (tmp_path / on_disk).parent.mkdir()
    (tmp_path / on_disk).write_bytes(b"x")
    for name in ("daños/uña.png", on_disk, "./daños/../daños/uña.png"):
        assert _check(tmp_path, name) == []
        assert ImageFolder(tmp_path).path(name).read_bytes() == b"x"
    assert "there is no file" in str(_check(tmp_path, "daños/una.png")[0])


@pytest.mark.parametrize(
    ("on_disk", "name", "hint"),
    [
        ("pieza 1 ñ.png", "pieza%201%20%C3%B1.png", "There is pieza 1 ñ.png: percent-encoding"),
        ("pieza%201.png", "pieza 1.png", "There is pieza%201.png: percent-encoding"),
        ("line 1/a.png", "line%201/a.png", "There is line 1/a.png: file_name is percent-encoded"),
        ("100%.png", "100%25.png", "There is 100%.png: percent-encoding"),
    ],
)
def test_percent_encoded_names_get_a_hint(tmp_path: Path, on_disk: str, name: str, hint: str) -> None:
    (tmp_path / on_disk).parent.mkdir(exist_ok=True)
    (tmp_path / on_disk).write_bytes(b"x")
    assert hint in str(_check(tmp_path, name)[0])


@no_windows
def test_what_is_no_ordinary_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png", ".", "x" * 300 + ".png", "ñ" * 300 + ".png", "x" * 5000, "a/" * 3000 + "b"):
        (problem,) = _check(tmp_path, name)
        assert problem.bad_image_id == 7 and len(str(problem)) < 1000
    for read in (read_facts, read_image):
        for name in ("pipe.png", "device.png"):
            with pytest.raises(UserError, match="is no ordinary file"):
                read(tmp_path / name)


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[31mred.png", "caf\udce9.png", "\u202egnp.exe", "\x9b2J.png"])
def test_names_that_are_no_text_are_found_and_shown_escaped(tmp_path: Path, name: str) -> None:
    (problem,) = _check(tmp_path, name)
    assert not UNPRINTABLE.search(str(problem)) and "there is no file" in str(problem)
    (tmp_path / name).write_bytes(b"x")
    assert _check(tmp_path, name) == []
