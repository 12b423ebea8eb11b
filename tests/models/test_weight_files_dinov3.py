"""DINOv3 in transformers' layout: the network computes what transformers' own computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from models.config import ViTShape
from models.detector import DEIM
from models.vit import VisionTransformer
from models.weights import is_vit, load_vit, original_names
from tests.support.models import tiny_config, tiny_model

SHAPE = ViTShape(32, 2, 3, 2.0)


def transformers_model(gated: bool) -> Any:
    """Of the same shape, with weights and norms off their initial values."""
    transformers = pytest.importorskip("transformers")
    config = transformers.DINOv3ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_register_tokens=4,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )
    torch.manual_seed(0)
    model = transformers.DINOv3ViTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def model_with(swiglu: bool) -> DEIM:
    model = tiny_model()
    model.backbone.dinov3 = VisionTransformer(SHAPE, [2], dinov3=True, swiglu=swiglu)
    return model


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_same_features(gated: bool, prefix: str) -> None:
    theirs, model = transformers_model(gated), model_with(swiglu=gated)
    tensors = {
        key if key.startswith(("embeddings.", "norm.")) else prefix + key.removeprefix("model."): value
        for key, value in theirs.state_dict().items()
    }
    assert is_vit(tensors)
    load_vit(model, tiny_config(), tensors, "-t x:")
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state[:, 5:]
        (found,) = model.backbone.vit.eval()(images)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused() -> None:
    own = model_with(swiglu=False).backbone.vit.state_dict()
    tensors = {"embeddings.cls_token": torch.zeros(1, 1, 32), "embeddings.patch_embeddings.weight": torch.zeros(1)}
    tensors |= {"layer.0.attention.k_proj.weight": torch.zeros(32, 32), "layer.0.odd": torch.zeros(1)}
    renamed = original_names(tensors, own)
    assert "blocks.0.odd" in renamed and renamed["blocks.0.attn.qkv.weight"].shape == (32, 32)
    with pytest.raises(UserError, match="does not hold the weights of") as error:
        load_vit(model_with(swiglu=False), tiny_config(), tensors, f"-t {Path('x')}:")
    assert "blocks.0.attn.qkv.weight: found [32, 32], expected [96, 32]" in str(error.value)
    tensors["layer.0.attention.q_proj.weight"] = torch.zeros(5, 5)
    with pytest.raises(UserError, match=r"(?s)does not hold the weights of .*Sizes of tensors must match"):
        load_vit(model_with(swiglu=False), tiny_config(), tensors, f"-t {Path('x')}:")
