"""`-t`: detectors, bare ViTs, and heads chosen by class name."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from data.classes import COCO_CLASSES, ClassMap
from data.errors import UserError
from engine.checkpoint import class_rows, save_checkpoint, start_from
from models.detector import DEIM
from tests.support.models import NUM_CLASSES, shake, tiny_config, tiny_model
from tests.support.text_fusion import section

CLASSES = ClassMap(tuple(range(NUM_CLASSES)), ("PERFORACIONES", "RAYONES", "ROTURA", "D", "C", "NORMAL"))
BIAS = "decoder.enc_score_head.bias"


def checkpoint_of(path: Path, model: DEIM, **extra: Any) -> Path:
    save_checkpoint(path, {"model": model.state_dict(), **extra})
    return path


def other(num_classes: int, **sections: Any) -> DEIM:
    model = tiny_model(num_classes=num_classes, **sections)
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


@pytest.mark.parametrize("learned", [CLASSES.names[::-1], ("X", "ROTURA", "Y", "PERFORACIONES")])
def test_rows_go_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture, learned: tuple[str, ...]) -> None:
    """As many classes in another order, or other classes: what is of a class goes to the class of that name."""
    source, model = other(len(learned)), tiny_model()
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    path = checkpoint_of(tmp_path / "x.pth", source, classes=ClassMap(tuple(range(len(learned))), learned).to_dict())
    with caplog.at_level(logging.INFO):
        start_from(model, tiny_config(), CLASSES, path)
    found, theirs = model.state_dict(), source.state_dict()
    keys = [key for key in found if "score_head" in key or "denoising_class_embed" in key]
    assert len(keys) == 9
    for key in keys:
        for label, name in enumerate(CLASSES.names):
            expected = theirs[key][learned.index(name)] if name in learned else fresh[key][label]
            assert torch.equal(found[key][label], expected), (key, name)
    assert not model.decoder.denoising_class_embed.weight[-1].any(), "the padding stays 0"
    copied = [name for name in CLASSES.names if name in learned]
    assert f"class heads of {', '.join(copied)} are copied" in caplog.text
    if len(copied) < len(CLASSES):
        assert (
            "class heads of RAYONES, D, C, NORMAL start fresh: it has no such classes. Not used of it: X, Y"
            in caplog.text
        )
        assert "every weight of the model was loaded, but for the rows of 4 classes" in caplog.text


def test_a_class_map_comes_on_top_of_the_names(tmp_path: Path) -> None:
    learned = ("scratch", "NORMAL", "ROTURA")
    source, model = other(3), tiny_model()
    path = checkpoint_of(tmp_path / "x.pth", source, classes=ClassMap((0, 1, 2), learned).to_dict())
    start_from(model, tiny_config(tuning_class_map={"RAYONES": "scratch", "ROTURA": "NORMAL"}), CLASSES, path)
    found, theirs = model.state_dict()[BIAS], source.state_dict()[BIAS]
    assert torch.equal(found[[1, 2, 5]], theirs[[0, 1, 1]])


def test_names_are_compared_in_one_spelling(tmp_path: Path) -> None:
    """A Mac writes ñ as n and a tilde."""
    classes = ClassMap((1, 2), ("dan\u0303o", "ROTURA"))
    learned, source, model = ("ROTURA", "da\u00f1o"), other(2), tiny_model(num_classes=2)
    path = checkpoint_of(tmp_path / "x.pth", source, classes=ClassMap((0, 1), learned).to_dict())
    start_from(model, tiny_config(num_classes=2), classes, path)
    assert torch.equal(model.state_dict()[BIAS], source.state_dict()[BIAS].flip(0))
    assert class_rows({"dan\u0303o": "RO"}, classes, ("RO", "x"), Path("x")) == {0: 0}


def test_names_that_are_not_the_weights_are_refused(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path / "x.pth", other(3), classes=CLASSES.to_dict())
    with pytest.raises(UserError, match="it names 6 classes, but its weights are for 3"):
        start_from(tiny_model(), tiny_config(), CLASSES, path)


def test_text_fusion_goes_by_name(tmp_path: Path) -> None:
    fusion = section(mode="concat", learn_prompt_offsets=True)
    config = tiny_config(MultimodalFusion=fusion)
    source, model = other(NUM_CLASSES, MultimodalFusion=fusion), tiny_model(MultimodalFusion=fusion)
    learned = ClassMap(CLASSES.category_ids, CLASSES.names[::-1])
    start_from(model, config, CLASSES, checkpoint_of(tmp_path / "x.pth", source, classes=learned.to_dict()))
    found, theirs = model.state_dict(), source.state_dict()
    for key in ("text_fusion.texts.offsets", "text_fusion.head.readouts.0.linear.weight"):
        assert torch.equal(found[key], theirs[key].flip(0)), key


PARTS = {
    "backbone": r"backbone\.",
    "encoder": r"encoder\.",
    "decoder": r"decoder\.(decoder|query_pos)",
    "heads": r"decoder\.((enc|dec|pre)_.*head\.|denoising)",
}


@pytest.mark.parametrize("part", ["encoder", "decoder", "heads"])
def test_a_part_that_stays_random_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str) -> None:
    """A foreign checkpoint with other names for one part of the network."""
    source = {key: value for key, value in other(NUM_CLASSES).state_dict().items() if not re.match(PARTS[part], key)}
    path = tmp_path / "foreign.pth"
    save_checkpoint(path, {"model": source})
    with caplog.at_level(logging.INFO):
        start_from(tiny_model(), tiny_config(), CLASSES, path)
    (warning,) = [record for record in caplog.records if record.getMessage().startswith("stays random")]
    assert warning.levelno == logging.WARNING
    assert re.fullmatch(
        rf"stays random, being not in {re.escape(str(path))}: {part} \(.*tensors\)", warning.getMessage()
    )
    (origin,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith(f"from {path}: ")]
    assert all(name in origin for name in PARTS if name != part)


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


def test_a_bare_vit_goes_into_the_backbone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, model = other(2), tiny_model()
    path = tmp_path / "vit.pt"
    torch.save(source.backbone.vit.state_dict(), path)
    fresh = model.state_dict()[BIAS].clone()
    with caplog.at_level(logging.INFO):
        start_from(model, tiny_config(), CLASSES, path)
    assert re.search(r"from -t .*vit\.pt: backbone \(\d+ of \d+ tensors\)", caplog.text)
    (random,) = [line for line in caplog.text.splitlines() if "stays random" in line]
    assert all(f"{part} (" in random for part in PARTS)
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
