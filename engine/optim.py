"""What an optimiser step does to the weights: parameter groups, learning rate and seed of a step, and their average.

Learning rate, EMA decay and seed are pure functions of the step: no state, so nothing to resume (docs/deimv2.md,
Parameter groups; Learning rate; AMP, EMA; Known defects, 4 and 6).
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from engine.config import ExperimentConfig, OptimizerConfig

_AVERAGED_BUFFERS = ("running_mean", "running_var")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the groups of `param_groups`, each with its `initial_lr` kept for the schedule."""
    groups = param_groups(model, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def param_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """One group per pattern of `optimizer.params`, and a last one for every other trainable parameter.

    Patterns are regular expressions searched in the full parameter name, as in the official configs.

    Raises:
        UserError: A pattern is not a regular expression or matches no parameter, or two match the same one.
    """
    patterns = [group.params for group in config.params]
    matches = _match_names([name for name, _ in model.named_parameters()], patterns)
    groups: list[dict[str, Any]] = [
        {
            "params": [],
            "lr": config.lr if group.lr is None else group.lr,
            "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group in config.params
    ]
    groups.append({"params": [], "lr": config.lr, "weight_decay": config.weight_decay})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[matches.get(name, len(patterns))]["params"].append(parameter)
    # A frozen backbone leaves its groups without members; the optimiser has no use for those.
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return groups


def _match_names(names: Sequence[str], patterns: Sequence[str]) -> dict[str, int]:
    """Parameter name -> index of the one pattern that matches it."""
    problems: list[str] = []
    matched: dict[str, int] = {}
    for index, pattern in enumerate(patterns):
        hits = [name for name in names if re.search(pattern, name)]
        if not hits:
            problems.append(
                f"optimizer.params[{index}].params: {pattern!r} matches no parameter of the model; "
                f"names look like {names[0]!r}; correct the pattern or remove the group"
            )
        taken = [name for name in hits if name in matched]
        if taken:
            problems.append(
                f"optimizer.params[{index}].params: {pattern!r} and optimizer.params[{matched[taken[0]]}].params both "
                f"match {len(taken)} parameter(s), e.g. {taken[0]!r}; make the patterns exclude one another"
            )
        matched.update({name: index for name in hits if name not in matched})
    if problems:
        raise UserError("The optimiser's parameter groups do not fit the model:", problems)
    return matched


def set_learning_rates(optimizer: torch.optim.Optimizer, ratio: float) -> None:
    """Set every group to `ratio` times its own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * ratio


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

    @classmethod
    def of(cls, config: ExperimentConfig, steps_per_epoch: int) -> FlatCosine:
        """Take the config's epochs."""
        epochs = config.epoches, config.flat_epoch, config.no_aug_epoch
        return cls(*epochs, config.warmup_iter, steps_per_epoch, config.lr_gamma)

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


class ModelEma:
    """Averages trainable parameters and BatchNorm statistics, once each; everything else is a plain copy.

    Constants (RoPE periods, anchors, bin scalars) therefore never drift, and integer counters stay true.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmups: int, start: int = 0) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        """Read at every update, so a restart can lower it."""
        self.warmups = warmups
        self.updates = 0
        self._skip = start
        self._averaged, self._copied = _split(self.module, model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One update from the raw weights of `model` (the same module that was given to the constructor)."""
        if self._skip > 0:
            self._skip -= 1
            return
        self.updates += 1
        weight = 1.0 - ema_decay(self.updates, self.decay, self.warmups)
        ours, theirs = self._averaged
        torch._foreach_lerp_(ours, theirs, weight)
        ours, theirs = self._copied
        if ours:
            torch._foreach_copy_(ours, theirs)

    def state_dict(self) -> dict[str, Any]:
        """Return `module`, `updates` (docs/deimv2.md, Checkpoint files) and, to resume exactly, `decay` and `skip`."""
        return {
            "module": self.module.state_dict(),
            "updates": self.updates,
            "decay": self.decay,
            "skip": self._skip,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; an official file has no `decay` and keeps the configured one."""
        self.module.load_state_dict(state["module"])
        self.updates = int(state["updates"])
        self.decay = float(state.get("decay", self.decay))
        self._skip = int(state.get("skip", 0))


_Pairs = tuple[list[Tensor], list[Tensor]]


def _split(ours: nn.Module, theirs: nn.Module) -> tuple[_Pairs, _Pairs]:
    """Pairs (EMA tensor, model tensor) to average and to copy. `named_*` lists aliased tensors once."""
    averaged: _Pairs = ([], [])
    copied: _Pairs = ([], [])
    for mine, (_, parameter) in zip(ours.parameters(), theirs.named_parameters(), strict=True):
        pair = averaged if parameter.requires_grad else copied
        pair[0].append(mine)
        pair[1].append(parameter)
    for my_buffer, (name, buffer) in zip(ours.buffers(), theirs.named_buffers(), strict=True):
        pair = averaged if name.endswith(_AVERAGED_BUFFERS) else copied
        pair[0].append(my_buffer)
        pair[1].append(buffer)
    return averaged, copied
