"""Which unlabelled images to label first, and labels to begin with: `suggest_labels.py next` and `pseudo`.

Annotations are written as COCO that CVAT, Label Studio and FiftyOne import (docs/guide/labels.md).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from data.errors import UserError, printable
from data.files import write_json, write_text
from data.images import decode_image
from data.progress import progress_bar
from data.script import Report
from data.types import FloatArray
from deploy.acceptance import calibrating_command, stored_calibration
from deploy.pipeline import predict_frames, read_frames
from deploy.sources import ImageSource, find_sources
from deploy.thresholds import choose_thresholds
from deploy.writers import coco_annotations
from engine.cli import command_line, ending, require_output_folder
from engine.detector import Detector, load_detector
from engine.named_files import checkpoint_of
from engine.options import Options
from engine.yaml_dialect import as_override
from models.detections import Detections
from models.hub import output_folder
from texts import Language, texts_of

log = logging.getLogger(__name__)

LEAST_INFORMATIVE_SCORE = 0.1
"""Below it are most of a network's queries, in every image; their sum would hide what differs."""
_SAME_OBJECT_IOU = 0.5


class SuggestOptions(Options):
    """Which images, and how sure a label must be."""

    images: tuple[str, ...] = ()
    """Files, folders, patterns."""
    count: int = Field(50, ge=1, description="1 or more")
    """Images to label next."""
    order: Literal["information", "random"] = "information"
    seed: int = 0
    """Of the random order."""
    score: float | None = Field(None, ge=0, le=1, description="0 to 1")
    score_per_class: tuple[str, ...] = ()
    batch_size: int | None = Field(None, ge=1, description="1 or more")
    """Images or tiles at once; None: `Detector.usual_batch`."""
    recursive: bool = False
    lang: Language = "en"
    progress: bool = True


class Seen(NamedTuple):
    """What the network says of one image."""

    source: ImageSource
    size_wh: tuple[int, int]
    detections: Detections
    """Without repeats, inside the image."""
    features: FloatArray
    """[F], unit length: the encoder's maps, averaged over the image or its tiles."""


def suggest_images(
    kind: Literal["next", "pseudo"],
    checkpoint: Path | None,
    device: torch.device,
    given: Mapping[str, Any],
    report: Report,
    *,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
) -> list[str]:
    """Look at unlabelled images and write `<kind>.json`, COCO with the detections above the class's threshold. Scores
    are chances where the checkpoint's evaluation holds a calibration.

    `next` ranks the images by what their labels would tell: the file and next.csv are in this order. `pseudo` leaves
    out images without any such detection (that nothing is sure does not mean that there is nothing) and joins the
    others with the checkpoint's own training annotations: train_pseudo.json, for a second training.

    The output folder is by default `<kind>_<checkpoint>` beside the checkpoint; `report` gets what is written and what
    cannot be read. Returns lines for the console.

    Raises:
        UserError: Bad input of any kind.
    """
    options = SuggestOptions.of(given)
    if checkpoint is None or not options.images:
        raise UserError(f"{kind} looks at unlabelled images with a checkpoint: {kind} -r CKPT --images FOLDER")
    checkpoint = checkpoint_of(checkpoint)
    folder = output_dir or output_folder(checkpoint, kind)
    require_output_folder(folder)
    detector = load_detector(checkpoint, device=device, config_path=config_path, overrides=overrides)
    detector = replace(detector, calibration=stored_calibration(detector))
    thresholds = choose_thresholds(detector, options.score, options.score_per_class, "auto")
    seen, failures = look(detector, options, folder, np.minimum(thresholds.scores, LEAST_INFORMATIVE_SCORE))
    labelled = [one._replace(detections=one.detections.above(thresholds.scores)) for one in seen]
    if kind == "next":
        bits = np.array([information_bits(one.detections) for one in seen])
        if options.order == "random":
            ranked = np.random.default_rng(options.seed).permutation(len(seen))[: options.count].tolist()
        else:
            ranked = most_informative(bits, np.array([one.features for one in seen]), options.count)
        labelled = [labelled[row] for row in ranked]
        columns = {"rank": range(1, len(ranked) + 1), "file": [one.source.name for one in labelled]}
        table = pd.DataFrame({**columns, "information_bits": bits[ranked]})
        text = table.to_csv(index=False, float_format="%.4f", lineterminator="\r\n")
        write_text(folder / "next.csv", text, what="table")
        report.wrote(table=folder / "next.csv")
    else:
        labelled = [one for one in labelled if len(one.detections)]
    content = to_coco(labelled, detector, pseudo=kind == "pseudo")
    write_json(folder / f"{kind}.json", content, what="annotations")
    training = ""
    if kind == "pseudo":
        training = _join_with_training(folder / "train_pseudo.json", detector, labelled, content)
        report.wrote(training=folder / "train_pseudo.json" if training else None)
    texts, boxes = texts_of(options.lang, "labels"), len(content["annotations"])
    report.wrote(folder=folder, annotations=folder / f"{kind}.json")
    report.metrics |= {"images": len(labelled), "boxes": boxes}
    report.problems += failures
    uncalibrated = detector.calibration is None
    return [
        texts(kind, count=len(labelled), total=len(seen), boxes=boxes),
        texts_of(options.lang, "prediction")(f"{thresholds.origin}_thresholds", source=thresholds.source),
        texts("uncalibrated" if uncalibrated else "chances", make=calibrating_command(detector)),
        *failures,
        ending(options.lang, folder, training).rstrip(),
    ]


