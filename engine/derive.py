"""What a config leaves to be worked out from the length and the size of the run, and a log line for each.

A value is derived unless the `-c` file itself or `-u` states it: what included files say is the recipe's, made
for the recipe's own length and batch. Rules: spec section 9.1 and its suggestion for short runs, 9.6, and the
project's own for warm-up and EMA. If no length is stated at all and the included recipe's epochs fit together, they
all stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.yaml_dialect import get_path, set_path

if TYPE_CHECKING:
    from engine.config import ExperimentConfig

States = Callable[[str], bool]
"""Whether a dotted key is stated by the `-c` file itself or by `-u`."""

REFERENCE_BATCH = 32
"""Images per step that the official learning rates are made for."""
POLICY = "train_dataloader.dataset.transforms.policy.epoch"
COLLATE = "train_dataloader.collate_fn"
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


class _Changes:
    """Sets values in a plain config and keeps a line about each that differs."""

    def __init__(self, values: dict[str, Any], states: States, provisional: frozenset[str] = frozenset()) -> None:
        self.values, self.states, self.provisional = values, states, provisional
        self.log: list[str] = []

    def set(self, path: str, value: Any, why: str) -> None:
        """Set `path` unless it is stated."""
        old = None if path in self.provisional else get_path(self.values, path)
        if self.states(path) or old == value:
            return
        set_path(self.values, path, value)
        self.note(path, old, value, why)

    def note(self, path: str, old: Any, value: Any, why: str) -> None:
        """Keep a line about a change."""
        self.log.append(f"{path}: {_show(old)} -> {_show(value)} ({why})")


def fill_missing(values: dict[str, Any]) -> frozenset[str]:
    """Provisional values, in place, for what no file gives; `at_load` derives the real ones. Returns their keys."""
    missing = frozenset(key for key in ("flat_epoch", "no_aug_epoch", "output_dir") if values.get(key) is None)
    if "epoches" in values:
        values.update({key: 0 for key in missing - {"output_dir"}})
    if "output_dir" in missing:
        values["output_dir"] = "./outputs"
    return missing


def at_load(
    config: ExperimentConfig, values: dict[str, Any], states: States, provisional: frozenset[str], name: str
) -> tuple[dict[str, Any], list[str]]:
    """What follows from the config alone: epochs, image sizes, learning rates, output folder.

    Args:
        config: The draft, fields checked.
        values: The same as plain values; changed and returned.
        states: See `States`.
        provisional: What `fill_missing` filled.
        name: The config file's name without its ending.
    """
    changes = _Changes(values, states, provisional)
    _epochs(config, changes)
    _sizes(config, changes)
    _learning_rates(config, changes)
    changes.set("output_dir", f"outputs/{name}", "named after the config file")
    return changes.values, changes.log


def input_size(config: ExperimentConfig, values: dict[str, Any], states: States) -> tuple[dict[str, Any], list[str]]:
    """What follows from a stated `eval_spatial_size`."""
    changes = _Changes(values, states)
    _sizes(config, changes)
    return changes.values, changes.log


def for_length(
    config: ExperimentConfig, values: dict[str, Any], states: States, steps: int
) -> tuple[dict[str, Any], list[str]]:
    """What follows from the number of optimiser steps of the whole run: warm-up and EMA."""
    changes = _Changes(values, states)
    changes.set("warmup_iter", min(config.warmup_iter, steps // 20), f"at most 5 % of {steps} steps")
    decay, why = max(0.0, 1 - 20 / steps), f"at most 1 - 20/{steps} steps, or the weights judged would be stale"
    if not states("ema_decay"):
        changes.set("ema.decay", min(config.ema.decay, decay), why)
    restart = config.train_dataloader.collate_fn.ema_restart_decay
    changes.set(f"{COLLATE}.ema_restart_decay", min(restart, decay), why)
    if not states("ema_warmups"):
        changes.set("ema.warmups", min(config.ema.warmups, steps // 20), f"at most 1/20 of {steps} steps")
    return changes.values, changes.log


def _epochs(config: ExperimentConfig, changes: _Changes) -> None:
    lengths = ("epoches", "flat_epoch", "no_aug_epoch")
    stop = config.train_dataloader.collate_fn.stop_epoch
    fits = stop is None or stop == config.epoches - config.no_aug_epoch
    if fits and not changes.provisional.intersection(lengths) and not any(changes.states(key) for key in lengths):
        return
    epochs, given = config.epoches, {}
    for key in ("flat_epoch", "no_aug_epoch"):
        if changes.states(key) or not (changes.states("epoches") or key in changes.provisional):
            given[key] = getattr(config, key)
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
    size = list(config.eval_spatial_size)
    loaders = (config.train_dataloader, config.val_dataloader, config.test_dataloader)
    resizes = [loader.dataset.transforms.resize for loader in loaders if loader is not None]
    agree = all(resize is None or list(resize.size) == size for resize in resizes)
    if agree and not changes.states("eval_spatial_size"):
        return
    why = f"from eval_spatial_size {size}"
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if changes.values[name] is None:
            continue
        path = f"{name}.dataset.transforms.ops"
        for index, op in enumerate(get_path(changes.values, path)):
            key = {"Resize": "size", "Mosaic": "output_size"}.get(op["type"])
            value = size if key == "size" else min(size) // 2
            if key is not None and not changes.states(path) and op[key] != value:
                changes.note(f"{path}[{index}].{key}", op[key], value, why)
                op[key] = value
    if size[0] == size[1]:
        changes.set(f"{COLLATE}.base_size", size[0], why)
    else:
        changes.set(f"{COLLATE}.base_size_repeat", None, f"multi-scale makes square batches; {why}")


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
        if group.lr is None or changes.states("optimizer.params"):
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
