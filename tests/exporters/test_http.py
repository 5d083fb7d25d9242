from __future__ import annotations

import asyncio
import gzip as gzip_module
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from relay import status
from relay.exporters import ClientTls, ExporterConfig
from relay.exporters.http import (
    GZIP_THREAD_BYTES,
    MAX_IDLE,
    MAX_RESPONSE_BYTES,
    HttpExporter,
    outcome,
    retry_after,
)
from relay.otlp import LOGS, PROFILES, TRACES, Accepted, Fault, Outcome, Permanent, Retryable
from relay.receivers import ServerTls
from relay.tls import server_context
from tests.pki import Authority, replace

T = TypeVar("T")

NOW = 1_760_000_000.0
LONG = 30.0
"""Seconds of a limit that must not be what ends a test."""
SHORT = 0.2
"""Seconds of a limit that is what the test is about."""


# --- A collector made of a socket -----------------------------------------------------------------


class Request:
    """What arrived, and the pen to answer with."""

    def __init__(
        self,
        head: bytes,
        body: bytes,
        writer: asyncio.StreamWriter,
        seen: int,
        gone: asyncio.Event,
    ) -> None:
        line, *fields = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = line.split(" ")
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (f.partition(":") for f in fields if f)
        }
        self.body = body
        self.writer = writer
        self.number = seen
        """Of this request on its connection, from 0."""
        self.gone = gone

    async def hang(self) -> None:
        """Never answer; end when the collector does."""
        await self.gone.wait()
        raise ConnectionError

    async def answer(
        self, code: int = 200, body: bytes = b"", *fields: str, kind: str = "application/x-protobuf"
    ) -> None:
        lines = [
            f"HTTP/1.1 {code} Because",
            f"Content-Length: {len(body)}",
            f"Content-Type: {kind}",
        ]
        self.writer.write("\r\n".join([*lines, *fields, "", ""]).encode() + body)
        await self.writer.drain()

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Script = Callable[[Request], Awaitable[None]]


async def accept(request: Request) -> None:
    await request.answer()


