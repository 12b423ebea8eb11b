"""Evaluated runs side by side: reading them, joining the seeds of one config or the folds of one set, and their paired
differences.

Where runs were judged on folds, a row has one run on each fold, and the detections of all are judged as those of one
set: every image once, by the network that did not see it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from analysis.bootstrap import BootstrapResult, bootstrap
from analysis.cost import Cost
from analysis.differences import Difference, Estimate, estimate, holm, mean_of, paired_difference
from analysis.matching import Matches, match
from analysis.style import tidy
from data.errors import UserError, collecting
from data.progress import progress_bar
from engine.metrics import GroundTruth, Predictions
from engine.options import Options
from engine.results import RESULTS_NAME, read_evaluation
from engine.yaml_dialect import leaves, read_yaml, require_few_values

_EVALUATE = "evaluate the checkpoint again with evaluate_deimv2.py"
_SAME_AP = 1e-4
_WITHOUT_EFFECT = (
    *("seed", "output_dir", "summary_dir", "resume", "device", "num_workers", "print_freq", "loggers"),
    *("train_dataloader.num_workers", "MultimodalFusion.seed"),
)
"""Keys in which seeds of one config may differ."""
_JUDGED_ON = ("val_dataloader", "test_dataloader")
"""What a model was judged on is in the hash of the ground truth."""
_SEED_SUFFIX = re.compile(r"[-_. /]+(seed|s|fold)[-_=]?\d+$", re.IGNORECASE)


class CompareOptions(Options):
    """How runs are compared."""

    runs: tuple[Path, ...]
    """Run folders or evaluation folders, the reference first."""
    labels: tuple[str, ...] = ()
    """See `group_runs`."""
    samples: int = Field(1000, ge=100, le=1_000_000, description="100 to 1000000; 1000 is usual")
    """Bootstrap resamples."""
    seed: int = Field(0, ge=0, description="0 or more")
    """Of the resamples."""

    @field_validator("labels")
    @classmethod
    def _one_per_run(cls, labels: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        found, expected = len(labels), len(info.data["runs"])
        if found > expected:
            raise ValueError(f"--labels: found {found} ({', '.join(labels)}), expected {expected}, one per run")
        return labels


class Results(BaseModel):
    """The part of results.json that a comparison reads."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    metrics: dict[str, float | None]
    metrics_defects: dict[str, float | None]
    gt_hash: str
    split: str
    num_images: int
    checkpoint: str | None = None
    epoch: int | None = None
    """Epochs trained until this checkpoint."""
    seed: int | None = None
    parameters: int | None = None
    train_seconds: float | None = None
    """Spent in training steps until this checkpoint."""
    use_amp: bool = False
    nms_iou: float | None = None
    """Suppression before the evaluation; None: none."""
    cost: Cost | None = None
    config: Any = None
    """The config it was judged with; an evaluation writes it, a run folder has config.yaml."""


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """One evaluated model."""

    folder: Path
    """As the user gave it."""
    results: Results
    matches: Matches
    config: Mapping[str, Any] | None
    """The resolved config it was trained with; None where it cannot be found."""
    evaluation: tuple[GroundTruth, Predictions]
    """What `matches` are of."""

    @property
    def seed(self) -> int | None:
        """Of the training run."""
        seed = (self.config or {}).get("seed") if self.results.seed is None else self.results.seed
        return seed if isinstance(seed, int) else None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that are reported as one: the seeds of one config, one run on each fold, or a single run."""

    label: str
    runs: Sequence[EvaluatedRun]

    @property
    def config_differences(self) -> tuple[str, ...]:
        """Dotted keys in which the configs of its runs differ though they should not."""
        configs = [run.config for run in self.runs if run.config is not None]
        return config_differences([training_config(one, len(_folds(self.runs)) > 1) for one in configs])


@dataclass(frozen=True, eq=False)
class Row(Group):
    """A group with its numbers; what every comparison has a row of."""

    metrics: Mapping[str, Estimate]
    per_class: Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True, eq=False)
class GroupResult(Row):
    """One row of the comparison."""

    cost: dict[str, Any]
    """See `group_cost`."""
    differences: dict[str, Difference]
    """By metric; empty for the reference, the first group."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that is written."""

    groups: Sequence[GroupResult]
    """In the user's order; the first is the reference."""
    samples: int
    seed: int
    judged_on: Results
    """Of any run: split, number of images and hash of the ground truth are the same for all, those of all folds."""

    def values(self) -> dict[str, dict[str, float | None]]:
        """Return every metric by model."""
        return {one.label: {name: found.value for name, found in one.metrics.items()} for one in self.groups}

    @property
    def num_folds(self) -> int:
        """1: all runs were judged on the same images."""
        return len(_folds(self.groups[0].runs))


