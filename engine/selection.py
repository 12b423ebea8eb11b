"""Decide which checkpoint is the best and when stage 2 restarts (docs/deimv2.md, Epoch loop and checkpoints)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Selection:
    """Memory of the best epochs. AP values are fractions in [0, 1]."""

    best_ap: float | None = None
    """Best AP since the last stage-2 restart; None right after one."""
    best_epoch: int = -1
    top_ap: float = -1.0
    """Best AP of the whole run, the one that best.pth holds. -1: nothing evaluated yet."""
    top_epoch: int = -1
    restarts: int = 0
    """Stage-2 restarts after an epoch that failed to improve."""

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Selection:
        return cls(**state)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Decision:
    """What to do after an evaluation."""

    selection: Selection
    write_best: bool
    """Write best.pth: this epoch beats every other of the run."""
    write_stage1: bool
    """Write best_stg1.pth: the state stage 2 starts from."""
    restart: bool
    """Reload best_stg1.pth with a lower EMA decay."""


def decide(selection: Selection, *, ap: float, epoch: int, stop_epoch: int) -> Decision:
    """One evaluated epoch. Stage 2 begins at `stop_epoch`, where the strong augmentations end."""
    stage_2 = epoch >= stop_epoch
    is_best = selection.best_ap is None or ap > selection.best_ap
    is_top = ap > selection.top_ap
    if is_best:
        selection = replace(selection, best_ap=ap, best_epoch=epoch)
    if is_top:
        selection = replace(selection, top_ap=ap, top_epoch=epoch)
    restart = stage_2 and not is_best
    if restart:
        selection = replace(selection, best_ap=None, restarts=selection.restarts + 1)
    return Decision(selection, write_best=is_top, write_stage1=is_best and not stage_2, restart=restart)
