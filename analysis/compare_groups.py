"""Which runs are seeds of one another, and what they are called."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.compare_runs import RunResults
from analysis.style import tidy
from data.errors import UserError

_WITHOUT_EFFECT = ("seed", "output_dir", "summary_dir", "resume", "device", "num_workers", "print_freq")
"""Keys in which seeds of one config may differ."""
_SEED_SUFFIX = re.compile(r"[-_. ]+(seed|s)[-_=]?\d+$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are reported as one: the seeds of one config, or a single run."""

    label: str
    runs: tuple[RunResults, ...]
    config_differences: tuple[str, ...] = ()
    """Dotted keys in which the configs of its runs differ though they should not."""


def group_runs(runs: Sequence[RunResults], labels: Sequence[str] = ()) -> list[Group]:
    """Group the runs, in the order in which the groups first appear.

    Without labels: runs of equal config (but for the seed, output paths, device, workers and evaluation loaders),
    the same checkpoint name and different seeds are one group. A run whose config cannot be found stands alone, and
    so do runs of equal config and equal seed: they are not seeds.

    Args:
        runs: In the user's order.
        labels: One per run: runs with the same label are a group, whatever their configs are. Or one per group as it
            is found without labels: their names. Empty: named after the folders.

    Raises:
        UserError: Another number of labels, an empty one, or two groups of one name.
    """
    if len(labels) == len(runs):
        _check_labels(labels)
        by_label: dict[str, list[RunResults]] = {}
        for run, label in zip(runs, labels, strict=True):
            by_label.setdefault(tidy(label), []).append(run)
        return [Group(label, tuple(members), _differences(members)) for label, members in by_label.items()]
    members = _seeds_of_one_config(runs)
    if labels:
        _check_count(labels, runs, members)
        _check_labels(labels)
        if len(set(map(tidy, labels))) < len(labels):
            raise UserError(
                f"--labels names two groups alike ({', '.join(labels)}); to join runs give one label for each of the "
                f"{len(runs)} runs."
            )
        return [Group(tidy(label), tuple(group)) for label, group in zip(labels, members, strict=True)]
    names = _default_labels(members)
    return [Group(name, tuple(group)) for name, group in zip(names, members, strict=True)]


def _check_count(labels: Sequence[str], runs: Sequence[RunResults], members: Sequence[Sequence[RunResults]]) -> None:
    if len(labels) != len(members):
        or_groups = f" (or {len(members)}, one per group of seeds)" if len(members) < len(runs) else ""
        raise UserError(
            f"--labels: found {len(labels)} ({', '.join(labels)}), expected {len(runs)}, one per run{or_groups}."
        )


def _check_labels(labels: Sequence[str]) -> None:
    if not all(map(tidy, labels)):
        raise UserError(f"--labels: label {[bool(tidy(label)) for label in labels].index(False) + 1} is empty.")


def _seeds_of_one_config(runs: Sequence[RunResults]) -> list[list[RunResults]]:
    buckets: dict[object, list[RunResults]] = {}
    for run in runs:
        buckets.setdefault(identity(run), []).append(run)
    groups: list[list[RunResults]] = []
    for bucket in buckets.values():
        seeds = [run.seed for run in bucket]
        are_seeds = None not in seeds and len(set(seeds)) == len(seeds)
        groups += [bucket] if are_seeds else [[run] for run in bucket]
    return sorted(groups, key=lambda group: runs.index(group[0]))


def identity(run: RunResults) -> object:
    """Equal for runs of one config."""
    if run.config is None:
        return run.folder.resolve()
    config = json.dumps(training_config(run.config), sort_keys=True, default=str)
    return config, run.results.checkpoint, run.results.use_amp, run.results.nms_iou


def training_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which model comes out, apart from chance."""
    kept = {key: value for key, value in config.items() if key not in _WITHOUT_EFFECT}
    # What a model was judged on is in the hash of the ground truth.
    kept = {key: value for key, value in kept.items() if key not in ("val_dataloader", "test_dataloader")}
    train = kept.get("train_dataloader")
    if isinstance(train, Mapping):
        kept["train_dataloader"] = {key: value for key, value in train.items() if key != "num_workers"}
    fusion = kept.get("MultimodalFusion")
    if isinstance(fusion, Mapping):
        kept["MultimodalFusion"] = {key: value for key, value in fusion.items() if key != "seed"}
    return kept


def _differences(members: Sequence[RunResults]) -> tuple[str, ...]:
    """Dotted keys in which the known configs differ."""
    return config_differences([training_config(run.config) for run in members if run.config is not None])


def config_differences(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Dotted keys in which configs differ."""
    flat = [_flat(config) for config in configs]
    keys = sorted({key for leaves in flat for key in leaves})
    return tuple(key for key in keys if len({leaves.get(key, "absent") for leaves in flat}) > 1)


def _flat(value: object, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        leaves: dict[str, str] = {}
        for key, item in value.items():
            leaves |= _flat(item, f"{path}.{key}" if path else str(key))
        return leaves
    return {path: json.dumps(value, sort_keys=True, default=str)}


def _default_labels(groups: Sequence[Sequence[RunResults]]) -> list[str]:
    """The run folder's name, with as many parents as it takes to tell all apart."""
    for depth in range(1, 5):
        labels = [_folder_label(group, depth) for group in groups]
        if max(Counter(labels).values()) == 1:
            return labels
    return [f"{_folder_label(group, 1)} ({number})" for number, group in enumerate(groups, start=1)]


def _folder_label(group: Sequence[RunResults], depth: int) -> str:
    parts = Path(group[0].folder.resolve()).parts
    if depth == 1 and len(parts) > 1 and parts[-1].startswith("eval_"):
        parts = parts[:-1]  # the run says more than its evaluation
    label = "/".join(parts[-depth:])
    if len(group) > 1:
        label = _SEED_SUFFIX.sub("", label) or label
    return tidy(label) or "run"
