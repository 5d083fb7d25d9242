"""Which spans were filtered of late: their descendants may still arrive.

A span's descendants name it by trace id and parent span id. :class:`Remembered` keeps both for
:data:`SECONDS` after a span was filtered, at most :data:`MOST` of them (the oldest go first), and
says, for a whole request at memory speed, whether it may hold a child of any of them: a span of the
same trace, mostly.

Source: contract section 6 ("those that arrive within 60 s, over a bounded memory").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final, Protocol

from relay.processors import parents, traces
from relay.processors.search import Search, compiled, literal

__all__ = [
    "KEY",
    "LISTED_BYTES",
    "LISTED_IDS",
    "MOST",
    "NO_ID",
    "SECONDS",
    "TRACE",
    "Deferred",
    "Listings",
    "Remembered",
]

SECONDS: Final = 60.0
"""How long a filtered span is remembered."""
MOST: Final = 16_384
"""How many are: about 4 MiB."""
TRACE: Final = 16
"""Bytes of a trace id."""
KEY: Final = TRACE + 8
"""Bytes of a trace id and a span id. Ids of other lengths are invalid (trace.proto): spans that
have them take nothing along."""
NO_ID: Final = bytes(KEY - TRACE)
"""A span id of zeros means none (trace.proto)."""

LISTED_BYTES: Final = 256 * 1024
"""Payloads whose trace ids are not listed yet may take so much; more if more waits."""
LISTED_IDS: Final = 16_384
"""Trace ids that are listed of what waits or has left; more if more wait."""
_ENTRY: Final = 64
"""Bytes that a payload is taken to cost beside itself."""
_FEW_IDS: Final = 16
"""Ids that are never too many for a payload."""

_GENERATIONS: Final = 2
"""A part of what is remembered, one in so many, is forgotten at once where there is too much."""
_SWEEP: Final = 5.0
"""Seconds between two looks for what has expired."""
_SMALL: Final = 8192
"""Up to this many bytes, listing a payload's trace ids is cheaper than asking RE2."""
_COMPILED: Final = 128
"""Most ids in a compiled search."""
_WORTH: Final = 24_000
"""Bytes listed per id that pay for compiling (5 to 12 us an id, 0.5 ns a byte)."""


