"""Is a map honest? Maps of any kind judged against annotated boxes, against the detector itself, and against chance.

For every annotated object that a prediction hits, every method draws its map for that prediction. Then:
- energy: the share of the map inside the box, divided by the share of the image that the box covers (1: chance);
- pointing game: is the highest place of the map inside the box (Zhang et al. 2016);
- deletion and insertion: `attention.perturbation`;
- randomisation: `attention.randomisation`.

Legend: H x W pixels of the network's input, h x w cells of a map, G annotated boxes of an image, N objects judged,
M methods, K metrics, I images looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from analysis.bootstrap import BootstrapResult, draw_weights
from analysis.result import Interval
from attention.evidence import enlarge
from attention.perturbation import Baseline, Curves, Found, Perturber, area_under, detect, pixel_ranks
from attention.progress import image_bar
from attention.randomisation import RandomisedModel, closest, rank_correlation
from data.errors import UserError
from data.types import FloatArray, IntArray
from models.boxes import paired_iou

RANDOM, CENTRE = "random", "centre"
"""Names of the two methods that know nothing of the image."""

METRICS = ("energy", "energy_all", "pointing", "deletion", "insertion")
LOWER_IS_BETTER = frozenset({"deletion"})

_RANDOM_CELL_PX = 16
_CENTRE_SIGMA = 0.25
"""Of the centre prior, as a share of the image's side."""


class MapMethod(NamedTuple):
    """A way to draw maps."""

    name: str
    """A key for files; tables show its translation where there is one."""
    draw: Callable[[nn.Module, Tensor, int, int], Tensor]
    """(model, normalised image [1, 3, H, W], query, label) -> map [h, w], any scale, >= 0."""


class ScoreImage(NamedTuple):
    """An image with what is annotated in it."""

    image_id: int
    image: Tensor
    """float [1, 3, H, W], normalised."""
    boxes: Tensor
    """float32 [G, 4], xyxy in [0, 1], within the image."""
    labels: Tensor
    """int64 [G], contiguous."""


@dataclass(frozen=True)
class ScoreOptions:
    """How to judge.

    Raises:
        UserError: A number is out of its range; all of them at once.
    """

    steps: int = 12
    """Of deletion and of insertion."""
    baseline: Baseline = "blur"
    """What removed pixels become."""
    batch_size: int = 8
    """Perturbed images in one pass through the detector."""
    score_threshold: float = 0.3
    """Least score of a prediction that counts."""
    iou_threshold: float = 0.5
    """Least IoU of a prediction with the box it hits."""
    samples: int = 1000
    """Bootstrap resamples of the images; 0 for no intervals."""
    seed: int = 0
    """Of the choice of images, the random map, ties, new weights and the bootstrap."""

    def __post_init__(self) -> None:
        checks = (
            (self.steps >= 2, f"--score-steps {self.steps}: expected 2 or more, e.g. 12"),
            (self.baseline in ("blur", "mean"), f"--score-baseline {self.baseline}: expected blur or mean"),
            (self.batch_size >= 1, f"batch_size {self.batch_size}: expected 1 or more, e.g. 8"),
            (
                0 <= self.score_threshold < 1,
                f"--min-score {self.score_threshold:g}: expected 0 to below 1, e.g. 0.3",
            ),
            (0 < self.iou_threshold <= 1, f"iou_threshold {self.iou_threshold:g}: expected above 0 to 1, e.g. 0.5"),
            (self.seed >= 0, f"--seed {self.seed}: expected 0 or more"),
            (self.samples >= 0, f"--bootstrap {self.samples}: expected 0 (off) or more, e.g. 1000"),
        )
        problems = [text for is_fine, text in checks if not is_fine]
        if problems:
            raise UserError("Options of --score out of range:", problems)


