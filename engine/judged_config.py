"""The config with which a checkpoint is evaluated, exported or looked into."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.checkpoint import checkpoint_config
from engine.config import ExperimentConfig, apply_overrides, load_config
from engine.hub import hub_overrides
from engine.multimodal import with_stored_texts

log = logging.getLogger(__name__)


def judged_config(
    checkpoint: Mapping[str, Any], path: Path, config_path: Path | None, overrides: Sequence[str] = ()
) -> ExperimentConfig:
    """The checkpoint's own config, or the file `config_path`, with `overrides` (`a.b=c`) on top.

    A checkpoint's own config draws no data: it may come from anybody, and would write where it says. With
    `config_path`, what a hub folder's `config.json` says beyond the tensors is taken from there, and the sizes of class
    texts from the checkpoint.

    Raises:
        UserError: There is no usable config, or it does not fit the checkpoint's class texts.
    """
    if config_path is None:
        stored = checkpoint_config(checkpoint, path)
        if stored.synthetic is not None and not stored.synthetic.root.exists():
            log.info("%s: the data are not drawn again for a checkpoint; -c CONFIG draws them", stored.synthetic.root)
        return apply_overrides(stored.model_copy(update={"synthetic": None}), overrides)
    config = load_config(config_path, overrides)
    decided = hub_overrides(checkpoint, config)
    if decided:
        log.warning("taken from there (-u overrides it): %s", ", ".join(decided))
        config = load_config(config_path, [*decided, *overrides])
    return with_stored_texts(config, checkpoint, path)
