"""Learning rate, EMA decay and step seed as pure functions of the step: no state, so nothing to resume."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FlatCosine:
    """Warms up quadratically, stays flat, falls as a cosine, ends at the floor (docs/deimv2.md, Learning rate)."""

    epochs: int
    flat_epoch: int
    no_aug_epoch: int
    warmup_steps: int
    steps_per_epoch: int
    floor_ratio: float
    """Final learning rate / base learning rate (official key `lr_gamma`)."""

    def ratio(self, step: int) -> float:
        """Learning rate / base learning rate at optimiser step `step` (0-based); 0 at step 0 of a warm-up."""
        flat_end = self.flat_epoch * self.steps_per_epoch
        cosine_end = (self.epochs - self.no_aug_epoch) * self.steps_per_epoch
        if self.warmup_steps > 0 and step <= self.warmup_steps:
            return (step / self.warmup_steps) ** 2
        if step <= flat_end:
            return 1.0
        if step >= cosine_end:
            return self.floor_ratio
        progress = (step - flat_end) / (cosine_end - flat_end)
        return self.floor_ratio + (1.0 - self.floor_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))

    def ratio_before(self, step: int) -> float:
        """What step `step` trains with: the rate is set before the step, and no step is wasted at rate 0."""
        return self.ratio(max(step, 1))


def ema_decay(update: int, decay: float, warmups: int) -> float:
    """Return decay x (1 - exp(-update / warmups)), updates counted from 1 (docs/deimv2.md, AMP, EMA)."""
    return decay if warmups <= 0 else decay * (1.0 - math.exp(-update / warmups))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of everything random inside one optimiser step (denoising noise, RoPE scale).

    Drawing from (seed, step, rank) instead of a running generator makes an interrupted run continue exactly.
    The odd constants spread neighbouring steps over the 63-bit range (splitmix64's increment and multiplier).
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed & (2**63 - 1)
