"""What export, prediction and the attention tool start from: a checkpoint's weights in the model it describes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data.classes import ClassMap
from data.coco_names import COCO_CLASSES
from data.coco_reader import AnnotationReader
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
    classes: ClassMap
    """From the checkpoint; where it names none: the data's, COCO's if there are 80, or "class 1", "class 2", ..."""
    names_classes: bool
    """Whether the checkpoint names them."""

    @property
    def epoch(self) -> int | None:
        """Epochs it was trained for; None where the file does not tell."""
        last_epoch = self.checkpoint.get("last_epoch")
        return last_epoch + 1 if isinstance(last_epoch, int) else None

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
    """Load a checkpoint; neither a data set nor any other weight file is needed.

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
    stored = checkpoint_classes(checkpoint, path)
    classes = stored or _classes_of(config, path)
    if len(classes) != config.num_classes:
        raise UserError(
            f"{path}: it names {len(classes)} classes, but the config says num_classes: {config.num_classes}"
        )
    rest = {key: value for key, value in checkpoint.items() if key not in ("model", "ema", "optimizer")}
    ema = checkpoint.get("ema")
    if isinstance(ema, dict) and isinstance(ema.get("updates"), int):
        rest["ema_updates"] = ema["updates"]
    return Source(path, rest, config, model.eval(), classes, stored is not None)


def _classes_of(config: ExperimentConfig, path: Path) -> ClassMap:
    """Classes for a file that names none."""
    dataset = config.val_dataloader.dataset
    if dataset.ann_file.is_file():
        reader = AnnotationReader("val", dataset.ann_file, dataset.img_folder)
        categories = reader.categories(reader.load())
        if len(categories) == config.num_classes:
            return ClassMap.from_categories([{"id": key, "name": name} for key, name in categories.items()])
    if config.num_classes == len(COCO_CLASSES):
        log.info("the %d classes are taken to be COCO's", len(COCO_CLASSES))
        return COCO_CLASSES
    numbers = tuple(range(1, config.num_classes + 1))
    classes = ClassMap(numbers, tuple(f"class {number}" for number in numbers))
    log.warning("%s names no classes; they are called %s, ...", path, classes.names[0])
    return classes
