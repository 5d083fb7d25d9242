"""The Python SDK through the relay to the sink and to Rotel: everything once, nothing changed.

Also raw requests with fields that no released protocol knows: they must come out as they went in.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Literal

import pytest

from relay.otlp import LOGS, METRICS, PROFILES, SIGNALS, TRACES, SignalSchema
from relay.sink import Sink
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import (
    Item,
    RelayProcess,
    RotelProcess,
    Sdk,
    items_of,
    message_class,
    numbered_request,
    numbers,
    ranges,
    sdk,
    send,
)

BATCH = 512
SIGNALS_OF_SDK = (TRACES, METRICS, LOGS)


async def arrived(sink: Sink, signal: SignalSchema, wanted: Counter[Item]) -> Counter[Item]:
    """What the sink has of a signal once it has as many units as are wanted."""

    def units() -> int:
        # A whole profiles request is one unit; what is compared are the profiles in it.
        of_signal = [each for each in sink.received if each.signal is signal]
        return sum(each.items if signal.whole else each.units for each in of_signal)

    await sink.wait_for(
        lambda: units() >= wanted.total(), what=f"{wanted.total()} units of {signal.name}"
    )
    return items_of(signal, *sink.payloads(signal.name))


async def use(app: Sdk) -> None:
    app.make_spans(0, 1500)
    app.make_metrics()
    app.make_logs(0, 700)
    await asyncio.to_thread(app.flush)
    assert set(app.results) == {"SUCCESS"}


async def everything_arrived(app: Sdk, sink: Sink) -> None:
    for signal in SIGNALS_OF_SDK:
        wanted = items_of(signal, *app.exported[signal.name])
        assert wanted.total() >= {TRACES: 1500, METRICS: 4, LOGS: 700}[signal]
        assert await arrived(sink, signal, wanted) == wanted
        assert {each.answer for each in sink.received} <= {"OK", "200"}


@pytest.mark.parametrize("outbound", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("inbound", ["grpc", "http"])
async def test_sdk_to_sink(
    inbound: Literal["grpc", "http"], outbound: str, sink: Sink, start_relay: StartRelay
) -> None:
    collector = f"http://{sink.grpc_endpoint}" if outbound == "grpc" else sink.http_url
    relay = await start_relay(collector, OTEL_EXPORTER_OTLP_PROTOCOL=outbound)
    async with sdk(relay.grpc if inbound == "grpc" else relay.http, inbound) as app:
        await use(app)
        await everything_arrived(app, sink)
    assert max(each.items for each in sink.received) <= BATCH
    assert {each.transport for each in sink.received} == {outbound.partition("/")[0]}
    scrape = await relay.drained()
    for signal in SIGNALS_OF_SDK:
        items = sink.items(signal.name)
        assert scrape.value("received_items_total", signal=signal.name, transport=inbound) == items
        assert scrape.value("exported_items_total", signal=signal.name) == items
    assert await relay.stop() == 0


@pytest.mark.parametrize("outbound", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("inbound", ["grpc", "http"])
async def test_sdk_to_rotel(
    inbound: Literal["grpc", "http"],
    outbound: str,
    sink: Sink,
    rotel: RotelProcess,
    start_relay: StartRelay,
) -> None:
    collector = f"http://{rotel.grpc if outbound == 'grpc' else rotel.http}"
    relay = await start_relay(collector, OTEL_EXPORTER_OTLP_PROTOCOL=outbound)
    async with sdk(relay.grpc if inbound == "grpc" else relay.http, inbound) as app:
        await use(app)
        # Rotel decodes and encodes again what it passes on to the sink; the fields are the same.
        await everything_arrived(app, sink)
    assert await relay.stop() == 0


# Field 1000, length-delimited: three bytes of tag-and-length before what it holds.
UNKNOWN_FIELD = b"\xc2\x3e\x09from 2031"


def with_unknown_fields(signal: SignalSchema, units: int) -> bytes:
    """A request in which every level down to the units has a field of the future."""
    request: Any = message_class(signal.request)()
    resource = add(request, signal.resources)
    resource.schema_url = "https://example.com/resource"
    resource.resource.attributes.add(key="service.name").value.string_value = "future"
    resource.resource.MergeFromString(UNKNOWN_FIELD)
    scope = add(resource, signal.scopes)
    scope.scope.name = "future"
    scope.scope.MergeFromString(UNKNOWN_FIELD)
    scope.schema_url = "https://example.com/scope"
    for number in range(units):
        unit = add(scope, signal.units)
        if signal is METRICS:
            unit.name = f"metric {number}"
            unit.gauge.data_points.add(as_int=number).MergeFromString(UNKNOWN_FIELD)
        elif signal is PROFILES:
            unit.profile_id = number.to_bytes(16, "big")
        else:
            unit.trace_id = (number + 1).to_bytes(16, "big")
        unit.MergeFromString(UNKNOWN_FIELD)
    for message in (scope, resource, request):
        message.MergeFromString(UNKNOWN_FIELD)
    return bytes(request.SerializeToString())


def add(message: Any, number: int) -> Any:
    name = message.DESCRIPTOR.fields_by_number[number].name
    return getattr(message, name).add()


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
async def test_unknown_fields_are_kept_whole_and_cut(
    signal: SignalSchema, sink: Sink, relay: RelayProcess
) -> None:
    small = with_unknown_fields(signal, 7)
    assert small.count(UNKNOWN_FIELD) == (5 if signal is not METRICS else 12) + 7
    async with relay.channel() as channel:
        await send(channel, signal, small)
        await sink.wait_for(lambda: sink.items(signal.name) == 7, what="the small request")
        # Not cut: the very bytes.
        assert sink.payloads(signal.name) == [small]
        large = with_unknown_fields(signal, 1300)
        await send(channel, signal, large)
    wanted = items_of(signal, small, large)
    assert await arrived(sink, signal, wanted) == wanted
    if signal is PROFILES:
        assert sink.payloads(signal.name) == [small, large]
        return
    assert len(sink.received) >= 4
    assert max(each.items for each in sink.received) <= BATCH
    # What stands around the units stands around them in every piece.
    for payload in sink.payloads(signal.name):
        assert payload.count(UNKNOWN_FIELD) > 4


async def test_every_numbered_span_arrives_once_in_full_batches(
    sink: Sink, start_relay: StartRelay
) -> None:
    relay = await start_relay(RELAY_QUEUE_SIZE="20000", RELAY_SCHEDULE_DELAY="60000")
    async with relay.channel() as channel:
        await asyncio.gather(
            *(
                send(channel, TRACES, numbered_request(first, first + 100))
                for first in range(0, 10_000, 100)
            )
        )
    # Five requests make a batch: none is cut for the last twelve spans. The last 500 wait for one
    # that fills theirs; the shutdown takes them along.
    await sink.wait_for(lambda: sink.items("traces") == 9500)
    scrape = await relay.until(
        lambda scrape: scrape.value("exported_items_total", signal="traces") == 9500,
        "19 batches are exported",
    )
    assert scrape.value("queue_items", signal="traces") == 500
    (await relay.metrics(openmetrics=True)).identity()
    assert await relay.stop() == 0
    found = Counter(numbers(*sink.payloads("traces")))
    missing, twice = set(range(10_000)) - set(found), [n for n, times in found.items() if times > 1]
    assert found.total() == 10_000, f"missing: {ranges(missing)}; more than once: {ranges(twice)}"
    assert not missing
    sizes = [each.items for each in sink.received]
    assert sizes == [500] * 20
