"""A run on tiles: trained, resumed bit for bit, judged in whole images, predicted with the same tiles."""

import json
from pathlib import Path

import pytest

import engine.train as training
from data.errors import UserError
from engine.results import read_evaluation
from engine.run import Run, save
from tests.support.scripts import start_script
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import assert_same_state, checkpoint, train_here

pytestmark = pytest.mark.usefixtures("no_training_pictures")

_TILES = ("tiles.size=32", "tiles.keep_empty=0.1", "epoches=2", "no_aug_epoch=0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, config, and a run of two epochs, stopped within the second (`middle.pth`)."""
    folder = tmp_path_factory.mktemp("tiled")
    write_tiny_data(folder, num_train=4, num_val=2)
    write_tiny_config(folder)
    step = training.train_step

    def keeping(run: Run, *arguments: object) -> training.Step:
        done = step(run, *arguments)  # type: ignore[arg-type]
        if run.position.epoch == 1 and run.position.batch_in_epoch == 0:
            position = run.position
            run.position = position.but(step=position.step + 1, batch_in_epoch=1)
            save(run, "middle.pth")
            run.position = position
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_step", keeping)
        train_here(folder / "tiny.yml", folder / "run", _TILES)
    return folder


def test_resumed_bit_for_bit_and_never_with_other_tiles(trained: Path) -> None:
    run = trained / "run"
    train_here(trained / "tiny.yml", trained / "again", _TILES, resume=run / "middle.pth")
    assert_same_state(run / "last.pth", trained / "again" / "last.pth")
    for other, said in (
        ("tiles.overlap=0.5", "tiles.overlap: 0.2 -> 0.5"),
        ("tiles.keep_empty=1", "tiles.keep_empty: 0.1 -> 1.0"),
        ("tiles=null", "tiles: "),
    ):
        with pytest.raises(UserError, match=f"  - {said}"):
            train_here(trained / "tiny.yml", trained / "other", [*_TILES, other], resume=run / "middle.pth")


def test_judged_in_whole_images_as_predicted(trained: Path) -> None:
    """evaluate_deimv2.py and predict_deimv2.py find the same boxes, in pixels of the images, with tiles unasked for."""
    scale = checkpoint(trained / "run" / "best.pth")["object_scale"]
    assert scale["scale"] == 2 and scale["sides_px"][1] == pytest.approx((20 + 288**0.5), abs=1)
    judged = start_script(
        "evaluate_deimv2.py", "-r", "run/best.pth", "-d", "cpu", "--no-report", "--no-cost", cwd=trained
    )
    assert judged.code == 0, judged.err
    results = json.loads((trained / "run/eval_val_best/results.json").read_text(encoding="utf-8"))
    assert results["tiles"] == {"size": 32, "overlap": 0.2} and results["num_images"] == 2
    truth, found = read_evaluation(trained / "run/eval_val_best")
    assert {*truth.images} == {1001, 1002}
    ends = found.boxes_xywh[:, :2] + found.boxes_xywh[:, 2:]
    assert ends.max() > 60, "tiles are merged in the image"
    outcome = start_script(
        "predict_deimv2.py", "-r", "run/best.pth", "-d", "cpu", "val", "--score", "0", "--nms", "none",
        "--batch-size", "4", "--save", "coco", "--output-dir", "predicted", cwd=trained,
    )  # fmt: skip
    assert outcome.code == 0 and "reach the network at" not in outcome.err, outcome.err
    content = json.loads((trained / "predicted/coco.json").read_text(encoding="utf-8"))
    assert sorted(one["score"] for one in content["annotations"]) == sorted(found.scores.tolist())
    assert content["info"]["tile"] == [32, 0.2]


def test_another_scale_is_said_with_both_numbers(trained: Path) -> None:
    """By the checkpoint and by what is exported; thresholds of other tiles are not used."""
    exported = start_script("export_deimv2.py", "-r", "run", "--format", "hub", "--output-dir", "out", cwd=trained)
    assert exported.code == 0, exported.err
    assert "input 64 x 64 (height x width) pixels of image tiles of 32 x 32 pixels (overlap 0.2), 2 classes" in (
        trained / "out/hub/README.md"
    ).read_text(encoding="utf-8")
    judge = ("evaluate_deimv2.py", "-r", "run/best.pth", "-d", "cpu", "--no-report", "--no-cost", "-u", "tiles=null")
    predict = ("predict_deimv2.py", "-r", "run/best.pth", "-d", "cpu", "val/0.png", "--tile", "64", "--save", "csv")
    shared = (predict[0], "-r", "out/hub", *predict[3:])
    for arguments in (judge, predict, shared):
        outcome = start_script(*arguments, cwd=trained)
        assert outcome.code == 0, outcome.err
        assert "reach the network at 1 pixels per image pixel, in training it was 2:" in outcome.err
        if arguments is predict:
            assert (
                "now it is tiles of 64 px, overlap 0.2. Run evaluate_deimv2.py -u tiles.size=64 tiles.over"
                in outcome.err
            )
