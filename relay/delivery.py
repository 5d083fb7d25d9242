"""What is sent next, and what an answer means for the items: the decisions of a pipeline.

Pure and synchronous: time and chance are arguments, nothing is awaited, and every call leaves the
books balanced (:class:`Ledger`). :mod:`relay.pipeline` is the thin loop that carries it out.

Source: contract, "The way of a request", points 3 to 9.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from proto_stubs import SignalSchema
from relay import batch, inspect, retry, wire
from relay.limits import PipelineConfig
from relay.otlp import Accepted, Fault, Outcome, Permanent, Retryable
from relay.ring import Chunk, Dropped, Ring

__all__ = [
    "Batch",
    "Case",
    "Delivery",
    "Event",
    "Ledger",
    "LimitLowered",
    "OutageBegan",
    "OutageContinues",
    "OutageEnded",
    "Refused",
    "Unimplemented",
]

SUSPECT_AFTER: Final = 3
"""Attempts of a batch that timed out before its halves are tried apart."""

BLIND_CASES: Final = 16
"""Where nothing at all passes, batches are only divided up to this many parts in all: the rest of a
batch must not wait for other items to prove that the destination lives, and an outage must not
grind everything that waits to dust."""

GIVE_UP_AFTER: Final = 5
"""Timed-out attempts of a single unit, while others succeeded, after which it is dropped."""

EXTRA_EXPORTS: Final = 64
"""Most exports spent on finding what is at fault in one refused batch."""

LOWEST_LIMIT: Final = 4096
"""Bytes below which no collector's message limit is believed to lie. Some answer
RESOURCE_EXHAUSTED without RetryInfo for a quota; the byte limit stays lowered, so that must not end
at single items."""

UNIMPLEMENTED_RETRY: Final = 60.0
"""Seconds after which a signal that the collector does not implement is tried again."""

REROUTES: Final = 3
"""Lost connections in a row that are taken for the loss of one of several addresses."""


@dataclass(slots=True)
class Ledger:
    """Where every item of one signal went. Counts are items unless they say otherwise.

    ``received == filtered + dropped + exported + queued + in_flight`` after every call.
    """

    received: Counter[str] = field(default_factory=Counter)
    """By transport."""
    received_bytes: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    """By reason."""
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason."""
    exported: int = 0
    exported_bytes: int = 0
    in_flight: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    """Attempts, by code."""
    up: bool | None = None
    """Whether the latest attempt was accepted; None before the first."""
    failing_since: float | None = None
    """Monotonic seconds of the first failure after the last success."""


@dataclass(slots=True)
class Budget:
    """Exports left for one refused batch and all that it is divided into."""

    left: int = EXTRA_EXPORTS


@dataclass(slots=True, eq=False)
class Case:
    """Chunks that go together and alone, since a batch of them failed, and what is known.

    ``timeouts``: attempts that timed out; ``passed``: those during which, or since the one before,
    others succeeded. ``mark``: the count of successes up to which that was looked at.
    ``tried``: it timed out as it is, not only as part of something larger. ``parsed``: every unit
    was seen to parse. ``budget``: set while a refused batch is divided.
    """

    timeouts: int = 0
    passed: int = 0
    mark: int = 0
    tried: bool = False
    parsed: bool = False
    budget: Budget | None = None

    @property
    def apart(self) -> bool:
        """Whether it may be at fault itself, so that others are let past it."""
        return self.budget is not None or self.timeouts >= SUSPECT_AFTER


@dataclass(slots=True, eq=False)
class Batch:
    """What one export carries. It is in flight from :meth:`Delivery.next` to ``settle``."""

    chunks: list[Chunk[Case]]
    payload: bytes
    units: int
    items: int
    case: Case | None
    number: int
    """Successes counted when it left."""
    probe: bool
    """Sent to find out whether a failing destination is back."""
    suspect: bool


