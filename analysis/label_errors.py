"""Find likely errors in annotations by comparing them with predictions of a network that has not seen them.

The four kinds and the idea of a score per kind are ObjectLab's (Tkachenko, Thyagarajan, Mueller: ObjectLab: Automated
Diagnosis of Mislabeled Images in Object Detection Data, 2023); the scores here are simpler. What they find and miss on
NEU-DET stands in docs/results.md.

Legend: G annotated boxes, M detections, P pairs of the two that overlap by `MIN_IOU`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from pydantic import FiniteFloat
from typing_extensions import TypedDict

from analysis.matching import Matches, match, overlapping
from data.coco import CocoSplit
from data.types import BoolArray, FloatArray, IntArray
from engine.metrics import Box, GroundTruth, Id, Predictions
from engine.suppression import suppressed

Kind = Literal["missing", "class", "place", "extra"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SAME_OBJECT_IOU = 0.5
_LEAST_SCORE = 0.02
"""Detections below it say nothing, and are most of them."""
_ERROR_PRIOR = 0.05
"""Share of boxes too many that is expected; it only weighs this kind against the others."""
_OTHER_CLASS_SUPPORT = 0.5
"""What a detection of another class counts for the claim that a box holds something."""


class Suggestion(TypedDict):
    """One likely error, in COCO's terms. What there is not, is None."""

    kind: Kind
    suspicion: FiniteFloat
    """In [0, 1]; it orders, and is no probability."""
    image_id: Id
    annotation_id: Id | None
    """As in the annotation file; None for a missing box."""
    category_id: Id | None
    bbox: Box | None
    suggested_category_id: Id | None
    """None with `suggested_bbox` for a box too many."""
    suggested_bbox: Box | None


_Doubts = tuple[Kind, FloatArray, IntArray, IntArray]
"""Suspicion, annotated boxes and detections of one kind; -1: none."""


def find_label_errors(split: CocoSplit, predictions: Predictions) -> list[Suggestion]:
    """List every annotation that predictions speak against, and every detection that no annotation explains, most
    suspicious first; an annotation is listed once.

    The network must not have been trained on these annotations: one that was repeats their errors.
    """
    sure = predictions.rows(predictions.scores >= _LEAST_SCORE)
    matches = match(GroundTruth.of(split), suppressed(sure, SAME_OBJECT_IOU))
    truth, found = matches.truth, matches.found
    detections, boxes, ious = overlapping(matches)
    scores, same = found.scores[detections], found.labels[detections] == truth.labels[boxes]
    close, real = ious >= SAME_OBJECT_IOU, ~truth.crowd
    explained = np.zeros(len(found.labels), dtype=bool)
    explained[detections[same & close]] = True

    def largest(values: FloatArray) -> tuple[FloatArray, IntArray]:
        """The largest value [G] of each box (0 without pair), and its pair [G] (-1)."""
        order = np.argsort(values, kind="stable")
        pair, value = np.full(len(real), -1), np.zeros(len(real))
        pair[boxes[order]] = order  # the largest stays
        value[pair >= 0] = values[pair[pair >= 0]]
        return value, pair

    right, _ = largest(np.where(same & close, scores, 0.0))
    doubt = scores * (1 - right[boxes])
    against: dict[Kind, BoolArray] = {"class": ~same & close, "place": same & ~close & ~explained[detections]}
    doubts: list[_Doubts] = []
    for kind, which in against.items():
        suspicion, pair = largest(np.where(which, doubt, 0.0))
        doubted = np.flatnonzero((suspicion > 0) & real)
        doubts.append((kind, suspicion[doubted], doubted, detections[pair[doubted]]))
    support, _ = largest(scores * ious * np.where(same, 1, _OTHER_CLASS_SUPPORT))
    doubted = np.flatnonzero(real)
    doubts.append(("extra", _too_many(support, matches)[doubted], doubted, np.full(len(doubted), -1)))
    alone = np.setdiff1d(np.arange(len(found.labels)), detections)
    doubts.append(("missing", found.scores[alone], np.full(len(alone), -1), alone))
    return _ranked(doubts, split, matches)


