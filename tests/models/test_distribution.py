"""Distances, bins and boxes: golden numbers of the original, and the maths itself."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.boxes import box_to_bins, distance_to_box, weighting_function

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "units_distribution.safetensors")
UP, REG_SCALE = torch.tensor([0.5]), torch.tensor([4])


@pytest.mark.parametrize("case", range(4))
def test_bin_values_equal_the_original(case: int) -> None:
    reg_max, up, reg_scale = GOLDEN[f"weighting.{case}.args"]
    values = weighting_function(int(reg_max), up, reg_scale)
    torch.testing.assert_close(values, GOLDEN[f"weighting.{case}.values"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reg_max", [0, 2, 31])
def test_bin_counts_that_cannot_be(reg_max: int) -> None:
    with pytest.raises(ValueError, match=f"reg_max must be even and at least 4, found {reg_max}"):
        weighting_function(reg_max, UP, REG_SCALE)


def test_distance_to_box_equals_the_original() -> None:
    boxes = distance_to_box(GOLDEN["distance2bbox.points"], GOLDEN["distance2bbox.distance"], REG_SCALE)
    torch.testing.assert_close(boxes, GOLDEN["distance2bbox.boxes"], rtol=1e-6, atol=1e-6)


def test_box_to_bins_equals_the_original() -> None:
    values = weighting_function(32, UP, REG_SCALE)
    points, boxes = GOLDEN["bbox2distance.points"], GOLDEN["bbox2distance.boxes_xyxy"]
    left_bin, left, right = box_to_bins(points, boxes, values, REG_SCALE)
    assert torch.equal(left_bin.flatten(), GOLDEN["bbox2distance.target"].floor().long())
    torch.testing.assert_close(left.flatten(), GOLDEN["bbox2distance.weight_left"])
    torch.testing.assert_close(right.flatten(), GOLDEN["bbox2distance.weight_right"])


def test_a_reference_without_width_gives_finite_targets() -> None:
    values = weighting_function(32, UP, REG_SCALE)
    reference = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    left_bin, left, right = box_to_bins(reference, torch.tensor([[0.1, 0.2, 0.9, 0.5]]), values, REG_SCALE)
    assert torch.isfinite(left).all() and torch.isfinite(right).all()
    assert left_bin.min() >= 0 and left_bin.max() <= 31
