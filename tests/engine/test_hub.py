"""Hub folders and names: what is on this machine is used, the network only where asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import save_file

from data.classes import COCO_CLASSES, ClassMap
from data.errors import UserError
from engine.checkpoint import checkpoint_classes, load_checkpoint, model_state
from engine.config import config_to_dict
from engine.detector import judged_config
from models.hub import hub_overrides, hub_weights, output_folder
from tests.support.models import tiny_config

SECTIONS: dict[str, Any] = {"DINOv3STAs": {}, "HybridEncoder": {}, "DEIMTransformer": {}}


def hub_folder(folder: Path, config: Any = SECTIONS) -> Path:
    folder.mkdir(parents=True)
    save_file({"decoder.w": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to the hub")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)


def test_a_folder_is_a_checkpoint(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "DEIMv2_S", SECTIONS | {"DINOv3STAs": {"name": "vit_tiny"}})
    checkpoint = load_checkpoint(folder)
    assert list(model_state(checkpoint)) == ["decoder.w"]
    assert checkpoint["hub_config"]["DINOv3STAs"] == {"name": "vit_tiny"}
    assert hub_weights(folder) == folder / "model.safetensors" and output_folder(folder, "x").parent == tmp_path


def test_only_hf_stands_for_the_hub(no_network: None) -> None:
    for other in ("Owner/Name", "runs/best.pth", "a"):
        assert hub_weights(Path(other)) == Path(other)
    with pytest.raises(UserError, match=r"Owner/Name: no such file; .* hub is written hf:Owner/Name\."):
        load_checkpoint(Path("Owner/Name"))
    told = r"hf:Owner/Name: could not be fetched .*\(OSError: no route to the hub\)\. .*"
    with pytest.raises(UserError, match=told + "`hf download Owner/Name --local-dir ckpts/Name`"):
        load_checkpoint(Path("hf:Owner/Name"))
    for path in ("runs/x.pth", "a/b/c", "tests/x"):
        with pytest.raises(UserError, match=r"expected a \.pth file of a training run\.$"):
            load_checkpoint(Path(path))
    assert output_folder(Path("hf:Owner/Name"), "eval_val") == Path("outputs/Name/eval_val_Name")


def test_a_misspelt_name() -> None:
    with pytest.raises(UserError, match="is no name on the Hugging Face hub"):
        hub_weights(Path("hf:a/b/c"))


def test_the_cache_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    folder = hub_folder(tmp_path / "snapshot")
    cached = str(folder / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: cached)
    assert hub_weights(Path("hf:Owner/Name")) == folder / "model.safetensors"


def test_a_download_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    with pytest.raises(UserError, match=r"hf:Owner/Name: has no model\.safetensors"):
        hub_weights(Path("hf:Owner/Name"))
    hub_folder(tmp_path / "x").rename(tmp_path / "y")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path / "y"))
    assert hub_weights(Path("hf:Owner/Name")) == tmp_path / "y" / "model.safetensors"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"config\.json: cannot be read"),
        ({"HGNetv2": {}}, r"not the config of an official DEIMv2 .*DINOv3STAs, .*HGNetv2 sizes and the `transformers`"),
        ([1], "not the config of an official DEIMv2"),
        (SECTIONS | {"DEIMTransformer": [1]}, r"not the config of an official DEIMv2 .*\(DEIMTransformer missing"),
        ('{"a": ' * 300 + "1" + "}" * 300, r"config\.json: cannot be read \(nested more than 100 deep\)"),
        *(
            (SECTIONS | {"id2label": labels}, r"config\.json: id2label is not a name for each label 0, 1, 2")
            for labels in (["a", "b"], {}, "ab", {"0": 1}, {"1": "a"}, {"0": "a", "2": "b"}, {"0": None})
        ),
    ],
)
def test_other_configs_are_refused(tmp_path: Path, config: Any, message: str) -> None:
    folder = hub_folder(tmp_path / "x", config)
    with pytest.raises(UserError, match=message):
        load_checkpoint(folder)


def test_labels_of_a_folder_are_its_classes(tmp_path: Path) -> None:
    """In label order, whatever their order in the file; COCO's own have COCO's ids."""
    folder = hub_folder(tmp_path / "a", SECTIONS | {"id2label": {str(k): f"name {k}" for k in reversed(range(12))}})
    classes = checkpoint_classes(load_checkpoint(folder), folder)
    assert classes == ClassMap(tuple(range(12)), tuple(f"name {k}" for k in range(12)))
    folder = hub_folder(tmp_path / "b", SECTIONS | {"id2label": dict(enumerate(COCO_CLASSES.names))})
    assert checkpoint_classes(load_checkpoint(folder), folder) == COCO_CLASSES


def test_what_the_tensors_do_not_show_comes_from_the_folder(caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config()
    stored = SECTIONS | {
        "DINOv3STAs": {"interaction_indexes": [0, 2, 1], "finetune": False},
        "DEIMTransformer": {"nhead": config.DEIMTransformer.nhead, "eps": None},
    }
    assert hub_overrides({"hub_config": stored}, config) == ["DINOv3STAs.interaction_indexes=[0, 2, 1]"]
    assert (
        "interaction_indexes: these weights were made for [0, 2, 1] (their config.json), the config says" in caplog.text
    )
    assert hub_overrides({}, config) == []


def test_a_judged_model_follows_the_folder(tmp_path: Path) -> None:
    """`-u` has the last word."""
    path = tmp_path / "c.yml"
    path.write_text(yaml.safe_dump(config_to_dict(tiny_config())), encoding="utf-8")
    checkpoint = {"hub_config": SECTIONS | {"DEIMTransformer": {"eval_idx": 0}}, "model": {}}
    config = judged_config(checkpoint, tmp_path, path)
    assert config.DEIMTransformer is not None and config.DEIMTransformer.eval_idx == 0
    config = judged_config(checkpoint, tmp_path, path, ["DEIMTransformer.eval_idx=1"])
    assert config.DEIMTransformer is not None and config.DEIMTransformer.eval_idx == 1
