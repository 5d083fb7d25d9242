"""The short way's heads, held against the library that reads all others."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import example, given
from hypothesis import strategies as st

from relay.receivers import plain

# What the requests exporter of the Python SDK, the Go SDK and curl send.
LINES = [
    b"Host: localhost:4318",
    b"User-Agent: OTel-OTLP-Exporter-Python/1.45.2",
    b"Accept-Encoding: gzip, deflate",
    b"Accept: */*",
    b"Connection: keep-alive",
    b"Content-Type: application/x-protobuf",
    b"Content-Length: 17",
]


def joined(lines: list[bytes], first: bytes = b"POST /v1/traces HTTP/1.1") -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


def test_what_exporters_send() -> None:
    data = joined(LINES)
    assert plain.head(data + b"x" * 17) == ("/v1/traces", len(data), 17)
    assert plain.head(data) == ("/v1/traces", len(data), 17)
    assert plain.head(joined([line.lower() for line in LINES])) == ("/v1/traces", len(data), 17)
    assert plain.head(joined([LINES[0], LINES[5], LINES[6]])) is not None
    assert plain.head(joined([*LINES, b"X-Scope-OrgID: 1", b"Authorization:Basic eDp5"]))


@pytest.mark.parametrize(
    "first",
    [
        b"GET /v1/traces HTTP/1.1",
        b"POST /v1/traces HTTP/1.0",
        b"POST  /v1/traces HTTP/1.1",
        b"POST v1/traces HTTP/1.1",
        b"POST /v1/\x80 HTTP/1.1",
        b"post /v1/traces HTTP/1.1",
        b"\r\nPOST /v1/traces HTTP/1.1",
    ],
)
def test_other_first_lines(first: bytes) -> None:
    assert plain.head(joined(LINES, first)) is None


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
        b"Content-Encoding:",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Trailer: X",
        b"Content-Length: 17",
        b"content-length: 18",
        b"Host: other",
        b"accept: */*",
        b" folded",
        b"X : space before the colon",
        b"X: a\x00b",
        b"X: a\nb",
        b"X: a\rb",
        b"X: \xc3\xa4",
        b": no name",
        b"no colon",
    ],
)
def test_other_headers(line: bytes) -> None:
    assert plain.head(joined([*LINES, line])) is None
    assert plain.head(joined([line, *LINES])) is None


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (0, b"X-Host: none"),
        (4, b"Connection: close"),
        (4, b"Connection: keep-alive, upgrade"),
        (5, b"Content-Type: application/json"),
        (5, b"Content-Type: application/x-protobuf; q=1"),
        (5, b"X: no type"),
        (6, b"Content-Length: -1"),
        (6, b"Content-Length: +17"),
        (6, b"Content-Length: 1_7"),
        (6, b"Content-Length: 0x11"),
        (6, b"Content-Length:"),
        (6, b"Content-Length: 1, 1"),
        (6, b"Content-Length: 1000000000"),
        (6, b"X: no length"),
    ],
)
def test_other_values(place: int, line: bytes) -> None:
    lines = list(LINES)
    lines[place] = line
    assert plain.head(joined(lines)) is None


def test_a_head_that_is_not_whole_or_too_long() -> None:
    data = joined(LINES)
    assert all(plain.head(data[:end]) is None for end in range(len(data)))
    long = [*LINES, b"X: " + b"x" * (plain.HEAD - len(data) - 5)]
    assert len(joined(long)) == plain.HEAD
    assert plain.head(joined(long)) is not None
    assert plain.head(joined([*long[:-1], long[-1] + b"x"])) is None


def library(data: bytes) -> list[Any]:
    """What aiohttp's parser makes of the same bytes."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(mock.Mock(), loop, 2**16)
        messages, _, _ = parser.feed_data(data)
        return list(messages)
    finally:
        loop.close()


tokens = st.binary(max_size=6) | st.sampled_from(
    [b"\r\n", b"\r", b"\n", b":", b" ", b"\t", b"\0", b"Content-Length: 3\r\n", b"chunked", b"POST"]
)


@given(
    order=st.permutations(LINES),
    edits=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 4), tokens), max_size=3),
)
@example(order=LINES, edits=[])
def test_what_is_recognised_the_library_reads_alike(
    order: list[bytes], edits: list[tuple[int, int, bytes]]
) -> None:
    data = bytearray(joined(order))
    for at, gone, new in edits:
        data[at : at + gone] = new
    found = plain.head(bytes(data))
    if found is None:
        return
    whole = bytes(data[: found.size]) + b"x" * found.length
    try:
        messages = library(whole)
    except HttpProcessingError as error:
        pytest.fail(f"{whole!r} is not HTTP: {error}")
    ((message, payload),) = messages
    assert (message.method, message.path) == ("POST", found.path)
    assert message.version == (1, 1)
    assert (message.should_close, message.chunked, message.upgrade) == (False, False, False)
    assert message.compression is None
    assert message.headers["Content-Type"] == "application/x-protobuf"
    assert int(message.headers["Content-Length"]) == found.length
    assert payload.is_eof()
    assert payload.total_bytes == found.length
