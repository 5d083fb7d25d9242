"""How a relay ends: nothing that it acknowledged vanishes uncounted, and it ends in time."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

import aiohttp
import grpc
import grpc.aio
import pytest

from relay.otlp import TRACES
from relay.sink import Sink
from relay.sink.behaviour import Behaviour
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import RelayProcess, numbered_request, numbers, ranges, send
from tests.network import Proxy

HANG = Behaviour(hang=True)
LIMIT = 2.0
"""Seconds of the shutdown limit where the limit is what ends it."""
FAR = "60000"
"""Milliseconds of a limit that must not be what ends a test."""


class App:
    """Sends numbered spans without pause, from several tasks, and knows what was acknowledged."""

    def __init__(self, relay: RelayProcess, http: bool) -> None:
        self._relay = relay
        self._http = http
        self._next = 0
        self.acknowledged: list[int] = []
        self.refused = 0
        self.codes: set[grpc.StatusCode] = set()
        """Of refused calls."""
        self._progress = asyncio.Condition()

    async def run(self) -> None:
        """Send until the relay takes no more."""
        async with (
            self._relay.channel() as channel,
            aiohttp.ClientSession() as client,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(4):
                group.create_task(self._send(channel, client))

    async def _send(self, channel: grpc.aio.Channel, client: aiohttp.ClientSession) -> None:
        while not self.refused:
            first = self._next
            self._next += 10
            payload = numbered_request(first, first + 10)
            if await self._taken(channel, client, payload):
                self.acknowledged += range(first, first + 10)
                async with self._progress:
                    self._progress.notify_all()
            else:
                self.refused += 1

    async def _taken(
        self, channel: grpc.aio.Channel, client: aiohttp.ClientSession, payload: bytes
    ) -> bool:
        if not self._http:
            try:
                await send(channel, TRACES, payload)
            except grpc.aio.AioRpcError as error:
                # The library itself ends what arrives in the moment of closing as CANCELLED.
                self.codes.add(error.code())
                return False
            return True
        url = f"http://{self._relay.http}/v1/traces"
        headers = {"Content-Type": "application/x-protobuf"}
        try:
            async with client.post(url, data=payload, headers=headers) as answer:
                assert answer.status in {200, 503}
                return answer.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def has_sent(self, count: int) -> None:
        async with self._progress, asyncio.timeout(30):
            await self._progress.wait_for(lambda: len(self.acknowledged) >= count)


@asynccontextmanager
async def app_of(relay: RelayProcess, *, http: bool = False) -> AsyncIterator[App]:
    app = App(relay, http)
    running = asyncio.create_task(app.run())
    try:
        yield app
        await running
    finally:
        running.cancel()


def all_arrived(sink: Sink, acknowledged: list[int]) -> None:
    found = Counter(numbers(*sink.accepted("traces")))
    missing = set(acknowledged) - set(found)
    twice = [number for number, times in found.items() if times > 1]
    assert not missing, f"acknowledged, and never seen again: {ranges(missing)}"
    assert not twice, f"more than once: {ranges(twice)}"


def ledger(relay: RelayProcess, event: str = "stopped") -> dict[str, object]:
    """The books of the last line, which balance."""
    last = relay.last_record
    assert last["event"] == event, relay.tail()
    books: dict[str, object] = last["ledger"]["traces"]
    parts = last["ledger"]["traces"]
    filtered, dropped = (sum(parts[key].values()) for key in ("filtered", "dropped"))
    assert parts["received"] == filtered + dropped + parts["exported"] + parts["not_sent"]
    return books


def took(relay: RelayProcess) -> float:
    """Seconds from the signal to the last line, by the relay's own clock."""
    first, last = (
        datetime.fromisoformat(record["time"])
        for record in relay.records
        if record.get("event") in {"stopping", "stopped"}
    )
    return (last - first).total_seconds()


# --- with a collector that is there ---------------------------------------------------------------


