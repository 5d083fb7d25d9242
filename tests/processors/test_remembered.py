import contextlib
import random
import tracemalloc
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import pytest

from relay.processors import parents, traces
from relay.processors.filters import SpanFilter
from relay.processors.patterns import UrlRules
from relay.processors.remembered import (
    LISTED_BYTES,
    LISTED_IDS,
    MOST,
    SECONDS,
    TRACE,
    Listings,
    Remembered,
)
from relay.wire import MalformedError


def key(number: int, trace: int | None = None) -> bytes:
    """Of a span, by default of one that is alone in its trace."""
    return (number if trace is None else trace).to_bytes(TRACE) + number.to_bytes(8)


def trace(number: int) -> bytes:
    return key(number)[:TRACE]


def recent(seen: Remembered, numbers: Iterable[int], now: float = 0) -> set[bytes]:
    keys = set(map(key, numbers))
    return seen.recent({each[:TRACE] for each in keys}, {each[TRACE:] for each in keys}, now)


def known(seen: Remembered, now: float = 0) -> set[bytes]:
    """The keys of all that is remembered."""
    return recent(seen, range(10_000), now)


def child_of(number: int) -> bytes:
    """A request with one span. Several in a row are a request, too."""
    payload = b"\x0a\x10" + trace(number) + b'\x12\x08abcdefgh"\x08' + key(number)[TRACE:]
    for tag in (b"\x12", b"\x12", b"\x0a"):
        payload = tag + bytes((len(payload),)) + payload
    return payload


def test_remembers_for_a_minute() -> None:
    seen = Remembered()
    seen.add({key(1)}, 100)
    assert recent(seen, [1], 100 + SECONDS) == {key(1)}
    assert recent(seen, [1], 100.5 + SECONDS) == set()
    assert recent(seen, [2], 100) == set()
    assert len(seen) == 1
    seen.expire(106 + SECONDS)
    assert len(seen) == 0
    assert not seen
    assert not seen.has({trace(1)})
    assert not seen.touches(child_of(1))


def test_seen_again_is_remembered_from_then() -> None:
    seen = Remembered()
    seen.add({key(1), key(2)}, 0)
    seen.add({key(1)}, 50)
    seen.expire(70)
    assert recent(seen, [1, 2], 70) == {key(1)}
    assert len(seen) == 1


def test_a_trace_may_have_several_and_others_the_same_span_ids() -> None:
    seen = Remembered()
    seen.add({key(1, 7), key(2, 7), key(1, 8)}, 0)
    seen.add({key(3, 7)}, 5)
    ids = {key(number)[TRACE:] for number in range(1, 4)}
    for more in (set[bytes](), {key(number)[TRACE:] for number in range(100, 200)}):
        assert seen.recent({trace(7)}, ids | more, 5) == {key(1, 7), key(2, 7), key(3, 7)}
        assert seen.recent({trace(8), trace(9)}, ids | more, 5) == {key(1, 8)}
        assert seen.recent({trace(7)}, ids | more, 3 + SECONDS) == {key(3, 7)}
        assert seen.recent({trace(7)}, {key(2)[TRACE:]} | more, 5) == {key(2, 7)}
        assert seen.recent({trace(8)}, {key(2)[TRACE:]} | more, 5) == set()
    assert seen.of({key(1, 7), key(2, 8), key(9)}, 5) == {key(1, 7)}


def test_never_holds_more_than_its_bound_and_forgets_the_oldest() -> None:
    seen = Remembered(most=100)
    for number in range(1000):
        seen.add({key(number)}, number / 1000)
        assert len(seen) <= 100
    assert len(seen) > 45
    assert known(seen) == {key(number) for number in range(1000 - len(seen), 1000)}
    seen.add({key(number) for number in range(5000, 5300)}, 2)
    assert len(seen) <= 100
    assert len(known(seen)) == len(seen)
    assert known(seen) <= {key(number) for number in range(5000, 5300)}


