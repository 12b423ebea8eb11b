import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.optim import FlatCosine, ema_decay, step_seed

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
