"""Marks that would hide one another."""

from hypothesis import given
from hypothesis import strategies as st

from analysis.compare_report import side_by_side


def test_equal_costs_stand_side_by_side() -> None:
    assert side_by_side([10.0, 50.0, 10.0, 10.05], 100.0) == [10.0, 50.0, 11.2, 12.45]


@given(st.lists(st.floats(0, 100), max_size=8))
def test_no_mark_hides_another(values: list[float]) -> None:
    placed = side_by_side(values, 110.0)
    assert all(place >= value for place, value in zip(placed, values, strict=True)), "in the order of the models"
    ordered = sorted(placed)
    assert all(two - one > 1.1 for one, two in zip(ordered, ordered[1:], strict=False))
