"""From scores to a decision: are scores chances, which threshold costs least, and which keeps a promise about misses.

An image is rejected if its best detection of a defect reaches the threshold, and passes else (`curves.image_scores`
says which images are defective). A miss is a defective image that passes; the larger the threshold, the more.

Legend: I images, K classes, M detections, N bootstrap samples, B bins of scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field
from scipy import sparse, stats

from analysis.bootstrap import Resampled, percentiles, resampled
from analysis.curves import image_scores
from analysis.matching import IGNORED, TRUE_POSITIVE, Matches
from data.types import BoolArray, FloatArray, IntArray
from engine.calibration import Calibration, Method
from engine.decision import decimals, promise_text, shares
from engine.options import Options
from texts import Texts

LEAST_SCORE = 0.05
"""Detections below are left out: hundreds an image, all wrong, they would make every calibration error small."""
NUM_BINS = 15
_FOLDS = 5


class AcceptanceOptions(Options):
    """What is asked of an evaluation beyond its numbers."""

    calibrate: Method = "none"
    """Fit curves that turn scores into chances."""
    cost_miss: float | None = Field(None, gt=0, description="more than 0, e.g. 100")
    """Of a defective image that passes; None asks for no threshold of least cost."""
    cost_false_alarm: float = Field(1.0, gt=0, description="more than 0, e.g. 1")
    """Of a good image that is rejected."""
    max_miss_rate: float | None = Field(None, gt=0, lt=1, description="a share between 0 and 1, e.g. 0.02")
    """Of the defective images; None asks for no promise."""
    confidence: float = Field(0.95, gt=0, lt=1, description="a share between 0 and 1, e.g. 0.95")
    promise_per_class: bool = False
    """Keep the promise for the images of each class."""


def acceptance(
    matches: Matches, normal_label: int | None, options: AcceptanceOptions, *, samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compute the sections `calibration` and `acceptance` of results.json."""
    best, defective = image_scores(matches, normal_label)
    costs = (options.cost_miss, options.cost_false_alarm)
    cost = None if costs[0] is None else least_cost(best, defective, costs[0], costs[1], samples=samples, seed=seed)
    made = None if options.max_miss_rate is None else _promises(matches, normal_label, best, defective, options)
    return {
        "calibration": calibration(matches, options.calibrate, samples=samples, seed=seed),
        "acceptance": {"cost": cost, "promise": made},
    }


def calibration(matches: Matches, method: Method, *, samples: int, seed: int) -> dict[str, Any]:
    """Measure how far scores are from chances, before and, cross-fitted over folds of images, after calibration.

    The stored curves are fitted on all images.
    """
    found, outcomes, num_images = matches.found, matches.outcomes[0], len(matches.image_ids)
    rows = (outcomes != IGNORED) & (found.scores >= LEAST_SCORE)
    images, labels, scores = found.images[rows], found.labels[rows], found.scores[rows]
    hits, num = outcomes[rows] == TRUE_POSITIVE, len(matches.names)
    measure = partial(calibration_error, names=matches.names, num_images=num_images, samples=samples, seed=seed)
    result: dict[str, Any] = {
        **{"method": method, "iou": 0.5, "least_score": LEAST_SCORE, "curves": None, "after": None},
        "before": measure(scores, hits, images, labels),
    }
    if method != "none":
        fold = np.random.default_rng(seed).permutation(num_images)[images] % _FOLDS
        chances = scores.copy()
        for number in range(_FOLDS):
            own, others = fold == number, fold != number
            fitted = Calibration.fit(method, scores[others], hits[others], labels[others], num)
            chances[own] = fitted(scores[own], labels[own])
        result["after"] = measure(chances, hits, images, labels)
        result["curves"] = Calibration.fit(method, scores, hits, labels, num).to_json(matches.names)
    return result


