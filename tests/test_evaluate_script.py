"""`evaluate_deimv2.py` as a user meets it."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.analyse import Analysis
from analysis.compare import read_runs
from data.classes import ClassMap
from data.loader import build_eval_loader
from data.splits import build_datasets
from engine.checkpoint import save_checkpoint
from engine.config import load_config
from engine.detector import Detector
from engine.evaluate import evaluate
from models.detector import DEIM, build_detector
from tests.support.scripts import start_script, start_two_processes
from tests.support.tiny_run import write_tiny_checkpoint, write_tiny_config, write_tiny_data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a config, and a checkpoint whose raw and EMA weights differ; its backbone file does not exist."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder, num_val=5)
    write_tiny_config(folder)
    gone = ["DINOv3STAs.weights_path=nowhere.pt"]
    write_tiny_checkpoint(folder / "run" / "best.pth", folder / "tiny.yml", gone, with_ema=True)
    return folder


run_here = partial(start_script, "evaluate_deimv2.py")


FAST = ("--bootstrap", "0", "--no-report", "--no-cost")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_analysis_options(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def figures(analysis: Analysis, folder: Path, lang: str, *, captions: bool) -> list[Any]:
        seen.append((lang, captions))
        return []

    monkeypatch.setattr("analysis.figures.write_figures", figures)
    chosen = ["--bootstrap", "7", "--confusion-iou", "0.3", "--confusion-score", "0.01", "--lang", "es", "--no-cost"]
    chosen.append("--no-caption")
    outcome = run_here("-r", "run/best.pth", "-d", "cpu", "--output-dir", "es", *chosen, cwd=tiny)
    assert outcome.code == 0, outcome.err
    results = read(tiny / "es" / "results.json")
    assert (results["bootstrap_samples"], results["cost"]) == (7, None)
    assert (results["confusion"]["iou"], results["confusion"]["score"]) == (0.3, 0.01)
    assert seen == [("es", False)] and 'lang="es"' in (tiny / "es" / "report.html").read_text(encoding="utf-8")


def test_a_checkpoints_config_draws_and_makes_nothing(tiny: Path) -> None:
    """Only a config file that the user gives may write to its `synthetic.root`."""
    content = torch.load(tiny / "run" / "best.pth", weights_only=True)
    content["config"]["synthetic"] = {"root": "drawn", "num_train": 1, "num_val": 1}
    dataset = content["config"]["val_dataloader"]["dataset"]
    dataset |= {"img_folder": "drawn/images/val", "ann_file": "drawn/annotations/instances_val.json"}
    (tiny / "foreign").mkdir()
    torch.save(content, tiny / "foreign" / "best.pth")
    outcome = run_here("-r", "foreign/best.pth", "-d", "cpu", *FAST, cwd=tiny)
    assert outcome.code == 2 and "instances_val.json: file: does not exist" in outcome.err
    assert "-c CONFIG draws them" in outcome.err
    assert not (tiny / "drawn").exists() and [path.name for path in (tiny / "foreign").iterdir()] == ["best.pth"]


@pytest.mark.usefixtures("unpainted")
def test_a_folder_answers_one_question(tiny: Path) -> None:
    """Other data, size, weights or settings get a folder of their own; the same question leaves nothing of before."""

    def evaluated(*arguments: str, checkpoint: str = "asked.pth") -> Path:
        options = ("--output-dir", "asked", "-d", "cpu", "--bootstrap", "0", "--no-cost", *arguments)
        outcome = run_here("-r", checkpoint, *options, cwd=tiny)
        assert outcome.code == 0, outcome.err
        said = next(line.removeprefix("Written to ") for line in outcome.out.splitlines() if "Written" in line)
        folder = said.removesuffix("/report.html")
        assert folder == "asked" or "asked holds another evaluation (of other " in outcome.err
        return tiny / folder

    content = torch.load(tiny / "run" / "best.pth", weights_only=True)
    save_checkpoint(tiny / "asked.pth", content)
    first = evaluated()
    assert first == tiny / "asked" and (first / "report.html").is_file() and (first / "gallery").is_dir()
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    section = "val_dataloader.dataset"
    others = [
        ("-u", f"{section}.img_folder=train", f"{section}.ann_file=train.json", "allow_split_overlap=True"),
        ("-u", "eval_spatial_size=[96,96]"),
        ("-u", "num_top_queries=7"),
        ("--split", "train"),
        ("--nms", "0.5"),
        ("--use-amp",),
    ]
    folders = [evaluated("--no-report", *other) for other in others]
    assert evaluated("--no-report", *others[0]) == folders[0], "the same question finds its folder again"
    save_checkpoint(tiny / "asked.pth", content | {"seed": 1})
    folders.append(evaluated("--no-report"))
    assert len({first, *folders}) == 1 + len(folders), folders
    for folder in folders:
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["ground_truth.json", "predictions.json", "results.json"]
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    save_checkpoint(tiny / "asked.pth", content)
    assert evaluated("--no-report") == first
    assert sorted(path.name for path in first.iterdir()) == ["ground_truth.json", "predictions.json", "results.json"]
    assert [read(path / "results.json")["own_val_data"] for path in (first, folders[0])] == [True, False]


def test_the_ema_is_what_is_judged(tiny: Path) -> None:
    run_here("-r", "run/best.pth", "-d", "cpu", "--output-dir", "ema", *FAST, cwd=tiny)
    config = load_config(tiny / "tiny.yml")
    torch.manual_seed(0)
    build_detector(config)
    data = build_datasets(config, splits=("val",))
    detector = Detector(build_detector(config), config, data.classes)
    loader = build_eval_loader(config, data.splits["val"], data.classes)
    expected = evaluate(detector, loader, data.splits["val"], progress=False)
    found = read(tiny / "ema" / "predictions.json")
    assert [one["category_id"] for one in found] == [one["category_id"] for one in expected.predictions]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected.predictions], abs=1e-5)


def test_config_overrides_and_splits(tiny: Path) -> None:
    base = ("-r", "run/best.pth", "-d", "cpu", *FAST)
    assert run_here(*base, "--split", "train", "-u", "val_dataloader.total_batch_size=3", cwd=tiny).code == 0
    assert read(tiny / "run" / "eval_train_best" / "results.json")["num_images"] == 8
    test_data = ["test_dataloader.dataset.img_folder=train", "test_dataloader.dataset.ann_file=train.json"]
    outcome = run_here(*base, "--split", "test", "-u", *test_data, "--output-dir", "from_stored", cwd=tiny)
    assert outcome.code == 0, outcome.err
    outcome = run_here(
        *base, "-c", "tiny.yml", "--split", "test", "-u", *test_data, "--output-dir", "from_file", cwd=tiny
    )
    assert outcome.code == 0, outcome.err
    stored, file = (read(tiny / name / "results.json") for name in ("from_stored", "from_file"))
    assert stored["metrics"] == file["metrics"] and stored["gt_hash"] == file["gt_hash"]
    assert stored["gt_hash"] == read(tiny / "run" / "eval_train_best" / "results.json")["gt_hash"]


def test_official_file_with_a_config(tiny: Path) -> None:
    weights = torch.load(tiny / "run" / "best.pth", weights_only=True)["ema"]["module"]
    save_checkpoint(tiny / "weights_only.pth", {"model": weights})
    outcome = run_here("-r", "weights_only.pth", "-c", "tiny.yml", "-d", "cpu", *FAST, cwd=tiny)
    assert outcome.code == 0, outcome.err
    assert run_here("-r", "run/best.pth", "-d", "cpu", "--output-dir", "own", *FAST, cwd=tiny).code == 0
    results = read(tiny / "eval_val_weights_only" / "results.json")
    assert results["metrics"] == read(tiny / "own" / "results.json")["metrics"]
    assert (results["weights"], results["epoch"], results["seed"]) == ("model", None, None)


def prepare_bad_files(tiny: Path) -> None:
    whole = (tiny / "run" / "best.pth").read_bytes()
    (tiny / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    checkpoint = torch.load(tiny / "run" / "best.pth", weights_only=True)
    weights = checkpoint["ema"]["module"]
    save_checkpoint(tiny / "other.pth", {**checkpoint, "ema": None, "model": {"conv.weight": torch.zeros(1)}})
    save_checkpoint(tiny / "official.pth", {"model": weights})
    three = build_detector(load_config(tiny / "tiny.yml", ["num_classes=3"]))
    save_checkpoint(tiny / "three.pth", {"model": three.state_dict()})
    names = ClassMap((3, 7), ("dent", "bar")).to_dict()
    save_checkpoint(tiny / "renamed.pth", {**checkpoint, "classes": names})


VAL_AS_TEST = ["test_dataloader.dataset.img_folder=val", "test_dataloader.dataset.ann_file=val.json"]
BAD_INPUTS: list[tuple[list[str], str]] = [
    (["-r", "gone.pth"], "gone.pth: no such file"),
    (["-r", "truncated.pth"], "truncated.pth: damaged, cut short or not a checkpoint"),
    (["-r", "other.pth"], "other.pth: these are not the weights of the configured model"),
    (["-r", "three.pth", "-c", "tiny.yml"], "The weights are for 3 classes, the config says num_classes 2"),
    (["-r", "official.pth"], "official.pth: no config in it (an official file?); give one with -c CONFIG"),
    (["-r", "renamed.pth"], "is called 'square' here and 'dent' in the training split or checkpoint"),
    (["-r", "run/best.pth", "-u", "num_classes=5"], "num_classes"),
    (["-r", "run/best.pth", "-u", "epochz=5"], "epochz"),
    (["-r", "run/best.pth", "-c", "gone.yml"], "gone.yml"),
    (["-r", "run/best.pth", "-u", "val_dataloader.dataset.ann_file=gone.json"], "gone.json"),
    (["-r", "run/best.pth", "--split", "test"], "no section test_dataloader"),
    (["-r", "run/best.pth", "--split", "test", "-u", *VAL_AS_TEST], "val.json, the validation split's file"),
    (["-r", "run/best.pth", "-d", "cuda"], "Device 'cuda' was asked for"),
    (["-r", "run/best.pth", "-d", "tpu"], "expected cpu, cuda or cuda:N"),
    (["-r", "run/best.pth", "--bootstrap", "-1"], "--bootstrap -1: expected 0 (off) or more"),
    (["-r", "run/best.pth", "--confusion-iou", "1"], "--confusion-iou 1: expected 0.1 to below 1"),
    (["-r", "run/best.pth", "--confusion-iou", "nan"], "--confusion-iou nan: expected 0.1 to below 1"),
    (["-r", "run/best.pth", "--confusion-score", "2"], "--confusion-score 2: expected 0 to 1"),
    (["-r", "run/best.pth", "--nms", "1"], "--nms 1: expected an IoU between 0 and 1"),
    (
        ["-r", "run/best.pth", "--nms", "auto"],
        "--nms auto: expected an IoU between 0 and 1, e.g. 0.7; without --nms all",
    ),
    (["-r", "run/best.pth", "--output-dir", "tiny.yml"], "tiny.yml is a file; rename it or choose another"),
]


def test_bad_input_gets_one_message_and_no_output(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_bad_files(tiny)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(tiny.rglob("*"))
    for arguments, message in BAD_INPUTS:
        outcome = run_here("--output-dir", "new", *arguments, cwd=tiny)
        assert outcome.code == 2, (arguments, outcome)
        assert message in outcome.err, (arguments, outcome.err)
        assert outcome.err.count("error: ") == 1 and "Traceback" not in outcome.err, outcome.err
        assert outcome.out == ""
    assert sorted(tiny.rglob("*")) == before, "nothing is written"


def test_full_disk_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    outcome = run_here("-r", "run/best.pth", "-d", "cpu", "--output-dir", "full", *FAST, cwd=tiny)
    assert outcome.code == 2 and "No space left on device" in outcome.err
    assert list((tiny / "full").iterdir()) == []


def test_out_of_memory_names_the_remedy(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nand more")

    monkeypatch.setattr(DEIM, "forward", refuse)
    outcome = run_here("-r", "run/best.pth", "-d", "cpu", "--output-dir", "big", *FAST, cwd=tiny)
    assert outcome.code == 2 and "-u val_dataloader.total_batch_size=1" in outcome.err
    assert "and more" not in outcome.err and not (tiny / "big").exists()


def test_torchrun_counts_every_image_once(tiny: Path) -> None:
    alone = run_here("-r", "run/best.pth", "-d", "cpu", "--output-dir", "alone", *FAST, cwd=tiny)
    assert alone.code == 0, alone.err
    arguments = ("-r", "run/best.pth", "-d", "cpu", "--output-dir", "together", *FAST)
    printed = [outcome.out for outcome in start_two_processes("evaluate_deimv2.py", *arguments, cwd=tiny)]
    assert printed[0].count("AP50") == 2 and not printed[1], "one process prints: two tables, of metrics and of classes"
    one, two = (read(tiny / name / "predictions.json") for name in ("alone", "together"))
    assert [(p["image_id"], p["category_id"]) for p in one] == [(p["image_id"], p["category_id"]) for p in two]
    one, two = (read(tiny / name / "results.json") for name in ("alone", "together"))
    assert one["metrics"] == pytest.approx(two["metrics"], abs=1e-6) and two["num_images"] == 5


def test_an_evaluation_knows_its_config_wherever_it_lies(tiny: Path) -> None:
    outcome = run_here("-r", "run/best.pth", "-d", "cpu", "--output-dir", "far/away", *FAST, cwd=tiny)
    assert outcome.code == 0, outcome.err
    twin = run_here("-r", "run/best.pth", "-d", "cpu", "--output-dir", "other", *FAST, "-u", "epoches=9", cwd=tiny)
    assert twin.code == 0, twin.err
    far, other = read_runs([tiny / "far" / "away", tiny / "other"])
    trained = torch.load(tiny / "run" / "best.pth", weights_only=True)["config"]
    assert far.config == json.loads(json.dumps(trained)) and far.results.epoch == 5
    assert other.config is not None and other.config["epoches"] == 9
