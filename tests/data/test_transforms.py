from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from data.config import CollateConfig, RandomIoUCropOp, RandomZoomOutOp, TransformsConfig
from data.errors import UserError
from data.schedule import EpochPlan, epoch_plan
from data.transforms import (
    LabelledImage,
    TrainTransform,
    _build_step,
    _FastIoUCrop,
    labelled_image,
    resized_shorter_side,
    to_target,
)

ALL_ON = epoch_plan(TransformsConfig(), CollateConfig(), 0)
RNG = np.random.default_rng


def _source(size_wh: tuple[int, int] = (60, 40), boxes: Any = ((5, 6, 20, 30), (30, 2, 60, 40))) -> LabelledImage:
    pixels = RNG(0).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    return labelled_image(pixels, boxes, np.arange(len(boxes)))


def _transform(*ops: dict[str, Any], size: tuple[int, int] = (32, 64)) -> TrainTransform:
    return TrainTransform(TransformsConfig.model_validate({"ops": [*ops, {"type": "Resize", "size": size}]}))


def _run(transform: TrainTransform, source: LabelledImage, seed: int, plan: EpochPlan = ALL_ON) -> LabelledImage:
    torch.manual_seed(seed)
    return transform(source, plan, RNG(seed), mosaic=False)


def _tv(source: LabelledImage) -> tuple[Image, BoundingBoxes]:
    boxes = torch.tensor(source.boxes_xyxy, dtype=torch.float32)
    return Image(source.image), BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=source.size_hw)


class TestAgainstTorchvision:
    """Our box arithmetic is numpy; torchvision's transforms of images with boxes are the oracle."""

    def test_resize(self) -> None:
        result = _run(_transform(), _source(), 0)
        image, boxes = v2.Resize((32, 64), antialias=True)(*_tv(_source()))
        assert torch.equal(result.image, image)
        np.testing.assert_allclose(result.boxes_xyxy, boxes, rtol=1e-6)

    def test_resize_is_pillows_up_to_one_level(self) -> None:
        source = _source()
        pil = PilImage.fromarray(source.image.permute(1, 2, 0).numpy()).resize((64, 32), PilImage.Resampling.BILINEAR)
        result = _run(_transform(), source, 0).image.permute(1, 2, 0).numpy()
        assert np.abs(result.astype(int) - np.asarray(pil)).max() <= 1

    @pytest.mark.parametrize("name", ["RandomHorizontalFlip", "RandomVerticalFlip"])
    def test_flip(self, name: str) -> None:
        transform = _transform({"type": name, "p": 1.0}, size=(40, 60))
        result = _run(transform, _source(), 0)
        image, boxes = getattr(v2, name)(p=1.0)(*_tv(_source()))
        assert torch.equal(result.image, image)
        np.testing.assert_allclose(result.boxes_xyxy, boxes)

    @pytest.mark.parametrize("seed", range(5))
    def test_zoom_out(self, seed: int) -> None:
        step = _build_step(RandomZoomOutOp(p=1.0, fill=7), (640, 640))
        assert step is not None
        torch.manual_seed(seed)
        result = step(_source(), RNG(seed))
        torch.manual_seed(seed)
        oracle = v2.RandomZoomOut(fill=7, p=1.0)
        torch.manual_seed(seed)
        params = oracle.make_params([_source().image])
        expected = [F.pad(part, params["padding"], fill=7) for part in _tv(_source())]
        assert torch.equal(result.image, expected[0])
        np.testing.assert_allclose(result.boxes_xyxy, expected[1])

    @pytest.mark.parametrize("seed", range(20))
    def test_iou_crop_with_the_same_parameters(self, seed: int) -> None:
        source = _source()
        fast = _FastIoUCrop()
        torch.manual_seed(seed)
        params = fast.make_params([source.image, source.boxes_xyxy])
        step = _build_step(RandomIoUCropOp(p=1.0), (64, 64))
        assert step is not None
        torch.manual_seed(seed)
        result = step(source, RNG(seed))
        if params:
            params["is_within_crop_area"] = torch.from_numpy(params["is_within_crop_area"])
        image, boxes = (v2.RandomIoUCrop().transform(part, params) for part in _tv(source))
        assert torch.equal(result.image, image)
        kept = [index for index, box in enumerate(boxes.tolist()) if any(box)]
        assert result.labels.tolist() == kept
        np.testing.assert_allclose(result.boxes_xyxy, boxes[kept])

    @pytest.mark.parametrize("boxes", [((5, 6, 20, 30), (30, 2, 60, 40)), ((0, 0, 60, 40),)])
    def test_iou_crop_has_torchvisions_distribution(self, boxes: tuple[tuple[int, ...], ...]) -> None:
        source = _source(boxes=boxes)
        draws = {}
        for name, op, inputs in (
            ("ours", _FastIoUCrop(), [source.image, source.boxes_xyxy]),
            ("torchvision", v2.RandomIoUCrop(), list(_tv(source))),
        ):
            torch.manual_seed(1)
            found = [op.make_params(inputs) for _ in range(300)]
            draws[name] = np.array(
                [
                    [p["left"], p["top"], p["width"], p["height"], *p["is_within_crop_area"]]
                    if p
                    else [0, 0, 60, 40, *[True] * len(boxes)]
                    for p in found
                ],
                dtype=float,
            )
        spread = np.sqrt((draws["ours"].var(axis=0) + draws["torchvision"].var(axis=0)) / 300) + 1e-9
        difference = np.abs(draws["ours"].mean(axis=0) - draws["torchvision"].mean(axis=0))
        assert (difference <= 4 * spread).all()

    def test_sanitize(self) -> None:
        boxes = [(0, 0, 0.5, 30), (1, 1, 2, 2), (3, 3, 3, 9), (4, 4, 4.9, 8), (5, 5, 60, 40), (6, 6, 7.2, 6.9)]
        source = _source(boxes=boxes)
        transform = _transform({"type": "SanitizeBoundingBoxes"}, size=(40, 60))
        _, valid = F.sanitize_bounding_boxes(_tv(source)[1], min_size=1.0, min_area=1.0)
        assert _run(transform, source, 0).labels.tolist() == torch.nonzero(valid).flatten().tolist() == [1, 4]

    def test_photometric_distort(self) -> None:
        transform = _transform({"type": "RandomPhotometricDistort"}, size=(40, 60))
        for seed in range(5):
            torch.manual_seed(seed)
            expected = v2.RandomPhotometricDistort()(Image(_source().image))
            result = _run(transform, _source(), seed)
            assert torch.equal(result.image, expected) and result.image.dtype == torch.uint8
            np.testing.assert_array_equal(result.boxes_xyxy, _source().boxes_xyxy)


