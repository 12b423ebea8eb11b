"""A detector whose evidence is known, with maps that are right and wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.boxes import cxcywh_to_xyxy

SIZE = 32
"""Side of its images, pixels."""
BOXES = ((0.25, 0.25, 0.25, 0.25), (0.75, 0.625, 0.25, 0.5))
"""cxcywh of query 0 and query 1; their sides lie between pixels."""


class ToyDetector(nn.Module):
    """Two queries, one class per channel: logit = 12 x mean of the class's channel inside the query's box - 6."""

    def __init__(self) -> None:
        super().__init__()
        self.num_images = 0
        """So many images have been looked at."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """As DEIMv2 in evaluation."""
        self.num_images += len(images)
        boxes = torch.tensor(BOXES)
        corners = (cxcywh_to_xyxy(boxes) * SIZE).int().tolist()
        means = [images[:, :, y1:y2, x1:x2].mean(dim=(2, 3)) for x1, y1, x2, y2 in corners]
        return {
            "pred_logits": 12 * torch.stack(means, dim=1) - 6,
            "pred_boxes": boxes.expand(len(images), -1, -1),
        }


def toy_image() -> Tensor:
    """[1, 3, 32, 32]: bright in channel 0 inside box 0 and in channel 2 inside box 1."""
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[:, 0, 4:12, 4:12] = 1
    image[:, 2, 12:28, 20:28] = 1
    return image


def perfect_map(_model: nn.Module, _image: Tensor, query: int, _label: int) -> Tensor:
    """1 inside the query's box, else 0."""
    drawn = torch.zeros(SIZE, SIZE)
    x1, y1, x2, y2 = (cxcywh_to_xyxy(torch.tensor(BOXES[query])) * SIZE).int().tolist()
    drawn[y1:y2, x1:x2] = 1
    return drawn


def wrong_map(model: nn.Module, image: Tensor, query: int, label: int) -> Tensor:
    """Everywhere but inside the box."""
    return 1 - perfect_map(model, image, query, label)


TRUTH = cxcywh_to_xyxy(torch.tensor(BOXES))
"""[2, 4]"""
