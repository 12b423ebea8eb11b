"""Do what `visualize_attention.py` is asked for: figures of images, and with `--score N` tables that judge the maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from analysis.tables import Cell, Number, Table, escape_markdown, for_console, format_number, write_tables
from attention.capture import Captured, capture
from attention.evidence import DrawMap, evidence_methods, resolve_layer
from attention.faithfulness import (
    CENTRE,
    KINDS,
    METRICS,
    RANDOM,
    Estimate,
    Kind,
    ScoreImage,
    ScoreOptions,
    Scores,
    choose_images,
    randomise,
    score_maps,
)
from attention.maps import CLASS_TOKEN, MapArray, head_maps, rollout, sampling_density
from attention.perturbation import DRise
from attention.run import ViewOptions, find_images, open_image, validation_split, visualize
from data.coco import CocoSplit
from data.errors import UserError
from data.script import Report
from engine.cli import command_line, ending, require_output_folder, resolve_device
from engine.detector import Detector, load_detector
from engine.named_files import checkpoint_of
from models.detector import DEIM
from models.hub import output_folder
from texts import Language, texts_of

FILE_NAME = "attention_score"
_TABLES: dict[Kind, tuple[str, str, str]] = {
    "tp": ("scores", "differences", "randomisation"),
    "fp": ("fp", "fp_differences", "fp_randomisation"),
    "fn": ("fn", "fn_differences", "fn_randomisation"),
}
"""Their names in `attention_score_<name>.csv`."""


def look(options: Mapping[str, Any], command: Sequence[str], say: Callable[[str], object], report: Report) -> None:
    """Draw and judge what the options of `visualize_attention.py` ask for; `say` and `report` get what came of it.

    Raises:
        UserError: Bad input of any kind.
    """
    count, path = options["score"], checkpoint_of(options["resume"])
    seen = ViewOptions.of(options)
    judged = None if count is None else ScoreOptions.of({**options, "score_threshold": options["min_score"]})
    folder = options["output_dir"] or output_folder(path, "attention")
    require_output_folder(folder)
    device, config = resolve_device(options["device"]), options["config"]
    detector = load_detector(path, device=device, config_path=config, overrides=options["update"])
    if options["images"] or options["from_val"] or judged is None:
        images = find_images(options["images"], options["from_val"], detector)
        drawn = visualize(detector, images, folder, seen, command=command)
        next_step = command_line("visualize_attention.py", "-r", path, "--score", 100) if judged is None else ""
        say(f"{drawn.summary()}\n{ending(seen.lang, folder, next_step)}")
        report.wrote(folder=folder)
        report.metrics |= {"images": drawn.num_images, "figures": drawn.num_figures}
        report.problems += drawn.left_out
    if judged is not None:
        layer, lang = options["evidence_layer"], options["lang"]
        table = score(detector, count, folder / "score", options=judged, lang=lang, layer=layer)
        say(f"{for_console(table)}\n{ending(lang, folder / 'score')}")
        report.wrote(score=folder / "score" / f"{FILE_NAME}.json")


def score(
    detector: Detector,
    count: int,
    folder: Path,
    *,
    options: ScoreOptions,
    lang: Language = "en",
    layer: str | None = None,
    progress: bool = True,
) -> str:
    """Judge every kind of map that the detector has on `count` images of the validation split, drawn once from those
    that have boxes (from all of them for false alarms), with evidence taken at `layer`.

    `folder` gets attention_score.md, .tex, .csv, .json and a CSV for each further table. Returns the Markdown.

    Raises:
        UserError: `count` is not positive, the split cannot be read or has no boxes, there is no such layer, or
            nothing to explain.
    """
    if count < 1:
        raise UserError(f"--score {count}: expected the number of images to judge maps on, 1 or more, e.g. 100.")
    layer = resolve_layer(detector.model, layer).name
    require_output_folder(folder)
    split = validation_split(detector)
    rows = np.flatnonzero([len(split.training_rows(image)) for image in split.images])
    if not len(rows):
        raise UserError(f"{split.ann_file}: no image of this split has a box, so no map can be judged on it.")
    if "fp" in options.on:
        rows = np.arange(len(split.images))
    methods = map_methods(detector.model, layer)
    if options.drise_masks:
        how = {"seed": options.seed, "batch_size": options.batch_size}
        methods["drise"] = DRise(options.drise_masks, len(detector.classes), progress=progress, **how)
    chosen = choose_images(rows, count, options.seed)
    scores = score_maps(
        detector.model,
        _images(detector, split, chosen.tolist()),
        methods,
        num_classes=len(detector.classes),
        options=options,
        randomised=randomise(detector.model, detector.config, options.seed),
        total=len(chosen),
        progress=progress,
    )
    content = {
        "checkpoint": detector.path.name,
        "sha256": detector.sha256,
        "split": split.name,
        "layer": layer,
        "classes": list(detector.classes.names),
        "options": options.model_dump(),
        "num_images": len(scores.image_ids),
        "image_ids": list(scores.image_ids),
        "seconds_per_image": dict(zip(scores.methods, scores.seconds.tolist(), strict=True)),
    }
    by_kind = {kind: scores.of(kind) for kind in KINDS if kind in options.on}
    tables = {kind: _tables(of, kind, lang) for kind, of in by_kind.items()}
    markdown = _markdown(by_kind, tables, lang, content)
    content |= {kind: _to_json(of) for kind, of in by_kind.items()}
    every = {name: table for of_kind in tables.values() for name, table in of_kind.items()}
    possible = [name for names in _TABLES.values() for name in names]
    write_tables(folder, FILE_NAME, every, lang, markdown=markdown, content=content, possible=possible)
    return markdown


def map_methods(model: nn.Module, layer: str | None) -> dict[str, DrawMap]:
    """Return every kind of map that tells something about a query of this model; CNN baselines have no attention."""
    methods = evidence_methods(layer)
    if isinstance(model, DEIM):
        methods |= {
            "cls_attention": _captured(
                lambda seen, _: head_maps(seen, len(seen.vit_layers) - 1, [CLASS_TOKEN])[0].mean(0)
            ),
            "rollout": _captured(lambda seen, _: rollout(seen, [CLASS_TOKEN])),
            "sampling": _captured(sampling_density),
            "decoder_rollout": _captured(partial(sampling_density, through_queries=True)),
        }
    return methods


def _captured(read: Callable[[Captured, int], MapArray]) -> DrawMap:
    """A map of a query that is read in what one pass through DEIMv2 leaves."""
    return lambda model, image, query, _label: torch.from_numpy(read(capture(model, image), query))


def _images(detector: Detector, split: CocoSplit, rows: list[int]) -> Iterator[ScoreImage]:
    """Prepared as in evaluation, one at a time."""
    for row in rows:
        record = split.images[row]
        pixels, image = open_image(record.path, detector)
        size = np.array([pixels.shape[1], pixels.shape[0]] * 2, dtype=np.float32)
        truths = split.training_rows(record)
        crowds = np.setdiff1d(np.arange(record.rows.start, record.rows.stop), truths)
        (boxes, labels), (crowd_boxes, crowd_labels) = (
            (torch.from_numpy(split.boxes_xyxy[rows] / size), torch.from_numpy(split.labels[rows]))
            for rows in (truths, crowds)
        )
        yield ScoreImage(record.id, image, boxes, labels, crowd_boxes, crowd_labels)


def _tables(scores: Scores, kind: Kind, lang: Language) -> dict[str, Table]:
    """Of one kind of objects, if there are any: its scores, their differences from the centre prior and, where the
    check was made, randomisation."""
    if not scores.objects:
        return {}
    texts, methods = texts_of(lang, "attention_score"), texts_of(lang, "attention_methods")
    size = {"objects": len(scores.objects), "images": len(scores.image_ids), "reference": methods[CENTRE]}
    start, label = (f"{texts[kind]}. " if len(scores.options.on) > 1 else ""), "" if kind == "tp" else f"{kind}-"
    estimates = scores.estimates()
    wanted = (
        ("score", estimates, METRICS),
        ("differences", scores.estimates(CENTRE), METRICS),
        ("randomisation", estimates, scores.names[len(METRICS) :]),
    )
    tables = {}
    for name, (caption, of_methods, values) in zip(_TABLES[kind], wanted, strict=True):
        if not values:
            continue
        rows: list[list[Cell]] = []
        for method, one in of_methods.items():
            numbers = (
                Number(one[value].value, interval=one[value].interval, signed=caption == "differences")
                for value in values
            )
            rows.append([methods[method], *numbers])
        columns = [texts["method"], *(texts[value] for value in values)]
        if caption == "score":
            columns.append(texts["seconds"])
            for row, seconds in zip(rows, scores.seconds.tolist(), strict=True):
                row.append(Number(seconds, 2))
        words = start + texts(f"{caption}_caption", **size)
        tables[name] = Table(columns, rows, words, f"tab:attention-{label}{caption}")
    return tables


def _markdown(
    by_kind: Mapping[Kind, Scores], tables: Mapping[Kind, Mapping[str, Table]], lang: Language, facts: Mapping[str, Any]
) -> str:
    """The whole score as one page."""
    texts, scores = texts_of(lang, "attention_score"), next(iter(by_kind.values()))
    options = scores.options
    named = {name: escape_markdown(str(facts[name])) for name in ("checkpoint", "split", "layer")}
    about = {"images": len(scores.image_ids), "samples": options.samples, "seed": options.seed}
    parts = [f"# {texts['title']}", texts("intro", **named, **about)]
    least, iou = format_number(options.score_threshold, 2, lang), format_number(options.iou_threshold, 2, lang)
    for kind, of in by_kind.items():
        parts += [f"## {texts[kind]}"] if len(by_kind) > 1 else []
        parts.append(texts(f"{kind}_intro", objects=len(of.objects), truths=of.num_truths, score=least, iou=iou))
        parts += [table.to_markdown(lang) for table in tables[kind].values()]
    removed = texts(f"note_perturbation_{options.baseline}", steps=options.steps)
    notes = [texts["note_energy"], texts["note_pointing"], removed, texts["note_road"], texts["note_follow"]]
    notes += [texts["note_chance"], texts["note_odam"], texts["note_seconds"]]
    notes += [texts("note_drise", masks=options.drise_masks)] if options.drise_masks else []
    notes += [texts["note_randomised"]] if scores.randomised else []
    notes += [texts["note_sampling"]] if "sampling" in scores.methods else []
    listed = "\n".join(f"- {note}" for note in notes)
    return "\n\n".join([*parts, f"{texts['notes']}:", listed]) + "\n"


def _to_json(scores: Scores) -> dict[str, Any]:
    """Every number, unrounded; null where nothing could be measured. Keys are English whatever the language."""

    def plain(estimates: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
        return {
            method: {name: one._asdict() | {"interval": one.interval and [*one.interval]} for name, one in of.items()}
            for method, of in estimates.items()
        }

    def values(row: int, method: int) -> dict[str, float | None]:
        numbers = scores.values[method, row].tolist()
        return {name: None if math.isnan(x) else x for name, x in zip(scores.names, numbers, strict=True)}

    return {
        "num_truths": scores.num_truths,
        "num_objects": len(scores.objects),
        "methods": plain(scores.estimates()),
        "differences_from_centre": plain(scores.estimates(CENTRE)),
        "differences_from_random": plain(scores.estimates(RANDOM)),
        "objects": [
            {
                "image_id": one.image_id,
                "label": one.label,
                "query": one.query,
                "score": one.score,
                "iou": one.iou,
                "truth_xyxy": one.truth.tolist(),
                "box_xyxy": one.box.tolist(),
                "values": {method: values(row, m) for m, method in enumerate(scores.methods)},
            }
            for row, one in enumerate(scores.objects)
        ],
    }
