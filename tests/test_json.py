"""`--json` of every script: one line on stdout, whatever happens, with the exit code of the process."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.produce import Workplace
from tests.support.scripts import start_script
from tests.support.tiny_run import ROOT

CONFIG, CHECKPOINT = ["-c", "x.yml"], ["-r", "x.pth"]
BAD_INPUT: dict[str, list[str]] = {
    "ablate_text.py": [*CONFIG, *CHECKPOINT],
    "adapt_backbone.py": [*CONFIG, "--images", "x"],
    "check_data.py": CONFIG,
    "compare_models.py": ["a", "b"],
    "data.convert": ["voc", "a", "b"],
    "evaluate_deimv2.py": CHECKPOINT,
    "export_deimv2.py": [*CHECKPOINT, "--format", "official"],
    "predict_deimv2.py": [*CHECKPOINT, "x.png"],
    "suggest_labels.py": ["errors", *CHECKPOINT],
    "train_deimv2.py": CONFIG,
    "train_deimv2_multimodal.py": [*CONFIG, *CHECKPOINT],
    "visualize_attention.py": [*CHECKPOINT, "--from-val", "1"],
}


def line_of(folder: Path, script: str, *arguments: str | Path) -> dict[str, Any]:
    outcome = start_script(script, *arguments, "--json", cwd=folder)
    assert outcome.out.count("\n") == 1, outcome
    line: dict[str, Any] = json.loads(outcome.out)
    assert (line["script"], line["exit_code"]) == (script, outcome.code), outcome.err
    return line


def test_every_script_is_here() -> None:
    assert {path.name for path in ROOT.glob("*.py")} | {"data.convert"} == BAD_INPUT.keys()


@pytest.mark.parametrize("script", BAD_INPUT)
def test_bad_input(script: str, tmp_path: Path) -> None:
    line = line_of(tmp_path, script, *BAD_INPUT[script])
    assert line["exit_code"] == 2 and line["error"] and line["outputs"] == {} and not any(tmp_path.iterdir())
    line = line_of(tmp_path, script, "--no-such-option")
    assert line["exit_code"] == 2 and line["error"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("json"))


BEST, SHORT = "-r run/best.pth", "-u epoches=1 flat_epoch=0 no_aug_epoch=0"
EVALUATION = f"{BEST} -d cpu --bootstrap 0 --no-report --no-cost"
# Arguments; exit code; some of the outputs and metrics.
DONE: list[tuple[str, str, int, str, str]] = [
    ("check_data.py", "-c tiny.yml", 0, "", "object_sides_px below_16_px advice"),
    ("train_deimv2.py", "-c tiny.yml --dry-run", 0, "", ""),
    ("train_deimv2.py", f"-c tiny.yml --test-only {BEST} --dry-run", 0, "", ""),
    ("train_deimv2.py", f"-c tiny.yml --test-only {BEST} -d cpu", 0, "folder results", "AP AP50"),
    ("train_deimv2.py", f"-c tiny.yml {SHORT} --output-dir new", 0, "folder best last results", "AP AP50"),
    ("evaluate_deimv2.py", f"{EVALUATION} --output-dir one", 0, "folder results", "AP AP50"),
    ("evaluate_deimv2.py", f"{EVALUATION} --max-miss-rate 0.01", 3, "folder results", "AP"),
    ("predict_deimv2.py", f"{BEST} val -d cpu", 0, "folder coco csv", "images detections"),
    ("export_deimv2.py", f"{BEST} --format official", 0, "official", ""),
    ("visualize_attention.py", f"{BEST} --from-val 1 --what evidence", 0, "folder", "figures"),
    ("suggest_labels.py", f"pseudo {BEST} --images val", 0, "annotations", "boxes"),
    ("adapt_backbone.py", "-c tiny.yml --images val --epochs 1", 0, "backbone card", "loss"),
    ("data.convert", "split train.json --images train --output-dir parts", 0, "train val", "images"),
]


@pytest.mark.parametrize(("script", "arguments", "code", "outputs", "metrics"), DONE)
@pytest.mark.usefixtures("no_training_pictures")
def test_what_was_done(script: str, arguments: str, code: int, outputs: str, metrics: str, place: Workplace) -> None:
    line = line_of(place.folder, script, *arguments.split())
    assert line["exit_code"] == code and line["error"] is None, line
    assert line["outputs"].keys() >= {*outputs.split()} and line["metrics"].keys() >= {*metrics.split()}, line
    assert all((place.folder / path).exists() for path in line["outputs"].values())
    assert (line["problems"] != []) == (code == 3)
