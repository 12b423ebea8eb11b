"""Every way weights come into the detector (spec section 2).

Official files fit without renaming: detectors (`load_state_dict_strict`, `load_for_tuning`) and bare ViTs
(`load_backbone_weights`). Nothing in a file is ever executed.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from models.baselines import TorchvisionDetector, body_of
from models.config import BaselineConfig, ModelConfig
from models.detector import DEIM
from models.text_fusion import PREFIX as FUSION_PREFIX
from models.weight_files import is_state_dict, is_transformers_layout, original_names, read_weight_file

log = logging.getLogger(__name__)

_ALIASES = (("decoder.up", "decoder.decoder.up"), ("decoder.reg_scale", "decoder.decoder.reg_scale"))
"""One tensor under two names; safetensors files hold only one of them."""
_SIZE_DEPENDENT = ("decoder.anchors", "decoder.valid_mask")
"""Follow from the evaluation size; a file of another size is as good."""
_SCORE_HEADS = {
    "decoder.enc_score_head.weight": 0,
    "detector.roi_heads.box_predictor.cls_score.weight": 1,
    "detector.head.classification_head.cls_logits.weight": 0,
}
"""Whose first size tells the number of classes, plus this many for the background."""
_CLASS_ROWS = (
    (r"decoder\.(?:enc_score_head|dec_score_head\.\d+)\.(?:weight|bias)", 1, 0),
    (r"decoder\.denoising_class_embed\.weight", 1, 0),  # the last row, the padding, is of no class
    (r"text_fusion\.(?:texts\.(?:offsets|embeds|mask)|head\.readouts\.\d+\.linear\.(?:weight|bias))", 1, 0),
    (r"detector\.roi_heads\.box_predictor\.cls_score\.(?:weight|bias)", 1, 1),
    (r"detector\.roi_heads\.box_predictor\.bbox_pred\.(?:weight|bias)", 4, 4),
    (r"detector\.head\.classification_head\.cls_logits\.(?:weight|bias)", 1, 0),
)
"""Tensors with rows of the classes in label order: name, rows per class, rows before the first class (background)."""
_PARTS = (
    ("heads", r"decoder\.((enc|dec|pre)_\w+_head|denoising_class_embed)\.|detector\.(rpn|roi_heads|head)\."),
    ("backbone", r"backbone\.|detector\.backbone\.body\."),
    ("encoder", r"encoder\.|detector\.backbone\.fpn\."),
    ("decoder", r"decoder\."),
    ("text_fusion", re.escape(FUSION_PREFIX)),
)
"""Parts of a detector, by the start of their tensors' names; the first that matches counts."""
_MOST_LISTED = 20
_LEAST_FITTING_SHARE = 0.5

_SOURCES = {
    "vit_tiny": "vitt_distill.pt: see the table of backbone checkpoints in https://github.com/Intellindust-AI-Lab/DEIMv2",
    "vit_tinyplus": "vittplus_distill.pt: see the table of backbone checkpoints in "
    "https://github.com/Intellindust-AI-Lab/DEIMv2",
    "dinov3_vits16": "dinov3_vits16_pretrain_lvd1689m-08c60483.pth: part of the DINOv3 release (on request, DINOv3 "
    "licence), https://github.com/facebookresearch/dinov3",
    "dinov3_vits16plus": "dinov3_vits16plus_pretrain_lvd1689m-4057cbaa.pth: part of the DINOv3 release (on request, "
    "DINOv3 licence), https://github.com/facebookresearch/dinov3",
    "vit_custom": "there is no official file for a ViT of your own size",
}


@dataclass(frozen=True)
class LoadReport:
    """What of a file does not fit a model; `load_for_tuning` copies everything else."""

    missing: tuple[str, ...]
    """In the model, not in the file: fresh weights."""
    unexpected: tuple[str, ...]
    """In the file, not in the model: ignored."""
    mismatched: tuple[str, ...]
    """Another shape in the file (another class count, say): fresh weights. "key: found ..., expected ..."."""
    fresh_classes: int = 0
    """Classes of the model that are none of the file's: fresh rows in tensors that count as copied."""

    def problems(self) -> list[str]:
        """One line each; long lists are cut."""
        missing = [f"{key}: missing in the file" for key in self.missing]
        return cut([*self.mismatched, *missing, *(f"{key}: not in the model" for key in self.unexpected)])

    def log(self, source: Path) -> None:
        """Say it in the log, key by key."""
        if not (self.missing or self.unexpected or self.mismatched):
            but = f", but for the rows of {self.fresh_classes} classes" if self.fresh_classes else ""
            log.info("%s: every weight of the model was loaded%s", source, but)
            return
        log.warning("%s: loaded all weights except these", source)
        for text, keys in (
            ("other shape, starts fresh", self.mismatched),
            ("not in the file, starts fresh", self.missing),
            ("not in the model, ignored", self.unexpected),
        ):
            for key in cut(keys):
                log.warning("  %s: %s", text, key)


