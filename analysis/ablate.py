"""The whole ablation: check, train what is missing, compare, write."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from analysis.ablation_answer import MODES, TextFacts, answer
from analysis.ablation_runs import Manifest, Runner, State, Task, record_of, run_all, states_of
from analysis.ablation_write import write_answer
from analysis.zero_shot import ZeroShot, zero_shot
from data.class_descriptions import Language
from data.errors import UserError
from data.splits import DataBundle, build_datasets
from data.synthetic import ensure_dataset
from engine.checkpoint import check_classes, file_sha256, load_checkpoint
from engine.cli import require_output_folder
from engine.config import ExperimentConfig, load_config
from engine.distributed import Distributed
from engine.multimodal import choose_start
from engine.text_embeddings import alike_pairs, class_similarity, class_text_embeddings
from engine.train import train
from models.text_encoder import TextEmbeddings, has_image_tower

log = logging.getLogger(__name__)

_DECIDED = {
    "MultimodalFusion.mode": "--modes",
    "MultimodalFusion.seed": "--seeds",
    "seed": "--seeds",
    "output_dir": "--output-dir",
    "resume": "-r",
    "tuning": "-r",
}
"""Keys that are not the config's to decide here."""


@dataclass(frozen=True)
class Ablation:
    """What to do."""

    config: Path
    phase_1: Path
    """Checkpoint that every run starts from."""
    modes: Sequence[str]
    seeds: Sequence[int]
    folder: Path
    overrides: Sequence[str] = ()
    samples: int = 1000
    lang: Language = "en"


def ablate(ablation: Ablation, dist: Distributed, *, runner: Runner | None = None) -> str | None:
    """Run what is missing and write the answer; the Markdown, in the main process.

    Args:
        ablation: What to do.
        dist: This process's place; all processes of a torchrun call together.
        runner: Does one run; None trains.

    Raises:
        UserError: Bad input, all of it at once as far as it can be known at once; or a run that failed.
        SystemExit: Stopped by a signal; the same command goes on.
    """
    tasks = plan(ablation)
    config = tasks[0].config
    if config.synthetic is not None and dist.is_main:
        ensure_dataset(config.synthetic)
    dist.barrier()
    data = build_datasets(config)
    check_classes(load_checkpoint(ablation.phase_1), data.classes, ablation.phase_1)
    phase_1 = dist.from_main(lambda: file_sha256(ablation.phase_1))
    reader = _first_reader(tasks)
    texts = None
    if reader is not None:
        texts = dist.from_main(lambda: class_text_embeddings(reader.config, data.classes, ablation.folder))
    records = [record_of(task, phase_1, None if texts is None else texts.source) for task in tasks]
    manifest = Manifest(ablation.folder) if dist.is_main else None
    states: list[State] = dist.from_main(lambda: states_of(tasks, records, manifest or Manifest(ablation.folder)))
    facts = None
    if reader is not None and texts is not None and dist.is_main:
        facts = text_facts(texts, reader.config, data)
    run_all(tasks, records, states, manifest, runner or _trainer(ablation, dist))
    if not dist.is_main:
        return None
    found = answer(tasks, facts, samples=ablation.samples)
    return write_answer(found, ablation.folder, ablation.lang)


def plan(ablation: Ablation) -> list[Task]:
    """The runs, mode by mode; nothing is written.

    Raises:
        UserError: All faults of the options, the config and the checkpoint at once.
    """
    problems = _option_problems(ablation)
    try:
        require_output_folder(ablation.folder)
    except UserError as error:
        problems.append(str(error))
    try:
        base = load_config(ablation.config, ablation.overrides)
        if choose_start(base, ablation.phase_1).resume is not None:
            problems.append(
                f"-r {ablation.phase_1}: is of phase 2 (it has text fusion); all modes must start from the same "
                "checkpoint of phase 1, such as best.pth of a run of train_deimv2.py"
            )
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("The ablation cannot start:", problems)
    return [_task(ablation, mode, seed) for mode in ablation.modes for seed in ablation.seeds]


def _option_problems(ablation: Ablation) -> list[str]:
    problems = []
    modes, seeds = list(ablation.modes), list(ablation.seeds)
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        problems.append(f"--modes: there is no {', '.join(unknown)}; the modes are {', '.join(MODES)}")
    for option, values in (("--modes", modes), ("--seeds", list(map(str, seeds)))):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            problems.append(f"{option}: {', '.join(twice)} given twice; leave one out")
    if any(seed < 0 for seed in seeds):
        problems.append(f"--seeds: {min(seeds)}; expected 0 or more")
    if len(modes) * len(seeds) < 2:
        problems.append("--modes and --seeds give one run, which cannot be compared; give two modes or more")
    if not 100 <= ablation.samples <= 1_000_000:
        problems.append(f"--samples: {ablation.samples}; expected 100 to 1000000, 1000 is usual")
    for override in ablation.overrides:
        key = override.partition("=")[0].strip()
        if key in _DECIDED:
            problems.append(f"-u {override}: {_DECIDED[key]} decides {key}; leave it out")
    return problems


def _task(ablation: Ablation, mode: str, seed: int) -> Task:
    """The seed is also that of the controls' vectors and permutation: no control is judged by a single draw."""
    folder = ablation.folder / f"{mode}_seed{seed}"
    decided = [f"MultimodalFusion.mode={mode}", f"MultimodalFusion.seed={seed}", f"seed={seed}"]
    config = load_config(ablation.config, [*ablation.overrides, *decided])
    return Task(mode, seed, folder, config.model_copy(update={"output_dir": folder, "resume": None, "tuning": None}))


def _first_reader(tasks: Sequence[Task]) -> Task | None:
    """A run whose mode reads texts."""
    return next(
        (task for task in tasks if task.config.MultimodalFusion and task.config.MultimodalFusion.reads_texts), None
    )


def _trainer(ablation: Ablation, dist: Distributed) -> Runner:
    """Trains as `train_deimv2_multimodal.py` does, the texts' vectors shared by all runs."""

    def run(task: Task, checkpoint: Path | None) -> None:
        start = choose_start(task.config, checkpoint or ablation.phase_1)
        train(task.config, dist, task.folder, resume=start.resume, tuning=start.tuning, text_cache=ablation.folder)
        gc.collect()  # the run's model and optimiser hang in cycles; a GPU needs their room for the next run
        if dist.device.type == "cuda":
            torch.cuda.empty_cache()

    return run


def text_facts(texts: TextEmbeddings, config: ExperimentConfig, data: DataBundle) -> TextFacts:
    """What can be said of the texts without training: how alike they are, and what they find in the boxes alone."""
    similarity = class_similarity(texts)
    scores, reason = _zero_shot(texts, config, data)
    return TextFacts(
        embeddings=texts,
        language=config.texts.language,
        similarity=similarity.tolist(),
        alike=alike_pairs(similarity, data.classes.names),
        zero_shot=scores,
        no_zero_shot=reason,
    )


def _zero_shot(texts: TextEmbeddings, config: ExperimentConfig, data: DataBundle) -> tuple[ZeroShot | None, str | None]:
    """Scores, or why there are none; an encoder that is not on this machine any more does not stop an ablation."""
    encoder = config.texts.encoder
    try:
        if not has_image_tower(encoder):
            return None, "text_only"
        scores = zero_shot(texts, encoder, data.splits["val"])
    except UserError as error:
        log.warning("no text-only scores of the boxes: %s", error)
        return None, str(error)
    return scores, "no_boxes" if scores is None else None
