"""Weights out: the official layouts, read back by safetensors' and our own readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from data.errors import UserError
from deploy.export import (
    derived_from_dinov3,
    export_checkpoint,
    official_model_config,
    write_hub_folder,
    write_official,
)
from engine.checkpoint import checkpoint_classes, checkpoint_config, load_checkpoint, model_state
from engine.config import config_to_dict, load_config
from engine.detector import Detector, load_detector
from models.detector import build_deim, build_detector
from tests.support.baselines import small_baseline
from tests.support.configs import CONFIGS, official
from tests.support.export import CLASSES, NAMES, write_tiny_checkpoint
from tests.support.models import tiny_config, tiny_model
from tests.support.parity import SIX_CLASSES, golden_json
from tests.support.text_fusion import fused_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an export of the weight formats, beside the run."""
    folder = tmp_path_factory.mktemp("export")
    path = write_tiny_checkpoint(folder)
    written = export_checkpoint(path, ["hub", "official", "safetensors"])
    assert [one.format for one in written] == ["official", "safetensors", "hub"]
    assert all(one.path.exists() and one.agreement is None for one in written)
    return folder / "export_best"


def test_official_keys_shapes_and_dtypes(tmp_path: Path) -> None:
    """Those of the original's own state dict (S, six classes)."""
    config = load_config(official("s"), list(SIX_CLASSES))
    detector = Detector(build_detector(config).eval(), config, CLASSES, path=tmp_path / "x.pth")
    content = torch.load(write_official(detector, tmp_path / "out.pth"), weights_only=True)
    spec = golden_json("keys")
    integers = {"decoder.reg_scale", "decoder.decoder.reg_scale"}
    expected = {}
    for key, shape, _ in spec["keys"]:
        dtype = torch.int64 if key in integers or key.endswith("num_batches_tracked") else torch.float32
        expected[key] = (tuple(shape), torch.bool if key == "decoder.valid_mask" else dtype)
    for state in (content["model"], content["ema"]["module"]):
        assert {key: (tuple(value.shape), value.dtype) for key, value in state.items()} == expected
    assert (tmp_path / "out.pth").stat().st_size < 42_000_000, "both names share one copy of the weights"
    assert {"date", "last_epoch", "criterion", "postprocessor"} <= content.keys()


@pytest.mark.parametrize("name", ["best_official.pth", "model.safetensors", "hub"])
def test_everything_comes_back(exported: Path, name: str) -> None:
    expected = model_state(load_checkpoint(exported.parent / "best.pth"))  # the EMA's weights
    detector = load_detector(exported / name)
    found = detector.model.state_dict()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
    checkpoint = load_checkpoint(exported / name)
    assert checkpoint_classes(checkpoint, exported).names == NAMES and detector.classes.names == NAMES  # type: ignore[union-attr]
    assert checkpoint_config(checkpoint, exported) == load_detector(exported.parent / "best.pth").config
    assert detector.other_scale((9, 9)) is not None, "it knows the scale of its training"


def test_the_hubs_own_reader_takes_the_file(exported: Path) -> None:
    """`PyTorchModelHubMixin` loads with this function; strict, so aliases must be stored once."""
    model = tiny_model()
    safetensors.torch.load_model(model, exported / "hub" / "model.safetensors", strict=True)
    expected = model_state(load_checkpoint(exported.parent / "best.pth"))
    assert [key for key, value in model.state_dict().items() if not torch.equal(expected[key], value)] == []


def test_hub_config(exported: Path) -> None:
    """The official classes take its sections as their arguments: nothing of our own is among them."""
    content = json.loads((exported / "hub" / "config.json").read_text(encoding="utf-8"))
    keys = {key for section in content.values() for key in section}
    assert not keys & {"freeze", "backbone_lr_factor", "distinct_iou", "relation_bias", "ordered_last"}
    assert content == json.loads(json.dumps(official_model_config(tiny_config())))
    assert content["DINOv3STAs"]["interaction_indexes"] == [0, 1, 2]
    assert content["DEIMTransformer"]["num_classes"] == 6 and content["HybridEncoder"]["eval_spatial_size"] == [64, 64]
    real = official_model_config(load_config(official("s")))
    assert "depth" not in real["DINOv3STAs"] and real["DINOv3STAs"]["weights_path"] is None


