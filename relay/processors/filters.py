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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property, partial
from itertools import tee
from typing import Final, NamedTuple

from proto_stubs import TRACES
from relay import wire
from relay.processors import NOTHING, Result, parents, traces
from relay.processors.patterns import UrlRules
from relay.processors.remembered import KEY, MOST, NO_ID, TRACE, Listings, Remembered
from relay.processors.search import Needles, Search
from relay.processors.settled import Settled
from relay.processors.shapes import Shape, Shapes
from relay.processors.spans import (
    ASGI_EVENT,
    URL_KEYS,
    Layout,
    Sifted,
    SpanFacts,
    cut,
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

_NO_SERVERS: Final = frozenset((_EVENT,))
"""Codes of spans that take nothing along."""
_ROUNDS: Final = 8
"""Generations of descendants that are looked up in the bytes; for deeper trees, and where the
bytes hold far more candidates than spans, all spans are read instead."""
_FACTS: Final = 1 << 18
"""So many facts of spans, or candidates for ids, are kept at most while a request is worked
on; one of 16 MiB has some 36,000 ordinary spans."""
_SIFTED: Final = 1 << 20
"""Bytes of the largest request whose spans are tested for their looks: where what they match begins
and ends is kept meanwhile, and they may be very small."""
_MANY_IDS: Final = 1024
"""So many more candidates for an id than four a span are too many."""


def sampling_bound(ratio: float) -> int:
    """The trace ids that are kept: those whose lower 64 bits are below this.

    Source: OpenTelemetry Python SDK, ``TraceIdRatioBased.get_bound_for_rate``.
    """
    return round(ratio * 2**64)


def _key(trace_id: bytes, span_id: bytes) -> bytes:
    """Trace and span id as one; ``b""`` when they cannot name a span."""
    key = trace_id + span_id
    if len(key) != KEY or len(trace_id) != TRACE or span_id == NO_ID:
        return b""
    return key


def _traces(keys: Iterable[bytes]) -> set[bytes]:
    return {key[:TRACE] for key in keys}


def _span_ids(keys: Iterable[bytes]) -> set[bytes]:
    return {key[TRACE:] for key in keys}


class _Request:
    """The spans of one request, read as far as somebody asks."""

    def __init__(self, payload: bytes, units: int) -> None:
        self.payload = payload
        self.units = units
        self._facts: dict[int, SpanFacts | None] = {}
        self._most = min(4 * units + _MANY_IDS, _FACTS)
        self._listed: AbstractSet[bytes] | None = None
        self._windows: list[parents.Window] | None = None
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
        if self._listed is not None and self._listed.isdisjoint(_traces(keys)):
            return  # There is no need to look where they stand.
        ids = _span_ids(keys)
        self._rounds += 1
        windows = self._where_named() if self._rounds <= _ROUNDS else None
        if windows is None:
            by_parent = self._read_all()
            for key in keys:
                for number in by_parent.get(key, ()):
                    if (facts := self.facts(number)) is not None:
                        yield number, facts
            return
        for window in windows:
            if ids.isdisjoint(window.ids):
                continue
            for at in window.positions(self.payload, ids):
                number = self.where.at(at)
                facts = self.facts(number) if number >= 0 else None
                if facts is not None and _key(facts.trace_id, facts.parent_id) in keys:
                    yield number, facts

    def traces(self) -> AbstractSet[bytes]:
        """What may be trace ids of spans that have a parent."""
        listed = self.listing()
        return _traces(self._read_all()) if listed is None else listed

    def parent_ids(self) -> AbstractSet[bytes]:
        """What may be parent ids."""
        windows = self._where_named()
        if windows is None:
            return _span_ids(self._read_all())
        return set().union(*(window.ids for window in windows))

    @property
    def listed(self) -> AbstractSet[bytes] | None:
        """What may be trace ids, as far as that was asked for."""
        return self._listed

    def listing(self) -> AbstractSet[bytes] | None:
        """What may be trace ids; None when reading all spans is the better way."""
        if self._listed is None and self._children is None:
            self._listed = traces.ids(self.payload, self._most)
            if self._listed is None:
                self._read_all()
        return self._listed

    def _where_named(self) -> list[parents.Window] | None:
        """Where what may be parent ids stands; None when reading all spans is the better way."""
        if self._windows is None and self._children is None:
            self._windows = parents.windows(self.payload, self._most)
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
        self, roots: AbstractSet[bytes], stay: _Stay, settled: Settled | None = None
    ) -> tuple[dict[int, bytes], set[bytes]]:
        """All spans below the spans ``roots`` (keys), not through ``stay``; and the keys of them.

        Among the latter are those of ``settled`` spans, which were taken out of the request before.
        """
        found: dict[int, bytes] = {}
        keys: set[bytes] = set()
        frontier: AbstractSet[bytes] = roots
        while frontier:
            following: set[bytes] = set()
            if settled:
                following = settled.children(frontier - stay.above if stay.above else frontier)
            for number, facts in self.children(frontier):
                if number not in found and number not in stay.spans:
                    key = found[number] = _key(facts.trace_id, facts.span_id)
                    following.add(key)
            following.discard(b"")
            frontier = following - keys - roots
            keys |= following
        return found, keys


