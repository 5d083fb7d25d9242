"""The gRPC exporter against real listeners, good and bad ones."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest

from relay.exporters import ClientTls, ExporterConfig
from relay.exporters.grpc import GrpcChannel, GrpcExporter, connection_lost, outcome_of
from relay.headers import HeaderSource
from relay.otlp import (
    LOGS,
    SIGNALS,
    TRACES,
    Accepted,
    Fault,
    Permanent,
    Retryable,
    SignalSchema,
)
from relay.receivers import Listen
from relay.sink import Sink
from relay.sink.behaviour import GRPC_CODES, Behaviour
from tests.network import NameServer, Proxy, refusing, silent_listener
from tests.numbered import spans
from tests.pki import Authority, replace

LONG = 30.0
"""Seconds of a limit that must not be what ends a test."""
SHORT = 0.3
"""Seconds of a limit that is what the test is about."""

HANG = Behaviour(hang=True)
REQUEST = spans(range(3))

MakeExporter = Callable[..., GrpcExporter]


@pytest.fixture
async def make() -> AsyncIterator[MakeExporter]:
    """Build exporters that are closed at the end; settings by keyword."""
    async with AsyncExitStack() as stack:

        def build(
            endpoint: str,
            *,
            schema: SignalSchema = TRACES,
            channel: GrpcChannel | None = None,
            tls: ClientTls | None = None,
            headers: tuple[tuple[str, str], ...] = (),
            headers_file: str = "",
            gzip: bool = False,
            timeout: float | None = LONG,
            connect_timeout: float = LONG,
        ) -> GrpcExporter:
            config = ExporterConfig(
                "grpc",
                endpoint,
                tls=tls,
                compression="gzip" if gzip else "none",
                timeout=timeout,
                connect_timeout=connect_timeout,
            )
            channel = channel or GrpcChannel(config, warn=pytest.fail)
            source = HeaderSource(headers, headers_file, warn=pytest.fail)
            exporter = GrpcExporter(schema, config, channel, source)
            stack.push_async_callback(exporter.close)
            return exporter

        yield build


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        yield sink


async def connected(exporter: GrpcExporter) -> GrpcExporter:
    assert await exporter.connect() is None
    assert exporter.ready()
    return exporter


async def given_up(exporter: GrpcExporter) -> None:
    """Wait until the exporter has noticed that its connection is gone, and dropped the channel."""
    async with asyncio.timeout(LONG):
        while exporter._connection.current is not None or exporter._connection._closing:
            await asyncio.sleep(0.001)


async def recovers(exporter: GrpcExporter) -> None:
    """The collector is there: every connection stands at once, and an export gets through.

    Exports may fail before, as long as the end of the old connection is not known yet.
    """
    async with asyncio.timeout(LONG):
        while True:
            if not exporter.ready():
                assert await exporter.connect() is None
            outcome = await exporter.export(REQUEST)
            if outcome == Accepted():
                return
            assert isinstance(outcome, Retryable), outcome
            assert outcome.code == "UNAVAILABLE", outcome
            await asyncio.sleep(0.005)


# --- what is sent ------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
async def test_the_bytes_arrive_as_they_are(
    sink: Sink, make: MakeExporter, schema: SignalSchema
) -> None:
    exporter = make(sink.grpc_endpoint, schema=schema)
    assert not exporter.ready()
    payload = REQUEST if schema is TRACES else b"\xc2\x3e\x09from 2031"
    assert await (await connected(exporter)).export(payload) == Accepted()
    assert sink.payloads(schema.name) == [payload]
    assert sink.received[0].headers["user-agent"].startswith("otlp-relay/")


async def test_a_unix_socket(make: MakeExporter, tmp_path: Path) -> None:
    async with Sink(grpc=Listen(path=str(tmp_path / "otlp.sock"))) as sink:
        exporter = make(f"unix:{tmp_path}/otlp.sock")
        assert await (await connected(exporter)).export(REQUEST) == Accepted()
        assert sink.payloads("traces") == [REQUEST]


async def test_headers_of_the_settings_and_of_the_file(
    sink: Sink, make: MakeExporter, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_text("authorization=Bearer 1\n")
    exporter = make(sink.grpc_endpoint, headers=(("x-scope", "a b"),), headers_file=str(file))
    assert await (await connected(exporter)).export(REQUEST) == Accepted()
    headers = sink.received[0].headers
    assert headers["x-scope"] == "a b"
    assert headers["authorization"] == "Bearer 1"


@pytest.mark.parametrize("gzip", [False, True])
async def test_gzip_is_used_when_asked_for(sink: Sink, make: MakeExporter, gzip: bool) -> None:
    payload = spans(range(500), pad=200)
    async with Proxy(sink.grpc_endpoint) as proxy:
        exporter = await connected(make(proxy.endpoint, gzip=gzip))
        assert await exporter.export(payload) == Accepted()
        assert sink.payloads("traces") == [payload]
        assert (proxy.sent < len(payload) // 4) is gzip


async def test_requests_of_more_than_4_mib_are_sent(make: MakeExporter) -> None:
    payload = spans([1], pad=6_000_000)
    async with Sink(max_message=-1) as sink:
        exporter = await connected(make(sink.grpc_endpoint))
        assert await exporter.export(payload) == Accepted()


# --- what comes back ---------------------------------------------------------------------------

RETRYABLE = {
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNAVAILABLE",
    "DATA_LOSS",
}
FAULTS = {
    "INVALID_ARGUMENT": Fault.INVALID,
    "RESOURCE_EXHAUSTED": Fault.TOO_LARGE,
    "UNIMPLEMENTED": Fault.UNIMPLEMENTED,
}
FAILURES = sorted(set(GRPC_CODES) - {"OK"})


def test_every_status_is_in_the_table() -> None:
    assert len(FAILURES) == 16
    assert {*FAILURES, "OK"} == {code.name for code in grpc.StatusCode}


@pytest.mark.parametrize("asked", [None, 7.5], ids=["plain", "RetryInfo"])
@pytest.mark.parametrize("code", FAILURES)
async def test_every_status_gets_its_outcome(
    sink: Sink, make: MakeExporter, code: str, asked: float | None
) -> None:
    sink.behave(Behaviour(code=code, retry_after=asked, message="because"))
    exporter = await connected(make(sink.grpc_endpoint))
    outcome = await exporter.export(REQUEST)
    if code in RETRYABLE or (code == "RESOURCE_EXHAUSTED" and asked):
        assert outcome == Retryable(code, "because", asked)
    else:
        assert outcome == Permanent(code, FAULTS.get(code, Fault.OTHER), "because")
    # No answer is a reason to give up the connection.
    assert exporter.ready()
    assert sink.requests("traces") == 1


async def test_partial_success(sink: Sink, make: MakeExporter) -> None:
    sink.behave(Behaviour(reject=2, message="quota"))
    exporter = await connected(make(sink.grpc_endpoint))
    assert await exporter.export(REQUEST) == Accepted("OK", 2, "quota")
    sink.behave(Behaviour(message="only a warning"))
    assert await exporter.export(REQUEST) == Accepted("OK", 0, "only a warning")


@pytest.mark.parametrize("garbage", [b"\xff", b"\x0a\x7f", b"x" * 60_000])
async def test_a_success_is_one_however_strange_its_words(
    sink: Sink, make: MakeExporter, garbage: bytes
) -> None:
    sink.behave(Behaviour(garbage=garbage))
    exporter = await connected(make(sink.grpc_endpoint))
    assert await exporter.export(REQUEST) == Accepted()


async def test_an_answer_too_large_to_read_does_not_send_the_items_twice(
    sink: Sink, make: MakeExporter
) -> None:
    sink.behave(Behaviour(garbage=b"x" * 70_000))
    exporter = await connected(make(sink.grpc_endpoint))
    outcome = await exporter.export(REQUEST)
    assert outcome == Accepted("OK", 0, "the answer is not read: it is over 65536 bytes")


async def test_a_request_that_the_collector_finds_too_large(make: MakeExporter) -> None:
    async with Sink(max_message=1000) as sink:
        for gzip in (False, True):
            exporter = await connected(make(sink.grpc_endpoint, gzip=gzip))
            outcome = await exporter.export(spans([1], pad=5000))
            assert isinstance(outcome, Permanent)
            assert outcome.fault is Fault.TOO_LARGE
            assert "larger than max" in outcome.message


@pytest.mark.parametrize("length", [0, 7000, 20_000, 500_000])
async def test_the_text_of_a_failure_may_be_long_and_is_kept_short(
    sink: Sink, make: MakeExporter, length: int
) -> None:
    sink.behave(Behaviour(code="ABORTED", message="x" * length or "no"))
    exporter = await connected(make(sink.grpc_endpoint))
    outcome = await exporter.export(REQUEST)
    assert isinstance(outcome, Retryable)
    assert outcome.code == "ABORTED"
    assert len(outcome.message) <= 1000


async def test_a_text_beyond_all_measure_does_not_count_against_the_request(
    sink: Sink, make: MakeExporter
) -> None:
    sink.behave(Behaviour(code="ABORTED", message="x" * 2_000_000))
    exporter = await connected(make(sink.grpc_endpoint))
    outcome = await exporter.export(REQUEST)
    assert isinstance(outcome, Permanent)
    assert outcome.fault is Fault.OTHER


async def test_a_collector_without_the_service(make: MakeExporter) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        exporter = await connected(make(f"127.0.0.1:{port}"))
        outcome = await exporter.export(REQUEST)
        assert isinstance(outcome, Permanent)
        assert outcome.fault is Fault.UNIMPLEMENTED
    finally:
        await server.stop(None)


def test_details_that_are_no_status_ask_for_nothing() -> None:
    found = outcome_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "", b"\xff\xff", timed_out=False)
    assert found == Permanent("RESOURCE_EXHAUSTED", Fault.TOO_LARGE)


async def test_a_token_that_changed_is_tried_once_more(
    sink: Sink, make: MakeExporter, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_text("authorization=old\n")
    sink.behave(
        lambda request: Behaviour(
            code="OK" if request.headers["authorization"] == "new" else "UNAUTHENTICATED"
        )
    )
    exporter = await connected(make(sink.grpc_endpoint, headers_file=str(file)))
    refused = await exporter.export(REQUEST)
    assert isinstance(refused, Permanent)
    assert (refused.code, refused.fault) == ("UNAUTHENTICATED", Fault.OTHER)
    replace(file, b"authorization=new\n")
    # Within a second of the last look the old token is still sent, and refused.
    again = await exporter.export(REQUEST)
    if again != Accepted():
        assert isinstance(again, Retryable)
        assert again.code == "UNAUTHENTICATED"
        assert again.delay is not None
        assert again.delay < 1
        again = await exporter.export(REQUEST)
    assert again == Accepted()


async def test_a_token_that_another_export_has_read_meanwhile_counts_as_changed(
    sink: Sink, make: MakeExporter, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_text("authorization=old\n")
    release = asyncio.Event()
    server = grpc.aio.server()

    async def refuse(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        arrived.set()
        await release.wait()
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "expired")

    arrived = asyncio.Event()
    server.add_registered_method_handlers(
        TRACES.service, {"Export": grpc.unary_unary_rpc_method_handler(refuse)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        exporter = await connected(make(f"127.0.0.1:{port}", headers_file=str(file)))
        export = asyncio.create_task(exporter.export(REQUEST))
        await arrived.wait()
        replace(file, b"authorization=new\n")
        exporter._headers.refused(time.monotonic())  # as the other export would
        release.set()
        outcome = await export
        assert isinstance(outcome, Retryable)
        assert outcome.code == "UNAUTHENTICATED"
    finally:
        await server.stop(None)


# --- limits of time ----------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True], ids=["no handshake", "no SYN-ACK"])
async def test_the_connect_limit_is_real(make: MakeExporter, full: bool) -> None:
    with silent_listener(full=full) as endpoint:
        exporter = make(endpoint, connect_timeout=SHORT)
        for _ in range(3):  # No back-off of the library's makes it longer the next time.
            began = time.monotonic()
            failure = await exporter.connect()
            assert SHORT * 0.9 <= time.monotonic() - began < SHORT + 5
            assert failure == Retryable(
                "CONNECT_TIMEOUT", f"no connection to {endpoint} within 0.3 s"
            )
            assert not exporter.ready()


async def test_the_attempt_limit_is_real(sink: Sink, make: MakeExporter) -> None:
    sink.behave(HANG)
    exporter = await connected(make(sink.grpc_endpoint, timeout=SHORT))
    began = time.monotonic()
    outcome = await exporter.export(REQUEST)
    assert SHORT * 0.9 <= time.monotonic() - began < SHORT + 5
    assert isinstance(outcome, Retryable)
    assert (outcome.code, outcome.timed_out) == ("DEADLINE_EXCEEDED", True)


async def test_a_deadline_of_the_collectors_own_is_not_ours(sink: Sink, make: MakeExporter) -> None:
    sink.behave(Behaviour(code="DEADLINE_EXCEEDED"))
    exporter = await connected(make(sink.grpc_endpoint))
    outcome = await exporter.export(REQUEST)
    assert isinstance(outcome, Retryable)
    assert not outcome.timed_out
    assert exporter.ready()


async def test_no_limit(sink: Sink, make: MakeExporter) -> None:
    sink.behave(HANG)
    exporter = await connected(make(sink.grpc_endpoint, timeout=None))
    export = asyncio.create_task(exporter.export(REQUEST))
    await sink.wait_for(lambda: sink.requests("traces") == 1)
    await sink.stop()
    outcome = await export
    assert isinstance(outcome, Retryable)
    assert outcome.code == "UNAVAILABLE"


async def test_several_that_want_a_connection_share_one_attempt(
    sink: Sink, make: MakeExporter
) -> None:
    async with Proxy(sink.grpc_endpoint) as proxy:
        first = make(proxy.endpoint)
        second = make(proxy.endpoint, schema=LOGS, channel=first._connection)
        assert await asyncio.gather(*(each.connect() for each in (first, second) * 3)) == [None] * 6
        assert await first.export(REQUEST) == Accepted()
        assert await second.export(b"") == Accepted()
        assert proxy.accepted == 1


async def test_one_that_gives_up_leaves_the_attempt_to_the_others(
    sink: Sink, make: MakeExporter
) -> None:
    async with Proxy(sink.grpc_endpoint) as proxy:
        proxy.stall()
        exporter = make(proxy.endpoint)
        gives_up, stays = (asyncio.create_task(exporter.connect()) for _ in range(2))
        await asyncio.sleep(0)
        gives_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gives_up
        proxy.flow()
        assert await stays is None


# --- connections that fail, and what comes after ------------------------------------------------


async def test_refused_and_then_there(make: MakeExporter) -> None:
    async with Sink(started=False) as sink:
        exporter = make(sink.grpc_endpoint)
        for _ in range(3):
            failure = await exporter.connect()
            assert isinstance(failure, Retryable)
            assert failure.code == "CONNECT_FAILED"
            assert "Connection refused" in failure.message
            assert failure.message.startswith(f"cannot connect to {sink.grpc_endpoint}: ")
        await sink.start()
        # At once: no back-off of the library's stands between.
        await recovers(exporter)


async def test_an_export_without_a_connection_fails_at_once(make: MakeExporter) -> None:
    with refusing() as endpoint:
        outcome = await make(endpoint).export(REQUEST)
    assert isinstance(outcome, Retryable)
    assert outcome.code == "UNAVAILABLE"
    assert not outcome.rerouted


async def test_a_restart_on_the_same_port(sink: Sink, make: MakeExporter) -> None:
    exporter = await connected(make(sink.grpc_endpoint))
    for _ in range(3):
        await recovers(exporter)
        await sink.stop()
        await sink.start()


async def test_a_long_absence_leaves_no_failure_behind(sink: Sink, make: MakeExporter) -> None:
    exporter = await connected(make(sink.grpc_endpoint))
    await sink.stop()
    await given_up(exporter)
    for _ in range(3):
        assert isinstance(await exporter.connect(), Retryable)
    await sink.start()
    assert await exporter.connect() is None
    assert await exporter.export(REQUEST) == Accepted()


async def test_whoever_hangs_up_is_not_called_again_unasked(sink: Sink, make: MakeExporter) -> None:
    calls = 0
    connected_once = asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # an empty SETTINGS frame: HTTP/2 is spoken here
        await connected_once.wait()
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        exporter = await connected(make(f"{host}:{port}"))
        other = await connected(make(sink.grpc_endpoint))
        connected_once.set()
        await given_up(exporter)
        before = calls
        for _ in range(50):
            assert await other.export(REQUEST) == Accepted()
    assert calls <= before + 2  # Begun before the channel was given up.


@pytest.mark.parametrize("how", ["stop", "fin", "reset"])
async def test_a_connection_lost_under_a_call_is_told_from_an_answer(
    sink: Sink, make: MakeExporter, how: str
) -> None:
    async with Proxy(sink.grpc_endpoint) as proxy:
        exporter = await connected(make(proxy.endpoint))
        sink.behave(HANG)
        export = asyncio.create_task(exporter.export(REQUEST))
        await sink.wait_for(lambda: sink.requests("traces") == 1)
        if how == "stop":
            await sink.stop()
        else:
            proxy.cut(reset=how == "reset")
        outcome = await export
        assert isinstance(outcome, Retryable)
        assert outcome.code == "UNAVAILABLE"
        assert connection_lost(outcome.message), outcome.message
        # It has one address, so there is no other.
        assert not outcome.rerouted
        await sink.start()
        sink.behave()
        await recovers(exporter)


@pytest.mark.parametrize(
    "message",
    [
        "the sink was told to answer so",
        "data refused due to high memory usage",
        "sending queue is full",
        "",
    ],
)
async def test_an_answer_is_told_from_a_lost_connection(
    sink: Sink, make: MakeExporter, message: str
) -> None:
    port = sink.grpc_endpoint.rpartition(":")[2]
    sink.behave(Behaviour(code="UNAVAILABLE", message=message))
    # A name, which may have several addresses.
    exporter = await connected(make(f"localhost:{port}"))
    outcome = await exporter.export(REQUEST)
    assert isinstance(outcome, Retryable)
    assert not connection_lost(outcome.message)
    assert not outcome.rerouted


async def test_a_connection_that_vanished_is_replaced_after_the_hung_export(
    sink: Sink, make: MakeExporter
) -> None:
    async with Proxy(sink.grpc_endpoint) as proxy:
        exporter = make(proxy.endpoint, timeout=SHORT, connect_timeout=SHORT)
        async with asyncio.timeout(LONG):
            while await exporter.connect() is not None:
                pass
        proxy.stall()
        assert exporter.ready()  # Nobody has told it.
        hung = await exporter.export(REQUEST)
        assert isinstance(hung, Retryable)
        assert hung.timed_out
        assert not exporter.ready()
        failure = await exporter.connect()
        assert failure is not None
        assert failure.code == "CONNECT_TIMEOUT"
        before = proxy.accepted
        proxy.flow()
        # The short limits hold here too, and a busy machine may take longer.
        async with asyncio.timeout(LONG):
            while await exporter.connect() is not None or (
                await exporter.export(REQUEST) != Accepted()
            ):
                pass
        assert proxy.accepted > before


async def test_exports_under_way_end_on_the_old_connection(sink: Sink, make: MakeExporter) -> None:
    answer = asyncio.Event()
    server = grpc.aio.server()
    calls = 0

    async def export(_: bytes, __: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        nonlocal calls
        calls += 1
        await answer.wait()
        return b""

    server.add_registered_method_handlers(
        TRACES.service, {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        slow = await connected(make(f"127.0.0.1:{port}"))
        quick = make(f"127.0.0.1:{port}", channel=slow._connection, timeout=SHORT)
        waiting = asyncio.create_task(slow.export(REQUEST))
        hung = await quick.export(REQUEST)
        assert isinstance(hung, Retryable)
        assert hung.timed_out
        assert not slow.ready()
        assert await slow.connect() is None
        answer.set()
        assert await waiting == Accepted()
        after = make(f"127.0.0.1:{port}", channel=slow._connection)
        assert await after.export(REQUEST) == Accepted()
        assert calls >= 2  # That which hung may have ended before the server saw it.
    finally:
        await server.stop(None)


async def test_a_collector_that_ends_connections_by_age(make: MakeExporter) -> None:
    peers: set[str] = set()
    server = grpc.aio.server(
        options=(("grpc.max_connection_age_ms", 50), ("grpc.max_connection_age_grace_ms", 1000))
    )

    async def export(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        peers.add(context.peer())
        return b""

    server.add_registered_method_handlers(
        TRACES.service, {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        exporter = make(f"127.0.0.1:{port}")
        async with asyncio.timeout(LONG):
            while len(peers) < 4:
                await recovers(exporter)
    finally:
        await server.stop(None)


# --- names -------------------------------------------------------------------------------------

needs_loopback_net = pytest.mark.skipif(
    sys.platform != "linux", reason="127.0.0.2 is no address of this machine"
)


async def test_a_name_that_does_not_exist_and_then_does(sink: Sink, make: MakeExporter) -> None:
    async with NameServer({}) as names:
        port = sink.grpc_endpoint.rpartition(":")[2]
        exporter = make(f"dns://{names.address}/collector.test:{port}", connect_timeout=LONG)
        for _ in range(2):
            failure = await exporter.connect()
            assert isinstance(failure, Retryable)
            assert failure.code == "CONNECT_FAILED"
            assert "collector.test" in failure.message
        names.names["collector.test"] = ["127.0.0.1"]
        await recovers(exporter)


async def test_a_name_server_that_does_not_answer(make: MakeExporter) -> None:
    async with NameServer({}) as names:
        names.silent = True
        exporter = make(f"dns://{names.address}/collector.test:4317", connect_timeout=SHORT)
        failure = await exporter.connect()
        assert isinstance(failure, Retryable)
        assert failure.code == "CONNECT_TIMEOUT"


@needs_loopback_net
async def test_the_collector_comes_back_at_another_address(make: MakeExporter) -> None:
    async with Sink() as old, NameServer({"collector.test": ["127.0.0.1"]}) as names:
        port = old.grpc_endpoint.rpartition(":")[2]
        exporter = make(f"dns://{names.address}/collector.test:{port}")
        await recovers(exporter)
        async with Sink(grpc=Listen("127.0.0.2", int(port)), http=Listen()) as new:
            await old.stop()
            names.names["collector.test"] = ["127.0.0.2"]
            # Its failure to connect to the old address is what makes it ask for the new one.
            for _ in range(3):
                if await exporter.connect() is None:
                    break
            await recovers(exporter)
            assert new.requests("traces") >= 1


@needs_loopback_net
async def test_the_loss_of_one_of_two_addresses_is_rerouted(make: MakeExporter) -> None:
    both = {"collector.test": ["127.0.0.1", "127.0.0.2"]}
    async with Sink() as one, NameServer(both) as names:
        port = one.grpc_endpoint.rpartition(":")[2]
        async with Sink(grpc=Listen("127.0.0.2", int(port)), http=Listen()) as two:
            exporter = await connected(make(f"dns://{names.address}/collector.test:{port}"))
            async with asyncio.timeout(LONG):
                while not (one.requests("traces") and two.requests("traces")):
                    assert await exporter.export(REQUEST) == Accepted()
            one.behave(HANG)
            two.behave(HANG)
            seen = one.requests("traces") + two.requests("traces")
            exports = [asyncio.create_task(exporter.export(REQUEST)) for _ in range(2)]
            await one.wait_for(lambda: one.requests("traces") + two.requests("traces") >= seen + 1)
            await two.wait_for(lambda: one.requests("traces") + two.requests("traces") >= seen + 2)
            await one.stop()
            done, _ = await asyncio.wait(exports, return_when=asyncio.FIRST_COMPLETED)
            (lost,) = done
            outcome = lost.result()
            assert isinstance(outcome, Retryable)
            assert outcome.rerouted
            two.behave()
            assert exporter.ready()
            assert await exporter.export(REQUEST) == Accepted()
            # With the last one gone, it is lost for good.
            two.behave(HANG)
            before = two.requests("traces")
            last = asyncio.create_task(exporter.export(REQUEST))
            await two.wait_for(lambda: two.requests("traces") > before)
            await two.stop()
            await last
            failure = await exporter.connect()
            assert failure is not None
            assert failure.code == "CONNECT_FAILED"


# --- TLS ---------------------------------------------------------------------------------------


async def test_tls_and_whom_it_trusts(make: MakeExporter, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    async with Sink(tls=authority.server()) as sink:
        trusting = make(sink.grpc_endpoint, tls=ClientTls(authority.file))
        assert await (await connected(trusting)).export(REQUEST) == Accepted()
        doubting = make(sink.grpc_endpoint, tls=ClientTls(other.file))
        failure = await doubting.connect()
        assert isinstance(failure, Retryable)
        assert failure.code == "CONNECT_FAILED"
        assert "certificate verify failed" in failure.message.lower().replace("_", " ")


async def test_new_credentials_take_a_new_connection(make: MakeExporter, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = authority.client(certificate=True)
    async with Sink(tls=authority.server(mutual=True)) as sink:
        port = sink.grpc_endpoint.rpartition(":")[2]
        exporter = await connected(make(f"localhost:{port}", tls=tls))
        before = exporter._connection.current
        authority.client(certificate=True)  # The same files, anew.
        async with asyncio.timeout(LONG):
            while exporter.ready():  # Files are looked at once a second.
                await asyncio.sleep(0.05)
        await recovers(exporter)
        assert exporter._connection.current is not before


# --- ends --------------------------------------------------------------------------------------


async def test_our_own_cancellation_propagates(sink: Sink, make: MakeExporter) -> None:
    sink.behave(HANG)
    exporter = await connected(make(sink.grpc_endpoint))
    export = asyncio.create_task(exporter.export(REQUEST))
    await sink.wait_for(lambda: sink.requests("traces") == 1)
    export.cancel()
    with pytest.raises(asyncio.CancelledError):
        await export


async def test_the_end_of_the_channel_under_a_call_is_an_outcome(
    sink: Sink, make: MakeExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.exporters.grpc._CLOSE_GRACE", 0.0)
    sink.behave(HANG)
    exporter = await connected(make(sink.grpc_endpoint))
    export = asyncio.create_task(exporter.export(REQUEST))
    await sink.wait_for(lambda: sink.requests("traces") == 1)
    await exporter.close()
    outcome = await export
    assert isinstance(outcome, Retryable)
    assert outcome.code == "CANCELLED"


async def test_close_ends_an_attempt_to_connect_and_is_final(make: MakeExporter) -> None:
    with silent_listener() as endpoint:
        exporter = make(endpoint)
        connecting = asyncio.create_task(exporter.connect())
        await asyncio.sleep(0)
        await exporter.close()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await exporter.close()
        assert not exporter.ready()
        failure = await exporter.connect()
        assert failure is not None
        assert failure.code == "CONNECT_FAILED"
        outcome = await exporter.export(REQUEST)
        assert isinstance(outcome, Retryable)
