"""What the ViT looked at: attention of one token, attention rollout, colours of patch features, similar patches.

No map of all tokens against all tokens is ever kept: weights are computed for the rows that are asked for, one layer
and head at a time.

Legend: N = P + Hp*Wp tokens (P prefix tokens: class, registers), M heads, D width, F patches of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from attention.capture import Captured, SelfAttentionMaps

FloatArray = NDArray[np.float32]

CLASS_TOKEN = 0
_ROWS_AT_ONCE = 256
_COMPONENTS = 3
_LEAST_DISTANCE = 1e-6
_COLOUR_PERCENTILES = (1.0, 99.0)


def token_at(point_xy: tuple[float, float], grid_hw: tuple[int, int]) -> int:
    """Index of the patch at a point, x and y in 0..1 over the image; points outside take the nearest patch."""
    height, width = grid_hw
    column = min(max(int(point_xy[0] * width), 0), width - 1)
    row = min(max(int(point_xy[1] * height), 0), height - 1)
    return row * width + column


def patches_in_box(box_xyxy: Sequence[float], grid_hw: tuple[int, int]) -> list[int]:
    """Patches whose centre lies in a box (0..1 over the image); the one at the box's centre if there is none."""
    height, width = grid_hw
    left, top, right, bottom = box_xyxy
    inside = [
        row * width + column
        for row in range(height)
        for column in range(width)
        if left <= (column + 0.5) / width <= right and top <= (row + 0.5) / height <= bottom
    ]
    return inside or [token_at(((left + right) / 2, (top + bottom) / 2), grid_hw)]


@dataclass(frozen=True)
class HeadMaps:
    """Where one token looks, in one layer."""

    maps: FloatArray
    """[M, Hp, Wp]: share of the attention that goes to each patch."""
    to_prefix: FloatArray
    """[M]: share that goes to the class token and the registers, which have no place in the image."""


def head_maps(captured: Captured, layer: int, tokens: Sequence[int], image: int = 0) -> HeadMaps:
    """Attention of tokens (their mean, if there are several) to the patches, head by head.

    Args:
        captured: One pass.
        layer: ViT block, from 0.
        tokens: Indices among all N tokens: `CLASS_TOKEN`, or `captured.num_prefix` + patch.
        image: Of the batch.
    """
    maps, prefix = [], []
    attention = captured.vit_layers[layer]
    for head in range(attention.num_heads):
        row = attention.rows(image, head, list(tokens)).mean(dim=0)
        prefix.append(float(row[: captured.num_prefix].sum()))
        maps.append(row[captured.num_prefix :].reshape(captured.grid_hw))
    return HeadMaps(torch.stack(maps).cpu().numpy(), np.asarray(prefix, dtype=np.float32))


def rollout(captured: Captured, tokens: Sequence[int], image: int = 0, last_layer: int | None = None) -> FloatArray:
    """Attention rollout (Abnar and Zuidema 2020) from some tokens after a block down to the input patches.

    Every layer passes on half by its residual path and half by the mean of its heads. The product of the layers is
    taken from the last to the first as vector times matrix, a few rows of the matrix at a time.

    Args:
        captured: One pass.
        tokens: Where to start, as in `head_maps`.
        image: Of the batch.
        last_layer: Block to start after; None: the last that runs.

    Returns:
        [Hp, Wp] shares; together with the prefix tokens' they sum to 1.
    """
    layers = captured.vit_layers[: len(captured.vit_layers) if last_layer is None else last_layer + 1]
    share = torch.zeros(layers[0].q.shape[2], device=layers[0].q.device)
    share[list(tokens)] = 1 / len(tokens)
    for layer in reversed(layers):
        share = 0.5 * share + 0.5 * _pass_back(share, layer, image)
    return share[captured.num_prefix :].reshape(captured.grid_hw).cpu().numpy()


