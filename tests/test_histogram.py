from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay.histogram import Histogram


def test_upper_bounds_are_inclusive() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert histogram.total == 7.5


def test_an_empty_one() -> None:
    assert Histogram((0.1,)).cumulative() == [("0.1", 0), ("+Inf", 0)]


@given(
    bounds=st.lists(st.floats(-10, 10), min_size=1, max_size=8, unique=True).map(sorted),
    values=st.lists(st.floats(-20, 20), max_size=30),
)
def test_every_bucket_counts_what_is_not_above_it(bounds: list[float], values: list[float]) -> None:
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    *rows, last = histogram.cumulative()
    assert [count for _, count in rows] == [
        sum(value <= bound for value in values) for bound in bounds
    ]
    assert last == ("+Inf", len(values))
