"""Where a training stands: its best epochs, what is saved of the loop, and how a run goes on from there (`-r`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from data.errors import UserError
from data.loader import TrainLoader
from engine.optim import ModelEma
from models.weights import completed, cut, weight_problems

log = logging.getLogger(__name__)

_Count = Annotated[int, Field(ge=0, le=10**12)]
_Epoch = Annotated[int, Field(ge=-1, le=10**9)]
_AP = Annotated[float, Field(ge=-1, le=1)]
_LIMITS = {"lr": 1e30, "initial_lr": 1e30, "weight_decay": 1e30, "eps": 1e30, "betas": 1.0}
"""What a resumed parameter group takes from the checkpoint, all below these; how the step is computed is this run's
affair."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


class _State(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


class Selection(_State):
    """Memory of the best epochs. AP values are fractions in [0, 1]."""

    model_config = ConfigDict(extra="forbid")

    best_ap: _AP | None = None
    """Best AP since the last stage-2 restart; None right after one."""
    best_epoch: _Epoch = -1
    top_ap: _AP = -1.0
    """Best AP of the whole run, the one that best.pth holds. -1: nothing evaluated yet."""
    top_epoch: _Epoch = -1
    restarts: _Count = 0
    """Stage-2 restarts after an epoch that failed to improve."""


class Decision(NamedTuple):
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
        selection = selection.model_copy(update={"best_ap": ap, "best_epoch": epoch})
    if is_top:
        selection = selection.model_copy(update={"top_ap": ap, "top_epoch": epoch})
    restart = stage_2 and not is_best
    if restart:
        selection = selection.model_copy(update={"best_ap": None, "restarts": selection.restarts + 1})
    return Decision(selection, write_best=is_top, write_stage1=is_best and not stage_2, restart=restart)


class Position(_State):
    """Where a run stands; all of it goes into every checkpoint."""

    last_epoch: _Epoch = -1
    """The last one that is complete, 0-based."""
    batch_in_epoch: _Count = 0
    """Micro-batches already trained of the epoch after it."""
    step: _Count = 0
    """Optimiser steps done."""
    selection: Selection = Selection()
    nonfinite_in_a_row: _Count = 0
    train_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Time spent in training steps, evaluation left out."""

    @property
    def epoch(self) -> int:
        """The epoch in training, 0-based."""
        return self.last_epoch + 1

    def but(self, **changes: Any) -> Position:
        """Return it with changes."""
        return self.model_copy(update=changes)


class _Ema(_State):
    module: dict[str, Any]
    updates: _Count
    decay: Annotated[float, Field(ge=0, le=1)] | None = None
    skip: _Count = 0


class _Scaler(_State):
    scale: Annotated[float, Field(gt=0, le=1e30)]
    growth_factor: Annotated[float, Field(gt=1, le=1e30)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(ge=1, le=10**12)]
    growth_tracker: _Count = Field(alias="_growth_tracker")


class _Loop(Position):
    ema: _Ema | None = None
    scaler: _Scaler | None = None


def restore(
    checkpoint: Mapping[str, Any],
    path: Path,
    *,
    optimizer: torch.optim.Optimizer,
    ema: ModelEma | None,
    scaler: torch.amp.GradScaler,
    train_loader: TrainLoader,
    changed: Sequence[str] = (),
) -> Position:
    """Optimiser, EMA and scaler from a checkpoint, and the position it was written at; everything or nothing.
    `changed` settings are said beside a state that does not fit.

    An official checkpoint may lack what the reference does not store: the EMA starts from the weights then, the step
    follows from the epoch.

    Raises:
        UserError: There is no such state (weights alone cannot be resumed), or it does not fit the run; says all of it.
    """
    missing = [key for key in ("optimizer", "last_epoch") if key not in checkpoint]
    if missing:
        last = path.with_name("last.pth")
        way = f"Go on with -r {last}, or start" if last.is_file() and last.name != path.name else "Start"
        raise UserError(
            f"{path}: holds weights but no training state ({', '.join(missing)} missing), so it cannot be resumed. "
            f"{way} a new run from its weights with -t {path}."
        )
    loop, problems = _read_loop(checkpoint)
    problems += _weight_faults(checkpoint, ema, loop)
    if loop is not None and loop.batch_in_epoch > len(train_loader):
        problems.append(
            f"batch_in_epoch: {loop.batch_in_epoch}, but an epoch has {len(train_loader)} batches; resume with the "
            "batch size and the data the run was started with"
        )
    trained = loop is not None and loop.last_epoch >= 0
    moments = _optimizer_faults(checkpoint["optimizer"], optimizer, trained=trained)
    problems += [f"optimizer: {line}" for line in moments]
    problems += [f"changed since the checkpoint: {line}" for line in changed if problems]
    if problems or loop is None:
        raise UserError(
            f"{path}: its training state does not fit this run. Resume with the config the run was started with, or "
            f"start a new run from its weights with -t {path}.",
            cut(problems),
        )
    _load_optimizer(optimizer, checkpoint["optimizer"])
    if ema is not None and loop.ema is not None:
        numbers = loop.ema.model_dump(exclude={"module"}, exclude_none=True)
        ema.load_state_dict({"module": completed(checkpoint["ema"]["module"], ema.module.state_dict()), **numbers})
    if scaler.is_enabled() and loop.scaler is not None:
        scaler.load_state_dict(loop.scaler.model_dump(by_alias=True))
    found = {key: getattr(loop, key) for key in Position.model_fields}
    steps = {} if "step" in loop.model_fields_set else {"step": loop.epoch * train_loader.steps_per_epoch}
    return Position(**found | steps)


def _read_loop(checkpoint: Mapping[str, Any]) -> tuple[_Loop | None, list[str]]:
    """Everything but weights and moments; None where something of it is no such value."""
    problems = []
    try:
        held = {key: value for key, value in checkpoint.items() if key in _Loop.model_fields and value is not None}
        loop = _Loop.model_validate({"last_epoch": None} | held)
    except ValidationError as error:
        loop = None
        for fault in error.errors(include_url=False):
            found = fault["input"]
            shown = f"{found!r:.40}" if isinstance(found, (float, str, bool)) else f"a {type(found).__name__}"
            problems.append(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}; found {shown}")
    return loop, problems


def _weight_faults(checkpoint: Mapping[str, Any], ema: ModelEma | None, loop: _Loop | None) -> list[str]:
    """What of the weights, and of the numbers that ours always hold, is missing or damaged.

    Our checkpoints are complete: without the best AP so far, say, a worse epoch would replace best.pth.
    """
    config, problems = checkpoint.get("config"), []
    if isinstance(config, dict):
        wanted = ["step", "batch_in_epoch", "selection"] + ["ema"] * (ema is not None and bool(config.get("use_ema")))
        problems = [f"{key}: missing" for key in wanted if checkpoint.get(key) is None]
        if isinstance(stored := checkpoint.get("selection"), dict):
            problems += [f"selection.{key}: missing" for key in Selection.model_fields if key not in stored]
    parts: dict[str, Mapping[str, Tensor]] = {"model": checkpoint["model"]}
    if ema is not None and loop is not None and loop.ema is not None:
        parts["ema.module"], own = loop.ema.module, ema.module.state_dict()
        faults = weight_problems(own, completed(loop.ema.module, own)).problems()
        problems += [f"ema.module: {line}" for line in faults]
    return problems + [
        f"{part}: {name} holds NaN"
        for part, tensors in parts.items()
        for name, value in tensors.items()
        if bool(torch.isnan(value).any())
    ]


def _optimizer_faults(state: Any, optimizer: torch.optim.Optimizer, *, trained: bool) -> list[str]:
    """What of AdamW's state does not fit this run's parameters; fused kernels believe every shape they are given."""
    groups = state.get("param_groups") if isinstance(state, dict) else None
    entries = state.get("state") if isinstance(state, dict) else None
    if not isinstance(groups, list) or not isinstance(entries, dict) or not all(isinstance(g, dict) for g in groups):
        return ["expected a dict with the dict `state` and the list `param_groups`"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    members = [group.get("params") for group in groups]
    sizes = [len(ids) if isinstance(ids, list) else ids for ids in members]
    expected = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != expected:
        return [
            f"its optimiser state does not fit optimizer.params of this config (groups of {sizes!r:.60} parameters, "
            f"expected {expected})"
        ]
    problems = [] if sum(members, []) == list(range(len(parameters))) else ["param_groups: parameters are not in order"]
    for index, group in enumerate(groups):
        settings = {"initial_lr": group.get("lr")} | group
        problems += [
            f"param_groups[{index}].{key}: expected a number of at least 0" + " and below 1" * (key == "betas")
            for key, limit in _LIMITS.items()
            if not _are_numbers(settings.get(key), 2 if key == "betas" else None, limit)
        ]
    for key, entry in entries.items():
        if key in range(len(parameters)):
            problems += [f"state[{key}]: {line}" for line in _moment_faults(entry, parameters[key])]
        else:
            problems.append(f"state[{key!r:.20}]: there is no such parameter")
    return problems + ["state: empty, although whole epochs were trained"] * (trained and not entries)


def _are_numbers(value: Any, count: int | None, limit: float) -> bool:
    """Whether it is a number, or `count` of them, in [0, limit)."""
    numbers = [value] if count is None else value
    return (
        isinstance(numbers, (list, tuple))
        and len(numbers) == (count or 1)
        and all(type(number) in (int, float) and 0 <= number < limit for number in numbers)
    )


def _moment_faults(entry: Any, parameter: Tensor) -> list[str]:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), Tensor) for key in ("step", *_MOMENTS)):
        return ["expected the tensors step, exp_avg and exp_avg_sq"]
    step, problems = entry["step"], []
    if step.numel() != 1 or not 0 <= float(step) < 1e30:
        problems.append("step: expected one number of at least 0")
    for key in _MOMENTS:
        value = entry[key]
        if value.shape != parameter.shape or not value.is_floating_point():
            found = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            problems.append(f"{key}: found {found}, expected {list(parameter.shape)} as its parameter")
        elif bool(torch.isnan(value).any()) or (key == "exp_avg_sq" and bool((value < 0).any())):
            problems.append(f"{key}: holds NaN or negative squares")
    return problems


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    own = optimizer.state_dict()["param_groups"]
    configured = [group["initial_lr"] for group in own]
    for group, stored in zip(own, state["param_groups"], strict=True):
        group |= {key: stored[key] for key in _LIMITS if key in stored}
        group["initial_lr"] = stored.get("initial_lr", stored["lr"])
    resumed = [group["initial_lr"] for group in own]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {
        # In memory of their own, laid out as the parameter: a stored tensor may be one number shown many times.
        index: {key: torch.empty_like(parameters[index]).copy_(entry[key]) for key in _MOMENTS}
        | {"step": entry["step"].reshape(()).float()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({"state": entries, "param_groups": own})
    if resumed != configured:
        log.warning("learning rates of the resumed run are kept: %s (the config says %s)", resumed, configured)
