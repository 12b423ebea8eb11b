from typing import Any

import pytest

from data.config import CollateConfig, PolicyConfig, TransformsConfig
from data.schedule import EpochPlan, describe, epoch_plan, stage_starts

STRONG = ("Mosaic", "RandomPhotometricDistort", "RandomZoomOut", "RandomIoUCrop")
OPS = (*STRONG, "SanitizeBoundingBoxes", "RandomHorizontalFlip")


def _transforms(**changes: Any) -> TransformsConfig:
    values: dict[str, Any] = {
        "ops": [*({"type": name} for name in OPS), {"type": "Resize", "size": [640, 640]}],
        "policy": {"name": "stop_epoch", "epoch": [4, 64, 120], "ops": STRONG},
        "mosaic_prob": 0.5,
        **changes,
    }
    return TransformsConfig.model_validate(values)


COLLATE = CollateConfig(
    stop_epoch=120,
    base_size_repeat=20,
    mixup_prob=0.5,
    mixup_epochs=(4, 64),
    copyblend_prob=0.4,
    copyblend_epochs=(4, 120),
)
NO_COLLATE = CollateConfig()


def _on(plan: EpochPlan, *, mosaic: bool) -> list[str]:
    return [name for name in OPS if name != "Mosaic" and plan.is_on(name, mosaic=mosaic)]


REST = ["SanitizeBoundingBoxes", "RandomHorizontalFlip"]


@pytest.mark.parametrize(
    ("epoch", "mosaic_prob", "on", "on_with_mosaic", "mixup", "copyblend"),
    [
        (0, 0.0, REST, REST, 0.0, 0.0),
        (3, 0.0, REST, REST, 0.0, 0.0),
        (4, 0.5, [*STRONG[1:], *REST], ["RandomPhotometricDistort", *REST], 0.5, 0.4),
        (63, 0.5, [*STRONG[1:], *REST], ["RandomPhotometricDistort", *REST], 0.5, 0.4),
        (64, 0.0, [*STRONG[1:], *REST], ["RandomPhotometricDistort", *REST], 0.0, 0.4),
        (119, 0.0, [*STRONG[1:], *REST], ["RandomPhotometricDistort", *REST], 0.0, 0.4),
        (120, 0.0, REST, REST, 0.0, 0.0),
        (131, 0.0, REST, REST, 0.0, 0.0),
    ],
)
def test_the_s_recipe(
    epoch: int, mosaic_prob: float, on: list[str], on_with_mosaic: list[str], mixup: float, copyblend: float
) -> None:
    """The table and the intervals of docs/deimv2.md, When is each op active / Collate."""
    plan = epoch_plan(_transforms(), COLLATE, epoch)
    assert plan.mosaic_prob == mosaic_prob
    assert _on(plan, mosaic=False) == on
    assert _on(plan, mosaic=True) == on_with_mosaic
    assert (plan.mixup_prob, plan.copyblend_prob) == (mixup, copyblend)


@pytest.mark.parametrize(("epoch", "on"), [(0, True), (119, True), (120, False), (131, False)])
def test_multi_scale_until_the_stop_epoch(epoch: int, on: bool) -> None:
    sides = epoch_plan(_transforms(), COLLATE, epoch).sides
    if not on:
        assert sides == ()
    else:
        assert sorted(set(sides)) == list(range(480, 801, 32)) and sides.count(640) == 20 and len(sides) == 30
    assert epoch_plan(_transforms(), CollateConfig(base_size_repeat=3), 10_000).sides, "without a stop epoch for ever"
    assert epoch_plan(_transforms(), CollateConfig(stop_epoch=50), 0).sides == ()


@pytest.mark.parametrize(("epoch", "strong"), [(0, True), (9, True), (10, False), (50, False)])
def test_a_scalar_policy_epoch_switches_the_listed_ops_off(epoch: int, strong: bool) -> None:
    transforms = _transforms(policy={"name": "stop_epoch", "epoch": 10, "ops": STRONG})
    plan = epoch_plan(transforms, NO_COLLATE, epoch)
    assert plan.mosaic_prob == (1.0 if strong else 0.0)
    assert _on(plan, mosaic=strong) == ([*STRONG[1:], *REST] if strong else REST)


@pytest.mark.parametrize("policy", [None, PolicyConfig(name="default", epoch=(4, 64, 120), ops=STRONG)])
@pytest.mark.parametrize("epoch", [0, 64, 500])
def test_policy_default_has_everything_on(policy: PolicyConfig | None, epoch: int) -> None:
    plan = epoch_plan(_transforms(policy=policy), NO_COLLATE, epoch)
    assert plan.mosaic_prob == 1.0 and _on(plan, mosaic=True) == [*STRONG[1:], *REST]


def test_stages() -> None:
    assert stage_starts(_transforms(), COLLATE, 132) == [0, 4, 64, 120]
    assert stage_starts(_transforms(), COLLATE, 50) == [0, 4]
    assert stage_starts(_transforms(policy=None), NO_COLLATE, 50) == [0]


def test_description() -> None:
    transforms = _transforms()
    texts = [describe(transforms, epoch_plan(transforms, COLLATE, epoch)) for epoch in (0, 4, 64, 120)]
    assert texts == [
        "HorizontalFlip, sides 480-800 px",
        "Mosaic 50%, PhotometricDistort, ZoomOut, IoUCrop, HorizontalFlip, MixUp 50%, CopyBlend 20%, sides 480-800 px",
        "PhotometricDistort, ZoomOut, IoUCrop, HorizontalFlip, CopyBlend 40%, sides 480-800 px",
        "HorizontalFlip",
    ]
    bare = _transforms(ops=[{"type": "Resize", "size": [64, 64]}])
    assert describe(bare, epoch_plan(bare, NO_COLLATE, 0)) == "no augmentation"
