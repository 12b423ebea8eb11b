"""Training transforms: the ops of the config, from one scene to the next (docs/deimv2.md, Training ops in order).

Pixels stay uint8; scaling to [0, 1] and normalisation happen on the device.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from data.augmentations import AUGMENTATIONS, Augmentation
from data.batch import Target
from data.config import MosaicOp, TransformsConfig
from data.errors import UserError
from data.scene import Scene
from data.schedule import EpochPlan
from data.types import BoolArray, FloatArray, IntArray


def sanitize(scene: Scene, rng: np.random.Generator, *, min_size: float, min_area: float) -> Scene:
    """Drop boxes that are too small, in pixels.

    They are clipped to the image by every step, so none can lie outside: the rounding of a resize must not cost a box
    of the full width.
    """
    sizes = scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]
    return scene.select((sizes >= min_size).all(axis=1) & (sizes.prod(axis=1) >= min_area))


def resize(scene: Scene, rng: np.random.Generator, *, size: tuple[int, int]) -> Scene:
    """Bring the view to its final height and width."""
    return scene.resized(size)


_STEPS: dict[str, Augmentation] = {**AUGMENTATIONS, "SanitizeBoundingBoxes": sanitize, "Resize": resize}
"""Other ops happen elsewhere: Mosaic in the data set, which has other images, conversions on the device."""


class TrainTransform:
    """The training ops of the config in their order, without Mosaic.

    Raises:
        UserError: There is no Resize op, or Mosaic is not the first op.
    """

    def __init__(self, config: TransformsConfig) -> None:
        output_size_hw(config)
        self.mosaic = config.mosaic
        if self.mosaic is not None and not isinstance(config.ops[0], MosaicOp):
            raise UserError("transforms.ops: Mosaic is not the first op. Move it to the top of the list.")
        keys = [(op.type, {key: value for key, value in op if key != "type"}) for op in config.ops]
        self._steps = [(name, partial(_STEPS[name], **values)) for name, values in keys if name in _STEPS]

    def __call__(self, scene: Scene, plan: EpochPlan, rng: np.random.Generator, *, mosaic: bool) -> Scene:
        """Run the steps that the plan has on for an image, or for a mosaic; all draws come from `rng`."""
        for name, step in self._steps:
            if plan.is_on(name, mosaic=mosaic):
                scene = step(scene, rng)
        return scene


def output_size_hw(config: TransformsConfig) -> tuple[int, int]:
    """Return the height and width that leave the transforms.

    Raises:
        UserError: There is no Resize op.
    """
    if config.resize is None:
        raise UserError("transforms.ops: there is no Resize op, so images cannot form a batch. Add one.")
    return config.resize.size


def to_target(
    boxes_xyxy: FloatArray,
    labels: IntArray,
    size_hw: tuple[int, int],
    pseudo: BoolArray | None = None,
) -> Target:
    """Make the target as the network sees it; boxes without area are dropped, areas computed from the boxes."""
    height, width = size_hw
    boxes = boxes_xyxy.clip(0, (width, height, width, height))
    sizes = boxes[:, 2:] - boxes[:, :2]
    keep = (sizes > 0).all(axis=1)
    boxes, sizes = boxes[keep], sizes[keep]
    boxes_cxcywh = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, sizes], axis=1) / (width, height, width, height)
    target = Target(
        labels=torch.from_numpy(labels[keep]),
        boxes=torch.from_numpy(boxes_cxcywh.astype(np.float32)),
        area=torch.from_numpy(sizes.prod(axis=1).astype(np.float32)),
    )
    if pseudo is not None:
        target["pseudo"] = torch.from_numpy(pseudo[keep])
    return target