def test_a_box_of_the_full_width_survives_every_resize() -> None:
    """137 x (640 / 137) is not 640 in floating point; torchvision's sanitising would drop the box."""
    for width in range(120, 160):
        source = _source((width, 50), boxes=[(0, 0, width, 50)])
        transform = _transform({"type": "SanitizeBoundingBoxes"}, size=(640, 640))
        assert len(_run(transform, source, 0).labels) == 1


def test_zoom_out_of_a_large_source_stays_small() -> None:
    """A canvas never needs to be larger than what the smallest crop of it can show."""
    source = _source((1200, 900), boxes=[(120, 90, 600, 450)])
    step = _build_step(RandomZoomOutOp(p=1.0, side_range=(4.0, 4.0)), (64, 64))
    assert step is not None
    torch.manual_seed(0)
    result = step(source, RNG(0))
    assert min(result.size_hw) >= 210 and max(result.size_hw) <= 290
    box = result.boxes_xyxy[0]
    assert box[2] - box[0] == pytest.approx(480 / 4800 * result.size_hw[1], abs=1)
    assert box[3] - box[1] == pytest.approx(360 / 3600 * result.size_hw[0], abs=1)


def test_the_plan_decides_which_steps_run() -> None:
    config = TransformsConfig.model_validate(
        {
            "ops": [
                {"type": "RandomZoomOut", "p": 1.0, "side_range": [4, 4]},
                {"type": "RandomHorizontalFlip", "p": 1.0},
                {"type": "Resize", "size": [64, 64]},
            ],
            "policy": {"name": "stop_epoch", "epoch": [1, 3, 5], "ops": ["RandomZoomOut"]},
            "mosaic_prob": 0.5,
        }
    )
    source = _source(boxes=[(0, 0, 60, 40)])
    transform = TrainTransform(config)
    widths = {}
    for epoch in range(6):
        for mosaic in (False, True):
            torch.manual_seed(0)
            result = transform(source, epoch_plan(config, CollateConfig(), epoch), RNG(0), mosaic=mosaic)
            widths[epoch, mosaic] = round(float(result.boxes_xyxy[0, 2] - result.boxes_xyxy[0, 0]))
    assert [widths[epoch, False] for epoch in range(6)] == [64, 16, 16, 16, 16, 64]
    assert [widths[epoch, True] for epoch in range(6)] == [64] * 6


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([{"type": "RandomHorizontalFlip"}], "there is no Resize op"),
        (
            [{"type": "RandomZoomOut"}, {"type": "Mosaic"}, {"type": "Resize", "size": [64, 64]}],
            "Mosaic is not the first",
        ),
    ],
)
def test_ops_that_cannot_work(ops: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainTransform(TransformsConfig.model_validate({"ops": ops}))


def test_target() -> None:
    source = _source((60, 40), boxes=[(6, 4, 30, 24), (50, 30, 90, 50), (3, 3, 3, 9), (-5, -5, -1, -1)])
    image, target = to_target(source)
    assert image.shape == (3, 40, 60) and image.dtype == torch.uint8
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.3, 0.35, 0.4, 0.5], [55 / 60, 35 / 40, 1 / 6, 0.25]]))
    assert target["labels"].tolist() == [0, 1] and target["labels"].dtype == torch.int64
    assert target["area"].tolist() == [480, 100]