def test_the_default_bound_costs_about_what_is_said() -> None:
    rng = random.Random(1)
    tracemalloc.start()
    try:
        seen = Remembered()
        for now in range(MOST * 2 // 100):
            seen.add({rng.randbytes(24) for _ in range(100)}, now / 100)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 5 * 2**20


class Spans:
    """Deferred spans; ``asked``: for how many, each time."""

    def __init__(self, *keys: bytes) -> None:
        self.keys = keys
        self.traces = {key[:TRACE] for key in keys}
        self.spans = self.weight = len(keys)
        self.asked: list[int] = []

    def condemned(self) -> set[bytes]:
        self.asked.append(len(self.keys))
        return set(self.keys)


def listed(payload: bytes) -> AbstractSet[bytes]:
    found = traces.ids(payload, len(payload))
    assert found is not None
    return found


def test_what_is_deferred_is_remembered_and_worked_out_when_asked_for() -> None:
    seen = Remembered()
    spans = Spans(key(1), key(2))
    assert seen.defer(spans, listed(child_of(3)), 100)
    assert len(seen) == 2
    assert not seen.touches(child_of(3))
    assert seen.has({trace(3), trace(2)})
    assert not seen.has({trace(3)})
    assert seen.touches(child_of(2))
    assert not spans.asked
    assert recent(seen, [2, 3], 100 + SECONDS) == {key(2)}
    assert recent(seen, [1], 100.5 + SECONDS) == set()
    assert spans.asked == [2]
    assert seen.touches(child_of(1))


def test_only_what_is_asked_for_is_worked_out() -> None:
    seen = Remembered()
    several = Spans(key(1), key(2, 1), key(3))
    other = Spans(key(4))
    assert seen.defer(several, set(), 0)
    assert seen.defer(other, set(), 1)
    assert seen.has({trace(1), trace(9)})
    assert seen.has({trace(4)})
    assert not several.asked
    assert recent(seen, [1, 9], 1) == {key(1)}
    assert seen.recent({trace(1)}, {key(2)[TRACE:]}, 1) == {key(2, 1)}
    assert seen.of([key(3), key(3, 1), key(2)], 1) == {key(3)}
    assert seen.of([key(3)], 0.5 + SECONDS) == set()
    assert several.asked == [3]
    assert not other.asked
    assert len(seen) == 4


def test_what_is_of_the_trace_of_a_remembered_one_is_not_deferred() -> None:
    """It may be below it; and that one may be forgotten before anybody asks."""
    seen = Remembered()
    assert seen.defer(Spans(key(1), key(2)), set(), 0)
    assert not seen.defer(Spans(key(3), key(5, 2)), set(), 0)
    seen.add({key(6)}, 0)
    assert not seen.defer(Spans(key(7, 6)), set(), 0)
    assert seen.defer(Spans(key(8)), {trace(9)}, 0)
    assert len(seen) == 4


@pytest.mark.parametrize("number", [1, 7])
def test_what_is_asked_for_at_once_is_not_deferred(number: int) -> None:
    seen = Remembered()
    seen.add({key(7)}, 0)
    spans = Spans(key(1))
    assert not seen.defer(spans, listed(child_of(number)), 0)
    seen.add({key(1)}, 0)
    assert known(seen) == {key(1), key(7)}
    assert not spans.asked


def test_what_is_deferred_expires_and_has_its_share_of_the_bound() -> None:
    seen = Remembered(most=100)
    seen.add({key(number) for number in range(60)}, 0)
    assert not seen.defer(Spans(*(key(number) for number in range(26))), set(), 0)
    for number in range(100, 1000, 5):
        spans = Spans(*(key(number + n) for n in range(5)))
        assert seen.defer(spans, set(), number / 1000)
        assert 50 <= len(seen) <= 100
        assert all(seen.has({each}) for each in spans.traces)
    kept = len(seen)
    assert not seen.has({trace(number) for number in range(1000 - kept)})
    assert seen.has({trace(1000 - kept)})
    seen.expire(50)
    assert len(seen) == kept
    seen.expire(1 + SECONDS)
    assert len(seen) == 0
    assert not seen.has({trace(number) for number in range(1000)})


def test_the_oldest_of_both_kinds_go_first() -> None:
    seen = Remembered(most=100)
    seen.defer(Spans(*(key(number) for number in range(20))), set(), 0)
    seen.defer(Spans(*(key(number) for number in range(20, 40))), set(), 0)
    seen.defer(Spans(*(key(number) for number in range(40, 60))), set(), 1)
    seen.add({key(number) for number in range(60, 90)}, 2)
    seen.defer(Spans(*(key(number) for number in range(90, 100))), set(), 3)
    assert known(seen, 3) == {key(number) for number in range(100)}
    seen.add({key(100)}, 4)  # One too many: the oldest of those that were deferred go.
    assert known(seen, 4) == {key(number) for number in range(20, 101)}
    for first in range(101, 161, 20):
        seen.defer(Spans(*(key(number) for number in range(first, first + 20))), set(), 5)
    # Now half of those that were not.
    assert known(seen, 5) > {key(number) for number in range(90, 161)}
    assert len(known(seen, 5)) == len(seen) == 10 + 60 + 15


def test_nothing_is_forgotten_early_that_the_bound_has_room_for() -> None:
    seen = Remembered(most=1700)
    for number in range(5000):
        now = number / 25
        seen.expire(now)
        assert seen.defer(Spans(key(number)), set(), now)
        first = max(0, number - int(25 * SECONDS))
        assert seen.has({trace(first)})
        assert seen.has({trace((first + number) // 2)})
        assert len(seen) <= 25 * (SECONDS + 5) + 1


def test_only_the_part_that_has_expired_is_forgotten() -> None:
    seen = Remembered(most=50)
    early = [key(number) for number in range(24)]
    for few in (early[:12], early[12:]):
        assert seen.defer(Spans(*few), set(), 0)
    assert seen.defer(Spans(key(50)), set(), 30)
    assert seen.defer(Spans(key(60)), set(), 31)
    seen.expire(10 + SECONDS)
    assert not seen.has({each[:TRACE] for each in early})
    assert seen.has({trace(50)})
    seen.expire(30.5 + SECONDS)
    assert not seen.has({trace(50)})
    assert seen.has({trace(60)})
    assert len(seen) == 1


def test_who_asks_at_once_is_told_of_all_that_went_before() -> None:
    for count in range(1, 30):
        seen = Remembered(most=100)
        for number in range(count):
            assert seen.defer(Spans(*(key(10 * number + n) for n in range(10))), set(), number)
        oldest = max(0, 10 * count - len(seen))
        assert not seen.defer(Spans(key(9999)), {trace(oldest)}, count)
        assert recent(seen, [oldest], count) == {key(oldest)}


def test_the_same_again_and_again_does_not_grow() -> None:
    seen = Remembered(most=100)
    spans = Spans(key(1), key(2))
    assert seen.defer(spans, set(), 0)
    for number in range(1, 2000):
        now = number / 1000
        assert not seen.defer(Spans(key(1), key(2)), set(), now)
        seen.add({key(1), key(2)}, now)
        assert len(seen) == 4
    assert recent(seen, [1, 2], 1 + SECONDS) == {key(1), key(2)}
    heavy = Spans(key(3))
    heavy.weight = 26
    assert not seen.defer(heavy, set(), 3)


def test_what_is_deferred_costs_no_more_than_what_is_not() -> None:
    rng = random.Random(1)
    tracemalloc.start()
    try:
        seen = Remembered()
        for now in range(MOST * 2 // 100):
            seen.defer(Spans(*(rng.randbytes(24) for _ in range(100))), set(), now / 100)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size < 5 * 2**20


@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.parametrize("count", [1, 128, 129, 3000])
def test_says_whether_a_payload_may_hold_a_child(size: int, count: int) -> None:
    """By lists for small payloads and many ids, by a compiled search for large ones and few."""
    seen = Remembered()
    seen.add({key(number) for number in range(1, count + 1)}, 0)
    # Well-formed, or it is only searched: a field that nobody knows.
    noise = b"".join(b"\xfa\x01\x7f" + bytes(127) for _ in range(size // 130))
    for _ in range(300 if size and count <= 128 else 2):
        assert not seen.touches(noise + child_of(count + 1) + noise)
    assert seen.touches(noise + child_of(count) + noise)
    assert seen.touches(noise + child_of(count), lambda: listed(noise + child_of(count)))
    assert seen.touches(noise + child_of(count), lambda: None)  # Too many to be listed.
    assert seen.defer(Spans(key(count + 1)), set(), 0)
    assert seen.touches(noise + child_of(count + 1) + noise)


def test_listings_know_what_may_be_a_trace_in_a_payload() -> None:
    listings = Listings(traces.ids, traces.named, whole=True)
    small, large = child_of(7), b"." * 20_000 + child_of(7)
    for payload in (small, large):
        listings.note(payload)
        assert not listings.any_names([payload], {trace(8)})
        assert listings.any_names([payload], {trace(7), trace(8)})
        assert listings.any_names([], {trace(7)})  # It left, but that is not known.
        listings.forget()
        assert listings.any_names([payload], {trace(7)})
        listings.forget()
        assert not listings.any_names([], {trace(7)})
    # What was listed of one that it was cut out of is good enough, and not looked for again.
    part = large[5000:-20]
    listings.note(part, listed(large))
    assert listings.any_names([part], {trace(7)})


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_listings_never_miss_what_waits_and_stay_within_their_bounds(size: int) -> None:
    listings = Listings(traces.ids, traces.named, whole=True)
    rng = random.Random(size)
    waiting: list[bytes] = []
    dense = b"".join(child_of(number) for number in range(90_000, 92_000))
    for number in range(3000):
        payload = bytes(size) + child_of(number)
        waiting.append(payload)
        listings.note(payload, listed(payload) if rng.random() < 0.5 else None)
        if rng.random() < 0.01:
            waiting.append(dense)
            listings.note(dense)
        del waiting[:-50]
        if rng.random() < 0.1:
            wanted = rng.choice((number, max(number - 30, 0), 91_000, 99_999))
            there = any(child_of(wanted) in each for each in waiting)
            found = listings.any_names(iter(waiting), {trace(wanted)})
            assert found or not there
        held = sum(map(len, listings._unlisted))
        assert held <= max(LISTED_BYTES, 50 * (size + 100) // 4)
        assert len(listings._ids) <= LISTED_IDS
        assert not listings._dense  # Only while it is looked for.
    assert not listings.any_names([], {trace(99_999)})


def test_listings_may_begin_with_the_first_question() -> None:
    """Until then they take nothing."""
    listings = Listings(parents.ids, parents.named, whole=False)
    waiting = [child_of(number) for number in range(3)]
    for payload in waiting:
        listings.note(payload)
    assert not listings._unlisted
    listings.latest = child_of(7)
    assert listings.any_names(waiting, {key(2)[TRACE:]})
    assert listings.any_names([], {key(7)[TRACE:]})
    assert not listings.any_names([], {key(5)[TRACE:]})
    listings.note(child_of(5))
    assert listings.any_names([], {key(5)[TRACE:]})


def test_listings_do_not_hold_on_to_payloads_that_are_full_of_candidates() -> None:
    listings = Listings(traces.ids, traces.named, whole=True)
    for number in range(20):
        listings.note(b"".join(child_of(number * 1000 + n) for n in range(1000)))
        assert not listings.any_names([], {trace(99_999)})
        assert not listings._dense
        assert not listings._unlisted
    # What waits is looked at all the same.
    waiting = [b"".join(child_of(n) for n in range(1000))]
    listings.note(waiting[0])
    for _ in range(2):
        assert listings.any_names(waiting, {trace(999)})
        assert not listings.any_names(waiting, {trace(99_999)})


def test_nothing_is_held_that_is_not_processed() -> None:
    filters = SpanFilter(UrlRules(("/health",), None), drop_events=True, ratio=1)
    for payload in (b"\x0a\x02\x12\x00", b"\x0a\xff/health"):
        with contextlib.suppress(MalformedError):
            filters.count(payload)
        assert filters._look is None
