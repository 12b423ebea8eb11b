"""`-t`: detectors, bare ViTs, and heads chosen by class name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from data.classes import ClassMap
from data.coco_names import COCO_CLASSES
from data.errors import UserError
from engine.checkpoint import save_checkpoint
from engine.tuning import class_rows, start_from
from models.detector import DEIM
from tests.support.models import NUM_CLASSES, shake, tiny_config, tiny_model

CLASSES = ClassMap(tuple(range(NUM_CLASSES)), ("PERFORACIONES", "RAYONES", "ROTURA", "D", "C", "NORMAL"))
BIAS = "decoder.enc_score_head.bias"


def checkpoint_of(path: Path, model: DEIM, **extra: Any) -> Path:
    save_checkpoint(path, {"model": model.state_dict(), **extra})
    return path


def other(num_classes: int) -> DEIM:
    model = tiny_model(num_classes=num_classes)
    shake(model, seed=3)
    return model


def test_coco_names() -> None:
    """Ids and order as torchvision knows them."""
    names = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    known = [{"id": key, "name": name} for key, name in enumerate(names) if name not in ("__background__", "N/A")]
    assert ClassMap.from_categories(known) == COCO_CLASSES and len(COCO_CLASSES) == 80


def test_rows_of_coco(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An official file names no classes; 80 of them are COCO's."""
    source, model = other(80), tiny_model()
    fresh = model.state_dict()[BIAS].clone()
    config = tiny_config(tuning_class_map={"RAYONES": "knife", "ROTURA": "vase"})
    with caplog.at_level(logging.INFO):
        start_from(model, config, CLASSES, checkpoint_of(tmp_path / "coco.pth", source))
    found, theirs = model.state_dict()[BIAS], source.state_dict()[BIAS]
    assert torch.equal(found[[1, 2]], theirs[[43, 75]]) and torch.equal(found[[0, 3, 4, 5]], fresh[[0, 3, 4, 5]])
    assert "class heads of RAYONES, ROTURA are copied" in caplog.text


def test_without_a_map_heads_of_other_classes_start_fresh(tmp_path: Path) -> None:
    source, model = other(80), tiny_model()
    fresh = model.state_dict()[BIAS].clone()
    start_from(model, tiny_config(), CLASSES, checkpoint_of(tmp_path / "coco.pth", source))
    assert torch.equal(model.state_dict()[BIAS], fresh)
    key = "encoder.fpn_blocks.0.cv1.conv.weight"
    assert torch.equal(model.state_dict()[key], source.state_dict()[key])


def test_names_of_our_checkpoints() -> None:
    learned = ("scratch", "hole")
    assert class_rows({"RAYONES": "scratch", "PERFORACIONES": "hole"}, CLASSES, learned, Path("x")) == {1: 0, 0: 1}


def test_unknown_names_are_all_listed() -> None:
    with pytest.raises(UserError, match="tuning_class_map") as error:
        class_rows({"RAYONES": "knif", "RAYONE": "vase", "D": "qq"}, CLASSES, COCO_CLASSES.names, Path("coco.pth"))
    assert error.value.problems == (
        "RAYONES: knif: 'knif' is no class of coco.pth; did you mean knife?",
        "RAYONE: vase: 'RAYONE' is no class of the data set; did you mean RAYONES?",
        "D: qq: 'qq' is no class of coco.pth; it has person, bicycle, car, motorcycle, airplane, bus, train, truck, "
        "boat, traffic light, fire hydrant, stop sign, ...",
    )


def test_nameless_classes(tmp_path: Path) -> None:
    config = tiny_config(tuning_class_map={"RAYONES": "knife"})
    with pytest.raises(UserError, match=r"seven\.pth is for 7 classes and does not say which"):
        start_from(tiny_model(), config, CLASSES, checkpoint_of(tmp_path / "seven.pth", other(7)))
    path = tmp_path / "other.pth"
    save_checkpoint(path, {"model": {"w": torch.ones(1)}})
    with pytest.raises(UserError, match=r"other\.pth is no DEIMv2's checkpoint"):
        start_from(tiny_model(), config, CLASSES, path)


def test_a_bare_vit_goes_into_the_backbone(tmp_path: Path) -> None:
    source, model = other(2), tiny_model()
    path = tmp_path / "vit.pt"
    torch.save(source.backbone.vit.state_dict(), path)
    fresh = model.state_dict()[BIAS].clone()
    start_from(model, tiny_config(), CLASSES, path)
    for key, value in model.backbone.vit.state_dict().items():
        assert torch.equal(value, source.backbone.vit.state_dict()[key])
    assert torch.equal(model.state_dict()[BIAS], fresh)
    with pytest.raises(UserError, match="holds a backbone alone, which knows no classes"):
        start_from(model, tiny_config(tuning_class_map={"RAYONES": "knife"}), CLASSES, path)
    torch.save({**source.backbone.vit.state_dict(), "cls_token": torch.zeros(1, 1, 7)}, path)
    with pytest.raises(UserError, match=r"-t .*vit\.pt: does not hold the weights of `vit_custom`"):
        start_from(model, tiny_config(), CLASSES, path)


def test_bare_weights_of_a_detector(tmp_path: Path) -> None:
    source, model = other(NUM_CLASSES), tiny_model()
    path = tmp_path / "bare.pth"
    torch.save(source.state_dict(), path)
    start_from(model, tiny_config(), CLASSES, path)
    assert torch.equal(model.state_dict()[BIAS], source.state_dict()[BIAS])
