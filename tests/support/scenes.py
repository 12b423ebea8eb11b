"""Small scenes written by hand: boxes as (image, class, box xywh), detections with a score."""

from collections.abc import Sequence

import numpy as np

from data.classes import ClassMap
from engine.metrics import GroundTruth, Predictions

Box = tuple[float, float, float, float]
CLASSES = ClassMap((1, 2, 5), ("hole", "scratch", "NORMAL"))


def scene(
    boxes: Sequence[tuple[int, str, Box]],
    detections: Sequence[tuple[int, str, Box, float]],
    *,
    crowds: Sequence[tuple[int, str, Box]] = (),
    num_images: int = 3,
) -> tuple[GroundTruth, Predictions]:
    """Images 1, 2, ... of classes hole, scratch and NORMAL."""
    ids = dict(zip(CLASSES.names, CLASSES.category_ids, strict=True))
    annotations = [
        {"image_id": image, "category_id": ids[name], "bbox": list(box), "area": box[2] * box[3], "iscrowd": crowd}
        for crowd, group in enumerate((boxes, crowds))
        for image, name, box in group
    ]
    corners = np.array([box for _, _, box, _ in detections], dtype=float).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    found = Predictions.from_xyxy(
        np.array([image for image, *_ in detections], dtype=np.int64),
        np.array([ids[name] for _, name, *_ in detections], dtype=np.int64),
        np.array([score for *_, score in detections], dtype=float),
        corners,
    )
    return GroundTruth({image: f"{image}.png" for image in range(1, num_images + 1)}, annotations, CLASSES), found
