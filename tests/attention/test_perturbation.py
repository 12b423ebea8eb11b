"""D-RISE's map lies on what a detector looks at; curves end where they must; imputation against a direct solution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn

from attention import perturbation
from attention.capture import Predictions
from attention.evidence import DrawMap
from attention.perturbation import (
    DRise,
    Perturber,
    area_under,
    object_score,
    pixel_ranks,
    similarity,
    step_shares,
    without_information,
)
from tests.support.toy_detector import SIZE, TRUTH, ToyDetector, perfect_map, toy_image, wrong_map

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


def curves(draw: DrawMap, batch_size: int = 4) -> np.ndarray:
    """[3 (deletion, insertion, by imputation), 11] of the first object."""
    objects, how = list(zip(TRUTH, (0, 2), strict=True)), {"steps": 10, "baseline": "mean", "batch_size": batch_size}
    ranks = pixel_ranks(
        draw(ToyDetector(), toy_image(), 0, 0).double().numpy(), np.arange(float(SIZE**2)).reshape(SIZE, SIZE)
    )
    return Perturber(ToyDetector().eval(), toy_image(), objects, 3, **how).curves(ranks)[..., 0]


def test_curves_of_the_perfect_map_end_where_they_must_and_move_at_once() -> None:
    deletion, insertion, imputed = curves(perfect_map)
    # The mean colour keeps 64 pixels' worth.
    full, empty = 1 / (1 + np.exp(-6)), 1 / (1 + np.exp(6 - 12 * 64 / SIZE**2))
    assert deletion[[0, -1]] == pytest.approx([full, empty], abs=1e-5)
    assert insertion[[0, -1]] == pytest.approx([empty, full], abs=1e-5)
    covered = step_shares(10) >= 64 / SIZE**2
    assert deletion[covered] == pytest.approx(empty, abs=1e-5)
    assert insertion[covered] == pytest.approx(full, abs=1e-5)
    assert imputed[[0, -1]] == pytest.approx([full, empty], abs=1e-5)
    assert imputed[covered] == pytest.approx(1 / (1 + np.exp(6)), abs=5e-3), "filled in from the dark around the object"
    assert (np.diff(deletion) <= 1e-6).all()


def test_a_wrong_map_is_worse_and_the_batch_size_does_not_matter() -> None:
    good, bad = curves(perfect_map), curves(wrong_map)
    assert area_under(good[0]) < 0.2 < area_under(bad[0])
    assert area_under(good[1]) > 0.8 > area_under(bad[1])
    for batch_size in (1, 7, 100):
        np.testing.assert_allclose(curves(perfect_map, batch_size), good, atol=1e-6)


@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.permutations(list(range(12))))
def test_ranks_are_a_permutation_in_descending_order_ties_as_told(values: list[int], ties: list[int]) -> None:
    pixels = np.array(values, dtype=float).reshape(3, 4)
    ranks = pixel_ranks(pixels, np.array(ties, dtype=float).reshape(3, 4)).ravel()
    assert sorted(ranks.tolist()) == list(range(12))
    pairs = [(-values[k], ties[k]) for k in np.argsort(ranks)]
    assert pairs == sorted(pairs)


def test_an_object_is_followed_by_its_place() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 1.0]])
    predictions = Predictions(boxes, torch.tensor([[0.4, 0.9], [0.9, 0.1]]))
    assert object_score(predictions, boxes[0], 0) == pytest.approx(0.45)  # half the IoU of the surer one beats 0.4
    assert object_score(predictions, boxes[0], 1) == pytest.approx(0.9)
    assert object_score(predictions, torch.tensor([0.8, 0.8, 0.9, 0.9]), 1) == 0
    assert object_score(Predictions(torch.zeros(0, 4), torch.zeros(0, 2)), boxes[0], 1) == 0


def test_what_is_removed_holds_no_information() -> None:
    one = torch.zeros(1, 3, 64, 64)
    one[:, 1, 30:34, 30:34] = 1
    blurred, mean = without_information(one, "blur"), without_information(one, "mean")
    assert blurred.shape == mean.shape == one.shape
    assert float(blurred[0, 1].max()) < 0.2
    assert float(blurred.sum()) == pytest.approx(float(one.sum()), rel=1e-3)
    assert torch.equal(mean[0, 1], torch.full((64, 64), 16 / 64**2))
    assert float(one.max()) == 1


def test_the_area_is_that_of_the_uneven_steps() -> None:
    assert area_under(np.ones(9)) == pytest.approx(1)
    assert area_under(step_shares(50)) == pytest.approx(0.5)
    assert step_shares(4).tolist() == [0, 1 / 16, 1 / 4, 9 / 16, 1]


def holes(size: int) -> np.ndarray:
    """[3, size, size]: a small one, most of the image, none."""
    missing = np.zeros((3, size, size), dtype=bool)
    missing[0, 3:7, 5:6] = True
    missing[1, 1:-1, 2:-1] = True
    return missing


@pytest.mark.parametrize("size", [16, 67])
def test_a_linear_ramp_comes_back_and_what_is_known_stays(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float32) / size] * 2, indexing="ij")
    image = torch.stack([x, y, 2 * x - y])[None]
    noisy = perturbation.impute(image, holes(size), seed=0)
    known = torch.from_numpy(~holes(size))[:, None].expand_as(noisy)
    assert torch.equal(noisy[known], image.expand_as(noisy)[known])
    assert float((noisy - image).abs().max()) < 0.06
    assert float((noisy - image)[~known].std()) == pytest.approx(0.01, rel=0.1)
    assert torch.equal(noisy, perturbation.impute(image, holes(size), seed=0))
    monkeypatch.setattr(perturbation, "_NOISE", 0)
    assert float((perturbation.impute(image, holes(size), seed=0) - image).abs().max()) < 0.01, "as far as it is solved"
    monkeypatch.setattr(perturbation, "_TOLERANCE", 1e-8)
    monkeypatch.setattr(perturbation, "_MOST_ITERATIONS", 2000)
    torch.testing.assert_close(
        perturbation.impute(image, holes(size), seed=0), image.expand_as(noisy), atol=1e-5, rtol=0
    )


def test_holes_at_the_rim_are_filled_as_a_direct_solution_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perturbation, "_NOISE", 0)
    image = torch.randn(1, 2, 40, 48, generator=torch.Generator().manual_seed(0))
    missing = np.zeros((2, 40, 48), dtype=bool)
    missing[0, :30, 10:], missing[1, 5:] = True, True
    monkeypatch.setattr(perturbation, "_TOLERANCE", 1e-8)
    monkeypatch.setattr(perturbation, "_MOST_ITERATIONS", 2000)
    found = perturbation.impute(image, missing, seed=0)
    pixels = image.expand(2, -1, -1, -1).permute(0, 2, 3, 1).numpy().copy()
    matrix, sides = perturbation._system(pixels, missing)
    pixels[missing] = spsolve(matrix.tocsc(), sides)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), pixels, atol=1e-4)