def cut(lines: Sequence[str]) -> list[str]:
    """The lines, or the first ones and how many more there are."""
    rest = len(lines) - _MOST_LISTED
    return list(lines) if rest <= 1 else [*lines[:_MOST_LISTED], f"... and {rest} more"]


def log_origin(model: nn.Module, loaded: Collection[str], source: object, *, fresh: Collection[str] = ()) -> None:
    """Say in the log which parts of the network come from a file and which stayed random.

    Args:
        model: Any detector.
        loaded: Names of its tensors that came from the file.
        source: The file.
        fresh: Parts that are meant to start fresh; any other that does is a warning.
    """
    names = [name for name in model.state_dict() if name not in _SIZE_DEPENDENT]
    total = Counter(map(_part, names))
    found = Counter(_part(name) for name in names if name in loaded)
    if found:
        parts = (f"{part} ({found[part]} of {total[part]} tensors)" for part in total if found[part])
        log.info("from %s: %s", source, ", ".join(parts))
    random = [part for part in total if found[part] < total[part]]
    if random:
        parts = (f"{part} ({total[part] - found[part]} of {total[part]} tensors)" for part in random)
        level = logging.INFO if set(random) <= set(fresh) else logging.WARNING
        log.log(level, "stays random, being not in %s: %s", source, ", ".join(parts))


def _part(name: str) -> str:
    return next((part for part, pattern in _PARTS if re.match(pattern, name)), "other")


def load_backbone_weights(model: nn.Module, config: ModelConfig) -> None:
    """Load the backbone's own weights, if the config names any; null leaves random ones.

    DEIMv2's ViT (`DINOv3STAs.weights_path`): the file holds a bare state dict (.pt, .pth or .safetensors); every key
    must fit (spec 2.4). A baseline's CNN (`Baseline.weights`): torchvision's ImageNet weights, downloaded once by
    torchvision, or a file of the same.

    Raises:
        UserError: The file is missing and cannot be downloaded, is damaged or hostile, or holds another network's
            weights.
    """
    if config.Baseline is not None:
        assert isinstance(model, TorchvisionDetector)
        _load_imagenet_weights(model.body, config.Baseline)
        return
    backbone = config.deimv2.backbone
    path = backbone.weights_path
    if path is None:
        return
    if not path.is_file():
        raise UserError(
            f"DINOv3STAs.weights_path: there is no file {path} (looked in {Path.cwd()}). Get it ("
            f"{_SOURCES[backbone.name]}) and put it there, or start from random weights with "
            "`DINOv3STAs.weights_path: null`, which needs many more images and epochs."
        )
    load_vit(model, config, _read_tensors(path), f"DINOv3STAs.weights_path: {path}")


def is_vit(state_dict: Mapping[str, object]) -> bool:
    """Whether these are a bare ViT's weights, such as `vitt_distill.pt`, and no detector's."""
    original = "cls_token" in state_dict and "patch_embed.proj.weight" in state_dict
    return original or is_transformers_layout(state_dict)


