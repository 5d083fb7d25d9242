"""The collector is away, hangs, or never completes a connection; then it is back.

10,000 numbered spans come meanwhile, in requests of 100. Each is answered OK, the newest 2048
arrive, the loss of 7952 is counted, and no answer to the app waits for an export.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import pytest

from relay.otlp import TRACES
from relay.sink import Sink
from relay.sink.behaviour import Behaviour
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import RelayProcess, Scrape, numbered_request, numbers, ranges, send
from tests.network import Proxy

SPANS, EACH, RING = 10_000, 100, 2048
NEWEST = list(range(SPANS - RING, SPANS))
RETURN = 6.0
"""Seconds within which exports resume (contract, section 3, point 7)."""
HANG = Behaviour(hang=True)
LIMIT = 1.0
"""Seconds of the connect and attempt limits where they are to end something."""
NEVER = "60000"
"""Milliseconds of a limit that must not be what ends a test."""

PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])


@dataclass
class World:
    """A relay with a proxy between it and the sink."""

    sink: Sink
    proxy: Proxy
    relay: RelayProcess

    async def send_all(self) -> None:
        """Send every span; the answers, all OK, have come when this returns."""
        async with self.relay.channel() as channel:
            for first in range(0, SPANS, EACH):
                assert await send(channel, TRACES, numbered_request(first, first + EACH)) == b""

    async def scrape(self) -> Scrape:
        return await self.relay.identity()

    async def newest_arrive(self, began: float, within: float) -> None:
        """Exactly the newest arrive, once, within so many seconds of ``began``."""
        await self.sink.wait_for(
            lambda: self.sink.accepted_items("traces") >= RING, what="the newest 2048"
        )
        accepted = [each for each in self.sink.received if each.accepted]
        took = max(each.at for each in accepted) - began
        assert took <= within, f"it took {took:.1f} s"
        scrape = await self.relay.drained()
        found = Counter(numbers(*self.sink.accepted("traces")))
        assert sorted(found.elements()) == NEWEST, (
            f"missing: {ranges(set(NEWEST) - set(found))};"
            f" not wanted: {ranges(set(found) - set(NEWEST))}"
        )
        assert scrape.by("reason", "dropped_items_total") == {"queue_full": SPANS - RING}
        assert scrape.value("exported_items_total", signal="traces") == RING
        assert scrape.value("collector_up", signal="traces") == 1
        assert scrape.value("outage_seconds", signal="traces") == 0

    async def ends(self, code: str) -> None:
        """The relay stops; its log told of the outage once, and of each drop never."""
        assert await self.relay.stop() == 0
        events = [record.get("event") for record in self.relay.records]
        assert events == ["started", "outage_began", "outage_ended", "stopping", "stopped"]
        _, began, ended, _, last = self.relay.records
        assert (began["level"], began["code"], began["signal"]) == ("warning", code, "traces")
        assert ended["lost"] == SPANS - RING
        assert ended["seconds"] > 0
        assert last["ledger"]["traces"] == last["ledger"]["traces"] | {
            "received": SPANS,
            "exported": RING,
            "dropped": {"queue_full": SPANS - RING},
            "not_sent": 0,
        }
        # Every line that it wrote is one of these: nothing writes beside the log.
        assert len(self.relay.output) == len(events)


async def world(
    start_relay: StartRelay, sink: Sink, proxy: Proxy, protocol: str, **settings: str
) -> World:
    relay = await start_relay(
        f"http://{proxy.endpoint}", OTEL_EXPORTER_OTLP_PROTOCOL=protocol, **settings
    )
    return World(sink, proxy, relay)


def proxy_to(sink: Sink, protocol: str) -> Proxy:
    return Proxy(sink.grpc_endpoint if protocol == "grpc" else sink.http_endpoint)


@PROTOCOLS
async def test_down(sink: Sink, start_relay: StartRelay, protocol: str) -> None:
    await sink.stop()
    grpc = protocol == "grpc"
    collector = f"http://{sink.grpc_endpoint if grpc else sink.http_endpoint}"
    relay = await start_relay(collector, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    it = World(sink, Proxy(""), relay)
    await it.send_all()
    scrape = await it.scrape()
    assert scrape.by("reason", "dropped_items_total") == {"queue_full": SPANS - RING}
    assert scrape.value("queue_items", signal="traces") == RING
    assert scrape.value("in_flight_items") == 0
    # Long enough for the longest pauses between two probes.
    await relay.until(
        lambda scrape: scrape.value("export_attempts_total", code="CONNECT_FAILED") >= 3,
        "three probes",
    )
    began = time.monotonic()
    await sink.start()
    await it.newest_arrive(began, RETURN)
    await it.ends("CONNECT_FAILED")


@PROTOCOLS
async def test_hangs(sink: Sink, start_relay: StartRelay, protocol: str) -> None:
    async with proxy_to(sink, protocol) as proxy:
        sink.behave(HANG)
        it = await world(
            start_relay,
            sink,
            proxy,
            protocol,
            OTEL_EXPORTER_OTLP_TIMEOUT=str(int(LIMIT * 1000)),
        )
        await it.send_all()
        # What had left comes back after its time limit, and finds its place taken by newer ones.
        await it.relay.until(
            lambda scrape: scrape.value("dropped_items_total") == SPANS - RING,
            "exports that hung are back in the ring",
        )
        began = time.monotonic()
        sink.behave()
        await it.newest_arrive(began, LIMIT + RETURN)
        await it.ends("DEADLINE_EXCEEDED" if protocol == "grpc" else "TIMEOUT")


async def test_connections_never_complete(sink: Sink, start_relay: StartRelay) -> None:
    # What is never completed is the handshake of HTTP/2. That of HTTP/1.1 is TCP's alone.
    async with Proxy(sink.grpc_endpoint) as proxy:
        proxy.stall()
        it = await world(
            start_relay,
            sink,
            proxy,
            "grpc",
            RELAY_CONNECT_TIMEOUT=str(int(LIMIT * 1000)),
            OTEL_EXPORTER_OTLP_TIMEOUT=str(int(LIMIT * 1000)),
        )
        await it.send_all()
        await it.relay.until(
            lambda scrape: scrape.value("dropped_items_total") == SPANS - RING,
            "only the newest are kept",
        )
        await it.relay.until(
            lambda scrape: scrape.value("export_attempts_total") >= 2, "two attempts that failed"
        )
        began = time.monotonic()
        proxy.flow()
        await it.newest_arrive(began, LIMIT + RETURN)


# --- no answer waits for an export ----------------------------------------------------------------


@PROTOCOLS
async def test_answers_come_while_the_collector_holds_the_first_export(
    sink: Sink, start_relay: StartRelay, protocol: str
) -> None:
    async with proxy_to(sink, protocol) as proxy:
        sink.behave(HANG)
        it = await world(start_relay, sink, proxy, protocol, OTEL_EXPORTER_OTLP_TIMEOUT=NEVER)
        async with it.relay.channel() as channel:
            await send(channel, TRACES, numbered_request(0, EACH))
            await sink.wait_for(lambda: sink.requests("traces") == 1, what="the first export")
            for first in range(EACH, SPANS, EACH):
                await send(channel, TRACES, numbered_request(first, first + EACH))
        # All answers are here, and not one export has ended.
        scrape = await it.scrape()
        assert scrape.value("export_attempts_total") == 0
        assert scrape.value("in_flight_items", signal="traces") >= EACH
        assert scrape.value("received_items_total", signal="traces") == SPANS
        # A restart frees what hangs.
        await sink.stop()
        await it.relay.until(
            lambda scrape: scrape.value("dropped_items_total") == SPANS - RING, "it is back"
        )
        sink.behave()
        began = time.monotonic()
        await sink.start()
        await it.newest_arrive(began, RETURN)


async def test_answers_come_while_the_first_connection_is_being_established(
    sink: Sink, start_relay: StartRelay
) -> None:
    async with Proxy(sink.grpc_endpoint) as proxy:
        proxy.stall()
        it = await world(
            start_relay,
            sink,
            proxy,
            "grpc",
            RELAY_CONNECT_TIMEOUT=NEVER,
            OTEL_EXPORTER_OTLP_TIMEOUT=NEVER,
        )
        await it.send_all()
        scrape = await it.scrape()
        assert scrape.value("export_attempts_total") == 0
        assert scrape.value("received_items_total", signal="traces") == SPANS
        assert sink.requests("traces") == 0
        # Nothing had left the ring.
        assert scrape.by("reason", "dropped_items_total") == {"queue_full": SPANS - RING}
        proxy.flow()
        await it.newest_arrive(time.monotonic(), RETURN)


# --- returns of other kinds -----------------------------------------------------------------------


@PROTOCOLS
async def test_it_comes_and_goes(sink: Sink, start_relay: StartRelay, protocol: str) -> None:
    grpc = protocol == "grpc"
    collector = f"http://{sink.grpc_endpoint if grpc else sink.http_endpoint}"
    # The delay is the time in which the relay sees that its connection was closed.
    relay = await start_relay(
        collector, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, RELAY_SCHEDULE_DELAY="300"
    )
    async with relay.channel() as channel:
        for number in range(4):
            await send(channel, TRACES, numbered_request(number, number + 1))
            await sink.wait_for(lambda n=number: sink.items("traces") == n + 1)  # type: ignore[misc]  # a default binds it
            await relay.drained()
            await sink.stop()
            await sink.start()
    scrape = await relay.drained()
    # Between two exports it was away and back: no export has failed.
    assert scrape.by("code", "export_attempts_total") == {"OK" if grpc else "200": 4}
    assert numbers(*sink.payloads("traces")) == list(range(4))


async def test_a_connection_that_vanishes_is_replaced(sink: Sink, start_relay: StartRelay) -> None:
    async with Proxy(sink.grpc_endpoint) as proxy:
        relay = await start_relay(
            f"http://{proxy.endpoint}",
            RELAY_CONNECT_TIMEOUT="500",
            OTEL_EXPORTER_OTLP_TIMEOUT="500",
        )
        async with relay.channel() as channel:
            await send(channel, TRACES, numbered_request(0, 10))
            await sink.wait_for(lambda: sink.items("traces") == 10)
            proxy.stall()
            await send(channel, TRACES, numbered_request(10, 20))
            await relay.until(
                lambda scrape: scrape.value("export_attempts_total", code="CONNECT_TIMEOUT") >= 1,
                "it gave the connection up and tries a new one",
            )
            # The old connection stays dead; only new ones are served.
            proxy.cut()
            proxy.flow()
            await sink.wait_for(lambda: sink.items("traces") >= 20)
        await relay.drained()
        assert set(numbers(*sink.payloads("traces"))) == set(range(20))
