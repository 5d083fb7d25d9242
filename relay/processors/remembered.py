"""Which spans were filtered of late: their descendants may still arrive.

A span's descendants name it by trace id and parent span id. :class:`Remembered` keeps both for
:data:`SECONDS` after a span was filtered, at most :data:`MOST` of them (the oldest go first), and
says, for a whole request at memory speed, whether it may hold a child of any of them.

Source: contract section 6 ("those that arrive within 60 s, over a bounded memory").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, KeysView
from collections.abc import Set as AbstractSet
from typing import Final

from relay.processors.search import SMALL, Search, compiled, literal

__all__ = [
    "KEY",
    "MOST",
    "SECONDS",
    "TRACE",
    "Remembered",
    "names",
    "overlong_parents",
    "parents",
    "positions",
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

_SWEEP: Final = 5.0
"""Seconds between two looks for what has expired."""
_SMALL: Final = 8192
"""Up to this many bytes, listing a payload's parent ids is cheaper than asking RE2."""
_COMPILED: Final = 128
"""Most ids in a compiled search."""
_WORTH: Final = 24_000
"""Bytes listed per id that pay for compiling (5 to 12 us an id, 0.5 ns a byte)."""

# parent_span_id: field 4, length-delimited, of eight bytes. Looking ahead, so that one occurrence
# cannot hide the next. The length may be written overlong; for the tag see overlong_parents.
_HEAD: Final = rb"\x22(?:\x08|\x88\x80*\x00)"
_PARENT: Final = re.compile(_HEAD + rb"(?=(.{8}))", re.DOTALL)
_WINDOW: Final = 16 * 1024
_BEHIND: Final = 16
"""More bytes than tag, length and id can take behind the first."""

_OVERLONG: Final = rb"\xa2\x80{0,3}\x00"
_overlong_small: Final = re.compile(_OVERLONG).search
_overlong_large: Final = compiled(_OVERLONG)


def overlong_parents(payload: bytes) -> bool:
    """Whether a parent span id's tag may be written overlong somewhere; nobody does that."""
    search = _overlong_small if len(payload) < SMALL else _overlong_large
    return search(payload, 0) is not None


def parents(payload: bytes) -> Iterator[tuple[int, int, list[bytes]]]:
    """What may be parent span ids, window by window: (from, to, the ids that begin there).

    All of eight bytes whose tag is one byte are among them; those in the :data:`_BEHIND` bytes
    that two windows share may come twice.
    """
    size = len(payload)
    findall = _PARENT.findall
    for start in range(0, size, _WINDOW):
        stop = min(start + _WINDOW + _BEHIND, size)
        found = findall(payload, start, stop)
        if found:
            yield start, stop, found


def names(payload: bytes, ids: AbstractSet[bytes]) -> bool:
    """Whether a span in the payload may have one of ``ids`` as parent. Never wrongly no."""
    return overlong_parents(payload) or not all(
        ids.isdisjoint(found) for _, _, found in parents(payload)
    )


def positions(
    payload: bytes, start: int, stop: int, ids: AbstractSet[bytes]
) -> list[tuple[int, bytes]]:
    """Where in such a window which of ``ids`` may be a parent span id."""
    return [(m.start(), m[1]) for m in _PARENT.finditer(payload, start, stop) if m[1] in ids]


class Remembered:
    """Filtered spans, by trace id and span id. ``now``: monotonic seconds, never decreasing."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._since: dict[bytes, float] = {}
        # By span id the key, or where traces share span ids all keys.
        self._keys: dict[bytes, bytes | set[bytes]] = {}
        self._swept = float("-inf")
        self._search: Search | None = None
        self._listed = 0

    def __len__(self) -> int:
        return len(self._since)

    @property
    def ids(self) -> KeysView[bytes]:
        """Span ids of all that is remembered."""
        return self._keys.keys()

    def recent(self, ids: Iterable[bytes], now: float) -> set[bytes]:
        """The spans with these span ids that were filtered within the last :data:`SECONDS`."""
        found: set[bytes] = set()
        for each in ids:
            keys = self._keys.get(each, b"")
            found.update((keys,) if isinstance(keys, bytes) else keys)
        return {key for key in found if now - self._since.get(key, float("-inf")) <= SECONDS}

    def add(self, keys: Iterable[bytes], now: float) -> None:
        """Remember spans that were filtered at ``now``; ``keys``: trace id and span id of each."""
        for key in keys:
            # Again at the end: the dict is in order of time.
            self._since.pop(key, None)
            self._since[key] = now
            self._note(key)
        self._search, self._listed = None, 0
        if (excess := len(self._since) - self._most) > 0:
            # A quarter at once: each look through all of them makes room for many.
            self._keep(list(self._since)[excess + self._most // 4 :])

    def expire(self, now: float) -> None:
        """Forget what was filtered more than :data:`SECONDS` ago, at leisure."""
        if not self._since or now - self._swept < _SWEEP:
            return
        self._swept = now
        oldest = now - SECONDS
        if next(iter(self._since.values())) < oldest:
            self._keep([key for key, since in self._since.items() if since >= oldest])

    def _note(self, key: bytes) -> None:
        other = self._keys.setdefault(key[TRACE:], key)
        if isinstance(other, set):
            other.add(key)
        elif other != key:
            self._keys[key[TRACE:]] = {other, key}

    def _keep(self, keys: list[bytes]) -> None:
        self._since = {key: self._since[key] for key in keys}
        self._keys = {}
        for key in keys:
            self._note(key)

    def touches(self, payload: bytes) -> bool:
        """Whether a span in the payload may be a child of a remembered one. Never wrongly no."""
        if not self._keys:
            return False
        size = len(payload)
        if size > _SMALL and self._search is None and len(self._keys) <= _COMPILED:
            self._listed += size
            if self._listed > _WORTH * len(self._keys):
                ids = b"|".join(map(literal, self._keys))
                self._search = compiled(_HEAD + b"(?:" + ids + b")")
        if size > _SMALL and self._search is not None:
            return self._search(payload, 0) is not None or overlong_parents(payload)
        return names(payload, self._keys.keys())
