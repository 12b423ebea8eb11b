"""Augmentations that mix images: Mosaic, MixUp, CopyBlend, multi-scale (spec sections 10.2 and 10.4).

Nothing is changed in place: every function returns new tensors. Draws come from the generator passed in.

Legend: B images, N boxes of one image, H, W image size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.batch import Target
from data.config import CollateConfig, MosaicOp
from data.schedule import EpochPlan
from data.transforms import LabelledImage, resized_shorter_side

Matrix = npt.NDArray[np.float64]

_HAIR_PX = 1e-3


def mosaic(sources: Sequence[LabelledImage], op: MosaicOp, rng: np.random.Generator) -> LabelledImage:
    """Four images on one canvas, turned, shifted and scaled together (spec section 10.2).

    Args:
        sources: Four images; the first lies at the top left.
        op: Its `use_cache`, `max_cached_images` and `random_pop` have no effect: partners are drawn from the whole
            data set by the sample's own seed, so that no sample depends on what a worker has seen before.
        rng: Draws angle, shift and scale.

    Returns:
        The canvas; boxes are hulls of the turned boxes, clipped to it. Boxes that left it have no area.
    """
    tiles = [resized_shorter_side(source, op.output_size) for source in sources]
    tile_h, tile_w = (max(tile.size_hw[axis] for tile in tiles) for axis in (0, 1))
    canvas = np.full((2 * tile_h, 2 * tile_w, 3), op.fill_value, dtype=np.uint8)
    boxes = []
    for tile, (x, y) in zip(tiles, ((0, 0), (tile_w, 0), (0, tile_h), (tile_w, tile_h)), strict=True):
        height, width = tile.size_hw
        canvas[y : y + height, x : x + width] = tile.image.permute(1, 2, 0).numpy()
        boxes.append(tile.boxes_xyxy + (x, y, x, y))
    matrix = _affine_matrix(canvas.shape[1], canvas.shape[0], op, rng)
    turned = cv2.warpAffine(
        canvas,
        _in_pixel_indices(matrix)[:2],
        (canvas.shape[1], canvas.shape[0]),
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(op.fill_value,) * 3,
    )
    result = LabelledImage(
        torch.from_numpy(turned).permute(2, 0, 1),
        np.empty((0, 4)),
        np.concatenate([tile.labels for tile in tiles]),
    )
    return result.with_boxes(result.image, _hulls(np.concatenate(boxes), matrix))


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


def _in_pixel_indices(matrix: Matrix) -> Matrix:
    """The same map where a pixel's centre is at its index, as OpenCV has it."""
    half = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    result: Matrix = np.linalg.inv(half) @ matrix @ half
    return result


