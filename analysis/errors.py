"""Who is taken for whom, which kind of error costs how much AP50 in the manner of TIDE, and which single boxes are
worth a look: what is missed, and what is reported without being there.

Bolya, Foley, Hays, Hoffman: TIDE: A General Toolbox for Identifying Object Detection Errors (ECCV 2020), section 2:
the six kinds, what mending each means, and the order in which the authors' tool asks for them (localisation,
classification, duplicate, background, both). Written anew on arrays, as faster-coco-eval has no such thing. Matching,
limits and AP are COCO's. Each kind is mended alone, on the original detections.

Legend: M detections, G boxes, K classes, P pairs that overlap.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.curves import interpolated_precision
from analysis.matching import FALSE_POSITIVE, IGNORED, NO_BOX, Boxes, Matches, overlapping, take
from data.types import BoolArray, FloatArray, IntArray

ErrorKind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
ERROR_KINDS: tuple[ErrorKind, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND_IOU = 0.5
GALLERY_SIZE = 12
"""Of each kind: a sheet of the gallery."""
_MOST_PER_IMAGE = 3
SIZE_EDGES_PX = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 1e5)
"""COCO's borders, 32 and 96, are among them."""
NO_ERROR = -1
_LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND, _BOTH = (
    ERROR_KINDS.index(kind) for kind in ("localisation", "classification", "duplicate", "background", "both")
)


class Finding(NamedTuple):
    """One picture of the gallery."""

    kind: Literal["missed", "false_alarm"]
    image_id: int
    label: int
    score: float
    """Of the false alarm; for a miss the best score of a detection that touches it, else 0."""
    box_xywh: tuple[float, float, float, float]
    """Pixels of the original image."""
    note: ErrorKind
    first_score: float | None = None
    """Of a duplicate: the detection that found its box first."""
    first_iou: float | None = None
    """Of a duplicate: with that box."""


def confusion(matches: Matches, *, iou: float, score: float) -> IntArray:
    """Count who is taken for whom at one IoU and one score: [K + 1, K + 1], row = ground truth (last: background),
    column = prediction (last: missed).

    Detections first get boxes of their own class as COCO matches them, so that the diagonal holds the true positives
    of precision and recall; what is left over on both sides is then matched whatever the class, best detection
    first. Detections in a crowd box do not count. (`faster_coco_eval.extra` counts crowd boxes as misses and lets a
    wrong class take a box that the right class found.)
    """
    truth, found = matches.truth, matches.found.at(matches.found.scores >= score)
    taken = take(matches, truth, found, iou=iou)
    left = np.flatnonzero(taken == NO_BOX)
    free = np.setdiff1d(np.arange(len(truth.labels)), taken)
    others = take(matches, truth.at(free), found.at(left), iou=iou, any_class=True)
    taken[left] = np.where(others >= 0, np.append(free, NO_BOX)[others], others)

    background = len(matches.names)
    counts = np.zeros((background + 1, background + 1), dtype=np.int64)
    hit, alone = taken >= 0, taken == NO_BOX
    missed = ~truth.crowd
    missed[taken[hit]] = False
    np.add.at(counts, (truth.labels[taken[hit]], found.labels[hit]), 1)
    np.add.at(counts[background], found.labels[alone], 1)
    np.add.at(counts[:, background], truth.labels[missed], 1)
    return counts


@dataclass(frozen=True, eq=False)
class Errors:
    """What every detection is at IoU 0.5."""

    kinds: NDArray[np.int8]
    """[M], index into ERROR_KINDS; NO_ERROR for true positives and ignored detections."""
    targets: IntArray
    """[M], the box that a wrong place or class was meant for; -1 otherwise."""
    first_truth: IntArray
    """[M], the found box of its class that a detection overlaps most; -1 for none."""
    first_iou: FloatArray
    """[M], their IoU."""
    missed: BoolArray
    """[G], neither found nor the target of any error."""
    found: BoolArray
    """[G]"""
    touching: IntArray
    """[G], the surest detection that overlaps a box by TIDE's 0.1; -1 for none."""


