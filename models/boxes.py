"""The only box maths.

Legend: N, M boxes; all boxes float. cxcywh = centre and size, xyxy = corners; the unit is the caller's.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] cxcywh -> [..., 4] xyxy. Negative sizes are kept."""
    centre, size = boxes.split(2, dim=-1)
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], dim=-1)


def cxcywh_to_xyxy_clamped(boxes: Tensor) -> Tensor:
    """As `cxcywh_to_xyxy`, with negative sizes taken as 0, as the losses and the matcher want it."""
    centre, size = boxes.split(2, dim=-1)
    half = 0.5 * size.relu()
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy -> [..., 4] cxcywh."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """[..., 4] -> [...]."""
    low, high = boxes_xyxy.split(2, dim=-1)
    return _product(high - low)


def _product(size: Tensor) -> Tensor:
    """[..., 2] -> [...]. Split and unbind, never slices: their gradients are one concatenation each."""
    width, height = size.unbind(-1)
    return width * height


def _sizes(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of the intersection, of the union and of the hull."""
    lower_low, lower_high = torch.minimum(a, b).split(2, dim=-1)
    upper_low, upper_high = torch.maximum(a, b).split(2, dim=-1)
    intersection = _product((lower_high - upper_low).relu())
    return intersection, box_area(a) + box_area(b) - intersection, _product(upper_high - lower_low)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """0 where the denominator is 0 or less, with a gradient of 0 there; NaN stays NaN, to be seen."""
    return numerator / denominator.masked_fill(denominator <= 0, torch.inf)


def paired_iou_giou(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of broadcastable pairs (Rezatofighi et al. 2019): [..., 4], [..., 4] -> [...], [...].

    GIoU is IoU - (hull - union) / hull; two boxes with an empty hull have GIoU 0.
    """
    intersection, union, hull = _sizes(a_xyxy, b_xyxy)
    iou = _divide(intersection, union)
    return iou, iou - _divide(hull - union, hull)


def paired_iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """IoU of broadcastable pairs: [..., 4], [..., 4] -> [...]. No N x M table for matched boxes.

    Zero-area pairs have IoU 0. Large tables are much faster if the last axis has the largest stride.
    """
    intersection, union, _ = _sizes(a_xyxy, b_xyxy)
    return _divide(intersection, union)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x clipped to [0, 1], finite at both ends (docs/deimv2.md, Overview)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
