"""What the ViT and the decoder looked at, in plain arrays ready to be drawn.

No map of all tokens against all tokens is ever kept: weights are computed for the rows that are asked for, one layer
and head at a time.

Legend: N = P + Hp*Wp tokens (P prefix tokens: class, registers), M heads, D width, F patches of an image, L decoder
layers, Q queries, S sampling points of a head over all levels, n = `reg_max`. All maps are of the batch's first image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attention.capture import Captured, SelfAttentionMaps
from data.types import BoolArray, IntArray
from models.boxes import cxcywh_to_xyxy, paired_iou

MapArray = NDArray[np.float32]

CLASS_TOKEN = 0
STRIDES = (8, 16, 32)
"""Of the maps that the decoder reads."""
Edge = Literal["left", "top", "right", "bottom"]
EDGES: tuple[Edge, ...] = get_args(Edge)
_ROWS_AT_ONCE = 256
_COMPONENTS = 3
_LEAST_DISTANCE = 1e-6
_COLOUR_PERCENTILES = (1.0, 99.0)


def token_at(point_xy: tuple[float, float], grid_hw: tuple[int, int]) -> int:
    """Return the index of the patch at a point, x and y in 0..1 over the image; outside it the nearest patch."""
    height, width = grid_hw
    column = min(max(int(point_xy[0] * width), 0), width - 1)
    row = min(max(int(point_xy[1] * height), 0), height - 1)
    return row * width + column


def patches_in_box(box_xyxy: Sequence[float], grid_hw: tuple[int, int]) -> list[int]:
    """Return patches whose centre lies in a box (0..1); the one at the box's centre if there is none."""
    height, width = grid_hw
    left, top, right, bottom = box_xyxy
    ys, xs = ((np.arange(side) + 0.5) / side for side in (height, width))
    inside = ((ys >= top) & (ys <= bottom))[:, None] & (xs >= left) & (xs <= right)
    patches: list[int] = np.flatnonzero(inside).tolist()
    return patches or [token_at(((left + right) / 2, (top + bottom) / 2), grid_hw)]


def head_maps(captured: Captured, layer: int, tokens: Sequence[int]) -> tuple[MapArray, MapArray]:
    """Return attention of tokens (their mean) of a ViT block to the patches, head by head: [M, Hp, Wp].

    Tokens are `CLASS_TOKEN`, or `captured.num_prefix` + patch. Also returned is the share [M] that goes to the class
    token and the registers, which have no place in the image.
    """
    attention = captured.vit_layers[layer]
    rows = torch.stack([attention.rows(0, head, list(tokens)).mean(dim=0) for head in range(attention.num_heads)])
    prefix = [float(row[: captured.num_prefix].sum()) for row in rows]
    maps = rows[:, captured.num_prefix :].unflatten(1, captured.grid_hw)
    return maps.cpu().numpy(), np.asarray(prefix, dtype=np.float32)


def rollout(captured: Captured, tokens: Sequence[int]) -> MapArray:
    """Return attention rollout (Abnar and Zuidema 2020) from tokens after the last block down to the input patches.

    Every layer passes on half by its residual path and half by the mean of its heads. The product of the layers is
    taken from the last to the first as vector times matrix, a few rows of the matrix at a time. The shares [Hp, Wp]
    sum to 1 together with the prefix tokens'.
    """
    layers = captured.vit_layers
    share = torch.zeros(layers[0].q.shape[2], device=layers[0].q.device)
    share[list(tokens)] = 1 / len(tokens)
    for layer in reversed(layers):
        share = 0.5 * share + 0.5 * pass_back(share, layer)
    return share[captured.num_prefix :].reshape(captured.grid_hw).cpu().numpy()


