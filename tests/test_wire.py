"""relay.wire held against the protobuf message classes.

Two oracles, both parsed by the protobuf library: the real messages, and a skeleton of each signal's
request that knows the structure down to the items and takes everything else for unknown fields.
The skeleton accepts exactly what count() is to accept, and gives back every byte of the rest.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import example, given
from hypothesis import strategies as st

from proto_stubs import LOGS, METRICS, PROFILES, TRACES, SignalSchema
from relay import wire
from tests.strategies import (
    SIGNALS,
    damaged_payloads,
    encode_varint,
    members,
    payloads,
    request_class,
    unusual_payloads,
    with_signal,
)

CUTTABLE = (TRACES, METRICS, LOGS)
ids = pytest.mark.parametrize("schema", SIGNALS, ids=lambda schema: schema.name)

any_payload = with_signal(lambda schema: payloads(schema) | unusual_payloads(schema))
damaged = with_signal(damaged_payloads)
cuttable = any_payload.filter(lambda pair: not pair[0].whole)


# The skeleton.


def _skeletons() -> dict[tuple[str, bool], Any]:
    """Message classes by (signal, whether metrics are parsed down to their data points)."""
    pool = DescriptorPool()
    types = FieldDescriptorProto
    for schema in SIGNALS:
        for deep in (False, True):
            file = FileDescriptorProto(name=f"{schema.name}{deep}", syntax="proto2")
            file.package = f"skeleton.{schema.name}{deep}"

            def message(
                file: FileDescriptorProto, name: str, fields: list[tuple[int, str]], oneof: bool
            ) -> None:
                made = file.message_type.add(name=name)
                if oneof:
                    made.oneof_decl.add(name="data")
                for number, of in fields:
                    field = made.field.add(name=f"f{number}", number=number)
                    field.label = types.LABEL_OPTIONAL if oneof else types.LABEL_REPEATED
                    field.type = types.TYPE_MESSAGE if of else types.TYPE_BYTES
                    if of:
                        field.type_name = f".{file.package}.{of}"
                    if oneof:
                        field.oneof_index = 0

            deepest = "Unit" if deep and schema.data else ""
            message(file, "Request", [(schema.resources, "Resource")], False)
            message(file, "Resource", [(schema.scopes, "Scope")], False)
            message(file, "Scope", [(schema.units, deepest)], False)
            if deepest:
                message(file, "Unit", [(number, "Data") for number in schema.data], True)
                message(file, "Data", [(schema.data_points, "")], False)
            pool.Add(file)
    return {
        (schema.name, deep): GetMessageClass(
            pool.FindMessageTypeByName(f"skeleton.{schema.name}{deep}.Request")
        )
        for schema in SIGNALS
        for deep in (False, True)
    }


_SKELETON = _skeletons()


def skeleton_count(payload: bytes, schema: SignalSchema) -> tuple[int, int]:
    """What count() is to say. Raises DecodeError where it is to raise MalformedError."""
    request = _SKELETON[schema.name, True].FromString(payload)
    units = [
        unit
        for resource in members(request, schema.resources)
        for scope in members(resource, schema.scopes)
        for unit in members(scope, schema.units)
    ]
    if schema.whole:
        return int(bool(units)), len(units)
    if not schema.data:
        return len(units), len(units)
    chosen = [(unit, unit.WhichOneof("data")) for unit in units]
    return len(units), sum(
        len(members(getattr(unit, name), schema.data_points)) for unit, name in chosen if name
    )


class Placed(NamedTuple):
    """A unit and all that a collector sees around it, as bytes."""

    request: bytes
    resource: bytes
    scope: bytes
    unit: bytes


def placed(payload: bytes, schema: SignalSchema) -> list[Placed]:
    """Every unit of a request with the other fields of its request, resource and scope."""
    request = _SKELETON[schema.name, False].FromString(payload)
    found: list[tuple[bytes, bytes, bytes]] = []
    for resource in members(request, schema.resources):
        scopes = list(members(resource, schema.scopes))
        inside = [(others(scope, schema.units), members(scope, schema.units)) for scope in scopes]
        header = others(resource, schema.scopes)
        found += [(header, scope, unit) for scope, units in inside for unit in units]
    around = others(request, schema.resources)
    return [Placed(around, *one) for one in found]


def others(message: Any, number: int) -> bytes:
    """The bytes of all fields but one; the skeleton knows no other, so they stay as they came."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.ClearField(f"f{number}")
    return bytes(copy.SerializeToString())


