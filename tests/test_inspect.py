from __future__ import annotations

import random
import subprocess
import sys

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from proto_stubs import LOGS, METRICS, PROFILES, TRACES, SignalSchema
from relay import inspect, wire
from tests.strategies import (
    SIGNALS,
    damaged_payloads,
    encode_varint,
    payloads,
    request_class,
    unusual_payloads,
    with_signal,
)

CUTTABLE = (TRACES, METRICS, LOGS)

# What no parser takes: text that is not UTF-8, in a field that is text in all of these messages.
BAD_NAME = {"traces": b"\x2a\x01\xff", "metrics": b"\x0a\x01\xff", "logs": b"\x1a\x01\xff"}
BAD_RESOURCE = b"\x0a\x05\x0a\x03\x0a\x01\xff"  # an attribute with such a key
BAD_SCOPE = b"\x0a\x03\x0a\x01\xff"  # such a name
BAD_SCHEMA_URL = b"\x1a\x01\xff"


def field(number: int, value: bytes) -> bytes:
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def parses(payload: bytes, schema: SignalSchema) -> bool:
    try:
        request_class(schema).FromString(payload)
    except DecodeError:
        return False
    return True


@given(with_signal(lambda schema: payloads(schema) | unusual_payloads(schema)))
def test_all_units_of_what_parses_are_well_formed(case: tuple[SignalSchema, bytes]) -> None:
    schema, payload = case
    units, _ = wire.count(payload, schema)
    assert inspect.well_formed(payload, schema) == [True] * units


@given(with_signal(damaged_payloads))
def test_without_the_malformed_units_the_rest_parses(case: tuple[SignalSchema, bytes]) -> None:
    schema, payload = case
    try:
        units, _ = wire.count(payload, schema)
    except wire.MalformedError:
        with pytest.raises(wire.MalformedError):
            inspect.well_formed(payload, schema)
        return
    flags = inspect.well_formed(payload, schema)
    assert len(flags) == units
    rest = wire.keep(payload, schema, flags)
    # keep() may return the payload as it is, with a damaged entry that has no units.
    assert parses(rest.payload, schema) or (all(flags) and not parses(payload, schema))
    if parses(payload, schema):
        assert all(flags)
    for number, flag in enumerate(flags):
        alone = wire.keep(payload, schema, [other == number for other in range(units)])
        if not flag:
            assert not parses(alone.payload, schema)


@given(st.sampled_from(CUTTABLE), st.data())
def test_bad_units_are_found_among_good_ones(schema: SignalSchema, data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=1, max_size=12))
    rng = random.Random(data.draw(st.integers(0, 99)))
    resources: list[bytes] = []
    left = [field(schema.units, b"" if flag else BAD_NAME[schema.name]) for flag in flags]
    while left:
        n = rng.randint(1, len(left))
        resources.append(field(schema.resources, field(schema.scopes, b"".join(left[:n]))))
        left = left[n:]
    payload = b"".join(resources)
    assert inspect.well_formed(payload, schema) == flags
    assert parses(payload, schema) == all(flags)


@pytest.mark.parametrize("schema", CUTTABLE, ids=lambda schema: schema.name)
def test_a_bad_header_condemns_its_own_units_only(schema: SignalSchema) -> None:
    unit, bad = field(2, b""), field(2, BAD_NAME[schema.name])
    payload = b"".join(
        field(1, resource)
        for resource in (
            field(2, unit + bad),
            BAD_RESOURCE + field(2, unit + unit),
            field(2, unit) + BAD_SCHEMA_URL,
            field(2, BAD_SCOPE + unit) + field(2, unit),
            field(2, unit) + field(2, unit + BAD_SCHEMA_URL),
            BAD_RESOURCE,
            field(2, unit),
        )
    )
    assert inspect.well_formed(payload, schema) == [
        *(True, False),
        *(False, False),
        *(False,),
        *(False, True),
        *(True, False),
        *(True,),
    ]


def test_nesting_counts_from_the_request() -> None:
    def span(depth: int) -> bytes:
        """A span with an attribute whose value is ``depth`` arrays in each other."""
        value = b""
        for _ in range(depth):
            value = field(5, field(1, value))
        return field(9, field(1, b"k") + field(2, value))

    outcomes = []
    for depth in range(40, 60):
        payload = field(1, field(2, field(2, span(depth)) + field(2, b"")))
        assert inspect.well_formed(payload, TRACES) == [parses(payload, TRACES), True]
        outcomes.append(parses(payload, TRACES))
    assert set(outcomes) == {True, False}


def test_profiles_are_judged_as_one() -> None:
    profile = field(1, field(2, field(2, b"") * 3))
    assert inspect.well_formed(profile, PROFILES) == [True]
    bad_dictionary = field(2, field(5, b"\xff"))
    assert inspect.well_formed(profile + bad_dictionary, PROFILES) == [False]
    assert inspect.well_formed(bad_dictionary, PROFILES) == []


@pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)
def test_the_message_classes_are_loaded_on_first_use(schema: SignalSchema) -> None:
    code = (
        "import sys; from relay import inspect, otlp\n"
        "assert 'google.protobuf' not in sys.modules\n"
        f"inspect.well_formed(b'', otlp.{schema.name.upper()})\n"
        "assert 'google.protobuf' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
