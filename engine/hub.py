"""Weights from the Hugging Face hub: a folder with its layout, a name in the local cache, or a name to fetch.

`hf:OWNER/NAME` asks for the network; a plain `OWNER/NAME` is looked up in the cache only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.coco_names import COCO_CLASSES
from data.errors import UserError
from engine.config import ExperimentConfig
from models.weight_files import MAX_JSON_BYTES, parse_json

log = logging.getLogger(__name__)

PREFIX = "hf:"
WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
_WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
_TIMEOUT_S = 10.0
_DECIDING = {
    "DINOv3STAs": ("interaction_indexes",),
    "HybridEncoder": ("nhead", "use_encoder_idx", "pe_temperature"),
    "DEIMTransformer": ("num_points", "nhead", "num_queries", "eval_idx", "eps"),
}
"""Settings of the official config.json that no key or shape of the weights shows (spec 2.2)."""


def is_hub_name(path: Path) -> bool:
    """Whether `path` can be `OWNER/NAME` or `hf:OWNER/NAME`, and is nothing on this machine."""
    text = path.as_posix()
    parts = text.removeprefix(PREFIX).split("/")
    shaped = len(parts) == 2 and all(parts) and not text.startswith((".", "~")) and path.suffix not in _WEIGHT_SUFFIXES
    return (text.startswith(PREFIX) or shaped) and not path.exists()


def hub_weights(path: Path) -> Path:
    """The weight file that `path` stands for: itself, or `model.safetensors` of a hub folder or name.

    Raises:
        UserError: A name asked for with `hf:` is not in the cache and cannot be fetched.
    """
    if path.is_dir() and (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    if not is_hub_name(path):
        return path
    name = path.as_posix().removeprefix(PREFIX)
    cached = _cached(name)
    if cached is not None:
        log.info("%s: from Hugging Face's cache, %s", name, cached.parent)
        return cached
    return _download(name) if path.as_posix().startswith(PREFIX) else path


def output_parent(path: Path) -> Path:
    """The folder beside which results of `path` belong; `outputs` for a name on the hub, which has none."""
    return Path("outputs") / path.name.removeprefix(PREFIX) if is_hub_name(path) else path.parent


def how_to_fetch(name: str) -> str:
    """Two ways to a model of the hub, for a message."""
    folder = f"ckpts/{name.rpartition('/')[2]}"
    return (
        f"With a network, give {PREFIX}{name}. Without one, run `hf download {name} --local-dir {folder}` on another "
        f"machine, copy the folder to {folder} here and give its path."
    )


def _cached(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, WEIGHTS_NAME)
    except HFValidationError as error:
        raise UserError(f"{name}: is no file here and no name on the Hugging Face hub ({error}).") from error
    return Path(found) if isinstance(found, str) else None


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    log.info("fetching %s from the Hugging Face hub", name)
    try:
        # Asked first because it gives up in time; a download from a network that swallows packets tries for minutes.
        HfApi().model_info(name, timeout=_TIMEOUT_S)
        folder = Path(snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME], etag_timeout=_TIMEOUT_S))
    except Exception as error:
        # No network, a proxy's refusal, a misspelled name, a full disk: the hub's client has a dozen types for them.
        reason = (str(error).strip().splitlines() or ["no further message"])[0][:200]
        raise UserError(
            f"{PREFIX}{name}: could not be fetched from the Hugging Face hub ({type(error).__name__}: {reason}). "
            f"{how_to_fetch(name)}"
        ) from error
    if not (folder / WEIGHTS_NAME).is_file():
        raise UserError(f"{PREFIX}{name}: has no {WEIGHTS_NAME}, so it is no DEIMv2 model of the official layout.")
    return folder / WEIGHTS_NAME


def read_hub_config(weights: Path) -> dict[str, Any] | None:
    """`config.json` beside a hub folder's weights, if it is of the official layout; None where there is none.

    Raises:
        UserError: It is damaged, or of another architecture.
    """
    path = weights.with_name(CONFIG_NAME)
    if weights.name != WEIGHTS_NAME or not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = parse_json(file.read(MAX_JSON_BYTES + 1))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy the folder again.") from error
    missing = [name for name in _DECIDING if not isinstance(content, dict) or not isinstance(content.get(name), dict)]
    if missing:
        raise UserError(
            f"{path}: is not the config of an official DEIMv2 of size S, M, L or X ({', '.join(missing)} missing). "
            "The HGNetv2 sizes and the `transformers` port of DEIMv2 cannot be loaded."
        )
    return dict(content)


def class_labels(hub_config: Mapping[str, Any], weights: Path) -> dict[str, list[Any]] | None:
    """The classes that `id2label` of a hub folder's `config.json` names, as `ClassMap.to_dict`; None without one.

    Raises:
        UserError: It is not the hub's `{"0": name, "1": name, ...}`.
    """
    labels = hub_config.get("id2label")
    if labels is None:
        return None
    in_order = [str(label) for label in range(len(labels))] if isinstance(labels, dict) else []
    names = [labels.get(label) for label in in_order]
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"{weights.with_name(CONFIG_NAME)}: id2label is not a name for each label 0, 1, 2, ...; correct it, or "
            "remove it."
        )
    if tuple(names) == COCO_CLASSES.names:
        return COCO_CLASSES.to_dict()
    return {"category_ids": list(range(len(names))), "names": names}


def hub_overrides(checkpoint: Mapping[str, Any], config: ExperimentConfig) -> list[str]:
    """What the weights' own config.json says of the model and their tensors do not show, as `-u` overrides.

    Said in the log where `config` says otherwise: with another value the weights load and detect badly.
    """
    stored = checkpoint.get("hub_config")
    if not isinstance(stored, Mapping) or config.Baseline is not None:
        return []
    overrides = []
    for section, keys in _DECIDING.items():
        ours = getattr(config, section).model_dump(mode="json")
        for key in keys:
            value = stored[section].get(key)
            if value is not None and value != ours[key]:
                log.warning(
                    "%s.%s: these weights were made for %s (their config.json), the config says %s",
                    section,
                    key,
                    f"{value!r:.200}",
                    ours[key],
                )
                overrides.append(f"{section}.{key}={json.dumps(value)}")
    return overrides
