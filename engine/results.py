"""What an evaluation leaves behind: results.json, predictions.json, match_tables.npz, a table for the eye."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.curves import best_thresholds
from analysis.matching import FILE_NAME as TABLES_NAME
from analysis.matching import MatchTables
from analysis.result import Analysis
from data.files import file_sha256, write_json
from engine.evaluate import EvalResult
from engine.hub import hub_weights, output_parent

log = logging.getLogger(__name__)

RESULTS_NAME = "results.json"


def write_results(
    folder: Path,
    result: EvalResult,
    tables: MatchTables,
    *,
    analysis: Analysis | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write predictions.json, match_tables.npz, then results.json, each atomically: where results.json is, the others
    are too.

    Args:
        folder: Created if need be.
        result: From `evaluate` on rank 0, the only process that has the detections.
        tables: Of the same detections.
        analysis: Of the same detections; without it results.json holds the metrics and the best thresholds alone.
        extra: Further JSON values for results.json, such as checkpoint and epoch; they may not hide a metric.

    Raises:
        UserError: The folder cannot be written.
    """
    content = result.to_json()
    content.update({"thresholds": best_thresholds(tables)} if analysis is None else analysis.results)
    taken = sorted(set(content) & set(extra or {}))
    if taken:
        raise ValueError(f"results.json already has {', '.join(taken)}")
    content.update(extra or {})
    write_json(folder / "predictions.json", result.predictions, what="predictions")
    tables.save(folder / TABLES_NAME)
    write_json(folder / RESULTS_NAME, content, what="results", indent=2)


def evaluation_of(
    checkpoint: Path, epoch: int | None, input_size_hw: tuple[int, int], *, section: str
) -> tuple[Path, Mapping[str, Any]] | None:
    """The checkpoint's evaluation on its run's own validation split: in a folder `eval_val_<checkpoint>...` beside it,
    else the run's own.

    One of the test split, on which nothing may be chosen, or with suppression is none; one of other data, weights or
    input size is passed over with a warning.

    Args:
        checkpoint: Only a file that names it counts.
        epoch: Epochs that it was trained for; None where it does not tell.
        input_size_hw: Size of the network's input, pixels.
        section: What is wanted of the file; one without is passed over.

    Returns:
        The file and its content.
    """
    folder = output_parent(checkpoint)
    own = read_results(folder / RESULTS_NAME)
    found = sorted(folder.glob(f"eval_val_*/{RESULTS_NAME}"))
    usual = folder / f"eval_val_{checkpoint.stem.removeprefix('hf:')}" / RESULTS_NAME
    for path in sorted(found, key=lambda path: path != usual) + [folder / RESULTS_NAME]:
        results = read_results(path)
        if results.get("checkpoint") != checkpoint.name or not isinstance(results.get(section), dict):
            continue
        if results.get("split") != "val" or results.get("nms_iou") is not None:
            continue
        fault = _unlike(results, own.get("gt_hash"), checkpoint, epoch, input_size_hw)
        if fault is None:
            return path, results
        log.warning("%s: not used, it judged %s. Run evaluate_deimv2.py again", path, fault)
    return None


def _unlike(
    results: Mapping[str, Any], own_hash: object, checkpoint: Path, epoch: int | None, input_size_hw: tuple[int, int]
) -> str | None:
    """What keeps an evaluation from speaking of the checkpoint on its run's own validation data; None: nothing.

    Args:
        results: Of the evaluation.
        own_hash: Fingerprint of the run's own validation data; None where the run's results are not there.
        checkpoint: As it is now.
        epoch: Of the checkpoint.
        input_size_hw: See `evaluation_of`.
    """
    if results.get("gt_hash") != own_hash if own_hash is not None else not results.get("own_val_data"):
        return "other data than the run's own validation split"
    judged = results.get("epoch")
    if epoch is not None and judged is not None and judged != epoch:
        return f"epoch {judged} of {checkpoint.name}, which now holds epoch {epoch}"
    sha256 = results.get("checkpoint_sha256")
    if sha256 is not None and sha256 != file_sha256(hub_weights(checkpoint)):
        return f"other weights of the name {checkpoint.name}"
    size = results.get("input_size_hw")
    if size is not None and size != list(input_size_hw):
        return f"images of {size[0]} x {size[1]} pixels, now they have {input_size_hw[0]} x {input_size_hw[1]}"
    return None


def read_results(path: Path) -> Mapping[str, Any]:
    """What a results.json holds; nothing where there is none, and, with a warning, where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s: cannot be read, it is not used (%s)", path, error)
        return {}
    return content if isinstance(content, dict) else {}
