"""Items as readable lines."""

from __future__ import annotations

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import (
    ExportProfilesServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from relay.otlp import LOGS, METRICS, PROFILES, TRACES
from relay.sink.messages import describe


def test_a_span_has_its_service_name_length_and_attributes() -> None:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "shop"
    span = resource.scope_spans.add().spans.add(
        name="GET /", trace_id=b"\x01" * 16, span_id=b"\x02" * 8
    )
    span.end_time_unix_nano = 2_500_000
    span.attributes.add(key="n").value.int_value = 7
    span.attributes.add(key="l").value.array_value.values.add().bool_value = True
    pair = span.attributes.add(key="m").value.kvlist_value.values.add(key="b")
    pair.value.bytes_value = b"\xff"
    span.attributes.add(key="none")
    assert list(describe(request.SerializeToString(), TRACES)) == [
        (
            f'span service="shop" trace={"01" * 16} span={"02" * 8} name="GET /" ms=2.5 '
            "n=7 l=[True] m={b=ff} none=-"
        )
    ]


def test_a_metric_has_a_line_for_each_data_point() -> None:
    request = ExportMetricsServiceRequest()
    scope = request.resource_metrics.add().scope_metrics.add()
    gauge = scope.metrics.add(name="g").gauge
    gauge.data_points.add(as_int=3)
    gauge.data_points.add(as_double=0.5)
    scope.metrics.add(name="h").histogram.data_points.add(count=9)
    scope.metrics.add(name="empty")
    assert list(describe(request.SerializeToString(), METRICS)) == [
        'data point service=- name="g" gauge=3',
        'data point service=- name="g" gauge=0.5',
        'data point service=- name="h" histogram=count 9',
    ]


def test_a_log_record_has_its_severity_and_body() -> None:
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    records.add(severity_text="WARN").body.string_value = "two\nlines"
    records.add(severity_number=9)
    assert list(describe(request.SerializeToString(), LOGS)) == [
        'log record service=- severity=WARN body="two\\nlines"',
        "log record service=- severity=9 body=-",
    ]


def test_a_profile_has_its_id() -> None:
    request = ExportProfilesServiceRequest()
    profiles = request.resource_profiles.add().scope_profiles.add().profiles
    profiles.add(profile_id=b"\x03" * 16).samples.add()
    assert list(describe(request.SerializeToString(), PROFILES)) == [
        f"profile service=- profile={'03' * 16} samples=1"
    ]


def test_items_that_do_not_parse_are_said_to_be_so() -> None:
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(name="x")
    payload = request.SerializeToString().replace(b"x", b"\xff")
    [line] = describe(payload, TRACES)
    assert line.startswith(f"traces: {len(payload)} bytes that do not parse")
