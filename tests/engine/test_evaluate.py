"""The pass over the data: what the network says becomes COCO results, whatever the number of processes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data.coco import CocoSplit
from engine.metrics import GroundTruth
from models.postprocess import PostProcessor
from tests.support.coco_reference import CLASSES, assert_equal, reference_stats
from tests.support.evaluation import (
    NUM_IMAGES,
    TableDetector,
    judge,
    judge_as_one_of_two,
    make_config,
    make_split,
)
from tests.support.scripts import start_process


@pytest.fixture
def split(tmp_path: Path) -> CocoSplit:
    return make_split(tmp_path)


def assert_same_predictions(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], *, bits: int = 1
) -> None:
    """Equal up to the last bits of float32: the CPU's sigmoid depends on the place in the batch."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-4 * bits)
        assert one["score"] == pytest.approx(other["score"], abs=1e-7 * bits)


def test_metrics_and_predictions_follow_from_the_outputs(split: CocoSplit) -> None:
    model = TableDetector(split)
    expected = []
    for index, image in enumerate(split.images):
        outputs = {"pred_logits": model.logits[index, None], "pred_boxes": model.boxes[index, None]}
        size = torch.tensor([[image.width, image.height]])
        (found,) = PostProcessor(len(CLASSES), make_config().num_top_queries)(outputs, size)
        for score, label, box in zip(
            found.scores.tolist(), found.labels.tolist(), found.boxes_xyxy.tolist(), strict=True
        ):
            expected.append(
                {
                    "image_id": image.id,
                    "category_id": CLASSES.category_ids[label],
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "score": score,
                }
            )
    result = judge(split)
    truth = GroundTruth.of(split)
    assert_equal(result.metrics, reference_stats(truth, expected))
    assert_equal(result.metrics_defects, reference_stats(truth, expected, [0, 4, 9, 20]))
    assert result.metrics["AP"] is not None and 0.05 < result.metrics["AP"] < 0.95
    expected.sort(key=lambda one: (one["image_id"], -one["score"]))
    assert len(expected) == NUM_IMAGES * 30 * 5
    assert_same_predictions(result.predictions, expected)
    assert any(box["iscrowd"] for box in truth.annotations)


def test_images_left_out_are_no_silent_misses(split: CocoSplit) -> None:
    with pytest.raises(ValueError, match=r"left out 2 images of split 'val', e\.g\. ids \[40, 50\]"):
        judge(split, range(NUM_IMAGES - 2))


def test_modes_are_restored_and_evaluation_is_float32(split: CocoSplit) -> None:
    model = TableDetector(split).train()
    model.frozen.eval()
    result = judge(split, model=model)
    assert not any(model.seen_training) and not any(model.seen_autocast)
    assert model.training and not model.frozen.training
    assert all(parameter.grad is None for parameter in model.parameters())
    half = judge(split, model=model, amp_dtype=torch.bfloat16)
    assert model.seen_autocast[-1]
    assert half.metrics == result.metrics, "the table does not compute, so autocast changes nothing"

    class Broken(TableDetector):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            raise RuntimeError("no")

    broken = Broken(split).train()
    with pytest.raises(RuntimeError, match="no"):
        judge(split, model=broken)
    assert broken.training


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    alone = judge(make_split(tmp_path))
    divisions = [([0, 2, 4, 6], [1, 3, 5]), ([0, 2, 4, 6], [1, 3, 5, 0]), (list(range(NUM_IMAGES)), [])]
    other = start_process(judge_as_one_of_two, 1, tmp_path, divisions, daemon=True)
    judge_as_one_of_two(0, tmp_path, divisions)
    other.join()
    by_rank = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1)]
    timing = {"seconds_per_image": 0}
    for first, second in zip(*by_rank, strict=True):
        assert first["json"] == second["json"], "all processes take the same decisions"
        assert {**first["json"], **timing} == {**alone.to_json(), **timing}
        assert_same_predictions(first["predictions"], alone.predictions)
        assert second["predictions"] == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_agrees_with_cpu(split: CocoSplit) -> None:
    cpu, gpu = judge(split), judge(split, device="cuda")
    # Each device has its own exp; an H100 differed by 1.2e-7.
    assert_same_predictions(gpu.predictions, cpu.predictions, bits=8)
    assert gpu.metrics == pytest.approx(cpu.metrics, abs=1e-6)
