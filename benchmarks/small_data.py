"""What helps with few labels? A grid of short trainings on nested parts of a training set, as table and figure.

    python benchmarks/small_data.py -c configs/neu_det_small.yml -t outputs/quickstart/best.pth --output-dir DIR

A seed draws the images (every class in proportion) and the run's order and augmentation. All runs have --steps
optimiser steps, "long" ones twice as many, and are judged once, at their end. A run that is there is not repeated: the
same command goes on, and with --report only tables and draws what is there. Differences are paired by seed and image.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script: the repository is not on the path

from analysis.compare import read_runs, resample  # noqa: E402
from analysis.differences import effect, estimate  # noqa: E402
from analysis.style import class_line, figure_style, new_figure, save_figure  # noqa: E402
from analysis.tables import Cell, Number, Table, write_tables  # noqa: E402
from data.coco import CocoSplit  # noqa: E402
from data.splits import build_datasets  # noqa: E402
from data.subsets import Subset  # noqa: E402
from engine.config import load_config  # noqa: E402
from engine.distributed import Distributed  # noqa: E402
from engine.train import train  # noqa: E402
from engine.yaml_dialect import as_override  # noqa: E402

LONG = 2
CELLS = {
    "base": "",  # the others are compared with it
    "frozen": "DINOv3STAs.freeze=all",
    "flip only": "",
    "random weights": "",
    "long": "",
    "long, frozen": "DINOv3STAs.freeze=all",
    "frozen, 3 blocks": "DINOv3STAs.freeze=3",
    "ViT at 0.1": "DINOv3STAs.backbone_lr_factor=0.1",
    "rate 0.0003": "optimizer.lr=0.0003",
    "long, flip only": "",
}


def train_cell(arguments: argparse.Namespace, split: CocoSplit, part: CocoSplit, cell: str, run: Path) -> None:
    """Train one run on a part of the training split."""
    ann_file = run.parent / f"{run.name.rpartition('_')[2]}.json"
    ann_file.parent.mkdir(parents=True, exist_ok=True)
    ann_file.write_text(json.dumps(part.to_coco()), encoding="utf-8")
    settings = [
        as_override("train_dataloader.dataset.ann_file", ann_file.resolve().as_posix()),
        as_override("train_dataloader.dataset.img_folder", split.img_folder.resolve().as_posix()),
        *arguments.update,
        *([CELLS[cell]] if CELLS[cell] else []),
    ]
    plain = load_config(arguments.config, settings).model_dump(mode="json")["train_dataloader"]
    steps = arguments.steps * (LONG if "long" in cell else 1)
    epochs = max(round(steps / max(len(part) // plain["total_batch_size"], 1)), 1)
    settings += [f"epoches={epochs}", f"flat_epoch={epochs // 2}", "no_aug_epoch=0", f"eval_interval_epochs={epochs}"]
    if "flip only" in cell:
        ops = plain["dataset"]["transforms"]["ops"]
        kept = [one for one in ops if one["type"] not in ("RandomIoUCrop", "RandomVerticalFlip")]
        settings.append(f"train_dataloader.dataset.transforms.ops={json.dumps(kept)}")
    config = load_config(arguments.config, [*settings, f"seed={run.name.rpartition('seed')[2]}"])
    tuning = None if cell == "random weights" else arguments.tuning
    train(config, Distributed(0, 1, 0, torch.device("cpu")), run, resume=None, tuning=tuning)


def report(runs: dict[tuple[int, str, int], Path], folder: Path) -> None:
    """Write small_data.md, .tex, .csv, .png and .pdf of the runs that are there."""
    there = {key: path for key, path in runs.items() if (path / "results.json").is_file()}
    read = read_runs(list(there.values()))
    metrics = dict(zip(there, (run.metrics for run in resample(read, samples=1000, seed=0)), strict=True))
    rows: list[list[Cell]] = []
    for size, cell in dict.fromkeys(key[:2] for key in there):
        seeds = [seed for seed in sorted({key[2] for key in there}) if (size, cell, seed) in metrics]
        paired = [seed for seed in seeds if (size, "base", seed) in metrics]
        row: list[Cell] = [size, cell, len(seeds)]
        for name in ("AP", "AP50"):
            found = estimate([metrics[size, cell, seed][name] for seed in seeds])
            row.append(Number(found.value, spread=found.sd))
            if cell == "base" or not paired:
                row.append(None)
                continue
            sides = [[metrics[size, one, seed][name] for seed in paired] for one in (cell, "base")]
            minus = effect(*sides, read[0].results.num_images)
            row.append(
                Number(minus.value, interval=minus.interval or minus.image_interval, interval_digits=3, signed=True)
            )
        rows.append(row)
    table = Table(["images", "cell", "seeds", "AP", "AP minus base", "AP50", "AP50 minus base"], rows)
    markdown = table.to_markdown("en") + "\n"
    write_tables(folder, "small_data", {"small_data": table}, "en", markdown=markdown, content={})
    with figure_style():
        figure = new_figure(9.0)
        axis = figure.subplots()
        sizes = sorted({key[0] for key in there})
        for number, cell in enumerate(dict.fromkeys(key[1] for key in there)):
            points = [(key[0], metrics[key]["AP"].point) for key in there if key[1] == cell]
            means = {size: float(np.mean([ap for at, ap in points if at == size])) for size, _ in points}
            look = class_line(number)
            axis.plot(list(means), list(means.values()), label=cell, **look)
            axis.plot(*zip(*points, strict=True), **(look | {"linestyle": "none", "markersize": 3, "alpha": 0.5}))
        axis.set_xscale("log")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("training images")
        axis.set_ylabel("AP")
        axis.legend(ncols=2)
        save_figure(figure, folder, "small_data")
    sys.stdout.write(markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-c", "--config", type=Path, required=True)
    add("-t", "--tuning", type=Path, required=True, help="detector that all cells but one start from")
    add("-u", "--update", nargs="+", default=[], action="extend")
    add("--output-dir", type=Path, required=True)
    add("--sizes", type=int, nargs="+", default=[50, 200, 1440], help="training images")
    add("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
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
                train_cell(arguments, split, part, cell, run)
    report(runs, arguments.output_dir)


if __name__ == "__main__":
    main()
