"""What helps with few labels? A grid of short trainings on nested parts of a training set, as table and figure.

    python benchmarks/small_data.py -c configs/neu_det_small.yml -t outputs/quickstart/best.pth --output-dir DIR
    python benchmarks/small_data.py -c configs/quickstart.yml --cells base dense distinct --sizes 940 --output-dir DIR

A seed draws the images (every class in proportion) and the run's order and augmentation. All runs have --steps
optimiser steps, "long" ones twice as many, and are judged once, at their end. A run that is there is not repeated: the
same command goes on, and with --report only tables and draws what is there. Differences are paired by seed and image.
gap is what suppressing repeated detections above an IoU of 0.7 would add to AP, repeats the share of the detections
above the best-F1 scores that repeat a better one, duplicates what they cost in AP50.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script: the repository is not on the path

from analysis.analyse import AnalysisOptions, analyse  # noqa: E402
from analysis.bootstrap import BootstrapResult, Resampled  # noqa: E402
from analysis.compare import EvaluatedRun, read_runs, resample  # noqa: E402
from analysis.differences import effect, estimate  # noqa: E402
from analysis.style import class_line, figure_style, new_figure, save_figure  # noqa: E402
from analysis.tables import Cell, Number, Table, write_tables  # noqa: E402
from benchmarks.training import train_steps, write_part  # noqa: E402
from data.coco import CocoSplit  # noqa: E402
from data.splits import build_datasets  # noqa: E402
from data.subsets import Subset  # noqa: E402
from engine.config import load_config  # noqa: E402

LONG = 2
SAMPLES = 1000
SUPPRESSED_IOU = 0.7
STRONG = ({"type": "RandomPhotometricDistort"}, {"type": "RandomZoomOut"}, {"type": "RandomIoUCrop", "p": 0.8})
CELLS: dict[str, list[str]] = {
    "base": [],  # the others are compared with it
    "frozen": ["DINOv3STAs.freeze=all"],
    "flip only": [],
    "random weights": [],
    "long": [],
    "long, frozen": ["DINOv3STAs.freeze=all"],
    "frozen, 3 blocks": ["DINOv3STAs.freeze=3"],
    "ViT at 0.1": ["DINOv3STAs.backbone_lr_factor=0.1"],
    "rate 0.0003": ["optimizer.lr=0.0003"],
    "long, flip only": [],
    "dense": [
        "train_dataloader.dataset.transforms.mosaic_prob=0.5",
        "train_dataloader.collate_fn.mixup_prob=0.5",
        "train_dataloader.collate_fn.copyblend_prob=0.5",
    ],
    "distinct": ["DEIMTransformer.distinct_iou=0.8"],
    "relation": ["DEIMTransformer.relation_bias=True"],
    "ordered": ["DEIMTransformer.ordered_last=True"],
    "repeat targets": ["DEIMCriterion.matcher.repeat_targets=4"],
}
FEW_LABELS = list(CELLS)[:-5]
MEASURES = ("AP", "AP50", "gap", "repeats", "duplicates")


def train_cell(arguments: argparse.Namespace, part: CocoSplit, cell: str, seed: int, run: Path) -> None:
    """Train one run on a part of the training split."""
    settings = [*arguments.update, *write_part(part, run.parent / f"seed{seed}.json"), *CELLS[cell]]
    plain = load_config(arguments.config, settings).model_dump(mode="json")
    ops = plain["train_dataloader"]["dataset"]["transforms"]["ops"]
    if "flip only" in cell:
        ops = [one for one in ops if one["type"] not in ("RandomIoUCrop", "RandomVerticalFlip")]
    if "dense" in cell:  # DEIM's Dense O2O and the recipe's other augmentation, which small configs leave out
        strong = [{"type": "Mosaic", "output_size": min(plain["eval_spatial_size"]) // 2}, *STRONG]
        ops = [*strong, {"type": "SanitizeBoundingBoxes"}, *(one for one in ops if one["type"] != "RandomIoUCrop")]
        policy = {"name": "stop_epoch", "ops": [one["type"] for one in strong]}
        settings.append(f"train_dataloader.dataset.transforms.policy={json.dumps(policy)}")
    settings.append(f"train_dataloader.dataset.transforms.ops={json.dumps(ops)}")
    steps = arguments.steps * (LONG if "long" in cell else 1)
    tuning = None if cell == "random weights" else arguments.tuning
    train_steps(
        arguments.config, settings, run, steps=steps, seed=seed, tuning=tuning, no_aug_epoch=int("dense" in cell)
    )


def measured(run: EvaluatedRun, drawn: BootstrapResult) -> dict[str, Resampled]:
    """Return a run's MEASURES; those of repeats without resampled images, so that only seeds spread them."""
    truth, found = run.evaluation
    counted = analyse(truth, found, "val", AnalysisOptions(bootstrap=0)).results
    tried = {one["iou"]: one["AP"] for one in counted["suppression"]["tried"]}
    share = counted["suppression"]["repeats"] / max(counted["suppression"]["detections"], 1)
    numbers = (tried[SUPPRESSED_IOU] - tried[None], share, counted["errors"]["ap50_cost"]["duplicate"])
    fixed = [Resampled(one, np.full(SAMPLES, one)) for one in numbers]
    return dict(zip(MEASURES, (drawn.metrics["AP"], drawn.metrics["AP50"], *fixed), strict=True))


