"""Spans that were filtered before come again, written the same way: shapes recognize them.

An instrumentation writes a kind of span always in the same way: fields, keys and lengths are the
same, ids and times differ. From a span that was read and filtered, :class:`Shapes` makes an
expression that matches another one byte for byte but for what does not matter: ids, times, names,
and the contents of values that decide nothing. Every tag and every length is literal in it, so what
matches has the same structure and the same facts; it need not be read. That is six times faster,
which is what makes filters cheap where much is filtered.

Only filtered spans get shapes, and only if others of their size were filtered before: making one
costs as much as reading a hundred spans. Spans that are often found side by side, as those of one
health check are, get a shape in common: one match then does for all of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias

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
from relay.processors.spans import DECIDING_KEYS, KEY_SIZES, Known, sift
from relay.wire import LEN, MalformedError

__all__ = ["Member", "Outline", "Shape", "Shapes", "Take", "outline"]

_MOST: Final = 64
"""Shapes kept."""
_LARGEST: Final = 2048
"""Bytes of what gets a shape at most."""
_SEEN: Final = 4
"""Filtered spans of one size, before one of them gives a shape; and pairs, before they do."""
_PAUSE: Final = 100
"""Filtered spans read between two shapes."""
_MEMBERS: Final = 8
"""Spans in a shape at most."""
_JOINT: Final = 16
"""Shapes of several spans kept."""
_TRIED: Final = 4
"""Shapes tried at a span, before none of several spans is added."""
_LOOK: Final = 8
_LOOK_SELDOM: Final = 1024
"""Requests between two looks for spans that are found side by side; more and more if none are."""
_DOTS: Final = 4
"""Up to so many bytes that may be anything are passed faster one by one than as a repetition."""

_IDS: Final = (SPAN_TRACE_ID_FIELD, SPAN_SPAN_ID_FIELD, SPAN_PARENT_SPAN_ID_FIELD)
_SIZES: Final = (16, 8, 8)
_I64, _I32 = 1, 5

Take: TypeAlias = Callable[[bytes], bytes]
"""Takes an id out of the part of a span in which all its ids are."""


class Outline(NamedTuple):
    """What spans that are alike have in common.

    ``span``: one of them, tag and length included. ``fixed``: for each of its bytes, 1 if it is the
    same in all of them, 0 if it may be anything. ``ids``: where trace id, span id and parent span
    id stand; 0: there is no such id of the length that it should have.
    """

    span: bytes
    fixed: bytes
    ids: tuple[int, int, int]

    @property
    def part(self) -> tuple[int, int]:
        """Where the part begins in which all ids are, and behind it; (0, 0): it has not both."""
        if not self.ids[0] or not self.ids[1]:
            return 0, 0
        placed = [(at, at + size) for at, size in zip(self.ids, _SIZES, strict=True) if at]
        return min(placed)[0], max(behind for _, behind in placed)

    def expression(self) -> bytes:
        """Matches such a span. Groups, if it has ids: the part in which they are, the span id."""
        first, behind = self.part
        if not behind:
            return self._expression(0, len(self.span))
        at = self.ids[1]
        return b"%b(%b(%b)%b)%b" % (
            self._expression(0, first),
            self._expression(first, at),
            self._expression(at, at + 8),
            self._expression(at + 8, behind),
            self._expression(behind, len(self.span)),
        )

    def _expression(self, start: int, end: int) -> bytes:
        out: list[bytes] = []
        pos = start
        for fixed, run in groupby(self.fixed[start:end]):
            size = len(list(run))
            if fixed:
                out.append(re.escape(self.span[pos : pos + size]))
            else:
                # Possessive, or the rest of the expression would be tried in a call.
                out.append(b"." * size if size <= _DOTS else b".{%d}+" % size)
            pos += size
        return b"".join(out)


class Member(NamedTuple):
    """A span of a shape. ``code``: why it goes.

    The others take its ids out of the part in which they are; None: there is none.
    """

    code: int
    trace_id: Take | None
    span_id: Take | None
    parent_id: Take | None


class Shape:
    """One or some spans that stand side by side, each with the code that says why it goes."""

    def __init__(self, outlines: tuple[tuple[Outline, int], ...]) -> None:
        self.outlines = outlines
        self.size = sum(len(each.span) for each, _ in outlines)
        """In bytes."""
        self.first_size = len(outlines[0][0].span)
        self.members: list[Member] = []
        for each, code in outlines:
            first, behind = each.part
            takes = [
                itemgetter(slice(at - first, at - first + size)) if at and behind else None
                for at, size in zip(each.ids, _SIZES, strict=True)
            ]
            self.members.append(Member(code, *takes))
        expression = b"".join(each.expression() for each, _ in outlines)
        self.match = re.compile(expression, re.DOTALL).match


def outline(buf: bytes, start: int, body: int, end: int) -> Outline:
    """What spans like the one whose tag is at ``start`` and whose message is at ``body`` share.

    Raises:
        MalformedError: the span does not parse, or is written in a way that is not followed here.
    """
    fixed = bytearray(b"\1" * (end - start))
    ids = [0, 0, 0]
    for number, kind, at, stop, _ in wire.fields(buf, body, end):
        if number == SPAN_ATTRIBUTES_FIELD and kind == LEN:
            for one, behind in _free(buf, at, stop):
                fixed[one - start : behind - start] = bytes(behind - one)
        elif number != SPAN_KIND_FIELD and kind in {LEN, _I64, _I32}:
            if number in _IDS and kind == LEN:
                which = _IDS.index(number)
                if ids[which]:
                    raise MalformedError("an id that is there twice")
                ids[which] = at - start
                if stop - at != _SIZES[which]:
                    raise MalformedError("an id of another length")
            fixed[at - start : stop - start] = bytes(stop - at)
        # Else it stays: varints and groups, whose lengths are in their bytes; the kind among them.
    return Outline(buf[start:end], bytes(fixed), (ids[0], ids[1], ids[2]))


def _free(buf: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What of a KeyValue may be anything: nothing if its key matters, else its value.

    So may its key, if no key that matters is as long: each byte that need not be compared is time
    saved in every span.
    """
    found = list(wire.fields(buf, start, end))
    usual = [(KEYVALUE_KEY_FIELD, LEN), (KEYVALUE_VALUE_FIELD, LEN)]
    if [(number, kind) for number, kind, *_ in found] != usual:
        return
    (_, _, at, stop, _), (_, _, value, behind, _) = found
    if buf[at:stop] not in DECIDING_KEYS:
        yield value, behind
        if stop - at not in KEY_SIZES:
            yield at, stop


