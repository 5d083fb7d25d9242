"""How long to wait before a failing destination is tried again. Pure.

Source: contract, "The way of a request", points 6 and 7; OTLP specification 1.11, "OTLP/gRPC
Throttling" and "OTLP/HTTP Throttling".
"""

from __future__ import annotations

__all__ = ["MAX_DELAY", "MAX_THROTTLE", "MIN_DELAY", "MIN_THROTTLE", "delay"]

MIN_DELAY = 0.5
"""Shortest wait between two probes, in seconds."""

MAX_DELAY = 5.0
"""Longest wait between two probes that the collector did not ask for, in seconds."""

MIN_THROTTLE = 0.1
"""Shortest wait, in seconds, that is taken from a collector: no busy loop on its word."""

MAX_THROTTLE = 60.0
"""Longest wait that a collector may ask for, in seconds."""


def delay(attempt: int, asked: float | None, random: float) -> float:
    """Seconds to wait after the ``attempt``-th failure in a row (from 1).

    ``asked``: what RetryInfo or Retry-After said, in seconds. ``random`` in [0, 1): full jitter
    spreads the sidecars of a fleet, so that they do not return in step; the range doubles with
    each failure up to :data:`MAX_DELAY`.
    """
    if asked is not None and asked > 0:
        return min(max(asked, MIN_THROTTLE), MAX_THROTTLE)
    ceiling = min(MAX_DELAY, MIN_DELAY * 2.0 ** min(attempt, 16))
    return MIN_DELAY + random * (ceiling - MIN_DELAY)