def real_count(payload: bytes, schema: SignalSchema) -> tuple[int, int]:
    """Units and items by the real message classes."""
    request = request_class(schema).FromString(payload)
    units = [
        unit
        for resource in members(request, schema.resources)
        for scope in members(resource, schema.scopes)
        for unit in members(scope, schema.units)
    ]
    if schema.whole:
        return int(bool(units)), len(units)
    if not schema.data:
        return len(units), len(units)
    return len(units), sum(
        len(getattr(unit, unit.WhichOneof("data")).data_points)
        for unit in units
        if unit.WhichOneof("data")
    )


def weights(payload: bytes, schema: SignalSchema) -> list[int]:
    """Items of each unit."""
    if not schema.data:
        return [1] * len(placed(payload, schema))
    request = request_class(schema)()
    resource = members(request, schema.resources).add()
    unit_class = GetMessageClass(
        members(members(resource, schema.scopes).add(), schema.units).add().DESCRIPTOR
    )
    out = []
    for one in placed(payload, schema):
        unit: Any = unit_class.FromString(one.unit)
        name = unit.WhichOneof("data")
        out.append(len(getattr(unit, name).data_points) if name else 0)
    return out


def field(number: int, value: bytes) -> bytes:
    return encode_varint(number << 3 | 2) + encode_varint(len(value)) + value


def request_of(schema: SignalSchema, *units: bytes) -> bytes:
    """One resource, one scope."""
    scope = b"".join(field(schema.units, unit) for unit in units)
    return field(schema.resources, field(schema.scopes, scope))


def check_slice(piece: wire.Slice, schema: SignalSchema, expected: list[Placed]) -> None:
    assert placed(piece.payload, schema) == expected
    assert (piece.units, piece.items) == wire.count(piece.payload, schema)
    if not expected:
        assert piece == wire.Slice(b"", 0, 0)


# Counting.


def check_count(payload: bytes, schema: SignalSchema) -> bool:
    """That count() agrees with the skeleton. Whether they accept the payload."""
    try:
        expected = skeleton_count(payload, schema)
    except DecodeError:
        with pytest.raises(wire.MalformedError, match=r"byte \d"):
            wire.count(payload, schema)
        return False
    assert wire.count(payload, schema) == expected
    return True


@given(any_payload)
def test_count_is_what_the_message_classes_say(case: tuple[SignalSchema, bytes]) -> None:
    schema, payload = case
    assert wire.count(payload, schema) == real_count(payload, schema)


@given(damaged)
def test_count_accepts_exactly_what_is_well_formed_down_to_the_items(
    case: tuple[SignalSchema, bytes],
) -> None:
    schema, payload = case
    check_count(payload, schema)


@given(damaged)
def test_whatever_the_message_classes_parse_is_accepted_with_equal_numbers(
    case: tuple[SignalSchema, bytes],
) -> None:
    schema, payload = case
    try:
        expected = real_count(payload, schema)
    except DecodeError:
        return
    assert wire.count(payload, schema) == expected


@given(with_signal(lambda schema: payloads(schema, max_units=2) | unusual_payloads(schema)))
def test_truncated_at_every_byte(case: tuple[SignalSchema, bytes]) -> None:
    schema, payload = case
    for size in range(min(len(payload), 400)):
        check_count(payload[:size], schema)


@ids
@given(payload=st.binary(max_size=40))
@example(payload=b"")
@example(payload=b"\x0a\x00")
@example(payload=b"\x0a\x02\x12\x00")
@example(payload=b"\x0a\x03\x12\x01")
def test_any_bytes(schema: SignalSchema, payload: bytes) -> None:
    check_count(payload, schema)


