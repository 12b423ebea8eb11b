"""Checkpoints: what is written comes back, a full disk destroys nothing, a hostile file does nothing."""

import errno
import os
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from data.classes import ClassMap
from data.errors import UserError
from engine.checkpoint import (
    check_classes,
    checkpoint_classes,
    checkpoint_config,
    load_checkpoint,
    model_state,
    save_checkpoint,
)
from engine.config import config_to_dict, load_config
from engine.detector import judged_config
from tests.support.full_disk import full_disk
from tests.support.models import tiny_config

ROOT = Path(__file__).parents[2]
CLASSES = ClassMap((1, 5), ("hole", "scratch"))


def state() -> dict[str, Any]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "date": "2026-01-01T00:00:00",
        "last_epoch": 4,
        "model": model.state_dict(),
        "ema": {"module": {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, "updates": 7},
        "optimizer": optimizer.state_dict(),
        "classes": CLASSES.to_dict(),
        "nested": {"tuple": (1, 2.5, None, True), "list": ["a", [torch.arange(3)]], 3: "integer key"},
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b and type(a) is type(b)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run" / "last.pth"
    original = state()
    save_checkpoint(path, original)
    loaded = load_checkpoint(path)
    assert_same({**original, "model": dict(original["model"])}, loaded)
    assert type(loaded["model"]) is dict, "containers are plain"
    assert [file.name for file in path.parent.iterdir()] == ["last.pth"], "no temporary file stays"
    torch.nn.Linear(3, 2).load_state_dict(loaded["model"])
    save_checkpoint(path, {**original, "last_epoch": 5})
    assert load_checkpoint(path)["last_epoch"] == 5


def test_tensors_are_saved_without_what_they_were_cut_from(tmp_path: Path) -> None:
    large = torch.zeros(1_000_000)
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"model": {"slice": large[:10], "parameter": nn.Parameter(torch.ones(2))}})
    assert path.stat().st_size < 10_000
    loaded = load_checkpoint(path)["model"]
    assert loaded["slice"].shape == (10,) and type(loaded["parameter"]) is Tensor


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, Path("x")]}, r"'extra\.a\[1\]' is a (Posix|Windows)Path"),
        (np.float64(1.0), "'extra' is a float64"),
        ({1.5: 0}, "'extra': key 1.5 is a float"),
        ({"m": nn.Linear(1, 1)}, r"'extra\.m' is a Linear"),
    ],
)
def test_only_plain_values_are_stored(tmp_path: Path, value: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        save_checkpoint(tmp_path / "x.pth", {"model": {}, "extra": value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("room", [0, 100, 3_000, 1_000_000])
@pytest.mark.parametrize("earlier", [True, False])
def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, room: int, earlier: bool) -> None:
    path = tmp_path / "last.pth"
    if earlier:
        save_checkpoint(path, {"model": {"w": torch.ones(2)}})
    said = "" if earlier else "No file was written. Free some space"
    with full_disk(room), pytest.raises(UserError, match=rf"Could not write .*last\.pth: File too large\. .*{said}"):
        save_checkpoint(path, {"model": {"w": torch.zeros(1_000_000)}})
    assert not earlier or torch.equal(load_checkpoint(path)["model"]["w"], torch.ones(2))
    assert [file.name for file in tmp_path.iterdir()] == ["last.pth"] * earlier


def test_unwritable_places_are_user_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="Could not write checkpoint .*below"):
        save_checkpoint(file / "below" / "last.pth", {"model": {}})
    assert file.read_text(encoding="utf-8") == "mine"

    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        save_checkpoint(tmp_path / "last.pth", {"model": {}})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    save_checkpoint(whole, state())
    content = whole.read_bytes()
    path = tmp_path / "cut.pth"
    for length in [*range(0, 400, 80), len(content) // 2, len(content) - 40, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.pth: damaged, cut short or not a checkpoint"):
            load_checkpoint(path)


def test_garbage_is_refused_in_one_short_message(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "x.pth"
    rng = random.Random(0)
    samples = [rng.randbytes(rng.randint(1, 300)) for _ in range(40)]
    samples += [b'{"model": 1}', b"\x80\x04N.", b"PK\x03\x04" + bytes(50), pickle.dumps([1, 2])]
    for sample in samples:
        path.write_bytes(sample)
        with pytest.raises(UserError) as caught:
            load_checkpoint(path)
        text = str(caught.value)
        assert text.startswith(f"Checkpoint {path}: ") and len(text) < len(str(path)) + 350
        assert "weights_only" not in text, "nobody is told how to switch the protection off"
    assert not recwarn.list


class _Payload:
    """Unpickling it runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"echo hacked > {self.target}",)


@pytest.mark.parametrize("protocol", [None, 0, 2, 4])
def test_hostile_checkpoint_runs_no_code(tmp_path: Path, protocol: int | None) -> None:
    target, path = tmp_path / "hacked", tmp_path / "hostile.pth"
    content = {"model": {"w": torch.zeros(1)}, "x": _Payload(target)}
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"x": _Payload(target)}, protocol=protocol))
    with pytest.raises(UserError, match=r"hostile\.pth: (it holds a Python object \(\S*system\)|damaged)"):
        load_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it holds a list; expected a dict with `model`"),
        (torch.zeros(2), "it holds a Tensor; expected a dict"),
        ({}, "no `model` in it; it holds nothing"),
        ({"state": 1, "arch": 2}, "no `model` in it; it holds arch, state"),
        ({"cls_token": torch.zeros(1)}, "it holds bare weights; .* belongs into `DINOv3STAs.weights_path`"),
        ({"model": [1]}, "`model` is not a dict of names to tensors"),
        ({"model": {"w": 1}}, "`model` is not a dict of names to tensors"),
        ({"model": {}, "ema": {"updates": 1}}, "`ema.module` is not a dict of names to tensors"),
        ({"model": {}, "ema": 5}, "`ema.module` is not a dict of names to tensors"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_checkpoint(path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pth"
    save_checkpoint(path, {"model": {}})

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        load_checkpoint(path)


def test_official_files_and_hub_files_load(tmp_path: Path) -> None:
    weights = {"w": torch.ones(2)}
    official = tmp_path / "official.pth"
    torch.save(
        {
            "date": "2025-09-01",
            "last_epoch": 131,
            "model": OrderedDict(w=torch.zeros(2)),
            "criterion": OrderedDict(),
            "ema": {"module": OrderedDict(weights), "updates": 10},
        },
        official,
    )
    loaded = load_checkpoint(official)
    assert torch.equal(model_state(loaded)["w"], weights["w"]), "the EMA is what is evaluated"
    assert checkpoint_classes(loaded, official) is None
    check_classes(loaded, CLASSES, official)
    hub = tmp_path / "model.safetensors"
    save_file(weights, hub)
    assert torch.equal(model_state(load_checkpoint(hub))["w"], weights["w"])
    hub.write_bytes(hub.read_bytes()[:20])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or not a safetensors file"):
        load_checkpoint(hub)


HUGE_ID = {"category_ids": [float("inf")], "names": ["a"]}


@pytest.mark.parametrize("number", [torch.ones(1), "3", [], float("nan"), True])
@pytest.mark.parametrize("key", ["last_epoch", "seed", "train_seconds"])
def test_what_results_say_on_is_a_number(tmp_path: Path, key: str, number: Any) -> None:
    torch.save({"model": {}, key: number}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth: `{key}` is no number"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("section", ["Baseline", "MultimodalFusion", "texts", "HybridEncoder"])
def test_a_stored_config_of_the_wrong_shape_is_one_message(tmp_path: Path, section: str) -> None:
    config = tiny_config(MultimodalFusion={"text_dim": 4, "num_prompts": 1})
    checkpoint = {"model": {}, "config": {**config_to_dict(config), section: "mine"}}
    path = tmp_path / "x.pth"
    with pytest.raises(UserError, match=r"x\.pth: its config cannot be used.*\n.*" + section):
        judged_config(checkpoint, path, None)
    (tmp_path / "c.yml").write_text(yaml.safe_dump(config_to_dict(config)), encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.pth: has no class texts in it"):
        judged_config(checkpoint, path, tmp_path / "c.yml")


def test_metadata_without_end(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors", {"config": "[" * 10**6})
    with pytest.raises(UserError, match=r"x\.safetensors: its metadata are damaged \(nested too deeply\)"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_classes_of_checkpoint_and_data_must_agree() -> None:
    path = Path("best.pth")
    stored = {"classes": CLASSES.to_dict()}
    assert checkpoint_classes(stored, path) == CLASSES
    check_classes(stored, CLASSES, path)
    check_classes(stored, ClassMap((0, 1), CLASSES.names), path)
    with pytest.raises(UserError, match="disagree on the classes"):
        check_classes(stored, ClassMap((1, 5), CLASSES.names[::-1]), path)
    with pytest.raises(UserError) as caught:
        check_classes(stored, ClassMap((0, 1, 2), ("dent", "hole", "scratch")), path)
    text = str(caught.value)
    assert "best.pth and the data set disagree on the classes" in text and "-t" in text
    assert "checkpoint: 2 classes: hole, scratch" in text and "data set: 3 classes: dent, hole, scratch" in text
    for damaged in ({}, {"category_ids": [2, 1], "names": ["a", "b"]}, {"category_ids": 3, "names": []}, 5, HUGE_ID):
        with pytest.raises(UserError, match="its `classes` are damaged"):
            checkpoint_classes({"classes": damaged}, path)


def test_config_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    config = load_config(ROOT / "configs" / "deimv2" / "deimv2_dinov3_s_coco.yml")
    save_checkpoint(path, {"model": {}, "config": config_to_dict(config)})
    assert checkpoint_config(load_checkpoint(path), path) == config
    for stored in ({}, {"config": None}):
        with pytest.raises(
            UserError, match=r"best\.pth: no config in it \(an official file\?\); give one with -c CONFIG"
        ):
            checkpoint_config(stored, path)
    with pytest.raises(UserError, match=r"best\.pth: its config cannot be used; give one with -c CONFIG"):
        checkpoint_config({"config": {**config_to_dict(config), "no_such_key": 1}}, path)
