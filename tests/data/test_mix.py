import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes

from data.batch import Target
from data.colour import Brightness, Contrast, Saturation, apply_changes
from data.config import CollateConfig, MosaicOp, TransformsConfig
from data.mix import batch_size_hw, copyblend, mix_batch, mixup, mosaic
from data.scene import Scene, draw, scene_of
from data.schedule import EpochPlan
from data.transforms import TrainTransform
from tests.support.sources import ArraySource

RNG = np.random.default_rng
BLEND = CollateConfig(area_threshold=100, num_objects=3, with_expand=True)
STILL = MosaicOp(output_size=40, rotation_range=0, translation_range=(0, 0), scaling_range=(1, 1))


def _target(boxes_xyxy: Any, labels: Any, size_wh: tuple[int, int]) -> Target:
    boxes = torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4)
    size = torch.tensor([*size_wh, *size_wh], dtype=torch.float32)
    boxes_cxcywh = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1) / size
    area = boxes_cxcywh[:, 2] * boxes_cxcywh[:, 3] * (size_wh[0] * size_wh[1])
    return Target(labels=torch.tensor(labels, dtype=torch.int64), boxes=boxes_cxcywh, area=area)


def _batch(
    seed: int = 0, counts: tuple[int, ...] = (2, 0, 3), size_wh: tuple[int, int] = (64, 48)
) -> tuple[Tensor, list[Target]]:
    rng = RNG(seed)
    images = torch.from_numpy(rng.integers(0, 256, (len(counts), 3, size_wh[1], size_wh[0]), dtype=np.uint8))
    targets, label = [], 0
    for count in counts:
        low = rng.integers(0, 30, (count, 2))
        boxes = np.concatenate([low, low + rng.integers(11, 18, (count, 2))], axis=1)
        targets.append(_target(boxes, range(label, label + count), size_wh))
        label += count
    return images, targets


def _corners_px(target: Target, size_wh: tuple[int, int]) -> Any:
    boxes = target["boxes"].double().numpy()
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1) * (
        *size_wh,
        *size_wh,
    )


class TestMosaic:
    def _sources(self) -> list[Scene]:
        sizes = [(40, 40), (80, 40), (40, 60), (20, 20)]
        sources = []
        for index, (width, height) in enumerate(sizes):
            pixels = np.full((height, width, 3), 50 * (index + 1), dtype=np.uint8)
            sources.append(scene_of(ArraySource(pixels), [(0, 0, width, height)], [index]))
        return sources

    def test_places(self) -> None:
        """Each tile at the top left of its quadrant; the shorter side scaled to output_size."""
        image, result = draw(mosaic(self._sources(), STILL.model_copy(update={"fill_value": 9}), RNG(0)))
        assert result.size_hw == (120, 160) and result.labels.tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(
            result.boxes_xyxy, [(0, 0, 40, 40), (80, 0, 160, 40), (0, 60, 40, 120), (80, 60, 120, 100)], atol=1e-9
        )
        for (x0, y0, x1, y1), label in zip(result.boxes_xyxy.astype(int), result.labels, strict=True):
            assert (image[y0:y1, x0:x1] == 50 * (label + 1)).all()
        assert (image[:60, 40:80] == 9).all()

    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize(("box", "inside"), [((28, 26, 48, 46), True), ((1, 2, 35, 40), False)])
    def test_boxes_are_hulls_of_the_turned_pixels(
        self, seed: int, box: tuple[int, int, int, int], inside: bool
    ) -> None:
        pixels = np.zeros((50, 50, 3), dtype=np.uint8)
        pixels[box[1] : box[3], box[0] : box[2]] = 255
        blank = scene_of(ArraySource(np.zeros((50, 50, 3), dtype=np.uint8)), [], [])
        first = scene_of(ArraySource(pixels), [box], [0])
        image, result = draw(mosaic([first, blank, blank, blank], MosaicOp(output_size=50), RNG(seed)))
        bright = image[..., 0] >= 128
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        hull = result.boxes_xyxy[0]
        if inside:
            np.testing.assert_allclose(hull, found, atol=1.01)
        else:  # the hull of a turned box that the border cuts may be larger than what is left of it
            assert (found[:2] >= hull[:2] - 1).all() and (found[2:] <= hull[2:] + 1).all()
            assert (hull >= 0).all() and (hull <= 100).all()


