"""Which spans were filtered of late: their descendants may still arrive.

A span's descendants name it by trace id and parent span id. :class:`Remembered` keeps both for
:data:`SECONDS` after a span was filtered, at most :data:`MOST` of them (the oldest go first), and
says, for a whole request at memory speed, whether it may hold a child of any of them: a span of the
same trace, mostly.

Source: contract section 6 ("those that arrive within 60 s, over a bounded memory").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
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
"""Payloads whose ids are not listed yet may take so much; more if more waits."""
LISTED_IDS: Final = 16_384
"""Ids that are listed of what waits or has left; more if more wait."""
_ENTRY: Final = 64
"""Bytes that a payload is taken to cost beside itself."""
_FEW_IDS: Final = 16
"""Ids that are never too many for a payload."""

_SWEEP: Final = 5.0
"""Seconds between two looks for what has expired."""
_SMALL: Final = 8192
"""Up to this many bytes, listing a payload's trace ids is cheaper than asking RE2."""
_COMPILED: Final = 128
"""Most ids in a compiled search."""
_WORTH: Final = 24_000
"""Bytes listed per id that pay for compiling (5 to 12 us an id, 0.5 ns a byte)."""


class Listings:
    """What may be ids of one kind in the payloads that wait.

    Kept for all that was let through, so that looking costs nothing for each payload that waits.
    What left since stays in it until it has grown too much; then it is made anew from what waits.

    ``ids``: lists those in a payload, None: more than so many. ``named``: whether a payload may
    hold one of some. ``whole``: nothing waits yet; else it is made at the first question.
    """

    def __init__(
        self,
        ids: Callable[[bytes, int], AbstractSet[bytes] | None],
        named: Callable[[bytes, AbstractSet[bytes]], bool],
        *,
        whole: bool,
    ) -> None:
        self._list_ids = ids
        self._named = named
        self._ids: set[bytes] = set()
        self._most_ids = LISTED_IDS
        self._unlisted: list[bytes] = []
        self._room = self._most_unlisted = LISTED_BYTES
        self._dense: list[bytes] = []
        self.latest = b""
        """The payload that made known what is asked about: it does not wait itself yet."""
        self._whole = whole
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
            self.forget()

    def forget(self) -> None:
        """Make it anew when asked next.

        What was found may have left long ago.
        """
        self._whole = False
        self._ids = set()
        self._unlisted.clear()
        self._dense.clear()

    def any_names(self, waiting: Iterable[bytes], ids: AbstractSet[bytes]) -> bool:
        """Whether one of these ids may stand in these payloads. Never wrongly no.

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
        if self._dense:
            found = found or any(self._named(each, ids) for each in self._dense)
            # What is not listed must not be held on to.
            self.forget()
        return found

    def _list(self, payload: bytes) -> None:
        listed = self._list_ids(payload, len(payload) // 64 + _FEW_IDS)
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

    def condemned(self) -> AbstractSet[bytes]:
        """The keys of those that do."""


class _Entry:
    """Spans that were deferred together, at ``since``."""

    __slots__ = ("_keys", "_spans", "count", "since", "traces", "weight")

    def __init__(self, spans: Deferred, since: float) -> None:
        self._spans: Deferred | None = spans
        self._keys: AbstractSet[bytes] = frozenset()
        self.traces = spans.traces
        self.count = spans.spans
        self.weight = spans.weight
        self.since = since

    def condemned(self) -> AbstractSet[bytes]:
        """The keys of those that take along what is below; worked out when asked for first."""
        if self._spans is not None:
            self._keys, self._spans = self._spans.condemned(), None
        return self._keys


class Remembered:
    """Filtered spans, by trace id and span id. ``now``: monotonic seconds, never decreasing.

    Most are never asked for. So what was filtered for its looks is kept as it was found, by its
    trace ids alone, until one of these turns up in another span.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._since: dict[bytes, float] = {}
        # In order of time, and by trace id: the key, or where there are several all keys.
        self._keys: dict[bytes, bytes | set[bytes]] = {}
        # In order of time, and by trace id; and what these are and weigh.
        self._deferred = deque[_Entry]()
        self._by_trace: dict[bytes, _Entry] = {}
        self._count = self._weight = 0
        self._swept = float("-inf")
        self._search: Search | None = None
        self._listed = 0

    def __len__(self) -> int:
        return len(self._since) + self._count

    def __bool__(self) -> bool:
        return bool(self._since or self._deferred)

    def recent(self, traces: AbstractSet[bytes], ids: AbstractSet[bytes], now: float) -> set[bytes]:
        """The spans of these traces, with one of these span ids, that were filtered of late.

        That is within the last :data:`SECONDS`.
        """
        found: set[bytes] = set()
        for entry in {self._by_trace[trace] for trace in self._by_trace.keys() & traces}:
            if now - entry.since <= SECONDS:
                found.update(
                    key for key in entry.condemned() if key[TRACE:] in ids and key[:TRACE] in traces
                )
        since = self._since
        for trace in self._keys.keys() & traces:
            keys = self._keys[trace]
            few: Iterable[bytes]
            if isinstance(keys, bytes):
                few = (keys,) if keys[TRACE:] in ids else ()
            elif len(keys) < len(ids):
                few = (key for key in keys if key[TRACE:] in ids)
            else:
                few = (trace + one for one in ids if trace + one in keys)
            found.update(key for key in few if now - since[key] <= SECONDS)
        return found

    def of(self, keys: Iterable[bytes], now: float) -> set[bytes]:
        """Those of ``keys`` that were filtered within the last :data:`SECONDS`."""
        return {key for key in keys if self._is(key, now)}

    def _is(self, key: bytes, now: float) -> bool:
        if key in self._since and now - self._since[key] <= SECONDS:
            return True
        entry = self._by_trace.get(key[:TRACE])
        return entry is not None and now - entry.since <= SECONDS and key in entry.condemned()

    def add(self, keys: AbstractSet[bytes], now: float) -> None:
        """Remember spans that were filtered at ``now``; ``keys``: trace id and span id of each."""
        if not keys:
            return
        if not self._since.keys().isdisjoint(keys):
            # Again at the end: the dict is in order of time.
            for key in keys:
                self._since.pop(key, None)
        self._since.update(dict.fromkeys(keys, now))
        for key in keys:
            self._note(key)
        self._changed()

    def defer(self, spans: Deferred, listed: AbstractSet[bytes], now: float) -> bool:
        """Remember spans that were filtered at ``now``, if they have nothing to do with others.

        ``listed``: what may be trace ids in what is left of their request. False: one of these is
        that of a remembered span, or of one of ``spans``, or a span is remembered of whose trace
        one of ``spans`` is; or there are too many of those. Then what they condemn is to be worked
        out, and added, by the caller.
        """
        if (
            spans.weight > self._most // 4
            or not spans.traces.isdisjoint(listed)
            or self.has(listed)
            or self.has(spans.traces)
        ):
            return False
        entry = _Entry(spans, now)
        self._deferred.append(entry)
        self._by_trace.update(dict.fromkeys(entry.traces, entry))
        self._count += entry.count
        self._weight += entry.weight
        self._changed()
        return True

    def has(self, traces: AbstractSet[bytes]) -> bool:
        """Whether a span of one of these traces is remembered. Never wrongly no."""
        return not (
            self._by_trace.keys().isdisjoint(traces) and self._keys.keys().isdisjoint(traces)
        )

    def expire(self, now: float) -> None:
        """Forget what was filtered more than :data:`SECONDS` ago, at leisure."""
        if now - self._swept < _SWEEP:
            return
        self._swept = now
        oldest = now - SECONDS
        if self._since and next(iter(self._since.values())) < oldest:
            self._keep([key for key, since in self._since.items() if since >= oldest])
        while self._deferred and self._deferred[0].since < oldest:
            self._forget_deferred()

    def _changed(self) -> None:
        self._search, self._listed = None, 0
        # The oldest go.
        while len(self._since) + self._weight > self._most:
            first = next(iter(self._since.values()), float("inf"))
            if self._deferred and self._deferred[0].since < first:
                self._forget_deferred()
            else:
                # Half at once: each look through all of them makes room for many.
                self._keep(list(self._since)[(len(self._since) + 1) // 2 :])

    def _forget_deferred(self) -> None:
        entry = self._deferred.popleft()
        for trace in entry.traces:
            del self._by_trace[trace]
        self._count -= entry.count
        self._weight -= entry.weight

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
                keys = set(self._since).union(*(entry.condemned() for entry in self._deferred))
                ids = b"|".join({literal(key[TRACE:]) for key in keys})
                self._search = compiled(parents.HEAD + b"(?:" + ids + b")")
        return self._search
