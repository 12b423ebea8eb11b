"""The training losses (spec section 7): MAL on classes, L1 and GIoU on boxes, FGL and DDF on side distributions.

Papers: DEIM (Huang et al. 2024) for MAL, D-FINE (Peng et al. 2024) for FGL, DDF and the GO union.

All output sets with the same queries are stacked, so that a step costs a few large operations instead of many
small ones, and the device is waited for once: when the matching costs come to the host. Nothing here masks NaN.

Legend: S output sets, K of them with side distributions, B images, Q queries of an image, C classes,
N boxes of the batch, P pairs, n = reg_max (n + 1 bins).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from data.batch import Target
from models.boxes import cxcywh_to_xyxy_clamped, paired_giou, paired_iou
from models.config import CriterionConfig, ModelConfig
from models.distribution import box_to_bins, weighting_function
from models.matcher import HungarianMatcher, IndexArray, Pairs, assign, go_union

DDF_TEMPERATURE = 5.0


@dataclass(frozen=True)
class WindowShare:
    """What one micro-batch is of its gradient accumulation window, so that the sum equals the large batch.

    Attributes:
        num_boxes: max(1, mean over processes of the boxes of the whole window); replaces N_box.
        image_share: images of this micro-batch / images of the window; scales DDF, a mean over images.
    """

    num_boxes: Tensor | float
    image_share: float


@dataclass(frozen=True)
class _Targets:
    """All boxes of the batch, one image after the other."""

    labels: Tensor
    """int64 [N]"""
    boxes_cxcywh: Tensor
    """float32 [N, 4]"""
    boxes_xyxy: Tensor
    """float32 [N, 4]"""
    per_image: tuple[int, ...]
    """B numbers that add to N."""


@dataclass(frozen=True)
class _OutputSets:
    """Outputs for the same queries, stacked. Sets with distributions come first, the teacher at their head."""

    suffixes: tuple[str, ...]
    """S endings of the loss names."""
    logits: Tensor
    """float32 [S, B, Q, C]"""
    boxes_cxcywh: Tensor
    """float32 [S, B, Q, 4], not clamped."""
    corners: tuple[Tensor, ...]
    """K times float32 [B * Q, 4, n + 1]: logits of the distributions, sides left, top, right, bottom."""
    ref_cxcywh: Tensor
    """float32 [B * Q, 4]: the boxes that all distributions refine."""


@dataclass(frozen=True)
class _DevicePairs:
    """`Pairs` on the device, int64 [S, P], or [1, P] where all sets share them."""

    query: Tensor
    box: Tensor


@dataclass(frozen=True)
class _Balance:
    """Weights of the matched and of the other queries in DDF."""

    matched: float
    unmatched: float


class DEIMCriterion(nn.Module):
    """Named, weighted losses of one micro-batch; their plain sum is the training loss.

    It has no parameters, works in float32 whatever comes in, and makes the same number of collective calls in
    every process. The set of keys depends on the process's own data: reduce totals, never stacked values.
    """

    def __init__(self, config: CriterionConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.matcher = HungarianMatcher(config.matcher)

    def forward(
        self,
        outputs: Mapping[str, Any],
        targets: Sequence[Target],
        *,
        epoch: int,
        share: WindowShare | None = None,
    ) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            outputs: the detector's training output (spec section 1).
            targets: B targets, on the device of the outputs.
            epoch: selects the matcher's cost.
            share: given under gradient accumulation only.

        Returns:
            Loss name (official names and suffixes) -> float32 scalar. Without boxes the denoising losses are
            absent; DDF is absent where student and teacher are identical, as in the first step of training.
        """
        device = outputs["pred_logits"].device
        with torch.autocast(device.type, enabled=False):
            return self._losses(outputs, _gather_targets(targets), epoch, share)

    def _losses(
        self, outputs: Mapping[str, Any], targets: _Targets, epoch: int, share: WindowShare | None
    ) -> dict[str, Tensor]:
        matching = _stack_matching_sets(outputs)
        denoising = _stack_denoising_sets(outputs) if "dn_outputs" in outputs else None
        own, is_new = self._match(matching, denoising, targets, epoch)
        go = go_union(own) if self.config.use_uni_set else own
        dn = _denoising_pairs(outputs, targets) if denoising is not None else None
