"""A FastAPI app with its OpenTelemetry instrumentation, as teams have them: the spans of a request.

``python -m tests.e2e.shop OTLP_ENDPOINT grpc|http``: prints its port, serves until SIGTERM, then
prints, as one JSON line, every span that it made. Server, ASGI event, database and HTTP client
spans come from the instrumentations as released; what they look like depends on
``OTEL_SEMCONV_STABILITY_OPT_IN``.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator

import httpx
import uvicorn
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.instrumentation.dbapi import trace_integration
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

app = FastAPI(docs_url="/api/docs", openapi_url="/api/openapi.json")
mounted = FastAPI()
port = 0
gate = asyncio.Event()


def query(text: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(":memory:") as connection:
        return connection.cursor().execute(text).fetchall()


async def ask(path: str) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code


@app.get("/health")
async def health() -> object:
    """Not just a server span: it looks at the database and asks the app itself."""
    return {"db": query("select 1"), "stock": await ask("/internal/stock")}


@app.get("/internal/stock")
async def stock() -> object:
    return query("select 2")


@app.get("/api/orders/{number}")
async def order(number: int, background: BackgroundTasks) -> object:
    background.add_task(query, "select 'after the answer'")
    return {"number": number, "db": query("select 3"), "stock": await ask("/internal/stock")}


@app.get("/api/v1/health")
async def api_health() -> object:
    return query("select '/health'")


@app.get("/api/stream")
@app.get("/metrics")
async def stream() -> StreamingResponse:
    async def chunks() -> AsyncIterator[str]:
        for number in range(5):
            yield str(query(f"select {number}"))
            await asyncio.sleep(0)

    return StreamingResponse(chunks())


@app.get("/slow")
async def slow() -> object:
    """Longer than anything waits: ends when ``/release`` is asked for."""
    early = query("select 'early'")
    await gate.wait()
    return early + query("select 'late'")


@app.get("/release")
async def release() -> None:
    gate.set()


@mounted.get("/health")
@mounted.get("/items")
async def items() -> object:
    return query("select 4")


app.mount("/sub", mounted)


def described(span: ReadableSpan) -> dict[str, object]:
    assert span.context is not None
    return {
        "trace": f"{span.context.trace_id:032x}",
        "id": f"{span.context.span_id:016x}",
        "parent": f"{span.parent.span_id:016x}" if span.parent else "",
        "kind": span.kind.name,
        "name": span.name,
        "attributes": {key: str(value) for key, value in (span.attributes or {}).items()},
    }


def main(endpoint: str, protocol: str) -> None:
    global port  # noqa: PLW0603 - one app a process
    exporter: SpanExporter
    if protocol == "grpc":
        exporter = GrpcExporter(endpoint=endpoint, insecure=True)
    else:
        exporter = HttpExporter(endpoint=f"http://{endpoint}/v1/traces")
    made = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=50))
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    FastAPIInstrumentor.instrument_app(app)
    FastAPIInstrumentor.instrument_app(mounted)
    HTTPXClientInstrumentor().instrument()
    trace_integration(sqlite3, "connect", "sqlite")  # type: ignore[arg-type]  # a module is meant
    # uvicorn raises the signal that ended it once more; what comes after it shall run.
    signal.signal(signal.SIGTERM, lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        print(f"port {port}", flush=True)
        server.run(sockets=[listener])
    provider.shutdown()
    print(json.dumps([described(span) for span in made.get_finished_spans()]), flush=True)
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            thread.join(20)  # they were told to end, and may take their time
    assert threading.active_count() == 1


if __name__ == "__main__":
    main(*sys.argv[1:])