def test_target_without_boxes() -> None:
    _, target = to_target(_source(boxes=[]))
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and target["area"].shape == (0,)
    assert target["boxes"].dtype == target["area"].dtype == torch.float32


@pytest.mark.parametrize(("size_wh", "expected"), [((60, 40), (48, 32)), ((40, 60), (32, 48)), ((7, 7), (32, 32))])
def test_shorter_side(size_wh: tuple[int, int], expected: tuple[int, int]) -> None:
    result = resized_shorter_side(_source(size_wh, boxes=[(0, 0, *size_wh)]), 32)
    assert result.size_hw == expected[::-1]
    assert result.boxes_xyxy.tolist() == [[0, 0, *expected]]


CHAIN = _transform(
    {"type": "RandomPhotometricDistort"},
    {"type": "RandomZoomOut"},
    {"type": "RandomIoUCrop", "p": 0.8},
    {"type": "SanitizeBoundingBoxes"},
    {"type": "RandomHorizontalFlip"},
    size=(64, 96),
)


@st.composite
def images_with_boxes(draw: st.DrawFn) -> tuple[tuple[int, int], list[tuple[int, int, int, int]]]:
    """Sizes from one pixel on; boxes of one pixel, on the border, of the whole image, none at all."""
    width, height = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((x0, y0, draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))))
    return (width, height), boxes


def _painted(size_wh: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> npt.NDArray[np.uint8]:
    """Box k has colour 60 (k + 1) in all channels on black; later boxes cover earlier ones."""
    pixels = np.zeros((size_wh[1], size_wh[0], 3), dtype=np.uint8)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1] = 60 * (index + 1)
    return pixels


@given(case=images_with_boxes(), seed=st.integers(0, 10**6))
def test_the_chain_keeps_boxes_sound(case: tuple[tuple[int, int], list[tuple[int, int, int, int]]], seed: int) -> None:
    size_wh, boxes = case
    source = labelled_image(_painted(size_wh, boxes), boxes, np.arange(len(boxes)))
    image, target = to_target(_run(CHAIN, source, seed))
    assert image.shape == (3, 64, 96) and image.dtype == torch.uint8
    count = len(target["labels"])
    assert len(target["boxes"]) == len(target["area"]) == count <= len(boxes)
    assert len(set(target["labels"].tolist())) == count
    low = target["boxes"][:, :2] - target["boxes"][:, 2:] / 2
    high = target["boxes"][:, :2] + target["boxes"][:, 2:] / 2
    assert (target["boxes"][:, 2:] > 0).all() and (low > -1e-6).all() and (high < 1 + 1e-6).all()
    torch.testing.assert_close(target["area"], target["boxes"][:, 2] * target["boxes"][:, 3] * 64 * 96)


@given(seed=st.integers(0, 10**6))
def test_a_surviving_box_encloses_its_pixels(seed: int) -> None:
    """The object is the only bright thing; without photometric distortion its pixels are known in the result."""
    rng = RNG(seed)
    x0, y0 = rng.integers(0, 60), rng.integers(0, 50)
    box = (x0, y0, x0 + rng.integers(8, 30), y0 + rng.integers(8, 30))
    pixels = np.zeros((80, 90, 3), dtype=np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    chain = _transform(
        {"type": "RandomZoomOut"},
        {"type": "RandomIoUCrop", "p": 0.8},
        {"type": "SanitizeBoundingBoxes"},
        {"type": "RandomHorizontalFlip"},
        size=(96, 64),
    )
    result = _run(chain, labelled_image(pixels, [box], [3]), seed)
    assert result.labels.tolist() == [3]  # a crop keeps the centre of the only box
    bright = result.image[0].numpy() >= 128
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    np.testing.assert_allclose(result.boxes_xyxy[0], found, atol=1.0)
