"""The generated data set: what it promises about boxes, sizes, contrasts, counts and files."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pydantic import ValidationError

from data.config import SyntheticConfig
from data.errors import UserError
from data.synthetic import CLASS_NAMES, MARKER_NAME, DrawnImage, draw_image, ensure_dataset
from data.synthetic_draw import DEFECTS, SURFACES

IMAGES = 150


def tiny(root: Path, **changes: Any) -> SyntheticConfig:
    return SyntheticConfig(**{"root": root, "num_train": 20, "num_val": 6, **changes})


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def drawn() -> list[DrawnImage]:
    return [draw_image(SyntheticConfig(), "train", k, normal=False) for k in range(IMAGES)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_dataset(tiny(tmp_path_factory.mktemp("synthetic") / "quickstart"))


@pytest.mark.parametrize("name", DEFECTS)
def test_box_holds_nearly_all_that_was_changed(name: str) -> None:
    """Independent of the generator's mask: the same image with and without its defects."""
    config = SyntheticConfig(
        class_weights={name: 1.0},
        noise_levels=(0, 0),
        blur_sigma_px=(0, 0),
        objects_per_image=(1.0,),
        contrast_range=(0.4, 0.6),
    )
    for index in range(8):
        clean = draw_image(config, "train", index, normal=True).image.astype(int)
        image = draw_image(config, "train", index, normal=False)
        left, top, right, bottom = image.defects[0].box_xyxy
        changed = np.abs(image.image.astype(int) - clean).max(-1)
        # Only what is too faint to see (at most visible_share of the contrast) may lie outside the box.
        outside = changed.copy()
        outside[top:bottom, left:right] = 0
        assert outside.max() <= 0.2 * 0.6 * 255 + 1
        rows, columns = np.nonzero(changed > 0.2 * image.defects[0].contrast * 255 * 1.3)
        assert abs(columns.min() - left) <= 2 and abs(columns.max() + 1 - right) <= 2
        assert abs(rows.min() - top) <= 2 and abs(rows.max() + 1 - bottom) <= 2


def test_sizes_contrasts_and_places_keep_to_the_config(drawn: list[DrawnImage]) -> None:
    """And cover their ranges; defects of an image lie apart."""
    config = SyntheticConfig()
    for image in drawn:
        covered = np.zeros((160, 160), int)
        for defect in image.defects:
            left, top, right, bottom = defect.box_xyxy
            covered[top:bottom, left:right] += 1
            floor = max(config.contrast_range[0], config.contrast_floor.get(defect.name, 0))
            assert floor <= defect.contrast <= config.contrast_range[1]
        assert covered.max() == 1
    boxes = np.array([d.box_xyxy for image in drawn for d in image.defects])
    sides = np.sort(boxes[:, 2:] - boxes[:, :2], axis=1) / 160
    assert sides[:, 1].min() >= 0.04 and sides[:, 1].max() <= 0.5 and sides[:, 0].min() >= 0.03
    assert np.quantile(sides[:, 1], 0.05) < 0.08 and np.quantile(sides[:, 1], 0.95) > 0.3
    contrasts = [d.contrast for image in drawn for d in image.defects]
    assert np.quantile(contrasts, 0.1) < 0.18 and np.quantile(contrasts, 0.9) > 0.45
    side = draw_image(SyntheticConfig(image_size=97), "train", 0, normal=False).image.shape[0]
    assert side == 97 and boxes.min() >= 0 and boxes.max() <= 160
    assert not np.array_equal(drawn[7].image, draw_image(config, "val", 7, normal=False).image), "by split"


def test_counts_follow_the_weights(drawn: list[DrawnImage]) -> None:
    counts = Counter(len(image.defects) for image in drawn)
    assert set(counts) <= {1, 2, 3, 4}
    assert counts[1] / IMAGES == pytest.approx(0.45, abs=0.12)
    classes = Counter(d.name for image in drawn for d in image.defects)
    assert set(classes) == set(CLASS_NAMES[:-1])
    assert min(classes.values()) > 0.6 * max(classes.values())
    assert set(image.texture for image in drawn) == set(SURFACES)


def test_a_weight_of_zero_is_never_drawn() -> None:
    config = SyntheticConfig(
        class_weights={"ROTURA": 1, "RAYONES": 0}, texture_weights={"cast_metal": 1}, objects_per_image=(0, 1)
    )
    images = [draw_image(config, "val", k, normal=False) for k in range(8)]
    assert {d.name for image in images for d in image.defects} == {"ROTURA"}
    assert {image.texture for image in images} == {"cast_metal"}
    assert max(len(image.defects) for image in images) == 2


def test_an_impossible_request_is_a_clear_error() -> None:
    config = SyntheticConfig(contrast_range=(0.9, 0.9), contrast_floor={}, texture_weights={"cast_metal": 1})
    with pytest.raises(UserError, match=r"contrast_range \[0.9, 0.9\]; widen them"):
        draw_image(config, "train", 0, normal=False)