def load_vit(model: nn.Module, config: ModelConfig, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a bare ViT's weights into the backbone; every key must fit (spec 2.4).

    DINOv3's may have the names of the original release or of `transformers`.

    Raises:
        UserError: `model` is a baseline, or the weights are another network's.
    """
    if not isinstance(model, DEIM):
        raise UserError(f"{source} is the backbone of a DEIMv2, the config describes a baseline (section Baseline).")
    name, vit = config.deimv2.backbone.name, model.backbone.vit
    try:
        if is_transformers_layout(tensors):
            tensors = original_names(tensors, vit.state_dict())
        problems = _differences(vit.state_dict(), tensors).problems()
    except RuntimeError as error:  # q, k and v of shapes that do not go together
        problems = [str(error)]
    if problems:
        raise UserError(
            f"{source} does not hold the weights of `{name}` as configured. Expected: {_SOURCES[name]}.", problems
        )
    vit.load_state_dict(tensors)
    prefix = next(name for name, module in model.named_modules() if module is vit)
    log_origin(model, {f"{prefix}.{key}" for key in tensors}, source.rstrip(":"), fresh=[part for part, _ in _PARTS])


def _load_imagenet_weights(body: nn.Module, config: BaselineConfig) -> None:
    """The layers of a classification network that `body` has; its classifier is left out."""
    if config.weights is None:
        return
    weights, prefix = body_of(config).weights, body_of(config).prefix
    file_name = Path(weights.url).name
    if isinstance(config.weights, Path):
        source: object = config.weights
        if not config.weights.is_file():
            raise UserError(
                f"Baseline.weights: there is no file {config.weights} (looked in {Path.cwd()}). Get {weights.url} and "
                "put it there, or have torchvision get it with `Baseline.weights: IMAGENET1K_V1`, or start from "
                "random weights with `Baseline.weights: null`."
            )
        tensors = _read_tensors(config.weights)
    else:
        source = Path(torch.hub.get_dir(), "checkpoints", file_name)
        tensors = _read_tensors(source) if source.is_file() else _download(weights, source)
    own = body.state_dict()
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    # Files from before PyTorch 0.4.1 do not count BatchNorm's batches; the count is not used.
    chosen = {key: found.get(key, own[key]) for key in own if key in found or key.endswith("num_batches_tracked")}
    problems = _differences(own, chosen).problems()
    if problems:
        raise UserError(
            f"Baseline.weights: {source} does not hold the weights of the backbone of `{config.name}`. Expected: "
            f"torchvision's {file_name}, {weights.url}.",
            problems,
        )
    body.load_state_dict(chosen)


def _download(weights: Any, target: Path) -> dict[str, Tensor]:
    """torchvision's own way for its ImageNet weights; the file stays at `target` for the next time."""
    try:
        log.info("downloading %s to %s", weights.url, target)
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError, HTTPException) as error:  # no network, no space, or a broken transfer
        raise UserError(
            f"Baseline.weights: {weights} could not be downloaded from {weights.url} ({error}). Without a network, "
            f"get {target.name} on another machine and put it into the folder {target.parent}, or give its path: "
            f"-u Baseline.weights=PATH/{target.name}. `Baseline.weights: null` starts from random weights."
        ) from error
    return state


def load_state_dict_strict(model: nn.Module, state_dict: Mapping[str, Tensor], source: Path | None = None) -> None:
    """Load a detector's weights; every key and shape must fit.

    Two liberties, both harmless (spec 2.1): one of two alias names may be missing, and `decoder.anchors` and
    `decoder.valid_mask` may be missing or of another evaluation size (the model's own are right then). Stored
    constants, such as the RoPE periods, are taken over as they are.

    Raises:
        UserError: Keys are missing or unknown, or shapes differ (names them, and `source` if given).
    """
    model.load_state_dict(_checked(model.state_dict(), state_dict, source))


def _checked(own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], source: Path | None) -> dict[str, Tensor]:
    """`state_dict`, completed, if it fits `own` in every key and shape.

    Raises:
        UserError: It does not.
    """
    tensors = completed(state_dict, own)
    problems = _differences(own, tensors).problems()
    if problems:
        hints = _class_hint(own, tensors) + _fusion_hint(own, tensors)
        raise UserError(
            f"{source or 'state dict'}: these are not the weights of the configured model.{hints} "
            "Use the config that the weights were trained with.",
            problems,
        )
    return tensors


def load_phase_1(model: nn.Module, state_dict: Mapping[str, Tensor], source: Path | None = None) -> None:
    """Load phase 1's weights into a detector with text fusion, whose own parts keep their fresh weights.

    As strict as `load_state_dict_strict` for everything else.

    Raises:
        UserError: As `load_state_dict_strict`.
    """
    shared = {key: value for key, value in model.state_dict().items() if not key.startswith(FUSION_PREFIX)}
    model.load_state_dict(_checked(shared, state_dict, source), strict=False)
    log_origin(model, shared, source, fresh=[FUSION_PREFIX.rstrip(".")])


