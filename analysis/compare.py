"""The comparison itself: every group's numbers and its paired differences from the first group."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from analysis.bootstrap import BootstrapResult, bootstrap
from analysis.compare_groups import Group, group_runs
from analysis.compare_runs import RunResults, check_points, read_runs
from analysis.compare_statistics import (
    Difference,
    Estimate,
    Resampled,
    estimate,
    holm,
    paired_difference,
    without_class,
)
from analysis.result import Cost, Latency
from data.classes import ClassMap

DEFECTS = "AP_defects"
"""AP over all classes but NORMAL; there only where NORMAL has boxes."""


@dataclass(frozen=True)
class GroupCost:
    """What a group's models cost: means over its runs; None where a run does not tell."""

    parameters: float | None
    gflops: float | None
    latency_ms: float | None
    """Median, one image."""
    latency_p95_ms: float | None
    images_per_s: float | None
    """Of the largest batch that was timed."""
    inference_memory_mb: float | None
    training_memory_mb: float | None
    epochs: float | None
    """Until the judged checkpoint."""
    train_seconds: float | None
    """Until the judged checkpoint."""
    measured_on: tuple[str, ...]
    """Devices, number types and threads of the measurements; more than one cannot be compared."""


@dataclass(frozen=True)
class CorrectedDifference:
    """A paired difference and its p-value after Holm's correction over all groups compared in this metric."""

    difference: Difference
    p_holm: float | None


@dataclass(frozen=True, eq=False)
class GroupResult:
    """One row of the comparison."""

    group: Group
    metrics: Mapping[str, Estimate]
    """AP, AP50, AP75 and perhaps `DEFECTS`."""
    per_class_ap: Mapping[str, Estimate]
    per_class_ap50: Mapping[str, Estimate]
    cost: GroupCost
    differences: Mapping[str, CorrectedDifference]
    """By metric; empty for the reference, the first group."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that is written."""

    split: str
    num_images: int
    gt_hash: str
    samples: int
    seed: int
    groups: Sequence[GroupResult]
    """In the user's order; the first is the reference."""


def compare_runs(
    folders: Sequence[Path], *, labels: Sequence[str] = (), samples: int = 1000, seed: int = 0, progress: bool = True
) -> Comparison:
    """Compare evaluated models on the same images.

    Args:
        folders: Run folders or evaluation folders with results.json and match_tables.npz.
        labels: See `group_runs`.
        samples: Bootstrap resamples; 1,000 or more for intervals that are worth printing.
        seed: Of the resamples.
        progress: Show a bar on stderr.

    Raises:
        UserError: Bad input; everything wrong with the folders at once.
    """
    runs = read_runs(folders, _option_problems(folders, labels, samples, seed))
    groups = group_runs(runs, labels)
    check_points(runs, [bootstrap(run.tables, samples=0).point_ap for run in runs])
    # One run at a time for the bar's sake: the same seed draws the same images for every run.
    bar = tqdm(runs, desc="bootstrap", unit="run", leave=False, dynamic_ncols=True, disable=not progress)
    bar.mininterval = 0.5 if sys.stderr.isatty() else 30.0
    drawn = {id(run): bootstrap(run.tables, samples=samples, seed=seed) for run in bar}
    of_groups = [[drawn[id(run)] for run in group.runs] for group in groups]
    first = runs[0]
    return Comparison(
        split=first.results.split,
        num_images=first.results.num_images,
        gt_hash=first.results.gt_hash,
        samples=samples,
        seed=seed,
        groups=_compare_groups(groups, of_groups, judged_normal_label(runs)),
    )


def _option_problems(folders: Sequence[Path], labels: Sequence[str], samples: int, seed: int) -> list[str]:
    """What is wrong whatever the folders hold."""
    problems = []
    if not 100 <= samples <= 1_000_000:
        problems.append(f"--samples {samples}: expected 100 to 1000000; 1000 is usual")
    if seed < 0:
        problems.append(f"--seed {seed}: expected 0 or more")
    if len(labels) > len(folders):
        problems.append(f"--labels: found {len(labels)} ({', '.join(labels)}), expected {len(folders)}, one per run")
    return problems


def judged_normal_label(runs: Sequence[RunResults]) -> int | None:
    """Label of NORMAL where it has boxes, which are easy AP."""
    if all(run.results.metrics == run.results.metrics_defects for run in runs):
        return None
    names = runs[0].tables.names
    return ClassMap(tuple(range(len(names))), tuple(names)).normal_label


