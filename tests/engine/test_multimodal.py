"""Phase 2 as a run: how it starts, resumes, is judged without an encoder, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import engine.multimodal as multimodal
from analysis.evaluate import AnalysisOptions, evaluate_checkpoint
from data.errors import UserError
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.config import config_to_dict, load_config
from engine.console import say_end
from engine.evaluate import EvalResult, evaluate
from engine.multimodal import Start, start_of_phase_2
from engine.run import Run, build_run
from models.text_encoder import TextEmbeddings
from models.text_fusion import PREFIX
from tests.support.tiny_run import write_tiny_config
from tests.support.training import alone, assert_same_state, checkpoint, stop_after, train_here

pytestmark = pytest.mark.usefixtures("no_training_pictures")

TEXT_DIM, PROMPTS = 10, 2
METRICS_ONLY = AnalysisOptions(bootstrap=0, report=False, cost=False)
FUSION = """
MultimodalFusion: {proj_dim: 8, lr: 0.01}
texts:
  own:
    square: [a bright square, a light block]
    bar: [a dark bar, a black stripe]
"""


def fake_texts(*_: Any) -> TextEmbeddings:
    """In the place of the encoder: two prompts of each of two classes."""
    embeds = torch.randn(2, PROMPTS, TEXT_DIM, generator=torch.Generator().manual_seed(0))
    return TextEmbeddings(F.normalize(embeds, dim=-1), torch.ones(2, PROMPTS, dtype=torch.bool), "fake encoder")


def no_encoder(*_: Any) -> TextEmbeddings:
    raise AssertionError("the text encoder was asked for")


@pytest.fixture(autouse=True)
def encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal, "class_text_embeddings", fake_texts)


@pytest.fixture(scope="module")
def tiny(finished: tuple[Path, Path]) -> Path:
    """A folder with data, configs of both phases, and a finished run of each: `run` and `phase_2`."""
    folder = finished[0].parent
    write_tiny_config(folder, name="fused", extra=FUSION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multimodal, "class_text_embeddings", fake_texts)
        train_here(folder / "fused.yml", folder / "phase_2", tuning=folder / "run" / "best.pth")
    return folder


def build(tiny: Path, folder: Path, *overrides: str, config: str = "fused.yml", **start: Path) -> Run:
    """A run, not started."""
    given = {"resume": None, "tuning": tiny / "run" / "best.pth"} | start
    run = build_run(load_config(tiny / config, overrides), alone(), folder, **given)  # type: ignore[arg-type]
    run.monitor.close()
    return run


def judge(run: Run) -> EvalResult:
    split = run.data.splits["val"]
    return evaluate(run.detector, run.val_loader, split)


def test_phase_2_starts_with_phase_1_s_detections_and_ap(tiny: Path, tmp_path: Path) -> None:
    run = build(tiny, tmp_path / "run")
    found = judge(run)
    judged = evaluate_checkpoint(
        tiny / "run" / "best.pth", alone(), output_dir=tmp_path / "phase_1", options=METRICS_ONLY
    )
    expected = judged.result
    assert found.predictions and found.predictions == expected.predictions
    assert found.metrics == expected.metrics
    with torch.no_grad():
        run.detector.model.get_parameter(f"{PREFIX}gates").fill_(1.0)
    assert judge(run).predictions != expected.predictions  # an open gate does show


def test_the_run_folder_holds_texts_and_sizes(tiny: Path) -> None:
    folder = tiny / "phase_2"
    state = checkpoint(folder / "best.pth")
    section = state["config"]["MultimodalFusion"]
    assert (section["text_dim"], section["num_prompts"]) == (TEXT_DIM, PROMPTS)
    for weights in (state["model"], state["ema"]["module"]):
        assert torch.equal(weights[f"{PREFIX}texts.embeds"], fake_texts().embeds)
    assert len(list(folder.glob("text_embeddings_*.safetensors"))) == 1
    gates = checkpoint(folder / "last.pth")["model"][f"{PREFIX}gates"]
    assert gates.shape == (2,) and (gates != 0).all()


def test_parameter_groups_of_the_new_parts(tiny: Path, tmp_path: Path) -> None:
    run = build(tiny, tmp_path / "run", "MultimodalFusion.weight_decay=0.2")
    names = {id(p): name for name, p in run.model.named_parameters()}
    rates: dict[tuple[float, float], set[str]] = {}
    for group in run.optimizer.param_groups:
        found = {names[id(p)] for p in group["params"]}
        assert all(name.startswith(PREFIX) for name in found) or not any(name.startswith(PREFIX) for name in found)
        if all(name.startswith(PREFIX) for name in found):
            rates[group["initial_lr"], group["weight_decay"]] = found
    assert rates.keys() == {(0.01, 0.2), (0.01, 0.0)}
    assert all(name.endswith("projection.weight") for name in rates[0.01, 0.2])
    assert f"{PREFIX}gates" in rates[0.01, 0.0] and len(rates[0.01, 0.0]) == 1 + 1 + 2 * 3
    run = build(tiny, tmp_path / "own", 'optimizer.params=[{params: "^text_fusion", lr: 0.5}]')
    assert [group["initial_lr"] for group in run.optimizer.param_groups] == [0.5, 0.001]


def test_a_stopped_run_resumes_exactly_without_the_encoder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_after(patch, 3)
        train_here(tiny / "fused.yml", tmp_path / "run", tuning=tiny / "run" / "best.pth")
    monkeypatch.setattr(multimodal, "class_text_embeddings", no_encoder)
    start = start_of_phase_2(load_config(tiny / "fused.yml"), tmp_path / "run" / "last.pth")
    train_here(tiny / "fused.yml", tmp_path / "run", resume=start.resume)
    assert_same_state(tiny / "phase_2" / "last.pth", tmp_path / "run" / "last.pth")


@pytest.mark.parametrize("config", [None, "fused.yml"])
def test_a_checkpoint_is_judged_without_the_encoder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None
) -> None:
    monkeypatch.setattr(multimodal, "class_text_embeddings", no_encoder)
    path = None if config is None else tiny / config
    judged = evaluate_checkpoint(
        tiny / "phase_2" / "best.pth",
        alone(),
        config_path=path,
        output_dir=tmp_path / "judged",
        options=METRICS_ONLY,
    )
    trained = json.loads((tiny / "phase_2" / "results.json").read_text(encoding="utf-8"))
    assert judged.result.metrics == trained["metrics"]


def test_tuning_from_phase_2_keeps_the_fusion_but_takes_the_new_texts(tiny: Path, tmp_path: Path) -> None:
    run = build(tiny, tmp_path / "run", "MultimodalFusion.mode=shuffled", tuning=tiny / "phase_2" / "best.pth")
    mine, theirs = run.model.state_dict(), checkpoint(tiny / "phase_2" / "best.pth")["ema"]["module"]
    for key, value in mine.items():
        if key == f"{PREFIX}texts.embeds":
            assert torch.equal(value, theirs[key].flip(0))
        else:
            assert torch.equal(value, theirs[key]), key


def test_the_start_follows_from_the_checkpoint(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny / "fused.yml")
    phase_1, phase_2 = tiny / "run" / "best.pth", tiny / "phase_2" / "last.pth"
    assert start_of_phase_2(config, phase_1) == Start(tuning=phase_1)
    assert start_of_phase_2(config, phase_2) == Start(resume=phase_2)
    assert start_of_phase_2(config, None) == Start()
    bare = tmp_path / "published.pth"  # an official file has no config
    save_checkpoint(bare, {"model": checkpoint(phase_1)["model"]})
    assert start_of_phase_2(config, bare) == Start(tuning=bare)
    none = load_config(tiny / "fused.yml", ["MultimodalFusion.mode=none"])  # whose weights are those of phase 1
    begun = changed_checkpoint(tiny / "run" / "last.pth", tmp_path / "none.pth", config=config_to_dict(none))
    assert start_of_phase_2(none, begun) == Start(resume=begun)
    assert build(tiny, tmp_path / "run", "MultimodalFusion.mode=none", resume=begun, tuning=None).position.epoch == 3


def changed_checkpoint(source: Path, target: Path, **changes: Any) -> Path:
    save_checkpoint(target, load_checkpoint(source) | changes)
    return target


@pytest.mark.parametrize(
    ("start", "overrides", "message"),
    [
        (None, [], r"starts from a trained detector\. Give its checkpoint: .* -r "),
        ("baseline", [], "baseline.pth: is a checkpoint of the baseline fcos_resnet18; text fusion starts"),
        ("classes", [], "disagree on the classes"),
        ("phase_1", ["DEIMTransformer.num_layers=3"], "best.pth: these are not the weights of the configured model"),
        (
            "phase_1",
            ["MultimodalFusion.text_dim=512"],
            r"text_dim: 512, but fake encoder gives 10 .*; leave the key out",
        ),
    ],
)
def test_what_cannot_start_phase_2(
    tiny: Path, tmp_path: Path, start: str | None, overrides: list[str], message: str
) -> None:
    path = phase_1 = tiny / "run" / "best.pth"
    if start == "classes":
        classes = checkpoint(phase_1)["classes"] | {"names": ["bar", "square"]}
        path = changed_checkpoint(phase_1, tmp_path / "classes.pth", classes=classes)
    if start == "baseline":
        path = changed_checkpoint(phase_1, tmp_path / "baseline.pth", config={"Baseline": {"name": "fcos_resnet18"}})
    with pytest.raises(UserError, match=message):
        tuning = start_of_phase_2(load_config(tiny / "fused.yml"), path).tuning
        build(tiny, tmp_path / "run", *overrides, tuning=tuning if start else None)
    assert not (tmp_path / "run").exists()


def test_text_from_the_first_step(tiny: Path, tmp_path: Path) -> None:
    config = load_config(tiny / "fused.yml", ["MultimodalFusion.from_start=True"])
    assert start_of_phase_2(config, None, tiny / "fused.yml") == Start()
    with pytest.raises(UserError, match=r"from_start: True trains with text from the first step, but -r .*best.pth"):
        start_of_phase_2(config, tiny / "run" / "best.pth")
    assert start_of_phase_2(config, tiny / "phase_2" / "last.pth").resume is not None
    fused = build_run(config, alone(), tmp_path / "run", resume=None, tuning=None)
    assert any(name.startswith(PREFIX) for name, _ in fused.model.named_parameters())
    fused.close()
    with pytest.raises(UserError, match="MultimodalFusion.trainable: heads would leave random weights as they are"):
        load_config(tiny / "fused.yml", ["MultimodalFusion.from_start=True", "MultimodalFusion.trainable=heads"])


@pytest.mark.parametrize(
    ("gate", "said"),
    [(0, "at most 0.00 logits: its gates, which begin at 0, have hardly opened"), (1, "at most 10.00 logits, by its")],
)
def test_the_end_says_what_the_texts_can_do(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, gate: int, said: str
) -> None:
    run = build(tiny, tmp_path / "run", f"MultimodalFusion.gate_init={gate}")
    with caplog.at_level("INFO"):
        say_end(run)
    assert f"the text head can move a score by {said}" in caplog.text


def test_resuming_with_other_settings_lists_them(tiny: Path, tmp_path: Path) -> None:
    overrides = ["MultimodalFusion.mode=shuffled", "MultimodalFusion.trainable=heads", "texts.template=one {}"]
    with pytest.raises(UserError) as error:
        build(tiny, tmp_path / "run", *overrides, resume=tiny / "phase_2" / "last.pth")
    assert "was trained with other settings of the text fusion" in str(error.value)
    assert list(error.value.problems) == [
        "MultimodalFusion.mode: shuffled, in the checkpoint cosine",
        "MultimodalFusion.trainable: heads, in the checkpoint all",
        "texts.template: one {}, in the checkpoint None",
    ]


def test_judging_with_other_settings_or_phase_1_is_refused(tiny: Path, tmp_path: Path) -> None:
    def judge_with(path: Path, *overrides: str) -> None:
        evaluate_checkpoint(
            path, alone(), config_path=tiny / "fused.yml", overrides=overrides, output_dir=tmp_path / "judged"
        )

    with pytest.raises(UserError, match="mode: random, in the checkpoint cosine"):
        judge_with(tiny / "phase_2" / "best.pth", "MultimodalFusion.mode=random")
    with pytest.raises(UserError, match=r"best.pth: has no class texts in it, but the config asks for text fusion"):
        judge_with(tiny / "run" / "best.pth")
    assert not (tmp_path / "judged").exists()


def test_the_encoder_does_not_disturb_the_first_weights(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = build(tiny, tmp_path / "one").model.state_dict()

    def draws(*_: Any) -> TextEmbeddings:
        torch.randn(1000)
        return fake_texts()

    monkeypatch.setattr(multimodal, "class_text_embeddings", draws)
    two = build(tiny, tmp_path / "two").model.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_earlier_run_s_texts_are_looked_for_in_the_run_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def remember(*arguments: Any) -> TextEmbeddings:
        asked.append(arguments[-1])
        return fake_texts()

    monkeypatch.setattr(multimodal, "class_text_embeddings", remember)
    shutil.copytree(tiny / "phase_2", tmp_path / "run")
    build(tiny, tmp_path / "new")
    build(tiny, tmp_path / "run")
    assert asked == [None, tmp_path / "run"]
    assert list((tmp_path / "run").glob("text_embeddings_*.safetensors"))  # the earlier run was moved aside
