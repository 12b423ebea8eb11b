"""From finished runs to the answer: what every mode reaches, and whether that is more than without text.

Two references: `none` trained the same epochs without any text head, so the difference from it is what the head as a
whole does. `learned` has the head `control_head` with free vectors instead of texts, so the difference of a mode of
the same head from it is what the texts' meaning adds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from analysis.ablation_runs import Task
from analysis.ablation_statistics import LEAST_SEEDS, Effect, Verdict, effect, verdict
from analysis.bootstrap import BootstrapResult, bootstrap
from analysis.compare import judged_normal_label, per_class_estimates, resampled_metrics
from analysis.compare_runs import RunResults, check_points, read_runs
from analysis.compare_statistics import Estimate, Resampled, estimate
from analysis.zero_shot import ZeroShot
from data.class_descriptions import Language
from engine.text_embeddings import AlikePair
from models.text_encoder import TextEmbeddings

MODES = ("cosine", "concat", "cross_attention", "learned", "random", "shuffled", "none")
"""Of `MultimodalFusion.mode`."""
TEXT_MODES = ("cosine", "concat", "cross_attention")
"""Modes that are given the texts of their classes; all others are controls."""
REFERENCES = ("none", "learned")
JUDGED = "AP"
"""The metric of the verdicts."""

Reason = Literal["reference", "control", "random_weights", "few_seeds", "no_reference", "no_boxes"]


@dataclass(frozen=True)
class Judgement:
    """What may be said of a mode: a verdict, or why there is none."""

    verdict: Verdict | None
    """Against `none`."""
    reason: Reason | None
    texts: Verdict | None = None
    """Against `learned`, where there is a verdict and `learned` has the same head: whether the texts' meaning does
    it."""


@dataclass(frozen=True, eq=False)
class ModeResult:
    """One mode over its seeds."""

    mode: str
    runs: Sequence[RunResults]
    metrics: Mapping[str, Estimate]
    """AP, AP50, AP75 and, where NORMAL has boxes, AP_defects."""
    per_class_ap: Mapping[str, Estimate]
    per_class_ap50: Mapping[str, Estimate]
    against: Mapping[str, Mapping[str, Effect]]
    """Reference -> metric -> effect; a mode is not compared with itself, `none` with nothing."""
    judgement: Judgement


@dataclass(frozen=True, eq=False)
class TextFacts:
    """What is known of the texts before any training."""

    embeddings: TextEmbeddings
    language: Language
    similarity: Sequence[Sequence[float]]
    """[C][C], cosine similarities of the classes' averaged texts."""
    alike: Sequence[AlikePair]
    zero_shot: ZeroShot | None
    no_zero_shot: str | None
    """Why there is none: `text_only`, `no_boxes`, or what the encoder said."""


@dataclass(frozen=True, eq=False)
class Answer:
    """Everything that is written."""

    classes: Sequence[str]
    split: str
    num_images: int
    gt_hash: str
    samples: int
    bootstrap_seed: int
    seeds: Sequence[int]
    modes: Sequence[ModeResult]
    control_head: str
    """Of `learned`, `random` and `shuffled`."""
    texts: TextFacts | None
    """None where no mode reads texts."""


def answer(
    tasks: Sequence[Task], texts: TextFacts | None, *, samples: int, bootstrap_seed: int = 0, progress: bool = True
) -> Answer:
    """Compare finished runs.

    Args:
        tasks: All modes with the same seeds, mode by mode.
        texts: What the modes that read texts were given.
        samples: Bootstrap resamples.
        bootstrap_seed: Of the resamples.
        progress: Show a bar on stderr.

    Raises:
        UserError: Results are missing, damaged, or were judged on different data.
    """
    runs = read_runs([task.folder for task in tasks])
    check_points(runs, [bootstrap(run.tables, samples=0).point_ap for run in runs])
    # One run at a time for the bar's sake: the same seed draws the same images for every run.
    bar = tqdm(runs, desc="bootstrap", unit="run", leave=False, dynamic_ncols=True, disable=not progress)
    bar.mininterval = 0.5 if sys.stderr.isatty() else 30.0
    drawn = [bootstrap(run.tables, samples=samples, seed=bootstrap_seed) for run in bar]
    of_modes: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        of_modes.setdefault(task.mode, []).append(index)
    normal = judged_normal_label(runs)
    resampled = {mode: resampled_metrics([drawn[i] for i in of], normal) for mode, of in of_modes.items()}
    real = texts is not None and texts.embeddings.has_real_weights
    section = tasks[0].config.MultimodalFusion
    control_head = "cosine" if section is None else section.control_head
    num_images = runs[0].results.num_images
    return Answer(
        classes=runs[0].tables.names,
        split=runs[0].results.split,
        num_images=num_images,
        gt_hash=runs[0].results.gt_hash,
        samples=samples,
        bootstrap_seed=bootstrap_seed,
        seeds=list(dict.fromkeys(task.seed for task in tasks)),
        modes=[
            _mode_result(
                mode,
                [runs[i] for i in of],
                [drawn[i] for i in of],
                resampled,
                num_images,
                real=real,
                control_head=control_head,
            )
            for mode, of in of_modes.items()
        ],
        control_head=control_head,
        texts=texts,
    )


def _mode_result(
    mode: str,
    runs: Sequence[RunResults],
    drawn: Sequence[BootstrapResult],
    resampled: Mapping[str, Mapping[str, Sequence[Resampled]]],
    num_images: int,
    *,
    real: bool,
    control_head: str,
) -> ModeResult:
    own = resampled[mode]
    against = {
        reference: {name: effect(own[name], resampled[reference][name], num_images) for name in own}
        for reference in REFERENCES
        if reference in resampled and reference != mode != "none"
    }
    return ModeResult(
        mode=mode,
        runs=runs,
        metrics={name: estimate(of) for name, of in own.items()},
        per_class_ap=per_class_estimates(drawn, "ap"),
        per_class_ap50=per_class_estimates(drawn, "ap50"),
        against=against,
        judgement=judge(
            mode,
            {name: of[JUDGED] for name, of in against.items()},
            num_seeds=len(runs),
            real=real,
            control_head=control_head,
        ),
    )


def judge(mode: str, against: Mapping[str, Effect], *, num_seeds: int, real: bool, control_head: str) -> Judgement:
    """What may be said of a mode.

    Args:
        mode: One of `MODES`.
        against: Its effects in `JUDGED` by reference.
        num_seeds: Runs of the mode.
        real: The text encoder has learned weights.
        control_head: Head of `learned`; only a mode of the same head differs from it by its texts alone.
    """
    if mode == "none":
        return Judgement(None, "reference")
    if mode not in TEXT_MODES:
        return Judgement(None, "control")
    if not real:
        return Judgement(None, "random_weights")
    if "none" not in against:
        return Judgement(None, "no_reference")
    if against["none"].value is None:
        return Judgement(None, "no_boxes")
    interval = against["none"].interval
    if num_seeds < LEAST_SEEDS or interval is None:
        return Judgement(None, "few_seeds")
    learned = against["learned"].interval if "learned" in against and mode == control_head else None
    return Judgement(verdict(interval), None, None if learned is None else verdict(learned))