def _hulls(boxes_xyxy: Matrix, matrix: Matrix) -> Matrix:
    """[N, 4] -> [N, 4]: upright boxes around the mapped corners."""
    corners = boxes_xyxy[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # [N, 4, 2]
    mapped = corners @ matrix[:2, :2].T + matrix[:2, 2]
    return np.concatenate([mapped.min(axis=1), mapped.max(axis=1)], axis=1)


def mixup(images: Tensor, targets: Sequence[Target], rng: np.random.Generator) -> tuple[Tensor, list[Target]]:
    """Each image blended with the one before it, boxes of both (spec section 10.4).

    A single image has no partner and stays as it is: blended with itself it would only double its boxes.

    Args:
        images: uint8 [B, 3, H, W].
        targets: B.
        rng: Draws the one weight of the batch, U(0.45, 0.55).
    """
    if len(targets) < 2:
        return images, list(targets)
    weight = round(rng.uniform(0.45, 0.55), 6)
    mixed = _blend(images, images.roll(1, dims=0), weight)
    return mixed, [_joined(own, targets[index - 1]) for index, own in enumerate(targets)]


def copyblend(
    images: Tensor, targets: Sequence[Target], config: CollateConfig, rng: np.random.Generator
) -> tuple[Tensor, list[Target]]:
    """Objects of the batch blended into every image at random places (spec section 10.4).

    Args:
        images: uint8 [B, 3, H, W]. Patches come from these, not from earlier pastes.
        targets: B.
        config: `area_threshold`, `num_objects`, `random_num_objects`, `with_expand`, `expand_ratios`,
            `copyblend_type`.
        rng: Draws objects, places, margins and the one weight of the batch, U(0.45, 0.55).
    """
    pool = [
        (source, row)
        for source, target in enumerate(targets)
        for row in torch.nonzero(target["area"] >= config.area_threshold).flatten().tolist()
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
    return Target(labels=source["labels"][row : row + 1], boxes=box, area=torch.tensor([float(w * h)]))


def _pixel_box(box_cxcywh: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """Corners truncated to whole pixels, clipped to the image.

    An edge that float32 puts a hair below a whole pixel (19.999998 for 20) counts as that pixel.
    """
    cx, cy, w, h = box_cxcywh.tolist()
    left, right = (int(max(x, 0.0) * width + _HAIR_PX) for x in (cx - w / 2, cx + w / 2))
    top, bottom = (int(max(y, 0.0) * height + _HAIR_PX) for y in (cy - h / 2, cy + h / 2))
    return left, top, min(right, width), min(bottom, height)


def resize_batch(images: Tensor, targets: Sequence[Target], size_hw: tuple[int, int]) -> tuple[Tensor, list[Target]]:
    """Multi-scale: all images to one size, nearest neighbour; areas follow, boxes are relative and stay."""
    if tuple(images.shape[-2:]) == size_hw:
        return images, list(targets)
    resized = torch.nn.functional.interpolate(images, size=size_hw, mode="nearest")
    return resized, [with_area(target, size_hw) for target in targets]


def with_area(target: Target, size_hw: tuple[int, int]) -> Target:
    """The target with areas computed from its boxes, in pixels of an image of that size."""
    area = target["boxes"][:, 2] * target["boxes"][:, 3] * (size_hw[0] * size_hw[1])
    return Target(labels=target["labels"], boxes=target["boxes"], area=area)


def mix_batch(
    images: Tensor, targets: Sequence[Target], plan: EpochPlan, config: CollateConfig, rng: np.random.Generator
) -> tuple[Tensor, list[Target]]:
    """What happens to a whole batch in training: at most one of MixUp and CopyBlend, then multi-scale."""
    mixed = list(targets)
    if rng.random() < plan.mixup_prob:
        images, mixed = mixup(images, mixed, rng)
    elif rng.random() < plan.copyblend_prob:
        images, mixed = copyblend(images, mixed, config, rng)
    if plan.sides:
        side = plan.sides[int(rng.integers(len(plan.sides)))]
        images, mixed = resize_batch(images, mixed, _scaled_size(images, side, config.base_size))
    return images, mixed


def _scaled_size(images: Tensor, side: int, base_size: int) -> tuple[int, int]:
    """Square images become side x side; others keep their aspect, in steps of 32 pixels."""
    height, width = images.shape[-2:]
    if height == width:
        return side, side
    factor = side / base_size / 32
    return max(1, round(height * factor)) * 32, max(1, round(width * factor)) * 32


def _blend(a: Tensor, b: Tensor, weight_of_a: float) -> Tensor:
    """Rounded weighted mean of two uint8 tensors. OpenCV needs a tenth of torch's time, which goes by way of float."""
    rows_a, rows_b = (np.ascontiguousarray(x.numpy()).reshape(-1, x.shape[-1]) for x in (a, b))
    return torch.from_numpy(cv2.addWeighted(rows_a, weight_of_a, rows_b, 1 - weight_of_a, 0.0)).reshape(a.shape)


def _joined(*targets: Target) -> Target:
    return Target(
        labels=torch.cat([target["labels"] for target in targets]),
        boxes=torch.cat([target["boxes"] for target in targets]),
        area=torch.cat([target["area"] for target in targets]),
    )
