from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relay import retry


@given(st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_jitter_stays_between_half_a_second_and_five(attempt: int, random: float) -> None:
    assert 0.5 <= retry.delay(attempt, None, random) <= 5.0


def test_the_range_doubles_with_each_failure_up_to_its_limit() -> None:
    longest = [retry.delay(attempt, None, 1.0) for attempt in range(1, 7)]
    assert longest == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]


def test_jitter_is_full() -> None:
    assert retry.delay(9, None, 0.0) == 0.5
    assert retry.delay(9, None, 0.5) == 2.75


def test_what_the_collector_asks_for_is_waited_for() -> None:
    assert retry.delay(1, 7.0, 0.9) == 7.0
    assert retry.delay(9, 0.25, 0.9) == 0.25


def test_but_not_longer_than_a_minute_and_never_in_a_busy_loop() -> None:
    assert retry.delay(1, 3600.0, 0.5) == 60.0
    assert retry.delay(1, 0.0001, 0.5) == 0.1


def test_asking_for_no_wait_is_asking_for_nothing() -> None:
    assert retry.delay(3, 0.0, 0.5) == retry.delay(3, None, 0.5)
    assert retry.delay(3, -1.0, 0.5) == retry.delay(3, None, 0.5)