@ids
@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(b"\x00\x00", id="field number 0"),
        pytest.param(b"\x02\x00", id="field number 0 with a length"),
        pytest.param(b"\x0e", id="wire type 6"),
        pytest.param(b"\x0f", id="wire type 7"),
        pytest.param(b"\x0c", id="end of a group that never began"),
        pytest.param(b"\x0b", id="group without end"),
        pytest.param(b"\x0b\x14", id="group with the end of another"),
        pytest.param(b"\x0b\x00\x05\x0c", id="group with field number 0"),
        pytest.param(b"\x0b\x02\x01\xff\x0c", id="group with field number 0 and a length"),
        pytest.param(b"\x0b\x03\x04\x0c", id="group with a group of number 0"),
        pytest.param(b"\x0b\x04\x0c", id="group with the end of a group of number 0"),
        pytest.param(b"\x0b\xf8\xff\xff\xff\x1f\x00\x0c", id="group with too high a number"),
        pytest.param(b"\x0b\x80\x80\x80\x80\x80\x00\x0c", id="group with a tag of six bytes"),
        pytest.param(b"\x0b\x0e\x0c", id="group with wire type 6"),
        pytest.param(b"\x0b\x8c\x00", id="group with an end of two bytes"),
        pytest.param(b"\xfb\xff\xff\xff\x0f\xfc\xff\xff\xff\x0f", id="highest field number"),
        pytest.param(b"\xfb\xff\xff\xff\x1f\xfc\xff\xff\xff\x1f", id="field number too high"),
        pytest.param(b"\x8a\x80\x80\x80\x00\x00", id="tag of five bytes"),
        pytest.param(b"\x8a\x80\x80\x80\x80\x00\x00", id="tag of six bytes"),
        pytest.param(b"\x0a\x80\x80\x80\x80\x00", id="length of five bytes"),
        pytest.param(b"\x0a\x80\x80\x80\x80\x80\x00", id="length of six bytes"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0f", id="length of 4 GiB"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x07", id="length of 2 GiB"),
        pytest.param(b"\x08" + b"\xff" * 9 + b"\x01", id="varint of ten bytes"),
        pytest.param(b"\x08" + b"\xff" * 9 + b"\x7f", id="varint of ten bytes and 70 bits"),
        pytest.param(b"\x08" + b"\xff" * 10 + b"\x01", id="varint of eleven bytes"),
        pytest.param(b"\x08\x80", id="truncated varint"),
        pytest.param(b"\x08", id="tag alone"),
        pytest.param(b"\x09\x00\x00\x00\x00\x00\x00\x00\x00", id="64 bits where a message is due"),
        pytest.param(b"\x09\x00\x00\x00\x00\x00\x00\x00", id="64 bits but for one byte"),
        pytest.param(b"\x0d\x00\x00\x00\x00", id="32 bits where a message is due"),
        pytest.param(b"\x0d\x00\x00\x00", id="32 bits but for one byte"),
        pytest.param(b"\x10\x01", id="a varint where units are due"),
        pytest.param(b"\x13\x0a\x01\x00\x14", id="a group where units are due"),
        pytest.param(b"\x92\x00\x00", id="an empty unit with a tag of two bytes"),
        pytest.param(b"\x12\x00", id="an empty unit"),
        pytest.param(b"\x12\x7f", id="a unit that is not there"),
        pytest.param(b"\x12\xff\x7f", id="a longer unit that is not there"),
    ],
)
def test_peculiar_fields_at_every_level(schema: SignalSchema, noise: bytes) -> None:
    for behind in (b"", b"\x0a\x00", field(9, b"x" * 130)):
        for path in ((), (1,), (1, 2), (1, 2, 2), (1, 2, 2, 5)):
            payload = noise + behind
            for number in reversed(path):
                payload = field(number, payload)
            check_count(payload, schema)


def _nested_groups(depth: int) -> bytes:
    return b"\x1b" * depth + b"\x1c" * depth


@ids
def test_groups_may_nest_as_deep_as_in_the_message_classes(schema: SignalSchema) -> None:
    paths: list[tuple[int, ...]] = [(), (1,), (1, 2)]
    if schema.data:
        paths += [(1, 2, 2), (1, 2, 2, 5)]
    for path in paths:
        for depth in (1, 90, 95, 96, 97, 98, 99, 100, 101, 5000):
            payload = _nested_groups(depth)
            for number in reversed(path):
                payload = field(number, payload)
            accepted = check_count(payload, schema)
            assert accepted == (depth <= 100 - len(path))


