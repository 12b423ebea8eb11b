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
from data.files import write_json
from engine.detector import Detector
from engine.metrics import Box, GroundTruth, Id, Prediction, Predictions
from models.hub import output_folder

log = logging.getLogger(__name__)

T = TypeVar("T")
RESULTS_NAME, PREDICTIONS_NAME, GROUND_TRUTH_NAME = "results.json", "predictions.json", "ground_truth.json"


def write_results(folder: Path, truth: GroundTruth, predictions: Predictions, content: Mapping[str, Any]) -> None:
    """Write ground_truth.json, predictions.json, then results.json, each whole: where results.json is, the others are.

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
    detector: Detector, section: str, *, size_hw: tuple[int, int] | None = None, nms_iou: float | None = None
) -> tuple[Path, Mapping[str, Any]] | None:
    """The checkpoint's evaluation on its run's own validation split: in a folder `eval_val_<checkpoint>...` beside it,
    else the run's own; the file and its content, which has the `section` that is wanted.

    Only a file that names the checkpoint counts. One of the test split, on which nothing may be chosen, or under
    another suppression is none; one of other data, weights, tiles or input size (`size_hw`, else the config's) is
    passed over, with a warning where no other serves.
    """
    usual = output_folder(detector.path, "eval_val") / RESULTS_NAME
    folder = usual.parent.parent
    own_hash = read_results(folder / RESULTS_NAME).get("gt_hash")
    found = sorted(folder.glob(f"eval_val_*/{RESULTS_NAME}"))
    faults: dict[Path, tuple[str, str]] = {}
    for path in sorted(found, key=lambda path: path != usual) + [folder / RESULTS_NAME]:
        results = read_results(path)
        if results.get("checkpoint") != detector.path.name or not isinstance(results.get(section), dict):
            continue
        if results.get("split") != "val" or results.get("nms_iou") != nms_iou:
            continue
        fault = _unlike(results, own_hash, detector, size_hw or detector.input_size_hw)
        if fault is None:
            return path, results
        faults[path] = fault
    for path, (judged, cure) in faults.items():
        log.warning("%s: not used, it judged %s. Run evaluate_deimv2.py %s", path, judged, cure)
    return None


def _unlike(
    results: Mapping[str, Any], own_hash: object, detector: Detector, size_hw: tuple[int, int]
) -> tuple[str, str] | None:
    """What keeps an evaluation from speaking of the detector on its run's own validation data, and how to run one that
    does; None: nothing.

    `own_hash` is the fingerprint of those data; None where the run's results are not there.
    """
    if results.get("gt_hash") != own_hash if own_hash is not None else not results.get("own_val_data"):
        return "other data than the run's own validation split", "again"
    name, judged = detector.path.name, results.get("epoch")
    if detector.epoch is not None and judged is not None and judged != detector.epoch:
        return f"epoch {judged} of {name}, which now holds epoch {detector.epoch}", "again"
    sha256 = results.get("checkpoint_sha256")
    if sha256 is not None and sha256 != detector.sha256:
        return f"other weights of the name {name}", "again"
    size, tiles, now = results.get("input_size_hw"), results.get("tiles"), tile_facts(detector.config.tiles)
    tiles = tiles if isinstance(tiles, dict) else None
    if size is not None and size != list(size_hw):
        cure = f"-u eval_spatial_size=[{size_hw[0]},{size_hw[1]}]"
        return f"images of {size[0]} x {size[1]} pixels, now they have {size_hw[0]} x {size_hw[1]}", cure
    if tiles != now:
        cure = " ".join(f"tiles.{key}={value:g}" for key, value in now.items()) if now else "tiles=null"
        then, here = (tiling_text((one.get("size"), one.get("overlap")) if one else None) for one in (tiles, now))
        return f"{then}, now it is {here}", f"-u {cure}"
    return None


def tile_facts(tiles: TilesConfig | None) -> dict[str, float] | None:
    """What results.json says of the tiles that were judged."""
    return None if tiles is None else {"size": tiles.size, "overlap": tiles.overlap}


def tiling_text(tile: tuple[object, object] | None) -> str:
    """Write size and overlap of tiles in words."""
    return "whole images" if tile is None else f"tiles of {tile[0]} px, overlap {tile[1]}"


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
