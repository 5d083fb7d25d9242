"""Received = filtered + dropped + exported + queued + in flight: at every scrape, and at exit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from relay.otlp import LOGS, METRICS, PROFILES, SIGNALS, TRACES, SignalSchema
from relay.sink import Sink
from relay.sink.behaviour import Behaviour
from relay.sink.report import Received
from tests import numbered
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import RelayProcess, send

BURST = 30
"""Requests of each signal in one burst."""

PAUSE = 0.1
"""Seconds that the collector asks for: shorter than our own pauses."""
RETRYABLE = [
    Behaviour(code=code, retry_after=PAUSE)
    for code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DATA_LOSS", "CANCELLED", "ABORTED")
]
FINAL = [
    Behaviour(code=code)
    for code in ("INTERNAL", "INVALID_ARGUMENT", "PERMISSION_DENIED", "UNKNOWN", "ALREADY_EXISTS")
]
PARTIAL = [Behaviour(reject=2), Behaviour(reject=1_000_000, message="quota")]
FINE = [Behaviour(), Behaviour(delay=0.01), Behaviour(garbage=b"\xff")]


def moody(seed: int) -> Callable[[Received], Behaviour]:
    """Answer anything: the same for the same requests in the same order."""
    dice = random.Random(seed)

    def answer(request: Received) -> Behaviour:
        if request.signal is LOGS and request.size > 1500:
            return Behaviour(code="RESOURCE_EXHAUSTED", message="too large")
        if request.signal is PROFILES and dice.random() < 0.5:
            return Behaviour(code="UNIMPLEMENTED")
        return dice.choice(dice.choices([FINE, PARTIAL, RETRYABLE, FINAL], [5, 1, 2, 1])[0])

    return answer


def request_of(schema: SignalSchema, number: int) -> bytes:
    several = range(number * 10, number * 10 + 7)
    if schema is TRACES:
        spans = numbered.spans(several, pad=number % 3 * 50)
        return health_checks(spans) if number % 5 == 0 else spans
    if schema is METRICS:
        return numbered.metrics(several, [0, 1, 2, 3, 0, 1, 9])
    return numbered.logs(several) if schema is LOGS else numbered.profiles(several)


def health_checks(payload: bytes) -> bytes:
    """The same spans, as those of a server that is asked for its health."""
    request = ExportTraceServiceRequest.FromString(payload)
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.kind = Span.SPAN_KIND_SERVER
        span.attributes.add(key="url.path").value.string_value = "/health"
    return request.SerializeToString()


class Scraper:
    """Scrapes without pause, and finds the books balanced each time."""

    def __init__(self, relay: RelayProcess) -> None:
        self._relay = relay
        self.scrapes = 0

    async def run(self) -> None:
        while True:
            scrape = await self._relay.metrics(openmetrics=self.scrapes % 2 == 0)
            scrape.identity()
            self.scrapes += 1

    async def more(self, number: int) -> None:
        """Wait for so many further ones."""
        wanted = self.scrapes + number
        async with asyncio.timeout(30):
            while self.scrapes < wanted:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def scraping(relay: RelayProcess) -> AsyncIterator[Scraper]:
    scraper = Scraper(relay)
    running = asyncio.create_task(scraper.run())
    try:
        yield scraper
        assert not running.done(), running.exception()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def burst(relay: RelayProcess, number: int) -> None:
    """Send of every signal over both transports, some of it malformed."""
    async with relay.channel() as channel, aiohttp.ClientSession() as client:

        async def post(schema: SignalSchema, payload: bytes, status: int = 200) -> None:
            headers = {"Content-Type": "application/x-protobuf"}
            url = f"http://{relay.http}{schema.http_path}"
            async with client.post(url, data=payload, headers=headers) as answer:
                assert answer.status == status

        async with asyncio.TaskGroup() as group:
            for each in range(number, number + BURST):
                for schema in SIGNALS:
                    payload = request_of(schema, each)
                    if each % 2:
                        group.create_task(sent(channel, schema, payload))
                    else:
                        group.create_task(post(schema, payload))
                group.create_task(post(TRACES, b"\xff\xff", 400))


async def sent(channel: grpc.aio.Channel, schema: SignalSchema, payload: bytes) -> None:
    assert await send(channel, schema, payload) == b""


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_the_books_balance_whatever_happens(
    sink: Sink, start_relay: StartRelay, protocol: str
) -> None:
    collector = f"http://{sink.grpc_endpoint}" if protocol == "grpc" else sink.http_url
    relay = await start_relay(
        collector,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        RELAY_QUEUE_SIZE="400",
        RELAY_BATCH_SIZE="50",
        RELAY_SCHEDULE_DELAY="10",
        RELAY_SHUTDOWN_TIMEOUT="1000",
    )
    async with scraping(relay) as scraper:
        sink.behave(moody(1))
        for round_ in range(3):
            await burst(relay, round_ * BURST)
            await scraper.more(10)
        await sink.stop()
        await burst(relay, 3 * BURST)
        await scraper.more(5)
        await sink.start()
        for round_ in range(4, 6):
            await burst(relay, round_ * BURST)
            await scraper.more(10)
        sink.behave()
        scrape = await relay.drained()
        # At the end another outage, which the shutdown meets.
        await sink.stop()
        await burst(relay, 6 * BURST)
        await scraper.more(5)
    assert await relay.stop() == 0

    # All this has happened, so all this has been balanced.
    reasons = scrape.by("reason", "dropped_items_total")
    assert {"queue_full", "rejected", "partial_success", "unimplemented"} <= set(reasons)
    assert set(scrape.by("reason", "filtered_items_total")) == {"excluded_url"}
    for schema in SIGNALS:
        assert scrape.value("exported_items_total", signal=schema.name) > 0
        assert scrape.value("received_items_total", signal=schema.name, transport="http") > 0
    assert scrape.value("received_requests_total", outcome="invalid") == 6 * BURST

    last = relay.last_record
    assert last["event"] == "stopped"
    sent = {
        schema.name: sum(numbered_items(schema, number) for number in range(7 * BURST))
        for schema in SIGNALS
    }
    for name, books in last["ledger"].items():
        balanced(books)
        assert books["received"] == sent[name]
        # Profiles were not implemented, so nothing of them waited.
        assert books["dropped"].get("shutdown", 0) > 0 or name == "profiles"
        # An answer on its way when the listener went did not reach the relay.
        assert 0 < books["exported"] <= sink.accepted_items(name)


def numbered_items(schema: SignalSchema, number: int) -> int:
    return 16 if schema is METRICS else len(numbered.numbers_of(request_of(schema, number), schema))


def balanced(books: dict[str, Any]) -> None:
    filtered, dropped = (sum(books[key].values()) for key in ("filtered", "dropped"))
    assert books["received"] == filtered + dropped + books["exported"] + books["not_sent"]


async def test_the_relay_and_the_collector_count_the_same(
    sink: Sink, start_relay: StartRelay
) -> None:
    relay = await start_relay(RELAY_BATCH_SIZE="50", RELAY_SCHEDULE_DELAY="10")
    sink.behave(moody(2))
    async with scraping(relay):
        for round_ in range(3):
            await burst(relay, round_ * BURST)
        sink.behave()
        scrape = await relay.drained()
    for schema in SIGNALS:
        name, counts = schema.name, sink.counts[schema.name]
        assert scrape.value("exported_items_total", signal=name) == counts.accepted_items
        assert (
            scrape.value("dropped_items_total", signal=name, reason="partial_success")
            == counts.rejected_items
        )
        assert scrape.by("code", "export_attempts_total", signal=name) == dict(counts.answers)
        sizes = scrape.value("export_batch_items_sum", signal=name)
        assert sizes == counts.items
    assert await relay.stop() == 0
