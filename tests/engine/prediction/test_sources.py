from pathlib import Path

import pytest

from data.errors import UserError
from engine.prediction.sources import find_sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "a.png",
        "a.jpg",
        "b[1].png",
        "clip.MP4",
        "notes.txt",
        "._a.png",
        "deep/a.png",
        "out/a.jpg",
        "7/a.bmp",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def test_folders(folder: Path) -> None:
    sources = find_sources([str(folder)])
    assert [(one.name, one.stem) for one in sources.images] == [
        ("a.jpg", "a"),
        ("a.png", "a_png"),
        ("b[1].png", "b[1]"),
    ]
    assert [(one.name, one.stem) for one in sources.videos] == [("clip.MP4", "clip")]
    deep = find_sources([str(folder)], recursive=True, exclude=folder / "out")
    assert {one.name for one in deep.images} == {"a.jpg", "a.png", "b[1].png", "deep/a.png", "7/a.bmp"}
    assert len({one.stem.casefold() for one in deep.images}) == 5


def test_files_patterns_and_cameras(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    sources = find_sources(["b[1].png", "*.png", "**/a.png", "notes.txt", "0", "7", "0"])
    assert [one.name for one in sources.images] == ["b[1].png", "a.png", "deep/a.png", "notes.txt", "a.bmp"]
    assert [one.stem for one in sources.images] == ["b[1]", "a", "a_png", "notes", "a_bmp"]
    assert [(one.source, one.is_camera) for one in sources.videos] == [(0, True)], "7 is a folder here"


def test_equal_names_from_two_folders_are_told_apart(folder: Path) -> None:
    """Otherwise nobody could say of which of them a row of the tables speaks."""
    sources = find_sources([str(folder), str(folder / "deep"), str(folder / "a.png")])
    names = [one.name for one in sources.images]
    assert names == ["a.jpg", (folder / "a.png").as_posix(), "b[1].png", (folder / "deep/a.png").as_posix()]
    assert [one.stem for one in sources.images] == ["a", "a_png", "b[1]", "a_png_2"], "results stay below the output"


def test_what_leads_nowhere(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_sources([str(folder / "empty"), str(folder / "gone.png"), str(folder / "*.gif"), str(folder / "a.png")])
    assert "no image or video in this folder; --recursive" in str(error.value)
    assert "gone.png: no such file or folder" in str(error.value)
    assert "no image or video matches this pattern" in str(error.value) and len(error.value.problems) == 3
