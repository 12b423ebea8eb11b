"""The only box maths: corners, overlaps, and sides as distributions over distance bins.

Boxes are float; cxcywh = centre and size, xyxy = corners; the unit is the caller's. Bins (D-FINE, Peng et al. 2024;
docs/deimv2.md, Layer loop): n = `reg_max` (n + 1 bins, values W_0..W_n), rho = |reg_scale|. A distance is measured from
the reference box's side in units of width / rho (left, right) or height / rho (top, bottom); positive is outward.
Sides are always ordered left, top, right, bottom.
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


def weighting_function(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    """Return the bins W, float32 [n + 1]: 0 in the middle, geometric outwards, a far outlier at either end
    (docs/deimv2.md, Bin values). `up` and `reg_scale` are one number each; nothing waits for the device."""
    if reg_max < 4 or reg_max % 2:
        raise ValueError(f"reg_max must be even and at least 4, found {reg_max}")
    bound = up.float().abs().reshape(1) * reg_scale.float().abs().reshape(1)
    base = (bound + 1) ** (2 / (reg_max - 2))
    positive = base ** torch.arange(1, reg_max // 2, device=bound.device) - 1
    return torch.cat([-2 * bound, -positive.flip(0), torch.zeros_like(bound), positive, 2 * bound])


def distance_to_box(ref_cxcywh: Tensor, distances: Tensor, reg_scale: Tensor) -> Tensor:
    """Move the sides of reference boxes [..., 4] outwards by distances [..., 4]: [..., 4] cxcywh, not clamped."""
    rho = reg_scale.to(ref_cxcywh.dtype).abs()
    centre, size = ref_cxcywh.split(2, dim=-1)
    unit = size / rho
    low, high = distances.split(2, dim=-1)
    # centre and size of the corners centre - (rho / 2 + low) * unit and centre + (rho / 2 + high) * unit
    return torch.cat([torch.addcmul(centre, high - low, unit, value=0.5), (low + high + rho) * unit], dim=-1)


def box_to_distance(ref_cxcywh: Tensor, boxes_xyxy: Tensor, reg_scale: Tensor) -> Tensor:
    """Invert `distance_to_box`: [..., 4] reference, [..., 4] xyxy -> distances [..., 4] (docs/deimv2.md, Formulas)."""
    rho = reg_scale.to(ref_cxcywh.dtype).abs()
    centre, unit = ref_cxcywh[..., :2], ref_cxcywh[..., 2:] / rho + 1e-16
    low = (centre - boxes_xyxy[..., :2]) / unit
    high = (boxes_xyxy[..., 2:] - centre) / unit
    return torch.cat([low, high], dim=-1) - 0.5 * rho


def box_to_bins(
    ref_cxcywh: Tensor, boxes_xyxy: Tensor, bin_values: Tensor, reg_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Express boxes [..., 4] by the two bins next to each side's distance from reference boxes [..., 4] (targets of the
    FGL loss, docs/deimv2.md, Formulas).

    Returns:
        Left bin k, int64 [..., 4] in 0..n-1 (the right one is k + 1), and the weights of the left and of the
        right bin, float [..., 4], which add to 1. Beyond the last bins, the nearest bin gets all the weight.
    """
    distance = box_to_distance(ref_cxcywh, boxes_xyxy, reg_scale)
    last_left_bin = bin_values.shape[0] - 2
    bins = torch.searchsorted(bin_values, distance.contiguous(), right=True) - 1
    left_bin = bins.clamp(0, last_left_bin)
    below = distance - bin_values[left_bin]
    above = bin_values[left_bin + 1] - distance
    right_weight = (below / (below + above)).clamp(0, 1)
    return left_bin, 1 - right_weight, right_weight
