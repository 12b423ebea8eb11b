"""Parameter groups and the optimiser (docs/deimv2.md, Parameter groups)."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from data.errors import UserError
from engine.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the groups of `param_groups`, each with its `initial_lr` kept for the schedule."""
    groups = param_groups(model, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def param_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """One group per pattern of `optimizer.params`, and a last one for every other trainable parameter.

    Patterns are regular expressions searched in the full parameter name, as in the official configs.

    Raises:
        UserError: A pattern is not a regular expression or matches no parameter, or two match the same one.
    """
    patterns = [group.params for group in config.params]
    matches = _match_names([name for name, _ in model.named_parameters()], patterns)
    groups: list[dict[str, Any]] = [
        {
            "params": [],
            "lr": config.lr if group.lr is None else group.lr,
            "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group in config.params
    ]
    groups.append({"params": [], "lr": config.lr, "weight_decay": config.weight_decay})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[matches.get(name, len(patterns))]["params"].append(parameter)
    # A frozen backbone leaves its groups without members; the optimiser has no use for those.
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return groups


def _match_names(names: Sequence[str], patterns: Sequence[str]) -> dict[str, int]:
    """Parameter name -> index of the one pattern that matches it."""
    problems: list[str] = []
    matched: dict[str, int] = {}
    for index, pattern in enumerate(patterns):
        try:
            hits = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            problems.append(f"optimizer.params[{index}].params: {pattern!r} is not a regular expression ({error})")
            continue
        if not hits:
            problems.append(
                f"optimizer.params[{index}].params: {pattern!r} matches no parameter of the model; "
                f"names look like {names[0]!r}; correct the pattern or remove the group"
            )
        taken = [name for name in hits if name in matched]
        if taken:
            problems.append(
                f"optimizer.params[{index}].params: {pattern!r} and optimizer.params[{matched[taken[0]]}].params both "
                f"match {len(taken)} parameter(s), e.g. {taken[0]!r}; make the patterns exclude one another"
            )
        matched.update({name: index for name in hits if name not in matched})
    if problems:
        raise UserError("The optimiser's parameter groups do not fit the model:", problems)
    return matched


def set_learning_rates(optimizer: torch.optim.Optimizer, ratio: float) -> None:
    """Set every group to `ratio` times its own base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * ratio
