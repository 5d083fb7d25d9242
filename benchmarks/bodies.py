"""The requests that are sent: traces as an instrumented web service exports them.

13 attributes and about 470 bytes a span, one resource, one scope. One in four spans is a server
span with its URL, the others are internal and client spans. Ids are random, from a fixed seed.
Every request of a run is the same one: no contestant looks for repetitions.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

GRPC_PATH = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
HTTP_PATH = "/v1/traces"
START = 1_760_000_000_000_000_000
KINDS = (2, 1, 3, 3)  # SERVER, INTERNAL, CLIENT, CLIENT
RESOURCE: dict[str, str | int] = {
    "service.name": "checkout",
    "service.version": "2.14.1",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": "1.38.0",
    "deployment.environment.name": "production",
    "host.name": "ip-10-2-3-4",
}


@cache
def trace_request(spans: int, attribute_bytes: int = 0) -> bytes:
    """A serialized ExportTraceServiceRequest.

    ``attribute_bytes``: instead of the 13 usual attributes one string of so many bytes a span.
    """
    chance = random.Random(spans)
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    _put(resource.resource.attributes, RESOURCE)
    scope = resource.scope_spans.add()
    scope.scope.name = "opentelemetry.instrumentation.fastapi"
    scope.scope.version = "0.59b0"
    for number in range(spans):
        kind = KINDS[number % len(KINDS)]
        span = scope.spans.add(
            trace_id=chance.randbytes(16),
            span_id=chance.randbytes(8),
            parent_span_id=chance.randbytes(8),
            name="GET /api/orders/{id}",
            kind=kind,
            start_time_unix_nano=START + number * 1_000_000,
            end_time_unix_nano=START + number * 1_000_000 + chance.randrange(10**7),
        )
        if attribute_bytes:
            _put(span.attributes, {"payload": "x" * attribute_bytes})
        else:
            _put(span.attributes, _attributes(kind, chance))
    return request.SerializeToString()


def grpc_message(payload: bytes) -> bytes:
    """A length-prefixed message (gRPC over HTTP/2), uncompressed."""
    return b"\0" + len(payload).to_bytes(4, "big") + payload


def _attributes(kind: int, chance: random.Random) -> dict[str, str | int]:
    order = chance.randrange(10**6)
    common: dict[str, str | int] = {
        "server.address": "checkout.example",
        "server.port": 8080,
        "network.protocol.version": "1.1",
        "user.id": f"{chance.randrange(10**8)}",
        "thread.id": 140_123,
        "code.function.name": "get_order",
        "client.address": "10.1.2.3",
    }
    if kind == 2:
        return common | {
            "http.request.method": "GET",
            "url.scheme": "http",
            "url.path": f"/api/orders/{order}",
            "http.route": "/api/orders/{id}",
            "user_agent.original": "python-httpx/0.28",
            "http.response.status_code": 200,
        }
    return common | {
        "db.system.name": "postgresql",
        "db.namespace": "orders",
        "db.operation.name": "SELECT",
        "db.query.text": f"SELECT * FROM orders WHERE id = {order}",  # noqa: S608 - data
        "db.collection.name": "orders",
        "db.response.returned_rows": 1,
    }


def _put(attributes: Any, values: dict[str, str | int]) -> None:
    for key, value in values.items():
        entry = attributes.add(key=key)
        if isinstance(value, int):
            entry.value.int_value = value
        else:
            entry.value.string_value = value
