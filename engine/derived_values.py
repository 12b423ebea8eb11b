"""What a config leaves to be worked out from the length and the size of the run.

A value is derived unless a config file or `-u` states it; what recipes say (see `engine.yaml_dialect`) is made for
their own length and batch. A later statement wins over an earlier one, with a warning: `-u epoches` over the other
epochs, and `eval_spatial_size` over the sizes of the ops. Rules: docs/deimv2.md, Per variant (with its suggestion for
short runs) and Batch-size scaling, and the project's own for warm-up and EMA. If no length is stated at all and the
recipe's epochs fit together, they all stand.

Each rule is a pure function: from a config's plain values, and from who stated them, to the changes it wants.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from engine.config_keys import LOADERS
from engine.yaml_dialect import OVERRIDE, get_path, set_path

Values = Mapping[str, Any]
Rank = Callable[[str], int]
"""Rank of who stated a dotted key, see `engine.yaml_dialect`; 0 if nobody but a recipe did."""

REFERENCE_BATCH = 32
"""Images per step that the official learning rates are made for."""
_POLICY = "train_dataloader.dataset.transforms.policy"
_COLLATE = "train_dataloader.collate_fn"
_MATCHER_CHANGE = "DEIMCriterion.matcher.matcher_change_epoch"
LENGTH_KEYS = ("warmup_iter", "ema.decay", "ema.warmups", f"{_COLLATE}.ema_restart_decay")
"""Keys that `run_length` may change, once the data are there."""
_VIT_NAMES = tuple(
    f"backbone.dinov3.{model}blocks.0.{part}.weight" for model in ("_model.", "") for part in ("attn.qkv", "norm1")
)


class Schedule(NamedTuple):
    """The epochs at which a run changes (docs/deimv2.md, Per variant)."""

    start: int
    """First epoch with strong augmentation."""
    flat: int
    """Epoch from which the learning rate falls and Mosaic and MixUp are off."""
    stop: int
    """First epoch without strong augmentation."""
    no_aug: int
    matcher_change: int

    @classmethod
    def of(cls, epochs: int, flat: int | None = None, no_aug: int | None = None) -> Schedule:
        """Divide a run of `epochs`, keeping `flat` and `no_aug` where they are given."""
        if no_aug is None:
            no_aug = min(max(1, min(12, round(epochs / 11))), epochs - 1)
        stop = max(0, epochs - no_aug)
        start = min(4, epochs // 8, stop)
        if flat is None:
            flat = min(start + stop // 2, stop)
        return cls(min(start, flat), flat, stop, no_aug, round(0.9 * stop))


EPOCHS: dict[str, Callable[[Schedule], int | list[int]]] = {
    f"{_POLICY}.epoch": lambda schedule: [schedule.start, schedule.flat, schedule.stop],
    f"{_COLLATE}.stop_epoch": lambda schedule: schedule.stop,
    f"{_COLLATE}.mixup_epochs": lambda schedule: [schedule.start, schedule.flat],
    f"{_COLLATE}.copyblend_epochs": lambda schedule: [schedule.start, schedule.stop],
    _MATCHER_CHANGE: lambda schedule: schedule.matcher_change,
}
"""Keys of epochs beside the lengths of the run, and their values."""


class Change(NamedTuple):
    """A value that a rule wants."""

    path: str
    value: Any
    why: str
    over: int = 1
    """Rank from which on a statement about `path` stands instead."""


class Note(NamedTuple):
    """A line for the log about one derived value."""

    text: str
    overrides: bool
    """Whether a person had stated another value."""


def apply(values: dict[str, Any], changes: Iterable[Change], rank: Rank) -> list[Note]:
    """Make the changes that no statement forbids, in place."""
    notes = []
    for path, value, why, over in list(changes):
        old = get_path(values, path)
        if rank(path) < over and old != value:
            set_path(values, path, value)
            notes.append(Note(f"{path}: {_show(old)} -> {_show(value)} ({why})", rank(path) > 0))
    return notes


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


_SWITCHES = {
    re.escape(f"{_POLICY}.epoch"): f"{_POLICY}.name",
    r"train_dataloader\.collate_fn\.mixup_epochs": f"{_COLLATE}.mixup_prob",
    r"train_dataloader\.collate_fn\.copyblend_epochs": f"{_COLLATE}.copyblend_prob",
    r"train_dataloader\.collate_fn\.base_size": f"{_COLLATE}.base_size_repeat",
    r"ema\..*|.*\.ema_restart_decay": "use_ema",
    r"train_dataloader\..*\.output_size": "train_dataloader.dataset.transforms.mosaic_prob",
    re.escape(_MATCHER_CHANGE): "DEIMCriterion.matcher.change_matcher",
}
"""Pattern of derived keys, and the key that switches what they belong to on."""


def is_in_use(values: Values, path: str) -> bool:
    """Tell whether a derived value has an effect."""
    switches = (switch for pattern, switch in _SWITCHES.items() if re.fullmatch(pattern, path))
    return all(get_path(values, switch) not in (None, False, 0, "default") for switch in switches)


def at_load(values: dict[str, Any], rank: Rank, name: str, epochs_before: object) -> list[Note]:
    """Derive, in place, what follows from the config alone: epochs, image sizes, learning rates, output folder.

    Args:
        values: With None for `flat_epoch`, `no_aug_epoch` and `output_dir` where no file gives them.
        name: The config file's name without its ending.
        epochs_before: What the files say of `epoches`, before `-u` and unchecked; None where nothing.
    """
    notes = []
    if isinstance(epochs_before, int) and epochs_before > 0 and rank("epoches") == OVERRIDE:
        notes += apply(values, rescaled_epochs(values, rank, epochs_before), rank)
    for rule in (run_epochs, input_sizes, learning_rates, mosaic):
        notes += apply(values, rule(values, rank), rank)
    return notes + apply(values, [Change("output_dir", f"outputs/{name}", "named after the config file")], rank)


def rescaled_epochs(values: Values, rank: Rank, before: int) -> Iterator[Change]:
    """Keep the proportions, after `-u epoches`, of the epochs that files state, written for a run of `before`."""
    epochs = values["epoches"]
    why = f"rescaled: -u epoches {epochs}, {before} in the config files"
    flat, no_aug = (values[key] if rank(key) else None for key in ("flat_epoch", "no_aug_epoch"))
    old = Schedule.of(before, flat, no_aug)
    if no_aug is not None and rank("no_aug_epoch") < OVERRIDE:
        no_aug = min(max(round(no_aug * epochs / before), min(no_aug, 1)), epochs - 1)
        yield Change("no_aug_epoch", no_aug, why, OVERRIDE)
    if flat is not None and rank("flat_epoch") < OVERRIDE:
        flat = min(round(flat * epochs / before), Schedule.of(epochs, 0, no_aug).stop)
        yield Change("flat_epoch", flat, why, OVERRIDE)
    new = Schedule.of(epochs, flat, no_aug)
    was, becomes = [[0.0, one.flat, one.stop, length] for one, length in ((old, before), (new, epochs))]
    for path in EPOCHS:
        stated = get_path(values, path)
        if rank(path) and stated is not None:
            yield Change(path, np.rint(np.interp(stated, was, becomes)).astype(int).tolist(), why, OVERRIDE)


def run_epochs(values: Values, rank: Rank) -> Iterator[Change]:
    """Derive the epochs that nobody states from those that are stated."""
    epochs, stop = values["epoches"], get_path(values, f"{_COLLATE}.stop_epoch")
    flat, no_aug = values["flat_epoch"], values["no_aug_epoch"]
    is_whole = flat is not None and no_aug is not None and stop in (None, epochs - no_aug)
    if is_whole and not any(rank(key) for key in ("epoches", "flat_epoch", "no_aug_epoch")):
        return
    if rank("epoches"):
        flat, no_aug = (flat if rank("flat_epoch") else None, no_aug if rank("no_aug_epoch") else None)
    schedule = Schedule.of(epochs, flat, no_aug)
    yield Change("no_aug_epoch", schedule.no_aug, f"from epoches {epochs}")
    yield Change("flat_epoch", schedule.flat, f"from epoches {epochs}")
    if not 0 <= schedule.flat <= epochs - schedule.no_aug or schedule.no_aug >= epochs:
        schedule = Schedule.of(epochs)  # impossible, which the rules report: spare the reader what follows from it
    why = f"from epoches {epochs}, flat_epoch {schedule.flat}, no_aug_epoch {schedule.no_aug}"
    for path, epochs_of in EPOCHS.items():
        if get_path(values, path.rpartition(".")[0]) is not None:
            reason = f"90 % of {schedule.stop} augmented epochs" if path == _MATCHER_CHANGE else why
            yield Change(path, epochs_of(schedule), reason)


def input_sizes(values: Values, rank: Rank) -> Iterator[Change]:
    """Make `eval_spatial_size` the input size everywhere (docs/deimv2.md, Arguments of the built sections: end).

    Also where an included file states it and another included file's Resize says otherwise: a network would be
    judged at a size it was not trained at.
    """
    size, stated = values["eval_spatial_size"], rank("eval_spatial_size")
    paths = [f"{name}.dataset.transforms.ops" for name in LOADERS if values[name] is not None]
    ops = {f"{path}[{i}]": op for path in paths for i, op in enumerate(get_path(values, path))}
    if not stated and all(op["type"] != "Resize" or op["size"] == size for op in ops.values()):
        return
    why, over = f"from eval_spatial_size {size}", max(stated, 1)
    for path, op in ops.items():
        if op["type"] == "Resize":
            yield Change(f"{path}.size", size, why, over)
        if op["type"] == "Mosaic":
            yield Change(f"{path}.output_size", min(size) // 2, why, over)
    if size[0] == size[1]:
        yield Change(f"{_COLLATE}.base_size", size[0], why, over)
    else:
        yield Change(f"{_COLLATE}.base_size_repeat", None, f"multi-scale makes square batches; {why}", over)


def mosaic(values: Values, _: Rank) -> Iterator[Change]:
    """Switch off a Mosaic that is asked for and not among the ops, whoever states it: nothing would be done."""
    transforms = values["train_dataloader"]["dataset"]["transforms"]
    if transforms["mosaic_prob"] and not any(op["type"] == "Mosaic" for op in transforms["ops"]):
        side = min(values["eval_spatial_size"]) // 2
        why = f"no Mosaic among ops; add {{type: Mosaic, output_size: {side}}} as the first to have it"
        yield Change("train_dataloader.dataset.transforms.mosaic_prob", 0.0, why, OVERRIDE + 1)


def learning_rates(values: Values, rank: Rank) -> Iterator[Change]:
    """Scale with the images per step; the ViT has `backbone_lr_factor`, or from random weights the rate of the rest."""
    train, vit = values["train_dataloader"], values["DINOv3STAs"]
    if "auto" in (train["total_batch_size"], train["batch_size"] and values["accumulation_steps"]):
        return  # becomes a number when the training starts
    batch = train["total_batch_size"] or (train["batch_size"] or 1) * values["accumulation_steps"]
    factor, why = batch / REFERENCE_BATCH, f"batch {batch}, reference {REFERENCE_BATCH}"
    if train["total_batch_size"] is None:
        why += ", one process assumed: state total_batch_size for several"
    main_lr = values["optimizer"]["lr"] * (1 if rank("optimizer.lr") else factor)
    yield Change("optimizer.lr", main_lr, why)
    # Phase 2, with text, starts from phase 1's weights whatever weights_path says.
    starts_fresh = values["tuning"] is None and values["MultimodalFusion"] is None
    random_vit = vit is not None and vit["weights_path"] is None and starts_fresh
    relative = vit and vit["backbone_lr_factor"]
    for index, group in enumerate(values["optimizer"]["params"]):
        if relative is not None and is_of_vit(group["params"]):
            reason = f"backbone_lr_factor {relative} x optimizer.lr"
            yield Change(f"optimizer.params[{index}].lr", relative * main_lr, reason)
        elif random_vit and group["lr"] is not None and is_of_vit(group["params"]):
            reason = "equal to optimizer.lr, the ViT starts from random weights"
            yield Change(f"optimizer.params[{index}].lr", main_lr, reason)
        elif group["lr"] is not None:
            yield Change(f"optimizer.params[{index}].lr", group["lr"] * factor, why)


def is_of_vit(pattern: str) -> bool:
    """Tell whether a pattern of `optimizer.params` names parameters of the ViT."""
    return any(re.search(pattern, name) for name in _VIT_NAMES)


def run_length(values: Values, rank: Rank, steps: int) -> Iterator[Change]:
    """Bound warm-up and EMA by the number of optimiser steps of the whole run."""
    yield Change("warmup_iter", min(values["warmup_iter"], steps // 20), f"at most 5 % of {steps} steps")
    decay, why = max(0.0, 1 - 20 / steps), f"at most 1 - 20/{steps} steps, or the weights judged would be stale"
    restart = get_path(values, f"{_COLLATE}.ema_restart_decay")
    if not rank("ema_decay"):
        yield Change("ema.decay", min(values["ema"]["decay"], decay), why)
    yield Change(f"{_COLLATE}.ema_restart_decay", min(restart, decay), why)
    if not rank("ema_warmups"):
        yield Change("ema.warmups", min(values["ema"]["warmups"], steps // 20), f"at most 1/20 of {steps} steps")
