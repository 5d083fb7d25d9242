"""relay.receivers.http: real clients and raw sockets against the real receiver."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import logging
import socket
import stat
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import uvloop
from aiohttp import web
from google.protobuf import json_format
from google.rpc import status_pb2  # type: ignore[import-untyped]  # generated, without stubs
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from relay import tls, wire
from relay.otlp import LOGS, METRICS, PROFILES, SIGNALS, TRACES, SignalSchema
from relay.receivers import Listen, ReceiverConfig, Refusal, RefusedError, ServerTls, Transport
from relay.receivers import http as receiver_module
from relay.receivers.http import HttpReceiver
from tests.pki import Authority

MIB = 1024 * 1024
DEADLINE = 20.0
"""Seconds after which what is waited for is a failure."""
PROTOBUF, JSON = "application/x-protobuf", "application/json"
RESPONSES = {PROTOBUF: b"", JSON: b"{}"}


@dataclass
class Recorder:
    """A consumer that takes what is a request, as the pipeline does."""

    taken: list[tuple[SignalSchema, bytes, Transport]] = field(default_factory=list)
    counted: list[tuple[str, Refusal]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    unavailable: bool = False
    broken: bool = False

    def consume(self, signal: SignalSchema, payload: bytes, transport: Transport) -> None:
        if self.broken:
            raise RuntimeError("a defect")
        if self.unavailable:
            raise RefusedError(Refusal.UNAVAILABLE, "not now")
        try:
            wire.count(payload, signal)
        except wire.MalformedError as exc:
            raise RefusedError(Refusal.INVALID, str(exc)) from None
        self.taken.append((signal, payload, transport))

    def refused(
        self, signal: SignalSchema, transport: Transport, refusal: Refusal, seconds: float
    ) -> None:
        assert transport == "http"
        self.counted.append((signal.name, refusal))
        self.seconds.append(seconds)


CONFIG = ReceiverConfig(grpc=Listen(), http=Listen("127.0.0.1", 0))


class Running(NamedTuple):
    receiver: HttpReceiver
    recorder: Recorder
    port: int
    bound: list[str]

    def url(self, path: str = "/v1/traces") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextlib.asynccontextmanager
async def running(config: ReceiverConfig = CONFIG, **changes: Any) -> AsyncIterator[Running]:
    recorder = Recorder()
    receiver = HttpReceiver(replace(config, **changes), recorder)
    bound = await receiver.start()
    try:
        port = 0 if bound[0].startswith("unix:") else int(bound[0].rpartition(":")[2])
        yield Running(receiver, recorder, port, bound)
    finally:
        await receiver.stop(0)
    assert receiver.held == 0
    assert receiver.connections == 0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def message(self) -> str:
        """The google.rpc.Status in the body, which must be one."""
        parsed = status_pb2.Status()
        if self.headers["content-type"] == JSON:
            json_format.Parse(self.body, parsed)
        else:
            assert self.headers["content-type"] == PROTOBUF
            parsed.ParseFromString(self.body)
        assert parsed.code
        message: str = parsed.message
        assert message
        return message


class Client:
    """A connection that sends what it is told, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> Answer:
        async with asyncio.timeout(DEADLINE):
            line = await self.reader.readuntil(b"\r\n")
            version, status, _ = line.split(b" ", 2)
            assert version.startswith(b"HTTP/")
            headers = {}
            while (line := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = b""
            if not head and "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(status), headers, body)

    async def closed(self) -> bytes:
        """What comes until the other side closes."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@contextlib.asynccontextmanager
async def connected(port: int, path: str = "") -> AsyncIterator[Client]:
    if path:
        reader, writer = await asyncio.open_unix_connection(path)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def request(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/v1/traces",
    media: str | None = PROTOBUF,
    length: int | None = None,
    **headers: str,
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    if media is not None:
        lines.append(f"Content-Type: {media}")
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def ask(port: int, data: bytes) -> Answer:
    async with connected(port) as client:
        await client.send(data)
        return await client.answer()


def trace(name: str = "span") -> ExportTraceServiceRequest:
    made = ExportTraceServiceRequest()
    made.resource_spans.add().scope_spans.add().spans.add(
        trace_id=b"t" * 16, span_id=b"s" * 8, name=name
    )
    return made


def in_json(made: ExportTraceServiceRequest) -> bytes:
    document = json_format.MessageToDict(made)
    for span in document["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        span |= {"traceId": (b"t" * 16).hex(), "spanId": (b"s" * 8).hex()}
    return json.dumps(document).encode()


def encoded(media: str, made: ExportTraceServiceRequest) -> bytes:
    return in_json(made) if media == JSON else made.SerializeToString()


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


CODINGS: dict[str, tuple[str | None, Callable[[bytes], bytes]]] = {
    "none": (None, bytes),
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "GZip": ("GZip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "raw deflate": ("deflate", raw_deflate),
    "two gzip members": (
        "gzip",
        lambda data: gzip.compress(data[:10]) + gzip.compress(data[10:]),
    ),
}

# --- what is taken ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("media", [PROTOBUF, JSON])
async def test_every_encoding(media: str, coding: str, chunked: bool) -> None:
    made = trace()
    name, compress = CODINGS[coding]
    body = compress(encoded(media, made))
    headers = {"Content-Type": media} | ({"Content-Encoding": name} if name else {})

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7):
            yield body[start : start + 7]

    async with (
        running() as relay,
        aiohttp.ClientSession() as session,
        session.post(relay.url(), data=pieces() if chunked else body, headers=headers) as answer,
    ):
        assert answer.status == 200
        assert answer.headers["Content-Type"] == media
        assert await answer.read() == RESPONSES[media]
    ((signal, payload, transport),) = relay.recorder.taken
    assert (signal, transport) == (TRACES, "http")
    assert ExportTraceServiceRequest.FromString(payload) == made
    if media == PROTOBUF:
        assert payload == made.SerializeToString()
    assert relay.recorder.counted == []


@pytest.mark.parametrize("media", [PROTOBUF, JSON])
@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
async def test_every_signal_also_without_units(signal: SignalSchema, media: str) -> None:
    body = b"{}" if media == JSON else b""
    async with running() as relay:
        answer = await ask(relay.port, request(body, path=signal.http_path, media=media))
        assert (answer.status, answer.body) == (200, RESPONSES[media])
        assert answer.headers["content-type"] == media
    assert relay.recorder.taken == [(signal, b"", "http")]


@pytest.mark.parametrize(
    "media",
    [
        "application/x-protobuf; charset=utf-8",
        "Application/X-Protobuf",
        "application/x-protobuf ;q",
    ],
)
async def test_parameters_and_case_of_the_media_type(media: str) -> None:
    async with running() as relay:
        assert (await ask(relay.port, request(media=media))).status == 200


async def test_a_query_is_no_part_of_the_path() -> None:
    async with running() as relay:
        for path in ("/v1/logs?x=1", "http://elsewhere:1/v1/logs"):
            assert (await ask(relay.port, request(path=path))).status == 200
    assert [signal for signal, _, _ in relay.recorder.taken] == [LOGS, LOGS]


async def test_keep_alive_and_pipelining() -> None:
    async with running() as relay, connected(relay.port) as client:
        bodies = [trace(str(number)).SerializeToString() for number in range(40)]
        for body in bodies[:3]:
            await client.send(request(body))
            assert (await client.answer()).status == 200
        await client.send(b"".join(request(body) for body in bodies[3:]))
        for _ in bodies[3:]:
            assert (await client.answer()).status == 200
    assert [payload for _, payload, _ in relay.recorder.taken] == bodies


async def test_http_1_0_is_answered_and_closed() -> None:
    async with running() as relay, connected(relay.port) as client:
        await client.send(request().replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await client.closed()).startswith(b"HTTP/1.0 200 ")


async def test_a_client_that_waits_for_100_continue() -> None:
    body = trace().SerializeToString()
    async with running() as relay, connected(relay.port) as client:
        await client.send(request(length=len(body), Expect="100-continue"))
        assert (await client.answer()).status == 100
        await client.send(body)
        assert (await client.answer()).status == 200
        # One that does not wait, and sends it all at once, needs none.
        await client.send(request(body, Expect="100-Continue"))
        assert (await client.answer()).status == 200
    assert len(relay.recorder.taken) == 2


async def test_a_refused_client_that_waits_for_100_continue_does_not_send_its_body() -> None:
    async with running() as relay, connected(relay.port) as client:
        await client.send(request(length=10**9, Expect="100-continue"))
        assert (await client.answer()).status == 413
    async with running() as relay:
        answer = await ask(relay.port, request(length=5, Expect="200-maybe"))
        assert answer.status == 417


async def test_an_offer_to_upgrade_is_declined_and_the_request_taken() -> None:
    # Java's HttpClient offers HTTP/2 with its first request.
    body = trace().SerializeToString()
    upgrade: dict[str, Any] = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2_Settings": "AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
    }
    async with running() as relay, connected(relay.port) as client:
        for _ in range(2):
            await client.send(request(body, **upgrade))
            assert (await client.answer()).status == 200
    assert [payload for _, payload, _ in relay.recorder.taken] == [body, body]


# --- section "Bad input" of the contract, row by row ------------------------------------------

NOT_A_REQUEST = {PROTOBUF: trace().SerializeToString()[:-1], JSON: b'{"resourceSpans":[{'}


class Bad(NamedTuple):
    status: int
    message: str
    refusal: Refusal | None
    data: Callable[[str], bytes]


INVALID, TOO_LARGE = Refusal.INVALID, Refusal.TOO_LARGE
LIMIT = 1000
BAD = {
    "malformed": Bad(400, "", None, lambda media: request(NOT_A_REQUEST[media], media=media)),
    "bad gzip": Bad(
        400,
        "the body cannot be decompressed: ",
        INVALID,
        lambda media: request(b"no gzip", media=media, Content_Encoding="gzip"),
    ),
    "bad deflate": Bad(
        400,
        "the body cannot be decompressed: ",
        INVALID,
        lambda media: request(b"\xff\xff\xff", media=media, Content_Encoding="deflate"),
    ),
    "truncated gzip": Bad(
        400,
        "the body cannot be decompressed: it ends early",
        INVALID,
        lambda media: request(
            gzip.compress(encoded(media, trace()))[:-1], media=media, Content_Encoding="gzip"
        ),
    ),
    "no gzip at all": Bad(
        400,
        "the body cannot be decompressed: it ends early",
        INVALID,
        lambda media: request(b"", media=media, Content_Encoding="gzip"),
    ),
    "one byte of deflate": Bad(
        400,
        "the body cannot be decompressed: it ends early",
        INVALID,
        lambda media: request(b"\x78", media=media, Content_Encoding="deflate"),
    ),
    "data after gzip": Bad(
        400,
        "the body cannot be decompressed: ",
        INVALID,
        lambda media: request(
            gzip.compress(encoded(media, trace())) + b"more", media=media, Content_Encoding="gzip"
        ),
    ),
    "data after deflate": Bad(
        400,
        "the body cannot be decompressed: data after its end",
        INVALID,
        lambda media: request(
            zlib.compress(encoded(media, trace())) + b"more",
            media=media,
            Content_Encoding="deflate",
        ),
    ),
    "announced too large": Bad(
        413,
        "larger than 1000 bytes",
        TOO_LARGE,
        lambda media: request(length=LIMIT + 1, media=media),
    ),
    "chunked and too large": Bad(
        413,
        "larger than 1000 bytes",
        TOO_LARGE,
        lambda media: (
            request(media=media).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            + b"3e9\r\n"
            + b"x" * 1001
            + b"\r\n0\r\n\r\n"
        ),
    ),
    "too large after decompression": Bad(
        413,
        "larger than 1000 bytes",
        TOO_LARGE,
        lambda media: request(
            gzip.compress(b"x" * (LIMIT + 1)), media=media, Content_Encoding="gzip"
        ),
    ),
    "wrong method": Bad(
        405, "send POST", INVALID, lambda media: request(method="PUT", media=media)
    ),
    "GET": Bad(405, "send POST", INVALID, lambda media: request(method="GET", media=media)),
    "preflight": Bad(
        405, "send POST", INVALID, lambda media: request(method="OPTIONS", media=media)
    ),
    "encoding": Bad(
        415,
        "Content-Encoding must be gzip, deflate or absent",
        INVALID,
        lambda media: request(media=media, Content_Encoding="zstd"),
    ),
    "two encodings": Bad(
        415,
        "Content-Encoding must be",
        INVALID,
        lambda media: request(media=media, Content_Encoding="gzip, gzip"),
    ),
    "shorter than announced": Bad(
        400,
        "the body is shorter than announced",
        INVALID,
        lambda media: request(b"\n", media=media, length=100),
    ),
}


@pytest.mark.parametrize("media", [PROTOBUF, JSON])
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_bad_input(bad: Bad, media: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(max_request_bytes=LIMIT) as relay:
        async with connected(relay.port) as client:
            await client.send(bad.data(media))
            client.writer.write_eof()
            answer = await client.answer()
        assert answer.status == bad.status
        assert answer.headers["content-type"] == media
        assert bad.message in answer.message()
        if bad.status == 405:
            assert answer.headers["allow"] == "POST"
        if "encoding" in answer.message().lower():
            assert answer.headers["accept-encoding"] == "gzip, deflate"
        # Counted once, here or by the consumer; and the next request is served.
        refusal = bad.refusal or (INVALID if media == JSON else None)
        expected = [("traces", refusal)] if refusal else []
        assert relay.recorder.counted == expected
        assert (await ask(relay.port, request())).status == 200
    assert [payload for _, payload, _ in relay.recorder.taken] == [b""]
    assert caplog.records == []


@pytest.mark.parametrize("media", [None, "text/plain", "application/protobuf", "*/*", "", ";"])
async def test_other_media_types_are_415_in_protobuf(media: str | None) -> None:
    async with running() as relay:
        answer = await ask(relay.port, request(media=media))
        assert answer.status == 415
        assert answer.headers["content-type"] == PROTOBUF
        assert answer.message() == f"Content-Type must be {PROTOBUF} or {JSON}"
    assert relay.recorder.counted == [("traces", INVALID)]


@pytest.mark.parametrize("media", [PROTOBUF, JSON, None])
@pytest.mark.parametrize(
    "path", ["/", "/v1/spans", "/v1/traces/", "/v1", "/v1/traces%00", "*", "//"]
)
async def test_other_paths_are_404_and_not_counted(path: str, media: str | None) -> None:
    async with running() as relay:
        answer = await ask(relay.port, request(path=path, media=media))
        # "*" belongs to OPTIONS; elsewhere it is no HTTP.
        assert answer.status == (400 if path == "*" else 404)
        expected = PROTOBUF if path == "*" else media or PROTOBUF
        assert answer.headers["content-type"] == expected
        assert answer.message()
    assert (relay.recorder.counted, relay.recorder.taken) == ([], [])


async def test_head_has_no_body() -> None:
    async with running() as relay, connected(relay.port) as client:
        await client.send(request(method="HEAD"))
        answer = await client.answer(head=True)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        await client.send(request())
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("media", [PROTOBUF, JSON])
async def test_a_consumer_that_does_not_take_it_now_is_503(media: str) -> None:
    async with running() as relay:
        relay.recorder.unavailable = True
        answer = await ask(relay.port, request(encoded(media, trace()), media=media))
        assert (answer.status, answer.message()) == (503, "not now")
        assert int(answer.headers["retry-after"]) > 0
    assert relay.recorder.counted == []


async def test_a_defect_is_500_with_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as relay:
        relay.recorder.broken = True
        answer = await ask(relay.port, request())
        assert (answer.status, answer.message()) == (500, "internal error")
        relay.recorder.broken = False
        assert (await ask(relay.port, request())).status == 200
    assert [record.getMessage() for record in caplog.records] == ["cannot handle a request"]
    assert caplog.records[0].exc_info is not None


GARBAGE = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"POST /v1/traces\r\n\r\n",
    "long request line": b"POST /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n",
    "long header": b"POST /v1/traces HTTP/1.1\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
    "many headers": b"POST /v1/traces HTTP/1.1\r\n" + b"X: 1\r\n" * 5000 + b"\r\n",
    "bad length": b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    "negative length": b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
    "two lengths": (
        b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
    ),
    "length and chunks": (
        b"POST /v1/traces HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_is_no_http_is_answered_and_closed_without_a_word(
    data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running() as relay:
        async with connected(relay.port) as client:
            await client.send(data)
            answer = await client.answer()
            # HTTP/0.9 has no headers, so no media type either.
            assert answer.status == (415 if data == GARBAGE["no version"] else 400)
            assert answer.message()
            await client.closed()
        assert (await ask(relay.port, request())).status == 200
    assert caplog.records == []


async def test_a_body_longer_than_announced_is_cut_there() -> None:
    body = trace().SerializeToString()
    async with running() as relay, connected(relay.port) as client:
        await client.send(request(body + b"too much", length=len(body)))
        first = (await client.answer()).status
        if first == 200:
            assert (await client.answer()).status == 400
    # In one piece with what is no HTTP the request is refused as a whole.
    assert [payload for _, payload, _ in relay.recorder.taken] == [body] * (first == 200)


@pytest.mark.parametrize("media", [PROTOBUF, JSON])
async def test_a_bad_chunk_is_400(media: str) -> None:
    head = request(media=media).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    async with running() as relay:
        async with connected(relay.port) as client:
            await client.send(head + b"3\r\nabc\r\n")
            await until(lambda: busy(relay))
            await client.send(b"zz\r\n")
            answer = await client.answer()
            assert answer.status == 400
            assert answer.headers["content-type"] == media
            assert answer.message() == "the body is not valid HTTP"
            assert answer.headers["connection"] == "close"
        assert (await ask(relay.port, request())).status == 200
    assert relay.recorder.counted == [("traces", INVALID)]


def busy(relay: Running) -> bool:
    """Whether a handler waits for a body."""
    server = relay.receiver._server
    assert server is not None
    return any(getattr(each, "_content", None) is not None for each in server.connections)


async def test_a_client_that_closes_its_side_after_the_request_is_answered() -> None:
    body = trace().SerializeToString()
    big = in_json(trace("x" * receiver_module.INLINE_JSON))
    async with running() as relay:
        for data in (request(body), request(body) * 3, request(big, media=JSON)):
            async with connected(relay.port) as client:
                await client.send(data)
                client.writer.write_eof()
                assert (await client.closed()).count(b"HTTP/1.1 200 ") >= 1
    assert relay.recorder.taken[0][1] == body


async def test_a_client_that_closes_its_side_in_the_headers() -> None:
    async with running() as relay, connected(relay.port) as client:
        await client.send(b"POST /v1/traces HTTP/1.1\r\nHost: a\r\n")
        client.writer.write_eof()
        answer = await client.answer()
        assert (answer.status, answer.message()) == (400, "the request ends in its headers")
        assert await client.closed() == b""


async def test_clients_that_vanish_are_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as relay:
        for data in (b"", b"POST", request(b"\n" * 100_000, length=200_000)):
            for reset in (False, True):
                async with connected(relay.port) as client:
                    await client.send(data)
                    await until(lambda: relay.receiver.connections == 1)
                    if reset:
                        client.writer.transport.abort()
                await until(lambda: relay.receiver.connections == 0)
        await until(lambda: relay.receiver.held == 0)
        assert (await ask(relay.port, request())).status == 200
    assert len(relay.recorder.taken) == 1
    assert caplog.records == []


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_http_is_answered_or_cut_and_harms_nobody(data: st.DataObject) -> None:
    whole = bytearray(request(trace().SerializeToString(), Content_Encoding="identity"))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        length = data.draw(st.integers(0, 6))
        whole[place : place + length] = data.draw(st.binary(max_size=6))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    heard = Heard()

    async def everything() -> None:
        async with running() as relay:
            async with connected(relay.port) as client:
                with contextlib.suppress(ConnectionError):
                    for start, end in itertools.pairwise([0, *cuts, len(whole)]):
                        await client.send(bytes(whole[start:end]))
                    client.writer.write_eof()
                answer = await client.closed()
                assert not answer or answer.startswith(b"HTTP/")
                assert b" 500 " not in answer.partition(b"\r\n")[0]
            assert (await ask(relay.port, request())).status == 200

    logging.getLogger().addHandler(heard)
    try:
        asyncio.run(everything())
    finally:
        logging.getLogger().removeHandler(heard)
    assert heard.records == []


class Heard(logging.Handler):
    """What is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "raw": raw_deflate,
}


