"""Parts shared by encoder and decoder, against torch's own."""

from __future__ import annotations

import torch
from torch import nn

from models.layers import Mlp, SelfAttention
from tests.support.models import shake


def test_self_attention_equals_torchs_with_a_mask() -> None:
    torch.manual_seed(0)
    ours, reference = SelfAttention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    shake(ours)
    reference.load_state_dict(ours.state_dict())
    x, position = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    allowed = torch.rand(5, 5) < 0.5
    allowed.fill_diagonal_(True)
    expected = reference(x + position, x + position, x, attn_mask=~allowed)[0]
    torch.testing.assert_close(ours(x, position, allowed), expected)


def test_mlp_has_silu_between_its_layers() -> None:
    mlp = Mlp(3, 5, 2)
    x = torch.randn(4, 3)
    torch.testing.assert_close(mlp(x), mlp.layers[1](nn.functional.silu(mlp.layers[0](x))))