class Collector:
    """A listener that reads requests and does with each what the script says."""

    def __init__(self, script: Script = accept) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.connections = 0
        self.port = 0
        self.host = ""
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._gone = asyncio.Event()

    async def open(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        path: str = "",
    ) -> None:
        self._gone = asyncio.Event()
        if path:
            self._server = await asyncio.start_unix_server(self._serve, path)
            return
        self._server = await asyncio.start_server(self._serve, host, port, ssl=tls)
        self.host, self.port = self._server.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        """Vanish: connections are reset, new ones refused."""
        if self._server is not None:
            self._server.close()
        self._gone.set()
        self.cut()
        while self._writers:
            await asyncio.sleep(0)

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        seen = 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
                request = Request(head[:-4], body, writer, seen, self._gone)
                seen += 1
                self.requests.append(request)
                await self.script(request)
        except (OSError, asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"


@asynccontextmanager
async def collector(script: Script = accept, **options: Any) -> AsyncIterator[Collector]:
    made = Collector(script)
    await made.open(**options)
    try:
        yield made
    finally:
        await made.close()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listener(handler: Handler) -> AsyncIterator[int]:
    """Serve connections by hand; give the port, and wait at the end until every one is over."""
    open_connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        open_connections += 1
        try:
            with suppress(OSError):
                await handler(reader, writer)
                writer.close()
                await writer.wait_closed()
        finally:
            open_connections -= 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await until(lambda: not open_connections)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def exporter(
    endpoint: str,
    *,
    warnings: list[str] | None = None,
    clock: Clock | None = None,
    schema: Any = TRACES,
    **config: Any,
) -> AsyncIterator[HttpExporter]:
    config = {"timeout": LONG, "connect_timeout": LONG} | config
    made = HttpExporter(
        schema,
        ExporterConfig("http/protobuf", endpoint, **config),
        warn=pytest.fail if warnings is None else warnings.append,
        clock=clock or Clock(),
        wall=lambda: NOW,
    )
    try:
        yield made
    finally:
        await made.close()
        await made.close()


async def once(script: Script, payload: bytes = b"payload", **config: Any) -> Outcome:
    """Export once to a collector of that script."""
    async with collector(script) as peer, exporter(peer.url, **config) as sender:
        assert await sender.connect() is None
        assert sender.ready()
        return await sender.export(payload)


# --- Answers: pure --------------------------------------------------------------------------------


ANSWERS = {
    **{code: Accepted(str(code)) for code in (200, 202, 204)},
    **{code: Retryable(str(code)) for code in (429, 502, 503, 504)},
    400: Permanent("400", Fault.INVALID),
    404: Permanent("404", Fault.UNIMPLEMENTED),
    413: Permanent("413", Fault.TOO_LARGE),
}
OTHERS = {300, 301, 302, 303, 305, 307, 308, *range(401, 432), 451, *range(500, 512), 599}
OTHERS -= ANSWERS.keys()


@pytest.mark.parametrize("code", sorted(OTHERS | ANSWERS.keys()))
def test_every_status_has_its_outcome(code: int) -> None:
    expected = ANSWERS.get(code, Permanent(str(code), Fault.OTHER))
    assert outcome(code, b"", TRACES) == expected
    assert outcome(code, None, TRACES) == expected


@pytest.mark.parametrize("code", sorted(OTHERS | ANSWERS.keys()))
async def test_every_status_over_the_wire(code: int) -> None:
    result = await once(lambda request: request.answer(code))
    expected = ANSWERS.get(code, Permanent(str(code), Fault.OTHER))
    assert type(result) is type(expected)
    assert result.code == str(code)
    if isinstance(result, Permanent) and isinstance(expected, Permanent):
        assert result.fault is expected.fault
    if not isinstance(result, Accepted):
        assert result.message


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("61", 60.0),
        ("9" * 400, 60.0),
        ("-1", None),
        ("1.5", None),
        ("\u0667", None),
        ("soon", None),
        ("Thu, 09 Oct 2025 08:53:50 GMT", 30.0),
        ("Thursday, 09-Oct-25 08:53:50 GMT", 30.0),
        ("Thu Oct  9 08:53:50 2025", 30.0),
        ("Thu, 09 Oct 2025 08:53:50 -0000", 30.0),
        ("Thu, 09 Oct 2025 10:53:50 +0200", 30.0),
        ("Thu, 09 Oct 2025 08:53:10 GMT", 0.0),
        ("Fri, 10 Oct 2025 08:53:10 GMT", 60.0),
        ("Fri, 99 Oct 2025 08:53:10 GMT", None),
        ("Fri, 10 Oct 99999 08:53:10 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


@given(st.text(max_size=60))
def test_any_retry_after_is_a_number_in_range_or_none(value: str) -> None:
    found = retry_after(value, NOW)
    assert found is None or 0.0 <= found <= 60.0


async def test_retry_after_reaches_the_outcome() -> None:
    for value, delay in (("3", 3.0), ("Thu, 09 Oct 2025 08:53:50 GMT", 30.0), ("x", None)):
        fields = (f"Retry-After: {value}",)
        result = await once(lambda request, fields=fields: request.answer(503, b"", *fields))  # type: ignore[misc]
        assert isinstance(result, Retryable)
        assert result.delay == delay


def test_a_partial_success_is_read() -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 3
    answer.partial_success.error_message = "too\nold"
    assert outcome(200, answer.SerializeToString(), TRACES) == Accepted("200", 3, "too old")
    assert outcome(200, b"\xff", TRACES) == Accepted("200")


async def test_a_partial_success_over_the_wire() -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 3
    assert await once(lambda request: request.answer(200, answer.SerializeToString())) == Accepted(
        "200", 3
    )


async def test_the_words_of_the_collector() -> None:
    said = status.encode(3, "bad\x1b[31m\n span " + "x" * 1000)
    result = await once(lambda request: request.answer(400, said))
    assert isinstance(result, Permanent)
    assert result.message.startswith("bad[31m span xxx")
    assert len(result.message) == 300
    result = await once(lambda request: request.answer(500, b"oh no", kind="text/plain; x=y"))
    assert isinstance(result, Permanent)
    assert result.message == "oh no"
    for body in (b"{}", b"{"):
        result = await once(lambda request: request.answer(500, body, kind="application/json"))  # noqa: B023 - run at once
        assert isinstance(result, Permanent)
        assert result.message == "500 Because"
    body = status.encode_json(14, "no room")
    result = await once(lambda request: request.answer(503, body, kind="application/json"))
    assert isinstance(result, Retryable)
    assert result.message == "no room"


# --- The request ----------------------------------------------------------------------------------


async def test_what_is_sent() -> None:
    async with (
        collector() as peer,
        exporter(peer.url + "?a=%2F", headers=(("x-tenant", "t"),)) as sender,
    ):
        assert await sender.export(b"payload") == Accepted("200")
    request = peer.requests[0]
    assert (request.method, request.path, request.body) == ("POST", "/v1/traces?a=%2F", b"payload")
    headers = request.headers
    assert headers.pop("user-agent").startswith("OTel-OTLP-Exporter-otlp-relay/")
    assert headers == {
        "host": f"127.0.0.1:{peer.port}",
        "content-type": "application/x-protobuf",
        "accept": "application/x-protobuf",
        "accept-encoding": "identity",
        "content-length": "7",
        "x-tenant": "t",
    }


async def test_headers_that_the_transport_sets_itself_are_not_the_users() -> None:
    warnings: list[str] = []
    headers = (("content-length", "1"), ("Content-Type", "text/x"), ("User-Agent", "mine"))
    async with (
        collector() as peer,
        exporter(peer.url, headers=headers, warnings=warnings) as sender,
    ):
        assert await sender.export(b"payload") == Accepted("200")
    assert peer.requests[0].headers["content-length"] == "7"
    assert peer.requests[0].headers["content-type"] == "application/x-protobuf"
    assert peer.requests[0].headers["user-agent"] == "mine"
    assert len(warnings) == 2


def test_a_header_that_would_split_the_request_is_refused() -> None:
    config = ExporterConfig("http/protobuf", "http://a:1/", headers=(("a", "s3cret\r\nb: c"),))
    with pytest.raises(ValueError, match="'a'") as caught:
        HttpExporter(TRACES, config, warn=print)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 10, GZIP_THREAD_BYTES * 2])
