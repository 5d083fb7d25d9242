"""Processors: decide what of a request enters the ring, and with which additions.

Pure and synchronous: bytes and a time in, bytes and counts out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

NOTHING: Mapping[str, int] = MappingProxyType({})


class Result(NamedTuple):
    """What is left of a request.

    ``payload``: the request without what was removed; ``b""`` when no unit is left.
    ``units``, ``items``: what is left in it.
    ``removed``: items removed, by ``filtered_items_total`` reason.
    ``learned``: the processor now knows of spans whose descendants may wait in the ring; the
    pipeline then passes every waiting payload through :meth:`Processor.prune`.
    """

    payload: bytes
    units: int
    items: int
    removed: Mapping[str, int] = NOTHING
    learned: bool = False


class Processor(Protocol):
    """One signal's processing."""

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """Process one arriving request. ``now``: monotonic seconds."""

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """Remove from a waiting payload what the latest ``process`` call condemned."""


@dataclass(frozen=True, slots=True)
class ProcessorConfig:
    """Settings of section "filters" and "enrichment".

    ``excluded`` and ``included`` are patterns as written (already split at commas);
    ``included`` None: no inclusion list is set.
    """

    enabled: bool = True
    metrics_enabled: bool = True
    excluded: tuple[str, ...] = ()
    included: tuple[str, ...] | None = None
    drop_send_receive: bool = True
    sampling_ratio: float = 1.0
    service_name: str = ""
    resource_attributes: tuple[tuple[str, str], ...] = field(default=())
