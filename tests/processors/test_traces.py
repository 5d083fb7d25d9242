"""Which trace ids there are in a request, by parsing and by searching."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any
from unittest.mock import patch

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.internal import api_implementation
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from relay import wire
from relay.processors import traces
from relay.processors.remembered import Listings
from tests.processors import model

ID, OTHER, LOOKALIKE = b"0123456789abcdef", b"fedcba9876543210", b"looks-like-an-id"

FORMS = [
    b"\x0a\x10",
    b"\x0a\x90\x00",
    b"\x0a\x90\x80\x80\x80\x00",
    b"\x8a\x00\x10",
    b"\x8a\x80\x80\x80\x00\x90\x00",
    b"\x8a\x80\x80\x80\x00\x90\x80\x80\x80\x00",
]


def searched(payload: bytes) -> AbstractSet[bytes]:
    with patch.object(traces, "_LARGEST", 0):
        assert not payload or traces.parse(payload) is None
        found = traces.ids(payload, len(payload))
    assert found is not None
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [0, 1, 16370, *range(65525, 65538), 70000])
def test_searching_finds_ids_however_they_are_written_and_wherever(
    form: bytes, before: int
) -> None:
    payload = b"." * before + form + ID
    assert traces.named(payload, {ID, OTHER})
    assert not traces.named(payload, {OTHER})
    assert not traces.named(payload[:-1], {ID})
    assert searched(payload) == {ID}
    assert searched(payload[:-1]) == set()


@given(
    st.lists(st.sampled_from([b"\x0a", b"\x10", b"\x8a", b"\x00", b"\x90", b"\x80", b"a", b"b"]))
)
def test_no_occurrence_hides_another(pieces: list[bytes]) -> None:
    payload = b"".join(pieces) + b"\x0a\x10" + ID + b"".join(pieces)
    assert traces.named(payload, {ID})
    assert ID in searched(payload)


def request(*ids: bytes, note: str = "") -> bytes:
    out = ExportTraceServiceRequest()
    for one in ids:
        out.resource_spans.add().scope_spans.add().spans.add(trace_id=one, name="s")
        out.resource_spans[-1].scope_spans.add().spans.append(Span(trace_state=note))
    return out.SerializeToString()


def test_gives_the_ids_of_all_resources_and_scopes_and_nothing_that_looks_like_one() -> None:
    assert api_implementation.Type() == "upb", "else it is not the parsing that is tested"
    payload = request(ID, OTHER, ID, b"short", note="\x0a\x10" + LOOKALIKE.decode())
    assert traces.parse(payload) == {ID, OTHER}
    assert traces.parse(b"") == set()
    # By searching, what looks like one is among them.
    assert searched(payload) == {ID, OTHER, LOOKALIKE}


def test_an_id_that_is_written_twice_counts_twice() -> None:
    """Of the field the last one does, but none may be missed."""
    payload = request(ID)
    at = payload.index(b"\x0a\x10" + ID)
    span = payload[at:-4] + b"\x0a\x10" + OTHER
    for tag in (b"\x12", b"\x12", b"\x0a"):
        span = tag + bytes((len(span),)) + span
    (written,) = model.spans_of(ExportTraceServiceRequest.FromString(span))
    assert written.trace_id == OTHER
    assert traces.parse(span) == {ID, OTHER}


def test_too_many_are_none() -> None:
    ids = [number.to_bytes(16) for number in range(5)]
    payload = request(*ids)
    for largest in (0, 1 << 20):
        with patch.object(traces, "_LARGEST", largest):
            assert traces.ids(payload, 4) is None
            assert traces.ids(payload, 5) == set(ids)


def test_what_is_full_of_other_ids_is_searched() -> None:
    """Of a request made of very short ones, lists would take many times its size."""
    payload = b"\x0a\x10" + ID + 65_536 * b"\x0a\x02xx"
    for tag in (b"\x12", b"\x12", b"\x0a"):
        payload = tag + wire.varint(len(payload)) + payload
    assert len(payload) < traces._LARGEST
    traces.parse(b"\x0a\x00")  # Protobuf is loaded.
    tracemalloc.start()
    try:
        assert traces.parse(payload) is None
        assert traces.ids(payload, 9) == {ID}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(payload)


def test_searching_ends_where_one_lookalike_comes_again_and_again() -> None:
    """16 MiB of them would take seconds."""
    payload = (1 << 24) // 18 * (b"\x0a\x10" + ID)
    looked: list[list[bytes]] = []

    def windows(payload: bytes) -> Iterator[list[bytes]]:
        for found in real(payload):
            looked.append(found)
            yield found

    real = traces._windows
    with patch.object(traces, "_windows", windows):
        assert traces.ids(payload, 100) is None
    assert len(looked) == 1
    few = 800 * (b"\x0a\x10" + ID)
    assert traces.ids(few, 100) == {ID}
    assert traces.ids(few + b"\x0a\x10" + ID, 100) is None


def test_holds_on_to_nothing_but_ids() -> None:
    payload = request(ID, b"x" * 100_000)
    assert traces.parse(payload) == {ID}
    listings = Listings(traces.ids, traces.named, whole=True)
    listings.note(payload, traces.ids(payload, 9))
    assert listings._ids == {ID}
    assert listings.any_names([payload], {ID})
    listings = Listings(traces.ids, traces.named, whole=True)
    listings.note(payload)
    assert not listings.any_names([payload], {OTHER})
    assert listings._ids == {ID}


@pytest.mark.parametrize("more", [b"\x0c", b"\x12\x05xx"])
def test_where_a_span_does_not_parse_the_bytes_are_searched(more: bytes) -> None:
    payload = b"\x0a\x10" + ID + more
    for tag in (b"\x12", b"\x12", b"\x0a"):
        payload = tag + bytes((len(payload),)) + payload
    assert traces.parse(payload) is None
    assert traces.ids(payload, 9) == {ID}


class Gone:
    """A module of protobuf that has been moved or changed."""


@pytest.mark.parametrize(
    "lacking",
    [
        patch.object(api_implementation, "Type", return_value="python"),
        patch.object(api_implementation, "Type", side_effect=AttributeError),
        patch.object(descriptor_pool, "DescriptorPool", Gone),
    ],
)
def test_without_the_c_implementation_the_bytes_are_searched(lacking: Any) -> None:
    payload = request(ID)
    traces._parser.cache_clear()
    try:
        with lacking:
            assert traces.parse(payload) is None
            assert traces.ids(payload, 9) == {ID}
    finally:
        traces._parser.cache_clear()


def test_what_is_too_large_to_be_parsed_is_searched() -> None:
    note = "\x0a\x10" + LOOKALIKE.decode()
    payload = request(ID, note=note + "n" * traces._LARGEST)
    assert traces.parse(payload) is None
    assert traces.ids(payload, 9) == {ID, LOOKALIKE}
    payload = request(ID, note=note + "n" * (traces._LARGEST // 2))
    assert traces.ids(payload, 9) == {ID}


@given(st.integers(0, 2**64))
def test_misses_none_however_a_request_is_written(seed: int) -> None:
    rng = random.Random(seed)
    payload = model.Writer(rng).request(6)
    spans = model.spans_of(ExportTraceServiceRequest.FromString(payload))
    there = {span.trace_id for span in spans if len(span.trace_id) == 16}
    parsed = traces.parse(payload)
    assert parsed is not None
    assert there <= parsed <= searched(payload)
    assert all(len(one) == 16 for one in parsed)


def test_protobuf_is_not_loaded_before_it_is_needed() -> None:
    code = """
import sys
from proto_stubs import TRACES
from relay.processors import ProcessorConfig, build
filters = build(TRACES, ProcessorConfig(excluded=("/health",)))
for each in sys.stdin.read().split():
    payload = bytes.fromhex(each)
    assert filters.count(payload) == (1, 1)
    print(filters.process(payload, 1, 1, 0).units, "google.protobuf" in sys.modules)
"""
    server = Span(trace_id=bytes(16), span_id=b"serverid", kind=Span.SPAN_KIND_SERVER)
    server.attributes.add(key="url.path").value.string_value = "/health"
    event = Span(kind=Span.SPAN_KIND_INTERNAL)
    event.attributes.add(key="asgi.event.type").value.string_value = "http.request"
    requests = []
    for span in (Span(name="s"), event, Span(parent_span_id=b"serverid"), server, Span(name="s")):
        one = ExportTraceServiceRequest()
        one.resource_spans.add().scope_spans.add().spans.append(span)
        requests.append(one.SerializeToString().hex())
    told = subprocess.run(
        [sys.executable, "-c", code],
        input=" ".join(requests),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines() == ["1 False", "0 False", "1 False", "0 False", "1 True"]
