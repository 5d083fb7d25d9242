"""Spans that were filtered before come again, written the same way: shapes recognize them.

An instrumentation writes a kind of span always in the same way: fields, keys and lengths are the
same, ids and times differ. From a span that was read and filtered, :class:`Shapes` makes an
expression that matches another one byte for byte but for what does not matter: ids, times, names,
and the contents of values that decide nothing. Every tag and every length is literal in it, so what
matches has the same structure and the same facts; it need not be read. That is six times faster,
which is what makes filters cheap where much is filtered.

Only filtered spans get shapes, and only if others of their size were filtered before: making one
costs as much as reading a hundred spans.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from proto_stubs import (
    KEYVALUE_KEY_FIELD,
    KEYVALUE_VALUE_FIELD,
    SPAN_ATTRIBUTES_FIELD,
    SPAN_KIND_FIELD,
    SPAN_PARENT_SPAN_ID_FIELD,
    SPAN_SPAN_ID_FIELD,
    SPAN_TRACE_ID_FIELD,
)
from relay import wire
from relay.processors.spans import DECIDING_KEYS
from relay.wire import LEN, MalformedError

__all__ = ["Shape", "Shapes", "Test", "expression"]

_MOST: Final = 64
"""Shapes kept."""
_LARGEST: Final = 2048
"""Bytes of the largest span that gets a shape."""
_SEEN: Final = 4
"""Filtered spans of one size, before one of them gives a shape."""
_PAUSE: Final = 100
"""Filtered spans read between two shapes."""

_IDS: Final = (SPAN_TRACE_ID_FIELD, SPAN_SPAN_ID_FIELD, SPAN_PARENT_SPAN_ID_FIELD)
_I64, _I32 = 1, 5

Test: TypeAlias = Callable[[bytes, int], object]
"""Whether a span at an offset of a payload is one of these."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """What spans that are alike have in common: where their ids stand (from their tag on).

    ``code``: why they go. ``trace``, ``span``, ``parent``: offsets; 0: there is no such id of the
    length that it should have.
    """

    code: int
    trace: int
    span: int
    parent: int


class _Pattern:
    """An expression of literals and of bytes that may be anything."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self._any = 0

    def literal(self, text: bytes) -> None:
        self._flush()
        self.parts.append(re.escape(text))
        self.size += len(text)

    def anything(self, size: int) -> None:
        self._any += size
        self.size += size

    def _flush(self) -> None:
        if self._any:
            self.parts.append(b".{%d}" % self._any)
            self._any = 0

    def compiled(self) -> re.Pattern[bytes]:
        self._flush()
        return re.compile(b"".join(self.parts), re.DOTALL)


def expression(buf: bytes, start: int, body: int, end: int) -> tuple[re.Pattern[bytes], list[int]]:
    """What matches spans like the one whose tag is at ``start`` and whose message is at ``body``.

    Returns it with the offsets of trace id, span id and parent span id from the tag on, 0 for none.

    Raises:
        MalformedError: the span does not parse, or is written in a way that is not followed here.
    """
    pattern = _Pattern()
    pattern.literal(buf[start:body])
    ids = [0, 0, 0]
    pos = body
    for number, kind, at, stop, _ in wire.fields(buf, body, end):
        if number == SPAN_ATTRIBUTES_FIELD and kind == LEN:
            pattern.literal(buf[pos:at])
            _attribute(pattern, buf, at, stop)
        elif number == SPAN_KIND_FIELD or kind not in {LEN, _I64, _I32}:
            # Varints and groups, whose lengths are in their bytes; the kind among them.
            pattern.literal(buf[pos:stop])
        else:
            if number in _IDS and kind == LEN:
                which = _IDS.index(number)
                if ids[which]:
                    raise MalformedError("an id that is there twice")
                ids[which] = pattern.size + at - pos
                if stop - at != (16 if number == SPAN_TRACE_ID_FIELD else 8):
                    raise MalformedError("an id of another length")
            pattern.literal(buf[pos:at])
            pattern.anything(stop - at)
        pos = stop
    return pattern.compiled(), ids


def _attribute(pattern: _Pattern, buf: bytes, start: int, end: int) -> None:
    """The KeyValue: literally, if its key matters; else its value may hold anything."""
    found = list(wire.fields(buf, start, end))
    usual = [(KEYVALUE_KEY_FIELD, LEN), (KEYVALUE_VALUE_FIELD, LEN)]
    if [(number, kind) for number, kind, *_ in found] == usual:
        _, _, at, stop, _ = found[0]
        value, behind = found[1][2:4]
        if buf[at:stop] not in DECIDING_KEYS:
            pattern.literal(buf[start:value])
            pattern.anything(behind - value)
            return
    pattern.literal(buf[start:end])


class Shapes:
    """The shapes of what was filtered of late."""

    def __init__(self) -> None:
        self.by_size: dict[int, list[tuple[Test, Shape]]] = {}
        """By the size of the spans, tag and length included: a test for each, and what it tells."""
        self._count = 0
        self._filtered: Counter[int] = Counter()
        self._pause = 0

    def learn(self, buf: bytes, start: int, body: int, end: int, code: int) -> None:
        """A span was read and filtered; others like it may come.

        ``start``, ``body``, ``end``: offsets of its tag, of its message, and behind it.
        """
        size = end - start
        self._pause -= 1
        self._filtered[size] += 1
        if self._pause > 0 or self._filtered[size] < _SEEN or size > _LARGEST:
            return
        self._pause = _PAUSE
        self._filtered.clear()
        try:
            pattern, (trace, span, parent) = expression(buf, start, body, end)
        except MalformedError:
            return
        if self._count >= _MOST:
            self.by_size.clear()
            self._count = 0
        self._count += 1
        shape = Shape(code, trace, span, parent)
        self.by_size.setdefault(size, []).append((pattern.match, shape))
