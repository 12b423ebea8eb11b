"""Hooks hear what the kernels read, and leave nothing behind."""

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.capture import Captured, PredictedObject, all_objects, capture, choose_objects, predictions_of
from data.errors import UserError
from models.deformable_attention import split_heads
from models.detector import DEIM
from tests.support.baselines import small_baseline
from tests.support.models import tiny_model
from tests.support.text_fusion import fused_model

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=["vit_custom", "dinov3", "fused"])
def model(request: pytest.FixtureRequest) -> DEIM:
    """Every kind of ViT, with and without text; weights that do something."""
    if request.param == "fused":
        made = fused_model()
    elif request.param == "dinov3":
        made = tiny_model(DINOv3STAs__name="dinov3_vits16", DINOv3STAs__hidden_dim=32)
    else:
        made = tiny_model()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return made.eval()


@pytest.fixture(scope="module")
def captured(model: DEIM) -> Captured:
    return capture(model, IMAGES)


def heard(module: nn.Module, model: DEIM, what: str) -> Any:
    """Input or output of one module in a plain pass."""
    kept: list[Any] = []
    hook = module.register_forward_hook(lambda _module, inputs, output: kept.append((inputs, output)))
    with torch.no_grad():
        model(IMAGES)
    hook.remove()
    return kept[0][what == "output"]


def state_bytes(model: nn.Module) -> bytes:
    out = io.BytesIO()
    torch.save(model.state_dict(), out)
    return out.getvalue()


def test_the_model_is_unchanged(model: DEIM) -> None:
    with torch.no_grad():
        before = model(IMAGES)
    bytes_before = state_bytes(model)
    found = capture(model, IMAGES)
    with torch.no_grad():
        after = model(IMAGES)
    for key, value in before.items():
        assert torch.equal(value, found.outputs[key]) and torch.equal(value, after[key])
    assert state_bytes(model) == bytes_before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_are_gone_after_an_error(model: DEIM) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        capture(model, IMAGES[..., :40])
    assert not any(module._forward_hooks for module in model.modules())


def test_vit_weights_give_the_layers_own_output(model: DEIM, captured: Captured) -> None:
    """softmax(QK^T) V, projected, is what the fused kernel's layer returns."""
    blocks = model.backbone.vit.blocks
    assert len(captured.vit_layers) == model.backbone.vit.returned_blocks[-1] + 1
    for maps, block in zip(captured.vit_layers, blocks, strict=False):
        for image in range(2):
            x = heard(block.attn, model, "input")[0]
            values = block.attn.qkv(x).view(*x.shape[:2], 3, maps.num_heads, -1)[image, :, 2]
            heads = [maps.rows(image, head) @ values[:, head] for head in range(maps.num_heads)]
            ours = block.attn.proj(torch.cat(heads, dim=-1))
            torch.testing.assert_close(ours, heard(block.attn, model, "output")[image], rtol=0, atol=1e-5)


def test_query_weights_give_the_layers_own_output(model: DEIM, captured: Captured) -> None:
    for maps, layer in zip(captured.query_attention, model.decoder.decoder.layers, strict=True):
        module, x = layer.self_attn, heard(layer.self_attn, model, "input")[0]
        rows = 2 * x.shape[-1]
        values = F.linear(x, module.in_proj_weight[rows:], module.in_proj_bias[rows:]).view(
            *x.shape[:2], maps.num_heads, -1
        )
        heads = [maps.rows(0, head) @ values[0, :, head] for head in range(maps.num_heads)]
        ours = layer.self_attn.out_proj(torch.cat(heads, dim=-1))
        torch.testing.assert_close(ours, heard(layer.self_attn, model, "output")[0], rtol=0, atol=1e-5)


def test_sampling_points_give_the_layers_own_output(model: DEIM, captured: Captured) -> None:
    layer = model.decoder.decoder.layers[-1].cross_attn
    cross = captured.cross_attention[-1]
    assert torch.allclose(cross.weights.sum(-1), torch.ones(()))
    values: list[Tensor] = heard(layer, model, "input")[2]
    total = torch.zeros_like(heard(layer, model, "output"))
    batch, queries, width = total.shape
    for level, value in enumerate(values):
        chosen = cross.level_of_point == level
        grid = (2 * cross.locations[:, :, :, chosen] - 1).permute(0, 2, 3, 1, 4).flatten(0, 1)
        read = F.grid_sample(value, grid, align_corners=False)
        share = cross.weights[..., chosen].permute(0, 2, 3, 1).flatten(0, 1)[:, None]
        total += (read * share).sum(2).view(batch, width, queries).transpose(1, 2)
    assert split_heads(torch.zeros(batch, width, 2, 2), layer.num_heads).shape[1] == values[0].shape[1]
    torch.testing.assert_close(total, heard(layer, model, "output"), rtol=0, atol=1e-5)


def test_boxes_by_layer(captured: Captured) -> None:
    """A layer starts from what the one before it said; the last says the detector's box, from its distributions."""
    assert len(captured.layer_boxes) == len(captured.cross_attention) + 1
    for boxes, cross in zip(captured.layer_boxes, captured.cross_attention, strict=False):
        assert torch.equal(boxes, cross.references)
    torch.testing.assert_close(captured.layer_boxes[-1], captured.outputs["pred_boxes"], rtol=0, atol=1e-6)
    assert torch.allclose(captured.distribution.sum(-1), torch.ones(()))
    assert captured.bin_values.shape[0] == captured.distribution.shape[-1]


def test_refuses_baselines() -> None:
    with pytest.raises(UserError, match="not defined for a CNN baseline"):
        capture(small_baseline("fcos_resnet18").eval(), IMAGES)


def test_objects_come_best_first(captured: Captured) -> None:
    found = all_objects(predictions_of(captured.outputs, 6)[0])
    assert len(found) == 20 and [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert choose_objects(found, min_score=1.0) == [], "what was not detected is not drawn"
    assert [one.query for one in choose_objects(found, queries=[9, 2, 9])] == [9, 2]
    assert len(choose_objects(found, top=2, min_score=0)) == 2
    with pytest.raises(UserError, match="--query 20 31: no such query; they go from 0 to 19"):
        choose_objects(found, queries=[20, 3, 31])


def test_predictions_of_the_same_thing_are_drawn_once() -> None:
    best = PredictedObject(3, 0, 0.9, (0.1, 0.1, 0.5, 0.5))
    again = PredictedObject(7, 0, 0.8, (0.1, 0.1, 0.52, 0.5))
    other_class = PredictedObject(1, 1, 0.7, best.box_xyxy)
    elsewhere = PredictedObject(2, 0, 0.6, (0.3, 0.1, 0.7, 0.5))
    found = [best, again, other_class, elsewhere]
    assert choose_objects(found) == [best, other_class, elsewhere]
    assert choose_objects(found, top=2) == [best, other_class]
    assert choose_objects(found, queries=[3, 7]) == [best, again], "who names a query gets it"


def test_objects_of_a_baseline() -> None:
    outputs = [{"scores": torch.tensor([0.2, 0.9]), "labels": torch.tensor([1, 0]), "boxes": torch.rand(2, 4)}]
    assert [(one.query, one.label) for one in all_objects(predictions_of(outputs, 2)[0])] == [(1, 0), (0, 1)]
    nothing = [{"scores": torch.empty(0), "labels": torch.empty(0, dtype=torch.int64), "boxes": torch.empty(0, 4)}]
    assert choose_objects(all_objects(predictions_of(nothing, 2)[0])) == []
