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
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final

from relay.processors import NOTHING, Result
from relay.processors.patterns import UrlRules
from relay.processors.remembered import (
    KEY,
    MOST,
    TRACE,
    Remembered,
    Window,
    names,
    parents,
)
from relay.processors.search import Needles, Search
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
_MANY_PARENTS: Final = 1024
"""So many more candidates for a parent id than four a span are too many."""
_FEW: Final = 2
"""Up to this many ids, looking for each is cheaper than listing all parent ids."""
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
        self.where: Layout = layout(payload, units)
        self.units = len(self.where.starts)
        self._facts: dict[int, SpanFacts | None] = {}
        self._windows: list[Window] | None = None
        self._children: dict[bytes, list[int]] | None = None
        self._rounds = 0

    def facts(self, number: int) -> SpanFacts | None:
        """What there is to know of a span; None: it does not parse."""
        if number not in self._facts:
            self._facts[number] = self._read(number)
        return self._facts[number]

    def _read(self, number: int) -> SpanFacts | None:
        try:
            return read(self.payload, self.where.bodies[number], self.where.ends[number])
        except MalformedError:
            return None

    def candidates(self, search: Search) -> Iterator[int]:
        """The spans in which the search finds something."""
        bodies, ends = self.where.bodies, self.where.ends
        pos = 0
        while (found := search(self.payload, pos)) is not None:
            at = found.start()
            number = self.where.before(at)
            if number >= 0 and at < ends[number]:
                yield number
                pos = ends[number]
            elif number + 1 < self.units:
                pos = bodies[number + 1]
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
        return {each for window in windows for each in window.ids if each in ids}

    def _list(self) -> list[Window] | None:
        """What may be parent ids; None when reading all spans is the better way."""
        if self._windows is None and self._children is None:
            windows = []
            room = 4 * self.units + _MANY_PARENTS
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

    def below(self, roots: AbstractSet[bytes], stay: AbstractSet[int]) -> dict[int, bytes]:
        """All spans below the spans ``roots`` (keys), with their keys; not through ``stay``."""
        found: dict[int, bytes] = {}
        reached = set(roots)
        frontier: AbstractSet[bytes] = roots
        while frontier:
            following: set[bytes] = set()
            for number, facts in self.children(frontier):
                if number in found or number in stay:
                    continue
                key = found[number] = _key(facts.trace_id, facts.span_id)
                if key and key not in reached:
                    reached.add(key)
                    following.add(key)
            frontier = following
        return found


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

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        remembered = self._remembered
        remembered.expire(now)
        urls = self._urls if self._urls and self._urls.present(payload) else None
        events = self._events if self._events and self._events.present(payload) else None
        touched = not urls and remembered.touches(payload)
        if not urls and not events and not touched and self._bound is None:
            return Result(payload, units, items)
        request = _Request(payload, units)
        gone = bytearray(request.units)
        roots: set[bytes] = set()
        stay: AbstractSet[int] = frozenset()
        if urls:
            roots, stay = self._judge(request, urls, gone)
            # Where there are roots, the parent ids will be listed in any case.
            touched = bool(roots) or remembered.touches(payload)
        if events:
            _drop_events(request, events, gone)
        condemned = roots
        if touched:
            above = roots | remembered.recent(request.named(remembered.ids), now)
            condemned = roots | _drop_below(request, gone, above, stay)
        self._condemned = condemned
        remembered.add(condemned, now)
        if self._bound is not None:
            _sample(request, gone, self._bound)
        return _result(request, gone, items, learned=bool(condemned))

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        ids = {key[TRACE:] for key in self._condemned}
        few = len(ids) <= _FEW
        touched = any(each in payload for each in ids) if few else names(payload, ids)
        if not touched:
            return Result(payload, units, items)
        request = _Request(payload, units)
        gone = bytearray(request.units)
        stay: AbstractSet[int] = frozenset()
        if self._inclusions and self._urls and self._urls.present(payload):
            # What is not included went when it arrived; what is stays with all below it.
            _, stay = self._judge(request, self._urls, bytearray(request.units))
        condemned = _drop_below(request, gone, self._condemned, stay)
        learned = not condemned <= self._condemned
        if learned:
            self._condemned = self._condemned | condemned
            self._remembered.add(condemned, now)
        return _result(request, gone, items, learned=learned)

    def _judge(
        self, request: _Request, urls: Needles, gone: bytearray
    ) -> tuple[set[bytes], AbstractSet[int]]:
        """Judge the server spans by their paths.

        Marks those that go in ``gone``. Returns their keys, and the numbers of the spans that stay
        whatever is above them.
        """
        rejected: list[tuple[int, SpanFacts]] = []
        included: list[tuple[int, SpanFacts]] = []
        traced = self._rules.traced
        for number in request.candidates(urls.find):
            facts = request.facts(number)
            if facts is not None and facts.path is not None:
                (included if traced(facts.path) else rejected).append((number, facts))
        stay: AbstractSet[int] = frozenset()
        reason = _EXCLUDED
        if self._inclusions:
            reason = _NOT_INCLUDED
            if included and (rejected or self._remembered.ids):
                above = {_key(f.trace_id, f.span_id) for _, f in included} - {b""}
                below = request.below(above, stay)
                stay = below.keys() | {number for number, _ in included}
            else:
                stay = {number for number, _ in included}
        roots: set[bytes] = set()
        for number, facts in rejected:
            if number not in stay:
                gone[number] = reason
                roots.add(_key(facts.trace_id, facts.span_id))
        roots.discard(b"")
        return roots, stay


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


def _drop_events(request: _Request, events: Needles, gone: bytearray) -> None:
    """Mark the ASGI event spans."""
    for number in request.candidates(events.find):
        facts = request.facts(number)
        if facts is not None and facts.event:
            gone[number] = _EVENT


def _drop_below(
    request: _Request, gone: bytearray, above: set[bytes], stay: AbstractSet[int]
) -> set[bytes]:
    """Mark what is below the spans ``above``; return the keys of what was found there."""
    below = request.below(above, stay)
    for number in below:
        if not gone[number]:
            gone[number] = _SUBTREE
    return {key for key in below.values() if key}


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


def _result(request: _Request, gone: bytearray, items: int, *, learned: bool) -> Result:
    left = gone.count(0)
    if left == request.units:
        return Result(request.payload, left, items, NOTHING, learned)
    removed = {reason: n for code, reason in enumerate(REASONS) if code and (n := gone.count(code))}
    return Result(without(request.payload, request.where, gone), left, left, removed, learned)
