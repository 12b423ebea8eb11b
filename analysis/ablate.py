"""The whole ablation: check, train what is missing, compare, write; on all labels, or on parts of the training set.

`ablation_runs.json` says of every run folder beside it what it was made from, because a run folder itself does not:
the content of the phase 1 checkpoint, the config and the encoder. It is written before a run starts.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from analysis.ablation_report import (
    HELD_OUT_REFERENCES,
    MARGIN_AP,
    MODES,
    TEXT_MODES,
    Task,
    TextFacts,
    answer,
    write_answer,
)
from analysis.compare import config_differences, training_config
from analysis.label_curve import Part, part_of, write_parts
from analysis.zero_shot import zero_shot
from data.coco import CocoSplit
from data.errors import UserError, collecting
from data.files import file_sha256, write_json
from data.loader import steps_per_epoch
from data.splits import DataBundle, build_datasets
from data.subsets import Subset
from engine.checkpoint import check_classes, load_checkpoint
from engine.cli import require_output_folder
from engine.config import ExperimentConfig, config_to_dict, load_config
from engine.distributed import Distributed
from engine.multimodal import phase_1_config, start_of_phase_2
from engine.named_files import checkpoint_of
from engine.options import Options
from engine.results import PREDICTIONS_NAME
from engine.text_embeddings import class_text_embeddings
from engine.train import train
from engine.yaml_dialect import get_path
from models.hub import hub_weights
from models.text_encoder import TextEmbeddings, has_image_tower
from texts import Language

log = logging.getLogger(__name__)

MANIFEST_NAME = "ablation_runs.json"
_PHASE_1 = "phase_1"
_RESULTS = ("results.json", "best.pth", PREDICTIONS_NAME)
_MOST_KEYS = 5
_EPOCHS = ("epoches", "flat_epoch", "no_aug_epoch", "eval_interval_epochs")
_DECIDED = {
    "MultimodalFusion.mode": "--modes",
    "MultimodalFusion.seed": "--seeds",
    "MultimodalFusion.held_out": "--held-out",
    "seed": "--seeds",
    "output_dir": "--output-dir",
    "resume": "-r",
}
"""Keys that are not the config's to decide here."""

State = Literal["missing", "interrupted", "finished"]


class AblationOptions(Options):
    """What to do."""

    config: Path
    resume: Path | None = None
    """Phase 1 checkpoint that every run starts from; None with parts of the training set, or text from the start."""
    output_dir: Path
    modes: tuple[str, ...] = MODES
    seeds: tuple[int, ...] = (0, 1, 2)
    samples: int = Field(1000, ge=100, le=1_000_000, description="100 to 1000000; 1000 is usual")
    margin: float = Field(MARGIN_AP, gt=0, lt=1, description="a difference in AP above 0 and below 1; 0.005 is usual")
    update: tuple[str, ...] = ()
    lang: Language = "en"
    captions: bool = True


def _given_twice(option: str, values: Sequence[str]) -> list[str]:
    twice = sorted({value for value in values if values.count(value) > 1})
    return [f"{option}: {', '.join(twice)} given twice; leave one out"] if twice else []


class Record(BaseModel):
    """What the manifest knows of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    phase_1: str
    """sha256 of the checkpoint's file, or of what phase 1 is made from, see `origins_of`."""
    texts: str | None
    """Encoder and its hash, where the mode reads texts."""
    config: dict[str, Any]
    """What decides which model comes out."""
    finished: bool = False
    seconds: float | None = None
    """Wall-clock time from start to end, of a run that was not interrupted."""


Runner = Callable[[Task, Path | None], None]
"""Does one run; the second argument is the checkpoint to go on from."""


