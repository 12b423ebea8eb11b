"""The only box maths.

Legend: N, M boxes; all boxes float. cxcywh = centre and size, xyxy = corners; the unit is the caller's.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] cxcywh -> [..., 4] xyxy. Negative sizes are kept."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def cxcywh_to_xyxy_clamped(boxes: Tensor) -> Tensor:
    """As `cxcywh_to_xyxy`, with negative sizes taken as 0, as the losses and the matcher want it."""
    centre, size = boxes[..., :2], boxes[..., 2:].clamp(min=0)
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy -> [..., 4] cxcywh."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """[..., 4] -> [...]."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0 or less, with a gradient of 0 there; NaN stays NaN, to be seen."""
    return numerator / denominator.masked_fill(denominator <= 0, torch.inf)


def paired_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU of broadcastable pairs: [..., 4], [..., 4] -> [...]. No N x M table for matched boxes.

    Zero-area pairs have IoU 0. Large tables are much faster if the last axis has the largest stride.
    """
    ax1, ay1, ax2, ay2 = a_xyxy.unbind(-1)
    bx1, by1, bx2, by2 = b_xyxy.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    return _divide(intersection, box_area(a_xyxy) + box_area(b_xyxy) - intersection)


def paired_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU of broadcastable pairs (Rezatofighi et al. 2019): [..., 4], [..., 4] -> [...].

    IoU - (hull - union) / hull; two boxes with an empty hull have GIoU 0.
    """
    ax1, ay1, ax2, ay2 = a_xyxy.unbind(-1)
    bx1, by1, bx2, by2 = b_xyxy.unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    intersection = width * height
    union = box_area(a_xyxy) + box_area(b_xyxy) - intersection
    hull = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) * (torch.maximum(ay2, by2) - torch.minimum(ay1, by1))
    return _divide(intersection, union) - _divide(hull - union, hull)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x clipped to [0, 1], finite at both ends (spec, notation)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
