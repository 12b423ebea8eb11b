import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from data.coco import CocoSplit, check_annotations, check_overlap, read_split
from data.image_checks import _Inspection, _look, _pairs_alike, check_images
from data.problems import Problem, errors_of, warnings_of
from data.types import PixelArray
from tests.support.coco_files import CocoFiles

BILINEAR = Image.Resampling.BILINEAR


def _split(files: CocoFiles) -> CocoSplit:
    files.save()
    return read_split(files.name, files.ann_file, files.img_folder)[0]


def _check(*files: CocoFiles, allow_split_overlap: bool = False) -> list[Problem]:
    return check_images([_split(one) for one in files], allow_split_overlap=allow_split_overlap)


@pytest.fixture
def train(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path)


@pytest.fixture
def val(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path, "val")


def test_unreadable_images(train: CocoFiles) -> None:
    (train.img_folder / "train_1.png").write_bytes(b"nonsense")
    path = train.img_folder / "train_2.png"
    path.write_bytes(path.read_bytes()[:-200])
    (train.img_folder / "train_3.png").unlink()  # reported by the cheap check
    problems = _check(train)
    assert [problem.bad_image_id for problem in problems] == [1, 2]
    assert all("cannot be read as an image" in str(p) and p.severity == "error" and p.skippable for p in problems)


def test_size_mismatch_by_exif_rotation(train: CocoFiles) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = train.img_folder / "train_1.png"
    Image.open(path).save(path, exif=exif)
    errors, warnings = errors_of(_check(train)), warnings_of(_check(train))
    assert (
        "the image is 40 x 48 pixels, but the annotation file says 48 x 40 (its size before EXIF orientation 6"
        in str(errors[0])
    )
    assert "remove the EXIF orientation" in str(errors[0])
    assert "1 images with an EXIF rotation, e.g. train_1.png" in str(warnings[0])
    train.content["images"][0].update(width=40, height=48)
    train.content["annotations"] = [a for a in train.content["annotations"] if a["image_id"] != 1]
    assert errors_of(_check(train)) == []


