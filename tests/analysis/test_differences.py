"""Paired differences and effects on simulated data whose truth is known, intervals and Holm's correction by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.bootstrap import DEFECTS, Interval, Resampled, bootstrap
from analysis.differences import (
    Effect,
    effect,
    estimate,
    holm,
    paired_difference,
    rank_correlation,
    tost,
    verdict,
)
from analysis.matching import Matches
from tests.support.comparison import WITH_NORMAL, make_tables, make_truth

SAMPLES = 300
IMAGES = 80


def ap_of(tables: Matches, samples: int = SAMPLES, seed: int = 0) -> Resampled:
    return bootstrap(tables, samples=samples, seed=seed).metrics["AP"]


def width(interval: Interval | None) -> float:
    assert interval is not None
    return interval.high - interval.low


def test_identical_models_do_not_differ() -> None:
    tables = make_tables(make_truth(), quality=0.6, seed=1)
    one, two = (ap_of(tables) for _ in range(2))
    difference = paired_difference([two], [one])
    assert (difference.value, difference.interval, difference.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_a_clearly_better_model_is_found_and_the_sign_is_right() -> None:
    truth = make_truth(120)
    runs = [make_tables(truth, quality=quality, seed=seed) for quality, seed in ((0.4, 1), (0.8, 2))]
    worse, better = (ap_of(run) for run in runs)
    difference = paired_difference([better], [worse])
    assert difference.value == pytest.approx(better.point - worse.point) and difference.value > 0.1
    assert difference.interval is not None and difference.interval.low > 0
    assert difference.p_value == pytest.approx(2 / (SAMPLES + 1)), "the smallest there is"
    other_way = paired_difference([worse], [better])
    assert other_way.value == -difference.value and other_way.p_value == difference.p_value


def test_equal_models_are_seldom_taken_for_different() -> None:
    """The null: models of one quality differ by chance alone, so p < 0.05 in about one of twenty comparisons."""
    trials, found = 20, 0
    for trial in range(trials):
        truth = make_truth(60, seed=trial)
        runs = [make_tables(truth, quality=0.6, seed=1000 + 2 * trial + which) for which in range(2)]
        one, two = (ap_of(run, 200, trial) for run in runs)
        p_value = paired_difference([two], [one]).p_value
        assert p_value is not None
        found += p_value < 0.05
    assert found <= 5, "binomial(20, 0.05) exceeds 5 with a probability of 0.0003"


def test_pairing_takes_the_difficulty_of_the_images_out() -> None:
    truth = make_truth(150)
    runs = [make_tables(truth, quality=0.6, seed=seed) for seed in (1, 2)]
    one, two = (ap_of(run) for run in runs)
    unpaired = Resampled(two.point, ap_of(runs[1], seed=12345).samples)
    paired_width = width(paired_difference([two], [one]).interval)
    assert paired_width < 0.9 * width(paired_difference([unpaired], [one]).interval)


def test_seeds_are_averaged_resample_by_resample() -> None:
    runs = [Resampled(0.5, np.array([0.4, 0.6, 0.5])), Resampled(0.7, np.array([0.8, 0.6, 0.7]))]
    found = estimate(runs)
    assert found.value == pytest.approx(0.6) and found.sd == pytest.approx(np.sqrt(0.02))
    assert found.per_run == (0.5, 0.7)
    assert found.interval == pytest.approx((0.6, 0.6)), "the seeds' errors cancel in every resample"
    assert estimate(runs[:1]).sd is None
    difference = paired_difference(runs, [Resampled(0.3, np.array([0.1, 0.2, 0.3]))])
    assert difference.value == pytest.approx(0.3)
    assert difference.interval == pytest.approx(np.percentile([0.5, 0.4, 0.3], [2.5, 97.5]))


def test_without_ground_truth_there_is_no_number() -> None:
    nothing = Resampled(float("nan"), np.full(4, np.nan))
    found = estimate([nothing, Resampled(0.5, np.full(4, 0.5))])
    assert (found.value, found.interval, found.sd, found.per_run) == (None, None, None, (None, 0.5))
    difference = paired_difference([nothing], [Resampled(0.5, np.full(4, 0.5))])
    assert (difference.value, difference.interval, difference.p_value) == (None, None, None)
    one, two = (Resampled(point, np.array([point, np.nan, point])) for point in (0.5, 0.6))
    difference = paired_difference([two], [one])
    assert difference.interval == pytest.approx((0.1, 0.1)), "resamples without a class are left out"
    assert difference.p_value == pytest.approx(2 / 3)


def test_ap_without_normal() -> None:
    result = bootstrap(make_tables(make_truth(classes=WITH_NORMAL), quality=0.6, seed=1), samples=20, normal=1)
    defects, own = result.metrics[DEFECTS], next(iter(result.per_class.values()))["AP"]
    assert defects.point == own.point != result.metrics["AP"].point
    np.testing.assert_array_equal(defects.samples, own.samples)


def test_holm_by_hand() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") = 0.03 0.06 0.06 0.02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.02, 0.022, 0.022]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.03]) == [0.03] and holm([]) == []
    assert holm([None, 0.02, None, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_properties(p_values: list[float]) -> None:
    corrected = [p for p in holm(p_values) if p is not None]
    order = np.argsort(p_values, kind="stable")
    assert all(one <= two <= 1 for one, two in zip(p_values, corrected, strict=True))
    assert sorted(corrected) == [corrected[index] for index in order], "the order stays"
    assert min(corrected) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def modes(*qualities: float, samples: int = 200, seed: int = 0) -> list[list[Resampled]]:
    """Three seeds of each quality, judged on the same resampled images."""
    truth = make_truth(IMAGES, seed=seed)
    tables = [
        make_tables(truth, quality=quality, seed=100 * seed + 10 * number + run)
        for number, quality in enumerate(qualities)
        for run in range(3)
    ]
    drawn = [ap_of(one, samples, seed) for one in tables]
    return [drawn[3 * number : 3 * number + 3] for number in range(len(qualities))]


def test_modes_that_help_hurt_and_do_nothing() -> None:
    none, better, same, worse = modes(0.5, 0.8, 0.5, 0.2)
    found = [effect(mode, none, IMAGES) for mode in (better, same, worse)]
    assert [verdict(one.interval) for one in found if one.interval] == ["helps", "no_difference", "hurts"]
    assert found[0].value is not None and found[0].value > 0.1


def test_equal_modes_are_seldom_told_apart() -> None:
    wrong = 0
    for trial in range(8):
        none, same = modes(0.5, 0.5, samples=100, seed=trial + 1)
        interval = effect(same, none, IMAGES).interval
        assert interval is not None
        wrong += verdict(interval) != "no_difference"
    assert wrong <= 3, "binomial(8, 0.05) exceeds 3 with a probability of 0.0004"


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


@pytest.mark.parametrize(
    ("value", "error", "freedom", "bound", "p_value"),
    [
        # By a table of Student's t: t(0.95, 2) = 2.920, t(0.95, 10) = 1.812, t(0.95, 30) = 1.697
        (0.0, 0.001, 2.0, 0.00292, 0.018875),
        (0.002, 0.001, 10.0, 0.003812, 0.006672),
        (-0.002, 0.001, 10.0, 0.003812, 0.006672),
        (0.004, 0.002, 30.0, 0.007395, 0.310351),
        (0.02, 0.001, 10.0, 0.021812, 1.0),
        (0.003, 0.0, 2.0, 0.003, 0.0),
        (0.006, 0.0, 2.0, 0.006, 1.0),
    ],
)
def test_equivalence_by_hand(value: float, error: float, freedom: float, bound: float, p_value: float) -> None:
    found = tost(Effect(value, (value,) * 3, 0.0, None, None, error, freedom), 0.005)
    assert found is not None
    assert found.bound == pytest.approx(bound, abs=2e-6) and found.p_value == pytest.approx(p_value, abs=2e-4)
    assert (found.p_value < 0.05) == (found.bound < 0.005), "the test and the 90 % interval say the same"


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    gains = np.array([0.001, -0.002, 0.0005, 0.0015])
    runs, none = ([Resampled(0.5 + gain, np.full(50, 0.5 + gain)) for gain in of] for of in (gains, np.zeros(4)))
    found = tost(effect(runs, none, IMAGES), 0.005)
    sides = (
        stats.ttest_1samp(gains, -0.005, alternative="greater"),
        stats.ttest_1samp(gains, 0.005, alternative="less"),
    )
    assert found is not None and found.p_value == pytest.approx(max(side.pvalue for side in sides))
    assert tost(effect(runs[:1], none[:1], IMAGES), 0.005) is None, "one seed has no spread"


def test_rank_correlation() -> None:
    first = np.arange(15.0)
    second = np.array([2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9, 10, 14, 12, 13.0])
    found = rank_correlation(first, second)
    rho = 1 - 6 * 30 / (15 * (15**2 - 1))  # the squared rank differences add up to 30
    half = 1.959964 * ((1 + rho**2 / 2) / 12) ** 0.5
    assert found is not None and found.value == pytest.approx(rho) and found.pairs == 15
    assert found.interval == pytest.approx((np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)))
    turned, perfect = rank_correlation(first, -second), rank_correlation(first, first)
    assert turned is not None and turned.value == pytest.approx(-rho)
    assert perfect is not None and perfect.value == pytest.approx(1) and perfect.interval.high <= 1
    assert rank_correlation(first, np.ones(15)) is None and rank_correlation(first[:4], second[:4]) is None


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
    pair = [Resampled(0.5, np.zeros(3))], [Resampled(0.5, np.zeros(4))]
    with pytest.raises(ValueError, match="same resampled"):
        effect(*pair, IMAGES)
    with pytest.raises(ValueError, match="same resampled images"):
        paired_difference(*pair)


@given(st.floats(-1, 1), st.floats(0, 1))
def test_a_verdict_is_the_side_of_zero(low: float, width: float) -> None:
    interval = Interval(low, low + width)
    mirrored = Interval(-interval.high, -interval.low)
    opposite = {"helps": "hurts", "hurts": "helps", "no_difference": "no_difference"}
    assert verdict(mirrored) == opposite[verdict(interval)]
    assert (verdict(interval) == "no_difference") == (interval.low <= 0 <= interval.high)