def ablate(options: Mapping[str, Any], dist: Distributed, *, runner: Runner | None = None) -> str | None:
    """Run what is missing and write the answer; return the Markdown, in the main process. `options` are those of
    `AblationOptions`; without a `runner` runs are trainings.

    Raises:
        UserError: Bad input, all of it at once as far as it can be known at once; or a run that failed.
        SystemExit: Stopped by a signal; the same command goes on.
    """
    phase_1 = options.get("resume")
    asked, tasks = plan({**options, "resume": None if phase_1 is None else checkpoint_of(phase_1)})
    config, folder = load_config(asked.config, asked.update), asked.output_dir
    data = build_datasets(config)
    if asked.resume is not None:
        check_classes(load_checkpoint(asked.resume), data.classes, asked.resume)
    # Random words are the texts only where no mode reads others.
    reader = min((task for task in tasks if task.reads_texts), key=lambda task: task.mode == "waffle", default=None)
    texts = facts = None
    if reader is not None:
        texts = dist.from_main(lambda: class_text_embeddings(reader.config, data.classes, folder))
        if not texts.has_real_weights and any(task.subset and task.subset.held_out for task in tasks):
            raise UserError(
                f"--held-out: {texts.source} was never trained, so a text means nothing to it and no class can be "
                "found by one. Take a trained encoder: texts.encoder.name=all-MiniLM-L6-v2, or CLIP or SigLIP."
            )
    dist.from_main(lambda: write_subsets(tasks, data.splits["train"]))
    origins, source = dist.from_main(lambda: origins_of(tasks)), None if texts is None else texts.source
    records = [record_of(task, origin, source) for task, origin in zip(tasks, origins, strict=True)]
    manifest = Manifest(folder) if dist.is_main else None
    states: list[State] = dist.from_main(lambda: states_of(tasks, records, manifest or Manifest(folder)))
    if reader is not None and texts is not None and reader.mode != "waffle" and dist.is_main:
        facts = text_facts(texts, reader.config, data)
    run_all(tasks, records, states, manifest, runner or _trainer(asked, dist))
    return _write(asked, tasks, facts) if dist.is_main else None


def _write(asked: AblationOptions, tasks: Sequence[Task], facts: TextFacts | None) -> str:
    """One answer for each part of the training set, and what they say together; return the Markdown."""
    parts: list[Part] = []
    markdown = ""
    for subset in dict.fromkeys(task.subset for task in tasks):
        runs = [task for task in tasks if task.subset == subset and task.mode != _PHASE_1]
        found = answer(runs, facts, samples=asked.samples, margin=asked.margin)
        markdown = write_answer(found, runs[0].folder.parent, asked.lang, captions=asked.captions)
        if subset is not None:
            parts.append(part_of(runs, found))
    return write_parts(parts, asked.output_dir, asked.lang, captions=asked.captions) if parts else markdown


def plan(options: Mapping[str, Any]) -> tuple[AblationOptions, list[Task]]:
    """Return the options checked and the runs, mode by mode; nothing is written.

    Raises:
        UserError: All faults of the options, the config and the checkpoint at once.
    """
    subsets, problems = _asked_subsets(options)
    problems += _option_problems(options, subsets)
    split = None
    with collecting(problems):
        asked = AblationOptions.of(options)
    with collecting(problems):
        require_output_folder(options["output_dir"])
    with collecting(problems, whole=True):
        base = load_config(options["config"], options.get("update", ()))
        problems += _start_problems(base, options, subsets)
        if subsets:
            split = build_datasets(base, ("train",)).splits["train"]
            problems += [line for subset in subsets for line in subset.problems(split)]
    tasks: list[Task] = []
    if not problems and split is None:
        tasks = [_task(asked, mode, seed) for mode in asked.modes for seed in asked.seeds]
    for subset in subsets if not problems else ():
        assert split is not None
        with collecting(problems):
            tasks += _subset_tasks(asked, base, subset, split)
    if problems:
        raise UserError("The ablation cannot start:", problems)
    return asked, tasks


