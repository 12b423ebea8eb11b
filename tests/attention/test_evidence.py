"""Class evidence: the right gradient, of the right score, and a model that is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.evidence import (
    EVIDENCE_METHODS,
    ODAM_EDGES,
    EvidenceLayer,
    EvidenceMethod,
    evidence_map,
    grad_cam,
    hires_cam,
    resolve_layer,
)
from attention.maps import enlarge
from data.errors import UserError
from models.detector import DEIM
from tests.support.baselines import small_baseline
from tests.support.models import images, shake, tiny_model
from tests.support.text_fusion import fused_model

QUERY, LABEL = 3, 2


def detector(**sections: Any) -> DEIM:
    model = tiny_model(**sections)
    shake(model)
    return model.eval()


def test_grad_cam_and_hires_cam_of_a_linear_score_are_those_computed_by_hand() -> None:
    activation = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 5.0]]], requires_grad=True)
    weights = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[-4.0, 0.0], [0.0, 0.0]]])
    (gradient,) = torch.autograd.grad((weights * activation).sum(), [activation])
    # Mean gradients 1 and -1: first channel minus second.
    assert grad_cam(activation, gradient).tolist() == [[1.0, 1.0], [3.0, -1.0]]
    assert hires_cam(activation, gradient).tolist() == [[2.0, 0.0], [0.0, 8.0]]


class Linear(nn.Module):
    """One query whose box is linear in a map of two channels: cx, cy, width and height each have a weight a cell."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.weights = nn.Identity(), torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """As DEIMv2 in evaluation."""
        box = (self.weights * self.encoder(image)).sum(dim=(1, 2, 3))
        return {"pred_boxes": box[None, None], "pred_logits": box[None, None, :1]}


def test_maps_of_the_edges_of_a_linear_box_are_those_computed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = Linear().eval(), torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    place = EvidenceLayer("encoder", model.encoder, None)
    monkeypatch.setattr("attention.evidence.resolve_layer", lambda _model, _name: place)
    cx, cy, width, height = model.weights
    outward = {"left": width / 2 - cx, "top": height / 2 - cy, "right": cx + width / 2, "bottom": cy + height / 2}
    for edge in ODAM_EDGES.values():
        found = evidence_map(model, image, 0, 0, "hires_cam", target=edge)
        torch.testing.assert_close(found, F.relu((outward[edge] * image[0]).sum(dim=0)))


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("method", ["grad_cam", "hires_cam"])
def test_a_level_gets_the_gradient_that_a_backward_pass_gives(method: EvidenceMethod, level: int) -> None:
    model, kept = detector(), []

    def cut(_module: nn.Module, _inputs: Any, maps: list[Tensor]) -> list[Tensor]:
        # The finer maps flow into the coarser ones: what counts is what the decoder reads in each.
        kept.extend(x.detach().requires_grad_() for x in maps)
        return kept

    handle = model.encoder.register_forward_hook(cut)
    model(images(1))["pred_logits"][0, QUERY, LABEL].backward()
    handle.remove()
    activation, gradient = kept[level][0].detach(), kept[level].grad[0]
    weight = gradient.mean(dim=(1, 2), keepdim=True) if method == "grad_cam" else gradient
    expected = F.relu((weight * activation).sum(dim=0))
    found = evidence_map(model, images(1), QUERY, LABEL, method, f"encoder.{level}")
    torch.testing.assert_close(found, expected)
    assert expected.any()


def test_all_levels_together_are_the_sum_of_shares() -> None:
    """A detector whose signed maps are positive everywhere: only then the parts add up after the clamp."""
    model = detector()
    names = ("encoder.0", "encoder.1", "encoder.2")
    parts = [evidence_map(model, images(1), QUERY, LABEL, "eigen_cam", name) for name in names]
    whole = evidence_map(model, images(1), QUERY, LABEL, "eigen_cam", "encoder")
    assert whole.shape == parts[0].shape == (8, 8)
    assert float(whole.sum()) == pytest.approx(3, abs=1e-4)
    spread = sum(enlarge(part, (8, 8)) * part.numel() / 64 for part in parts)
    torch.testing.assert_close(whole, spread)


@pytest.mark.parametrize("method", EVIDENCE_METHODS)
@pytest.mark.parametrize("finetune", [True, False])
def test_vit_tokens_become_a_map_also_where_the_vit_is_frozen(method: EvidenceMethod, finetune: bool) -> None:
    found = evidence_map(detector(DINOv3STAs__finetune=finetune), images(1, 64, 96), QUERY, LABEL, method, "vit.1")
    assert found.shape == (4, 6)
    assert found.min() >= 0
    assert found.max() > 0


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18", "fcos_resnet18"])
def test_baselines_have_evidence_for_each_detection(name: str) -> None:
    model = small_baseline(name).eval()
    image = images(1, 64, 96)
    label = int(model(image)[0]["labels"][0])
    for method, layer in zip(EVIDENCE_METHODS, ("fpn", "body", "body"), strict=True):
        found = evidence_map(model, image, 0, label, method, layer)
        assert found.shape == ((16, 24) if name.startswith("faster") else (8, 12))
        assert bool(torch.isfinite(found).all())
        assert found.min() >= 0
    edges = [evidence_map(model, image, 0, label, "hires_cam", "fpn", edge) for edge in ODAM_EDGES.values()]
    assert any(float(one.max()) > 0 for one in edges) and all(bool(torch.isfinite(one).all()) for one in edges)


def test_the_text_takes_part_in_the_score() -> None:
    model = fused_model()
    shake(model)
    model.eval()
    before = evidence_map(model, images(1), QUERY, LABEL)
    assert model.text_fusion is not None
    with torch.no_grad():
        model.text_fusion.gates.mul_(50)
    assert not torch.allclose(before, evidence_map(model, images(1), QUERY, LABEL))


def test_eigen_cam_finds_the_pattern_and_knows_no_query() -> None:
    model = detector()
    pattern = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    handle = model.encoder.register_forward_hook(
        lambda _module, _inputs, maps: [maps[0], -torch.arange(1.0, 33)[None, :, None, None] * pattern, maps[2]]
    )
    found = evidence_map(model, images(1), QUERY, LABEL, "eigen_cam", "encoder.1")
    assert torch.equal(found, evidence_map(model, images(1), 0, 0, "eigen_cam", "encoder.1"))
    handle.remove()
    torch.testing.assert_close(found / found.sum(), pattern / pattern.sum(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", ["encoder", "backbone.0", "vit.2"])
def test_the_model_is_left_as_it_was(layer: str) -> None:
    model = detector(DINOv3STAs__finetune=layer == "encoder")
    expected = model(images(1))["pred_logits"]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    for method in EVIDENCE_METHODS:
        evidence_map(model, images(1), QUERY, LABEL, method, layer)
    with pytest.raises(IndexError):
        evidence_map(model, images(1), 99, LABEL, layer=layer)
    assert torch.equal(model(images(1))["pred_logits"], expected)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_evidence_needs_no_gradients_around_it() -> None:
    model = detector()
    expected = evidence_map(model, images(1), QUERY, LABEL)
    with torch.no_grad():
        assert torch.equal(evidence_map(model, images(1), QUERY, LABEL), expected)


def test_what_cannot_be_asked_for_is_said() -> None:
    model = detector()
    assert resolve_layer(model).name == "encoder"
    with pytest.raises(UserError, match=r"Layer 'vit\.9'.*choose one of encoder, encoder\.0.*vit\.2"):
        evidence_map(model, images(1), QUERY, LABEL, layer="vit.9")
    with pytest.raises(UserError, match=r"Layer 'encoder'.*choose one of fpn, fpn\.0.*body\.3"):
        resolve_layer(small_baseline("fasterrcnn_resnet18"), "encoder")
