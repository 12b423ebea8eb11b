"""decision.json: from which score an image is rejected, what that promises, and whether new images are of the kind that
the promise is about."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from data.coco import CocoSplit
from data.errors import UserError
from data.files import write_json
from data.images import large_images_allowed, read_image
from data.industrial_dataset import pixel_mean_std
from engine.config import config_to_dict
from engine.detector import Detector
from models.config import ModelConfig
from texts import Texts

DECISION_NAME = "decision.json"
Verdict = Literal["pass", "look", "reject"]
LEAST_IMAGES = 20
"""New images from which on they are compared with those of the validation split."""
_JUDGED_SECTIONS = {field for field in ModelConfig.model_fields if field != "DEIMCriterion"} - {
    "model",
    "criterion",
    "eval_spatial_size",  # Decision.input_size_hw
    "gradient_checkpointing",
}
_TRAINING_ONLY = {"weights_path", "finetune", "freeze", "backbone_lr_factor", "trainable", "trainable_layers"} | {
    "num_denoising",
    "label_noise_ratio",
    "box_noise_scale",
}
_ALARM = 0.01
"""A p-value below warns: of sessions whose images are of the same kind, one in a hundred is warned about."""
_Share = Annotated[float, Field(ge=0, le=1)]


class Traits(BaseModel):
    """What is compared between images, a number an image: score of the best defect, mean and spread of the pixels."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    score: list[float] = []
    brightness: list[float] = []
    contrast: list[float] = []

    def add(self, score: float, prepared: Tensor) -> None:
        """Take in one image, `prepared` for the network (uint8 [3, H, W])."""
        pixels = prepared.float()
        self.score.append(round(score, 6))
        self.brightness.append(round(float(pixels.mean()), 6))
        self.contrast.append(round(float(pixels.std()), 6))


class Decision(BaseModel):
    """The content of decision.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    promise: str
    """In plain words, as `assumptions`."""
    assumptions: list[str]
    date: str
    split: str
    gt_hash: str
    """Of the images and boxes it was made on."""
    checkpoint: str
    checkpoint_sha256: str
    max_miss_rate: _Share
    confidence: _Share
    per_class: bool
    """The promise holds for the images of each class, not only for all defective images together."""
    num_defective: int
    """Images, of the class with the lowest threshold where it is `per_class`."""
    bound: _Share
    """Miss rate that is not exceeded, with `confidence`."""
    pass_below: Annotated[float, Field(gt=0, le=1)]
    """An image passes whose best defect has a lower score."""
    reject_from: Annotated[float, Field(gt=0, le=1)]
    """It is rejected from this score on; between the two somebody looks."""
    classes: list[str]
    input_size_hw: tuple[int, int]
    tile: tuple[int, float] | None
    """Size in pixels and overlap; None: whole images."""
    use_amp: bool
    nms_iou: float | None
    settings: dict[str, Any]
    """`settings_of` the detector."""
    validation: Traits

    def verdict(self, score: float) -> Verdict:
        """Judge an image by the score of its best defect, 0 without any."""
        return "pass" if score < self.pass_below else "look" if score < self.reject_from else "reject"


def promise_text(made: Mapping[str, Any], texts: Texts) -> str:
    """Write in plain words what `max_miss_rate` and `confidence` promise, for all images or for those of each class."""
    return texts("promise_per_class" if made["promise_per_class"] else "promise", **shares(made, texts))


def shares(made: Mapping[str, Any], texts: Texts) -> dict[str, str]:
    """Write `rate` and `confidence` with the decimals they need."""
    rate, confidence = (texts.percent(made[key], decimals(100 * made[key])) for key in ("max_miss_rate", "confidence"))
    return {"rate": rate, "confidence": confidence}


def decimals(value: float) -> int:
    """Count the decimals that a number needs, at most four."""
    return next((count for count in range(4) if math.isclose(value, round(value, count))), 4)


def write_decision(path: Path, decision: Decision) -> None:
    """Write it with a hash of its content.

    Raises:
        UserError: The file cannot be written.
    """
    content = decision.model_dump(mode="json")
    write_json(path, content | {"sha256": _digest(content)}, what="decision", indent=2)


def read_decision(path: Path) -> Decision:
    """Read a decision.json as it was written.

    Raises:
        UserError: It is not there, damaged, or changed by hand.
    """
    again = "Make it again with evaluate_deimv2.py --max-miss-rate"
    try:
        content = json.loads(path.read_bytes())
        stored = content.pop("sha256", None) if isinstance(content, dict) else None
        decision = Decision.model_validate(content)
    except FileNotFoundError:
        raise UserError(f"--decision {path}: no such file. {again}, which writes it beside results.json.") from None
    except (OSError, ValueError, RecursionError) as error:
        fault = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" if fault else " ".join(str(error).split())[:120]
        raise UserError(f"--decision {path}: damaged or no decision ({reason}). {again}.") from None
    if stored != _digest(content):
        raise UserError(
            f"--decision {path}: its content is not what was written (its sha256 is another one). A threshold changed "
            f"by hand keeps no promise. {again}."
        )
    return decision


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def traits_of(detector: Detector, split: CocoSplit, scores: dict[int, float]) -> Traits:
    """Measure the images of a split, which are read once more; `scores` of each image's best defect by image id."""
    traits = Traits()
    with large_images_allowed() if detector.config.tiles is not None else contextlib.nullcontext():
        for image in split.images:
            traits.add(scores[image.id], detector.prepare(read_image(image.path)[0]))
    return traits


def settings_of(detector: Detector) -> dict[str, Any]:
    """Collect what else than weights, input size, tiles and precision decides on scores, by config key: a promise about
    one network keeps nothing for another one with the same weights."""
    mean, std = pixel_mean_std(detector.config)
    found: dict[str, Any] = {"Normalize.mean": [*mean], "Normalize.std": [*std]}
    for section, values in config_to_dict(detector.config).items():
        if section in _JUDGED_SECTIONS:
            own = values if isinstance(values, dict) else {"": values}
            found |= {f"{section}.{key}".rstrip("."): own[key] for key in own if key not in _TRAINING_ONLY}
    return found


class Shift(NamedTuple):
    """How far new images differ from those of validation."""

    p_values: dict[str, float]
    """Of each trait: the chance of a difference as large between images of one kind (Kolmogorov-Smirnov), corrected for
    the number of tests (Bonferroni)."""
    medians: dict[str, tuple[float, float]]
    """Of validation and of the new images."""

    @property
    def suspects(self) -> list[str]:
        """Traits that differ by more than chance explains."""
        return [name for name, p in self.p_values.items() if p < _ALARM]


def shift(known: Traits, new: Traits) -> Shift | None:
    """Compare new images with those of validation; None if there are too few of either."""
    from scipy.stats import ks_2samp

    if min(len(known.score), len(new.score)) < LEAST_IMAGES:
        return None
    pairs = {name: (getattr(known, name), getattr(new, name)) for name in Traits.model_fields}
    with warnings.catch_warnings():  # where the exact value is out of reach, the asymptotic one is as good
        warnings.simplefilter("ignore", RuntimeWarning)
        p_values = {name: min(1.0, len(pairs) * float(ks_2samp(*pair).pvalue)) for name, pair in pairs.items()}
    medians = {name: (float(np.median(pair[0])), float(np.median(pair[1]))) for name, pair in pairs.items()}
    return Shift(p_values, medians)