def classify_errors(matches: Matches) -> Errors:
    """Sort all detections into true positives and kinds of error."""
    truth, labels = matches.truth, matches.found.labels
    found = np.zeros(len(truth.labels), dtype=bool)
    found[matches.truth_of[matches.truth_of >= 0]] = True

    pairs = detections, boxes, _ = overlapping(matches)
    same = labels[detections] == truth.labels[boxes]
    real = ~truth.crowd[boxes]
    own_truth, own_iou = _best_partner(pairs, same & real, len(labels))
    other_truth, other_iou = _best_partner(pairs, ~same & real, len(labels))
    used_truth, used_iou = _best_partner(pairs, same & real & found[boxes], len(labels))

    conditions = (
        (_LOCALISATION, (own_truth >= 0) & (own_iou <= FOREGROUND_IOU)),
        (_CLASSIFICATION, other_iou >= FOREGROUND_IOU),
        (_DUPLICATE, used_iou >= FOREGROUND_IOU),
        (_BACKGROUND, (own_truth < 0) & (other_truth < 0)),
        (_BOTH, np.ones(len(labels), dtype=bool)),
    )
    wrong = matches.outcomes[0] == FALSE_POSITIVE
    kinds = np.full(len(labels), NO_ERROR, dtype=np.int8)
    for kind, condition in conditions:
        kinds[wrong & (kinds == NO_ERROR) & condition] = kind
    targets = np.where(kinds == _LOCALISATION, own_truth, np.where(kinds == _CLASSIFICATION, other_truth, -1))
    missed = ~found & ~truth.crowd
    missed[targets[targets >= 0]] = False
    touching = np.full(len(found), -1, dtype=np.int64)
    order = np.argsort(matches.found.scores[detections], kind="stable")
    touching[boxes[order]] = detections[order]  # the surest one stays
    return Errors(kinds, targets, used_truth, used_iou, missed, found, touching)


def error_breakdown(matches: Matches, errors: Errors, *, score: float) -> dict[str, Any]:
    """Compute how much AP50 would rise if one kind of error alone were mended, never below 0, and how many there are
    (detections; boxes that are missed): at any confidence, as the cost counts them, and from `score` on."""
    hits, kept = matches.truth_of >= 0, matches.outcomes[0] != IGNORED
    counts = {f"counts{suffix}": _counts(matches, errors, least) for suffix, least in (("", 0.0), ("_at_score", score))}
    base, costs = _ap50(matches, hits, kept), dict.fromkeys(ERROR_KINDS, 0.0)
    for number, kind in enumerate(ERROR_KINDS if base is not None else ()):
        if kind == "missed":
            gone = np.bincount(matches.truth.labels[errors.missed], minlength=len(matches.names))
            mended = _ap50(matches, hits, kept, gone=gone)
        else:
            mended = _mended_ap50(matches, errors, number)
        costs[kind] = max((mended or 0.0) - (base or 0.0), 0.0)
    return {"base_ap50": base, "ap50_cost": costs, **counts}


def _counts(matches: Matches, errors: Errors, score: float) -> dict[str, int]:
    """Count each kind among the detections of at least `score`, and the boxes that none of them finds or is meant for.

    COCO matches the surest first, so what a detection is does not depend on those below it.
    """
    kept, missed = matches.found.scores >= score, ~matches.truth.crowd
    for of in (matches.truth_of, errors.targets):
        missed[of[(of >= 0) & kept]] = False
    found = np.bincount(errors.kinds[kept & (errors.kinds >= 0)], minlength=len(ERROR_KINDS)).tolist()
    return {**dict(zip(ERROR_KINDS, found, strict=True)), "missed": int(missed.sum())}


def _best_partner(
    pairs: tuple[IntArray, IntArray, FloatArray], wanted: BoolArray, count: int
) -> tuple[IntArray, FloatArray]:
    """The box [M] that each detection overlaps most among the wanted pairs [P] (-1: none; the first of equals), and
    the IoU (0: none)."""
    detections, boxes, ious = (column[wanted] for column in pairs)
    order = np.lexsort((-boxes, ious))
    truth, iou = np.full(count, -1, dtype=np.int64), np.zeros(count)
    truth[detections[order]] = boxes[order]  # the last one stays
    iou[detections[order]] = ious[order]
    return truth, iou


def _mended_ap50(matches: Matches, errors: Errors, kind: int) -> float | None:
    """AP50 with the detections of one kind mended: moved to their target, or dropped where there is none.

    A box takes one mended detection, the best; if it is found already, it takes none (and they are dropped).
    """
    labels, hits = matches.found.labels.copy(), matches.truth_of >= 0
    kept = (matches.outcomes[0] != IGNORED) & (errors.kinds != kind)
    rows = np.flatnonzero((errors.kinds == kind) & (errors.targets >= 0))
    rows = rows[~errors.found[errors.targets[rows]]]
    rows = rows[np.argsort(-matches.found.scores[rows], kind="stable")]
    _, first = np.unique(errors.targets[rows], return_index=True)
    rows = rows[first]
    labels[rows] = matches.truth.labels[errors.targets[rows]]
    hits[rows] = kept[rows] = True
    return _ap50(matches, hits, kept, labels)


