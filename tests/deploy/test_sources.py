import os
import socket
from pathlib import Path

import pytest

from data.errors import UserError
from deploy.sources import find_sources, safe_name


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
    assert [(one.source, one.is_live) for one in sources.videos] == [(0, True)], "7 is a folder here"


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


def test_brackets_in_the_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that exists is meant before anything that its brackets may mean."""
    for name in ("lote [2024] #1/a.png", "lote [2024] #1/b[1].png", "lote 2 #1/no.png", "tanda [2025]/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def found(pattern: str) -> list[str]:
        return [one.path.name for one in find_sources([pattern]).images]

    assert found("lote [2024] #1/*.png") == found(f"{tmp_path}/lote [2024] #1/*.png") == ["a.png", "b[1].png"]
    assert found("lote [2024] #1/b[1]*") == ["b[1].png"], "nothing but the brackets themselves fits"
    assert found("tanda [2025]*/*.png") == ["c.png"] and found("lote [1-3] #1/*.png") == ["no.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_pipes_devices_and_dead_links_are_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open a pipe waits for ever."""
    os.mkfifo(folder / "pipe.png")
    (folder / "dead.png").symlink_to(folder / "gone.png")
    (folder / "video0").symlink_to("/dev/null")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket.png")
        sources = find_sources([".", "video0", "*.png"])
    reasons = {text.partition(": ")[0]: text.partition(": ")[2] for text in sources.skipped}
    assert [one.name for one in sources.images] == ["a.jpg", "a.png", "b[1].png"]
    assert set(reasons) == {"pipe.png", "dead.png", "socket.png", "video0"}
    assert reasons["pipe.png"] == reasons["socket.png"] == "skipped, it is a pipe, a socket or a device, not a file"
    assert reasons["dead.png"] == "skipped, it is a link that leads nowhere, not a file"
    assert reasons["video0"].endswith("a camera is given by its number, e.g. 0")
    with pytest.raises(UserError, match=r"nothing to look at:\n.*pipe\.png: skipped"):
        find_sources(["pipe.png"])


def test_streams_are_named_without_their_secrets() -> None:
    addresses = ["rtsp://user:p@ss@10.0.0.2:554/ch/1?token=x", "HTTP://cam.local/video.mjpg?user=a&pwd=b"]
    sources = find_sources([*addresses, addresses[0]])
    assert [one.source for one in sources.videos] == addresses and all(one.is_live for one in sources.videos)
    assert [(one.name, one.stem) for one in sources.videos] == [
        ("rtsp://10.0.0.2:554/ch/1", "10_0_0_2_554_ch_1"),
        ("http://cam.local/video.mjpg", "cam_local_video_mjpg"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="has no such names")
def test_odd_names(tmp_path: Path) -> None:
    """Tables get them escaped; results get names that every system can have."""
    odd = ["a\nb.png", "\x1b[31mred.png", os.fsdecode(b"\xff\xfe.png"), "\u202egnp.exe.png", "ñ" * 125 + ".png"]
    for name in [*odd, "n" * 251 + ".png", "n" * 251 + ".jpg"]:
        (tmp_path / name).touch()
    images = {one.path.name: one for one in find_sources([str(tmp_path)]).images}
    assert [(images[name].name, images[name].stem) for name in odd] == [
        (r"a\nb.png", "a_b"),
        (r"\x1b[31mred.png", "_[31mred"),
        (r"\udcff\udcfe.png", "__"),
        (r"\u202egnp.exe.png", "_gnp.exe"),
        (odd[4], "ñ" * 100),
    ]
    assert [safe_name(name) for name in ("a/b: c?", "con", "..", "nul.x")] == ["a_b_ c_", "con_", "_", "nul.x_"]
    (tmp_path / "x.jpg").mkdir()
    for name in ("x.png", "x.jpg/y.png"):
        (tmp_path / name).touch()
    assert {one.stem for one in find_sources([str(tmp_path)], recursive=True).images} >= {"x", "x.jpg_/y"}
    assert {one.stem for one in images.values()} >= {"n" * 200, "n" * 200 + "_png"}
    for arguments in (["x" * 5000], ["x\0y.png"], ["x" * 300 + "*.png"]):
        with pytest.raises(UserError, match="nothing to look at"):
            find_sources(arguments)


def test_pages_of_a_file(tmp_path: Path) -> None:
    for name in ("a.tif", "a_p2.tif", "deep/a.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = find_sources([str(tmp_path)], recursive=True)
    stems = sources.stems
    pages = [sources.images[0].page(number, stems) for number in (1, 2, 3)]
    assert [(one.name, one.stem) for one in pages] == [
        ("a.tif", "a"),
        ("a_p2_tif.tif", "a_p2_tif"),
        ("a_p3.tif", "a_p3"),
    ]
    assert sources.images[2].page(2, stems).name == sources.images[2].page(2, set()).name == "deep/a_p2.tif"