def _asked_subsets(options: Mapping[str, Any]) -> tuple[list[Subset], list[str]]:
    """The parts of the training set, and what is wrong with how they are written."""
    fractions, rare, held_out = (options.get(key) or () for key in ("fractions", "rare", "held_out"))
    problems = [f"--fractions {one:g}: expected above 0, at most 1" for one in fractions if not 0 < one <= 1]
    subsets = [Subset(fraction=one) for one in fractions if 0 < one <= 1]
    for text in rare:
        name, _, count = text.rpartition("=")
        if name and count.isdecimal() and int(count) > 0:
            subsets.append(Subset(rare=(name, int(count))))
        else:
            problems.append(f"--rare {text}: expected CLASS=N, a class and how many of its images to keep, 1 or more")
    subsets += [Subset(held_out=name) for name in held_out]
    names = [subset.name for subset in subsets]
    return subsets, problems + _given_twice("--fractions, --rare, --held-out", names)


def _option_problems(options: Mapping[str, Any], subsets: Sequence[Subset]) -> Iterator[str]:
    modes, seeds, update = options.get("modes", MODES), options.get("seeds", (0,)), options.get("update", ())
    if unknown := [mode for mode in modes if mode not in MODES]:
        yield f"--modes: there is no {', '.join(unknown)}; the modes are {', '.join(MODES)}"
    yield from _given_twice("--modes", modes)
    yield from _given_twice("--seeds", list(map(str, seeds)))
    if any(seed < 0 for seed in seeds):
        yield f"--seeds: {min(seeds)}; expected 0 or more"
    held_out = [subset for subset in subsets if subset.held_out is not None]
    if len(modes) * len(seeds) < 2 and (not subsets or len(held_out) < len(subsets)):
        yield "--modes and --seeds give one run, which cannot be compared; give two modes or more"
    if held_out and not unknown and not set(modes) & set(TEXT_MODES):
        given = " or ".join(TEXT_MODES)
        yield f"--modes: --held-out finds a class by its text, and none of these modes has one; give {given}"
    for override in update:
        if (key := override.partition("=")[0].strip()) in _DECIDED:
            yield f"-u {override}: {_DECIDED[key]} decides {key}; leave it out"


def _start_problems(base: ExperimentConfig, options: Mapping[str, Any], parts: Sequence[Subset]) -> list[str]:
    phase_1 = options.get("resume")
    from_start = base.MultimodalFusion is not None and base.MultimodalFusion.from_start
    if base.tuning is not None and (from_start or not parts):
        return [
            f"tuning: {base.tuning}: phase 1 on parts of the training set starts there, and here none is trained; "
            "leave it out, or give -u tuning=null"
        ]
    if base.tuning is not None and (known := [*_known_labels(base, base.tuning, parts)]):
        return known
    if phase_1 is None:
        if from_start or base.MultimodalFusion is None:
            start_of_phase_2(base, None)
        elif not parts:
            return ["-r: missing; give best.pth of phase 1 or its run folder, or -u MultimodalFusion.from_start=True"]
        elif phase_1_config(options["config"]) is None:
            return [f"-c {options['config']}: includes no config without text that phase 1 could be trained with"]
    elif parts:
        return [
            f"-r {phase_1}: has seen all labels; leave it out, phase 1 is trained anew on each part of the training set"
        ]
    elif start_of_phase_2(base, phase_1).resume is not None:
        return [
            f"-r {phase_1}: is of phase 2 (it has text fusion); all modes must start from the same "
            "checkpoint of phase 1, such as best.pth of a run of train_deimv2.py"
        ]
    return []