class _Stay(NamedTuple):
    """Spans that stay whatever else is above them."""

    spans: AbstractSet[int]
    """Their numbers."""
    above: AbstractSet[bytes]
    """Keys: what is directly below one of these stays, too. Settled spans have no numbers."""


_NOTHING_STAYS: Final = _Stay(frozenset(), frozenset())


class _Look(NamedTuple):
    """What was found out about a request when it was counted."""

    payload: bytes
    candidates: bool
    """Whether a text stands in it without which nothing is filtered, but for descendants."""
    sifted: tuple[Sifted, Mapping[Shape, Sequence[bytes]]] | None


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
        # What the latest call condemned; not worked out yet, if nobody asked.
        self._condemned: set[bytes] | Settled = set()
        self._shapes = Shapes()
        # Parent ids are listed when the trace ids do not tell.
        self._waiting_traces = Listings(traces.ids, traces.named, whole=True)
        self._waiting_parents = Listings(parents.ids, parents.named, whole=False)
        self._look: _Look | None = None
        self._found = False
        """Whether spans of the latest request were known by their looks."""

    def count(self, payload: bytes) -> tuple[int, int]:
        """See :class:`relay.processors.Processor`."""
        look = self._look_at(payload)
        if look.sifted is None:
            units, items = wire.count(payload, TRACES)
        else:
            units = items = look.sifted[0].spans
        # Nothing is held on to that will not be processed.
        self._look = look if units else None
        return units, items

    def _look_at(self, payload: bytes) -> _Look:
        """Whether anything in the request asks for filtering; walk it if so."""
        known = self._shapes.by_size if len(payload) <= _SIFTED else None
        sifted = None
        if known and self._found:
            # As in the request before, probably: then there is no need to search for texts first.
            sifted = sift(payload, known, self._shapes.usual)
            if sifted and sifted[1]:
                return _Look(payload, candidates=True, sifted=sifted)
        urls, events = self._urls, self._events
        candidates = bool((urls and urls.present(payload)) or (events and events.present(payload)))
        if candidates and known and not self._found:
            sifted = sift(payload, known, self._shapes.usual)
        self._found = bool(sifted and sifted[1])
        return _Look(payload, candidates, sifted)

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        del items  # As many as units.
        look, self._look = self._look, None
        if look is None or look.payload is not payload:
            look = self._look_at(payload)
        self._waiting_traces.latest = self._waiting_parents.latest = b""
        self._condemned = set()
        self._remembered.expire(now)
        if not look.candidates:
            return self._finish(_Request(payload, units), None, now)
        settled = None
        if look.sifted is not None:
            sifted, found = look.sifted
            if found:
                settled = Settled(found, _NO_SERVERS)
                self._shapes.look(payload, units)
                payload, units = cut(payload, sifted.cuts) if sifted.left else b"", sifted.left
        request = _Request(payload, units)
        urls = self._urls if self._urls and self._urls.present(payload) else None
        events = self._events if self._events and self._events.present(payload) else None
        if urls or events:
            return self._process(request, settled, now, urls, events)
        return self._finish(request, settled, now)

    def _finish(self, request: _Request, settled: Settled | None, now: float) -> Result:
        """What is left to do in a request that holds no candidates (any more).

        ``settled``: what has been taken out of it.
        """
        remembered = self._remembered
        condemns = settled is not None and bool(settled.traces)
        # Some may be below spans that went before.
        exactly = (
            settled is not None and bool(remembered) and remembered.has(settled.other_traces())
        )
        if settled is not None and condemns:
            listed = request.listing()
            exactly = exactly or listed is None or not remembered.defer(settled, listed, now)
        else:
            exactly = exactly or remembered.touches(request.payload, request.listing)
        if exactly:
            return self._process(request, settled, now, None, None)
        if settled is not None and condemns:
            self._condemned = settled
        gone = bytearray()
        if self._bound is not None:
            gone = bytearray(request.units)
            _sample(request, gone, self._bound)
        return self._result(request, gone, settled, learned=condemns)

    def _process(
        self,
        request: _Request,
        settled: Settled | None,
        now: float,
        urls: Needles | None,
        events: Needles | None,
    ) -> Result:
        """What becomes of each span. ``urls``, ``events``: searches that find something, if any."""
        remembered = self._remembered
        gone = bytearray(request.units)
        roots = set(settled.roots) if settled else set[bytes]()
        stay = _NOTHING_STAYS
        if urls:
            found, stay = self._judge(request, urls, gone, settled)
            roots |= found
        if events:
            self._drop_events(request, events, gone)
        # Those that are settled stand no longer in the payload, but may be below others.
        above = roots | remembered.of(settled.parents(), now) if settled else roots
        condemned = roots
        if above or remembered.touches(request.payload, request.listing):
            if remembered and remembered.has(request.traces()):
                above = above | remembered.recent(request.traces(), request.parent_ids(), now)
            below, keys = request.below(above, stay, settled)
            for number in below:
                gone[number] = gone[number] or _SUBTREE
            condemned = roots | keys
        if self._bound is not None:
            _sample(request, gone, self._bound)
        remembered.add(condemned, now)
        self._condemned = condemned
        return self._result(request, gone, settled, learned=bool(condemned))

    def _result(
        self, request: _Request, gone: bytearray, settled: Settled | None, *, learned: bool
    ) -> Result:
        """The result of :meth:`process`; what it lets through is noted."""
        result = _result(request, gone, settled, learned=learned)
        self._waiting_traces.note(result.payload, request.listed)
        self._waiting_parents.note(result.payload)
        if learned:
            self._waiting_traces.latest = self._waiting_parents.latest = result.payload
        return result

    def affects(self, waiting: Iterable[bytes]) -> bool:
        """Whether :meth:`prune` may find anything in any of these payloads. Never wrongly no."""
        condemned = self._condemned
        if isinstance(condemned, Settled):
            in_traces, above = condemned.traces, condemned.span_ids
        else:
            in_traces, above = _traces(condemned), partial(_span_ids, condemned)
        # What waits is looked at by none of these listings, or one, or both.
        once, again = tee(waiting)
        if not self._waiting_traces.any_names(once, in_traces):
            return False
        if not self._waiting_parents.any_names(again, above()):
            return False
        # What was found may have left; and what is found goes.
        self._waiting_traces.forget()
        self._waiting_parents.forget()
        return True

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """See :class:`relay.processors.Processor`."""
        known = self._condemned
        if isinstance(known, Settled):
            self._condemned = known = known.condemned()
        request = _Request(payload, units)
        if request.traces().isdisjoint(_traces(known)):
            return Result(payload, units, items)
        gone = bytearray(request.units)
        stay = _NOTHING_STAYS
        if self._inclusions and self._urls and self._urls.present(payload):
            # What is not included went when it arrived; what is stays with all below it.
            _, stay = self._judge(request, self._urls, bytearray(request.units), None)
        below, condemned = request.below(known, stay)
        for number in below:
            gone[number] = _SUBTREE
        learned = not condemned <= known
        if learned:
            self._condemned = known | condemned
            self._remembered.add(condemned, now)
        return _result(request, gone, None, learned=learned)

    def _judge(
        self, request: _Request, urls: Needles, gone: bytearray, settled: Settled | None
    ) -> tuple[set[bytes], _Stay]:
        """Judge the server spans by their paths.

        Marks those that go in ``gone``. Returns their keys, and what stays.
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
        stay = _NOTHING_STAYS
        reason = _EXCLUDED
        if self._inclusions:
            reason = _NOT_INCLUDED
            numbers = {number for number, _ in included}
            keys = {key for _, key in included} - {b""}
            if included and (rejected or self._remembered):
                below, more = request.below(keys, _NOTHING_STAYS, settled)
                stay = _Stay(below.keys() | numbers, keys | more)
            else:
                stay = _Stay(numbers, keys)
        roots: set[bytes] = set()
        for number, key in rejected:
            if number not in stay.spans:
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
    """``gone``: by span why it goes, 0: it stays; empty: all stay."""
    left = request.units
    payload = request.payload
    removed: dict[str, int] = {}
    if any(gone):
        left = gone.count(0)
        payload = without(payload, request.where, gone)
        for code in set(gone) - {0}:
            removed[REASONS[code]] = gone.count(code)
    if settled:
        for code, number in settled.removed.items():
            removed[REASONS[code]] = removed.get(REASONS[code], 0) + number
    return Result(payload, left, left, removed or NOTHING, learned)