def _ap50(
    matches: Matches, hits: BoolArray, kept: BoolArray, labels: IntArray | None = None, gone: IntArray | int = 0
) -> float | None:
    """Mean over the classes with boxes, some of which may be `gone` [K]; a class without any left has AP 0."""
    labels, scores = matches.found.labels if labels is None else labels, matches.found.scores
    rows = np.flatnonzero(kept)
    # Detections come in COCO's order within a class; moved ones are sorted in. Stable: equal scores stay put.
    rows = rows[np.lexsort((-scores[rows], labels[rows]))]
    borders = np.searchsorted(labels[rows], np.arange(len(matches.names) + 1))
    left = (matches.num_gt - gone).tolist()
    aps = [
        float(interpolated_precision(hits[rows[borders[k] : borders[k + 1]]], left[k]).mean()) if left[k] else 0.0
        for k in np.flatnonzero(matches.num_gt)
    ]
    return float(np.mean(aps)) if aps else None


def size_histogram(matches: Matches, *, score: float) -> dict[str, list[float]]:
    """Count boxes (crowds left out) by the square root of their area, and those found by a detection of at least
    `score`."""
    real, sizes = ~matches.truth.crowd, np.sqrt(matches.truth.areas)
    edges: FloatArray = np.array(SIZE_EDGES_PX, dtype=np.float64)
    edges = edges[: int(np.searchsorted(edges, sizes[real].max(initial=0.0), side="right")) + 1]
    there, _ = np.histogram(sizes[real], edges)
    found, _ = np.histogram(sizes[_found(matches, score)], edges)
    return {"edges_px": edges.tolist(), "ground_truth": there.tolist(), "found": found.tolist()}


def gallery(matches: Matches, errors: Errors, normal_label: int | None, *, score: float) -> list[Finding]:
    """Choose the worst misses and false alarms at a score threshold, worst first, a few of one image at most.

    A miss is the worse, the larger it is and the less any detection that touches it is sure; a false alarm, the surer
    it is. NORMAL boxes are neither.
    """
    truth, found = matches.truth, matches.found
    # The last entry stands for "none": index -1.
    touched = np.append(found.scores, 0.0)[errors.touching]
    explained = np.append(errors.targets, -1)[errors.touching] == np.arange(len(touched))
    notes = np.where(explained, np.append(errors.kinds, 0)[errors.touching], ERROR_KINDS.index("missed"))
    misses = np.flatnonzero(~_found(matches, score) & ~truth.crowd & (truth.labels != normal_label))
    misses = misses[np.argsort(-np.sqrt(truth.areas[misses]) * (1 - touched[misses]), kind="stable")]
    alarms = np.flatnonzero((errors.kinds >= 0) & (found.scores >= score) & (found.labels != normal_label))
    alarms = alarms[np.argsort(-found.scores[alarms], kind="stable")]
    score_of = np.zeros(len(truth.labels))
    hits = np.flatnonzero(matches.truth_of >= 0)
    score_of[matches.truth_of[hits]] = found.scores[hits]

    def finding(kind: Literal["missed", "false_alarm"], boxes: Boxes, row: int, score: float, note: int) -> Finding:
        x, y, width, height = boxes.xywh[row].tolist()
        image_id, label = int(matches.image_ids[boxes.images[row]]), int(boxes.labels[row])
        one = Finding(kind, image_id, label, score, (x, y, width, height), ERROR_KINDS[note])
        if kind == "missed" or note != _DUPLICATE:
            return one
        first = errors.first_truth[row]
        return one._replace(first_score=float(score_of[first]), first_iou=float(errors.first_iou[row]))

    return [
        *(finding("missed", truth, row, float(touched[row]), notes[row]) for row in _few(misses, truth.images)),
        *(
            finding("false_alarm", found, row, float(found.scores[row]), errors.kinds[row])
            for row in _few(alarms, found.images)
        ),
    ]


def _found(matches: Matches, score: float) -> BoolArray:
    """[G], boxes hit at IoU 0.5 by a detection of at least `score`."""
    found = np.zeros(len(matches.truth.labels), dtype=bool)
    found[matches.truth_of[(matches.truth_of >= 0) & (matches.found.scores >= score)]] = True
    return found


def _few(rows: IntArray, images: IntArray) -> list[int]:
    """The first `GALLERY_SIZE` rows with at most `_MOST_PER_IMAGE` of one image."""
    shown: Counter[int] = Counter()
    kept: list[int] = []
    for row, image in zip(rows.tolist(), images[rows].tolist(), strict=True):
        if len(kept) < GALLERY_SIZE and shown[image] < _MOST_PER_IMAGE:
            shown[image] += 1
            kept.append(row)
    return kept