@settings(deadline=None)
@given(
    content=st.binary(max_size=60),
    times=st.sampled_from([1, 3, 1000]),
    step=st.sampled_from([1, 2, 7, 60, 180, 4096]),
    kind=st.sampled_from(sorted(COMPRESSORS)),
    members=st.integers(1, 3),
    data=st.data(),
)
def test_decompression_in_pieces_of_any_size(
    content: bytes, times: int, step: int, kind: str, members: int, data: st.DataObject
) -> None:
    content *= times
    members = members if kind == "gzip" else 1
    packed = COMPRESSORS[kind](content) * members
    cuts = sorted(data.draw(st.lists(st.integers(0, len(packed)), max_size=4)))
    inflater = receiver_module._Inflater("gzip" if kind == "gzip" else "deflate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receiver_module, "STEP", step)
        pieces = [
            piece
            for start, end in itertools.pairwise([0, *cuts, len(packed)])
            for piece in inflater.feed(packed[start:end])
        ]
    inflater.finish()
    assert b"".join(pieces) == content * members
    assert max(map(len, pieces), default=0) <= step


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("coding", ["none", "gzip", "deflate", "raw deflate"])
async def test_the_limit_holds_to_the_byte(coding: str, extra: int) -> None:
    name, compress = CODINGS[coding]
    made = trace("x" * 5000)
    body = made.SerializeToString()
    headers: dict[str, Any] = {"Content_Encoding": name} if name else {}
    async with running(max_request_bytes=len(body) - extra) as relay:
        answer = await ask(relay.port, request(compress(body), **headers))
        assert answer.status == (413 if extra else 200)


async def test_json_that_is_too_large_as_protobuf() -> None:
    point = {"explicitBounds": [1] * 5000}
    metric = {"histogram": {"dataPoints": [point]}}
    document = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}
    body = json.dumps(document, separators=(",", ":")).encode()
    async with running(max_request_bytes=20_000) as relay:
        answer = await ask(relay.port, request(body, path="/v1/metrics", media=JSON))
        assert answer.status == 413
        assert answer.message() == "larger than 20000 bytes as protobuf"
    assert relay.recorder.counted == [("metrics", TOO_LARGE)]
    assert relay.recorder.seconds[0] >= 0


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw deflate"])
async def test_a_bomb_costs_at_most_the_limit(coding: str) -> None:
    name, compress = CODINGS[coding]
    assert name
    limit = 4 * MIB
    bomb = request(compress(bytes(64 * MIB)), Content_Encoding=name)
    async with running(max_request_bytes=limit) as relay:
        await ask(relay.port, request())
        tracemalloc.start()
        try:
            answer = await ask(relay.port, bomb)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert answer.status == 413
    assert peak < 1.5 * limit


