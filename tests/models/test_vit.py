"""ViT-Tiny and DINOv3 structure, against formulas written out plainly and golden numbers of the original."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.config import ViTShape
from models.vit import RotaryEmbedding, VisionTransformer
from tests.support.models import images
from tests.support.parity import golden_tensors, relative_error

TINY = ViTShape(width=32, heads=2, depth=4, mlp_ratio=2.0)


def tiny(dinov3: bool = False, swiglu: bool = False, blocks: tuple[int, ...] = (1, 2, 3)) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(TINY, blocks, dinov3=dinov3, swiglu=swiglu)


def test_rope_equals_the_original() -> None:
    golden = golden_tensors("units")
    angles = RotaryEmbedding(64)(6, 4)
    for name, values in (("cos", angles.cos()), ("sin", angles.sin())):
        assert relative_error(values.repeat(1, 2), golden[f"rope.h6_w4_{name}"]) < 1e-6


def test_key_bias_is_masked_in_dinov3() -> None:
    vit = tiny(dinov3=True).eval()
    before = vit(images())
    with torch.no_grad():
        vit.blocks[0].attn.qkv.bias[32:64] = 3.0
    assert all(torch.equal(a, b) for a, b in zip(before, vit(images()), strict=True))
    mask = vit.blocks[0].attn.qkv.bias_mask
    assert mask.isfinite().all() and mask.view(3, 32).mean(1).tolist() == [1, 0, 1]


def test_dinov3_rescales_coordinates_in_training_once_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vit = tiny(dinov3=True)
    drawn: list[Tensor | None] = []
    angles = RotaryEmbedding.forward

    def record(self: RotaryEmbedding, height: int, width: int, rescale: Tensor | None = None) -> Tensor:
        drawn.append(rescale)
        return angles(self, height, width, rescale)

    monkeypatch.setattr(RotaryEmbedding, "forward", record)
    torch.manual_seed(5)
    vit(images())
    torch.manual_seed(5)
    expected = [torch.empty(1).uniform_(-math.log(2), math.log(2)).exp() for _ in range(TINY.depth)]
    assert torch.equal(torch.cat(drawn), torch.cat(expected))  # type: ignore[arg-type]
    assert torch.cat(expected).min() >= 0.5 and torch.cat(expected).max() <= 2

    drawn.clear()
    vit.eval()(images())
    tiny()(images())
    assert drawn == [None, None], "neither in evaluation nor in a plain ViT"


@pytest.mark.parametrize("dinov3", [False, True])
def test_initial_weights(dinov3: bool) -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(ViTShape(192, 3, 2, 4.0), (1,), dinov3=dinov3)
    for linear in (vit.blocks[0].attn.qkv, vit.blocks[1].mlp.fc1):
        assert abs(float(linear.weight.detach().std()) - 0.02) < 5e-4 and linear.bias.abs().max() == 0
    assert abs(float(vit.cls_token.detach().std()) - 0.02) < 5e-3
    assert vit.patch_embed.proj.weight.abs().max() <= 1 / math.sqrt(3 * 16 * 16)
    if dinov3:
        assert vit.mask_token.abs().max() == 0 and abs(float(vit.storage_tokens.detach().std()) - 0.02) < 5e-3
        assert set(vit.blocks[0].ls1.gamma.tolist()) == {torch.tensor(1e-5).item()}
