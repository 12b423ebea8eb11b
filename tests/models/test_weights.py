"""Weights in: official layouts, and every way a file can be wrong."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from data.errors import UserError
from models.detector import DEIM, build_detector
from models.weights import (
    load_backbone_weights,
    load_for_tuning,
    load_state_dict_strict,
    load_vit,
    num_classes_of,
)
from tests.support.baselines import small_baseline
from tests.support.models import images, shake, tiny_config, tiny_model


def other(**sections: Any) -> DEIM:
    """A model of the same structure with other weights."""
    model = tiny_model(**sections)
    shake(model, seed=2)
    return model


def state(model: DEIM) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(model: DEIM, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize(
    "absent", [("decoder.up", "decoder.reg_scale"), ("decoder.decoder.up", "decoder.decoder.reg_scale")]
)
def test_strict_fills_a_missing_alias(absent: tuple[str, str]) -> None:
    weights = state(other())
    for key in absent:
        del weights[key]
    for key in weights:
        if key.endswith(".up"):
            weights[key].fill_(0.75)
    model = tiny_model()
    load_state_dict_strict(model, weights)
    assert model.decoder.up.item() == model.decoder.decoder.up.item() == 0.75
    assert absent[0] not in weights  # the caller's dict is left alone


def test_strict_keeps_stored_constants() -> None:
    weights = state(other())
    weights["decoder.anchors"] = weights["decoder.anchors"] + 1e-6
    weights["backbone.dinov3._model.rope_embed.periods"] *= 1.0001
    model = tiny_model()
    load_state_dict_strict(model, weights)
    assert_same(model, weights)


@pytest.mark.parametrize("change", ["other size", "absent"])
def test_strict_takes_files_of_another_evaluation_size(change: str) -> None:
    source = other(eval_spatial_size=[96, 64])
    weights = state(source)
    if change == "absent":
        del weights["decoder.anchors"], weights["decoder.valid_mask"]
    model = tiny_model()
    anchors = model.decoder.anchors.clone()
    load_state_dict_strict(model, weights)
    assert torch.equal(model.decoder.anchors, anchors)
    x = images(1, 96, 64)
    assert torch.equal(model.eval()(x)["pred_boxes"], source.eval()(x)["pred_boxes"])


def test_strict_names_everything_that_does_not_fit() -> None:
    weights = state(other())
    del weights["decoder.enc_score_head.bias"]
    weights["decoder.extra"] = torch.zeros(1)
    weights["backbone.convs.0.weight"] = torch.zeros(2, 2, 1, 1)
    before = state(model := tiny_model())
    with pytest.raises(UserError) as error:
        load_state_dict_strict(model, weights, source=Path("some.pth"))
    text = str(error.value)
    assert "some.pth: these are not the weights of the configured model" in text
    assert "decoder.enc_score_head.bias: missing in the file" in text
    assert "decoder.extra: not in the model" in text
    assert "backbone.convs.0.weight: found [2, 2, 1, 1], expected [32, 40, 1, 1]" in text
    assert_same(model, before)
    with pytest.raises(UserError, match=r"for 2 classes, the config says num_classes 6; .* start from them with -t"):
        load_state_dict_strict(tiny_model(), state(other(num_classes=2)))
    with pytest.raises(UserError, match=r"\.\.\. and \d+ more") as error:
        load_state_dict_strict(tiny_model(), {})
    assert len(error.value.problems) == 21, "long lists are cut"


def test_tuning_to_other_classes_reports_what_starts_fresh(caplog: pytest.LogCaptureFixture) -> None:
    source, model = other(num_classes=2, eval_spatial_size=[96, 64]), tiny_model()
    fresh = state(model)
    weights = state(source) | {"decoder.extra": torch.zeros(1)}
    del weights["decoder.query_pos_head.layers.0.bias"]
    with caplog.at_level(logging.WARNING):
        report = load_for_tuning(model, weights, source=Path("x.pth"))
    heads = ["decoder.enc_score_head", *(f"decoder.dec_score_head.{i}" for i in range(3))]
    names = {f"{head}.{part}" for head in heads for part in ("weight", "bias")}
    names.add("decoder.denoising_class_embed.weight")
    assert {line.split(":")[0] for line in report.mismatched} == names
    assert "decoder.enc_score_head.weight: found [2, 32], expected [6, 32]" in report.mismatched
    assert report.missing == ("decoder.query_pos_head.layers.0.bias",) and report.unexpected == ("decoder.extra",)
    for key, value in model.state_dict().items():
        kept = key in names or key in report.missing or key in ("decoder.anchors", "decoder.valid_mask")
        assert torch.equal(value, fresh[key] if kept else weights[key]), key
    for text in (
        "x.pth: loaded all weights except these",
        "other shape, starts fresh: decoder.enc_score_head.bias: found [2], expected [6]",
        "not in the file, starts fresh: decoder.query_pos_head.layers.0.bias",
        "not in the model, ignored: decoder.extra",
    ):
        assert text in caplog.text


def test_tuning_from_another_size_is_refused() -> None:
    wider = {f"{s}__{k}": v for s, k, v in (
        ("DINOv3STAs", "embed_dim", 48), ("HybridEncoder", "in_channels", [48] * 3),
        ("HybridEncoder", "hidden_dim", 48), ("DEIMTransformer", "feat_channels", [48] * 3),
        ("DEIMTransformer", "hidden_dim", 48))}  # fmt: skip
    before = state(model := tiny_model())
    with pytest.raises(UserError, match=r"fill only \d+% of the configured model, so they belong to another one"):
        load_for_tuning(model, state(other(**wider)))
    assert_same(model, before)


@pytest.mark.parametrize("name", ["fasterrcnn_efficientnet_b0", "fcos_resnet18"])
def test_tuning_takes_rows_of_a_baseline(name: str) -> None:
    """Faster R-CNN has a row for the background before the classes', and four rows a class for the boxes."""
    source, model = small_baseline(name), small_baseline(name)
    shake(source)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    load_for_tuning(model, source.state_dict(), {0: 2, 2: 1})
    found, weights = model.state_dict(), source.state_dict()
    if name.startswith("faster"):
        rows = {"cls_score": (1, [0, 3, 2], [2]), "bbox_pred": (4, [0, 3, 2], [2])}
        prefix = "detector.roi_heads.box_predictor."
    else:
        rows, prefix = {"cls_logits": (1, [2, 1], [1])}, "detector.head.classification_head."
    for head, (count, taken, kept) in rows.items():
        for part in ("weight", "bias"):
            key = f"{prefix}{head}.{part}"
            ours, theirs, own = (value[key].unflatten(0, (-1, count)) for value in (found, weights, fresh))
            into = [row for row in range(len(ours)) if row not in kept]
            assert torch.equal(ours[into], theirs[taken]) and torch.equal(ours[kept], own[kept]), key


