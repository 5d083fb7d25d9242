"""The last ten minutes in small: what the page's charts show at once when it is opened.

Time is an argument; whoever samples calls :meth:`History.add` every :data:`INTERVAL` seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

__all__ = ["FIELDS", "INTERVAL", "SPAN", "History"]

INTERVAL: Final = 5.0
"""Seconds between two samples."""

SPAN: Final = 600.0
"""Seconds that are kept."""

FIELDS: Final = ("received", "filtered", "dropped", "exported", "waiting", "fill", "up")
"""What a sample has of each signal: totals since the start, items that wait or are under way, how
full the ring is (0 to 1, by items or by bytes, whichever is fuller), whether the collector is up
(true, false, null before the first attempt)."""

_Row = tuple[object, ...]


class History:
    """A ring of samples of what ``/status.json`` shows."""

    def __init__(self) -> None:
        # One more than intervals: the oldest sample is where the first rate starts.
        self._samples: deque[tuple[float, Mapping[str, _Row]]] = deque(
            maxlen=int(SPAN / INTERVAL) + 1
        )

    def add(self, status: Mapping[str, Any]) -> None:
        """Keep a sample of ``status``, which has its own time (``now``, Unix seconds).

        When the machine's clock was set back, samples from what is now the future are forgotten.
        """
        now = float(status["now"])
        while self._samples and self._samples[-1][0] >= now:
            self._samples.pop()
        while self._samples and self._samples[0][0] < now - SPAN - INTERVAL:
            self._samples.popleft()
        rows = {name: _row(signal) for name, signal in status["signals"].items()}
        self._samples.append((now, rows))

    def document(self) -> dict[str, object]:
        """What ``/history.json`` shows: samples from the oldest on, fields in this order."""
        return {
            "interval": INTERVAL,
            "span": SPAN,
            "fields": FIELDS,
            "samples": [{"at": at, "signals": rows} for at, rows in self._samples],
        }


def _row(signal: Mapping[str, Any]) -> _Row:
    queue = signal["queue"]
    fill = max(
        queue["items"] / queue["capacity_items"], queue["bytes"] / queue["capacity_bytes"], 0.0
    )
    return (
        signal["received"],
        sum(signal["filtered"].values()),
        sum(signal["dropped"].values()),
        signal["exported"],
        queue["items"] + signal["in_flight"],
        round(fill, 4),
        signal["collector"]["up"],
    )