def test_of_several_members_of_a_oneof_the_last_counts_and_repeats_merge() -> None:
    point = field(1, b"")
    gauge, sum_ = field(5, point), field(7, point)
    for metric, points in (
        (gauge + gauge, 2),
        (gauge + sum_, 1),
        (gauge + gauge + sum_ + gauge, 1),
        (gauge + field(7, b""), 0),
        (b"", 0),
        (field(5, point * 3) + b"\x2d\x00\x00\x00\x00", 3),  # field 5, but not a message
    ):
        payload = request_of(METRICS, metric)
        assert wire.count(payload, METRICS) == (1, points) == real_count(payload, METRICS)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 16382, 16383, 16384, 16385, 3_000_000])
def test_units_of_every_length_of_length(size: int) -> None:
    payload = request_of(TRACES, b"", field(999, b"x" * size), b"")
    assert wire.count(payload, TRACES) == (3, 3) == real_count(payload, TRACES)


def test_profiles_are_one_unit_and_a_dictionary_alone_is_none() -> None:
    assert wire.count(request_of(PROFILES, b"", b""), PROFILES) == (1, 2)
    assert wire.count(field(2, b""), PROFILES) == (0, 0)


# Cutting.


@given(cuttable)
def test_cut_at_every_unit_and_rejoined(case: tuple[SignalSchema, bytes]) -> None:
    schema, payload = case
    all_units = placed(payload, schema)
    total = wire.count(payload, schema)
    for units in range(len(all_units) + 2):
        for known in (None, total):
            head, rest = wire.first(payload, schema, units, total=known)
            check_slice(head, schema, all_units[:units])
            check_slice(rest, schema, all_units[units:])
            # Two requests one behind the other are one request: that is how batches are joined.
            assert wire.count(head.payload + rest.payload, schema) == total
            if units < len(all_units):
                assert len(head.payload) <= len(payload)
            else:
                assert head.payload == (payload if all_units else b"")


@given(cuttable, st.integers(0, 12), st.integers(0, 3000), st.booleans())
def test_the_head_is_the_longest_that_fits(
    case: tuple[SignalSchema, bytes], items: int, size: int, known: bool
) -> None:
    schema, payload = case
    all_units = placed(payload, schema)
    total = wire.count(payload, schema)
    head, rest = wire.head(payload, schema, items=items, size=size, total=total if known else None)
    check_slice(head, schema, all_units[: head.units])
    check_slice(rest, schema, all_units[head.units :])
    assert head.items <= items
    assert len(head.payload) <= size
    if rest.units:
        longer, _ = wire.first(payload, schema, head.units + 1)
        assert longer.items > items or len(longer.payload) > size
    elif total[1] <= items and len(payload) <= size and total[0]:
        assert head.payload is payload


@given(cuttable, st.integers(0, 12), st.integers(0, 3000), st.booleans())
def test_the_tail_drops_as_few_as_must_go(
    case: tuple[SignalSchema, bytes], items: int, size: int, known: bool
) -> None:
    schema, payload = case
    all_units = placed(payload, schema)
    total = wire.count(payload, schema)
    tail = wire.tail(payload, schema, items=items, size=size, total=total if known else None)
    gone = len(all_units) - tail.units
    check_slice(tail, schema, all_units[gone:])
    assert tail.items <= items
    assert len(tail.payload) <= size
    if gone:
        _, longer = wire.first(payload, schema, gone - 1)
        assert longer.items > items or len(longer.payload) > size


@pytest.mark.parametrize("units", [1, 20])
@pytest.mark.parametrize("pad", [0, 1, 118, 125, 126, 127, 16250, 16380])
def test_byte_limits_are_exact_where_lengths_grow(units: int, pad: int) -> None:
    """Every limit from nothing to everything, over the sizes at which a length gets a byte."""
    unit = field(5, b"x" * 10)
    scope = field(1, b"s" * pad) + field(2, unit) * units + field(3, b"u" * 5)
    resource = field(1, b"r" * 3) + field(2, scope) + field(3, b"v")
    payload = field(1, resource) + field(1, field(2, field(2, unit) * 3)) + field(99, b"z")
    total = units + 3
    heads = [len(wire.first(payload, TRACES, n)[0].payload) for n in range(total + 1)]
    rests = [len(wire.first(payload, TRACES, n)[1].payload) for n in range(total + 1)]
    assert heads == sorted(heads)
    assert rests == sorted(rests, reverse=True)
    for limit in {*heads, *rests, *(n - 1 for n in heads + rests), *(n + 1 for n in heads + rests)}:
        head, _ = wire.head(payload, TRACES, items=total, size=limit)
        assert head.units == max((n for n, size in enumerate(heads) if size <= limit), default=0)
        tail = wire.tail(payload, TRACES, items=total, size=limit)
        fit = [n for n, size in enumerate(rests) if size <= limit]
        assert tail.units == total - min(fit, default=total)


