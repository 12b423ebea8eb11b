"""The model's rules: what cannot be built is refused, with the way out."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from data.errors import UserError
from engine.config import config_to_dict, load_config
from models.config import ModelConfig, memory_tokens
from tests.support.configs import changed, official, small_config

RULES: list[tuple[dict[str, Any], str]] = [
    ({"DINOv3STAs__num_heads": 5}, "DINOv3STAs.num_heads: 5 does not divide embed_dim 96"),
    ({"DINOv3STAs__freeze": 7}, "DINOv3STAs.freeze: the ViT has 6 blocks, found 7; give 1 to 6, none or all"),
    ({"DINOv3STAs__freeze": 2, "DINOv3STAs__finetune": False}, "DINOv3STAs.freeze: 2 contradicts finetune: False"),
    (
        {"DINOv3STAs__freeze": "all", "DINOv3STAs__backbone_lr_factor": 0.1},
        "backbone_lr_factor: has no effect on a fro",
    ),
    ({"DINOv3STAs__num_heads": 16}, "heads of 6 channels; rotary embedding needs a multiple of 4"),
    ({"DINOv3STAs__mlp_ratio": 1.03}, "DINOv3STAs.mlp_ratio: embed_dim 96 x 1.03 is no whole number"),
    ({"DINOv3STAs__interaction_indexes": [1, 3]}, "found 2 blocks, expected three (or one"),
    ({"DINOv3STAs__interaction_indexes": [1, 3, 6]}, "[1, 3, 6] must rise and stay below the ViT's 6 blocks (0 to 5)"),
    ({"DINOv3STAs__interaction_indexes": [5, 3, 1]}, "[5, 3, 1] must rise"),
    ({"DINOv3STAs__hidden_dim": 64}, "HybridEncoder.in_channels: [96, 96, 96] must be the backbone's output width [64"),
    ({"HybridEncoder__hidden_dim": 64}, "DEIMTransformer.feat_channels: [96, 96, 96] must be the encoder's width [64"),
    ({"HybridEncoder__nhead": 5}, "HybridEncoder.nhead: 5 does not divide hidden_dim 96"),
    ({"DEIMTransformer__nhead": 5}, "DEIMTransformer.nhead: 5 does not divide hidden_dim 96"),
    ({"HybridEncoder__feat_strides": [4, 8, 16]}, "HybridEncoder.feat_strides: [4, 8, 16] must be [8, 16, 32]"),
    ({"DEIMTransformer__feat_strides": [4, 8, 16]}, "DEIMTransformer.feat_strides: [4, 8, 16] must be"),
    ({"HybridEncoder__depth_mult": 0.1}, "leave no channels or no blocks"),
    ({"HybridEncoder__expansion": 0.01}, "leave no channels or no blocks"),
    ({"HybridEncoder__use_encoder_idx": [2, 2]}, "HybridEncoder.use_encoder_idx: [2, 2] names a map twice"),
    ({"eval_spatial_size": [150, 170]}, "eval_spatial_size: [150, 170] must be multiples of 32, such as [160, 160]"),
    ({"DEIMTransformer__num_queries": 600}, "600 queries cannot be chosen from the 525 tokens of a 160 x 160 input"),
    ({"DEIMTransformer__eval_idx": 3}, "DEIMTransformer.eval_idx: 3 is no layer of num_layers 3"),
    ({"DEIMTransformer__reg_scale": -1}, "DEIMTransformer.reg_scale: -1 must be above 0"),
    ({"DEIMCriterion__reg_max": 16}, "DEIMCriterion.reg_max: 16 must equal DEIMTransformer.reg_max 32"),
    ({"DEIMCriterion__losses": ["mal", "boxes"]}, "DEIMCriterion.losses: ['mal', 'boxes'] must be [mal, boxes, local]"),
    ({"DEIMCriterion__weight_dict": {"loss_mal": 1}}, "DEIMCriterion.weight_dict: missing loss_bbox, loss_ddf"),
    ({"DEIMTransformer__ordered_last": True, "DEIMTransformer__num_layers": 1}, "ordered_last: needs num_layers of at"),
    ({"DEIMTransformer__ordered_last": True, "DEIMTransformer__eval_idx": 1}, "ordered_last: needs num_layers of at"),
    (
        {"DEIMCriterion__matcher__repeat_targets": 4, "DEIMCriterion__use_uni_set": False},
        "DEIMCriterion.matcher.repeat_targets: above 1 needs use_uni_set: True",
    ),
    ({"DEIMCriterion__matcher__repeat_in_last": True}, "repeat_in_last: has no effect without repeat_targets above 1"),
    ({"DEIMCriterion__matcher__weight_dict": {}}, "matcher.weight_dict: missing cost_bbox, cost_class, cost_giou"),
]


@pytest.mark.parametrize(("change", "message"), RULES)
def test_rules(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        changed(small_config(), **change)
    assert message in str(error.value)


def test_an_encoder_width_without_position_embedding() -> None:
    with pytest.raises(UserError, match="HybridEncoder.hidden_dim: 98 must be a multiple of 4"):
        changed(small_config(), HybridEncoder__hidden_dim=98, HybridEncoder__nhead=2)


@pytest.mark.parametrize(
    ("size", "shape", "channels"),
    [
        ("s", (192, 3, 12, 4.0), 192),
        ("m", (256, 4, 12, 4.0), 256),
        ("l", (384, 6, 12, 4.0), 224),
        ("x", (384, 6, 12, 4.0), 256),
    ],
)
def test_vit_shapes(size: str, shape: tuple[object, ...], channels: int) -> None:
    backbone = load_config(official(size)).DINOv3STAs
    assert backbone.vit == shape and backbone.out_channels == channels


def test_custom_vit() -> None:
    assert small_config().DINOv3STAs.vit == (96, 3, 6, 4.0)
    ignored = changed(load_config(official("s")), DINOv3STAs__depth=99)
    assert ignored.DINOv3STAs.vit.depth == 12


def test_one_block_may_serve_all_three_maps() -> None:
    changed(small_config(), DINOv3STAs__interaction_indexes=[5])


def test_decoder_may_have_its_own_width() -> None:
    changed(small_config(), DEIMTransformer__hidden_dim=64)


def test_memory_tokens() -> None:
    assert (memory_tokens(640, 640), memory_tokens(320, 320), memory_tokens(320, 480)) == (8400, 2100, 3150)


def test_the_section_stands_alone() -> None:
    values = config_to_dict(small_config())
    model = ModelConfig.model_validate({key: values[key] for key in ModelConfig.model_fields})
    assert model.DINOv3STAs == small_config().DINOv3STAs and model.num_top_queries == 300
    with pytest.raises(ValidationError):
        ModelConfig.model_validate({**model.model_dump(), "eval_spatial_size": (100, 100)})