@dataclass(frozen=True, slots=True)
class OutageBegan:
    """The destination failed in a retryable way after it worked, or at first contact."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class OutageContinues:
    """Another attempt failed, ``seconds`` into an outage that displaced ``lost`` items so far."""

    seconds: float
    lost: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class OutageEnded:
    """An export was answered after an outage of ``seconds`` that displaced ``lost`` items."""

    seconds: float
    lost: int


@dataclass(frozen=True, slots=True)
class Refused:
    """``items`` were dropped for ``reason`` after a final answer or repeated time-outs."""

    reason: str
    items: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class LimitLowered:
    """The collector called an export of ``size`` bytes too large; none over ``limit`` follows."""

    size: int
    limit: int
    message: str


@dataclass(frozen=True, slots=True)
class Unimplemented:
    """The collector does not take this signal (``started``), or takes it again."""

    started: bool
    message: str


Event: TypeAlias = (
    OutageBegan | OutageContinues | OutageEnded | Refused | LimitLowered | Unimplemented
)


def _ignore(_: Event) -> None:
    pass


class Delivery:
    """The state of one signal's way to its collector.

    Every method takes ``now``, monotonic seconds. ``random`` gives numbers in [0, 1).
    ``notify`` is told what a person may want to read; it must not raise.
    """

    def __init__(
        self,
        schema: SignalSchema,
        limits: PipelineConfig,
        *,
        random: Callable[[], float],
        notify: Callable[[Event], None] = _ignore,
    ) -> None:
        self.schema = schema
        self.limits = limits
        self.ring: Ring[Case] = Ring(schema, limits.queue_size, limits.queue_max_bytes)
        self.ledger = Ledger()
        self.size_limit = limits.export_max_bytes
        self.draining = False
        self._random = random
        self._notify = notify
        self.exports = 0
        """Exports under way."""
        self._suspects = 0
        self._cases = 0
        self._successes = 0
        self._failures = 0
        self._reroutes = 0
        self._probing = False
        self._suspect_last = False
        self._probe_at: float | None = None
        self._outage_began: float | None = None
        self._displaced_before = 0
        self._unimplemented = 0
        self._unimplemented_until: float | None = None

    # -- arrivals ---------------------------------------------------------------------------

    def offer(self, payload: bytes, units: int, items: int, now: float) -> None:
        """Put a request of at least one unit into the ring; what it displaces is dropped."""
        dropped = self.ring.offer(payload, units, items, now)
        if dropped is not None:
            self._count_displaced(dropped)

    # -- what to do next --------------------------------------------------------------------

    def wake_at(self, now: float) -> float | None:
        """When to send: ``now`` or earlier means at once, None not before something happens."""
        oldest = self.ring.oldest
        if oldest is None or self.exports >= self.limits.max_concurrent_exports:
            return None
        if self._probe_at is not None:
            if self._probing:
                return None
            if now < self._probe_at:
                return self._probe_at
        if self.draining:
            return now
        if self._cases:
            return self._wake_among_cases(now)
        return batch.due(
            self.limits, self.size_limit, self.ring.items, self.ring.payload_bytes, oldest.arrived
        )

    def _wake_among_cases(self, now: float) -> float | None:
        """As :meth:`wake_at`, where some chunks wait for another try and others to fill a batch."""
        items = size = tagged = 0
        oldest: float | None = None
        for chunk in self.ring:
            if chunk.tag is None:
                items += chunk.items
                size += len(chunk.payload)
                oldest = chunk.arrived if oldest is None else oldest
            elif not chunk.tag.apart or not self._suspects_wait():
                return now
            else:
                tagged += 1
        if not tagged:
            self._cases = 0  # What was counted has been displaced.
        if oldest is None:
            return None
        return batch.due(self.limits, self.size_limit, items, size, oldest)

    def next(self, now: float) -> Batch | None:
        """Take what is to be sent now, over a connection that is ready; None: nothing.

        Call it when :meth:`wake_at` says so, until it gives None.
        """
        at = self.wake_at(now)
        while at is not None and at <= now:
            chunks, case = self._pick()
            if not chunks:
                return None
            if case is not None and self._recut(chunks, case):
                at = self.wake_at(now)
                continue
            taken = self._leave(chunks, case)
            if self._unimplemented_until is not None and now < self._unimplemented_until:
                self._unsend(taken)
                self._drop(taken.items, "unimplemented")
            elif case is not None and case.budget is not None and case.budget.left <= 0:
                self._unsend(taken)
                self._drop(taken.items, "rejected")
                self._notify(
                    Refused("rejected", taken.items, "INVALID_ARGUMENT", "not divided any further")
                )
            else:
                if case is not None and case.budget is not None:
                    case.budget.left -= 1
                return taken
            at = self.wake_at(now)
        return None

    def _recut(self, chunks: list[Chunk[Case]], case: Case) -> bool:
        """Divide what was picked where that is known to be wanted; then it is back in the ring."""
        units = sum(chunk.units for chunk in chunks)
        if units == 1:
            return False
        if sum(len(chunk.payload) for chunk in chunks) > self.size_limit:
            # The limit was lowered meanwhile: to be cut anew, like all that waits.
            self._cases -= 1
            self._return(chunks, None)
            return True
        if case.tried and case.timeouts >= SUSPECT_AFTER and self._successes > case.mark:
            # Others passed since it timed out: no need to see it fail as a whole once more.
            self._cases -= 1
            self._credit(case)
            self._divide(chunks, case)
            return True
        return False

    def sendable(self, now: float) -> bool:
        """Whether a connection is wanted: something is due and would not be dropped unsent."""
        at = self.wake_at(now)
        if at is None or at > now:
            return False
        return self._unimplemented_until is None or now >= self._unimplemented_until

    def _pick(self) -> tuple[list[Chunk[Case]], Case | None]:
        """The oldest chunks that may go now, as one batch, and their common case."""
        if self._cases and (case := self._pick_case()) is not None:
            return self.ring.take_tagged(case), case
        chunks = self.ring.take(self.limits.batch_size, self.size_limit, _is_fresh)
        return chunks, None

    def _pick_case(self) -> Case | None:
        """The case to send next, None when fresh chunks come first (or there is no case)."""
        past = self._let_past()
        oldest: Case | None = None
        probing = self._probe_at is not None
        for chunk in self.ring:
            tag = chunk.tag
            if tag is None or not tag.apart:
                return tag if oldest is None or past else oldest
            # Probes take turns, or one that never passes would stand in front of all others.
            if oldest is None or (probing and tag.timeouts < oldest.timeouts):
                oldest = tag
        return None if self._suspects_wait() else oldest

    def _suspects_wait(self) -> bool:
        """Whether suspects hold as many exports as they may, so that one is left for the rest."""
        most = self.limits.max_concurrent_exports - 1
        return self._probe_at is None and 0 < most <= self._suspects

    def _let_past(self) -> bool:
        """Whether others go before an older suspect."""
        if self._probe_at is not None or self._suspects_wait():
            return True
        return self.limits.max_concurrent_exports == 1 and self._suspect_last

    def _leave(self, chunks: list[Chunk[Case]], case: Case | None) -> Batch:
        payload = (
            chunks[0].payload if len(chunks) == 1 else b"".join([chunk.payload for chunk in chunks])
        )
        items = 0
        units = 0
        for chunk in chunks:
            items += chunk.items
            units += chunk.units
        suspect = case is not None and case.apart
        probe = self._probe_at is not None
        taken = Batch(chunks, payload, units, items, case, self._successes, probe, suspect)
        if case is not None:
            self._cases -= 1
        self.ledger.in_flight += items
        self.exports += 1
        self._suspects += suspect
        self._suspect_last = suspect
        self._probing = self._probing or probe
        return taken

    def _unsend(self, taken: Batch) -> None:
        """A batch is no longer in flight; its items are the caller's to account for."""
        self.ledger.in_flight -= taken.items
        self.exports -= 1
        self._suspects -= taken.suspect
        if taken.probe:
            self._probing = False

    # -- what came of it --------------------------------------------------------------------

    def connect_failed(self, failure: Retryable, now: float) -> None:
        """No connection came about; nothing had left the ring for it."""
        self._attempted(failure.code, now, ok=False)
        self._failing(failure, now)

    def settle(self, taken: Batch, outcome: Outcome, now: float) -> None:
        """Account for a batch by the collector's answer; exactly once for each batch."""
        self._unsend(taken)
        self._attempted(outcome.code, now, ok=isinstance(outcome, Accepted))
        match outcome:
            case Accepted():
                self._accepted(taken, outcome, now)
            case Retryable():
                self._retry(taken, outcome, now)
            case Permanent():
                self._final(taken, outcome, now)

    def give_back(self, taken: Batch) -> None:
        """A batch was cancelled before there was an answer: its items return to the ring."""
        self._unsend(taken)
        self._return(taken.chunks, taken.case)

    def abandon(self) -> int:
        """Drop all that waits since the relay stops; return the items."""
        items = self.ring.clear()
        self._cases = 0
        self._drop(items, "shutdown")
        return items

    def _attempted(self, code: str, now: float, *, ok: bool) -> None:
        ledger = self.ledger
        ledger.attempts[code] += 1
        ledger.up = ok
        if ok:
            ledger.failing_since = None
        elif ledger.failing_since is None:
            ledger.failing_since = now

    def _accepted(self, taken: Batch, outcome: Accepted, now: float) -> None:
        rejected = min(max(outcome.rejected, 0), taken.items)
        self.ledger.exported += taken.items - rejected
        self.ledger.exported_bytes += len(taken.payload)
        if rejected:
            self._drop(rejected, "partial_success")
            self._notify(Refused("partial_success", rejected, outcome.code, outcome.message))
        self._successes += 1
        self._implemented()
        self._reached(now)

    def _implemented(self) -> None:
        self._unimplemented = 0
        if self._unimplemented_until is not None:
            self._unimplemented_until = None
            self._notify(Unimplemented(started=False, message=""))

    def _reached(self, now: float) -> None:
        """The destination answers: no more waiting between exports."""
        self._failures = 0
        self._reroutes = 0
        self._probe_at = None
        if self._outage_began is not None:
            self._notify(OutageEnded(now - self._outage_began, self._lost()))
            self._outage_began = None
        self._displaced_before = self._displaced()

    def _failing(self, failure: Retryable, now: float) -> None:
        """The destination fails: one probe at a time from now on."""
        self._failures += 1
        self._probe_at = now + retry.delay(self._failures, failure.delay, self._random())
        if self._outage_began is None:
            self._outage_began = now
            self._notify(OutageBegan(failure.code, failure.message))
            return
        seconds = now - self._outage_began
        self._notify(OutageContinues(seconds, self._lost(), failure.code, failure.message))

    def _displaced(self) -> int:
        dropped = self.ledger.dropped
        return dropped["queue_full"] + dropped["queue_bytes"]

    def _lost(self) -> int:
        """Items displaced since the destination last answered, not only since it is known to fail.

        An export may hang for long before it tells of an outage.
        """
        return self._displaced() - self._displaced_before

    def _retry(self, taken: Batch, failure: Retryable, now: float) -> None:
        others = self._successes > taken.number
        if failure.rerouted and self._reroutes < REROUTES:
            self._reroutes += 1
        elif failure.timed_out and others:
            pass  # The batch is slow, not the destination.
        elif taken.probe or self._probe_at is None:
            # Exports that were under way together fail together: that is one failure.
            self._failing(failure, now)
        if failure.timed_out:
            self._timed_out(taken, failure)
        else:
            self._return(taken.chunks, taken.case)

    def _timed_out(self, taken: Batch, failure: Retryable) -> None:
        case = taken.case if taken.case is not None else Case(mark=taken.number)
        case.timeouts += 1
        case.tried = True
        self._credit(case)
        if case.timeouts < SUSPECT_AFTER:
            self._return(taken.chunks, case)
        elif taken.units > 1 and (case.passed or self._cases < BLIND_CASES):
            self._divide(taken.chunks, case)
        elif taken.units == 1 and case.passed >= GIVE_UP_AFTER:
            self._refuse(taken.items, "timeout", failure)
        else:
            self._return(taken.chunks, case)

    def _credit(self, case: Case) -> None:
        """Note whether others succeeded while a case did not."""
        if self._successes > case.mark:
            case.passed = min(case.passed + 1, case.timeouts)
        case.mark = self._successes

    def _final(self, taken: Batch, answer: Permanent, now: float) -> None:
        if answer.fault is Fault.UNIMPLEMENTED:
            self._not_implemented(taken, answer, now)
            return
        # Any other final answer says that the destination is there and knows the signal.
        self._implemented()
        self._reached(now)
        if answer.fault is Fault.TOO_LARGE:
            self._too_large(taken, answer)
            return
        case = taken.case if taken.case is not None else Case(mark=taken.number)
        if not case.parsed:
            case.parsed = True
            try:
                healthy = self._well_formed(taken)
            except Exception as error:  # noqa: BLE001 - told below; the books come first
                # What looks into items is not there, or has a defect: nothing is known of them.
                healthy = None
                words = f"{answer.message} (the items could not be examined: {error!r})"
                answer = replace(answer, message=words)
            if healthy is not None:
                malformed = taken.items - sum(chunk.items for chunk in healthy)
                self._refuse(malformed, "malformed", answer)
                self._return(healthy, case)
                return
        if answer.fault is not Fault.INVALID or taken.units == 1:
            self._refuse(taken.items, "rejected", answer)
            return
        if case.budget is None:
            case.budget = Budget()
        self._divide(taken.chunks, case)

    def _well_formed(self, taken: Batch) -> list[Chunk[Case]] | None:
        """The chunks without the units that do not parse; None when all of them do."""
        healthy: list[Chunk[Case]] = []
        found = False
        for chunk in taken.chunks:
            flags = inspect.well_formed(chunk.payload, self.schema)
            if all(flags):
                healthy.append(chunk)
                continue
            found = True
            rest = wire.keep(chunk.payload, self.schema, flags)
            if rest.units:
                healthy.append(chunk.piece(rest, 0))
        return healthy if found else None

    def _divide(self, chunks: list[Chunk[Case]], case: Case) -> None:
        for half in self.ring.split(chunks):
            self._return(
                half,
                Case(
                    timeouts=case.timeouts,
                    passed=case.passed,
                    mark=case.mark,
                    parsed=case.parsed,
                    budget=case.budget,
                ),
            )

    def _too_large(self, taken: Batch, answer: Permanent) -> None:
        size = len(taken.payload)
        if taken.units == 1:
            self._refuse(taken.items, "too_large", answer)
            return
        if size <= LOWEST_LIMIT:
            case = taken.case if taken.case is not None else Case(mark=taken.number)
            if case.budget is None:
                case.budget = Budget()
            self._divide(taken.chunks, case)
            return
        if size <= self.size_limit:
            self.size_limit = max(size // 2, LOWEST_LIMIT)
            self._notify(LimitLowered(size, self.size_limit, answer.message))
        # Its chunks are cut anew by the lower limit, as if they had just come.
        self._return(taken.chunks, None)

    def _not_implemented(self, taken: Batch, answer: Permanent, now: float) -> None:
        self._unimplemented += 1
        if self._unimplemented == 1:
            # Once may be a collector that is just being replaced.
            self._failures += 1
            self._probe_at = now + retry.delay(self._failures, None, self._random())
            self._return(taken.chunks, taken.case)
            return
        self._probe_at = None
        if self._unimplemented_until is None:
            self._notify(Unimplemented(started=True, message=answer.message))
        self._unimplemented_until = now + UNIMPLEMENTED_RETRY
        self._cases = 0
        self._drop(taken.items + self.ring.clear(), "unimplemented")

    # -- bookkeeping ------------------------------------------------------------------------

    def _return(self, chunks: list[Chunk[Case]], case: Case | None) -> None:
        for chunk in chunks:
            chunk.tag = case
        if not chunks:
            return
        if case is not None:
            self._cases += 1
        dropped = self.ring.put_back(chunks)
        if dropped is not None:
            self._count_displaced(dropped)

    def _refuse(self, items: int, reason: str, answer: Retryable | Permanent) -> None:
        self._drop(items, reason)
        self._notify(Refused(reason, items, answer.code, answer.message))

    def _drop(self, items: int, reason: str) -> None:
        if items:
            self.ledger.dropped[reason] += items

    def _count_displaced(self, dropped: Dropped) -> None:
        self._drop(dropped.queue_full, "queue_full")
        self._drop(dropped.queue_bytes, "queue_bytes")


def _is_fresh(case: Case | None) -> bool:
    return case is None
