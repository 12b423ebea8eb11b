"""README.md of a hub folder: what the model is, how good, under which licence."""

from __future__ import annotations

from engine.detector import Detector
from engine.results import evaluation_of

_LICENCE_URL = "https://ai.meta.com/resources/models-and-libraries/dinov3-license"
_SHOWN_METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")


def model_card(detector: Detector) -> str:
    """Markdown with the hub's YAML header; the numbers come from the checkpoint's evaluation."""
    config = detector.config
    height, width = config.eval_spatial_size
    parameters = sum(parameter.numel() for parameter in detector.model.parameters())
    name = config.deimv2.backbone.name
    lines = [
        *_header(detector),
        "",
        f"# DEIMv2, {detector.path.parent.name or detector.path.stem}",
        "",
        f"A DEIMv2 object detector: backbone `{name}`, {parameters / 1e6:.2f} M parameters, input {height} x {width} "
        f"(height x width) pixels, {config.num_classes} classes. Trained with deimv2-industrial.",
        "",
        "## Classes",
        "",
        *(f"{label}. {text}" for label, text in enumerate(detector.classes.names)),
        "",
        "## Evaluation",
        "",
        *_metrics(detector),
        "",
        "## Use",
        "",
        "`model.safetensors` has the keys of the official DEIMv2, `config.json` its layout. Input: RGB, resized to "
        f"{height} x {width} without keeping the aspect, divided by 255, normalised with ImageNet's mean and standard "
        "deviation.",
        "",
        "```bash",
        "python predict_deimv2.py -r THIS_FOLDER IMAGES",
        "python train_deimv2.py -c CONFIG -t THIS_FOLDER",
        "```",
        "",
        "## Licence",
        "",
        *_licence(detector),
    ]
    return "\n".join(lines) + "\n"


def _header(detector: Detector) -> list[str]:
    lines = ["---", "pipeline_tag: object-detection", "tags:", "- deimv2", "- object-detection"]
    if derived_from_dinov3(detector):
        lines += ["license: other", "license_name: dinov3-license", f"license_link: {_LICENCE_URL}"]
    return [*lines, "---"]


def _licence(detector: Detector) -> list[str]:
    if derived_from_dinov3(detector):
        return [
            "These weights were fine-tuned from DINOv3 weights or distillates of them (or from weights that may hold "
            f"them) and fall under the [DINOv3 License]({_LICENCE_URL}): read it before you use or pass them on, and "
            "pass it on with them.",
        ]
    return [
        "These weights were trained from random initialisation. Their licence is their author's choice: state it here "
        "and as `license:` in the header."
    ]


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


def _metrics(detector: Detector) -> list[str]:
    found = evaluation_of(detector.path, detector.epoch, detector.config.eval_spatial_size, section="metrics")
    if found is None:
        return ["Not evaluated: there was no results.json of this checkpoint beside it when it was exported."]
    results = found[1]
    split = results.get("split")
    lines = [
        f"COCO metrics{f' on the split `{split}`' if split else ''}, in percent:",
        "",
        "| metric | value |",
        "|---|---|",
    ]
    lines += [f"| {name} | {_percent(results['metrics'].get(name))} |" for name in _SHOWN_METRICS]
    lines += ["", "| class | AP | AP50 | boxes |", "|---|---|---|---|"]
    for name, row in results.get("per_class", {}).items():
        lines.append(f"| {name} | {_percent(row.get('AP'))} | {_percent(row.get('AP50'))} | {row.get('num_gt', '-')} |")
    return lines


def _percent(value: object) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "-"
