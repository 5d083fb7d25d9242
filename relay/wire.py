"""OTLP export requests as bytes: count what is in them, cut them, leave units out.

Nothing here decodes an item. A request is walked field by field, from length to length, down to the
units (:class:`proto_stubs.SignalSchema` says where they stand) and for metrics to the data points;
what lies between is copied as it is. So whatever the relay does not know (unknown fields, later
versions of the protocol) passes through unchanged.

Vocabulary: a *unit* is what is never cut: a span, a metric, a log record, a profiles request. An
*item* is what is counted: a span, a data point, a log record, a profile. *Others* are all fields of
a message that are not the repeated field of interest: the header of a scope is the others of it.

What counts as well-formed follows upb, the protobuf implementation behind most language runtimes:
tags of at most five bytes and 32 bits, lengths of at most five bytes and 31 bits, varints of at
most ten bytes, groups balanced, nesting at most 100 deep, and a known field with an unexpected
wire type is an unknown field. Source: protobuf documentation, "Encoding"; where that is silent,
what the message classes do, which the tests hold this module against.

Cutting. Every piece is a request of its own. It repeats the resource, scope, schema URLs and
unknown fields around its units, in the order in which they stood, and all fields of the request
that are not resource entries. Resource and scope entries without units may be left out. Of what is
kept only tag and length of entries that were cut are written anew. The functions that cut expect a
payload that :func:`count` accepted; given another they raise MalformedError or return another such.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from proto_stubs import SignalSchema

__all__ = [
    "EGROUP",
    "I32",
    "I64",
    "LEN",
    "SGROUP",
    "STEPS",
    "VARINT",
    "Index",
    "MalformedError",
    "Slice",
    "Unit",
    "count",
    "fields",
    "first",
    "head",
    "index",
    "keep",
    "map_resources",
    "merged",
    "read3",
    "tail",
    "varint",
]

VARINT, I64, LEN, SGROUP, EGROUP, I32 = range(6)
"""Wire types."""

# How deep groups may nest in each message: upb allows 100 messages and groups in each other.
_IN_REQUEST, _IN_RESOURCE, _IN_SCOPE, _IN_METRIC, _IN_DATA = range(100, 95, -1)

_MAX_TAG = 0xFFFF_FFFF
_MAX_LENGTH = 0x7FFF_FFFF
_NO_LIMIT = 1 << 62

_Span: TypeAlias = tuple[int, int, int]
"""Offsets of a length-delimited field: of its tag, of its value, and behind its value."""
_Path: TypeAlias = tuple[_Span, _Span]
"""Where a unit stands: its resource entry and its scope entry."""


class MalformedError(ValueError):
    """The bytes are no well-formed protobuf message of the expected structure."""


class Slice(NamedTuple):
    """A piece of a request: itself a request. ``payload`` is ``b""`` when ``units`` is 0."""

    payload: bytes
    units: int
    items: int


_NOTHING = Slice(b"", 0, 0)

Unit: TypeAlias = tuple[int, int, int, int]
"""Numbers of the resource entry and of the scope entry in the request, both counted from 0 through
the whole request; offset of the unit's message, and behind it."""


class Index(NamedTuple):
    """Where everything in a request stands.

    ``units``: in order. ``resources``: for each resource entry the ranges (offset, offset behind)
    of its ``resource`` fields: one, or none; :func:`merged` gives the message that several mean.
    ``scopes``: the number of scope entries.
    """

    units: list[Unit]
    resources: list[list[tuple[int, int]]]
    scopes: int


# Reading fields.


