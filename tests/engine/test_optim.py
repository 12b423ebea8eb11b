"""Learning rate and seed of a step against the reference; the weights' average."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from data.errors import UserError
from engine.config import OptimizerConfig
from engine.optim import FlatCosine, ModelEma, ema_decay, param_groups, step_seed

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "schedule.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["flat_cosine_s", "flat_cosine_50"])
def test_flat_cosine_equals_the_reference(name: str) -> None:
    case = GOLDEN[name]
    schedule = FlatCosine(
        epochs=case["epochs"],
        flat_epoch=case["flat_epochs"],
        no_aug_epoch=case["no_aug_epochs"],
        warmup_steps=case["warmup_iter"],
        steps_per_epoch=case["iter_per_epoch"],
        floor_ratio=case["lr_gamma"],
    )
    for step, *rates in case["rows"]:
        for base, rate in zip(case["base_lrs"], rates, strict=True):
            assert base * schedule.ratio(step) == pytest.approx(rate, rel=1e-9, abs=1e-15), step


@pytest.mark.parametrize("case", GOLDEN["ema"], ids=lambda case: f"{case['decay']}-{case['warmups']}")
def test_ema_decay_equals_the_reference(case: dict) -> None:
    for update, decay in case["rows"]:
        assert ema_decay(update, case["decay"], case["warmups"]) == pytest.approx(decay, rel=1e-9)


@given(epochs=st.integers(2, 200), steps=st.integers(1, 50), warmup=st.integers(0, 500), data=st.data())
def test_no_step_trains_at_rate_zero_or_above_the_base(
    epochs: int, steps: int, warmup: int, data: st.DataObject
) -> None:
    no_aug = data.draw(st.integers(0, epochs - 1))
    flat = data.draw(st.integers(0, epochs - no_aug))
    schedule = FlatCosine(epochs, flat, no_aug, warmup, steps, 0.5)
    step = data.draw(st.integers(0, epochs * steps - 1))
    assert 0.0 < schedule.ratio_before(step) <= 1.0


@given(st.integers(0, 2**31), st.integers(0, 10**7), st.integers(0, 63))
def test_step_seeds_differ_between_steps_and_ranks(seed: int, step: int, rank: int) -> None:
    here = step_seed(seed, step, rank)
    assert 0 <= here < 2**63
    assert here != step_seed(seed, step + 1, rank)
    assert here != step_seed(seed, step, rank + 1)
    assert here != step_seed(seed + 1, step, rank)


class Toy(nn.Module):
    """Parameters, BatchNorm, a frozen scalar listed twice, constants: all that a detector has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.up = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.alias = nn.Module()
        self.alias.up = self.up
        self.register_buffer("periods", torch.rand(4))


def train_a_little(model: Toy) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.train()
    model.norm(torch.randn(8, 3))


def test_patterns_that_do_not_fit_are_all_named() -> None:
    patterns = [{"params": pattern} for pattern in ("^nothing", "linear", "weight$")]
    with pytest.raises(UserError) as caught:
        param_groups(Toy(), OptimizerConfig.model_validate({"lr": 0.1, "params": patterns}))
    nothing, twice = caught.value.problems
    assert nothing.startswith("optimizer.params[0].params: '^nothing' matches no parameter of the model; names look")
    assert twice.startswith("optimizer.params[2].params: 'weight$' and optimizer.params[1].params both match 1 param")


def test_update_averages_weights_and_batch_norm_statistics() -> None:
    model = Toy()
    ema = ModelEma(model, decay=0.9, warmups=5)
    weight, mean = model.linear.weight.detach().clone(), model.norm.running_mean.clone()
    for update in (1, 2, 3):
        train_a_little(model)
        ema.update(model)
        d = ema_decay(update, 0.9, 5)
        weight = d * weight + (1 - d) * model.linear.weight.detach()
        mean = d * mean + (1 - d) * model.norm.running_mean
    torch.testing.assert_close(ema.module.linear.weight, weight)
    torch.testing.assert_close(ema.module.norm.running_mean, mean)
    assert ema.updates == 3


def test_constants_never_drift_and_counters_follow() -> None:
    model = Toy()
    ema = ModelEma(model, decay=0.9999, warmups=1000)
    for _ in range(50):
        train_a_little(model)
        ema.update(model)
    assert torch.equal(ema.module.periods, model.periods)
    assert torch.equal(ema.module.up, model.up)
    assert int(ema.module.norm.num_batches_tracked) == 50


def test_start_skips_the_first_updates() -> None:
    model = Toy()
    ema = ModelEma(model, decay=0.0, warmups=0, start=1)
    before = model.linear.weight.detach().clone()
    train_a_little(model)
    ema.update(model)
    assert torch.equal(ema.module.linear.weight, before)
    ema.update(model)
    torch.testing.assert_close(ema.module.linear.weight, model.linear.weight)
    ema.decay = 1.0  # read at every update
    train_a_little(model)
    ema.update(model)
    assert not torch.allclose(ema.module.linear.weight, model.linear.weight)