class TestMixup:
    def test_blend_with_the_image_before(self) -> None:
        images, targets = _batch()
        mixed, joined = mixup(images, targets, RNG(3))
        weight = round(RNG(3).uniform(0.45, 0.55), 6)
        expected = images.double() * weight + images.roll(1, 0).double() * (1 - weight)
        assert mixed.dtype == torch.uint8 and (mixed.double() - expected).abs().max() <= 0.5 + 1e-4
        assert [target["labels"].tolist() for target in joined] == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4]]
        torch.testing.assert_close(joined[0]["boxes"], torch.cat([targets[0]["boxes"], targets[2]["boxes"]]))
        images, targets = _batch(counts=(2,))
        mixed, joined = mixup(images, targets, RNG(0))
        assert torch.equal(mixed, images) and len(joined[0]["labels"]) == 2, "a single image stays"


class TestCopyblend:
    @given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 3), min_size=1, max_size=4), expand=st.booleans())
    def test_invariants(self, seed: int, counts: list[int], expand: bool) -> None:
        images, targets = _batch(seed, tuple(counts))
        before = copy.deepcopy((images, targets))
        config = BLEND.model_copy(update={"with_expand": expand})
        mixed, joined = copyblend(images, targets, config, RNG(seed))
        pool = sum(counts)
        assert torch.equal(images, before[0])
        for old, target, new in zip(before[1], targets, joined, strict=True):
            own = len(old["labels"])
            assert all(torch.equal(target[key], old[key]) for key in ("labels", "boxes", "area"))  # type: ignore[literal-required]
            assert len(new["labels"]) == own + min(3, pool) == len(new["boxes"]) == len(new["area"])
            torch.testing.assert_close(new["boxes"][:own], old["boxes"])
            corners = _corners_px(new, (64, 48))
            assert (corners >= -1e-3).all() and (corners <= np.array([64, 48, 64, 48]) + 1e-3).all()
            np.testing.assert_allclose(corners[own:], corners[own:].round(), atol=1e-4)  # whole pixels
            torch.testing.assert_close(new["area"], new["boxes"][:, 2] * new["boxes"][:, 3] * (48 * 64))
            assert len(set(new["labels"][own:].tolist())) == min(3, pool)  # distinct entries
        assert mixed.dtype == torch.uint8 and mixed.shape == images.shape

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("expand", [False, True])
    def test_pixels(self, seed: int, expand: bool) -> None:
        """A bright object on black: half bright in its new box, everything else as before."""
        images = torch.zeros(2, 3, 48, 64, dtype=torch.uint8)
        images[0, :, 10:30, 20:50] = 200
        targets = [_target([(20, 10, 50, 30)], [5], (64, 48)), _target([], [], (64, 48))]
        config = CollateConfig(num_objects=1, with_expand=expand)
        mixed, joined = copyblend(images, targets, config, RNG(seed))
        assert joined[1]["labels"].tolist() == [5] and joined[1]["area"].tolist() == [600]
        x0, y0, x1, y1 = _corners_px(joined[1], (64, 48))[0].round().astype(int)
        assert (x1 - x0, y1 - y0) == (30, 20)
        weight = round(RNG(seed).uniform(0.45, 0.55), 6)
        expected = torch.zeros(48, 64)
        expected[y0:y1, x0:x1] = 200 * (1 - weight)
        assert (mixed[1].double() - expected).abs().max() <= 0.51

    def test_margins_bring_the_surroundings_along(self) -> None:
        images = torch.full((2, 3, 48, 64), 100, dtype=torch.uint8)
        images[1] = 0
        targets = [_target([(20, 15, 40, 35)], [0], (64, 48)), _target([], [], (64, 48))]
        config = CollateConfig(num_objects=1, with_expand=True, expand_ratios=(0.2, 0.2), copyblend_type="paste")
        for seed in range(30):
            mixed, joined = copyblend(images, targets, config, RNG(seed))
            x0, y0, x1, y1 = _corners_px(joined[1], (64, 48))[0].round().astype(int)
            expected = torch.zeros(48, 64, dtype=torch.uint8)
            expected[max(y0 - 4, 0) : y1 + 4, max(x0 - 4, 0) : x1 + 4] = 100
            assert (mixed[1] == expected).all()

    def test_which_objects_and_how_many(self) -> None:
        images, targets = _batch(counts=(3, 2))
        mixed, joined = copyblend(images, targets, CollateConfig(area_threshold=10_000), RNG(0))
        assert torch.equal(mixed, images) and [len(t["labels"]) for t in joined] == [3, 2], "no small ones"
        thin = [_target([(10.2, 10.2, 10.7, 40)], [1], (64, 48))]
        _, joined = copyblend(images[:1], thin, CollateConfig(area_threshold=1), RNG(0))
        assert len(joined[0]["labels"]) == 1, "none below a pixel"
        config = CollateConfig(num_objects=3, random_num_objects=True)
        added = {len(copyblend(images, targets, config, RNG(seed))[1][0]["labels"]) - 3 for seed in range(30)}
        assert added == {1, 2, 3}