@given(cuttable, st.data())
def test_keep_any_units(case: tuple[SignalSchema, bytes], data: st.DataObject) -> None:
    schema, payload = case
    all_units = placed(payload, schema)
    size = len(all_units)
    wanted = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    piece = wire.keep(payload, schema, wanted)
    check_slice(piece, schema, [unit for unit, flag in zip(all_units, wanted, strict=True) if flag])
    if wanted and all(wanted):
        assert piece.payload is payload


@ids
def test_keep_wants_one_flag_for_each_unit(schema: SignalSchema) -> None:
    payload = request_of(schema, b"", b"", b"")
    units, items = wire.count(payload, schema)
    assert wire.keep(payload, schema, [True] * units) == (payload, units, items)
    assert wire.keep(payload, schema, [False] * units) == (b"", 0, 0)
    for flags in ([], [True] * (units + 1), [False] * (units + 1)):
        with pytest.raises(ValueError, match=f"{len(flags)} flags for {units} units"):
            wire.keep(payload, schema, flags)


@given(payloads(PROFILES) | unusual_payloads(PROFILES), st.integers(0, 9), st.integers(0, 900))
def test_profiles_are_kept_whole_or_not_at_all(payload: bytes, items: int, size: int) -> None:
    units, found = wire.count(payload, PROFILES)
    fits = bool(units) and found <= items and len(payload) <= size
    whole, nothing = wire.Slice(payload, units, found), wire.Slice(b"", 0, 0)
    expected = (whole, nothing) if fits else (nothing, whole if units else nothing)
    assert wire.head(payload, PROFILES, items=items, size=size) == expected
    assert wire.tail(payload, PROFILES, items=items, size=size) == expected[0]
    assert wire.first(payload, PROFILES, 0) == (nothing, whole if units else nothing)
    assert wire.first(payload, PROFILES, 1) == (whole if units else nothing, nothing)


def test_metrics_without_data_points_weigh_nothing_and_are_still_units() -> None:
    two = field(5, field(1, b"") * 2)
    payload = request_of(METRICS, b"", two, b"", b"", two, b"")
    head, rest = wire.head(payload, METRICS, items=2, size=10**6)
    assert (head.units, head.items, rest.units, rest.items) == (4, 2, 2, 2)
    tail = wire.tail(payload, METRICS, items=2, size=10**6)
    assert (tail.units, tail.items) == (4, 2)
    assert wire.tail(payload, METRICS, items=0, size=10**6)[1:] == (1, 0)


@given(damaged, st.integers(0, 9), st.integers(0, 999))
def test_damaged_payloads_raise_one_error_or_nothing(
    case: tuple[SignalSchema, bytes], items: int, size: int
) -> None:
    """Cutting is for payloads that count() accepted. Given others it must not fail otherwise."""
    schema, payload = case
    total = (5, 5)
    for call in (
        lambda: wire.head(payload, schema, items=items, size=size, total=total),
        lambda: wire.tail(payload, schema, items=items, size=size, total=total),
        lambda: wire.first(payload, schema, items, total=total),
        lambda: wire.index(payload, schema),
        lambda: wire.map_resources(payload, schema, lambda old: old + b"\x0a\x00"),
        lambda: list(wire.fields(payload, 0, len(payload))),
    ):
        with contextlib.suppress(wire.MalformedError):
            call()
    # Any number of units may be found, so a wrong number of flags may be an error, too.
    with contextlib.suppress(ValueError):
        wire.keep(payload, schema, [True, False, True])


# For processors.