def test_model_card(exported: Path) -> None:
    card = (exported / "hub" / "README.md").read_text(encoding="utf-8")
    for text in ("4. CONTAMINACIÓN", "| AP | 45.7 |", "| RAYONES | 12.3 | - | 12 |", "split `val`", "6 classes"):
        assert text in card
    assert "from random initialisation" in card and "license:" not in card.split("---")[1]


def card_of(path: Path) -> str:
    return (write_hub_folder(load_detector(path), path.parent / "hub") / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("sections", [{"DINOv3STAs__weights_path": "vit.pt"}, {"tuning": "other.pth"}])
def test_licence_of_derived_weights(tmp_path: Path, sections: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Results that cannot be read do not stop an export."""
    path = write_tiny_checkpoint(tmp_path, **sections)
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    card = card_of(path)
    assert "license_name: dinov3-license" in card and "fall under the [DINOv3 License]" in card
    assert "Not evaluated: there was no results.json of this checkpoint" in card
    assert "results.json: cannot be read" in caplog.text


def test_the_card_never_shows_another_checkpoints_metrics(tmp_path: Path) -> None:
    """A run's results.json speaks of best.pth, not of last.pth beside it."""
    card = card_of(write_tiny_checkpoint(tmp_path).rename(tmp_path / "last.pth"))
    assert "Not evaluated" in card and "45.7" not in card


def test_what_the_official_code_does_not_know(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, path = tiny_config(), tmp_path / "best.pth"
    with pytest.raises(UserError, match=r"has class texts in its scores .* --format safetensors, onnx"):
        write_official(Detector(fused_model(), config, CLASSES, path=path), tmp_path / "x.pth")
    for key, value in (("distinct_iou", 0.8), ("relation_bias", True), ("ordered_last", True)):
        own = tiny_config(**{f"DEIMTransformer__{key}": value})
        with pytest.raises(
            UserError, match=rf"was trained with DEIMTransformer\.{key}, which the official DEIMv2 does"
        ):
            write_hub_folder(Detector(build_deim(own), own, CLASSES, path=path), tmp_path / "hub")
    baseline = small_baseline("fasterrcnn_resnet18")
    detector = Detector(baseline, load_config(CONFIGS / "baselines" / "quickstart_resnet18.yml"), CLASSES, path=path)
    with pytest.raises(
        UserError, match=r"is the baseline fasterrcnn_resnet18, which cannot be exported to the official"
    ):
        write_hub_folder(detector, tmp_path / "hub")
    assert not (tmp_path / "x.pth").exists() and not (tmp_path / "hub").exists()
    write_official(Detector(tiny_model(), config, CLASSES, path=path), tmp_path / "y.pth")
    assert "no backbone `vit_custom`" in caplog.text


def test_classes_without_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An official file needs -c, and is called by COCO's names if it has 80 classes."""
    path = tmp_path / "official.pth"
    torch.save({"model": tiny_model().state_dict()}, path)
    with pytest.raises(UserError, match=r"no config in it \(an official file\?\); give one with -c CONFIG"):
        load_detector(path)
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config_to_dict(tiny_config())), encoding="utf-8")
    nowhere = "val_dataloader.dataset.ann_file=gone.json"  # else the names of data that happens to lie there
    detector = load_detector(path, config_path=tmp_path / "c.yml", overrides=[nowhere])
    assert detector.classes.names[0] == "class 1" and "names no classes" in caplog.text
    assert derived_from_dinov3(detector), "nobody knows, so the stricter licence"
