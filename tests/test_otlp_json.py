"""relay.otlp_json: the official examples as facts, and the message classes as oracle."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import time
import tracemalloc
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proto_stubs import LOGS, METRICS, PROFILES, TRACES, SignalSchema, generate_json
from proto_stubs.json_fields import MESSAGES
from relay import otlp_json
from relay.otlp import SIGNALS
from relay.otlp_json import InvalidJsonError, JsonTooLargeError
from tests.strategies import request_class, requests, response_class

MIB = 1024 * 1024
ID_FIELDS = ("traceId", "spanId", "parentSpanId", "profileId")


def convert(document: object, schema: SignalSchema = TRACES, *, limit: int = 64 * MIB) -> Message:
    """A document through the converter, parsed by the real class."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return request_class(schema).FromString(otlp_json.to_protobuf(body, schema, limit=limit))


def first_span(**fields: object) -> Any:
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [fields]}]}]}
    return convert(document).resource_spans[0].scope_spans[0].spans[0]  # type: ignore[attr-defined]  # made at run time


def first_value(value: object) -> Any:
    return first_span(attributes=[{"key": "k", "value": value}]).attributes[0].value


# --- random messages of every signal, as protobuf's own JSON writer gives them ----------------


def as_otlp(value: Any, *, upper: bool, keep_profile_id: bool) -> Any:
    """What protobuf's writer gives, with the ids in hexadecimal."""
    if isinstance(value, list):
        return [as_otlp(v, upper=upper, keep_profile_id=keep_profile_id) for v in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for key, content in value.items():
        name = json_format_camel(key)
        if name in ID_FIELDS and isinstance(content, str):
            raw = base64.b64decode(content)
            if name == "profileId" and (keep_profile_id or len(raw) != 16):
                out[key] = content
            else:
                out[key] = raw.hex().upper() if upper else raw.hex()
        else:
            out[key] = as_otlp(content, upper=upper, keep_profile_id=keep_profile_id)
    return out


def json_format_camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_random_requests_come_out_as_the_message_classes_have_them(
    schema: SignalSchema, data: st.DataObject
) -> None:
    message = data.draw(requests(schema))
    written = json_format.MessageToDict(
        message,
        use_integers_for_enums=data.draw(st.booleans()),
        preserving_proto_field_name=data.draw(st.booleans()),
        always_print_fields_with_no_presence=data.draw(st.booleans()),
    )
    document = as_otlp(
        written, upper=data.draw(st.booleans()), keep_profile_id=data.draw(st.booleans())
    )
    body = json.dumps(
        document,
        ensure_ascii=data.draw(st.booleans()),
        indent=data.draw(st.sampled_from([None, 0, 2])),
        separators=data.draw(st.sampled_from([None, (",", ":")])),
    ).encode()
    converted = otlp_json.to_protobuf(body, schema, limit=64 * MIB)
    # Bytes, not messages: NaN is not equal to itself.
    assert request_class(schema).FromString(converted).SerializeToString(
        deterministic=True
    ) == message.SerializeToString(deterministic=True)


# --- the examples of opentelemetry-proto (folder "examples"), facts typed again ---------------

RESOURCE = {"attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]}
SCOPE = {
    "name": "my.library",
    "version": "1.0.0",
    "attributes": [{"key": "my.scope.attribute", "value": {"stringValue": "some scope attribute"}}],
}
NANOS = 1544712660300000000


def text(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def check_resource_and_scope(resource: Any, scope: Any) -> None:
    assert [(a.key, a.value.string_value) for a in resource.attributes] == [
        ("service.name", "my.service")
    ]
    assert (scope.name, scope.version) == ("my.library", "1.0.0")
    assert scope.attributes[0].value.string_value == "some scope attribute"


def test_example_of_a_trace() -> None:
    span = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "EEE19B7EC3C1B174",
        "parentSpanId": "EEE19B7EC3C1B173",
        "name": "I'm a server span",
        "startTimeUnixNano": 1544712660000000000,
        "endTimeUnixNano": 1544712661000000000,
        "kind": 2,
        "attributes": [text("my.span.attr", "some value")],
    }
    document = {
        "resourceSpans": [{"resource": RESOURCE, "scopeSpans": [{"scope": SCOPE, "spans": [span]}]}]
    }
    found: Any = convert(document)
    (resource,) = found.resource_spans
    (scope,) = resource.scope_spans
    check_resource_and_scope(resource.resource, scope.scope)
    (got,) = scope.spans
    assert got.trace_id == bytes.fromhex("5b8efff798038103d269b633813fc60c")
    assert got.span_id == bytes.fromhex("eee19b7ec3c1b174")
    assert got.parent_span_id == bytes.fromhex("eee19b7ec3c1b173")
    assert (got.name, got.kind) == ("I'm a server span", 2)
    assert got.start_time_unix_nano == 1544712660000000000
    assert got.end_time_unix_nano == 1544712661000000000
    assert got.attributes[0].value.string_value == "some value"


def test_example_of_metrics() -> None:
    times = {"startTimeUnixNano": NANOS, "timeUnixNano": NANOS}
    attributes = {"attributes": [text("my.attr", "some value")]}
    metrics = [
        {
            "name": "my.counter",
            "unit": "1",
            "description": "I`m a Counter",
            "sum": {
                "aggregationTemporality": 1,
                "isMonotonic": True,
                "dataPoints": [{"asDouble": 5, **times, **attributes}],
            },
        },
        {
            "name": "my.gauge",
            "gauge": {"dataPoints": [{"asDouble": 10, "timeUnixNano": NANOS, **attributes}]},
        },
        {
            "name": "my.histogram",
            "histogram": {
                "aggregationTemporality": 1,
                "dataPoints": [
                    {
                        **times,
                        "count": 3,
                        "sum": 3,
                        "bucketCounts": [1, 1, 1],
                        "explicitBounds": [1],
                        "min": 1,
                        "max": 1,
                        **attributes,
                    }
                ],
            },
        },
    ]
    document = {
        "resourceMetrics": [
            {"resource": RESOURCE, "scopeMetrics": [{"scope": SCOPE, "metrics": metrics}]}
        ]
    }
    found: Any = convert(document, METRICS)
    (resource,) = found.resource_metrics
    (scope,) = resource.scope_metrics
    check_resource_and_scope(resource.resource, scope.scope)
    counter, gauge, histogram = scope.metrics
    assert (counter.unit, counter.description) == ("1", "I`m a Counter")
    assert (counter.sum.aggregation_temporality, counter.sum.is_monotonic) == (1, True)
    assert counter.sum.data_points[0].as_double == 5.0
    assert counter.sum.data_points[0].start_time_unix_nano == NANOS
    assert gauge.gauge.data_points[0].as_double == 10.0
    (point,) = histogram.histogram.data_points
    assert (point.count, point.sum, point.min, point.max) == (3, 3.0, 1.0, 1.0)
    assert (list(point.bucket_counts), list(point.explicit_bounds)) == ([1, 1, 1], [1.0])


def test_example_of_logs() -> None:
    values: dict[str, Any] = {
        "string": {"stringValue": "some string"},
        "boolean": {"boolValue": True},
        "int": {"intValue": 10},
        "double": {"doubleValue": 637.704},
        "array": {"arrayValue": {"values": [{"stringValue": "many"}, {"stringValue": "values"}]}},
        "map": {"kvlistValue": {"values": [text("some.map.key", "some value")]}},
    }
    record = {
        "timeUnixNano": NANOS,
        "observedTimeUnixNano": str(NANOS),
        "severityNumber": 9,
        "severityText": "Information",
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "EEE19B7EC3C1B174",
        "body": {"stringValue": "Example log record"},
        "attributes": [{"key": key, "value": value} for key, value in values.items()],
    }
    document = {
        "resourceLogs": [
            {"resource": RESOURCE, "scopeLogs": [{"scope": SCOPE, "logRecords": [record]}]}
        ]
    }
    found: Any = convert(document, LOGS)
    (resource,) = found.resource_logs
    (scope,) = resource.scope_logs
    check_resource_and_scope(resource.resource, scope.scope)
    (got,) = scope.log_records
    assert (got.time_unix_nano, got.observed_time_unix_nano) == (NANOS, NANOS)
    assert (got.severity_number, got.severity_text) == (9, "Information")
    assert got.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert got.span_id.hex() == "eee19b7ec3c1b174"
    assert got.body.string_value == "Example log record"
    found_values = {a.key: a.value for a in got.attributes}
    assert found_values["string"].string_value == "some string"
    assert found_values["boolean"].bool_value is True
    assert found_values["int"].int_value == 10
    assert found_values["double"].double_value == 637.704
    array = found_values["array"].array_value.values
    assert [v.string_value for v in array] == ["many", "values"]
    (pair,) = found_values["map"].kvlist_value.values
    assert (pair.key, pair.value.string_value) == ("some.map.key", "some value")


# --- what a receiver accepts ------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"{}", b" \t\r\n{ \n} \n", b"\xef\xbb\xbf{}", b'{"resourceSpans":[ ]}']
)
def test_an_empty_request(body: bytes) -> None:
    assert otlp_json.to_protobuf(body, TRACES, limit=0) == b""


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
def test_null_is_an_absent_field(schema: SignalSchema) -> None:
    everything = {field.json_name: None for field in MESSAGES[schema.request]}
    assert otlp_json.to_protobuf(json.dumps(everything).encode(), schema, limit=0) == b""
    assert first_value({"stringValue": None, "intValue": 1}).int_value == 1
    assert first_value(None).WhichOneof("value") is None


UNKNOWN = [
    1,
    -0.5e-3,
    'x"}]\u00e9\\',
    True,
    None,
    {},
    [],
    {"a": {"b": [1, {}, [], {"c": "}"}]}},
    [[[[]], {}], {"k": [None]}, "]"],
]


@pytest.mark.parametrize("value", UNKNOWN, ids=repr)
@pytest.mark.parametrize("indent", [None, 1])
def test_unknown_fields_are_ignored_wherever_they_stand(value: object, indent: int | None) -> None:
    def add(node: Any) -> Any:
        if isinstance(node, list):
            return [add(item) for item in node]
        if isinstance(node, dict):
            return {"zz0": value, **{k: add(v) for k, v in node.items()}, "zz1": value}
        return node

    span = {"name": "n", "attributes": [text("k", "v"), text("l", "w")], "status": {"code": 2}}
    document = {"resourceSpans": [{"resource": RESOURCE, "scopeSpans": [{"spans": [span]}]}]}
    body = json.dumps(add(document), indent=indent).encode()
    assert convert(body) == convert(document)


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        ("5", 5),
        (5, 5),
        ("-9223372036854775808", -(2**63)),
        (9223372036854775807, 2**63 - 1),
        (1e3, 1000),
        ("1e3", 1000),
        (7.0, 7),
        (0, 0),
        ("0", 0),
    ],
)
def test_64_bit_integers_as_numbers_and_strings(given_value: object, expected: int) -> None:
    assert first_value({"intValue": given_value}).int_value == expected
    assert first_value({"intValue": given_value}).WhichOneof("value") == "int_value"


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        (1.5, 1.5),
        (1, 1.0),
        ("1.5", 1.5),
        ("Infinity", float("inf")),
        ("-Infinity", float("-inf")),
        (5e-324, 5e-324),
        (1e-999, 0.0),
        (-0.0, -0.0),
    ],
)
def test_floating_point(given_value: object, expected: float) -> None:
    found = first_value({"doubleValue": given_value}).double_value
    assert struct.pack("<d", found) == struct.pack("<d", expected)


