"""Choose from which score on a detection counts, class by class, and which repeats are suppressed: the two belong
together, since suppression leaves other detections to choose among."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BeforeValidator

from data.errors import UserError
from data.types import FloatArray
from engine.detector import Detector
from engine.metrics import unique_names
from engine.results import evaluation_of

log = logging.getLogger(__name__)

DEFAULT_SCORE = 0.5


def _parse_nms(nms: object) -> object:
    if nms in ("auto", "none", None):
        return None if nms == "none" else nms
    try:
        iou = float(str(nms))
    except ValueError:
        iou = 0.0
    if not 0 < iou < 1:
        raise ValueError("expected auto, none or an IoU between 0 and 1, e.g. 0.7")
    return iou


Nms = Annotated[float | Literal["auto"] | None, BeforeValidator(_parse_nms)]
"""Of boxes of one class that overlap more, the best is kept; None keeps all. `auto`: what gave the best F1 in the
checkpoint's evaluation."""


class Thresholds(NamedTuple):
    """Least scores and where they are from."""

    scores: FloatArray
    """[C], by label."""
    origin: Literal["given", "evaluated", "default", "decided"]
    """Of those that were not given class by class."""
    source: Path | None
    """The results.json whose best-F1 scores they are, or the decision.json."""
    nms_iou: float | None
    """Of boxes of one class that overlap more, the best is kept; None keeps all."""


def choose_thresholds(
    detector: Detector,
    score: float | None,
    per_class: Sequence[str],
    nms: float | Literal["auto"] | None = None,
    *,
    size_hw: tuple[int, int] | None = None,
) -> Thresholds:
    """Take what was asked for, else the best-F1 scores of the checkpoint's evaluation on its own validation data under
    the same suppression, else 0.5. An evaluation of another input size, epoch or data is passed over; `per_class`
    (`NAME=S`) wins over everything else. `size_hw` is of the images as the network sees them, where it is another one
    than the detector's.

    Raises:
        UserError: Unknown classes, scores out of range; all at once.
    """
    names = unique_names(detector.classes)
    own = _parse(per_class, names)
    nms_iou, table, source = None if nms == "auto" else nms, None, None
    if score is None or nms == "auto":
        nms_iou, table, source = _evaluated(detector, nms, size_hw or detector.input_size_hw)
    scores = np.full(len(names), DEFAULT_SCORE if score is None else score)
    best = np.array([_best(table, name) for name in names] if table is not None else [], dtype=np.float64)
    if not np.isfinite(best).any():
        table = source = None  # nothing was hit
    elif score is None:
        scores = np.where(np.isfinite(best), best, DEFAULT_SCORE)
        if detector.calibration is not None:  # what is given is a chance already
            scores = detector.calibration(scores, np.arange(len(names)))
    for label, value in own.items():
        scores[label] = value
    origin: Literal["given", "evaluated", "default"] = "default" if table is None else "evaluated"
    return Thresholds(scores, origin if score is None else "given", source if score is None else None, nms_iou)


def _evaluated(
    detector: Detector, nms: float | Literal["auto"] | None, size_hw: tuple[int, int]
) -> tuple[float | None, Mapping[str, Any] | None, Path | None]:
    """The IoU of the suppression, and the thresholds of an evaluation under just this one with their file; None where
    there is none."""
    found = evaluation_of(detector, "thresholds", size_hw=size_hw)
    if found is not None:
        path, results = found
        section = results.get("suppression")
        section = section if isinstance(section, dict) else {}  # of an older version, or of another hand
        tried = [one for one in section.get("tried") or () if isinstance(one, dict)]
        by_iou = {one.get("iou"): one["thresholds"] for one in tried if isinstance(one.get("thresholds"), dict)}
        wanted = section.get("iou") if nms == "auto" else nms
        if nms == "auto" and wanted not in by_iou:
            log.warning("%s: does not say which repeats to suppress; evaluate_deimv2.py measures it", path)
        if wanted is None or (nms == "auto" and wanted not in by_iou):
            return None, results["thresholds"], path
        if wanted in by_iou:
            return wanted, by_iou[wanted], path
    if nms is None or nms == "auto":
        return None, None, None
    found = evaluation_of(detector, "thresholds", size_hw=size_hw, nms_iou=nms)
    if found is None:
        log.warning(
            "--nms %g: no evaluation of this checkpoint under it; evaluate_deimv2.py --nms %g makes one", nms, nms
        )
        return nms, None, None
    return nms, found[1]["thresholds"], found[0]


def _parse(entries: Sequence[str], names: Sequence[str]) -> dict[int, float]:
    """`NAME=S` -> label: score."""
    problems, scores = [], {}
    by_name = {known.casefold(): label for label, known in enumerate(names)}
    for entry in entries:
        name, sign, text = entry.rpartition("=")
        if not sign:
            problems.append(f"--score-per-class {entry}: expected NAME=S, e.g. {names[0]}=0.4; write sources before it")
            continue
        label = by_name.get(name.strip().casefold())
        if label is None:
            near = difflib.get_close_matches(name.strip().casefold(), by_name, n=1)
            hint = f"did you mean {names[by_name[near[0]]]}?" if near else f"there are {', '.join(names[:20])}"
            problems.append(f"--score-per-class {entry}: the checkpoint has no class {name!r}; {hint}")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            problems.append(f"--score-per-class {entry}: {text!r} is no score, expected 0 to 1")
        elif label is not None:
            scores[label] = value
    if problems:
        raise UserError("Score thresholds that cannot be used:", problems)
    return scores


def _best(thresholds: Mapping[str, Any], name: str) -> float:
    """Of the class, of all classes together where it was never hit, or NaN."""
    per_class = thresholds.get("per_class")
    own = per_class.get(name) if isinstance(per_class, dict) else None
    for entry in (own, thresholds.get("overall")):
        value = entry.get("score") if isinstance(entry, dict) else None
        if isinstance(value, int | float) and 0 <= value <= 1:
            return float(value)
    return math.nan
