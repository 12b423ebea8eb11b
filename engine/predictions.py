"""Pictures of what a model found on a split, beside the ground truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.classes import ClassMap
from data.coco import CocoSplit
from data.images import decode_image
from engine.coco_metrics import Prediction
from engine.pictures import Picture, SheetExample, prediction_panels, prediction_sheet, save_pdf, save_png

SHEET_IMAGES = 12


def prediction_examples(
    split: CocoSplit, predictions: Sequence[Prediction], classes: ClassMap, *, count: int
) -> list[SheetExample]:
    """`count` images spread evenly over the split, with their true and predicted boxes (pixels)."""
    chosen = np.unique(np.linspace(0, len(split.images) - 1, count).round().astype(int))
    wanted = {split.images[i].id for i in chosen}
    by_image: dict[int, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        if prediction["image_id"] in wanted:
            by_image[prediction["image_id"]].append(prediction)
    examples = []
    for index in chosen:
        record = split.images[index]
        found = by_image[record.id]
        boxes_xywh = np.asarray([p["bbox"] for p in found], dtype=np.float64).reshape(-1, 4)
        rows = split.training_rows(record)
        examples.append(
            SheetExample(
                image=decode_image(record.path),
                true_boxes=split.boxes_xyxy[rows],
                true_labels=split.labels[rows].tolist(),
                predicted_boxes=np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1),
                predicted_labels=[classes.label_of[p["category_id"]] for p in found],
                predicted_scores=[p["score"] for p in found],
                title=record.file_name,
            )
        )
    return examples


def prediction_pictures(
    split: CocoSplit, predictions: Sequence[Prediction], classes: ClassMap, *, count: int
) -> list[Picture]:
    """One picture an image: image, ground truth and predictions side by side."""
    return [
        prediction_panels(example, classes.names)
        for example in prediction_examples(split, predictions, classes, count=count)
    ]


def write_prediction_sheets(
    folder: Path, split: CocoSplit, predictions: Sequence[Prediction], classes: ClassMap
) -> None:
    """Write predictions.png and predictions.pdf into `folder`.

    Raises:
        UserError: They cannot be written.
    """
    examples = prediction_examples(split, predictions, classes, count=SHEET_IMAGES)
    sheet = prediction_sheet(examples, classes.names)
    save_png(folder / "predictions.png", sheet)
    save_pdf(folder / "predictions.pdf", sheet)