def pass_back(share: Tensor, layer: SelfAttentionMaps) -> Tensor:
    """Multiply a share [N] of every token with the mean over heads of a layer's attention [N, N]."""
    out = torch.zeros_like(share)
    for head in range(layer.num_heads):
        for start in range(0, len(share), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            out += share[rows] @ layer.rows(0, head, rows)
    return out / layer.num_heads


def similarity(features: Tensor, patches: Sequence[int]) -> MapArray:
    """Return the cosine similarity [Hp, Wp] of every patch of [D, Hp, Wp] with the mean of some patches.

    Both are seen from the image's mean patch: all patches of an image have much in common, and without taking that
    away everything is similar to everything.
    """
    flat = features.flatten(1).float()
    flat = flat - flat.mean(dim=1, keepdim=True)
    target = F.normalize(flat[:, list(patches)].mean(dim=1), dim=0)
    return (target @ F.normalize(flat, dim=0)).reshape(features.shape[1:]).cpu().numpy()


@dataclass(frozen=True)
class PatchColours:
    """Three principal components of patch features as red, green and blue, the same for all images.

    In the manner of the DINOv3 paper: a mask of the foreground first, then components of the foreground alone. On
    surfaces the foreground is what departs from the image's typical patch, whatever the texture of this image is.
    """

    threshold: float
    """Patches whose logarithmic distance from their image's median patch is larger are foreground."""
    mean: MapArray
    """[D], of the foreground patches."""
    components: MapArray
    """[3, D], of the foreground patches."""
    low: MapArray
    """[3], shown dark."""
    high: MapArray
    """[3], shown bright."""
    explained: tuple[float, ...]
    """[3], share of the foreground's variance that each component has."""
    num_images: int

    def colours(self, features: MapArray) -> tuple[MapArray, BoolArray]:
        """Return RGB 0..1 of all patches of an image and which of them are foreground: [F, D] -> [F, 3], [F]."""
        scores = (features - self.mean) @ self.components.T
        span = np.where(self.high > self.low, self.high - self.low, 1)
        colours = np.clip((scores - self.low) / span, 0, 1).astype(np.float32)
        return colours, _from_typical(features) > self.threshold


def fit_patch_colours(images: Sequence[MapArray]) -> PatchColours:
    """Run one principal component analysis over the patches of all images, [F, D] each.

    Stable from run to run: the foreground is split off by Otsu's threshold on distances, which have no sign; each
    component's sign makes its largest loading positive.
    """
    departure = np.concatenate([_from_typical(features) for features in images])
    threshold = otsu_threshold(departure)
    features = np.concatenate(list(images))
    inside = departure > threshold
    chosen = features[inside] if inside.sum() > _COMPONENTS else features
    mean = chosen.mean(axis=0)
    components, explained = _components(chosen - mean)
    ends = np.percentile((chosen - mean) @ components.T, _COLOUR_PERCENTILES, axis=0)
    low, high = np.asarray(ends, dtype=np.float32)
    return PatchColours(threshold, mean, components, low, high, tuple(explained.tolist()), len(images))


def _from_typical(features: MapArray) -> MapArray:
    """[F, D] of one image -> [F]: logarithm of each patch's distance from the median patch."""
    distance = np.linalg.norm(features - np.median(features, axis=0), axis=1)
    return np.asarray(np.log(distance + _LEAST_DISTANCE), dtype=np.float32)


def _components(centred: MapArray) -> tuple[MapArray, MapArray]:
    """Largest first [3, D], largest loading positive, and their shares of the variance [3]; zeros beyond D."""
    covariance = centred.T.astype(np.float64) @ centred.astype(np.float64)
    values, vectors = np.linalg.eigh(covariance)
    components, shares = np.zeros((_COMPONENTS, len(values))), np.zeros(_COMPONENTS)
    for place in range(min(_COMPONENTS, len(values))):
        vector = vectors[:, -1 - place]
        components[place] = vector * np.sign(vector[np.abs(vector).argmax()])
        shares[place] = max(values[-1 - place], 0) / max(values.clip(min=0).sum(), 1e-12)
    return components.astype(np.float32), shares.astype(np.float32)


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the threshold that leaves the least variance within the two groups; the mean if all are equal."""
    ordered = np.sort(values.astype(np.float64))
    if ordered[0] == ordered[-1]:
        return float(ordered.mean())
    count = np.arange(1, len(ordered))
    below = np.cumsum(ordered)[:-1]
    mean_below, mean_above = below / count, (ordered.sum() - below) / (len(ordered) - count)
    best = int((count * (len(ordered) - count) * (mean_above - mean_below) ** 2).argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)


class SamplingPoints(NamedTuple):
    """Where one query read in one decoder layer, all heads and levels."""

    points_xy: MapArray
    """[M * S, 2], 0..1 over the image; they may leave it."""
    weights: MapArray
    """[M * S], sum to 1 over all heads."""
    levels: IntArray
    """[M * S], 0 is the finest map (stride 8)."""
    reference_xy: MapArray
    """[2], centre of the box that the offsets are relative to."""


def sampling_points(captured: Captured, layer: int, query: int) -> SamplingPoints:
    """Return the sampling points of one query in one decoder layer."""
    cross = captured.cross_attention[layer]
    heads = cross.weights.shape[2]
    return SamplingPoints(
        cross.locations[0, query].flatten(0, 1).cpu().numpy(),
        (cross.weights[0, query].flatten() / heads).cpu().numpy(),
        cross.level_of_point.repeat(heads).numpy(),
        cross.references[0, query, :2].cpu().numpy(),
    )


def sampling_density(captured: Captured, query: int, *, through_queries: bool = False) -> MapArray:
    """Tell how much a query read from every place, over all decoder layers: float32 [H/8, W/8], >= 0.

    Every sampling point's weight goes to the four cells of its level that the bilinear reading mixes; cells of the
    coarser levels are then spread over the finer ones. Points outside the image read nothing and count for nothing.

    `through_queries` follows what the query got from others: attention rollout (Abnar and Zuidema 2020) carried from
    the last layer to the first through cross- and self-attention, each half of what comes out of it, the residual path
    the other half; the order is that of Chefer et al. 2021 for DETR, the gradients are left out.
    """
    height, width = captured.image_size_hw
    levels = [np.zeros((height // stride, width // stride), dtype=np.float32) for stride in STRIDES]
    share = torch.zeros(captured.layer_boxes[0].shape[1], device=captured.layer_boxes[0].device)
    share[query] = 1
    layers = zip(captured.cross_attention, captured.query_attention, strict=True)
    for cross, among_queries in reversed([*layers]):
        if through_queries:
            share = 0.5 * share
        readers = share.nonzero()[:, 0]
        weights = cross.weights[0, readers] * share[readers, None, None] / cross.weights.shape[2]
        points, level_of = cross.locations[0, readers].flatten(0, 2), cross.level_of_point.expand(weights.shape)
        for level, cells in enumerate(levels):
            here = level_of.flatten() == level
            _splat(cells, points[here].cpu().numpy(), weights.flatten()[here].cpu().numpy())
        if through_queries:
            share = 0.5 * share + 0.5 * pass_back(share, among_queries)
    return add_up([torch.from_numpy(cells) for cells in levels]).numpy()


def _splat(cells: np.ndarray, points_xy: np.ndarray, weights: np.ndarray) -> None:
    """Add `weights` [P] at `points_xy` [P, 2] (0..1) to `cells` [h, w] in place, as bilinear reading mixes them."""
    height, width = cells.shape
    column, row = points_xy[:, 0] * width - 0.5, points_xy[:, 1] * height - 0.5
    left, top = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    for x, share_x in ((left, left + 1 - column), (left + 1, column - left)):
        for y, share_y in ((top, top + 1 - row), (top + 1, row - top)):
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            np.add.at(cells, (y[inside], x[inside]), (weights * share_x * share_y)[inside])


def add_up(maps: Sequence[Tensor]) -> Tensor:
    """Make one map at the finest resolution; the sum over all cells stays (but for the rims of the interpolation)."""
    finest = max(maps, key=Tensor.numel)
    size_hw = (finest.shape[0], finest.shape[1])
    return torch.stack([enlarge(x, size_hw) * (x.numel() / finest.numel()) for x in maps]).sum(dim=0)


def enlarge(cells: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Interpolate a map [h, w] bilinearly to float32 [H, W]."""
    out: Tensor = F.interpolate(cells[None, None].float(), size=size_hw, mode="bilinear", align_corners=False)[0, 0]
    return out


def box_steps(captured: Captured, query: int) -> tuple[MapArray, MapArray]:
    """Return how a query's box moved: boxes [1 + L, 4] xyxy in 0..1, and their IoU with the last."""
    boxes = cxcywh_to_xyxy(torch.stack([boxes[0, query] for boxes in captured.layer_boxes])).cpu()
    return boxes.numpy(), paired_iou(boxes, boxes[-1]).numpy()


class EdgeDistribution(NamedTuple):
    """Where one side of a query's final box may lie, as the detector sees it (fine-grained distribution refinement)."""

    positions: MapArray
    """[n + 1], place of each bin, 0..1 along x (left, right) or y (top, bottom) of the image."""
    probabilities: MapArray
    """[n + 1], sum to 1."""
    start: float
    """Where the box that is refined has this side, 0..1."""
    expected: float
    """Mean of the distribution: the side of the final box, 0..1."""
    spread: float
    """Standard deviation, in the same unit."""


def edge_distributions(captured: Captured, query: int) -> dict[Edge, EdgeDistribution]:
    """Return the four sides' distributions after the last layer, by `EDGES`."""
    cx, cy, width, height = captured.edge_references[0, query].tolist()
    probabilities = captured.distribution[0, query].cpu().numpy()
    bins = captured.bin_values.cpu().numpy()
    starts = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    edges: dict[Edge, EdgeDistribution] = {}
    for side, (edge, start, share) in enumerate(zip(EDGES, starts, probabilities, strict=True)):
        unit = (width if side % 2 == 0 else height) / captured.reg_scale
        positions = start + (-1 if side < 2 else 1) * bins * unit  # outward
        expected = float((positions * share).sum())
        spread = float(np.sqrt((share * (positions - expected) ** 2).sum()))
        edges[edge] = EdgeDistribution(positions.astype(np.float32), share, start, expected, spread)
    return edges


def query_attention(captured: Captured, layer: int, query: int) -> MapArray:
    """Return how much a query attends to every query [Q], mean over the heads, in one decoder layer."""
    attention = captured.query_attention[layer]
    rows = [attention.rows(0, head, [query])[0] for head in range(attention.num_heads)]
    return torch.stack(rows).mean(dim=0).cpu().numpy()
