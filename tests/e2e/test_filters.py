"""A real app's spans through the relay: whole local subtrees arrive, or nothing of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from relay.otlp import TRACES
from relay.sink import Sink
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import Child, RelayProcess, clean_environment, until
from tests.processors.model import spans_of

HELD = "60000"
"""A schedule delay (ms) after which nothing has left the ring before the test ends."""


@dataclass(frozen=True)
class Made:
    """A span, as the app made it."""

    key: str
    parent: str
    kind: str
    name: str
    attributes: dict[str, str]

    @property
    def event(self) -> bool:
        return self.kind == "INTERNAL" and "asgi.event.type" in self.attributes

    @property
    def path(self) -> str | None:
        """Of a server span, as the app's instrumentation tells it in any convention."""
        if self.event or self.kind not in {"SERVER", "INTERNAL"}:
            return None
        for key in ("url.path", "http.target"):
            if key in self.attributes:
                return urlsplit(self.attributes[key]).path
        return None


class Shop(Child):
    """The app as a child process."""

    def __init__(self) -> None:
        super().__init__("shop")
        self.url = ""

    async def get(self, *paths: str) -> None:
        """Requests to it, all at once."""

        async def one(path: str) -> None:
            async with client.get(self.url + path) as answer:
                assert answer.status == 200, f"{path}: {await answer.text()}\n{self.tail()}"
                await answer.read()

        async with aiohttp.ClientSession() as client:
            await asyncio.gather(*map(one, paths))

    async def finish(self) -> list[Made]:
        """SIGTERM; it flushes; every span it made."""
        assert await self.stop() == 0, self.tail()
        spans = json.loads(self.output[-1])
        return [
            Made(
                span["trace"] + span["id"],
                span["trace"] + span["parent"],
                span["kind"],
                span["name"],
                span["attributes"],
            )
            for span in spans
        ]


@asynccontextmanager
async def shop(relay: RelayProcess, inbound: str, convention: str) -> AsyncIterator[Shop]:
    app = Shop()
    environ = clean_environment() | {"OTEL_SEMCONV_STABILITY_OPT_IN": convention}
    endpoint = relay.grpc if inbound == "grpc" else relay.http
    try:
        await app.spawn([sys.executable, "-m", "tests.e2e.shop", endpoint, inbound], environ)
        line = await app.line(lambda line: line.startswith("port "), "the app listens")
        app.url = f"http://127.0.0.1:{line.split()[1]}"
        yield app
    finally:
        await app.reap()


def received(sink: Sink) -> Counter[str]:
    """Trace id and span id of every span that the collector has."""
    return Counter(
        (span.trace_id + span.span_id).hex()
        for payload in sink.payloads("traces")
        for span in spans_of(ExportTraceServiceRequest.FromString(payload))
    )


def reasons(spans: Sequence[Made], filtered: set[str]) -> dict[str, str]:
    """Why each span should be missing, by what stands above it; "" for those that should not."""
    by_key = {span.key: span for span in spans}
    found = {}
    for span in spans:
        above = by_key.get(span.parent)
        below = False
        while above is not None:
            below = below or above.path in filtered
            above = by_key.get(above.parent)
        if span.path in filtered:
            found[span.key] = "excluded_url"
        elif span.event:
            found[span.key] = "send_receive"
        else:
            found[span.key] = "subtree" if below else ""
    return found


REQUESTS = (
    "/health",
    "/api/orders/1",
    "/api/v1/health",
    "/api/stream",
    "/metrics",
    "/sub/items",
    "/sub/health",
    "/api/docs",
    "/internal/stock?next=/health",
)


@pytest.mark.parametrize(
    ("convention", "inbound"), [("", "grpc"), ("http", "http"), ("http/dup", "grpc")]
)
async def test_whole_subtrees_arrive_or_nothing_of_them(
    convention: str, inbound: str, sink: Sink, start_relay: StartRelay
) -> None:
    relay = await start_relay(RELAY_SCHEDULE_DELAY=HELD)
    async with shop(relay, inbound, convention) as app:
        await app.get(*REQUESTS)
        await app.get(*REQUESTS)
        spans = await app.finish()
    # As both conventions name them: the mounted app sees its whole path.
    expected = reasons(spans, {"/health", "/metrics", "/api/docs"})
    counts = Counter(expected.values())
    # The app made what this test is about.
    assert counts["excluded_url"] == 6
    assert counts["subtree"] > 2 * 5
    assert counts["send_receive"] > 2 * 3 * len(REQUESTS)
    assert {span.path for span in spans if not expected[span.key] and span.path} == {
        "/api/orders/1",
        "/api/v1/health",
        "/api/stream",
        "/sub/items",
        "/sub/health",
        "/internal/stock",
    }
    scrape = await relay.until(
        lambda scrape: scrape.value("received_items_total", signal="traces") == len(spans),
        "the relay has every span",
    )
    kept = counts.pop("")
    assert scrape.by("reason", "filtered_items_total") == counts
    assert scrape.value("queue_items", signal="traces") == kept
    assert await relay.stop() == 0
    arrived = received(sink)
    assert arrived == Counter(key for key, reason in expected.items() if not reason)
    # So nothing there hangs below something that is missing.
    by_key = {span.key: span for span in spans}
    assert [
        key
        for key in arrived
        if by_key[key].parent in expected and by_key[key].parent not in arrived
    ] == []


