"""Fusion of the ViT's maps with the detail maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.backbone import DINOv3STAs
from tests.support.models import images, tiny_config
from tests.support.parity import golden_model, golden_tensors, network_input, relative_error


def tiny(**sections: Any) -> DINOv3STAs:
    torch.manual_seed(0)
    return DINOv3STAs(tiny_config(**{f"DINOv3STAs__{key}": value for key, value in sections.items()}).DINOv3STAs)


def test_equals_the_original() -> None:
    golden = golden_tensors("eval_320")
    model = golden_model().eval()
    with torch.no_grad():
        maps = model.backbone(network_input(golden["image"]))
    for index, found in enumerate(maps):
        expected = golden[f"backbone.{index}"]
        assert relative_error(found[:, : expected.shape[1]], expected) < 1e-5
        assert relative_error(found.mean((2, 3)), golden[f"backbone.{index}.mean"]) < 1e-5
        std = found.flatten(2).std(-1, unbiased=False)
        assert relative_error(std, golden[f"backbone.{index}.std"]) < 1e-5


def test_one_block_serves_all_strides() -> None:
    backbone = tiny(interaction_indexes=[2]).eval()
    assert [tuple(x.shape) for x in backbone(images())] == [(2, 32, 8, 8), (2, 32, 4, 4), (2, 32, 2, 2)]


def test_without_detail_branch() -> None:
    backbone = tiny(use_sta=False)
    assert not any(key.startswith("sta") for key in backbone.state_dict())
    assert [conv.in_channels for conv in backbone.convs] == [32, 32, 32]
    assert [tuple(x.shape) for x in backbone(images())] == [(2, 32, 8, 8), (2, 32, 4, 4), (2, 32, 2, 2)]


@pytest.mark.parametrize("name", ["vit_custom", "dinov3_vits16"])
def test_a_frozen_vit_stays_in_evaluation_mode_and_gets_no_gradient(name: str) -> None:
    backbone = tiny(name=name, finetune=False, interaction_indexes=[0], hidden_dim=32)
    backbone.train()
    assert not any(module.training for module in backbone.dinov3.modules())
    assert backbone.sta.training and backbone.norms.training
    sum(x.square().mean() for x in backbone(images())).backward()
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == key.startswith("dinov3"), key
        assert parameter.requires_grad != key.startswith("dinov3"), key


def test_key_levels_of_the_two_families() -> None:
    assert "dinov3._model.cls_token" in tiny().state_dict()
    large = tiny(name="dinov3_vits16plus", hidden_dim=32)
    assert "dinov3.cls_token" in large.state_dict() and "dinov3.blocks.0.mlp.w1.weight" in large.state_dict()
    assert large.vit is large.dinov3
