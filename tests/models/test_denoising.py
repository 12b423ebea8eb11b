"""Denoising queries: golden layout of the original, the draws written out, and what must hold for any draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.boxes import inverse_sigmoid
from models.denoising import DenoisingQueries, make_denoising_queries
from tests.support.models import NUM_CLASSES, targets
from tests.support.parity import golden_json, golden_tensors


def make(*counts: int, **changes: Any) -> DenoisingQueries | None:
    settings = {
        "num_classes": NUM_CLASSES,
        "num_queries": 300,
        "num_denoising": 100,
        "label_noise_ratio": 0.5,
        "box_noise_scale": 1.0,
    }
    return make_denoising_queries(targets(*counts), **{**settings, **changes})


@pytest.mark.parametrize("case", ["max3", "max7", "max120"])
def test_layout_equals_the_original(case: str) -> None:
    golden, expected = golden_tensors("denoising"), golden_json("denoising")[case]
    made = make(*expected["boxes_per_image"])
    assert made is not None
    assert made.meta["dn_num_group"] == expected["dn_num_group"]
    assert made.meta["dn_num_split"] == expected["dn_num_split"]
    assert list(made.reference_logits.shape) == expected["query_shape"]
    blocked = ~made.allowed.numpy()
    assert blocked.sum() == expected["mask_true_count"]
    assert np.array_equal(np.packbits(blocked.flatten()), golden[f"{case}.mask_bits"].numpy())
    for image, indices in enumerate(made.meta["dn_positive_idx"]):
        assert indices.dtype == torch.int64
        assert torch.equal(indices, golden[f"{case}.dn_positive_idx.{image}"].long())


def test_a_batch_without_boxes_has_none() -> None:
    assert make(0, 0) is None and make() is None
    assert make(3, num_denoising=0) is None


def test_draws_follow_the_order_of_the_spec() -> None:
    counts, groups, most = (2, 0, 3), 33, 3
    torch.manual_seed(7)
    made = make(*counts)
    assert made is not None

    torch.manual_seed(7)
    shape = (3, 2 * most * groups)
    redraw = torch.rand(shape) < 0.25
    new_labels = torch.randint(0, NUM_CLASSES, shape, dtype=torch.int32)
    signs = torch.randint(0, 2, (*shape, 4), dtype=torch.float32) * 2 - 1
    magnitudes = torch.rand(*shape, 4)
    for image, target in enumerate(targets(*counts)):
        for query in range(shape[1]):
            box_index, negative = query % most, query % (2 * most) >= most
            if box_index >= counts[image]:
                assert made.labels[image, query] == NUM_CLASSES
                continue
            label = new_labels[image, query] if redraw[image, query] else target["labels"][box_index]
            assert made.labels[image, query] == label
            expected = noised(target["boxes"][box_index], signs[image, query], magnitudes[image, query] + negative)
            torch.testing.assert_close(made.reference_logits[image, query], expected, atol=1e-4, rtol=1e-4)


def noised(box: Tensor, signs: Tensor, magnitudes: Tensor) -> Tensor:
    """One box, moved corner by corner; logits."""
    cx, cy, w, h = box.tolist()
    corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
    half = [w / 2, h / 2, w / 2, h / 2]
    moved = [c + s * m * d for c, s, m, d in zip(corners, signs.tolist(), magnitudes.tolist(), half, strict=True)]
    x1, y1, x2, y2 = (min(max(value, 0), 1) for value in moved)
    return inverse_sigmoid(torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, abs(x2 - x1), abs(y2 - y1)]))


def test_without_noise_the_queries_are_the_targets() -> None:
    made = make(2, 3, label_noise_ratio=0, box_noise_scale=0)
    assert made is not None
    for image, target in enumerate(targets(2, 3)):
        positive = made.meta["dn_positive_idx"][image]
        for queries in (positive, positive + 3):
            torch.testing.assert_close(made.reference_logits[image, queries].sigmoid(), target["boxes"].repeat(33, 1))
            assert torch.equal(made.labels[image, queries], target["labels"].repeat(33))


def test_the_configured_box_noise_counts() -> None:
    """The original always takes 1.0 (docs/deimv2.md, Known defects, 20)."""
    torch.manual_seed(0)
    small = make(3, box_noise_scale=0.1)
    assert small is not None
    truth = targets(3)[0]["boxes"].repeat(33, 1)
    distance = (small.reference_logits[0, small.meta["dn_positive_idx"][0]].sigmoid() - truth).abs()
    assert 0 < distance.max() < 0.1 * truth[:, 2:].max()
