"""What a model costs, against numbers worked out by hand."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis import cost as cost_module
from analysis.cost import Cost, measure_cost
from data.classes import ClassMap
from engine.config import ExperimentConfig, load_config
from engine.detector import Detector
from models.detector import build_detector
from tests.support.baselines import write_tiny_baseline
from tests.support.models import NUM_CLASSES, tiny_config, tiny_model

CLASSES = ClassMap((1,), ("a",))
CPU = torch.device("cpu")
MEGABYTE = 2**20
SIDE_PX = 64


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing is not what most tests are about."""
    monkeypatch.setattr(cost_module, "_MAX_REPEATS", 4)
    monkeypatch.setattr(cost_module, "_WARM_UP_RUNS", 1)


class Hand(nn.Module):
    """A detector of known cost: a convolution, two attentions and `extra`."""

    def __init__(self, extra: Callable[[Tensor], object] = lambda images: None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 8, stride=8, bias=False)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.extra = extra
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.batches.append(len(images))
        self.extra(images)
        tokens = self.conv(images).flatten(2).transpose(1, 2)  # [B, 64, 16]
        tokens = self.layer(F.scaled_dot_product_attention(tokens, tokens, tokens))
        return {"pred_logits": tokens[..., :NUM_CLASSES], "pred_boxes": tokens[..., :4].sigmoid()}


def measure(
    model: nn.Module, config: ExperimentConfig | None = None, *, eval_batch: int = 1, seconds: float = 1.0
) -> Cost:
    detector = Detector(model, config or tiny_config(), CLASSES)
    return measure_cost(detector, eval_batch=eval_batch, budget_seconds=seconds)


def training_mb(model: nn.Module, config: ExperimentConfig) -> float:
    held = cost_module._training_bytes(model, config, CPU)
    assert held is not None
    return held / MEGABYTE


def small_batch(**sections: object) -> ExperimentConfig:
    return tiny_config(train_dataloader__total_batch_size=2, **sections)


def test_operations_and_parameters_by_hand() -> None:
    length, width, hidden = 64, 16, 32
    convolution = 2 * length * width * (3 * 8 * 8)
    attention = 2 * (2 * length * length * width)
    projections = 2 * length * width * (4 * width)
    feed_forward = 2 * (2 * length * width * hidden)
    cost = measure(Hand())
    assert cost.gflops * 1e9 == convolution + 2 * attention + projections + feed_forward
    weights = 3 * 8 * 8 * width + 4 * width * (width + 1) + (2 * width * hidden + width + hidden) + 4 * width
    assert cost.parameters == weights
    assert cost.image_size_hw == (SIDE_PX, SIDE_PX)
    assert (cost.dtype, cost.threads) == ("float32", torch.get_num_threads())


def test_grid_sampling_counts_nothing() -> None:
    """What the docstring says of it must stay true."""
    sample = Hand(lambda images: F.grid_sample(images, torch.zeros(len(images), 9, 9, 2), align_corners=False))
    assert measure(sample).gflops == measure(Hand()).gflops