async def test_an_announced_giant_is_refused_before_it_is_read() -> None:
    async with running() as relay, connected(relay.port) as client:
        await client.send(request(length=10**12))
        answer = await client.answer()
        assert answer.status == 413
        assert answer.headers["connection"] == "close"


async def test_a_client_that_sends_on_after_a_refusal_sees_the_answer() -> None:
    async with running(max_request_bytes=MIB) as relay, connected(relay.port) as client:
        await client.send(request(length=4 * MIB))
        for _ in range(16):
            await client.send(bytes(MIB // 4))
        assert (await client.answer()).status == 413


@pytest.mark.parametrize("media", [PROTOBUF, JSON])
async def test_a_body_that_does_not_arrive_in_time_is_408(
    media: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver_module, "LINGER", 0.01)
    async with running(request_timeout=0.2) as relay:
        async with connected(relay.port) as client:
            await client.send(request(length=100, media=media))
            answer = await client.answer()
            assert answer.status == 408
            assert answer.headers["content-type"] == media
            assert answer.headers["connection"] == "close"
            assert answer.message() == "the request did not arrive within 0.2 s"
            await client.closed()
        assert relay.recorder.counted == [("traces", INVALID)]


async def drip(client: Client, data: bytes) -> None:
    """A byte now and then, until the other side has enough."""
    with contextlib.suppress(ConnectionError):
        for position in range(len(data)):
            await client.send(data[position : position + 1])
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "start",
    [b"POST /v1/traces HTTP/1.1\r\nX-Slow: ", request(length=10**5)],
    ids=["headers", "body"],
)
async def test_a_byte_now_and_then_does_not_extend_the_time(start: bytes) -> None:
    async with running(request_timeout=0.3) as relay, connected(relay.port) as client:
        await client.send(start)
        dripping = asyncio.get_running_loop().create_task(drip(client, b"x" * 10**4))
        try:
            assert (await client.answer()).status == 408
        finally:
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)