def _too_many(support: FloatArray, matches: Matches) -> FloatArray:
    """Suspicion [G] of boxes where the network sees less than in others of the class: by their rank, since a class
    that is hard to see has little support everywhere."""
    share = np.ones(len(support))
    for label in range(len(matches.names)):
        own = np.flatnonzero(~matches.truth.crowd & (matches.truth.labels == label))
        share[own] = np.searchsorted(np.sort(support[own]), support[own], side="right") / max(len(own), 1)
    return _ERROR_PRIOR / (_ERROR_PRIOR + (1 - _ERROR_PRIOR) * share)


def _ranked(doubts: Sequence[_Doubts], split: CocoSplit, matches: Matches) -> list[Suggestion]:
    """All kinds in one list, the most suspicious first."""
    rows = [(kind, *row) for kind, *columns in doubts for row in zip(*(one.tolist() for one in columns), strict=True)]
    sizes = {image.id: (float(image.width), float(image.height)) for image in split.images}
    ids, truth, found = split.classes.category_ids, matches.truth, matches.found
    result: list[Suggestion] = []
    listed: set[int] = set()
    for kind, suspicion, box, detection in sorted(rows, key=lambda row: -row[1]):
        if box in listed:
            continue
        if box >= 0:
            listed.add(box)
        image_id = int(matches.image_ids[truth.images[box] if box >= 0 else found.images[detection]])
        suggested, annotated = None, truth.xywh[box].tolist() if box >= 0 else None
        if detection >= 0:
            x, y, w, h = found.xywh[detection].tolist()
            width, height = sizes[image_id]
            left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
            suggested = [round(value, 2) for value in (left, top, right - left, bottom - top)]
            if min(suggested[2:]) <= 0:
                continue
        result.append(
            Suggestion(
                kind=kind,
                suspicion=round(suspicion, 6),
                image_id=image_id,
                annotation_id=int(split.annotation_ids[box]) if box >= 0 else None,
                category_id=ids[truth.labels[box]] if box >= 0 else None,
                bbox=annotated,
                suggested_category_id=ids[found.labels[detection]] if detection >= 0 else None,
                # Another class is no reason to move the box.
                suggested_bbox=annotated if kind == "class" else suggested,
            )
        )
    return result


def corrected(content: Mapping[str, Any], accepted: Iterable[Suggestion]) -> dict[str, Any]:
    """Return a COCO file's content with some suggestions followed; all else stays as it is.

    Raises:
        KeyError: There is no annotation, or more than one, of a suggestion's id.
    """
    result = copy.deepcopy(dict(content))
    annotations = result["annotations"]
    rows: dict[int, int] = {}
    for row, one in enumerate(annotations):
        rows[one["id"]] = row if one["id"] not in rows else -1
    next_id, gone = max([0, *(one["id"] for one in annotations)]) + 1, set()
    for suggestion in accepted:
        category_id, bbox = suggestion["suggested_category_id"], suggestion["suggested_bbox"]
        new = {} if bbox is None else {"category_id": category_id, "bbox": bbox, "area": round(bbox[2] * bbox[3], 4)}
        if suggestion["annotation_id"] is None:
            annotations.append({"id": next_id, "image_id": suggestion["image_id"], **new, "iscrowd": 0})
            next_id += 1
            continue
        row = rows.get(suggestion["annotation_id"], -1)
        if row < 0:
            raise KeyError(suggestion["annotation_id"])
        if suggestion["kind"] == "extra":
            gone.add(row)
        elif suggestion["kind"] == "class":
            annotations[row]["category_id"] = category_id
        else:
            annotations[row] = {key: v for key, v in annotations[row].items() if key != "segmentation"} | new
    result["annotations"] = [one for row, one in enumerate(annotations) if row not in gone]
    return result