def test_peak_memory_of_inference_by_hand() -> None:
    def allocate(images: Tensor) -> None:
        big = torch.zeros(4 * MEGABYTE // 4)
        big = big + 1  # both alive: 8 MB
        del big
        torch.zeros(6 * MEGABYTE // 4)  # alone: less than before

    plain, big = measure(Hand()).inference_memory_mb, measure(Hand(allocate)).inference_memory_mb
    assert plain is not None and big is not None
    weights_mb = sum(p.numel() for p in Hand().parameters()) * 4 / MEGABYTE
    assert weights_mb < plain < weights_mb + 0.5
    assert weights_mb + 8 < big < weights_mb + 8.5


def test_training_memory_holds_weights_gradients_moments_and_ema() -> None:
    model = tiny_model()
    frozen = copy.deepcopy(model).requires_grad_(False)  # as an EMA's weights are
    weights_mb = sum(p.numel() for p in model.parameters()) * 4 / MEGABYTE
    plain, of_frozen, with_ema = (
        training_mb(one, small_batch(use_ema=use_ema))
        for one, use_ema in ((model, False), (frozen, False), (model, True))
    )
    assert plain > 4 * weights_mb
    assert with_ema - plain == pytest.approx(weights_mb, rel=0.25)
    assert of_frozen == pytest.approx(plain, rel=0.02), "measured as it was trained"
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert measure(model).training_memory_mb is None, "on a CPU it is not tried"


def test_nothing_is_different_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)
    model = tiny_model()
    next(model.children()).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    learns = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    measure(model, small_batch(), eval_batch=2)
    with torch.random.fork_rng():
        training_mb(model, small_batch())
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers"
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()
    assert "KINETO_LOG_LEVEL" not in os.environ


def test_latencies_of_one_image_and_of_the_evaluation_batch() -> None:
    cost = measure(Hand(lambda images: time.sleep(0.004 * len(images))), eval_batch=3)
    single, batch = cost.latencies
    assert (single.batch_size, batch.batch_size) == (1, 3)
    assert single.median_ms >= 4 and batch.median_ms >= 12
    for latency in (single, batch):
        assert latency.p95_ms >= latency.median_ms
        assert latency.images_per_s == pytest.approx(1e3 * latency.batch_size / latency.median_ms)
        assert 3 <= latency.repeats <= 4
    assert len(measure(Hand(), eval_batch=1).latencies) == 1


def test_a_slow_model_stays_within_the_budget(caplog: pytest.LogCaptureFixture) -> None:
    slow = Hand(lambda images: time.sleep(0.03 * len(images)))
    started = time.perf_counter()
    with caplog.at_level(logging.WARNING):
        cost = measure(slow, eval_batch=500, seconds=0.4)
    assert time.perf_counter() - started < 5
    assert [latency.batch_size for latency in cost.latencies] == [1]
    assert cost.latencies[0].repeats >= 3
    assert "latency of batches of 500 not measured" in caplog.text


def test_running_out_of_memory_costs_one_number_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nand more")

    monkeypatch.setattr(cost_module, "train_steps", refuse)
    assert cost_module._training_bytes(tiny_model(), small_batch(), CPU) is None
    assert "Tried to allocate 9 GiB." in caplog.text and "and more" not in caplog.text


def test_the_micro_batch_is_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(cost_module, "train_steps", lambda model, config, images: tried.append(len(images)))
    config = tiny_config(train_dataloader__total_batch_size=16, accumulation_steps=4)
    cost_module._training_bytes(tiny_model(), config, CPU)
    assert tried == [4]


def test_baselines_are_measured_alike(tmp_path: Path) -> None:
    config = load_config(write_tiny_baseline(tmp_path, "fcos_resnet18"), ["train_dataloader.total_batch_size=2"])
    model = build_detector(config)
    cost = measure(model, config, eval_batch=2, seconds=60.0)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.gflops > 0 and [latency.batch_size for latency in cost.latencies] == [1, 2]
    weights_mb = cost.parameters * 4 / MEGABYTE
    assert cost.inference_memory_mb is not None and weights_mb < cost.inference_memory_mb
    assert 4 * weights_mb < training_mb(model, config)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    device = torch.device("cuda")
    model = tiny_model().to(device)
    cost = measure_cost(Detector(model, small_batch(), CLASSES, device, torch.bfloat16), eval_batch=4)
    on_cpu = measure(tiny_model())
    assert cost.gflops == on_cpu.gflops and cost.dtype == "bfloat16"
    assert cost.inference_memory_mb is not None and cost.training_memory_mb is not None
    weights_mb = sum(p.numel() for p in model.parameters()) * 4 / MEGABYTE
    assert weights_mb < cost.inference_memory_mb < cost.training_memory_mb
    assert [latency.batch_size for latency in cost.latencies] == [1, 4]
