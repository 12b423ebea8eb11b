import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from data.errors import UNPRINTABLE
from tests.support.coco_files import CocoFiles
from tests.support.scripts import start_script

ROOT = Path(__file__).parents[1]

CONFIG = """
__include__: [{root}/configs/quickstart.yml]
synthetic: ~
num_classes: {num_classes}
epoches: {epoches}
output_dir: {data}/run
train_dataloader:
  dataset: {{img_folder: {data}/images/train, ann_file: {data}/train.json}}
  total_batch_size: 2
val_dataloader:
  dataset: {{img_folder: {data}/images/val, ann_file: {data}/val.json}}
"""


def _config(folder: Path, num_classes: int = 2, epoches: int = 12) -> Path:
    path = folder / "config.yml"
    text = CONFIG.format(root=ROOT.as_posix(), data=folder.as_posix(), num_classes=num_classes, epoches=epoches)
    path.write_text(text, encoding="utf-8")
    return path


run_here = partial(start_script, "check_data.py")


@pytest.fixture
def train(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path, num_images=6).save()


@pytest.fixture
def val(tmp_path: Path) -> CocoFiles:
    return CocoFiles(tmp_path, "val").save()


def test_sound_data(tmp_path: Path, train: CocoFiles, val: CocoFiles) -> None:
    for lang, summary, end in (
        ("en", "train: 6 images (0 without boxes), 12 boxes (holes ", "No errors.\nNo warnings.\n"),
        ("es", "train: 6 imágenes (0 sin cajas), 12 cajas (holes ", "Sin errores.\nSin avisos.\n"),
    ):
        code, out, _ = run_here("-c", _config(tmp_path), "--lang", lang)
        assert code == 0 and out.startswith(summary) and out.endswith(end)


def test_everything_is_reported_at_once(tmp_path: Path, train: CocoFiles, val: CocoFiles) -> None:
    train.content["annotations"][0]["bbox"] = [1, 1, -1, 5]
    train.content["images"][4]["height"] = 400
    del train.content["annotations"][1]["area"]
    train.save()
    val.content["images"][0]["file_name"] = "../train/train_2.png"
    val.save()
    (train.img_folder / "train_3.png").write_bytes(b"x")
    Image.open(train.img_folder / "train_4.png").save(val.img_folder / "val_2.png")
    code, out, _ = run_here("-c", _config(tmp_path, num_classes=3))
    assert code == 3
    for text in (
        "error: " + str(train.ann_file) + ": annotation 1 (image 1, train_1.png): bbox [1, 1, -1, 5] has a negative",
        "image 5 (train_5.png): the image is 48 x 40 pixels, but the annotation file says 48 x 400",
        "image 3 (train_3.png): ",
        "cannot be read as an image",
        "image 1 (../train/train_2.png): the path leaves the image folder",
        "image 2 (val_2.png) of split val: is also in split train (train_4.png; the same pixels)",
        "num_classes: 3",
        "1 warning:",
        "1 of 12 annotations have no usable area",
    ):
        assert text in out, text
    assert "Traceback" not in out


def test_long_lists_are_cut_unless_asked(tmp_path: Path, train: CocoFiles, val: CocoFiles) -> None:
    for _ in range(60):
        train.add_box(1, [0, 0, -1, 5], 1)
    train.save()
    _, out, _ = run_here("-c", _config(tmp_path), "-u", "on_bad_data=skip")
    assert out.count("has a negative side") == 50 and "... and 10 more of the kind: malformed box" in out
    assert "on_bad_data: skip: training will leave the faulty entries out." in out
    _, out, _ = run_here("-c", _config(tmp_path), "--all")
    assert out.count("has a negative side") == 60


