import re
from pathlib import Path
from typing import Any

import pytest

from data.box_sizes import check_box_sizes, size_advice
from data.coco import read_split
from data.config import LoaderConfig, TilesConfig, TransformsConfig
from data.errors import UserError
from data.industrial_dataset import IndustrialDataset
from data.problems import Problem
from data.splits import build_datasets
from tests.support.coco_files import CocoFiles, data_config
from texts import texts_of

RESIZE = {"type": "Resize", "size": [32, 64]}
SANITIZE = {"type": "SanitizeBoundingBoxes", "min_size": 1}
# Images are 640 x 640: a tenth of it is left in x, a twentieth in y.


def _check(
    root: Path, boxes: list[tuple[list[float], int]], ops: list[dict[str, Any]], *, training: bool = True
) -> list[Problem]:
    files = CocoFiles(root, num_images=1, boxes_per_image=0, size_wh=(640, 640))
    for box, category in boxes:
        files.add_box(1, box, category)
    files.save()
    split, problems = read_split("train", files.ann_file, files.img_folder)
    assert not [problem for problem in problems if problem.severity == "error"]
    return check_box_sizes(split, TransformsConfig.model_validate({"ops": ops}), training=training)


LARGE, SMALL, LOST = [0.0, 0.0, 200.0, 200.0], [300.0, 300.0, 200.0, 60.0], [300.0, 300.0, 200.0, 19.0]


@pytest.mark.parametrize(
    ("boxes", "training", "severities", "texts"),
    [
        ([], True, "", []),
        ([(LARGE, 1), (LARGE, 2)], True, "", []),
        (
            [(LARGE, 1), (LOST, 1), (SMALL, 2)],
            True,
            "warning",
            ["1 boxes are lost in training (too small at 64 x 32), 1 more are smaller than 4 px there "
             "(holes 1 and 0 of 2, scratches 0 and 1 of 1), e.g. annotation 2", "larger eval_spatial_size", "tiles"],
        ),
        ([(LARGE, 1), (LARGE, 2), (LARGE, 2), (SMALL, 2)], True, "warning", ["0 boxes are lost", "annotation 4"]),
        ([(LARGE, 1), (LOST, 2), (LOST, 2)], True, "error warning",
         ["all 2 boxes of the class scratches are lost in training", "or remove the class"]),
        ([(LARGE, 1), (LOST, 2)], False, "warning", ["1 boxes are below 1 px at 64 x 32, too small to be found"]),
        ([(LOST, 1), (LOST, 2)], True, "error", ["all 2 boxes are lost in training"]),
        ([(LOST, 1), (LOST, 2)], False, "error", ["all 2 boxes are below 1 px"]),
        ([([0.1, 0.2, 0.5, 0.4], 1), ([0, 0, 1, 1], 2)], True, "error", ["coordinates of its 2 boxes are within 0"]),
        ([([0.1, 0.2, 0.5, 0.4], 1)], False, "error", ["fractions of the image, expected pixels"]),
    ],
)  # fmt: skip
def test_what_is_said_of_small_boxes(
    tmp_path: Path, boxes: list[tuple[list[float], int]], training: bool, severities: str, texts: list[str]
) -> None:
    problems = _check(tmp_path, boxes, [RESIZE, SANITIZE], training=training)
    assert [problem.severity for problem in problems] == severities.split()
    for text in texts:
        assert any(text in str(problem) for problem in problems), text