def compare_runs(
    folders: Sequence[Path], *, labels: Sequence[str] = (), samples: int = 1000, seed: int = 0
) -> Comparison:
    """Compare evaluated models on the same images, see `CompareOptions`.

    Raises:
        UserError: Bad input; everything wrong with the options and the folders at once.
    """
    problems: list[str] = []
    with collecting(problems):
        CompareOptions(runs=folders, labels=labels, samples=samples, seed=seed)
    runs = read_runs(folders, problems, may_be_folds=True)
    groups = group_runs(runs, labels)
    are_folds, judged_on = len(_folds(runs)) > 1, runs[0].results
    drawn = dict(zip(runs, resample(runs, samples=0 if are_folds else samples, seed=seed), strict=True))
    of_groups = parts = [[drawn[run] for run in group.runs] for group in groups]
    if are_folds:
        pooled = [match(*_pooled(group.runs)) for group in groups]
        facts = {"num_images": len(pooled[0].image_ids), "gt_hash": pooled[0].gt_hash}
        judged_on, normal = judged_on.model_copy(update=facts), _normal_label(runs)
        of_groups = [[bootstrap(one, samples=samples, seed=seed, normal=normal)] for one in pooled]
    results = [
        GroupResult(group.label, group.runs, *estimates(of_group, part), group_cost(group.runs), differences)
        for group, of_group, part, differences in zip(groups, of_groups, parts, _differences(of_groups), strict=True)
    ]
    return Comparison(results, samples, seed, judged_on)


def _folds(runs: Sequence[EvaluatedRun]) -> dict[str, EvaluatedRun]:
    """Hash of the ground truth -> the first run judged on it."""
    folds: dict[str, EvaluatedRun] = {}
    for run in runs:
        folds.setdefault(run.results.gt_hash, run)
    return folds


def _pooled(runs: Sequence[EvaluatedRun]) -> tuple[GroundTruth, Predictions]:
    """Join what was judged fold by fold to one evaluation."""
    truths, found = zip(*(run.evaluation for run in runs), strict=True)
    images = {image_id: name for truth in truths for image_id, name in truth.images.items()}
    boxes = [box for truth in truths for box in truth.annotations]
    return GroundTruth(images, boxes, truths[0].classes), Predictions.joined(found)


def read_runs(
    folders: Sequence[Path], other_problems: Sequence[str] = (), *, may_be_folds: bool = False
) -> list[EvaluatedRun]:
    """Read run folders or evaluation folders and make sure that they can be compared.

    Raises:
        UserError: Listing every fault: folders that are missing, no results, damaged or given twice, and results that
            were judged on different splits, images or boxes.
    """
    problems = [*other_problems]
    seen: dict[Path, Path] = {}
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder)
        if first is not folder:
            problems.append(f"{folder}: given twice{'' if first == folder else f' (also as {first})'}; leave one out")
    if len(folders) < 2:
        problems.append("one run alone cannot be compared; give two or more")
    runs = [run for folder in folders if (run := _read_run(folder, problems)) is not None]
    problems += _different_truth(runs, may_be_folds)
    if problems:
        raise UserError("These runs cannot be compared:", problems)
    return runs


