"""Graphs for other runtimes: what they accept, and that they detect what PyTorch detects."""

from __future__ import annotations

import json
import logging
import re
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.config import TilesConfig
from data.errors import UserError
from data.industrial_dataset import pixel_mean_std
from data.loader import build_eval_loader
from data.splits import build_datasets
from deploy import graph
from deploy.export import ACCELERATED_TOLERANCE, check_against_torch, export_checkpoint
from deploy.graph import (
    GraphOptions,
    GraphOutput,
    accelerated_runners,
    agreement,
    example_inputs,
    graph_metadata,
    graph_module,
    onnx_runner,
    require_packages,
    torch_runner,
)
from deploy.pipeline import make_frame, predict_frames
from deploy.thresholds import Thresholds, choose_thresholds
from engine.config import apply_overrides, load_config
from engine.detector import Detector, load_detector
from models.detector import normalize_images
from tests.support.baselines import small_baseline
from tests.support.configs import CONFIGS
from tests.support.export import CLASSES, NAMES, write_tiny_checkpoint
from tests.support.models import tiny_model
from tests.support.scripts import start_script
from tests.support.text_fusion import fused_model, section

SIZES = torch.tensor([[64, 32]])
DEFAULTS = Thresholds(np.full(len(NAMES), 0.5), "default", None, None)


def found(scores: Any, labels: Any, boxes: Any) -> GraphOutput:
    return GraphOutput(np.array([labels]), np.array([boxes], dtype=np.float32), np.array([scores], dtype=np.float32))


BOXES = [[0, 0, 8, 8], [4, 4, 20, 20], [30, 0, 40, 30]]
EXPECTED = found([0.9, 0.5, 0.5], [1, 2, 2], BOXES)


@pytest.mark.parametrize(
    ("scores", "labels", "boxes", "top", "expected"),
    [
        ([0.9, 0.5, 0.5], [1, 2, 2], BOXES, 100, (0, 0, 0)),
        ([0.9, 0.5, 0.5], [1, 2, 2], [BOXES[0], BOXES[2], BOXES[1]], 100, (0, 0, 0)),  # equal scores may swap
        ([0.9, 0.5, 0.5], [1, 2, 2], [[0.64, 0, 8, 8], *BOXES[1:]], 100, (0, 0.01, 0)),
        ([0.8999, 0.5, 0.5], [1, 2, 2], BOXES, 100, (1e-4, 0, 0)),
        ([0.9, 0.5, 0.5], [0, 2, 2], BOXES, 100, (0, 0, 1)),
        ([0.9, 0.5, 0.5], [0, 2, 2], BOXES, 1, (0, 0, 1)),
    ],
)
def test_differences_are_measured(scores: Any, labels: Any, boxes: Any, top: int, expected: Any) -> None:
    measured = agreement(EXPECTED, found(scores, labels, boxes), SIZES, top=top)
    assert measured == pytest.approx(expected, abs=1e-6)
    assert measured.within(0.011) == (expected[2] == 0) and measured.within(0) == (expected == (0, 0, 0))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return load_detector(write_tiny_checkpoint(tmp_path_factory.mktemp("graph"), DEIMTransformer__num_layers=1))


def test_the_check_passes_and_fails(source: Detector) -> None:
    detector = graph_module(source, folded=True)
    runner, options = torch_runner(detector), GraphOptions((64, 64), dynamic_size=True)
    assert check_against_torch(detector, runner, options, Path("x.onnx")).within(0)

    def wrong(images: torch.Tensor, sizes: torch.Tensor) -> GraphOutput:
        right = runner(images, sizes)
        return GraphOutput(right.labels, right.boxes, right.scores + 0.01)

    with pytest.raises(UserError, match=r"x\.onnx: detects something else than PyTorch: scores differ by up to 0\.01"):
        check_against_torch(detector, wrong, options, Path("x.onnx"))


