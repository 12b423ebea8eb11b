"""The state of the training loop in a checkpoint: checked as a whole against the run before any of it is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from data.errors import UserError
from data.loader import TrainLoader
from engine.ema import ModelEma
from engine.selection import Selection
from models.weights import completed, cut, weight_problems

log = logging.getLogger(__name__)

_Count = Annotated[int, Field(ge=0, le=10**12)]
_Epoch = Annotated[int, Field(ge=-1, le=10**9)]
_AP = Annotated[float, Field(ge=-1, le=1)]
_GROUP_SETTINGS = ("lr", "initial_lr", "weight_decay", "eps", "betas")
"""What a resumed parameter group takes from the checkpoint; how the step is computed is this run's affair."""
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Position:
    """Where a run stands; all of it goes into every checkpoint."""

    epoch: int = 0
    """The epoch in training, 0-based."""
    batch_in_epoch: int = 0
    """Micro-batches of that epoch already trained."""
    step: int = 0
    """Optimiser steps done."""
    selection: Selection = Selection()
    nonfinite_in_a_row: int = 0
    train_seconds: float = 0.0
    """Time spent in training steps, evaluation left out."""


class _State(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Selection(_State):
    model_config = ConfigDict(extra="forbid")

    best_ap: _AP | None
    best_epoch: _Epoch
    top_ap: _AP
    top_epoch: _Epoch
    restarts: _Count


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


class _Loop(_State):
    last_epoch: _Epoch
    batch_in_epoch: _Count = 0
    step: _Count | None = None
    selection: _Selection | None = None
    nonfinite_in_a_row: _Count = 0
    train_seconds: Annotated[float, Field(ge=0)] = 0.0
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
) -> Position:
    """Optimiser, EMA and scaler from a checkpoint, and the position it was written at; everything or nothing.

    An official checkpoint may lack what the reference does not store: the EMA starts from the weights then, the step
    follows from the epoch.

    Raises:
        UserError: There is no such state (weights alone cannot be resumed), or it does not fit the run; says all of it.
    """
    missing = [key for key in ("optimizer", "last_epoch") if key not in checkpoint]
    if missing:
        raise UserError(
            f"{path}: holds weights but no training state ({', '.join(missing)} missing), so it cannot be resumed. "
            f"Start a new run from its weights with -t {path}."
        )
    loop, problems = _read_loop(checkpoint)
    problems += _missing_of_ours(checkpoint, ema)
    if loop is not None and loop.batch_in_epoch > len(train_loader):
        problems.append(
            f"batch_in_epoch: {loop.batch_in_epoch}, but an epoch has {len(train_loader)} batches; resume with the "
            "batch size and the data the run was started with"
        )
    problems += [f"model: {name} holds NaN" for name in _with_nan(checkpoint["model"])]
    averages = None if ema is None or loop is None or loop.ema is None else checkpoint["ema"]["module"]
    if ema is not None and averages is not None:
        problems += [f"ema.module: {line}" for line in weight_problems(ema.module, averages)]
        problems += [f"ema.module: {name} holds NaN" for name in _with_nan(averages)]
    trained = loop is not None and loop.last_epoch >= 0
    moments = _optimizer_problems(checkpoint["optimizer"], optimizer, trained=trained)
    problems += [f"optimizer: {line}" for line in moments]
    if problems or loop is None:
        raise UserError(
            f"{path}: its training state does not fit this run. Resume with the config the run was started with, or "
            f"start a new run from its weights with -t {path}.",
            cut(problems),
        )

    _load_optimizer(optimizer, checkpoint["optimizer"])
    if ema is not None and loop.ema is not None and averages is not None:
        numbers = loop.ema.model_dump(exclude={"module"}, exclude_none=True)
        ema.load_state_dict({"module": completed(averages, ema.module.state_dict()), **numbers})
    if scaler.is_enabled() and loop.scaler is not None:
        scaler.load_state_dict(loop.scaler.model_dump(by_alias=True))
    return Position(
        epoch=loop.last_epoch + 1,
        batch_in_epoch=loop.batch_in_epoch,
        step=(loop.last_epoch + 1) * train_loader.steps_per_epoch if loop.step is None else loop.step,
        selection=Selection() if loop.selection is None else Selection(**loop.selection.model_dump()),
        nonfinite_in_a_row=loop.nonfinite_in_a_row,
        train_seconds=loop.train_seconds,
    )


def _read_loop(checkpoint: Mapping[str, Any]) -> tuple[_Loop | None, list[str]]:
    """Everything but weights and moments; None where something of it is no such value."""
    try:
        return _Loop.model_validate({key: checkpoint[key] for key in _Loop.model_fields if key in checkpoint}), []
    except ValidationError as error:
        faults = error.errors(include_url=False)
    problems = []
    for fault in faults:
        found = fault["input"]
        shown = f"found {found!r:.40}" if isinstance(found, (float, str, bool)) else f"found a {type(found).__name__}"
        problems.append(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}; {shown}")
    return None, problems


def _missing_of_ours(checkpoint: Mapping[str, Any], ema: ModelEma | None) -> list[str]:
    """Our checkpoints are complete: without the best AP so far, say, a worse epoch would replace best.pth."""
    config = checkpoint.get("config")
    if not isinstance(config, dict):
        return []
    wanted = ["step", "batch_in_epoch", "selection", *(["ema"] if ema is not None and config.get("use_ema") else [])]
    return [f"{key}: missing" for key in wanted if checkpoint.get(key) is None]


def _with_nan(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in tensors.items() if bool(torch.isnan(value).any())]


def _optimizer_problems(state: Any, optimizer: torch.optim.Optimizer, *, trained: bool) -> list[str]:
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
        problems += [
            f"param_groups[{index}].{key}: expected a number of at least 0" + (" and below 1" if key == "betas" else "")
            for key in _GROUP_SETTINGS
            if not _is_setting(key, group.get("lr") if key == "initial_lr" and key not in group else group.get(key))
        ]
    problems += [
        f"state[{key!r:.20}]: there is no such parameter" for key in entries if key not in range(len(parameters))
    ]
    if not entries and trained:
        problems.append("state: empty, although whole epochs were trained")
    for index, parameter in enumerate(parameters):
        if index in entries:
            problems += [f"state[{index}]: {line}" for line in _moment_problems(entries[index], parameter)]
    return problems


def _is_setting(key: str, value: Any) -> bool:
    numbers = value if key == "betas" else [value]
    if not isinstance(numbers, (list, tuple)) or len(numbers) != (2 if key == "betas" else 1):
        return False
    limit = 1.0 if key == "betas" else 1e30
    return all(type(number) in (int, float) and 0 <= number < limit for number in numbers)


def _moment_problems(entry: Any, parameter: Tensor) -> list[str]:
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
        group |= {key: stored[key] for key in _GROUP_SETTINGS if key in stored}
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
