"""Which units of a request are at fault: parses them in full, with the protobuf message classes.

For use after a final failure only. The forwarding path does not look inside items, and most relays
never need the message classes, so these are imported on first use and not before: they cost memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from proto_stubs import SignalSchema
from relay import wire

__all__ = ["well_formed"]


def well_formed(payload: bytes, schema: SignalSchema) -> list[bool]:
    """For each unit of the request, in order, whether a collector can parse it.

    A unit parses when its own message, its resource and its scope parse, text being valid UTF-8
    among other things. What the protobuf library says decides. A request of profiles is one unit.

    Raises:
        MalformedError: :func:`relay.wire.count` would not accept the payload.
    """
    units, _ = wire.count(payload, schema)
    parses = _parser(schema)
    if parses(payload):
        return [True] * units
    if schema.whole:
        return [False] * units
    flags: list[bool] = []
    # Each part is parsed where it stands, in a request of its own: how deep messages may nest is
    # part of what the library decides.
    _, resources = _parts(payload, 0, len(payload), schema.resources)
    for resource in resources:
        header, scopes = _parts(payload, *resource, schema.scopes)
        resource_parses = parses(_field(schema.resources, header))
        for scope in scopes:
            header, spans = _parts(payload, *scope, schema.units)
            scope_parses = resource_parses and parses(
                _field(schema.resources, _field(schema.scopes, header))
            )
            for start, end in spans:
                unit = _field(schema.units, payload[start:end])
                alone = _field(schema.resources, _field(schema.scopes, unit))
                flags.append(scope_parses and parses(alone))
    return flags


def _parser(schema: SignalSchema) -> Callable[[bytes], bool]:
    """A function that says whether bytes parse as an Export request of the signal."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415 - see the module's docstring

    request: Any = getattr(importlib.import_module(schema.module), schema.request.split(".")[-1])

    def parses(payload: bytes) -> bool:
        try:
            request.FromString(payload)
        except DecodeError:
            return False
        return True

    return parses


def _parts(buf: bytes, start: int, end: int, number: int) -> tuple[bytes, list[tuple[int, int]]]:
    """A message without its repeated field ``number``, and the ranges of that field's values."""
    header: list[bytes] = []
    found: list[tuple[int, int]] = []
    for field, kind, value, behind, _ in wire.fields(buf, start, end):
        if field == number and kind == wire.LEN:
            found.append((value, behind))
        else:
            header.append(buf[start:behind])
        start = behind
    return b"".join(header), found


def _field(number: int, value: bytes) -> bytes:
    return wire.varint(number << 3 | wire.LEN) + wire.varint(len(value)) + value
