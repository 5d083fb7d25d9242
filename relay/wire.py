"""OTLP export requests as bytes: count what is in them, cut them, leave units out.

Nothing here decodes an item. A request is walked field by field, from length to length, down to the
units (:class:`proto_stubs.SignalSchema` says where they stand) and for metrics to the data points;
what lies between is copied as it is. So whatever the relay does not know (unknown fields, later
versions of the protocol) passes through unchanged.

Vocabulary: a *unit* is what is never cut: a span, a metric, a log record, a profiles request. An
*item* is what is counted: a span, a data point, a log record, a profile. *Others* are all fields of
a message that are not the repeated field of interest: the header of a scope is the others of it.

What counts as well-formed follows upb, the protobuf implementation inside grpc and most language
runtimes: tags of at most five bytes and 32 bits, lengths of at most five bytes and 31 bits,
varints of at most ten bytes, groups balanced, nesting at most 100 deep, a known field with an
unexpected wire type is an unknown field. Source: protobuf documentation, "Encoding".

The functions that cut expect a payload that :func:`count` accepted; for others they raise
MalformedError or return garbage, but end. When a request is cut, every piece repeats the resource,
scope, schema URLs and unknown fields around its units, in the order in which they stood, and the
fields of the request that are not resource entries; resource and scope entries in which no unit of
the piece stands are left out. Only tag and length of entries that were cut are written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from proto_stubs import SignalSchema

__all__ = [
    "LEN",
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
    "tail",
    "varint",
]

VARINT, I64, LEN, SGROUP, EGROUP, I32 = range(6)
"""Wire types."""

_DEPTH = 100
"""How deep messages and groups may nest, the outermost message not counted (upb's default)."""
_GROUPS_IN_REQUEST, _GROUPS_IN_RESOURCE, _GROUPS_IN_SCOPE = _DEPTH, _DEPTH - 1, _DEPTH - 2
_GROUPS_IN_METRIC, _GROUPS_IN_DATA = _DEPTH - 3, _DEPTH - 4
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


Unit: TypeAlias = tuple[int, int, int, int]
"""Number of the resource entry and of the scope entry in the request, from 0; offsets of the unit's
message: its first byte, and behind its last."""


class Index(NamedTuple):
    """Where everything in a request stands.

    ``units``: in order. ``resources``: per resource entry the ranges of its ``resource`` fields; a
    request should have one each, :func:`merged` gives the message that several mean.
    ``scopes``: the number of scope entries.
    """

    units: list[Unit]
    resources: list[list[tuple[int, int]]]
    scopes: int


NOTHING = Slice(b"", 0, 0)


# Reading fields.


def fields(buf: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields of the message in ``buf[start:end]``, in order.

    Yields (field number, wire type, offset of the value, offset behind the value, the value as an
    unsigned integer). The last is 0 except for varints. A length-delimited value starts behind
    its length. A group's value ends behind its end tag. So the offset behind one field's value is
    where the next field's tag begins.

    Raises:
        MalformedError: while iterating, at the first field that is not well-formed.
    """
    while start < end:
        tag, value, start, number = _field(buf, start, end, _DEPTH)
        yield tag >> 3, tag & 7, value, start, number


def _varint_at(buf: bytes, pos: int, end: int, longest: int) -> tuple[int, int]:
    """(value, offset behind it) of a varint of at most ``longest`` bytes. Not cut to 64 bits."""
    value = shift = 0
    stop = min(end, pos + longest)
    while pos < stop:
        byte = buf[pos]
        pos += 1
        if byte < 0x80:
            return value | byte << shift, pos
        value |= (byte & 0x7F) << shift
        shift += 7
    raise MalformedError(
        f"truncated varint at byte {pos}" if pos == end else f"overlong varint before byte {pos}"
    )


def _field(buf: bytes, pos: int, end: int, depth: int) -> tuple[int, int, int, int]:
    """One field of any kind: (tag, offset of the value, offset behind it, value of a varint).

    ``depth``: how many groups may nest here.
    """
    at = pos
    tag, pos = _varint_at(buf, pos, end, 5)
    if tag > _MAX_TAG or tag < 8:
        raise MalformedError(f"invalid field number at byte {at}")
    wire, value, number = tag & 7, pos, 0
    if wire == VARINT:
        number, pos = _varint_at(buf, pos, end, 10)
        number &= 0xFFFF_FFFF_FFFF_FFFF
    elif wire == LEN:
        size, value = _varint_at(buf, pos, end, 5)
        if size > _MAX_LENGTH:
            raise MalformedError(f"length over 2 GiB at byte {pos}")
        pos = value + size
    elif wire == I64:
        pos += 8
    elif wire == I32:
        pos += 4
    elif wire == SGROUP:
        pos = _group_end(buf, tag, pos, end, depth)
    else:
        what = "end of a group that never began" if wire == EGROUP else f"wire type {wire}"
        raise MalformedError(f"{what} at byte {at}")
    if pos > end:
        raise MalformedError(f"field at byte {at} is longer than the message it stands in")
    return tag, value, pos, number


def _group_end(buf: bytes, tag: int, pos: int, end: int, depth: int) -> int:
    """Offset behind the end tag of the group that ``tag`` began. Without recursion."""
    open_groups = [tag]
    while open_groups:
        if len(open_groups) > depth:
            raise MalformedError(f"groups nested too deep at byte {pos}")
        tag, value = _varint_at(buf, pos, end, 5)
        if tag <= _MAX_TAG and tag & 7 == SGROUP and tag >= 8:
            open_groups.append(tag)
            pos = value
        elif tag == open_groups[-1] + (EGROUP - SGROUP):
            open_groups.pop()
            pos = value
        else:
            _, _, pos, _ = _field(buf, pos, end, 0)
    return pos


def varint(value: int) -> bytes:
    """``value`` (not negative) as a varint."""
    if value < 0x80:
        return bytes((value,))
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


# Walking a message.


def _entries(buf: bytes, pos: int, end: int, wanted: int, depth: int) -> list[_Span]:
    """All occurrences of the length-delimited field with tag ``wanted`` in the message."""
    found = []
    while pos < end:
        at = pos
        tag, value, pos, _ = _field(buf, pos, end, depth)
        if tag == wanted:
            found.append((at, value, pos))
    return found


def _tally(buf: bytes, pos: int, end: int, wanted: int, depth: int) -> int:
    """How many occurrences of the length-delimited field with tag ``wanted`` the message has."""
    n = 0
    while pos < end:
        tag, _, pos, _ = _field(buf, pos, end, depth)
        if tag == wanted:
            n += 1
    return n


def _others(buf: bytes, pos: int, end: int, unwanted: int, depth: int) -> bytes:
    """All fields in ``buf[pos:end]`` but those with tag ``unwanted``, as they stand."""
    out = []
    for start, _, stop in _entries(buf, pos, end, unwanted, depth):
        if pos < start:
            out.append(buf[pos:start])
        pos = stop
    out.append(buf[pos:end])
    return b"".join(out)


def _weight(buf: bytes, pos: int, end: int, schema: SignalSchema) -> int:
    """Data points of the Metric in ``buf[pos:end]``.

    ``data`` is a oneof: of several members the last wins, and occurrences of one member that
    follow each other are merged. Source: protobuf documentation, "Encoding".
    """
    member, points = 0, 0
    while pos < end:
        tag, value, pos, _ = _field(buf, pos, end, _GROUPS_IN_METRIC)
        if tag & 7 == LEN and tag >> 3 in schema.data:
            n = _tally(buf, value, pos, schema.data_points << 3 | LEN, _GROUPS_IN_DATA)
            points = points + n if tag == member else n
            member = tag
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
    in_request, in_resource, in_scope = _tags(schema)
    units = items = 0
    for _, start, end in _entries(payload, 0, len(payload), in_request, _GROUPS_IN_REQUEST):
        for _, a, b in _entries(payload, start, end, in_resource, _GROUPS_IN_RESOURCE):
            if schema.data:
                for _, x, y in _entries(payload, a, b, in_scope, _GROUPS_IN_SCOPE):
                    units += 1
                    items += _weight(payload, x, y, schema)
            else:
                units += _tally(payload, a, b, in_scope, _GROUPS_IN_SCOPE)
    if schema.data:
        return units, items
    if schema.whole:
        return int(units > 0), units
    return units, units


# Cutting.


def _walk(buf: bytes, schema: SignalSchema) -> Iterator[tuple[_Path, list[_Span]]]:
    """The scope entries that have units, in order: where each stands, and its units."""
    in_request, in_resource, in_scope = _tags(schema)
    for resource in _entries(buf, 0, len(buf), in_request, _GROUPS_IN_REQUEST):
        for scope in _entries(buf, resource[1], resource[2], in_resource, _GROUPS_IN_RESOURCE):
            units = _entries(buf, scope[1], scope[2], in_scope, _GROUPS_IN_SCOPE)
            if units:
                yield (resource, scope), units


def _up_to(buf: bytes, schema: SignalSchema, path: _Path, at: int) -> bytes:
    """The request without the units behind ``at``, the end of a unit that stands at ``path``."""
    in_request, in_resource, in_scope = _tags(schema)
    (rs_tag, rs_start, rs_end), (ss_tag, ss_start, ss_end) = path
    scope = buf[ss_start:at] + _others(buf, at, ss_end, in_scope, _GROUPS_IN_SCOPE)
    after = _others(buf, ss_end, rs_end, in_resource, _GROUPS_IN_RESOURCE)
    header = varint(in_resource) + varint(len(scope))
    size = (ss_tag - rs_start) + len(header) + len(scope) + len(after)
    last = _others(buf, rs_end, len(buf), in_request, _GROUPS_IN_REQUEST)
    first_ = buf[:rs_tag] + varint(in_request) + varint(size)
    return b"".join((first_, buf[rs_start:ss_tag], header, scope, after, last))


def _from(buf: bytes, schema: SignalSchema, path: _Path, at: int) -> bytes:
    """The request without the units before ``at``, the tag of a unit that stands at ``path``."""
    in_request, in_resource, in_scope = _tags(schema)
    (rs_tag, rs_start, rs_end), (ss_tag, ss_start, ss_end) = path
    scope = _others(buf, ss_start, at, in_scope, _GROUPS_IN_SCOPE)
    header = varint(in_resource) + varint(len(scope) + ss_end - at)
    before = _others(buf, rs_start, ss_tag, in_resource, _GROUPS_IN_RESOURCE)
    size = len(before) + len(header) + len(scope) + (ss_end - at) + (rs_end - ss_end)
    first_ = _others(buf, 0, rs_tag, in_request, _GROUPS_IN_REQUEST)
    outer = varint(in_request) + varint(size)
    return b"".join((first_, outer, before, header, scope, buf[at:]))


def _framed(tag: int, size: int) -> int:
    """Length of a length-delimited field with a value of ``size`` bytes."""
    return len(varint(tag)) + len(varint(size)) + size


def _split(
    payload: bytes, schema: SignalSchema, limits: tuple[int, int, int], total: tuple[int, int]
) -> tuple[Slice, Slice]:
    """The longest head within ``limits`` (units, items, bytes), and the rest."""
    max_units, max_items, max_size = limits
    whole = Slice(payload, *total)
    if not whole.units:
        return NOTHING, NOTHING
    if whole.units <= max_units and whole.items <= max_items and len(payload) <= max_size:
        return whole, NOTHING
    if schema.whole:
        return NOTHING, whole
    in_request, in_resource, in_scope = _tags(schema)
    base = len(_others(payload, 0, len(payload), in_request, _GROUPS_IN_REQUEST))
    resource: _Span | None = None
    units = items = used = 0
    cut: tuple[_Path, int] | None = None
    for path, spans in _walk(payload, schema):
        if path[0] != resource:
            if resource is not None:
                base += _framed(in_request, used)
            resource = path[0]
            used = len(_others(payload, resource[1], resource[2], in_resource, _GROUPS_IN_RESOURCE))
        inner = len(_others(payload, path[1][1], path[1][2], in_scope, _GROUPS_IN_SCOPE))
        for start, value, end in spans:
            weight = _weight(payload, value, end, schema) if schema.data else 1
            inner += end - start
            size = base + _framed(in_request, used + _framed(in_resource, inner))
            if units + 1 > max_units or items + weight > max_items or size > max_size:
                if cut is None:
                    return NOTHING, whole
                return (
                    Slice(_up_to(payload, schema, *cut), units, items),
                    Slice(
                        _from(payload, schema, path, start),
                        whole.units - units,
                        whole.items - items,
                    ),
                )
            units += 1
            items += weight
            cut = path, end
        used += _framed(in_resource, inner)
    # Without its empty entries or overlong lengths it fits.
    assert cut is not None
    return Slice(_up_to(payload, schema, *cut), units, items), NOTHING


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
    everything fits, the head is the payload and the rest is empty. ``total``: what
    :func:`count` says of the payload, for callers that know it.
    """
    return _split(payload, schema, (_NO_LIMIT, items, size), total or count(payload, schema))


def first(
    payload: bytes, schema: SignalSchema, units: int, *, total: tuple[int, int] | None = None
) -> tuple[Slice, Slice]:
    """The first ``units`` units; the rest. ``total`` as in :func:`head`."""
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
    """What is left when as few of the first units as possible go, so that the rest fits.

    ``items``, ``size`` and ``total`` as in :func:`head`. Empty when not even the last unit fits.
    """
    whole = Slice(payload, *(total or count(payload, schema)))
    if not whole.units:
        return NOTHING
    if whole.items <= items and len(payload) <= size:
        return whole
    if schema.whole:
        return NOTHING
    in_scope = _tags(schema)[2]
    units_left, items_left = whole.units, whole.items
    for path, spans in _walk(payload, schema):
        for start, value, end in spans:
            if items_left <= items:
                rest = _from(payload, schema, path, start)
                if len(rest) <= size:
                    return Slice(rest, units_left, items_left)
            units_left -= 1
            items_left -= _weight(payload, value, end, schema) if schema.data else 1
    del in_scope
    return NOTHING


def keep(payload: bytes, schema: SignalSchema, wanted: Sequence[bool]) -> Slice:
    """The units whose flag in ``wanted`` is true, in order.

    Raises:
        ValueError: ``wanted`` has not as many flags as the payload has units.
    """
    units, items = count(payload, schema)
    if len(wanted) != units:
        raise ValueError(f"{len(wanted)} flags for {units} units")
    if not any(wanted):
        return NOTHING
    if all(wanted):
        return Slice(payload, units, items)
    in_request, in_resource, in_scope = _tags(schema)
    flags = iter(wanted)
    units = items = 0
    request: list[bytes] = []
    done = 0
    for rs_tag, rs_start, rs_end in _entries(
        payload, 0, len(payload), in_request, _GROUPS_IN_REQUEST
    ):
        request.append(payload[done:rs_tag])
        done = rs_end
        resource: list[bytes] = []
        pos, before = rs_start, units
        for ss_tag, ss_start, ss_end in _entries(
            payload, rs_start, rs_end, in_resource, _GROUPS_IN_RESOURCE
        ):
            resource.append(payload[pos:ss_tag])
            pos = ss_end
            scope: list[bytes] = []
            at, kept = ss_start, 0
            for start, value, end in _entries(
                payload, ss_start, ss_end, in_scope, _GROUPS_IN_SCOPE
            ):
                if next(flags):
                    kept += 1
                    items += _weight(payload, value, end, schema) if schema.data else 1
                else:
                    scope.append(payload[at:start])
                    at = end
            scope.append(payload[at:ss_end])
            if kept:
                body = b"".join(scope)
                resource.append(varint(in_resource) + varint(len(body)) + body)
                units += kept
        resource.append(payload[pos:rs_end])
        if units > before:
            body = b"".join(resource)
            request.append(varint(in_request) + varint(len(body)) + body)
    request.append(payload[done:])
    return Slice(b"".join(request), units, items)


# For processors.


def index(payload: bytes, schema: SignalSchema) -> Index:
    """Where the units and the resources of a request stand. Profiles: their profiles are listed."""
    in_request, in_resource, in_scope = _tags(schema)
    in_entry = schema.resource << 3 | LEN
    units: list[Unit] = []
    resources: list[list[tuple[int, int]]] = []
    scopes = 0
    for _, start, end in _entries(payload, 0, len(payload), in_request, _GROUPS_IN_REQUEST):
        number = len(resources)
        found = _entries(payload, start, end, in_entry, _GROUPS_IN_RESOURCE)
        resources.append([(a, b) for _, a, b in found])
        for _, a, b in _entries(payload, start, end, in_resource, _GROUPS_IN_RESOURCE):
            spans = _entries(payload, a, b, in_scope, _GROUPS_IN_SCOPE)
            units += [(number, scopes, x, y) for _, x, y in spans]
            scopes += 1
    return Index(units, resources, scopes)


def map_resources(
    payload: bytes, schema: SignalSchema, fn: Callable[[bytes], bytes | None]
) -> bytes:
    """The request with the Resource message of every resource entry replaced by what ``fn`` says.

    ``fn`` is given the Resource message (several occurrences merged, ``b""`` when there is none)
    and returns another, or None to leave the entry as it is. The new one stands where the first
    stood, or else first in its entry. Works for all signals.
    """
    in_request = _tags(schema)[0]
    wanted = schema.resource << 3 | LEN
    out: list[bytes] = []
    done = 0
    for tag, start, end in _entries(payload, 0, len(payload), in_request, _GROUPS_IN_REQUEST):
        found = _entries(payload, start, end, wanted, _GROUPS_IN_RESOURCE)
        old = merged(payload, [(a, b) for _, a, b in found])
        new = fn(old)
        if new is None or new == old:
            continue
        at = found[0][0] if found else start
        entry = b"".join(
            (
                payload[start:at],
                varint(wanted),
                varint(len(new)),
                new,
                _others(payload, at, end, wanted, _GROUPS_IN_RESOURCE),
            )
        )
        out += (payload[done:tag], varint(in_request), varint(len(entry)), entry)
        done = end
    if not done:
        return payload
    out.append(payload[done:])
    return b"".join(out)
