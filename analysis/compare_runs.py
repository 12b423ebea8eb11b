"""Reading what is compared: run folders and evaluation folders, checked against one another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from analysis.matching import FILE_NAME, MatchTables
from analysis.result import Cost
from data.errors import UserError
from engine.yaml_dialect import read_yaml, require_few_values

_EVALUATE = "evaluate the checkpoint again with evaluate_deimv2.py"
_SAME_AP = 1e-4

Metrics = dict[str, float | None]


class Results(BaseModel):
    """The part of results.json that a comparison reads."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    metrics: Metrics
    metrics_defects: Metrics
    gt_hash: str
    split: str
    num_images: int
    checkpoint: str | None = None
    epoch: int | None = None
    """Epochs trained until this checkpoint."""
    epochs: int | None = None
    """Epochs planned."""
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
class RunResults:
    """One evaluated model."""

    folder: Path
    """As the user gave it."""
    results: Results
    tables: MatchTables
    config: Mapping[str, Any] | None
    """The resolved config it was trained with; None where it cannot be found."""

    @property
    def seed(self) -> int | None:
        """Of the training run."""
        if self.results.seed is not None:
            return self.results.seed
        seed = (self.config or {}).get("seed")
        return seed if isinstance(seed, int) else None


def read_runs(folders: Sequence[Path], other_problems: Sequence[str] = ()) -> list[RunResults]:
    """Read all folders and make sure that they can be compared.

    Args:
        folders: Run folders or evaluation folders.
        other_problems: Faults found elsewhere, to be told together with those found here.

    Raises:
        UserError: Listing every fault: folders that are missing, no results, damaged or given twice, and results that
            were judged on different splits, images or boxes.
    """
    problems = [*other_problems]
    if len(folders) < 2:
        problems.append("one run alone cannot be compared; give two or more")
    problems += _repeated(folders)
    runs = []
    for folder in folders:
        run, found = _read_run(folder)
        problems += found
        if run is not None:
            runs.append(run)
    problems += _different_truth(runs)
    if problems:
        raise UserError("These runs cannot be compared:", problems)
    return runs


def _repeated(folders: Sequence[Path]) -> list[str]:
    seen: dict[Path, Path] = {}
    problems = []
    for folder in folders:
        first = seen.setdefault(folder.resolve(), folder)
        if first is not folder:
            problems.append(f"{folder}: given twice{'' if first == folder else f' (also as {first})'}; leave one out")
    return problems


def _read_run(folder: Path) -> tuple[RunResults | None, list[str]]:
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        return None, [f"{folder}: {found}; expected a run folder or an evaluation folder with results.json"]
    problems: list[str] = []
    results = _read_results(folder / "results.json", problems)
    tables = None
    try:
        tables = MatchTables.load(folder / FILE_NAME)
    except UserError as error:
        problems.append(str(error))
    if results is None or tables is None:
        return None, problems
    problems += _inconsistent(folder, results, tables)
    config = None
    try:
        config = _find_config(folder, results)
    except UserError as error:
        problems.append(str(error))
    if problems:
        return None, problems
    return RunResults(folder, results, tables, config), []


def _read_results(path: Path, problems: list[str]) -> Results | None:
    if not path.is_file():
        problems.append(f"{path}: no such file; give the folder of a finished run or of an evaluation, or {_EVALUATE}")
        return None
    try:
        return Results.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'content'}: {one['msg']}" for one in error.errors())
        problems.append(f"{path}: not as expected ({faults}); {_EVALUATE}")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path}: damaged or cut short ({error}); {_EVALUATE}")
    return None


def _inconsistent(folder: Path, results: Results, tables: MatchTables) -> list[str]:
    """results.json and the match tables must come from the same evaluation."""
    if results.gt_hash != tables.gt_hash:
        found = f"ground truth {results.gt_hash[:12]} and {tables.gt_hash[:12]}"
        return [f"{folder}: results.json and {FILE_NAME} are of different evaluations ({found}); {_EVALUATE}"]
    if len(tables.image_ids) != results.num_images:
        found = f"{results.num_images} and {len(tables.image_ids)} images"
        return [f"{folder}: results.json and {FILE_NAME} are of different evaluations ({found}); {_EVALUATE}"]
    return []


def check_points(runs: Sequence[RunResults], points: Sequence[float]) -> None:
    """AP from the match tables must be the AP in results.json.

    Raises:
        UserError: Naming all folders where it is not.
    """
    problems = []
    for run, point in zip(runs, points, strict=True):
        stated = run.results.metrics.get("AP")
        if (np.nan_to_num(point) if stated is None else abs(point - stated)) > _SAME_AP:
            problems.append(f"{run.folder}: results.json says AP {stated}, {FILE_NAME} gives {point:.4f}; {_EVALUATE}")
    if problems:
        raise UserError("These results and match tables are of different evaluations:", problems)


def _different_truth(runs: Sequence[RunResults]) -> list[str]:
    """All runs with what they were judged on, if that differs."""
    judged = {(run.results.split, run.results.num_images, run.results.gt_hash) for run in runs}
    if len(judged) <= 1:
        return []
    what = "splits" if len({hash_ for _, _, hash_ in judged}) == 1 else "images or ground truth"
    lines = [
        f"{run.folder}: split {run.results.split}, {run.results.num_images} images, gt_hash {run.results.gt_hash[:12]}"
        for run in runs
    ]
    return [
        f"judged on different {what}; evaluate all on the same data with evaluate_deimv2.py --split",
        *lines,
    ]


def _find_config(folder: Path, results: Results) -> Mapping[str, Any] | None:
    """The config: in results.json (an evaluation, wherever its folder is) or beside it (a run folder).

    Evaluations of earlier versions lie in the run's folder, which has it beside the checkpoint. Without a config the
    run is simply not grouped with others.

    Raises:
        UserError: It is there but damaged.
    """
    if isinstance(results.config, dict):
        require_few_values(results.config, f"{folder / 'results.json'}: config")
        return results.config
    above = folder.resolve().parent
    places = [folder / "config.yaml"]
    if results.checkpoint is not None and (above / results.checkpoint).is_file():
        places.append(above / "config.yaml")
    return next((read_yaml(place) for place in places if place.is_file()), None)
