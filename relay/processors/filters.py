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

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Final, NamedTuple

from proto_stubs import TRACES
from relay import wire
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
    sift,
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
_SIFTED: Final = 1 << 20
"""Bytes of the largest request whose spans are tested for their looks: the offsets of all spans are
kept meanwhile, and they may be very small."""
_MANY_PARENTS: Final = 1024
"""So many more candidates for a parent id than four a span are too many."""
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
        self._facts: dict[int, SpanFacts | None] = {}
        self._windows: list[Window] | None = None
        self._children: dict[bytes, list[int]] | None = None
        self._rounds = 0

    @cached_property
    def where(self) -> Layout:
        """Where its spans stand; looked for at the first need."""
        return layout(self.payload, self.units)

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

    def __init__(self, payload: bytes, where: Layout, found: Mapping[Shape, Sequence[int]]) -> None:
        starts = where.starts
        self.gone = gone = bytearray(len(starts))
        self.removed: Counter[int] = Counter()
        self.roots: set[bytes] = set()
        """The keys of the server spans among them."""
        self._children: list[tuple[bytes, bytes]] = []
        # The key of a span's parent, and its own.
        for shape, numbers in found.items():
            code = shape.code
            self.removed[code] += len(numbers)
            for number in numbers:
                gone[number] = code
            t, s, p = shape.trace, shape.span, shape.parent
            if not t or not s:
                continue
            at = [starts[number] for number in numbers]
            keys = [payload[a + t : a + t + 16] + payload[a + s : a + s + 8] for a in at]
            if shape.code != _EVENT:
                self.roots.update(keys)
            if p:
                above = [payload[a + t : a + t + 16] + payload[a + p : a + p + 8] for a in at]
                self._children += zip(above, keys, strict=True)
        self.roots = {key for key in self.roots if key[TRACE:] != _NO_ID}

    def parents(self) -> Iterator[bytes]:
        """The keys of the spans directly above them."""
        return (above for above, _ in self._children)

    def children(self, keys: AbstractSet[bytes]) -> set[bytes]:
        """The keys of those whose parent is one of ``keys``."""
        found = {key for above, key in self._children if above in keys}
        return {key for key in found if key[TRACE:] != _NO_ID}


class _Look(NamedTuple):
    """What was found out about a request when it was counted."""

    payload: bytes
    candidates: bool
    """Whether a text stands in it without which nothing is filtered, but for descendants."""
    sifted: tuple[Layout, Mapping[Shape, Sequence[int]]] | None


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
        self._look: _Look | None = None

    def count(self, payload: bytes) -> tuple[int, int]:
        """See :class:`relay.processors.Processor`."""
        look = self._look_at(payload)
        if look.sifted is None:
            units, items = wire.count(payload, TRACES)
        else:
            units = items = len(look.sifted[0].starts)
        # Nothing is held on to that will not be processed.
        self._look = look if units else None
        return units, items

    def _look_at(self, payload: bytes) -> _Look:
        """Whether anything in the request asks for filtering; walk it if so."""
        urls, events = self._urls, self._events
        if not ((urls and urls.present(payload)) or (events and events.present(payload))):
            return _Look(payload, candidates=False, sifted=None)
        sifted = None
        if self._shapes.by_size and len(payload) <= _SIFTED:
            sifted = sift(payload, self._shapes.by_size.get)
        return _Look(payload, candidates=True, sifted=sifted)

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        look, self._look = self._look, None
        if look is None or look.payload is not payload:
            look = self._look_at(payload)
        self._listings.latest = b""
        remembered = self._remembered
        remembered.expire(now)
        if not look.candidates:
            touched = remembered.touches(payload)
            if not touched and self._bound is None:
                self._listings.note(payload)
                return Result(payload, units, items)
            return self._process(_Request(payload, units), now, None, touched=touched)
        request, settled = _Request(payload, units), None
        if look.sifted is not None:
            where, found = look.sifted
            request.where = where
            if found:
                settled = Settled(payload, where, found)
                left = settled.gone.count(0)
                request = _Request(without(payload, where, settled.gone), left)
        return self._process(request, now, settled, touched=None)

    def _process(
        self, request: _Request, now: float, settled: Settled | None, *, touched: bool | None
    ) -> Result:
        """What is left to do in a request out of which the ``settled`` spans have been taken.

        ``touched``: whether it may hold children of remembered spans; None: not known yet.
        """
        remembered = self._remembered
        payload, units = request.payload, request.units
        roots = settled.roots if settled else set[bytes]()
        stay: AbstractSet[int] = frozenset()
        urls = events = None
        if touched is None and units:
            urls = self._urls if self._urls and self._urls.present(payload) else None
            events = self._events if self._events and self._events.present(payload) else None
        gone = bytearray(units)
        if urls:
            found, stay = self._judge(request, urls, gone)
            roots |= found
        # Those that are settled stand no longer in the payload, but may be below others.
        above = roots | remembered.of(settled.parents(), now) if settled else roots
        if touched is None:
            # Where there are some, the parent ids will be listed in any case.
            touched = bool(above) or remembered.touches(payload)
        if events:
            self._drop_events(request, events, gone)
        condemned = roots
        if touched:
            if remembered.ids and (named := request.named(remembered.ids)):
                above = above | remembered.recent(named, now)
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
        if condemned:
            self._listings.latest = result.payload
        return result

    def affects(self, waiting: Iterable[bytes]) -> bool:
        """Whether :meth:`prune` may find anything in any of these payloads. Never wrongly no."""
        return self._listings.any_names(waiting, {key[TRACE:] for key in self._condemned})

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        request = _Request(payload, units)
        if not request.named({key[TRACE:] for key in self._condemned}):
            return Result(payload, units, items)
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
    removed: dict[str, int] = {}
    for code in set(gone) - {0}:
        removed[REASONS[code]] = gone.count(code)
    if settled:
        for code, number in settled.removed.items():
            removed[REASONS[code]] = removed.get(REASONS[code], 0) + number
    return Result(payload, left, left, removed or NOTHING, learned)
