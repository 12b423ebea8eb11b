"""Taking class scores apart."""

from __future__ import annotations

import pytest
import torch

from models.text_fusion import text_contributions
from tests.support.models import NUM_CLASSES, images, shake, tiny_model
from tests.support.text_fusion import fused_model


@pytest.mark.parametrize("mode", ["cosine", "cross_attention", "learned"])
def test_the_parts_make_the_scores_up_to_the_location_quality(mode: str) -> None:
    model = fused_model(mode=mode)
    shake(model)
    found = text_contributions(model.eval(), images())
    assert found.visual.shape == found.text.shape == (3, 2, 20, NUM_CLASSES)
    assert (found.text.abs().amax(dim=(1, 2, 3)) > 0).all()
    quality = found.outputs["pred_logits"] - found.visual[-1] - found.text[-1]
    torch.testing.assert_close(quality, quality[..., :1].expand_as(quality), atol=1e-4, rtol=1e-4)


def test_a_closed_gate_and_a_detector_without_text_say_nothing() -> None:
    for model in (fused_model().eval(), tiny_model().eval()):
        assert not text_contributions(model, images()).text.any()


def test_the_model_is_left_as_it_was() -> None:
    model = fused_model().eval()
    expected = model(images())["pred_logits"]
    found = text_contributions(model, images())
    assert torch.equal(found.outputs["pred_logits"], expected)
    assert not any(layer._forward_hooks for layer in model.decoder.decoder.layers)
    with pytest.raises(ValueError, match="evaluation mode"):
        text_contributions(model.train(), images())
