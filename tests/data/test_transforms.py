from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat, Image

from data.augmentations import AUGMENTATIONS, find_crop, photometric_distort
from data.batch import Target
from data.colour import Change
from data.config import CollateConfig, MosaicOp, TransformsConfig
from data.errors import UserError
from data.mix import mosaic
from data.scene import Scene, draw, scene_of
from data.schedule import EpochPlan, epoch_plan
from data.transforms import TrainTransform, to_target
from data.types import PixelArray
from tests.support.sources import ArraySource

ALL_ON = epoch_plan(TransformsConfig(), CollateConfig(), 0)
RNG = np.random.default_rng
Box = tuple[int, int, int, int]


def _pixels(size_wh: tuple[int, int] = (60, 40)) -> PixelArray:
    return RNG(0).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)


def _source(size_wh: tuple[int, int] = (60, 40), boxes: Any = ((5, 6, 20, 30), (30, 2, 60, 40))) -> Scene:
    return scene_of(ArraySource(_pixels(size_wh)), boxes, np.arange(len(boxes)))


def _transform(*ops: dict[str, Any], size: tuple[int, int] = (32, 64)) -> TrainTransform:
    return TrainTransform(TransformsConfig.model_validate({"ops": [*ops, {"type": "Resize", "size": size}]}))


def _run(transform: TrainTransform, source: Scene, seed: int, plan: EpochPlan = ALL_ON) -> Scene:
    return transform(source, plan, RNG(seed), mosaic=False)


def _tv(source: Scene) -> tuple[Image, BoundingBoxes]:
    boxes = torch.tensor(source.boxes_xyxy, dtype=torch.float32)
    pixels = torch.from_numpy(source.tiles[0].source.pixels(1)).permute(2, 0, 1)
    return Image(pixels), BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=source.size_hw)


