"""Weights in the layouts of other tools: official checkpoint, safetensors, a folder for the Hugging Face hub."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import safetensors.torch
from huggingface_hub import ModelCard, ModelCardData

from data.errors import UserError
from data.files import write_atomically, write_json, write_text
from engine.checkpoint import save_checkpoint
from engine.config import ExperimentConfig, config_to_dict
from engine.detector import Detector
from engine.results import evaluation_of
from models.detector import DEIM
from models.hub import CONFIG_NAME, WEIGHTS_NAME

log = logging.getLogger(__name__)

_OWN_BACKBONE_KEYS = {"depth", "mlp_ratio"}
_DINOV3_LICENCE: dict[str, Any] = {
    "license": "other",
    "license_name": "dinov3-license",
    "license_link": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
}
_SHOWN_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")


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
    return {"config": config_to_dict(detector.config), **classes}


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
    unknown = set() if backbone.name == "vit_custom" else _OWN_BACKBONE_KEYS
    size = list(config.eval_spatial_size)
    return {
        "DINOv3STAs": backbone.model_dump(mode="json", exclude=unknown) | {"weights_path": None},
        "HybridEncoder": encoder.model_dump(mode="json") | {"eval_spatial_size": size, "csp_type": "csp2"},
        "DEIMTransformer": decoder.model_dump(mode="json")
        | {"num_classes": config.num_classes, "eval_spatial_size": size},
        "PostProcessor": {
            "num_classes": config.num_classes,
            "num_top_queries": config.num_top_queries,
            "use_focal_loss": True,
            "remap_mscoco_category": config.remap_mscoco_category,
        },
    }


def require_deim(detector: Detector, target: str) -> DEIM:
    """Return the network, if it is a DEIMv2.

    Raises:
        UserError: It is a baseline.
    """
    if isinstance(detector.model, DEIM):
        return detector.model
    assert detector.config.Baseline is not None
    raise UserError(
        f"{detector.path}: is the baseline {detector.config.Baseline.name}, which cannot be exported to {target}; only "
        "DEIMv2 can. `--format safetensors` takes its weights out."
    )


def _require_official(detector: Detector, name: str) -> None:
    if require_deim(detector, f"the official layout (--format {name})").text_fusion is not None:
        raise UserError(
            f"{detector.path}: has class texts in its scores (MultimodalFusion), which the official DEIMv2 does not "
            "know. Export it with --format safetensors, onnx, torch_export or openvino, or export the checkpoint of "
            "phase 1."
        )
    if detector.config.deimv2.backbone.name == "vit_custom":
        log.warning(
            "The official code has no backbone `vit_custom`: layout and keys are the official ones, but only this "
            "repository can build the model."
        )
