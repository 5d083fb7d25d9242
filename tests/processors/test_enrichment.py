from __future__ import annotations

from importlib import import_module

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import (
    ExportProfilesServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from relay.otlp import PROFILES, SIGNALS, TRACES, SignalSchema
from relay.processors.enrichment import Enrichment


def resource(*pairs: tuple[str, object]) -> Resource:
    made = Resource(dropped_attributes_count=3)
    for key, value in pairs:
        any_value = made.attributes.add(key=key).value
        if isinstance(value, str):
            any_value.string_value = value
        elif isinstance(value, int):
            any_value.int_value = value
    return made


def pairs(of: Resource) -> list[tuple[str, object]]:
    return [
        (pair.key, getattr(pair.value, pair.value.WhichOneof("value") or "", None))
        for pair in of.attributes
    ]


def enriched(
    of: Resource, service_name: str = "", attributes: tuple[tuple[str, str], ...] = ()
) -> list[tuple[str, object]]:
    request = ExportTraceServiceRequest()
    entry = request.resource_spans.add(schema_url="https://example.org/1")
    entry.resource.CopyFrom(of)
    entry.scope_spans.add().spans.add(name="one")
    result = Enrichment(TRACES, service_name, attributes).process(
        request.SerializeToString(), 1, 1, 0
    )
    assert (result.units, result.items, dict(result.removed), result.learned) == (1, 1, {}, False)
    out = ExportTraceServiceRequest.FromString(result.payload)
    found = out.resource_spans[0].resource
    assert found.dropped_attributes_count == of.dropped_attributes_count
    after = pairs(found)
    found.CopyFrom(of)
    assert out == request
    return after


@pytest.mark.parametrize(
    ("has", "becomes"),
    [
        ([], [("service.name", "shop")]),
        ([("a", "b")], [("a", "b"), ("service.name", "shop")]),
        ([("service.name", "mine")], [("service.name", "mine")]),
        ([("service.name", "unknown_service")], [("service.name", "shop")]),
        (
            [("service.name", "unknown_service:python"), ("a", 1)],
            [("service.name", "shop"), ("a", 1)],
        ),
        ([("service.name", "")], [("service.name", "shop")]),
        ([("service.name", "an unknown_service")], [("service.name", "an unknown_service")]),
        ([("service.name", 5)], [("service.name", 5)]),
        ([("Service.Name", "x")], [("Service.Name", "x"), ("service.name", "shop")]),
    ],
)
def test_service_name(has: list[tuple[str, object]], becomes: list[tuple[str, object]]) -> None:
    assert enriched(resource(*has), "shop") == becomes


def test_attributes_are_added_where_they_lack_and_change_nothing() -> None:
    attributes = (("env", "prod"), ("team", "ä=b"), ("service.name", "other"))
    assert enriched(resource(("env", "test")), "", attributes) == [
        ("env", "test"),
        ("team", "ä=b"),
        ("service.name", "other"),
    ]
    assert enriched(resource(("service.name", "unknown_service")), "", attributes)[0] == (
        "service.name",
        "unknown_service",
    )
    assert enriched(resource(), "shop", attributes) == [
        ("service.name", "shop"),
        ("env", "prod"),
        ("team", "ä=b"),
    ]


MODULES = {"traces": "trace"}


def fill(schema: SignalSchema, resources: list[Resource | None]) -> Message:
    """A request with a unit for each resource, of any signal."""
    *package, _ = schema.service.split(".")
    module = import_module(
        f"{'.'.join(package)}.{MODULES.get(schema.name, schema.name)}_service_pb2"
    )
    message_class = getattr(module, schema.request.rpartition(".")[2])
    made: Message = message_class()
    fields = made.DESCRIPTOR.fields_by_number
    for one in resources:
        entry = getattr(made, fields[schema.resources].name).add()
        if one is not None:
            entry.resource.CopyFrom(one)
        scope = getattr(entry, entry.DESCRIPTOR.fields_by_number[schema.scopes].name).add()
        getattr(scope, scope.DESCRIPTOR.fields_by_number[schema.units].name).add()
    return made


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
def test_every_resource_of_every_signal(schema: SignalSchema) -> None:
    request = fill(schema, [None, resource(("a", "b")), resource(("env", "test"))])
    payload = request.SerializeToString()
    enrichment = Enrichment(schema, "shop", [("env", "prod")])
    for _ in range(2):
        result = enrichment.process(payload, 3, 3, 0)
        out = type(request).FromString(result.payload)
        entries = getattr(out, out.DESCRIPTOR.fields_by_number[schema.resources].name)
        assert [pairs(entry.resource) for entry in entries] == [
            [("service.name", "shop"), ("env", "prod")],
            [("a", "b"), ("service.name", "shop"), ("env", "prod")],
            [("env", "test"), ("service.name", "shop")],
        ]
    pruned = enrichment.prune(payload, 3, 3, 0)
    assert (pruned.payload, pruned.learned) == (payload, False)


def test_profiles_name_attributes_by_index() -> None:
    request = ExportProfilesServiceRequest()
    request.dictionary.string_table.extend(["", "service.name", "unknown_service:go", "env", "x"])
    for key, value in ((1, 2), (3, 4)):
        entry = request.resource_profiles.add()
        pair = entry.resource.attributes.add(key_strindex=key)
        pair.value.string_value_strindex = value
        entry.scope_profiles.add().profiles.add()
    # An index that leads nowhere names nothing.
    entry = request.resource_profiles.add()
    entry.resource.attributes.add(key_strindex=99)
    payload = request.SerializeToString()
    result = Enrichment(PROFILES, "shop", [("env", "prod")]).process(payload, 1, 3, 0)
    out = ExportProfilesServiceRequest.FromString(result.payload)
    assert out.dictionary == request.dictionary
    first, second, third = (list(entry.resource.attributes) for entry in out.resource_profiles)
    assert [pair.key for pair in first] == ["service.name", "env"]
    assert first[0].value.string_value == "shop"
    assert [(pair.key, pair.key_strindex) for pair in second] == [("", 3), ("service.name", 0)]
    assert [pair.key for pair in third] == ["", "service.name", "env"]


def test_a_resource_that_does_not_parse_stays() -> None:
    payload = b"\x0a\x05\x0a\x03\x0a\x01\xff"
    assert Enrichment(TRACES, "shop", ()).process(payload, 0, 0, 0).payload == payload


@given(st.binary(max_size=40))
def test_no_resource_breaks_it(noise: bytes) -> None:
    inner = b"\x0a" + bytes((len(noise),)) + noise
    payload = b"\x0a" + bytes((len(inner),)) + inner
    for schema in (TRACES, PROFILES):
        Enrichment(schema, "shop", [("env", "prod")]).process(payload, 0, 0, 0)


def test_text_that_is_no_unicode_does_not_reach_the_collector() -> None:
    found = enriched(resource(), "sh\udcffop", (("a\udcff", "\udcff"),))
    assert found == [("service.name", "sh?op"), ("a?", "?")]


def test_remembers_no_more_resources_than_it_says() -> None:
    enrichment = Enrichment(TRACES, "shop", ())
    for number in range(1000):
        payload = fill(TRACES, [resource(("n", number))]).SerializeToString()
        enrichment.process(payload, 1, 1, 0)
    assert len(enrichment._known) <= 256
    large = fill(TRACES, [resource(("n", "x" * 100_000))]).SerializeToString()
    assert len(enrichment.process(large, 1, 1, 0).payload) > len(large)
    assert max(map(len, enrichment._known)) < 100_000
