"""Histograms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.stats import Histogram


def test_a_value_on_a_bound_belongs_to_the_bucket_below_it() -> None:
    values = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        values.observe(value)
    assert values.counts == [2, 2, 1]
    assert values.cumulative() == [2, 4, 5]
    assert values.count == 5
    assert values.sum == 7.5


@given(st.lists(st.floats(0, 100), max_size=50))
def test_every_value_is_counted_once(observed: list[float]) -> None:
    values = Histogram((0.1, 1.0, 10.0))
    for value in observed:
        values.observe(value)
    assert values.count == len(observed) == values.cumulative()[-1]
    assert values.cumulative()[1] == sum(value <= 1.0 for value in observed)
    assert values.sum == pytest.approx(sum(observed))


def test_quantiles_are_read_between_the_bounds() -> None:
    values = Histogram((1.0, 2.0, 4.0))
    assert values.quantile(0.5) is None
    for _ in range(10):
        values.observe(1.5)
    assert values.quantile(0.5) == pytest.approx(1.5)
    values.observe(100.0)
    assert values.quantile(1.0) == 4.0


@pytest.mark.parametrize("bounds", [(), (1.0, 1.0), (2.0, 1.0)])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    with pytest.raises(AssertionError):
        Histogram(bounds)