class Listings:
    """What may be trace ids in the payloads that wait.

    Kept for all that was let through, so that looking costs nothing for each payload that waits.
    What left since stays in it until it has grown too much; then it is made anew from what waits.
    """

    def __init__(self) -> None:
        self._ids: set[bytes] = set()
        self._most_ids = LISTED_IDS
        self._unlisted: list[bytes] = []
        self._room = self._most_unlisted = LISTED_BYTES
        self._dense: list[bytes] = []
        self.latest = b""
        """The payload that made known what is asked about: it does not wait itself yet."""
        self._whole = True
        """Whether everything that waits is in these."""

    def note(self, payload: bytes, listed: AbstractSet[bytes] | None = None) -> None:
        """A payload is let through. ``listed``: what was listed in it, or in a larger one."""
        if not self._whole or not payload:
            return
        if listed is not None:
            self._ids |= listed
        else:
            self._unlisted.append(payload)
            self._room -= len(payload) + _ENTRY
        if self._room < 0 or len(self._ids) > self._most_ids:
            self._whole = False
            self._ids = set()
            self._unlisted.clear()

    def any_names(self, waiting: Iterable[bytes], ids: Collection[bytes]) -> bool:
        """Whether a span in these payloads may have one of these trace ids. Never wrongly no.

        ``waiting``: all payloads that wait or may come back; looked at only if need be.
        """
        if self._whole:
            for payload in self._unlisted:
                self._list(payload)
        else:
            size = 0
            for payload in (self.latest, *waiting):
                self._list(payload)
                size += len(payload)
            self._whole = True
            self._most_ids = max(LISTED_IDS, 2 * len(self._ids))
            self._most_unlisted = max(LISTED_BYTES, size // 4)
        self._unlisted.clear()
        self._room = self._most_unlisted
        found = not self._ids.isdisjoint(ids)
        if not found and self._dense:
            wanted = set(ids)
            found = any(traces.named(each, wanted) for each in self._dense)
        if found or self._dense:
            # What was found may have left long ago, and what is not listed must not be held on
            # to: the next look will be at what waits then.
            self._whole = False
            self._ids = set()
            self._dense.clear()
        return found

    def _list(self, payload: bytes) -> None:
        listed = traces.ids(payload, len(payload) // 64 + _FEW_IDS)
        if listed is None:
            # Far more than it has spans: not worth the memory.
            self._dense.append(payload)
        else:
            self._ids |= listed


class Deferred(Protocol):
    """Filtered spans of which it is not worked out yet which of them take along what is below."""

    @property
    def traces(self) -> AbstractSet[bytes]:
        """The trace ids of those that may."""

    @property
    def spans(self) -> int:
        """How many they are."""

    @property
    def weight(self) -> int:
        """What they take in memory, where a span that is worked out takes 1."""

    def condemned(self, known: Callable[[Iterable[bytes]], AbstractSet[bytes]]) -> set[bytes]:
        """The keys of those that do. ``known``: which of these keys are remembered."""


class _Generation:
    """Deferred spans, and their trace ids."""

    def __init__(self) -> None:
        self.spans: list[tuple[Deferred, float]] = []
        """In order of time, with it."""
        self.traces: set[bytes] = set()
        self.weight = 0


class Remembered:
    """Filtered spans, by trace id and span id. ``now``: monotonic seconds, never decreasing.

    Most are never asked for. So what was filtered for its looks is kept as it was found, with the
    trace ids alone in a set, until one of these turns up in another span. There are some such sets,
    so that to forget the oldest is to drop one.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._since: dict[bytes, float] = {}
        # By trace id the key, or where there are several all keys.
        self._keys: dict[bytes, bytes | set[bytes]] = {}
        # What is deferred is younger than all of those.
        self._generations = deque((_Generation(),))
        self._swept = float("-inf")
        self._search: Search | None = None
        self._listed = 0

    def __len__(self) -> int:
        deferred = sum(spans.spans for each in self._generations for spans, _ in each.spans)
        return len(self._since) + deferred

    def __bool__(self) -> bool:
        return bool(self._since) or any(each.spans for each in self._generations)

    def recent(self, traces: AbstractSet[bytes], now: float) -> set[bytes]:
        """The spans of these traces that were filtered within the last :data:`SECONDS`."""
        self._work_out()
        found: set[bytes] = set()
        for each in self._keys.keys() & traces:
            keys = self._keys[each]
            found.update((keys,) if isinstance(keys, bytes) else keys)
        return self.of(found, now)

    def of(self, keys: Iterable[bytes], now: float) -> set[bytes]:
        """Those of ``keys`` that were filtered within the last :data:`SECONDS`."""
        self._work_out()
        since = self._since
        return {key for key in keys if key in since and now - since[key] <= SECONDS}

    def add(self, keys: AbstractSet[bytes], now: float) -> None:
        """Remember spans that were filtered at ``now``; ``keys``: trace id and span id of each."""
        if not keys:
            return
        self._work_out()
        if not self._since.keys().isdisjoint(keys):
            # Again at the end: the dict is in order of time.
            for key in keys:
                self._since.pop(key, None)
        self._since.update(dict.fromkeys(keys, now))
        for key in keys:
            self._note(key)
        self._changed()

    def defer(self, spans: Deferred, listed: AbstractSet[bytes], now: float) -> bool:
        """Remember spans that were filtered at ``now``, if none of them is asked for at once.

        ``listed``: what may be trace ids in what is left of their request. False: one of these is
        that of a remembered span, or of one of ``spans``, or there are too many of those; then what
        they condemn is to be worked out, and added, by the caller.
        """
        if spans.weight > self._most // 4:
            return False
        young = self._generations[-1]
        if not spans.traces.isdisjoint(listed) or self.has(listed):
            return False
        young.traces |= spans.traces
        young.spans.append((spans, now))
        young.weight += spans.weight
        if young.weight >= self._most // _GENERATIONS:
            self._generations.append(_Generation())
        self._changed()
        return True

    def has(self, traces: AbstractSet[bytes]) -> bool:
        """Whether a span of one of these traces is remembered. Never wrongly no."""
        for each in self._generations:
            if not each.traces.isdisjoint(traces):
                return True
        return bool(self._keys) and not self._keys.keys().isdisjoint(traces)

    def among(self, traces: AbstractSet[bytes]) -> set[bytes]:
        """Those of these traces of which a span may be remembered."""
        return (self._keys.keys() & traces).union(
            *(each.traces & traces for each in self._generations)
        )

    def _work_out(self) -> None:
        """Add what was deferred, in the order in which it was filtered."""
        if any(each.spans for each in self._generations):
            deferred, self._generations = self._generations, deque((_Generation(),))
            for generation in deferred:
                for spans, now in generation.spans:
                    self.add(spans.condemned(partial(self.of, now=now)), now)

    def expire(self, now: float) -> None:
        """Forget what was filtered more than :data:`SECONDS` ago, at leisure."""
        if now - self._swept < _SWEEP:
            return
        self._swept = now
        oldest = now - SECONDS
        if self._since and next(iter(self._since.values())) < oldest:
            self._keep([key for key, since in self._since.items() if since >= oldest])
        while len(self._generations) > 1 and self._generations[0].spans[-1][1] < oldest:
            self._generations.popleft()
        generation = self._generations[0]
        if generation.spans and generation.spans[0][1] < oldest:
            left = [each for each in generation.spans if each[1] >= oldest]
            generation.spans = left
            generation.traces = set().union(*(spans.traces for spans, _ in left))
            generation.weight = sum(spans.weight for spans, _ in left)

    def _changed(self) -> None:
        self._search, self._listed = None, 0
        deferred = sum(each.weight for each in self._generations)
        if self._since and len(self._since) + deferred > self._most:
            # Half at once: each look through all of them makes room for many. The oldest go.
            left = max(self._most // 2 - deferred, 0)
            self._keep(list(self._since)[len(self._since) - left :])
        while deferred > self._most:
            deferred -= self._generations.popleft().weight

    def _note(self, key: bytes) -> None:
        trace = key[:TRACE]
        other = self._keys.setdefault(trace, key)
        if isinstance(other, set):
            other.add(key)
        elif other != key:
            self._keys[trace] = {other, key}

    def _keep(self, keys: list[bytes]) -> None:
        self._since = {key: self._since[key] for key in keys}
        self._keys = {}
        for key in keys:
            self._note(key)

    def touches(
        self, payload: bytes, listed: Callable[[], AbstractSet[bytes] | None] | None = None
    ) -> bool:
        """Whether a span in the payload may be a child of a remembered one. Never wrongly no.

        ``listed``: gives what may be trace ids in it, None if these are too many.
        """
        if not self:
            return False
        search = self._searching(len(payload))
        if search is not None:
            if search(payload, 0) is not None:
                return True
            if not parents.overlong(payload):
                return False
        found = traces.ids(payload, len(payload)) if listed is None else listed()
        return found is None or self.has(found)

    def _searching(self, size: int) -> Search | None:
        """A search for what is remembered, where that is cheaper than listing ``size`` bytes."""
        if size <= _SMALL or len(self) > _COMPILED:
            return None
        if self._search is None:
            self._listed += size
            if self._listed > _WORTH * len(self):
                self._work_out()
                ids = b"|".join({literal(key[TRACE:]) for key in self._since})
                self._search = compiled(parents.HEAD + b"(?:" + ids + b")")
        return self._search
