"""The ring against a list of numbers, and its corners one by one."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proto_stubs import METRICS, PROFILES, TRACES
from relay import wire
from relay.ring import CHUNK_OVERHEAD, Chunk, Dropped, Ring
from tests.numbered import metrics, numbers_of, profiles, spans

LARGE = 1 << 30


def _numbers(chunks: list[Chunk[str]], ring: Ring[str]) -> list[int]:
    return list(chain.from_iterable(numbers_of(chunk.payload, ring.schema) for chunk in chunks))


def _waiting(ring: Ring[str]) -> list[int]:
    return list(
        chain.from_iterable(numbers_of(chunk.payload, ring.schema)[chunk.skip :] for chunk in ring)
    )


def _offer(ring: Ring[str], payload: bytes) -> Dropped | None:
    units, items = wire.count(payload, ring.schema)
    return ring.offer(payload, units, items, 0.0)


def _any(_: str | None) -> bool:
    return True


class RingMachine(RuleBasedStateMachine):
    """Spans of one weight: what survives is exactly what a list of numbers says."""

    def __init__(self) -> None:
        super().__init__()
        self.next = 0
        self.out: list[list[Chunk[str]]] = []
        self.model: list[int] = []
        self.lost = 0
        self.ring: Ring[str] = Ring(TRACES, 20, LARGE)

    @rule(size=st.integers(1, 30))
    def offer(self, size: int) -> None:
        numbers = range(self.next, self.next + size)
        self.next += size
        dropped = _offer(self.ring, spans(numbers))
        self.model += numbers
        self._shrink(dropped)

    @rule(items=st.integers(1, 12))
    def take(self, items: int) -> None:
        batch = self.ring.take(items, LARGE, _any)
        taken = _numbers(batch, self.ring)
        expected, self.model = self.model[: len(taken)], self.model[len(taken) :]
        assert taken == expected
        # Whole, or near enough to it that cutting does not pay.
        assert not self.model or items * 3 / 4 <= len(taken) <= items
        assert sum(chunk.items for chunk in batch) == len(expected)
        if batch:
            self.out.append(batch)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def put_back(self, which: int) -> None:
        batch = self.out.pop(which % len(self.out))
        self.model = sorted(self.model + _numbers(batch, self.ring))
        self._shrink(self.ring.put_back(batch))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def split_and_put_back(self, which: int) -> None:
        batch = self.out.pop(which % len(self.out))
        older, newer = self.ring.split(batch)
        left, right = _numbers(older, self.ring), _numbers(newer, self.ring)
        assert left + right == _numbers(batch, self.ring)
        assert 0 <= len(right) - len(left) <= 1
        if newer:
            self.out.append(newer)
        self.model = sorted(self.model + left)
        self._shrink(self.ring.put_back(older))

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def deliver(self, which: int) -> None:
        self.out.pop(which % len(self.out))

    @rule(rest=st.integers(0, 4))
    def revise(self, rest: int) -> None:
        def rewrite(payload: bytes, units: int, items: int) -> wire.Slice | None:
            flags = [number % 5 != rest for number in numbers_of(payload, TRACES)]
            assert len(flags) == units == items
            return None if all(flags) else wire.keep(payload, TRACES, flags)

        self.ring.revise(rewrite)
        self.model = [number for number in self.model if number % 5 != rest]

    def _shrink(self, dropped: Dropped | None) -> None:
        excess = max(len(self.model) - 20, 0)
        assert (dropped or Dropped()) == Dropped(queue_full=excess)
        self.model = self.model[excess:]

    @invariant()
    def same(self) -> None:
        assert _waiting(self.ring) == self.model
        assert self.ring.items == len(self.model) == sum(chunk.units for chunk in self.ring)
        assert self.ring.payload_bytes == sum(len(chunk.payload) for chunk in self.ring)
        assert self.ring.retained == self.ring.payload_bytes + CHUNK_OVERHEAD * len(self.ring)
        assert all(a.first < b.first for a, b in pairwise(self.ring))


class WeightedMachine(RuleBasedStateMachine):
    """Metrics of many weights under both limits: bounds, order, and nothing lost uncounted."""

    max_items = 25
    max_bytes = 1500

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, int] = {}
        self.out: list[list[Chunk[str]]] = []
        self.away: set[int] = set()
        self.before: set[int] = set()
        self.ring: Ring[str] = Ring(METRICS, self.max_items, self.max_bytes)

    @rule(weights=st.lists(st.integers(0, 12), min_size=1, max_size=8))
    def offer(self, weights: list[int]) -> None:
        numbers = range(len(self.weights), len(self.weights) + len(weights))
        self.weights.update(zip(numbers, weights, strict=True))
        self._expect(set(numbers), _offer(self.ring, metrics(numbers, weights)))

    @rule(items=st.integers(0, 15), size=st.integers(10, 600))
    def take(self, items: int, size: int) -> None:
        batch = self.ring.take(items, size, _any)
        taken = _numbers(batch, self.ring)
        assert taken == sorted(self.before)[: len(taken)]
        weight = sum(self.weights[number] for number in taken)
        assert weight == sum(chunk.items for chunk in batch)
        assert sum(chunk.units for chunk in batch) == len(taken)
        length = sum(len(chunk.payload) for chunk in batch)
        assert len(taken) == 1 or (weight <= items and length <= size)
        assert taken or not self.before
        if batch:
            self.out.append(batch)
        self.before -= set(taken)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 100))
    def put_back(self, which: int) -> None:
        batch = self.out.pop(which % len(self.out))
        self._expect(set(_numbers(batch, self.ring)), self.ring.put_back(batch))

    def _expect(self, new: set[int], dropped: Dropped | None) -> None:
        there = self.before | new
        self.before = set(_waiting(self.ring))
        lost = there - self.before
        assert self.before <= there
        assert not lost or not self.before or max(lost) < min(self.before)
        lost_items = sum(self.weights[number] for number in lost)
        assert lost_items == sum(dropped or Dropped())
        if lost and dropped is not None and not dropped.queue_bytes and lost_items:
            # One unit fewer would have been too many.
            newest = max(number for number in lost if self.weights[number])
            kept = sum(self.weights[number] for number in self.before)
            assert kept + self.weights[newest] > self.max_items

    @invariant()
    def bounded(self) -> None:
        assert _waiting(self.ring) == sorted(self.before)
        assert self.ring.items == sum(self.weights[number] for number in self.before)
        assert self.ring.items <= self.max_items
        assert self.ring.payload_bytes == sum(len(chunk.payload) for chunk in self.ring)
        assert self.ring.retained <= self.max_bytes


RingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
WeightedMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestRing = RingMachine.TestCase
TestWeighted = WeightedMachine.TestCase


def test_a_request_larger_than_the_ring_keeps_its_newest() -> None:
    ring: Ring[str] = Ring(TRACES, 10, LARGE)
    assert _offer(ring, spans(range(25))) == Dropped(queue_full=15)
    assert _waiting(ring) == list(range(15, 25))


def test_a_unit_larger_than_the_ring_is_dropped_and_what_waits_before_it() -> None:
    ring: Ring[str] = Ring(METRICS, 10, LARGE)
    _offer(ring, metrics([0], [3]))
    assert _offer(ring, metrics([1], [11])) == Dropped(queue_full=14)
    assert ring.items == len(ring) == ring.retained == 0


def test_a_small_span_does_not_pin_a_large_request() -> None:
    ring: Ring[str] = Ring(TRACES, 1000, 200_000)
    _offer(ring, spans([0], pad=150_000))
    ring.offer(spans([1, 2], pad=20_000), 2, 2, 0.0)
    dropped = _offer(ring, spans([3], pad=30_000))
    assert dropped == Dropped(queue_bytes=1)
    assert _waiting(ring) == [1, 2, 3]
    assert ring.retained < 80_000


def test_units_dropped_for_their_number_are_cut_off_before_the_byte_limit_costs_others() -> None:
    ring: Ring[str] = Ring(TRACES, 10, 120_000)
    _offer(ring, spans(range(10), pad=10_000))
    assert _offer(ring, spans(range(10, 19))) == Dropped(queue_full=9)
    # The nine that went are still in memory, and are counted there.
    assert ring.retained > 100_000
    assert _offer(ring, spans([19], pad=40_000)) == Dropped(queue_full=1)
    assert _waiting(ring) == list(range(10, 20))
    assert ring.retained < 60_000


@pytest.mark.parametrize("limit", [700_000, 300_000, 70_000])
def test_the_byte_limit_takes_no_more_than_it_must_from_a_large_request(limit: int) -> None:
    ring: Ring[str] = Ring(TRACES, 10_000, limit)
    dropped = _offer(ring, spans(range(1000), pad=1000))
    assert dropped is not None
    waiting = _waiting(ring)
    assert waiting == list(range(dropped.queue_bytes, 1000))
    assert limit - 3000 < ring.retained <= limit


def test_profiles_are_never_joined_nor_cut() -> None:
    ring: Ring[str] = Ring(PROFILES, 10, LARGE)
    _offer(ring, profiles([1, 2, 3]))
    _offer(ring, profiles([4]))
    assert _numbers(ring.take(2, 1, _any), ring) == [1, 2, 3]
    assert _numbers(ring.take(2, 1, _any), ring) == [4]
    assert ring.take(2, 1, _any) == []


def test_what_is_not_eligible_is_passed_over_and_keeps_its_place() -> None:
    ring: Ring[str] = Ring(TRACES, 100, LARGE)
    for number in range(4):
        _offer(ring, spans([number]))
    for chunk, tag in zip(ring, ["slow", None, "slow", None], strict=True):
        chunk.tag = tag
    assert _numbers(ring.take(10, LARGE, lambda tag: tag is None), ring) == [1, 3]
    assert _waiting(ring) == [0, 2]
    tag = next(iter(ring)).tag
    assert tag is not None
    assert _numbers(ring.take_tagged(tag), ring) == [0, 2]
    assert len(ring) == ring.items == 0


def test_a_full_batch_does_not_cut_into_the_next_request() -> None:
    ring: Ring[str] = Ring(TRACES, 100, LARGE)
    _offer(ring, spans(range(5)))
    following = spans(range(5, 9))
    _offer(ring, following)
    assert _numbers(ring.take(5, LARGE, _any), ring) == list(range(5))
    assert next(iter(ring)).payload is following


def test_clear_says_what_was_there() -> None:
    ring: Ring[str] = Ring(TRACES, 100, LARGE)
    _offer(ring, spans(range(5)))
    assert ring.clear() == 5
    assert ring.oldest is None
    assert ring.retained == 0
