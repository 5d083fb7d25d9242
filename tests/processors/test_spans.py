import random
from array import array

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from proto_stubs import TRACES
from relay import wire
from relay.processors.spans import Layout, SpanFacts, layout, path_of_url, read, without
from relay.wire import MalformedError
from tests.processors import model


@pytest.mark.parametrize("seed", range(300))
def test_reads_what_the_message_class_reads(seed: int) -> None:
    payload = model.Writer(random.Random(seed)).request(5)
    spans = model.spans_of(ExportTraceServiceRequest.FromString(payload))
    where = layout(payload, len(spans))
    bodies = [where.body(payload, number) for number in range(len(spans))]
    assert list(zip(bodies, where.ends, strict=True)) == [
        (start, end) for _, _, start, end in wire.index(payload, TRACES).units
    ]
    for number, span in enumerate(spans):
        path = model.path(span)
        assert read(payload, bodies[number], where.ends[number]) == SpanFacts(
            trace_id=span.trace_id,
            span_id=span.span_id,
            parent_id=span.parent_span_id,
            kind=span.kind,
            path=None if path is None else path.encode(),
            event=model.is_event(span),
        )


@pytest.mark.parametrize("seed", range(300))
def test_leaves_out_what_is_marked(seed: int) -> None:
    rng = random.Random(seed)
    payload = model.Writer(rng).request(5)
    request = ExportTraceServiceRequest.FromString(payload)
    units = len(model.spans_of(request))
    gone = bytearray(rng.choice((0, 0, 3)) for _ in range(units))
    left = without(payload, layout(payload, units), gone)
    if all(gone):
        assert left == b""
        return
    expected = model.without(request, ["gone" if flag else "" for flag in gone])
    assert model.canonical(left) == expected.SerializeToString()
    originals = model.Raw.of(payload).spans
    assert model.Raw.of(left).spans == [
        raw for raw, flag in zip(originals, gone, strict=True) if not flag
    ]


def test_entries_in_which_nothing_is_left_out_stay_as_they_are_written() -> None:
    """Overlong lengths and all: only what is cut is written anew."""
    span = b"\x12\x82\x00\x0a\x00"
    scope = b"\x12" + bytes((len(span) | 0x80, 0)) + span
    resource = b"\x0a" + bytes((len(scope) | 0x80, 0)) + scope
    payload = resource * 3
    where = layout(payload, 3)
    assert without(payload, where, bytearray((0, 1, 0))) == resource * 2
    two = b"\x0a" + bytes((len(scope) * 2,)) + scope * 2
    assert without(two, layout(two, 2), bytearray((1, 0))) == b"\x0a" + bytes((len(scope),)) + scope


def test_offsets_of_very_many_spans_are_kept_compactly() -> None:
    count = 200_000
    scope = b"\x12\x00" * count
    scope = b"\x12" + wire.varint(len(scope)) + scope
    payload = b"\x0a" + wire.varint(len(scope)) + scope
    where = layout(payload, count)
    assert len(where.starts) == count
    assert isinstance(where.starts, array)
    assert where.starts.itemsize == 4
    assert without(payload, where, bytearray((1,)) + bytearray(count - 1)) != payload


def test_finds_the_span_at_an_offset() -> None:
    where = Layout([5, 20], [15, 30], [])
    found = {offset: where.at(offset) for offset in (0, 4, 5, 14, 15, 19, 20, 29, 30, 99)}
    assert found == {0: -1, 4: -1, 5: 0, 14: 0, 15: -1, 19: -1, 20: 1, 29: 1, 30: -1, 99: -1}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_truncated_span_is_malformed(cut: int) -> None:
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, kind=Span.SPAN_KIND_SERVER)
    span.attributes.add(key="url.path").value.string_value = "/health"
    raw = span.SerializeToString()
    with pytest.raises(MalformedError):
        read(raw, 0, len(raw) - cut)
    with pytest.raises(MalformedError):
        read(raw + b"\x00" * 100, 0, len(raw) - cut)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://h/a/b", "/a/b"),
        ("https://u:p@h:80/a?b#c", "/a"),
        ("http://h", ""),
        ("http://h?x=/y", ""),
        ("http://h#/y", ""),
        ("http://[::1]:80/x", "/x"),
        ("/a?b", "/a"),
        ("/a?u=http://x/y", "/a"),
        ("", ""),
    ],
)
def test_path_of_a_url(url: str, path: str) -> None:
    assert path_of_url(url.encode()) == path.encode()
