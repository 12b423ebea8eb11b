"""Faithfulness: maps of any kind judged against annotated boxes, against the detector itself, and against chance.

For every annotated object that a prediction hits (or none does), and for predictions that hit nothing, every method
draws its map. Then:
- energy: the share of the map inside the box, divided by the share of the image that the box covers (1: chance);
- pointing game: is the highest place of the map inside the box (Zhang et al. 2016);
- deletion and insertion: pixels are taken away, or come back, in the order of the map; a good map makes the score
  fall, or rise, early (RISE, Petsiuk et al. 2018; for detectors D-RISE 2021); ROAD is deletion by imputation, which
  leaves no shape of what was taken away (Rong et al. 2022);
- randomisation: rank correlation with the map of a detector whose parts get new weights one after the other, from the
  heads down to the backbone (Adebayo et al. 2018); near 1, nothing of the map comes from those weights.

Legend: H x W pixels of the network's input, h x w cells of a map, G annotated boxes of an image, K detections,
C classes, S steps, N objects judged, M methods, V values of an object, I images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from pydantic import ConfigDict, Field
from scipy import stats
from torch import Tensor, nn

from analysis.bootstrap import Interval, Resampled, percentiles, resampled
from attention.capture import Predictions, all_objects, choose_objects
from attention.evidence import DrawMap
from attention.maps import enlarge
from attention.perturbation import Baseline, Perturber, area_under, pixel_ranks, predict
from data.errors import UserError
from data.progress import progress_bar
from data.types import FloatArray, IntArray
from engine.options import Options
from models.boxes import paired_iou
from models.config import ModelConfig
from models.detector import DEIM, build_detector
from models.text_fusion import PREFIX

RANDOM, CENTRE = "random", "centre"
"""Names of the two methods that know nothing of the image."""
METRICS = ("energy", "energy_all", "pointing", "deletion", "insertion", "road")

Kind = Literal["tp", "fp", "fn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Hits, false alarms and misses."""

_RANDOM_CELL_PX = 16
_CENTRE_SIGMA = 0.25
"""Of the centre prior, as a share of the image's side."""
_DEIM_PARTS = {"heads": ("decoder.", PREFIX), "neck": ("encoder.",), "backbone": ("backbone.",)}
"""Starts of the state's keys, from the heads down."""
_BASELINE_PARTS = {
    "heads": ("detector.rpn.", "detector.roi_heads.", "detector.head."),
    "neck": ("detector.backbone.fpn.",),
    "backbone": ("detector.backbone.body.",),
}


class ScoreOptions(Options):
    """How maps are judged."""

    model_config = ConfigDict(title="Options of --score out of range")

    steps: int = Field(12, ge=2, title="--score-steps", description="2 or more, e.g. 12")
    """Of deletion and of insertion."""
    baseline: Baseline = Field("blur", title="--score-baseline", description="blur or mean")
    """What removed pixels become."""
    batch_size: int = Field(8, ge=1, title="batch_size", description="1 or more, e.g. 8")
    """Perturbed images in one pass through the detector."""
    score_threshold: float = Field(0.3, ge=0, lt=1, title="--min-score", description="0 to below 1, e.g. 0.3")
    """Least score of a prediction that counts."""
    iou_threshold: float = Field(0.5, gt=0, le=1, title="iou_threshold", description="above 0 to 1, e.g. 0.5")
    """Least IoU of a prediction with the box it hits."""
    on: tuple[Kind, ...] = Field(("tp",), min_length=1, description="tp (hits), fp (false alarms) or fn (misses)")
    """What is explained."""
    drise_masks: int = Field(256, ge=0, description="0 (no D-RISE) or more, e.g. 256")
    """Passes through the detector that D-RISE takes for an image; four times as many with new weights."""
    samples: int = Field(1000, ge=0, title="--bootstrap", description="0 (off) or more, e.g. 1000")
    """Bootstrap resamples of the images."""
    seed: int = Field(0, ge=0, title="--seed", description="0 or more")
    """Of the choice of images, the random map, ties, new weights and the bootstrap."""