def _known_labels(base: ExperimentConfig, weights: Path, parts: Sequence[Subset]) -> Iterator[str]:
    """Say which labels that the parts leave out the weights that phase 1 starts from have seen."""
    content = load_checkpoint(weights, allow_backbone=True)
    classes = get_path(content, "classes.names", ())
    seen, ann_file = (
        get_path(one, "train_dataloader.dataset.ann_file") for one in (content.get("config"), config_to_dict(base))
    )
    for name in (subset.held_out for subset in parts):
        if name is not None and name in classes:
            yield f"tuning: {weights}: knows the class {name}, which --held-out leaves out; start from other weights"
    if seen is not None and Path(seen).resolve() == Path(ann_file).resolve():
        yield f"tuning: {weights}: has seen all labels ({seen}); start from other weights, or give -u tuning=null"


def _task(asked: AblationOptions, mode: str, seed: int) -> Task:
    folder = asked.output_dir / f"{mode}_seed{seed}"
    config = load_config(asked.config, [*asked.update, *_decided(mode, seed)])
    return Task(mode, seed, folder, _in_folder(config, folder), asked.resume)


def _decided(mode: str, seed: int) -> list[str]:
    """The seed is also that of the controls' vectors and permutation: no control is judged by a single draw."""
    return [f"MultimodalFusion.mode={mode}", f"MultimodalFusion.seed={seed}", f"seed={seed}"]


def _in_folder(config: ExperimentConfig, folder: Path) -> ExperimentConfig:
    return config.model_copy(update={"output_dir": folder, "resume": None, "tuning": None})


def _subset_tasks(asked: AblationOptions, base: ExperimentConfig, subset: Subset, split: CocoSplit) -> list[Task]:
    """Phase 1 of every seed, unless text is there from the start, then the modes. `-u` holds for both phases."""
    section = base.MultimodalFusion
    assert section is not None, "checked before"
    folder, modes, decided = asked.output_dir / subset.name, asked.modes, []
    parts = {seed: subset.of(split, seed) for seed in asked.seeds}
    if subset.held_out is not None:
        modes = (*(mode for mode in modes if mode in (*TEXT_MODES, "waffle")), *HELD_OUT_REFERENCES)
        decided = [f"MultimodalFusion.held_out={split.classes.names.index(subset.held_out)}"]

    def task(mode: str, seed: int, file: Path, overrides: Sequence[str], start: Path | None) -> Task:
        own, ann_file = folder / f"{mode}_seed{seed}", folder / f"train_seed{seed}.json"
        config = _trained_on(load_config(file, overrides), ann_file)
        whole, part = (_length_of_epoch(config, images) for images in (split, parts[seed]))
        # As many steps as on the whole set: what differs is what there is to see.
        times = whole / part if subset.judged_class is None else 1
        epochs = [f"{key}={round(getattr(config, key) * times)}" for key in _EPOCHS]
        config = _trained_on(load_config(file, [*overrides, *epochs]), ann_file)
        return Task(mode, seed, own, _in_folder(config, own), start, subset)

    phase_1 = None if section.from_start else phase_1_config(asked.config)
    start = base.tuning and hub_weights(checkpoint_of(base.tuning))
    of_phase_1 = [one for one in asked.update if not one.startswith(("MultimodalFusion.", "texts."))]
    first = [task(_PHASE_1, seed, phase_1, [*of_phase_1, f"seed={seed}"], start) for seed in asked.seeds if phase_1]
    starts = {one.seed: one.folder / "best.pth" for one in first}
    return first + [
        task(mode, seed, asked.config, [*asked.update, *_decided(mode, seed), *decided], starts.get(seed))
        for mode in modes
        for seed in asked.seeds
    ]


def _length_of_epoch(config: ExperimentConfig, split: CocoSplit) -> int:
    """In steps, or in images where the batch is not known yet."""
    is_open = "auto" in (config.train_dataloader.total_batch_size, config.accumulation_steps)
    return len(split) if is_open else steps_per_epoch(config, split)


def _trained_on(config: ExperimentConfig, ann_file: Path) -> ExperimentConfig:
    loader = config.train_dataloader
    dataset = loader.dataset.model_copy(update={"ann_file": ann_file})
    return config.model_copy(update={"train_dataloader": loader.model_copy(update={"dataset": dataset})})


