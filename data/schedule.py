"""Tell which augmentations are on in an epoch, from the config alone (docs/deimv2.md, When is each op active)."""

from __future__ import annotations

from dataclasses import dataclass

from data.config import CollateConfig, MosaicOp, TransformsConfig, multiscale_sides

_NOT_WITH_MOSAIC = frozenset({"RandomZoomOut", "RandomIoUCrop"})


@dataclass(frozen=True)
class EpochPlan:
    """What is on in one epoch. The dice are rolled per sample or per batch, elsewhere."""

    mosaic_prob: float
    """Chance that a sample is a mosaic, before the op's own `probability`."""
    off: frozenset[str]
    """Ops that no sample gets."""
    off_with_mosaic: frozenset[str]
    """Ops that a mosaic does not get on top of `off`."""
    mixup_prob: float
    """Chance of MixUp per batch."""
    copyblend_prob: float
    """Chance of CopyBlend per batch, if MixUp was not drawn."""
    sides: tuple[int, ...]
    """Image sides, in pixels, to draw from for each batch; empty: the size stays."""

    def is_on(self, op: str, *, mosaic: bool) -> bool:
        """Tell whether an op applies to a sample that is (not) a mosaic."""
        return op not in self.off and not (mosaic and op in self.off_with_mosaic)


def epoch_plan(transforms: TransformsConfig, collate: CollateConfig, epoch: int) -> EpochPlan:
    """Return the plan of an epoch.

    Policy `stop_epoch` with epochs [s, F, T]: the listed ops are on in [s, T); Mosaic in [s, F) with `mosaic_prob`, and
    then without zoom-out and crop. With one epoch: the listed ops are on before it. Policy `default`, or none:
    everything is on. In the last two Mosaic goes by its own `probability` alone.
    """
    policy = transforms.policy
    mosaic_prob, off, off_with_mosaic = 1.0, frozenset[str](), frozenset[str]()
    if policy is not None and policy.name == "stop_epoch":
        if isinstance(policy.epoch, int):
            off = frozenset(policy.ops if epoch >= policy.epoch else ())
        else:
            start, flat, stop = policy.epoch
            off = frozenset(policy.ops if epoch < start or epoch >= stop else ())
            mosaic_prob = transforms.mosaic_prob if start <= epoch < flat else 0.0
            off_with_mosaic = _NOT_WITH_MOSAIC
    has_mosaic = any(op.type == "Mosaic" for op in transforms.ops) and "Mosaic" not in off
    multiscale = collate.stop_epoch is None or epoch < collate.stop_epoch
    return EpochPlan(
        mosaic_prob=mosaic_prob if has_mosaic else 0.0,
        off=off,
        off_with_mosaic=off_with_mosaic,
        mixup_prob=_within(epoch, collate.mixup_epochs) * collate.mixup_prob,
        copyblend_prob=_within(epoch, collate.copyblend_epochs) * collate.copyblend_prob,
        sides=tuple(multiscale_sides(collate)) if multiscale else (),
    )


def stage_starts(transforms: TransformsConfig, collate: CollateConfig, num_epochs: int) -> list[int]:
    """Return the first epoch of every stage of training: epochs between two starts have the same plan."""
    plans = [epoch_plan(transforms, collate, epoch) for epoch in range(num_epochs)]
    return [0, *(epoch for epoch in range(1, num_epochs) if plans[epoch] != plans[epoch - 1])]


def describe(transforms: TransformsConfig, plan: EpochPlan) -> str:
    """Describe the plan in one line, for people."""
    parts = []
    for op in transforms.ops:
        if isinstance(op, MosaicOp) and plan.mosaic_prob:
            parts.append(f"Mosaic {plan.mosaic_prob * op.probability:.0%}")
        elif op.type.startswith("Random") and op.type not in plan.off:
            parts.append(op.type.removeprefix("Random"))
    if plan.mixup_prob:
        parts.append(f"MixUp {plan.mixup_prob:.0%}")
    if plan.copyblend_prob:
        parts.append(f"CopyBlend {(1 - plan.mixup_prob) * plan.copyblend_prob:.0%}")
    if plan.sides:
        parts.append(f"sides {min(plan.sides)}-{max(plan.sides)} px")
    return ", ".join(parts) or "no augmentation"


def _within(epoch: int, interval: tuple[int, int]) -> bool:
    return interval[0] <= epoch < interval[1]
