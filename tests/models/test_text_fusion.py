"""Text in the class scores: it starts as phase 1, every mode learns, and the controls are what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data.errors import UserError
from models.config import FusionConfig
from models.criterion import build_criterion
from models.detector import DEIM, build_detector
from models.text_fusion import (
    PREFIX,
    ClassTexts,
    ConcatReadout,
    CosineReadout,
    MultimodalFusion,
    TextCrossAttention,
    derangement,
    largest_say,
)
from models.weights import load_phase_1, load_state_dict_strict
from tests.support.configs import changed, industrial
from tests.support.models import NUM_CLASSES, images, shake, targets, tiny_config, tiny_model
from tests.support.text_fusion import TEXT_DIM, fused_model, section, texts

HEADS = ("cosine", "concat", "cross_attention")
CONTROLS = ("learned", "random", "shuffled", "waffle")


def losses_of(model: DEIM, counts: tuple[int, ...] = (2, 1), **values: Any) -> dict[str, Tensor]:
    criterion = build_criterion(tiny_config(MultimodalFusion=section(**values)))
    given = targets(*counts)
    torch.manual_seed(3)
    losses: dict[str, Tensor] = criterion(model(images(), given), given, epoch=0)
    return losses


def gradients(model: DEIM, **values: Any) -> dict[str, Tensor]:
    model.zero_grad()
    torch.stack(list(losses_of(model, **values).values())).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_cosine_is_a_scaled_cosine() -> None:
    readout = CosineReadout(4, 3)
    with torch.no_grad():
        readout.bias.fill_(0.5)
    features, tokens = torch.randn(5, 4), torch.randn(2, 3)
    seen = readout.visual_projection(features)
    expected = 10 * F.cosine_similarity(seen[:, None], tokens[None], dim=-1) + 0.5
    torch.testing.assert_close(readout(features, tokens), expected)
    with torch.no_grad():
        readout.log_scale.fill_(50.0)
    assert readout(features, tokens).abs().max() <= 100.5 + 1e-3


def test_concat_is_the_linear_layer_on_every_pair() -> None:
    readout = ConcatReadout(4, 3, 2)
    features, tokens = torch.randn(5, 4), torch.randn(2, 3)
    found = readout(features, tokens)
    for row in range(5):
        for label in range(2):
            seen = F.normalize(readout.visual_projection(features[row]), dim=0)
            pair = torch.cat([seen, F.normalize(tokens[label], dim=0)])
            torch.testing.assert_close(found[row, label], readout.linear(pair)[label])


def test_cross_attention_starts_as_the_identity_and_then_reads_the_tokens() -> None:
    module = TextCrossAttention(16, 8, 4)
    features, tokens = torch.randn(2, 3, 16), torch.randn(5, 8)
    assert torch.equal(module(features, tokens), features)
    with torch.no_grad():
        module.out.weight.copy_(torch.eye(16))
    read = module(features, tokens) - features
    low, high = module.value(tokens).amin(0), module.value(tokens).amax(0)
    assert ((read > low - 1e-4) & (read < high + 1e-4)).all()  # means of the values
    assert not torch.allclose(read, module(features, tokens.flip(0) * 2) - features)


@pytest.fixture(scope="module")
def phase_1() -> DEIM:
    model = tiny_model()
    shake(model)
    return model.eval()


@pytest.mark.parametrize(
    ("mode", "query_selection"), [*((mode, True) for mode in (*HEADS, *CONTROLS, "none")), ("cosine", False)]
)
def test_phase_2_starts_bit_for_bit_from_phase_1(phase_1: DEIM, mode: str, query_selection: bool) -> None:
    model = fused_model(mode=mode, query_selection=query_selection)
    load_phase_1(model, phase_1.state_dict())
    for half in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            before, after = phase_1(images()), model.eval()(images())
        assert before.keys() == after.keys()
        for key in before:
            assert torch.equal(before[key], after[key]), key


def test_an_open_gate_moves_every_output_of_training_and_evaluation() -> None:
    """All layers, the pre-head, denoising queries and, where asked for, the choice of queries."""
    outputs = []
    for opened in (False, True):
        model = fused_model(query_selection=True)
        shake(model)
        assert model.text_fusion is not None
        with torch.no_grad():
            model.text_fusion.gates.fill_(float(opened))
        torch.manual_seed(3)
        out = model(images(), targets(2, 1))
        logits = [out, *out["aux_outputs"], out["pre_outputs"], *out["enc_aux_outputs"], *out["dn_outputs"]]
        logits = [o["pred_logits"] for o in [*logits, out["dn_pre_outputs"]]]
        outputs.append([*logits, model.eval()(images())["pred_logits"]])
    assert len(outputs[0]) == 3 + 3 + 4  # matching and denoising queries of 3 layers; pre, enc, dn pre, evaluation
    for closed, open_ in zip(*outputs, strict=True):
        assert not torch.allclose(closed, open_, atol=1e-3)


@pytest.mark.parametrize(("mode", "gate"), [("cosine", -0.5), ("learned", 2.0), ("concat", 0.5), ("cosine", 0.0)])
def test_the_largest_say_bounds_what_features_can_do(mode: str, gate: float) -> None:
    fusion = fused_model(mode=mode, gate_init=gate).text_fusion
    assert fusion is not None
    say = largest_say({f"{PREFIX}{name}": value for name, value in fusion.state_dict().items()})
    assert say is not None
    if mode != "concat":
        assert say == pytest.approx(10 * abs(gate))
    with torch.no_grad():
        features = 5 * torch.randn(4000, fusion.head.readouts[0].visual_projection.in_features)
        moved = fusion.gates[0] * fusion.head(features, fusion.texts(), 0)
    spread = float((moved.amax(dim=0) - moved.amin(dim=0)).max())
    assert 0.1 * say <= spread <= 2 * say


def test_of_cross_attention_and_of_no_text_no_say_is_known() -> None:
    assert largest_say(fused_model(mode="cross_attention", gate_init=1.0).state_dict()) is None
    assert largest_say(tiny_model().state_dict()) is None


@pytest.mark.parametrize("mode", [*HEADS, *CONTROLS])
def test_every_mode_learns(mode: str) -> None:
    """At the start the gates get a gradient; as soon as they have moved, everything behind them does too."""
    values = {"mode": mode, "query_selection": True, "learn_prompt_offsets": True}
    model = fused_model(**values)
    first = gradients(model, **values)
    assert (first[f"{PREFIX}gates"] != 0).all()
    out = [g for name, g in first.items() if name.startswith(PREFIX) and name.endswith("out.weight")]
    assert len(out) == (4 if mode == "cross_attention" else 0) and all(g.abs().max() > 0 for g in out)
    shake(model)
    second = gradients(model, **values)
    for name, parameter in model.named_parameters():
        if name.startswith(PREFIX) and not name.endswith("key.bias"):  # a softmax does not see its keys' bias
            assert parameter.requires_grad and second[name].abs().max() > 0, name


@pytest.mark.parametrize(
    ("mode", "trainable", "counts"),
    [
        ("cosine", "heads", (2, 1)),
        ("cross_attention", "heads_and_decoder", (0, 0)),
        ("concat", "all", (0, 0)),
        ("none", "heads", (0, 0)),
    ],
)
def test_every_trained_parameter_takes_part_in_every_step(mode: str, trainable: str, counts: tuple[int, int]) -> None:
    """Distributed training does not search for unused parameters."""
    model = fused_model(mode=mode, trainable=trainable)
    torch.stack(list(losses_of(model, counts, mode=mode, trainable=trainable).values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_what_learns() -> None:
    def learning(trainable: str, **values: Any) -> set[str]:
        model = fused_model(trainable=trainable, **values)
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    heads, both, every = (learning(choice) for choice in ("heads", "heads_and_decoder", "all"))
    assert heads < both < every
    fusion = {name for name in every if name.startswith(PREFIX)}
    assert fusion <= heads
    assert {name.rsplit(".", 2)[0] for name in heads - fusion} == {"decoder.dec_score_head"}
    assert "decoder.enc_score_head.weight" in learning("heads", query_selection=True)
    assert {name.split(".")[0] for name in both} == {"decoder", "text_fusion"}
    assert "decoder.up" not in every  # what phase 1 freezes stays frozen
    part = tiny_model(MultimodalFusion=section(trainable="all"), DINOv3STAs__freeze=2)
    learns = {name for name, parameter in part.backbone.vit.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("blocks.2.") for name in learns)
    assert not any(name.startswith(("blocks.0.", "blocks.1.", "patch")) for name in learns)


def test_frozen_parts_keep_their_statistics() -> None:
    model = fused_model(trainable="heads_and_decoder")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    losses_of(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.decoder.training and not model.backbone.training and not model.encoder.training


@pytest.mark.parametrize(("mode", "expected"), [("cosine", 328_972), ("learned", 332_044), ("none", 0)])
def test_parameters_beside_deimv2_s(mode: str, expected: int) -> None:
    config = changed(industrial(), MultimodalFusion={"mode": mode, "text_dim": 512, "num_prompts": 5})
    with torch.device("meta"):
        fused, plain = (build_detector(c) for c in (config, changed(config, MultimodalFusion=None)))
    added = sum(p.numel() for p in fused.parameters()) - sum(p.numel() for p in plain.parameters())
    assert added == expected <= 800_000


@given(st.integers(2, 40), st.integers(0, 10_000))
def test_a_derangement_moves_everything(size: int, seed: int) -> None:
    rows = derangement(size, seed).tolist()
    assert sorted(rows) == list(range(size)) and all(row != place for place, row in enumerate(rows))
    assert rows == derangement(size, seed).tolist()


def test_one_class_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="one class alone"):
        derangement(1, 0)
    with pytest.raises(UserError, match="MultimodalFusion.mode: shuffled needs at least two classes"):
        tiny_config(num_classes=1, MultimodalFusion=section(mode="shuffled"))


def class_texts(**values: Any) -> ClassTexts:
    made = ClassTexts(FusionConfig(**section(**values)), NUM_CLASSES)
    made.set(*texts())
    return made


def test_what_the_modes_make_of_the_texts() -> None:
    """Prompts averaged without the padding; another class's texts; random ones; offsets that start at nothing."""
    embeds, mask = texts()
    plain, shuffled = class_texts()(), class_texts(mode="shuffled")()
    for label in range(NUM_CLASSES):
        torch.testing.assert_close(plain[label], F.normalize(embeds[label][mask[label]].mean(dim=0), dim=0))
    same = (shuffled[:, None] == plain[None]).all(dim=-1)
    assert same.sum(dim=0).tolist() == same.sum(dim=1).tolist() == [1] * NUM_CLASSES and not same.diagonal().any()
    assert torch.equal(class_texts(mode="shuffled", seed=0)(), shuffled)
    drawn = class_texts(mode="random")
    assert drawn.embeds.shape == (NUM_CLASSES, 1, TEXT_DIM) and not list(drawn.parameters())
    assert torch.equal(drawn(), class_texts(mode="random")()) and torch.equal(drawn(), class_texts(mode="learned")())
    assert not torch.equal(drawn(), class_texts(mode="random", seed=1)())
    assert [name for name, _ in class_texts(mode="learned", learn_prompt_offsets=True).named_parameters()] == ["embeds"]
    made = class_texts(learn_prompt_offsets=True)
    assert made.offsets is not None and torch.equal(made(), plain)
    with torch.no_grad():
        made.offsets[2] += 1
    torch.testing.assert_close(made()[2], plain[2] + 1)


