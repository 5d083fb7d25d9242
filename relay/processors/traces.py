"""Trace ids in a traces request: which there are.

That says protobuf's C implementation, faster than any search at hand. It is given a definition of
the request in which every message is singular, and which knows nothing of a span but its trace id,
as a repeated field. Several occurrences of a singular message field are merged, so the whole
request becomes one message with one list of all these ids. None is missed, whatever the encoding.

Where that is not to be had (a span that does not parse, a very large request, protobuf without its
C implementation), the bytes are searched for what looks like one.

Source: protobuf documentation, "Encoding", "Last One Wins".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any, Final

from proto_stubs import SPAN_TRACE_ID_FIELD, TRACES
from relay import wire
from relay.wire import LEN

__all__ = ["ids", "named", "parse"]

_LARGEST: Final = 512 * 1024
"""Bytes of the largest request that is parsed: meanwhile that takes about as much again, but 16
times as much where it consists of empty ids."""

# trace_id: field 1, length-delimited, of 16 bytes; tag and length may be written overlong, and then
# end with a byte of 0. The search is for the length, which is a rarer byte than the tag (7 times
# as fast as for both), and looks ahead, so that one occurrence cannot hide the next.
_ID: Final = rb"(?=(.{16}))"
_LOOKALIKES: Final = (
    re.compile(rb"\x10(?<=[\x0a\x00]\x10)" + _ID, re.DOTALL),
    re.compile(rb"\x90(?<=[\x0a\x00]\x90)\x80{0,3}\x00" + _ID, re.DOTALL),
)
_WINDOW: Final = 64 * 1024
_BEHIND: Final = 20
"""As many bytes as length and id can take behind the first."""
_OCCURRENCES: Final = 8
"""So often each lookalike may occur, on average, before searching is given up."""

_EACH: Final = 18
"""Bytes that a trace id takes at least, with tag and length."""

_SIZES: Final = frozenset((16,))
"""Bytes of a trace id."""

_OPTIONAL, _REPEATED, _MESSAGE, _BYTES = 1, 3, 11, 12
"""Values of FieldDescriptorProto.Label and FieldDescriptorProto.Type."""


def ids(payload: bytes, most: int) -> AbstractSet[bytes] | None:
    """What may be trace ids; all of 16 bytes are among them. None: more than ``most``."""
    parsed = parse(payload)
    if parsed is None:
        parsed = set()
        room = _OCCURRENCES * most
        for found in _windows(payload):
            parsed.update(found)
            room -= len(found)
            if room < 0 or len(parsed) > most:
                return None
    return parsed if len(parsed) <= most else None


def named(payload: bytes, wanted: AbstractSet[bytes]) -> bool:
    """Whether one of these may be a trace id in the payload. Never wrongly no."""
    return not all(map(wanted.isdisjoint, _windows(payload)))


def parse(payload: bytes) -> AbstractSet[bytes] | None:
    """The trace ids of 16 bytes of all spans; of a field written twice both.

    None: not to be had this way.
    """
    if not payload:
        return frozenset()
    if len(payload) > _LARGEST or (parser := _parser()) is None:
        return None
    found = parser(payload)
    if found is None:
        return None
    parsed = set(found)
    # No others: they name nothing, and may be as long as the request, while what holds on to ids
    # counts them.
    return parsed if set(map(len, parsed)) <= _SIZES else {one for one in parsed if len(one) == 16}


@cache
def _parser() -> Callable[[bytes], Sequence[bytes] | None] | None:
    """Gives the ids in a request, None if it does not parse. None: not to be had.

    Protobuf is imported with the first ids that are asked for, when a server span has been
    filtered: 12 ms, 1.6 MiB.
    """
    try:
        from google.protobuf import descriptor_pool, message_factory  # noqa: PLC0415
        from google.protobuf.internal import api_implementation  # noqa: PLC0415
        from google.protobuf.message import DecodeError  # noqa: PLC0415

        if api_implementation.Type() != "upb":
            return None  # In plain Python it would take a hundred times as long.
        pool: Any = descriptor_pool.DescriptorPool()
        file = pool.AddSerializedFile(_definition())
        from_string: Callable[[bytes], Any] = message_factory.GetMessageClass(
            file.message_types_by_name["Request"]
        ).FromString
    except (ImportError, AttributeError, TypeError):
        # Which implementation it is, only a private module says. Searching does as well.
        return None

    def parser(payload: bytes) -> Sequence[bytes] | None:
        try:
            found: Sequence[bytes] = from_string(payload).inner.inner.inner.ids
        except DecodeError:
            return None
        # With more some are not ids. Else a list of all at once: half of what it takes to go
        # through them.
        return None if len(found) > len(payload) // _EACH else found[:]

    return parser


def _definition() -> bytes:
    """A serialized FileDescriptorProto (google/protobuf/descriptor.proto)."""

    def text(number: int, value: bytes) -> bytes:
        return wire.varint(number << 3 | LEN) + wire.varint(len(value)) + value

    def field(name: bytes, number: int, label: int, kind: int, of: bytes = b"") -> bytes:
        numbers = (
            wire.varint(tag << 3) + wire.varint(n)
            for tag, n in ((3, number), (4, label), (5, kind))
        )
        return text(2, text(1, name) + b"".join(numbers) + (text(6, b"." + of) if of else b""))

    levels = (
        (b"Request", TRACES.resources, b"Resource"),
        (b"Resource", TRACES.scopes, b"Scope"),
        (b"Scope", TRACES.units, b"Span"),
    )
    messages = [
        text(1, name) + field(b"inner", number, _OPTIONAL, _MESSAGE, inner)
        for name, number, inner in levels
    ]
    messages.append(text(1, b"Span") + field(b"ids", SPAN_TRACE_ID_FIELD, _REPEATED, _BYTES))
    return text(1, b"traces.proto") + b"".join(text(4, message) for message in messages)


def _windows(payload: bytes) -> Iterator[list[bytes]]:
    """What looks like a trace id, part by part."""
    size = len(payload)
    for lookalike in _LOOKALIKES:
        for start in range(0, size, _WINDOW):
            yield lookalike.findall(payload, start, min(start + _WINDOW + _BEHIND, size))
