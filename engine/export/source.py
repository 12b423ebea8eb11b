"""What an export starts from: a checkpoint's weights in the model that it describes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data.coco_names import COCO_NAMES
from data.errors import UserError
from engine.checkpoint import checkpoint_classes, load_checkpoint, model_state
from engine.config import ExperimentConfig
from engine.judged_config import judged_config
from models.detector import DEIM, build_detector
from models.weights import load_state_dict_strict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint."""

    path: Path
    checkpoint: Mapping[str, Any]
    """Its content without the weights."""
    config: ExperimentConfig
    model: nn.Module
    """In evaluation mode, with the weights that are judged: the EMA's where there are any."""
    class_names: tuple[str, ...]
    """In label order; made up where the checkpoint names none."""

    def state_dict(self) -> dict[str, Tensor]:
        """Every weight and buffer under its official name, shape and dtype."""
        return dict(self.model.state_dict())

    def deim(self, target: str) -> DEIM:
        """The model, if it is a DEIMv2.

        Raises:
            UserError: It is a baseline.
        """
        if not isinstance(self.model, DEIM):
            assert self.config.Baseline is not None
            raise UserError(
                f"{self.path}: is the baseline {self.config.Baseline.name}, which cannot be exported to {target}; only "
                "DEIMv2 can. `--format safetensors` takes its weights out."
            )
        return self.model

    @property
    def has_texts(self) -> bool:
        """Whether class texts are part of the scores."""
        return isinstance(self.model, DEIM) and self.model.text_fusion is not None

    @property
    def derived_from_dinov3(self) -> bool:
        """Whether the DINOv3 licence governs the weights, as far as the config tells: null backbones are their own.

        Weights tuned from others count as derived, because those others may be.
        """
        config = self.config
        return config.Baseline is None and (
            "config" not in self.checkpoint
            or config.tuning is not None
            or config.deimv2.backbone.weights_path is not None
        )


def load_source(path: Path, config_path: Path | None = None, overrides: Sequence[str] = ()) -> Source:
    """Load a checkpoint to be exported.

    Args:
        path: Ours, an official one (which needs `config_path`), or a hub folder or name.
        config_path: Config to use instead of the checkpoint's own.
        overrides: `a.b=c`, on top of either.

    Raises:
        UserError: Bad input of any kind.
    """
    checkpoint = load_checkpoint(path)
    config = judged_config(checkpoint, path, config_path, overrides)
    model = build_detector(config)
    load_state_dict_strict(model, model_state(checkpoint), source=path)
    classes = checkpoint_classes(checkpoint, path)
    if classes is not None:
        names = classes.names
    elif config.num_classes == len(COCO_NAMES):
        names = COCO_NAMES
    else:
        names = tuple(f"class_{label}" for label in range(config.num_classes))
        log.warning("%s names no classes; they are called %s, ...", path, names[0])
    rest = {key: value for key, value in checkpoint.items() if key not in ("model", "ema", "optimizer")}
    ema = checkpoint.get("ema")
    if isinstance(ema, dict):
        rest["ema_updates"] = int(ema.get("updates", 0))
    return Source(path, rest, config, model.eval(), names)