def write_subsets(tasks: Sequence[Task], split: CocoSplit) -> None:
    """Write the annotation files of the parts that the tasks are trained on.

    Raises:
        UserError: There is another one in a file's place.
    """
    problems = []
    files = {task.config.train_dataloader.dataset.ann_file: task for task in tasks}
    for path, task in files.items():
        content = None if task.subset is None else task.subset.of(split, task.seed).to_coco()
        if content and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content, what="part of the training set")
        elif content and path.read_text(encoding="utf-8") != f"{json.dumps(content, separators=(',', ':'))}\n":
            problems.append(f"{path}: is of another training set")
    if problems:
        raise UserError(
            "Choose another folder with --output-dir, or move these files and the runs beside them:", problems
        )


def origins_of(tasks: Sequence[Task]) -> list[str]:
    """Hash what each run starts from: the checkpoint of phase 1, or the images and the config phase 1 is made with."""
    by_folder, found = {task.folder: task for task in tasks}, []
    for task in tasks:
        phase_1 = None if task.start is None else by_folder.get(task.start.parent)
        if task.start is not None and phase_1 is None:
            found.append(file_sha256(task.start))
            continue
        made_from = file_sha256(task.config.train_dataloader.dataset.ann_file)
        if phase_1 is not None:
            made_from += json.dumps(_training(phase_1.config), sort_keys=True)
            made_from += "" if phase_1.start is None else file_sha256(phase_1.start)
        found.append(hashlib.sha256(made_from.encode()).hexdigest())
    return found


def _trainer(asked: AblationOptions, dist: Distributed) -> Runner:
    """Trains as `train_deimv2_multimodal.py` does, the texts' vectors shared by all runs."""

    def run(task: Task, checkpoint: Path | None) -> None:
        tuning, cache = task.start if checkpoint is None else None, asked.output_dir
        train(task.config, dist, task.folder, resume=checkpoint, tuning=tuning, text_cache=cache, lang=asked.lang)
        gc.collect()  # the run's model and optimiser hang in cycles; a GPU needs their room for the next run
        if dist.device.type == "cuda":
            torch.cuda.empty_cache()

    return run


def text_facts(texts: TextEmbeddings, config: ExperimentConfig, data: DataBundle) -> TextFacts:
    """Gather what can be said of the texts without training; a lost encoder does not stop an ablation."""
    scores, reason = None, None
    try:
        if has_image_tower(config.texts.encoder):
            scores = zero_shot(texts, config.texts.encoder, data.splits["val"])
            reason = "no_boxes" if scores is None else None
        else:
            reason = "text_only"
    except UserError as error:
        log.warning("no text-only scores of the boxes: %s", error)
        reason = str(error)
    return TextFacts(texts, config.texts.language, scores, reason)


class Manifest:
    """`ablation_runs.json` in the folder of an ablation."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / MANIFEST_NAME
        self.records: dict[str, Record] = {}
        if not self._path.is_file():
            return
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self.records = {name: Record.model_validate(record) for name, record in content["runs"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._path}: damaged ({str(error).splitlines()[0][:160]}), so nobody knows what the runs beside it "
                "were made from. Restore it, or choose another folder with --output-dir."
            ) from error

    def put(self, name: str, record: Record) -> None:
        """Set one record and write the file."""
        self.records[name] = record
        content = {"version": 1, "runs": {key: one.model_dump(mode="json") for key, one in self.records.items()}}
        write_json(self._path, content, what="list of the runs", indent=1)

    def time_left(self, runs: int) -> str:
        """Say how long so many runs will take, if any was timed."""
        timed = [record.seconds for record in self.records.values() if record.seconds is not None]
        return f"; {runs} left, about {tqdm.format_interval(runs * sum(timed) / len(timed))}" if runs and timed else ""


def record_of(task: Task, phase_1: str, texts: str | None) -> Record:
    """Return what `task` would be made from: the hash of the checkpoint, the source of the texts' vectors."""
    return Record(phase_1=phase_1, texts=texts if task.reads_texts else None, config=_training(task.config))