@given(any_payload)
def test_the_index_points_at_every_unit_and_resource(case: tuple[SignalSchema, bytes]) -> None:
    schema, payload = case
    units, resources, scopes = wire.index(payload, schema)
    assert [payload[start:end] for _, _, start, end in units] == [
        one.unit for one in placed(payload, schema)
    ]
    request: Any = request_class(schema).FromString(payload)
    entries = members(request, schema.resources)
    assert len(resources) == len(entries)
    for entry, ranges in zip(entries, resources, strict=True):
        expected = members(entry, schema.resource)
        assert type(expected).FromString(wire.merged(payload, ranges)) == expected
        assert bool(ranges) == entry.HasField("resource")
    numbered = [
        (number, scope)
        for number, entry in enumerate(entries)
        for scope in members(entry, schema.scopes)
    ]
    assert [(resource, scope) for resource, scope, _, _ in units] == [
        (resource, number)
        for number, (resource, scope) in enumerate(numbered)
        for _ in members(scope, schema.units)
    ]
    assert scopes == len(numbered)


@given(any_payload, st.integers(0, 7))
def test_resources_are_replaced_and_nothing_else(
    case: tuple[SignalSchema, bytes], mask: int
) -> None:
    schema, payload = case
    request: Any = request_class(schema).FromString(payload)
    entries = members(request, schema.resources)
    seen: list[bytes] = []
    extra = field(1, field(1, b"key") + field(2, field(1, b"value")))

    def change(old: bytes) -> bytes | None:
        seen.append(old)
        return old + extra if mask >> (len(seen) - 1) & 1 else None

    changed: Any = request_class(schema).FromString(wire.map_resources(payload, schema, change))
    assert len(seen) == len(entries)
    for number, (entry, old) in enumerate(zip(entries, seen, strict=True)):
        resource = members(entry, schema.resource)
        assert type(resource).FromString(old) == resource
        if mask >> number & 1:
            attribute = resource.attributes.add(key="key")
            attribute.value.string_value = "value"
    assert changed == request


@given(any_payload)
def test_resources_left_alone_leave_the_payload_alone(case: tuple[SignalSchema, bytes]) -> None:
    schema, payload = case
    assert wire.map_resources(payload, schema, lambda _: None) is payload
    assert wire.map_resources(payload, schema, lambda old: old) is payload


def test_a_missing_resource_is_given_as_empty_and_can_be_added() -> None:
    payload = request_of(TRACES, b"")
    assert wire.map_resources(payload, TRACES, lambda old: old + b"\x10\x01") == field(
        1, field(1, b"\x10\x01") + field(2, field(2, b""))
    )


def test_fields_of_every_wire_type() -> None:
    message = (
        b"\x08\x96\x01"
        b"\x11\x01\x02\x03\x04\x05\x06\x07\x08"
        b"\x1a\x02hi"
        b"\x23\x08\x01\x24"
        b"\x2d\x01\x02\x03\x04"
        b"\x08" + b"\xff" * 9 + b"\x01"
    )
    buf = b"__" + message + b"__"
    found = [
        (number, kind, buf[start:end], value)
        for number, kind, start, end, value in wire.fields(buf, 2, len(buf) - 2)
    ]
    assert found == [
        (1, wire.VARINT, b"\x96\x01", 150),
        (2, wire.I64, b"\x01\x02\x03\x04\x05\x06\x07\x08", 0),
        (3, wire.LEN, b"hi", 0),
        (4, wire.SGROUP, b"\x08\x01\x24", 0),
        (5, wire.I32, b"\x01\x02\x03\x04", 0),
        (1, wire.VARINT, b"\xff" * 9 + b"\x01", 2**64 - 1),
    ]
    with pytest.raises(wire.MalformedError, match="truncated varint at byte 28"):
        list(wire.fields(buf, 2, len(buf) - 3))
    with pytest.raises(wire.MalformedError, match="longer than the message that ends at byte 17"):
        list(wire.fields(buf, 2, 17))


@given(st.integers(0, 2**64 - 1))
def test_varints_are_as_short_as_can_be(value: int) -> None:
    assert wire.varint(value) == encode_varint(value)
    buf = b"\x08" + wire.varint(value)
    assert list(wire.fields(buf, 0, len(buf))) == [(1, wire.VARINT, 1, len(buf), value)]
