"""From the network's output to detections in the original image (docs/deimv2.md, Post-processing).

Legend: B images, Q queries, C classes, K detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.boxes import cxcywh_to_xyxy
from models.config import ModelConfig
from models.detections import Detections


class PostProcessor:
    """The best (query, class) scores of each image; no threshold and no non-maximum suppression.

    Images are stretched to the network's input, so normalised boxes scale straight to the original size.
    """

    def __init__(self, num_classes: int, num_top_queries: int = 300) -> None:
        self.num_classes = num_classes
        self.num_top_queries = num_top_queries

    @torch.no_grad()
    def __call__(self, outputs: Mapping[str, Tensor], orig_sizes_wh: Tensor) -> list[Detections]:
        """Pick and scale to pixels: K = min(num_top_queries, Q * C) detections of each image.

        `outputs` are `pred_logits` [B, Q, C] and `pred_boxes` [B, Q, 4], cxcywh in [0, 1] of the image,
        `orig_sizes_wh` [B, 2] the original images' sizes in pixels. One query may appear with several labels.
        """
        batch = (part.cpu() for part in self.batched(outputs, orig_sizes_wh))  # to the host at once, not per image
        return [Detections.of(boxes, scores, labels) for labels, boxes, scores in zip(*batch, strict=True)]

    def batched(self, outputs: Mapping[str, Tensor], orig_sizes_wh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As a call, for the whole batch: labels int64 [B, K], boxes [B, K, 4], scores [B, K]; what exports compute."""
        logits = outputs["pred_logits"].float()
        flat_scores = logits.sigmoid().flatten(1)
        scores, index = flat_scores.topk(min(self.num_top_queries, flat_scores.shape[1]))
        query = index.div(self.num_classes, rounding_mode="floor")
        scale = orig_sizes_wh.to(logits).repeat(1, 2)[:, None]
        # Half-precision boxes would be off by pixels once scaled to the image.
        boxes = cxcywh_to_xyxy(outputs["pred_boxes"].float()) * scale
        boxes = boxes.gather(1, query[..., None].expand(-1, -1, 4))
        return index % self.num_classes, boxes, scores


class ScaleToImage:
    """For detectors that choose their detections themselves, such as torchvision's: boxes to pixels."""

    @torch.no_grad()
    def __call__(self, outputs: Sequence[Mapping[str, Tensor]], orig_sizes_wh: Tensor) -> list[Detections]:
        """Scale `boxes` [K, 4], xyxy in [0, 1], of each image; `scores` [K] and `labels` int64 [K] stay."""
        scales = orig_sizes_wh.float().repeat(1, 2)
        return [
            Detections.of(one["boxes"].float() * scale, one["scores"], one["labels"])
            for one, scale in zip(outputs, scales, strict=True)
        ]


def build_postprocessor(config: ModelConfig) -> Callable[[Any, Tensor], list[Detections]]:
    """From the evaluation outputs of `models.detector.build_detector(config)` to detections in the original image."""
    if config.Baseline is not None:
        return ScaleToImage()
    return PostProcessor(num_classes=config.num_classes, num_top_queries=config.num_top_queries)
