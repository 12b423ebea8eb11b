"""Exponential moving average of the weights (docs/deimv2.md, AMP, EMA; Known defects, 4 and 6)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from engine.schedule import ema_decay

_AVERAGED_BUFFERS = ("running_mean", "running_var")


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