def test_accelerators_of_this_machine_are_checked_too(
    source: Detector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT in float16 that gives wrong boxes without an error; ONNX Runtime is played by PyTorch."""
    right = torch_runner(graph_module(source, folded=True))

    class Session:
        def __init__(self, path: Path, options: Any, providers: list[Any]) -> None:
            self.asked = {one[0]: one[1] for one in providers if isinstance(one, tuple)}

        def get_providers(self) -> list[str]:
            return [name for name in self.asked if name != "CUDAExecutionProvider"]

        def run(self, names: list[str], feed: dict[str, Any]) -> list[Any]:
            out = right(*(torch.from_numpy(value) for value in feed.values()))
            wrong = "trt_fp16_enable" in self.asked["TensorrtExecutionProvider"]
            return [out.labels, out.boxes * 0 if wrong else out.boxes, out.scores]

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    played = SimpleNamespace(
        InferenceSession=Session, SessionOptions=SimpleNamespace, get_available_providers=lambda: names
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", played)
    monkeypatch.setattr("deploy.graph.require_packages", lambda *names: None)
    runners = accelerated_runners(Path("x.onnx"))
    assert list(runners) == ["TensorRT float32", "TensorRT float16"]
    assert "has CUDA, but cannot start it here: x.onnx is not checked with it" in caplog.text
    check = partial(check_against_torch, graph_module(source, folded=True))
    check(runners["TensorRT float32"], GraphOptions((64, 64)), "x.onnx", ACCELERATED_TOLERANCE)
    with pytest.raises(UserError, match=r"x\.onnx with TensorRT: detects something else than PyTorch: .* boxes by"):
        check(runners["TensorRT float16"], GraphOptions((64, 64)), "x.onnx with TensorRT", ACCELERATED_TOLERANCE)


def test_validation_prediction_and_the_exported_recipe_resize_alike(source: Detector, tmp_path: Path) -> None:
    """For images of several shapes: what the loader gives, what the predictor gives and what the metadata say."""
    sizes_wh = [(160, 160), (400, 100), (33, 500)]
    coco = {"images": [], "annotations": [], "categories": [{"id": k, "name": n} for k, n in enumerate(NAMES)]}
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes_wh):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        coco["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        box = {"id": number, "image_id": number, "category_id": 0, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        coco["annotations"].append(box)
    (tmp_path / "ann.json").write_text(json.dumps(coco), encoding="utf-8")
    section = "val_dataloader.dataset"
    config = apply_overrides(
        source.config, [f"{section}.img_folder={tmp_path}", f"{section}.ann_file={tmp_path / 'ann.json'}"]
    )
    data = build_datasets(config, splits=("val",))
    loader = build_eval_loader(config, data.splits["val"], data.classes)
    validated = torch.cat([normalize_images(batch.images, *pixel_mean_std(config)) for batch in loader])
    detector = load_detector(source.path)
    facts = {key: json.loads(text) for key, text in graph_metadata(source, GraphOptions((64, 64)), DEFAULTS).items()}
    assert facts["names"] == list(NAMES) and facts["category_ids"] == [0, 1, 2, 3, 4, 5]
    assert facts["colour"] == "RGB" and "bilinear" in facts["resize"] and facts["tile"] is None
    tiled = graph_metadata(source.with_tiles(TilesConfig(size=64)), GraphOptions((64, 64)), DEFAULTS)
    assert json.loads(tiled["tile"]) == [64, 0.2]
    height, width = facts["input_size_hw"]
    for number in range(len(sizes_wh)):
        image = Image.open(tmp_path / f"{number}.png")
        predicted = normalize_images(detector.prepare(np.asarray(image))[None], *pixel_mean_std(config))[0]
        assert torch.equal(predicted, validated[number])
        recipe = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) * facts["scale"]
        recipe = ((recipe - facts["mean"]) / facts["std"]).astype(np.float32).transpose(2, 0, 1)
        np.testing.assert_allclose(recipe, validated[number], atol=1e-5)


def test_what_cannot_be_exported(tmp_path: Path, source: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--nms 7: expected auto, none or an IoU"):
        export_checkpoint(source.path, ["torch_export"], nms="7", output_dir=tmp_path / "out")
    with pytest.raises(UserError, match=r"--size 60 64: both sides must be multiples of 32"):
        export_checkpoint(source.path, ["torch_export"], size_hw=(60, 64), output_dir=tmp_path / "out")
    for size_hw, dynamic in (((32, 64), True), ((9600, 64), False)):
        with pytest.raises(UserError, match=f"from {64 if dynamic else 32} to 4096"):
            export_checkpoint(
                source.path, ["torch_export"], size_hw=size_hw, dynamic_size=dynamic, output_dir=tmp_path / "out"
            )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'onnx, onnxscript, onnxruntime: not installed\. Run: pip install -e "\.\[exp'):
        export_checkpoint(source.path, ["onnx"], output_dir=tmp_path / "out")
    with pytest.raises(UserError, match=r'openvino: not installed\. Run: pip install -e "\.\[openvino\]"'):
        require_packages("openvino")
    monkeypatch.undo()
    config = load_config(CONFIGS / "baselines" / "quickstart_resnet18.yml")
    baseline = Detector(small_baseline("fasterrcnn_resnet18"), config, CLASSES, path=tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"is the baseline fasterrcnn_resnet18, .* a graph \(torch_export, onnx, openv"):
        graph_module(baseline, folded=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of the size of files")
def test_a_full_disk_does_not_end_the_process(tmp_path: Path) -> None:
    import resource

    program = torch.export.export(torch.nn.Linear(50, 50), (torch.ones(1, 50),))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="Could not write program"):
            graph.write_program(program, tmp_path / "a.pt2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("dynamic_size", [False, True])
def test_onnx(tmp_path: Path, dynamic_size: bool) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = write_tiny_checkpoint(tmp_path)
    written = export_checkpoint(path, ["onnx"], output_dir=tmp_path / "out", dynamic_size=dynamic_size)
    assert written[0].agreement is not None and written[0].agreement.within(1e-4)
    model = onnx.load(tmp_path / "out" / "model.onnx")
    onnx.checker.check_model(model)
    assert json.loads({prop.key: prop.value for prop in model.metadata_props}["names"]) == list(NAMES)
    runner = onnx_runner(tmp_path / "out" / "model.onnx")
    sizes = [(64, 64), (160, 96)] if dynamic_size else [(64, 64)]
    for height, width in sizes:
        assert runner(*example_inputs((height, width), 5)).boxes.shape == (5, 120, 4)


def write_evaluation(folder: Path, iou: float | None) -> None:
    """Let the evaluation beside `best.pth` have found `iou` the best, with thresholds of its own."""
    path = folder / "results.json"
    tried = {"iou": iou, "thresholds": {"overall": {"score": 0.015}, "per_class": {NAMES[1]: {"score": 0.02}}}}
    more = {"thresholds": {"overall": {"score": 0.9}}, "suppression": {"iou": iou, "tried": [tried]}}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | more), encoding="utf-8")


def write_crowded_checkpoint(folder: Path, **decoder: float) -> Path:
    """Of a detector with large boxes, which overlap, and its evaluation."""
    sections = {f"DEIMTransformer__{key}": value for key, value in ({"num_layers": 1} | decoder).items()}
    model = tiny_model(**sections)
    with torch.no_grad():
        model.decoder.enc_bbox_head.layers[-1].bias[2:] += 3
    path = write_tiny_checkpoint(folder, model, **sections)
    write_evaluation(folder, 0.3)
    return path


@pytest.mark.parametrize(
    ("format_", "file", "runner", "packages"),
    [
        ("torch_export", "model.pt2", graph.program_runner, ()),
        pytest.param("onnx", "model.onnx", onnx_runner, ("onnx", "onnxruntime"), marks=pytest.mark.slow),
        pytest.param("openvino", "model.xml", graph.openvino_runner, ("openvino", "onnx"), marks=pytest.mark.slow),
    ],
)
def test_a_graph_detects_what_prediction_does(
    tmp_path: Path, format_: Any, file: str, runner: Any, packages: tuple[str, ...]
) -> None:
    """By default with the evaluation's suppression and thresholds; all that makes detections distinct is in it, too."""
    for package in packages:
        pytest.importorskip(package)
    path = write_crowded_checkpoint(tmp_path, distinct_iou=0.5, relation_bias=True, ordered_last=True, num_layers=2)
    outcome = start_script("export_deimv2.py", "-r", path, "--format", format_, "--output-dir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    detector, thresholds = load_detector(path), choose_thresholds(load_detector(path), None, (), "auto")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    expected, unsuppressed = (
        next(predict_frames([make_frame(0, pixels, detector)], detector, thresholds.scores, 1, iou))[1]
        for iou in (thresholds.nms_iou, None)
    )
    assert 1 < len(expected) < len(unsuppressed)
    image = normalize_images(detector.prepare(pixels)[None], *pixel_mean_std(detector.config))
    found = runner(tmp_path / "out" / file)(image, torch.tensor([[90, 50]]))
    assert found.scores.shape == (1, 120)
    shown = found.scores[0] >= thresholds.scores[found.labels[0]]
    assert found.labels[0][shown].tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.scores[0][shown], expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes[0][shown], expected.boxes_xyxy, atol=0.02)


