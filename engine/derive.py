"""What a config leaves to be worked out from the length and the size of the run, and a log line for each.

A value is derived unless a config file or `-u` states it; what recipes say (see `engine.yaml_dialect`) is made for
their own length and batch. A later statement wins over an earlier one, with a warning: `-u epoches` over the other
epochs, and `eval_spatial_size` over the sizes of the ops. Rules: spec section 9.1 and its suggestion for short runs,
9.6, and the project's own for warm-up and EMA. If no length is stated at all and the recipe's epochs fit together, they
all stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engine.yaml_dialect import OVERRIDE, get_path, set_path

if TYPE_CHECKING:
    from engine.config import ExperimentConfig

Rank = Callable[[str], int]
"""Who stated a dotted key, see `engine.yaml_dialect`; 0 if nobody but a recipe did."""

REFERENCE_BATCH = 32
"""Images per step that the official learning rates are made for."""
POLICY = "train_dataloader.dataset.transforms.policy.epoch"
COLLATE = "train_dataloader.collate_fn"
_COLLATE_EPOCHS = ("stop_epoch", "mixup_epochs", "copyblend_epochs")
MATCHER_CHANGE = "DEIMCriterion.matcher.matcher_change_epoch"
_VIT_NAMES = (
    "backbone.dinov3._model.blocks.0.attn.qkv.weight",
    "backbone.dinov3._model.blocks.0.norm1.weight",
    "backbone.dinov3.blocks.0.attn.qkv.weight",
    "backbone.dinov3.blocks.0.norm1.weight",
)


@dataclass(frozen=True)
class Schedule:
    """The epochs at which a run changes (spec section 9.1)."""

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
        """For a run of `epochs`, keeping `flat` and `no_aug` where they are given."""
        if no_aug is None:
            no_aug = min(max(1, min(12, round(epochs / 11))), epochs - 1)
        stop = max(0, epochs - no_aug)
        start = min(4, epochs // 8, stop)
        if flat is None:
            flat = min(start + stop // 2, stop)
        return cls(min(start, flat), flat, stop, no_aug, round(0.9 * stop))


class Note(NamedTuple):
    """A line for the log about one derived value."""

    text: str
    overrides: bool
    """Whether a person had stated another value."""


class _Changes:
    """Sets values in a plain config and keeps a note about each that differs."""

    def __init__(self, values: dict[str, Any], rank: Rank, provisional: frozenset[str] = frozenset()) -> None:
        self.values, self.rank, self.provisional = values, rank, provisional
        self.log: list[Note] = []

    def set(self, path: str, value: Any, why: str, *, over: int = 1) -> None:
        """Set `path` unless it is stated with a rank of `over` or more."""
        old = None if path in self.provisional else get_path(self.values, path)
        if self.rank(path) >= over or old == value:
            return
        set_path(self.values, path, value)
        self.note(path, old, value, why)

    def note(self, path: str, old: Any, value: Any, why: str, *, key: str | None = None) -> None:
        """Keep a line about a change; `key` is what may have been stated, if not `path`."""
        self.log.append(Note(f"{path}: {_show(old)} -> {_show(value)} ({why})", self.rank(key or path) > 0))


def fill_missing(values: dict[str, Any]) -> frozenset[str]:
    """Provisional values, in place, for what no file gives; `at_load` derives the real ones. Returns their keys."""
    missing = frozenset(key for key in ("flat_epoch", "no_aug_epoch", "output_dir") if values.get(key) is None)
    if "epoches" in values:
        values.update({key: 0 for key in missing - {"output_dir"}})
    if "output_dir" in missing:
        values["output_dir"] = "./outputs"
    return missing


def at_load(
    config: ExperimentConfig,
    values: dict[str, Any],
    rank: Rank,
    provisional: frozenset[str],
    name: str,
    epochs_before: int | None,
) -> tuple[dict[str, Any], list[Note]]:
    """What follows from the config alone: epochs, image sizes, learning rates, output folder.

    Args:
        config: The draft, fields checked.
        values: The same as plain values; changed and returned.
        rank: See `Rank`.
        provisional: What `fill_missing` filled.
        name: The config file's name without its ending.
        epochs_before: `epoches` of the files, before `-u`; None where they have none.
    """
    changes = _Changes(values, rank, provisional)
    if epochs_before and rank("epoches") == OVERRIDE:
        _rescale_epochs(config, changes, epochs_before)
    _epochs(config, changes)
    _sizes(config, changes)
    _learning_rates(config, changes)
    changes.set("output_dir", f"outputs/{name}", "named after the config file")
    return changes.values, changes.log


def input_size(config: ExperimentConfig, values: dict[str, Any], rank: Rank) -> tuple[dict[str, Any], list[Note]]:
    """What follows from a stated `eval_spatial_size`."""
    changes = _Changes(values, rank)
    _sizes(config, changes)
    return changes.values, changes.log


def for_length(
    config: ExperimentConfig, values: dict[str, Any], rank: Rank, steps: int
) -> tuple[dict[str, Any], list[Note]]:
    """What follows from the number of optimiser steps of the whole run: warm-up and EMA."""
    changes = _Changes(values, rank)
    changes.set("warmup_iter", min(config.warmup_iter, steps // 20), f"at most 5 % of {steps} steps")
    decay, why = max(0.0, 1 - 20 / steps), f"at most 1 - 20/{steps} steps, or the weights judged would be stale"
    if not rank("ema_decay"):
        changes.set("ema.decay", min(config.ema.decay, decay), why)
    restart = config.train_dataloader.collate_fn.ema_restart_decay
    changes.set(f"{COLLATE}.ema_restart_decay", min(restart, decay), why)
    if not rank("ema_warmups"):
        changes.set("ema.warmups", min(config.ema.warmups, steps // 20), f"at most 1/20 of {steps} steps")
    return changes.values, changes.log


def _rescale_epochs(config: ExperimentConfig, changes: _Changes, before: int) -> None:
    """`-u epoches` keeps the proportions of the epochs that files state, which were written for a run of `before`."""
    epochs, rank = config.epoches, changes.rank
    why = f"rescaled: -u epoches {epochs}, {before} in the config files"
    flat = config.flat_epoch if rank("flat_epoch") else None
    no_aug = config.no_aug_epoch if rank("no_aug_epoch") else None
    old = Schedule.of(before, flat, no_aug)
    if no_aug is not None:
        no_aug = min(max(round(no_aug * epochs / before), min(no_aug, 1)), epochs - 1)
        changes.set("no_aug_epoch", no_aug, why, over=OVERRIDE)
        no_aug = int(changes.values["no_aug_epoch"])
    if flat is not None:
        flat = min(round(flat * epochs / before), Schedule.of(epochs, 0, no_aug).stop)
        changes.set("flat_epoch", flat, why, over=OVERRIDE)
        flat = int(changes.values["flat_epoch"])
    new = Schedule.of(epochs, flat, no_aug)
    was, becomes = [[0.0, one.flat, one.stop, length] for one, length in ((old, before), (new, epochs))]
    for path in (POLICY, *(f"{COLLATE}.{key}" for key in _COLLATE_EPOCHS), MATCHER_CHANGE):
        stated = get_path(changes.values, path)
        if rank(path) and stated is not None:
            scaled = np.rint(np.interp(np.asarray(stated, float), was, becomes)).astype(int).tolist()
            changes.set(path, scaled, why, over=OVERRIDE)


def _epochs(config: ExperimentConfig, changes: _Changes) -> None:
    lengths = ("epoches", "flat_epoch", "no_aug_epoch")
    stop = config.train_dataloader.collate_fn.stop_epoch
    fits = stop is None or stop == config.epoches - config.no_aug_epoch
    if fits and not changes.provisional.intersection(lengths) and not any(changes.rank(key) for key in lengths):
        return
    epochs, given = config.epoches, {}
    for key in ("flat_epoch", "no_aug_epoch"):
        if changes.rank(key) or not (changes.rank("epoches") or key in changes.provisional):
            given[key] = changes.values[key]
    schedule = Schedule.of(epochs, given.get("flat_epoch"), given.get("no_aug_epoch"))
    why = f"from epoches {epochs}"
    changes.set("no_aug_epoch", schedule.no_aug, why)
    changes.set("flat_epoch", schedule.flat, why)
    if not 0 <= schedule.flat <= epochs - schedule.no_aug or schedule.no_aug >= epochs:
        schedule = Schedule.of(epochs)  # impossible, which the rules report: spare the reader what follows from it
    why = f"from epoches {epochs}, flat_epoch {schedule.flat}, no_aug_epoch {schedule.no_aug}"
    if config.train_dataloader.dataset.transforms.policy is not None:
        changes.set(POLICY, [schedule.start, schedule.flat, schedule.stop], why)
    changes.set(f"{COLLATE}.stop_epoch", schedule.stop, why)
    changes.set(f"{COLLATE}.mixup_epochs", [schedule.start, schedule.flat], why)
    changes.set(f"{COLLATE}.copyblend_epochs", [schedule.start, schedule.stop], why)
    if config.DEIMCriterion is not None:
        changes.set(MATCHER_CHANGE, schedule.matcher_change, f"90 % of {schedule.stop} augmented epochs")


def _sizes(config: ExperimentConfig, changes: _Changes) -> None:
    """`eval_spatial_size` is the input size everywhere (spec section 11.7, last paragraph).

    Also where an included file states it and another included file's Resize says otherwise: a network would be
    judged at a size it was not trained at.
    """
    size, rank = list(config.eval_spatial_size), changes.rank("eval_spatial_size")
    loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
    resizes = [loader.dataset.transforms.resize for loader in loaders if loader is not None]
    agree = all(resize is None or list(resize.size) == size for resize in resizes)
    if agree and not rank:
        return
    why, over = f"from eval_spatial_size {size}", max(rank, 1)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        path = f"{name}.dataset.transforms.ops"
        if changes.values[name] is None or changes.rank(path) >= over:
            continue
        for index, op in enumerate(get_path(changes.values, path)):
            key = {"Resize": "size", "Mosaic": "output_size"}.get(op["type"])
            value = size if key == "size" else min(size) // 2
            if key is not None and op[key] != value:
                changes.note(f"{path}[{index}].{key}", op[key], value, why, key=path)
                op[key] = value
    if size[0] == size[1]:
        changes.set(f"{COLLATE}.base_size", size[0], why, over=over)
    else:
        changes.set(f"{COLLATE}.base_size_repeat", None, f"multi-scale makes square batches; {why}", over=over)


def _learning_rates(config: ExperimentConfig, changes: _Changes) -> None:
    """Linear in the images per step; a ViT that starts from random weights learns as fast as the rest."""
    train = config.train_dataloader
    batch = train.total_batch_size or (train.batch_size or 1) * config.accumulation_steps
    factor, why = batch / REFERENCE_BATCH, f"batch {batch}, reference {REFERENCE_BATCH}"
    if train.total_batch_size is None:
        why += ", one process assumed: state total_batch_size for several"
    optimizer = config.optimizer
    changes.set("optimizer.lr", optimizer.lr * factor, why)
    main_lr = changes.values["optimizer"]["lr"]
    vit = config.DINOv3STAs
    # Phase 2, with text, starts from phase 1's weights whatever weights_path says.
    starts_fresh = config.tuning is None and config.MultimodalFusion is None
    random_vit = vit is not None and vit.weights_path is None and starts_fresh
    for index, group in enumerate(optimizer.params):
        if group.lr is None or changes.rank("optimizer.params"):
            continue
        is_vit = any(re.search(group.params, name) for name in _VIT_NAMES)
        from_main = random_vit and is_vit
        lr = main_lr if from_main else group.lr * factor
        reason = "equal to optimizer.lr, the ViT starts from random weights" if from_main else why
        if lr != group.lr:
            changes.note(f"optimizer.params[{index}].lr", group.lr, lr, reason)
            changes.values["optimizer"]["params"][index]["lr"] = lr


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
