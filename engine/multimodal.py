"""Phase 2, the detector with text: where it starts, where its texts come from, what of it learns how fast."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.classes import ClassMap
from data.errors import UserError
from engine.checkpoint import load_checkpoint
from engine.cli import command_line
from engine.config import ExperimentConfig, OptimizerConfig, ParamGroupConfig, config_to_dict, load_config
from engine.distributed import Distributed
from engine.named_files import checkpoint_of
from engine.text_embeddings import class_text_embeddings
from engine.yaml_dialect import included_experiments
from models.config import FusionConfig
from models.text_encoder import TextEmbeddings
from models.text_fusion import PREFIX, TextFusion
from models.weights import has_fusion

log = logging.getLogger(__name__)

_EMBEDS = f"{PREFIX}texts.embeds"
_SHAPING = ("mode", "control_head", "proj_dim", "learn_prompt_offsets", "query_selection")
"""Settings that a checkpoint's weights were made for."""
_SMALL = r"(?:gates|log_scale|bias|embeds|offsets)$"
"""Gates, scales, biases and vectors of classes: weight decay would only pull them to 0."""


@dataclass(frozen=True)
class Start:
    """How a run begins: one of the two, as `engine.train.train` takes them."""

    resume: Path | None = None
    tuning: Path | None = None


def start_of_phase_1(config: ExperimentConfig, path: Path | None) -> Start:
    """Go on from the checkpoint at `path` or a run folder's last.pth, or start from `tuning` where there is none."""
    return Start(tuning=config.tuning) if path is None else Start(resume=checkpoint_of(path, "last.pth"))


def start_of_phase_2(
    config: ExperimentConfig, path: Path | None, config_path: Path | None = None, data: Path | None = None
) -> Start:
    """Resume a checkpoint with text, or start phase 2 from one without.

    `path` is the checkpoint, or a run folder: of phase 1 its best.pth is taken, of phase 2 its last.pth. None: that of
    `tuning`, else of the run that the config file's includes describe (`data`: of `--data`, for what is to be typed).

    Raises:
        UserError: The config has no text fusion, or the file is a baseline's or no checkpoint.
    """
    if config.MultimodalFusion is None:
        raise UserError(
            "The config has no section MultimodalFusion, so there is no text to train with. Use "
            "configs/deimv2_industrial_multimodal.yml or add the section; without text, train with train_deimv2.py."
        )
    from_start = config.MultimodalFusion.from_start
    if path is None:
        if config.tuning or from_start or not config_path:
            return Start(tuning=config.tuning)
        return Start(tuning=_phase_1_of(config_path, data))
    given, path = path, checkpoint_of(path, "last.pth")
    checkpoint = load_checkpoint(path)
    stored = _stored_config(checkpoint)
    if stored.get("Baseline") is not None:
        raise UserError(
            f"{path}: is a checkpoint of the baseline {stored['Baseline'].get('name')}; text fusion starts from a "
            "DEIMv2 checkpoint, such as best.pth of a run of train_deimv2.py."
        )
    if stored.get("MultimodalFusion") is not None or has_fusion(checkpoint["model"]):
        return Start(resume=path)
    if from_start:
        raise UserError(
            f"MultimodalFusion.from_start: True trains with text from the first step, but -r {given} is a detector "
            "that was trained without. Leave -r out, or set from_start to False."
        )
    return Start(tuning=checkpoint_of(given))


def phase_1_config(config_path: Path) -> Path | None:
    """Find the nearest config without text among the includes; None: no such."""
    for file in included_experiments(config_path):
        try:
            has_text = load_config(file).MultimodalFusion is not None
        except UserError:
            continue  # a part of a config
        if found := phase_1_config(file) if has_text else file:
            return found
    return None


def _phase_1_of(config_path: Path, data: Path | None) -> Path | None:
    """Return best.pth of the run that `phase_1_config` describes; None: no such."""
    file = phase_1_config(config_path)
    if file is None:
        return None
    best = load_config(file).output_dir / "best.pth"
    shown = str(file).removeprefix(f"{os.getcwd()}{os.sep}")
    if not best.is_file():
        command = command_line("train_deimv2.py", "-c", shown, *(["--data", data] if data else []))
        raise UserError(
            f"Phase 2 starts from a trained detector. Looked for {best.as_posix()}, the run of {shown}, which "
            f"{config_path} includes: it is not there. Train it first: {command}; or give another checkpoint with -r."
        )
    log.info("phase 1: %s, the run of %s, which %s includes (-r takes another)", best, shown, config_path)
    return best


def prepare_texts(
    config: ExperimentConfig,
    classes: ClassMap,
    dist: Distributed,
    folder: Path,
    *,
    stored: tuple[Mapping[str, Any], Path] | None,
    tuning: Path | None,
) -> tuple[ExperimentConfig, TextEmbeddings | None]:
    """The config with the texts' sizes in it, and the texts where they are not in the checkpoint already.

    Without text fusion the config comes back as it is. The main process encodes for all. Texts that an earlier run
    encoded are taken from `folder`, the run's or one that several runs share; `stored` is the checkpoint to go on from.

    Raises:
        UserError: There is neither a checkpoint to resume nor one to start from, the checkpoint does not fit the
            config, or the texts cannot be encoded.
    """
    section = config.MultimodalFusion
    if section is None:
        return config, None
    if stored is not None:
        return with_stored_texts(config, *stored, resuming=True), None
    if tuning is None and not section.from_start:
        raise UserError(
            "MultimodalFusion: training with text (phase 2) starts from a trained detector. Give its checkpoint: "
            "train_deimv2_multimodal.py -c CONFIG -r outputs/deimv2_industrial_defects/best.pth"
        )
    if section.mode == "none" or (not section.reads_texts and section.text_dim is not None):
        return config, None
    cache = folder if folder.is_dir() else None
    with torch.random.fork_rng(devices=[]):  # whether the encoder ran or not, the model's first weights are the same
        texts = dist.from_main(lambda: class_text_embeddings(config, classes, cache))
    for key, found in (("text_dim", texts.embeds.shape[2]), ("num_prompts", texts.embeds.shape[1])):
        stated = getattr(section, key)
        if section.reads_texts and stated not in (None, found):
            raise UserError(
                f"MultimodalFusion.{key}: {stated}, but {texts.source} gives {found} for these texts; leave the key out"
            )
    return _sized(config, section, *texts.embeds.shape[1:]), texts


