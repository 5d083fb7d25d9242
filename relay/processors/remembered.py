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
from operator import itemgetter
from typing import Final, NamedTuple

from relay.processors.search import SMALL, Search, compiled, literal

__all__ = [
    "KEY",
    "LISTED_BYTES",
    "LISTED_IDS",
    "MOST",
    "SECONDS",
    "TRACE",
    "Listings",
    "Remembered",
    "names",
    "parents",
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

LISTED_BYTES: Final = 256 * 1024
"""Payloads whose parent ids are not listed yet may take so much; more if more waits."""
LISTED_IDS: Final = 16_384
"""Parent ids that are listed of what waits or has left; more if more wait."""
_ENTRY: Final = 64
"""Bytes that a payload is taken to cost beside itself."""
_FEW_IDS: Final = 16
"""Ids that are never too many for a payload."""

_SWEEP: Final = 5.0
"""Seconds between two looks for what has expired."""
_SMALL: Final = 8192
"""Up to this many bytes, listing a payload's parent ids is cheaper than asking RE2."""
_COMPILED: Final = 128
"""Most ids in a compiled search."""
_WORTH: Final = 24_000
"""Bytes listed per id that pay for compiling (5 to 12 us an id, 0.5 ns a byte)."""

# parent_span_id: field 4, length-delimited, of eight bytes. Looking ahead, so that one occurrence
# cannot hide the next. Tag and length may be written overlong, which nobody does: such a tag is
# looked for in a search of its own, as the usual one begins with a byte that is rare.
_LENGTH: Final = rb"(?:\x08|\x88\x80{0,3}\x00)"
_HEAD: Final = rb"\x22" + _LENGTH
_OVERLONG_HEAD: Final = rb"\xa2\x80{0,3}\x00" + _LENGTH
_ID: Final = rb"(?=(.{8}))"
_PARENT: Final = re.compile(_HEAD + _ID, re.DOTALL)
_OVERLONG: Final = re.compile(_OVERLONG_HEAD + _ID, re.DOTALL)
_overlong_in_large: Final = compiled(_OVERLONG_HEAD)
_WINDOW: Final = 16 * 1024
_BEHIND: Final = 18
"""As many bytes as tag, length and id can take behind the first."""


_span_id: Final = itemgetter(slice(TRACE, None))


class Window(NamedTuple):
    """A part of a payload, and the ids that begin in it and may be parent span ids."""

    form: re.Pattern[bytes]
    start: int
    stop: int
    ids: list[bytes]

    def positions(self, payload: bytes, ids: AbstractSet[bytes]) -> list[int]:
        """Where one of ``ids`` may be a parent span id."""
        found = self.form.finditer(payload, self.start, self.stop)
        return [match.start() for match in found if match[1] in ids]


def parents(payload: bytes) -> Iterator[Window]:
    """What may be parent span ids; all of eight bytes are among them.

    Those that stand where two windows overlap come twice.
    """
    size = len(payload)
    forms = (_PARENT, _OVERLONG) if _overlong(payload) else (_PARENT,)
    for form in forms:
        for start in range(0, size, _WINDOW):
            stop = min(start + _WINDOW + _BEHIND, size)
            found = form.findall(payload, start, stop)
            if found:
                yield Window(form, start, stop, found)


def _overlong(payload: bytes) -> bool:
    """Whether an overlong tag of a parent span id may stand in the payload."""
    search = _OVERLONG.search if len(payload) < SMALL else _overlong_in_large
    return search(payload, 0) is not None


def names(payload: bytes, ids: AbstractSet[bytes]) -> bool:
    """Whether a span in the payload may have one of ``ids`` as parent. Never wrongly no."""
    return not all(ids.isdisjoint(window.ids) for window in parents(payload))


class Listings:
    """What may be parent span ids in the payloads that wait.

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

    def note(self, payload: bytes, windows: Iterable[Window] | None = None) -> None:
        """A payload is let through. ``windows``: what was listed in it, or in a larger one."""
        if not self._whole or not payload:
            return
        if windows is not None:
            for window in windows:
                self._ids.update(window.ids)
        else:
            self._unlisted.append(payload)
            self._room -= len(payload) + _ENTRY
        if self._room < 0 or len(self._ids) > self._most_ids:
            self._whole = False
            self._ids = set()
            self._unlisted.clear()

    def any_names(self, waiting: Iterable[bytes], ids: AbstractSet[bytes]) -> bool:
        """Whether a span in these payloads may have one of ``ids`` as parent. Never wrongly no.

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
        found = not ids.isdisjoint(self._ids) or any(names(each, ids) for each in self._dense)
        if found or self._dense:
            # What was found may have left long ago, and what is not listed must not be held on
            # to: the next look will be at what waits then.
            self._whole = False
            self._ids = set()
            self._dense.clear()
        return found

    def _list(self, payload: bytes) -> None:
        room = len(payload) // 64 + _FEW_IDS
        lists = []
        for window in parents(payload):
            lists.append(window.ids)
            room -= len(window.ids)
            if room < 0:
                # Far more than it has spans: not worth the memory.
                self._dense.append(payload)
                return
        self._ids.update(*lists)


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
        return self.of(found, now)

    def of(self, keys: Iterable[bytes], now: float) -> set[bytes]:
        """Those of ``keys`` that were filtered within the last :data:`SECONDS`."""
        since = self._since
        return {key for key in keys if key in since and now - since[key] <= SECONDS}

    def add(self, keys: AbstractSet[bytes], now: float) -> None:
        """Remember spans that were filtered at ``now``; ``keys``: trace id and span id of each."""
        if not keys:
            return
        if not self._since.keys().isdisjoint(keys):
            # Again at the end: the dict is in order of time.
            for key in keys:
                self._since.pop(key, None)
        self._since.update(dict.fromkeys(keys, now))
        new = dict(zip(map(_span_id, keys), keys, strict=True))
        if len(new) == len(keys) and self._keys.keys().isdisjoint(new):
            self._keys.update(new)
        else:
            for key in keys:
                self._note(key)
        self._search, self._listed = None, 0
        if (excess := len(self._since) - self._most) > 0:
            # Half at once: each look through all of them makes room for many.
            self._keep(list(self._since)[excess + self._most // 2 :])

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
        self._keys = {key[TRACE:]: key for key in keys}
        if len(self._keys) < len(keys):
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
            return self._search(payload, 0) is not None or (
                _overlong(payload) and names(payload, self._keys.keys())
            )
        return names(payload, self._keys.keys())
