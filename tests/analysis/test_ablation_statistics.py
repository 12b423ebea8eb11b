"""Effects on simulated runs whose truth is known, and the interval by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.ablation_statistics import effect, verdict
from analysis.bootstrap import bootstrap
from analysis.compare_statistics import Resampled
from analysis.result import Interval
from tests.support.comparison import make_tables, make_truth

IMAGES = 80


def modes(*qualities: float, samples: int = 200, seed: int = 0) -> list[list[Resampled]]:
    """Three seeds of each quality, judged on the same resampled images."""
    truth = make_truth(IMAGES, seed=seed)
    tables = [
        make_tables(truth, quality=quality, seed=100 * seed + 10 * number + run)
        for number, quality in enumerate(qualities)
        for run in range(3)
    ]
    drawn = [
        Resampled(result.point_ap, result.ap)
        for result in (bootstrap(one, samples=samples, seed=seed) for one in tables)
    ]
    return [drawn[3 * number : 3 * number + 3] for number in range(len(qualities))]


def test_modes_that_help_hurt_and_do_nothing() -> None:
    none, better, same, worse = modes(0.5, 0.8, 0.5, 0.2)
    found = [effect(mode, none, IMAGES) for mode in (better, same, worse)]
    assert [verdict(one.interval) for one in found if one.interval] == ["helps", "no_difference", "hurts"]
    assert found[0].value is not None and found[0].value > 0.1


def test_equal_modes_are_seldom_told_apart() -> None:
    wrong = 0
    for trial in range(15):
        none, same = modes(0.5, 0.5, samples=100, seed=trial + 1)
        interval = effect(same, none, IMAGES).interval
        assert interval is not None
        wrong += verdict(interval) != "no_difference"
    assert wrong <= 4, "binomial(15, 0.05) exceeds 4 with a probability of 0.0006"


def test_the_interval_by_hand() -> None:
    reference = [Resampled(0.5, np.array([0.4, 0.5, 0.6])) for _ in range(3)]
    gains = (0.1, 0.2, 0.3)
    images = np.array([-0.02, 0.0, 0.02])
    runs = [
        Resampled(one.point + gain, one.samples + gain + images) for one, gain in zip(reference, gains, strict=True)
    ]
    found = effect(runs, reference, 41)
    assert found.value == pytest.approx(0.2) and found.per_seed == pytest.approx(gains)
    assert found.seed_sd == pytest.approx(0.1)
    of_images, of_seeds = 0.0004, 0.01 / 3
    freedom = (of_images + of_seeds) ** 2 / (of_images**2 / 40 + of_seeds**2 / 2)
    half = stats.t.ppf(0.975, freedom) * (of_images + of_seeds) ** 0.5
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half))
    assert found.image_interval == pytest.approx((0.2 - 0.019, 0.2 + 0.019))


def test_few_seeds_that_disagree_show_nothing() -> None:
    """The images alone would call it a gain."""
    none = [Resampled(0.5, np.full(50, 0.5))] * 3
    runs = [Resampled(0.5 + gain, np.full(50, 0.5 + gain)) for gain in (0.001, 0.001, 0.07)]
    found = effect(runs, none, IMAGES)
    assert found.image_interval is not None and found.image_interval.low > 0
    assert found.interval is not None and verdict(found.interval) == "no_difference"


def test_one_seed_has_no_interval_of_the_mode() -> None:
    none, better = modes(0.5, 0.8)
    found = effect(better[:1], none[:1], IMAGES)
    assert found.value is not None and found.image_interval is not None
    assert found.seed_sd is None and found.interval is None


def test_identical_runs_and_missing_ground_truth() -> None:
    (none,) = modes(0.5)
    same = effect(none, none, IMAGES)
    assert (same.value, same.interval, same.seed_sd) == (0.0, (0.0, 0.0), 0.0)
    nothing = [Resampled(np.nan, np.full(10, np.nan))] * 3
    found = effect(nothing, nothing, IMAGES)
    assert (found.value, found.interval, found.per_seed) == (None, None, (None, None, None))


def test_unpaired_runs_are_refused() -> None:
    (none,) = modes(0.5)
    with pytest.raises(ValueError, match="same seeds"):
        effect(none[:2], none, IMAGES)
    with pytest.raises(ValueError, match="same resampled"):
        effect([Resampled(0.5, np.zeros(3))], [Resampled(0.5, np.zeros(4))], IMAGES)


@given(st.floats(-1, 1), st.floats(0, 1))
def test_a_verdict_is_the_side_of_zero(low: float, width: float) -> None:
    interval = Interval(low, low + width)
    mirrored = Interval(-interval.high, -interval.low)
    opposite = {"helps": "hurts", "hurts": "helps", "no_difference": "no_difference"}
    assert verdict(mirrored) == opposite[verdict(interval)]
    assert (verdict(interval) == "no_difference") == (interval.low <= 0 <= interval.high)
