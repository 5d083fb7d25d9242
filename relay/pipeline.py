"""One pipeline per signal: takes requests in, and carries out what :mod:`relay.delivery` decides.

The loop is made of callbacks: an arrival, a timer, or the end of an export calls :meth:`_pump`,
which sends what is due. No task polls, and nothing is awaited between an arrival and its answer.
"""

from __future__ import annotations

import asyncio
import logging
import random as chance
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from relay import wire
from relay.delivery import Batch, Delivery, Event
from relay.exporters import Exporter
from relay.histogram import Histogram
from relay.limits import PipelineConfig
from relay.otlp import Outcome, Retryable, SignalSchema
from relay.processors import Processor
from relay.receivers import Refusal, RefusedError, Transport
from relay.tasks import Tasks

__all__ = ["Pipeline", "Pipelines"]

_log = logging.getLogger(__name__)

_FAST = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005)
RECEIVE_BOUNDS = (*_FAST, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
EXPORT_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BOUNDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)


def _ignore(_: Event) -> None:
    pass


class Pipeline:
    """The way of one signal from the receivers to its collector.

    ``clock``: monotonic seconds. ``processor``: None when nothing is filtered or added.
    """

    def __init__(
        self,
        schema: SignalSchema,
        limits: PipelineConfig,
        exporter: Exporter,
        processor: Processor | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = chance.random,
        notify: Callable[[Event], None] = _ignore,
    ) -> None:
        self.schema = schema
        self.limits = limits
        self.delivery = Delivery(schema, limits, random=random, notify=notify)
        self.requests: Counter[tuple[str, str]] = Counter()
        """Requests by transport and outcome."""
        self.receive_seconds: dict[str, Histogram] = {}
        """By transport."""
        self.export_seconds = Histogram(EXPORT_BOUNDS)
        self.batch_items = Histogram(BATCH_BOUNDS)
        self.last_success: float | None = None
        """Unix time in seconds."""
        self._exporter = exporter
        self._processor = processor
        self._count = partial(wire.count, schema=schema) if processor is None else processor.count
        self._clock = clock
        self._tasks = Tasks()
        self._connecting = False
        self._away: set[Batch] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._drained: asyncio.Event | None = None
        self._closed = False

    @property
    def clock(self) -> Callable[[], float]:
        """The clock whose times the ledger carries."""
        return self._clock

    # -- in ---------------------------------------------------------------------------------

    def consume(self, payload: bytes, transport: Transport, started: float | None = None) -> None:
        """Take one request. ``started``: when the whole of it was in hand, if not just now.

        Raises:
            RefusedError: it is malformed, or the pipeline has been drained already.
        """
        begun = time.perf_counter() if started is None else started
        if self._closed:
            self.refused(transport, Refusal.UNAVAILABLE, time.perf_counter() - begun)
            raise RefusedError(Refusal.UNAVAILABLE, "the relay is stopping")
        try:
            units, items = self._count(payload)
        except wire.MalformedError as error:
            self.refused(transport, Refusal.INVALID, time.perf_counter() - begun)
            raise RefusedError(
                Refusal.INVALID, f"not a valid {self.schema.request}: {error}"
            ) from None
        if units:
            self._admit(payload, units, items, transport)
        self.requests[transport, "accepted"] += 1
        self._received(transport, time.perf_counter() - begun)

    def refused(self, transport: Transport, refusal: Refusal, seconds: float) -> None:
        """Count a request that was not taken."""
        self.requests[transport, refusal.value] += 1
        self._received(transport, seconds)

    def _received(self, transport: str, seconds: float) -> None:
        histogram = self.receive_seconds.get(transport)
        if histogram is None:
            histogram = self.receive_seconds[transport] = Histogram(RECEIVE_BOUNDS)
        histogram.observe(seconds)

    def _admit(self, payload: bytes, units: int, items: int, transport: str) -> None:
        now = self._clock()
        delivery = self.delivery
        ledger = delivery.ledger
        size, entered = len(payload), items
        result = None
        if self._processor is not None:
            # Before anything is counted: should it raise, the request was not taken.
            result = self._processor.process(payload, units, items, now)
            payload, units, items = result.payload, result.units, result.items
        ledger.received[transport] += entered
        ledger.received_bytes[transport] += size
        if self._processor is not None and result is not None:
            if result.removed:
                for reason, number in result.removed.items():  # A fifth of Counter.update's time.
                    ledger.filtered[reason] += number
            if result.learned:
                self._revise(self._processor, now)
        if units:
            delivery.offer(payload, units, items, now)
            ring = delivery.ring
            if (
                self._timer is None
                or ring.items >= self.limits.batch_size
                or ring.payload_bytes >= delivery.size_limit
            ):
                self._pump()

    def _revise(self, processor: Processor, now: float) -> None:
        """Let the processor take back from the ring what it has just learned to be unwanted."""
        removed: dict[str, int] = {}
        learned = True

        def rewrite(payload: bytes, units: int, items: int) -> wire.Slice | None:
            nonlocal learned
            result = processor.prune(payload, units, items, now)
            learned = learned or result.learned
            if not result.removed:
                return None
            for reason, number in result.removed.items():
                removed[reason] = removed.get(reason, 0) + number
            return wire.Slice(result.payload, result.units, result.items)

        ring = self.delivery.ring
        try:
            while learned and processor.affects(self._kept()):
                # What was found in one payload may have descendants in those looked at before.
                learned = False
                ring.revise(rewrite)
        except Exception:  # noqa: BLE001 - logged; what is unwanted stays, the request is taken
            _log.exception("taking %s back from the ring failed unexpectedly", self.schema.name)
        if removed:
            self.delivery.ledger.filtered.update(removed)

    def _kept(self) -> Iterator[bytes]:
        """The payloads that wait, and those under way, which may come back."""
        for chunk in self.delivery.ring:
            yield chunk.payload
        for taken in self._away:
            for chunk in taken.chunks:
                yield chunk.payload

    # -- out --------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Send what is due; see to it that this is called again when more will be."""
        if self._closed:
            return
        delivery = self.delivery
        now = self._clock()
        at = delivery.wake_at(now)
        while at is not None and at <= now:
            if delivery.sendable(now) and not self._exporter.ready():
                if not self._connecting:
                    self._connecting = True
                    self._tasks.spawn(self._connect())
                return  # The end of connecting calls again.
            taken = delivery.next(now)
            if taken is not None:
                self.batch_items.observe(taken.items)
                self._away.add(taken)
                self._tasks.spawn(self._export(taken))
            elif delivery.wake_at(now) == at:
                break  # Only suspects are left, and none may go now: an answer calls again.
            at = delivery.wake_at(now)
        else:
            self._wake(at)
        if self._drained is not None and self._is_drained():
            self._drained.set()

    def _wake(self, at: float | None) -> None:
        if self._timer is not None:
            if at == self._timer_at:
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            delay = max(at - self._clock(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._woken)
            self._timer_at = at

    def _woken(self) -> None:
        self._timer = None
        self._pump()

    async def _connect(self) -> None:
        try:
            failure = await self._exporter.connect()
        except Exception as error:  # noqa: BLE001 - logged, counted, retried
            _log.exception("connecting for %s failed unexpectedly", self.schema.name)
            failure = Retryable("CONNECT_FAILED", repr(error))
        finally:
            self._connecting = False
        if failure is not None:
            self.delivery.connect_failed(failure, self._clock())
        self._pump()

    async def _export(self, taken: Batch) -> None:
        started = time.perf_counter()
        try:
            outcome: Outcome = await self._exporter.export(taken.payload)
        except Exception as error:  # noqa: BLE001 - logged, counted, retried
            # A defect of ours. It must not cost items, nor end this signal's exports unseen.
            _log.exception("export of %s failed unexpectedly", self.schema.name)
            outcome = Retryable("INTERNAL", repr(error))
        self.export_seconds.observe(time.perf_counter() - started)
        self._away.discard(taken)
        self.delivery.settle(taken, outcome, self._clock())
        if self.delivery.ledger.up:
            self.last_success = time.time()  # noqa: TID251 - a timestamp
        self._pump()

    # -- end --------------------------------------------------------------------------------

    def _is_drained(self) -> bool:
        delivery = self.delivery
        # Items may weigh nothing; chunks and tasks do not lie.
        return not len(delivery.ring) and not delivery.exports

    async def drain(self, limit: float) -> int:
        """Send all that waits, with retries, for at most ``limit`` seconds; return what was lost.

        From the return on, requests are refused and what could not be sent is counted as dropped.
        Receivers have to be stopped before.
        """
        self.delivery.draining = True
        if self._drained is None:
            self._drained = asyncio.Event()
        self._pump()
        if not self._is_drained():
            try:
                async with asyncio.timeout(limit):
                    await self._drained.wait()
            except TimeoutError:
                pass
        self._closed = True
        self._wake(None)
        await self._tasks.cancel()
        # Not by the exports themselves: one that is cancelled before its first step never runs.
        while self._away:
            self.delivery.give_back(self._away.pop())
        return self.delivery.abandon()


class Pipelines:
    """The pipelines of all signals. Implements ``relay.receivers.Consumer``."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.by_signal = dict(pipelines)

    def consume(
        self,
        signal: SignalSchema,
        payload: bytes,
        transport: Transport,
        started: float | None = None,
    ) -> None:
        """See :meth:`Pipeline.consume`."""
        self.by_signal[signal.name].consume(payload, transport, started)

    def refused(
        self, signal: SignalSchema, transport: Transport, refusal: Refusal, seconds: float
    ) -> None:
        """See :meth:`Pipeline.refused`."""
        self.by_signal[signal.name].refused(transport, refusal, seconds)

    async def drain(self, limit: float) -> dict[str, int]:
        """Drain all at once; the items lost, by signal."""
        lost = await asyncio.gather(*(p.drain(limit) for p in self.by_signal.values()))
        return dict(zip(self.by_signal, lost, strict=True))
