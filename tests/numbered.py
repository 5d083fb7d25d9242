"""Export requests whose units carry numbers, and reading the numbers back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import (
    ExportProfilesServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from proto_stubs import LOGS, METRICS, PROFILES, TRACES, SignalSchema


def spans(numbers: Iterable[int], *, pad: int = 0, service: str = "app") -> bytes:
    """One request of spans; ``pad`` bytes of ballast in each."""
    request = ExportTraceServiceRequest()
    entry = request.resource_spans.add()
    attribute = entry.resource.attributes.add()
    attribute.key, attribute.value.string_value = "service.name", service
    scope = entry.scope_spans.add()
    scope.scope.name = "numbered"
    for number in numbers:
        span = scope.spans.add()
        span.trace_id = number.to_bytes(16, "big")
        span.span_id = (number + 1).to_bytes(8, "big")
        span.name = f"span {number}"
        if pad:
            ballast = span.attributes.add()
            ballast.key, ballast.value.string_value = "ballast", "x" * pad
    # After the spans, as serializers write it: every piece must keep it.
    scope.schema_url = "https://opentelemetry.io/schemas/1.40.0"
    return request.SerializeToString()


def metrics(numbers: Sequence[int], weights: Sequence[int]) -> bytes:
    """One request of metrics with so many data points each."""
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    for number, weight in zip(numbers, weights, strict=True):
        metric = scope.metrics.add()
        metric.name = str(number)
        metric.gauge.SetInParent()
        for value in range(weight):
            metric.gauge.data_points.add().as_int = value
    return request.SerializeToString()


def logs(numbers: Iterable[int]) -> bytes:
    """One request of log records."""
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for number in numbers:
        scope.log_records.add().body.string_value = str(number)
    return request.SerializeToString()


def profiles(numbers: Iterable[int]) -> bytes:
    """One request of profiles."""
    request = ExportProfilesServiceRequest()
    request.dictionary.string_table.append("")
    scope = request.resource_profiles.add().scope_profiles.add()
    for number in numbers:
        scope.profiles.add().time_unix_nano = number
    return request.SerializeToString()


def numbers_of(payload: bytes, schema: SignalSchema) -> list[int]:
    """The numbers of a request's units, in order."""
    if schema is TRACES:
        return [
            int.from_bytes(span.trace_id, "big")
            for entry in ExportTraceServiceRequest.FromString(payload).resource_spans
            for scope in entry.scope_spans
            for span in scope.spans
        ]
    if schema is METRICS:
        return [
            int(metric.name)
            for metrics_entry in ExportMetricsServiceRequest.FromString(payload).resource_metrics
            for metrics_scope in metrics_entry.scope_metrics
            for metric in metrics_scope.metrics
        ]
    if schema is LOGS:
        return [
            int(record.body.string_value)
            for logs_entry in ExportLogsServiceRequest.FromString(payload).resource_logs
            for logs_scope in logs_entry.scope_logs
            for record in logs_scope.log_records
        ]
    assert schema is PROFILES
    return [
        profile.time_unix_nano
        for profiles_entry in ExportProfilesServiceRequest.FromString(payload).resource_profiles
        for profiles_scope in profiles_entry.scope_profiles
        for profile in profiles_scope.profiles
    ]
