"""When a batch is ready. Pure: it owns no timer, it says when to look again.

Source: contract, "The way of a request", point 4.
"""

from __future__ import annotations

from relay.limits import PipelineConfig

__all__ = ["due"]


def due(limits: PipelineConfig, size_limit: int, items: int, size: int, oldest: float) -> float:
    """The monotonic time, in seconds, from which a batch may leave.

    ``items`` and ``size`` (bytes) wait, the oldest since ``oldest``; ``size_limit`` is what one
    export may hold at present. Minus infinity: a full batch waits, it may leave at once.
    """
    if items >= limits.batch_size or size >= size_limit:
        return float("-inf")
    return oldest + limits.schedule_delay
