"""The whole detector: golden outputs, official sizes and names, and what training relies on."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from engine.config import load_config
from models.criterion import build_criterion
from models.decoder import DEIMTransformer, SelectedQueries
from models.detector import build_detector, normalize_images
from tests.support.configs import official
from tests.support.models import Targets, images, shake, targets, tensors_of, tiny_config, tiny_model
from tests.support.parity import (
    golden_keys,
    golden_model,
    golden_tensors,
    needs_complete_set,
    network_input,
    relative_error,
)


@pytest.fixture
def selected(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Collects the indices that the decoder selects."""
    indices: list[Tensor] = []
    select = DEIMTransformer.select_queries

    def record(self: DEIMTransformer, *arguments: Any) -> SelectedQueries:
        result = select(self, *arguments)
        indices.append(result.indices)
        return result

    monkeypatch.setattr(DEIMTransformer, "select_queries", record)
    return indices


@pytest.mark.parametrize(
    "case",
    [
        "eval_320",
        pytest.param("eval_640", marks=needs_complete_set),
        pytest.param("eval_320x480", marks=needs_complete_set),
    ],
)
def test_evaluation_equals_the_original(case: str, selected: list[Tensor]) -> None:
    golden = golden_tensors(case)
    with torch.no_grad():
        outputs = golden_model().eval()(network_input(golden["image"]))
    assert torch.equal(selected[0].int(), golden["topk_indices"])
    assert relative_error(outputs["pred_logits"], golden["pred_logits"]) < 2e-5
    assert relative_error(outputs["pred_boxes"], golden["pred_boxes"]) < 1e-5


def test_training_equals_the_original(selected: list[Tensor]) -> None:
    golden = golden_tensors("train_320")
    with torch.no_grad():
        outputs = golden_model()(network_input(golden["image"]))
    assert torch.equal(selected[0].int(), golden["topk_indices"])
    for prefix, found in {
        "": outputs,
        **{f"aux.{index}.": layer for index, layer in enumerate(outputs["aux_outputs"])},
        "pre.": outputs["pre_outputs"],
        "enc.0.": outputs["enc_aux_outputs"][0],
    }.items():
        for name in ("pred_logits", "pred_boxes", "pred_corners", "ref_points"):
            if prefix + name in golden:
                expected = golden[prefix + name]
                assert relative_error(found[name][:, : expected.shape[1]], expected) < 5e-5, prefix + name


def test_official_keys_and_shapes() -> None:
    state = golden_model().state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == golden_keys()


@pytest.mark.parametrize(
    ("size", "parameters", "entries"),
    [("s", 9_779_838, 673), ("m", 18_357_750, 769), ("l", 32_551_214, 809), ("x", 51_211_736, 989)],
)
def test_official_sizes(size: str, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        model = build_detector(load_config(official(size)))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize(("height", "width"), [(32, 64), (96, 32), (160, 160)])
@pytest.mark.parametrize("training", [False, True])
def test_any_multiple_of_32(height: int, width: int, training: bool) -> None:
    outputs = tiny_model().train(training)(images(2, height, width), targets(1, 2))
    assert outputs["pred_logits"].shape[:2] == (2, 20)
    assert all(x.isfinite().all() for x in tensors_of(outputs))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 100)])
def test_other_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x {width} .* must be multiples of 32"):
        tiny_model()(images(1, height, width))


def test_batched_equals_single() -> None:
    model = tiny_model().eval()
    shake(model)
    with torch.no_grad():
        together = model(images(3))
        for index in range(3):
            alone = model(images(3)[index : index + 1])
            for key in ("pred_logits", "pred_boxes"):
                torch.testing.assert_close(alone[key][0], together[key][index], atol=1e-4, rtol=1e-4)


