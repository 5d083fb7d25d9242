import subprocess
import sys

import pytest

from relay.otlp import LOGS, METRICS, PROFILES, SIGNALS, TRACES, SignalSchema
from relay.processors import ProcessorConfig, Result, build
from relay.processors.enrichment import Enrichment
from relay.processors.filters import SpanFilter
from tests.processors.test_enrichment import fill, resource


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
def test_nothing_to_do_is_no_processor(schema: SignalSchema) -> None:
    assert build(schema, ProcessorConfig(drop_send_receive=False)) is None


@pytest.mark.parametrize(
    "config",
    [
        ProcessorConfig(),
        ProcessorConfig(drop_send_receive=False, excluded=("/health",)),
        ProcessorConfig(drop_send_receive=False, included=("/api",)),
        ProcessorConfig(drop_send_receive=False, included=()),
        ProcessorConfig(drop_send_receive=False, sampling_ratio=0.0),
    ],
)
def test_filters_are_for_traces(config: ProcessorConfig) -> None:
    assert isinstance(build(TRACES, config), SpanFilter)
    assert [build(schema, config) for schema in (METRICS, LOGS, PROFILES)] == [None] * 3


@pytest.mark.parametrize(
    "config",
    [ProcessorConfig(service_name="a"), ProcessorConfig(resource_attributes=(("a", "b"),))],
)
def test_enrichment_is_for_all(config: ProcessorConfig) -> None:
    for schema in (METRICS, LOGS, PROFILES):
        assert isinstance(build(schema, config), Enrichment)
    assert build(TRACES, config) is not None


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
def test_disabled_takes_all_and_counts_items(schema: SignalSchema) -> None:
    processor = build(schema, ProcessorConfig(enabled=False, service_name="a"))
    assert processor is not None
    assert processor.process(b"x", 3, 7, 0) == Result(b"", 0, 0, {"disabled": 7})
    assert processor.process(b"x", 1, 0, 0) == Result(b"", 0, 0)
    metrics_only = build(schema, ProcessorConfig(metrics_enabled=False, drop_send_receive=False))
    assert (metrics_only is not None) == (schema is METRICS)


def test_filters_come_first_and_what_stays_is_enriched() -> None:
    processor = build(TRACES, ProcessorConfig(excluded=("/health",), service_name="shop"))
    assert processor is not None
    request = fill(TRACES, [resource(), resource()])
    span = request.resource_spans[0].scope_spans[0].spans[0]  # type: ignore[attr-defined]
    span.kind = 2
    span.trace_id, span.span_id = b"t" * 16, b"s" * 8
    span.attributes.add(key="url.path").value.string_value = "/health"
    result = processor.process(request.SerializeToString(), 2, 2, 0)
    assert (result.units, result.removed, result.learned) == (1, {"excluded_url": 1}, True)
    assert b"shop" in result.payload
    child = fill(TRACES, [resource()])
    late = child.resource_spans[0].scope_spans[0].spans[0]  # type: ignore[attr-defined]
    late.trace_id, late.span_id, late.parent_span_id = b"t" * 16, b"c" * 8, b"s" * 8
    waiting = child.SerializeToString()
    assert processor.prune(waiting, 1, 1, 0).removed == {"subtree": 1}
    assert processor.process(waiting, 1, 1, 0) == Result(b"", 0, 0, {"subtree": 1}, learned=True)


def test_a_faulty_pattern_is_an_error() -> None:
    with pytest.raises(ValueError, match="not an RE2 expression"):
        build(TRACES, ProcessorConfig(excluded=("^/(",)))


def test_importing_the_interface_loads_no_native_library() -> None:
    code = (
        "import sys; from relay.processors import *\n"
        "from relay.otlp import LOGS\n"
        "from relay.processors import ProcessorConfig, build\n"
        "build(LOGS, ProcessorConfig(excluded=('/health',)))\n"
        "assert not {'re2', 'google', 'grpc', 'aiohttp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
