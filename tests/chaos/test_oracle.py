"""The oracle finds each kind of broken promise: it would not pass a relay that lies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.chaos.oracle import Books, Life, Trace, judge

PLAIN = frozenset({"queue_full"})


def trace(books: Books, acknowledged: range, found: Counter[int], *, killed: bool = False) -> Trace:
    life = Life(books, list(acknowledged), killed=killed, read=len(acknowledged))
    return Trace(PLAIN, room=10, lives=[life], found=found)


GOOD = Books(received=100, exported=90, dropped={"queue_full": 10})


def test_a_run_in_which_all_is_found_or_counted_passes() -> None:
    assert judge(trace(GOOD, range(100), Counter(range(10, 100)))) == []
    # Found twice is a duplicate, not a loss; found though counted as dropped is no loss either.
    twice = trace(GOOD, range(100), Counter([*range(5, 100), 7, 7]))
    assert judge(twice) == []
    assert twice.duplicates == 2


@pytest.mark.parametrize(
    ("books", "found", "words"),
    [
        (GOOD, range(11, 100), "LOST UNCOUNTED 1"),
        (GOOD, range(10, 101), "never sent: 100"),
        (GOOD, [*range(90), 99], "among the newest"),
        (replace(GOOD, received=101), range(10, 100), "do not balance"),
        (replace(GOOD, received=99, exported=89), range(10, 100), "received 99"),
        (replace(GOOD, exported=89, queued=1), range(10, 100), "still waiting"),
        (replace(GOOD, dropped={"rejected": 10}), range(10, 100), "without need"),
        (replace(GOOD, exported=100, dropped={}), range(10, 100), "exported 100"),
    ],
)
def test_each_broken_promise_is_found(books: Books, found: list[int], words: str) -> None:
    assert any(words in each for each in judge(trace(books, range(100), Counter(found))))


def test_a_killed_process_may_lose_what_was_in_its_memory_and_only_that() -> None:
    books = Books(received=100, exported=80, queued=20)
    assert judge(trace(books, range(100), Counter(range(80)), killed=True)) == []
    lost = judge(trace(books, range(100), Counter(range(79)), killed=True))
    assert any("LOST UNCOUNTED 1" in each for each in lost)