def _read_run(folder: Path, problems: list[str]) -> EvaluatedRun | None:
    """One run; None where faults were added to `problems`."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        problems.append(f"{folder}: {found}; expected a run folder or an evaluation folder with results.json")
        return None
    results, config, known = None, None, len(problems)
    with collecting(problems):
        results = _read_results(folder / RESULTS_NAME)
    with collecting(problems):
        evaluation = read_evaluation(folder)
    with collecting(problems):
        config = None if results is None else _find_config(folder, results)
    if results is None or len(problems) > known:
        return None
    matches = match(*evaluation)
    if results.gt_hash != matches.gt_hash:
        found = f"ground truth {results.gt_hash[:12]} and {matches.gt_hash[:12]}"
    elif results.num_images != len(matches.image_ids):
        found = f"{results.num_images} and {len(matches.image_ids)} images"
    else:
        return EvaluatedRun(folder, results, matches, config, evaluation)
    problems.append(f"{folder}: results.json and predictions.json are of different evaluations ({found}); {_EVALUATE}")
    return None


def _read_results(path: Path) -> Results:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder of a finished run or of an evaluation, or {_EVALUATE}")
    try:
        return Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, one['loc'])) or 'content'}: {one['msg']}" for one in error.errors())
        raise UserError(f"{path}: not as expected ({'; '.join(faults)}); {_EVALUATE}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged or cut short ({error}); {_EVALUATE}") from error


def _find_config(folder: Path, results: Results) -> Mapping[str, Any] | None:
    """The config: in results.json (an evaluation, wherever its folder is) or beside it (a run folder).

    Evaluations of earlier versions lie in the run's folder, which has it beside the checkpoint. Without a config the
    run is simply not grouped with others.
    """
    if isinstance(results.config, dict):
        require_few_values(results.config, f"{folder / 'results.json'}: config")
        return results.config
    above = folder.resolve().parent
    places = [folder / "config.yaml"]
    if results.checkpoint is not None and (above / results.checkpoint).is_file():
        places.append(above / "config.yaml")
    return next((read_yaml(place) for place in places if place.is_file()), None)


def _different_truth(runs: Sequence[EvaluatedRun], may_be_folds: bool) -> list[str]:
    """All runs with what they were judged on, if that differs and is not one set's folds."""
    no_folds = [
        found for pair in combinations(_folds(runs).values(), 2) if (found := _no_folds(*pair)) or not may_be_folds
    ]
    judged = [(run.results.split, run.results.num_images, run.results.gt_hash) for run in runs]
    if not no_folds and len({split for split, _, _ in judged}) <= 1:
        return []
    what = "splits" if len({gt_hash for _, _, gt_hash in judged}) == 1 else "images or ground truth"
    return [
        f"judged on different {what}; evaluate all on the same data with evaluate_deimv2.py --split",
        *(
            f"{run.folder}: split {split}, {num_images} images, gt_hash {gt_hash[:12]}"
            for run, (split, num_images, gt_hash) in zip(runs, judged, strict=True)
        ),
        *(f"nor are they folds of one set: {reason}" for reason in no_folds[:1] if may_be_folds),
    ]


def _no_folds(one: EvaluatedRun, other: EvaluatedRun) -> str:
    """Why two runs were not judged on different folds of one set; empty if they may have been."""
    (first, _), (second, _) = one.evaluation, other.evaluation
    if first.classes != second.classes:
        return f"{one.folder} and {other.folder} have different classes"
    names = sorted({*first.images.values()} & {*second.images.values()})
    names = names or [f"id {number}" for number in sorted({*first.images} & {*second.images})]
    return f"{one.folder} and {other.folder} share {len(names)} images, e.g. {names[0]}" if names else ""


