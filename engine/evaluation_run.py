"""One evaluation of a checkpoint: load, judge, write. What `evaluate_deimv2.py` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from data.errors import UserError
from data.loader import build_eval_loader
from data.splits import build_datasets
from data.synthetic import ensure_dataset
from engine.amp import choose_amp_dtype
from engine.checkpoint import checkpoint_classes, checkpoint_config, load_checkpoint, model_state
from engine.cli import require_output_folder
from engine.config import ExperimentConfig, apply_overrides, load_config
from engine.distributed import Distributed
from engine.evaluate import EvalResult, evaluate
from engine.results import write_results
from models.detector import build_detector
from models.weights import load_state_dict_strict

SplitName = Literal["train", "val", "test"]


def evaluate_checkpoint(
    path: Path,
    dist: Distributed,
    *,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    split: SplitName = "val",
    output_dir: Path | None = None,
    use_amp: bool = False,
) -> tuple[EvalResult, Path]:
    """Judge the EMA weights of a checkpoint on one split and write results.json and predictions.json.

    Args:
        path: The checkpoint; no other weight file is read.
        dist: This process's place; all processes of a torchrun call together.
        config_path: Config to use instead of the one in the checkpoint.
        overrides: `a.b=c`, on top of either.
        split: What to judge on.
        output_dir: Where the files go; default `eval_<split>_<checkpoint>` beside the checkpoint.
        use_amp: Mixed precision; default is float32, as the spec has it (section 9.4).

    Returns:
        The result (detections on rank 0 only) and the folder of the files.

    Raises:
        UserError: Bad input of any kind; nothing has been written then.
    """
    checkpoint = load_checkpoint(path)
    if config_path is None:
        config = apply_overrides(checkpoint_config(checkpoint, path), overrides)
    else:
        config = load_config(config_path, overrides)
    folder = output_dir or path.parent / f"eval_{split}_{path.stem}"
    require_output_folder(folder)
    if config.synthetic is not None and dist.is_main:
        ensure_dataset(config.synthetic)
    dist.barrier()
    data = build_datasets(config, splits=(split,), classes=checkpoint_classes(checkpoint, path))
    model = build_detector(config)
    load_state_dict_strict(model, model_state(checkpoint), source=path)
    loader = build_eval_loader(
        config,
        data.splits[split],
        data.classes,
        which=split,
        rank=dist.rank,
        world_size=dist.world_size,
        pin_memory=dist.device.type == "cuda",
    )
    try:
        result = evaluate(
            model.to(dist.device),
            loader,
            classes=data.classes,
            split=data.splits[split],
            config=config,
            device=dist.device,
            amp_dtype=choose_amp_dtype(use_amp, dist.device),
        )
    except torch.OutOfMemoryError as error:
        section = "test_dataloader" if split == "test" else "val_dataloader"
        raise UserError(
            f"Out of memory: {str(error).splitlines()[0]}. Evaluate smaller batches with "
            f"-u {section}.total_batch_size=1, or with --use-amp."
        ) from error
    if dist.is_main:
        write_results(folder, result, extra=_facts(checkpoint, path, config, model, use_amp=use_amp))
    return result, folder


def _facts(
    checkpoint: Mapping[str, Any], path: Path, config: ExperimentConfig, model: nn.Module, *, use_amp: bool
) -> dict[str, Any]:
    """What results.json says of the model beside the metrics; null where the file does not tell (official ones)."""
    last_epoch = checkpoint.get("last_epoch")
    return {
        "checkpoint": path.name,
        "weights": "model" if checkpoint.get("ema") is None else "ema",
        "epoch": last_epoch + 1 if isinstance(last_epoch, int) else None,
        "epochs": config.epoches,
        "seed": checkpoint.get("seed"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "use_amp": use_amp,
    }
