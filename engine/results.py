"""What an evaluation leaves behind: results.json, predictions.json, ground_truth.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from data.config import TilesConfig
from data.errors import UserError
from data.files import file_sha256, write_json
from engine.metrics import Box, GroundTruth, Id, Prediction, Predictions
from models.hub import hub_weights, output_folder

log = logging.getLogger(__name__)

T = TypeVar("T")
RESULTS_NAME, PREDICTIONS_NAME, GROUND_TRUTH_NAME = "results.json", "predictions.json", "ground_truth.json"


def write_results(folder: Path, truth: GroundTruth, predictions: Predictions, content: Mapping[str, Any]) -> None:
    """Write ground_truth.json, predictions.json, then results.json, each whole: where results.json is, the others are.

    Args:
        folder: Created if need be.
        truth: What was judged on.
        predictions: On rank 0, the only process that has them.
        content: Of results.json.

    Raises:
        UserError: The folder cannot be written.
    """
    write_json(folder / GROUND_TRUTH_NAME, truth.to_coco(), what="ground truth")
    write_json(folder / PREDICTIONS_NAME, predictions.to_coco(), what="predictions")
    write_json(folder / RESULTS_NAME, content, what="results", indent=2)


class _Image(TypedDict):
    id: Id
    file_name: Any


class _Box(TypedDict):
    image_id: Id
    category_id: Id
    bbox: Box
    area: FiniteFloat
    iscrowd: Literal[0, 1]


class _Category(TypedDict):
    id: Id
    name: str


class _Truth(TypedDict):
    images: list[_Image]
    annotations: list[_Box]
    categories: list[_Category]


def read_evaluation(folder: Path) -> tuple[GroundTruth, Predictions]:
    """Read what was judged on and what was predicted, from the files beside a results.json.

    Raises:
        UserError: A file is missing or damaged.
    """
    return (
        _read(folder / GROUND_TRUTH_NAME, _Truth, GroundTruth.from_coco),
        _read(folder / PREDICTIONS_NAME, list[Prediction], Predictions.from_coco),
    )


def _read(path: Path, kind: Any, parse: Callable[[Any], T]) -> T:
    again = "Evaluate the checkpoint again with evaluate_deimv2.py"
    if not path.is_file():
        raise UserError(f"{path}: no such file. {again}, which writes it beside results.json.")
    try:
        content = json.loads(path.read_bytes())
        return parse(TypeAdapter(kind).validate_python(content))
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: damaged, cut short or of another version ({reason}). {again}.") from error


def evaluation_of(
    checkpoint: Path,
    epoch: int | None,
    input_size_hw: tuple[int, int],
    tiles: TilesConfig | None,
    *,
    section: str,
    nms_iou: float | None = None,
) -> tuple[Path, Mapping[str, Any]] | None:
    """The checkpoint's evaluation on its run's own validation split: in a folder `eval_val_<checkpoint>...` beside it,
    else the run's own.

    One of the test split, on which nothing may be chosen, or under another suppression is none; one of other data,
    weights or input size is passed over with a warning.

    Args:
        checkpoint: Only a file that names it counts.
        epoch: Epochs that it was trained for; None where it does not tell.
        input_size_hw: Size of the network's input, pixels.
        tiles: How images are cut.
        section: What is wanted of the file; one without is passed over.
        nms_iou: Of the suppression of repeats.

    Returns:
        The file and its content.
    """
    usual = output_folder(checkpoint, "eval_val") / RESULTS_NAME
    folder = usual.parent.parent
    own = read_results(folder / RESULTS_NAME)
    found = sorted(folder.glob(f"eval_val_*/{RESULTS_NAME}"))
    for path in sorted(found, key=lambda path: path != usual) + [folder / RESULTS_NAME]:
        results = read_results(path)
        if results.get("checkpoint") != checkpoint.name or not isinstance(results.get(section), dict):
            continue
        if results.get("split") != "val" or results.get("nms_iou") != nms_iou:
            continue
        fault = _unlike(results, own.get("gt_hash"), checkpoint, epoch, input_size_hw, tiles)
        if fault is None:
            return path, results
        log.warning("%s: not used, it judged %s. Run evaluate_deimv2.py again", path, fault)
    return None


def _unlike(
    results: Mapping[str, Any],
    own_hash: object,
    checkpoint: Path,
    epoch: int | None,
    input_size_hw: tuple[int, int],
    tiles: TilesConfig | None,
) -> str | None:
    """What keeps an evaluation from speaking of the checkpoint on its run's own validation data; None: nothing.

    Args:
        results: Of the evaluation.
        own_hash: Fingerprint of the run's own validation data; None where the run's results are not there.
        checkpoint: As it is now.
        epoch: Of the checkpoint.
        input_size_hw: With `tiles`, see `evaluation_of`.
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
    if results.get("tiles") != tile_facts(tiles):
        judged, now = (f"tiles {one}" if one else "whole images" for one in (results.get("tiles"), tile_facts(tiles)))
        return f"{judged}, now it is {now}"
    return None


def tile_facts(tiles: TilesConfig | None) -> dict[str, float] | None:
    """What results.json says of the tiles that were judged."""
    return None if tiles is None else {"size": tiles.size, "overlap": tiles.overlap}


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
