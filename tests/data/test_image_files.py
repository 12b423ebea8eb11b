import os
from pathlib import Path

import pytest

from data.image_files import check_image_files
from data.problems import Problem


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


@pytest.mark.parametrize("name", ["a.png", "B.PNG", "deep/c.png", "deep/../a.png", "./a.png"])
def test_files_that_are_there(folder: Path, name: str) -> None:
    assert _check(folder, name) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.png", "there is no file"),
        ("deep/a.png", "a.png: img_folder and file_name both name the folder deep"),
        ("nowhere/c.png", "there is no file"),
        ("deep", "is not a file. Correct file_name"),
        ("../outside.png", "the path leaves the image folder. Move the image below"),
        ("deep/../../outside.png", "the path leaves the image folder"),
        ("/etc/passwd", "file_name is an absolute path. Write file_name relative to the image folder"),
        ("C:\\images\\a.png", "file_name is an absolute path"),
        ("\\\\server\\share\\a.png", "file_name is an absolute path"),
    ],
)
def test_faults(folder: Path, name: str, message: str) -> None:
    (problem,) = _check(folder, name)
    assert problem.severity == "error" and problem.skippable and problem.bad_image_id == 7
    assert str(problem).startswith(f"ann.json: image 7 ({name}): ")
    assert message in str(problem)


def _ignores_case(folder: Path) -> bool:
    return (folder / "A.PNG").is_file()


def test_case_of_the_name(folder: Path) -> None:
    (problem,) = _check(folder, "b.png")
    assert "B.PNG" in str(problem) and "Linux" in str(problem)
    assert problem.severity == ("warning" if _ignores_case(folder) else "error")


@pytest.mark.skipif(os.name == "nt", reason="a backslash separates folders there")
def test_backslashes(folder: Path) -> None:
    (problem,) = _check(folder, "deep\\c.png")
    assert "Write file_name with / instead of \\" in str(problem)


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