def test_odd_pixel_formats(train: CocoFiles) -> None:
    rng = np.random.default_rng(5)
    rgba = rng.integers(0, 256, (40, 48, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(train.img_folder / "train_1.png")
    Image.fromarray(rng.integers(0, 9000, (40, 48), dtype=np.uint16)).save(train.img_folder / "train_2.png")
    cmyk = Image.fromarray(rgba[..., :3]).convert("CMYK")
    cmyk.save(train.img_folder / "train_3.jpg")
    train.content["images"][2]["file_name"] = "train_3.jpg"
    Image.fromarray(rgba[..., :3]).quantize(8).save(train.img_folder / "train_4.png")
    problems = _check(train)
    assert errors_of(problems) == []
    text = "\n".join(map(str, problems))
    assert "1 images with transparent pixels, e.g. train_1.png. Nothing to do if the stored colours are right" in text
    assert "1 16-bit grey images, the brightest value is 899" in text and "come out dark" in text
    assert "1 CMYK images, e.g. train_3.jpg" in text
    assert "1 images of mode P, e.g. train_4.png" in text
    assert len(problems) == 4


def test_12_bits_in_16(train: CocoFiles) -> None:
    rng = np.random.default_rng(5)
    for number, largest in ((1, 4095), (2, 4000), (3, 14000)):
        values = rng.integers(0, largest, (40, 48), dtype=np.uint16)
        Image.fromarray(values).save(train.img_folder / f"train_{number}.png")
    twelve, other = sorted(map(str, _check(train)), key=len)
    assert "2 images with 12-bit values in 16 bits (none above 4095), which are stretched from 0..4095" in twelve
    assert "come out dark; 2 others have none above 4095 and come out 16 times as bright, e.g. train_3.png" in other


def test_opaque_alpha_and_full_range_16_bit_are_harmless(train: CocoFiles) -> None:
    rgb = np.asarray(Image.open(train.img_folder / "train_1.png"))
    Image.fromarray(rgb).convert("RGBA").save(train.img_folder / "train_1.png")
    grey = np.random.default_rng(6).integers(0, 65536, (40, 48), dtype=np.uint16)
    Image.fromarray(grey).save(train.img_folder / "train_2.png")
    (problem,) = _check(train)
    assert "1 16-bit grey images, e.g. train_2.png. Nothing to do" in str(problem)


def test_the_same_image_in_two_splits(train: CocoFiles, val: CocoFiles) -> None:
    """By content: renamed, and saved without loss in another format."""
    assert _check(train, val) == []
    shutil.copy(train.img_folder / "train_2.png", val.img_folder / "val_1.png")
    Image.open(train.img_folder / "train_3.png").save(val.img_folder / "val_2.bmp")
    val.content["images"][1]["file_name"] = "val_2.bmp"
    problems = _check(train, val)
    assert [problem.severity for problem in problems] == ["error", "error"]
    assert "image 1 (val_1.png) of split val: is also in split train (train_2.png; the same pixels)" in str(problems[0])
    assert "allow_split_overlap: True" in str(problems[0]) and not problems[0].skippable
    assert _check(train, val, allow_split_overlap=True) == []
    again = read_split("val", train.ann_file, train.img_folder)[0]
    assert check_images([_split(train), again]) == [], "the same file: check_overlap says it"
    shutil.copy(train.img_folder / "train_2.png", train.img_folder / "train_4.png")
    (problem,) = _check(train)
    assert problem.severity == "warning", "within a split"
    assert "image 4 (train_4.png): has the same pixels as train_2.png of the same split" in str(problem)


def _recompressed(image: Image.Image) -> Image.Image:
    image.save(buffer := io.BytesIO(), "JPEG", quality=70)
    return Image.open(buffer).convert("RGB")


LOOKS: dict[str, tuple[Callable[[Image.Image], Image.Image], bool]] = {
    "recompressed": (_recompressed, True),
    "brighter": (lambda image: Image.eval(image, lambda value: int(value * 0.8 + 30)), True),
    "resized": (lambda image: image.resize((120, 90), BILINEAR).resize((160, 120), BILINEAR), True),
    "another crop": (lambda image: image.transform((160, 120), Image.Transform.AFFINE, (1, 0, 40, 0, 1, 25)), False),
    "flat": (lambda image: Image.new("RGB", (160, 120), (91, 90, 90)), False),
}


@pytest.mark.parametrize("look", LOOKS)
def test_near_duplicates_across_splits(look: str, tmp_path: Path) -> None:
    change, is_alike = LOOKS[look]
    train, val = (CocoFiles(tmp_path, name, size_wh=(160, 120), num_images=3) for name in ("train", "val"))
    Image.new("RGB", (160, 120), (90, 90, 90)).save(train.img_folder / "train_1.png")  # flat: nothing to compare
    change(Image.open(train.img_folder / "train_2.png").convert("RGB")).save(val.img_folder / "val_3.png")
    problems = _check(train, val)
    assert len(problems) == is_alike and all(problem.severity == "warning" for problem in problems)
    for problem in problems:
        assert "image 3 (val_3.png) of split val: looks like train_2.png of split train (" in str(problem)
        assert "of 256 bits differ)" in str(problem)
    assert _check(train, val, allow_split_overlap=True) == []


@pytest.mark.real_data
@pytest.mark.skipif("NEU_DET_ROOT" not in os.environ, reason="NEU_DET_ROOT is not set")
def test_neu_det_has_no_errors_and_two_known_copies() -> None:
    root = Path(os.environ["NEU_DET_ROOT"])
    train, problems = read_split("train", root / "annotations/instances_train.json", root / "images/train")
    val, more = read_split("val", root / "annotations/instances_val.json", root / "images/val", classes=train.classes)
    assert problems + more + check_annotations(train) + check_annotations(val) + check_overlap([train, val]) == []
    copy, crop = check_images([train, val])
    assert copy.severity == crop.severity == "warning"
    assert "patches_105.jpg): has the same pixels as patches_101.jpg" in str(copy)
    assert "pitted_surface_292.jpg) of split val: looks like pitted_surface_171.jpg of split train (22 of" in str(crop)
    assert (len(train), len(val), len(train.labels) + len(val.labels)) == (1440, 360, 4186)


ROWS, COLUMNS = np.mgrid[0:256, 0:256]
LIGHTS: dict[str, Any] = {
    "even": 128.0,
    "from a side": 60 + 60 * COLUMNS / 256 + 60 * ROWS / 256,
    "dark corners": 200 - 120 * ((COLUMNS - 128) ** 2 + (ROWS - 128) ** 2) / 2 / 128**2,
    "a lamp": 60 + 140 * np.exp(-((COLUMNS - 90) ** 2 + (ROWS - 110) ** 2) / 2 / 50**2),
    "in a holder": np.where((np.minimum(ROWS, COLUMNS) < 16) | (np.maximum(ROWS, COLUMNS) > 240), 20.0, 128.0),
    "stripes": 128 + 40 * np.sign(np.sin(ROWS / 9)),
}


def _blank(
    scratch: int | None, *, light: str = "even", shift_px: int = 0, gain: float = 1.0, noise: float = 0.0
) -> PixelArray:
    """A grey sheet, with a scratch that depends on its number, noise of its own."""
    grey = np.full((256, 256), LIGHTS[light], np.float32)
    if scratch is not None:
        (x, y), (dx, dy) = np.random.default_rng(scratch).integers(((60, 60), (-50, -50)), ((196, 196), (50, 50)))
        cv2.line(grey, (int(x), int(y)), (int(x + dx), int(y + dy)), 20, 3)
    grey = np.roll(grey, shift_px, axis=1) * gain
    grey += noise * np.random.default_rng([scratch or 0, shift_px]).normal(size=grey.shape)
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _are_alike(one: dict[str, Any], other: dict[str, Any], light: str) -> bool:
    looks = [_Inspection(look=_look(_blank(light=light, **image))) for image in (one, other)]
    return bool([*_pairs_alike(looks[:1], looks[1:])])


@pytest.mark.parametrize("light", LIGHTS)
def test_nearly_blank_images_are_alike_by_what_is_on_them(light: str) -> None:
    others = [
        ({"scratch": i, "noise": noise}, {"scratch": i + 1, "noise": noise}) for i in range(20) for noise in (0, 2)
    ]
    assert not [pair for pair in others if _are_alike(*pair, light)]
    copies = [
        ({"scratch": i}, {"scratch": i, **change}) for i in range(3) for change in ({"gain": 0.9}, {"noise": 0.5})
    ]
    assert not [pair for pair in copies[:5] if not _are_alike(*pair, light)], "shorter scratches drown in noise"


@pytest.mark.parametrize("light", ["even", "from a side", "dark corners"])
def test_nothing_but_noise_is_not_alike(light: str) -> None:
    assert not _are_alike({"scratch": None, "noise": 3}, {"scratch": None, "noise": 3, "shift_px": 1}, light)


def test_a_copy_that_is_shifted_a_little_is_alike() -> None:
    assert all(_are_alike({"scratch": i}, {"scratch": i, "shift_px": 1}, "even") for i in range(3))