def _chw(pixels: PixelArray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


class TestAgainstTorchvision:
    """Steps only plan; what is drawn from the plan must be what torchvision's transforms make of pixels and boxes."""

    def test_enlarging(self) -> None:
        smooth = scene_of(ArraySource(np.tile(np.arange(60, dtype=np.uint8)[None, :, None] * 4, (40, 1, 3))), [], [])
        drawn, _ = draw(_run(_transform(size=(64, 96)), smooth, 0))
        expected = F.resize(_tv(smooth)[0], [64, 96], antialias=True)
        assert (_chw(drawn).int() - expected.int()).abs().max() <= 1
        _, scene = draw(_run(_transform(size=(64, 96)), _source(), 0))
        boxes = v2.Resize((64, 96))(_tv(_source())[1])
        np.testing.assert_allclose(scene.boxes_xyxy, boxes, rtol=1e-6)

    @pytest.mark.parametrize("factor", [0.25, 0.4, 0.55])
    def test_shrinking_is_antialiased(self, factor: float) -> None:
        """Noise keeps about the contrast that a triangle filter leaves it; plain interpolation would keep 1.8 to 4
        times as much, means of squares, which we begin with, up to 1.5 times."""
        source = _source((600, 400), boxes=[])
        size = (round(400 * factor), round(600 * factor))
        drawn, _ = draw(_run(_transform(size=size), source, 0))
        expected = F.resize(_tv(source)[0], list(size), antialias=True)
        assert 0.85 < drawn.std() / float(expected.float().std()) < 1.6
        assert drawn.mean() == pytest.approx(float(expected.float().mean()), abs=1)

    @pytest.mark.parametrize("name", ["RandomHorizontalFlip", "RandomVerticalFlip"])
    def test_flip(self, name: str) -> None:
        transform = _transform({"type": name, "p": 1.0}, size=(40, 60))
        drawn, scene = draw(_run(transform, _source(), 0))
        image, boxes = getattr(v2, name)(p=1.0)(*_tv(_source()))
        assert torch.equal(_chw(drawn), image)
        np.testing.assert_allclose(scene.boxes_xyxy, boxes)

    def test_quarter_turns(self) -> None:
        turns = set()
        for seed in range(20):
            scene = AUGMENTATIONS["RandomRotate90"](_source(), RNG(seed), p=1.0)
            drawn, scene = draw(scene)
            matches = [k for k in (1, 2, 3) if np.array_equal(drawn, np.rot90(_pixels(), -k))]
            assert len(matches) == 1
            turns.add(matches[0])
            for box, (x0, y0, x1, y1) in zip(
                scene.boxes_xyxy.astype(int), _source().boxes_xyxy.astype(int), strict=True
            ):
                mask = np.zeros((40, 60), dtype=bool)
                mask[y0:y1, x0:x1] = True
                turned = np.zeros(scene.size_hw, dtype=bool)
                turned[box[1] : box[3], box[0] : box[2]] = True
                np.testing.assert_array_equal(turned, np.rot90(mask, -matches[0]))
        assert turns == {1, 2, 3}

    @pytest.mark.parametrize("seed", range(5))
    def test_zoom_out(self, seed: int) -> None:
        drawn, scene = draw(AUGMENTATIONS["RandomZoomOut"](_source(), RNG(seed), p=1.0, fill=7))
        height, width = scene.size_hw
        left, top, right, bottom = scene.window_xyxy.astype(int).tolist()
        assert (
            (right - left, bottom - top) == (60, 40) and 1 <= width / 60 <= 4 and abs(width / 60 - height / 40) < 0.05
        )
        image, boxes = (F.pad(part, [left, top, width - right, height - bottom], fill=7) for part in _tv(_source()))
        assert torch.equal(_chw(drawn), image)
        np.testing.assert_allclose(scene.boxes_xyxy, boxes)

    @pytest.mark.parametrize("seed", range(8))
    def test_iou_crop(self, seed: int) -> None:
        drawn, scene = draw(AUGMENTATIONS["RandomIoUCrop"](_source(), RNG(seed), p=1.0))
        left, top = (round(v) for v in np.linalg.inv(scene.matrix)[:2, 2])
        height, width = scene.size_hw
        params = {"top": top, "left": left, "height": height, "width": width}
        image, boxes = (F.crop(part, **params) for part in _tv(_source()))
        assert torch.equal(_chw(drawn), image)
        np.testing.assert_allclose(scene.boxes_xyxy, boxes[scene.labels])

    @pytest.mark.parametrize("boxes", [((5, 6, 20, 30), (30, 2, 60, 40)), ((0, 0, 60, 40),)])
    def test_iou_crop_has_torchvisions_distribution(self, boxes: tuple[tuple[int, ...], ...]) -> None:
        source, rng, whole = _source(boxes=boxes), RNG(1), [0, 0, 60, 40, *[True] * len(boxes)]
        oracle = v2.RandomIoUCrop()
        torch.manual_seed(1)
        ours, theirs = [], []
        for _ in range(300):
            found = find_crop(source.boxes_xyxy, source.size_hw, rng)
            ours.append(whole if found is None else [*found[0], *found[1]])
            p = oracle.make_params(list(_tv(source)))
            theirs.append([p["left"], p["top"], p["width"], p["height"], *p["is_within_crop_area"]] if p else whole)
        a, b = np.array(ours, dtype=float), np.array(theirs, dtype=float)
        spread = np.sqrt((a.var(axis=0) + b.var(axis=0)) / 300) + 1e-9
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) <= 4 * spread).all()

    def test_sanitize(self) -> None:
        boxes = [(0, 0, 0.5, 30), (1, 1, 2, 2), (3, 3, 3, 9), (4, 4, 4.9, 8), (5, 5, 60, 40), (6, 6, 7.2, 6.9)]
        source = _source(boxes=boxes)
        transform = _transform({"type": "SanitizeBoundingBoxes"}, size=(40, 60))
        _, valid = F.sanitize_bounding_boxes(_tv(source)[1], min_size=1.0, min_area=1.0)
        assert _run(transform, source, 0).labels.tolist() == torch.nonzero(valid).flatten().tolist() == [1, 4]

    def test_photometric_distort_draws_as_torchvision(self) -> None:
        oracle = v2.RandomPhotometricDistort()
        torch.manual_seed(0)
        ours = [_facts(photometric_distort(_source(), RNG(seed)).changes) for seed in range(600)]
        theirs = []
        for _ in range(600):
            p = oracle.make_params([_tv(_source())[0]])
            values = [p[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")]
            theirs.append(
                [np.nan if v is None else float(v) for v in values] + [float(p["channel_permutation"] is not None)]
            )
        a, b = np.array(ours), np.array(theirs)
        for column in range(5):
            x, y = (values[~np.isnan(values)] for values in (a[:, column], b[:, column]))
            assert abs(len(x) - len(y)) < 4 * np.sqrt(300)
            assert abs(x.mean() - y.mean()) < 4 * np.sqrt((x.var() + y.var()) / 300) + 1e-9
            assert abs(x.min() - y.min()) < 0.1 and abs(x.max() - y.max()) < 0.1


def _facts(changes: tuple[Change, ...]) -> list[float]:
    """Brightness, contrast, saturation, hue (NaN if not drawn), and whether the channels were reordered."""
    values = {type(change).__name__: change for change in changes}
    return [
        getattr(values.get(name), field, np.nan)
        for name, field in (("Brightness", "factor"), ("Contrast", "factor"), ("Saturation", "factor"), ("Hue", "turn"))
    ] + [float("ChannelOrder" in values)]


def test_a_box_of_the_full_width_survives_every_resize() -> None:
    """137 x (640 / 137) is not 640 in floating point; torchvision's sanitising would drop the box."""
    for width in range(120, 160):
        source = _source((width, 50), boxes=[(0, 0, width, 50)])
        transform = _transform({"type": "SanitizeBoundingBoxes"}, size=(640, 640))
        assert len(_run(transform, source, 0).labels) == 1


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
        for is_mosaic in (False, True):
            result = transform(source, epoch_plan(config, CollateConfig(), epoch), RNG(0), mosaic=is_mosaic)
            widths[epoch, is_mosaic] = round(float(result.boxes_xyxy[0, 2] - result.boxes_xyxy[0, 0]))
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
    boxes = np.array([(6, 4, 30, 24), (50, 30, 90, 50), (3, 3, 3, 9), (-5, -5, -1, -1)], dtype=float)
    target = to_target(boxes, np.arange(4), (40, 60))
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.3, 0.35, 0.4, 0.5], [55 / 60, 35 / 40, 1 / 6, 0.25]]))
    assert target["labels"].tolist() == [0, 1] and target["labels"].dtype == torch.int64
    assert target["area"].tolist() == [480, 100]
    target = to_target(np.empty((0, 4)), np.empty(0, np.int64), (40, 60))
    assert target["boxes"].shape == (0, 4) and target["boxes"].dtype == target["area"].dtype == torch.float32


