"""Where parent span ids may stand in a request."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from relay.processors import parents
from tests.processors import model


def windows(payload: bytes) -> list[parents.Window]:
    found = parents.windows(payload, len(payload))
    assert found is not None
    return found


def ids(payload: bytes) -> set[bytes]:
    return set().union(*(window.ids for window in windows(payload)))


FORMS = [
    b'"\x08',
    b'"\x88\x00',
    b'"\x88\x80\x80\x80\x00',
    b"\xa2\x00\x08",
    b"\xa2\x80\x80\x80\x00\x88\x00",
    b"\xa2\x80\x80\x80\x00\x88\x80\x80\x80\x00",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("before", [0, 1, 16370, *range(65525, 65538), 70000])
def test_finds_parent_ids_however_they_are_written_and_wherever(form: bytes, before: int) -> None:
    payload = b"." * before + form + b"parentid"
    assert parents.overlong(payload) == form.startswith(b"\xa2")
    assert not ids(payload[:-1])
    assert parents.named(payload, {b"parentid", b"another_"})
    assert not parents.named(payload, {b"another_"})
    window = next(w for w in windows(payload) if b"parentid" in w.ids)
    assert before in window.positions(payload, {b"parentid"})
    assert not window.positions(payload, {b"another_"})


@given(st.lists(st.sampled_from([b'"', b"\x08", b"\xa2", b"\x00", b"\x88", b"\x80", b"a", b"b"])))
def test_no_occurrence_hides_another(pieces: list[bytes]) -> None:
    payload = b"".join(pieces) + b'"\x08parentid' + b"".join(pieces)
    assert b"parentid" in ids(payload)


def test_too_many_are_not_listed() -> None:
    payload = 5 * b'"\x08parentid'
    assert parents.windows(payload, 4) is None
    assert parents.windows(payload, 5) is not None
    assert parents.ids(payload, 4) is None
    assert parents.ids(payload, 5) == {b"parentid"}


@given(st.integers(0, 2**64))
def test_misses_none_however_a_request_is_written(seed: int) -> None:
    rng = random.Random(seed)
    payload = model.Writer(rng).request(6)
    spans = model.spans_of(ExportTraceServiceRequest.FromString(payload))
    there = {span.parent_span_id for span in spans if len(span.parent_span_id) == 8}
    assert there <= ids(payload)
