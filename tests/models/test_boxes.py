"""Box maths, against plain tables and at the edges."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou, generalized_box_iou

from models.boxes import (
    cxcywh_to_xyxy,
    cxcywh_to_xyxy_clamped,
    inverse_sigmoid,
    paired_iou,
    paired_iou_giou,
    xyxy_to_cxcywh,
)


@settings(deadline=None)
@given(n=st.integers(0, 20), seed=st.integers(0, 10_000))
def test_paired_overlaps_are_the_diagonal_of_the_table(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (cxcywh_to_xyxy(torch.rand(n, 4, generator=generator)) for _ in range(2))
    iou, giou = box_iou(a, b), generalized_box_iou(a, b)
    torch.testing.assert_close(paired_iou(a, b), iou.diag())
    torch.testing.assert_close(paired_iou_giou(a, b)[1], giou.diag())
    torch.testing.assert_close(paired_iou_giou(a[:, None], b)[1], giou)  # broadcast


def test_boxes_without_area_overlap_by_nothing_and_pull_on_nothing() -> None:
    line, point = [0.1, 0.1, 0.1, 0.3], [0.2, 0.2, 0.2, 0.2]
    a = torch.tensor([line, point], requires_grad=True)
    b = torch.tensor([line, point])
    for overlap in (paired_iou(a, b), paired_iou_giou(a, b)[1]):
        (gradient,) = torch.autograd.grad(overlap.sum(), a)
        assert overlap.tolist() == [0, 0] and gradient.abs().max() == 0


def test_there_and_back() -> None:
    boxes = torch.rand(10, 4)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)
    negative = cxcywh_to_xyxy_clamped(torch.tensor([[0.5, 0.5, -0.2, 0.2]]))
    torch.testing.assert_close(negative, torch.tensor([[0.5, 0.4, 0.5, 0.6]]), msg="counts as nothing")
    a, b = torch.full((1, 4), torch.nan), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert paired_iou(a, b).isnan().all() and paired_iou_giou(a, b)[1].isnan().all(), "NaN stays visible"


def test_inverse_sigmoid_is_finite_at_the_ends() -> None:
    x = torch.tensor([-1.0, 0.0, 0.3, 1.0, 2.0])
    logits = inverse_sigmoid(x)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits.sigmoid(), torch.tensor([1e-5, 1e-5, 0.3, 1 - 1e-5, 1 - 1e-5]))