class ScoreImage(NamedTuple):
    """An image with what is annotated in it."""

    image_id: int
    image: Tensor
    """float [1, 3, H, W], normalised."""
    boxes: Tensor
    """float32 [G, 4], xyxy in [0, 1], within the image."""
    labels: Tensor
    """int64 [G], contiguous."""
    crowd_boxes: Tensor = torch.zeros(0, 4)
    """The same of regions of many objects: what lies in them is no false alarm."""
    crowd_labels: Tensor = torch.zeros(0, dtype=torch.int64)


class MatchedObject(NamedTuple):
    """What a map explains: an annotated box and the prediction that hits it or, of a miss, fits it best; or a false
    alarm."""

    image_id: int
    label: int
    query: int
    score: float
    iou: float
    truth: Tensor
    """float32 [4], where the map should lie: the annotated box, xyxy in [0, 1]; of a false alarm its own."""
    box: Tensor
    """float32 [4], whose score is followed: the predicted one; of a miss the annotated one."""
    kind: Kind = "tp"


class Estimate(NamedTuple):
    """A mean over objects."""

    value: float | None
    """None: nothing could be measured."""
    interval: Interval | None
    """95 %, of a bootstrap over images."""
    num_objects: int


@dataclass(frozen=True, eq=False)
class Scores:
    """Outcome of `score_maps`."""

    methods: tuple[str, ...]
    """[M]"""
    objects: tuple[MatchedObject, ...]
    """[N]"""
    randomised: tuple[str, ...]
    """What was given new weights, in order, each with all before it; empty where the check was not asked for."""
    values: FloatArray
    """[M, N, V], in the order of `names`; NaN where nothing was detected after the randomisation."""
    image_ids: tuple[int, ...]
    """[I]"""
    num_truths: int
    """Annotated boxes in these images."""
    options: ScoreOptions
    seconds: FloatArray
    """[M], wall time of a method's maps of an image, all passes through the detector in it; a mean over images."""

    def of(self, kind: Kind) -> Scores:
        """Return those of one kind of objects alone."""
        rows = [row for row, one in enumerate(self.objects) if one.kind == kind]
        return replace(self, objects=tuple(self.objects[row] for row in rows), values=self.values[:, rows])

    @property
    def names(self) -> tuple[str, ...]:
        """[V]: the metrics, then a rank correlation for each part with new weights."""
        return (*METRICS, *(f"randomised_{part}" for part in self.randomised))

    def estimates(self, reference: str | None = None) -> dict[str, dict[str, Estimate]]:
        """Return method -> name of the value -> mean over objects, with its interval.

        With a `reference`, of the metrics alone, minus that method's for the same objects (paired).
        """
        values, names, row_of = self.values, self.names, {image_id: row for row, image_id in enumerate(self.image_ids)}
        if reference is not None:
            values, names = values - values[self.methods.index(reference)], METRICS
        rows, known = [row_of[one.image_id] for one in self.objects], ~np.isnan(values[:, :, : len(names)])
        values = np.where(known, values[:, :, : len(names)], 0.0)

        def means(weights: FloatArray) -> FloatArray:  # [M, V, n]; images without an object count for nothing
            sums, counts = (np.einsum("mnv,ns->mvs", one, weights[rows], optimize=True) for one in (values, known))
            shares: FloatArray = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
            return shares

        drawn = resampled(means, len(row_of), self.options.samples, self.options.seed)
        return {
            method: {
                name: Estimate(one.value, percentiles(one.samples), int(known[m, :, v].sum()))
                for v, (name, one) in enumerate(zip(names, map(Resampled.of, drawn[m]), strict=True))
            }
            for m, method in enumerate(self.methods)
            if method != reference
        }


