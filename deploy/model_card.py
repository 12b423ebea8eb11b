"""README.md of a hub folder: what the model is, how good, under which licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from engine.detector import Detector
from engine.results import evaluation_of

_DINOV3_LICENCE: dict[str, Any] = {
    "license": "other",
    "license_name": "dinov3-license",
    "license_link": "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
}
_SHOWN_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")


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
        template_path=str(Path(__file__).with_suffix(".md")),
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
