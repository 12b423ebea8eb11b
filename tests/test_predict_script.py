"""`predict_deimv2.py` as a user meets it: in this process, with a network of toy widths."""

import csv
import io
import json
import os
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import deploy.predict
from data.errors import UNPRINTABLE, printable
from data.loader import build_eval_loader
from data.splits import build_datasets
from deploy.sources import ImageSource
from deploy.thresholds import choose_thresholds
from deploy.video import count_frames
from deploy.writers import ImageWriter
from engine.config import load_config
from engine.detector import Detector, load_detector
from engine.evaluate import evaluate
from models.detections import Detections
from models.detector import build_detector
from tests.support.scripts import start_script
from tests.support.tiny_run import CLASS_NAMES, CLASSES, write_tiny_checkpoint, write_tiny_config, write_tiny_data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a config and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_data(folder, num_val=5)
    Image.open(folder / "val/0.png").resize((150, 90)).save(folder / "val/0.png")
    content = json.loads((folder / "val.json").read_text(encoding="utf-8"))
    content["images"][0].update(width=150, height=90)
    (folder / "val.json").write_text(json.dumps(content), encoding="utf-8")
    write_tiny_checkpoint(folder / "run" / "best.pth", write_tiny_config(folder))
    return folder


run_here = partial(start_script, "predict_deimv2.py", "-r", "run/best.pth", "-d", "cpu")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), delimiter=delimiter))


def test_what_evaluation_finds_is_what_prediction_finds(tiny: Path) -> None:
    """Box for box, score for score, in images of two sizes."""
    config = load_config(tiny / "tiny.yml")
    torch.manual_seed(0)
    model = build_detector(config)
    data = build_datasets(config, splits=("val",))
    loader = build_eval_loader(config, data.splits["val"], data.classes)
    expected = evaluate(Detector(model, config, data.classes), loader, data.splits["val"], progress=False).predictions
    outcome = run_here("val", "--score", "0", "--batch-size", "4", "--save", "coco", "--output-dir", "same", cwd=tiny)
    assert outcome.code == 0, outcome.err
    content = read_json(tiny / "same/coco.json")
    ids = {image.file_name: image.id for image in data.splits["val"].images}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    found = [
        {"image_id": ids[names[one["image_id"]]], **{key: one[key] for key in ("category_id", "bbox", "score")}}
        for one in content["annotations"]
    ]
    assert found == expected and len(found) == 5 * 20
    assert [one["name"] for one in content["categories"]] == list(CLASS_NAMES)