def report(runs: dict[tuple[int, str, int], Path], folder: Path) -> None:
    """Write small_data.md, .tex, .csv, .png and .pdf of the runs that are there."""
    there = {key: path for key, path in runs.items() if (path / "results.json").is_file()}
    read = read_runs(list(there.values()))
    metrics = dict(zip(there, map(measured, read, resample(read, samples=SAMPLES, seed=0)), strict=True))
    rows: list[list[Cell]] = []
    for size, cell in dict.fromkeys(key[:2] for key in there):
        seeds = sorted(key[2] for key in there if key[:2] == (size, cell))
        paired = [] if cell == "base" else [seed for seed in seeds if (size, "base", seed) in metrics]
        row: list[Cell] = [size, cell, len(seeds)]
        for name in MEASURES:
            mean = estimate([metrics[size, cell, seed][name] for seed in seeds])
            row += [Number(mean.value, spread=mean.sd), None]
            if paired:
                sides = [[metrics[size, one, seed][name] for seed in paired] for one in (cell, "base")]
                minus = effect(*sides, read[0].results.num_images)
                interval = minus.interval or minus.image_interval
                row[-1] = Number(minus.value, interval=interval, interval_digits=3, signed=True)
        rows.append(row)
    columns = [f"{name}{of}" for name in MEASURES for of in ("", " minus base")]
    table = Table(["images", "cell", "seeds", *columns], rows)
    markdown = table.to_markdown("en") + "\n"
    write_tables(folder, "small_data", {"small_data": table}, "en", markdown=markdown, content={})
    with figure_style():
        figure = new_figure(9.0)
        axis = figure.subplots()
        for number, cell in enumerate(dict.fromkeys(key[1] for key in there)):
            points = pd.Series({key[0::2]: metrics[key]["AP"].point for key in there if key[1] == cell})
            means = points.groupby(level=0).mean()
            look = class_line(number)
            axis.plot(means.index, means, label=cell, **look)
            axis.plot(points.index.get_level_values(0), points, **(look | {"linestyle": "none", "markersize": 3}))
        axis.set_xscale("log")
        sizes = sorted({key[0] for key in there})
        axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axis.minorticks_off()
        axis.set(xlabel="training images", ylabel="AP")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        save_figure(figure, folder, "small_data")
    sys.stdout.write(markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-c", "--config", type=Path, required=True)
    add("-t", "--tuning", type=Path, help="detector that all cells but one start from; without it from random weights")
    add("-u", "--update", nargs="+", default=[], action="extend")
    add("--output-dir", type=Path, required=True)
    add("--sizes", type=int, nargs="+", default=[50, 200, 1440], help="training images")
    add("--cells", nargs="+", default=FEW_LABELS, choices=list(CELLS))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--steps", type=int, default=240)
    add("--report", action="store_true", help="only table and figure")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = {
        (size, cell, seed): arguments.output_dir / str(size) / f"{cell.replace(',', '').replace(' ', '_')}_seed{seed}"
        for seed in arguments.seeds
        for size in arguments.sizes
        for cell in arguments.cells
    }
    if not arguments.report:
        split = build_datasets(load_config(arguments.config, arguments.update), ("train",)).splits["train"]
        for (size, cell, seed), run in runs.items():
            if not (run / "results.json").is_file():
                part = Subset(fraction=min(size / len(split), 1.0)).of(split, seed)
                train_cell(arguments, part, cell, seed, run)
    report(runs, arguments.output_dir)


if __name__ == "__main__":
    main()
