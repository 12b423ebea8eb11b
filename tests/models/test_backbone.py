"""Fusion of the ViT's maps with the detail maps."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from models.backbone import DINOv3STAs, SpatialTuningAdapter
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


@pytest.mark.parametrize("name", ["vit_custom", "dinov3_vits16"])
@pytest.mark.parametrize(
    ("section", "frozen"),
    [
        ({"finetune": False}, r"dinov3"),
        ({"freeze": "all"}, r""),
        ({"freeze": 2}, r"dinov3\.(_model\.)?(\w+_tokens?$|patch_embed|blocks\.[01]\.)"),
    ],
)
def test_frozen_parts_stay_in_evaluation_mode_and_get_no_gradient(
    name: str, section: dict[str, Any], frozen: str
) -> None:
    backbone = tiny(name=name, interaction_indexes=[2], hidden_dim=32, **section)
    backbone.vit.gradient_checkpointing = True
    backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    found = sum(x.square().mean() for x in backbone(images()))
    if found.requires_grad:
        found.backward()
    for key, parameter in backbone.named_parameters():
        unused = re.search(r"blocks\.([3-9]|1\d)\.", key) is not None
        assert parameter.requires_grad is not (unused or re.match(frozen, key) is not None), key
        assert (parameter.grad is None) == (not parameter.requires_grad), key
    for key, value in backbone.state_dict().items():
        if "running" in key:
            assert torch.equal(value, before[key]) == (re.match(frozen, key) is not None), key


def test_frozen_blocks_see_the_same_positions_in_training() -> None:
    """Only blocks that learn have their coordinates rescaled at random."""
    backbone = tiny(name="dinov3_vits16", interaction_indexes=[0, 1, 2], hidden_dim=32, freeze=2)
    torch.nn.init.ones_(backbone.vit.blocks[2].ls1.gamma)
    maps = [backbone.train(mode).vit(images()) for mode in (True, False)]
    assert [torch.equal(*pair) for pair in zip(*maps, strict=True)] == [True, True, False]


def test_key_levels_of_the_two_families() -> None:
    assert "dinov3._model.cls_token" in tiny().state_dict()
    large = tiny(name="dinov3_vits16plus", hidden_dim=32)
    assert "dinov3.cls_token" in large.state_dict() and "dinov3.blocks.0.mlp.w1.weight" in large.state_dict()
    assert large.vit is large.dinov3


def test_the_detail_branch_has_default_initial_weights() -> None:
    torch.manual_seed(0)
    weight = SpatialTuningAdapter(16).conv4[1].weight
    bound = 1 / (64 * 9) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