def _plan(**changes: Any) -> EpochPlan:
    values: dict[str, Any] = {
        "mosaic_prob": 0.0,
        "off": frozenset(),
        "off_with_mosaic": frozenset(),
        "mixup_prob": 0.0,
        "copyblend_prob": 0.0,
        "sides": (),
    }
    return EpochPlan(**{**values, **changes})


def test_the_size_of_a_batch() -> None:
    """Square images stay square, others keep their aspect."""
    plan = _plan(sides=(64, 96, 96))
    sides = [batch_size_hw((64, 64), plan, 64, RNG(seed)) for seed in range(200)]
    assert set(sides) == {(64, 64), (96, 96)} and 100 < sides.count((96, 96)) < 170
    for size_wh, expected in (((128, 64), (96, 192)), ((64, 32), (64, 96))):
        assert batch_size_hw(size_wh[::-1], _plan(sides=(96,)), 64, RNG(0)) == expected
    assert batch_size_hw((48, 64), _plan(), 640, RNG(0)) == (48, 64)


class TestMixBatch:
    def test_at_most_one_of_mixup_and_copyblend(self) -> None:
        images, targets = _batch(counts=(1, 1, 1, 1))
        config, counts = CollateConfig(num_objects=3), {1: 0, 2: 0, 4: 0}
        plan = _plan(mixup_prob=0.5, copyblend_prob=0.5)
        for seed in range(400):
            _, mixed = mix_batch(images, targets, plan, config, RNG(seed), size_hw=(48, 64))
            counts[len(mixed[0]["labels"])] += 1
        # docs/deimv2.md, Collate: MixUp 50 %, CopyBlend 25 %, none 25 %.
        assert abs(counts[2] - 200) < 45 and abs(counts[4] - 100) < 40 and abs(counts[1] - 100) < 40

    def test_the_area_threshold_is_meant_at_the_nominal_size(self) -> None:
        """A box of 240 square pixels in images drawn at half of both sides stands for one of 960."""
        images = torch.zeros(1, 3, 48, 64, dtype=torch.uint8)
        targets = [_target([(10, 10, 30, 22)], [0], (64, 48))]
        plan, counts = _plan(copyblend_prob=1.0), []
        for threshold in (950, 970):
            config = CollateConfig(area_threshold=threshold)
            _, mixed = mix_batch(images, targets, plan, config, RNG(0), size_hw=(96, 128))
            counts.append(len(mixed[0]["labels"]))
        assert counts == [2, 1]