@pytest.mark.parametrize("http", [False, True], ids=["grpc", "http"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_under_load_everything_acknowledged_arrives(
    sink: Sink, start_relay: StartRelay, number: signal.Signals, http: bool
) -> None:
    relay = await start_relay(RELAY_QUEUE_SIZE="100000", RELAY_SCHEDULE_DELAY="5000")
    async with app_of(relay, http=http) as app:
        await app.has_sent(3000)
        relay.process.send_signal(number)
        # It goes on sending until it is refused.
    assert await relay.exit_code() == 0
    assert len(app.acknowledged) >= 3000
    assert app.codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    all_arrived(sink, app.acknowledged)
    books = ledger(relay)
    assert books["dropped"] == {}
    assert books["exported"] == books["received"]
    assert relay.last_record["level"] == "info"


async def test_a_slow_collector_gets_what_waits(sink: Sink, start_relay: StartRelay) -> None:
    sink.behave(Behaviour(delay=0.2))
    relay = await start_relay(RELAY_QUEUE_SIZE="10000", RELAY_MAX_CONCURRENT_EXPORTS="1")
    async with relay.channel() as channel:
        for first in range(0, 3000, 500):
            await send(channel, TRACES, numbered_request(first, first + 500))
    assert await relay.stop() == 0
    all_arrived(sink, list(range(3000)))


async def test_what_waits_is_flushed_with_retries(sink: Sink, start_relay: StartRelay) -> None:
    sink.script(*[Behaviour(code="UNAVAILABLE")] * 2)
    relay = await start_relay(RELAY_SCHEDULE_DELAY=FAR)
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 50))
    assert await relay.stop() == 0
    all_arrived(sink, list(range(50)))
    assert sink.requests("traces") == 3


async def test_the_last_flush_of_an_app_that_stops_a_little_later(
    sink: Sink, start_relay: StartRelay
) -> None:
    relay = await start_relay(RELAY_SHUTDOWN_LINGER=FAR, RELAY_SHUTDOWN_TIMEOUT=FAR)
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 10))
        watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/grpc.health.v1.Health/Watch"
        )
        stream = watch(b"")
        assert await stream.read() == b"\x08\x01"
        relay.terminate()
        # Readiness and gRPC health turn negative; requests are taken as before.
        assert await stream.read() == b"\x08\x02"
        assert (await relay.get("/readyz"))[0] == 503
        assert (await relay.get("/healthz"))[0] == 200
        await send(channel, TRACES, numbered_request(10, 20))
        async with relay.client.post(
            f"http://{relay.http}/v1/traces",
            data=numbered_request(20, 30),
            headers={"Content-Type": "application/x-protobuf"},
        ) as answer:
            assert answer.status == 200
        await sink.wait_for(lambda: sink.items("traces") == 30)
        await relay.identity()
        stream.cancel()
    relay.interrupt()  # Nobody waits a minute for the rest of it.
    assert await relay.exit_code() == 128 + signal.SIGINT
    all_arrived(sink, list(range(30)))


async def test_the_linger_ends_by_itself(sink: Sink, start_relay: StartRelay) -> None:
    relay = await start_relay(RELAY_SHUTDOWN_LINGER="1000", RELAY_SCHEDULE_DELAY=FAR)
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 10))
        began = time.monotonic()
        relay.terminate()
        await relay.line(lambda line: '"stopping"' in line, "it has the signal")
        await send(channel, TRACES, numbered_request(10, 20))
        assert await relay.exit_code() == 0
        assert time.monotonic() - began >= 1.0
    all_arrived(sink, list(range(20)))


async def test_sigint_does_not_linger(sink: Sink, start_relay: StartRelay) -> None:
    relay = await start_relay(
        RELAY_SHUTDOWN_LINGER=FAR, RELAY_SHUTDOWN_TIMEOUT=FAR, RELAY_SCHEDULE_DELAY=FAR
    )
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 10))
    relay.interrupt()
    assert await relay.exit_code() == 0
    all_arrived(sink, list(range(10)))


async def test_with_nothing_to_do(relay: RelayProcess) -> None:
    assert await relay.stop() == 0
    assert relay.last_record["message"] == "stopped: nothing was received"


# --- with a collector that is not -----------------------------------------------------------------