def group_runs(runs: Sequence[EvaluatedRun], labels: Sequence[str] = ()) -> list[Group]:
    """Group the runs, in the order in which the groups first appear.

    Without labels: runs of equal config (but for the seed, output paths, device, workers and evaluation loaders),
    the same checkpoint name and different seeds are one group. A run whose config cannot be found stands alone, and
    so do runs of equal config and equal seed: they are not seeds.

    Where runs were judged on folds, those of equal config but for the annotation file of the training are a group.

    One label per run joins those of the same label, whatever their configs are; one per group names the groups as they
    are found without labels.

    Raises:
        UserError: Another number of labels, an empty one, two groups of one name, or a group without a run on every
            fold.
    """
    names, found = [tidy(label) for label in labels], _seeds_of_one_config(runs)
    if labels and len(labels) not in (len(runs), len(found)):
        or_groups = f" (or {len(found)}, one per group of seeds)" if len(found) < len(runs) else ""
        raise UserError(
            f"--labels: found {len(labels)} ({', '.join(labels)}), expected {len(runs)}, one per run{or_groups}."
        )
    if "" in names:
        raise UserError(f"--labels: label {names.index('') + 1} is empty.")
    if len(names) == len(runs):
        found = [[run for run, own in zip(runs, names, strict=True) if own == name] for name in dict.fromkeys(names)]
        names = [*dict.fromkeys(names)]
    elif len(set(names)) < len(names):
        raise UserError(
            f"--labels names two groups alike ({', '.join(labels)}); to join runs give one label for each of the "
            f"{len(runs)} runs."
        )
    groups = [Group(name, members) for name, members in zip(names or _default_labels(found), found, strict=True)]
    _require_every_fold(groups, _folds(runs))
    return groups


def _require_every_fold(groups: Sequence[Group], folds: Mapping[str, EvaluatedRun]) -> None:
    problems = []
    for group in groups if len(folds) > 1 else ():
        judged = Counter(run.results.gt_hash for run in group.runs)
        problems += [
            f"{group.label}: {judged[gt_hash] or 'no'} runs on the {run.results.num_images} images of {run.folder}"
            for gt_hash, run in folds.items()
            if judged[gt_hash] != 1
        ]
    if problems:
        raise UserError(
            "Runs judged on different images, and no folds of one set: then each row has one run on every fold. Add "
            "what is missing, or say which runs are a row with --labels, one per run:",
            problems,
        )


def _seeds_of_one_config(runs: Sequence[EvaluatedRun]) -> list[list[EvaluatedRun]]:
    of_folds = len(_folds(runs)) > 1
    alike: dict[object, list[EvaluatedRun]] = {}
    for run in runs:
        alike.setdefault(identity(run, of_folds), []).append(run)
    groups: list[list[EvaluatedRun]] = []
    for members in alike.values():
        seeds = {run.seed for run in members}
        are_seeds = of_folds or (None not in seeds and len(seeds) == len(members))
        groups += [members] if are_seeds else [[run] for run in members]
    return sorted(groups, key=lambda group: runs.index(group[0]))


def identity(run: EvaluatedRun, of_folds: bool = False) -> object:
    """Return what is equal for runs of one config."""
    if run.config is None:
        return run.folder.resolve()
    config = json.dumps(training_config(run.config, of_folds), sort_keys=True, default=str)
    return config, run.results.checkpoint, run.results.use_amp, run.results.nms_iou


def training_config(config: Mapping[str, Any], of_folds: bool = False) -> dict[str, Any]:
    """Return what of a config decides which model comes out, apart from chance and, of folds, the training images."""
    gone = (*_WITHOUT_EFFECT, *_JUDGED_ON, *(["train_dataloader.dataset.ann_file"] if of_folds else []))
    kept: dict[str, Any] = _without(config, gone)
    return kept


def _without(value: Any, gone: Collection[str], path: str = "") -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _without(part, gone, f"{path}{key}.") for key, part in value.items() if f"{path}{key}" not in gone}


