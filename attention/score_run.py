"""`visualize_attention.py --score N`: which maps to judge, on which images of the validation split, and the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from analysis.labels import Language
from attention.backbone_maps import CLASS_TOKEN, head_maps, rollout
from attention.capture import Captured, capture
from attention.decoder_maps import sampling_points
from attention.evidence import EVIDENCE_METHODS, enlarge, evidence_map, resolve_layer
from attention.randomisation import randomise
from attention.score_tables import write_scores
from attention.scoring import MapMethod, ScoreImage, ScoreOptions, choose_images, score_maps
from attention.sources import SourceImage, open_image
from data.coco import CocoSplit
from data.errors import UserError
from data.splits import build_datasets
from engine.cli import require_output_folder
from engine.detector import Detector
from models.detector import DEIM

_STRIDES = (8, 16, 32)


def score(
    detector: Detector,
    count: int,
    folder: Path,
    *,
    lang: Language = "en",
    layer: str | None = None,
    options: ScoreOptions | None = None,
    progress: bool = True,
) -> str:
    """Judge every kind of map that the detector has on `count` images of the validation split.

    Args:
        detector: Loaded checkpoint.
        count: Images, drawn once from those that have boxes; all of them where there are no more.
        folder: Gets attention_score.md, .tex, .csv, .json and a CSV for each further table.
        lang: Of the tables.
        layer: Where class evidence is taken, see `attention.evidence.resolve_layer`.
        options: None: all defaults.
        progress: Show a bar with the time left on stderr.

    Returns:
        The Markdown that was written.

    Raises:
        UserError: `count` is not positive, the split cannot be read or has no boxes, there is no such layer, or no
            prediction hits anything.
    """
    options = options or ScoreOptions()
    if count < 1:
        raise UserError(f"--score {count}: expected the number of images to judge maps on, 1 or more, e.g. 100.")
    layer = resolve_layer(detector.model, layer).name
    require_output_folder(folder)
    classes = detector.classes if detector.names_classes else None
    split = build_datasets(detector.config, splits=("val",), classes=classes).splits["val"]
    rows = _rows_with_boxes(split)
    if not len(rows):
        raise UserError(f"{split.ann_file}: no image of this split has a box, so no map can be judged on it.")
    chosen = choose_images(rows, count, options.seed)
    scores = score_maps(
        detector.model,
        _images(detector, split, chosen.tolist()),
        map_methods(detector.model, layer),
        num_classes=len(detector.classes),
        options=options,
        randomised=randomise(detector.model, detector.config, options.seed),
        total=len(chosen),
        progress=progress,
    )
    facts = {
        "checkpoint": detector.path.name,
        "sha256": detector.sha256,
        "split": split.name,
        "layer": layer,
        "classes": list(detector.classes.names),
        "options": asdict(options),
    }
    return write_scores(scores, folder, lang, facts)


def map_methods(model: nn.Module, layer: str | None) -> list[MapMethod]:
    """Every kind of map that tells something about a query of this model; CNN baselines have no attention."""
    methods = [MapMethod(name, partial(_evidence, method=name, layer=layer)) for name in EVIDENCE_METHODS]
    if isinstance(model, DEIM):
        methods += [
            MapMethod("cls_attention", _cls_attention),
            MapMethod("rollout", _rollout),
            MapMethod("sampling", _sampling),
        ]
    return methods


def sampling_density(captured: Captured, query: int) -> Tensor:
    """How much a query read from every place, over all decoder layers: float32 [H/8, W/8], >= 0.

    Every sampling point's weight goes to the four cells of its level that the bilinear reading mixes; cells of the
    coarser levels are then spread over the finer ones. Points outside the image read nothing and count for nothing.
    """
    height, width = captured.image_size_hw
    levels = [np.zeros((height // stride, width // stride), dtype=np.float32) for stride in _STRIDES]
    for layer in range(len(captured.cross_attention)):
        points = sampling_points(captured, layer, query)
        for level, cells in enumerate(levels):
            here = points.levels == level
            _splat(cells, points.points_xy[here], points.weights[here])
    finest = levels[0]
    size_hw = (finest.shape[0], finest.shape[1])
    spread = [enlarge(torch.from_numpy(cells), size_hw) * (cells.size / finest.size) for cells in levels]
    return torch.stack(spread).sum(dim=0)


def _splat(cells: np.ndarray, points_xy: np.ndarray, weights: np.ndarray) -> None:
    """Add `weights` [P] at `points_xy` [P, 2] (0..1) to `cells` [h, w] in place, as bilinear reading mixes them."""
    height, width = cells.shape
    column, row = points_xy[:, 0] * width - 0.5, points_xy[:, 1] * height - 0.5
    left, top = np.floor(column).astype(np.int64), np.floor(row).astype(np.int64)
    for x, share_x in ((left, left + 1 - column), (left + 1, column - left)):
        for y, share_y in ((top, top + 1 - row), (top + 1, row - top)):
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            np.add.at(cells, (y[inside], x[inside]), (weights * share_x * share_y)[inside])


def _evidence(model: nn.Module, image: Tensor, query: int, label: int, *, method: str, layer: str | None) -> Tensor:
    chosen = next(name for name in EVIDENCE_METHODS if name == method)
    return evidence_map(model, image, query, label, chosen, layer)


def _cls_attention(model: nn.Module, image: Tensor, _query: int, _label: int) -> Tensor:
    """Mean over heads of the last block that runs."""
    captured = capture(model, image)
    return torch.from_numpy(head_maps(captured, len(captured.vit_layers) - 1, [CLASS_TOKEN]).maps).mean(dim=0)


def _rollout(model: nn.Module, image: Tensor, _query: int, _label: int) -> Tensor:
    return torch.from_numpy(rollout(capture(model, image), [CLASS_TOKEN]))


def _sampling(model: nn.Module, image: Tensor, query: int, _label: int) -> Tensor:
    return sampling_density(capture(model, image), query)


def _rows_with_boxes(split: CocoSplit) -> np.ndarray:
    return np.array([k for k, image in enumerate(split.images) if len(split.training_rows(image))], dtype=np.int64)


def _images(detector: Detector, split: CocoSplit, rows: list[int]) -> Iterator[ScoreImage]:
    """Prepared as in evaluation, one at a time; crowd boxes are left out."""
    for row in rows:
        record = split.images[row]
        boxes = split.training_rows(record)
        opened = open_image(SourceImage(record.path, record.path.stem, None), detector)
        size = np.array(opened.size_wh * 2, dtype=np.float32)
        yield ScoreImage(
            record.id,
            opened.network_input,
            torch.from_numpy(split.boxes_xyxy[boxes] / size),
            torch.from_numpy(split.labels[boxes]),
        )
