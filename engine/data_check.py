"""What `check_data.py` does: all faults of a data set at once, and pictures of what the network will see."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from data.box_sizes import SIDE_EDGES_PX, object_sides, size_advice
from data.coco import CocoSplit
from data.config import loaders
from data.image_checks import check_images
from data.loader import build_train_loader
from data.problems import Problem, errors_of, problem_lines, shorten, warnings_of
from data.schedule import describe, epoch_plan, stage_starts
from data.script import Report
from data.splits import read_splits
from data.types import FloatArray, PixelArray
from engine.config import ExperimentConfig
from engine.pictures import batch_pictures, grid, save_picture
from texts import Language, Texts, texts_of

log = logging.getLogger(__name__)


def check_data(config: ExperimentConfig, report: Report, *, limit_per_kind: int | None, lang: Language = "en") -> str:
    """Check every split of the config, images included: what the console says; `report` gets the problems, and the
    sizes of the training objects.

    `limit_per_kind` problems of one kind are listed, None: all; they are in English, whatever the console's language.

    Raises:
        UserError: The config does not say where the data are, or generated data cannot be written.
    """
    names = [key.removesuffix("_dataloader") for key in loaders(config)]
    splits, problems = read_splits(config, names)
    problems += check_images(splits, allow_split_overlap=config.allow_split_overlap)
    problems = list(dict.fromkeys(problems))
    errors, warnings, texts = errors_of(problems), warnings_of(problems), texts_of(lang, "data_check")
    report.problems += problem_lines(errors, limit_per_kind)
    report.warnings += problem_lines(warnings, limit_per_kind)
    lines = [_summary(split, texts) for split in splits]
    advice, report.metrics = size_advice(splits[0], config.eval_spatial_size, config.tiles, texts)
    lines += advice
    for kind, found in (("error", errors), ("warning", warnings)):
        lines += _section(kind, found, limit_per_kind, texts)
    if errors:
        lines.append(texts["repair"])
    if errors and config.on_bad_data == "skip" and all(error.skippable for error in errors):
        lines.append(texts["skip"])
    return "\n".join(lines)


def write_training_sheets(
    config: ExperimentConfig, folder: Path, count: int, lang: Language = "en"
) -> list[tuple[Path, str]]:
    """A picture of `count` training samples for every stage of training, boxes and names drawn in.

    Returns path and description of each sheet; none if the training split has no usable image.

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
    sheets, texts = [], texts_of(lang, "data_check")
    for start, end in zip(starts, [*starts[1:], config.epoches], strict=True):
        path = folder / f"training_samples_epoch_{start + 1}.png"
        loader.set_epoch(start)
        pictures = (picture for batch in loader for picture in batch_pictures(batch, split.classes.names))
        save_picture(path, grid([*islice(pictures, count)]))
        what = describe(transforms, epoch_plan(transforms, collate, start))
        key = "sheet" if end > start + 1 else "one_epoch"
        sheets.append((path, texts(key, first=start + 1, last=end, what=what)))
    sides = object_sides(split, config.eval_spatial_size, config.tiles)
    if len(sides):
        save_picture(folder / "object_sides.png", _histogram(sides, texts))
        sheets.append((folder / "object_sides.png", texts["sides"]))
    return sheets


def _histogram(sides_px: FloatArray, texts: Texts) -> PixelArray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), dpi=150, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    edges = 2.0 ** np.arange(0, 10.25, 0.25)
    axes.hist(sides_px.clip(edges[0], edges[-1]), bins=edges.tolist())
    axes.set(xscale="log", xlabel=texts["side_axis"], ylabel=texts["objects_axis"])
    ticks = [1, 2, 4, *SIDE_EDGES_PX[1:], 256, 512, 1024]
    axes.set_xticks(ticks, ["≤ 1", *map(str, ticks[1:-1]), "≥ 1024"])
    axes.minorticks_off()
    for edge in (8, 16, 32):
        axes.axvline(edge, color="0.3", linestyle=":")
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels: PixelArray = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return pixels


def _section(severity: str, problems: Sequence[Problem], limit_per_kind: int | None, texts: Texts) -> list[str]:
    if not problems:
        return [texts[f"no_{severity}"]]
    lines = problem_lines(problems, limit_per_kind)
    return [texts(f"{severity}s", count=len(problems)), *(f"  {texts[severity]}: {line}" for line in lines)]


def _summary(split: CocoSplit, texts: Texts) -> str:
    counts = split.boxes_per_class()
    per_class = ", ".join(f"{shorten(name)} {count}" for name, count in zip(split.classes.names, counts, strict=True))
    empty = sum(1 for image in split.images if image.rows.start == image.rows.stop)
    values = {"images": len(split), "empty": empty, "boxes": sum(counts), "path": split.ann_file}
    return texts("split", split=split.name, classes=f" ({per_class})" if per_class else "", **values)
