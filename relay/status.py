"""``google.rpc.Status``: the error body of OTLP/HTTP and the details of a gRPC failure.

Pure values, and no protobuf message classes: a status is a handful of fields, and it is read and
written on the forwarding path. The tests hold this against the classes of
googleapis-common-protos.

Layout (google/rpc/status.proto, google/rpc/error_details.proto, google/protobuf/any.proto,
google/protobuf/duration.proto)::

    Status    { int32 code = 1; string message = 2; repeated Any details = 3; }
    Any       { string type_url = 1; bytes value = 2; }
    RetryInfo { Duration retry_delay = 1; }
    Duration  { int64 seconds = 1; int32 nanos = 2; }

Sources: OTLP specification 1.11, "Failures" and "OTLP/gRPC Throttling".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Status", "decode", "decode_json", "encode", "encode_json", "retry_delay"]

_RETRY_INFO = "google.rpc.RetryInfo"
_TYPE_URL = b"type.googleapis.com/google.rpc.RetryInfo"
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")
_NANO = 1_000_000_000


class Status(NamedTuple):
    """``code``: a gRPC status code. ``retry_delay``: seconds, or None without RetryInfo."""

    code: int
    message: str
    retry_delay: float | None = None


def encode(code: int, message: str, retry_delay: float | None = None) -> bytes:
    """A serialized ``google.rpc.Status``.

    Args:
        code: a gRPC status code, 0 to 16.
        message: for the developer who reads the answer; lone surrogates become ``?``.
        retry_delay: seconds, not negative; adds a RetryInfo.
    """
    out = bytearray()
    if code:
        out += b"\x08" + _varint(code)
    if message:
        out += _field(2, message.encode("utf-8", "replace"))
    if retry_delay is not None:
        seconds, nanos = divmod(round(retry_delay * _NANO), _NANO)
        duration = b""
        if seconds:
            duration += b"\x08" + _varint(seconds)
        if nanos:
            duration += b"\x10" + _varint(nanos)
        out += _field(3, _field(1, _TYPE_URL) + _field(2, _field(1, duration)))
    return bytes(out)


def encode_json(code: int, message: str, retry_delay: float | None = None) -> bytes:
    """The same status in the JSON mapping of protobuf."""
    status: dict[str, object] = {"code": code, "message": message}
    if retry_delay is not None:
        seconds, nanos = divmod(round(retry_delay * _NANO), _NANO)
        text = f"{seconds}.{nanos:09}s" if nanos else f"{seconds}s"
        status["details"] = [{"@type": _TYPE_URL.decode(), "retryDelay": text}]
    return json.dumps(status).encode("ascii")


def decode(data: bytes) -> Status:
    """Read a serialized ``google.rpc.Status``; what else it holds is skipped.

    Raises:
        ValueError: the bytes are not a status.
    """
    code, message, delay = 0, "", None
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            code = _signed(value, 32)
        elif number == 2 and isinstance(value, bytes):
            message = value.decode("utf-8", "replace")
        elif number == 3 and isinstance(value, bytes) and delay is None:
            delay = _retry_info(value)
    return Status(code, message, delay)


def decode_json(data: bytes) -> Status:
    """Read a ``google.rpc.Status`` in the JSON mapping.

    Raises:
        ValueError: this is not JSON, or no status.
    """
    try:
        status = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(status, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - what callers catch
    code, message, details = (status.get(name) for name in ("code", "message", "details"))
    delay = None
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict) or not _is_retry_info(str(detail.get("@type"))):
            continue
        delay, text = 0.0, detail.get("retryDelay")
        found = _DURATION.fullmatch(text) if isinstance(text, str) else None
        if found and not found[1]:
            delay = int(found[2]) + int((found[3] or "0").ljust(9, "0")) / _NANO
        break
    return Status(
        code if isinstance(code, int) and not isinstance(code, bool) else 0,
        message if isinstance(message, str) else "",
        delay,
    )


def retry_delay(status: bytes) -> float | None:
    """Seconds that the RetryInfo of a serialized status asks for.

    None: there is no RetryInfo, or the bytes are not a status. 0.0: there is one that names no
    delay, or a negative one; it still says that a retry may succeed.
    """
    try:
        return decode(status).retry_delay
    except ValueError:
        return None


def _is_retry_info(type_url: str) -> bool:
    return type_url.rpartition("/")[2] == _RETRY_INFO


def _retry_info(detail: bytes) -> float | None:
    """Seconds in an Any that holds a RetryInfo; None for any other message."""
    type_url, info = b"", b""
    for number, value in _fields(detail):
        if isinstance(value, bytes):
            if number == 1:
                type_url = value
            elif number == 2:
                info = value
    if not _is_retry_info(type_url.decode("utf-8", "replace")):
        return None
    seconds = nanos = 0
    for number, duration in _fields(info):
        if number != 1 or not isinstance(duration, bytes):
            continue
        # Occurrences of one message field merge: the last value of each field counts.
        for inner, value in _fields(duration):
            if inner == 1 and isinstance(value, int):
                seconds = _signed(value, 64)
            elif inner == 2 and isinstance(value, int):
                nanos = _signed(value, 32)
    return max(0.0, seconds + nanos / _NANO)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values; fixed-width fields are skipped, groups an error."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError("field number 0")
        if kind == 0:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if kind == 2:
            size, position = _read_varint(data, position)
        elif kind == 1:
            size = 8
        elif kind == 5:
            size = 4
        else:
            raise ValueError(f"wire type {kind}")
        if size > end - position:
            raise ValueError("truncated")
        content = data[position : position + size]
        position += size
        if kind == 2:
            yield number, content


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("truncated")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise ValueError("varint longer than 10 bytes")


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content