def score_maps(
    model: nn.Module,
    images: Iterable[ScoreImage],
    methods: Mapping[str, DrawMap],
    *,
    num_classes: int,
    options: ScoreOptions,
    randomised: Mapping[str, nn.Module] | None = None,
    total: int | None = None,
    progress: bool = True,
) -> Scores:
    """Judge methods on images, read one at a time; `random` and `centre` are added to the methods.

    Args:
        randomised: From `randomise`; None leaves the check out.
        total: How many images there are, for the time that the bar shows.

    Raises:
        UserError: There is nothing to explain.
        ValueError: A map is not finite, negative, or has not two sides.
    """
    methods = {**methods, RANDOM: random_maps(options.seed), CENTRE: centre_prior}
    randomised = randomised or {}
    objects: list[MatchedObject] = []
    values = [np.empty((len(methods), 0, len(METRICS) + len(randomised)))]
    seconds: list[FloatArray] = []
    image_ids, num_truths = [], 0
    for one in progress_bar(images, "score", total=total, show=progress):
        image_ids.append(one.image_id)
        num_truths += len(one.labels)
        matched = find_objects(predict(model, one.image, num_classes)[0], one, options)
        if matched:
            judged, took = _judged(model, one, matched, methods, randomised, num_classes, options)
            values.append(judged)
            seconds.append(took)
            objects += matched
    if not objects and "tp" not in options.on:
        raise UserError(
            f"--on {' '.join(options.on)}: there are none in {len(image_ids)} images with {num_truths} annotated boxes "
            f"(score at least {options.score_threshold:g}, IoU {options.iou_threshold:g}), so there is no map to "
            "judge. Take more images, or another --min-score."
        )
    if not objects:
        raise UserError(
            f"No prediction with a score of at least {options.score_threshold:g} hits any of the {num_truths} "
            f"annotated boxes of {len(image_ids)} images (IoU {options.iou_threshold:g}), so there is no map to judge. "
            "Lower --min-score, take more images, or a better checkpoint."
        )
    every, took = np.concatenate(values, axis=1), np.mean(seconds, axis=0)
    return Scores(tuple(methods), tuple(objects), tuple(randomised), every, tuple(image_ids), num_truths, options, took)


def find_objects(predictions: Predictions, truth: ScoreImage, options: ScoreOptions) -> list[MatchedObject]:
    """Return what `options.on` asks for.

    Annotated boxes are hit by predictions of their class: the best scores choose first, each once. A false alarm is a
    prediction with the least score at least that overlaps no annotated box of its class enough and, as COCO has it,
    does not lie in a crowd box of its class; of several in one place the best. A miss is an annotated box that no
    prediction hits, explained through the one with the best IoU x class score; where none overlaps it there is nothing
    to explain.
    """
    boxes, least = predictions.boxes, options.score_threshold
    ious, scores = paired_iou(boxes[:, None], truth.boxes[None]), predictions.scores[:, truth.labels]  # [K, G]

    def explained(query: int, row: int, kind: Kind) -> MatchedObject:
        label, box, score = int(truth.labels[row]), truth.boxes[row], float(scores[query, row])
        followed = boxes[query] if kind == "tp" else box
        return MatchedObject(truth.image_id, label, query, score, float(ious[query, row]), box, followed, kind)

    # A baseline's detection scores 0 for all classes but its own: that is no prediction, whatever the threshold.
    good = (ious >= options.iou_threshold) & (scores >= least) & (scores > 0)
    hits: dict[int, int] = {}
    for query, row in sorted(good.nonzero().tolist(), key=lambda one: (-scores[*one], -ious[*one])):
        if row not in hits and query not in hits.values():
            hits[row] = query
    objects = [explained(hits[row], row, "tp") for row in sorted(hits)] if "tp" in options.on else []
    if "fp" in options.on:
        for one in choose_objects(all_objects(predictions), top=len(boxes), min_score=least):
            box = boxes[one.query]
            iou = max(paired_iou(truth.boxes[truth.labels == one.label], box).tolist(), default=0.0)
            crowds = truth.crowd_boxes[truth.crowd_labels == one.label]
            in_crowd = max(_shares_inside(box, crowds).tolist(), default=0.0)
            if max(iou, in_crowd) < options.iou_threshold and one.score > 0:
                objects.append(MatchedObject(truth.image_id, one.label, one.query, one.score, iou, box, box, "fp"))
    if "fn" in options.on and len(boxes):
        best = (ious * scores).max(dim=0)
        for row, (fit, query) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            if row not in hits and fit > 0:
                objects.append(explained(query, row, "fn"))
    return objects


