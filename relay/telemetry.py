"""The pipelines' books as Prometheus metrics, read at scrape time.

Nothing is counted here and no payload is seen: a scrape reads the ledgers in one go, in the event
loop's thread, so that what it shows adds up.

Sources: contract, section 4; Prometheus, "Metric and label naming"; OpenMetrics 1.0.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from relay import __version__
from relay.histogram import Histogram
from relay.pipeline import Pipeline

__all__ = ["DROP_REASONS", "FILTER_REASONS", "METRICS", "MetricInfo", "registry"]

PREFIX = "otlp_relay_"

FILTER_REASONS = (
    "excluded_url",
    "not_included_url",
    "subtree",
    "send_receive",
    "sampled_out",
    "disabled",
)
DROP_REASONS = (
    "queue_full",
    "queue_bytes",
    "rejected",
    "malformed",
    "partial_success",
    "too_large",
    "timeout",
    "unimplemented",
    "shutdown",
)
TRANSPORTS = ("grpc", "http")
OUTCOMES = ("accepted", "invalid", "too_large", "unavailable")


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """One metric: its kind (counter, gauge, histogram), labels beside ``signal``, and meaning."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


METRICS: Mapping[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo("received_items", "counter", ("transport",), "Items that entered the pipeline."),
        MetricInfo(
            "received_bytes",
            "counter",
            ("transport",),
            "Bytes of requests that entered the pipeline.",
        ),
        MetricInfo(
            "received_requests",
            "counter",
            ("transport", "outcome"),
            "Requests by outcome. Those that the gRPC library refuses itself are not seen.",
        ),
        MetricInfo(
            "receive_duration_seconds",
            "histogram",
            ("transport",),
            "From the whole request in hand to the answer.",
        ),
        MetricInfo("filtered_items", "counter", ("reason",), "Items removed by a setting."),
        MetricInfo("dropped_items", "counter", ("reason",), "Items lost."),
        MetricInfo("exported_items", "counter", (), "Items that the collector accepted."),
        MetricInfo("exported_bytes", "counter", (), "Bytes that the collector accepted."),
        MetricInfo(
            "export_attempts",
            "counter",
            ("code",),
            "Attempts by gRPC status name or HTTP status; CONNECT_TIMEOUT and CONNECT_FAILED where"
            " there was no connection.",
        ),
        MetricInfo("export_duration_seconds", "histogram", (), "One attempt."),
        MetricInfo("export_batch_items", "histogram", (), "Items in one attempt."),
        MetricInfo("queue_items", "gauge", (), "Items that wait in the ring."),
        MetricInfo("queue_bytes", "gauge", (), "Bytes that the ring retains."),
        MetricInfo("queue_capacity_items", "gauge", (), "Items that the ring holds at most."),
        MetricInfo("queue_capacity_bytes", "gauge", (), "Bytes that the ring retains at most."),
        MetricInfo("queue_oldest_age_seconds", "gauge", (), "Age of the oldest waiting item."),
        MetricInfo("in_flight_items", "gauge", (), "Items being exported."),
        MetricInfo(
            "collector_up",
            "gauge",
            (),
            "1 when the latest attempt was accepted, 0 when not; absent before the first.",
        ),
        MetricInfo(
            "collector_last_success_timestamp_seconds",
            "gauge",
            (),
            "Unix time of the latest accepted attempt; absent before the first.",
        ),
        MetricInfo(
            "outage_seconds",
            "gauge",
            (),
            "Since the first failure after the last success; 0 while up.",
        ),
    )
}
"""By name, without prefix and without the ``_total`` that counters carry in the output."""


def registry(pipelines: Mapping[str, Pipeline]) -> CollectorRegistry:
    """A registry of the relay's metrics and the client library's process_* and python_*."""
    found = CollectorRegistry(auto_describe=False)
    found.register(_Books(pipelines))
    ProcessCollector(registry=found)
    PlatformCollector(registry=found)
    GCCollector(registry=found)
    return found


class _Books(Collector):
    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self._pipelines = pipelines

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily(
            f"{PREFIX}build_info",
            "The relay's version and its interpreter's; always 1.",
            labels=["version", "python"],
        )
        build.add_metric([__version__, platform.python_version()], 1)
        families = _Families()
        for signal, pipeline in self._pipelines.items():
            families.add(signal, pipeline)
        return [build, *families.by_name.values()]


class _Families:
    """One family for each metric, filled signal by signal."""

    def __init__(self) -> None:
        self.by_name: dict[str, Metric] = {}
        kinds = {
            "counter": CounterMetricFamily,
            "gauge": GaugeMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        for info in METRICS.values():
            self.by_name[info.name] = kinds[info.kind](
                PREFIX + info.name, info.help, labels=["signal", *info.labels]
            )

    def add(self, signal: str, pipeline: Pipeline) -> None:
        delivery = pipeline.delivery
        ledger = delivery.ledger
        ring = delivery.ring
        now = pipeline.clock()
        for transport in TRANSPORTS:
            self._value("received_items", [signal, transport], ledger.received[transport])
            self._value("received_bytes", [signal, transport], ledger.received_bytes[transport])
            for outcome in OUTCOMES:
                count = pipeline.requests[transport, outcome]
                self._value("received_requests", [signal, transport, outcome], count)
        for transport, histogram in pipeline.receive_seconds.items():
            self._histogram("receive_duration_seconds", [signal, transport], histogram)
        for reason in FILTER_REASONS:
            self._value("filtered_items", [signal, reason], ledger.filtered[reason])
        for reason in DROP_REASONS:
            self._value("dropped_items", [signal, reason], ledger.dropped[reason])
        self._value("exported_items", [signal], ledger.exported)
        self._value("exported_bytes", [signal], ledger.exported_bytes)
        for code, count in ledger.attempts.items():
            self._value("export_attempts", [signal, code], count)
        self._histogram("export_duration_seconds", [signal], pipeline.export_seconds)
        self._histogram("export_batch_items", [signal], pipeline.batch_items)
        oldest = ring.oldest
        failing = ledger.failing_since
        self._value("queue_items", [signal], ring.items)
        self._value("queue_bytes", [signal], ring.retained)
        self._value("queue_capacity_items", [signal], ring.max_items)
        self._value("queue_capacity_bytes", [signal], ring.max_bytes)
        self._value(
            "queue_oldest_age_seconds", [signal], 0.0 if oldest is None else now - oldest.arrived
        )
        self._value("in_flight_items", [signal], ledger.in_flight)
        if ledger.up is not None:
            self._value("collector_up", [signal], ledger.up)
        if pipeline.last_success is not None:
            self._value("collector_last_success_timestamp_seconds", [signal], pipeline.last_success)
        self._value("outage_seconds", [signal], 0.0 if failing is None else now - failing)

    def _value(self, name: str, labels: list[str], value: float) -> None:
        family = self.by_name[name]
        if isinstance(family, CounterMetricFamily | GaugeMetricFamily):
            family.add_metric(labels, value)

    def _histogram(self, name: str, labels: list[str], histogram: Histogram) -> None:
        family = self.by_name[name]
        if isinstance(family, HistogramMetricFamily):
            family.add_metric(labels, histogram.cumulative(), histogram.total)
