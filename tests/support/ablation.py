"""Ablations without training: tasks whose runs are simulated, and texts without an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from analysis.ablation_report import Task, TextFacts
from analysis.zero_shot import ZeroShot
from engine.config import ExperimentConfig
from models.text_encoder import RANDOM_WEIGHTS, TextEmbeddings
from tests.support.comparison import CLASSES, make_truth, write_run

QUALITY = {"cosine": 0.85, "concat": 0.4, "cross_attention": 0.1, "learned": 0.4, "random": 0.4, "none": 0.4}
"""Of the simulated runs: one mode that helps, one that does nothing, one that hurts."""


def write_runs(folder: Path, modes: Mapping[str, float], seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Run folders as an ablation leaves them."""
    truth = make_truth(60)
    for number, (mode, quality) in enumerate(modes.items()):
        for seed in seeds:
            write_run(
                folder / f"{mode}_seed{seed}",
                quality=quality,
                seed=seed,
                truth=truth,
                detections_seed=100 * number + seed,
            )


def tasks_of(
    folder: Path, config: ExperimentConfig, modes: Sequence[str], seeds: Sequence[int] = (0, 1, 2)
) -> list[Task]:
    return [Task(mode, seed, folder / f"{mode}_seed{seed}", config) for mode in modes for seed in seeds]


def facts(
    *,
    real: bool = True,
    alike: bool = False,
    zero_shot: ZeroShot | None = None,
    no_zero_shot: str | None = "text_only",
    names: tuple[str, ...] = CLASSES.names,
) -> TextFacts:
    embeds = torch.eye(len(names), 8)[:, None]
    if alike:
        embeds[1] = embeds[0] + 0.1 * embeds[1]
        embeds[1] /= embeds[1].norm()
    source = "some encoder sha256:0123" + ("" if real else RANDOM_WEIGHTS)
    texts = TextEmbeddings(embeds, torch.ones(len(names), 1, dtype=torch.bool), source)
    return TextFacts(texts, "en", zero_shot, no_zero_shot)