def _shares_inside(box: Tensor, regions: Tensor) -> Tensor:
    """[4] and [G, 4] xyxy -> [G]: share of the box that lies in each region."""
    sides = (torch.minimum(box[2:], regions[:, 2:]) - torch.maximum(box[:2], regions[:, :2])).clamp(min=0)
    return sides.prod(dim=1) / (box[2:] - box[:2]).prod().clamp(min=1e-12)


def _judged(
    model: nn.Module,
    one: ScoreImage,
    matched: Sequence[MatchedObject],
    methods: Mapping[str, DrawMap],
    randomised: Mapping[str, nn.Module],
    num_classes: int,
    options: ScoreOptions,
) -> tuple[FloatArray, FloatArray]:
    """All values of the objects of one image: [M, objects, V]; and the seconds [M] that their maps took."""
    size_hw = (one.image.shape[-2], one.image.shape[-1])
    inside = [coverage(each.truth[None], size_hw) for each in matched]
    inside_any = coverage(one.boxes, size_hw)
    followed, how = [(each.box, each.label) for each in matched], {"steps", "baseline", "batch_size", "seed"}
    perturber = Perturber(model, one.image, followed, num_classes, **options.model_dump(include=how))
    noise = random_maps(options.seed + one.image_id)(model, one.image, 0, 0)
    tie_break = enlarge(noise, size_hw).double().numpy()
    changed = [(other, predict(other, one.image, num_classes)[0]) for other in randomised.values()]
    judged = np.empty((len(methods), len(matched), len(METRICS) + len(changed)))
    seconds = np.empty(len(methods))
    for number, (rows, (name, draw)) in enumerate(zip(judged, methods.items(), strict=True)):
        began = perf_counter()
        maps = [_checked(name, draw(model, one.image, each.query, each.label)) for each in matched]
        seconds[number] = perf_counter() - began
        curves: dict[int, FloatArray] = {}
        for index, drawn in enumerate(maps):
            pixels = enlarge(drawn, size_hw).clamp(min=0).double().numpy()
            # Methods that do not know of queries draw one map for all objects: its images are judged once.
            first = next(k for k in range(index + 1) if torch.equal(maps[k], drawn))
            if first == index:
                curves[index] = perturber.curves(pixel_ranks(pixels, tie_break))
            areas = [area_under(curve) for curve in curves[first][:, :, index]]
            rows[index, : len(METRICS)] = (
                energy_ratio(pixels, inside[index]),
                energy_ratio(pixels, inside_any),
                points_inside(pixels, inside[index]),
                *areas,
            )
        for column, (other, predictions) in enumerate(changed, len(METRICS)):
            for row, (each, before) in enumerate(zip(matched, maps, strict=True)):
                nearest = closest(predictions, each.box, each.label)
                rows[row, column] = np.nan
                if nearest is not None:
                    rows[row, column] = rank_correlation(before, _checked(name, draw(other, one.image, *nearest)))
    return judged, seconds


def _checked(method: str, drawn: Tensor) -> Tensor:
    if drawn.ndim != 2 or not bool(torch.isfinite(drawn).all()) or bool((drawn < 0).any()):
        raise ValueError(f"method {method}: expected a finite map [h, w] >= 0, found {list(drawn.shape)}")
    return drawn.detach().float().cpu()


def coverage(boxes: Tensor, size_hw: tuple[int, int]) -> FloatArray:
    """[G, 4] xyxy in [0, 1] -> [H, W]: share of every pixel that some box covers (where boxes overlap: the most)."""
    height, width = size_hw
    x1, y1, x2, y2 = (boxes.double().numpy().reshape(-1, 4) * (width, height, width, height)).T

    def along(low: FloatArray, high: FloatArray, count: int) -> FloatArray:
        cells = np.arange(count)
        covered: FloatArray = np.clip(np.minimum(cells + 1, high[:, None]) - np.maximum(cells, low[:, None]), 0.0, None)
        return covered

    inside: FloatArray = (along(y1, y2, height)[:, :, None] * along(x1, x2, width)[:, None, :]).max(axis=0, initial=0)
    return inside