def test_odd_images_are_read_upright_and_broken_ones_named(tiny: Path) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    (tiny / "odd").mkdir()
    noise = np.random.default_rng(0).integers(0, 65536, (60, 80))
    Image.fromarray(noise.astype(np.uint16)).save(tiny / "odd/grey16.png")
    Image.fromarray((noise // 256).astype(np.uint8)).save(tiny / "odd/rotated.jpg", exif=rotated)
    (tiny / "odd/broken.png").write_bytes(b"nonsense")
    (tiny / "odd/notes.txt").write_text("no image")
    every = ("--save", "yolo,csv,coco,images", "--score", "0.0", "--lang", "es", "--output-dir", "all")
    outcome = run_here("odd", *every, cwd=tiny)
    assert outcome.code == 3 and "1 archivo omitido" in outcome.out, outcome
    assert "broken.png: cannot be read as an image (empty, or of no accepted" in outcome.out
    folder = tiny / "all"
    sizes = {one["file_name"]: (one["width"], one["height"]) for one in read_json(folder / "coco.json")["images"]}
    assert sizes == {"grey16.png": (80, 60), "rotated.jpg": (60, 80)}, "upright"
    assert sorted(path.name for path in (folder / "images").iterdir()) == ["grey16.jpg", "rotated.jpg"]
    rows = read_table(folder / "predictions.csv", ";")
    assert {row["archivo"] for row in rows} == set(sizes)
    assert all(0 <= float(row["xmin"].replace(",", ".")) <= int(row["ancho"]) for row in rows)
    lines = (folder / "yolo/labels/grey16.txt").read_text().splitlines()
    first, row = [float(value) for value in lines[0].split()], rows[0]
    middle = (float(row["xmin"].replace(",", ".")) + float(row["xmax"].replace(",", "."))) / 2
    assert first[1] * 80 == pytest.approx(middle, abs=0.02) and CLASS_NAMES[int(first[0])] == row["clase"]


def test_large_images_need_tiles(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    arguments = ("val/1.png", "--score", "0", "--save", "csv", "--output-dir")
    outcome = run_here(*arguments, "whole", cwd=tiny)
    assert outcome.code == 3 and "read by predict_deimv2.py --tile alone" in outcome.out
    assert "Written" not in outcome.out
    assert run_here(*arguments, "tiled", "--tile", "48", cwd=tiny).code == 0
    assert Image.MAX_IMAGE_PIXELS == 1000, "as it was before"


def test_pictures_too_long_for_jpeg(tmp_path: Path) -> None:
    line_scan = np.zeros((70_000, 3, 3), np.uint8)
    with ImageWriter(tmp_path, ["images"], CLASSES, "en") as writer:
        writer.add(ImageSource(tmp_path / "a.tif", "a.tif", "a"), line_scan, Detections.empty())
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.png"]


def test_videos(tiny: Path) -> None:
    video = tiny / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (66, 64))
    for level in range(7):
        writer.write(np.full((64, 66, 3), 30 * level, np.uint8))
    writer.release()
    shutil.copy(video, tiny / "clip")
    (tiny / "broken.mp4").write_bytes(b"nonsense")
    arguments = ("--score", "0", "--output-dir", "moving", "--max-frames", "5", "--tile", "48", "--batch-size", "3")
    outcome = run_here("clip.avi", "broken.mp4", *arguments, cwd=tiny)
    assert outcome.code == 3 and "broken.mp4: cannot be opened" in outcome.out, outcome
    assert "Looked at 0 images and 5 video frames" in outcome.out
    capture = cv2.VideoCapture(str(tiny / "moving/videos/clip.mp4"))
    shapes = [capture.read()[1].shape for _ in range(5)]
    assert shapes == [(64, 66, 3)] * 5 and not capture.read()[0] and capture.get(cv2.CAP_PROP_FPS) == 10
    assert (
        "Looked at 0 images and 5 video" in run_here("clip", "--max-frames", "5", "--output-dir", "bare", cwd=tiny).out
    ), "by content"
    rows = read_table(tiny / "moving/videos/clip.csv")
    assert sorted({row["frame"] for row in rows}) == ["0", "1", "2", "3", "4"]
    assert {row["seconds"] for row in rows} == {"0", "0.1", "0.2", "0.3", "0.4"}


def test_every_page_is_looked_at(tiny: Path) -> None:
    folder = tiny / "paged"
    folder.mkdir()
    pages = [Image.open(tiny / f"val/{number}.png").resize((64, 64)) for number in (1, 2, 3)]
    for name in ("a.tif", "b.gif"):
        pages[0].save(folder / name, save_all=True, append_images=pages[1:])
    Image.fromarray(np.full((64, 64), 4000, np.uint16)).save(folder / "c.png")
    damaged = [pages[0], Image.fromarray(np.ones((8, 8), np.float32)), pages[2]]
    damaged[0].save(folder / "d.tif", save_all=True, append_images=damaged[1:])
    outcome = run_here("paged", "--score", "0", "--output-dir", "pages", cwd=tiny)
    assert outcome.code == 3 and "Looked at 9 images" in outcome.out and "page 2: " in outcome.out, outcome
    assert "12-bit values in 16-bit images (1 of 1, e.g. c.png): stretched from 0..4095" in outcome.out
    names = ["a.tif", "a_p2.tif", "a_p3.tif", "b.gif", "b_p2.gif", "b_p3.gif", "c.png", "d.tif", "d_p3.tif"]
    content = read_json(tiny / "pages/coco.json")
    assert [one["file_name"] for one in content["images"]] == names
    assert sorted(path.stem for path in (tiny / "pages/images").iterdir()) == [Path(name).stem for name in names]
    single = run_here("val/2.png", "--score", "0", "--save", "coco", "--output-dir", "page", cwd=tiny)
    boxes = [one["bbox"] for one in read_json(tiny / "page/coco.json")["annotations"]]
    assert single.code == 0 and boxes == [one["bbox"] for one in content["annotations"] if one["image_id"] == 2]


@pytest.mark.skipif(os.name == "nt", reason="has no such names")
def test_odd_names_hide_nothing(tiny: Path) -> None:
    """Control characters, bytes that are no UTF-8, formulas, too long ones: each gets its row, picture and box."""
    folder = tiny / "odd names"
    folder.mkdir()
    names = ["a\nb", "\x1b[2J", os.fsdecode(b"\xff\xfe"), "=1+1", "n" * 251, "\r,;\"'", "\u202e", "plain"]
    for name in names:
        shutil.copy(tiny / "val/1.png", folder / f"{name}.png")
    writer = cv2.VideoWriter(str(tiny / "one.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (66, 64))
    writer.write(np.zeros((64, 66, 3), np.uint8))
    writer.release()
    (tiny / "one.avi").rename(folder / os.fsdecode(b"v\n\xff.avi"))
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"\xfd\n.png")).write_bytes(b"nonsense")
    every = ("--save", "yolo,crops,csv,coco,images", "--score", "0", "--output-dir", "odd out")
    outcome = run_here("odd names", *every, cwd=tiny)
    assert outcome.code == 3 and "Looked at 8 images and 1 video frame in" in outcome.out, outcome
    assert "pipe.png: skipped" in outcome.out and r"\udcfd\n.png: cannot be read" in outcome.out
    assert not UNPRINTABLE.search((outcome.out + outcome.err).replace("\n", "").replace("\r", ""))
    out = tiny / "odd out"
    shown = {printable(f"{name}.png") for name in names}
    assert {one["file_name"] for one in read_json(out / "coco.json")["images"]} == shown
    rows = read_table(out / "predictions.csv")
    assert len(rows) == 8 * 20 and {row["file"].removeprefix("'") for row in rows} == shown
    for kind in ("images/*.jpg", "yolo/labels/*.txt"):
        assert len(list(out.glob(kind))) == 8
    assert len(list((out / "crops").rglob("*.png"))) == len(rows)
    assert sorted(path.name for path in (out / "videos").iterdir()) == ["v__.csv", "v__.mp4"]


class _QuietServer(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_stream(tiny: Path) -> None:
    """Over HTTP, as OpenCV opens it; a stream that ends is said to be gone."""
    folder = tiny / "web"
    folder.mkdir()
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (66, 64))
    for level in range(4):
        writer.write(np.full((64, 66, 3), 30 * level, np.uint8))
    writer.release()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietServer, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        outcome = run_here(f"http://me:secret@{host}/clip.avi?key=secret", "--output-dir", "streamed", cwd=tiny)
        gone = run_here(f"http://{host}/gone.avi", "--output-dir", "streamed2", cwd=tiny)
        server.shutdown()
    assert outcome.code == 0 and "0 images and 4 video frames" in outcome.out, outcome
    assert (
        f"http://{host}/clip.avi: no more frames after 4" in outcome.err and "secret" not in outcome.err + outcome.out
    )
    (video, table) = sorted((tiny / "streamed/videos").iterdir(), reverse=True)
    assert video.name == host.replace(".", "_").replace(":", "_") + "_clip_avi.mp4" and count_frames(video) == 4
    assert gone.code == 3 and "gone.avi: cannot be opened (the address does not answer" in gone.out


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Detector:
    """A detector in a run folder of its own, where nothing has been evaluated."""
    (tmp_path / "best.pth").touch()
    config, weights = load_config(tiny / "tiny.yml"), torch.nn.Identity()
    return Detector(weights, config, CLASSES, path=tmp_path / "best.pth", checkpoint={"last_epoch": 4})


def thresholds_of(square: float | None, overall: float = 0.2) -> dict[str, Any]:
    return {"overall": {"score": overall}, "per_class": {"square": square and {"score": square}, "bar": None}}


def judged(folder: Path, square: float | None, **facts: Any) -> None:
    """An evaluation whose best threshold of class `square` is this one, of all classes together 0.2."""
    folder.mkdir(exist_ok=True)
    content = {"checkpoint": "best.pth", "epoch": 5, "split": "val", "gt_hash": "own", "own_val_data": True}
    content |= {"thresholds": thresholds_of(square)}
    (folder / "results.json").write_text(json.dumps(content | facts), encoding="utf-8")


@pytest.mark.parametrize(
    ("nms", "scores", "iou"),
    [
        ("auto", [0.3, 0.2], 0.6),
        (0.8, [0.35, 0.2], 0.8),
        (None, [0.4, 0.2], None),
        (0.65, [0.45, 0.2], 0.65),
        (0.55, [0.5, 0.5], 0.55),
    ],
)
def test_thresholds_and_suppression_belong_together(
    run: Detector, nms: float | Literal["auto"] | None, scores: list[float], iou: float | None
) -> None:
    tried = [{"iou": k, "thresholds": thresholds_of(score)} for k, score in ((None, 0.4), (0.8, 0.35), (0.6, 0.3))]
    judged(run.path.parent / "eval_val_best", 0.4, suppression={"iou": 0.6, "tried": tried})
    judged(run.path.parent / "eval_val_best_nms", 0.45, nms_iou=0.65, suppression=None)
    chosen = choose_thresholds(run, None, (), nms)
    assert (chosen.scores.tolist(), chosen.nms_iou) == (scores, iou)
    given = choose_thresholds(run, 0.7, (), nms)
    assert (given.scores.tolist(), given.nms_iou) == ([0.7, 0.7], iou)


@pytest.mark.parametrize(
    "suppression",
    ["0.6", {}, {"iou": 0.6}, {"iou": 0.6, "tried": None}, {"iou": 0.6, "tried": [1, {"iou": 0.6}, {"thresholds": 2}]}],
)
def test_a_damaged_suppression_is_passed_over(
    run: Detector, suppression: object, caplog: pytest.LogCaptureFixture
) -> None:
    judged(run.path.parent / "eval_val_best", None, suppression=suppression)
    for nms, expected in (("auto", ([0.2, 0.2], None)), (0.6, ([0.5, 0.5], 0.6))):
        chosen = choose_thresholds(run, None, (), nms)  # type: ignore[arg-type]
        assert (chosen.scores.tolist(), chosen.nms_iou) == expected
        assert ("does not say which repeats to suppress" in caplog.text) == (nms == "auto")
        caplog.clear()


def test_thresholds_come_from_the_evaluation_beside(run: Detector, caplog: pytest.LogCaptureFixture) -> None:
    def thresholds(*per_class: str, score: float | None = None) -> list[float]:
        return choose_thresholds(run, score, per_class).scores.tolist()

    folder, best = run.path.parent, run.path.parent / "eval_val_best"
    assert thresholds() == [0.5, 0.5]
    judged(folder / "eval_test_best", 0.9, split="test")
    assert thresholds() == [0.5, 0.5], "nothing is chosen on the test split"
    judged(folder, 0.3)
    assert thresholds() == [0.3, 0.2], "a class that was never hit takes the threshold of all"
    judged(best, 0.4)
    assert thresholds() == [0.4, 0.2] and thresholds("bar=0.7") == [0.4, 0.7]
    assert thresholds("Bar=0.7", score=0.1) == [0.1, 0.7]
    judged(best, 0.4, epoch=4)
    assert thresholds() == [0.3, 0.2], "judged before the checkpoint was replaced"
    judged(folder, 0.3, checkpoint="other.pth")
    assert thresholds() == [0.5, 0.5]
    for key, other in (
        ("gt_hash", "other"),
        ("split", "train"),
        ("input_size_hw", [96, 96]),
        ("checkpoint_sha256", "0" * 64),
        ("nms_iou", 0.7),
    ):
        judged(best, 0.4, **{key: other})
        assert thresholds() == [0.5, 0.5], key
        judged(folder / "eval_val_best_1a2b3c4d", 0.6)
        caplog.clear()
        assert thresholds() == [0.6, 0.2] and not caplog.text, "another folder holds the right one"
        shutil.rmtree(folder / "eval_val_best_1a2b3c4d")
    judged(best, None, thresholds={"overall": None, "per_class": {"square": None, "bar": None}})
    found = choose_thresholds(run, None, ())
    assert found.scores.tolist() == [0.5, 0.5] and found.origin == "default" and found.source is None, "nothing was hit"
    (folder / "results.json").unlink()
    for own in (False, True):
        judged(best, 0.4, own_val_data=own)
        assert thresholds() == ([0.4, 0.2] if own else [0.5, 0.5]), "a checkpoint without its run's results"


def test_where_thresholds_come_from_is_said(tiny: Path) -> None:
    outcome = run_here("val", "--save", "csv", "--output-dir", "plain", cwd=tiny)
    assert "Beside this checkpoint is no evaluation of it on its own" in outcome.out and outcome.code == 0
    judged(tiny / "run/eval_val_best", 0.4)
    outcome = run_here("val", "--save", "csv", "--output-dir", "best", cwd=tiny)
    shutil.rmtree(tiny / "run/eval_val_best")
    assert "Score thresholds with the best F1, from run" in outcome.out
    assert re.search(r"square +0.4000 +\d+\n +bar +0.2000", outcome.out)


BAD_INPUTS: list[tuple[list[str], str]] = [
    (["gone.png"], "gone.png: no such file or folder"),
    (["val", "--score", "2"], "--score 2: expected 0 to 1"),
    (["val", "--score-per-class", "squares=0.5"], "has no class 'squares'; did you mean square?"),
    (["val", "--score-per-class", "square=x"], "'x' is no score"),
    (["val", "--score-per-class", "val"], "expected NAME=S"),
    (["val", "--save", "images,png"], "--save images,png: png is no choice"),
    (["val", "--tile", "5", "--overlap", "nan"], "--tile 5: expected at least 32"),
    (["val", "--tile", "5", "--overlap", "0.9"], "--overlap 0.9: expected 0.05 to 0.8"),
    (["val", "--nms", "1.5"], "--nms 1.5: expected auto, none or an IoU between 0 and 1"),
    (["val", "--batch-size", "0"], "--batch-size 0: expected 1 or more"),
    (["val", "--max-frames", "0"], "--max-frames 0: expected 1 or more"),
    (["val", "--output-dir", "train"], "Output folder train is not empty"),
    (["val", "--output-dir", "tiny.yml"], "tiny.yml is a file"),
    (["val", "-d", "tpu"], "expected cpu, cuda"),
]


def test_bad_input_gets_one_message_and_no_output(tiny: Path) -> None:
    before = sorted(tiny.rglob("*"))
    for arguments, message in BAD_INPUTS:
        outcome = run_here(*arguments, cwd=tiny)
        assert outcome.code == 2 and message in outcome.err, (arguments, outcome)
        assert outcome.err.count("error: ") == 1 and outcome.out == ""
    assert sorted(tiny.rglob("*")) == before


def test_an_interruption_keeps_what_was_done(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add, calls = ImageWriter.add, []

    def interrupted(self: ImageWriter, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(ImageWriter, "add", interrupted)
    outcome = run_here("val", "--score", "0", "--save", "coco,csv", cwd=tiny)
    assert outcome.code == 130 and "Stopped before the end." in outcome.out
    assert len(read_json(tiny / "run/predict_best/coco.json")["images"]) == 2
    assert len(read_table(tiny / "run/predict_best/predictions.csv")) > 20
    monkeypatch.undo()
    assert run_here("val", "--save", "csv", cwd=tiny).code == 0
    assert (tiny / "run/predict_best_2/predictions.csv").is_file(), "an earlier prediction is not touched"


def test_two_at_once_do_not_share_a_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process begins while this one loads its weights."""
    asked = tiny / "asked"

    def load(*arguments: Any, **options: Any) -> Detector:
        other.mkdir(parents=True)
        (other / "coco.json").write_text("of another", encoding="utf-8")
        return load_detector(*arguments, **options)

    monkeypatch.setattr(deploy.predict, "load_detector", load)
    shutil.copytree(tiny / "run", tiny / "twice", ignore=lambda *_: ["predict_best", "predict_best_2"])
    other = tiny / "twice/predict_best"
    outcome = start_script("predict_deimv2.py", "-r", "twice", "val", "--save", "csv", "-d", "cpu", cwd=tiny)
    assert outcome.code == 0 and (tiny / "twice/predict_best_2/predictions.csv").is_file()
    other = asked
    outcome = run_here("val", "--output-dir", str(asked), cwd=tiny)
    assert outcome.code == 2 and "another process has begun to write into it" in outcome.err
    assert [path.name for path in asked.iterdir()] == ["coco.json"]


class _Camera:
    """Gives grey frames of odd size until someone presses Ctrl-C at the fourth."""

    def __init__(self, source: int) -> None:
        self.read_frames = 0

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, key: int) -> float:
        return {cv2.CAP_PROP_FPS: 0.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[key]

    def read(self) -> tuple[bool, Any]:
        self.read_frames += 1
        if self.read_frames == 4:
            raise KeyboardInterrupt
        return True, np.full((49, 65, 3), 99, np.uint8)

    def release(self) -> None:
        pass


def test_a_camera_ends_with_ctrl_c(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: _Camera(0) if source == 0 else opened(source))
    outcome = run_here("0", "--score", "0", "--output-dir", "camera", cwd=tiny)
    monkeypatch.setattr(cv2, "VideoCapture", opened)
    assert outcome.code == 0 and "0 images and 3 video frames" in outcome.out, outcome
    capture = cv2.VideoCapture(str(tiny / "camera/videos/camera_0.mp4"))
    frames = [capture.read() for _ in range(4)]
    assert [read for read, _ in frames] == [True, True, True, False]
    assert frames[0][1].shape == (50, 66, 3), "nothing is cut off"
    assert {row["frame"] for row in read_table(tiny / "camera/videos/camera_0.csv")} == {"0", "1", "2"}
