import subprocess
import sys

import pytest

import proto_stubs
from proto_stubs import generate
from tests.strategies import SIGNALS, request_class, response_class


def test_the_generated_file_is_what_the_descriptors_say() -> None:
    assert generate.TARGET.read_text(encoding="utf-8") == generate.generate()


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
def test_the_schema_leads_to_the_units(schema: proto_stubs.SignalSchema) -> None:
    message = request_class(schema).DESCRIPTOR
    names = []
    for number in (schema.resources, schema.scopes, schema.units):
        field = message.fields_by_number[number]
        assert field.is_repeated
        assert field.message_type is not None
        names.append(field.name)
        message = field.message_type
    expected = {
        "traces": ["resource_spans", "scope_spans", "spans"],
        "metrics": ["resource_metrics", "scope_metrics", "metrics"],
        "logs": ["resource_logs", "scope_logs", "log_records"],
        "profiles": ["resource_profiles", "scope_profiles", "profiles"],
    }
    assert names == expected[schema.name]
    for number in schema.data:
        data = message.fields_by_number[number].message_type
        assert data is not None
        assert data.fields_by_number[schema.data_points].name == "data_points"
    assert bool(schema.data) == (schema.name == "metrics")
    assert schema.whole == (schema.name == "profiles")


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
def test_the_schema_leads_to_the_rejected_count(schema: proto_stubs.SignalSchema) -> None:
    partial = response_class(schema).DESCRIPTOR.fields_by_number[schema.partial_success]
    assert partial.name == "partial_success"
    assert partial.message_type is not None
    rejected = partial.message_type.fields_by_number[schema.rejected]
    assert rejected.name.startswith("rejected_")
    assert rejected.type == rejected.TYPE_INT64
    assert partial.message_type.fields_by_number[schema.error_message].name == "error_message"


def test_names_are_those_of_the_specification() -> None:
    # OTLP specification 1.11, "OTLP/gRPC" and "OTLP/HTTP Request".
    assert [schema.http_path for schema in SIGNALS] == [
        "/v1/traces",
        "/v1/metrics",
        "/v1/logs",
        "/v1development/profiles",
    ]
    assert proto_stubs.TRACES.method == (
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    )


def test_importing_the_facts_imports_no_protobuf() -> None:
    modules = "proto_stubs, relay.wire, relay.inspect"
    code = f"import sys, {modules}; print('google.protobuf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