async def test_the_time_begins_with_the_request_not_with_the_connection() -> None:
    timeout = 0.3
    loop = asyncio.get_running_loop()
    async with running(request_timeout=timeout) as relay, connected(relay.port) as client:
        for _ in range(3):
            await client.send(request())
            assert (await client.answer()).status == 200
            await asyncio.sleep(timeout * 0.7)  # idle, which is no request
        start = loop.time()
        await client.send(b"POST /v1/traces HT")
        assert (await client.answer()).status == 408
        assert loop.time() - start >= timeout * 0.9
        assert await client.closed() == b""
    assert len(relay.recorder.taken) == 3


async def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_module, "IDLE_TIMEOUT", 0.1)
    async with running() as relay:
        async with connected(relay.port) as client:
            assert await client.closed() == b""
        async with connected(relay.port) as client:
            await client.send(request())
            assert (await client.answer()).status == 200
            assert await client.closed() == b""


async def test_connections_over_the_limit_are_503_and_slots_are_given_back() -> None:
    async with running(max_connections=3) as relay, contextlib.AsyncExitStack() as stack:
        inside = [await stack.enter_async_context(connected(relay.port)) for _ in range(3)]
        await until(lambda: relay.receiver.connections == 3)
        for data in (b"", request(), request(bytes(300_000))):
            async with connected(relay.port) as client:
                with contextlib.suppress(ConnectionError):
                    await client.send(data)
                answer = await client.answer()
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) > 0
                assert answer.message() == "more than 3 connections"
                assert await client.closed() == b""
        # Those inside were not harmed; when one goes, another may come.
        for client in inside:
            await client.send(request())
            assert (await client.answer()).status == 200
        inside[0].writer.close()
        await until(lambda: relay.receiver.connections == 2)
        assert (await ask(relay.port, request())).status == 200


