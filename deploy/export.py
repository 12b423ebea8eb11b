"""What `export_deimv2.py` does: load once, write every wanted format, check the graphs against PyTorch.

Weights go into the layouts of other tools: official checkpoint, safetensors, a folder for the Hugging Face hub.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors.torch
from huggingface_hub import ModelCard, ModelCardData

from data.errors import UserError
from data.files import write_atomically, write_json, write_text
from deploy import graph
from deploy.thresholds import Nms, Thresholds, choose_thresholds
from engine.checkpoint import METADATA_KEYS, save_checkpoint
from engine.cli import command_line, ending, require_output_folder
from engine.config import ExperimentConfig, config_to_dict
from engine.detector import Detector, load_detector
from engine.named_files import checkpoint_of
from engine.options import Options
from engine.results import evaluation_of
from models.deploy import DeployedDetector
from models.hub import CONFIG_NAME, WEIGHTS_NAME, output_folder
from texts import NOTHING, Language, plain_table, texts_of

log = logging.getLogger(__name__)

Format = Literal["official", "safetensors", "hub", "torch_export", "onnx", "openvino"]
TOLERANCE = 1e-3
"""Of scores, and of boxes over the image's longer side."""
ACCELERATED_TOLERANCE = 1e-2
"""Where TF32 or float16 round: 40 times what float16 changed in a trained network, and less than any wrong box."""
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
_OWN_SIZES = {"depth", "mlp_ratio"}
_OF_TRAINING = {"freeze", "backbone_lr_factor"}
_OWN_DECODER_KEYS = {"distinct_iou", "relation_bias", "ordered_last"}
_DINOV3_LICENCE: dict[str, Any] = {
    "license": "other",
    "license_name": "dinov3-license",
    "license_link": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
}
_SHOWN_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")


class _ExportOptions(Options):
    nms: Nms = "auto"


class Exported(NamedTuple):
    """One written format."""

    format: Format
    path: Path
    agreement: graph.Agreement | None
    """With PyTorch; None for weights alone, or if the check was switched off."""


def export_checkpoint(
    path: Path,
    formats: Sequence[Format],
    *,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    size_hw: tuple[int, int] | None = None,
    dynamic_size: bool = False,
    check: bool = True,
    nms: str | float | None = "auto",
) -> list[Exported]:
    """Write a checkpoint in the given formats, each once, in the order of `Format`; by default into the folder
    `export_<checkpoint>` beside it, with graphs for `eval_spatial_size`.

    The suppression (`nms`) is chosen as in `predict_deimv2.py`, so that graphs detect what prediction detects.

    Raises:
        UserError: Bad input of any kind, or a graph that detects something else than PyTorch.
    """
    wanted = _ExportOptions(nms=nms).nms
    path = checkpoint_of(path)
    folder = output_dir or output_folder(path, "export")
    require_output_folder(folder)
    for name in formats:
        graph.require_packages(*_PACKAGES.get(name, ()))
    detector = load_detector(path, config_path=config_path, overrides=overrides)
    options = graph.GraphOptions(size_hw or detector.config.eval_spatial_size, dynamic_size)
    graph.require_size(options)
    writers: dict[Format, tuple[Callable[[Detector, Path], Path], str]] = {
        "official": (write_official, f"{path.stem}_official.pth"),
        "safetensors": (write_safetensors, "model.safetensors"),
        "hub": (write_hub_folder, "hub"),
    }
    written = [
        Exported(name, write(detector, folder / file), None)
        for name, (write, file) in writers.items()
        if name in formats
    ]
    if {"torch_export", "onnx", "openvino"} & {*formats}:
        thresholds = choose_thresholds(detector, None, (), wanted, size_hw=options.size_hw)
        if thresholds.nms_iou is not None:
            log.info("the graphs suppress repeats as predict_deimv2.py --nms %g does", thresholds.nms_iou)
        written += _write_graphs(detector, formats, folder, options, thresholds, check=check)
    return written


def format_exports(written: Sequence[Exported], lang: Language, checkpoint: Path) -> str:
    """Say what was written, how far the graphs differ from PyTorch, and what to type next."""
    texts = texts_of(lang, "export")
    rows = [[texts[key] for key in ("format", "file", "size", "scores", "boxes")]]
    for name, path, found in written:
        files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
        size = texts.number(sum(one.stat().st_size for one in files) / 1e6, 2)
        rows.append([name, path.name, size, *(f"{x:.0e}" if found else NOTHING for x in (found or (0, 0))[:2])])
    times = command_line("benchmarks/inference.py", "-r", checkpoint)
    return f"{plain_table(rows, text_columns=(0, 1))}\n{ending(lang, written[0].path.parent, times)}"