def config_differences(configs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the dotted keys in which configs differ."""
    flat = [{key: json.dumps(value, sort_keys=True, default=str) for key, value in leaves(one)} for one in configs]
    keys = sorted({key for one in flat for key in one})
    return tuple(key for key in keys if len({one.get(key, "absent") for one in flat}) > 1)


def _default_labels(groups: Sequence[Sequence[EvaluatedRun]]) -> list[str]:
    """The run folder's name, with as many parents as it takes to tell all apart."""
    for depth in range(1, 5):
        labels = [_folder_label(group, depth) for group in groups]
        if max(Counter(labels).values()) == 1:
            return labels
    return [f"{_folder_label(group, 1)} ({number})" for number, group in enumerate(groups, start=1)]


def _folder_label(group: Sequence[EvaluatedRun], depth: int) -> str:
    parts = Path(group[0].folder.resolve()).parts
    if depth == 1 and len(parts) > 1 and parts[-1].startswith("eval_"):
        parts = parts[:-1]  # the run says more than its evaluation
    label = "/".join(parts[-depth:])
    if len(group) > 1:
        label = _SEED_SUFFIX.sub("", label) or label
    return tidy(label) or "run"


def resample(runs: Sequence[EvaluatedRun], *, samples: int, seed: int) -> list[BootstrapResult]:
    """Draw the same images for every run: the same seed draws them, run by run, so that the bar can show how far.

    Raises:
        UserError: AP of the predictions is not the AP in results.json; naming all folders.
    """
    problems = []
    for run in runs:
        stated, point = run.results.metrics.get("AP"), bootstrap(run.matches, samples=0).metrics["AP"].point
        if (np.nan_to_num(point) if stated is None else abs(point - stated)) > _SAME_AP:
            problems.append(
                f"{run.folder}: results.json says AP {stated}, predictions.json gives {point:.4f}; {_EVALUATE}"
            )
    if problems:
        raise UserError("These results and predictions are of different evaluations:", problems)
    normal = _normal_label(runs)
    bar = progress_bar(runs, "bootstrap", unit="run")
    return [bootstrap(run.matches, samples=samples, seed=seed, normal=normal) for run in bar]


def _normal_label(runs: Sequence[EvaluatedRun]) -> int | None:
    """NORMAL, if it has boxes, which are easy AP."""
    easy = any(run.results.metrics != run.results.metrics_defects for run in runs)
    return runs[0].evaluation[0].classes.normal_label if easy else None


def estimates(
    runs: Sequence[BootstrapResult], parts: Sequence[BootstrapResult] = ()
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Return the `estimate` of every metric, and of every class."""

    def of(label: str | None) -> dict[str, Estimate]:
        both = (runs, parts)
        own, single = ([run.metrics if label is None else run.per_class[label] for run in some] for some in both)
        return {name: estimate([run[name] for run in own], [run[name] for run in single]) for name in own[0]}

    return of(None), {label: of(label) for label in runs[0].per_class}


def _differences(groups: Sequence[Sequence[BootstrapResult]]) -> list[dict[str, Difference]]:
    """Every group's differences from the first by metric, corrected over the groups."""
    reference, *others = groups
    differences: list[dict[str, Difference]] = [{} for _ in groups]
    for name in reference[0].metrics:
        base = [run.metrics[name] for run in reference]
        found = [paired_difference([run.metrics[name] for run in group], base) for group in others]
        p_values = holm([one.p_value for one in found])
        for of_group, one, p_holm in zip(differences[1:], found, p_values, strict=True):
            of_group[name] = one._replace(p_holm=p_holm)
    return differences


def group_cost(runs: Sequence[EvaluatedRun]) -> dict[str, Any]:
    """Return what a group's models cost, until the judged checkpoint: means over its runs, None where a run does not
    tell. `measured_on` lists devices, number types and threads: measurements of more than one cannot be compared."""
    costs, known = [_run_cost(run.results) for run in runs], [run.results.cost for run in runs]
    means = {name: mean_of([cost[name] for cost in costs]) for name in costs[0]}
    return means | {
        "measured_on": sorted({f"{one.device}, {one.dtype}, {one.threads} threads" for one in known if one})
    }


def _run_cost(results: Results) -> dict[str, float | None]:
    cost = results.cost
    latencies = sorted(cost.latencies if cost else (), key=lambda latency: latency.batch_size)
    single = latencies[0] if latencies and latencies[0].batch_size == 1 else None
    passes = cost.passes if cost else 1
    return {
        "parameters": cost.parameters if cost else results.parameters,
        "gflops": passes * cost.gflops if cost else None,
        "latency_ms": passes * single.median_ms if single else None,
        "latency_p95_ms": passes * single.p95_ms if single else None,
        "images_per_s": latencies[-1].images_per_s / passes if latencies else None,
        "inference_memory_mb": cost.inference_memory_mb if cost else None,
        "training_memory_mb": cost.training_memory_mb if cost else None,
        "epochs": results.epoch,
        "train_seconds": results.train_seconds,
    }