def with_stored_texts(
    config: ExperimentConfig, checkpoint: Mapping[str, Any], path: Path, *, resuming: bool = False
) -> ExperimentConfig:
    """`config` with the sizes of the texts that `checkpoint` holds, so that the model can be built for it.

    Without text fusion it comes back as it is. `resuming`: training goes on from it, so what learns and which texts are
    read must be the same too.

    Raises:
        UserError: The checkpoint has no text, or was trained with other settings.
    """
    section = config.MultimodalFusion
    if section is None:
        return config
    problems = _differences(config, section, _stored_config(checkpoint), resuming)
    if problems:
        advice = "or start a new run from a checkpoint of phase 1" if resuming else "or leave -c out"
        raise UserError(
            f"{path}: was trained with other settings of the text fusion; use its own config (config.yaml in its run "
            f"folder), {advice}.",
            problems,
        )
    embeds = checkpoint["model"].get(_EMBEDS)
    if section.mode == "none":
        return config
    if embeds is None or embeds.ndim != 3:
        raise UserError(
            f"{path}: has no class texts in it, but the config asks for text fusion (MultimodalFusion). "
            "train_deimv2_multimodal.py -r starts phase 2 from a checkpoint of phase 1."
        )
    return _sized(config, section, *embeds.shape[1:])


def _sized(config: ExperimentConfig, section: FusionConfig, num_prompts: int, text_dim: int) -> ExperimentConfig:
    if not section.reads_texts:
        num_prompts, text_dim = 1, section.text_dim or text_dim
    known = section.model_copy(update={"num_prompts": num_prompts, "text_dim": text_dim})
    return config.model_copy(update={"MultimodalFusion": known})


def _differences(
    config: ExperimentConfig, section: FusionConfig, stored: Mapping[str, Any], resuming: bool
) -> list[str]:
    """What the checkpoint's own config says otherwise, one line each; nothing where it has none."""
    theirs = stored.get("MultimodalFusion")
    if theirs is None:
        return []
    ours = section.model_dump(mode="json")
    keys = [*_SHAPING, "trainable"] if resuming else [*_SHAPING]
    if section.head == section.mode:
        keys.remove("control_head")
    problems = [
        f"MultimodalFusion.{key}: {ours[key]}, in the checkpoint {theirs[key]}"
        for key in keys
        if key in theirs and theirs[key] != ours[key]
    ]
    if resuming and section.reads_texts and "texts" in stored:
        mine = config_to_dict(config)["texts"]
        problems += [
            f"texts.{key}: {mine[key]}, in the checkpoint {stored['texts'].get(key)}"
            for key in mine
            if key != "encoder" and mine[key] != stored["texts"].get(key)
        ]
    return problems


def _stored_config(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Sections of the checkpoint's own config; what is no section is left to the config's check."""
    stored = checkpoint.get("config")
    return {key: value for key, value in stored.items() if isinstance(value, dict)} if isinstance(stored, dict) else {}


def optimizer_with_fusion(config: ExperimentConfig, model: nn.Module) -> OptimizerConfig:
    """`config.optimizer` with two groups for the parts that text fusion adds to `model`, if it adds any.

    Where a pattern of `optimizer.params` names such a part, the config decides alone.
    """
    section, optimizer = config.MultimodalFusion, config.optimizer
    names = [name for name, _ in model.named_parameters() if name.startswith(PREFIX)]
    if section is None or any(re.search(group.params, name) for group in optimizer.params for name in names):
        return optimizer
    groups = [
        ParamGroupConfig(
            params=f"^{re.escape(PREFIX)}(?!.*{_SMALL})", lr=section.lr, weight_decay=section.weight_decay
        ),
        ParamGroupConfig(params=f"^{re.escape(PREFIX)}(?=.*{_SMALL})", lr=section.lr, weight_decay=0.0),
    ]
    return optimizer.model_copy(update={"params": (*optimizer.params, *(groups if names else ()))})


def finish_model(config: ExperimentConfig, model: nn.Module, texts: TextEmbeddings | None) -> None:
    """New texts into the model's buffers (a resumed one has its own), and a word in the log on what phase 2 adds."""
    section = config.MultimodalFusion
    if section is None:
        return
    parts = [module for module in model.modules() if isinstance(module, TextFusion)]
    if texts is not None:
        for part in parts:
            part.texts.set(texts.embeds, texts.mask)
    added = sum(parameter.numel() for part in parts for parameter in part.parameters())
    every = sum(parameter.numel() for parameter in model.parameters())
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info(
        "text fusion `%s`: %s parameters beside the %s of phase 1; %s learn (trainable: %s)",
        section.mode,
        f"{added:,}",
        f"{every - added:,}",
        f"{learning:,}",
        section.trainable,
    )
    if texts is not None and section.reads_texts:
        log.info("texts: %d classes, up to %d prompts, %d wide, from %s", *texts.embeds.shape, texts.source)
