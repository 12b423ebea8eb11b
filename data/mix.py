"""Augmentations that mix images: Mosaic, MixUp, CopyBlend; the size of a batch (docs/deimv2.md, Mosaic / Collate).

Nothing that is passed in is changed: every function returns new tensors. Draws come from the generator passed in.

Legend: B images, N boxes of one image, H, W image size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import cv2
import numpy as np
import torch
from torch import Tensor

from data.batch import Target
from data.config import CollateConfig, MosaicOp
from data.scene import Matrix, Scene, Tile
from data.schedule import EpochPlan

_HAIR_PX = 1e-3


def mosaic(sources: Sequence[Scene], op: MosaicOp, rng: np.random.Generator) -> Scene:
    """Lay four images on one canvas, turned, shifted and scaled together (docs/deimv2.md, Mosaic).

    `sources` are four images as they are (`scene_of`); the first lies at the top left. Boxes of the canvas are hulls of
    the turned boxes, clipped to it; those that left it have no area.
    """
    sizes = [shorter_side(source.size_hw, op.output_size) for source in sources]
    tile_h, tile_w = (max(size[axis] for size in sizes) for axis in (0, 1))
    tiles, boxes = [], []
    places = ((0, 0), (tile_w, 0), (0, tile_h), (tile_w, tile_h))
    for source, (height, width), (x, y) in zip(sources, sizes, places, strict=True):
        tiles.append(Tile(source.tiles[0].source, (x, y, x + width, y + height)))
        own_h, own_w = source.size_hw
        boxes.append(source.boxes_xyxy * np.tile([width / own_w, height / own_h], 2) + (x, y, x, y))
    size_hw = (2 * tile_h, 2 * tile_w)
    canvas = Scene(
        tiles=tuple(tiles),
        canvas_hw=size_hw,
        matrix=np.eye(3),
        size_hw=size_hw,
        window_xyxy=np.array([0.0, 0.0, 2 * tile_w, 2 * tile_h]),
        boxes_xyxy=np.concatenate(boxes),
        labels=np.concatenate([source.labels for source in sources]),
        pseudo=np.concatenate([source.pseudo for source in sources]),
        fill=op.fill_value,
    )
    affine = _affine_matrix(2 * tile_w, 2 * tile_h, op, rng)
    detail = min(1.0, math.hypot(affine[0, 0], affine[1, 0]))  # the original turns by nearest neighbour
    # What turns in from outside is canvas, too.
    return replace(canvas.moved(affine, size_hw), window_xyxy=canvas.window_xyxy, detail=detail)


def shorter_side(size_hw: tuple[int, int], side: int) -> tuple[int, int]:
    """Return height and width of a mosaic's tile: the shorter side has `side` pixels; the aspect is kept."""
    height, width = size_hw
    longer = max(1, math.floor(side * max(height, width) / min(height, width)))
    return (side, longer) if height <= width else (longer, side)


def _affine_matrix(width: int, height: int, op: MosaicOp, rng: np.random.Generator) -> Matrix:
    """3 x 3, from canvas to turned canvas; a pixel's centre is at its index + 0.5."""
    angle = math.radians(rng.uniform(-op.rotation_range, op.rotation_range))
    shift_x = round(rng.uniform(-1, 1) * op.translation_range[0] * width)
    shift_y = round(rng.uniform(-1, 1) * op.translation_range[1] * height)
    scale = rng.uniform(*op.scaling_range)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    centre_x, centre_y = width / 2, height / 2
    return np.array(
        [
            [cos, -sin, centre_x + shift_x - cos * centre_x + sin * centre_y],
            [sin, cos, centre_y + shift_y - sin * centre_x - cos * centre_y],
            [0.0, 0.0, 1.0],
        ]
    )


def mixup(images: Tensor, targets: Sequence[Target], rng: np.random.Generator) -> tuple[Tensor, list[Target]]:
    """Blend each image with the one before it, boxes of both (docs/deimv2.md, Collate).

    A single image has no partner and stays as it is: blended with itself it would only double its boxes.

    Images are uint8 [B, 3, H, W]; the one weight of the batch is drawn from U(0.45, 0.55).
    """
    if len(targets) < 2:
        return images, list(targets)
    weight = round(rng.uniform(0.45, 0.55), 6)
    mixed = _blend(images, images.roll(1, dims=0), weight)
    return mixed, [_joined(own, targets[index - 1]) for index, own in enumerate(targets)]


