"""Text-only scores of cropped boxes, with vectors that are known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import analysis.zero_shot as zero_shot_module
from analysis.zero_shot import score, squared, wilson, zero_shot
from data.coco import CocoSplit, read_split
from models.config import TextEncoderConfig
from models.text_encoder import TextEmbeddings

NAMES = ("red", "green", "blue")
TEXTS = TextEmbeddings(torch.eye(3)[:, None], torch.ones(3, 1, dtype=torch.bool), "colours")


def write_split(folder: Path, boxes: dict[int, list[tuple[int, list[float], int]]]) -> CocoSplit:
    """Images of 20 x 10 pixels with boxes (category, xywh, crowd) of the category's colour on black."""
    annotations = []
    for image, of_image in boxes.items():
        pixels = np.zeros((10, 20, 3), dtype=np.uint8)
        for category, (x, y, w, h), crowd in of_image:
            pixels[int(y) : int(y + h) + 1, int(x) : int(x + w) + 1, category] = 255
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": crowd,
                }
            )
        Image.fromarray(pixels).save(folder / f"{image}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in boxes],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
    }
    (folder / "val.json").write_text(json.dumps(content), encoding="utf-8")
    return read_split("val", folder / "val.json", folder)[0]


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    return write_split(
        tmp_path,
        {
            1: [(0, [0, 0, 4, 4], 0), (1, [10, 2, 5, 5], 0), (0, [6, 0, 3, 9], 1)],
            2: [],
            3: [(1, [1.5, 1.5, 0.3, 0.2], 0), (1, [15, 5, 5, 5], 0)],
        },
    )


def colours(images: Iterable[np.ndarray], _: TextEncoderConfig) -> Tensor:
    """A picture's vector is its mean colour."""
    means = [torch.from_numpy(image.reshape(-1, 3).mean(axis=0)).float() for image in images]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)


def test_crops_find_their_texts(split: CocoSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot_module, "encode_images", colours)
    found = zero_shot(TEXTS, TextEncoderConfig(), split)
    assert found is not None
    assert (found.overall.boxes, found.overall.images, found.overall.correct) == (4, 2, 4), "the crowd is left out"
    assert found.per_class["blue"].value is None and found.mean_of_classes == 1.0
    assert found.largest_class_share == 0.75
    assert zero_shot(TEXTS, TextEncoderConfig(), write_split(split.images[0].path.parent, {1: []})) is None, "no boxes"


def test_a_long_crop_is_whole_in_the_middle_of_a_square() -> None:
    crop = np.zeros((2, 9, 3), dtype=np.uint8)
    crop[:, :3] = (90, 30, 0)
    square = squared(crop)
    assert square.shape == (9, 9, 3) and (square[3:5] == crop).all()
    assert (square[0] == (30, 10, 0)).all() and (square[5:] == (30, 10, 0)).all()
    assert squared(crop[:, :2]).shape == (2, 2, 3)


def test_accuracy_counts_images(split: CocoSplit) -> None:
    found = score(np.array([0, 0, 1, 2]), split)
    assert (found.overall.value, found.per_class["red"].value, found.per_class["green"].value) == (0.5, 1.0, 1 / 3)
    assert found.mean_of_classes == pytest.approx(2 / 3)
    assert found.per_class["green"].interval == wilson(1 / 3, 2), "three boxes in two images"


@given(st.floats(0, 1), st.integers(1, 1000))
def test_wilson(share: float, size: int) -> None:
    low, high = wilson(share, size)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1 and low < high
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4), "by hand"
    wider = wilson(share, max(size // 2, 1))
    assert wider.high - wider.low >= high - low - 1e-9
