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
from itertools import accumulate, groupby, pairwise
from operator import itemgetter, sub
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
from relay.processors.spans import (
    DECIDING_KEYS,
    KEY_SIZES,
    NOTHING_USUAL,
    USUAL,
    Known,
    layout,
    sift,
    usual,
)
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
_USUAL: Final = 8
"""Sizes of spans that stay that are kept at most."""
_WORTHWHILE: Final = 8
"""One in so many spans has to have other sizes than those that are kept, before others are kept:
that takes 2 ms."""
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


def _expression(span: bytes, fixed: bytes) -> bytes:
    """Matches what is the same in all fixed bytes."""
    out: list[bytes] = []
    pos = 0
    for same, run in groupby(fixed):
        size = len(list(run))
        if same:
            out.append(re.escape(span[pos : pos + size]))
        else:
            # Possessive, or the rest of the expression would be tried in a call.
            out.append(b"." * size if size <= _DOTS else b".{%d}+" % size)
        pos += size
    return b"".join(out)


class Member(NamedTuple):
    """A span of a shape. ``code``: why it goes.

    The others take its ids out of what the shape's group matches; None: there is none, and where
    trace id or span id is missing there are none at all.
    """

    code: int
    trace_id: Take | None
    span_id: Take | None
    parent_id: Take | None


class Shape:
    """One or some spans that stand side by side, each with the code that says why it goes.

    Those of them that have ids are of one trace.
    """

    def __init__(self, outlines: tuple[tuple[Outline, int], ...]) -> None:
        self.outlines = outlines
        self.size = sum(len(each.span) for each, _ in outlines)
        """In bytes."""
        self.first_size = len(outlines[0][0].span)
        self.members: list[Member] = []
        starts = list(accumulate((len(each.span) for each, _ in outlines), initial=0))
        parts = [
            (start + each.part[0], start + each.part[1])
            for start, (each, _) in zip(starts, outlines, strict=False)
            if each.part[1]
        ]
        begin, end = (parts[0][0], parts[-1][1]) if parts else (0, 0)
        # What the expression has beside the bytes of the spans: where, instead of how many.
        inserted = [(begin, 0, b"(")]
        trace = b"(?P<trace>.{16}+)"
        for start, (each, code) in zip(starts, outlines, strict=False):
            if each.part[1]:
                inserted.append((start + each.ids[0], _SIZES[0], trace))
                # By name: after a number a digit could follow.
                trace = b"(?P=trace)"
            takes = [
                itemgetter(slice(start + at - begin, start + at - begin + size))
                if at and each.part[1]
                else None
                for at, size in zip(each.ids, _SIZES, strict=True)
            ]
            self.members.append(Member(code, *takes))
        inserted.append((end, 0, b")"))
        self.trace_id = next((each.trace_id for each in self.members if each.trace_id), None)
        """Takes the trace id out of what the group matches; None: no span has ids."""
        span = b"".join(each.span for each, _ in outlines)
        fixed = b"".join(each.fixed for each, _ in outlines)
        out: list[bytes] = []
        pos = 0
        for at, instead, text in inserted:
            out += (_expression(span[pos:at], fixed[pos:at]), text)
            pos = at + instead
        out.append(_expression(span[pos:], fixed[pos:]))
        self.match = re.compile(b"".join(out), re.DOTALL).match
        """Its group 1 is the part in which all ids of all spans are; empty if they have none."""


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
        self.usual = NOTHING_USUAL
        """Sizes, none of them in ``by_size``, that many spans had which stayed."""

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

    def look(self, buf: bytes, units: int) -> None:
        """Spans in this request, of so many, have been recognized: see what it is made of.

        Are any of them often side by side? Which sizes are usual among the others?
        """
        self._until_look -= 1
        if self._until_look > 0:
            return
        self._looks = min(2 * self._looks, _LOOK_SELDOM)
        self._join(buf)
        self._until_look = self._looks
        where = layout(buf, units)
        self._note_usual(Counter(map(sub, where.ends, where.starts)))

    def _join(self, buf: bytes) -> None:
        found: dict[int, tuple[Shape, bytes]] = {}

        def noting(known: Known[Shape]) -> Known[Shape]:
            def test(buf: bytes, pos: int) -> re.Match[bytes] | None:
                match = known.test(buf, pos)
                if match:
                    shape = known.told
                    found[pos] = shape, shape.trace_id(match[1]) if shape.trace_id else b""
                return match

            return known._replace(test=test)

        sift(buf, {size: list(map(noting, known)) for size, known in self.by_size.items()})
        pairs = Counter(
            (one, other)
            for (pos, (one, trace)), (following, (other, same)) in pairwise(found.items())
            if pos + one.size == following and trace == same and self._may_join(one, other)
        )
        for (one, other), times in pairs.most_common(1):
            if times >= _SEEN:
                if self._joint < _JOINT:
                    self._looks = _LOOK
                else:
                    # Ever other ones: they are in no order that lasts.
                    self._keep_single()
                self._add(Shape(one.outlines + other.outlines))
                self._joint += 1

    def _note_usual(self, times: Counter[int]) -> None:
        for size in self.by_size:
            del times[size]
        often = [n for n, count in times.most_common(_USUAL) if n in USUAL and count >= _SEEN]
        more = sum(times[n] for n in often) - sum(times[n] for n in self.usual.sizes)
        if more * _WORTHWHILE > times.total():
            self.usual = usual(often)

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
        if shape.first_size in self.usual.sizes:
            self.usual = usual(n for n in self.usual.sizes if n != shape.first_size)
        known = self.by_size.setdefault(shape.first_size, [])
        known.append(Known(shape.match, shape, shape.size, len(shape.members)))
        known.sort(key=lambda each: -each.size)