def test_gamma_is_drawn_within_its_limits() -> None:
    transform = _transform({"type": "RandomGamma", "gamma": [0.5, 2.0], "shift": [-0.1, 0.1], "p": 0.5})
    drawn = [_run(transform, _source(), seed).changes for seed in range(200)]
    curves: list[Any] = [changes[0] for changes in drawn if changes]
    assert 70 < len(curves) < 130
    assert all(0.5 <= curve.gamma <= 2 and -0.1 <= curve.shift <= 0.1 for curve in curves)
    assert 35 < 100 * sum(curve.gamma < 1 for curve in curves) / len(curves) < 65


@st.composite
def images_with_boxes(draw_from: st.DrawFn, most: int = 4) -> tuple[tuple[int, int], list[Box]]:
    """Sizes from one pixel on; boxes of one pixel, on the border, of the whole image, none at all."""
    width, height = draw_from(st.integers(1, 90)), draw_from(st.integers(1, 90))
    boxes = []
    for _ in range(draw_from(st.integers(0, most))):
        x0, y0 = draw_from(st.integers(0, width - 1)), draw_from(st.integers(0, height - 1))
        boxes.append((x0, y0, draw_from(st.integers(x0 + 1, width)), draw_from(st.integers(y0 + 1, height))))
    return (width, height), boxes


def _painted(size_wh: tuple[int, int], boxes: list[Box], first: int = 0) -> Scene:
    """Box k has grey 15 (first + k + 1) on black and label first + k; later boxes cover earlier ones."""
    pixels = np.zeros((size_wh[1], size_wh[0], 3), dtype=np.uint8)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1] = 15 * (first + index + 1)
    return scene_of(ArraySource(pixels), boxes, np.arange(len(boxes)) + first)


def _require_sound(target: Target, size_hw: tuple[int, int], most: int) -> None:
    height, width = size_hw
    count = len(target["labels"])
    assert len(target["boxes"]) == len(target["area"]) == count <= most
    assert len(set(target["labels"].tolist())) == count
    low = target["boxes"][:, :2] - target["boxes"][:, 2:] / 2
    high = target["boxes"][:, :2] + target["boxes"][:, 2:] / 2
    assert (target["boxes"][:, 2:] > 0).all() and (low > -1e-6).all() and (high < 1 + 1e-6).all()
    area = target["boxes"][:, 2] * target["boxes"][:, 3] * height * width
    torch.testing.assert_close(target["area"], area, rtol=1e-5, atol=1e-3)