def look(detector: Detector, options: SuggestOptions, folder: Path, least: FloatArray) -> tuple[list[Seen], list[str]]:
    """Detect with the `least` scores [C], and keep what the encoder made of each image; returns what could not be read
    beside it. The output folder is passed over.

    Raises:
        UserError: There are no images, or the network has no encoder to take features of.
    """
    encoder = getattr(detector.model, "encoder", None)
    if encoder is None:
        raise UserError(f"{detector.path}: a baseline has no encoder to compare images by; use a DEIMv2 checkpoint.")
    sources = find_sources(options.images, recursive=options.recursive, exclude=folder)
    failures = list(sources.skipped)
    pooled: list[Tensor] = []

    def keep(_module: object, _inputs: object, maps: Sequence[Tensor]) -> None:
        pooled.append(torch.cat([x.float().mean((2, 3)) for x in maps], dim=1).cpu())

    images = ((source, partial(decode_image, source.path)) for source in sources.images)
    frames = read_frames(images, detector, lambda error: failures.append(printable(str(error))))
    detected = predict_frames(frames, detector, least, options.batch_size or detector.usual_batch, _SAME_OBJECT_IOU)
    bar = progress_bar(detected, "look", total=len(sources.images), show=options.progress)
    found: list[tuple[ImageSource, tuple[int, int], Detections]] = []
    tiles: list[int] = []
    hook = encoder.register_forward_hook(keep)
    try:
        for frame, one in bar:
            found.append((frame.key, frame.size_wh, one.clipped(frame.size_wh)))
            tiles.append(len(frame.tiles))
    finally:
        hook.remove()
    failures += [f"{video.name}: a video is passed over; give images" for video in sources.videos]
    if not found:
        raise UserError("There is no image that can be read:", failures)
    means = torch.stack([vectors.double().mean(0) for vectors in torch.cat(pooled).split(tiles)])
    features = torch.nn.functional.normalize(means).numpy()
    return [Seen(*one, vector) for one, vector in zip(found, features, strict=True)], failures


def information_bits(detections: Detections) -> float:
    """Sum the entropies of "is this an object of the class?" over the detections: bits that answers would give."""
    scores = detections.scores[detections.scores >= LEAST_INFORMATIVE_SCORE]
    p = np.clip(scores, 1e-6, 1 - 1e-6)
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum())


def most_informative(bits: FloatArray, features: FloatArray, count: int) -> list[int]:
    """Choose images that tell much and differ from one another: the first has the most bits, each further one the most
    bits [I] x distance to the nearest one chosen, by their features [I, F] of unit length."""
    distance = np.full(len(bits), np.inf)
    chosen: list[int] = []
    for _ in range(min(count, len(bits))):
        gain = bits * np.minimum(distance, 2.0)  # 2: opposite
        gain[chosen] = -1.0
        best = int(np.argmax(gain))
        chosen.append(best)
        distance = np.minimum(distance, 1 - features @ features[best])
    return chosen


def to_coco(seen: Sequence[Seen], detector: Detector, *, pseudo: bool = False) -> dict[str, Any]:
    """Return COCO's form as annotation tools read it, boxes inside the image; `pseudo` marks what no person saw."""
    annotations: list[dict[str, Any]] = []
    for image_id, one in enumerate(seen, start=1):
        annotations += coco_annotations(one.detections, detector.classes, image_id, len(annotations) + 1)
    mark = {"segmentation": [], **({"pseudo": 1} if pseudo else {})}
    classes = zip(detector.classes.category_ids, detector.classes.names, strict=True)
    return {
        "info": {"description": printable(f"predicted by {detector.path}")},
        "licenses": [],
        "categories": [{"id": key, "name": name, "supercategory": ""} for key, name in classes],
        "images": [
            {"id": image_id, "file_name": one.source.name, "width": one.size_wh[0], "height": one.size_wh[1]}
            for image_id, one in enumerate(seen, start=1)
        ],
        "annotations": [one | mark for one in annotations],
    }


def _join_with_training(path: Path, detector: Detector, seen: Sequence[Seen], content: dict[str, Any]) -> str:
    """Write one COCO file of both, below the folder that holds all images, and return the command that trains with it;
    nothing where the training data are not at hand."""
    dataset = detector.config.train_dataloader.dataset
    try:
        labelled = json.loads(dataset.ann_file.read_bytes())
        root = Path(os.path.commonpath([dataset.img_folder.resolve(), *(one.source.path.resolve() for one in seen)]))
        prefix = dataset.img_folder.resolve().relative_to(root)
        first_image, first_box = (max([0, *(one["id"] for one in labelled[key])]) for key in ("images", "annotations"))
        images = [one | {"file_name": (prefix / one["file_name"]).as_posix()} for one in labelled["images"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s: not joined with the pseudo-labels (%s)", dataset.ann_file, error)
        return ""
    known = {one["file_name"] for one in images}
    names = {n: one.source.path.resolve().relative_to(root).as_posix() for n, one in enumerate(seen, start=1)}
    new = {n: name for n, name in names.items() if name not in known}
    if len(new) < len(names):
        log.warning("%d images have labels already and get no pseudo-labels", len(names) - len(new))
    images += [
        one | {"id": one["id"] + first_image, "file_name": new[one["id"]]}
        for one in content["images"]
        if one["id"] in new
    ]
    annotations = [
        one | {"id": one["id"] + first_box, "image_id": one["image_id"] + first_image}
        for one in content["annotations"]
        if one["image_id"] in new
    ]
    joined = labelled | {"images": images, "annotations": [*labelled["annotations"], *annotations]}
    write_json(path, joined, what="annotations")
    paths = {"img_folder": root, "ann_file": path.resolve()}
    settings = [as_override(f"train_dataloader.dataset.{key}", value.as_posix()) for key, value in paths.items()]
    return command_line("train_deimv2.py", "-c", "CONFIG", "-u", *settings, "DEIMCriterion.pseudo_weight=0.5")
