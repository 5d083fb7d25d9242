"""Which parent span ids there are in a request, by parsing and by searching."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any
from unittest.mock import patch

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.internal import api_implementation
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from relay.processors import parents
from relay.processors.remembered import Listings
from tests.processors import model


def windows(payload: bytes) -> list[parents.Window]:
    found = parents.windows(payload, len(payload))
    assert found is not None
    return found


FORMS = [
    b'"\x08',
    b'"\x88\x00',
    b'"\x88\x80\x80\x80\x00',
    b"\xa2\x00\x08",
    b"\xa2\x80\x80\x80\x00\x88\x00",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [0, 1, 16370, 16383, 16384, 16385, 40000])
def test_finds_parent_ids_however_they_are_written_and_wherever(form: bytes, before: int) -> None:
    payload = b"." * before + form + b"parentid"
    assert parents.named(payload, {b"parentid"})
    assert not parents.named(payload[:-1], {b"parentid"})
    window = next(w for w in windows(payload) if b"parentid" in w.ids)
    assert before in window.positions(payload, {b"parentid"})


@given(st.lists(st.sampled_from([b'"', b"\x08", b"\xa2", b"\x00", b"\x88", b"\x80", b"a", b"b"])))
def test_no_occurrence_hides_another(pieces: list[bytes]) -> None:
    payload = b"".join(pieces) + b'"\x08parentid' + b"".join(pieces)
    assert parents.named(payload, {b"parentid"})


def request(*ids: bytes, note: str = "") -> bytes:
    out = ExportTraceServiceRequest()
    for one in ids:
        out.resource_spans.add().scope_spans.add().spans.add(parent_span_id=one, name="s")
        out.resource_spans[-1].scope_spans.add().spans.append(Span(trace_state=note))
    return out.SerializeToString()


def test_gives_the_ids_of_all_resources_and_scopes_and_nothing_that_looks_like_one() -> None:
    assert api_implementation.Type() == "upb", "else it is not the parsing that is tested"
    payload = request(b"one_____", b"two_____", b"short", note='"\x08lookalik')
    assert parents.parse(payload, 3) == {b"one_____", b"two_____"}
    assert parents.parse(payload, 2) is None
    assert parents.parse(b"", 0) == set()
    # By searching, what looks like one is among them.
    with patch.object(parents, "_LARGEST", 0):
        assert parents.parse(payload, 3) is None
        found = parents.ids(payload, 9)
    assert found is not None
    assert set().union(*found) == {b"one_____", b"two_____", b"lookalik"}
    assert parents.ids(request(*(5 * [b"one_____"])), 4) is None


def test_holds_on_to_nothing_but_ids() -> None:
    payload = request(b"one_____", b"x" * 100_000)
    assert parents.parse(payload, 9) == {b"one_____"}
    listings = Listings()
    listings.note(payload, parents.ids(payload, 9))
    assert listings._ids == {b"one_____"}
    assert listings.any_names([payload], [b"one_____"])
    listings = Listings()
    listings.note(payload)
    assert not listings.any_names([payload], [b"another_"])
    assert listings._ids == {b"one_____"}


@pytest.mark.parametrize("span", [b"\x22\x08one_____\x0c", b"\x22\x08one_____\x0a\x05xx"])
def test_where_a_span_does_not_parse_the_bytes_are_searched(span: bytes) -> None:
    payload = span
    for tag in (b"\x12", b"\x12", b"\x0a"):
        payload = tag + bytes((len(payload),)) + payload
    assert parents.parse(payload, 9) is None
    assert parents.ids(payload, 9) == [[b"one_____"]]


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
    payload = request(b"one_____")
    parents._parser.cache_clear()
    try:
        with lacking:
            assert parents.parse(payload, 9) is None
            assert parents.ids(payload, 9) == [[b"one_____"]]
    finally:
        parents._parser.cache_clear()


def test_what_is_too_large_to_be_parsed_is_searched() -> None:
    payload = request(b"one_____", note="n" * parents._LARGEST)
    assert parents.parse(payload, 9) is None
    assert parents.ids(payload, 9) == [[b"one_____"]]
    payload = request(b"one_____", note="n" * (parents._LARGEST // 2))
    assert parents.ids(payload, 9) == ({b"one_____"},)


@given(st.integers(0, 2**64))
def test_misses_none_however_a_request_is_written(seed: int) -> None:
    rng = random.Random(seed)
    payload = model.Writer(rng).request(6)
    spans = model.spans_of(ExportTraceServiceRequest.FromString(payload))
    there = {span.parent_span_id for span in spans if len(span.parent_span_id) == 8}
    parsed = parents.parse(payload, len(payload))
    assert parsed is not None
    assert there <= parsed
    searched = set().union(*(window.ids for window in windows(payload)))
    assert parsed <= searched


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