def _compare_groups(
    groups: Sequence[Group], drawn: Sequence[Sequence[BootstrapResult]], normal: int | None
) -> list[GroupResult]:
    metrics = [resampled_metrics(results, normal) for results in drawn]
    compared = [_differences(of_group, metrics[0]) for of_group in metrics]
    compared[0] = {}
    corrected = _with_holm(compared)
    return [
        GroupResult(
            group=group,
            metrics={name: estimate(runs) for name, runs in of_group.items()},
            per_class_ap=per_class_estimates(results, "ap"),
            per_class_ap50=per_class_estimates(results, "ap50"),
            cost=group_cost(group.runs),
            differences=differences,
        )
        for group, results, of_group, differences in zip(groups, drawn, metrics, corrected, strict=True)
    ]


def resampled_metrics(results: Sequence[BootstrapResult], normal: int | None) -> dict[str, list[Resampled]]:
    """AP, AP50, AP75 of each run; without the class `normal` too, where one is given."""
    metrics = {
        "AP": [Resampled(result.point_ap, result.ap) for result in results],
        "AP50": [Resampled(result.point_ap50, result.ap50) for result in results],
        "AP75": [Resampled(result.point_ap75, result.ap75) for result in results],
    }
    if normal is not None:
        metrics[DEFECTS] = [without_class(result, normal) for result in results]
    return metrics


def _differences(
    runs: Mapping[str, Sequence[Resampled]], reference: Mapping[str, Sequence[Resampled]]
) -> dict[str, CorrectedDifference]:
    return {name: CorrectedDifference(paired_difference(runs[name], reference[name]), None) for name in runs}


def _with_holm(compared: Sequence[Mapping[str, CorrectedDifference]]) -> list[dict[str, CorrectedDifference]]:
    """Holm's correction, metric by metric over the groups."""
    corrected: list[dict[str, CorrectedDifference]] = [{} for _ in compared]
    for name in [name for of_group in compared[1:2] for name in of_group]:
        p_values = holm([of_group[name].difference.p_value if of_group else None for of_group in compared])
        for target, of_group, p_value in zip(corrected, compared, p_values, strict=True):
            if of_group:
                target[name] = replace(of_group[name], p_holm=p_value)
    return corrected


def per_class_estimates(results: Sequence[BootstrapResult], metric: str) -> dict[str, Estimate]:
    """Every class's `ap` or `ap50` over the runs."""
    points = [getattr(result, f"point_per_class_{metric}") for result in results]
    samples = [getattr(result, f"per_class_{metric}") for result in results]
    return {
        name: estimate([Resampled(float(p[label]), s[:, label]) for p, s in zip(points, samples, strict=True)])
        for label, name in enumerate(results[0].names)
    }


def group_cost(runs: Sequence[RunResults]) -> GroupCost:
    """Means over the runs."""
    results = [run.results for run in runs]
    costs = [one.cost for one in results]
    known = [cost for cost in costs if cost is not None]
    single = [_latency(cost, largest=False) for cost in costs]
    largest = [_latency(cost, largest=True) for cost in costs]
    parameters = [cost.parameters if cost else one.parameters for one, cost in zip(results, costs, strict=True)]
    return GroupCost(
        parameters=_mean(parameters),
        gflops=_mean([cost.gflops if cost else None for cost in costs]),
        latency_ms=_mean([latency.median_ms if latency else None for latency in single]),
        latency_p95_ms=_mean([latency.p95_ms if latency else None for latency in single]),
        images_per_s=_mean([latency.images_per_s if latency else None for latency in largest]),
        inference_memory_mb=_mean([cost.inference_memory_mb if cost else None for cost in costs]),
        training_memory_mb=_mean([cost.training_memory_mb if cost else None for cost in costs]),
        epochs=_mean([one.epoch for one in results]),
        train_seconds=_mean([one.train_seconds for one in results]),
        measured_on=tuple(sorted({f"{cost.device}, {cost.dtype}, {cost.threads} threads" for cost in known})),
    )


def _latency(cost: Cost | None, *, largest: bool) -> Latency | None:
    """The one of batch 1, or the one of the largest batch."""
    latencies = cost.latencies if cost else ()
    if largest:
        return max(latencies, key=lambda latency: latency.batch_size, default=None)
    return next((latency for latency in latencies if latency.batch_size == 1), None)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