def test_not_a_number() -> None:
    assert first_value({"doubleValue": "NaN"}).double_value != 0.0
    assert str(first_value({"doubleValue": "NaN"}).double_value) == "nan"


@pytest.mark.parametrize("kind", [3, "3", "SPAN_KIND_CLIENT", 3.0])
def test_enums_by_number_and_because_the_collector_takes_them_by_name(kind: object) -> None:
    assert first_span(kind=kind).kind == 3


def test_enum_numbers_that_have_no_name_yet_are_kept() -> None:
    assert first_span(kind=77).kind == 77


RAW = bytes(range(250, 256)) + b"\xfb\xff"


@pytest.mark.parametrize(
    "encoded",
    [
        base64.b64encode(RAW),
        base64.urlsafe_b64encode(RAW),
        base64.b64encode(RAW).rstrip(b"="),
        base64.urlsafe_b64encode(RAW).rstrip(b"="),
    ],
)
def test_bytes_in_every_base64(encoded: bytes) -> None:
    assert first_value({"bytesValue": encoded.decode()}).bytes_value == RAW


def test_ids_of_links_exemplars_and_profiles() -> None:
    link = first_span(links=[{"traceId": "aB" * 16, "spanId": "Cd" * 8}]).links[0]
    assert (link.trace_id, link.span_id) == (b"\xab" * 16, b"\xcd" * 8)
    exemplar = {"traceId": "AB" * 16, "spanId": "cd" * 8, "asInt": "-7"}
    metric = {"gauge": {"dataPoints": [{"exemplars": [exemplar]}]}}
    document = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}
    metrics: Any = convert(document, METRICS)
    got = metrics.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0].exemplars[0]
    assert (got.trace_id, got.span_id, got.as_int) == (b"\xab" * 16, b"\xcd" * 8, -7)
    for written in ("ab" * 16, base64.b64encode(b"\xab" * 16).decode()):
        profile = {
            "resourceProfiles": [{"scopeProfiles": [{"profiles": [{"profileId": written}]}]}]
        }
        profiles: Any = convert(profile, PROFILES)
        found = profiles.resource_profiles[0].scope_profiles[0].profiles[0]
        assert found.profile_id == b"\xab" * 16