async def test_many_over_the_limit_do_not_linger_without_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiver_module, "LINGERING", 2)
    async with running(max_connections=1) as relay, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(connected(relay.port))
        await until(lambda: relay.receiver.connections == 1)
        clients = [await stack.enter_async_context(connected(relay.port)) for _ in range(20)]
        for client in clients:
            assert (await client.answer()).status == 503
            assert await client.closed() == b""
        server = relay.receiver._server
        assert server is not None
        for client in clients:
            client.writer.close()
        await until(lambda: server.lingering == 0)


async def test_large_requests_at_once_are_bounded_and_small_ones_served() -> None:
    limit = MIB
    async with running(max_request_bytes=limit) as relay, contextlib.AsyncExitStack() as stack:
        large = [await stack.enter_async_context(connected(relay.port)) for _ in range(10)]
        body = b"\n" + b"\xfb\xff\x3f" + bytes(limit - 5)  # one entry that fills it
        wire_request = request(body)
        for client in large:
            # All but the last byte, so that each is still arriving.
            with contextlib.suppress(ConnectionError):
                await client.send(wire_request[:-1])
        allowed = (receiver_module.BUDGET * limit) // (len(body) - 1 - receiver_module.ALLOWANCE)
        budget = receiver_module.BUDGET * limit
        await until(lambda: relay.receiver.held > budget - limit)
        assert relay.receiver.held <= budget
        assert (await ask(relay.port, request(trace().SerializeToString()))).status == 200
        for client in large:
            with contextlib.suppress(ConnectionError):
                await client.send(wire_request[-1:])
        answers = [await client.answer() for client in large]
        refused = [answer for answer in answers if answer.status == 503]
        assert len(refused) >= 10 - allowed
        assert {answer.status for answer in answers} - {503} <= {200, 400}
        for answer in refused:
            assert answer.message() == "too many large requests at once"
            assert answer.headers["retry-after"] == "1"
        await until(lambda: relay.receiver.held == 0)
        # And then there is room again.
        assert (await ask(relay.port, wire_request)).status in {200, 400}
    assert relay.recorder.counted == [("traces", Refusal.UNAVAILABLE)] * len(refused)


