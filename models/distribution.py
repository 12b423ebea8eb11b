"""Box sides as distributions over distance bins (D-FINE, Peng et al. 2024; docs/deimv2.md, Layer loop).

Legend: n = `reg_max` (n + 1 bins, values W_0..W_n), rho = |reg_scale|. A distance is measured from the
reference box's side in units of width / rho (left, right) or height / rho (top, bottom); positive is outward.
Sides are always ordered left, top, right, bottom.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighting_function(reg_max: int, up: Tensor, reg_scale: Tensor) -> Tensor:
    """Return the bins W: 0 in the middle, geometric outwards, a far outlier at either end (docs/deimv2.md, Bin values).

    Args:
        reg_max: n, an even number >= 4.
        up: one number, any shape and dtype. reg_scale: likewise (official files store it as int64).

    Returns:
        float32 [n + 1], ascending, on the device of `up`. Nothing waits for the device.
    """
    if reg_max < 4 or reg_max % 2:
        raise ValueError(f"reg_max must be even and at least 4, found {reg_max}")
    bound = up.float().abs().reshape(1) * reg_scale.float().abs().reshape(1)
    base = (bound + 1) ** (2 / (reg_max - 2))
    positive = base ** torch.arange(1, reg_max // 2, device=bound.device) - 1
    return torch.cat([-2 * bound, -positive.flip(0), torch.zeros_like(bound), positive, 2 * bound])


def distance_to_box(ref_cxcywh: Tensor, distances: Tensor, reg_scale: Tensor) -> Tensor:
    """Move the sides of the reference boxes outwards ("decode", docs/deimv2.md, Layer loop).

    Args:
        ref_cxcywh: float [..., 4]. distances: float [..., 4], left, top, right, bottom.
        reg_scale: one number, shape () or (1,).

    Returns:
        float [..., 4] cxcywh, not clamped.
    """
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
    """Express boxes by the two bins next to each side's distance (targets of the FGL loss, docs/deimv2.md, Formulas).

    Args:
        ref_cxcywh: float [..., 4]. boxes_xyxy: float [..., 4]. bin_values: [n + 1] of `weighting_function`.

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