class MatchedObject(NamedTuple):
    """An annotated box and the prediction that hits it."""

    image_id: int
    label: int
    query: int
    score: float
    iou: float
    truth: Tensor
    """float32 [4], the annotated box, xyxy in [0, 1]."""
    box: Tensor
    """float32 [4], the predicted one."""


@dataclass(frozen=True, eq=False)
class AttentionScores:
    """What `score_maps` found."""

    methods: tuple[str, ...]
    """[M]"""
    objects: tuple[MatchedObject, ...]
    """[N]"""
    values: FloatArray
    """[M, N, K], `METRICS` in order."""
    randomised: tuple[str, ...]
    """What was given new weights, in order, each with all before it; empty where the check was not asked for."""
    correlations: FloatArray
    """[M, N, len(randomised)]: rank correlation of the maps before and after; NaN where nothing was detected after."""
    image_ids: tuple[int, ...]
    """[I]"""
    num_truths: int
    """Annotated boxes in these images."""
    options: ScoreOptions

    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Method -> metric (and `randomised_<part>`) -> mean over objects, with its interval."""
        names = (*METRICS, *(f"randomised_{part}" for part in self.randomised))
        values = np.concatenate([self.values, self.correlations], axis=2)
        weights = self._weights()
        return {
            method: {name: self._estimate(values[m, :, k], weights) for k, name in enumerate(names)}
            for m, method in enumerate(self.methods)
        }

    def differences(self, reference: str) -> dict[str, dict[str, Estimate]]:
        """As `estimates`, of the metrics alone, minus those of another method for the same objects (paired)."""
        other = self.values[self.methods.index(reference)]
        weights = self._weights()
        return {
            method: {name: self._estimate((self.values[m] - other)[:, k], weights) for k, name in enumerate(METRICS)}
            for m, method in enumerate(self.methods)
            if method != reference
        }

    def _weights(self) -> FloatArray:
        """[I, samples], the same images for all methods."""
        if not self.options.samples or not self.image_ids:
            return np.empty((len(self.image_ids), 0))
        return draw_weights(np.random.default_rng(self.options.seed), len(self.image_ids), self.options.samples)

    def _estimate(self, values: FloatArray, weights: FloatArray) -> Estimate:
        """Of [N] values; images without an object are drawn too, and count for nothing."""
        known = ~np.isnan(values)
        if not known.any():
            return Estimate(None, None, 0)
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        rows = np.array([row_of[one.image_id] for one in self.objects], dtype=np.int64)[known]
        sums, counts = (
            np.bincount(rows, weights=of, minlength=len(self.image_ids)) for of in (values[known], np.ones(known.sum()))
        )
        drawn = counts @ weights
        means = np.divide(sums @ weights, drawn, out=np.full(len(drawn), np.nan), where=drawn > 0)
        return Estimate(float(values[known].mean()), BootstrapResult.interval(means), int(known.sum()))


class Estimate(NamedTuple):
    """A mean over objects."""

    value: float | None
    """None: nothing could be measured."""
    interval: Interval | None
    """95 %, of a bootstrap over images."""
    num_objects: int


def score_maps(
    model: nn.Module,
    images: Iterable[ScoreImage],
    methods: Sequence[MapMethod],
    *,
    num_classes: int,
    options: ScoreOptions | None = None,
    randomised: Sequence[RandomisedModel] = (),
    total: int | None = None,
    progress: bool = True,
) -> AttentionScores:
    """Judge methods on images; `random` and `centre` are added to them.

    Args:
        model: DEIMv2 or a baseline, in evaluation mode.
        images: Read one at a time.
        methods: Their names must differ.
        num_classes: C.
        options: None: all defaults.
        randomised: From `attention.randomisation.randomise`; empty leaves the check out.
        total: How many images there are, for the time that the bar shows.
        progress: Show a bar with the time left on stderr.

    Raises:
        UserError: No prediction hits any annotated object.
        ValueError: A map is not finite, negative, or has not two sides; names of methods repeat.
    """
    options = options or ScoreOptions()
    methods = [*methods, MapMethod(RANDOM, random_maps(options.seed)), MapMethod(CENTRE, centre_prior)]
    names = tuple(method.name for method in methods)
    if len(set(names)) != len(names):
        raise ValueError(f"names of methods repeat: {', '.join(names)}")
    objects: list[MatchedObject] = []
    values, correlations = [np.empty((len(names), 0, len(METRICS)))], [np.empty((len(names), 0, len(randomised)))]
    image_ids, num_truths = [], 0
    for one in image_bar(images, "score", total=total, show=progress):
        image_ids.append(one.image_id)
        num_truths += len(one.labels)
        matched = match_objects(detect(model, one.image, num_classes)[0], one, options)
        if not matched:
            continue
        judge = _ImageJudge(model, one, matched, num_classes, options)
        values.append(np.stack([judge.values(method) for method in methods]))
        correlations.append(np.stack([judge.correlations(method, randomised) for method in methods]))
        objects += matched
    if not objects:
        raise UserError(
            f"No prediction with a score of at least {options.score_threshold:g} hits any of the {num_truths} "
            f"annotated boxes of {len(image_ids)} images (IoU {options.iou_threshold:g}), so there is no map to judge. "
            "Lower --min-score, take more images, or a better checkpoint."
        )
    parts = tuple(one.name for one in randomised)
    judged, correlated = (np.concatenate(of, axis=1) for of in (values, correlations))
    return AttentionScores(names, tuple(objects), judged, parts, correlated, tuple(image_ids), num_truths, options)


def match_objects(found: Found, truth: ScoreImage, options: ScoreOptions) -> list[MatchedObject]:
    """Annotated boxes and their predictions of the same class: the best scores choose first, each of both once."""
    if not len(found.boxes) or not len(truth.labels):
        return []
    scores = found.scores[:, truth.labels]
    ious = paired_iou(found.boxes[:, None], truth.boxes[None])
    # A baseline's detection scores 0 for all classes but its own: that is no prediction, whatever the threshold.
    good = (ious >= options.iou_threshold) & (scores >= options.score_threshold) & (scores > 0)
    pairs = good.nonzero().tolist()
    pairs.sort(key=lambda pair: (-float(scores[pair[0], pair[1]]), -float(ious[pair[0], pair[1]])))
    queries: set[int] = set()
    matched: dict[int, MatchedObject] = {}
    for query, row in pairs:
        if query not in queries and row not in matched:
            queries.add(query)
            matched[row] = MatchedObject(
                image_id=truth.image_id,
                label=int(truth.labels[row]),
                query=query,
                score=float(scores[query, row]),
                iou=float(ious[query, row]),
                truth=truth.boxes[row],
                box=found.boxes[query],
            )
    return [matched[row] for row in sorted(matched)]


class _ImageJudge:
    """All objects of one image; what does not depend on the method is computed once."""

    def __init__(
        self,
        model: nn.Module,
        one: ScoreImage,
        objects: Sequence[MatchedObject],
        num_classes: int,
        options: ScoreOptions,
    ) -> None:
        self._model, self._image, self._objects, self._num_classes = model, one.image, objects, num_classes
        self._size_hw = (one.image.shape[-2], one.image.shape[-1])
        self._inside = [coverage(truth.truth[None], self._size_hw) for truth in objects]
        self._inside_any = coverage(one.boxes, self._size_hw)
        self._perturber = Perturber(
            model,
            one.image,
            [(truth.box, truth.label) for truth in objects],
            num_classes=num_classes,
            steps=options.steps,
            baseline=options.baseline,
            batch_size=options.batch_size,
        )
        draw = random_maps(options.seed + one.image_id)
        self._tie_break = enlarge(draw(model, one.image, 0, 0), self._size_hw).double().numpy()
        self._maps: dict[str, list[Tensor]] = {}

    def values(self, method: MapMethod) -> FloatArray:
        """[objects, K]."""
        maps = [_checked(method, method.draw(self._model, self._image, o.query, o.label)) for o in self._objects]
        self._maps[method.name] = maps
        rows = []
        curves: dict[int, list[Curves]] = {}
        for index, drawn in enumerate(maps):
            pixels = enlarge(drawn, self._size_hw).clamp(min=0).double().numpy()
            # Methods that do not know of queries draw one map for all objects: its images are judged once.
            first = next(k for k in range(index + 1) if torch.equal(maps[k], drawn))
            if first == index:
                curves[index] = self._perturber.curves(pixel_ranks(pixels, self._tie_break))
            mine = curves[first][index]
            rows.append(
                (
                    energy_ratio(pixels, self._inside[index]),
                    energy_ratio(pixels, self._inside_any),
                    points_inside(pixels, self._inside[index]),
                    area_under(mine.deletion),
                    area_under(mine.insertion),
                )
            )
        return np.array(rows)

    def correlations(self, method: MapMethod, randomised: Sequence[RandomisedModel]) -> FloatArray:
        """[objects, len(randomised)], of the maps that `values` drew."""
        rows = np.full((len(self._objects), len(randomised)), np.nan)
        for column, other in enumerate(randomised):
            found = detect(other.model, self._image, self._num_classes)[0]
            for row, (one, before) in enumerate(zip(self._objects, self._maps[method.name], strict=True)):
                nearest = closest(found, one.box, one.label)
                if nearest is not None:
                    after = _checked(method, method.draw(other.model, self._image, *nearest))
                    rows[row, column] = rank_correlation(before, after)
        return rows


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
    """Share of a map [H, W] that lies inside, over the share of the image that is inside; 1 is chance.

    A map that is 0 everywhere prefers no place: 1. Nothing inside: NaN.
    """
    area = inside.mean()
    if area == 0:
        return float("nan")
    total = pixels.sum()
    return 1.0 if total == 0 else float((pixels * inside).sum() / total / area)


def points_inside(pixels: FloatArray, inside: FloatArray) -> float:
    """1 if the highest pixel of a map [H, W] is inside (by half at least), else 0; of several highest, their mean."""
    return float((inside[pixels == pixels.max()] >= 0.5).mean())


def random_maps(seed: int) -> Callable[[nn.Module, Tensor, int, int], Tensor]:
    """A method that draws a new map of uniform noise in cells of 16 pixels at every call."""
    generator = torch.Generator().manual_seed(seed)

    def draw(_model: nn.Module, image: Tensor, _query: int, _label: int) -> Tensor:
        height, width = (max(side // _RANDOM_CELL_PX, 1) for side in image.shape[-2:])
        return torch.rand(height, width, generator=generator)

    return draw


def centre_prior(_model: nn.Module, image: Tensor, _query: int, _label: int) -> Tensor:
    """A Gaussian in the middle of the image, the same for every object: photographers' habit as a map."""
    rows, columns = (
        torch.exp(-0.5 * (((torch.arange(side) + 0.5) / side - 0.5) / _CENTRE_SIGMA) ** 2) for side in image.shape[-2:]
    )
    return rows[:, None] * columns[None]


def _checked(method: MapMethod, drawn: Tensor) -> Tensor:
    if drawn.ndim != 2 or not bool(torch.isfinite(drawn).all()) or bool((drawn < 0).any()):
        raise ValueError(f"method {method.name}: expected a finite map [h, w] >= 0, found {list(drawn.shape)}")
    return drawn.detach().float().cpu()


def choose_images(image_ids: IntArray, count: int, seed: int) -> IntArray:
    """`count` of [I] ids, drawn once, in their own order; all of them where there are no more."""
    if count >= len(image_ids):
        return image_ids
    rows = np.random.default_rng(seed).choice(len(image_ids), size=count, replace=False)
    return image_ids[np.sort(rows)]
