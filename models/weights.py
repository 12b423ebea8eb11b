"""Every way weights come into the detector (spec section 2).

Official files fit without renaming: detectors (`load_state_dict_strict`, `load_for_tuning`) and bare ViTs
(`load_backbone_weights`). Nothing in a file is ever executed.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data.errors import UserError
from models.config import ModelConfig
from models.detector import DEIM

log = logging.getLogger(__name__)

_ALIASES = (("decoder.up", "decoder.decoder.up"), ("decoder.reg_scale", "decoder.decoder.reg_scale"))
"""One tensor under two names; safetensors files hold only one of them."""
_SIZE_DEPENDENT = ("decoder.anchors", "decoder.valid_mask")
"""Follow from the evaluation size; a file of another size is as good."""
_SCORE_HEAD = "decoder.enc_score_head.weight"
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
    """What `load_for_tuning` did not take from the file; everything else was copied."""

    missing: tuple[str, ...]
    """In the model, not in the file: fresh weights."""
    unexpected: tuple[str, ...]
    """In the file, not in the model: ignored."""
    mismatched: tuple[str, ...]
    """Another shape in the file (another class count, say): fresh weights. "key: found ..., expected ..."."""

    def log(self, source: Path) -> None:
        """Say it in the log, key by key."""
        if not (self.missing or self.unexpected or self.mismatched):
            log.info("%s: every weight of the model was loaded", source)
            return
        log.warning("%s: loaded all weights except these", source)
        for text, keys in (
            ("other shape, starts fresh", self.mismatched),
            ("not in the file, starts fresh", self.missing),
            ("not in the model, ignored", self.unexpected),
        ):
            for key in keys:
                log.warning("  %s: %s", text, key)


def load_backbone_weights(model: DEIM, config: ModelConfig) -> None:
    """Load the ViT's own weight file, if `DINOv3STAs.weights_path` names one; null leaves random weights.

    The file holds a bare state dict (.pt, .pth or .safetensors); every key must fit (spec 2.4).

    Raises:
        UserError: The file is missing, damaged or hostile, or holds another network's weights.
    """
    path = config.DINOv3STAs.weights_path
    if path is None:
        return
    if not path.is_file():
        raise UserError(
            f"DINOv3STAs.weights_path: there is no file {path} (looked in {Path.cwd()}). Get it ("
            f"{_SOURCES[config.DINOv3STAs.name]}) and put it there, or start from random weights with "
            "`DINOv3STAs.weights_path: null`, which needs many more images and epochs."
        )
    tensors = _read_tensors(path)
    vit = model.backbone.vit
    problems = _differences(vit.state_dict(), tensors).problems()
    if problems:
        raise UserError(
            f"DINOv3STAs.weights_path: {path} does not hold the weights of `{config.DINOv3STAs.name}` as configured. "
            f"Expected: {_SOURCES[config.DINOv3STAs.name]}.",
            problems,
        )
    vit.load_state_dict(tensors)


def load_state_dict_strict(model: DEIM, state_dict: Mapping[str, Tensor], source: Path | None = None) -> None:
    """Load a detector's weights; every key and shape must fit.

    Two liberties, both harmless (spec 2.1): one of two alias names may be missing, and `decoder.anchors` and
    `decoder.valid_mask` may be missing or of another evaluation size (the model's own are right then). Stored
    constants, such as the RoPE periods, are taken over as they are.

    Raises:
        UserError: Keys are missing or unknown, or shapes differ (names them, and `source` if given).
    """
    own = model.state_dict()
    tensors = _completed(state_dict, own)
    problems = _differences(own, tensors).problems()
    if problems:
        raise UserError(
            f"{source or 'state dict'}: these are not the weights of the configured model.{_class_hint(own, tensors)} "
            "Use the config that the weights were trained with.",
            problems,
        )
    model.load_state_dict(tensors)


def load_for_tuning(model: DEIM, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copy what fits, by name and shape; the rest keeps its fresh weights and is reported (spec 2.4).

    Raises:
        UserError: Less than half of the model would be filled: these are another model's weights.
    """
    own = model.state_dict()
    tensors = _completed(state_dict, own)
    report = _differences(own, tensors)
    fitting = {key: value for key, value in tensors.items() if key in own and value.shape == own[key].shape}
    filled = sum(value.numel() for value in fitting.values()) / sum(value.numel() for value in own.values())
    if filled < _LEAST_FITTING_SHARE:
        raise UserError(
            f"The weights to tune from fill only {filled:.0%} of the configured model, so they belong to another one. "
            "Use weights of the same model size (a different number of classes is fine).",
            report.problems(),
        )
    model.load_state_dict(fitting, strict=False)
    return LoadReport(report.missing, report.unexpected, report.mismatched)


@dataclass(frozen=True)
class _Differences:
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    def problems(self) -> list[str]:
        """One line each; long lists are cut."""
        lines = [
            *self.mismatched,
            *(f"{key}: missing in the file" for key in self.missing),
            *(f"{key}: not in the model" for key in self.unexpected),
        ]
        rest = len(lines) - _MOST_LISTED
        return lines if rest <= 1 else [*lines[:_MOST_LISTED], f"... and {rest} more"]


def _differences(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> _Differences:
    return _Differences(
        missing=tuple(key for key in own if key not in found),
        unexpected=tuple(key for key in found if key not in own),
        mismatched=tuple(
            f"{key}: found {list(found[key].shape)}, expected {list(own[key].shape)}"
            for key in own
            if key in found and found[key].shape != own[key].shape
        ),
    )


def _completed(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of `state_dict` with the aliases filled and the size-dependent constants made to fit."""
    tensors = dict(state_dict)
    for first, second in _ALIASES:
        for name, other in ((first, second), (second, first)):
            if name not in tensors and other in tensors:
                tensors[name] = tensors[other]
    for name in _SIZE_DEPENDENT:
        if name not in tensors or tensors[name].shape != own[name].shape:
            tensors[name] = own[name]
    return tensors


def _class_hint(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    head = found.get(_SCORE_HEAD)
    if head is None or head.ndim != 2 or head.shape[0] == own[_SCORE_HEAD].shape[0]:
        return ""
    return (
        f" The weights are for {head.shape[0]} classes, the config says num_classes {own[_SCORE_HEAD].shape[0]}; "
        "to train with other classes start from them with -t."
    )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a bare state dict onto the CPU."""
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read or is damaged ({error}); download it again") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors, or is damaged; nothing in it was executed. Expected a plain state dict."
        ) from error
    except Exception as error:
        # The unpickler meets arbitrary bytes here and raises a dozen types; all mean that the file is unusable.
        raise UserError(f"{path}: is damaged or no weight file ({type(error).__name__}); download it again") from error
    if not isinstance(content, dict) or not _all_tensors(content.items()):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: expected a plain state dict (key -> tensor), found {keys}")
    return content


def _all_tensors(items: Iterable[tuple[object, object]]) -> bool:
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items)