class Shapes:
    """The shapes of what was filtered of late."""

    def __init__(self) -> None:
        self.by_size: dict[int, list[Known[Shape]]] = {}
        """By the size of the first span, tag and length included; the longest shapes first."""
        self._count = self._joint = 0
        self._filtered: Counter[int] = Counter()
        self._pause = 0
        self._looks = self._until_look = _LOOK

    def learn(self, buf: bytes, start: int, body: int, end: int, code: int) -> None:
        """A span was read and filtered; others like it may come.

        ``start``, ``body``, ``end``: offsets of its tag, of its message, and behind it.
        """
        size = end - start
        self._pause -= 1
        self._filtered[size] += 1
        if self._pause > 0 or self._filtered[size] < _SEEN or size > _LARGEST:
            return
        if any(known.test(buf, start) for known in self.by_size.get(size, ())):
            return  # Learned since the request arrived.
        self._pause = _PAUSE
        self._filtered.clear()
        try:
            found = outline(buf, start, body, end)
        except MalformedError:
            return
        self._add(Shape(((found, code),)))

    def join(self, buf: bytes) -> None:
        """Spans in this request have been recognized; are any of them often side by side?"""
        self._until_look -= 1
        if self._until_look > 0:
            return
        self._looks = min(2 * self._looks, _LOOK_SELDOM)
        found: dict[int, Shape] = {}

        def noting(known: Known[Shape]) -> Known[Shape]:
            def test(buf: bytes, pos: int) -> re.Match[bytes] | None:
                match = known.test(buf, pos)
                if match:
                    found[pos] = known.told
                return match

            return known._replace(test=test)

        sift(buf, {size: list(map(noting, known)) for size, known in self.by_size.items()})
        pairs = Counter(
            (one, other)
            for (pos, one), (following, other) in pairwise(found.items())
            if pos + one.size == following and self._may_join(one, other)
        )
        for (one, other), times in pairs.most_common(1):
            if times >= _SEEN:
                if self._joint < _JOINT:
                    self._looks = _LOOK
                else:
                    # Ever other ones: they are in no order that lasts.
                    self._keep_single()
                self._joint += 1
                self._add(Shape(one.outlines + other.outlines))
        self._until_look = self._looks

    def _may_join(self, one: Shape, other: Shape) -> bool:
        outlines = one.outlines + other.outlines
        known = self.by_size.get(one.first_size, ())
        return (
            len(outlines) <= _MEMBERS
            and one.size + other.size <= _LARGEST
            and len(known) < _TRIED
            and all(each.told.outlines != outlines for each in known)
        )

    def _keep_single(self) -> None:
        self._joint = 0
        for size, known in self.by_size.items():
            self.by_size[size] = [each for each in known if each.spans == 1]
        self._count = sum(map(len, self.by_size.values()))

    def _add(self, shape: Shape) -> None:
        if self._count >= _MOST:
            self.by_size.clear()
            self._count = self._joint = 0
        self._count += 1
        known = self.by_size.setdefault(shape.first_size, [])
        known.append(Known(shape.match, shape, shape.size, len(shape.members)))
        known.sort(key=lambda each: -each.size)