def test_field_names_in_their_original_form() -> None:
    document = {"resource_spans": [{"scope_spans": [{"spans": [{"trace_id": "00" * 16}]}]}]}
    found: Any = convert(document)
    assert found.resource_spans[0].scope_spans[0].spans[0].trace_id == bytes(16)


def test_escapes_in_names_and_values() -> None:
    body = rb'{"resource\u0053pans":[{"schemaUrl":"\u00e9\n\"\\\/\ud83d\ude00"}]}'
    found: Any = convert(body)
    assert found.resource_spans[0].schema_url == 'é\n"\\/\N{GRINNING FACE}'


@given(st.text(alphabet=st.characters(), max_size=40), st.booleans())
@example("\ud800", True)
@example("a\udc00\ud800b", True)
def test_any_string(string: str, ascii_only: bool) -> None:
    body = json.dumps({"resourceSpans": [{"schemaUrl": string}]}, ensure_ascii=ascii_only)
    expected = string.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    found: Any = convert(body.encode("utf-8", "replace"))
    if ascii_only:
        assert found.resource_spans[0].schema_url == expected


def test_a_long_string_with_escapes_is_put_together_right() -> None:
    string = ("plain text " * 500 + "\N{GRINNING FACE}\té€\\" * 50) * 60
    for ascii_only in (True, False):
        body = json.dumps({"resourceSpans": [{"schemaUrl": string}]}, ensure_ascii=ascii_only)
        found: Any = convert(body.encode())
        assert found.resource_spans[0].schema_url == string


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=5),
            st.sampled_from(["stringValue", "intValue", "boolValue", "doubleValue", "zz"]),
            st.text(max_size=5) | st.integers(-(2**63), 2**63 - 1) | st.booleans(),
        ),
        max_size=5,
    ),
    st.sampled_from([None, 1]),
)
def test_attributes_are_the_same_on_the_short_way_and_on_the_long_one(
    attributes: list[tuple[str, str, object]], indent: int | None
) -> None:
    # With an unknown field in front the pattern for plain attributes does not match.
    short = [{"key": key, "value": {kind: value}} for key, kind, value in attributes]
    long = [{"zz": 0, **attribute} for attribute in short]

    def outcome(values: object) -> object:
        document = {"resourceSpans": [{"resource": {"attributes": values}}]}
        try:
            return convert(json.dumps(document, indent=indent).encode())
        except InvalidJsonError:
            return "invalid"

    assert outcome(short) == outcome(long)


