"""D-RISE: the map lies on the only part of the image that a detector looks at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attention.capture import Predictions
from attention.drise import DRise, similarity

REGION = (slice(40, 56), slice(8, 24))


class OneRegion(nn.Module):
    """Two detections in one place; only the second's class depends on the image, on the brightness of one region."""

    def __init__(self) -> None:
        super().__init__()
        self.num_images = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """As DEIMv2 in evaluation."""
        self.num_images += len(images)
        bright = images[:, :, *REGION].mean(dim=(1, 2, 3))
        logits = torch.stack([torch.zeros_like(bright), 12 * bright - 6], dim=1)
        boxes = torch.tensor([[0.8, 0.2, 0.2, 0.2], [0.5, 0.5, 0.3, 0.3]]).expand(len(images), -1, -1)
        return {"pred_logits": torch.stack([logits.flip(1), logits], dim=1) - 2, "pred_boxes": boxes}


def test_the_map_peaks_where_the_score_comes_from_and_masks_are_shared() -> None:
    model, image = OneRegion().eval(), torch.zeros(1, 3, 64, 64)
    image[:, :, *REGION] = 1
    drise = DRise(200, 2, batch_size=64)
    drawn = drise(model, image, 1, 1)
    assert drawn.shape == (64, 64) and drawn.min() >= 0
    row, column = divmod(int(drawn.argmax()), 64)
    assert 40 <= row < 56 and 8 <= column < 24
    assert float(drawn[REGION].mean()) > 4 * float(drawn.mean())
    assert model.num_images == 201
    drise(model, image, 0, 0)
    assert model.num_images == 201, "the same masked images serve every detection"
    assert torch.equal(DRise(200, 2, batch_size=7)(model, image.clone(), 1, 1) > 0, drawn > 0)
    assert not torch.equal(DRise(200, 2, seed=1)(model, image.clone(), 1, 1), drawn)


def test_what_never_changes_rests_on_nothing() -> None:
    class Blind(OneRegion):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return super().forward(torch.zeros_like(images))

    assert not DRise(20, 2)(Blind().eval(), torch.rand(1, 3, 64, 64), 1, 1).any()


def test_similarity_is_iou_times_cosine_of_the_best_detection() -> None:
    box, other = torch.tensor([0.0, 0.0, 0.5, 0.5]), torch.tensor([0.0, 0.0, 0.5, 1.0])
    seen = Predictions(torch.stack([box, other]), torch.tensor([[0.3, 0.4], [0.0, 0.1]]))
    assert similarity(seen, box, torch.tensor([0.0, 1.0])) == pytest.approx(0.8)
    assert similarity(seen, other, torch.tensor([0.0, 1.0])) == pytest.approx(1)
    assert similarity(Predictions(torch.zeros(0, 4), torch.zeros(0, 2)), box, torch.ones(2)) == 0
