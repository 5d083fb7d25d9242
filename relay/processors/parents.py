"""Parent span ids in a traces request: which there are, and where they may stand.

Which there are says protobuf's C implementation, faster than any search at hand. It is given a
definition of the request in which every message is singular, and which knows nothing of a span but
its parent id, as a repeated field. Several occurrences of a singular message field are merged, so
the whole request becomes one message with one list of all these ids. None is missed, whatever the
encoding.

Where that is not to be had (a span that does not parse, a very large request, protobuf without its
C implementation), and to find out where an id stands, the bytes are searched for what looks like
one.

Source: protobuf documentation, "Encoding", "Last One Wins".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any, Final, NamedTuple

from proto_stubs import SPAN_PARENT_SPAN_ID_FIELD, TRACES
from relay import wire
from relay.processors.search import SMALL, compiled
from relay.wire import LEN

__all__ = ["HEAD", "Window", "ids", "named", "overlong", "parse", "windows"]

_LARGEST: Final = 512 * 1024
"""Bytes of the largest request that is parsed: meanwhile that takes about as much again, but 16
times as much where it consists of empty ids."""

# parent_span_id: field 4, length-delimited, of eight bytes. Looking ahead, so that one occurrence
# cannot hide the next. Tag and length may be written overlong, which nobody does: such a tag is
# looked for in a search of its own, as the usual one begins with a byte that is rare.
_LENGTH: Final = rb"(?:\x08|\x88\x80{0,3}\x00)"
HEAD: Final = rb"\x22" + _LENGTH
"""An expression for tag and length of a parent span id, if the tag is not overlong."""
_OVERLONG_HEAD: Final = rb"\xa2\x80{0,3}\x00" + _LENGTH
_ID: Final = rb"(?=(.{8}))"
_PARENT: Final = re.compile(HEAD + _ID, re.DOTALL)
_OVERLONG: Final = re.compile(_OVERLONG_HEAD + _ID, re.DOTALL)
_overlong_in_large: Final = compiled(_OVERLONG_HEAD)
_WINDOW: Final = 64 * 1024
_BEHIND: Final = 18
"""As many bytes as tag, length and id can take behind the first."""

_SIZES: Final = frozenset((8,))
"""Bytes of a span id."""

_OPTIONAL, _REPEATED, _MESSAGE, _BYTES = 1, 3, 11, 12
"""Values of FieldDescriptorProto.Label and FieldDescriptorProto.Type."""


def ids(payload: bytes, most: int) -> Sequence[Collection[bytes]] | None:
    """What may be parent span ids; all of eight bytes are among them. None: more than ``most``."""
    parsed = parse(payload, most)
    if parsed is not None:
        return (parsed,)
    found = windows(payload, most)
    return None if found is None else [window.ids for window in found]


def named(payload: bytes, wanted: AbstractSet[bytes]) -> bool:
    """Whether a span in the payload may have one of these ids as parent. Never wrongly no."""
    return not all(wanted.isdisjoint(window.ids) for window in _windows(payload))


# Which there are.


def parse(payload: bytes, most: int) -> AbstractSet[bytes] | None:
    """The parent span ids of eight bytes of all spans; of a field written twice both.

    None: not to be had this way, or there are more than ``most``.
    """
    if not payload:
        return frozenset()
    if len(payload) > _LARGEST or (parser := _parser()) is None:
        return None
    found = parser(payload)
    if found is None or len(found) > most:
        return None
    parsed = set(found)
    # No others: they name nothing, and may be as long as the request, while what holds on to ids
    # counts them.
    return parsed if set(map(len, parsed)) <= _SIZES else {one for one in parsed if len(one) == 8}


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
        return found

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
    messages.append(text(1, b"Span") + field(b"ids", SPAN_PARENT_SPAN_ID_FIELD, _REPEATED, _BYTES))
    return text(1, b"parents.proto") + b"".join(text(4, message) for message in messages)


# Where they may stand.


class Window(NamedTuple):
    """A part of a payload, and the ids that begin in it and may be parent span ids."""

    form: re.Pattern[bytes]
    start: int
    stop: int
    ids: list[bytes]

    def positions(self, payload: bytes, wanted: AbstractSet[bytes]) -> list[int]:
        """Where one of these ids may be a parent span id."""
        found = self.form.finditer(payload, self.start, self.stop)
        return [match.start() for match in found if match[1] in wanted]


def windows(payload: bytes, most: int) -> list[Window] | None:
    """What looks like a parent span id of eight bytes; None: there are more than ``most``.

    Those that stand where two windows overlap come twice.
    """
    found = []
    for window in _windows(payload):
        found.append(window)
        most -= len(window.ids)
        if most < 0:
            return None
    return found


def _windows(payload: bytes) -> Iterator[Window]:
    size = len(payload)
    forms = (_PARENT, _OVERLONG) if overlong(payload) else (_PARENT,)
    for form in forms:
        for start in range(0, size, _WINDOW):
            stop = min(start + _WINDOW + _BEHIND, size)
            found = form.findall(payload, start, stop)
            if found:
                yield Window(form, start, stop, found)


def overlong(payload: bytes) -> bool:
    """Whether an overlong tag of a parent span id may stand in the payload."""
    search = _OVERLONG.search if len(payload) < SMALL else _overlong_in_large
    return search(payload, 0) is not None
