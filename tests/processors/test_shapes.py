from __future__ import annotations

import random
import re
from unittest.mock import patch

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from relay import wire
from relay.processors import shapes
from relay.processors.shapes import Shapes, expression
from relay.wire import MalformedError


def made(
    *, path: str = "/health", port: int = 40000, name: str = "GET /health", parent: bytes = b""
) -> Span:
    span = Span(
        trace_id=b"0123456789abcdef",
        span_id=b"spanspan",
        parent_span_id=parent,
        name=name,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=5,
        end_time_unix_nano=6,
        flags=1,
    )
    for key, value in (("client.address", "10.0.0.1"), ("url.path", path)):
        span.attributes.add(key=key).value.string_value = value
    span.attributes.add(key="client.port").value.int_value = port
    return span


def framed(span: Span | bytes) -> tuple[bytes, int]:
    """With tag and length, and where the message begins."""
    raw = span if isinstance(span, bytes) else span.SerializeToString()
    head = b"\x12" + wire.varint(len(raw))
    return head + raw, len(head)


def shape_of(span: Span | bytes) -> tuple[re.Pattern[bytes], list[int]]:
    raw, body = framed(span)
    return expression(raw, 0, body, len(raw))


def test_matches_what_differs_only_where_it_does_not_matter() -> None:
    pattern, ids = shape_of(made())
    raw, body = framed(made(port=54321, name="PUT /health"))
    other = raw.replace(b"0123456789abcdef", bytes(16)).replace(b"10.0.0.1", b"10.9.9.9")
    assert pattern.fullmatch(other)
    assert ids == [body + 2, body + 20, 0]
    assert other[ids[0] : ids[0] + 16] == bytes(16)
    assert other[ids[1] : ids[1] + 8] == b"spanspan"


@pytest.mark.parametrize(
    "other",
    [
        made(path="/healtx"),
        made(path="/healthz"),
        made(port=1),
        made(name="GET"),
        made(parent=b"parentid"),
    ],
)
def test_matches_nothing_that_differs_in_what_matters_or_in_length(other: Span) -> None:
    pattern, _ = shape_of(made())
    assert not pattern.match(framed(other)[0])


@pytest.mark.parametrize("kind", [0, 1, 3, 4, 5])
def test_the_kind_matters(kind: Span.SpanKind.ValueType) -> None:
    other = made()
    other.kind = kind
    assert not shape_of(made())[0].match(framed(other)[0])


def test_where_the_parent_stands() -> None:
    pattern, ids = shape_of(made(parent=b"parentid"))
    raw, _ = framed(made(parent=b"p@rentid"))
    assert pattern.match(raw)
    assert raw[ids[2] : ids[2] + 8] == b"p@rentid"


@pytest.mark.parametrize(
    "more",
    [
        b"\x12\x08spanspan",  # the span id again
        b"\x0a\x01x",  # a trace id of another length
        b"\xff",  # not a field
        b"\x0c",  # the end of a group that never began
    ],
)
def test_gives_up_on_what_is_written_otherwise(more: bytes) -> None:
    with pytest.raises(MalformedError):
        shape_of(made().SerializeToString() + more)


def test_a_key_that_is_written_twice_is_taken_literally() -> None:
    odd = b"\x0a\x01k\x0a\x01l\x12\x03\x0a\x01v"
    raw = made().SerializeToString() + b"\x4a" + bytes((len(odd),)) + odd
    pattern, _ = shape_of(raw)
    assert pattern.match(framed(raw)[0])
    assert not pattern.match(framed(raw.replace(b"\x01v", b"\x01w"))[0])


def test_learns_after_some_of_one_size_and_no_more_than_its_bounds() -> None:
    known = Shapes()
    raw, body = framed(made())
    for _ in range(3):
        known.learn(raw, 0, body, len(raw), 1)
    assert not known.by_size
    known.learn(raw, 0, body, len(raw), 1)
    ((test, shape),) = known.by_size[len(raw)]
    assert test(raw, 0)
    assert shape.code == 1
    with patch.object(shapes, "_PAUSE", 1), patch.object(shapes, "_SEEN", 1):
        rng = random.Random(1)
        for _ in range(1000):
            raw, body = framed(made(path="/" + "x" * rng.randrange(2000)))
            known.learn(raw, 0, body, len(raw), 1)
    assert sum(map(len, known.by_size.values())) <= 64
    assert max(known.by_size) <= 2048


def test_waits_between_two_shapes() -> None:
    known = Shapes()
    for size in range(30):
        raw, body = framed(made(path="/" * size))
        for _ in range(10):
            known.learn(raw, 0, body, len(raw), 1)
    assert 2 <= len(known.by_size) <= 4
