"""The sanity check of Adebayo et al. 2018: a map that explains a detector changes when its weights are made new.

Parts get new weights one after the other, from the heads down to the backbone (cascading randomisation). The rank
correlation of the maps before and after tells how much of a map came from those weights: near 1, none of it.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from attention.perturbation import Found
from data.errors import UserError
from models.baselines import TorchvisionDetector
from models.boxes import paired_iou
from models.config import ModelConfig
from models.detector import DEIM, build_detector
from models.text_fusion import PREFIX

_TEXTS = f"{PREFIX}texts."


class RandomisedModel(NamedTuple):
    """A copy of a detector of which some parts have new weights."""

    name: str
    """The part that was the last to get them: `heads`, `neck`, `backbone`."""
    model: nn.Module


def randomise(model: nn.Module, config: ModelConfig, seed: int) -> list[RandomisedModel]:
    """Copies with new weights in the heads; in heads and neck; everywhere. `model` stays as it is.

    New means: as before training, BatchNorm's statistics too. The class texts of phase 2 are input, not weights, and
    stay.

    Args:
        model: From `build_detector(config)`, in evaluation mode.
        config: Of the model.
        seed: Of the new weights; the global random numbers are not touched.

    Raises:
        UserError: The model is neither DEIMv2 nor a baseline.
    """
    parts = _parts(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs for good
        fresh = build_detector(config).state_dict()
    copies, done = [], []
    for name, prefixes in parts.items():
        done += prefixes
        state = {
            key: fresh[key] if key.startswith(tuple(done)) and not key.startswith(_TEXTS) else value
            for key, value in model.state_dict().items()
        }
        changed = copy.deepcopy(model)
        changed.load_state_dict(state)
        copies.append(RandomisedModel(name, changed.eval()))
    return copies


def _parts(model: nn.Module) -> dict[str, list[str]]:
    """Starts of the state's keys, from the heads down."""
    if isinstance(model, DEIM):
        return {"heads": ["decoder.", PREFIX], "neck": ["encoder."], "backbone": ["backbone."]}
    if isinstance(model, TorchvisionDetector):
        heads = ["detector.rpn.", "detector.roi_heads.", "detector.head."]
        return {"heads": heads, "neck": ["detector.backbone.fpn."], "backbone": ["detector.backbone.body."]}
    raise UserError(
        "The randomisation check is defined for DEIMv2 and the CNN baselines, not for a model of type "
        f"{type(model).__name__}."
    )


def closest(found: Found, box: Tensor, label: int) -> tuple[int, int] | None:
    """Query and label to ask a changed detector for, where the original had predicted `box` [4] (xyxy) as `label`.

    The same query may look elsewhere after the change, which alone would make its map different; the one nearest to
    the box does not flatter the method. None: there is no detection at all.
    """
    if not len(found.boxes):
        return None
    ious = paired_iou(found.boxes, box)
    centres = (found.boxes[:, :2] + found.boxes[:, 2:] - box[:2] - box[2:]).norm(dim=1)
    query = int(ious.argmax() if ious.max() > 0 else centres.argmin())
    if found.scores[query, label] > 0:
        return query, label
    return query, int(found.scores[query].argmax())


def rank_correlation(before: Tensor, after: Tensor) -> float:
    """Spearman's, of two maps of one shape: 1 for equal maps, 0 if one of two different maps is constant."""
    a, b = before.double().flatten().numpy(), after.double().flatten().numpy()
    if np.array_equal(a, b):
        return 1.0
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)
