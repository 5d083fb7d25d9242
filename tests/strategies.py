"""Hypothesis strategies of OTLP export requests, for every signal, and the oracles they need.

The shape of a request (how many resources, scopes, units) is drawn by Hypothesis, so that it
shrinks; what the messages hold is filled in from a drawn seed, from descriptors, so that it is fast
and no field of any message is forgotten.
"""

from __future__ import annotations

import importlib
import math
import random
import string
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from proto_stubs import LOGS, METRICS, PROFILES, TRACES, SignalSchema

SIGNALS = (TRACES, METRICS, LOGS, PROFILES)

_INTS = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_FLOATS = (0.0, -0.0, 1.5, -1e300, 5e-324, math.inf, -math.inf, math.nan)
_TEXTS = ("", "/health", "service.name", "naïve", "日本", "\x00", "🎈 \u2028", "x" * 130)
_ID_BYTES = {"trace_id": 16, "span_id": 8, "parent_span_id": 8, "profile_id": 16}


# Message classes.


def _class(schema: SignalSchema, full_name: str) -> type[Message]:
    module = importlib.import_module(schema.module)
    found: type[Message] = getattr(module, full_name.rsplit(".", 1)[1])
    return found


def request_class(schema: SignalSchema) -> type[Message]:
    """The message class of the signal's Export request."""
    return _class(schema, schema.request)


def response_class(schema: SignalSchema) -> type[Message]:
    """The message class of the signal's Export response."""
    return _class(schema, schema.response)


def members(message: Message, number: int) -> Any:
    """The field of ``message`` that has this number."""
    return getattr(message, message.DESCRIPTOR.fields_by_number[number].name)


# Contents.


def _int(rng: random.Random, low: int, high: int) -> int:
    edges = (0, 1, -1, 127, 128, 300, low, high)
    value = rng.choice(edges) if rng.random() < 0.7 else rng.randint(low, high)
    return min(max(value, low), high)