EVERYTHING = (
    {"type": "RandomPhotometricDistort"},
    {"type": "RandomGamma"},
    {"type": "RandomZoomOut"},
    {"type": "RandomIoUCrop", "p": 0.8},
    {"type": "SanitizeBoundingBoxes"},
    {"type": "RandomHorizontalFlip"},
    {"type": "RandomVerticalFlip"},
    {"type": "RandomRotate90"},
)


@given(case=images_with_boxes(), seed=st.integers(0, 10**6), with_mosaic=st.booleans())
def test_the_whole_chain_keeps_boxes_sound(
    case: tuple[tuple[int, int], list[Box]], seed: int, with_mosaic: bool
) -> None:
    """Tiny images, one-pixel boxes and no boxes included; a mosaic of one image four times, as in a pool of one."""
    size_wh, boxes = case
    scene, most = _painted(size_wh, boxes), len(boxes)
    if with_mosaic:
        tiles = [_painted(size_wh, boxes, first=4 * k) for k in range(4)]
        scene, most = mosaic(tiles, MosaicOp(output_size=24), RNG(seed)), 4 * len(boxes)
    planned = _transform(*EVERYTHING, size=(64, 96))(scene, ALL_ON, RNG(seed), mosaic=with_mosaic)
    for size_hw in ((64, 96), (32, 32)):
        image, drawn = draw(planned, size_hw)
        assert image.shape == (*size_hw, 3) and image.dtype == np.uint8
        _require_sound(to_target(drawn.boxes_xyxy, drawn.labels, size_hw), size_hw, most)


GEOMETRY: dict[str, tuple[dict[str, Any], ...]] = {
    "zoom-out": ({"type": "RandomZoomOut", "p": 1.0},),
    "crop": ({"type": "RandomIoUCrop", "p": 1.0},),
    "flips": ({"type": "RandomHorizontalFlip"}, {"type": "RandomVerticalFlip"}),
    "quarter turns": ({"type": "RandomRotate90", "p": 1.0},),
    "chain": tuple(op for op in EVERYTHING if op["type"] not in ("RandomPhotometricDistort", "RandomGamma")),
    "crop first": ({"type": "RandomRotate90"}, {"type": "RandomIoUCrop"}, {"type": "RandomZoomOut"}),
}


@pytest.mark.parametrize("name", GEOMETRY)
@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_boxes_enclose_their_pixels(name: str, seed: int) -> None:
    """Three objects apart from each other, each with a grey of its own: its pixels are known in the result."""
    rng = RNG(seed)
    width, height = rng.integers(60, 240, 2).tolist()
    boxes: list[Box] = []
    for k in range(3):
        x0, y0 = int(rng.integers(k * width // 3 + 3, (k + 1) * width // 3 - 12)), int(rng.integers(0, height - 12))
        boxes.append(
            (x0, y0, int(rng.integers(x0 + 6, (k + 1) * width // 3 - 2)), int(rng.integers(y0 + 6, height + 1)))
        )
    size_hw = (int(rng.integers(48, 200)), int(rng.integers(48, 200)))
    levels = (80, 160, 240)
    for k, level in enumerate(levels):  # one at a time, or blurred edges of one would be another's grey
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        pixels[boxes[k][1] : boxes[k][3], boxes[k][0] : boxes[k][2]] = level
        scene = scene_of(ArraySource(pixels), boxes, np.arange(3))
        image, drawn = draw(_run(_transform(*GEOMETRY[name], size=size_hw), scene, seed))
        rows = np.flatnonzero(drawn.labels == k)
        bright = image[..., 0] >= level / 2
        if len(rows) and bright.any():
            ys, xs = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
            found = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
            np.testing.assert_allclose(drawn.boxes_xyxy[rows[0]], found, atol=1.5)  # half bright: a pixel and a half
        elif len(rows):  # too thin to reach half its grey
            assert (drawn.boxes_xyxy[rows[0], 2:] - drawn.boxes_xyxy[rows[0], :2]).min() < 2