async def test_a_body_in_one_byte_pieces_is_held_as_bytes() -> None:
    body = b"\n" + b"\xfc\xff\x03" + bytes(65_532)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    head = request().replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    async with running() as relay:
        await ask(relay.port, request())
        tracemalloc.start()
        try:
            answer = await ask(relay.port, head + chunks)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert answer.status in {200, 400}
    assert peak < 6 * MIB


async def test_a_thousand_idle_connections_harm_nobody() -> None:
    async with running() as relay, contextlib.AsyncExitStack() as stack:
        for _ in range(200):
            await asyncio.gather(
                *(stack.enter_async_context(connected(relay.port)) for _ in range(5))
            )
        await until(lambda: relay.receiver.connections == 1000)
        for _ in range(20):
            assert (await ask(relay.port, request(trace().SerializeToString()))).status == 200
    assert len(relay.recorder.taken) == 20


async def test_others_are_served_while_a_large_json_request_is_converted() -> None:
    big = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b"{}," * 150_000 + b"{}]}]}]}"
    async with running() as relay:
        async with connected(relay.port) as slow, connected(relay.port) as quick:
            await slow.send(request(big, media=JSON))
            served = 0
            while not any(len(payload) > 100_000 for _, payload, _ in relay.recorder.taken):
                await quick.send(request())
                assert (await quick.answer()).status == 200
                served += 1
            assert (await slow.answer()).status == 200
        assert served > 5


# --- the short way ----------------------------------------------------------------------------