@pytest.mark.parametrize(
    ("nms", "stored", "size_hw", "expected"),
    [("auto", 0.6, None, 0.6), ("auto", None, None, None), ("auto", 0.6, (96, 64), None), ("none", 0.6, None, None)]
    + [("0.7", 0.6, None, 0.7)],
)
def test_what_a_graph_suppresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nms: str, stored: float, size_hw: Any, expected: float | None
) -> None:
    """An evaluation of images of another size is passed over, as in prediction."""
    asked = []
    monkeypatch.setattr("deploy.export._write_graphs", lambda *args, check: asked.append(args[4].nms_iou) or [])
    path = write_tiny_checkpoint(tmp_path, DEIMTransformer__num_layers=1)
    write_evaluation(tmp_path, stored)
    file = tmp_path / "results.json"
    file.write_text(file.read_text(encoding="utf-8").replace("{", '{"input_size_hw": [64, 64], ', 1), encoding="utf-8")
    export_checkpoint(path, ["torch_export"], nms=nms, size_hw=size_hw, output_dir=tmp_path / "o")
    assert asked == [expected]


@pytest.mark.slow
def test_the_guide_shows_how_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lines, as they stand, detect what `predict_deimv2.py` detects."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = write_crowded_checkpoint(tmp_path)
    export_checkpoint(path, ["onnx"], output_dir=tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "part.png")
    guide = (CONFIGS.parent / "docs" / "guide" / "export.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "export.md", "exec"), {})
    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    detector = load_detector(path)
    thresholds = choose_thresholds(detector, None, (), "auto")
    frames = predict_frames([make_frame(0, pixels, detector)], detector, thresholds.scores, 1, thresholds.nms_iou)
    _, expected = next(frames)
    assert [line[0] for line in found] == [NAMES[label] for label in expected.labels.tolist()]
    assert [float(line[1]) for line in found] == pytest.approx(expected.scores.tolist(), abs=0.006)
    box = [float(number) for number in " ".join(found[0][2:]).strip("[]").split()]
    assert box == pytest.approx(expected.boxes_xyxy[0].tolist(), abs=0.06)


@pytest.mark.slow
def test_openvino_and_text(tmp_path: Path) -> None:
    """OpenVINO through ONNX, of a detector with class texts."""
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    path = write_tiny_checkpoint(
        tmp_path, fused_model(gate_init=0.5), MultimodalFusion=section(gate_init=0.5), DEIMTransformer__num_layers=3
    )
    written = export_checkpoint(path, ["openvino"], output_dir=tmp_path / "out")
    assert written[0].agreement is not None and written[0].agreement.within(1e-4)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.bin", "model.xml"]


def test_the_exporter_is_kept_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    before = logging.getLogger("onnxscript").level
    with graph._quiet():
        logging.getLogger("onnxscript").warning("chatter")
        sys.stdout.write("progress\n")
    assert capsys.readouterr() == ("", "") and logging.getLogger("onnxscript").level == before
