"""Every kind of detector, loaded from its checkpoint alone."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.classes import ClassMap
from data.config import TilesConfig
from data.errors import UserError
from data.images import resize_antialiased
from engine.checkpoint import save_checkpoint
from engine.config import ExperimentConfig, apply_overrides, config_to_dict, load_config
from engine.detector import Detector, load_detector
from models.detections import Detections
from models.detector import build_detector, normalize_images
from models.postprocess import build_postprocessor
from tests.support.baselines import write_tiny_baseline
from tests.support.models import tiny_config
from tests.support.text_fusion import fused_model, section

CLASSES = ClassMap((1,), ("a",))


def save(path: Path, model: nn.Module, config: ExperimentConfig) -> Path:
    names = tuple(f"defect {label}" for label in range(config.num_classes))
    classes = ClassMap(tuple(range(len(names))), names).to_dict()
    save_checkpoint(path, {"model": model.state_dict(), "config": config_to_dict(config), "classes": classes})
    return path


@pytest.mark.parametrize("kind", ["text", "fcos_resnet18"])
def test_every_kind_of_detector(kind: str, tmp_path: Path) -> None:
    """DEIMv2 itself is tried in test_predict_script.py."""
    if kind == "text":
        config = apply_overrides(tiny_config(MultimodalFusion=section()), [])  # one size everywhere
        model: nn.Module = fused_model()
    else:
        config = load_config(write_tiny_baseline(tmp_path, kind))
        torch.manual_seed(0)
        model = build_detector(config)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    detector = load_detector(save(tmp_path / "best.pth", model, config))
    (found,) = detector.detect([detector.prepare(pixels)], [(70, 50)])
    resize = config.val_dataloader.dataset.transforms.resize
    normalize = config.train_dataloader.dataset.transforms.normalize
    assert resize is not None and normalize is not None
    image = torch.from_numpy(resize_antialiased(pixels, resize.size)).permute(2, 0, 1)[None]
    with torch.no_grad():
        outputs = model.eval()(normalize_images(image, normalize.mean, normalize.std))
    (expected,) = build_postprocessor(config)(outputs, torch.tensor([[70, 50]]))
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-4)
    assert (found.labels == expected.labels).all()


class _Broken(nn.Module):
    def __init__(self, value: float | None) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.value is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nand more")
        boxes = torch.full((len(images), 3, 4), 0.5)
        boxes[:, 0] = self.value
        return {"pred_logits": torch.zeros(len(images), 3, 6), "pred_boxes": boxes}


def test_memory_and_numbers(caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    exhausted = Detector(_Broken(None), tiny_config(), CLASSES)
    with pytest.raises(UserError, match="Out of memory with 1 images at once.*smaller --batch-size"):
        exhausted.detect([exhausted.prepare(pixels)], [(20, 20)])
    diverged = Detector(_Broken(float("nan")), tiny_config(), CLASSES)
    (found,) = diverged.detect([diverged.prepare(pixels)], [(20, 20)])
    assert len(found) == 12 and "6 of 18 detections are not finite" in caplog.text
    kept = Detections.joined([found, Detections.empty()]).clipped((20, 20)).without_repeats(0.5).above(np.full(6, 0.1))
    assert len(kept) and not kept.is_whole and Detections.empty().is_whole


@pytest.mark.parametrize(
    ("tiles", "size_wh", "expected"),
    [  # trained on tiles of 128 pixels on an input of 64: 0.5 network pixels per image pixel
        (128, (1000, 1000), None),
        (128, (90, 120), None),  # near enough
        (
            None,
            (1000, 1000),
            "with no tiles reach the network at 0.064 .* 0.5: .* 8 to 40 pixels there .* 1.02 to 5.12 ",
        ),
        (None, (1000, 1000), "cut tiles of 128 pixels$"),
        (256, (1000, 1000), "with tiles of 256 pixels .* cut tiles of 128 pixels$"),
        (64, (1000, 1000), "cut tiles of 128 pixels$"),
        (128, (60, 40), "less than the 128 x 128 pixels that it saw at once there are enlarged$"),
        (None, (60, 40), "are enlarged$"),
    ],
)
def test_another_scale(tiles: int | None, size_wh: tuple[int, int], expected: str | None) -> None:
    scale = {"scale": 0.5, "sides_px": [8.0, 20.0, 40.0]}
    config = apply_overrides(tiny_config(), ["eval_spatial_size=[64,64]"])
    detector = Detector(nn.Identity(), config, CLASSES, checkpoint={"object_scale": scale})
    said = detector.with_tiles(None if tiles is None else TilesConfig(size=tiles)).other_scale(size_wh)
    assert said is None if expected is None else re.search(expected, said or ""), said


@pytest.mark.parametrize("stored", [None, {}, {"scale": None, "sides_px": None}, {"scale": 1, "sides_px": [2]}, "x"])
def test_no_scale_no_warning(stored: object) -> None:
    detector = Detector(nn.Identity(), tiny_config(), CLASSES, checkpoint={"object_scale": stored})
    assert detector.other_scale((9, 9)) is None