async def test_a_whitelist_alone_decides(sink: Sink, start_relay: StartRelay) -> None:
    relay = await start_relay(
        RELAY_SCHEDULE_DELAY=HELD,
        OTEL_INCLUDED_URLS="/api/orders/*, ^/sub/it",
        OTEL_EXCLUDED_URLS="/api/*",
        OTEL_DISABLE_SEND_RECEIVE_SPANS="false",
    )
    async with shop(relay, "grpc", "http") as app:
        await app.get(*REQUESTS)
        spans = await app.finish()
    scrape = await relay.until(
        lambda scrape: scrape.value("received_items_total", signal="traces") == len(spans),
        "the relay has every span",
    )
    assert await relay.stop() == 0
    arrived = received(sink)
    by_key = {span.key: span for span in spans}

    def included(span: Made | None) -> bool:
        while span is not None:
            if span.path in {"/api/orders/1", "/sub/items"}:
                return True
            span = by_key.get(span.parent)
        return False

    assert arrived == Counter(span.key for span in spans if included(span))
    filtered = scrape.by("reason", "filtered_items_total")
    assert set(filtered) == {"not_included_url", "subtree"}
    assert sum(filtered.values()) == len(spans) - arrived.total()


async def test_what_a_long_request_leaves_behind(sink: Sink, start_relay: StartRelay) -> None:
    """Its early spans have left before it ended; what came later is filtered and counted."""
    # The delay: late spans and the server span above them may come apart where the app is slow.
    relay = await start_relay(RELAY_EXCLUDED_URLS="/slow,/release", RELAY_SCHEDULE_DELAY="1000")
    async with shop(relay, "grpc", "http") as app:
        request = asyncio.create_task(app.get("/slow"))
        await sink.wait_for(lambda: sink.items("traces") > 0, what="the early span")
        early = received(sink)
        await app.get("/release")
        await request
        spans = await app.finish()
    scrape = await relay.drained()
    by_key = {span.key: span for span in spans}
    left = received(sink)
    assert early
    assert left == early
    assert all(by_key[key].kind == "CLIENT" for key in left)
    filtered = scrape.by("reason", "filtered_items_total")
    assert filtered["excluded_url"] == 2
    assert sum(filtered.values()) == len(spans) - left.total()
    assert scrape.value("exported_items_total", signal=TRACES.name) == left.total()


async def test_descendants_that_come_after_their_server_span(
    sink: Sink, start_relay: StartRelay
) -> None:
    """A background task's spans: the answer was sent, and its spans too, before they began."""
    # Held: spans below may come long before the server span where the app is slow.
    relay = await start_relay(RELAY_EXCLUDED_URLS="/api/orders/*", RELAY_SCHEDULE_DELAY=HELD)
    async with shop(relay, "http", "http") as app:
        await app.get("/api/orders/1")
        await until(lambda: _filtered(relay, "excluded_url"), "the server span came")
        spans = await app.finish()
    scrape = await relay.until(
        lambda scrape: scrape.value("received_items_total", signal="traces") == len(spans),
        "the relay has every span",
    )
    scrape = await relay.drained()
    assert not received(sink)
    expected = Counter(reasons(spans, {"/api/orders/1"}).values())
    assert scrape.by("reason", "filtered_items_total") == expected


async def _filtered(relay: RelayProcess, reason: str) -> float:
    return (await relay.metrics()).value("filtered_items_total", reason=reason)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"OTEL_ENABLED": "false"}, "disabled"),
        ({"OTEL_SDK_DISABLED": "true"}, "disabled"),
        ({"OTEL_TRACES_SAMPLER_ARG": "0"}, "sampled_out"),
        ({"OTEL_INCLUDED_URLS": "/nothing", "OTEL_EXCLUDED_URLS": ""}, "not_included_url"),
    ],
)
async def test_every_reason_is_counted(
    settings: dict[str, str], reason: str, sink: Sink, start_relay: StartRelay
) -> None:
    relay = await start_relay(**settings)
    async with shop(relay, "grpc", "") as app:
        await app.get("/api/v1/health")
        spans = await app.finish()
    scrape = await relay.until(
        lambda scrape: scrape.value("received_items_total", signal="traces") == len(spans),
        "the relay has every span",
    )
    scrape = await relay.drained()
    filtered = scrape.by("reason", "filtered_items_total")
    assert filtered[reason] > 0
    assert sum(filtered.values()) == len(spans)
    assert not received(sink)


async def test_enrichment_adds_and_changes_nothing(sink: Sink, start_relay: StartRelay) -> None:
    relay = await start_relay(OTEL_SERVICE_NAME="renamed", OTEL_RESOURCE_ATTRIBUTES="env=prod")
    async with shop(relay, "grpc", "") as app:
        await app.get("/api/v1/health")
        await app.finish()
    await relay.drained()
    for payload in sink.payloads("traces"):
        for entry in ExportTraceServiceRequest.FromString(payload).resource_spans:
            found = {pair.key: pair.value.string_value for pair in entry.resource.attributes}
            assert (found["service.name"], found["env"]) == ("shop", "prod")