async def test_gzip(size: int) -> None:
    payload = os.urandom(size)
    async with collector() as peer, exporter(peer.url, compression="gzip") as sender:
        assert await sender.export(payload) == Accepted("200")
    assert peer.requests[0].headers["content-encoding"] == "gzip"
    assert gzip_module.decompress(peer.requests[0].body) == payload


async def test_large_payloads_arrive_whole_and_the_connection_is_kept() -> None:
    payload = os.urandom(4_000_000)
    async with collector() as peer, exporter(peer.url) as sender:
        for _ in range(3):
            assert await sender.export(payload) == Accepted("200")
    assert [request.body for request in peer.requests] == [payload] * 3
    assert peer.connections == 1


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "c.sock")
    async with collector(path=path) as peer, exporter(f"unix:{path}", schema=LOGS) as sender:
        assert await sender.connect() is None
        assert await sender.export(b"x") == Accepted("200")
        assert peer.requests[0].path == "/v1/logs"
        await peer.close()
        await until(lambda: not sender.ready())
        failure = await sender.connect()
        assert failure is not None
        assert failure.code == "CONNECT_FAILED"
        assert path in failure.message
    async with exporter(f"unix:{path}x", schema=PROFILES) as sender:
        failure = await sender.connect()
        assert failure is not None
        assert "No such file" in failure.message


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_an_ipv6_address() -> None:
    async with (
        collector(host="::1") as peer,
        exporter(f"http://[::1]:{peer.port}/v1/traces") as sender,
    ):
        assert await sender.export(b"x") == Accepted("200")
        assert peer.requests[0].headers["host"] == f"[::1]:{peer.port}"
        await peer.close()
        await until(lambda: not sender.ready())
        failure = await sender.connect()
        assert failure is not None
        assert failure.message.startswith(f"[::1]:{peer.port}: ")


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await once(accept) == Accepted("200")


# --- Readiness ------------------------------------------------------------------------------------


async def test_ready_means_an_idle_connection() -> None:
    gate = asyncio.Event()

    async def wait(request: Request) -> None:
        await gate.wait()
        await request.answer()

    async with collector(wait) as peer, exporter(peer.url) as sender:
        assert not sender.ready()
        results = await asyncio.gather(*(sender.connect() for _ in range(5)))
        assert results == [None] * 5
        assert sender.ready()
        assert peer.connections == 1, "callers at once share one attempt"
        assert peer.requests == [], "nothing was sent to find out"
        exporting = task(sender.export(b"1"))
        await until(lambda: peer.requests)
        assert not sender.ready(), "the only connection is taken"
        assert await sender.connect() is None
        assert sender.ready()
        gate.set()
        assert await exporting == Accepted("200")
        assert peer.connections == 2
        outcomes = await asyncio.gather(*(sender.export(b"x") for _ in range(2)))
        assert outcomes == [Accepted("200")] * 2
        assert peer.connections == 2, "both connections are used again"


