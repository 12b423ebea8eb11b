"""`suggest_labels.py` as a user meets it, with a network of toy widths that knows nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data.convert.__main__ import main as convert
from deploy.suggest import information_bits, most_informative
from models.detections import Detections
from tests.support.scripts import Outcome, start_script
from tests.support.tiny_run import CLASS_NAMES, write_tiny_checkpoint, write_tiny_config, write_tiny_data

pytestmark = pytest.mark.usefixtures("no_training_pictures")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a config and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder, num_val=5)
    write_tiny_checkpoint(folder / "run" / "best.pth", write_tiny_config(folder))
    (folder / "judged").mkdir()
    for name, content in (("ground_truth", {"images": [], "annotations": [], "categories": []}), ("predictions", [])):
        (folder / "judged" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def suggest(folder: Path, *arguments: str) -> Outcome:
    return start_script("suggest_labels.py", *arguments, "-d", "cpu", cwd=folder)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_errors_and_accept(tiny: Path) -> None:
    outcome = suggest(tiny, "errors", "-r", "run", "--count", "3", "--lang", "es", "--output-dir", "errors")
    assert outcome.code == 0 and "sugerencias en 5 imágenes" in outcome.out, outcome.err
    folder = tiny / "errors"
    assert {path.name for path in folder.iterdir()} == {"suggestions.json"} | {
        f"label_errors.{kind}" for kind in ("png", "pdf", "html")
    }
    page = (folder / "label_errors.html").read_text(encoding="utf-8")
    assert page.count("<li>") == page.count("data:image/jpeg") == 3 and "sobra una caja" in page
    extra = [
        n for n, one in enumerate(read_json(folder / "suggestions.json")["suggestions"], 1) if one["kind"] == "extra"
    ]
    outcome = suggest(tiny, "errors", "--output-dir", "errors", "--accept", f"{extra[0]},{extra[1]}")
    assert outcome.code == 0 and "2 suggestions followed" in outcome.out, outcome.err
    before, after = read_json(tiny / "val.json"), read_json(folder / "corrected.json")
    assert len(after["annotations"]) == len(before["annotations"]) - 2 and after["images"] == before["images"]
    for entries, complaint in (("0", "0: expected a number"), ("2-1 x", "x: expected"), ("9999", "from 1 to")):
        outcome = suggest(tiny, "errors", "--output-dir", "errors", "--accept", entries)
        assert outcome.code == 2 and complaint in outcome.err


def test_folds_judge_every_image_unseen_and_go_on(tiny: Path) -> None:
    options = ("errors", "-c", "tiny.yml", "-u", "epoches=1", "flat_epoch=0", "no_aug_epoch=0", "--folds", "2")
    outcome = suggest(tiny, *options, "--output-dir", "folds")
    assert outcome.code == 0, outcome.err
    runs = sorted((tiny / "folds").glob("folds_2_*/fold_?"))
    held = [{one["id"] for one in read_json(run / "ground_truth.json")["images"]} for run in runs]
    trained = [{one["id"] for one in read_json(run.with_name(f"{run.name}_train.json"))["images"]} for run in runs]
    every = {one["id"] for one in read_json(tiny / "train.json")["images"]}
    assert held[0] | held[1] == every and not held[0] & held[1] and trained == [held[1], held[0]]
    suggestions = read_json(tiny / "folds" / "suggestions.json")
    times = [(run / "best.pth").stat().st_mtime_ns for run in runs]
    assert suggest(tiny, *options, "--output-dir", "folds").code == 0
    assert [(run / "best.pth").stat().st_mtime_ns for run in runs] == times, "complete folds are not trained again"
    assert read_json(tiny / "folds" / "suggestions.json") == suggestions


def test_next_and_pseudo_leave_annotations_that_come_back(tiny: Path) -> None:
    common = ("-r", "run", "--images", "val", "--score", "0.01")
    outcome = suggest(tiny, "next", *common, "--count", "3", "--output-dir", "next")
    assert outcome.code == 0 and "3 of 5 images" in outcome.out, outcome.err
    table = (tiny / "next" / "next.csv").read_text(encoding="utf-8").splitlines()
    names = [one["file_name"] for one in read_json(tiny / "next" / "next.json")["images"]]
    assert [line.split(",")[1] for line in table] == ["file", *names] and len(set(names)) == 3

    outcome = suggest(tiny, "pseudo", *common, "--output-dir", "pseudo")
    assert outcome.code == 0 and "pseudo_weight=0.5" in outcome.out, outcome.err
    content, joined = read_json(tiny / "pseudo" / "pseudo.json"), read_json(tiny / "pseudo" / "train_pseudo.json")
    assert {one["pseudo"] for one in content["annotations"]} == {1}
    train = read_json(tiny / "train.json")
    assert len(joined["annotations"]) == len(train["annotations"]) + len(content["annotations"])
    assert all((tiny / one["file_name"]).is_file() for one in joined["images"])
    assert [one for one in joined["annotations"] if "pseudo" not in one] == train["annotations"]
    # Back from an annotation tool, by the converter of every COCO file.
    source = tiny / "back"
    source.mkdir()
    (source / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copytree(tiny / "val", source / "images")
    assert convert(["coco", str(source), str(tiny / "converted"), "--reference"]) == 0
    (file,) = (tiny / "converted").rglob("*.json")
    assert len(read_json(file)["annotations"]) == len(content["annotations"])


def test_images_are_cut_as_in_training(tiny: Path) -> None:
    """What a detector of tiles would miss in the whole image; boxes are those of `predict_deimv2.py`."""
    shared = ("-r", "run", "--score", "0.001", "-u", "tiles.size=40")
    assert suggest(tiny, "next", *shared, "--images", "val", "--output-dir", "next_tiles").code == 0
    predict = ("predict_deimv2.py", *shared, "--nms", "0.5", "--save", "coco", "--output-dir", "predicted_tiles")
    assert start_script(*predict[:1], "val", *predict[1:], "-d", "cpu", cwd=tiny).code == 0
    boxes = []
    for file in ("next_tiles/next.json", "predicted_tiles/coco.json"):
        content = read_json(tiny / file)
        names = {one["id"]: Path(one["file_name"]).name for one in content["images"]}
        boxes.append({(names[r["image_id"]], r["category_id"], round(r["score"], 3)) for r in content["annotations"]})
    assert boxes[0] == boxes[1] and len({name for name, _, _ in boxes[0]}) == 5


def test_pseudo_labels_take_the_calibration_of_the_evaluation(tiny: Path) -> None:
    """What is above the class's threshold, with scores as chances: a temperature of 2 halves the logit."""
    shutil.copytree(tiny / "run", tiny / "judged_run")

    def labels(output: str, *options: str) -> tuple[dict[Any, float], str]:
        outcome = suggest(tiny, "pseudo", "-r", "judged_run", "--images", "val", "--output-dir", output, *options)
        assert outcome.code == 0, outcome.err
        content = read_json(tiny / output / "pseudo.json")
        names = {one["id"]: one["file_name"] for one in content["images"]}
        rows = content["annotations"]
        return {(names[r["image_id"]], r["category_id"], *r["bbox"]): r["score"] for r in rows}, outcome.out

    raw, said = labels("raw", "--score", "0.001")
    assert "not calibrated" in said and "evaluate_deimv2.py -r" in said and "--calibrate isotonic" in said
    scores = {key: sorted(score for row, score in raw.items() if row[1] == key) for key in (3, 7)}
    least = {key: sum(own[len(own) // 2 - 1 :][:2]) / 2 for key, own in scores.items()}
    evaluation = {
        "checkpoint": "best.pth",
        "epoch": 5,
        "split": "val",
        "own_val_data": True,
        "calibration": {"curves": dict.fromkeys(CLASS_NAMES, 2.0)},
        "thresholds": {
            "overall": {"score": 0.9},
            "per_class": {name: {"score": least[key]} for name, key in zip(CLASS_NAMES, (3, 7), strict=True)},
        },
    }
    (tiny / "judged_run" / "results.json").write_text(json.dumps(evaluation), encoding="utf-8")
    found, said = labels("calibrated", "--lang", "es")
    odds = {row: (score / (1 - score)) ** 0.5 for row, score in raw.items() if score >= least[row[1]]}
    assert 2 < len(odds) < len(raw) and "son probabilidades, según la calibración" in said and "mejor F1" in said
    assert found == pytest.approx({row: value / (1 + value) for row, value in odds.items()}, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["errors"], "give one of -r CKPT"),
        (["errors", "-r", "run", "--folds", "2"], "give one of -r CKPT"),
        (["errors", "-r", "run", "--split", "train"], "has learned the errors in it"),
        (["errors", "-c", "tiny.yml", "--folds", "1"], "2 to 20"),
        (["errors", "-c", "tiny.yml", "--predictions", "nowhere"], "no such file"),
        (["errors", "-c", "tiny.yml", "--predictions", "judged"], "did not judge 5 of 5 images"),
        (["errors", "--accept", "1"], "--output-dir"),
        (["errors", "--accept", "1", "--output-dir", "nowhere"], "suggestions.json: cannot be read"),
        (["next", "-r", "run"], "next -r CKPT --images FOLDER"),
        (["next", "-r", "run", "--images", "val", "--count", "0"], "--count 0: expected 1 or more"),
        (["pseudo", "-r", "run", "--images", "val", "--score", "2"], "--score 2: expected 0 to 1"),
        (["pseudo", "-r", "run", "--images", "nothing"], "nothing: no such file or folder"),
        (["next", "-r", "run", "--images", "rtsp://line"], "rtsp://line: a video is passed over; give images"),
    ],
)
def test_bad_input(tiny: Path, arguments: list[str], complaint: str) -> None:
    outcome = suggest(tiny, *arguments)
    assert outcome.code == 2 and complaint in outcome.err and "Traceback" not in outcome.err


def test_information_and_diversity() -> None:
    scores = torch.tensor([0.5, 0.5])
    assert information_bits(Detections.of(torch.zeros(2, 4), scores, torch.zeros(2))) == pytest.approx(2)
    assert information_bits(Detections.empty()) == 0
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]).double()).numpy()
    # The second tells nearly as much as the first, but the same; the third is chosen before it.
    assert most_informative(torch.tensor([3.0, 2.9, 1.0]).double().numpy(), near, 3) == [0, 2, 1]
    assert most_informative(torch.zeros(2).double().numpy(), near[:2], 5) == [0, 1]
