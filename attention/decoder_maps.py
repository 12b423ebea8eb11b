"""What a query of the decoder looked at and how its box came about, in plain arrays ready to be drawn.

Legend: L decoder layers, Q queries, M heads, S sampling points of a head over all levels, n = `reg_max`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from attention.capture import Captured
from models.boxes import cxcywh_to_xyxy, paired_iou

FloatArray = NDArray[np.float32]

EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class SamplingPoints:
    """Where one query read in one decoder layer."""

    points_xy: FloatArray
    """[M * S, 2], 0..1 over the image; they may leave it."""
    weights: FloatArray
    """[M * S], sum to 1 over all heads."""
    levels: NDArray[np.int64]
    """[M * S], 0 is the finest map (stride 8)."""
    reference_cxcywh: FloatArray
    """[4], the box that the offsets are relative to."""


def sampling_points(captured: Captured, layer: int, query: int, image: int = 0) -> SamplingPoints:
    """Of one query in one layer, all heads and levels."""
    cross = captured.cross_attention[layer]
    heads = cross.weights.shape[2]
    return SamplingPoints(
        cross.locations[image, query].flatten(0, 1).cpu().numpy(),
        (cross.weights[image, query].flatten() / heads).cpu().numpy(),
        cross.level_of_point.repeat(heads).numpy(),
        cross.references[image, query].cpu().numpy(),
    )


@dataclass(frozen=True)
class BoxSteps:
    """How a query's box moved."""

    boxes_xyxy: FloatArray
    """[1 + L, 4], 0..1: the encoder's proposal, then every layer's outcome."""
    iou_with_last: FloatArray
    """[1 + L]."""


def box_steps(captured: Captured, query: int, image: int = 0) -> BoxSteps:
    """From the proposal to the final box."""
    boxes = cxcywh_to_xyxy(torch.stack([boxes[image, query] for boxes in captured.layer_boxes])).cpu()
    return BoxSteps(boxes.numpy(), paired_iou(boxes, boxes[-1]).numpy())


@dataclass(frozen=True)
class EdgeDistribution:
    """Where one side of a query's final box may lie, as the detector sees it (fine-grained distribution refinement)."""

    edge: str
    """One of `EDGES`."""
    positions: FloatArray
    """[n + 1], place of each bin, 0..1 along x (left, right) or y (top, bottom) of the image."""
    probabilities: FloatArray
    """[n + 1], sum to 1."""
    start: float
    """Where the box that is refined has this side, 0..1."""
    expected: float
    """Mean of the distribution: the side of the final box, 0..1."""
    spread: float
    """Standard deviation, in the same unit."""


def edge_distributions(
    captured: Captured, query: int, image: int = 0, layer: int = -1
) -> tuple[EdgeDistribution, EdgeDistribution, EdgeDistribution, EdgeDistribution]:
    """Left, top, right, bottom, after a layer (default: the last)."""
    cx, cy, width, height = captured.edge_references[image, query].tolist()
    probabilities = captured.distributions[layer][image, query].cpu().numpy()
    bins = captured.bin_values.cpu().numpy()
    starts = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    made = []
    for side, edge in enumerate(EDGES):
        unit = (width if side % 2 == 0 else height) / captured.reg_scale
        outward = -1 if side < 2 else 1
        positions = starts[side] + outward * bins * unit
        share = probabilities[side]
        expected = float((positions * share).sum())
        spread = float(np.sqrt((share * (positions - expected) ** 2).sum()))
        made.append(EdgeDistribution(edge, positions.astype(np.float32), share, starts[side], expected, spread))
    left, top, right, bottom = made
    return left, top, right, bottom


def query_attention(captured: Captured, layer: int, query: int, image: int = 0) -> FloatArray:
    """[Q]: how much a query attends to every query, mean over the heads, in one decoder layer."""
    attention = captured.query_attention[layer]
    rows = [attention.rows(image, head, [query])[0] for head in range(attention.num_heads)]
    return torch.stack(rows).mean(dim=0).cpu().numpy()


def object_attention(captured: Captured, queries: list[int], image: int = 0) -> FloatArray:
    """[L, len(queries), len(queries)]: the matrix among the chosen queries, mean over the heads; rows attend."""
    matrices = [
        [query_attention(captured, layer, query, image)[queries] for query in queries]
        for layer in range(len(captured.query_attention))
    ]
    return np.asarray(matrices, dtype=np.float32)
