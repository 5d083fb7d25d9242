"""Adds to resources what the settings say they lack.

``OTEL_SERVICE_NAME`` sets ``service.name`` where a resource has none, an empty one, or the SDKs'
placeholder ``unknown_service*``; ``OTEL_RESOURCE_ATTRIBUTES`` adds each attribute that a resource
has not. What a resource has is never changed beyond that.

In profiles, keys and string values of a resource may be indices into the string table of the
request's dictionary (common.proto, ``key_strindex`` and ``string_value_strindex``): they are looked
up. What is added is written out, as other signals do it: both ways are allowed side by side, and
the dictionary stays as it is.

Source: contract section 2; OpenTelemetry specification, "Resource SDK" and "Environment variables";
semantic conventions, "Service".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from proto_stubs import (
    ANYVALUE_STRING_VALUE_FIELD,
    KEYVALUE_KEY_FIELD,
    KEYVALUE_VALUE_FIELD,
    RESOURCE_ATTRIBUTES_FIELD,
    SignalSchema,
)
from relay import wire
from relay.processors import Result
from relay.processors.spans import attribute
from relay.wire import LEN, MalformedError

__all__ = ["Enrichment"]

_SERVICE_NAME: Final = b"service.name"
_UNKNOWN: Final = b"unknown_service"
_STRING_TABLE: Final = 5
"""ProfilesDictionary.string_table."""
_KEY_INDEX: Final = 3
"""KeyValue.key_strindex."""
_VALUE_INDEX: Final = 8
"""AnyValue.string_value_strindex."""

_RESOURCES: Final = 256
"""How many resources are remembered with what became of them; an app has one."""
_RESOURCE_BYTES: Final = 16 * 1024
"""Larger ones are worked out anew each time."""

Lookup = Callable[[int], bytes]
"""Index into a dictionary's string table -> the string."""


def _field(number: int, value: bytes) -> bytes:
    return wire.varint(number << 3 | LEN) + wire.varint(len(value)) + value


def _entry(key: bytes, value: bytes) -> bytes:
    """An entry of Resource.attributes."""
    text = _field(ANYVALUE_STRING_VALUE_FIELD, value)
    pair = _field(KEYVALUE_KEY_FIELD, key) + _field(KEYVALUE_VALUE_FIELD, text)
    return _field(RESOURCE_ATTRIBUTES_FIELD, pair)


def _no_table(index: int) -> bytes:
    del index
    return b""


class Enrichment:
    """Adds attributes to the resources of one signal's requests."""

    def __init__(
        self, schema: SignalSchema, service_name: str, attributes: Iterable[tuple[str, str]]
    ) -> None:
        self._schema = schema
        # A string that is no UTF-8 would make the collector refuse whole batches.
        name = service_name.encode(errors="replace")
        self._name = _entry(_SERVICE_NAME, name) if name else b""
        pairs = ((k.encode(errors="replace"), v.encode(errors="replace")) for k, v in attributes)
        self._entries = {key: _entry(key, value) for key, value in pairs}
        if self._name:
            self._entries.pop(_SERVICE_NAME, None)
        self._known: dict[bytes, bytes] = {}

    def count(self, payload: bytes) -> tuple[int, int]:
        """See :class:`relay.processors.Processor`."""
        return wire.count(payload, self._schema)

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        del now
        if self._schema.dictionary:
            lookup = _string_table(payload, self._schema)
            new = wire.map_resources(payload, self._schema, lambda old: self._extended(old, lookup))
        else:
            new = wire.map_resources(payload, self._schema, self._remembered)
        return Result(new, units, items)

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """Nothing is ever condemned here."""
        del now
        return Result(payload, units, items)

    def affects(self, waiting: Iterable[bytes]) -> bool:
        """Nothing is ever condemned here."""
        del waiting
        return False

    def _remembered(self, resource: bytes) -> bytes:
        new = self._known.get(resource)
        if new is None:
            new = self._extended(resource, _no_table)
            if len(resource) <= _RESOURCE_BYTES:
                if len(self._known) >= _RESOURCES:
                    self._known.clear()
                self._known[resource] = new
        return new

    def _extended(self, resource: bytes, lookup: Lookup) -> bytes:
        """The Resource with what it lacks; as it is when it does not parse."""
        try:
            return self._extend(resource, lookup)
        except MalformedError:
            return resource

    def _extend(self, resource: bytes, lookup: Lookup) -> bytes:
        keys: set[bytes] = set()
        named = False
        placeholder: tuple[int, int] | None = None
        start = 0
        for number, kind, at, stop, _ in wire.fields(resource, 0, len(resource)):
            if number == RESOURCE_ATTRIBUTES_FIELD and kind == LEN:
                key, value = _pair(resource, at, stop, lookup)
                keys.add(key)
                if key == _SERVICE_NAME and not named:
                    named = True
                    if value is not None and (not value or value.startswith(_UNKNOWN)):
                        placeholder = start, stop
            start = stop
        out = resource
        if self._name:
            if placeholder is not None:
                out = resource[: placeholder[0]] + self._name + resource[placeholder[1] :]
            elif not named:
                out += self._name
        return out + b"".join(entry for key, entry in self._entries.items() if key not in keys)


def _pair(resource: bytes, start: int, end: int, lookup: Lookup) -> tuple[bytes, bytes | None]:
    """Key and string value of a KeyValue, either of which may stand in the dictionary."""
    key, value = attribute(resource, start, end)
    index: int | None = None
    for number, kind, at, stop, varint in wire.fields(resource, start, end):
        if number == _KEY_INDEX and kind == 0 and not key:
            key = lookup(varint)
        elif number == KEYVALUE_VALUE_FIELD and kind == LEN:
            for inner, wiretype, _, _, varint_ in wire.fields(resource, at, stop):
                # The members of a oneof exclude each other: the last one counts.
                index = varint_ if inner == _VALUE_INDEX and wiretype == 0 else None
    return key, value if index is None else lookup(index)


def _string_table(payload: bytes, schema: SignalSchema) -> Lookup:
    """Looks up strings in the dictionary of a profiles request; reads it at the first need."""
    table: list[tuple[int, int]] | None = None

    def lookup(index: int) -> bytes:
        nonlocal table
        if table is None:
            table = [
                (at, stop)
                for number, kind, start, end, _ in wire.fields(payload, 0, len(payload))
                if number == schema.dictionary and kind == LEN
                for inner, wiretype, at, stop, _ in wire.fields(payload, start, end)
                if inner == _STRING_TABLE and wiretype == LEN
            ]
        return payload[slice(*table[index])] if index < len(table) else b""

    return lookup
