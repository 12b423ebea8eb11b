"""What a training tells its user in words: what it starts with, where it continues, how it ended, what to type next."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml

from data.coco import CocoSplit
from data.problems import shorten
from engine.cli import command_line
from engine.config import ExperimentConfig, config_to_dict
from engine.results import RESULTS_NAME, read_results
from engine.resume import Position
from engine.run import Run, planned_config
from models.text_fusion import HARDLY_LOGITS, largest_say
from texts import Language, Texts, plain_table, texts_of

log = logging.getLogger(__name__)


def say_start(run: Run, *, resume: Path | None, tuning: Path | None) -> None:
    """Log the block of what the run is made of, and for a resumed one where it continues."""
    if not run.dist.is_main:
        return
    text, config = run.text, run.config
    if resume is not None:
        say_resumed(run, resume)
        if run.is_over:
            return
    steps, images = run.config.micro_batches, run.images_per_batch
    batch = {"images": images * steps, "processes": run.dist.world_size, "steps": steps}
    plain = steps == 1 and run.dist.world_size == 1
    length = {"epochs": config.epoches, "steps": run.train_loader.steps_per_epoch, "warmup": config.warmup_iter}
    rows = [
        ("device", _device(run)),
        ("model", _model(run)),
        *([("frozen", frozen)] if (frozen := _frozen(run)) else []),
        ("weights", _weights(text, config, resume, tuning)),
        *((name, _split(text, split)) for name, split in run.data.splits.items()),
        *([("tiles", tiles)] if (tiles := _tiles(run)) else []),
        ("batch", text("batch_plain" if plain else "batch_parts", **batch, micro=images // run.dist.world_size)),
        ("length", text("length_value", **length, total=text.number(length["epochs"] * length["steps"], 0))),
        ("rates", _rates(run)),
        ("folder", str(run.folder)),
    ]
    width = max(len(text[key]) for key, _ in rows)
    log.info("%s", "\n".join([text["start"], *(f"  {text[key]:{width}}  {value}" for key, value in rows)]))


def say_resumed(run: Run, resume: Path) -> None:
    """Log where a resumed run continues, or that nothing is left, and what changed since its checkpoint."""
    if not run.dist.is_main:
        return
    text, position, config = run.text, run.position, run.config
    if run.is_over:
        reason = "over_patience" if position.epoch < config.epoches else "over"
        values = {"patience": config.early_stopping_patience, "epochs": position.epoch, "asked": config.epoches}
        log.info("%s", text(reason, path=resume, **values))
    else:
        log.info("%s", text("resumed", path=resume, where=_where(run, position)))
    for line in run.changed:
        log.info("%s", text("changed", what=line))


def say_epoch(run: Run, epoch: int, metrics: Mapping[str, float | None]) -> None:
    """Log AP and AP50 of an evaluated epoch and the best AP so far. Epochs count from 1 for the reader."""
    text, best = run.text, run.position.selection.top_ap
    if metrics["AP"] is None:
        log.info("%s", text("epoch_without_boxes", epoch=epoch + 1))
        return
    numbers = {key: text.number(value, 4) for key, value in (("ap", metrics["AP"]), ("ap50", metrics["AP50"]))}
    log.info("%s", text("epoch", epoch=epoch + 1, best=text.number(best, 4), **numbers))


def say_end(run: Run) -> None:
    """Log AP of each class at the best epoch, which epoch that was, where everything is and what to type next."""
    if not run.dist.is_main:
        return
    text, selection, best = run.text, run.position.selection, run.folder / "best.pth"
    took = timedelta(seconds=round(run.position.train_seconds))
    lines = [text("end", took=took, folder=run.folder)]
    # Where a run was resumed in another folder, the best epoch so far may be in the first one.
    results = read_results(run.folder / RESULTS_NAME)
    has_boxes = True
    if results.get("epoch") == selection.top_epoch + 1:
        lines += _class_table(text, results)
        has_boxes = results["metrics"]["AP"] is not None
    if has_boxes and selection.top_epoch >= 0:
        where = best if best.is_file() else text["elsewhere"]
        ap, of = text.number(selection.top_ap, 4), max(run.config.epoches, run.position.epoch)
        lines.append("  " + text("best", epoch=selection.top_epoch + 1, of=of, ap=ap, where=where))
    say = largest_say(run.detector.model.state_dict())
    if say is not None:
        lines.append("  " + text("say" if say >= HARDLY_LOGITS else "say_hardly", say=text.number(say, 2)))
    checkpoint = best if best.is_file() else run.folder / "last.pth"
    if checkpoint.is_file():
        split = ["--split", "test"] if run.config.test_dataloader is not None else []
        lines.append("  " + text("next", command=command_line("evaluate_deimv2.py", "-r", checkpoint, *split)))
    log.info("%s", "\n".join(lines))


def say_early_stop(run: Run) -> None:
    """Log that patience is at its end."""
    patience, best = run.config.early_stopping_patience, run.position.selection.top_epoch + 1
    log.info("%s", run.text("early_stop", patience=patience, best=best))


def say_stopped(run: Run) -> None:
    """Log where a run that was told to stop is saved, and the whole command that goes on from there."""
    if not run.dist.is_main:
        return
    if run.saved is None:
        log.info("%s", run.text["stopped_unsaved"])
        return
    path, position = run.saved
    script = "train_deimv2.py" if run.config.MultimodalFusion is None else "train_deimv2_multimodal.py"
    processes, chosen = run.dist.world_size, run.config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    used = str(run.dist.device) if processes == 1 else run.dist.device.type
    device = [] if used == chosen else ["-d", used]
    command = command_line(script, "-c", run.folder / "config.yaml", "-r", path, *device)
    if processes > 1:
        command = command.replace("python", f"torchrun --nproc_per_node={processes}", 1)
    log.info("%s", run.text("stopped", path=path, where=_where(run, position), command=command))


def say_derived(config: ExperimentConfig, text: Texts, *, verbose: bool) -> None:
    """Log what was derived: a warning where a person had stated something else, the rest as a count or one by one.

    Values of what is switched off are left out.
    """
    notes = config.derived_in_use()
    for note in notes:
        if note.overrides or verbose:
            log.log(logging.WARNING if note.overrides else logging.INFO, "derived: %s", note.text)
    quiet = sum(not note.overrides for note in notes)
    if quiet and not verbose:
        log.info("%s", text("derived", count=quiet))


def planned(config: ExperimentConfig, lang: Language, *, verbose: bool) -> str:
    """Return what a run would write as its config.yaml; say what is derived."""
    config = planned_config(config)
    say_derived(config, texts_of(lang, "training"), verbose=verbose)
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def _where(run: Run, position: Position) -> str:
    """The next step: its number in its epoch, and in the run."""
    steps, epochs = run.train_loader.steps_per_epoch, run.config.epoches
    in_epoch = position.batch_in_epoch // run.config.micro_batches
    if position.epoch >= epochs:
        return run.text("after_all", epochs=position.epoch, step=position.step)
    if in_epoch >= steps:
        return run.text("at_evaluation", epoch=position.epoch + 1, epochs=epochs, step=position.step)
    values = {"epoch": position.epoch + 1, "epochs": epochs, "step": in_epoch + 1, "steps": steps}
    return run.text("at_step", **values, total=position.step + 1)


def _device(run: Run) -> str:
    device, text = run.dist.device, run.text
    precision = str(run.amp_dtype or torch.float32).removeprefix("torch.")
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name = text("cpu", threads=torch.get_num_threads())
        known = hasattr(os, "sysconf")  # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else 0
    parts = [f"{run.dist.world_size} × {name}" if run.dist.world_size > 1 else name]
    return ", ".join([*parts, *([f"{text.number(memory / 2**30, 1)} GB"] if memory else []), precision])


def _model(run: Run) -> str:
    config, text = run.config, run.text
    name = f"DEIMv2 {config.deimv2.backbone.name}" if config.Baseline is None else str(config.Baseline.name)
    if config.MultimodalFusion is not None:
        name += f" + MultimodalFusion {config.MultimodalFusion.mode}"
    total, learn = _sizes(run.model.parameters()), _sizes(p for p in run.model.parameters() if p.requires_grad)
    return text("parameters", model=name, count=text.number(total, 0), learn=text.number(learn, 0))


def _frozen(run: Run) -> str | None:
    backbone, text = run.config.DINOv3STAs, run.text
    if backbone is None or (backbone.finetune and backbone.freeze == "none"):
        return None
    if isinstance(backbone.freeze, int):
        return text("frozen_blocks", count=backbone.freeze, depth=backbone.vit.depth)
    return text["frozen_backbone" if backbone.freeze == "all" else "frozen_vit"]


def _sizes(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _weights(text: Texts, config: ExperimentConfig, resume: Path | None, tuning: Path | None) -> str:
    if resume is not None:
        return text("weights_all", path=resume)
    if tuning is not None:
        return text("weights_fitting", path=tuning)
    path = config.deimv2.backbone.weights_path if config.Baseline is None else config.Baseline.weights
    return text["weights_random"] if path is None else text("weights_backbone", path=path)


def _split(text: Texts, split: CocoSplit) -> str:
    counts = split.boxes_per_class()
    classes = ", ".join(f"{shorten(name)} {count}" for name, count in zip(split.classes.names, counts, strict=True))
    return text("images", images=len(split), boxes=sum(counts), classes=classes)


def _tiles(run: Run) -> str | None:
    tiles, loader, text = run.config.tiles, run.train_loader, run.text
    if tiles is None:
        return None
    counts = {"all": text.number(len(loader.dataset), 0), "shown": text.number(loader.images_per_epoch, 0)}
    return text("tiles_value", size=tiles.size, overlap=text.percent(tiles.overlap, 0), **counts)


def _rates(run: Run) -> str:
    sizes: dict[float, int] = {}
    for group in run.optimizer.param_groups:
        sizes[group["initial_lr"]] = sizes.get(group["initial_lr"], 0) + _sizes(group["params"])
    mark = "," if run.text.language == "es" else "."
    return "; ".join(
        run.text("rate", rate=f"{rate:.4g}".replace(".", mark), count=run.text.number(count, 0))
        for rate, count in sorted(sizes.items())
    )


def _class_table(text: Texts, results: Mapping[str, Any]) -> list[str]:
    rows: list[Sequence[str]] = [(text["class"], text["boxes"], "AP", "AP50")]
    rows += [
        (shorten(name), str(one["num_gt"]), *(text.number(one[key], 4) for key in ("AP", "AP50")))
        for name, one in results["per_class"].items()
    ]
    boxes = sum(one["num_gt"] for one in results["per_class"].values())
    rows.append((text["all"], str(boxes), *(text.number(results["metrics"][key], 4) for key in ("AP", "AP50"))))
    return plain_table(rows).split("\n")