def _official_mosaic(pixels: list[Any], boxes: list[Any], op: MosaicOp, size: int) -> tuple[Tensor, Tensor]:
    """docs/deimv2.md, Mosaic: step by step with torchvision on whole images, then the final resize."""
    tiles = []
    for own, own_boxes in zip(pixels, boxes, strict=True):
        wrapped = BoundingBoxes(torch.tensor(own_boxes), format="XYXY", canvas_size=own.shape[:2])  # type: ignore[call-overload]
        tiles.append(v2.Resize(op.output_size)(torch.from_numpy(own).permute(2, 0, 1), wrapped))
    height, width = (max(tile[0].shape[axis] for tile in tiles) for axis in (1, 2))
    canvas, found = torch.zeros(3, 2 * height, 2 * width, dtype=torch.uint8), []
    for (image, own_boxes), (x, y) in zip(tiles, ((0, 0), (width, 0), (0, height), (width, height)), strict=True):
        canvas[:, y : y + image.shape[1], x : x + image.shape[2]] = image
        found.append(own_boxes.as_subclass(Tensor) + torch.tensor([x, y, x, y]))
    merged = BoundingBoxes(torch.cat(found), format="XYXY", canvas_size=(2 * height, 2 * width))  # type: ignore[call-overload]
    affine = v2.RandomAffine(op.rotation_range, op.translation_range, op.scaling_range)
    steps = v2.Compose(
        [affine, v2.RandomPhotometricDistort(p=1.0), v2.SanitizeBoundingBoxes(), v2.Resize((size, size))]
    )
    result = steps({"image": canvas, "boxes": merged, "labels": torch.zeros(len(merged))})
    return result["image"], result["boxes"]


@pytest.mark.parametrize("side", [20, 90])
def test_mosaics_have_the_distribution_of_the_official_order(side: int) -> None:
    """Images smaller than a tile, where colours are changed first, and larger ones."""
    op, size, width = MosaicOp(output_size=32), 64, side * 4 // 3
    ramp = np.add.outer(np.arange(side), np.arange(width))[..., None] * np.array([0.6, 0.8, 1.0]) * 100 / side
    pixels = [(ramp / (k + 1) + RNG(k).normal(20, 4, (side, width, 3))).clip(0, 255).astype(np.uint8) for k in range(4)]
    boxes = [[(0.1 * side, 0.1 * side, 0.7 * side, 0.9 * side), (0.8 * side, 0, 1.2 * side, 0.5 * side)]] * 4
    sources = [scene_of(ArraySource(own), own_boxes, [0, 1]) for own, own_boxes in zip(pixels, boxes, strict=True)]
    ops = [{"type": "RandomPhotometricDistort", "p": 1.0}, {"type": "SanitizeBoundingBoxes"}]
    ops += [{"type": "Resize", "size": (size, size)}, {"type": "SanitizeBoundingBoxes"}]
    transform = TrainTransform(TransformsConfig.model_validate({"ops": ops}))
    rows: dict[str, list[list[float]]] = {"ours": [], "official": []}
    torch.manual_seed(0)
    for seed in range(100):
        rng = RNG(seed)
        image, drawn = draw(transform(mosaic(sources, op, rng), _plan(), rng, mosaic=True))
        theirs, their_boxes = _official_mosaic(pixels, boxes, op, size)
        for name, array, found in (
            ("ours", image, drawn.boxes_xyxy),
            ("official", theirs.permute(1, 2, 0).numpy(), their_boxes.numpy()),
        ):
            sides = (found[:, 2:] - found[:, :2]).mean(axis=0)
            rows[name].append([*array.mean(axis=(0, 1)), array.std(), len(found), *sides])
    a, b = np.array(rows["ours"]), np.array(rows["official"])
    spread = np.sqrt((a.var(axis=0) + b.var(axis=0)) / len(a))
    assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * spread).all(), (a.mean(axis=0), b.mean(axis=0))
    varied = [0, 1, 2, 3, 5, 6]  # nearly all mosaics keep all their boxes
    assert (np.abs(a.std(axis=0) / b.std(axis=0) - 1) < 0.3)[varied].all(), (a.std(axis=0), b.std(axis=0))


def test_colours_of_a_mosaic_do_not_depend_on_where_they_are_changed() -> None:
    """In small sources, with a sketch for the mean, or in a view smaller than they are."""
    changes = (Contrast(1.4), Saturation(0.6), Brightness(0.9))
    ramp = np.add.outer(np.arange(60), np.arange(80))[..., None] * np.array([0.9, 1.2, 1.5])
    sources = [scene_of(ArraySource((ramp / (k + 1)).astype(np.uint8)), [], []) for k in range(4)]
    plain = mosaic(sources, MosaicOp(output_size=80), RNG(3))
    for view in ((400, 400), (32, 32)):
        coloured, _ = draw(replace(plain, changes=changes), view)
        afterwards = apply_changes(draw(plain, view)[0], changes, draw(plain, view)[0])
        assert np.abs(coloured.astype(int) - afterwards).mean() < 1.5
