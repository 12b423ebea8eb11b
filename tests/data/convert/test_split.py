"""`python -m data.convert split`."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.coco import read_split
from data.convert.__main__ import main
from data.convert.split import assign_groups
from data.image_checks import check_images
from tests.support.coco_files import CocoFiles

SPLITS = ("train", "val", "test")


@pytest.fixture
def files(tmp_path: Path) -> CocoFiles:
    """40 images; each of the first five again, a little brighter, as image 36 to 40 with the same boxes."""
    files = CocoFiles(tmp_path, "all", num_images=40)
    for copy in range(36, 41):
        original = copy - 35
        pixels = np.asarray(Image.open(files.img_folder / f"all_{original}.png"))
        Image.fromarray(np.minimum(pixels, 250) + 5).save(files.img_folder / f"all_{copy}.png")
    files.content["annotations"] = [
        one | {"segmentation": [[1, 2, 3]], "note": "é"} for one in files.content["annotations"]
    ]
    files.content["info"] = {"year": 2026}
    return files.save()


def read(files: CocoFiles, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((files.ann_file.parent / f"all_{split}.json").read_text(encoding="utf-8"))
    return content


def test_nothing_is_lost_and_lookalikes_stay_together(files: CocoFiles, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["split", str(files.ann_file), "--images", str(files.img_folder)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    parts = {split: read(files, split) for split in SPLITS}
    for key in ("images", "annotations"):
        together = sorted((one for part in parts.values() for one in part[key]), key=lambda one: one["id"])
        assert together == files.content[key], "every entry once, as it was"
    assert all(part["info"] == {"year": 2026} for part in parts.values())
    assert all(part["categories"] == files.content["categories"] for part in parts.values())
    home = {one["id"]: split for split, part in parts.items() for one in part["images"]}
    assert [home[copy] for copy in range(36, 41)] == [home[copy - 35] for copy in range(36, 41)]
    assert [len(parts[split]["images"]) for split in SPLITS] == pytest.approx([28, 6, 6], abs=2)
    assert "5 groups of images that look alike (up to 2 images) stayed together" in out
    splits = [read_split(s, files.ann_file.parent / f"all_{s}.json", files.img_folder)[0] for s in SPLITS]
    assert check_images(splits) == [], "check_data.py finds no image in two splits"
    assert main(arguments) == 2
    assert "Files that exist are not overwritten" in capsys.readouterr().err


def test_folds(files: CocoFiles, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["split", str(files.ann_file), "--images", str(files.img_folder), "--folds", "5"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    every = {one["id"] for one in files.content["images"]}
    vals = [{one["id"] for one in read(files, f"fold_{number}_val")["images"]} for number in range(1, 6)]
    assert sum(map(len, vals)) == len(every) and set().union(*vals) == every, "each image validates once"
    assert all(len(val) == pytest.approx(8, abs=1) for val in vals)
    for number, val in enumerate(vals, start=1):
        train = read(files, f"fold_{number}_train")
        assert {one["id"] for one in train["images"]} == every - val
        assert train["categories"] == files.content["categories"]
        assert {one["image_id"] for one in train["annotations"]} <= every - val
        assert all({copy, copy - 35} <= val or not {copy, copy - 35} & val for copy in range(36, 41))
        command = next(line for line in out.splitlines() if f"--output-dir outputs/NAME_fold_{number} " in line)
        ann_file = files.ann_file.with_name(f"all_fold_{number}_val.json")
        assert command.startswith("python train_deimv2.py -c CONFIG ")
        assert f"val_dataloader.dataset.ann_file={ann_file.as_posix()}" in command
    assert out.endswith(" outputs/NAME_fold_4 outputs/NAME_fold_5\n") and "warning" not in out
    assert main(arguments) == 2 and "Files that exist are not overwritten" in capsys.readouterr().err
    for more, message in (
        (["--folds", "1"], "--folds 1: expected 2 to 20"),
        (["--val", "0.2"], "--val: not with --folds"),
        (["--folds", "20", "--output-dir", str(files.ann_file.parent / "x")], ""),
    ):
        code = main([*arguments, *more])
        assert (code == 2) == bool(message) and message in capsys.readouterr().err


def test_the_seed_decides(files: CocoFiles) -> None:
    def homes(seed: int, folder: str) -> list[list[int]]:
        target = files.ann_file.parent / folder
        arguments = ["--images", str(files.img_folder), "--output-dir", str(target), "--seed", str(seed)]
        assert main(["split", str(files.ann_file), "--train", "0.5", "--val", "0.5", "--test", "0", *arguments]) == 0
        assert sorted(path.name for path in target.iterdir()) == ["all_train.json", "all_val.json"]
        contents = [json.loads((target / f"all_{s}.json").read_text(encoding="utf-8")) for s in ("train", "val")]
        return [[image["id"] for image in content["images"]] for content in contents]

    assert homes(1, "a") == homes(1, "b") != homes(2, "c")


def test_bad_input(files: CocoFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        assert main(["split", str(files.ann_file), "--images", str(files.img_folder), *arguments]) == 2
        return capsys.readouterr().err

    assert "0.7 + 0.2 + 0.15 = 1.05: the parts must add up to 1" in error("--val", "0.2")
    assert "--seed -1: expected 0 or more" in error("--seed", "-1")
    message = error("--train", "0", "--val", "1.5")
    assert "--train 0: expected a part" in message and "--val 1.5: expected 0 to 1" in message
    assert "does not exist" in error("--images", str(tmp_path / "gone"))
    (files.img_folder / "all_2.png").write_bytes(b"nonsense")
    (files.img_folder / "all_3.png").unlink()
    assert "all_3.png" in error()
    files.content["images"] = [one for one in files.content["images"] if one["id"] != 3]
    files.content["annotations"] = [one for one in files.content["annotations"] if one["image_id"] != 3]
    files.save()
    assert "cannot be read as an image" in error()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "images"], "nothing is left behind"


@pytest.mark.parametrize(
    ("num_images", "copies", "options", "message"),
    [
        (2, 0, [], "2 images, of which 2 do not look alike, are too few: test would be empty. Set --test 0, or add"),
        (3, 1, ["--folds", "3"], "3 images, of which 2 do not look alike, are too few: fold_3 would be empty. Give"),
        (3, 1, ["--folds", "3"], "Give --folds 2, or add images."),
        (2, 1, ["--folds", "2"], "2 images, of which 1 do not look alike, are too few: fold_2 would be empty. Add"),
    ],
)
def test_too_few_groups(
    tmp_path: Path, num_images: int, copies: int, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = CocoFiles(tmp_path, "all", num_images=num_images).save()
    for copy in range(copies):
        shutil.copy(files.img_folder / "all_1.png", files.img_folder / f"all_{num_images - copy}.png")
    assert main(["split", str(files.ann_file), "--images", str(files.img_folder), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_class_of_one_fold_is_told(files: CocoFiles, capsys: pytest.CaptureFixture[str]) -> None:
    files.content["categories"].append({"id": 3, "name": "rust"})
    files.add_box(7, [1, 1, 9, 9], 3)
    files.save()
    assert main(["split", str(files.ann_file), "--images", str(files.img_folder), "--folds", "5"]) == 0
    out = capsys.readouterr().out
    assert out.count("rust: all its 1 images validate in this fold, which trains without the class") == 1


@given(st.integers(0, 10_000), st.integers(30, 120), st.integers(1, 5))
@settings(max_examples=20)
def test_every_class_in_its_share(seed: int, groups: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 1, 1, 2, 3], groups)
    held = rng.random((groups, classes)) < rng.uniform(0.05, 0.9, classes)
    kinds = np.column_stack([held, ~held.any(axis=1)]) * sizes[:, None]
    ratios = np.array([0.7, 0.15, 0.15])
    chosen = assign_groups(kinds, sizes, ratios, seed)
    assert set(chosen.tolist()) == {0, 1, 2}
    for kind in np.flatnonzero(kinds.any(axis=0)):
        total = kinds[:, kind].sum()
        for split, ratio in enumerate(ratios):
            share = kinds[chosen == split, kind].sum()
            assert abs(share - ratio * total) <= max(0.12 * total, 4), (kind, split, share, total)
    assert (assign_groups(kinds, sizes, ratios, seed) == chosen).all()


def test_a_rare_class_reaches_every_split() -> None:
    kinds = np.zeros((50, 2), dtype=np.int64)
    kinds[:, 0] = 1
    kinds[[3, 20, 41]] = [0, 1]
    chosen = assign_groups(kinds, np.ones(50, np.int64), np.array([0.7, 0.15, 0.15]), 0)
    assert set(chosen[[3, 20, 41]].tolist()) == {0, 1, 2}
