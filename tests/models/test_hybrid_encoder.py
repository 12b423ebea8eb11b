"""Hybrid encoder: golden maps of the original, and its wiring written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.hybrid_encoder import HybridEncoder, sine_position_embedding
from tests.support.models import tiny_config
from tests.support.parity import golden_model, golden_tensors, network_input, relative_error


def tiny(**sections: Any) -> HybridEncoder:
    torch.manual_seed(0)
    config = tiny_config(**{f"HybridEncoder__{key}": value for key, value in sections.items()})
    return HybridEncoder(config.HybridEncoder)


def maps(height: int = 2, width: int = 3, channels: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, height * s, width * s, generator=generator) for s in (4, 2, 1)]


def test_equals_the_original() -> None:
    golden = golden_tensors("eval_320")
    model = golden_model().eval()
    aifi: list[Tensor] = []
    model.encoder.encoder[0].register_forward_hook(lambda _module, _inputs, output: aifi.append(output))
    with torch.no_grad():
        outputs = model.encoder(model.backbone(network_input(golden["image"])))
    for index, found in enumerate(outputs):
        expected = golden[f"encoder.{index}"]
        assert relative_error(found[:, : expected.shape[1]], expected) < 1e-5
        assert relative_error(found.mean((2, 3)), golden[f"encoder.{index}.mean"]) < 1e-5
    step = 192 // golden["aifi"].shape[2]
    assert relative_error(aifi[0][:1, :, ::step], golden["aifi"]) < 1e-5


@pytest.mark.parametrize(("case", "size"), [("square_5x5", (5, 5)), ("h4_w6_corrected", (4, 6))])
def test_position_embedding_equals_the_original(case: str, size: tuple[int, int]) -> None:
    golden = golden_tensors("units")[f"position_embedding.{case}"]
    torch.testing.assert_close(sine_position_embedding(*size, 32, 10000.0), golden, atol=1e-6, rtol=1e-6)


def test_initial_attention_weights() -> None:
    attention = tiny().encoder[0].layers[0].self_attn
    bound = (6 / (4 * 32)) ** 0.5  # Xavier for the packed 3D x D matrix
    assert 0.95 * bound < attention.in_proj_weight.abs().max() <= bound
    assert attention.in_proj_bias.abs().max() == 0 and attention.out_proj.bias.abs().max() == 0


def test_equal_blocks_start_with_equal_weights() -> None:
    encoder = tiny()
    for blocks in (encoder.fpn_blocks, encoder.pan_blocks, encoder.lateral_convs, encoder.downsample_convs):
        for a, b in zip(blocks[0].parameters(), blocks[1].parameters(), strict=True):
            assert torch.equal(a, b) and a is not b


def test_other_input_widths_get_a_projection() -> None:
    encoder = HybridEncoder(
        tiny_config().HybridEncoder.model_copy(update={"in_channels": (24, 32, 24)}),
    ).eval()
    keys = [key for key in encoder.state_dict() if key.startswith("input_proj")]
    assert {"input_proj.0.conv.weight", "input_proj.2.norm.running_var"} <= set(keys)
    assert not any(key.startswith("input_proj.1") for key in keys)
    x = [torch.randn(1, c, s, s) for c, s in ((24, 8), (32, 4), (24, 2))]
    assert [y.shape[1] for y in encoder(x)] == [32, 32, 32]


def test_position_cache_follows_the_size_and_survives_inference_mode() -> None:
    encoder = tiny()
    with torch.inference_mode():
        encoder.eval()(maps(2, 3))
    encoder.train()
    for size in ((2, 3), (3, 2), (2, 2)):
        sum(x.square().mean() for x in encoder(maps(*size))).backward()
        expected = sine_position_embedding(*size, 32, 10000.0)
        assert torch.equal(encoder._position(*size, torch.device("cpu")), expected)
    assert not any("position" in key for key in encoder.state_dict())