def calibration_error(
    scores: FloatArray,
    hits: BoolArray,
    images: IntArray,
    labels: IntArray,
    *,
    names: tuple[str, ...],
    num_images: int,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Compute the expected calibration error, overall and per class, with its bootstrap interval over images, and the
    bins of the reliability diagram."""
    bins = np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    groups = [np.ones(len(scores), dtype=bool), *(labels == label for label in range(len(names)))]

    def sums(rows: BoolArray, values: FloatArray) -> sparse.csr_array:  # [B, I]
        return sparse.coo_array((values[rows], (bins[rows], images[rows])), shape=(NUM_BINS, num_images)).tocsr()

    cells = [[sums(rows, values) for values in (np.ones(len(scores)), hits - scores)] for rows in groups]

    def errors(weights: FloatArray) -> FloatArray:
        """[1 + K, n]: |share of hits - mean score| of each bin, weighted by its number of detections."""
        totals, gaps = (np.array([np.abs(one[part] @ weights).sum(axis=0) for one in cells]) for part in (0, 1))
        shares: FloatArray = np.divide(gaps, totals, out=np.full(totals.shape, np.nan), where=totals > 0)
        return shares

    drawn = map(Resampled.of, resampled(errors, num_images, samples, seed))
    whole, *of_classes = (
        {"ece": one.value, "interval": one.interval, "detections": int(rows.sum())}
        for one, rows in zip(drawn, groups, strict=True)
    )
    counts = np.bincount(bins, minlength=NUM_BINS)
    means = [np.bincount(bins, values, minlength=NUM_BINS) / np.maximum(counts, 1) for values in (scores, hits)]
    return {
        **whole,
        "per_class": dict(zip(names, of_classes, strict=True)),
        "bins": {"scores": means[0].round(6).tolist(), "hits": means[1].round(6).tolist(), "counts": counts.tolist()},
    }


def least_cost(
    best: FloatArray, defective: BoolArray, cost_miss: float, cost_false_alarm: float, *, samples: int, seed: int
) -> dict[str, Any]:
    """Find the threshold with the least expected cost of an image, the lowest of several, with bootstrap intervals:
    of the best defect's score [I] and whether an image is `defective` [I]."""
    order = np.argsort(best, kind="stable")
    ranked, bad = best[order], defective[order]
    starts = np.flatnonzero(np.diff(ranked, prepend=-np.inf))  # of each group of equal scores: a threshold
    num = len(best)

    def minima(weights: FloatArray) -> FloatArray:
        """Thresholds and costs of an image, [2, n]."""
        missed = np.cumsum(np.where(bad[:, None], weights[order], 0.0) * cost_miss, axis=0)
        passed = np.cumsum(np.where(bad[:, None], 0.0, weights[order]) * cost_false_alarm, axis=0)
        nothing = np.zeros((1, weights.shape[1]))
        costs = np.concatenate([nothing, missed])[starts] - np.concatenate([nothing, passed])[starts] + passed[-1]
        lowest = costs.argmin(axis=0)
        return np.stack([ranked[starts[lowest]], costs[lowest, np.arange(weights.shape[1])] / num])

    result: dict[str, Any] = {"miss": cost_miss, "false_alarm": cost_false_alarm, "num_clean": int((~defective).sum())}
    result["num_defective"] = num - result["num_clean"]
    keys = ("threshold", "threshold_interval", "per_image", "per_image_interval")
    if not (result["num_clean"] and result["num_defective"]):
        return result | dict.fromkeys(keys)  # of images of one kind alone, to pass or to reject all costs least
    drawn = map(Resampled.of, resampled(minima, num, samples, seed))
    found = [part for one in drawn for part in (one.point, percentiles(one.samples))]
    return result | dict(zip(keys, found, strict=True))


class Promise(NamedTuple):
    """The largest threshold that keeps a promise about misses, or why there is none."""

    num_defective: int
    missed: int
    """Of them, below the threshold."""
    threshold: float | None
    """None: there are too few defective images, or too many in which nothing is found."""
    bound: float | None
    """Clopper-Pearson's upper bound of the miss rate."""
    needed: int
    """Defective images that would do if the same share of them is found at some score."""


def most_misses(num: int, max_rate: float, confidence: float) -> int:
    """How many of `num` defective images may be missed while the miss rate is still shown to be at most `max_rate`;
    -1: none, and even that is too many."""
    allowed = np.arange(num + 1)
    shown = stats.binom.cdf(allowed, num, max_rate) <= 1 - confidence + 1e-12
    return int(shown.sum()) - 1


def upper_bound(missed: int, num: int, confidence: float) -> float:
    """Clopper-Pearson's one-sided upper bound of a rate of which `missed` of `num` were seen."""
    return 1.0 if missed >= num else float(stats.beta.ppf(confidence, missed + 1, num - missed))


def promise(best: FloatArray, max_rate: float, confidence: float) -> Promise:
    """Find the largest threshold below which at most `max_rate` of the defective images fall, with `confidence`.

    Thresholds are tested from 0 upwards ("the miss rate is above `max_rate`", exact binomial test) until the first that
    is not rejected (learn then test, fixed sequence): each is tested at 1 - confidence and the miss rate only rises, so
    the whole search errs no more often. That first one is the score of the image by which one miss too many is made.
    """
    num, allowed = len(best), most_misses(len(best), max_rate, confidence)
    least = math.ceil(math.log(1 - confidence) / math.log1p(-max_rate) - 1e-9)
    if allowed < 0:
        return Promise(num, 0, None, None, least)
    threshold = float(np.sort(best)[allowed])
    if threshold <= 0:  # an image in which nothing was found passes at every threshold, so it counts among the misses
        silent = int((best <= 0).sum())
        return Promise(num, silent, None, None, _needed(silent / num, max_rate, confidence))
    return Promise(num, int((best < threshold).sum()), threshold, upper_bound(allowed, num, confidence), least)


def _needed(share: float, max_rate: float, confidence: float) -> int:
    """Images with which a miss rate of `share` is shown to be below `max_rate`; 0 if no number would do."""
    if share >= max_rate:
        return 0
    num = 1
    while upper_bound(math.ceil(share * num), num, confidence) > max_rate:
        num = math.ceil(num * 1.05) + 1
    return num


def _promises(
    matches: Matches, normal_label: int | None, best: FloatArray, defective: BoolArray, options: AcceptanceOptions
) -> dict[str, Any]:
    """The promise for all defective images and for those of each class, and what the chosen threshold means."""
    assert options.max_miss_rate is not None
    aim, truth = (options.max_miss_rate, options.confidence), matches.truth
    per_class = {
        name: promise(best[np.unique(truth.images[truth.labels == label])], *aim)
        for label, name in enumerate(matches.names)
        if label != normal_label
    }
    whole, clean = promise(best[defective], *aim), best[~defective]
    kept = [one.threshold for one in (whole, *(per_class.values() if options.promise_per_class else ()))]
    threshold = None if None in kept else min(one for one in kept if one is not None)
    return {
        "max_miss_rate": aim[0],
        "confidence": aim[1],
        "promise_per_class": options.promise_per_class,
        "all": whole._asdict(),
        "per_class": {name: one._asdict() for name, one in per_class.items()},
        "threshold": threshold,
        "false_alarm_rate": None if threshold is None or not len(clean) else float((clean >= threshold).mean()),
        "num_clean": len(clean),
    }


def promise_title(made: Mapping[str, Any], texts: Texts) -> str:
    """Write what was asked for."""
    return texts("promise_title", **shares(made, texts))


def what_is_missing(one: Mapping[str, Any], texts: Texts) -> str:
    """Say what keeps a promise from being made."""
    if one["threshold"] is not None:
        return texts["enough"]
    return texts("needed_images", count=texts.number(one["needed"], 0)) if one["needed"] else texts["never"]


def acceptance_lines(results: Mapping[str, Any], texts: Texts) -> list[str]:
    """Say which thresholds were found, for the console and the report."""
    cost, made = (results["acceptance"][key] for key in ("cost", "promise"))
    lines = []
    if cost is not None and cost["threshold"] is None:
        lines.append(texts("no_cost", **{key: texts.number(cost[f"num_{key}"], 0) for key in ("defective", "clean")}))
    elif cost is not None:
        numbers = {key: texts.number(cost[key], decimals(cost[key])) for key in ("miss", "false_alarm")}
        numbers |= {key: texts.number(cost[key]) for key in ("threshold", "per_image")}
        intervals = {key: texts.interval(cost[key]) for key in ("threshold_interval", "per_image_interval")}
        lines.append(texts("cost", **numbers, **intervals))
    if made is not None and made["threshold"] is None:
        binding = {texts["all"]: made["all"]} | (made["per_class"] if made["promise_per_class"] else {})
        lines.append(f"{promise_title(made, texts)}: {texts['no_threshold']}")
        lines += [f"{key}: {what_is_missing(one, texts)}." for key, one in binding.items() if one["threshold"] is None]
    elif made is not None:
        lines += [promise_text(made, texts), texts("passes_below", threshold=texts.number(made["threshold"]))]
        if made["num_clean"]:
            counts = {"clean": texts.number(made["num_clean"], 0), "share": texts.percent(made["false_alarm_rate"])}
            lines.append(texts("false_alarms", **counts))
    return lines or [texts["no_wish"]]