def fields(buf: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of the message in ``buf[start:end]``, in order.

    Yields (field number, wire type, offset of the value, offset behind the value, the value as an
    unsigned 64-bit integer). The last is 0 except for varints. A length-delimited value starts
    behind its length; a group's value ends behind its end tag. So the offset behind one value is
    where the next field's tag begins.

    Raises:
        MalformedError: while iterating, at the first field that is not well-formed.
    """
    while start < end:
        tag, value, start, number = _field(buf, start, end, _IN_REQUEST)
        yield tag >> 3, tag & 7, value, start, number


def _varint(buf: bytes, pos: int, end: int, longest: int) -> tuple[int, int]:
    """(value, offset behind it) of a varint of at most ``longest`` bytes. Not cut to 64 bits."""
    value = shift = 0
    at = pos
    for byte in buf[pos : min(end, pos + longest)]:
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    what = "overlong" if pos - at == longest else "truncated"
    raise MalformedError(f"{what} varint at byte {at}")


def _field(buf: bytes, pos: int, end: int, depth: int) -> tuple[int, int, int, int]:
    """One field of any kind: (tag, offset of the value, offset behind it, value of a varint).

    ``depth``: how many groups may nest here.
    """
    tag, value = _varint(buf, pos, end, 5)
    if tag > _MAX_TAG or tag < 8:
        raise MalformedError(f"invalid field number at byte {pos}")
    if tag & 7 == SGROUP:
        return tag, value, _behind_group(buf, tag, value, end, depth), 0
    return tag, *_value(buf, tag, value, end)


def _value(buf: bytes, tag: int, pos: int, end: int) -> tuple[int, int, int]:
    """The value that stands behind ``tag``, no group: see :func:`_field`."""
    wire = tag & 7
    number = 0
    if wire == LEN:
        size, pos = _varint(buf, pos, end, 5)
        if size > _MAX_LENGTH:
            raise MalformedError(f"length of 2 GiB or more before byte {pos}")
        behind = pos + size
    elif wire == VARINT:
        number, behind = _varint(buf, pos, end, 10)
        number &= 0xFFFF_FFFF_FFFF_FFFF
    elif wire == I64:
        behind = pos + 8
    elif wire == I32:
        behind = pos + 4
    else:
        what = "end of a group that never began" if wire == EGROUP else f"wire type {wire}"
        raise MalformedError(f"{what} before byte {pos}")
    if behind > end:
        raise _overrun(end)
    return pos, behind, number


def _behind_group(buf: bytes, tag: int, pos: int, end: int, depth: int) -> int:
    """Offset behind the end tag of the group that ``tag`` began. Without recursion.

    Here upb takes field number 0 as well.
    """
    ends = [tag + (EGROUP - SGROUP)]
    while ends:
        if len(ends) > depth:
            raise MalformedError(f"groups nested too deep at byte {pos}")
        tag, behind = _varint(buf, pos, end, 5)
        if tag > _MAX_TAG:
            raise MalformedError(f"invalid field number at byte {pos}")
        if tag == ends[-1]:
            ends.pop()
        elif tag & 7 == SGROUP:
            ends.append(tag + (EGROUP - SGROUP))
        else:
            _, behind, _ = _value(buf, tag, behind, end)
        pos = behind
    return pos


def _overrun(end: int) -> MalformedError:
    return MalformedError(f"a field is longer than the message that ends at byte {end}")


def varint(value: int) -> bytes:
    """``value`` (not negative) as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def merged(buf: bytes, ranges: Sequence[tuple[int, int]]) -> bytes:
    """The message that the occurrences ``ranges`` of one singular field mean: all of them, merged.

    Source: protobuf documentation, "Encoding", "Last One Wins": concatenating is merging.
    """
    return b"".join([buf[start:end] for start, end in ranges])


# Walking a message. These loops are where the relay spends its time. Nearly every field they meet
# is length-delimited, with a tag of one byte and a length of one or two bytes. Such a field is
# read at once: one call reads its first three bytes, one table says from the last two of them how
# far it is to the next field (a third less time than reading byte by byte). Anything else goes the
# general way, through _field. That fields end within their message is checked once, at the end: a
# length that reaches beyond it ends the loop.

read3 = struct.Struct("<BH").unpack_from
_LEN_TAGS = frozenset(range(8 | LEN, 0x80, 8))
_VARINT_TAGS = frozenset(range(8 | VARINT, 0x80, 8))


def _make_steps() -> list[int]:
    """From the two bytes behind a tag of one byte, little-endian: offset from tag to next field.

    0 where they are not a whole length. 65,536 entries, about 1 MiB.
    """
    steps: list[int] = []
    for high in range(0x100):
        steps += range(2, 0x82)  # one byte of length; `high` is the first byte of the value
        steps += range(3 + (high << 7), 0x83 + (high << 7)) if high < 0x80 else [0] * 0x80
    return steps


STEPS = _make_steps()


def _each(buf: bytes, pos: int, end: int, wanted: int, depth: int) -> Iterator[_Span]:
    """The occurrences of the length-delimited field with tag ``wanted`` in the message."""
    fast = min(end, len(buf) - 2)
    while pos < end:
        while pos < fast:
            tag, size = read3(buf, pos)
            step = STEPS[size]
            if not step or tag not in _LEN_TAGS:
                break
            at = pos
            pos += step
            if tag == wanted:
                if pos > end:
                    break
                yield at, at + 3 if size & 0x80 else at + 2, pos
        if pos < end:
            at = pos
            tag, value, pos, _ = _field(buf, pos, end, depth)
            if tag == wanted:
                yield at, value, pos
    if pos > end:
        raise _overrun(end)


def _entries(buf: bytes, pos: int, end: int, wanted: int, depth: int) -> list[_Span]:
    """As :func:`_each`, as a list, in less time; all of the message has been checked."""
    found: list[_Span] = []
    fast = min(end, len(buf) - 2)
    while pos < end:
        while pos < fast:
            tag, size = read3(buf, pos)
            step = STEPS[size]
            if step and tag == wanted:
                found.append((pos, pos + 3 if size & 0x80 else pos + 2, pos := pos + step))
            elif step and tag in _LEN_TAGS:
                pos += step
            elif tag in _VARINT_TAGS and not size & 0x80:
                pos += 2
            else:
                break
        if pos < end:
            at = pos
            tag, value, pos, _ = _field(buf, pos, end, depth)
            if tag == wanted:
                found.append((at, value, pos))
    if pos > end:
        raise _overrun(end)
    return found


def _units(
    buf: bytes, pos: int, end: int, wanted: int, most: int
) -> tuple[int, int, int, list[bytes]]:
    """Pass at most ``most`` units of the scope entry in ``buf[pos:end]``.

    Returns how many were passed, the offset behind the last one (or ``pos``), that of the next
    one, -1 if there is none (then all of the entry has been checked), and the other fields passed.
    """
    seen, behind = 0, pos
    others: list[bytes] = []
    read, steps = read3, STEPS
    fast = min(end, len(buf) - 2)
    while pos < end:
        while pos < fast:
            tag, size = read(buf, pos)
            step = steps[size]
            if step and tag == wanted:
                if seen == most:
                    return seen, behind, pos, others
                seen += 1
                behind = pos = pos + step
            elif step and tag in _LEN_TAGS:
                others.append(buf[pos : pos + step])
                pos += step
            else:
                break
        if pos < end:
            at = pos
            tag, _, pos, _ = _field(buf, pos, end, _IN_SCOPE)
            if tag == wanted:
                if seen == most:
                    return seen, behind, at, others
                seen += 1
                behind = pos
            else:
                others.append(buf[at:pos])
    if pos > end:
        raise _overrun(end)
    return seen, behind, -1, others


def _others(buf: bytes, pos: int, end: int, unwanted: int, depth: int) -> bytes:
    """All fields in ``buf[pos:end]`` but those with tag ``unwanted``, as they stand."""
    out: list[bytes] = []
    read, steps = read3, STEPS
    kept = pos
    fast = min(end, len(buf) - 2)
    while pos < end:
        at = pos
        tag = step = 0
        if pos < fast:
            tag, size = read(buf, pos)
            step = steps[size]
        if step and tag in _LEN_TAGS:
            pos += step
        else:
            tag, _, pos, _ = _field(buf, pos, end, depth)
        if tag == unwanted:
            if kept < at:
                out.append(buf[kept:at])
            kept = pos
    if pos > end:
        raise _overrun(end)
    out.append(buf[kept:end])
    return b"".join(out)


def _weight(buf: bytes, pos: int, end: int, schema: SignalSchema) -> int:
    """Data points of the Metric in ``buf[pos:end]``.

    ``data`` is a oneof: of several members the last wins, and occurrences of one member that
    follow each other are merged. Source: protobuf documentation, "Encoding".
    """
    last = points = 0
    members, in_data = schema.data, schema.data_points << 3 | LEN
    fast = min(end, len(buf) - 2)
    while pos < end:
        at = pos
        tag = size = step = 0
        if pos < fast:
            tag, size = read3(buf, pos)
            step = STEPS[size]
        if step and tag in _LEN_TAGS:
            value = at + 3 if size & 0x80 else at + 2
            pos += step
        else:
            tag, value, pos, _ = _field(buf, pos, end, _IN_METRIC)
        if tag & 7 == LEN and tag >> 3 in members:
            if pos > end:
                break
            n = len(_entries(buf, value, pos, in_data, _IN_DATA))
            points = points + n if tag == last else n
            last = tag
    if pos > end:
        raise _overrun(end)
    return points


def _tags(schema: SignalSchema) -> tuple[int, int, int]:
    """Tags of the resource entries, the scope entries and the units."""
    return schema.resources << 3 | LEN, schema.scopes << 3 | LEN, schema.units << 3 | LEN


def count(payload: bytes, schema: SignalSchema) -> tuple[int, int]:
    """(units, items) of a request. Checks its structure down to the items, not inside them.

    What upb parses, this accepts, with equal numbers.

    Raises:
        MalformedError: the structure is damaged; the message says where.
    """
    in_request = schema.resources << 3 | LEN
    in_resource = schema.scopes << 3 | LEN
    in_scope = schema.units << 3 | LEN
    if not schema.data and not schema.whole:
        units = _count_plain(payload, in_request, in_resource, in_scope)
        if units >= 0:
            return units, units
    units = items = 0
    for _, start, end in _entries(payload, 0, len(payload), in_request, _IN_REQUEST):
        for _, a, b in _entries(payload, start, end, in_resource, _IN_RESOURCE):
            spans = _entries(payload, a, b, in_scope, _IN_SCOPE)
            units += len(spans)
            if schema.data:
                items += sum([_weight(payload, x, y, schema) for _, x, y in spans])
    if schema.data:
        return units, items
    if schema.whole:
        return int(units > 0), units
    return units, units


def _count_plain(  # noqa: PLR0912 - three loops in each other; apart they would be calls
    buf: bytes, in_request: int, in_resource: int, in_scope: int
) -> int:
    """Units of a request that is as all SDKs write it; -1 when something in it is unusual.

    Says nothing that the general way in count() would not say. It is here because every request
    is counted, and this takes two thirds of the time: one pass, no lists, no calls.
    """
    steps, read = STEPS, read3
    n = pos = 0
    request_end = len(buf)
    try:
        while pos < request_end:
            tag, size = read(buf, pos)
            if tag != in_request:
                return -1
            if step := steps[size]:
                resource_end = pos + step
                pos += 3 if size & 0x80 else 2
            else:
                _, pos, resource_end, _ = _field(buf, pos, request_end, 0)
            while pos < resource_end:
                tag, size = read(buf, pos)
                step = steps[size]
                if tag == in_resource:
                    if step:
                        scope_end = pos + step
                        pos += 3 if size & 0x80 else 2
                    else:
                        _, pos, scope_end, _ = _field(buf, pos, resource_end, 0)
                    while pos < scope_end:
                        tag, size = read(buf, pos)
                        step = steps[size]
                        if step and tag == in_scope:
                            n += 1
                        elif not step or tag not in _LEN_TAGS:
                            return -1
                        pos += step
                    if pos > scope_end:
                        return -1
                elif step and tag in _LEN_TAGS:
                    pos += step
                else:
                    return -1
            if pos > resource_end:
                return -1
    except struct.error:  # fewer than three bytes are left
        return -1
    return n if pos == request_end else -1


# Cutting. A cut is made behind one unit and before the next. The piece before it is rebuilt around
# the last unit that stays, the piece behind it around the first: what lies on the far side of that
# unit's entries is copied as one slice, however much it is.


def _up_to(buf: bytes, schema: SignalSchema, path: _Path, at: int) -> bytes:
    """The request without the units behind ``at``, where a unit that stands at ``path`` ends."""
    in_request, in_resource, in_scope = _tags(schema)
    (rs_tag, rs_start, rs_end), (ss_tag, ss_start, ss_end) = path
    behind_unit = _others(buf, at, ss_end, in_scope, _IN_SCOPE)
    behind_scope = _others(buf, ss_end, rs_end, in_resource, _IN_RESOURCE)
    behind_resource = _others(buf, rs_end, len(buf), in_request, _IN_REQUEST)
    inner = varint(in_resource) + varint(at - ss_start + len(behind_unit))
    size = ss_tag - rs_start + len(inner) + at - ss_start + len(behind_unit) + len(behind_scope)
    outer = varint(in_request) + varint(size)
    return b"".join(
        (
            *(memoryview(buf)[:rs_tag], outer, buf[rs_start:ss_tag], inner),
            memoryview(buf)[ss_start:at],
            *(behind_unit, behind_scope, behind_resource),
        )
    )


def _from(
    buf: bytes, schema: SignalSchema, path: _Path, at: int, before_unit: bytes | None = None
) -> bytes:
    """The request without the units before ``at``, the tag of a unit that stands at ``path``.

    ``before_unit``: what else stands before it in its scope entry, if that is known.
    """
    in_request, in_resource, in_scope = _tags(schema)
    (rs_tag, rs_start, rs_end), (ss_tag, ss_start, ss_end) = path
    before_resource = _others(buf, 0, rs_tag, in_request, _IN_REQUEST)
    before_scope = _others(buf, rs_start, ss_tag, in_resource, _IN_RESOURCE)
    if before_unit is None:
        before_unit = _others(buf, ss_start, at, in_scope, _IN_SCOPE)
    inner = varint(in_resource) + varint(len(before_unit) + ss_end - at)
    size = len(before_scope) + len(inner) + len(before_unit) + rs_end - at
    outer = varint(in_request) + varint(size)
    return b"".join(
        (before_resource, outer, before_scope, inner, before_unit, memoryview(buf)[at:])
    )


def _room(size: int, tag: int) -> int:
    """Length of the longest value that a length-delimited field of ``size`` bytes can have.

    Negative when there is none.
    """
    for digits in range(1, 10):
        value = size - len(varint(tag)) - digits
        if value < 0x80**digits:
            return value
    raise AssertionError("unreachable: sizes are below 2**63")


def _split(
    payload: bytes, schema: SignalSchema, limits: tuple[int, int, int], total: tuple[int, int]
) -> tuple[Slice, Slice]:
    """The longest head within ``limits`` (units, items, bytes), and the rest."""
    max_units, max_items, max_size = limits
    whole = Slice(payload, *total)
    if not whole.units:
        return _NOTHING, _NOTHING
    if whole.units <= max_units and whole.items <= max_items and len(payload) <= max_size:
        return whole, _NOTHING
    if schema.whole:
        return _NOTHING, whole
    bound_by_size = len(payload) > max_size  # a head is never longer than the payload
    units = items = 0
    cut: tuple[_Path, int] | None = None
    plain = not (schema.data or bound_by_size)  # Every unit weighs one, and sizes do not matter.
    for path, room in _scopes(payload, schema, max_size if bound_by_size else None):
        _, start, end = path[1]
        if plain:
            most = min(max_units, max_items) - units
            seen, behind, at, others = _units(payload, start, end, schema.units << 3 | LEN, most)
            units += seen
            items += seen
            if seen:
                cut = path, behind
            if at >= 0:
                if cut is None:
                    return _NOTHING, whole
                rest = _from(payload, schema, path, at, b"".join(others))
                return _halves(_up_to(payload, schema, *cut), rest, whole, units, items)
            continue
        used = 0
        for at, value, behind in _each(payload, start, end, schema.units << 3 | LEN, _IN_SCOPE):
            weight = _weight(payload, value, behind, schema) if schema.data else 1
            used += behind - at
            if units >= max_units or items + weight > max_items or used > room:
                if cut is None:
                    return _NOTHING, whole
                rest = _from(payload, schema, path, at)
                return _halves(_up_to(payload, schema, *cut), rest, whole, units, items)
            units += 1
            items += weight
            cut = path, behind
    if cut is None:
        raise MalformedError("the request has no units")
    # Without entries that have no units, or with shorter lengths, it fits.
    return Slice(_up_to(payload, schema, *cut), units, items), _NOTHING


def _halves(head: bytes, rest: bytes, whole: Slice, units: int, items: int) -> tuple[Slice, Slice]:
    """Both parts of ``whole``; ``units`` and ``items`` are in the head."""
    return Slice(head, units, items), Slice(rest, whole.units - units, whole.items - items)


def _scopes(buf: bytes, schema: SignalSchema, max_size: int | None) -> Iterator[tuple[_Path, int]]:
    """The scope entries of a request, and how many bytes of units of each a head can have.

    That is, when the head ends in this scope and is at most ``max_size`` long (None: no limit).
    """
    in_request, in_resource, in_scope = _tags(schema)
    room = _NO_LIMIT
    outer = inner = 0
    if max_size is not None:
        outer = len(_others(buf, 0, len(buf), in_request, _IN_REQUEST))
    for resource in _each(buf, 0, len(buf), in_request, _IN_REQUEST):
        tag, start, end = resource
        if max_size is not None:
            inner = len(_others(buf, start, end, in_resource, _IN_RESOURCE))
        for scope in _each(buf, start, end, in_resource, _IN_RESOURCE):
            if max_size is not None:
                header = len(_others(buf, scope[1], scope[2], in_scope, _IN_SCOPE))
                room = _room(_room(max_size - outer, in_request) - inner, in_resource) - header
            yield (resource, scope), room
            inner += scope[2] - scope[0]
        outer += end - tag


def head(
    payload: bytes,
    schema: SignalSchema,
    *,
    items: int,
    size: int,
    total: tuple[int, int] | None = None,
) -> tuple[Slice, Slice]:
    """The longest head of whole units with at most ``items`` items and ``size`` bytes; the rest.

    ``size`` limits the length of the head as a request of its own. The head may be empty. When
    everything fits, the head is the payload and the rest is empty. ``total``: what :func:`count`
    says of the payload, if the caller knows; then only the head and its last scope are walked.

    Raises:
        MalformedError: count() would not accept the payload, and it was noticed.
    """
    return _split(payload, schema, (_NO_LIMIT, items, size), total or count(payload, schema))


def first(
    payload: bytes, schema: SignalSchema, units: int, *, total: tuple[int, int] | None = None
) -> tuple[Slice, Slice]:
    """The first ``units`` units; the rest. ``total`` and errors as in :func:`head`."""
    limits = units, _NO_LIMIT, _NO_LIMIT
    return _split(payload, schema, limits, total or count(payload, schema))


def tail(
    payload: bytes,
    schema: SignalSchema,
    *,
    items: int,
    size: int,
    total: tuple[int, int] | None = None,
) -> Slice:
    """What is left when as few of the first units go as must, so that the rest fits.

    ``items``, ``size``, ``total`` and errors as in :func:`head`; with ``total`` only what goes is
    walked. Empty when not even the last unit fits.
    """
    whole = Slice(payload, *(total or count(payload, schema)))
    if whole.units and whole.items <= items and len(payload) <= size:
        return whole
    if schema.whole or not whole.units:
        return _NOTHING
    in_request, in_resource, in_scope = _tags(schema)
    _, units_left, items_left = whole
    outer = len(payload)  # length of the request without the entries that went and this one
    for resource in _each(payload, 0, len(payload), in_request, _IN_REQUEST):
        tag, start, end = resource
        outer -= end - tag
        inner = end - start  # the same of the resource entry
        for scope in _each(payload, start, end, in_resource, _IN_RESOURCE):
            inner -= scope[2] - scope[0]
            room = _room(_room(size - outer, in_request) - inner, in_resource)
            room -= scope[2] - scope[1]
            for at, value, behind in _each(payload, scope[1], scope[2], in_scope, _IN_SCOPE):
                if items_left <= items and room >= 0:
                    rest = _from(payload, schema, (resource, scope), at)
                    return Slice(rest, units_left, items_left)
                room += behind - at
                units_left -= 1
                items_left -= _weight(payload, value, behind, schema) if schema.data else 1
    return _NOTHING


def keep(payload: bytes, schema: SignalSchema, wanted: Sequence[bool]) -> Slice:
    """The units whose flag in ``wanted`` is true, in order.

    Raises:
        ValueError: ``wanted`` has not as many flags as the payload has units.
        MalformedError: count() would not accept the payload, and it was noticed.
    """
    sieve = _Sieve(payload, schema, wanted)
    if schema.whole:
        units, sieve.items = count(payload, schema)
        sieve.seen, sieve.units = units, sum(wanted)
        request = None
    else:
        request = sieve.request()
    if sieve.seen != len(wanted):
        raise ValueError(f"{len(wanted)} flags for {sieve.seen} units")
    if not sieve.units:
        return _NOTHING
    return Slice(payload if request is None else request, sieve.units, sieve.items)


class _Sieve:
    """Rebuilds a request from the units that are wanted.

    Its methods return the new message, b"" when all its units went, None when it stays as it is.
    """

    def __init__(self, buf: bytes, schema: SignalSchema, wanted: Sequence[bool]) -> None:
        self.buf = buf
        self.schema = schema
        self.wanted = wanted
        self.seen = self.units = self.items = 0

    def request(self) -> bytes | None:
        in_request = self.schema.resources << 3 | LEN
        return self._message(0, len(self.buf), in_request, _IN_REQUEST, self._resource)

    def _resource(self, start: int, end: int) -> bytes | None:
        return self._message(start, end, self.schema.scopes << 3 | LEN, _IN_RESOURCE, self._scope)

    def _message(
        self, pos: int, end: int, tag: int, depth: int, part: Callable[[int, int], bytes | None]
    ) -> bytes | None:
        buf, units = self.buf, self.units
        out: list[bytes] = []
        for at, value, behind in _entries(buf, pos, end, tag, depth):
            new = part(value, behind)
            if new is not None:
                out.append(buf[pos:at])
                if new:
                    out += (varint(tag), varint(len(new)), new)
                pos = behind
        if not out:
            return None
        out.append(buf[pos:end])
        return b"".join(out) if self.units > units else b""

    def _scope(self, pos: int, end: int) -> bytes | None:
        buf, schema = self.buf, self.schema
        spans = _entries(buf, pos, end, schema.units << 3 | LEN, _IN_SCOPE)
        wanted = self.wanted[self.seen : self.seen + len(spans)]
        self.seen += len(spans)
        out: list[bytes] = []
        kept = 0
        for flag, (at, value, behind) in zip(wanted, spans, strict=False):
            if flag:
                kept += 1
                self.items += _weight(buf, value, behind, schema) if schema.data else 1
            else:
                out.append(buf[pos:at])
                pos = behind
        self.units += kept
        if kept == len(spans):
            return None
        out.append(buf[pos:end])
        return b"".join(out) if kept else b""


# For processors.


def index(payload: bytes, schema: SignalSchema) -> Index:
    """Where the units and the resources of a request stand. For profiles, each profile is listed.

    Raises:
        MalformedError: count() would not accept the payload.
    """
    in_request, in_resource, in_scope = _tags(schema)
    in_entry = schema.resource << 3 | LEN
    units: list[Unit] = []
    resources: list[list[tuple[int, int]]] = []
    scopes = 0
    for _, start, end in _entries(payload, 0, len(payload), in_request, _IN_REQUEST):
        number = len(resources)
        found = _entries(payload, start, end, in_entry, _IN_RESOURCE)
        resources.append([(a, b) for _, a, b in found])
        for _, a, b in _entries(payload, start, end, in_resource, _IN_RESOURCE):
            spans = _entries(payload, a, b, in_scope, _IN_SCOPE)
            units += [(number, scopes, x, y) for _, x, y in spans]
            scopes += 1
    return Index(units, resources, scopes)


def map_resources(
    payload: bytes, schema: SignalSchema, fn: Callable[[bytes], bytes | None]
) -> bytes:
    """The request with the Resource message of every resource entry replaced by what ``fn`` says.

    ``fn`` is given the Resource message (several occurrences merged, ``b""`` when there is none)
    and returns another, or None to leave the entry as it is. The new one stands where the first
    occurrence stood, or first in its entry. Works for all signals.

    Raises:
        MalformedError: the payload is damaged down to the fields of resource entries.
    """
    in_request, in_entry = schema.resources << 3 | LEN, schema.resource << 3 | LEN
    out: list[bytes] = []
    pos = 0
    for tag, start, end in _entries(payload, 0, len(payload), in_request, _IN_REQUEST):
        found = _entries(payload, start, end, in_entry, _IN_RESOURCE)
        old = merged(payload, [(a, b) for _, a, b in found])
        new = fn(old)
        if new is None or new == old:
            continue
        at = found[0][0] if found else start
        behind = _others(payload, at, end, in_entry, _IN_RESOURCE)
        inner = varint(in_entry) + varint(len(new)) + new
        outer = varint(in_request) + varint(at - start + len(inner) + len(behind))
        out += (payload[pos:tag], outer, payload[start:at], inner, behind)
        pos = end
    if not out:
        return payload
    out.append(payload[pos:])
    return b"".join(out)
