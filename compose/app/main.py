"""A small shop, instrumented with OpenTelemetry, to see traces, metrics and logs arrive.

    GET  /                   a greeting
    GET  /orders/{number}    an order: spans of a database and of a payment below the request's
    GET  /stream?chunks=10   a response that is sent in pieces
    GET  /error              a request that fails
    GET  /health             excluded from tracing by the relay's defaults
    POST /burst?spans=1000   that many spans at once, for the outage drill

It knows the OpenTelemetry SDK and nothing of the relay: where telemetry goes is said by OTEL_*
variables. DEMO_REQUESTS_PER_SECOND makes it call itself, so that there is something to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
from fastapi import FastAPI, HTTPException, Query
from fastapi.responses import StreamingResponse
from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.logging.handler import LoggingHandler
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

log = logging.getLogger("demo")
# Less than the SDK's own queue holds (2,048): no span of a burst is lost before the relay.
BURST = 1000


class Telemetry:
    """The SDK's providers; their exporters read OTEL_EXPORTER_OTLP_ENDPOINT and its like."""

    def __init__(self) -> None:
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.meters = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())])
        self.loggers = LoggerProvider()
        self.loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))

    def install(self) -> None:
        """Make them this process's."""
        trace.set_tracer_provider(self.tracers)
        metrics.set_meter_provider(self.meters)
        set_logger_provider(self.loggers)
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line per request to oneself
        logging.getLogger().addHandler(LoggingHandler(logger_provider=self.loggers))
        HTTPXClientInstrumentor().instrument()

    def shut_down(self) -> None:
        """Flush what is buffered. The relay answers at once, so this takes no time."""
        self.tracers.shutdown()
        self.meters.shutdown()
        self.loggers.shutdown()


telemetry = Telemetry()
telemetry.install()
tracer = trace.get_tracer("demo")
orders = metrics.get_meter("demo").create_counter("demo.orders", "{order}", "Orders looked up")


async def call_oneself(url: str, rate: float) -> None:
    """Be one's own customer, about ``rate`` times a second, for ever."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        while True:
            await asyncio.sleep(random.expovariate(rate))
            path = random.choice(["/", "/orders/7", "/orders/42", "/stream?chunks=5", "/error"])  # noqa: S311 - no secret
            # It may not be listening yet, or not any more.
            with contextlib.suppress(httpx.HTTPError):
                await client.get(path)


@contextlib.asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Traffic while the app runs, a flush when it stops."""
    rate = float(os.environ.get("DEMO_REQUESTS_PER_SECOND") or 0)
    port = os.environ.get("PORT") or "8000"
    customer = (
        asyncio.create_task(call_oneself(f"http://127.0.0.1:{port}", rate)) if rate > 0 else None
    )
    try:
        yield
    finally:
        if customer is not None:
            customer.cancel()
            await asyncio.gather(customer, return_exceptions=True)
        await asyncio.to_thread(telemetry.shut_down)


app = FastAPI(title="demo", lifespan=lifespan)


@app.get("/")
async def greet() -> dict[str, str]:
    """Say hello."""
    return {"hello": "from the demo app"}


@app.get("/health")
async def health() -> dict[str, str]:
    """For the container's health check."""
    return {"status": "ok"}


@app.get("/orders/{number}")
async def order(number: int) -> dict[str, Any]:
    """Look an order up in something that looks like a database, and have it paid."""
    with tracer.start_as_current_span("SELECT orders", kind=SpanKind.CLIENT) as query:
        query.set_attribute("db.system.name", "postgresql")
        query.set_attribute("db.query.text", "SELECT * FROM orders WHERE number = $1")
        await asyncio.sleep(random.uniform(0.002, 0.02))  # noqa: S311 - no secret
    with tracer.start_as_current_span("authorize payment"):
        await asyncio.sleep(random.uniform(0.005, 0.03))  # noqa: S311 - no secret
    orders.add(1, {"paid": True})
    log.info("order %d looked up", number)
    return {"order": number, "paid": True}


@app.get("/stream")
async def stream(chunks: Annotated[int, Query(ge=1, le=1000)] = 10) -> StreamingResponse:
    """Send JSON lines one by one; the request's span ends when the last one has gone."""

    async def lines() -> AsyncIterator[str]:
        for number in range(chunks):
            with tracer.start_as_current_span("make chunk") as span:
                span.set_attribute("chunk", number)
                await asyncio.sleep(0.01)
            yield json.dumps({"chunk": number}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@app.get("/error")
async def error() -> None:
    """Fail."""
    log.warning("this endpoint always fails")
    raise HTTPException(503, "this endpoint always fails")


@app.post("/burst")
def burst(spans: Annotated[int, Query(ge=1, le=1_000_000)] = 1000) -> dict[str, int]:
    """Make spans as fast as the SDK exports them; in a thread, since flushing blocks."""
    for first in range(0, spans, BURST):
        for number in range(first, min(first + BURST, spans)):
            with tracer.start_as_current_span("burst") as span:
                span.set_attribute("number", number)
        telemetry.tracers.force_flush()
    return {"spans": spans}


# A burst is as many spans as were asked for, without one of its own request.
FastAPIInstrumentor.instrument_app(app, excluded_urls="burst")