@pytest.mark.parametrize("case", ["outage", "retry wait", "hung export", "no handshake"])
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_the_limit_holds_and_the_loss_is_counted(
    sink: Sink, start_relay: StartRelay, case: str, protocol: str
) -> None:
    inner = sink.grpc_endpoint if protocol == "grpc" else sink.http_endpoint
    async with Proxy(inner) as proxy:
        relay = await start_relay(
            f"http://{inner if case == 'outage' else proxy.endpoint}",
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            RELAY_SHUTDOWN_TIMEOUT=str(int(LIMIT * 1000)),
            RELAY_SCHEDULE_DELAY="10",
        )
        if case == "outage":
            await sink.stop()
        elif case == "retry wait":
            sink.behave(Behaviour(code="UNAVAILABLE", retry_after=60))
        elif case == "hung export":
            sink.behave(HANG)
        else:
            proxy.stall()
        async with relay.channel() as channel:
            await send(channel, TRACES, numbered_request(0, 600))
        if case in {"retry wait", "hung export"}:
            await sink.wait_for(lambda: sink.requests("traces") >= 1)
        elif case == "no handshake":
            async with asyncio.timeout(30):
                while not proxy.accepted:
                    await asyncio.sleep(0.01)
        else:
            await relay.line(lambda line: "outage_began" in line, "the outage")
        assert await relay.stop() == 0
        assert took(relay) < LIMIT
        books = ledger(relay)
        assert books["received"] == 600
        assert books["dropped"] == {"shutdown": 600}
        assert relay.last_record["level"] == "warning"
        assert "dropped 600 (shutdown 600)" in relay.last_record["message"]


async def test_under_load_what_could_not_be_sent_is_counted(
    sink: Sink, start_relay: StartRelay
) -> None:
    await sink.stop()
    relay = await start_relay(RELAY_SHUTDOWN_TIMEOUT=str(int(LIMIT * 1000)))
    async with app_of(relay) as app:
        await app.has_sent(3000)
        relay.terminate()
    assert await relay.exit_code() == 0
    books = ledger(relay)
    received, dropped = books["received"], books["dropped"]
    assert isinstance(received, int)
    # A request whose answer was lost with its connection may have been taken.
    assert len(app.acknowledged) <= received <= len(app.acknowledged) + 10 * app.refused
    assert dropped == {"queue_full": received - 2048, "shutdown": 2048}


async def test_a_limit_of_nothing(sink: Sink, start_relay: StartRelay) -> None:
    sink.behave(HANG)
    relay = await start_relay(RELAY_SHUTDOWN_TIMEOUT="0", RELAY_SHUTDOWN_LINGER=FAR)
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 10))
    assert await relay.stop() == 0
    assert ledger(relay)["dropped"] == {"shutdown": 10}


# --- clients that hold on -------------------------------------------------------------------------


async def test_clients_that_hold_on_do_not_hold_it_up(sink: Sink, start_relay: StartRelay) -> None:
    relay = await start_relay(RELAY_SHUTDOWN_TIMEOUT=str(int(LIMIT * 1000)))
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 10))
        # A health watch; a call whose request never comes; connections that say nothing, or half.
        watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            "/grpc.health.v1.Health/Watch"
        )
        stream = watch(b"")
        assert await stream.read() == b"\x08\x01"
        made: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(TRACES.method)
        begun = made()
        await begun.wait_for_connection()
        writers = []
        for address, said in (
            (relay.grpc, b""),
            (relay.grpc, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            (relay.http, b""),
            (relay.http, b"POST /v1/traces HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf"),
            (relay.admin, b"GET /metrics HTTP/1.1\r\n"),
        ):
            host, _, port = address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(said)
            await writer.drain()
            writers.append(writer)
        assert await relay.stop() == 0
        assert took(relay) < LIMIT
        for held in (stream, begun):
            held.cancel()
        for writer in writers:
            writer.close()
    all_arrived(sink, list(range(10)))


# --- the second signal ----------------------------------------------------------------------------


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_second_signal_ends_it_at_once(
    sink: Sink, start_relay: StartRelay, second: signal.Signals
) -> None:
    sink.behave(HANG)
    relay = await start_relay(RELAY_SHUTDOWN_TIMEOUT=FAR)
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 10))
        await sink.wait_for(lambda: sink.requests("traces") == 1)
    relay.terminate()
    await relay.line(lambda line: '"stopping"' in line, "it has the first signal")
    relay.process.send_signal(second)
    assert await relay.exit_code() == 128 + second
    books = ledger(relay, "killed")
    assert books["not_sent"] == 10
    assert "not sent 10" in relay.last_record["message"]