def total(outputs: dict[str, Any]) -> Tensor:
    """A made-up loss that reads every output."""
    return sum(
        (x.clamp(-20, 20).square().mean() for x in tensors_of(outputs) if x.requires_grad), start=torch.zeros(())
    )


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("vit_custom", targets(2, 1)),
        ("vit_custom", targets(0, 3)),
        ("vit_custom", targets(0, 0)),
        ("dinov3_vits16", targets(0, 0)),
    ],
)
def test_every_trained_parameter_gets_a_gradient(given: Targets, name: str) -> None:
    model = tiny_model(DINOv3STAs__name=name, DINOv3STAs__interaction_indexes=[0], DINOv3STAs__hidden_dim=32)
    total(model(images(), given)).backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["vit_custom", "dinov3_vits16"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    sections = {"DINOv3STAs__name": name, "DINOv3STAs__interaction_indexes": [1], "DINOv3STAs__hidden_dim": 32}
    results = []
    for checkpointing in (False, True):
        model = tiny_model(gradient_checkpointing=checkpointing, **sections)
        shake(model)
        torch.manual_seed(3)
        total(model(images(), targets(2, 1))).backward()
        gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
        results.append(gradients | {key: b for key, b in model.named_buffers() if "running" in key})
    plain, recomputed = results
    assert plain.keys() == recomputed.keys() and any("running_var" in key for key in plain)
    for key in plain:
        torch.testing.assert_close(recomputed[key], plain[key], atol=1e-6, rtol=1e-6, msg=key)


def test_gradient_checkpointing_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    recomputed: list[str] = []

    def record(function: Any, *arguments: Any, **options: Any) -> Any:
        assert options["use_reentrant"] is False
        recomputed.append(type(function).__name__)
        return function(*arguments)

    monkeypatch.setattr("models.layers.checkpoint", record)
    model = tiny_model(gradient_checkpointing=True)
    model(images(), targets(1, 1))
    assert recomputed == ["Block"] * 3 + ["AifiLayer"]
    with torch.no_grad():
        model.eval()(images())
    assert len(recomputed) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype: torch.dtype) -> None:
    model = tiny_model()
    shake(model)
    with torch.no_grad():
        exact = model.eval()(images())
        with torch.autocast("cpu", dtype):
            rounded = model(images())
    torch.testing.assert_close(rounded["pred_boxes"].mean(), exact["pred_boxes"].mean(), atol=0.05, rtol=0.1)

    model.train()
    with torch.autocast("cpu", dtype):
        outputs = model(images(), targets(2, 1))
    assert all(x.dtype == torch.float32 for x in tensors_of(outputs) if x.is_floating_point())
    total(outputs).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key
    assert model.decoder.enc_score_head.weight.grad.abs().max() > 0  # its weights are also read outside the graph


@pytest.mark.parametrize("freeze", ["none", 2, "all"])
def test_weights_cast_at_once_give_the_same_numbers(freeze: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autocast, which casts them one by one; batches are counted, and parameters are themselves afterwards.

    What is frozen has no backward pass.
    """
    found, blocks = [], []
    for at_once in (True, False):
        model = tiny_model(DINOv3STAs__freeze=freeze)
        shake(model)
        for block in model.backbone.vit.blocks:
            block.register_forward_hook(lambda *taken: blocks.append(taken[-1].requires_grad))
        if not at_once:
            monkeypatch.setattr(model, "_casts_weights", lambda _: False)
        before = [parameter.data_ptr() for parameter in model.parameters()]
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(images(), targets(2, 1))
        total(outputs).backward()
        assert [parameter.data_ptr() for parameter in model.parameters()] == before
        counts = {int(value) for name, value in model.named_buffers() if name.endswith("num_batches_tracked")}
        assert counts == ({1} if freeze != "all" else {0, 1})
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((tensors_of(outputs), gradients))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert blocks == 2 * {"none": [True] * 3, 2: [False, False, True], "all": [False] * 3}[freeze]


BOXES = {"some": (3, 1), "none": (0, 0), "more than denoising queries": (31, 2)}


@pytest.mark.parametrize("counts", BOXES.values(), ids=BOXES.keys())
def test_denoising_queries_added_for_constant_shapes_change_nothing(
    counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    criterion, found = build_criterion(tiny_config()), []
    for compiled in (False, True):
        model = tiny_model()
        shake(model)
        if compiled:
            model.compile_training()
        torch.manual_seed(1)
        losses = criterion(model(images(), targets(*counts)), targets(*counts), epoch=0)
        torch.stack(list(losses.values())).sum().backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
        found.append((losses, torch.cat(gradients)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param("cudagraphs", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),  # on a CPU: its graph, eager
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.timeout(900),
                pytest.mark.skipif(not shutil.which("g++"), reason="no g++"),
            ],
        ),
    ],
)
def test_compiled_training_is_one_graph_for_each_size_whatever_the_boxes(backend: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = tiny_model(DEIMTransformer__num_layers=1, DINOv3STAs__interaction_indexes=[0])
    shake(model)
    plain = copy.deepcopy(model)
    model.compile_training(backend)
    sizes = (64, 96) if backend == "eager" else (64,)
    for repeat, counts in enumerate(((3, 1), (0, 0), (4, 5))):
        for size in sizes:
            outputs = []
            for one in (model, plain):
                torch.manual_seed(1)
                outputs.append(one(images(2, size, size), targets(*counts)))
                total(outputs[-1]).backward()
            assert outputs[0].keys() == outputs[1].keys()
            torch.testing.assert_close(tensors_of(outputs[0]), tensors_of(outputs[1]), rtol=1e-3, atol=1e-3)
        assert counters["stats"]["unique_graphs"] == len(sizes), repeat
    assert not counters["graph_break"]
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)
    copied = copy.deepcopy(model).eval()  # as an EMA is made
    assert copied.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(copied(images()), model.eval()(images()))


def test_inference_mode_does_not_spoil_later_training() -> None:
    model = tiny_model()
    with torch.inference_mode():
        model.eval()(images())
    total(model.train()(images(), targets(2, 1))).backward()


def test_normalize_images() -> None:
    raw = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    before = raw.clone()
    found = normalize_images(raw)
    assert torch.equal(raw, before) and found.dtype == torch.float32
    torch.testing.assert_close(found, network_input(raw))
    half = normalize_images(raw.float(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    torch.testing.assert_close(half, raw / 127.5 - 1)
