"""relay.status, held against the message classes of googleapis-common-protos."""

from __future__ import annotations

import json

import pytest
from google.protobuf import any_pb2, duration_pb2, json_format
from google.rpc import (  # type: ignore[import-untyped]  # generated, without stubs
    error_details_pb2,
    status_pb2,
)
from hypothesis import given
from hypothesis import strategies as st

from relay import status

codes = st.integers(0, 16)
delays = st.none() | st.floats(0, 1e6, allow_nan=False)


def oracle(code: int, message: str, delay: duration_pb2.Duration | None) -> status_pb2.Status:
    expected = status_pb2.Status(code=code, message=message)
    if delay is not None:
        expected.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return expected


@given(codes, st.text(), delays)
def test_encoded_status_parses_as_the_real_class(
    code: int, message: str, delay: float | None
) -> None:
    parsed = status_pb2.Status.FromString(status.encode(code, message, delay))
    assert (parsed.code, parsed.message) == (code, message)
    assert len(parsed.details) == (delay is not None)
    if delay is not None:
        info = error_details_pb2.RetryInfo()
        assert parsed.details[0].Unpack(info)
        assert info.retry_delay.ToNanoseconds() == round(delay * 1e9)


@given(codes, st.text(), delays)
def test_json_parses_as_the_real_class(code: int, message: str, delay: float | None) -> None:
    parsed = json_format.Parse(status.encode_json(code, message, delay), status_pb2.Status())
    assert parsed == status_pb2.Status.FromString(status.encode(code, message, delay))


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.text(),
    st.none() | st.tuples(st.integers(-(10**11), 10**11), st.integers(0, 999_999_999)),
    st.lists(st.binary(max_size=20), max_size=3),
)
def test_reads_what_the_real_class_writes(
    code: int, message: str, delay: tuple[int, int] | None, others: list[bytes]
) -> None:
    written = status_pb2.Status(code=code, message=message)
    for value in others:
        written.details.append(any_pb2.Any(type_url="type.googleapis.com/x.Other", value=value))
    if delay is not None:
        seconds, nanos = delay
        duration = duration_pb2.Duration(seconds=seconds, nanos=-nanos if seconds < 0 else nanos)
        written.MergeFrom(oracle(0, "", duration))
    found = status.decode(written.SerializeToString())
    assert (found.code, found.message) == (code, message)
    assert status.retry_delay(written.SerializeToString()) == found.retry_delay
    if delay is None:
        assert found.retry_delay is None
    else:
        assert found.retry_delay == pytest.approx(max(0.0, delay[0] + delay[1] / 1e9))


@given(st.text(), st.integers(0, 10**9), st.integers(0, 999_999_999))
def test_reads_the_json_that_the_real_class_writes(message: str, seconds: int, nanos: int) -> None:
    written = oracle(14, message, duration_pb2.Duration(seconds=seconds, nanos=nanos))
    found = status.decode_json(json_format.MessageToJson(written).encode())
    assert found[:2] == (14, message)
    assert found.retry_delay == pytest.approx(seconds + nanos / 1e9)


def test_retry_info_without_a_delay_still_says_retry() -> None:
    written = status_pb2.Status(code=8)
    written.details.add().Pack(error_details_pb2.RetryInfo())
    assert status.retry_delay(written.SerializeToString()) == 0.0
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo"}]
    assert status.decode_json(json.dumps({"details": details}).encode()).retry_delay == 0.0


def test_only_retry_info_gives_a_delay() -> None:
    assert status.retry_delay(b"") is None
    assert status.retry_delay(status.encode(8, "full")) is None
    written = status_pb2.Status()
    written.details.add().Pack(duration_pb2.Duration(seconds=3))
    assert status.retry_delay(written.SerializeToString()) is None


@given(st.binary(max_size=60))
def test_any_bytes_are_a_status_or_a_value_error(data: bytes) -> None:
    try:
        found = status.decode(data)
    except ValueError:
        assert status.retry_delay(data) is None
    else:
        assert found.retry_delay == status.retry_delay(data)


@given(codes, st.text(min_size=1), st.floats(0, 1e6), st.data())
def test_truncated_status_is_an_error_or_a_shorter_status(
    code: int, message: str, delay: float, data: st.DataObject
) -> None:
    whole = status.encode(code, message, delay)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert status.retry_delay(whole[:cut]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x08",  # a tag without its value
        b"\x12\x05abc",  # a string shorter than its length
        b"\x08" + b"\xff" * 11,  # a varint without an end
        b"\x0b",  # a group
        b"\x00\x00",  # field number 0
        b"\x1a\x02\x0a\x09",  # damage inside the details
    ],
)
def test_damage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        status.decode(data)
    assert status.retry_delay(data) is None


def test_unknown_fields_are_skipped() -> None:
    unknown = b"\x51" + b"\0" * 8 + b"\x55" + b"\0" * 4 + b"\x58\x01" + b"\x5a\x01x"
    assert status.decode(unknown + status.encode(5, "x") + unknown) == (5, "x", None)


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_status_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        status.decode_json(data)


def test_json_of_other_shapes_is_read_as_far_as_it_goes() -> None:
    assert status.decode_json(b'{"code": "3", "message": 1, "details": {}}') == (0, "", None)
    assert status.decode_json(b'{"message": "m", "details": [1, {"@type": 2}]}') == (0, "m", None)
