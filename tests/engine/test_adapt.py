"""`adapt_backbone.py` on a few tiny images."""

import json
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from engine.adapt import AdaptOptions, rate_ratio
from engine.config import load_config
from engine.interrupt import StopSignal
from models.detector import build_detector
from models.weights import load_backbone_weights
from tests.support.scripts import Outcome, start_script, start_two_processes
from tests.support.tiny_run import write_tiny_config, write_tiny_data

OPTIONS = ("--batch-size", "4", "-d", "cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    write_tiny_data(folder)
    write_tiny_config(folder)
    rows, columns = np.mgrid[:64, :64]
    noise = np.random.default_rng(0).random((64, 64))
    (folder / "patterns").mkdir()
    for number, pattern in enumerate((columns // 8 % 2, rows // 2 % 2, (rows // 4 + columns // 4) % 2, noise)):
        Image.fromarray((60 + 150 * pattern).astype(np.uint8)).save(folder / "patterns" / f"{number}.png")
    (folder / "unreadable").mkdir()
    (folder / "unreadable" / "0.png").write_bytes(b"nonsense")
    (folder / "same").mkdir()
    for number in range(3):
        shutil.copy(folder / "train" / "0.png", folder / "same" / f"{number}.png")
    whole = (folder / "train" / "0.png").read_bytes()
    (folder / "same" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def adapt(folder: Path, *arguments: str) -> Outcome:
    return start_script("adapt_backbone.py", "-c", "tiny.yml", *OPTIONS, *arguments, cwd=folder)


def test_it_learns_and_training_takes_the_file(tiny: Path) -> None:
    outcome = adapt(tiny, "--images", "patterns", "--epochs", "250", "--output-dir", "learnt", "--lang", "es")
    assert outcome.code == 0 and "4 imágenes: 250,0 épocas" in outcome.out, outcome.err
    card = json.loads((tiny / "learnt" / "backbone.json").read_text(encoding="utf-8"))
    assert card["steps"] == 250 and card["loss"] < 0.95 * card["loss_of_guessing"] and not card["collapsed"]
    path = tiny / "learnt" / "backbone.pt"
    config = load_config(tiny / "tiny.yml", [f"DINOv3STAs.weights_path={path.as_posix()}"])
    model = build_detector(config)
    load_backbone_weights(model, config)
    stored = torch.load(path, weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in model.backbone.vit.state_dict().items())  # type: ignore[union-attr]


def test_an_interrupted_adaptation_goes_on_exactly(tiny: Path) -> None:
    common = ("--images", "train", "--epochs", "3")
    assert adapt(tiny, *common, "--output-dir", "whole").code == 0
    answers = iter([False, False, True])
    with patch.object(StopSignal, "requested", lambda self, dist: next(answers)):
        assert adapt(tiny, *common, "--output-dir", "parts").code == 143
    assert not (tiny / "parts" / "backbone.pt").exists()
    assert adapt(tiny, *common, "--output-dir", "parts").code == 0
    whole, parts = (torch.load(tiny / name / "backbone.pt", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    outcome = adapt(tiny, "--images", "val", "--epochs", "3", "--output-dir", "parts")
    assert outcome.code == 2 and "of an adaptation of other images" in outcome.err


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(tiny: Path, dtype: torch.dtype) -> None:
    """As on a GPU, with the CPU's autocast: another loss than in float32, weights finite and float32."""
    losses = []
    for output, chosen in (("exact", None), (f"mixed_{dtype}", dtype)):
        with patch("engine.adapt.choose_amp_dtype", lambda use_amp, device, chosen=chosen: chosen):
            outcome = adapt(tiny, "--images", "train", "--epochs", "2", "--use-amp", "--output-dir", output)
        assert outcome.code == 0, outcome.err
        losses.append(json.loads((tiny / output / "backbone.json").read_text(encoding="utf-8"))["loss"])
        weights = torch.load(tiny / output / "backbone.pt", weights_only=True)
        assert all(value.isfinite().all() for value in weights.values())
        assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_collapse_is_said(tiny: Path) -> None:
    outcome = adapt(tiny, "--images", "same", "--epochs", "1", "--output-dir", "collapsed")
    assert outcome.code == 0 and "have collapsed" in outcome.out
    assert outcome.err.count("cut.png: left out, it cannot be read as an image") == 1, outcome.err
    assert json.loads((tiny / "collapsed" / "backbone.json").read_text(encoding="utf-8"))["collapsed"]


def test_two_processes(tiny: Path) -> None:
    arguments = ("-c", "tiny.yml", *OPTIONS, "--images", "train", "--epochs", "1", "--output-dir", "two")
    outcomes = start_two_processes("adapt_backbone.py", *arguments, cwd=tiny)
    assert "8 images" in outcomes[0].out and not outcomes[1].out
    assert json.loads((tiny / "two" / "backbone.json").read_text(encoding="utf-8"))["batch_size"] == 4


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "nowhere"], "nowhere: no such folder"),
        (["--images", "unreadable"], "0 images that can be read; 2 or more"),
        (["--images", "train", "--minutes", "0"], "--minutes 0: expected more than 0"),
        (["--images", "train", "--minutes", "1", "--epochs", "1"], "not allowed with argument"),
        (["--images", "train", "--batch-size", "1"], "2 or more"),
        (["--images", "train", "-u", "DINOv3STAs.weights_path=none.pt"], "there is no file"),
    ],
)
def test_bad_input(tiny: Path, arguments: list[str], complaint: str) -> None:
    outcome = adapt(tiny, *arguments, "--output-dir", "bad")
    assert outcome.code == 2 and complaint in outcome.err and not (tiny / "bad").exists()


def test_the_rate_warms_up_and_ends_at_zero() -> None:
    ratios = [rate_ratio(share) for share in np.linspace(0, 1, 101)]
    assert 0 < ratios[0] < 0.1 and max(ratios) == pytest.approx(1) and ratios[-1] == pytest.approx(0)
    assert AdaptOptions(minutes=2).share_done(60, 99) == 0.5 and AdaptOptions(epochs=4).share_done(9, 1) == 0.25