def task(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    return asyncio.create_task(coroutine)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_connection_that_the_collector_closed_is_not_ready() -> None:
    async with collector() as peer, exporter(peer.url) as sender:
        assert await sender.export(b"1") == Accepted("200")
        assert sender.ready()
        peer.cut()
        await until(lambda: not sender.ready())
        assert await sender.connect() is None
        assert await sender.export(b"2") == Accepted("200")
    assert peer.connections == 2


async def test_a_connection_that_lay_idle_too_long_is_not_used() -> None:
    clock = Clock()
    async with collector() as peer, exporter(peer.url, clock=clock) as sender:
        assert await sender.export(b"1") == Accepted("200")
        clock.now += MAX_IDLE - 0.1
        assert sender.ready()
        clock.now += 0.1
        assert not sender.ready()
        assert await sender.export(b"2") == Accepted("200")
    assert peer.connections == 2


async def test_connection_close_is_heeded() -> None:
    async def closing(request: Request) -> None:
        await request.answer(200, b"", "Connection: close")

    async with collector(closing) as peer, exporter(peer.url) as sender:
        for _ in range(3):
            assert await sender.export(b"1") == Accepted("200")
            assert not sender.ready()
    assert peer.connections == 3


async def test_refused() -> None:
    async with collector() as peer:
        url = peer.url
    async with exporter(url) as sender:
        failure = await sender.connect()
        assert failure is not None
        assert failure.code == "CONNECT_FAILED"
        assert failure.message.endswith(": Connection refused")
        assert await sender.export(b"x") == failure


def stuck_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose queue is full: further handshakes of TCP get no answer (Linux)."""
    stuck = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(8):
        filler = socket.socket()
        filler.setblocking(False)
        with suppress(BlockingIOError):
            filler.connect(stuck.getsockname())
        fillers.append(filler)
    return stuck, fillers


async def test_a_tcp_handshake_that_never_ends() -> None:
    stuck, fillers = stuck_listener()
    url = f"http://127.0.0.1:{stuck.getsockname()[1]}/"
    try:
        async with exporter(url, connect_timeout=SHORT) as sender:
            failures = await asyncio.gather(sender.connect(), sender.connect())
            assert [f and f.code for f in failures] == ["CONNECT_TIMEOUT"] * 2
            result = await sender.export(b"x")
            assert result.code == "CONNECT_TIMEOUT"
        async with exporter(url, timeout=SHORT) as sender:
            result = await sender.export(b"x")
            assert result.code == "CONNECT_TIMEOUT", "the attempt limit holds for connecting too"
    finally:
        for each in (stuck, *fillers):
            each.close()


async def test_a_tls_handshake_that_never_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        async with exporter(url, tls=ClientTls(), connect_timeout=SHORT) as sender:
            failure = await sender.connect()
            assert failure is not None
            assert failure.code == "CONNECT_TIMEOUT"
            assert "TLS" in failure.message


async def test_a_collector_that_accepts_and_closes() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with listener(slam) as port, exporter(f"http://127.0.0.1:{port}/") as sender:
        for _ in range(5):
            result = await sender.export(b"x")
            assert isinstance(result, Retryable)
            assert result.code in {"CONNECT_FAILED", "CONNECTION_LOST"}
            assert not result.rerouted


async def test_after_close_nothing_connects() -> None:
    async with collector() as peer, exporter(peer.url) as sender:
        await sender.close()
        result = await sender.connect()
        assert result is not None
        assert result.code == "CONNECT_FAILED"
        assert (await sender.export(b"x")).code == "CONNECT_FAILED"
    assert peer.connections == 0


async def test_close_ends_a_connect_and_an_export_under_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with exporter(f"https://127.0.0.1:{port}/", tls=ClientTls()) as sender:
            connecting = task(sender.connect())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await sender.close()
            failure = await connecting
            assert failure is not None
            assert failure.code == "CONNECT_FAILED"
        async with exporter(f"http://127.0.0.1:{port}/") as sender:
            assert await sender.connect() is None
            exporting = task(sender.export(b"x"))
            await asyncio.sleep(0)
            await sender.close()
            result = await exporting
            assert result.code == "CONNECTION_LOST"


async def test_a_cancelled_export_lets_go_of_its_connection() -> None:
    async def hang(request: Request) -> None:
        await request.hang()

    async with collector(hang) as peer, exporter(peer.url) as sender:
        exporting = task(sender.export(b"x"))
        await until(lambda: peer.requests)
        exporting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exporting
        assert not sender.ready()
        peer.script = accept
        assert await sender.export(b"y") == Accepted("200"), "not the answer to x"
    assert peer.connections == 2


# --- Answers that are none ------------------------------------------------------------------------


async def test_no_answer_within_the_limit() -> None:
    async def hang(request: Request) -> None:
        await request.hang()

    result = await once(hang, timeout=SHORT)
    assert isinstance(result, Retryable)
    assert (result.code, result.timed_out, result.rerouted) == ("TIMEOUT", True, False)
    assert "no answer in 0.2 s" in result.message


async def test_a_collector_that_does_not_read_the_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
        async with exporter(url, timeout=SHORT) as sender:
            result = await sender.export(b"x" * 16_000_000)
    assert isinstance(result, Retryable)
    assert result.timed_out


async def test_no_limit_means_no_limit() -> None:
    gate = asyncio.Event()

    async def wait(request: Request) -> None:
        await gate.wait()
        await request.answer()

    async with collector(wait) as peer, exporter(peer.url, timeout=None) as sender:
        exporting = task(sender.export(b"x"))
        await until(lambda: peer.requests)
        gate.set()
        assert await exporting == Accepted("200")


async def reset(request: Request) -> None:
    request.writer.transport.abort()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", "CONNECTION_LOST"),
        (b"HTTP/1.1 20", "CONNECTION_LOST"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", "CONNECTION_LOST"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123", "CONNECTION_LOST"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "CONNECTION_LOST"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x05", "BAD_RESPONSE"),
        (b"220 smtp.example ESMTP\r\n\r\n", "BAD_RESPONSE"),
        (b"HTTP/1.1 abc OK\r\n\r\n", "BAD_RESPONSE"),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "BAD_RESPONSE"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n", "BAD_RESPONSE"),
    ],
)
@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_answers_that_break_off_or_are_garbage(said: bytes, code: str, ending: str) -> None:
    async def say(request: Request) -> None:
        await request.raw(said)
        request.writer.transport.abort() if ending == "abort" else request.writer.close()

    async with collector(say) as peer, exporter(peer.url) as sender:
        result = await sender.export(b"x")
        assert isinstance(result, Retryable)
        assert result.code == code
        assert str(peer.port) in result.message
        assert not result.timed_out
        assert not result.rerouted, "a new connection that is lost is the destination's failure"
        peer.script = accept
        assert await sender.export(b"x") == Accepted("200")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"HTTP/1.1 400 No\r\nContent-Length: 10\r\n\r\n12345", "400"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "200"),
        (b"HTTP/1.0 200 OK\r\n\r\n", "200"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200"),
        (b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\nHTTP/1.1 429 No\r\nContent-Length: 0\r\n\r\n", "429"),
        (b"HTTP/1.1 101 Switch\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", "101"),
    ],
)
async def test_answers_whose_status_has_decided(said: bytes, expected: str) -> None:
    async def say(request: Request) -> None:
        await request.raw(said)
        request.writer.close()

    assert (await once(say)).code == expected


async def test_an_errors_body_that_does_not_come_does_not_hold_up_its_status() -> None:
    async def stall(request: Request) -> None:
        await request.raw(b"HTTP/1.1 400 No\r\nContent-Length: 10\r\n\r\n12345")
        await request.hang()

    assert await once(stall) == Permanent("400", Fault.INVALID, "400 No")


async def test_an_answer_that_trickles_is_cut_off_at_the_limit() -> None:
    async def trickle(request: Request) -> None:
        await request.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await request.raw(b"x")
            await asyncio.sleep(SHORT / 20)

    result = await once(trickle, timeout=SHORT)
    assert isinstance(result, Retryable)
    assert result.timed_out


@pytest.mark.parametrize("code", [200, 400])
async def test_an_oversized_answer_is_not_read_to_its_end(code: int) -> None:
    sent = 0

    async def flood(request: Request) -> None:
        nonlocal sent
        await request.raw(b"HTTP/1.1 %d OK\r\nTransfer-Encoding: chunked\r\n\r\n" % code)
        while True:
            await request.raw(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            sent += 0x10000

    async with collector(flood) as peer, exporter(peer.url) as sender:
        result = await sender.export(b"x")
        assert result.code == str(code)
        assert not isinstance(result, Retryable)
        assert not sender.ready(), "the rest of the answer is in the way"
        peer.script = accept
        assert await sender.export(b"y") == Accepted("200")
    # What the kernel buffers on both sides (some MiB), and no more.
    assert sent < 512 * MAX_RESPONSE_BYTES


async def test_a_compressed_answer_is_not_unpacked() -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 3
    body = gzip_module.compress(answer.SerializeToString())
    result = await once(lambda request: request.answer(200, body, "Content-Encoding: gzip"))
    assert result == Accepted("200")


@pytest.mark.parametrize(
    ("location", "names"),
    [
        ("https://login.test/x?token=s3cret", "login.test"),
        ("/elsewhere?token=s3cret", "another path"),
        ("http://[", "another path"),
        ("", "another path"),
    ],
)
async def test_redirects_are_named_and_not_followed(location: str, names: str) -> None:
    async with collector() as other:
        where = location or other.url
        result = await once(lambda request: request.answer(307, b"", f"Location: {where}"))
        assert isinstance(result, Permanent)
        assert (result.code, result.fault) == ("307", Fault.OTHER)
        assert (names if location else "127.0.0.1") in result.message
        assert "s3cret" not in result.message
        assert other.connections == 0


async def test_an_early_refusal_of_a_large_request() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        while await reader.read(65536):
            pass

    async with listener(early) as port, exporter(f"http://127.0.0.1:{port}/") as sender:
        assert await sender.export(b"x" * 8_000_000) == Permanent("413", Fault.TOO_LARGE, "413 No")


async def test_an_idle_connection_that_dies_under_a_request_is_no_failure_of_the_destination() -> (
    None
):
    async def second_time(request: Request) -> None:
        await (request.answer() if request.number == 0 else reset(request))

    async with collector(second_time) as peer, exporter(peer.url) as sender:
        assert await sender.export(b"1") == Accepted("200")
        result = await sender.export(b"2")
        assert isinstance(result, Retryable)
        assert (result.code, result.rerouted) == ("CONNECTION_LOST", True)
        assert await sender.export(b"2") == Accepted("200")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=100).map(lambda tail: b"HTTP/1.1 200 OK\r\n" + tail),
        st.builds(
            lambda code, fields, body: (
                b"HTTP/1.1 %d X\r\n%b\r\n\r\n%b" % (code, b"\r\n".join(fields), body)
            ),
            st.integers(0, 1100),
            st.lists(
                st.sampled_from(
                    [
                        b"Content-Length: 3",
                        b"Content-Length: -1",
                        b"Transfer-Encoding: chunked",
                        b"Transfer-Encoding: gzip",
                        b"Content-Encoding: gzip",
                        b"Connection: close",
                        b"Retry-After: \xff",
                        b"Content-Type: ;;\x80",
                        b"Location: \xff//",
                        b"Upgrade: x",
                        b": x",
                    ]
                ),
                max_size=4,
            ),
            st.binary(max_size=30),
        ),
    )
)
def test_whatever_is_answered_is_an_outcome(said: bytes) -> None:
    async def run() -> Outcome:
        async def say(request: Request) -> None:
            await request.raw(said)
            request.writer.close()

        return await once(say)

    result = asyncio.run(run())
    assert isinstance(result, Accepted | Retryable | Permanent)
    assert result.code


# --- Headers that change --------------------------------------------------------------------------


async def test_a_token_is_read_again_and_a_refusal_looks_at_once(tmp_path: Path) -> None:
    path = tmp_path / "headers"
    path.write_text("authorization=Bearer 1")
    valid = "Bearer 1"

    async def guard(request: Request) -> None:
        await request.answer(200 if request.headers["authorization"] == valid else 401)

    clock = Clock()
    async with (
        collector(guard) as peer,
        exporter(peer.url, headers_file=str(path), clock=clock) as sender,
    ):
        assert await sender.export(b"1") == Accepted("200")
        valid = "Bearer 2"
        result = await sender.export(b"2")
        assert isinstance(result, Permanent)
        assert (result.code, result.fault) == ("401", Fault.OTHER)
        replace(path, b"authorization=Bearer 2")
        assert await sender.export(b"3") == Accepted("200"), "no item is lost to a token's end"
        assert [request.body for request in peer.requests] == [b"1", b"2", b"3", b"3"]
        valid = "Bearer 3"
        replace(path, b"authorization=Bearer 3")
        clock.now += 1.0
        assert await sender.export(b"4") == Accepted("200")
        assert peer.requests[-2].body == b"3"


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def tls_collector(tls: ServerTls, **options: Any) -> AsyncIterator[tuple[Collector, str]]:
    context = server_context(tls, warn=pytest.fail)
    async with collector(tls=context, **options) as peer:
        yield peer, f"https://localhost:{peer.port}/v1/traces"


async def test_tls_right_ca_and_client_certificate(authority: Authority) -> None:
    async with (
        tls_collector(authority.server(mutual=True)) as (_, url),
        exporter(url, tls=authority.client(certificate=True)) as sender,
    ):
        assert await sender.export(b"x" * 2_000_000) == Accepted("200")
        assert await sender.export(b"x") == Accepted("200")


async def test_tls_faults_are_connect_failures_that_say_why(
    authority: Authority, tmp_path: Path
) -> None:
    folder = tmp_path / "stranger"
    folder.mkdir()
    stranger = Authority(folder)
    table = [
        (authority.server(), stranger.client(), "unable to get local issuer certificate"),
        (authority.server(), ClientTls(), "unable to get local issuer certificate"),
        (ServerTls(*authority.pair("e", expired=True)), authority.client(), "has expired"),
        (ServerTls(*authority.pair("n", "a.test")), authority.client(), "Hostname mismatch"),
    ]
    for served, tls, why in table:
        async with tls_collector(served) as (peer, url), exporter(url, tls=tls) as sender:
            failure = await sender.connect()
            assert failure is not None
            assert failure.code == "CONNECT_FAILED"
            assert why in failure.message
            assert peer.requests == []


async def test_tls_without_the_client_certificate_that_is_asked_for(authority: Authority) -> None:
    async with (
        tls_collector(authority.server(mutual=True)) as (peer, url),
        exporter(url, tls=authority.client()) as sender,
    ):
        for _ in range(3):
            # TLS 1.3 refuses a client after the client has finished.
            result = await sender.connect() or await sender.export(b"x")
            assert isinstance(result, Retryable)
            assert result.code in {"CONNECT_FAILED", "CONNECTION_LOST"}
            assert not result.rerouted
        assert peer.requests == []


async def test_tls_to_a_port_without_it_and_the_other_way_round(authority: Authority) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request\n")

    async with (
        listener(plain) as port,
        exporter(f"https://127.0.0.1:{port}/", tls=ClientTls()) as sender,
    ):
        failure = await sender.connect()
        assert failure is not None
        assert failure.code == "CONNECT_FAILED"
        assert "does it speak TLS at all?" in failure.message
    async with tls_collector(authority.server()) as (peer, _), exporter(peer.url) as sender:
        result = await sender.export(b"x")
        assert isinstance(result, Retryable)


async def test_a_rotated_client_certificate_is_used_for_new_connections(
    authority: Authority,
) -> None:
    clock = Clock()
    client = authority.client(certificate=True)
    seen: list[bytes] = []

    async def look(request: Request) -> None:
        peer = request.writer.get_extra_info("ssl_object")
        seen.append(peer.getpeercert(binary_form=True))
        await request.answer()

    async with (
        tls_collector(authority.server(mutual=True), script=look) as (peer, url),
        exporter(url, tls=client, clock=clock) as sender,
    ):
        assert await sender.export(b"1") == Accepted("200")
        clock.now += 1.0
        assert await sender.export(b"2") == Accepted("200")
        assert peer.connections == 1
        authority.pair("client", "client.test")
        clock.now += 1.0
        assert not sender.ready(), "the connection with the old certificate has had its day"
        assert await sender.export(b"3") == Accepted("200")
        assert peer.connections == 2
        assert seen[0] == seen[1] != seen[2]


async def test_a_broken_rotation_keeps_the_old_certificate(authority: Authority) -> None:
    clock = Clock()
    warnings: list[str] = []
    client = authority.client(certificate=True)
    async with (
        tls_collector(authority.server(mutual=True)) as (peer, url),
        exporter(url, tls=client, clock=clock, warnings=warnings) as sender,
    ):
        assert await sender.export(b"1") == Accepted("200")
        replace(Path(client.cert_file), b"")
        peer.cut()
        await until(lambda: not sender.ready())
        for _ in range(3):
            clock.now += 1.0
            assert await sender.export(b"2") == Accepted("200")
        assert len(warnings) == 1
        assert "is empty" in warnings[0]


async def test_rotation_on_both_sides_under_load(authority: Authority) -> None:
    client = authority.client(certificate=True)
    clock = Clock()
    served = server_context(authority.server(mutual=True), warn=pytest.fail, clock=clock)
    async with (
        collector(tls=served) as peer,
        exporter(f"https://localhost:{peer.port}/", tls=client, clock=clock) as sender,
    ):
        sent = 0
        for turn in range(5):
            results = await asyncio.gather(*(sender.export(b"%d" % (sent + n)) for n in range(20)))
            assert results == [Accepted("200")] * 20
            sent += 20
            authority.pair("client", "client.test") if turn % 2 else authority.pair("server")
            clock.now += 1.0
        assert sorted(int(request.body) for request in peer.requests) == list(range(sent))


# --- Several addresses ----------------------------------------------------------------------------


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that resolve to what a test says; the resolver is the one thing that is not real."""
    table: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def lookup(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host not in table:
            return real(host, port, *args, **kwargs)
        if not table[host]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [found for a in table[host] for found in real(a, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return table


async def send(sender: HttpExporter) -> Outcome:
    """Export as the pipeline does: connect first, and repeat what only one address's loss undid."""
    for _ in range(4):
        if not sender.ready() and (failure := await sender.connect()) is not None:
            return failure
        result = await sender.export(b"x")
        if not (isinstance(result, Retryable) and result.rerouted):
            return result
    raise AssertionError("rerouted again and again")


@asynccontextmanager
async def pair(
    names: dict[str, list[str]], script: Script = accept
) -> AsyncIterator[tuple[Collector, Collector, str]]:
    names["two.test"] = ["127.0.0.2", "127.0.0.3"]
    async with (
        collector(script, host="127.0.0.2") as one,
        collector(script, host="127.0.0.3", port=one.port) as two,
    ):
        yield one, two, f"http://two.test:{one.port}/v1/traces"


async def test_exports_go_to_all_addresses_in_turn(names: dict[str, list[str]]) -> None:
    async with pair(names) as (one, two, url), exporter(url) as sender:
        for _ in range(10):
            assert await send(sender) == Accepted("200")
        assert len(one.requests) == len(two.requests) == 5
        assert (one.connections, two.connections) == (1, 1)
        assert one.requests[0].headers["host"] == f"two.test:{one.port}"


async def test_the_loss_of_one_address_is_survived_and_its_return_noticed(
    names: dict[str, list[str]],
) -> None:
    clock = Clock()
    async with pair(names) as (one, two, url), exporter(url, clock=clock) as sender:
        for _ in range(4):
            assert await send(sender) == Accepted("200")
        port = one.port
        await one.close()
        for _ in range(10):
            assert await send(sender) == Accepted("200")
            clock.now += 0.5
        assert len(two.requests) == 12
        await one.open("127.0.0.2", port)
        clock.now += 6.0
        for _ in range(4):
            assert await send(sender) == Accepted("200")
        assert len(one.requests) == 4
        await two.close()
        await one.close()
        await until(lambda: not sender.ready())
        failure = await sender.connect()
        assert failure is not None
        assert failure.code == "CONNECT_FAILED"
        assert "127.0.0.2" in failure.message
        assert "127.0.0.3" in failure.message


async def test_a_connection_lost_under_an_export_while_another_address_stands(
    names: dict[str, list[str]],
) -> None:
    async with pair(names) as (one, two, url), exporter(url) as sender:
        for _ in range(2):
            assert await send(sender) == Accepted("200")
        one.script = two.script = reset
        first = await sender.export(b"x")
        assert isinstance(first, Retryable)
        assert first.rerouted
        two.script = one.script = accept
        assert await send(sender) == Accepted("200")


@pytest.mark.parametrize("hang", ["tcp", "answer"])
async def test_an_address_that_hangs_does_not_hold_up_the_other(
    names: dict[str, list[str]], hang: str
) -> None:
    clock = Clock()
    names["two.test"] = ["127.0.0.1", "127.0.0.2"]
    stuck, fillers = stuck_listener()
    if hang == "answer":
        for each in fillers:
            each.close()
        stuck.listen(100)
    port = stuck.getsockname()[1]
    try:
        async with (
            collector(host="127.0.0.2", port=port) as other,
            exporter(f"http://two.test:{port}/", clock=clock, timeout=1.0) as sender,
        ):
            results = [await send(sender) for _ in range(6)]
            failed = [result for result in results if not isinstance(result, Accepted)]
            if hang == "tcp":
                assert failed == []
            else:
                assert [result.code for result in failed] == ["TIMEOUT"], "one, then it rests"
            assert len(other.requests) == 6 - len(failed)
    finally:
        for each in (stuck, *fillers):
            each.close()


async def test_every_address_that_stands_is_used_beside_one_that_hangs(
    names: dict[str, list[str]],
) -> None:
    names["three.test"] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    stuck, fillers = stuck_listener()
    port = stuck.getsockname()[1]
    try:
        async with (
            collector(host="127.0.0.2", port=port) as two,
            collector(host="127.0.0.3", port=port) as three,
            exporter(f"http://three.test:{port}/") as sender,
        ):
            for _ in range(8):
                assert await send(sender) == Accepted("200")
            assert len(two.requests) == len(three.requests) == 4
    finally:
        for each in (stuck, *fillers):
            each.close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_two_families_behind_one_name(names: dict[str, list[str]]) -> None:
    names["two.test"] = ["::1", "127.0.0.1"]
    async with (
        collector() as one,
        collector(host="::1", port=one.port) as two,
        exporter(f"http://two.test:{one.port}/") as sender,
    ):
        for _ in range(4):
            assert await send(sender) == Accepted("200")
        assert len(one.requests) == len(two.requests) == 2


async def test_tls_names_hold_for_every_address(
    names: dict[str, list[str]], authority: Authority
) -> None:
    names["two.test"] = ["127.0.0.2", "127.0.0.3"]
    context = server_context(ServerTls(*authority.pair("s", "two.test")), warn=pytest.fail)
    async with (
        collector(host="127.0.0.2", tls=context) as one,
        collector(host="127.0.0.3", port=one.port, tls=context) as two,
        exporter(f"https://two.test:{one.port}/", tls=authority.client()) as sender,
    ):
        for _ in range(4):
            assert await send(sender) == Accepted("200")
        assert len(one.requests) == len(two.requests) == 2


async def test_a_name_that_does_not_resolve_yet(names: dict[str, list[str]]) -> None:
    clock = Clock()
    names["late.test"] = []
    async with (
        collector() as peer,
        exporter(f"http://late.test:{peer.port}/", clock=clock) as sender,
    ):
        for wait in (0.0, 0.1, 1.0):
            clock.now += wait
            failure = await sender.connect()
            assert failure is not None
            assert failure.code == "CONNECT_FAILED"
            assert "'late.test'" in failure.message
            assert "not known" in failure.message
        names["late.test"] = ["127.0.0.1"]
        clock.now += 1.0
        assert await sender.connect() is None
        assert await send(sender) == Accepted("200")


async def test_a_name_whose_address_changes(names: dict[str, list[str]]) -> None:
    clock = Clock()
    async with pair(names) as (one, two, url), exporter(url, clock=clock) as sender:
        names["two.test"] = ["127.0.0.2"]
        assert await send(sender) == Accepted("200")
        assert len(one.requests) == 1
        await one.close()
        names["two.test"] = ["127.0.0.3"]
        await until(lambda: not sender.ready())
        clock.now += 1.0
        failure = await sender.connect()  # finds it gone, which casts doubt on the name
        if failure is not None:
            clock.now += 1.0
            assert await sender.connect() is None
        assert await send(sender) == Accepted("200")
        assert len(two.requests) == 1


async def test_an_address_that_joins_or_leaves_without_a_failure(
    names: dict[str, list[str]],
) -> None:
    clock = Clock()
    async with pair(names) as (one, two, url), exporter(url, clock=clock) as sender:
        names["two.test"] = ["127.0.0.2"]
        for _ in range(4):
            assert await send(sender) == Accepted("200")
        names["two.test"] = ["127.0.0.3"]
        while not two.requests:
            clock.now += 10.0
            assert await send(sender) == Accepted("200")
        before = len(one.requests)
        for _ in range(4):
            assert await send(sender) == Accepted("200")
        assert len(one.requests) == before


async def test_a_look_up_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    calls = 0

    def hang(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        release.wait(LONG)
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        async with exporter("http://slow.test:1/", connect_timeout=SHORT) as sender:
            for _ in range(2):
                failure = await sender.connect()
                assert failure is not None
                assert failure.code == "CONNECT_TIMEOUT"
                assert "'slow.test'" in failure.message
        assert calls == 1, "one thread at most waits for the resolver"
    finally:
        release.set()


async def test_dns_that_fails_leaves_the_addresses_that_are_known(
    names: dict[str, list[str]],
) -> None:
    clock = Clock()
    async with pair(names) as (one, two, url), exporter(url, clock=clock) as sender:
        assert await send(sender) == Accepted("200")
        names["two.test"] = []
        for _ in range(6):
            clock.now += 40.0
            assert await send(sender) == Accepted("200")
        assert len(one.requests) + len(two.requests) == 7


# --- The faster event loop ------------------------------------------------------------------------


def test_the_same_on_uvloop(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    async def run() -> None:
        async with tls_collector(authority.server(mutual=True)) as (peer, url):
            tls = authority.client(certificate=True)
            async with exporter(url, tls=tls) as sender:
                assert await sender.connect() is None
                assert sender.ready()
                assert await sender.export(b"x" * 1_000_000) == Accepted("200")
                assert sender.ready()
                assert peer.connections == 1
                peer.cut()
                await until(lambda: not sender.ready())
                assert await sender.export(b"x") == Accepted("200")
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
            async with exporter(url, tls=ClientTls(), connect_timeout=SHORT) as sender:
                failure = await sender.connect()
                assert failure is not None
                assert failure.code == "CONNECT_TIMEOUT"
        await test_refused()
        await test_a_unix_socket(tmp_path)
        await test_a_cancelled_export_lets_go_of_its_connection()
        await test_no_answer_within_the_limit()
        await test_an_oversized_answer_is_not_read_to_its_end(200)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
