"""ViT-Tiny and DINOv3 structure, against formulas written out plainly and golden numbers of the original."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ViTShape
from models.vit import Attention, RotaryEmbedding, VisionTransformer, make_rotation, rotate
from tests.support.models import images, shake
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


def test_rope_periods_as_the_spec_prints_them() -> None:
    periods = RotaryEmbedding(64).periods
    torch.testing.assert_close(periods[[0, 1, 2, 15]], torch.tensor([1, 1.3335, 1.7783, 74.989]), rtol=1e-4, atol=0)


def test_rotation_turns_pairs_of_channels_and_leaves_prefix_tokens_alone() -> None:
    angles = RotaryEmbedding(8)(2, 3)
    x = torch.randn(2, 1 + 6, 1, 3, 8)
    rotated = rotate(x, make_rotation(angles, num_prefix=1))
    assert torch.equal(rotated[:, 0], x[:, 0])
    as_complex = torch.complex(x[..., :4], x[..., 4:])[:, 1:] * torch.exp(1j * angles)[:, None, None]
    torch.testing.assert_close(rotated[:, 1:], torch.cat([as_complex.real, as_complex.imag], -1))
    assert rotate(x.bfloat16(), make_rotation(angles, 1)).dtype == torch.bfloat16


def test_attention_is_the_textbook_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(TINY, dinov3=False)
    rotation = make_rotation(RotaryEmbedding(16)(2, 2), num_prefix=1)
    x = torch.randn(2, 5, 32)
    q, k, v = attention.qkv(x).reshape(2, 5, 3, 2, 16).permute(2, 0, 3, 1, 4)

    def turn(y: Tensor) -> Tensor:
        return rotate(y.transpose(1, 2)[:, :, None], rotation)[:, :, 0].transpose(1, 2)

    weights = (turn(q) @ turn(k).transpose(-1, -2) / math.sqrt(16)).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 32))
    torch.testing.assert_close(attention(x, rotation), expected)


def test_patch_embedding_is_the_convolution() -> None:
    embed = tiny().patch_embed
    x = images(2, 32, 64)
    torch.testing.assert_close(embed(x), embed.proj(x).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dinov3", [False, True])
def test_maps_hold_patch_tokens_row_by_row(dinov3: bool) -> None:
    vit = tiny(dinov3).eval()
    seen: list[Tensor] = []
    vit.blocks[2].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    maps = vit(images(2, 32, 64))
    assert [tuple(x.shape) for x in maps] == [(2, 32, 2, 4)] * 3
    tokens = vit.norm(seen[0]) if dinov3 else seen[0]  # a final norm in DINOv3 only
    assert torch.equal(maps[1][:, :, 1, 2], tokens[:, (5 if dinov3 else 1) + 1 * 4 + 2])


def test_blocks_follow_the_spec() -> None:
    block = tiny().blocks[0]
    rotation = make_rotation(RotaryEmbedding(16)(2, 2), 1)
    x = torch.randn(1, 5, 32)
    y = x + block.attn(F.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias, 1e-6), rotation)
    hidden = F.gelu(block.mlp.fc1(F.layer_norm(y, (32,), block.norm2.weight, block.norm2.bias, 1e-6)))
    torch.testing.assert_close(block(x, rotation), y + block.mlp.fc2(hidden))


def test_dinov3_blocks_follow_the_spec() -> None:
    vit = tiny(dinov3=True, swiglu=True)
    shake(vit)
    block = vit.blocks[0]
    rotation = make_rotation(RotaryEmbedding(16)(2, 2), 5)
    x = torch.randn(1, 9, 32)
    attended = block.attn(F.layer_norm(x, (32,), block.norm1.weight, block.norm1.bias, 1e-5), rotation)
    y = x + block.ls1.gamma * attended
    normed = F.layer_norm(y, (32,), block.norm2.weight, block.norm2.bias, 1e-5)
    hidden = F.silu(block.mlp.w1(normed)) * block.mlp.w2(normed)
    torch.testing.assert_close(block(x, rotation), y + block.ls2.gamma * block.mlp.w3(hidden))


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
    assert drawn == [None]


def test_tiny_does_not_rescale() -> None:
    vit = tiny()
    assert all(torch.equal(a, b) for a, b in zip(vit(images()), vit.eval()(images()), strict=True))


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


@pytest.mark.parametrize("dinov3", [False, True])
def test_every_parameter_that_is_trained_gets_a_gradient(dinov3: bool) -> None:
    vit = tiny(dinov3, blocks=(0, 1, 2))
    sum(x.square().sum() for x in vit(images())).backward()
    idle = {name for name, parameter in vit.named_parameters() if parameter.grad is None}
    # Block 3 comes after the last returned one: in the weight file, but neither run nor trained.
    assert idle == {name for name, _ in vit.named_parameters() if name.startswith("blocks.3.")}
    assert idle == {name for name, parameter in vit.named_parameters() if not parameter.requires_grad}
    if dinov3:
        assert vit.mask_token.grad.abs().max() == 0