def load_for_tuning(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    class_rows: Mapping[int, int] | None = None,
    source: object = "the file",
) -> LoadReport:
    """Copy what fits, by name and shape; the rest keeps its fresh weights and is reported (spec 2.4).

    Args:
        model: Any detector.
        state_dict: Weights of a detector of the same size.
        class_rows: Label of the model -> label of the file: these classes' rows are copied, those of other labels start
            fresh, whatever the file's class count. None: heads are copied whole where the shapes fit.
        source: The file, for the log.

    Raises:
        UserError: Less than half of the model would be filled: these are another model's weights.
    """
    own = model.state_dict()
    tensors = completed(state_dict, own)
    if class_rows is not None:
        tensors |= _rows_by_class(own, tensors, class_rows)
    report = _differences(own, tensors)
    strange = {line.partition(":")[0] for line in report.mismatched}
    fitting = {key: value for key, value in tensors.items() if key in own and key not in strange}
    filled = sum(value.numel() for value in fitting.values()) / sum(value.numel() for value in own.values())
    if filled < _LEAST_FITTING_SHARE:
        raise UserError(
            f"The weights to tune from fill only {filled:.0%} of the configured model, so they belong to another one. "
            "Use weights of the same model size (a different number of classes is fine).",
            report.problems(),
        )
    model.load_state_dict(fitting, strict=False)
    log_origin(model, fitting, source)
    fresh_classes = 0 if class_rows is None else (num_classes_of(own) or 0) - len(class_rows)
    return replace(report, fresh_classes=fresh_classes)


def num_classes_of(state_dict: Mapping[str, Tensor]) -> int | None:
    """Classes that a detector's weights are for; None for other weights."""
    for name, background in _SCORE_HEADS.items():
        if name in state_dict and state_dict[name].ndim:
            return len(state_dict[name]) - background
    return None


def _rows_by_class(
    own: Mapping[str, Tensor], found: Mapping[str, Tensor], class_rows: Mapping[int, int]
) -> dict[str, Tensor]:
    """The model's per-class tensors with chosen classes' rows of the file's in them."""
    mapped = {}
    for key, value in own.items():
        pattern = next((spec for spec in _CLASS_ROWS if re.fullmatch(spec[0], key)), None)
        if pattern is None or key not in found or found[key].shape[1:] != value.shape[1:]:
            continue
        _, count, first = pattern
        mapped[key] = value.clone()
        mapped[key][:first] = found[key][:first].to(value)
        for ours, theirs in class_rows.items():
            into, out_of = (slice(first + label * count, first + (label + 1) * count) for label in (ours, theirs))
            rows = found[key][out_of]
            if len(rows) == count:
                mapped[key][into] = rows.to(value)
    return mapped


def weight_problems(module: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    """Why weights cannot be loaded strictly into `module`, one line each; empty where they can."""
    return _differences(module.state_dict(), completed(state_dict, module.state_dict())).problems()


def _differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> LoadReport:
    return LoadReport(
        missing=tuple(key for key in own if key not in found),
        unexpected=tuple(key for key in found if key not in own),
        mismatched=tuple(
            f"{key}: found {_kind(found[key], own[key])}, expected {list(own[key].shape)}"
            for key in own
            if key in found and _kind(found[key], own[key]) != str(list(own[key].shape))
        ),
    )


def _kind(found: Tensor, own: Tensor) -> str:
    """The shape, and the type where whole numbers stand for a weight."""
    whole = own.is_floating_point() and not found.is_floating_point()
    return f"{str(found.dtype).removeprefix('torch.')} " * whole + str(list(found.shape))


def completed(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of `state_dict` with the aliases filled and the size-dependent constants made to fit."""
    tensors = dict(state_dict)
    for first, second in _ALIASES:
        for name, other in ((first, second), (second, first)):
            if name not in tensors and other in tensors:
                tensors[name] = tensors[other]
    for name in _SIZE_DEPENDENT:
        if name in own and (name not in tensors or tensors[name].shape != own[name].shape):
            tensors[name] = own[name]
    return tensors


def _class_hint(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    expected, classes = num_classes_of(own), num_classes_of(found)
    if None not in (expected, classes) and classes != expected:
        return (
            f" The weights are for {classes} classes, the config says num_classes {expected}; "
            "to train with other classes start from them with -t."
        )
    return ""


def _fusion_hint(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    configured, stored = (any(key.startswith(FUSION_PREFIX) for key in keys) for keys in (own, found))
    if configured and not stored:
        return (
            " The config asks for text fusion (MultimodalFusion), the weights are of phase 1, without text; "
            "train_deimv2_multimodal.py -r starts phase 2 from them."
        )
    if stored and not configured:
        return " The weights have text fusion, the config has not (MultimodalFusion)."
    return ""


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a bare state dict onto the CPU."""
    content = read_weight_file(path)
    if not isinstance(content, dict) or not is_state_dict(content):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: expected a plain state dict (key -> tensor), found {keys}")
    return content
