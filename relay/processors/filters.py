"""The filters of traces: excluded and not included requests, ASGI event spans, sampling.

A request in which nothing is to be filtered costs some searches over its bytes. Only where one of
them finds a candidate (the text of a pattern, of an attribute's key, the id of a filtered span) is
the span around it read, and the decision made on what really stands in its fields.

What is filtered, and which reason counts when several hold, in this order:

1. ``excluded_url``, ``not_included_url``: a server span, judged by its own path.
2. ``send_receive``: an ASGI event span; whether its server span is filtered too does not matter,
   since that is often not known when it arrives.
3. ``subtree``: it has a filtered server span above it.
4. ``sampled_out``: of what is left, by trace id.

Above and below are by trace id and parent span id, through all spans of the same request and those
remembered, whatever their kind. With inclusions a span stays that has an included server span
above it in its request, or is one; this ends subtrees of server spans that are not included, too.

Source: contract section 6.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from itertools import repeat
from operator import contains, sub
from typing import Final

from relay.processors import NOTHING, Result
from relay.processors.patterns import UrlRules
from relay.processors.remembered import (
    KEY,
    MOST,
    TRACE,
    Listings,
    Remembered,
    Window,
    parents,
)
from relay.processors.search import Needles, Search
from relay.processors.shapes import Shape, Shapes
from relay.processors.spans import (
    ASGI_EVENT,
    URL_KEYS,
    Layout,
    SpanFacts,
    layout,
    read,
    without,
)
from relay.wire import MalformedError

__all__ = ["SpanFilter", "sampling_bound"]

REASONS: Final = (
    "",
    "excluded_url",
    "not_included_url",
    "send_receive",
    "subtree",
    "sampled_out",
)
_EXCLUDED, _NOT_INCLUDED, _EVENT, _SUBTREE, _SAMPLED_OUT = range(1, 6)

_ROUNDS: Final = 8
"""Generations of descendants that are looked up in the bytes; for deeper trees, and where the
bytes hold far more candidates than spans, all spans are read instead."""
_FACTS: Final = 1 << 18
"""So many facts of spans, or candidates for parent ids, are kept at most while a request is worked
on; one of 16 MiB has some 36,000 ordinary spans."""
_MANY_PARENTS: Final = 1024
"""So many more candidates for a parent id than four a span are too many."""
_FEW: Final = 2
"""Up to this many traces, looking for each is cheaper than listing all parent ids."""
_NO_ID: Final = bytes(8)
"""An id of zeros means none (trace.proto)."""


def sampling_bound(ratio: float) -> int:
    """The trace ids that are kept: those whose lower 64 bits are below this.

    Source: OpenTelemetry Python SDK, ``TraceIdRatioBased.get_bound_for_rate``.
    """
    return round(ratio * 2**64)


def _key(trace_id: bytes, span_id: bytes) -> bytes:
    """Trace and span id as one; ``b""`` when they cannot name a span."""
    key = trace_id + span_id
    if len(key) != KEY or len(trace_id) != TRACE or span_id == _NO_ID:
        return b""
    return key


class _Request:
    """The spans of one request, read as far as somebody asks."""

    def __init__(self, payload: bytes, units: int) -> None:
        self.payload = payload
        self.units = units
        self._where: Layout | None = None
        self._facts: dict[int, SpanFacts | None] = {}
        self._windows: list[Window] | None = None
        self._children: dict[bytes, list[int]] | None = None
        self._rounds = 0

    @property
    def where(self) -> Layout:
        """Where its spans stand; looked for at the first need."""
        if self._where is None:
            self._where = layout(self.payload, self.units)
        return self._where

    def facts(self, number: int) -> SpanFacts | None:
        """What there is to know of a span; None: it does not parse."""
        if number in self._facts:
            return self._facts[number]
        facts = self._read(number)
        if len(self._facts) < _FACTS:
            self._facts[number] = facts
        return facts

    def _read(self, number: int) -> SpanFacts | None:
        try:
            body = self.where.body(self.payload, number)
            return read(self.payload, body, self.where.ends[number])
        except MalformedError:
            return None

    def candidates(self, search: Search) -> Iterator[int]:
        """The spans in which the search finds something."""
        starts, ends = self.where.starts, self.where.ends
        pos = 0
        while (found := search(self.payload, pos)) is not None:
            at = found.start()
            number = self.where.before(at)
            if number >= 0 and at < ends[number]:
                yield number
                pos = ends[number]
            elif number + 1 < self.units:
                pos = starts[number + 1]
            else:
                return

    def children(self, keys: AbstractSet[bytes]) -> Iterator[tuple[int, SpanFacts]]:
        """The spans whose parent is one of ``keys``."""
        self._rounds += 1
        windows = self._list() if self._rounds <= _ROUNDS else None
        if windows is None:
            by_parent = self._read_all()
            for key in keys:
                for number in by_parent.get(key, ()):
                    if (facts := self.facts(number)) is not None:
                        yield number, facts
            return
        ids = {key[TRACE:] for key in keys}
        for window in windows:
            if ids.isdisjoint(window.ids):
                continue
            for at in window.positions(self.payload, ids):
                number = self.where.at(at)
                facts = self.facts(number) if number >= 0 else None
                if facts is not None and _key(facts.trace_id, facts.parent_id) in keys:
                    yield number, facts

    def named(self, ids: AbstractSet[bytes]) -> set[bytes]:
        """Those of ``ids`` that may be the parent span id of a span."""
        windows = self._list()
        if windows is None:
            return {key[TRACE:] for key in self._read_all()} & ids
        found: set[bytes] = set()
        for window in windows:
            if not ids.isdisjoint(window.ids):
                found.update(each for each in window.ids if each in ids)
        return found

    @property
    def listed(self) -> list[Window] | None:
        """What may be parent ids, as far as that was asked for."""
        return self._windows

    def _list(self) -> list[Window] | None:
        """What may be parent ids; None when reading all spans is the better way."""
        if self._windows is None and self._children is None:
            windows = []
            room = min(4 * self.units + _MANY_PARENTS, _FACTS)
            for window in parents(self.payload):
                windows.append(window)
                room -= len(window.ids)
                if room < 0:
                    break
            if room < 0:
                self._read_all()
            else:
                self._windows = windows
        return self._windows

    def _read_all(self) -> dict[bytes, list[int]]:
        """The spans by their parent."""
        if self._children is None:
            self._children = defaultdict(list)
            for number in range(self.units):
                # Not kept: there may be very many.
                facts = self._read(number)
                if facts is not None and (key := _key(facts.trace_id, facts.parent_id)):
                    self._children[key].append(number)
        return self._children

    def below(
        self, roots: AbstractSet[bytes], stay: AbstractSet[int], settled: Settled | None = None
    ) -> tuple[dict[int, bytes], set[bytes]]:
        """All spans below the spans ``roots`` (keys), not through ``stay``; and the keys of them.

        Among the latter are those of ``settled`` spans, which were taken out of the request before.
        """
        found: dict[int, bytes] = {}
        keys: set[bytes] = set()
        frontier: AbstractSet[bytes] = roots
        while frontier:
            following: set[bytes] = settled.children(frontier) if settled else set()
            for number, facts in self.children(frontier):
                if number not in found and number not in stay:
                    key = found[number] = _key(facts.trace_id, facts.span_id)
                    following.add(key)
            following.discard(b"")
            frontier = following - keys - roots
            keys |= following
        return found, keys


class Settled:
    """The spans of a request that are filtered for what they look like, see :class:`Shapes`."""

    def __init__(self, request: _Request, shapes: Shapes) -> None:
        where, payload = request.where, request.payload
        self.payload = payload
        self.gone = bytearray(len(where.starts))
        self._found: dict[Shape, list[int]] = {}
        by_size = shapes.by_size
        starts, gone, found = where.starts, self.gone, self._found
        for number, size in enumerate(map(sub, where.ends, starts)):
            if size in by_size:
                start = starts[number]
                for shape in by_size[size]:
                    if shape.match(payload, start):
                        gone[number] = shape.code
                        if shape in found:
                            found[shape].append(start)
                        else:
                            found[shape] = [start]
                        break

    def roots(self) -> set[bytes]:
        """The keys of the server spans among them."""
        payload = self.payload
        return {
            key
            for shape, starts in self._found.items()
            if shape.code != _EVENT and (t := shape.trace) and (s := shape.span)
            for at in starts
            if (key := payload[at + t : at + t + 16] + payload[at + s : at + s + 8])[16:] != _NO_ID
        }

    def children(self, keys: AbstractSet[bytes]) -> set[bytes]:
        """The keys of those whose parent is one of ``keys``."""
        payload = self.payload
        return {
            key
            for shape, starts in self._found.items()
            if (t := shape.trace) and (s := shape.span) and (p := shape.parent)
            for at in starts
            if payload[at + t : at + t + 16] + payload[at + p : at + p + 8] in keys
            and (key := payload[at + t : at + t + 16] + payload[at + s : at + s + 8])[16:] != _NO_ID
        }


class SpanFilter:
    """What of a traces request stays.

    Keeps one thing between requests: which spans it filtered of late (:class:`Remembered`).
    ``memory``: how many of them at most.
    """

    def __init__(
        self, rules: UrlRules, *, drop_events: bool, ratio: float, memory: int = MOST
    ) -> None:
        self._rules = rules
        self._inclusions = rules.included is not None
        self._urls = _url_needles(rules)
        self._events = Needles([ASGI_EVENT], keys=True) if drop_events else None
        self._bound = sampling_bound(ratio) if ratio < 1 else None
        self._remembered = Remembered(memory)
        self._condemned: set[bytes] = set()
        self._shapes = Shapes()
        self._listings = Listings()

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        remembered = self._remembered
        remembered.expire(now)
        urls = self._urls if self._urls and self._urls.present(payload) else None
        events = self._events if self._events and self._events.present(payload) else None
        if urls is None and events is None:
            touched = remembered.touches(payload)
            if not touched and self._bound is None:
                return Result(payload, units, items)
            return self._process(_Request(payload, units), now, None, touched=touched)
        if not self._shapes.by_size:
            return self._process(_Request(payload, units), now, None, touched=None)
        request = _Request(payload, units)
        settled = Settled(request, self._shapes)
        left = settled.gone.count(0)
        if left < units:
            request = _Request(without(payload, request.where, settled.gone), left)
        return self._process(request, now, settled, touched=None)

    def _process(
        self, request: _Request, now: float, settled: Settled | None, *, touched: bool | None
    ) -> Result:
        """What is left to do in a request out of which the ``settled`` spans have been taken.

        ``touched``: whether it may hold children of remembered spans; None: not known yet.
        """
        remembered = self._remembered
        payload, units = request.payload, request.units
        roots = settled.roots() if settled else set[bytes]()
        stay: AbstractSet[int] = frozenset()
        urls = events = None
        if touched is None and units:
            urls = self._urls if self._urls and self._urls.present(payload) else None
            events = self._events if self._events and self._events.present(payload) else None
        gone = bytearray(units)
        if urls:
            found, stay = self._judge(request, urls, gone)
            roots |= found
        if touched is None:
            # Where there are roots, the parent ids will be listed in any case.
            touched = bool(roots) or remembered.touches(payload)
        if events:
            self._drop_events(request, events, gone)
        condemned = roots
        if touched:
            above = roots
            if remembered.ids and (named := request.named(remembered.ids)):
                above = roots | remembered.recent(named, now)
            below, keys = request.below(above, stay, settled)
            for number in below:
                gone[number] = gone[number] or _SUBTREE
            condemned = roots | keys
        if self._bound is not None:
            _sample(request, gone, self._bound)
        self._condemned = condemned
        remembered.add(condemned, now)
        result = _result(request, gone, settled, learned=bool(condemned))
        self._listings.note(result.payload, request.listed)
        return result

    def affects(self, waiting: Collection[bytes]) -> bool:
        """Whether :meth:`prune` may find anything in any of these payloads. Never wrongly no."""
        traces = {key[:TRACE] for key in self._condemned}
        if len(traces) <= _FEW:
            return any(True in map(contains, waiting, repeat(trace)) for trace in traces)
        ids = {key[TRACE:] for key in self._condemned}
        return any(not ids.isdisjoint(self._listings.of(payload)) for payload in waiting)

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        if not self.affects((payload,)):
            return Result(payload, units, items)
        request = _Request(payload, units)
        gone = bytearray(request.units)
        stay: AbstractSet[int] = frozenset()
        if self._inclusions and self._urls and self._urls.present(payload):
            # What is not included went when it arrived; what is stays with all below it.
            _, stay = self._judge(request, self._urls, bytearray(request.units))
        below, condemned = request.below(self._condemned, stay)
        for number in below:
            gone[number] = _SUBTREE
        learned = not condemned <= self._condemned
        if learned:
            self._condemned = self._condemned | condemned
            self._remembered.add(condemned, now)
        return _result(request, gone, None, learned=learned)

    def _judge(
        self, request: _Request, urls: Needles, gone: bytearray
    ) -> tuple[set[bytes], AbstractSet[int]]:
        """Judge the server spans by their paths.

        Marks those that go in ``gone``. Returns their keys, and the numbers of the spans that stay
        whatever is above them.
        """
        # Numbers and keys only: there may be very many.
        rejected: list[tuple[int, bytes]] = []
        included: list[tuple[int, bytes]] = []
        traced = self._rules.traced
        for number in request.candidates(urls.find):
            facts = request.facts(number)
            if facts is not None and facts.path is not None:
                verdict = included if traced(facts.path) else rejected
                verdict.append((number, _key(facts.trace_id, facts.span_id)))
        stay: AbstractSet[int] = frozenset()
        reason = _EXCLUDED
        if self._inclusions:
            reason = _NOT_INCLUDED
            stay = {number for number, _ in included}
            if included and (rejected or self._remembered.ids):
                below, _ = request.below({key for _, key in included} - {b""}, frozenset())
                stay = below.keys() | stay
        roots: set[bytes] = set()
        for number, key in rejected:
            if number not in stay:
                gone[number] = reason
                roots.add(key)
                if not self._inclusions:
                    # Then a span's path alone decides.
                    self._learn(request, number, reason)
        roots.discard(b"")
        return roots, stay

    def _drop_events(self, request: _Request, events: Needles, gone: bytearray) -> None:
        """Mark the ASGI event spans."""
        for number in request.candidates(events.find):
            facts = request.facts(number)
            if facts is not None and facts.event:
                gone[number] = _EVENT
                self._learn(request, number, _EVENT)

    def _learn(self, request: _Request, number: int, code: int) -> None:
        where = request.where
        body = where.body(request.payload, number)
        self._shapes.learn(request.payload, where.starts[number], body, where.ends[number], code)


def _url_needles(rules: UrlRules) -> Needles | None:
    """What stands in every server span on whose path the rules decide; None: they decide nothing.

    For exclusions that is the text of a pattern. Not every pattern has one, and none has that
    matches the path of an empty target; then, and for inclusions, it is an attribute's key.
    """
    if rules.included is None:
        needles = [pattern.needle for pattern in rules.excluded.patterns]
        if not needles:
            return None
        if all(needles) and not rules.excluded.matches(b"/"):
            return Needles(needles)
    return Needles(URL_KEYS, keys=True)


def _sample(request: _Request, gone: bytearray, bound: int) -> None:
    """Mark what is sampled out. A trace id of another length than 16 is no reason to."""
    for number in range(request.units):
        if gone[number]:
            continue
        facts = request.facts(number)
        if facts is None or len(facts.trace_id) != TRACE:
            continue
        if int.from_bytes(facts.trace_id[8:]) >= bound:
            gone[number] = _SAMPLED_OUT


def _result(
    request: _Request, gone: bytearray, settled: Settled | None, *, learned: bool
) -> Result:
    left = gone.count(0)
    payload = request.payload
    if left < request.units:
        payload = without(payload, request.where, gone)
    if settled:
        gone += settled.gone
    if not any(gone):
        return Result(payload, left, left, NOTHING, learned)
    removed = {reason: n for code, reason in enumerate(REASONS) if code and (n := gone.count(code))}
    return Result(payload, left, left, removed, learned)