def _write_graphs(
    detector: Detector,
    formats: Sequence[Format],
    folder: Path,
    options: graph.GraphOptions,
    thresholds: Thresholds,
    *,
    check: bool,
) -> list[Exported]:
    iou = thresholds.nms_iou
    program = graph.torch_program(graph.graph_module(detector, folded=True, nms_iou=iou), options)
    expected = graph.graph_module(detector, folded=False, nms_iou=iou)
    written: list[Exported] = []

    def add(name: Format, path: Path, runner: Callable[[Path], graph.Runner]) -> None:
        found = check_against_torch(expected, runner(path), options, path) if check else None
        written.append(Exported(name, path, found))

    if "torch_export" in formats:
        add("torch_export", graph.write_program(program, folder / "model.pt2"), graph.program_runner)
    if not {"onnx", "openvino"} & {*formats}:
        return written
    with tempfile.TemporaryDirectory() as temporary:
        onnx_path = (folder if "onnx" in formats else Path(temporary)) / "model.onnx"
        graph.write_onnx(program, onnx_path, graph.graph_metadata(detector, options, thresholds))
        if "onnx" in formats:
            add("onnx", onnx_path, graph.onnx_runner)
            for name, runner in (graph.accelerated_runners(onnx_path) if check else {}).items():
                what = f"{onnx_path} with ONNX Runtime's {name}"
                check_against_torch(expected, runner, options, what, ACCELERATED_TOLERANCE)
        if "openvino" in formats:
            add("openvino", graph.write_openvino(onnx_path, folder / "model.xml"), graph.openvino_runner)
    return written


def check_against_torch(
    module: DeployedDetector,
    runner: graph.Runner,
    options: graph.GraphOptions,
    what: object,
    tolerance: float = TOLERANCE,
) -> graph.Agreement:
    """Run both on one and on three images, with a dynamic size also on another size, and compare. The `module` is the
    model as it was trained, so that the deploy form is checked with the graph.

    Raises:
        UserError: Scores or boxes differ by more than `tolerance`; `what` names the graph.
    """
    height, width = options.size_hw
    cases = [(1, options.size_hw), (3, options.size_hw)]
    if options.dynamic_size:
        cases.append((2, (height + 32, width + 64)))
    found = []
    for seed, (batch, size_hw) in enumerate(cases, start=1):
        inputs = graph.example_inputs(size_hw, batch, seed)
        expected = graph.torch_runner(module)(*inputs)
        found.append(graph.agreement(expected, runner(*inputs), inputs[1], tolerance=tolerance))
    scores, boxes, unmatched = zip(*found, strict=True)
    worst = graph.Agreement(max(scores), max(boxes), sum(unmatched))
    if not worst.within(tolerance):
        raise UserError(
            f"{what}: detects something else than PyTorch: scores differ by up to {worst.score:.2g}, boxes by "
            f"{worst.box:.2g} of the image's side (allowed: {tolerance:g}), {worst.unmatched} detections are missing. "
            "Do not use it; please report this with the versions of torch, onnx and the runtime (--no-check "
            "writes it regardless)."
        )
    return worst


def write_official(detector: Detector, path: Path) -> Path:
    """Write a .pth file as the official tools do, judged weights under both keys (docs/deimv2.md, Checkpoint files).

    Config and classes come along under keys that the official tools do not read, so `evaluate_deimv2.py -r` needs
    no `-c`.

    Raises:
        UserError: The model is none that the official code knows, or the file cannot be written.
    """
    _require_official(detector, "official")
    weights = detector.model.state_dict()  # one storage under both names: torch.save writes it once
    state = {
        "date": datetime.now().isoformat(timespec="seconds"),
        "last_epoch": detector.checkpoint.get("last_epoch", -1),
        "model": weights,
        "criterion": {},
        "postprocessor": {},
        "ema": {"module": weights, "updates": detector.checkpoint.get("ema", {}).get("updates", 0)},
    }
    save_checkpoint(path, state | _metadata(detector))
    return path


def write_safetensors(detector: Detector, path: Path) -> Path:
    """Write the weights as a safetensors file, with config and classes as JSON in its metadata.

    Of tensors with two names the first in alphabetical order is stored, as safetensors' own `load_model` and the hub's
    tools expect.

    Raises:
        UserError: The file cannot be written.
    """
    weights = detector.model.state_dict()
    names = {weights[key].data_ptr() or key: key for key in sorted(weights, reverse=True)}
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in _metadata(detector).items()}
    stored = {key: weights[key].contiguous() for key in names.values()}
    content = safetensors.torch.save(stored, {"format": "pt", **texts})
    write_atomically(path, lambda file: file.write(content), what="weights")
    return path


