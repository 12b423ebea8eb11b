"""Suggest corrections of an annotated split: what `suggest_labels.py errors` does."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from analysis.gallery import cut, window_around
from analysis.label_errors import Suggestion, corrected, find_label_errors
from analysis.report import write_page
from analysis.style import tidy
from data.coco import CocoSplit
from data.config import loaders
from data.convert.split import fold_sets
from data.errors import UserError
from data.files import file_sha256, write_json
from data.image_checks import alike_groups
from data.images import decode_image
from data.loader import build_eval_loader
from data.script import Report
from data.splits import build_datasets
from data.types import PixelArray
from engine.cli import command_line, ending, require_output_folder
from engine.config import load_config
from engine.detector import Detector, load_detector
from engine.distributed import Distributed
from engine.evaluate import evaluate
from engine.metrics import Predictions
from engine.named_files import checkpoint_of
from engine.options import Options
from engine.pictures import captioned, draw_boxes, grid, save_picture
from engine.results import read_evaluation
from engine.train import train
from engine.yaml_dialect import as_override
from models.hub import output_folder
from texts import NOTHING, Language, Texts, texts_of

log = logging.getLogger(__name__)

SUGGESTIONS_NAME = "suggestions.json"
_SHEET_PAIRS = 24
_PANEL_PX = 240


class ErrorOptions(Options):
    """What to doubt, and by whose predictions."""

    split: Literal["train", "val", "test"] | None = None
    """None: train with folds, else val."""
    folds: int | None = Field(None, ge=2, le=20, description="2 to 20, e.g. 3")
    """Networks to train, each without one part of the images, which it then judges."""
    predictions: Path | None = None
    """Folder of an evaluation whose predictions.json is of images of the split."""
    count: int = Field(100, ge=1, description="1 or more")
    """Suggestions on the page."""
    accept: tuple[str, ...] = ()
    """Do nothing but follow these of the suggestions made before."""
    lang: Language = "en"


class _File(TypedDict):
    ann_file: str
    sha256: str
    suggestions: list[Suggestion]


def suggest_errors(
    checkpoint: Path | None,
    device: torch.device,
    given: Mapping[str, Any],
    report: Report,
    *,
    config_path: Path | None = None,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
) -> list[str]:
    """Rank likely label errors; write suggestions.json, a contact sheet and a page that shows both sides; return
    lines for the console.

    `checkpoint`, `device`, `config_path` and `overrides` are as `load_detector` takes them, `given` of `ErrorOptions`;
    `report` gets what is written. The folder is by default `labels_<checkpoint>` beside the checkpoint, or
    `<run>_labels` beside the config's run.
    """
    options = ErrorOptions.of(given)
    if options.accept:
        return accept(output_dir, options.accept, options.lang, report)
    name = options.split or ("val" if options.folds is None else "train")
    if [checkpoint, options.folds, options.predictions].count(None) != 2 or (checkpoint or config_path) is None:
        raise UserError(
            "errors compares annotations with predictions of a network that has not seen them; give one of -r CKPT, "
            "-c CONFIG --folds K (trains K networks), -c CONFIG --predictions FOLDER (of an evaluation)."
        )
    detector = None
    if checkpoint is not None:
        detector = load_detector(checkpoint_of(checkpoint), device=device, config_path=config_path, overrides=overrides)
        _require_unseen(detector, name)
        config, usual = detector.config, output_folder(detector.path, "labels")
    else:
        assert config_path is not None
        config = load_config(config_path, overrides)
        usual = config.output_dir.with_name(f"{config.output_dir.name}_labels")
    folder = output_dir or usual
    require_output_folder(folder)
    known = detector.classes if detector is not None and detector.names_classes else None
    split = build_datasets(config, (name,), classes=known).splits[name]
    if detector is not None:
        loader = build_eval_loader(config, split, split.classes, which=name)
        predictions = evaluate(replace(detector, classes=split.classes), loader, split).detections
    elif options.predictions is not None:
        predictions = _given(options.predictions, split)
    else:
        assert config_path is not None and options.folds is not None
        predictions = _out_of_fold(config_path, overrides, device, split, options.folds, folder)
    suggestions = find_label_errors(split, predictions)
    source = {"ann_file": str(split.ann_file.resolve()), "sha256": file_sha256(split.ann_file)}
    write_json(folder / SUGGESTIONS_NAME, source | {"suggestions": suggestions}, what="suggestions", indent=1)
    texts, page = texts_of(options.lang, "labels"), folder / "label_errors.html"
    _write_pages(folder, split, suggestions[: options.count], texts)
    report.wrote(folder=folder, suggestions=folder / SUGGESTIONS_NAME, page=page)
    report.metrics |= {"suggestions": len(suggestions), "images": len(split)}
    found = texts("found", count=texts.number(len(suggestions), 0), images=texts.number(len(split), 0))
    accepting = command_line("suggest_labels.py", "errors", "--output-dir", folder, "--accept", "1-20,25")
    return [found, ending(options.lang, page, accepting).rstrip()]


def accept(folder: Path | None, entries: Sequence[str], lang: Language, report: Report) -> list[str]:
    """Follow the suggestions of the given numbers: writes `corrected.json` beside suggestions.json; the annotation
    file itself stays.

    Raises:
        UserError: Bad numbers, all at once; no suggestions; or annotations that changed since.
    """
    if folder is None:
        raise UserError("--accept: name the folder of the suggestions with --output-dir.")
    path, result = folder / SUGGESTIONS_NAME, folder / "corrected.json"
    try:
        stored = TypeAdapter(_File).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: cannot be read ({reason}). Run suggest_labels.py errors first, see there.") from error
    numbers = _numbers(entries, len(stored["suggestions"]))
    ann_file = Path(stored["ann_file"])
    if not ann_file.is_file() or file_sha256(ann_file) != stored["sha256"]:
        raise UserError(
            f"{ann_file}: is gone or has changed since the suggestions were made; the numbers may mean other boxes. "
            "Run suggest_labels.py errors again."
        )
    accepted = [stored["suggestions"][number - 1] for number in numbers]
    try:
        content = corrected(json.loads(ann_file.read_bytes()), accepted)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{ann_file}: its annotations' ids are not unique whole numbers ({error}); "
            "python -m data.convert coco repairs it."
        ) from error
    write_json(result, content, what="annotations")
    report.wrote(annotations=result)
    report.metrics["accepted"] = len(numbers)
    return [texts_of(lang, "labels")("accepted", count=len(numbers)), ending(lang, result).rstrip()]


def _numbers(entries: Sequence[str], count: int) -> list[int]:
    """Suggestions by number, from 1."""
    words = []
    for entry in entries:
        is_file = Path(entry).is_file()
        words += re.split(r"[\s,;]+", Path(entry).read_text(encoding="utf-8") if is_file else entry)
    numbers: list[int] = []
    problems = []
    for word in filter(None, words):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= count:
            problems.append(f"{word}: expected a number or a range like 5-12, from 1 to {count}, or a file of them")
            continue
        numbers += range(first, last + 1)
    if problems or not numbers:
        raise UserError("--accept:", problems or ["expected the numbers of suggestions, e.g. 1-20,25"])
    return sorted(set(numbers))


def _require_unseen(detector: Detector, split: str) -> None:
    """A network agrees with the labels it was trained on, right or wrong."""
    trained = detector.checkpoint.get("config", {}).get("train_dataloader", {}).get("dataset", {}).get("ann_file")
    ours = loaders(detector.config)[f"{split}_dataloader"].dataset.ann_file
    if trained is not None and ours.resolve() == Path(trained).resolve():
        raise UserError(
            f"{detector.path}: was trained on {trained}, so it has learned the errors in it. Judge another split "
            "(--split val), or use predictions of networks that did not see the images: -c CONFIG --folds 3."
        )


def _given(folder: Path, split: CocoSplit) -> Predictions:
    """Predictions of another run, which must have judged every image of the split."""
    truth, predictions = read_evaluation(folder)
    absent = sorted({image.id for image in split.images} - set(truth.images))
    if absent:
        raise UserError(
            f"{folder}: did not judge {len(absent)} of {len(split)} images of {split.ann_file} (e.g. {absent[0]}). "
            "Name the split that it judged with --split, or evaluate that split first."
        )
    return predictions


def _out_of_fold(
    config_path: Path, overrides: Sequence[str], device: torch.device, split: CocoSplit, count: int, folder: Path
) -> Predictions:
    """Train `count` networks, each on all images but one part, and gather what each says of its part.

    A start that was interrupted goes on: folds that are complete are read, a half-trained one is resumed.
    """
    folds = folder / f"folds_{count}_{file_sha256(split.ann_file)[:8]}"
    sets = fold_sets(split, alike_groups(split)[0], count)
    every = {image.id for image in split.images}
    found = []
    for fold in range(1, count + 1):
        run = folds / f"fold_{fold}"
        settings = {"output_dir": run}
        for name in ("train", "val"):
            path = folds / f"{run.name}_{name}.json"
            write_json(path, split.without_images(every - sets[path.stem]).to_coco(), what="annotations")
            dataset = f"{name}_dataloader.dataset"
            settings |= {f"{dataset}.ann_file": path, f"{dataset}.img_folder": split.img_folder}
        lines = [as_override(key, path.resolve().as_posix()) for key, path in settings.items()]
        config = load_config(config_path, [*overrides, "synthetic=null", *lines])
        last = run / "last.pth"
        log.info("fold %d of %d: %s", fold, count, run)
        train(config, Distributed(0, 1, 0, device), run, resume=last if last.is_file() else None)
        found.append(read_evaluation(run)[1])
    return Predictions.joined(found)


def _write_pages(folder: Path, split: CocoSplit, suggestions: Sequence[Suggestion], texts: Texts) -> None:
    """Write label_errors.png/.pdf, the first ones, and label_errors.html, all of `suggestions`."""
    pairs = [_pair(split, one, number, texts) for number, one in enumerate(suggestions, start=1)]
    shown = [picture for picture in pairs[:_SHEET_PAIRS] if picture is not None]
    if shown:
        sheet = grid(shown, columns=3)
        save_picture(folder / "label_errors.png", sheet)
        save_picture(folder / "label_errors.pdf", sheet)
    names: dict[int | None, str] = dict(zip(split.classes.category_ids, map(tidy, split.classes.names), strict=True))
    files_of = {image.id: image.file_name for image in split.images}
    rows = []
    for number, (one, picture) in enumerate(zip(suggestions, pairs, strict=True), start=1):
        content = io.BytesIO()
        if picture is not None:
            Image.fromarray(picture).save(content, format="JPEG", quality=88)
        inline = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
        rows.append(
            {
                "number": number,
                "kind": texts[one["kind"]],
                "suspicion": texts.number(one["suspicion"], 2),
                "file": tidy(files_of[one["image_id"]]),
                "annotated": names.get(one["category_id"], NOTHING),
                "suggested": names.get(one["suggested_category_id"], NOTHING),
                "picture": None if picture is None else inline,
            }
        )
    page = folder / "label_errors.html"
    write_page(page, "label_errors_template.html", t=texts, rows=rows, ann_file=tidy(str(split.ann_file), 120))


def _pair(split: CocoSplit, one: Suggestion, number: int, texts: Texts) -> PixelArray | None:
    """Annotations as they are | as they would be, around the box in question; None for an image that cannot be read."""
    image = next(image for image in split.images if image.id == one["image_id"])
    try:
        pixels = decode_image(image.path)
    except (UserError, MemoryError) as error:
        log.warning("no picture: %s", error)
        return None
    x, y, w, h = np.array([box for box in (one["bbox"], one["suggested_bbox"]) if box is not None]).T
    left, top = x.min(), y.min()
    around = (left, top, (x + w).max() - left, (y + h).max() - top)
    window = window_around(around, (pixels.shape[1], pixels.shape[0]))
    part, names, rows = cut(pixels, window), split.classes.names, split.training_rows(image)
    before = {int(split.annotation_ids[row]): (split.boxes_xywh[row], int(split.labels[row])) for row in rows}
    after: dict[int | None, Any] = {key: box for key, box in before.items() if key != one["annotation_id"]}
    if one["suggested_bbox"] is not None:
        after[None] = (one["suggested_bbox"], split.classes.label_of[one["suggested_category_id"] or 0])
    left_caption = f"{number} · {texts[one['kind']]} · {texts['annotated']}"
    panels = ((before.values(), left_caption), (after.values(), texts["suggested"]))
    return grid([captioned(_drawn(part, window, boxes, names), caption) for boxes, caption in panels], columns=2)


def _drawn(
    part: PixelArray,
    window: tuple[int, int, int, int],
    boxes: Iterable[tuple[Sequence[float], int]],
    names: Sequence[str],
) -> PixelArray:
    """A square panel of the crop with the boxes (xywh and label) that reach into it."""
    left, top, right, bottom = window
    scale = _PANEL_PX / max(part.shape[:2])
    size = max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1)
    panel = np.asarray(Image.fromarray(part).resize(size), dtype=np.uint8)
    factor = np.array([size[0] / (right - left), size[1] / (bottom - top)] * 2)
    shown = [
        ([x - left, y - top, x + w - left, y + h - top] * factor, label)
        for (x, y, w, h), label in boxes
        if x < right and y < bottom and x + w > left and y + h > top
    ]
    corners = np.array([box for box, _ in shown])
    return draw_boxes(panel, corners, [label for _, label in shown], names, factor=1)