def test_the_contrastive_loss() -> None:
    """Without a preference among C classes it is log C a box; it teaches the texts while the gates are closed."""
    assert "loss_contrastive" not in losses_of(fused_model())
    values = {"contrastive_weight": 0.5}
    model = fused_model(**values)
    assert model.text_fusion is not None
    grads = gradients(model, **values)
    assert grads[f"{PREFIX}head.text_projection.weight"].abs().max() > 0
    with torch.no_grad():
        for readout in model.text_fusion.head.readouts:
            readout.log_scale.fill_(-100.0)
    torch.testing.assert_close(
        losses_of(model, **values)["loss_contrastive"], torch.tensor(0.5 * math.log(NUM_CLASSES))
    )
    assert "loss_contrastive" not in losses_of(fused_model(mode="none", **values), mode="none", **values)


def test_a_held_out_class_is_scored_by_its_text_alone_and_not_trained() -> None:
    label = NUM_CLASSES - 1
    model = fused_model(held_out=label, gate_init=0.5)
    assert model.text_fusion is not None
    fusion, head, features = model.text_fusion, model.decoder.dec_score_head[0], torch.randn(5, 32)
    features = torch.randn(5, head.in_features)
    model.eval()
    logits, contribution = fusion(features, head, 0)
    free = fused_model(gate_init=0.5)
    assert free.text_fusion is not None
    others = free.text_fusion(features, free.decoder.dec_score_head[0], 0)[0]
    torch.testing.assert_close(logits[:, :label], others[:, :label])
    torch.testing.assert_close(logits[:, label], head.bias[label] + 0.5 * contribution[:, label])
    assert not torch.allclose(logits[:, label], others[:, label])
    model.train()
    fusion.texts.embeds.requires_grad_()
    values = {"held_out": label, "gate_init": 0.5, "contrastive_weight": 1.0}
    given = [{**one, "labels": one["labels"].clamp(max=label - 1)} for one in targets(2, 1)]
    torch.manual_seed(3)
    losses = build_criterion(tiny_config(MultimodalFusion=section(**values)))(model(images(), given), given, epoch=0)
    torch.stack(list(losses.values())).sum().backward()
    grad = fusion.texts.embeds.grad
    assert grad is not None and grad[:label].abs().sum() > 0 and grad[label].abs().sum() == 0
    assert all(float(one.weight.grad[label].abs().sum()) == 0 for one in model.decoder.dec_score_head)  # type: ignore[union-attr, index]


