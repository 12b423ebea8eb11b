"""What stays on the disk, and what is said, when it cannot take what is written."""

import csv
import io
import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from data.classes import ClassMap
from data.errors import UserError
from data.types import PixelArray
from deploy.sources import ImageSource
from deploy.video import VideoFile, count_frames
from deploy.writers import FORMS, Form, ImageWriter, Table
from models.detections import Detections
from tests.support.full_disk import full_disk

CLASSES = ClassMap((3, 7), ("a\nb", "\ud800 \x1b[31m"))
FOUND = Detections(np.array([[2.0, 3, 30, 40], [5, 5, 20, 20]]), np.array([0.9, 0.8]), np.array([0, 1]))


def noise(seed: int = 0) -> PixelArray:
    return np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, form: Form) -> None:
    wrong = pytest.raises(UserError, match="(could not be written|Could not write).*File too large")
    with ExitStack() as disk, wrong, ImageWriter(tmp_path, [form], CLASSES, "en") as writer:
        disk.enter_context(full_disk(20))
        writer.add(ImageSource(tmp_path / "a.png", "a.png", "a"), noise(), FOUND)
    assert files(tmp_path) == []


def test_a_table_ends_with_a_whole_row(tmp_path: Path) -> None:
    wrong = pytest.raises(UserError, match="t.csv: could not be written")
    with ExitStack() as disk, wrong, Table(tmp_path / "t.csv", "video_columns", "en") as table:
        disk.enter_context(full_disk(150))
        for number in range(100):
            table.add([[number, "x" * 20]])
    rows = list(csv.reader(io.StringIO((tmp_path / "t.csv").read_text(encoding="utf-8-sig"))))
    assert rows[1:] == [["0", "x" * 20], ["1", "x" * 20], ["2", "x" * 20]]


def test_a_video_that_does_not_fit_is_not_left_behind(tmp_path: Path) -> None:
    wrong = pytest.raises(UserError, match=r"v\.mp4: only 0 of 30 frames could be written\. Free some space")
    with ExitStack() as disk, wrong, VideoFile(tmp_path / "v", 25) as video:
        disk.enter_context(full_disk(20_000))
        for number in range(30):
            video.add(noise(number))
    assert files(tmp_path) == []


def test_a_video_ends_while_there_is_room_for_its_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(UserError, match=r"v\.mp4: could not be written \(No space left"),
        VideoFile(tmp_path / "v", 25) as video,
    ):
        for number in range(4):
            video.add(noise(number))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
        video.add(noise())
    assert files(tmp_path) == ["v.mp4"] and count_frames(tmp_path / "v.mp4") == 4


@pytest.mark.parametrize(
    ("rate", "folder"),
    [(rate, "plain") for rate in (0.01, 0.5, 14.985, 24000 / 1001, 29.97, 119.88, 1000.0)]
    + [(25.0, "a:b %03d \n"), (25.0, os.fsdecode(b"\xff"))],
)
def test_videos_of_any_rate_in_any_folder(
    tmp_path: Path, rate: float, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    with VideoFile(Path(folder) / "v", rate) as video:
        for number in range(5):
            video.add(noise(number))
        video.add(cv2.resize(noise(), (33, 21)))  # a stream that changes its size
    assert files(tmp_path) == [f"{folder}/v.mp4"] and count_frames(Path(folder) / "v.mp4") == 6


def test_frames_are_counted_up_to_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (80, 64))
    for number in range(30):
        writer.write(noise(number))
    writer.release()
    assert count_frames(path) == 30
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 10 < count_frames(path) < 20
    (tmp_path / "empty.mp4").touch()
    assert count_frames(tmp_path / "empty.mp4") == 0 == count_frames(tmp_path / "gone.mp4")


def test_odd_names_of_classes(tmp_path: Path) -> None:
    with ImageWriter(tmp_path, FORMS, CLASSES, "en") as writer:
        writer.add(ImageSource(tmp_path / "a.png", r"a\nb.png", "a_b"), noise(), FOUND)
    names = [r"a\nb", r"\ud800 \x1b[31m"]
    assert (tmp_path / "yolo/classes.txt").read_text(encoding="utf-8").splitlines() == names
    assert [row[3] for row in csv.reader((tmp_path / "predictions.csv").open(encoding="utf-8"))] == ["class", *names]
    assert [one["name"] for one in json.loads((tmp_path / "coco.json").read_bytes())["categories"]] == list(
        CLASSES.names
    )
    assert files(tmp_path / "crops") == ["_ud800 _x1b[31m/a_b_2.png", "a_nb/a_b_1.png"]