def _pass_back(share: Tensor, layer: SelfAttentionMaps, image: int) -> Tensor:
    """share [N] times the mean over heads of the attention [N, N]."""
    out = torch.zeros_like(share)
    for head in range(layer.num_heads):
        for start in range(0, len(share), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            out += share[rows] @ layer.rows(image, head, rows)
    return out / layer.num_heads


def similarity(features: Tensor, patches: Sequence[int]) -> FloatArray:
    """Cosine similarity of every patch with the mean of some patches, both seen from the image's mean patch.

    All patches of an image have much in common; without taking it away everything is similar to everything.

    Args:
        features: [D, Hp, Wp].
        patches: Indices row by row.

    Returns:
        [Hp, Wp] in -1..1.
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
    mean: FloatArray
    """[D], of the foreground patches."""
    components: FloatArray
    """[3, D], of the foreground patches."""
    low: FloatArray
    """[3], shown dark."""
    high: FloatArray
    """[3], shown bright."""
    explained: tuple[float, float, float]
    """Share of the foreground's variance that each component has."""

    def foreground(self, features: FloatArray) -> NDArray[np.bool_]:
        """All patches of an image [F, D] -> [F]."""
        mask: NDArray[np.bool_] = _from_typical(features) > self.threshold
        return mask

    def colours(self, features: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
        """RGB 0..1 of all patches of an image and which of them are foreground: [F, D] -> [F, 3], [F]."""
        scores = (features - self.mean) @ self.components.T
        span = np.where(self.high > self.low, self.high - self.low, 1)
        return np.clip((scores - self.low) / span, 0, 1).astype(np.float32), self.foreground(features)


def fit_patch_colours(images: Sequence[FloatArray]) -> PatchColours:
    """One principal component analysis over the patches of all images, [F, D] each.

    Stable from run to run: the foreground is split off by Otsu's threshold on distances, which have no sign; each
    component's sign makes its largest loading positive.
    """
    departure = np.concatenate([_from_typical(features) for features in images])
    threshold = otsu_threshold(departure)
    features = np.concatenate(list(images))
    inside = departure > threshold
    chosen = features[inside] if inside.sum() > _COMPONENTS else features
    mean = chosen.mean(axis=0)
    components, explained = _components(chosen - mean, _COMPONENTS)
    ends = np.percentile((chosen - mean) @ components.T, _COLOUR_PERCENTILES, axis=0)
    low, high = np.asarray(ends, dtype=np.float32)
    red, green, blue = (float(share) for share in explained)
    return PatchColours(threshold, mean, components, low, high, (red, green, blue))


def _from_typical(features: FloatArray) -> FloatArray:
    """[F, D] of one image -> [F]: logarithm of each patch's distance from the median patch."""
    distance = np.linalg.norm(features - np.median(features, axis=0), axis=1)
    return np.asarray(np.log(distance + _LEAST_DISTANCE), dtype=np.float32)


def _components(centred: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Largest first [count, D], largest loading positive, and their shares of the variance [count]."""
    covariance = centred.T.astype(np.float64) @ centred.astype(np.float64)
    values, vectors = np.linalg.eigh(covariance)
    width = covariance.shape[0]
    components = np.zeros((count, width))
    shares = np.zeros(count)
    for place in range(min(count, width)):
        vector = vectors[:, -1 - place]
        components[place] = vector * np.sign(vector[np.abs(vector).argmax()])
        shares[place] = max(values[-1 - place], 0) / max(values.clip(min=0).sum(), 1e-12)
    return components.astype(np.float32), shares.astype(np.float32)


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """The threshold that leaves the least variance within the two groups; the values' mean if all are equal."""
    ordered = np.sort(values.astype(np.float64))
    count = np.arange(1, len(ordered))
    below = np.cumsum(ordered)[:-1]
    mean_below, mean_above = below / count, (ordered.sum() - below) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (mean_above - mean_below) ** 2
    if not len(between) or ordered[0] == ordered[-1]:
        return float(ordered.mean())
    best = int(between.argmax())
    return float((ordered[best] + ordered[best + 1]) / 2)
