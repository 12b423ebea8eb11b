"""The deploy form: the same detections from fewer operations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.config import ViTShape
from models.decoder import DEIMTransformer
from models.deploy import DeployedDetector, deploy
from models.detector import DEIM
from models.postprocess import PostProcessor
from models.vit import LayerScale, MaskedKeyLinear, VisionTransformer
from tests.support.models import NUM_CLASSES, images, shake, tiny_model
from tests.support.text_fusion import fused_model


def trained_looking(model: DEIM) -> DEIM:
    """Weights and BatchNorm statistics off their initial values, evaluation mode."""
    shake(model)
    model.train()
    with torch.no_grad():
        for seed in range(2):
            model(2 * images(seed=seed) + 0.3)
        for module in model.modules():
            if isinstance(module, LayerScale):
                module.gamma.uniform_(0.5, 1.5)
    return model.eval()


CASES = {
    "tiny": tiny_model,
    "one block for all maps": lambda: tiny_model(DINOv3STAs__interaction_indexes=[0]),
    "an earlier layer": lambda: tiny_model(DEIMTransformer__eval_idx=0),
    "no detail branch": lambda: tiny_model(DINOv3STAs__use_sta=False),
    "text": lambda: fused_model(gate_init=0.7),
    "text chooses queries": lambda: fused_model(gate_init=0.7, query_selection=True, mode="cross_attention"),
}


@pytest.mark.parametrize("case", CASES)
def test_same_outputs(case: str) -> None:
    model = trained_looking(CASES[case]())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deployed = deploy(model)
    for height, width in ((64, 64), (96, 64)):
        x = images(2, height, width, seed=7)
        with torch.no_grad():
            expected, found = model(x), deployed(x)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])] == []


@pytest.mark.parametrize("swiglu", [False, True])
def test_same_maps_of_a_dinov3(swiglu: bool) -> None:
    torch.manual_seed(1)
    model = tiny_model()
    model.backbone.dinov3 = VisionTransformer(ViTShape(32, 2, 3, 2.0), [0, 1, 2], dinov3=True, swiglu=swiglu)
    for module in model.backbone.dinov3.modules():
        if isinstance(module, MaskedKeyLinear):
            nn.init.normal_(module.bias)
    model = trained_looking(model)
    deployed = deploy(model)
    assert not [m for m in deployed.modules() if isinstance(m, (LayerScale, MaskedKeyLinear, nn.BatchNorm2d))]
    with torch.no_grad():
        for found, expected in zip(deployed.backbone(images()), model.backbone(images()), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_gone() -> None:
    model = trained_looking(tiny_model(DINOv3STAs__interaction_indexes=[0]))
    deployed = deploy(model)
    kinds = {type(module) for module in deployed.modules()}
    assert nn.BatchNorm2d not in kinds and nn.Embedding not in kinds
    assert len(deployed.backbone.vit.blocks) == 1 and len(model.backbone.vit.blocks) == 3
    decoder: DEIMTransformer = deployed.decoder
    kept = [isinstance(head, nn.Linear) for head in decoder.dec_score_head]
    assert kept == [False, False, True]
    assert not any(parameter.requires_grad for parameter in deployed.parameters()) and not deployed.training
    assert len(deployed.state_dict()) < 0.6 * len(model.state_dict())


def test_detector_with_post_processing() -> None:
    model = trained_looking(tiny_model())
    postprocessor = PostProcessor(NUM_CLASSES, 50)
    detector = DeployedDetector(deploy(model), postprocessor)
    x, sizes = images(2), torch.tensor([[640, 480], [100, 200]])
    with torch.no_grad():
        labels, boxes, scores = detector(x, sizes)
        expected = postprocessor.batched(model(x), sizes)
    assert labels.shape == scores.shape == (2, 50) and boxes.shape == (2, 50, 4) and labels.dtype == torch.int64
    torch.testing.assert_close(scores, expected[2], rtol=0, atol=1e-5)
    assert torch.equal(labels[:, :10], expected[0][:, :10])
    torch.testing.assert_close(boxes[:, :10], expected[1][:, :10], rtol=1e-4, atol=1e-2)


def test_compiles_as_one_graph() -> None:
    """Only plain tensors go from module to module: torch 2.11 lost the fields of a dataclass on the way."""
    model = trained_looking(CASES["text chooses queries"]())
    detector = DeployedDetector(deploy(model), PostProcessor(NUM_CLASSES, 50))
    inputs = images(2), torch.tensor([[640, 480], [100, 200]])
    with torch.no_grad():
        expected = detector(*inputs)
        found = torch.compile(detector, backend="eager", fullgraph=True)(*inputs)
    for ours, compiled in zip(expected, found, strict=True):
        torch.testing.assert_close(compiled, ours)