def energy_ratio(pixels: FloatArray, inside: FloatArray) -> float:
    """Divide the share of a map [H, W] that lies inside by the share of the image that is inside; 1 is chance.

    A map that is 0 everywhere prefers no place: 1. Nothing inside: NaN.
    """
    area, total = inside.mean(), pixels.sum()
    if area == 0:
        return float("nan")
    return 1.0 if total == 0 else float((pixels * inside).sum() / total / area)


def points_inside(pixels: FloatArray, inside: FloatArray) -> float:
    """Return 1 if the highest pixel of a map [H, W] is inside (by half at least), else 0; of several, their mean."""
    return float((inside[pixels == pixels.max()] >= 0.5).mean())


def random_maps(seed: int) -> DrawMap:
    """Make a method that draws a new map of uniform noise in cells of 16 pixels at every call."""
    generator = torch.Generator().manual_seed(seed)

    def draw(_model: nn.Module, image: Tensor, _query: int, _label: int) -> Tensor:
        height, width = (max(side // _RANDOM_CELL_PX, 1) for side in image.shape[-2:])
        return torch.rand(height, width, generator=generator)

    return draw


def centre_prior(_model: nn.Module, image: Tensor, _query: int, _label: int) -> Tensor:
    """Draw a Gaussian in the middle of the image, the same for every object: photographers' habit as a map."""
    rows, columns = (
        torch.exp(-0.5 * (((torch.arange(side) + 0.5) / side - 0.5) / _CENTRE_SIGMA) ** 2) for side in image.shape[-2:]
    )
    return rows[:, None] * columns[None]


def randomise(model: nn.Module, config: ModelConfig, seed: int) -> dict[str, nn.Module]:
    """Copy a detector with new weights in the `heads`; in heads and `neck`; everywhere (`backbone`).

    New means: as before training, BatchNorm's statistics too. The class texts of phase 2 are input, not weights, and
    stay. The global random numbers are not touched.
    """
    parts = _DEIM_PARTS if isinstance(model, DEIM) else _BASELINE_PARTS
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs for good
        fresh = build_detector(config).state_dict()
    copies: dict[str, nn.Module] = {}
    done: tuple[str, ...] = ()
    for name, prefixes in parts.items():
        done += prefixes
        state = {
            key: fresh[key] if key.startswith(done) and not key.startswith(f"{PREFIX}texts.") else value
            for key, value in model.state_dict().items()
        }
        copies[name] = copy.deepcopy(model).eval()
        copies[name].load_state_dict(state)
    return copies


def closest(predictions: Predictions, box: Tensor, label: int) -> tuple[int, int] | None:
    """Choose query and label to ask a changed detector for, where the original had predicted `box` [4] as `label`.

    The same query may look elsewhere after the change, which alone would make its map different; the one nearest to
    the box does not flatter the method. None: there is no detection at all.
    """
    if not len(predictions.boxes):
        return None
    ious = paired_iou(predictions.boxes, box)
    distances = (predictions.boxes[:, :2] + predictions.boxes[:, 2:] - box[:2] - box[2:]).norm(dim=1)
    query = int(ious.argmax() if ious.max() > 0 else distances.argmin())
    own = predictions.scores[query]
    return query, label if own[label] > 0 else int(own.argmax())


def rank_correlation(before: Tensor, after: Tensor) -> float:
    """Return Spearman's of two maps of one shape: 1 for equal maps, 0 if one of two different maps is constant."""
    a, b = before.double().flatten().numpy(), after.double().flatten().numpy()
    if np.array_equal(a, b):
        return 1.0
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def choose_images(image_ids: IntArray, count: int, seed: int) -> IntArray:
    """Draw `count` of [I] ids once, in their own order; all of them where there are no more."""
    if count >= len(image_ids):
        return image_ids
    rows = np.random.default_rng(seed).choice(len(image_ids), size=count, replace=False)
    return image_ids[np.sort(rows)]