def test_pictures_of_every_stage(tmp_path: Path, train: CocoFiles, val: CocoFiles) -> None:
    (train.img_folder / "train_3.png").unlink()
    policy = "{name: stop_epoch, epoch: [2, 4, 7], ops: [RandomHorizontalFlip]}"
    override = f"train_dataloader.dataset.transforms.policy={policy}"
    folder = tmp_path / "pictures"
    options = ("-u", override, "--show", "3", "--output-dir", folder)
    code, out, _ = run_here("-c", _config(tmp_path, epoches=9), *options)
    assert code == 3 and "there is no file" in out  # the picture shows what is left
    names = sorted(path.name for path in folder.iterdir())
    assert names[:2] == ["object_sides.png", "training_samples_epoch_1.png"] and len(names) >= 4
    with Image.open(folder / names[1]) as sheet:
        assert sheet.mode == "RGB" and min(sheet.size) > 320
    assert "training_samples_epoch_3.png: epochs 3 to " in out


def test_pictures_go_beside_the_run_folder_where_there_are_images(tmp_path: Path, val: CocoFiles) -> None:
    code, out, err = run_here("-c", _config(tmp_path), "--show", "1")
    assert code == 3 and "train.json: file: does not exist" in out
    assert "no pictures" in err and not (tmp_path / "run_samples").exists()
    CocoFiles(tmp_path, num_images=6).save()
    assert run_here("-c", _config(tmp_path), "--show", "1").code == 0
    assert list((tmp_path / "run_samples").glob("*.png"))


def test_bad_arguments_and_configs(tmp_path: Path) -> None:
    code, _, err = run_here("-c", tmp_path / "gone.yml")
    assert code == 2 and "gone.yml" in err and "Traceback" not in err
    (tmp_path / "file").write_text("x")
    code, _, err = run_here("-c", _config(tmp_path), "--show", "2", "--output-dir", tmp_path / "file")
    assert code == 2 and "is a file" in err
    assert run_here("-c", _config(tmp_path), "--show", "-2").code == 2


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
def test_no_name_hides_what_is_wrong_elsewhere(tmp_path: Path, train: CocoFiles, val: CocoFiles) -> None:
    names = ["a\nb.png", "\x1b[31mred.png", "caf\udce9.png", "x" * 5000 + ".png"]
    for image, name in zip(train.content["images"], names, strict=False):
        if len(name) < 100:
            (train.img_folder / image["file_name"]).rename(train.img_folder / name)
        image["file_name"] = name
    for part in (train, val):
        part.content["categories"][1]["name"] = "ra\nya\x1b[2J\ud800"
        part.save()
    (train.img_folder / names[1]).write_bytes(b"no image")
    outcome = run_here("-c", _config(tmp_path))
    assert outcome.code == 3 and "Traceback" not in outcome.err
    assert "2 errors:" in outcome.out and "\\x1b[31mred.png): " in outcome.out and "there is no file" in outcome.out
    assert "ra\\nya\\x1b[2J\\ud800 " in outcome.out and not UNPRINTABLE.search(outcome.out.replace("\n", ""))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the module resource is not there")
@pytest.mark.parametrize("is_sound", [True, False])
def test_a_million_annotations(tmp_path: Path, is_sound: bool) -> None:
    """In both splits together: within a minute of one core and 2 GB, whether all is well or nothing."""
    for part in ("train", "val"):
        files = CocoFiles(tmp_path, part, num_images=500, boxes_per_image=0, size_wh=(480, 400))
        for number in range(500_000):
            x, y = number // 500 % 50 * 8, number // 25000 * 16
            box = [x, y, 20.5, 30.5 if is_sound else -1.0]
            files.add_box(1 + number % 500, box, 1 + number % 2, segmentation=[box * 4])
        files.save()
    code = (
        "import resource, runpy, sys\n"
        "try:\n    runpy.run_path('check_data.py', run_name='__main__')\n"
        "finally:\n    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print('USED', used.ru_utime + used.ru_stime, used.ru_maxrss)"
    )
    command = [sys.executable, "-c", code, "-c", str(_config(tmp_path))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == (0 if is_sound else 1), outcome.stderr
    assert ("No errors." if is_sound else "1000000 errors:") in outcome.stdout
    cpu_seconds, kibibytes = map(float, outcome.stdout.split("USED ")[1].split())
    assert cpu_seconds < 60 and kibibytes < 2e9 / 1024
