"""A step whose loss or gradient was not finite: kept in the run folder, and done again to see where it begins."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from data.batch import Batch
from data.errors import UserError
from engine.acceleration import choose_amp_dtype
from engine.checkpoint import checkpoint_config, load_checkpoint, save_checkpoint
from engine.config import config_to_dict
from engine.distributed import Distributed
from engine.optim import step_seed
from engine.run import Run, save
from engine.step import Step, batch_losses, window_shares
from models.criterion import build_criterion
from models.detector import build_detector
from models.weights import load_state_dict_strict

log = logging.getLogger(__name__)


def report_nonfinite(run: Run, epoch: int, window: list[Batch], step: Step) -> None:
    """Log a skipped step and keep the first one for replay; stop after `max_nonfinite_steps` in a row.

    Raises:
        UserError: The limit is reached. The weights are those before the first of these steps.
    """
    if not step.counts_as_nonfinite:
        log.debug("step %d skipped: gradient overflow, the loss scale is lowered", run.position.step)
        return
    bad = [key for key, value in step.losses.items() if not bool(torch.isfinite(value))]
    found = ", ".join(bad) if bad else f"the gradient norm ({float(step.grad_norm)})"
    number, in_a_row = run.position.step, run.position.nonfinite_in_a_row
    log.warning("step %d of epoch %d skipped: not finite: %s (%d in a row)", number, epoch + 1, found, in_a_row)
    if not run.kept_nonfinite and (bad or run.dist.is_main):  # a gradient is the same in every process
        run.kept_nonfinite = True
        path = keep_step(run, epoch, window, step.losses, step.grad_norm)
        log.warning("the step is kept; to see where it begins: python train_deimv2.py --replay %s", path)
    if in_a_row >= run.config.max_nonfinite_steps:
        save(run, "last.pth")
        raise UserError(
            f"Training stopped: the loss was not finite in {in_a_row} steps in a row (last: {found}; epoch "
            f"{epoch + 1}, step {number}). The weights are untouched by these steps and saved in "
            f"{run.folder / 'last.pth'}. Lower optimizer.lr, train without --use-amp, or look for broken images with "
            "check_data.py."
        )


def keep_step(run: Run, epoch: int, window: list[Batch], losses: Mapping[str, Tensor], grad_norm: Tensor) -> Path:
    """Write what the step just skipped was made of: batches, seed and the weights, which it left as they were.

    Raises:
        UserError: It cannot be written.
    """
    rank = run.dist.rank
    path = run.folder / ("nonfinite_step.pt" if rank == 0 else f"nonfinite_step_rank{rank}.pt")
    names = {image.id: image.file_name for image in run.data.splits["train"].images}
    state = {
        "model": run.model.state_dict(),
        "config": config_to_dict(run.config),
        "seed": run.config.seed,
        "epoch": epoch,
        "step": run.position.step - 1,
        "rank": rank,
        "losses": {key: float(value) for key, value in losses.items()},
        "grad_norm": float(grad_norm),
        "batches": [vars(batch) for batch in window],
        "files": [names[image_id] for batch in window for image_id in batch.image_ids],
    }
    save_checkpoint(path, state)
    return path


def replay(path: Path, device: torch.device) -> str:
    """Repeat a kept step on one device and say what of it is not finite first.

    Raises:
        UserError: The file holds no kept step, or is damaged.
    """
    content = load_checkpoint(path)
    if "batches" not in content:
        raise UserError(f"{path}: holds no kept step; expected the nonfinite_step.pt of a run folder.")
    config = checkpoint_config(content, path)
    model = build_detector(config)
    load_state_dict_strict(model, content["model"], source=path)
    try:
        window = [Batch(**batch).to(device) for batch in content["batches"]]
        seed, epoch, step, rank = (int(content[key]) for key in ("seed", "epoch", "step", "rank"))
        then = dict(content["losses"], grad_norm=content["grad_norm"])
        bad_then, files = [key for key, value in then.items() if not math.isfinite(value)], content["files"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error!r}); it cannot be replayed.") from error
    model.to(device).train()
    criterion = build_criterion(config).to(device)
    amp_dtype = choose_amp_dtype(config.use_amp, device)
    torch.manual_seed(step_seed(seed, step, rank))
    now: dict[str, Tensor] = {}
    shares = window_shares(config, Distributed(0, 1, 0, device), window)
    with _first_nonfinite_output(model) as found:
        for batch, share in zip(window, shares, strict=True):
            losses = batch_losses(model, criterion, batch, config, epoch=epoch, share=share, amp_dtype=amp_dtype)
            torch.stack(list(losses.values())).sum().backward()
            now = {key: value.detach() + now.get(key, 0) for key, value in losses.items()}
    first = _first([f"weight {name}" for name, value in model.named_parameters() if _bad(value)])
    first = first or _first(found) or _first([key for key, value in now.items() if _bad(value)])
    gradients = [name for name, value in model.named_parameters() if value.grad is not None and _bad(value.grad)]
    first = first or _first([f"gradient of {name}" for name in gradients])
    return "\n".join(
        [
            f"step {step + 1} of epoch {epoch + 1}, process {rank}; images: {', '.join(files)}",
            f"not finite then: {', '.join(bad_then)}",
            f"losses now: {', '.join(f'{key} {float(value):.4f}' for key, value in now.items())}",
            f"first that is not finite: {first or f'nothing, on one {device.type} device'}",
        ]
    )


def _bad(value: Tensor) -> bool:
    return value.is_floating_point() and not bool(torch.isfinite(value).all())


def _first(names: list[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "") if names else ""


@contextmanager
def _first_nonfinite_output(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules, in the order of their ends, that gave something not finite."""
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, outputs: Any) -> None:
            if any(isinstance(leaf, Tensor) and _bad(leaf) for leaf in tree_leaves(outputs)):
                found.append(f"output of {name} ({type(module).__name__})")

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
