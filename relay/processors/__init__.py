"""Processors: decide what of a request enters the ring, and with which additions.

Pure and synchronous: bytes and a time in, bytes and counts out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Protocol

from proto_stubs import SignalSchema
from relay import wire

NOTHING: Mapping[str, int] = MappingProxyType({})


class Result(NamedTuple):
    """What is left of a request.

    ``payload``: the request without what was removed; ``b""`` when no unit is left.
    ``units``, ``items``: what is left in it.
    ``removed``: items removed, by ``filtered_items_total`` reason.
    ``learned``: the processor now knows of spans whose descendants may wait in the ring; the
    pipeline then passes every waiting payload through :meth:`Processor.prune`, the newest first,
    and once more as long as one of these results says ``learned`` again.
    """

    payload: bytes
    units: int
    items: int
    removed: Mapping[str, int] = NOTHING
    learned: bool = False


class Processor(Protocol):
    """One signal's processing."""

    def count(self, payload: bytes) -> tuple[int, int]:
        """Units and items of an arriving request, as :func:`relay.wire.count` counts them.

        Here, since a processor that has to walk a request anyway counts on the way.

        Raises:
            relay.wire.MalformedError: the structure is damaged.
        """

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """Process one arriving request. ``now``: monotonic seconds."""

    def affects(self, waiting: Iterable[bytes]) -> bool:
        """Whether :meth:`prune` may remove anything from these waiting payloads.

        ``waiting``: all that wait or may come back; looked at only if need be.
        """

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        """Remove from a waiting payload what the latest ``process`` call condemned.

        That is the descendants of the spans that it filtered. ``learned`` in the result: of those
        found here descendants may wait in payloads that were looked at before; they usually wait
        in older ones, since a span ends, and is sent, before the one above it.
        """


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


class _Disabled:
    """Takes everything and keeps nothing."""

    def __init__(self, schema: SignalSchema) -> None:
        self.count = partial(wire.count, schema=schema)

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        del payload, units, now
        return Result(b"", 0, 0, {"disabled": items} if items else NOTHING)

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        del now
        return Result(payload, units, items)

    def affects(self, waiting: Iterable[bytes]) -> bool:
        del waiting
        return False


class _Both:
    """Filters first, so that only what stays is enriched."""

    def __init__(self, filters: Processor, enrichment: Processor) -> None:
        self._filters = filters
        self._enrichment = enrichment
        self.count = filters.count
        self.prune = filters.prune
        self.affects = filters.affects

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        result = self._filters.process(payload, units, items, now)
        if not result.units:
            return result
        added = self._enrichment.process(result.payload, result.units, result.items, now)
        return result._replace(payload=added.payload)


def build(schema: SignalSchema, config: ProcessorConfig) -> Processor | None:
    """The processing of one signal; None when there is nothing to do for it.

    Raises:
        ValueError: a pattern that :func:`relay.processors.patterns.check` finds fault with.
    """
    # Imported as far as needed: RE2 is a native library, and many relays carry no traces.
    if not config.enabled or (schema.name == "metrics" and not config.metrics_enabled):
        return _Disabled(schema)
    filters: Processor | None = None
    judges_urls = config.included is not None or bool(config.excluded)
    if schema.name == "traces" and (
        judges_urls or config.drop_send_receive or config.sampling_ratio < 1
    ):
        from relay.processors.filters import SpanFilter  # noqa: PLC0415
        from relay.processors.patterns import UrlRules  # noqa: PLC0415

        filters = SpanFilter(
            UrlRules(config.excluded, config.included),
            drop_events=config.drop_send_receive,
            ratio=config.sampling_ratio,
        )
    enrichment: Processor | None = None
    if config.service_name or config.resource_attributes:
        from relay.processors.enrichment import Enrichment  # noqa: PLC0415

        enrichment = Enrichment(schema, config.service_name, config.resource_attributes)
    if filters is not None and enrichment is not None:
        return _Both(filters, enrichment)
    return filters or enrichment
