"""What the default filters cost: CPU per span of a whole relay with them and without.

``python -m benchmarks.filters``. Two relays with the default filters and without any, else alike,
in turn, several rounds, started anew every few rounds, in front of a collector in this process,
which also sends real gRPC requests: as fast as eight clients are answered (but not faster than the
collector gets what is left of them) or, with ``--rate``, so many spans a second.
The spans are those of a FastAPI app with its instrumentation: of an ordinary request a server span
and three database spans, of a filtered one (a health check) the server span and three ASGI event
spans; ids and client ports differ, as they do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.process import cpu_seconds
from relay.otlp import TRACES
from relay.processors import ProcessorConfig, build
from relay.processors.patterns import DEFAULT_EXCLUDED
from relay.sink import Sink
from tests.e2e.harness import RelayProcess

SIZES = (1, 10, 100, 512)
FRACTIONS = (0.0, 0.1, 0.5)
LIMIT = 1.5
OFF = {"RELAY_EXCLUDED_URLS": "", "RELAY_DISABLE_SEND_RECEIVE_SPANS": "false"}
AHEAD = 16_384
"""Spans under way at most when flooded."""
PAIR = 3
"""Rounds with the same two relays: one process is slower than another for as long as it runs."""
Sent = tuple[bytes, int]
"""A request, and how many of its spans the relay lets through."""
START = 1_760_000_000_000_000_000


def put(span: Span, **attributes: str | int) -> None:
    for key, value in attributes.items():
        any_value = span.attributes.add(key=key.replace("__", ".")).value
        if isinstance(value, int):
            any_value.int_value = value
        else:
            any_value.string_value = value


def app_request(rng: random.Random, *, filtered: bool) -> Iterator[Span]:
    """The spans of one request to the app, in the order in which they end."""
    trace, server_id = rng.randbytes(16), rng.randbytes(8)
    path = "/health" if filtered else f"/api/orders/{rng.randrange(100000)}"
    route = "/health" if filtered else "/api/orders/{id}"

    def span(name: str, kind: Span.SpanKind.ValueType, parent: bytes, identity: bytes) -> Span:
        at = START + rng.randrange(10**12)
        return Span(
            trace_id=trace,
            span_id=identity,
            parent_span_id=parent,
            flags=0x101,
            name=name,
            kind=kind,
            start_time_unix_nano=at,
            end_time_unix_nano=at + rng.randrange(10**8),
        )

    server = span(f"GET {route}", Span.SPAN_KIND_SERVER, b"", server_id)
    put(
        server,
        http__request__method="GET",
        url__scheme="http",
        url__path=path,
        http__route=route,
        http__response__status_code=200,
        server__address="10.2.3.4",
        server__port=8000,
        client__address="10.2.0.1",
        client__port=rng.randrange(32768, 61000),
        network__protocol__version="1.1",
        network__peer__address="10.2.0.1",
        user_agent__original="kube-probe/1.33" if filtered else "python-httpx/0.28.1",
        url__full="http://10.2.3.4:8000" + path,
    )
    for part in ("start", "body", "body"):
        if filtered:
            child = span(
                f"GET {route} http send", Span.SPAN_KIND_INTERNAL, server_id, rng.randbytes(8)
            )
            put(child, asgi__event__type=f"http.response.{part}")
            if part == "start":
                put(child, http__response__status_code=200)
        else:
            child = span("SELECT orders", Span.SPAN_KIND_CLIENT, server_id, rng.randbytes(8))
            put(
                child,
                db__system__name="postgresql",
                db__namespace="orders",
                db__operation__name="SELECT",
                db__collection__name="orders",
                db__query__text="SELECT id, total, state FROM orders WHERE id = %s",
                db__user="app",
                server__address="orders-db.internal",
                server__port=5432,
                network__peer__address="10.2.9.9",
                network__peer__port=5432,
                thread__id=rng.randrange(10**12),
                thread__name="MainThread",
                code__function__name="shop.orders.load",
            )
        yield child
    yield server


def payloads(size: int, fraction: float, count: int, rng: random.Random) -> list[bytes]:
    """So many requests of ``size`` spans, of which ``fraction`` are to be filtered."""

    def stream() -> Iterator[Span]:
        debt = 0.0
        while True:
            # Single spans are server spans; else whole requests to the app stand together.
            filtered = debt >= (1 if size == 1 else 4)
            made = list(app_request(rng, filtered=filtered))
            made = made[-1:] if size == 1 else made
            debt += fraction * len(made) - (len(made) if filtered else 0)
            yield from made

    spans = stream()
    found = []
    for _ in range(count):
        request = ExportTraceServiceRequest()
        entry = request.resource_spans.add()
        entry.resource.attributes.add(key="service.name").value.string_value = "checkout"
        scope = entry.scope_spans.add()
        scope.scope.name = "opentelemetry.instrumentation.fastapi"
        scope.spans.extend(next(spans) for _ in range(size))
        found.append(request.SerializeToString())
    return found


async def cost(
    relay: RelayProcess, sink: Sink, requests: Sequence[Sent], pause: float = 0
) -> float:
    """CPU seconds that the relay spends on these, export and all.

    ``pause``: seconds between two requests; 0: eight clients send as fast as they are answered, but
    never are more than :data:`AHEAD` spans on their way, so that this lasts.
    """
    async with relay.channel() as channel:
        export: Any = channel.unary_unary(TRACES.method)
        await export(b"")  # The connection stands.
        waiting = iter(requests)
        wanted = sink.items("traces")

        async def arrived(count: int) -> None:
            await sink.wait_for(lambda: sink.items("traces") >= count, what="what is to arrive")

        async def client() -> None:
            nonlocal wanted
            for payload, left in waiting:
                wanted += left
                await arrived(wanted - AHEAD)
                await export(payload)

        async def paced() -> None:
            nonlocal wanted
            loop = asyncio.get_running_loop()
            due = loop.time()
            for payload, left in waiting:
                await asyncio.sleep(max(due - loop.time(), 0))
                due += pause
                wanted += left
                await export(payload)

        before = cpu_seconds(relay.pid)
        await (paced() if pause else asyncio.gather(*(client() for _ in range(8))))
        await arrived(wanted)
        return cpu_seconds(relay.pid) - before


async def measure(
    size: int, fraction: float, rounds: int, spans: int, rate: float
) -> dict[str, float]:
    rng = random.Random(size)
    count = max(8, spans // size)
    found: dict[str, list[float]] = {"on": [], "off": []}
    settings = {"RELAY_SCHEDULE_DELAY": "500", "RELAY_QUEUE_SIZE": "65536"}
    filters = build(TRACES, ProcessorConfig(excluded=DEFAULT_EXCLUDED))
    assert filters is not None
    shares = []

    async def rounds_of(on: RelayProcess, off: RelayProcess, wanted: int) -> None:
        """One round that does not count, then so many that do."""
        for number in range(wanted + 1):
            # Other ids in every round: a relay remembers which spans it filtered.
            requests = payloads(size, fraction, count, rng)
            total = count * size
            left = [filters.process(each, size, size, 0.0).items for each in requests]
            shares.append(1 - sum(left) / total)
            both = (
                ("on", on, list(zip(requests, left, strict=True))),
                ("off", off, [(each, size) for each in requests]),
            )
            for name, relay, sent in both[:: 1 if number % 2 else -1]:
                spent = await cost(relay, sink, sent, size / rate if rate else 0)
                if number:
                    found[name].append(spent / total * 1e6)
        for relay in (on, off):
            scrape = await relay.identity()
            assert not scrape.by("reason", "dropped_items_total"), "spans were lost: void"

    async with Sink(record=False) as sink:
        collector = f"http://{sink.grpc_endpoint}"
        for done in range(0, rounds, PAIR):
            async with (
                RelayProcess(collector, settings) as on,
                RelayProcess(collector, settings | OFF) as off,
            ):
                await rounds_of(on, off, min(PAIR, rounds - done))
    ratios = [a / b for a, b in zip(found["on"], found["off"], strict=True)]
    # Between these is the middle half of the rounds.
    low, _, high = (
        statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else ratios * 3
    )
    return {
        "spans": size,
        "filtered": statistics.mean(shares),
        "with": statistics.median(found["on"]),
        "without": statistics.median(found["off"]),
        "ratio": statistics.median(ratios),
        "lower": low,
        "upper": high,
    }


async def main(arguments: argparse.Namespace) -> int:
    rows = []
    if not arguments.json:
        print("| spans a request | filtered | without, us/span | with, us/span | ratio | half |")
        print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        for fraction in arguments.fractions:
            row = await measure(size, fraction, arguments.rounds, arguments.spans, arguments.rate)
            rows.append(row)
            if not arguments.json:
                print(
                    f"| {size} | {row['filtered']:.0%} | {row['without']:.2f} | {row['with']:.2f} "
                    f"| {row['ratio']:.2f} | {row['lower']:.2f} to {row['upper']:.2f} |",
                    flush=True,
                )
    if arguments.json:
        print(json.dumps(rows, indent=2))
    worst = max(row["ratio"] for row in rows)
    print(f"worst ratio {worst:.2f}, limit {LIMIT}", file=sys.stderr)
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spans", type=int, default=60_000, help="sent in each round")
    parser.add_argument(
        "--rate", type=float, default=0, help="spans a second; 0: all that it takes"
    )
    parser.add_argument("--json", action="store_true")
    raise SystemExit(asyncio.run(main(parser.parse_args())))
