"""Do the suggestions of suggest_labels.py help? Judged with controls, on annotations that are trusted.

    python benchmarks/labels.py errors -c configs/neu_det_small.yml --predictions RUN [--repeats 50]
    python benchmarks/labels.py learn -c configs/neu_det_small.yml --output-dir DIR [--seeds 1] [--steps 600 400]

`errors` injects label errors into the split that RUN's predictions are of, 5 % of the boxes of each kind, and counts
how many of the first k suggestions are injected ones; real errors, which any data set has, count as false alarms.
`learn` trains: with 10 % of the training images, then with 20 and 40 %, added by `next` or at random, each stage from
the weights of the stage before; and from the 10 % stage with pseudo-labels of the rest, or without, for equal steps.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script: the repository is not on the path

from analysis.label_errors import KINDS, Suggestion, find_label_errors  # noqa: E402
from data.coco import CocoSplit  # noqa: E402
from data.splits import build_datasets  # noqa: E402
from deploy.suggest import suggest_images  # noqa: E402
from engine.config import load_config  # noqa: E402
from engine.distributed import Distributed  # noqa: E402
from engine.results import read_evaluation, read_results  # noqa: E402
from engine.train import train  # noqa: E402
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
    corners = [np.asarray(one, dtype=np.float64).reshape(-1, 4).copy() for one in (box, boxes)]
    for one in corners:
        one[:, 2:] += one[:, :2]
    return box_iou(*(torch.from_numpy(one) for one in corners))[0].numpy()


def inject(split: CocoSplit, seed: int, share: float = SHARE) -> Injected:
    """Spoil `share` of the boxes in each of the four ways, no box twice."""
    rng = np.random.default_rng(seed)
    image_of = np.repeat(np.arange(len(split)), [image.rows.stop - image.rows.start for image in split.images])
    boxes, labels, num = split.boxes_xywh.copy(), split.labels.copy(), len(split.labels)
    count = round(share * num)
    missing, other_class, moved, copied = rng.permutation(num)[: 4 * count].reshape(4, count)
    kind_of = {}
    for row in other_class:
        labels[row] = (labels[row] + rng.integers(1, len(split.classes))) % len(split.classes)
        kind_of[int(split.annotation_ids[row])] = "class"
    for row in moved:
        image = split.images[image_of[row]]
        for _ in range(2000):
            size = np.minimum(boxes[row, 2:] * np.exp(rng.normal(0, 0.4, 2)), (image.width, image.height))
            centre = boxes[row, :2] + boxes[row, 2:] * (0.5 + rng.normal(0, 0.4, 2))
            corner = np.clip(centre - size / 2, 0, np.array([image.width, image.height]) - size)
            if 0.2 <= overlap(split.boxes_xywh[row], [*corner, *size])[0] < 0.5:
                boxes[row] = [*corner, *size]
                kind_of[int(split.annotation_ids[row])] = "place"
                break
    extra: dict[int, list[Any]] = {}
    for row in copied:  # its class and size, where there is nothing
        for _ in range(2000):
            index = int(rng.integers(len(split)))
            image, size = split.images[index], split.boxes_xywh[row, 2:]
            corner = rng.random(2) * np.maximum(np.array([image.width, image.height]) - size, 0)
            there = split.boxes_xywh[image.rows]
            if (overlap([*corner, *size], there) < 0.1).all():
                extra.setdefault(index, []).append(([*corner, *size], int(split.labels[row])))
                break
    kept = np.setdiff1d(np.arange(num), missing)
    removed = [(split.images[image_of[row]].id, split.boxes_xywh[row]) for row in missing]
    images, columns, next_id = [], [], int(split.annotation_ids.max()) + 1
    for index, image in enumerate(split.images):
        start = len(columns)
        own = kept[image_of[kept] == index]
        columns += [(boxes[row], labels[row], int(split.annotation_ids[row])) for row in own]
        for box, label in extra.get(index, []):
            columns.append((np.array(box), label, next_id))
            kind_of[next_id] = "extra"
            next_id += 1
        images.append(replace(image, rows=slice(start, len(columns))))
    spoilt = np.array([box for box, _, _ in columns])
    nothing = np.zeros(len(columns), dtype=bool)
    result = replace(
        split,
        images=tuple(images),
        boxes_xywh=spoilt,
        labels=np.array([label for _, label, _ in columns], dtype=np.int64),
        areas=spoilt[:, 2] * spoilt[:, 3],
        crowd=nothing,
        pseudo=nothing,
        annotation_ids=np.array([number for _, _, number in columns], dtype=np.int64),
    )
    return Injected(result, kind_of, removed)


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
    cells: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(arguments.repeats):
        injected = inject(split, seed)
        suggestions = find_label_errors(injected.split, predictions)
        hits, kinds = right(suggestions, injected), np.array([one["kind"] for one in suggestions])
        count = round(SHARE * len(split.labels))
        for kind in (*KINDS, "all"):
            own = hits if kind == "all" else hits[kinds == kind]
            total = 4 * count if kind == "all" else count
            for name, k in (("n/4", total // 4), ("n/2", total // 2), ("n", total), ("2n", 2 * total)):
                found = int(own[:k].sum())
                cells.setdefault((kind, name), []).append((found / k, found / total))
    sys.stdout.write("| kind | k | precision at k | recall at k |\n|---|---|---|---|\n")
    for (kind, name), values in cells.items():
        low, high = np.percentile(values, [2.5, 97.5], axis=0)
        mean = np.mean(values, axis=0)
        shown = " | ".join(f"{mean[i]:.2f} [{low[i]:.2f}, {high[i]:.2f}]" for i in (0, 1))
        sys.stdout.write(f"| {kind} | {name} | {shown} |\n")


def learn(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, arguments.update)
    split = build_datasets(config, ("train",)).splits["train"]
    first, further = arguments.steps
    for seed in range(arguments.seeds):
        folder, rng = arguments.output_dir / f"seed{seed}", np.random.default_rng(seed)
        order = [split.images[index].id for index in rng.permutation(len(split))]
        sizes = {share: round(share * len(split)) for share in (0.1, 0.2, 0.4)}
        start = set(order[: sizes[0.1]])
        base = stage(arguments, split, start, folder / "start", seed, first, None)
        stage(arguments, split, start, folder / "none", seed, further, base)
        rest = [image.path.as_posix() for image in split.images if image.id not in start]
        target = folder / "pseudo_labels"
        if not (target / "train_pseudo.json").is_file():
            suggest_images("pseudo", base, torch.device("cpu"), {"images": rest}, output_dir=target)
        settings = [
            as_override("train_dataloader.dataset.ann_file", (target / "train_pseudo.json").resolve().as_posix())
        ]
        settings.append(f"DEIMCriterion.pseudo_weight={arguments.pseudo_weight}")
        stage(arguments, None, start, folder / "pseudo", seed, further, base, settings)
        labelled = {strategy: (set(start), base) for strategy in ("information", "random")}
        for share in (0.2, 0.4):
            for strategy, (ids, weights) in labelled.items():
                ids |= chosen(weights, split, ids, sizes[share] - len(ids), strategy, seed)
                run = folder / f"{strategy}_{share:g}"
                labelled[strategy] = ids, stage(arguments, split, ids, run, seed, further, weights)


def chosen(weights: Path, split: CocoSplit, known: set[int], count: int, order: str, seed: int) -> set[int]:
    """Ids of the images to label next."""
    rest = {image.path.as_posix(): image.id for image in split.images if image.id not in known}
    target = weights.parent / f"next_{order}"
    given = {"images": tuple(rest), "count": count, "order": order, "seed": seed}
    if not (target / "next.json").is_file():
        suggest_images("next", weights, torch.device("cpu"), given, output_dir=target)
    names = {Path(path).name: image_id for path, image_id in rest.items()}
    content = json.loads((target / "next.json").read_bytes())
    return {names[Path(one["file_name"]).name] for one in content["images"]}


def stage(
    arguments: argparse.Namespace,
    split: CocoSplit | None,
    ids: set[int],
    run: Path,
    seed: int,
    steps: int,
    tuning: Path | None,
    settings: list[str] | None = None,
) -> Path:
    """Train a run on some images for about so many steps, unless it is there; returns its best.pth."""
    ann_file = run.with_name(f"{run.name}.json")
    lines = list(settings or [])
    count = len(ids)
    if split is not None:
        run.parent.mkdir(parents=True, exist_ok=True)
        part = split.without_images({image.id for image in split.images} - ids)
        ann_file.write_text(json.dumps(part.to_coco()), encoding="utf-8")
        lines.append(as_override("train_dataloader.dataset.ann_file", ann_file.resolve().as_posix()))
        lines.append(as_override("train_dataloader.dataset.img_folder", split.img_folder.resolve().as_posix()))
    else:
        path = next(line.partition("=")[2] for line in lines if "ann_file" in line)
        count = len(json.loads(Path(path.strip("'\"")).read_bytes())["images"])
    plain = load_config(arguments.config, [*arguments.update, *lines])
    epochs = max(round(steps * (plain.train_dataloader.images_per_step or 1) / count), 1)
    length = [
        f"epoches={epochs}",
        f"flat_epoch={epochs // 2}",
        f"no_aug_epoch={int(epochs > 1)}",
        f"eval_interval_epochs={epochs}",
    ]
    config = load_config(arguments.config, [*arguments.update, *lines, *length, f"seed={seed}"])
    if not (run / "results.json").is_file():
        train(config, Distributed(0, 1, 0, torch.device("cpu")), run, resume=None, tuning=tuning)
    metrics = read_results(run / "results.json")["metrics"]
    sys.stdout.write(f"| {run.parent.name} | {run.name} | {count} | {metrics['AP']:.4f} | {metrics['AP50']:.4f} |\n")
    sys.stdout.flush()
    return run / "best.pth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("task", choices=("errors", "learn"))
    add("-c", "--config", type=Path, required=True)
    add("-u", "--update", nargs="+", default=[], action="extend")
    add("--predictions", type=Path, help="errors: run folder whose predictions are of the val split")
    add("--repeats", type=int, default=50, help="errors: injections")
    add("--output-dir", type=Path, help="learn: folder of the runs")
    add("--seeds", type=int, default=1)
    add("--steps", type=int, nargs=2, default=(600, 400), help="learn: of the first stage, of each further one")
    add("--pseudo-weight", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    (judge_errors if arguments.task == "errors" else learn)(arguments)


if __name__ == "__main__":
    main()
