"""Matches drawn from a known population, without boxes: AP of the population is AP of very many images."""

from __future__ import annotations

import numpy as np

from analysis.matching import AREA_RANGES_PX2, IGNORED, IOU_THRESHOLDS, TRUE_POSITIVE, Boxes, Matches


def simulate(rng: np.random.Generator, num_images: int, *, skill: float = 1.0) -> Matches:
    """Two classes; images differ in difficulty, so that detections of one image are not independent."""
    difficulty = rng.beta(2, 3, num_images)
    columns = []
    counts = np.zeros((len(AREA_RANGES_PX2), num_images, 2), dtype=np.int32)
    for label, rate in enumerate((1.5, 0.7)):
        boxes = rng.poisson(rate, num_images)
        counts[:, :, label] = boxes
        owner = np.repeat(np.arange(num_images), boxes)
        iou = np.clip(rng.normal(skill * (1.05 - 0.6 * difficulty[owner]), 0.15), 0, 0.999)
        score = np.clip(0.7 * iou + rng.normal(0, 0.15, len(owner)), 0, 1)
        stray = np.repeat(np.arange(num_images), rng.poisson(1 + 3 * difficulty))
        columns.append(
            (
                np.concatenate([owner, stray]),
                np.concatenate([score, np.clip(rng.normal(0.25, 0.15, len(stray)), 0, 1)]),
                np.concatenate([iou, np.zeros(len(stray))]),
            )
        )
    orders = [np.argsort(-score, kind="stable") for _, score, _ in columns]
    ious = np.concatenate([iou[order] for (_, _, iou), order in zip(columns, orders, strict=True)])
    hits = (ious >= IOU_THRESHOLDS[:, None]).astype(np.int8) * TRUE_POSITIVE
    outcomes = np.full((len(AREA_RANGES_PX2), *hits.shape), IGNORED, dtype=np.int8)
    outcomes[0] = hits
    owner, score = (np.concatenate([c[k][order] for c, order in zip(columns, orders, strict=True)]) for k in (0, 1))
    num = len(score)
    labels = np.repeat([0, 1], [len(order) for order in orders])
    found = Boxes(owner, labels, np.zeros((num, 4)), np.zeros(num), score, np.zeros(num, dtype=bool))
    return Matches(
        names=("a", "b"),
        gt_hash="simulated",
        image_ids=np.arange(num_images, dtype=np.int64),
        truth=found.at(np.zeros(0, dtype=np.int64)),
        found=found,
        outcomes=outcomes,
        truth_of=np.full(num, -1),
        gt_counts=counts,
    )
