"""What `check_data.py` does: all faults of a data set at once, and pictures of what the network will see."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.box_sizes import SIDE_EDGES_PX, object_sides, size_advice
from data.coco import CocoSplit
from data.config import loaders
from data.image_checks import check_images
from data.loader import TrainLoader, build_train_loader
from data.problems import Problem, errors_of, problem_lines, shorten, warnings_of
from data.schedule import describe, epoch_plan, stage_starts
from data.splits import read_splits
from data.types import FloatArray, PixelArray
from engine.config import ExperimentConfig
from engine.pictures import batch_pictures, grid, save_picture

log = logging.getLogger(__name__)


def check_data(config: ExperimentConfig, *, limit_per_kind: int | None, progress: bool = True) -> tuple[str, bool]:
    """Check every split of the config, images included.

    Args:
        config: Its data sections are read.
        limit_per_kind: How many problems of one kind to list; None lists all.
        progress: Show a bar while images are opened.

    Returns:
        The report, and whether there are no errors.

    Raises:
        UserError: The config does not say where the data are, or generated data cannot be written.
    """
    names = [key.removesuffix("_dataloader") for key in loaders(config)]
    splits, problems = read_splits(config, names)
    problems += check_images(splits, allow_split_overlap=config.allow_split_overlap, progress=progress)
    problems = list(dict.fromkeys(problems))
    errors = errors_of(problems)
    lines = [_summary(split) for split in splits]
    lines += size_advice(splits[0], config.eval_spatial_size, config.tiles)
    lines += _section("error", errors, limit_per_kind) + _section("warning", warnings_of(problems), limit_per_kind)
    if errors:
        lines.append("`python -m data.convert coco SRC DST` repairs much of what other tools export.")
    if errors and config.on_bad_data == "skip" and all(error.skippable for error in errors):
        lines.append("on_bad_data: skip: training will leave the faulty entries out.")
    return "\n".join(lines), not errors


def write_training_sheets(config: ExperimentConfig, folder: Path, count: int) -> list[tuple[Path, str]]:
    """A picture of `count` training samples for every stage of training, boxes and names drawn in.

    Args:
        config: Data and schedule.
        folder: Where the PNG files go.
        count: Samples per sheet.

    Returns:
        Path and description of each sheet; none if the training split has no usable image.

    Raises:
        UserError: An image is unreadable, or a picture cannot be written.
    """
    splits, problems = read_splits(config, ["train"])
    bad = {problem.bad_image_id for problem in problems if problem.bad_image_id is not None}
    split = splits[0].without_images(bad)
    if not len(split):
        log.warning("no pictures: the training split has no usable image")
        return []
    loader = build_train_loader(config, split, split.classes, seed=config.seed, num_workers=0)
    section = config.train_dataloader
    transforms, collate = section.dataset.transforms, section.collate_fn
    starts = stage_starts(transforms, collate, config.epoches)
    sheets = []
    for start, end in zip(starts, [*starts[1:], config.epoches], strict=True):
        path = folder / f"training_samples_epoch_{start + 1}.png"
        save_picture(path, grid(_training_pictures(loader, split.classes.names, start, count)))
        text = f"epochs {start + 1} to {end}: {describe(transforms, epoch_plan(transforms, collate, start))}"
        sheets.append((path, text))
    sides = object_sides(split, config.eval_spatial_size, config.tiles)
    if len(sides):
        save_picture(folder / "object_sides.png", _histogram(sides))
        sheets.append((folder / "object_sides.png", "sides of the objects as the network sees them"))
    return sheets


def _histogram(sides_px: FloatArray) -> PixelArray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), dpi=150, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    axes.hist(sides_px, bins=list(2.0 ** np.arange(0, 10.25, 0.25)))
    axes.set(xscale="log", xlabel="side of the object, network pixels", ylabel="objects")
    ticks = [1, 2, 4, *SIDE_EDGES_PX[1:], 256, 512, 1024]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    for edge in (8, 16, 32):
        axes.axvline(edge, color="0.3", linestyle=":")
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: PixelArray = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return pixels


def _training_pictures(loader: TrainLoader, names: Sequence[str], epoch: int, count: int) -> list[PixelArray]:
    loader.set_epoch(epoch)
    pictures: list[PixelArray] = []
    for batch in loader:
        pictures += batch_pictures(batch, names)
        if len(pictures) >= count:
            break
    return pictures[:count]


def _section(severity: str, problems: Sequence[Problem], limit_per_kind: int | None) -> list[str]:
    if not problems:
        return [f"No {severity}s."]
    head = f"{len(problems)} {severity}{'s' if len(problems) > 1 else ''}:"
    return [head, *(f"  {severity}: {line}" for line in problem_lines(problems, limit_per_kind))]


def _summary(split: CocoSplit) -> str:
    counts = split.boxes_per_class()
    per_class = ", ".join(f"{shorten(name)} {count}" for name, count in zip(split.classes.names, counts, strict=True))
    empty = sum(1 for image in split.images if image.rows.start == image.rows.stop)
    return (
        f"{split.name}: {len(split)} images ({empty} without boxes), {sum(counts)} boxes"
        f"{f' ({per_class})' if per_class else ''}; {split.ann_file}"
    )
