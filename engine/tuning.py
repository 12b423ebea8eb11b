"""A new run from other weights (`-t`): a detector's, whose classes are found by name, or a bare ViT's."""

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
from data.names import composed
from engine.checkpoint import check_classes, checkpoint_classes, load_checkpoint, model_state
from engine.config import ExperimentConfig
from engine.hub import hub_overrides
from engine.multimodal import has_fusion
from models.weights import load_for_tuning, load_phase_1, load_vit, num_classes_of

log = logging.getLogger(__name__)

_SHOWN_NAMES = 12


def start_from(model: nn.Module, config: ExperimentConfig, classes: ClassMap, path: Path) -> None:
    """Load the weights that a new run starts from into `model`.

    A bare ViT goes into the backbone. Phase 2 takes phase 1's weights strictly. Otherwise whatever fits is copied, what
    belongs to single classes by their names: the same name, or the one that `tuning_class_map` gives. Weights that name
    no classes are copied whole if the class count is the same.

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
        return
    hub_overrides(checkpoint, config)  # says in the log what the weights were made for
    state = model_state(checkpoint)
    if config.MultimodalFusion is not None and not has_fusion(state):
        check_classes(checkpoint, classes, path)
        load_phase_1(model, state, source=path)
        log.info("phase 2 starts from the weights of %s", path)
        return
    rows = _rows_to_copy(config, classes, checkpoint, path)
    load_for_tuning(model, state, rows, path).log(path)


def _rows_to_copy(
    config: ExperimentConfig, classes: ClassMap, checkpoint: Mapping[str, Any], path: Path
) -> dict[int, int] | None:
    """Label of the run -> label of the weights, said in the log; None: as they are, because nothing tells otherwise."""
    count = num_classes_of(model_state(checkpoint))
    learned = _learned_names(checkpoint, count, path)
    if learned is None and config.tuning_class_map:
        raise UserError(
            f"tuning_class_map: {path} is for {count} classes and does not say which (only COCO's {len(COCO_CLASSES)} "
            "are known without names); leave tuning_class_map out."
            if count is not None
            else f"tuning_class_map: {path} is no DEIMv2's checkpoint, so it has no class heads to take from."
        )
    if learned is None:
        if count == len(classes):
            log.warning("%s does not name its classes; they are taken to be %s", path, _names(classes.names))
        return None
    labels = _labels_by_name(learned)
    rows = {label: labels[composed(name)] for label, name in enumerate(classes.names) if composed(name) in labels}
    rows |= class_rows(config.tuning_class_map, classes, learned, path)
    copied = [name for label, name in enumerate(classes.names) if label in rows]
    fresh = [name for label, name in enumerate(classes.names) if label not in rows]
    unused = [name for label, name in enumerate(learned) if label not in rows.values()]
    if copied:
        log.info("%s: class heads of %s are copied, found by name", path, ", ".join(copied))
    if fresh:
        log.warning(
            "%s: class heads of %s start fresh: it has no such classes. Not used of it: %s (`tuning_class_map` pairs "
            "different names)",
            path,
            ", ".join(fresh),
            _names(unused) or "none",
        )
    return None if len(learned) == len(classes) and rows == {label: label for label in range(len(classes))} else rows


def class_rows(class_map: Mapping[str, str], classes: ClassMap, learned: Sequence[str], path: Path) -> dict[int, int]:
    """Label of the run -> label of the weights, out of a map of names.

    Raises:
        UserError: A name is none of the data set's or of the weights' classes; all of them at once.
    """
    problems = []
    for ours, theirs in class_map.items():
        for name, known, where in ((ours, classes.names, "the data set"), (theirs, learned, str(path))):
            if composed(name) not in map(composed, known):
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]}?" if near else f"; it has {_names(known)}"
                problems.append(f"{ours}: {theirs}: {name!r} is no class of {where}{hint}")
    if problems:
        raise UserError("tuning_class_map (a class of the data set: a class of the weights):", problems)
    into, out_of = _labels_by_name(classes.names), _labels_by_name(learned)
    return {into[composed(ours)]: out_of[composed(theirs)] for ours, theirs in class_map.items()}


def _labels_by_name(names: Sequence[str]) -> dict[str, int]:
    return {composed(name): label for label, name in enumerate(names)}


def _learned_names(checkpoint: Mapping[str, Any], count: int | None, path: Path) -> Sequence[str] | None:
    """Class names of the weights; None where the file tells none and they are not COCO's 80."""
    stored = checkpoint_classes(checkpoint, path)
    if stored is None:
        return COCO_CLASSES.names if count == len(COCO_CLASSES) else None
    if count not in (None, len(stored)):
        raise UserError(f"Checkpoint {path}: it names {len(stored)} classes, but its weights are for {count}.")
    return stored.names


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
