"""Gradient accumulation against the large batch, with what cannot be equal switched off.

BatchNorm sees smaller batches and denoising groups depend on the largest image of the micro-batch, so BatchNorm is
frozen and denoising off. The matching losses then agree exactly. The union set of GO is counted per micro-batch
(its size over the window would need a second forward pass), so box losses agree to the spread of its ratio.
"""

import pytest
import torch
from torch import nn

from data.batch import Batch
from engine.config import load_config
from engine.run import build_run
from engine.step import window_shares
from models.detector import normalize_images
from tests.support.tiny_run import write_tiny_config, write_tiny_data
from tests.support.training import alone


def gradients(run: object, window: list[Batch], keys: tuple[str, ...]) -> torch.Tensor:
    """Gradient of the chosen losses over one window, as one vector."""
    run.model.zero_grad(set_to_none=True)
    for batch, share in zip(window, window_shares(run.config, run.dist, window), strict=True):
        outputs = run.model(normalize_images(batch.images, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), batch.targets)
        losses = run.criterion(outputs, batch.targets, epoch=0, share=share)
        sum(loss for key, loss in losses.items() if key.startswith(keys)).backward()
    return torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, object]:
    """The same run without accumulation and with two micro-batches a window."""
    folder = tmp_path_factory.mktemp("accumulation")
    write_tiny_data(folder)
    path = write_tiny_config(folder)
    runs = []
    for steps in (1, 2):
        overrides = [f"accumulation_steps={steps}", "DEIMTransformer.num_denoising=0"]
        run = build_run(load_config(path, overrides), alone(), folder / f"run{steps}", resume=None, tuning=None)
        run.monitor.close()
        run.model.train()
        for module in run.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        runs.append(run)
    return runs[0], runs[1]


def a_batch(boxes_per_image: tuple[int, ...]) -> Batch:
    generator = torch.Generator().manual_seed(3)
    targets = []
    for count in boxes_per_image:
        centre = torch.rand(count, 2, generator=generator) * 0.6 + 0.2
        size = torch.rand(count, 2, generator=generator) * 0.2 + 0.1
        labels = torch.randint(0, 2, (count,), generator=generator)
        targets.append({"labels": labels, "boxes": torch.cat([centre, size], 1), "area": size.prod(1)})
    images = torch.randint(0, 256, (len(boxes_per_image), 3, 64, 64), generator=generator, dtype=torch.uint8)
    return Batch(images, targets, list(range(len(targets))), torch.full((len(targets), 2), 64))


def halves(batch: Batch) -> list[Batch]:
    return [
        Batch(batch.images[part], batch.targets[part], batch.image_ids[part], batch.orig_sizes_wh[part])
        for part in (slice(0, 2), slice(2, 4))
    ]


@pytest.mark.parametrize("boxes", [(3, 1, 2, 2), (5, 0, 1, 0), (0, 0, 2, 1), (0, 0, 0, 0)])
def test_box_losses_equal_the_large_batch_without_the_union(
    pair: tuple[object, object], monkeypatch: pytest.MonkeyPatch, boxes: tuple[int, ...]
) -> None:
    for run in pair:
        config = run.criterion.config.model_copy(update={"use_uni_set": False})
        monkeypatch.setattr(run.criterion, "config", config)
    whole = a_batch(boxes)
    keys = ("loss_bbox", "loss_giou", "loss_fgl", "loss_mal")
    large = gradients(pair[0], [whole], keys)
    window = gradients(pair[1], halves(whole), keys)
    torch.testing.assert_close(window, large, rtol=1e-4, atol=1e-5 * float(large.norm()))


@pytest.mark.parametrize("boxes", [(3, 1, 2, 2), (4, 1, 3, 2)])
def test_all_losses_are_close_to_the_large_batch(pair: tuple[object, object], boxes: tuple[int, ...]) -> None:
    whole = a_batch(boxes)
    large = gradients(pair[0], [whole], ("loss_",))
    window = gradients(pair[1], halves(whole), ("loss_",))
    assert torch.cosine_similarity(large, window, dim=0) > 0.97
    assert 0.85 < float(window.norm() / large.norm()) < 1.15