def _metadata(detector: Detector) -> dict[str, Any]:
    """What our own readers find beside the weights."""
    classes = {"classes": detector.classes.to_dict()} if detector.names_classes else {}
    trained = {key: detector.checkpoint[key] for key in METADATA_KEYS if key in detector.checkpoint}
    return trained | {"config": config_to_dict(detector.config)} | classes


def write_hub_folder(detector: Detector, folder: Path) -> Path:
    """Write `config.json`, `model.safetensors` and a model card `README.md`: what `hf upload NAME FOLDER` publishes.

    Raises:
        UserError: As `write_official`.
    """
    _require_official(detector, "hub")
    card = model_card(detector)
    write_safetensors(detector, folder / WEIGHTS_NAME)
    write_json(folder / CONFIG_NAME, official_model_config(detector.config), what=CONFIG_NAME, indent=2)
    write_text(folder / "README.md", card, what="README.md")
    return folder


def model_card(detector: Detector) -> str:
    """Fill in `model_card.md`, Markdown with the hub's header; the numbers come from the checkpoint's evaluation."""
    config = detector.config
    height, width = config.eval_spatial_size
    evaluated = evaluation_of(detector, "metrics", size_hw=config.eval_spatial_size)
    card = ModelCard.from_template(
        ModelCardData(
            pipeline_tag="object-detection",
            tags=["deimv2", "object-detection"],
            **(_DINOV3_LICENCE if derived_from_dinov3(detector) else {}),
        ),
        template_path=str(Path(__file__).with_name("model_card.md")),
        name=detector.path.parent.name or detector.path.stem,
        backbone=config.deimv2.backbone.name,
        millions=f"{sum(parameter.numel() for parameter in detector.model.parameters()) / 1e6:.2f}",
        size=f"{height} x {width}",
        tile=detector.tile,
        classes=detector.classes.names,
        metrics=_SHOWN_METRICS,
        results=evaluated and evaluated[1],
        percent=lambda value: f"{100 * value:.1f}" if isinstance(value, (int, float)) else "-",
    )
    return f"{card.content}\n"


def derived_from_dinov3(detector: Detector) -> bool:
    """Tell whether the DINOv3 licence governs the weights, as far as the config tells: null backbones are their own.

    Weights tuned from others count as derived, because those others may be.
    """
    config = detector.config
    return config.Baseline is None and (
        "config" not in detector.checkpoint
        or config.tuning is not None
        or config.deimv2.backbone.weights_path is not None
    )


def official_model_config(config: ExperimentConfig) -> dict[str, Any]:
    """Return the arguments of the official classes, as the official hub models store them."""
    backbone, encoder, decoder, _ = config.deimv2
    unknown = _OF_TRAINING if backbone.name == "vit_custom" else _OF_TRAINING | _OWN_SIZES
    size = list(config.eval_spatial_size)
    return {
        "DINOv3STAs": backbone.model_dump(mode="json", exclude=unknown) | {"weights_path": None},
        "HybridEncoder": encoder.model_dump(mode="json") | {"eval_spatial_size": size, "csp_type": "csp2"},
        "DEIMTransformer": decoder.model_dump(mode="json", exclude=_OWN_DECODER_KEYS)
        | {"num_classes": config.num_classes, "eval_spatial_size": size},
        "PostProcessor": {
            "num_classes": config.num_classes,
            "num_top_queries": config.num_top_queries,
            "use_focal_loss": True,
            "remap_mscoco_category": config.remap_mscoco_category,
        },
    }


def _require_official(detector: Detector, name: str) -> None:
    others = "Export it with --format safetensors, onnx, torch_export or openvino"
    if graph.require_deim(detector, f"the official layout (--format {name})").text_fusion is not None:
        raise UserError(
            f"{detector.path}: has class texts in its scores (MultimodalFusion), which the official DEIMv2 does not "
            f"know. {others}, or export the checkpoint of phase 1."
        )
    decoder = detector.config.deimv2.decoder
    own = [f"DEIMTransformer.{key}" for key in sorted(_OWN_DECODER_KEYS) if getattr(decoder, key)]
    if own:
        raise UserError(
            f"{detector.path}: was trained with {', '.join(own)}, which the official DEIMv2 does not know: it would "
            f"detect something else. {others}."
        )
    if detector.config.deimv2.backbone.name == "vit_custom":
        log.warning(
            "The official code has no backbone `vit_custom`: layout and keys are the official ones, but only this "
            "repository can build the model."
        )
