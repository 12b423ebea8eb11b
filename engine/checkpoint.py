"""Checkpoints on disk: written atomically, read without running any code in them.

A checkpoint is a dict of plain containers, numbers, strings and tensors with at least `model`; ours also hold `ema`,
`config`, `classes` and the state of the loop (spec 2.4).
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.classes import ClassMap
from data.errors import UserError
from data.files import file_sha256 as file_sha256
from data.files import write_atomically as write_atomically
from engine.config import ExperimentConfig, config_from_dict
from engine.hub import class_labels, how_to_fetch, hub_weights, is_hub_name, read_hub_config
from models.weight_files import is_state_dict, parse_json, read_metadata, read_weight_file
from models.weights import is_vit

log = logging.getLogger(__name__)

METADATA_KEYS = ("config", "classes")
"""What our safetensors files carry as JSON in their metadata."""
_SCALARS = (str, int, float, bool, type(None))


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
    if type(value) in _SCALARS:
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
        path: A file, a folder with the hub's layout, or a name on the hub (`engine.hub`). What stands in a
            safetensors file's metadata or in `config.json` beside it comes along (`config`, `classes`, `hub_config`).
        allow_backbone: Return the weights of a bare ViT too, as `backbone`.

    Raises:
        UserError: The file is missing, damaged, holds more than data, or has no weights under `model` or
            `ema.module`.
    """
    file = hub_weights(path)
    if not file.is_file():
        raise UserError(_missing_message(path))
    content = read_weight_file(file, what="Checkpoint")
    if isinstance(content, dict) and is_state_dict(content):
        if is_vit(content) and allow_backbone:
            return {"backbone": content}
        if file.suffix == ".safetensors" or any(key.startswith("decoder.") for key in content):
            content = {"model": content}
    _require_weights(path, content)
    assert isinstance(content, dict)
    return dict(content) | (_stored_beside(file) if file.suffix == ".safetensors" else {})


def _stored_beside(file: Path) -> dict[str, Any]:
    """Config and classes out of a safetensors file's metadata, and a hub folder's config.json."""
    metadata = read_metadata(file)
    try:
        stored: dict[str, Any] = {key: parse_json(metadata[key]) for key in METADATA_KEYS if key in metadata}
    except ValueError as error:
        raise UserError(f"Checkpoint {file}: its metadata are damaged ({error}).") from error
    hub_config = read_hub_config(file)
    if hub_config is None:
        return stored
    labels = class_labels(hub_config, file)
    return ({} if labels is None else {"classes": labels}) | stored | {"hub_config": hub_config}


def _missing_message(path: Path) -> str:
    if is_hub_name(path):
        name = path.as_posix()
        return f"Checkpoint {name}: no such file or folder, and not in Hugging Face's cache. {how_to_fetch(name)}"
    if path.is_dir():
        found = "it is a folder"
        folder = path
    else:
        found = "no such file"
        folder = path.parent
    near = sorted(file.name for file in folder.glob("*.pth")) if folder.is_dir() else []
    hint = f" {folder} holds: {', '.join(near[:8])}." if near else ""
    return f"Checkpoint {path}: {found}; expected a .pth file of a training run.{hint}"


def _require_weights(path: Path, content: object) -> None:
    if not isinstance(content, dict):
        raise UserError(f"Checkpoint {path}: it holds a {type(content).__name__}; expected a dict with `model`.")
    if "model" not in content:
        bare = bool(content) and is_state_dict(content)
        found = (
            "it holds bare weights; a backbone's weight file belongs into `DINOv3STAs.weights_path` of the config "
            "(a baseline's: `Baseline.weights`), or after -t"
            if bare
            else f"it holds {', '.join(sorted(map(str, content))[:6]) or 'nothing'}"
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


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights to evaluate, to publish and to tune from: the EMA's where there are any, else the raw ones."""
    ema = checkpoint.get("ema")
    return dict(checkpoint["model"] if ema is None else ema["module"])


def checkpoint_config(checkpoint: Mapping[str, Any], path: Path) -> ExperimentConfig:
    """The config that the checkpoint was trained with.

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
    """Class names and category ids of the training data; None in an official file, which has none.

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
    """The data set's labels must mean what the weights learned: same names in the same order.

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
        [f"checkpoint: {len(learned)} classes: {_names(learned)}", f"data set: {len(data)} classes: {_names(data)}"],
    )


def _names(classes: ClassMap) -> str:
    shown: Sequence[str] = classes.names[:12]
    return ", ".join(shown) + (", ..." if len(classes) > len(shown) else "")
