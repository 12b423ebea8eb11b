"""A new run from other weights (`-t`): a detector's, a bare ViT's, with or without rows chosen by class name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from data.classes import ClassMap
from data.coco_names import COCO_CLASSES
from data.errors import UserError
from engine.checkpoint import check_classes, checkpoint_classes, load_checkpoint, model_state
from engine.config import ExperimentConfig
from engine.hub import hub_overrides
from engine.multimodal import has_fusion
from models.weights import load_for_tuning, load_phase_1, load_vit, num_classes_of

log = logging.getLogger(__name__)

_SHOWN_NAMES = 12


def start_from(model: nn.Module, config: ExperimentConfig, classes: ClassMap, path: Path) -> None:
    """Load the weights that a new run starts from into `model`.

    A bare ViT goes into the backbone. Phase 2 takes phase 1's weights strictly. Otherwise whatever fits is copied;
    the class heads whole if the class count is the same, or row by row where `tuning_class_map` says so.

    Args:
        model: From `build_detector(config)`.
        config: Of the new run.
        classes: Of the new run's data.
        path: A checkpoint, official or ours, a hub folder or name, or a ViT's weight file.

    Raises:
        UserError: The file is unusable or another model's, or the class map names unknown classes.
    """
    checkpoint = load_checkpoint(path, allow_backbone=True)
    if "backbone" in checkpoint:
        if config.tuning_class_map:
            raise UserError(f"tuning_class_map: {path} holds a backbone alone, which knows no classes; leave it out.")
        load_vit(model, config, checkpoint["backbone"], f"-t {path}:")
        log.info("%s: the backbone's weights were loaded; everything else starts fresh", path)
        return
    hub_overrides(checkpoint, config)  # says in the log what the weights were made for
    state = model_state(checkpoint)
    if config.MultimodalFusion is not None and not has_fusion(state):
        check_classes(checkpoint, classes, path)
        load_phase_1(model, state, source=path)
        log.info("phase 2 starts from the weights of %s", path)
        return
    rows = None
    if config.tuning_class_map:
        rows = class_rows(config.tuning_class_map, classes, _learned_names(checkpoint, path), path)
        log.info("%s: class heads of %s are copied, the others start fresh", path, ", ".join(config.tuning_class_map))
    load_for_tuning(model, state, rows).log(path)


def class_rows(class_map: Mapping[str, str], classes: ClassMap, learned: Sequence[str], path: Path) -> dict[int, int]:
    """Label of the run -> label of the weights, out of a map of names.

    Raises:
        UserError: A name is none of the data set's or of the weights' classes; all of them at once.
    """
    problems = []
    for ours, theirs in class_map.items():
        for name, known, where in ((ours, classes.names, "the data set"), (theirs, learned, str(path))):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else f"; it has {_names(known)}"
                problems.append(f"{ours}: {theirs}: {name!r} is no class of {where}{hint}")
    if problems:
        raise UserError("tuning_class_map (a class of the data set: a class of the weights):", problems)
    return {classes.names.index(ours): list(learned).index(theirs) for ours, theirs in class_map.items()}


def _learned_names(checkpoint: Mapping[str, Any], path: Path) -> Sequence[str]:
    stored = checkpoint_classes(checkpoint, path)
    if stored is not None:
        return stored.names
    count = num_classes_of(model_state(checkpoint))
    if count is None:
        raise UserError(f"tuning_class_map: {path} is no DEIMv2's checkpoint, so it has no class heads to take from.")
    if count != len(COCO_CLASSES):
        raise UserError(
            f"tuning_class_map: {path} is for {count} classes and does not say which (only COCO's {len(COCO_CLASSES)} "
            "are known without names); leave tuning_class_map out."
        )
    return COCO_CLASSES.names


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
