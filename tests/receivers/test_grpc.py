"""relay.receivers.grpc and relay.receivers.h2: real clients against the real servers.

Every test runs with every engine: an engine is one that passes them all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from relay import tls, wire
from relay.config.settings import GRPC_ENGINES
from relay.otlp import METRICS, SIGNALS, TRACES, SignalSchema
from relay.receivers import Listen, ReceiverConfig, Refusal, RefusedError, Transport
from relay.receivers.grpc import GrpcReceiver
from relay.receivers.h2 import H2Receiver
from tests.numbered import spans
from tests.pki import Authority

DEADLINE = 20.0
"""Seconds after which what is waited for is a failure."""
ANY = Listen("127.0.0.1", 0)
CONFIG = ReceiverConfig(grpc=ANY, http=Listen())
OWN = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
REQUEST = spans(range(3))

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"


@dataclass
class Recorder:
    """A consumer that takes what is a request, as the pipeline does."""

    taken: list[tuple[SignalSchema, bytes, Transport]] = field(default_factory=list)
    counted: list[tuple[str, Refusal]] = field(default_factory=list)
    unavailable: bool = False
    broken: bool = False

    def consume(self, signal: SignalSchema, payload: bytes, transport: Transport) -> None:
        if self.broken:
            raise RuntimeError("a secret detail")
        if self.unavailable:
            raise RefusedError(Refusal.UNAVAILABLE, "the relay is stopping")
        try:
            wire.count(payload, signal)
        except wire.MalformedError as error:
            raise RefusedError(Refusal.INVALID, str(error)) from None
        self.taken.append((signal, payload, transport))

    def refused(
        self, signal: SignalSchema, transport: Transport, refusal: Refusal, seconds: float
    ) -> None:
        assert transport == "grpc"
        assert seconds >= 0
        self.counted.append((signal.name, refusal))


class Engine:
    """The engine under test."""

    name = ""


@pytest.fixture(autouse=True, params=GRPC_ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    monkeypatch.setattr(Engine, "name", name)
    return name


def build(config: ReceiverConfig, recorder: Recorder) -> GrpcReceiver | H2Receiver:
    """Build a receiver as the daemon does."""
    if Engine.name == "h2corn":
        return H2Receiver(config, recorder, warn=pytest.fail)
    assert Engine.name == "grpcio"
    if config.tls is None:
        return GrpcReceiver(config, recorder)
    return GrpcReceiver(config, recorder, tls.grpc_server_credentials(config.tls, warn=pytest.fail))


class Running:
    """A receiver that listens, and clients to it."""

    def __init__(self, config: ReceiverConfig = CONFIG) -> None:
        self.recorder = Recorder()
        self.receiver = build(config, self.recorder)
        self.bound: list[str] = []

    @property
    def target(self) -> str:
        return self.bound[0]

    @asynccontextmanager
    async def client(self, target: str = "") -> AsyncIterator[grpc.aio.Channel]:
        """A channel with a connection of its own."""
        async with grpc.aio.insecure_channel(target or self.target, options=OWN) as channel:
            yield channel


@asynccontextmanager
async def running(config: ReceiverConfig = CONFIG) -> AsyncIterator[Running]:
    it = Running(config)
    it.bound = await it.receiver.start()
    try:
        yield it
    finally:
        await it.receiver.stop(0)


async def call(
    channel: grpc.aio.Channel,
    method: str = TRACES.method,
    request: bytes = REQUEST,
    *,
    gzip: bool = False,
) -> tuple[str, bytes]:
    """Status name and answer; the text of the status where there is no answer."""
    made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    compression = grpc.Compression.Gzip if gzip else None
    try:
        return "OK", await made(request, timeout=DEADLINE, compression=compression)
    except grpc.aio.AioRpcError as error:
        return error.code().name, (error.details() or "").encode()


def health(service: str = "") -> bytes:
    """A HealthCheckRequest."""
    return b"\x0a" + bytes([len(service)]) + service.encode() if service else b""


@asynccontextmanager
async def watch(
    channel: grpc.aio.Channel, service: str = ""
) -> AsyncIterator[grpc.aio.UnaryStreamCall[bytes, bytes]]:
    made: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(WATCH)
    stream = made(health(service))
    try:
        yield stream
    finally:
        stream.cancel()


# --- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gzip", [False, True])
@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
async def test_every_signal_is_passed_on_as_bytes(schema: SignalSchema, gzip: bool) -> None:
    payload = REQUEST * 3 if schema is TRACES else b"\xc2\x3e\x09from 2031"
    async with running() as it, it.client() as client:
        assert await call(client, schema.method, payload, gzip=gzip) == ("OK", b"")
    assert it.recorder.taken == [(schema, payload, "grpc")]


async def test_an_empty_request_is_fine() -> None:
    async with running() as it, it.client() as client:
        assert await call(client, request=b"") == ("OK", b"")


@pytest.mark.parametrize(
    "payload", [b"\xff\xff", REQUEST[:-1], b"\x0a\x05\x00"], ids=["tag", "truncated", "length"]
)
async def test_malformed_requests_are_invalid(payload: bytes) -> None:
    async with running() as it, it.client() as client:
        code, words = await call(client, request=payload)
        assert code == "INVALID_ARGUMENT"
        assert words
        # Nothing else is harmed.
        assert await call(client) == ("OK", b"")
    assert len(it.recorder.taken) == 1


@pytest.mark.parametrize("gzip", [False, True], ids=["as it is", "only once decompressed"])
async def test_the_size_limit_is_that_of_the_decompressed_request(engine: str, gzip: bool) -> None:
    config = replace(CONFIG, max_request_bytes=10_000)
    fits, large = (spans([1], pad=pad) for pad in (9_000, 10_000))
    assert len(fits) < 10_000 < len(large)
    async with running(config=config) as it, it.client() as client:
        code, words = await call(client, request=large, gzip=gzip)
        assert code == "RESOURCE_EXHAUSTED"
        assert b"larger than" in words
        assert await call(client, request=fits, gzip=gzip) == ("OK", b"")
    assert [payload for _, payload, _ in it.recorder.taken] == [fits]
    # What grpcio refuses never reaches us.
    counted = [] if engine == "grpcio" else [("traces", Refusal.TOO_LARGE)]
    assert it.recorder.counted == counted


async def test_requests_of_more_than_4_mib_are_taken() -> None:
    large = spans([1], pad=15 * 1024 * 1024)
    async with running() as it, it.client() as client:
        assert await call(client, request=large) == ("OK", b"")


@pytest.mark.parametrize(
    "method",
    [
        "/opentelemetry.proto.collector.trace.v1.TraceService/Import",
        "/opentelemetry.proto.collector.trace.v2.TraceService/Export",
        "/grpc.health.v1.Health/List",
    ],
)
async def test_unknown_methods_are_unimplemented(method: str) -> None:
    async with running() as it, it.client() as client:
        assert (await call(client, method))[0] == "UNIMPLEMENTED"


async def test_what_the_consumer_cannot_take_is_unavailable() -> None:
    async with running() as it, it.client() as client:
        it.recorder.unavailable = True
        assert await call(client) == ("UNAVAILABLE", b"the relay is stopping")
        it.recorder.unavailable = False
        assert await call(client) == ("OK", b"")


async def test_a_defect_is_logged_and_told_without_its_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as it, it.client() as client:
        it.recorder.broken = True
        code, words = await call(client)
        assert code == "INTERNAL"
        assert b"secret" not in words
        it.recorder.broken = False
        assert await call(client) == ("OK", b"")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].exc_info


# --- health --------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["", *(schema.service for schema in SIGNALS)])
async def test_health_check(service: str) -> None:
    async with running() as it, it.client() as client:
        assert await call(client, CHECK, health(service)) == ("OK", SERVING)
        it.receiver.stopping()
        assert await call(client, CHECK, health(service)) == ("OK", NOT_SERVING)
        # Requests are still taken: the app may flush.
        assert await call(client) == ("OK", b"")


@pytest.mark.parametrize("service", ["nobody", "x" * 120])
async def test_health_of_what_is_not_there(service: str) -> None:
    async with running() as it, it.client() as client:
        assert (await call(client, CHECK, health(service)))[0] == "NOT_FOUND"
        async with watch(client, service) as stream:
            assert await stream.read() == SERVICE_UNKNOWN


async def test_health_watch_turns_once_and_then_stays_open() -> None:
    async with (
        running() as it,
        it.client() as client,
        watch(client) as early,
        watch(client, METRICS.service) as other,
    ):
        assert await early.read() == await other.read() == SERVING
        it.receiver.stopping()
        assert await early.read() == await other.read() == NOT_SERVING
        async with watch(client) as late:
            assert await late.read() == NOT_SERVING
            assert not early.done()
            assert not late.done()


# --- limits --------------------------------------------------------------------------------------


async def test_calls_at_once_per_connection_are_limited() -> None:
    async with (
        running(config=replace(CONFIG, max_streams=2)) as it,
        it.client() as client,
        watch(client) as one,
        watch(client) as two,
    ):
        assert await one.read() == await two.read() == SERVING
        waiting = asyncio.create_task(call(client))
        async with it.client() as other:
            # Another connection has its own; and by its answers ours would have come.
            for _ in range(20):
                assert await call(other) == ("OK", b"")
        assert not waiting.done()
        one.cancel()
        assert await waiting == ("OK", b"")


async def test_connections_over_the_limit_are_unavailable_and_harm_no_other() -> None:
    async with running(config=replace(CONFIG, max_connections=2)) as it:
        async with it.client() as one:
            assert await call(one) == ("OK", b"")
            async with it.client() as two:
                assert await call(two) == ("OK", b"")
                async with it.client() as three:
                    assert (await call(three))[0] == "UNAVAILABLE"
                assert await call(one) == await call(two) == ("OK", b"")
        # Once the others have gone there is room again.
        async with asyncio.timeout(DEADLINE):
            while True:
                async with it.client() as four:
                    code, words = await call(four)
                if code == "OK":
                    break
                assert code == "UNAVAILABLE", words


# --- listening -----------------------------------------------------------------------------------


async def test_localhost_is_both_families_on_one_port() -> None:
    async with running(config=replace(CONFIG, grpc=Listen("localhost", 0))) as it:
        for target in it.bound:
            assert re.fullmatch(r"(127\.0\.0\.1|\[::1\]):\d+", target)
            async with it.client(target) as client:
                assert await call(client) == ("OK", b"")
        assert len({target.rpartition(":")[2] for target in it.bound}) == 1


async def test_a_taken_port_is_neither_shared_nor_stolen() -> None:
    async with running() as it:
        port = int(it.target.rpartition(":")[2])
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            second = build(replace(CONFIG, grpc=Listen(host, port)), Recorder())
            with pytest.raises(OSError, match="another process listens there") as caught:
                await second.start()
            assert str(port) in str(caught.value)
            await second.stop(0)
        async with it.client() as client:
            assert await call(client) == ("OK", b"")


async def test_a_port_that_somebody_else_serves_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        receiver = build(replace(CONFIG, grpc=Listen("127.0.0.1", port)), Recorder())
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}: another process listens there"):
            await receiver.start()


async def test_a_server_that_would_share_its_port_cannot_have_ours() -> None:
    async with running() as it:
        other = grpc.aio.server(options=(("grpc.so_reuseport", 1),))
        with pytest.raises(RuntimeError):
            other.add_insecure_port(it.target)
        await other.stop(None)


async def test_the_port_is_free_again_after_the_end() -> None:
    async with running() as it:
        async with it.client() as client:
            assert await call(client) == ("OK", b"")
        port = int(it.target.rpartition(":")[2])
    async with (
        running(config=replace(CONFIG, grpc=Listen("127.0.0.1", port))) as it,
        it.client() as client,
    ):
        assert await call(client) == ("OK", b"")


async def test_a_unix_socket_with_its_mode_and_its_removal(tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    config = replace(CONFIG, grpc=Listen(path=str(path)), socket_mode=0o640)
    async with running(config=config) as it:
        assert it.bound == [f"unix:{path}"]
        found = path.lstat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o640
        async with it.client() as client:
            assert await call(client) == ("OK", b"")
    assert not path.exists()


async def test_a_served_unix_socket_is_not_stolen_and_a_stale_one_is_replaced(
    tmp_path: Path,
) -> None:
    path = tmp_path / "otlp.sock"
    config = replace(CONFIG, grpc=Listen(path=str(path)))
    async with running(config=config) as it:
        second = build(config, Recorder())
        with pytest.raises(OSError, match="another process listens there"):
            await second.start()
        await second.stop(0)
        async with it.client() as client:
            assert await call(client) == ("OK", b"")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with running(config=config) as it, it.client() as client:
        assert await call(client) == ("OK", b"")
    path.write_text("no socket")
    with pytest.raises(OSError, match="no socket is in the way"):
        await build(config, Recorder()).start()
    assert path.read_text() == "no socket"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    receiver = build(replace(CONFIG, grpc=Listen(path=str(tmp_path / "s"))), Recorder())
    with pytest.raises(OSError, match=f"cannot listen on unix:{tmp_path}/s"):
        await receiver.start()


async def test_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    client = grpc.ssl_channel_credentials(authority.path.read_bytes())
    async with running(replace(CONFIG, tls=authority.server())) as it:
        port = it.target.rpartition(":")[2]
        async with grpc.aio.secure_channel(f"localhost:{port}", client, options=OWN) as channel:
            assert await call(channel) == ("OK", b"")
        async with it.client() as plain:
            assert (await call(plain))[0] == "UNAVAILABLE"


# --- the end -------------------------------------------------------------------------------------


async def test_while_it_stops_open_connections_are_told_so(engine: str) -> None:
    async with running() as it, it.client() as client:
        assert await call(client) == ("OK", b"")
        stopping = asyncio.create_task(it.receiver.stop(1))
        await asyncio.sleep(0)
        code, words = await call(client)
        await stopping
    if engine == "h2corn":  # It may still take what comes over open connections, or have closed.
        assert (code, len(it.recorder.taken)) in {("OK", 2), ("UNAVAILABLE", 1)}
        return
    assert (code, words) == ("UNAVAILABLE", b"the relay is stopping")
    assert len(it.recorder.taken) == 1
    assert it.recorder.counted == [("traces", Refusal.UNAVAILABLE)]


async def test_once_stopped_open_connections_get_unavailable() -> None:
    async with running() as it, it.client() as client:
        assert await call(client) == ("OK", b"")
        await it.receiver.stop(1)
        assert (await call(client))[0] == "UNAVAILABLE"
        await it.receiver.stop(1)
    assert len(it.recorder.taken) == 1


async def test_calls_of_a_client_that_holds_on_are_ended_after_the_grace() -> None:
    async with (
        running() as it,
        it.client() as client,
        watch(client) as watching,
    ):
        # One waits for news of its health, one never sends its request, one says nothing at all.
        assert await watching.read() == SERVING
        made: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = client.stream_unary(TRACES.method)
        begun = made()
        await begun.wait_for_connection()
        host, _, port = it.target.rpartition(":")
        _, silent = await asyncio.open_connection(host, int(port))
        stopping = asyncio.create_task(it.receiver.stop(0.1))
        assert await watching.read() == NOT_SERVING
        async with asyncio.timeout(5):
            await stopping
        for held in (watching, begun):
            assert await held.code() in {
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.CANCELLED,
            }
        silent.close()
    assert it.recorder.taken == []


async def test_a_client_that_does_not_read_does_not_hold_up_the_end() -> None:
    async with running() as it:
        host, _, port = it.target.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        # The preface of HTTP/2 and an empty SETTINGS frame; nothing is ever read or acknowledged.
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        await writer.drain()
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport that reads
        async with it.client() as client:
            assert await call(client) == ("OK", b"")
        async with asyncio.timeout(5):
            await it.receiver.stop(0.1)
        writer.close()


async def test_stop_before_start_and_after_a_failed_start() -> None:
    receiver = build(CONFIG, Recorder())
    await receiver.stop(0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Listen("127.0.0.1", other.getsockname()[1])
        receiver = build(replace(CONFIG, grpc=taken), Recorder())
        with pytest.raises(OSError, match="cannot listen"):
            await receiver.start()
        await receiver.stop(1)
