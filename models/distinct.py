"""Keeps a detector from saying things twice: distinct queries, and attention that knows where others are or who leads.

Own additions, off in the official model. Legend: B images, K candidates, T queries, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.boxes import cxcywh_to_xyxy, paired_iou
from models.layers import without_autocast

_ROUNDS = 8
_EXACT_ROUNDS = 64
"""The longest chain among the 300 detections of an image of NEU-DET had 11 links (IoU 0.5); a millisecond on a CPU."""
_SINE_WIDTH, _SINE_SCALE, _SINE_TEMPERATURE = 16, 100.0, 10000.0


@torch.no_grad()
def distinct_first(boxes_cxcywh: Tensor, most_iou: float, count: int) -> Tensor:
    """Choose among candidates [B, K, 4], best first, those that repeat none before them, whatever their class: that
    overlap no better, kept one by more than `most_iou`. The best suppressed ones fill up.

    Zhang et al., "Dense Distinct Query for End-to-End Object Detection", CVPR 2023.

    Returns:
        int64 [B, count], positions among the candidates: the distinct ones first, each part best first.
    """
    boxes = cxcywh_to_xyxy(boxes_cxcywh)
    kept = _kept(paired_iou(boxes[:, :, None], boxes[:, None]) > most_iou, _ROUNDS)
    return _kept_first(kept).topk(count, dim=1).indices


def without_repeats(labels: Tensor, boxes: Tensor, scores: Tensor, most_iou: float) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress repeats as `Detections.without_repeats` does, in static shapes: of boxes of one class that overlap more
    than `most_iou`, the best is kept; the others come last, with a score of 0. Labels int64 [B, K], boxes xyxy
    [B, K, 4] and scores [B, K] are given best first.
    """
    repeats = paired_iou(boxes[:, :, None], boxes[:, None]) > most_iou
    kept = _kept(repeats & (labels[:, :, None] == labels[:, None]), _EXACT_ROUNDS)
    order = _kept_first(kept).topk(labels.shape[1], dim=1).indices
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return labels.gather(1, order), boxes, (scores * kept).gather(1, order)


def _kept(overlaps: Tensor, rounds: int) -> Tensor:
    """Suppress greedily: bool [B, K, K], which candidates, best first, overlap -> float32 [B, K], 1 for those kept.

    A fixed number of rounds over one table, so that shapes are static and an export holds it: round k settles every
    candidate whose chain of better overlapping ones has at most k links.
    """
    worse = (overlaps & torch.ones_like(overlaps).tril(-1)).float()  # row: the candidate; column: one before it
    kept = torch.ones_like(worse[..., 0])
    for _ in range(rounds):
        kept = (torch.bmm(worse, kept[..., None])[..., 0] == 0).float()
    return kept


def _kept_first(kept: Tensor) -> Tensor:
    """Keys [B, K] that sort the kept ones to the front, each part in its order."""
    return kept * kept.shape[1] - torch.arange(kept.shape[1], device=kept.device)


def more_confident(logits: Tensor) -> Tensor:
    """Let each query see only queries that logits [B, T, C], of the layer before, make at least as confident: bool
    [B, 1, T, T], row: the one that attends.

    The better of two queries on one object then does not depend on the worse, which alone has to step back: the mask
    that lets the last layer speak once where the layers before it were taught to speak several times (MS-DETR, Zhao
    et al., CVPR 2024, and its successors).
    """
    confidence = logits.detach().amax(dim=-1)
    return confidence[:, None, None, :] >= confidence[:, None, :, None]


class PositionRelation(nn.Module):
    """Biases self-attention by where two queries' boxes lie to each other, as suppression sees them.

    Hou et al., "Relation DETR: Exploring Explicit Position Relation Prior for Object Detection", ECCV 2024, without the
    ReLU: the projection starts at zero, so that the first step is the official model's, and a ReLU would keep it there.
    """

    frequencies: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        exponents = torch.arange(_SINE_WIDTH // 2) * (2 / _SINE_WIDTH)
        self.register_buffer("frequencies", _SINE_SCALE / _SINE_TEMPERATURE**exponents, persistent=False)
        self.proj = nn.Linear(4 * _SINE_WIDTH, num_heads)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, boxes_cxcywh: Tensor) -> Tensor:
        """float32 [B, T, 4] -> what is added to the attention's logits, [B, H, T, T]; row: the query that attends."""
        with without_autocast(boxes_cxcywh.device.type):
            centre, size = boxes_cxcywh.clamp(min=1e-4).split(2, dim=-1)
            apart = (centre[:, :, None] - centre[:, None]).abs() / size[:, :, None]
            ratio = size[:, :, None] / size[:, None]
            angles = torch.cat([(apart + 1).log(), ratio.log()], dim=-1)[..., None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        out: Tensor = self.proj(waves).permute(0, 3, 1, 2)
        return out
