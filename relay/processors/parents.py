"""Parent span ids in a traces request: where they may stand.

The bytes are searched for what looks like one: only who reads the span there knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from relay.processors.search import SMALL, compiled

__all__ = ["HEAD", "Window", "ids", "named", "overlong", "windows"]

# parent_span_id: field 4, length-delimited, of eight bytes. Looking ahead, so that one occurrence
# cannot hide the next. Tag and length may be written overlong, which nobody does: such a tag is
# looked for in a search of its own, as the usual one begins with a byte that is rare.
_LENGTH: Final = rb"(?:\x08|\x88\x80{0,3}\x00)"
HEAD: Final = rb"\x22" + _LENGTH
"""An expression for tag and length of a parent span id, if the tag is not overlong."""
_OVERLONG_HEAD: Final = rb"\xa2\x80{0,3}\x00" + _LENGTH
_ID: Final = rb"(?=(.{8}))"
_PARENT: Final = re.compile(HEAD + _ID, re.DOTALL)
_OVERLONG: Final = re.compile(_OVERLONG_HEAD + _ID, re.DOTALL)
_overlong_in_large: Final = compiled(_OVERLONG_HEAD)
_WINDOW: Final = 64 * 1024
_BEHIND: Final = 17
"""As many bytes as tag, length and id can take behind the first."""


class Window(NamedTuple):
    """A part of a payload, and the ids that begin in it and may be parent span ids."""

    form: re.Pattern[bytes]
    start: int
    stop: int
    ids: list[bytes]

    def positions(self, payload: bytes, wanted: AbstractSet[bytes]) -> list[int]:
        """Where one of these ids may be a parent span id."""
        found = self.form.finditer(payload, self.start, self.stop)
        return [match.start() for match in found if match[1] in wanted]


def ids(payload: bytes, most: int) -> AbstractSet[bytes] | None:
    """What may be parent span ids; all of eight bytes are among them. None: more than ``most``."""
    found = windows(payload, most)
    return None if found is None else set().union(*(window.ids for window in found))


def named(payload: bytes, wanted: AbstractSet[bytes]) -> bool:
    """Whether one of these may be a parent span id in the payload. Never wrongly no."""
    return not all(wanted.isdisjoint(window.ids) for window in _windows(payload))


def windows(payload: bytes, most: int) -> list[Window] | None:
    """What looks like a parent span id of eight bytes; None: there are more than ``most``.

    Those that stand where two windows overlap come twice.
    """
    found = []
    for window in _windows(payload):
        found.append(window)
        most -= len(window.ids)
        if most < 0:
            return None
    return found


def _windows(payload: bytes) -> Iterator[Window]:
    size = len(payload)
    forms = (_PARENT, _OVERLONG) if overlong(payload) else (_PARENT,)
    for form in forms:
        for start in range(0, size, _WINDOW):
            stop = min(start + _WINDOW + _BEHIND, size)
            found = form.findall(payload, start, stop)
            if found:
                yield Window(form, start, stop, found)


def overlong(payload: bytes) -> bool:
    """Whether an overlong tag of a parent span id may stand in the payload."""
    search = _OVERLONG.search if len(payload) < SMALL else _overlong_in_large
    return search(payload, 0) is not None
