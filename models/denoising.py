"""Noised copies of the true boxes, which the decoder has to repair (docs/deimv2.md, Contrastive denoising).

Legend: B images, m most boxes of an image in the batch, g groups, G = 2*m*g denoising queries, Q matching queries.
Order along the query axis: positives of group 0 (m), negatives of group 0 (m), positives of group 1, ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh


class DenoisingQueries(NamedTuple):
    """Inputs of the decoder for one batch."""

    labels: Tensor  # int64 [B, G], 0..C; C stands for padding
    reference_logits: Tensor  # float32 [B, G, 4], cxcywh before the sigmoid
    allowed: Tensor  # bool [G + Q, G + Q]: the row's query may attend to the column's
    meta: dict[str, Any]
    """`dn_positive_idx`: per image the positive, non-padding queries, int64 [g * boxes of the image], on the host;
    `dn_num_group`: g; `dn_num_split`: [G, Q]."""

    @property
    def num_queries(self) -> int:
        """G, without those that `padded` added."""
        return int(self.meta["dn_num_split"][0]) if self.meta else 0

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the decoder computes with."""
        return self.labels, self.reference_logits, self.allowed


def make_denoising_queries(
    targets: Sequence[Mapping[str, Tensor]],
    *,
    num_classes: int,
    num_queries: int,
    num_denoising: int,
    label_noise_ratio: float,
    box_noise_scale: float,
) -> DenoisingQueries | None:
    """Draw the denoising queries of a batch, or return None when it has no boxes.

    All shapes follow from the targets' shapes, so nothing waits for the device. The random numbers come from
    the device's default generator, in the order of the specification.

    Args:
        targets: Per image `labels` int64 [N] and `boxes` float [N, 4] cxcywh in [0, 1].
        num_queries: Q.
        num_denoising: Wanted number of positives, all groups together.
        label_noise_ratio: Half of this share of the labels is redrawn.
        box_noise_scale: 1.0 moves a positive's corners by up to half of its size.
    """
    counts = [target["labels"].shape[0] for target in targets]
    most = max(counts, default=0)
    if most == 0 or num_denoising <= 0:
        return None
    groups = max(1, num_denoising // most)
    labels = pad_sequence([t["labels"] for t in targets], batch_first=True, padding_value=num_classes)
    boxes = pad_sequence([t["boxes"].float() for t in targets], batch_first=True)
    labels, boxes = labels.tile(1, 2 * groups), boxes.tile(1, 2 * groups, 1)
    device, total = labels.device, labels.shape[1]
    positive = torch.arange(total, device=device) % (2 * most) < most

    if label_noise_ratio > 0:
        labels = _noise_labels(labels, num_classes, label_noise_ratio)
    if box_noise_scale > 0:
        boxes = _noise_boxes(boxes, positive, box_noise_scale)
    starts = np.arange(groups)[:, None] * (2 * most)
    meta = {
        "dn_positive_idx": [torch.from_numpy((starts + np.arange(count)).ravel()) for count in counts],
        "dn_num_group": groups,
        "dn_num_split": [total, num_queries],
    }
    allowed = attention_allowed(total, 2 * most, num_queries, device)
    return DenoisingQueries(labels, inverse_sigmoid(boxes), allowed, meta)


def padded(
    queries: DenoisingQueries | None,
    multiple: int,
    *,
    batch: int,
    num_classes: int,
    num_queries: int,
    device: torch.device,
) -> DenoisingQueries:
    """Add queries that no other one sees, up to a multiple (at least one), so that shapes do not follow the boxes.

    The added ones come between the denoising and the matching queries; `meta` keeps telling of the real ones.
    """
    labels = torch.empty(batch, 0, dtype=torch.int64, device=device) if queries is None else queries.labels
    boxes = labels.new_zeros((batch, 0, 4), dtype=torch.float32) if queries is None else queries.reference_logits
    total, groups = labels.shape[1], 1 if queries is None else int(queries.meta["dn_num_group"])
    added = max(multiple, math.ceil(total / multiple) * multiple) - total
    return DenoisingQueries(
        F.pad(labels, (0, added), value=num_classes),
        F.pad(boxes, (0, 0, 0, added)),
        attention_allowed(total, max(total // groups, 1), num_queries, device, added),
        {} if queries is None else queries.meta,
    )


def _noise_labels(labels: Tensor, num_classes: int, ratio: float) -> Tensor:
    redraw = torch.rand(labels.shape, device=labels.device) < 0.5 * ratio
    drawn = torch.randint(0, num_classes, labels.shape, dtype=torch.int32, device=labels.device)
    return torch.where(redraw & (labels != num_classes), drawn.to(labels.dtype), labels)


def _noise_boxes(boxes: Tensor, positive: Tensor, scale: float) -> Tensor:
    """Move the corners: positives by less than half of the size, negatives by more, at scale 1."""
    half_size = 0.5 * scale * boxes[..., 2:].repeat(1, 1, 2)
    sign = 2 * torch.randint(0, 2, boxes.shape, dtype=boxes.dtype, device=boxes.device) - 1
    magnitude = torch.rand(boxes.shape, dtype=boxes.dtype, device=boxes.device)
    magnitude = magnitude + (~positive)[None, :, None]
    noised = xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + sign * magnitude * half_size).clamp(0, 1))
    # Corners of negatives may have crossed, which makes sizes negative.
    return noised.abs()


def attention_allowed(
    num_denoising: int, group_size: int, num_queries: int, device: torch.device, num_added: int = 0
) -> Tensor:
    """bool [G + Q, G + Q], True = the row may see the column; with `num_added` unseen queries between G and Q.

    Denoising queries see their own group and the matching queries; matching queries see each other only, since
    the denoising queries know the answer.
    """
    matching, added = -1, -2
    groups = [
        torch.arange(num_denoising, device=device) // group_size,
        torch.full((num_added,), added, device=device),
        torch.full((num_queries,), matching, device=device),
    ]
    group = torch.cat(groups)
    return (group[None, :] == matching) | (group[:, None] == group[None, :])