@pytest.mark.parametrize("ops", [[RESIZE], [RESIZE, SANITIZE], [SANITIZE, RESIZE], [SANITIZE, RESIZE, SANITIZE]])
@pytest.mark.parametrize("min_size", [1, 3])
@pytest.mark.parametrize("height", [0.9, 1, 19, 20, 59, 60])
def test_training_loses_exactly_the_boxes_that_are_counted(
    tmp_path: Path, ops: list[dict[str, Any]], min_size: int, height: float
) -> None:
    ops = [{**op, "min_size": min_size} if op is SANITIZE else op for op in ops]
    problems = _check(tmp_path, [(LARGE, 1), ([0, 100, 300, height], 2)], ops)
    folder, file = tmp_path / "images" / "train", tmp_path / "train.json"
    loader = LoaderConfig.model_validate(
        {"dataset": {"img_folder": folder, "ann_file": file, "transforms": {"ops": ops}}}
    )
    split, _ = read_split("train", file, folder)
    sample = IndustrialDataset(split, loader, training=True)[0]
    assert len(sample.target["labels"]) == 2 - sum(problem.severity == "error" for problem in problems)


def test_training_does_not_start_on_fractions(tmp_path: Path) -> None:
    train, val = CocoFiles(tmp_path), CocoFiles(tmp_path, "val")
    for annotation in train.content["annotations"]:
        annotation["bbox"] = [value / 48 for value in annotation["bbox"]]
    train.save()
    val.save()
    for on_bad_data in ("error", "skip"):
        with pytest.raises(UserError, match="split train: all coordinates of its 8 boxes are within 0 and 1"):
            build_datasets(data_config(tmp_path, on_bad_data=on_bad_data))


def _advice(root: Path, sides: list[int], size_wh: tuple[int, int], tiles: TilesConfig | None = None) -> str:
    files = CocoFiles(root, num_images=1, boxes_per_image=0, size_wh=size_wh)
    for side in sides:
        files.add_box(1, [0, 0, side, side], 1)
    split, _ = read_split("train", files.save().ann_file, files.img_folder)
    lines, numbers = size_advice(split, (640, 640), tiles, texts_of("en", "data_check"))
    to_paste = [line.partition("  #")[0].strip() for line in lines if re.match(r"    \w+: ", line)]
    assert numbers.get("advice", []) == to_paste, "programs are told the same"
    assert (
        numbers.get("below_16_px", 0) == sum(side < 16 * size_wh[0] / 640 for side in sides) / max(len(sides), 1)
        or tiles
    )
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("sides", "size_wh", "tiles", "expected", "absent"),
    [
        ([], (640, 640), None, "", "objects"),
        ([20, 40, 200], (640, 640), None, "half up to 40 px", "in the config"),
        # 2560 pixels on 640: a quarter; 20 px become 5, at full detail 20: more than the 16 that are asked for.
        ([20] * 9 + [90], (2560, 2560), None, "tiles: {size: 800, overlap: 0.1}  # 16 passes", "eval_spatial_size: ["),
        ([20] * 9 + [90], (2560, 2560), TilesConfig(size=800), "in tiles of 800 px", "in the config"),
        ([20] * 9 + [90], (1280, 1280), None, "eval_spatial_size: [1024, 1024]", "99 px"),
        ([8] * 10, (1280, 1280), None, "10 % at most are below 8.0 px", "99 px"),  # no more than all the image's pixels
        ([4] * 10, (640, 640), None, "below 8 px 100\u00a0%", "in the config"),
        ([4] * 10, (640, 640), None, "every pixel of the images already", "in the config"),
        ([4] * 10, (640, 640), TilesConfig(size=320), "every pixel of the images already", "in the config"),
        (
            [200] * 9 + [100],
            (640, 640),
            TilesConfig(size=128),
            "90\u00a0% of the objects are longer",
            "eval_spatial_size:",
        ),
        ([200] * 9 + [100], (640, 640), TilesConfig(size=128), "    tiles: {size: 224}", "99 px"),
        ([200] + [100] * 19, (640, 640), TilesConfig(size=128), "in tiles of 128 px", "in the config"),  # one in 20
    ],
)
def test_what_small_objects_need(
    tmp_path: Path, sides: list[int], size_wh: tuple[int, int], tiles: TilesConfig | None, expected: str, absent: str
) -> None:
    """Advice that is followed is the last: at the advised size nothing more is advised."""
    text = _advice(tmp_path, sides, size_wh, tiles)
    assert expected in text and absent not in text, text