def _text(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(_TEXTS)
    return "".join(rng.choices(string.printable, k=rng.randrange(20)))


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.type in _INTS:
        return _int(rng, *_INTS[field.type])
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text(rng)
    if field.type == FieldDescriptor.TYPE_BYTES:
        # Mostly ids of the right length; other lengths are a receiver's problem, not a parser's.
        size = _ID_BYTES.get(field.name, 12) if rng.random() < 0.9 else rng.randrange(20)
        return rng.randbytes(size)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return rng.random() < 0.5
    if field.enum_type is not None:
        return rng.choice(field.enum_type.values).number
    return rng.choice(_FLOATS) if rng.random() < 0.5 else rng.gauss(0, 1000)


def fill(message: Any, rng: random.Random, depth: int = 4, skip: tuple[str, ...] = ()) -> None:
    """Set a random choice of the fields of ``message``, at most ``depth`` messages deep."""
    descriptor: Descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        if field.name in skip or rng.random() < 0.3:
            continue
        n = rng.randrange(3) if field.is_repeated else 1
        if field.message_type is not None:
            if depth <= 0:
                continue
            for _ in range(n):
                target = getattr(message, field.name)
                child = target.add() if field.is_repeated else target
                if not field.is_repeated:
                    child.SetInParent()
                fill(child, rng, depth - 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(_scalar(field, rng) for _ in range(n))
        else:
            setattr(message, field.name, _scalar(field, rng))


# Requests.


@st.composite
def requests(
    draw: st.DrawFn,
    schema: SignalSchema,
    *,
    max_resources: int = 3,
    max_scopes: int = 3,
    max_units: int = 4,
) -> Any:
    """Export requests of a signal, as messages. Any entry may be empty."""
    shape = draw(
        st.lists(st.lists(st.integers(0, max_units), max_size=max_scopes), max_size=max_resources)
    )
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    message = request_class(schema)()
    names = message.DESCRIPTOR.fields_by_number
    fill(message, rng, skip=(names[schema.resources].name,))
    for scopes in shape:
        resource = members(message, schema.resources).add()
        scopes_name = resource.DESCRIPTOR.fields_by_number[schema.scopes].name
        fill(resource, rng, depth=3, skip=(scopes_name,))
        for units in scopes:
            scope = members(resource, schema.scopes).add()
            units_name = scope.DESCRIPTOR.fields_by_number[schema.units].name
            fill(scope, rng, depth=3, skip=(units_name,))
            for _ in range(units):
                fill(members(scope, schema.units).add(), rng)
    return message


def payloads(schema: SignalSchema, **limits: int) -> st.SearchStrategy[bytes]:
    """Export requests of a signal as SDKs serialize them."""
    return requests(schema, **limits).map(lambda message: bytes(message.SerializeToString()))


def with_signal(
    strategy: Callable[[SignalSchema], st.SearchStrategy[bytes]],
) -> st.SearchStrategy[tuple[SignalSchema, bytes]]:
    """Pairs of any signal and a payload of it."""
    return st.sampled_from(SIGNALS).flatmap(
        lambda schema: st.tuples(st.just(schema), strategy(schema))
    )


# Well-formed bytes that no SDK writes.


def encode_varint(value: int, spare: int = 0) -> bytes:
    """A varint, ``spare`` bytes longer than it need be."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(spare):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def _long(rng: random.Random, value: int, limit: int) -> bytes:
    short = encode_varint(value)
    spare = rng.randint(0, limit - len(short)) if rng.random() < 0.2 else 0
    return encode_varint(value, spare)


def unknown_field(rng: random.Random, numbers: range = range(50, 3000), depth: int = 3) -> bytes:
    """A field that no message of OTLP has, of any wire type, groups included."""
    number = rng.choice(numbers)
    wire = rng.choice((0, 1, 2, 3, 5) if depth else (0, 1, 2, 5))
    tag = _long(rng, number << 3 | wire, 5)
    if wire == 0:
        return tag + _long(rng, rng.choice((0, 1, 300, 2**64 - 1)), 10)
    if wire == 1:
        return tag + rng.randbytes(8)
    if wire == 5:
        return tag + rng.randbytes(4)
    if wire == 2:
        value = rng.randbytes(rng.choice((0, 1, 3, 127, 128, 200)))
        return tag + _long(rng, len(value), 5) + value
    inside = b"".join(unknown_field(rng, range(1, 60), depth - 1) for _ in range(rng.randrange(4)))
    return tag + inside + _long(rng, number << 3 | 4, 5)


def _split_fields(buf: bytes) -> list[tuple[int, bytes, bytes]]:
    """The fields of a message as SDKs write it: (tag, the bytes of the value, all bytes)."""
    out = []
    pos = 0

    def varint() -> int:
        nonlocal pos
        value = shift = 0
        while True:
            byte = buf[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while pos < len(buf):
        at = pos
        tag = varint()
        if tag & 7 == 2:
            size = varint()
            value = buf[pos : pos + size]
            pos += size
        else:
            value = b""
            if tag & 7 == 0:
                varint()
            else:
                pos += 8 if tag & 7 == 1 else 4
        out.append((tag, value, buf[at:pos]))
    return out


def disguise(buf: bytes, descriptor: Descriptor, rng: random.Random) -> bytes:
    """The message in unusual bytes: unknown fields, overlong varints, fields in another order.

    Singular messages come in several parts, and known field numbers with unexpected wire types.
    What the message says may change (order of repeated fields, last of a oneof); it is well-formed.
    """
    out: list[bytes] = []
    for tag, value, whole in _split_fields(buf):
        field = descriptor.fields_by_number[tag >> 3]
        if tag & 7 != 2:
            out.append(whole)
            continue
        parts = [value]
        if field.message_type is not None:
            parts = [disguise(value, field.message_type, rng)]
            if not field.is_repeated and rng.random() < 0.2:
                parts.append(b"")
        out += [_long(rng, tag, 5) + _long(rng, len(part), 5) + part for part in parts]
    if rng.random() < 0.3:
        rng.shuffle(out)
    for _ in range(rng.choice((0, 0, 1, 2))):
        out.insert(rng.randint(0, len(out)), unknown_field(rng))
    if rng.random() < 0.1:
        number = rng.choice(descriptor.fields).number
        out.insert(
            rng.randint(0, len(out)),
            encode_varint(number << 3 | 3) + encode_varint(number << 3 | 4),
        )
    return b"".join(out)


@st.composite
def unusual_payloads(draw: st.DrawFn, schema: SignalSchema) -> bytes:
    """Well-formed export requests in bytes that no SDK writes, see :func:`disguise`."""
    message = draw(requests(schema))
    rng = random.Random(draw(st.integers(0, 2**32 - 1)))
    return disguise(message.SerializeToString(), message.DESCRIPTOR, rng)


@st.composite
def damaged_payloads(draw: st.DrawFn, schema: SignalSchema) -> bytes:
    """Export requests with bytes changed, removed or inserted; some are still well-formed."""
    buf = bytearray(draw(payloads(schema) | unusual_payloads(schema)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(buf)))
        kind = draw(st.sampled_from(("set", "flip", "insert", "delete", "truncate")))
        if kind == "insert":
            buf[at:at] = draw(st.binary(min_size=1, max_size=6))
        elif kind == "delete":
            del buf[at : at + draw(st.integers(1, 4))]
        elif kind == "truncate":
            del buf[at:]
        elif at < len(buf):
            buf[at] = (
                draw(st.integers(0, 255))
                if kind == "set"
                else buf[at] ^ 1 << draw(st.integers(0, 7))
            )
    return bytes(buf)
