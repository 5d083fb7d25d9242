"""What gzip towards the collector costs: CPU and ratio on typical requests, by level.

Usage: python benchmarks/gzip_cost.py

The requests are those of an instrumented web service: 512 server spans with 13 attributes, 512
histogram points in 32 metrics, 512 log records. Ids and measured values are random, from a fixed
seed; everything else repeats as it does in practice.
"""

from __future__ import annotations

import random
import statistics
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ITEMS = 512
ROUNDS = 15
LEVELS = (1, 3, 6)
START = 1_760_000_000_000_000_000
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
RESOURCE = {
    "service.name": "checkout",
    "service.version": "2.14.1",
    "telemetry.sdk.language": "python",
    "telemetry.sdk.name": "opentelemetry",
    "telemetry.sdk.version": "1.38.0",
    "host.name": "ip-10-2-3-4",
    "k8s.pod.name": "checkout-7d9f6c5b8-x2x9p",
}


def put(attributes: Any, values: Mapping[str, str | int]) -> None:
    for key, value in values.items():
        entry = attributes.add(key=key)
        if isinstance(value, int):
            entry.value.int_value = value
        else:
            entry.value.string_value = value


def traces(chance: random.Random) -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    put(resource.resource.attributes, RESOURCE)
    scope = resource.scope_spans.add()
    scope.scope.name = "opentelemetry.instrumentation.fastapi"
    now = START
    for _ in range(ITEMS):
        now += chance.randrange(10**6)
        span = scope.spans.add(
            trace_id=chance.randbytes(16),
            span_id=chance.randbytes(8),
            parent_span_id=chance.randbytes(8),
            name=chance.choice(["GET /api/users/{id}", "POST /api/orders", "GET /api/orders/{id}"]),
            kind="SPAN_KIND_SERVER",
            start_time_unix_nano=now,
            end_time_unix_nano=now + chance.randrange(10**8),
        )
        put(
            span.attributes,
            {
                "http.request.method": "GET",
                "url.scheme": "http",
                "url.path": f"/api/users/{chance.randrange(10**6)}",
                "http.route": "/api/users/{id}",
                "server.address": "10.2.3.4",
                "server.port": 8000,
                "client.address": f"10.2.{chance.randrange(255)}.{chance.randrange(255)}",
                "client.port": chance.randrange(30000, 60000),
                "user_agent.original": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
                "network.protocol.version": "1.1",
                "http.response.status_code": 200,
                "enduser.id": f"{chance.getrandbits(64):x}",
                "thread.id": chance.randrange(2**31),
            },
        )
    return request.SerializeToString()


def metrics(chance: random.Random) -> bytes:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    put(resource.resource.attributes, RESOURCE)
    scope = resource.scope_metrics.add()
    scope.scope.name = "opentelemetry.instrumentation.fastapi"
    for number in range(ITEMS // 16):
        metric = scope.metrics.add(name=f"http.server.request.duration.{number}", unit="s")
        metric.histogram.aggregation_temporality = 2
        for route in range(16):
            point = metric.histogram.data_points.add(
                start_time_unix_nano=START,
                time_unix_nano=START + 60_000_000_000,
                count=chance.randrange(10000),
                sum=chance.random() * 100,
                bucket_counts=[chance.randrange(500) for _ in range(len(BOUNDS) + 1)],
                explicit_bounds=BOUNDS,
            )
            put(
                point.attributes,
                {
                    "http.route": f"/api/{route}",
                    "http.response.status_code": 200,
                    "http.request.method": "GET",
                },
            )
    return request.SerializeToString()


def logs(chance: random.Random) -> bytes:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    put(resource.resource.attributes, RESOURCE)
    scope = resource.scope_logs.add()
    scope.scope.name = "app"
    for number in range(ITEMS):
        record = scope.log_records.add(
            time_unix_nano=START + number * chance.randrange(10**6),
            severity_text="INFO",
            severity_number="SEVERITY_NUMBER_INFO",
            trace_id=chance.randbytes(16),
            span_id=chance.randbytes(8),
        )
        user, took = f"{chance.getrandbits(64):x}", chance.random() * 100
        order = chance.randrange(10**8)
        record.body.string_value = f"order {order} accepted for user {user} in {took:.2f} ms"
        put(
            record.attributes,
            {
                "code.function.name": "accept",
                "code.file.path": "/app/orders/service.py",
                "code.line.number": chance.randrange(500),
            },
        )
    return request.SerializeToString()


def pack(payload: bytes, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(payload) + packer.flush()


def main() -> None:
    makers: tuple[Callable[[random.Random], bytes], ...] = (traces, metrics, logs)
    print(f"zlib {zlib.ZLIB_RUNTIME_VERSION}, {ITEMS} items a request, median of {ROUNDS}")
    print("| request | bytes | level | ratio | CPU ms per MB | CPU us per item |")
    print("|---|---|---|---|---|---|")
    for make in makers:
        payload = make(random.Random(7))
        for level in LEVELS:
            seconds = []
            packed = b""
            for _ in range(ROUNDS):
                begun = time.process_time()
                packed = pack(payload, level)
                seconds.append(time.process_time() - begun)
            cost = statistics.median(seconds)
            print(
                f"| {make.__name__} | {len(payload)} | {level} | {len(payload) / len(packed):.1f} "
                f"| {cost * 1e9 / len(payload):.1f} | {cost * 1e6 / ITEMS:.1f} |"
            )


if __name__ == "__main__":
    main()