def copyblend(
    images: Tensor,
    targets: Sequence[Target],
    config: CollateConfig,
    rng: np.random.Generator,
    *,
    area_threshold: float | None = None,
) -> tuple[Tensor, list[Target]]:
    """Blend objects of the batch into every image at random places (docs/deimv2.md, Collate).

    Patches come from the images as they are, uint8 [B, 3, H, W], not from earlier pastes; one weight for the batch is
    drawn from U(0.45, 0.55). `area_threshold` is in square pixels of these images; the config's if None.
    """
    area_threshold = config.area_threshold if area_threshold is None else area_threshold
    pool = [
        (source, row)
        for source, target in enumerate(targets)
        for row in torch.nonzero(target["area"] >= area_threshold).flatten().tolist()
    ]
    if not pool:
        return images, list(targets)
    weight = round(rng.uniform(0.45, 0.55), 6) if config.copyblend_type == "blend" else 0.0
    result, results = images.clone(), []
    for index, target in enumerate(targets):
        count = min(config.num_objects, len(pool))
        if config.random_num_objects:
            count = int(rng.integers(1, count + 1))
        pasted = []
        for choice in rng.choice(len(pool), size=count, replace=False).tolist():
            source, row = pool[choice]
            entry = _paste_object(images[source], targets[source], row, result[index], weight, config, rng)
            if entry is not None:
                pasted.append(entry)
        results.append(_joined(target, *pasted))
    return result, results


def _paste_object(
    source_image: Tensor,
    source: Target,
    row: int,
    image: Tensor,
    weight: float,
    config: CollateConfig,
    rng: np.random.Generator,
) -> Target | None:
    """Blend one object into `image` (in place: the caller's copy); its new target, None if it has no pixels."""
    height, width = image.shape[-2:]
    x0, y0, x1, y1 = _pixel_box(source["boxes"][row], width, height)
    w, h = x1 - x0, y1 - y0
    if w <= 0 or h <= 0:
        return None
    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    margins = (0, 0, 0, 0)
    if config.with_expand:
        ratio = rng.uniform(*config.expand_ratios)
        margins = (
            min(int(ratio * w), x0, left),
            min(int(ratio * h), y0, top),
            min(int(ratio * w), width - x1, width - left - w),
            min(int(ratio * h), height - y1, height - top - h),
        )
    patch = source_image[:, y0 - margins[1] : y1 + margins[3], x0 - margins[0] : x1 + margins[2]]
    place = image[:, top - margins[1] : top + h + margins[3], left - margins[0] : left + w + margins[2]]
    place.copy_(_blend(place, patch, weight) if weight else patch)
    box = torch.tensor([[(left + w / 2) / width, (top + h / 2) / height, w / width, h / height]])
    pasted = Target(labels=source["labels"][row : row + 1], boxes=box, area=torch.tensor([float(w * h)]))
    if "pseudo" in source:
        pasted["pseudo"] = source["pseudo"][row : row + 1]
    return pasted


def _pixel_box(box_cxcywh: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """Corners truncated to whole pixels, clipped to the image.

    An edge that float32 puts a hair below a whole pixel (19.999998 for 20) counts as that pixel.
    """
    cx, cy, w, h = box_cxcywh.tolist()
    left, right = (int(max(x, 0.0) * width + _HAIR_PX) for x in (cx - w / 2, cx + w / 2))
    top, bottom = (int(max(y, 0.0) * height + _HAIR_PX) for y in (cy - h / 2, cy + h / 2))
    return left, top, min(right, width), min(bottom, height)


def batch_size_hw(
    size_hw: tuple[int, int], plan: EpochPlan, base_size: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Draw the height and width of all images of a batch, multi-scale (docs/deimv2.md, Collate).

    Square images become square; others keep their aspect, in steps of 32 pixels. The batch's side is known before
    its images are made, so they are drawn at it: the original draws at `size_hw` and resizes the batch afterwards,
    by nearest neighbour.

    `size_hw` is the Resize op's, for which `base_size` stands.
    """
    if not plan.sides:
        return size_hw
    side = plan.sides[int(rng.integers(len(plan.sides)))]
    height, width = size_hw
    if height == width:
        return side, side
    factor = side / base_size / 32
    return max(1, round(height * factor)) * 32, max(1, round(width * factor)) * 32


def mix_batch(
    images: Tensor,
    targets: Sequence[Target],
    plan: EpochPlan,
    config: CollateConfig,
    rng: np.random.Generator,
    *,
    size_hw: tuple[int, int],
) -> tuple[Tensor, list[Target]]:
    """Mix a whole batch in training: at most one of MixUp and CopyBlend.

    `size_hw` is the Resize op's: `area_threshold` is meant in pixels of that size, whatever multi-scale made of it.
    """
    if rng.random() < plan.mixup_prob:
        return mixup(images, targets, rng)
    if rng.random() < plan.copyblend_prob:
        scale = images.shape[-2] * images.shape[-1] / (size_hw[0] * size_hw[1])
        return copyblend(images, targets, config, rng, area_threshold=config.area_threshold * scale)
    return images, list(targets)


def _blend(a: Tensor, b: Tensor, weight_of_a: float) -> Tensor:
    """Rounded weighted mean of two uint8 tensors. OpenCV needs a tenth of torch's time, which goes by way of float."""
    rows_a, rows_b = (np.ascontiguousarray(x.numpy()).reshape(-1, x.shape[-1]) for x in (a, b))
    return torch.from_numpy(cv2.addWeighted(rows_a, weight_of_a, rows_b, 1 - weight_of_a, 0.0)).reshape(a.shape)


def _joined(*targets: Target) -> Target:
    known = [cast("dict[str, Tensor]", target) for target in targets]
    return cast(Target, {key: torch.cat([target[key] for target in known]) for key in known[0]})