def test_a_held_out_label_must_be_one() -> None:
    with pytest.raises(UserError, match=f"held_out: {NUM_CLASSES}, expected a label, 0 to {NUM_CLASSES - 1}"):
        tiny_config(MultimodalFusion=section(held_out=NUM_CLASSES))


def test_texts_are_in_the_state_dict_and_phase_1_keys_stay() -> None:
    model, phase_1 = fused_model(), tiny_model()
    own, plain = model.state_dict(), phase_1.state_dict()
    assert {key for key in own if not key.startswith(PREFIX)} == set(plain)
    assert torch.equal(own[f"{PREFIX}texts.embeds"], texts()[0]) and torch.equal(own[f"{PREFIX}texts.mask"], texts()[1])
    assert tiny_model(MultimodalFusion=section(mode="none")).state_dict().keys() == plain.keys()


def test_loading_phase_1_is_strict() -> None:
    state = tiny_model().state_dict()
    del state["decoder.pre_bbox_head.layers.0.weight"]
    with pytest.raises(UserError) as error:
        load_phase_1(fused_model(), state)
    assert error.value.problems == ("decoder.pre_bbox_head.layers.0.weight: missing in the file",)


def test_loading_the_wrong_phase_is_explained() -> None:
    with pytest.raises(UserError, match=r"of phase 1, without text; train_deimv2_multimodal.py -r starts phase 2"):
        load_state_dict_strict(fused_model(), tiny_model().state_dict())
    with pytest.raises(UserError, match="The weights have text fusion, the config has not"):
        load_state_dict_strict(tiny_model(), fused_model().state_dict())


def test_fusion_is_computed_in_float32_under_autocast() -> None:
    head = MultimodalFusion(16, TEXT_DIM, 4, proj_dim=8)
    features, embeds = torch.randn(3, 16).bfloat16(), torch.randn(4, TEXT_DIM)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(features, embeds)
    assert torch.equal(found, head(features.float(), embeds))