def _training(config: ExperimentConfig) -> dict[str, Any]:
    """What decides which model comes out, through JSON, as the manifest stores it: tuples become lists."""
    found: dict[str, Any] = json.loads(json.dumps(training_config(config_to_dict(config))))
    return found


def states_of(tasks: Sequence[Task], records: Sequence[Record], manifest: Manifest) -> list[State]:
    """Return which of the runs are missing, interrupted or finished.

    Raises:
        UserError: Run folders that were made from something else, all of them.
    """
    problems: list[str] = []
    states: list[State] = []
    for task, wanted in zip(tasks, records, strict=True):
        folder, known = task.folder, manifest.records.get(task.name)
        there = folder.is_dir() and any(folder.iterdir())
        if there and known is None:
            problems.append(f"{folder}: is not in {MANIFEST_NAME}, so ablate_text.py did not make it")
        elif there and known is not None and (differences := _differences(known, wanted)):
            problems.append(f"{folder}: {'; '.join(differences)}")
        elif known is not None and known.finished:
            states.append("finished" if all((folder / name).is_file() for name in _RESULTS) else "missing")
        else:
            states.append("interrupted" if (folder / "last.pth").is_file() else "missing")
    if problems:
        raise UserError(
            "The output folder holds runs of another ablation. Choose another folder with --output-dir, move these "
            "runs away, or go back to the settings they were made with:",
            problems,
        )
    return states


def _differences(known: Record, wanted: Record) -> list[str]:
    """What a run was made from that another would be made from now."""
    found = []
    if wanted.phase_1 != known.phase_1:
        hashes = f"({known.phase_1[:12]}, now {wanted.phase_1[:12]})"
        found.append(f"started from another phase 1 or training set {hashes}")
    if wanted.texts != known.texts:
        found.append(f"its texts are from {known.texts}, now from {wanted.texts}")
    if keys := config_differences([known.config, wanted.config]):
        more = f" and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
        found.append(f"another config ({', '.join(keys[:_MOST_KEYS])}{more})")
    return found


def run_all(
    tasks: Sequence[Task], records: Sequence[Record], states: Sequence[State], manifest: Manifest | None, runner: Runner
) -> None:
    """Do what is not finished, in order, and say how long the rest will take. Processes that only take part have no
    `manifest`.

    Raises:
        SystemExit, KeyboardInterrupt: Interrupted; the same command goes on.
        UserError: A run failed; the finished ones are kept.
    """
    counts = {state: states.count(state) for state in get_args(State)}
    left = len(tasks) - counts["finished"]
    time_left = manifest.time_left(left) if manifest else ""
    said = (len(tasks), counts["finished"], counts["interrupted"], counts["missing"], time_left)
    log.info("%d runs: %d finished, %d to resume, %d to start%s", *said)
    for number, (task, record, state) in enumerate(zip(tasks, records, states, strict=True), start=1):
        if state == "finished":
            continue
        log.info("run %d/%d, %s, %s", number, len(tasks), task.name, "started" if state == "missing" else "resumed")
        started = time.monotonic()
        if manifest is not None:
            manifest.put(task.name, record)
        try:
            runner(task, task.folder / "last.pth" if state == "interrupted" else None)
        except (SystemExit, KeyboardInterrupt):
            log.warning("interrupted in %s; the same command goes on from there", task.name)
            raise
        seconds, left = time.monotonic() - started, left - 1
        if manifest is not None:
            timed = seconds if state == "missing" else None
            manifest.put(task.name, record.model_copy(update={"finished": True, "seconds": timed}))
        time_left = manifest.time_left(left) if manifest else ""
        log.info("%s took %s%s", task.name, tqdm.format_interval(seconds), time_left)