@pytest.fixture
def long_way(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Requests that aiohttp handles from now on, by path."""
    seen: list[str] = []
    answer = HttpReceiver.handle

    async def handle(receiver: HttpReceiver, request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request.path)
        return await answer(receiver, request)

    monkeypatch.setattr(HttpReceiver, "handle", handle)
    return seen


async def settled(relay: Running) -> None:
    """What was sent before has been read: another connection made later was answered."""
    for _ in range(2):
        assert (await ask(relay.port, request(media=JSON, method="GET"))).status == 405
    relay.recorder.counted.clear()


async def test_a_request_in_pieces_takes_the_short_way_from_its_body_on(
    long_way: list[str],
) -> None:
    body = trace().SerializeToString()
    data = request(body)
    start = len(data) - len(body)
    async with running() as relay:
        for cuts in ([start], [start + 1], [len(data) - 1], list(range(start, len(data)))):
            async with connected(relay.port) as client:
                for begin, end in itertools.pairwise([0, *cuts, len(data)]):
                    await client.send(data[begin:end])
                    await asyncio.sleep(0)
                answer = await client.answer()
                assert (answer.status, answer.body) == (200, b"")
                assert answer.headers.keys() == {"content-type", "server", "content-length", "date"}
                assert answer.headers["content-type"] == PROTOBUF
        assert [payload for _, payload, _ in relay.recorder.taken] == [body] * 4
        assert long_way == []


async def test_both_ways_answer_alike(long_way: list[str]) -> None:
    good, bad = trace().SerializeToString(), b"\x0a\x05"
    async with running() as relay, connected(relay.port) as client:
        for body, status in ((good, 200), (bad, 400)):
            answers = []
            # aiohttp takes what names a parameter, and leaves no doubt about the connection.
            for media in (PROTOBUF, f"{PROTOBUF};v=1"):
                await client.send(request(body, media=media))
                answers.append(await client.answer())
            short, long = answers
            assert (short.status, short.body) == (status, long.body)
            assert short.headers["content-type"] == long.headers["content-type"] == PROTOBUF
        assert len(long_way) == 3  # from the first on that was not of the form
        assert relay.recorder.counted == []


async def test_a_large_request_does_not_close_the_short_way(long_way: list[str]) -> None:
    small, large = (trace("x" * size).SerializeToString() for size in (10, 200_000))
    async with running() as relay, connected(relay.port) as client:
        for body in (small, large, small, large, small):
            await client.send(request(body))
            assert (await client.answer()).status == 200
        assert [payload for _, payload, _ in relay.recorder.taken] == [
            *(small, large, small, large, small)
        ]
        assert len(long_way) == 2


@pytest.mark.parametrize("piece", [3, 50, 100, 150, 300, 1000])
async def test_pipelined_requests_are_answered_in_order_however_they_are_cut(piece: int) -> None:
    bodies = [trace(str(number) * (number % 7 * 20)).SerializeToString() for number in range(30)]
    bodies[10] = trace("x" * 70_000).SerializeToString()
    broken = b"\x0a\x05"
    data = b"".join(request(body) for body in [*bodies, broken])
    async with running() as relay, connected(relay.port) as client:
        for start in range(0, len(data), piece):
            client.writer.write(data[start : start + piece])
            if start % 7 == 0:
                await asyncio.sleep(0)
        statuses = [(await client.answer()).status for _ in range(31)]
        assert statuses == [200] * 30 + [400]
    assert [payload for _, payload, _ in relay.recorder.taken] == bodies


async def test_a_kept_request_that_ends_early_or_late(long_way: list[str]) -> None:
    body = trace().SerializeToString()
    async with running() as relay:
        async with connected(relay.port) as client:
            await client.send(request(body, length=len(body) + 1))
            await settled(relay)
            client.writer.write_eof()
            answer = await client.answer()
            assert answer.status == 400
            assert "shorter than announced" in answer.message()
        assert relay.recorder.counted == [("traces", INVALID)]
        async with connected(relay.port) as client:
            await client.send(request(body)[:-1])
            await settled(relay)
            await client.send(body[-1:] + request(body))  # the next begins in the same piece
            assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        assert relay.recorder.taken[-1][1] == body
        async with connected(relay.port) as client:
            await client.send(request(body)[:-1])
            await settled(relay)
        await until(lambda: relay.receiver.connections == 0)
        assert len(relay.recorder.taken) == 2
    assert "/v1/traces" in long_way


async def test_the_time_of_a_kept_request_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_module, "IDLE_TIMEOUT", 0.5)  # it is not idle
    async with running(request_timeout=0.7) as relay, connected(relay.port) as client:
        await client.send(request(b"\x0a", length=2))
        answer = await client.answer()
        assert answer.status == 408
        assert answer.headers["connection"] == "close"
        await until(lambda: relay.recorder.counted == [("traces", INVALID)])


async def test_a_client_that_reads_no_answers_is_aiohttps(long_way: list[str]) -> None:
    async with running() as relay, connected(relay.port) as client:
        await client.send(request())
        assert (await client.answer()).status == 200
        assert relay.receiver._server is not None
        (connection,) = relay.receiver._server.connections
        connection.pause_writing()  # as the transport does with more than 64 KiB to be read
        await client.send(request())
        await until(lambda: bool(long_way))
        assert (await client.answer()).status == 200
        connection.resume_writing()
        await until(lambda: connection._waiter is not None)
        await client.send(request())
        assert (await client.answer()).status == 200
        assert len(long_way) == 1


# --- starting and stopping --------------------------------------------------------------------


async def test_while_stopping_requests_on_open_connections_are_503() -> None:
    async with running() as relay, connected(relay.port) as client:
        await client.send(request())
        assert (await client.answer()).status == 200
        relay.receiver.stopping()
        for media in (PROTOBUF, JSON):
            await client.send(request(encoded(media, trace()), media=media))
            answer = await client.answer()
            assert (answer.status, answer.message()) == (503, "the relay is stopping")
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["content-type"] == media
    assert relay.recorder.counted == [("traces", Refusal.UNAVAILABLE)] * 2


async def test_stop_lets_a_request_in_arrival_finish() -> None:
    body = trace().SerializeToString()
    async with running() as relay:
        async with connected(relay.port) as busy, connected(relay.port) as idle:
            await busy.send(request(length=len(body)) + body[:5])
            await idle.send(request())
            assert (await idle.answer()).status == 200
            await until(lambda: relay.receiver.connections == 2)
            stopping = asyncio.get_running_loop().create_task(relay.receiver.stop(DEADLINE))
            assert await idle.closed() == b""
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", relay.port)
            await busy.send(body[5:])
            answer = await busy.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            await stopping
        await relay.receiver.stop(0)
    assert relay.recorder.taken[-1][1] == body


async def test_stop_does_not_wait_for_a_stuck_client() -> None:
    async with running() as relay, connected(relay.port) as client:
        await client.send(request(length=100) + b"\n")
        await until(lambda: relay.receiver.connections == 1)
        async with asyncio.timeout(DEADLINE):
            await relay.receiver.stop(0.05)
        await client.closed()


async def test_stopping_what_never_started_is_nothing() -> None:
    await HttpReceiver(CONFIG, Recorder()).stop(1)


async def test_a_taken_port_is_a_clear_error_and_nothing_stays_open() -> None:
    async with running() as relay:
        second = HttpReceiver(replace(CONFIG, http=Listen("127.0.0.1", relay.port)), Recorder())
        with pytest.raises(OSError, match="another process listens there"):
            await second.start()
        assert (await ask(relay.port, request())).status == 200


async def test_the_port_is_free_again_after_stop() -> None:
    async with running() as relay:
        await ask(relay.port, request())
    async with running(http=Listen("127.0.0.1", relay.port)) as again:
        assert (await ask(again.port, request())).status == 200


async def test_localhost_is_both_loopback_addresses() -> None:
    async with running(http=Listen("localhost", 0)) as relay:
        for bound in relay.bound:
            host, _, port = bound.rpartition(":")
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            client = Client(reader, writer)
            await client.send(request())
            assert (await client.answer()).status == 200
            writer.close()
        assert relay.bound[0] == f"127.0.0.1:{relay.port}"
        assert relay.bound[1:] in ([], [f"[::1]:{relay.port}"])


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    async with running(http=Listen(path=str(path)), socket_mode=0o600) as relay:
        assert relay.bound == [f"unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        second = HttpReceiver(replace(CONFIG, http=Listen(path=str(path))), Recorder())
        with pytest.raises(OSError, match="another process listens there"):
            await second.start()
        async with connected(0, str(path)) as client:
            await client.send(request(trace().SerializeToString()))
            assert (await client.answer()).status == 200
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with running(http=Listen(path=str(path))), connected(0, str(path)) as client:
        await client.send(request())
        assert (await client.answer()).status == 200


# --- TLS --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running_tls(settings: ServerTls, **changes: Any) -> AsyncIterator[Running]:
    recorder = Recorder()
    warnings: list[str] = []
    receiver = HttpReceiver(
        replace(CONFIG, tls=settings, **changes),
        recorder,
        tls.server_context(settings, warn=warnings.append),
    )
    bound = await receiver.start()
    assert warnings == []
    try:
        yield Running(receiver, recorder, int(bound[0].rpartition(":")[2]), bound)
    finally:
        await receiver.stop(0)


@pytest.mark.parametrize("mutual", [False, True])
async def test_tls(tmp_path: Path, mutual: bool) -> None:
    authority = Authority(tmp_path)
    async with running_tls(authority.server(mutual=mutual)) as relay:
        for certificate in (False, True):
            context = tls.client_context(authority.client(certificate=certificate))
            async with aiohttp.ClientSession() as session:
                post = session.post(
                    f"https://127.0.0.1:{relay.port}/v1/traces",
                    data=trace().SerializeToString(),
                    headers={"Content-Type": PROTOBUF},
                    ssl=context,
                )
                if mutual and not certificate:
                    with pytest.raises(aiohttp.ClientError):
                        await post
                else:
                    async with post as answer:
                        assert answer.status == 200
        await until(lambda: relay.receiver.connections == 0)


async def test_plaintext_to_a_tls_port_is_closed_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    context = tls.client_context(authority.client())
    # One that says nothing is cut.
    async with (
        running_tls(authority.server(), request_timeout=0.1) as relay,
        connected(relay.port) as client,
    ):
        assert await client.closed() == b""
    async with running_tls(authority.server()) as relay:
        async with connected(relay.port) as client:
            await client.send(request())
            assert b"HTTP" not in await client.closed()
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, ssl=context)
        client = Client(reader, writer)
        await client.send(request())
        assert (await client.answer()).status == 200
        writer.close()
    assert caplog.records == []


async def test_connections_over_the_limit_are_503_over_tls_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = tls.client_context(authority.client())
    async with running_tls(authority.server(), max_connections=1) as relay:
        reader, inside = await asyncio.open_connection("127.0.0.1", relay.port, ssl=context)
        await until(lambda: relay.receiver.connections == 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, ssl=context)
        assert (await Client(reader, writer).answer()).status == 503
        for each in (inside, writer):
            each.close()


# --- the other event loop ---------------------------------------------------------------------


def test_on_uvloop_as_on_asyncio(tmp_path: Path) -> None:
    async def everything() -> None:
        for listen in (Listen("127.0.0.1", 0), Listen(path=str(tmp_path / "s"))):
            async with running(http=listen, max_connections=2) as relay:
                async with connected(relay.port, listen.path) as client:
                    await client.send(request(trace().SerializeToString()))
                    assert (await client.answer()).status == 200
                    async with (
                        connected(relay.port, listen.path) as second,
                        connected(relay.port, listen.path) as third,
                    ):
                        assert (await third.answer()).status == 503
                        await second.send(request(length=5) + b"\n")
                        second.writer.write_eof()
                        answer = await second.answer()
                        assert answer.message() == "the body is shorter than announced"
                await until(lambda: relay.receiver.connections == 0)
            async with running(http=listen, request_timeout=0.1) as relay:
                async with connected(relay.port, listen.path) as client:
                    await client.send(request(length=5))
                    assert (await client.answer()).status == 408
                await until(lambda: relay.receiver.connections == 0)
            assert not listen.path or not Path(listen.path).exists()

        authority = Authority(tmp_path)
        context = tls.client_context(authority.client())
        async with running_tls(authority.server(), max_connections=1) as relay:
            for expected in (200, 503):
                reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, ssl=context)
                client = Client(reader, writer)
                opened.append(writer)
                if expected == 200:
                    await client.send(request())
                assert (await client.answer()).status == expected
            for writer in opened:
                writer.close()
            await until(lambda: relay.receiver.connections == 0)

    opened: list[asyncio.StreamWriter] = []
    uvloop.run(everything())


def test_signals_and_paths_are_those_of_otlp() -> None:
    assert receiver_module._SIGNALS == {
        "/v1/traces": TRACES,
        "/v1/metrics": METRICS,
        "/v1/logs": LOGS,
        "/v1development/profiles": PROFILES,
    }
