"""One batch must not stop the rest, and a refusal costs only what is at fault: real servers.

What the decisions are is tested in simulated time (tests/test_delivery.py); here they meet what
grpc and HTTP really answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator
from typing import Literal

import aiohttp
import grpc.aio
import pytest

from relay.otlp import TRACES
from relay.sink import Behaviour, Received, Sink
from tests.chaos.oracle import Books
from tests.chaos.plan import Limits
from tests.chaos.world import Local, faster
from tests.e2e.harness import OWN_CONNECTION, send, until
from tests.numbered import numbers_of, spans

Protocol = Literal["grpc", "http/protobuf"]
PROTOCOLS: tuple[Protocol, ...] = ("grpc", "http/protobuf")


def limits(protocol: Protocol, timeout: float = 0.5) -> Limits:
    return Limits(
        protocol=protocol,
        compression="none",
        timeout=timeout,
        connect_timeout=5.0,
        queue_size=8192,
        queue_max_bytes=16 << 20,
        batch_size=512,
        schedule_delay=0.05,
        export_max_bytes=4_000_000,
        concurrent=4,
    )


class Bench:
    """A relay in front of a sink, and a client."""

    def __init__(self, relay: Local, channel: grpc.aio.Channel) -> None:
        self.relay = relay
        self.channel = channel

    async def send(self, numbers: range, pad: int = 0) -> None:
        await send(self.channel, TRACES, spans(numbers, pad=pad))

    async def books(self) -> Books:
        books = (await self.relay.books())["traces"]
        assert books.balanced
        return books

    async def drained(self) -> Books:
        async def nothing_waits() -> bool:
            return not (await self.books()).waiting

        await until(nothing_waits, "everything left the ring")
        return await self.books()


@contextlib.asynccontextmanager
async def bench(sink: Sink, limits: Limits) -> AsyncIterator[Bench]:
    http = limits.protocol != "grpc"
    relay = Local(limits.environment(sink.http_endpoint if http else sink.grpc_endpoint))
    with faster():
        await relay.start()
        try:
            async with grpc.aio.insecure_channel(relay.grpc, options=OWN_CONNECTION) as channel:
                yield Bench(relay, channel)
        finally:
            await relay.end("SIGTERM")


def with_poison(number: int, answer: Behaviour) -> Sink:
    def behaviour(received: Received) -> Behaviour:
        found = numbers_of(received.payload, TRACES)
        return answer if number in found else Behaviour()

    return Sink(behaviour=behaviour)


def carrying(sink: Sink, numbers: range) -> int:
    """Requests in which any of these arrived."""
    wanted = set(numbers)
    return sum(not wanted.isdisjoint(numbers_of(each, TRACES)) for each in sink.payloads("traces"))


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("poison", [0, 300, 511])
async def test_a_refused_span_costs_itself_and_at_most_twenty_exports(
    protocol: Protocol, poison: int
) -> None:
    async with (
        with_poison(poison, Behaviour(code="INVALID_ARGUMENT")) as sink,
        bench(sink, limits(protocol)) as relay,
    ):
        await relay.send(range(512))
        books = await relay.drained()
        assert books.dropped == {"rejected": 1}
        found = {n for each in sink.accepted("traces") for n in numbers_of(each, TRACES)}
        assert found == set(range(512)) - {poison}
        assert carrying(sink, range(512)) - 1 <= 20


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_span_that_hangs_costs_itself_and_at_most_twenty_exports_while_others_pass(
    protocol: Protocol,
) -> None:
    async with (
        with_poison(300, Behaviour(hang=True)) as sink,
        bench(sink, limits(protocol, timeout=0.3)) as relay,
    ):
        await relay.send(range(512))
        books = await relay.books()
        for number in itertools.count(512):
            await relay.send(range(number, number + 1))
            books = await relay.books()
            if books.dropped:
                break
            await asyncio.sleep(0.02)  # The pace of the application.
        last = books.received
        assert books.dropped == {"timeout": 1}
        await relay.drained()
        found = {n for each in sink.accepted("traces") for n in numbers_of(each, TRACES)}
        assert found == set(range(last)) - {300}
        assert carrying(sink, range(512)) - 1 <= 20


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_collector_with_a_smaller_limit_is_fed_and_the_large_size_not_tried_again(
    protocol: Protocol,
) -> None:
    refusal = "RESOURCE_EXHAUSTED" if protocol == "grpc" else "413"
    async with Sink(max_message=100_000) as sink, bench(sink, limits(protocol, 5.0)) as relay:
        for number in range(0, 2048, 512):
            await relay.send(range(number, number + 512), pad=500)
        books = await relay.drained()
        assert books.dropped == {}
        refused = books.attempts[refusal]
        # 512 such spans are 280 kB: too large as they are and, perhaps, as halves; four at once.
        assert 1 <= refused <= 8
        for number in range(2048, 4096, 512):
            await relay.send(range(number, number + 512), pad=500)
        books = await relay.drained()
        assert books.attempts[refusal] == refused
        assert books.dropped == {}
        found = [n for each in sink.accepted("traces") for n in numbers_of(each, TRACES)]
        assert sorted(found) == list(range(4096))
        assert max(len(each) for each in sink.payloads("traces")) <= 100_000


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_after_an_outage_exactly_the_newest_are_there_and_the_rest_is_counted(
    protocol: Protocol,
) -> None:
    async with Sink(started=False) as sink, bench(sink, limits(protocol)) as relay:
        for number in range(0, 20_000, 400):
            await relay.send(range(number, number + 400))
        assert (await relay.books()).dropped == {"queue_full": 20_000 - 8192}
        await sink.start()
        await relay.drained()
        found = [n for each in sink.accepted("traces") for n in numbers_of(each, TRACES)]
        assert sorted(found) == list(range(20_000 - 8192, 20_000))


async def test_http_clients_are_served_while_a_span_hangs() -> None:
    async with (
        with_poison(0, Behaviour(hang=True)) as sink,
        bench(sink, limits("grpc", timeout=5.0)) as relay,
        aiohttp.ClientSession() as client,
    ):
        await relay.send(range(1))
        await sink.wait_for(lambda: sink.requests("traces") == 1)
        for number in range(1, 50):
            async with client.post(
                f"http://{relay.relay.http}/v1/traces",
                data=spans([number]),
                headers={"Content-Type": "application/x-protobuf"},
            ) as answer:
                assert answer.status == 200
        await sink.wait_for(lambda: sink.accepted_items("traces") == 49)