def test_same_seed_same_bytes_and_another_seed_others(written: Path, tmp_path: Path) -> None:
    again = ensure_dataset(tiny(tmp_path / "again"))
    assert files_of(again) == files_of(written)
    other = ensure_dataset(tiny(tmp_path / "other", seed=1))
    first, second = (
        {name: content for name, content in files_of(root).items() if name.endswith(".jpg")}
        for root in (written, other)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.synthetic._write_split", lambda *_: pytest.fail("written again"))
        assert ensure_dataset(tiny(written)) == written
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


@pytest.mark.parametrize(("split", "count", "normal"), [("train", 20, 3), ("val", 6, 1)])
def test_valid_coco_files(written: Path, split: str, count: int, normal: int) -> None:
    coco = COCO(str(written / "annotations" / f"instances_{split}.json"))
    assert [(c["id"], c["name"]) for c in coco.dataset["categories"]] == list(enumerate(CLASS_NAMES, start=1))
    assert len(coco.imgs) == count
    for image in coco.imgs.values():
        pixels = cv2.imread(str(written / "images" / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
    for annotation in coco.anns.values():
        x, y, width, height = annotation["bbox"]
        assert annotation["area"] == width * height > 0 and annotation["iscrowd"] == 0
        assert x >= 0 and y >= 0 and x + width <= 160 and y + height <= 160
        assert 1 <= annotation["category_id"] <= 5
    without = [k for k in coco.imgs if not coco.getAnnIds(imgIds=k)]
    assert len(without) == normal
    assert sorted(p.name for p in written.iterdir()) == ["annotations", "images", MARKER_NAME], "and nothing else"
    assert list(written.parent.iterdir()) == [written]


def test_other_settings_are_refused_and_named(written: Path) -> None:
    before = files_of(written)
    with pytest.raises(UserError, match="generated from other settings") as error:
        ensure_dataset(tiny(written, seed=3, num_val=7))
    text = str(error.value)
    assert str(written) in text and "Delete the folder" in text and "synthetic.root" in text
    assert "seed: the folder was made with 0, the config has 3" in text
    assert "num_val: the folder was made with 6, the config has 7" in text
    assert "num_train" not in text
    assert files_of(written) == before


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(UserError, match="holds no generated data set .* nothing was written"):
        ensure_dataset(tiny(tmp_path))
    assert files_of(tmp_path) == {"mine.txt": b"keep"}


def test_a_file_in_the_way_and_a_broken_marker(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="expected a folder .* found a file"):
        ensure_dataset(tiny(tmp_path / "file"))
    with pytest.raises(UserError, match="could not be written"):
        ensure_dataset(tiny(tmp_path / "file" / "below"))
    (tmp_path / "q").mkdir()
    for content in ("{", "3"):
        (tmp_path / "q" / MARKER_NAME).write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="not readable"):
            ensure_dataset(tiny(tmp_path / "q"))


def test_missing_files_are_all_reported(tmp_path: Path) -> None:
    config = tiny(tmp_path / "q", num_train=2, num_val=1)
    root = ensure_dataset(config)
    (root / "images" / "train" / "train_00000.jpg").unlink()
    (root / "annotations" / "instances_val.json").unlink()
    with pytest.raises(UserError, match="not complete") as error:
        ensure_dataset(config)
    assert len(error.value.problems) == 2
    assert "expected 2 images, found 1" in error.value.problems[0]
    assert "instances_val.json: missing" in error.value.problems[1]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.synthetic.draw_image", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_dataset(tiny(tmp_path / "q"))
    assert list(tmp_path.iterdir()) == []


_ENSURE = """
import sys
from pathlib import Path
from data.synthetic import ensure_dataset
from data.config import SyntheticConfig
root, num_train = Path(sys.argv[1]), int(sys.argv[2])
ensure_dataset(SyntheticConfig(root=root, image_size=64, num_train=num_train, num_val=1))
"""


def _start(root: Path, num_train: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _ENSURE, str(root), str(num_train)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2])


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "q[1]"  # square brackets are patterns to glob
    root.mkdir()  # an empty folder is filled
    older = tmp_path / ".q[1].0badcafe.partial"
    older.mkdir()
    killed = _start(root, 5000)
    while not list(tmp_path.glob(".q*drawing.partial/images/train/*.jpg")):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    assert len(list(tmp_path.glob(".q*partial"))) == 1 and not older.exists()
    assert ensure_dataset(tiny(root, num_train=1, num_val=1, num_test=2)) == root
    assert len(list((root / "images" / "test").glob("*.jpg"))) == 2, "a test split on request"
    assert list(tmp_path.iterdir()) == [root] and (root / MARKER_NAME).is_file()


def test_of_several_processes_one_draws_and_all_use_its_files(tmp_path: Path) -> None:
    processes = [_start(tmp_path / "q", 20) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert list(tmp_path.iterdir()) == [tmp_path / "q"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_range": (0.5, 0.04)}, r"size_range\n  \["),
        ({"size_mode": 0.9}, "size_mode: 0.9"),
        ({"contrast_range": (0.0, 0.5)}, r"contrast_range\n  \["),
        ({"contrast_floor": {"ROTURA": 0.9}}, "contrast_floor.ROTURA: 0.9"),
        ({"min_box_side": 0.2}, "min_box_side: 0.2"),
        ({"jpeg_quality": (0, 100)}, r"jpeg_quality\n  \["),
        ({"objects_per_image": (0.0,)}, "objects_per_image: expected weights"),
        ({"objects_per_image": ()}, "objects_per_image"),
        ({"texture_weights": {"cast_metal": -1.0, "smooth_paint": 2.0}}, "texture_weights: expected weights"),
        ({"class_weights": {"NORMAL": 1.0}}, "class_weights"),
        ({"normal_fraction": 1.5}, "normal_fraction"),
        ({"colour": 1}, "colour"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SyntheticConfig(**change)
