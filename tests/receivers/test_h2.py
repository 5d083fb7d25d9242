"""relay.receivers.h2: what only this engine does, its gRPC framing first.

What every engine must do is in test_grpc.py, which runs with this one too. No gRPC client sends
frames as crooked as these, so an HTTP/2 library does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import re
import signal
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import grpc
import grpc.aio
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
import uvloop

from relay import wire
from relay.files import INTERVAL
from relay.otlp import TRACES, SignalSchema
from relay.receivers import Listen, ReceiverConfig, Refusal, RefusedError, ServerTls, Transport
from relay.receivers import h2 as receiver_module
from relay.receivers.h2 import H2Receiver
from relay.tls import TlsError
from tests.numbered import spans
from tests.pki import Authority, Pair
from tests.pki import replace as replace_file

DEADLINE = 20.0
CONFIG = ReceiverConfig(grpc=Listen("127.0.0.1", 0), http=Listen())
OWN = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
REQUEST = spans(range(3))
OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = "0", "3", "4", "8"
UNIMPLEMENTED, INTERNAL, UNAVAILABLE = "12", "13", "14"


@dataclass
class Recorder:
    """A consumer that takes what is a request, as the pipeline does."""

    taken: list[bytes] = field(default_factory=list)
    counted: list[Refusal] = field(default_factory=list)

    def consume(self, signal: SignalSchema, payload: bytes, transport: Transport) -> None:
        assert (signal, transport) == (TRACES, "grpc")
        try:
            wire.count(payload, signal)
        except wire.MalformedError as error:
            raise RefusedError(Refusal.INVALID, str(error)) from None
        self.taken.append(payload)

    def refused(
        self, signal: SignalSchema, transport: Transport, refusal: Refusal, seconds: float
    ) -> None:
        assert transport == "grpc"
        assert seconds >= 0
        self.counted.append(refusal)


class Running(NamedTuple):
    receiver: H2Receiver
    recorder: Recorder
    port: int
    warnings: list[str]

    @asynccontextmanager
    async def client(
        self, credentials: grpc.ChannelCredentials | None = None
    ) -> AsyncIterator[grpc.aio.Channel]:
        target = f"localhost:{self.port}" if credentials else f"127.0.0.1:{self.port}"
        if credentials is None:
            channel = grpc.aio.insecure_channel(target, options=OWN)
        else:
            channel = grpc.aio.secure_channel(target, credentials, options=OWN)
        async with channel:
            yield channel


@asynccontextmanager
async def running(config: ReceiverConfig = CONFIG) -> AsyncIterator[Running]:
    recorder, warnings = Recorder(), list[str]()
    receiver = H2Receiver(config, recorder, warn=warnings.append)
    bound = await receiver.start()
    try:
        yield Running(receiver, recorder, int(bound[0].rpartition(":")[2]), warnings)
    finally:
        await receiver.stop(0)


async def call(channel: grpc.aio.Channel, request: bytes = REQUEST) -> str:
    made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TRACES.method)
    try:
        assert await made(request, timeout=DEADLINE) == b""
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


class Answer(NamedTuple):
    """``status``: of HTTP; ``code``: of gRPC; ``reset``: the error code of RST_STREAM."""

    status: str = ""
    code: str = ""
    message: str = ""
    body: bytes = b""
    reset: int | None = None
    headers: dict[str, str] = {}  # noqa: RUF012 - never written to


HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": TRACES.method,
    ":authority": "relay",
    "te": "trailers",
    "content-type": "application/grpc",
}


class Raw:
    """One HTTP/2 connection on which anything may be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        settings = h2.config.H2Configuration(validate_outbound_headers=False)
        self.http = h2.connection.H2Connection(settings)
        self.reader, self.writer = reader, writer
        self.answers: dict[int, Answer] = {}
        self.ended: set[int] = set()
        self.closed = False

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Self]:
        it = cls(*await asyncio.open_connection("127.0.0.1", port))
        it.http.initiate_connection()
        await it.flush()
        pump = asyncio.create_task(it._pump())
        try:
            yield it
        finally:
            pump.cancel()
            it.writer.close()

    async def flush(self) -> None:
        self.writer.write(self.http.data_to_send())
        await self.writer.drain()

    async def _pump(self) -> None:
        while data := await self.reader.read(65536):
            for event in self.http.receive_data(data):
                self._take(event)
            await self.flush()
        self.closed = True

    def _take(self, event: Any) -> None:
        stream = getattr(event, "stream_id", None)
        if stream is None:
            return
        answer = self.answers.get(stream, Answer())
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            found = {
                name.decode(): value.decode() for name, value in dict(event.headers or ()).items()
            }
            answer = answer._replace(
                status=found.get(":status", answer.status),
                code=found.get("grpc-status", answer.code),
                message=found.get("grpc-message", answer.message),
                headers={**answer.headers, **found},
            )
        elif isinstance(event, h2.events.DataReceived):
            answer = answer._replace(body=answer.body + (event.data or b""))
            self.http.acknowledge_received_data(event.flow_controlled_length or 0, stream)
        elif isinstance(event, h2.events.StreamReset):
            answer = answer._replace(reset=int(event.error_code or 0))
            self.ended.add(stream)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(stream)
        self.answers[stream] = answer

    async def begin(self, headers: dict[str, str] | None = None, *, end: bool = False) -> int:
        stream: int = self.http.get_next_available_stream_id()
        self.http.send_headers(stream, list({**HEADERS, **(headers or {})}.items()), end)
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send, as fast as flow control allows.

        What the server has answered is sent no more, but reset, as gRPC clients do.
        """
        async with asyncio.timeout(DEADLINE):
            while True:
                if stream in self.ended and data:
                    with contextlib.suppress(h2.exceptions.ProtocolError):
                        self.http.reset_stream(stream, 8)
                    await self.flush()
                    return
                try:
                    room = min(
                        self.http.local_flow_control_window(stream),
                        self.http.max_outbound_frame_size,
                    )
                    piece, data = data[:room], data[room:]
                    if piece or not data:
                        self.http.send_data(stream, piece, end and not data)
                except (h2.exceptions.StreamClosedError, h2.exceptions.ProtocolError):
                    return
                await self.flush()
                if not data:
                    return
                if not piece:
                    await asyncio.sleep(0.002)

    async def answer(self, stream: int) -> Answer:
        await until(lambda: stream in self.ended or self.closed)
        return self.answers.get(stream, Answer())

    async def ask(self, pieces: Iterable[bytes], headers: dict[str, str] | None = None) -> Answer:
        """One call whose body comes in these pieces."""
        stream = await self.begin(headers)
        for piece in pieces:
            await self.send(stream, piece)
        await self.send(stream, b"", end=True)
        return await self.answer(stream)


def framed(message: bytes, flag: int = 0, length: int | None = None) -> bytes:
    size = len(message) if length is None else length
    return bytes([flag]) + size.to_bytes(4, "big") + message


# --- framing -------------------------------------------------------------------------------------

GZIPPED = framed(gzip.compress(REQUEST), 1)
GZIP = {"grpc-encoding": "gzip"}


@pytest.mark.parametrize(
    "pieces",
    [
        [framed(REQUEST)],
        [framed(REQUEST)[:1], framed(REQUEST)[1:]],
        [framed(REQUEST)[:5], framed(REQUEST)[5:]],
        [bytes([byte]) for byte in framed(REQUEST)],
        [b"", framed(REQUEST), b""],
    ],
    ids=["whole", "first byte", "prefix", "byte by byte", "empty frames"],
)
async def test_however_a_message_is_cut_it_is_the_same(pieces: list[bytes]) -> None:
    async with running() as it, Raw.to(it.port) as raw:
        answer = await raw.ask(pieces)
        assert answer[:4] == ("200", OK, "", framed(b""))
        assert answer.headers["content-type"] == "application/grpc"
    assert it.recorder.taken == [REQUEST]
    assert not it.recorder.counted
    assert it.receiver.held == 0


@pytest.mark.parametrize(
    ("pieces", "headers", "code"),
    [
        ([GZIPPED], GZIP, OK),
        ([GZIPPED[:9], GZIPPED[9:]], GZIP, OK),
        ([framed(zlib.compress(REQUEST), 1)], {"grpc-encoding": "deflate"}, OK),
        ([framed(REQUEST)], GZIP, OK),  # may be left uncompressed
        ([framed(REQUEST)], {"content-type": "application/grpc+proto"}, OK),
        ([framed(REQUEST)], {"content-type": "Application/gRPC; charset=utf-8"}, OK),
        ([framed(REQUEST)], {"grpc-timeout": "forever"}, OK),
        ([], None, UNIMPLEMENTED),
        ([framed(REQUEST) * 2], None, UNIMPLEMENTED),
        ([framed(REQUEST), framed(REQUEST)], None, UNIMPLEMENTED),
        ([framed(REQUEST), b"\0"], None, UNIMPLEMENTED),
        ([framed(REQUEST)[:4]], None, INVALID_ARGUMENT),
        ([framed(REQUEST)[:-1]], None, INVALID_ARGUMENT),
        ([framed(b"\xff\xff")], None, INVALID_ARGUMENT),
        ([framed(REQUEST, 2)], None, INVALID_ARGUMENT),
        ([framed(REQUEST, 1)], GZIP, INVALID_ARGUMENT),
        ([framed(gzip.compress(REQUEST)[:-1], 1)], GZIP, INVALID_ARGUMENT),
        ([framed(gzip.compress(REQUEST) + b"x", 1)], GZIP, INVALID_ARGUMENT),
        ([GZIPPED], None, INTERNAL),
        ([GZIPPED], {"grpc-encoding": "identity"}, INTERNAL),
        ([GZIPPED], {"grpc-encoding": "zstd"}, UNIMPLEMENTED),
    ],
)
async def test_calls(pieces: list[bytes], headers: dict[str, str] | None, code: str) -> None:
    async with running() as it, Raw.to(it.port) as raw:
        answer = await raw.ask(pieces, headers)
        assert (answer.status, answer.code, answer.reset) == ("200", code, None)
        assert bool(answer.message) == (code != OK)
        if headers == {"grpc-encoding": "zstd"}:
            assert "gzip" in answer.headers["grpc-accept-encoding"]
        # The connection goes on.
        assert (await raw.ask([framed(REQUEST)])).code == OK
    assert it.recorder.taken == [REQUEST] * (2 if code == OK else 1)
    # The consumer counts by itself what it refuses.
    refused = code != OK and pieces != [framed(b"\xff\xff")]
    assert it.recorder.counted == [Refusal.INVALID] * refused
    assert it.receiver.held == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "application/json"}, "415"),
        ({"content-type": "application/grpc-web"}, "415"),
        ({"te": ""}, "400"),
    ],
)
async def test_what_is_no_grpc_gets_an_answer_of_http(headers: dict[str, str], status: str) -> None:
    sent = {**HEADERS, **headers}
    if not sent["te"]:
        del sent["te"]
    async with running() as it, Raw.to(it.port) as raw:
        stream: int = raw.http.get_next_available_stream_id()
        raw.http.send_headers(stream, list(sent.items()))
        await raw.send(stream, framed(REQUEST), end=True)
        assert (await raw.answer(stream)).status == status
        assert (await raw.ask([framed(REQUEST)])).code == OK
    assert it.recorder.taken == [REQUEST]


async def test_words_of_a_status_survive_their_way() -> None:
    method = "/a.B/100%25%C3%BC"
    async with running() as it, it.client() as client:
        made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = client.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made(b"", timeout=DEADLINE)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert (
        caught.value.details() == "unknown method /a.B/100%\N{LATIN SMALL LETTER U WITH DIAERESIS}"
    )


# --- limits --------------------------------------------------------------------------------------


async def test_too_large_is_said_before_it_is_held_and_the_rest_read_away() -> None:
    config = replace(CONFIG, max_request_bytes=1_000_000)
    large = framed(bytes(1_000_001))
    async with running(config) as it, Raw.to(it.port) as raw:
        stream = await raw.begin()
        await raw.send(stream, large[:5])
        answer = await raw.answer(stream)
        assert answer.code == RESOURCE_EXHAUSTED
        assert it.receiver.held == 0
        # Whoever sends on uses up neither memory nor the connection's window.
        for _ in range(8):
            assert (await raw.ask([large[:5], large[5:]])).code == RESOURCE_EXHAUSTED
            assert it.receiver.held == 0
        assert (await raw.ask([framed(REQUEST)])).code == OK
    assert it.recorder.counted == [Refusal.TOO_LARGE] * 9


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_bomb_costs_at_most_the_limit(encoding: str) -> None:
    config = replace(CONFIG, max_request_bytes=1_000_000)
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = framed(compress(bytes(100_000_000)), 1)
    async with running(config) as it, Raw.to(it.port) as raw:
        answer = await raw.ask([bomb], {"grpc-encoding": encoding})
        assert answer.code == RESOURCE_EXHAUSTED
        assert (await raw.ask([framed(REQUEST)])).code == OK
    assert it.recorder.counted == [Refusal.TOO_LARGE]
    assert it.receiver.held == 0


async def test_large_messages_in_arrival_leave_room_for_small_ones() -> None:
    config = replace(CONFIG, max_request_bytes=200_000)
    part = framed(b"", length=200_000) + bytes(180_000)
    async with running(config) as it, Raw.to(it.port) as raw, Raw.to(it.port) as other:
        held = []
        for connection in (raw, raw, other):
            held.append((connection, await connection.begin()))
            await connection.send(held[-1][1], part)
        await until(lambda: it.receiver.held == 3 * len(part))
        # The fourth goes over three times the limit; a small one in pieces does not.
        refused = await other.begin()
        await other.send(refused, part)
        assert (await other.answer(refused)).code == UNAVAILABLE
        assert (await other.ask([framed(REQUEST)[:9], framed(REQUEST)[9:]])).code == OK
        for connection, stream in held:
            connection.http.reset_stream(stream, 8)
            await connection.flush()
        await until(lambda: it.receiver.held == 0)
        assert (await raw.ask([framed(REQUEST)])).code == OK
    assert it.recorder.counted == [Refusal.UNAVAILABLE]


async def test_what_was_not_looked_at_is_bounded_by_flow_control() -> None:
    async with running() as it, Raw.to(it.port) as raw:
        assert (await raw.ask([framed(REQUEST)])).code == OK
        left = raw.http.outbound_flow_control_window
        assert receiver_module.WINDOW / 2 < left <= receiver_module.WINDOW
        assert raw.http.remote_settings.initial_window_size == receiver_module.WINDOW
        assert raw.http.remote_settings.max_concurrent_streams == CONFIG.max_streams


@pytest.mark.parametrize("sent", [b"", framed(REQUEST)[:3], framed(REQUEST)[:-1], framed(REQUEST)])
async def test_a_message_that_does_not_arrive_in_time(sent: bytes) -> None:
    config = replace(CONFIG, request_timeout=0.5)
    async with running(config) as it, Raw.to(it.port) as raw:
        stream = await raw.begin()
        await raw.send(stream, sent)
        answer = await raw.answer(stream)
        assert answer.code == DEADLINE_EXCEEDED
        assert "within 0.5 s" in answer.message
        assert (await raw.ask([framed(REQUEST)])).code == OK
    assert it.receiver.held == 0


async def test_resets_in_the_middle_cost_nothing() -> None:
    async with running() as it, Raw.to(it.port) as raw:
        for _ in range(20):
            stream = await raw.begin()
            await raw.send(stream, framed(REQUEST)[:-1])
            raw.http.reset_stream(stream, 8)
            await raw.flush()
        assert (await raw.ask([framed(REQUEST)])).code == OK
        await until(lambda: not it.receiver._arriving)
    assert it.recorder.taken == [REQUEST]
    assert not it.recorder.counted
    assert it.receiver.held == 0


async def test_headers_are_limited() -> None:
    async with running() as it:
        async with Raw.to(it.port) as raw:
            stream = await raw.begin({"x": "y" * 3 * receiver_module.HEADERS})
            answer = await raw.answer(stream)
            assert answer.code != OK
        async with Raw.to(it.port) as raw:
            assert (await raw.ask([framed(REQUEST)])).code == OK
    assert it.recorder.taken == [REQUEST]


async def test_calls_at_once_over_all_connections_are_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiver_module, "CALLS", 2)
    async with running() as it, Raw.to(it.port) as one, Raw.to(it.port) as two:
        held = [(each, await each.begin()) for each in (one, two)]
        await until(lambda: len(it.receiver._arriving) == 2)
        async with it.client() as client:
            assert await call(client) == "UNAVAILABLE"
        for each, stream in held:
            await each.send(stream, framed(REQUEST), end=True)
            assert (await each.answer(stream)).code == OK


async def test_many_connections_over_the_limit_are_turned_away_at_once() -> None:
    async with (
        running(replace(CONFIG, max_connections=2)) as it,
        Raw.to(it.port) as one,
        Raw.to(it.port) as two,
    ):
        assert (await one.ask([framed(REQUEST)])).code == OK
        assert (await two.ask([framed(REQUEST)])).code == OK
        opened = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(100)]
        async with asyncio.timeout(DEADLINE):
            for reader, writer in opened:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        assert (await one.ask([framed(REQUEST)])).code == OK


# --- TLS -----------------------------------------------------------------------------------------


def credentials(authority: Authority, pair: Pair | None = None) -> grpc.ChannelCredentials:
    key, cert = (Path(pair.key).read_bytes(), Path(pair.cert).read_bytes()) if pair else (None,) * 2
    return grpc.ssl_channel_credentials(authority.path.read_bytes(), key, cert)


async def presented(port: int, authority: Authority) -> bytes:
    """Return the certificate that a new connection gets to see."""
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    assert isinstance(found, bytes)
    return found


async def test_only_clients_with_a_certificate_when_there_is_a_ca(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    async with running(replace(CONFIG, tls=authority.server(mutual=True))) as it:
        right = credentials(authority, authority.pair("client", "client.test"))
        async with it.client(right) as client:
            assert await call(client) == "OK"
        strange = credentials(authority, other.pair("client", "client.test"))
        for wrong in (credentials(authority), strange):
            async with it.client(wrong) as client:
                assert await call(client) == "UNAVAILABLE"
    assert it.recorder.taken == [REQUEST]


async def test_certificates_rotate_under_load_and_nothing_is_lost(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    sent = refused = 0
    stop = asyncio.Event()

    async def load(client: grpc.aio.Channel) -> None:
        nonlocal sent, refused
        while not stop.is_set():
            # One that crosses the end of its connection may be UNAVAILABLE: exporters send again.
            answer = await call(client)
            assert answer in {"OK", "UNAVAILABLE"}
            sent += answer == "OK"
            refused += answer != "OK"

    async with running(replace(CONFIG, tls=authority.server())) as it:
        async with it.client(credentials(authority)) as one, asyncio.TaskGroup() as group:
            group.create_task(load(one))
            group.create_task(load(one))
            for _ in range(2):
                before = await presented(it.port, authority)
                authority.server()
                async with asyncio.timeout(DEADLINE + INTERVAL):
                    while await presented(it.port, authority) == before:
                        await asyncio.sleep(0.05)
                goal = sent + 20
                async with asyncio.timeout(DEADLINE):
                    while sent < goal:
                        await asyncio.sleep(0.005)
            stop.set()
        # The servers that were replaced end.
        await until(lambda: len(it.receiver._servers) == 1)
    # All that was acknowledged; and at most one call of each client for each rotation was not.
    assert sent <= len(it.recorder.taken) <= sent + refused
    assert refused <= 4
    assert it.warnings == []


async def test_a_broken_rotation_keeps_what_was_there(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.server()
    async with running(replace(CONFIG, tls=files)) as it:
        replace_file(Path(files.key_file), b"no key")
        await until(lambda: it.warnings)
        assert "the last good version stays in use" in it.warnings[0]
        async with it.client(credentials(authority)) as client:
            assert await call(client) == "OK"
    assert len(it.warnings) == 1


def test_files_that_cannot_be_used_are_said_at_once(tmp_path: Path) -> None:
    files = ServerTls(str(tmp_path / "none.pem"), str(tmp_path / "none.key"))
    with pytest.raises(TlsError, match=r"none\.pem"):
        H2Receiver(replace(CONFIG, tls=files), Recorder(), warn=pytest.fail)


# --- the library in our process ------------------------------------------------------------------


GRPC_CORE = re.compile(r"[IWE]\d{4} [\d:.]+ +\d+ \w+\.cc:\d+\] ")


async def test_the_library_says_nothing_and_leaves_signals_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    notify = tmp_path / "notify"
    monkeypatch.setenv("NOTIFY_SOCKET", str(notify))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(notify))
        systemd.setblocking(False)
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        async with running() as it, it.client() as client:
            assert await call(client) == "OK"
            assert await call(client, b"\xff\xff") == "INVALID_ARGUMENT"
            found = {number: signal.getsignal(number) for number in signal.valid_signals()}
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
    assert found == handlers
    out, error = capfd.readouterr()
    assert out == ""
    # gRPC's core, the client here and in earlier tests, says of closed connections what it likes.
    assert [line for line in error.splitlines() if not GRPC_CORE.match(line)] == []


async def test_a_server_that_ends_by_itself_is_told(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as it:
        (server,) = it.receiver._servers
        server.done.cancel()
        await until(lambda: not it.receiver._servers)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_starting_and_stopping_leaves_no_descriptor_and_no_thread() -> None:
    def count() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(
            list(Path("/proc/self/task").iterdir())
        )

    async def once() -> None:
        async with running() as it, Raw.to(it.port) as raw:
            assert (await raw.ask([framed(REQUEST)])).code == OK

    await once()
    before = count()
    for _ in range(5):
        await once()
    await until(lambda: count() <= before)


# --- the other event loop ------------------------------------------------------------------------


def test_on_uvloop_as_on_asyncio(tmp_path: Path) -> None:
    async def everything() -> None:
        authority = Authority(tmp_path)
        config = replace(CONFIG, max_connections=2, request_timeout=0.5)
        async with running(config) as it, Raw.to(it.port) as one, Raw.to(it.port) as two:
            assert (await one.ask([framed(REQUEST)])).code == OK
            assert (await two.ask([framed(REQUEST)[:9], framed(REQUEST)[9:]])).code == OK
            async with it.client() as third:
                assert await call(third) == "UNAVAILABLE"
            slow = await one.begin()
            await one.send(slow, framed(REQUEST)[:9])
            assert (await one.answer(slow)).code == DEADLINE_EXCEEDED
            await two.begin()
            await it.receiver.stop(0.05)
        config = replace(CONFIG, tls=authority.server())
        async with running(config) as it, it.client(credentials(authority)) as client:
            assert await call(client) == "OK"

    uvloop.run(everything())
