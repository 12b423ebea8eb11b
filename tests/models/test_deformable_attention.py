"""Deformable attention: golden numbers of the original, and a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.deformable_attention import DeformableAttention, split_heads
from tests.support.parity import golden_tensors, relative_error


def level_maps(memory: Tensor, shapes: list[list[int]], num_heads: int) -> list[Tensor]:
    """Memory tokens [B, L, D] -> what the module reads."""
    levels = memory.split([h * w for h, w in shapes], dim=1)
    return [
        split_heads(x.transpose(1, 2).reshape(x.shape[0], x.shape[2], h, w), num_heads)
        for x, (h, w) in zip(levels, shapes, strict=True)
    ]


def test_equals_the_original_with_gradients() -> None:
    golden = {k.removeprefix("deform."): v for k, v in golden_tensors("units").items() if k.startswith("deform.")}
    attention = DeformableAttention(32, 4, (3, 6, 3))
    parameters = {k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")}
    attention.load_state_dict({**attention.state_dict(), **parameters})
    memory, query = golden["memory"].requires_grad_(), golden["query"].requires_grad_()
    values = level_maps(memory, golden["spatial_shapes"].tolist(), 4)
    out = attention(query, golden["reference"][:, :, 0], values)
    assert relative_error(out, golden["output"]) < 1e-5
    (out * golden["cotangent"]).sum().backward()
    assert relative_error(memory.grad, golden["grad_memory"]) < 1e-5
    assert relative_error(query.grad, golden["grad_query"]) < 1e-5


def test_initial_weights_look_around() -> None:
    attention = DeformableAttention(192, 8, (3, 6, 3))
    assert attention.sampling_offsets.weight.abs().max() == 0
    assert attention.attention_weights.weight.abs().max() == attention.attention_weights.bias.abs().max() == 0
    bias = attention.sampling_offsets.bias.view(8, 12, 2)
    steps = torch.tensor([1, 2, 3, 1, 2, 3, 4, 5, 6, 1, 2, 3.0])
    torch.testing.assert_close(bias.abs().amax(-1), steps.expand(8, 12))
    torch.testing.assert_close(bias[0, :, 0], steps)  # head 0 looks to the right
    torch.testing.assert_close(bias[1, 0], torch.tensor([1.0, 1.0]))  # head 1 to the lower right
    torch.testing.assert_close(bias[2, 0], torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
    scale = attention.num_points_scale
    torch.testing.assert_close(scale, torch.tensor([1 / 3] * 3 + [1 / 6] * 6 + [1 / 3] * 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_in_float32(dtype: torch.dtype) -> None:
    attention = DeformableAttention(8, 2, (1, 2))
    values = [split_heads(torch.randn(1, 8, s, s).to(dtype), 2) for s in (4, 2)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = attention(torch.randn(1, 3, 8), torch.rand(1, 3, 4), values)
    assert out.dtype == torch.float32 and all(value.dtype == torch.float32 for value in values)
