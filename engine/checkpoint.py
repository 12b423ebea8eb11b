"""Checkpoints: written whole, read without running any code in them, and started from (`-t`).

A checkpoint is a dict of plain containers, numbers, strings and tensors with at least `model`; ours also hold `ema`,
`config`, `classes` and the state of the loop, see `engine.resume` (docs/deimv2.md, Checkpoint files).
"""

from __future__ import annotations

import difflib
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.classes import COCO_CLASSES, ClassMap
from data.errors import UserError
from data.files import write_atomically
from data.names import composed
from engine.config import ExperimentConfig, config_from_dict
from engine.named_files import checkpoint_not_found, checkpoint_of
from models.hub import CONFIG_NAME, hub_overrides, hub_weights, name_advice, read_hub_config
from models.weights import (
    has_fusion,
    is_state_dict,
    is_vit,
    load_for_tuning,
    load_phase_1,
    load_vit,
    num_classes_of,
    parse_json,
    read_metadata,
    read_weight_file,
)

log = logging.getLogger(__name__)

METADATA_KEYS = ("config", "classes", "object_scale")
"""What our safetensors files carry as JSON in their metadata."""
_SHOWN_NAMES = 12


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` so that a reader finds the old file or the complete new one, never a part.

    Raises:
        TypeError: `state` holds something that `load_checkpoint` would refuse (names where).
        UserError: The disk is full or cannot be written; what stood at `path` is still there.
    """
    plain = {key: _plain(value, str(key)) for key, value in state.items()}
    write_atomically(path, lambda file: torch.save(plain, file), what="checkpoint")


def _plain(value: Any, where: str) -> Any:
    """A copy of the containers (tensors are shared), so that what is written is what `weights_only` accepts."""
    if isinstance(value, Tensor):
        tensor = value.detach()
        # torch.save writes whole storages: a slice would drag along the tensor it was cut from.
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if type(value) in (dict, OrderedDict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"checkpoint entry {where!r}: key {key!r} is a {type(key).__name__}, not str or int")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    raise TypeError(f"checkpoint entry {where!r} is a {type(value).__name__}; only plain values and tensors are stored")


def load_checkpoint(path: Path, *, allow_backbone: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: ours, an official one, or a bare detector's weights (as `model`).

    Args:
        path: A file, a run folder (its best.pth), a folder with the hub's layout, or a name on the hub (`models.hub`).
            What stands in a safetensors file's metadata or in `config.json` beside it comes along (`config`,
            `classes`, `object_scale`, `hub_config`).
        allow_backbone: Return the weights of a bare ViT too, as `backbone`.

    Raises:
        UserError: The file is missing, damaged, holds more than data, or has no weights under `model` or
            `ema.module`.
    """
    file = hub_weights(checkpoint_of(path))
    if not file.is_file():
        raise checkpoint_not_found(path, hint=name_advice(path))
    content = read_weight_file(file, what="Checkpoint")
    if is_state_dict(content):
        if is_vit(content) and allow_backbone:
            return {"backbone": content}
        if file.suffix == ".safetensors" or any(key.startswith("decoder.") for key in content):
            content = {"model": content}
    return _require_weights(path, content) | (_stored_beside(file) if file.suffix == ".safetensors" else {})


def _stored_beside(file: Path) -> dict[str, Any]:
    """`METADATA_KEYS` out of a safetensors file's metadata, and a hub folder's config.json."""
    metadata = read_metadata(file)
    try:
        stored: dict[str, Any] = {key: parse_json(metadata[key]) for key in METADATA_KEYS if key in metadata}
    except ValueError as error:
        raise UserError(f"Checkpoint {file}: its metadata are damaged ({error}).") from error
    hub_config = read_hub_config(file)
    if hub_config is None:
        return stored
    labels = hub_config.get("id2label")
    if labels is not None:
        in_order = [str(label) for label in range(len(labels))] if isinstance(labels, dict) else []
        names = [labels.get(label) for label in in_order]
        if not names or not all(isinstance(name, str) for name in names):
            raise UserError(
                f"{file.with_name(CONFIG_NAME)}: id2label is not a name for each label 0, 1, 2, ...; correct it, or "
                "remove it."
            )
        is_coco = tuple(names) == COCO_CLASSES.names
        classes = COCO_CLASSES.to_dict() if is_coco else {"category_ids": list(range(len(names))), "names": names}
        stored = {"classes": classes} | stored
    return stored | {"hub_config": hub_config}


def _require_weights(path: Path, content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"Checkpoint {path}: it holds a {type(content).__name__}; expected a dict with `model`.")
    if "model" not in content:
        found = f"it holds {', '.join(sorted(map(str, content))[:6]) or 'nothing'}"
        if content and is_state_dict(content):
            found = (
                "it holds bare weights; a backbone's weight file belongs into `DINOv3STAs.weights_path` of the config "
                "(a baseline's: `Baseline.weights`), or after -t"
            )
        raise UserError(f"Checkpoint {path}: no `model` in it; {found}. Expected a checkpoint of a training run.")
    ema = content.get("ema")
    parts = {"model": content["model"]}
    if ema is not None:
        parts["ema.module"] = ema.get("module") if isinstance(ema, dict) else ema
    for name, part in parts.items():
        if not is_state_dict(part):
            raise UserError(f"Checkpoint {path}: `{name}` is not a dict of names to tensors; the file is not usable.")
    for key in ("last_epoch", "seed", "train_seconds"):  # results and exports say them on
        value = content.get(key, 0)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise UserError(f"Checkpoint {path}: `{key}` is no number; the file is not usable.")
    return dict(content)


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights to evaluate, to publish and to tune from: the EMA's where there are any, else the raw ones."""
    ema = checkpoint.get("ema")
    return dict(checkpoint["model"] if ema is None else ema["module"])


def checkpoint_config(checkpoint: Mapping[str, Any], path: Path) -> ExperimentConfig:
    """Return the config that the checkpoint was trained with.

    Raises:
        UserError: It holds none (an official file), or one that this version cannot read.
    """
    stored = checkpoint.get("config")
    if not isinstance(stored, dict):
        raise UserError(f"Checkpoint {path}: no config in it (an official file?); give one with -c CONFIG.")
    try:
        return config_from_dict(stored)
    except UserError as error:
        raise UserError(f"Checkpoint {path}: its config cannot be used; give one with -c CONFIG. {error}") from error


def checkpoint_classes(checkpoint: Mapping[str, Any], path: Path) -> ClassMap | None:
    """Return class names and category ids of the training data; None in an official file, which has none.

    Raises:
        UserError: They are there but damaged.
    """
    stored = checkpoint.get("classes")
    if stored is None:
        return None
    try:
        if not all(isinstance(stored[key], list) for key in ("category_ids", "names")):
            raise TypeError("expected lists")
        return ClassMap.from_dict(stored)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"Checkpoint {path}: its `classes` are damaged ({error}).") from error


def check_classes(checkpoint: Mapping[str, Any], data: ClassMap, path: Path) -> None:
    """Require that the data set's labels mean what the weights learned: same names in the same order.

    Category ids may differ (another export of the same data): results carry the data set's own. An official file
    names no classes; there the heads' shapes decide when the weights are loaded.

    Raises:
        UserError: The names differ, in number or in order.
    """
    learned = checkpoint_classes(checkpoint, path)
    if learned is None or learned.names == data.names:
        return
    raise UserError(
        f"Checkpoint {path} and the data set disagree on the classes, so its labels would mean something else. "
        "Use data with the classes it was trained on, or start a new run from its weights with -t.",
        [
            f"checkpoint: {len(learned)} classes: {_names(learned.names)}",
            f"data set: {len(data)} classes: {_names(data.names)}",
        ],
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")


def start_from(model: nn.Module, config: ExperimentConfig, classes: ClassMap, path: Path) -> None:
    """Load the weights that a new run starts from into `model`.

    A bare ViT goes into the backbone. Phase 2 takes phase 1's weights strictly. Otherwise whatever fits is copied, what
    belongs to single classes by their names: the same name, or the one that `tuning_class_map` gives. Weights that name
    no classes are copied whole if the class count is the same.

    Args:
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
    load_for_tuning(model, state, rows, path)


def _rows_to_copy(
    config: ExperimentConfig, classes: ClassMap, checkpoint: Mapping[str, Any], path: Path
) -> dict[int, int] | None:
    """Label of the run -> label of the weights, said in the log; None: as they are, because nothing tells otherwise."""
    count = num_classes_of(model_state(checkpoint))
    stored = checkpoint_classes(checkpoint, path)
    coco = COCO_CLASSES.names if count == len(COCO_CLASSES) else None
    learned = coco if stored is None else stored.names
    if stored is not None and count not in (None, len(stored)):
        raise UserError(f"Checkpoint {path}: it names {len(stored)} classes, but its weights are for {count}.")
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
    labels = {composed(name): label for label, name in enumerate(learned)}
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
    """Turn a map of names into label of the run -> label of the weights.

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
    into, out_of = ({composed(name): label for label, name in enumerate(names)} for names in (classes.names, learned))
    return {into[composed(ours)]: out_of[composed(theirs)] for ours, theirs in class_map.items()}