def test_class_count_of_weights() -> None:
    assert num_classes_of(state(other(num_classes=9))) == 9 and num_classes_of({}) is None
    assert num_classes_of(small_baseline("fcos_resnet18").state_dict()) == 3
    assert num_classes_of(small_baseline("fasterrcnn_efficientnet_b0").state_dict()) == 3


def backbone_config(path: Path | None, name: str = "vit_custom") -> Any:
    sections = {"DINOv3STAs__name": name, "DINOv3STAs__hidden_dim": 32, "DINOv3STAs__interaction_indexes": [0]}
    return tiny_config(DINOv3STAs__weights_path=None if path is None else str(path), **sections)


def save(path: Path, tensors: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize(
    ("name", "suffix"), [("vit_custom", ".pt"), ("dinov3_vits16", ".pth"), ("vit_custom", ".safetensors")]
)
def test_bare_backbone_files(tmp_path: Path, name: str, suffix: str) -> None:
    source = build_detector(backbone_config(None, name))
    tensors = source.backbone.vit.state_dict()
    assert "patch_embed.proj.weight" in tensors and "rope_embed.periods" in tensors  # the published layout
    config = backbone_config(save(tmp_path / f"vit{suffix}", tensors), name)
    model = build_detector(config)
    load_backbone_weights(model, config)
    for key, value in model.backbone.vit.state_dict().items():
        assert torch.equal(value, tensors[key])


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("vit_tiny", "vitt_distill.pt.*DEIMv2"),
        ("vit_tinyplus", "vittplus_distill.pt.*DEIMv2"),
        ("dinov3_vits16", "dinov3_vits16_pretrain_lvd1689m-08c60483.pth.*DINOv3 release"),
        ("dinov3_vits16plus", "dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth.*DINOv3 release"),
        ("vit_custom", "no official file"),
    ],
)
def test_a_missing_file_says_where_to_get_it(tmp_path: Path, name: str, source: str) -> None:
    config = backbone_config(tmp_path / "no.pt", name)
    with torch.device("meta"):
        model = build_detector(config)
    with pytest.raises(UserError, match=rf"no file .*no\.pt .*{source}.*`DINOv3STAs.weights_path: null`"):
        load_backbone_weights(model, config)


def test_another_networks_file_is_refused_with_reasons(tmp_path: Path) -> None:
    tensors = tiny_model().backbone.vit.state_dict()
    del tensors["cls_token"]
    tensors["head.weight"] = torch.zeros(3)
    tensors["blocks.0.norm1.weight"] = torch.zeros(5)
    model = build_detector(config := backbone_config(save(tmp_path / "x.pt", dict(tensors))))
    with pytest.raises(UserError, match="does not hold the weights of `vit_custom` as configured") as error:
        load_backbone_weights(model, config)
    assert error.value.problems == (
        "blocks.0.norm1.weight: found [5], expected [32]",
        "cls_token: missing in the file",
        "head.weight: not in the model",
    )


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", ["cut", "noise", "empty"])
def test_damaged_files(tmp_path: Path, suffix: str, content: str) -> None:
    path = save(tmp_path / f"x{suffix}", tiny_model().backbone.vit.state_dict())
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "noise": b"\x93not a file" * 50, "empty": b""}[content])
    model = build_detector(config := backbone_config(path))
    with pytest.raises(UserError, match=re.escape(path.name)):
        load_backbone_weights(model, config)


@pytest.mark.parametrize("content", [{"model": {"a": torch.zeros(1)}}, [torch.zeros(1)]])
def test_files_of_another_kind(tmp_path: Path, content: Any) -> None:
    model = build_detector(config := backbone_config(save(tmp_path / "x.pt", content)))
    with pytest.raises(UserError, match=r"x\.pt: expected a plain state dict"):
        load_backbone_weights(model, config)


def test_a_baseline_takes_no_vit() -> None:
    with pytest.raises(UserError, match=r"-t x\.pt: is the backbone of a DEIMv2, the config describes a baseline"):
        load_vit(torch.nn.Linear(1, 1), tiny_config(), {}, "-t x.pt:")