# --- what it refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "ends early, at byte 0"),
        (b"   ", "ends early, at byte 3"),
        (b"[]", "at byte 0: expected an object"),
        (b"null", "at byte 0: expected an object"),
        (b'"x"', "expected an object"),
        (b"{", "ends early, at byte 1"),
        (b"{]", "at byte 1: expected a field name or '}'"),
        (b"{}x", "at byte 2: expected the end"),
        (b"{},", "at byte 2: expected the end"),
        (b'{"a"}', "expected a field name"),
        (b'{"a":}', "at byte 5: expected a value"),
        (b'{"a":1,}', "at byte 7: expected a field name"),
        (b'{"a":1 "b":2}', "at byte 7: expected ',' or '}'"),
        (b'{"a":[1,]}', "expected a value"),
        (b'{"a":[1}}', "expected ',' or ']'"),
        (b'{"a":{"b":1]}', "expected ',' or '}'"),
        (b'{"a":{"b":1,2}}', "expected a field name"),
        (b'{"a":{]}', "expected a field name or '}'"),
        (b'{"a":nope}', "expected a value"),
        (b'{"a":NaN}', "expected a value"),
        (b'{"a":Infinity}', "expected a value"),
        (b'{"a":01}', "expected ',' or '}'"),
        (b'{"a":1.}', "expected ',' or '}'"),
        (b'{"a":.5}', "expected a value"),
        (b'{"a":+1}', "expected a value"),
        (b"{'a':1}", "expected a field name"),
        (b'{"a":"\\x"}', "expected a value"),
        (b'{"a":"\\u12g4"}', "expected a value"),
        (b'{"a":"\n"}', "expected a value"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a":"' + b"x" * 70_000 + b'\xe2"}', "not UTF-8"),
        (b'{"a":"\xe2', "not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b'\0{"a":1}', "expected an object"),
        (b'{"resourceSpans":{}}', "resourceSpans: expected an array"),
        (b'{"resourceSpans":"x"}', "resourceSpans: expected an array"),
        (b'{"resourceSpans":[1]}', "resourceSpans: expected an object"),
        (b'{"resourceSpans":[null]}', "resourceSpans: expected an object"),
        (b'{"resourceSpans":[{} {}]}', "expected ',' or ']'"),
        (b'{"resourceSpans":[{"resource":[]}]}', "resource: expected an object"),
        (b'{"resourceSpans":[{"resource":1}]}', "resource: expected an object"),
        (b'{"resourceSpans":[{"schemaUrl":1}]}', "schemaUrl: expected a string"),
        (b'{"resourceSpans":[{"schemaUrl":[]}]}', "schemaUrl: expected a value"),
        (b'{"resourceSpans":[],"resourceSpans":[]}', "resourceSpans: given twice"),
        (b'{"resourceSpans":[],"resource_spans":[]}', "resourceSpans: given twice"),
        (b'{"resourceSpans":[{"resource":nul}]}', "resource: expected an object"),
        (b'{"resourceSpans":nullx}', "expected ',' or '}'"),
    ],
)
def test_what_is_not_the_json_of_a_request(body: bytes, message: str) -> None:
    with pytest.raises(InvalidJsonError) as info:
        otlp_json.to_protobuf(body, TRACES, limit=MIB)
    assert message in str(info.value)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"traceId": "xy"}, "traceId: expected hexadecimal digits"),
        ({"traceId": "abc"}, "traceId: expected hexadecimal digits"),
        ({"traceId": "a b "}, "traceId: expected hexadecimal digits"),
        ({"traceId": 12}, "traceId: expected hexadecimal digits"),
        ({"kind": "SERVER"}, "kind: expected the number of an enum"),
        ({"kind": 1.5}, "kind: expected the number of an enum"),
        ({"kind": 2**31}, "kind: expected the number of an enum"),
        ({"startTimeUnixNano": -1}, "startTimeUnixNano: out of range"),
        ({"startTimeUnixNano": 2**64}, "startTimeUnixNano: out of range"),
        ({"startTimeUnixNano": ""}, "startTimeUnixNano: expected an integer"),
        ({"startTimeUnixNano": "1_0"}, "startTimeUnixNano: expected an integer"),
        ({"startTimeUnixNano": " 1"}, "startTimeUnixNano: expected an integer"),
        ({"startTimeUnixNano": 1.5}, "startTimeUnixNano: expected an integer"),
        ({"startTimeUnixNano": True}, "startTimeUnixNano: expected an integer"),
        ({"startTimeUnixNano": "1e999999999"}, "startTimeUnixNano: out of range"),
        ({"startTimeUnixNano": 10**4000}, "startTimeUnixNano: out of range"),
        ({"flags": 2**32}, "flags: out of range"),
        ({"droppedEventsCount": "-1"}, "droppedEventsCount: out of range"),
        ({"attributes": [{"value": {"doubleValue": "1e999"}}]}, "doubleValue: out of range"),
        ({"attributes": [{"value": {"doubleValue": "nan"}}]}, "doubleValue: expected a number"),
        ({"attributes": [{"value": {"doubleValue": True}}]}, "doubleValue: expected a number"),
        ({"attributes": [{"value": {"boolValue": "true"}}]}, "boolValue: expected true or false"),
        ({"attributes": [{"value": {"boolValue": 1}}]}, "boolValue: expected true or false"),
        ({"attributes": [{"value": {"bytesValue": "a"}}]}, "bytesValue: expected base64"),
        ({"attributes": [{"value": {"bytesValue": "a b="}}]}, "bytesValue: expected base64"),
        ({"attributes": [{"value": {"bytesValue": 5}}]}, "bytesValue: expected base64"),
        (
            {"attributes": [{"value": {"stringValue": "a", "intValue": 1}}]},
            "intValue: given twice, or beside its alternative",
        ),
        ({"attributes": [{"value": {"kvlistValue": []}}]}, "kvlistValue: expected an object"),
    ],
    ids=str,
)
def test_values_that_their_field_cannot_hold(span: dict[str, Any], message: str) -> None:
    document = {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    with pytest.raises(InvalidJsonError) as info:
        otlp_json.to_protobuf(json.dumps(document).encode(), TRACES, limit=MIB)
    assert message in str(info.value)


def nested(depth: int) -> bytes:
    """An attribute whose value is arrays in arrays."""
    value = b'{"arrayValue":{"values":['
    return (
        b'{"resourceSpans":[{"resource":{"attributes":[{"value":'
        + value * depth
        + b"{}"
        + b"]}}" * depth
        + b"}]}}]}"
    )


def test_messages_nest_as_deep_as_protobuf_reads_them_and_no_deeper() -> None:
    deepest = max(depth for depth in range(1, 60) if _converts(nested(depth)))
    assert convert(nested(deepest)) is not None  # the real class reads it
    with pytest.raises(InvalidJsonError, match="nested more than 100 deep"):
        otlp_json.to_protobuf(nested(deepest + 1), TRACES, limit=MIB)
    # request, ResourceSpans, Resource, KeyValue, then AnyValue and ArrayValue in turns
    assert deepest == (otlp_json.MAX_DEPTH - 5) // 2


def _converts(body: bytes) -> bool:
    try:
        otlp_json.to_protobuf(body, TRACES, limit=MIB)
    except InvalidJsonError:
        return False
    return True


def test_attributes_at_the_limit_of_depth_are_limited_on_the_short_way_too() -> None:
    def document(depth: int) -> bytes:
        pair = b'{"key":"k","value":{"stringValue":"v"}}'
        lists = b'{"key":"k","value":{"kvlistValue":{"values":['
        return (
            b'{"resourceSpans":[{"resource":{"attributes":['
            + lists * depth
            + pair
            + b","
            + pair
            + b"]}}}" * depth
            + b"]}}]}"
        )

    accepted = [depth for depth in range(20, 45) if _converts(document(depth))]
    assert accepted
    assert convert(document(max(accepted))) is not None
    assert accepted == list(range(20, max(accepted) + 1))
    assert max(accepted) < 44


@pytest.mark.parametrize("prefix", [b"", b'{"zz":', b'{"resourceSpans":'])
@pytest.mark.parametrize("bomb", [b"[", b'{"a":', b"[[],", b'{"resource":'])
def test_depth_bombs_are_refused_in_bounded_memory(prefix: bytes, bomb: bytes) -> None:
    body = prefix + bomb * (MIB // 4 // len(bomb))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidJsonError):
            otlp_json.to_protobuf(body, TRACES, limit=4 * MIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(body)


def spans(content: bytes) -> bytes:
    return b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + content + b"]}]}]}"


BOMBS = {
    "empty spans": spans(b"{}," * 60_000 + b"{}"),
    "unknown empty objects": b'{"zz":[' + b"{}," * 60_000 + b"{}]}",
    "unknown strings": b'{"zz":[' + b'"",' * 60_000 + b"0]}",
    "one string": b'{"resourceSpans":[{"schemaUrl":"' + b"x" * MIB + b'"}]}',
    "escapes": b'{"resourceSpans":[{"schemaUrl":"' + b"\\n" * (MIB // 2) + b'"}]}',
    "escapes in wide text": b'{"resourceSpans":[{"schemaUrl":"'
    + (b"x" * 5000 + "\N{GRINNING FACE}".encode() + b"\\n") * (MIB // 5006)
    + b'"}]}',
    "lone surrogates": b'{"resourceSpans":[{"schemaUrl":"' + b"\\ud800" * (MIB // 6) + b'"}]}',
    "white space": b" " * MIB + b"{" + b"\n" * MIB + b"}",
    "long name": b'{"' + b"x" * MIB + b'":0}',
    "long number": b'{"zz":' + b"1" * MIB + b"}",
    "base64": spans(b'{"attributes":[{"value":{"bytesValue":"' + b"A" * MIB + b'"}}]}'),
    "attributes": spans(
        b'{"attributes":[' + b'{"key":"","value":{"intValue":1}},' * 30_000 + b"{}]}"
    ),
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_memory_is_at_most_three_times_the_request_beside_it(body: bytes) -> None:
    tracemalloc.start()
    try:
        otlp_json.to_protobuf(body, TRACES, limit=len(body))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(body) + MIB


def test_numbers_that_grow_are_stopped_at_the_limit() -> None:
    point = {"explicitBounds": [1] * 200_000}
    metric = {"histogram": {"dataPoints": [point]}}
    document = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}
    body = json.dumps(document, separators=(",", ":")).encode()
    tracemalloc.start()
    try:
        with pytest.raises(JsonTooLargeError, match=f"larger than {len(body)} bytes"):
            otlp_json.to_protobuf(body, METRICS, limit=len(body))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(body) + MIB
    assert len(otlp_json.to_protobuf(body, METRICS, limit=2_000_000)) > 1_600_000


@pytest.mark.parametrize("size", [0, 1, 10, 60])
def test_the_limit_holds_to_the_byte(size: int) -> None:
    body = spans(json.dumps({"name": "n" * size}).encode())
    whole = otlp_json.to_protobuf(body, TRACES, limit=MIB)
    assert otlp_json.to_protobuf(body, TRACES, limit=len(whole)) == whole
    with pytest.raises(JsonTooLargeError):
        otlp_json.to_protobuf(body, TRACES, limit=len(whole) - 1)


def test_time_grows_as_the_request_does() -> None:
    # Eight times the size takes eight times as long; anything quadratic would take 64 times.
    def seconds(unit: bytes, count: int) -> float:
        body = b'{"resourceSpans":[{"schemaUrl":"' + unit * count + b'"}], "zz": "\\'
        best = float("inf")
        for _ in range(3):
            start = time.process_time()  # not the time that other processes had
            with pytest.raises(InvalidJsonError):
                otlp_json.to_protobuf(body, TRACES, limit=MIB * 64)
            best = min(best, time.process_time() - start)
        return best

    for unit in (b"\\n", b"\\ud800", b"x", b"\\\\"):
        assert seconds(unit, 400_000) < 30 * seconds(unit, 50_000) + 0.05


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_json_is_refused_or_read_as_json_loads_reads_it(data: st.DataObject) -> None:
    body = bytearray(
        spans(b'{"name":"n\\u00e9","zz":[{},{"a":[1,-2.5e3,null,true]}],"attributes":[]}')
    )
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(body) - 1))
        body[position] = data.draw(st.sampled_from(b'{}[]",:0x\\ -.eE\xff'))
    try:
        otlp_json.to_protobuf(bytes(body), TRACES, limit=MIB)
    except InvalidJsonError:
        return
    document = json.loads(body)  # raises, if ours accepts what is no JSON
    assert isinstance(document, dict)


@settings(deadline=None, max_examples=300)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["resourceSpans", "resource", "attributes", "key", "value", "zz"]),
                inner,
                max_size=3,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_request_or_a_clear_error(document: object) -> None:
    # What is not an InvalidJsonError is a failure: a crash, or bytes that are no request.
    with contextlib.suppress(InvalidJsonError):
        convert(document)


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
def test_answers_parse_as_the_real_response(schema: SignalSchema) -> None:
    answer = response_class(schema)
    assert otlp_json.response(schema) == b"{}"
    for rejected, message in ((0, "note"), (3, "why \u00e9"), (2**40, "")):
        parsed: Any = json_format.Parse(otlp_json.response(schema, rejected, message), answer())
        partial = parsed.partial_success
        assert partial.error_message == message
        assert [value for field, value in partial.ListFields() if field.number == 1] == (
            [rejected] if rejected else []
        )


def test_the_table_is_what_the_descriptors_say() -> None:
    assert generate_json.TARGET.read_text(encoding="utf-8") == generate_json.render()
