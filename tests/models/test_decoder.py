"""Query decoder: golden numbers of its parts, initial weights, selection, outputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.boxes import weighting_function
from models.decoder import (
    DEIMTransformer,
    Gateway,
    LocationQuality,
    PackedSwigluFfn,
    RmsNorm,
    SelectedQueries,
    make_anchors,
)
from tests.support.models import NUM_CLASSES, shake, targets, tensors_of, tiny_config
from tests.support.parity import golden_tensors, relative_error


def tiny(**sections: Any) -> DEIMTransformer:
    torch.manual_seed(0)
    config = tiny_config(**{f"DEIMTransformer__{key}": value for key, value in sections.items()})
    return DEIMTransformer(config.DEIMTransformer, NUM_CLASSES, config.eval_spatial_size)


def maps(height: int = 64, width: int = 64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 32, height // s, width // s, generator=generator) for s in (8, 16, 32)]


def selection(decoder: DEIMTransformer, x: list[Tensor]) -> SelectedQueries:
    memory = torch.cat([y.flatten(2).transpose(1, 2) for y in x], dim=1)
    shapes = tuple((y.shape[2], y.shape[3]) for y in x)
    return decoder.select_queries(memory, decoder._anchors_for(shapes, memory.device))


def unit(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Fill `module` with the golden parameters of this unit; its golden inputs and outputs."""
    golden = {k.removeprefix(f"{name}."): v for k, v in golden_tensors("units").items() if k.startswith(f"{name}.")}
    module.load_state_dict({k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")})
    return golden


def test_parts_equal_the_original() -> None:
    with torch.no_grad():
        norm, gateway, ffn = RmsNorm(24), Gateway(24), PackedSwigluFfn(24, 16)
        golden = unit(norm, "rmsnorm")
        assert relative_error(norm(golden["input"]), golden["output"]) < 1e-6
        golden = unit(ffn, "swiglu")
        assert relative_error(ffn(golden["input"]), golden["output"]) < 1e-6
        golden = unit(gateway, "gateway")
        assert relative_error(gateway(golden["x1"], golden["x2"]), golden["output"]) < 1e-6


def test_location_quality_and_integral_equal_the_original() -> None:
    quality = LocationQuality()
    golden = unit(quality, "lqe")
    probabilities = golden["corners"].view(2, 10, 4, 33).softmax(-1)
    assert relative_error(quality(golden["scores"], probabilities), golden["output"]) < 1e-6
    bins = weighting_function(32, torch.tensor([0.5]), torch.tensor([4]))
    integral = (probabilities * bins).sum(-1)
    assert relative_error(integral, golden_tensors("units")["integral.output"]) < 1e-5


def test_rms_norm_works_in_float32() -> None:
    big = torch.full((1, 4), 300.0, dtype=torch.float16)  # the square does not fit into float16
    assert torch.equal(RmsNorm(4)(big), torch.ones(1, 4))


def shapes_of(height: int, width: int) -> tuple[tuple[int, int], ...]:
    return tuple((height // s, width // s) for s in (8, 16, 32))


def test_anchors_equal_the_original() -> None:
    golden = golden_tensors("units")
    anchors = make_anchors(shapes_of(96, 128), eps=0.01)
    assert torch.equal(anchors.valid, golden["anchors.h96_w128_valid"])
    torch.testing.assert_close(anchors.logits, golden["anchors.h96_w128"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("side", "invalid"), [(640, 316), (320, 0)])
def test_border_anchors_are_not_valid(side: int, invalid: int) -> None:
    anchors = make_anchors(shapes_of(side, side), eps=0.01)
    assert int((~anchors.valid).sum()) == invalid
    assert torch.equal(anchors.logits.isinf().all(-1, keepdim=True), ~anchors.valid)


def test_stored_anchors_count_in_evaluation_at_their_size_only() -> None:
    decoder = tiny()
    shake(decoder)
    outputs = {}
    for shifted in (False, True):
        if shifted:
            decoder.anchors.add_(0.5)
        for training, size in ((False, (64, 64)), (False, (64, 96)), (True, (64, 64))):
            with torch.no_grad():
                outputs[shifted, training, size] = decoder.train(training)(maps(*size))["pred_boxes"]
    assert not torch.equal(outputs[False, False, (64, 64)], outputs[True, False, (64, 64)])
    assert torch.equal(outputs[False, False, (64, 96)], outputs[True, False, (64, 96)])
    assert torch.equal(outputs[False, True, (64, 64)], outputs[True, True, (64, 64)])


def test_tokens_without_a_valid_anchor_may_be_chosen_and_give_the_whole_image() -> None:
    decoder = tiny(eps=0.3).eval()  # most anchors are not valid
    shake(decoder)
    chosen = selection(decoder, maps())
    valid = make_anchors(shapes_of(64, 64), 0.3).valid[0, :, 0][chosen.indices]
    assert not valid.all()
    assert chosen.content[~valid].abs().max() == 0
    assert (chosen.reference_logits[~valid].sigmoid() == 1).all()
    anchors = make_anchors(shapes_of(64, 64), 0.3)
    memory = torch.cat([x.flatten(2).transpose(1, 2) for x in maps()], dim=1)
    loud = decoder.select_queries(memory.where(anchors.valid, 100 * memory), anchors)
    assert loud.indices.equal(chosen.indices), "what the encoder says there does not count"
    assert all(x.isfinite().all() for x in tensors_of(decoder(maps())))


def test_no_more_queries_than_tokens() -> None:
    outputs = tiny().eval()(maps(32, 32))  # 16 + 4 + 1 tokens, 20 queries
    assert outputs["pred_logits"].shape == (2, 20, NUM_CLASSES)
    decoder = tiny()
    decoder._config = decoder._config.model_copy(update={"num_queries": 300})
    outputs = decoder(maps(32, 32), targets(1, 1))
    assert outputs["pred_logits"].shape == (2, 21, NUM_CLASSES) and outputs["dn_meta"]["dn_num_split"][1] == 21


def test_denoising_queries_do_not_change_the_others() -> None:
    decoder = tiny()
    shake(decoder)
    alone, accompanied = decoder(maps(), None), decoder(maps(), targets(3, 1))
    for key in ("pred_logits", "pred_boxes", "pred_corners", "ref_points"):
        torch.testing.assert_close(accompanied[key], alone[key], atol=1e-5, rtol=1e-4)


def test_another_layer_may_count_in_evaluation() -> None:
    decoder = tiny(eval_idx=0)
    shake(decoder)
    training, evaluation = decoder(maps(), None), decoder.eval()(maps())
    torch.testing.assert_close(evaluation["pred_logits"], training["aux_outputs"][0]["pred_logits"])
    torch.testing.assert_close(evaluation["pred_boxes"], training["aux_outputs"][0]["pred_boxes"])


def test_initial_weights() -> None:
    decoder = tiny()
    heads = [decoder.enc_score_head, *decoder.dec_score_head]
    assert all(torch.allclose(head.bias, torch.tensor(-math.log(99))) for head in heads)
    for mlp in (decoder.enc_bbox_head, decoder.pre_bbox_head, *decoder.dec_bbox_head):
        assert mlp.layers[-1].weight.abs().max() == mlp.layers[-1].bias.abs().max() == 0
        assert mlp.layers[0].weight.abs().max() > 0
    for quality in decoder.decoder.lqe_layers:
        assert quality.reg_conf.layers[1].weight.abs().max() == quality.reg_conf.layers[1].bias.abs().max() == 0
    for linear in decoder.query_pos_head.layers:
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound
    assert decoder.denoising_class_embed.weight.shape == (NUM_CLASSES + 1, 32)
    assert decoder.denoising_class_embed.weight[-1].abs().max() == 0
    layer = decoder.decoder.layers[0]
    assert layer.gateway.gate.weight.abs().max() == layer.gateway.gate.bias.abs().max() == 0
    for linear in (layer.swish_ffn.w12, layer.swish_ffn.w3):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert 0.9 * bound < linear.weight.abs().max() <= bound and linear.bias.abs().max() == 0
    assert all((norm.scale == 1).all() for norm in (layer.norm1, layer.norm3, layer.gateway.norm))


def test_layers_and_heads_start_as_copies() -> None:
    decoder = tiny()
    for modules in (decoder.decoder.layers, decoder.dec_score_head, decoder.dec_bbox_head):
        for other in modules[1:]:
            for a, b in zip(modules[0].parameters(), other.parameters(), strict=True):
                assert torch.equal(a, b) and a is not b
    first, second = decoder.decoder.lqe_layers[:2]
    assert not torch.equal(first.reg_conf.layers[0].weight, second.reg_conf.layers[0].weight)
    outputs = decoder(maps(), targets(1, 1))
    for layer in (*outputs["aux_outputs"], *outputs["dn_outputs"]):  # hence no DDF loss in the very first step
        assert torch.equal(layer["pred_corners"], layer["teacher_corners"])


def test_scalars_are_shared_frozen_and_typed() -> None:
    decoder = tiny()
    state = decoder.state_dict()
    assert state["reg_scale"].dtype == torch.int64 and state["reg_scale"].tolist() == [4]
    assert state["up"].dtype == torch.float32 and state["up"].tolist() == [0.5]
    assert decoder.decoder.up is decoder.up and decoder.decoder.reg_scale is decoder.reg_scale
    assert {name for name, p in decoder.named_parameters() if not p.requires_grad} == {"up", "reg_scale"}
    assert tiny(reg_scale=3.5).reg_scale.tolist() == [3.5]


def test_a_width_of_its_own() -> None:
    decoder = tiny(hidden_dim=16)
    assert decoder.input_proj[0].conv.weight.shape == (16, 32, 1, 1)
    bound = (6 / 48) ** 0.5
    assert 0.9 * bound < decoder.input_proj[1].conv.weight.abs().max() <= bound
    assert decoder(maps(), targets(1, 1))["pred_logits"].shape == (2, 20, NUM_CLASSES)
