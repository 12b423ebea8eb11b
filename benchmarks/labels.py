"""Do the suggestions of suggest_labels.py help? Judged with controls, on annotations that are trusted.

    python benchmarks/labels.py errors -c configs/neu_det_small.yml --predictions RUN [--repeats 50]
    python benchmarks/labels.py learn -c configs/neu_det_small.yml --output-dir DIR [-t CKPT] [--seeds 1]

`errors` injects label errors into the split that RUN's predictions are of, 5 % of the boxes of each kind, and counts
how many of the first k suggestions are injected ones; real errors, which any data set has, count as false alarms.
`learn` trains: with 10 % of the training images, then with 20 and 40 %, added by `next` or at random, each stage from
the weights of the stage before; and from the 10 % stage with pseudo-labels of the rest, or without, for equal steps.
Differences are paired by seed and image. A run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script: the repository is not on the path

from analysis.compare import read_runs, resample  # noqa: E402
from analysis.differences import effect  # noqa: E402
from analysis.label_errors import KINDS, Suggestion, find_label_errors  # noqa: E402
from benchmarks.training import train_steps, write_part  # noqa: E402
from data.coco import CocoSplit  # noqa: E402
from data.script import Report  # noqa: E402
from data.splits import build_datasets  # noqa: E402
from deploy.suggest import suggest_images  # noqa: E402
from engine.config import load_config  # noqa: E402
from engine.results import read_evaluation, read_results  # noqa: E402
from engine.yaml_dialect import as_override  # noqa: E402

SHARE = 0.05


class Injected(NamedTuple):
    """A split with errors, and where they are."""

    split: CocoSplit
    kind_of: dict[int, str]
    """Annotation id -> kind."""
    removed: list[tuple[int, Any]]
    """Image id and box (xywh) of the missing ones."""


def overlap(box: Any, boxes: Any) -> Any:
    """IoUs of one xywh box with some."""
    arrays = (torch.from_numpy(np.array(one, dtype=np.float64).reshape(-1, 4)) for one in (box, boxes))
    return box_iou(*(box_convert(one, "xywh", "xyxy") for one in arrays))[0].numpy()


def inject(split: CocoSplit, seed: int, share: float = SHARE) -> Injected:
    """Spoil `share` of the boxes in each of the four ways, no box twice."""
    rng = np.random.default_rng(seed)
    sizes = np.array([(image.width, image.height) for image in split.images])
    owner = np.repeat(np.arange(len(split)), [image.rows.stop - image.rows.start for image in split.images])
    boxes, labels, ids = split.boxes_xywh.copy(), split.labels.copy(), split.annotation_ids
    count = round(share * len(labels))
    missing, other_class, moved, copied = rng.permutation(len(labels))[: 4 * count].reshape(4, count)
    kind_of = dict.fromkeys(ids[other_class].tolist(), "class")
    for row in other_class:
        labels[row] = (labels[row] + rng.integers(1, len(split.classes))) % len(split.classes)
    for row in moved:
        for _ in range(2000):
            size = np.minimum(boxes[row, 2:] * np.exp(rng.normal(0, 0.4, 2)), sizes[owner[row]])
            centre = boxes[row, :2] + boxes[row, 2:] * (0.5 + rng.normal(0, 0.4, 2))
            box = np.concatenate([np.clip(centre - size / 2, 0, sizes[owner[row]] - size), size])
            if 0.2 <= overlap(boxes[row], box)[0] < 0.5:
                boxes[row] = box
                kind_of[int(ids[row])] = "place"
                break
    extra = []  # image, row of class and size, box
    for row in copied:  # where there is nothing
        for _ in range(2000):
            index, size = int(rng.integers(len(split))), split.boxes_xywh[row, 2:]
            box = np.concatenate([rng.random(2) * np.maximum(sizes[index] - size, 0), size])
            if (overlap(box, split.boxes_xywh[split.images[index].rows]) < 0.1).all():
                extra.append((index, row, box))
                break
    kept = np.setdiff1d(np.arange(len(labels)), missing)
    rows = np.concatenate([kept, np.array([row for _, row, _ in extra], dtype=np.int64)])
    new_ids = ids.max() + 1 + np.arange(len(extra))
    kind_of |= dict.fromkeys(new_ids.tolist(), "extra")
    owners = np.concatenate([owner[kept], [index for index, _, _ in extra]]).astype(np.int64)
    spoilt = np.concatenate([boxes[kept], *(box[None] for _, _, box in extra)])
    order = np.argsort(owners, kind="stable")
    ends = [0, *np.bincount(owners, minlength=len(split)).cumsum().tolist()]
    result = replace(
        split,
        images=tuple(replace(image, rows=slice(*ends[n : n + 2])) for n, image in enumerate(split.images)),
        boxes_xywh=spoilt[order],
        labels=labels[rows][order],
        areas=spoilt[order, 2:].prod(axis=1),
        crowd=np.zeros(len(order), dtype=bool),
        pseudo=np.zeros(len(order), dtype=bool),
        annotation_ids=np.concatenate([ids[kept], new_ids])[order],
    )
    return Injected(result, kind_of, [(split.images[owner[row]].id, split.boxes_xywh[row]) for row in missing])


def right(suggestions: list[Suggestion], injected: Injected) -> Any:
    """Which suggestions name an injected error and its kind; each error counts once."""
    open_boxes = list(injected.removed)
    result = []
    for one in suggestions:
        if one["kind"] != "missing":
            result.append(injected.kind_of.get(one["annotation_id"] or -1) == one["kind"])
            continue
        hits = [
            n
            for n, (image_id, box) in enumerate(open_boxes)
            if image_id == one["image_id"] and overlap(one["suggested_bbox"], box)[0] >= 0.5
        ]
        result.append(bool(hits))
        if hits:
            open_boxes.pop(hits[0])
    return np.array(result)


def judge_errors(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, arguments.update)
    split = build_datasets(config, ("val",)).splits["val"]
    _, predictions = read_evaluation(arguments.predictions)
    cells: dict[str, list[tuple[float, float]]] = {}
    count = round(SHARE * len(split.labels))
    for seed in range(arguments.repeats):
        injected = inject(split, seed)
        suggestions = find_label_errors(injected.split, predictions)
        hits, kinds = right(suggestions, injected), np.array([one["kind"] for one in suggestions])
        for kind in (*KINDS, "all"):
            own, total = (hits, 4 * count) if kind == "all" else (hits[kinds == kind], count)
            for name, k in (("n/4", total // 4), ("n/2", total // 2), ("n", total), ("2n", 2 * total)):
                correct = int(own[:k].sum())
                cells.setdefault(f"{kind} | {name}", []).append((correct / k, correct / total))
    sys.stdout.write("| kind | k | precision at k | recall at k |\n|---|---|---|---|\n")
    for name, values in cells.items():
        columns = zip(np.mean(values, axis=0), *np.percentile(values, [2.5, 97.5], axis=0), strict=True)
        shown = " | ".join(f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in columns)
        sys.stdout.write(f"| {name} | {shown} |\n")


def learn(arguments: argparse.Namespace) -> None:
    split = build_datasets(load_config(arguments.config, arguments.update), ("train",)).splits["train"]
    first, further = arguments.steps
    for seed in range(arguments.seeds):
        folder = arguments.output_dir / f"seed{seed}"
        order = [split.images[index].id for index in np.random.default_rng(seed).permutation(len(split))]
        start = set(order[: round(0.1 * len(split))])
        labels = write_images(split, start, folder / "start.json")
        base = stage(arguments, labels, folder / "start", first, arguments.tuning)
        labels = write_images(split, start, folder / "none.json")
        stage(arguments, labels, folder / "none", further, base)
        pseudo = folder / "pseudo_labels/train_pseudo.json"
        if not pseudo.is_file():
            rest = [image.path.as_posix() for image in split.images if image.id not in start]
            suggest_images("pseudo", base, torch.device("cpu"), {"images": rest}, Report(), output_dir=pseudo.parent)
        settings = [as_override("train_dataloader.dataset.ann_file", pseudo.resolve().as_posix())]
        settings.append(f"DEIMCriterion.pseudo_weight={arguments.pseudo_weight}")
        stage(arguments, settings, folder / "pseudo", further, base)
        labelled = {strategy: (set(start), base) for strategy in ("information", "random")}
        for share in (0.2, 0.4):
            for strategy, (ids, weights) in labelled.items():
                ids |= chosen(weights, split, ids, round(share * len(split)) - len(ids), strategy, seed)
                run = folder / f"{strategy}_{share:g}"
                labels = write_images(split, ids, run.with_name(f"{run.name}.json"))
                labelled[strategy] = ids, stage(arguments, labels, run, further, weights)
    sys.stdout.write("\n| | against | AP minus its | AP50 minus its |\n|---|---|---|---|\n")
    pairs = (("pseudo", "none"), *((f"information_{share:g}", f"random_{share:g}") for share in (0.2, 0.4)))
    for pair in pairs:
        runs = [arguments.output_dir / f"seed{seed}" / name for name in pair for seed in range(arguments.seeds)]
        read = read_runs(runs)
        found = [one.metrics for one in resample(read, samples=1000, seed=0)]
        cells = []
        for name in ("AP", "AP50"):
            values = [one[name] for one in found]
            minus = effect(values[: arguments.seeds], values[arguments.seeds :], read[0].results.num_images)
            low, high = minus.interval or minus.image_interval or (float("nan"), float("nan"))
            cells.append(f"{minus.value or 0:+.4f} [{low:+.4f}, {high:+.4f}]")
        sys.stdout.write(f"| {' | '.join((*pair, *cells))} |\n")


def write_images(split: CocoSplit, ids: Collection[int], ann_file: Path) -> list[str]:
    return write_part(split.without_images({image.id for image in split.images} - set(ids)), ann_file)


def chosen(weights: Path, split: CocoSplit, known: set[int], count: int, order: str, seed: int) -> set[int]:
    """Ids of the images to label next."""
    rest = {image.path.as_posix(): image.id for image in split.images if image.id not in known}
    target = weights.parent / f"next_{order}"
    if not (target / "next.json").is_file():
        given = {"images": tuple(rest), "count": count, "order": order, "seed": seed}
        suggest_images("next", weights, torch.device("cpu"), given, Report(), output_dir=target)
    names = {Path(path).name: image_id for path, image_id in rest.items()}
    content = json.loads((target / "next.json").read_bytes())
    return {names[Path(one["file_name"]).name] for one in content["images"]}


def stage(arguments: argparse.Namespace, labels: list[str], run: Path, steps: int, tuning: Path | None) -> Path:
    """Train a run on some labels, and print what it learned."""
    overrides, seed = [*arguments.update, *labels], int(run.parent.name.removeprefix("seed"))
    best = train_steps(arguments.config, overrides, run, steps=steps, seed=seed, tuning=tuning, no_aug_epoch=1)
    metrics = read_results(run / "results.json")["metrics"]
    sys.stdout.write(f"| {run.parent.name} | {run.name} | {metrics['AP']:.4f} | {metrics['AP50']:.4f} |\n")
    sys.stdout.flush()
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("task", choices=("errors", "learn"))
    add("-c", "--config", type=Path, required=True)
    add("-u", "--update", nargs="+", default=[], action="extend")
    add("--predictions", type=Path, help="errors: run folder whose predictions are of the val split")
    add("--repeats", type=int, default=50, help="errors: injections")
    add("--output-dir", type=Path, help="learn: folder of the runs")
    add("-t", "--tuning", type=Path, help="learn: checkpoint that the first stage starts from")
    add("--seeds", type=int, default=1)
    add("--steps", type=int, nargs=2, default=(600, 400), help="learn: of the first stage, of each further one")
    add("--pseudo-weight", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (judge_errors if arguments.task == "errors" else learn)(arguments)


if __name__ == "__main__":
    main()
