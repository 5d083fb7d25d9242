from __future__ import annotations

import random
import tracemalloc

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from relay import wire
from relay.processors.remembered import MOST, Remembered
from relay.processors.settled import Settled
from relay.processors.shapes import Shape, outline
from relay.processors.spans import sift

TRACE = b"0123456789abcdef"
SERVER, EVENT = 1, 3


def framed(identity: bytes, parent: bytes = b"", name: str = "", trace: bytes = TRACE) -> bytes:
    span = Span(trace_id=trace, span_id=identity, parent_span_id=parent, name=name)
    raw = span.SerializeToString()
    return b"\x12" + wire.varint(len(raw)) + raw


def shape(span: bytes, code: int) -> Shape:
    return Shape(((outline(span, 0, 2, len(span)), code),))


def settled(*spans: tuple[bytes, int]) -> Settled:
    """Of spans, each with its code."""
    found: dict[Shape, list[bytes]] = {}
    for span, code in spans:
        made = shape(span, code)
        match = made.match(span, 0)
        assert match
        found[made] = [match[1]]
    return Settled(found, frozenset((EVENT,)))


def key(identity: bytes) -> bytes:
    return TRACE + identity


def test_knows_traces_keys_and_what_is_above_and_below() -> None:
    spans = settled(
        (framed(b"server__", b"outside_"), SERVER),
        (framed(b"event___", b"server__"), EVENT),
        (framed(b"noparent", name="x"), EVENT),
    )
    assert spans.removed == {SERVER: 1, EVENT: 2}
    assert spans.spans == 3
    assert spans.traces == {TRACE}
    assert spans.other_traces() == set()
    assert spans.span_ids() == {b"server__", b"event___", b"noparent"}
    assert spans.roots == {key(b"server__")}
    assert set(spans.parents()) == {key(b"outside_"), key(b"server__")}
    assert spans.children({key(b"server__"), b"\1" * 24}) == {key(b"event___")}


def test_of_several_in_one_shape_each_counts() -> None:
    one, other = framed(b"server__"), framed(b"event___", b"server__")
    both = Shape(
        ((outline(one, 0, 2, len(one)), SERVER), (outline(other, 0, 2, len(other)), EVENT))
    )
    scope = 3 * (one + other)
    entry = b"\x12" + wire.varint(len(scope)) + scope
    payload = b"\x0a" + wire.varint(len(entry)) + entry
    match = both.match(payload, payload.index(one))
    assert match
    spans = Settled({both: 3 * [match[1]]}, frozenset((EVENT,)))
    assert spans.removed == {SERVER: 3, EVENT: 3}
    assert spans.spans == 6
    assert spans.traces == {TRACE}
    assert spans.other_traces() == set()
    assert spans.condemned() == {key(b"server__"), key(b"event___")}
    assert sift(payload, {})  # It is a request.


def test_condemns_servers_with_what_is_below_them() -> None:
    spans = settled(
        (framed(b"lowest__", b"low_____"), EVENT),
        (framed(b"low_____", b"server__", name="1"), EVENT),
        (framed(b"server__", name="22"), SERVER),
        (framed(b"orphan__", b"earlier_", name="333"), EVENT),
        (framed(b"other___", b"unknown_", name="4444"), EVENT),
    )
    assert spans.condemned() == {key(b"server__"), key(b"low_____"), key(b"lowest__")}


def test_tells_traces_in_which_a_server_went_from_others() -> None:
    """Event spans take nothing along, unless somebody knows what is above them."""
    spans = settled(
        (framed(b"server__"), SERVER),
        (framed(b"event___", b"server__"), EVENT),
        (framed(b"event___", b"kept____", name="x", trace=bytes(16)), EVENT),
    )
    assert spans.traces == {TRACE}
    assert spans.other_traces() == {bytes(16)}
    assert spans.weight == 4 + 3


def test_circles_end() -> None:
    spans = settled(
        (framed(b"one_____", b"two_____"), EVENT),
        (framed(b"two_____", b"one_____", name="x"), SERVER),
    )
    assert spans.condemned() == {key(b"one_____"), key(b"two_____")}


def test_ids_that_name_no_span_condemn_nothing() -> None:
    spans = settled(
        (framed(bytes(8)), SERVER),
        (framed(b"child___", bytes(8)), EVENT),
        (framed(b"", b"child___", name="no id"), SERVER),
    )
    assert spans.removed == {SERVER: 2, EVENT: 1}
    assert spans.condemned() == set()
    assert settled((framed(b"", name="no id"), SERVER)).traces == set()


def test_a_long_line_of_descendants_goes_as_a_whole() -> None:
    names = [number.to_bytes(8) for number in range(1, 3000)]
    server, below = shape(framed(names[0]), SERVER), shape(framed(names[1], names[0]), EVENT)
    found: dict[Shape, list[bytes]] = {server: [], below: []}
    for above, name in zip([b"", *names], names, strict=False):
        made = below if above else server
        match = made.match(framed(name, above), 0)
        assert match
        found[made].append(match[1])
    assert Settled(found, frozenset((EVENT,))).condemned() == set(map(key, names))


@pytest.mark.parametrize("spans", [1, 100])
@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("state", [0, 40, 240, 800])
def test_what_is_remembered_costs_about_what_is_said(spans: int, members: int, state: int) -> None:
    """Each of a trace of its own. ``state``: bytes that stand between its ids."""
    span = Span(trace_id=TRACE, span_id=b"server__", parent_span_id=b"parentid")
    span.trace_state = "x" * state
    raw = span.SerializeToString()
    one = b"\x12" + wire.varint(len(raw)) + raw
    made = Shape(members * ((outline(one, 0, len(one) - len(raw), len(one)), SERVER),))
    rng = random.Random(1)

    def filtered() -> Settled:
        parts = []
        for _ in range(spans):
            other = members * one.replace(TRACE, rng.randbytes(16))
            match = made.match(other.replace(b"server__", rng.randbytes(8)), 0)
            assert match
            parts.append(match[1])
        return Settled({made: parts}, frozenset((EVENT,)))

    largest = 0
    tracemalloc.start()
    try:
        seen = Remembered()
        before, _ = tracemalloc.get_traced_memory()
        for now in range(2 * MOST // (4 + spans * members)):  # Twice as many as there is room for.
            assert seen.defer(filtered(), set(), now / 1000)
            if now % 16 == 0:
                largest = max(largest, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert largest < 5 * 2**20
