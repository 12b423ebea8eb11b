"""The whole ablation: what it refuses, and a tiny one from end to end."""

from __future__ import annotations

import json
import logging
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analysis.ablate import Ablation, ablate, plan, text_facts
from analysis.ablation_runs import Task
from data.errors import UserError
from data.splits import build_datasets
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.config import load_config
from models.text_encoder import encode_texts
from tests.support.text_towers import write_bert, write_clip
from tests.support.tiny_run import ROOT, write_tiny_config, write_tiny_data
from tests.support.training import alone, train_here

FUSION = """
MultimodalFusion: {{proj_dim: 8, lr: 0.01}}
texts:
  own: {{square: [a bright square, a light block], bar: [a dark bar]}}
  encoder: {{name: "{encoder}", allow_download: False}}
"""
SHORT = ("epoches=1", "flat_epoch=1", "no_aug_epoch=0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, configs of both phases, an encoder of random weights, and phase 1."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder)
    write_tiny_config(folder)
    write_tiny_config(folder, name="fused", extra=FUSION.format(encoder=write_bert(folder / "bert").as_posix()))
    train_here(folder / "tiny.yml", folder / "phase_1", SHORT)
    return folder


def ablation(tiny: Path, folder: Path) -> Ablation:
    return Ablation(
        config=tiny / "fused.yml",
        phase_1=tiny / "phase_1" / "best.pth",
        modes=("cosine", "none"),
        seeds=(0,),
        folder=folder,
        overrides=SHORT,
        samples=100,
    )


def test_every_fault_at_once(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wrong = Ablation(
        config=tiny / "fused.yml",
        phase_1=tiny / "absent.pth",
        modes=("cosine", "cosine", "magic"),
        seeds=(0, 0, -1),
        folder=tmp_path / "file",
        overrides=("seed=3", "MultimodalFusion.mode=none"),
        samples=3,
    )
    with pytest.raises(UserError, match="The ablation cannot start") as error:
        plan(wrong)
    problems = "\n".join(error.value.problems)
    for expected in (
        "--modes: there is no magic; the modes are cosine, concat, cross_attention, learned, random, shuffled, none",
        "--modes: cosine given twice; leave one out",
        "--seeds: 0 given twice; leave one out",
        "--seeds: -1; expected 0 or more",
        "--samples: 3; expected 100 to 1000000",
        "-u seed=3: --seeds decides seed; leave it out",
        "-u MultimodalFusion.mode=none: --modes decides MultimodalFusion.mode; leave it out",
        "is a file; rename it or choose another folder with --output-dir",
        "absent.pth: no such file",
    ):
        assert expected in problems
    alone_ = replace(ablation(tiny, tmp_path / "out"), modes=("none",), phase_1=tiny / "absent.pth")
    with pytest.raises(UserError) as error:
        plan(alone_)
    assert "--modes and --seeds give one run, which cannot be compared" in error.value.problems[0]
    assert "absent.pth: no such file" in error.value.problems[1] and len(error.value.problems) == 2
    without = replace(ablation(tiny, tmp_path / "out"), config=tiny / "tiny.yml")
    with pytest.raises(UserError, match="The config has no section MultimodalFusion"):
        plan(without)
    assert not (tmp_path / "out").exists()


def test_phase_2_is_no_start(tiny: Path, tmp_path: Path) -> None:
    content = load_checkpoint(tiny / "phase_1" / "best.pth")
    content["model"]["text_fusion.gates"] = torch.zeros(2)
    save_checkpoint(tmp_path / "fused.pth", content)
    with pytest.raises(UserError, match="fused.pth: is of phase 2 .*all modes must start from the same checkpoint"):
        plan(replace(ablation(tiny, tmp_path / "out"), phase_1=tmp_path / "fused.pth"))


def test_tasks(tiny: Path, tmp_path: Path) -> None:
    tasks = plan(replace(ablation(tiny, tmp_path / "out"), seeds=(4, 5)))
    assert [task.name for task in tasks] == ["cosine_seed4", "cosine_seed5", "none_seed4", "none_seed5"]
    for task in tasks:
        section = task.config.MultimodalFusion
        assert section is not None and (section.mode, section.seed) == (task.mode, task.seed)
        assert task.config.seed == task.seed and task.config.epoches == 1 and task.config.output_dir == task.folder


def test_the_encoder_decides_what_is_known_of_the_texts(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(tiny / "fused.yml")
    data = build_datasets(config)
    texts = encode_texts([["a hole"], ["a crack"]], config.texts.encoder)
    text_only = text_facts(texts, config, data)
    assert text_only.no_zero_shot == "text_only" and text_only.zero_shot is None and len(text_only.similarity) == 2
    clip = write_clip(tmp_path / "clip").as_posix()
    config = load_config(tiny / "fused.yml", [f"texts.encoder.name={clip}"])
    texts = encode_texts([["a hole"], ["a crack"]], config.texts.encoder)
    both = text_facts(texts, config, data)
    assert both.no_zero_shot is None and both.zero_shot is not None
    assert both.zero_shot.overall.boxes == 6 and both.zero_shot.overall.images == 3
    (tmp_path / "clip" / "config.json").unlink()
    gone = text_facts(texts, config, data)
    assert gone.zero_shot is None and gone.no_zero_shot is not None and "lacks config.json" in gone.no_zero_shot
    assert "no text-only scores of the boxes" in caplog.text


def test_the_script_exits_with_2(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers, level = logging.root.handlers[:], logging.root.level
    arguments = ["-c", tiny / "fused.yml", "-r", tiny / "none.pth", "--output-dir", tmp_path / "out", "--seeds", "0"]
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["ablate_text.py", *map(str, arguments), "-d", "cpu"])
            with pytest.raises(SystemExit) as leave:
                runpy.run_path(str(ROOT / "ablate_text.py"), run_name="__main__")
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    assert leave.value.code == 2
    assert "error: The ablation cannot start:\n  - Checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_phase_1_to_the_answer(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wanted = ablation(tiny, tmp_path / "out")
    with caplog.at_level(logging.INFO):
        markdown = ablate(wanted, alone())
    assert markdown is not None and "cosine: no verdict. The text encoder has random weights" in markdown
    assert caplog.text.count("Encoded 3 texts") == 1, "once for all runs"
    out = tmp_path / "out"
    assert {"cosine_seed0", "none_seed0", "ablation.md", "text_similarity.png"} <= {p.name for p in out.iterdir()}
    content = json.loads((out / "ablation.json").read_text(encoding="utf-8"))
    for mode in content["modes"]:
        results = json.loads((out / f"{mode['mode']}_seed0" / "results.json").read_text(encoding="utf-8"))
        assert mode["metrics"]["AP"]["value"] == pytest.approx(results["metrics"]["AP"] or 0, abs=1e-4)
    assert content["texts"]["real_weights"] is False

    def nothing(task: Task, checkpoint: Path | None) -> None:
        raise AssertionError(f"{task.name} is finished")

    assert ablate(wanted, alone(), runner=nothing) == markdown
    with pytest.raises(UserError, match=r"cosine_seed0: another config \(optimizer.lr\)"):
        ablate(replace(wanted, overrides=(*SHORT, "optimizer.lr=0.1")), alone(), runner=nothing)
