"""The pipeline's loop in virtual time, against exporters that do as told."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

import pytest

from proto_stubs import LOGS, PROFILES, TRACES
from relay import wire
from relay.delivery import Event, OutageBegan, OutageEnded
from relay.limits import PipelineConfig
from relay.otlp import Accepted, Fault, Outcome, Permanent, Retryable
from relay.pipeline import Pipeline, Pipelines
from relay.processors import Processor, Result
from relay.receivers import Refusal, RefusedError
from tests import virtual
from tests.numbered import logs, numbers_of, spans

LIMITS = PipelineConfig(queue_size=2048, batch_size=512, schedule_delay=5.0)
DOWN = Retryable("UNAVAILABLE", "no")
REFUSED = Retryable("CONNECT_FAILED", "refused")


class Destination:
    """An exporter: ``answer`` gives an outcome, waits, or raises; ``link`` does for connecting."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.connects = 0
        self.connected = False
        self.answer: Callable[[bytes], Coroutine[Any, Any, Outcome]] = self.accept
        self.link: Callable[[], Coroutine[Any, Any, Retryable | None]] = self.connect_at_once

    async def accept(self, _: bytes) -> Outcome:
        return Accepted()

    async def connect_at_once(self) -> Retryable | None:
        self.connected = True
        return None

    def ready(self) -> bool:
        return self.connected

    async def connect(self) -> Retryable | None:
        self.connects += 1
        return await self.link()

    async def export(self, payload: bytes) -> Outcome:
        assert self.connected, "a batch left before there was a connection"
        self.payloads.append(payload)
        return await self.answer(payload)

    async def close(self) -> None:
        self.connected = False

    @property
    def numbers(self) -> list[int]:
        return [number for payload in self.payloads for number in numbers_of(payload, TRACES)]

    def outcomes(self, *outcomes: Outcome | Exception) -> None:
        """Answer so, one each; then accept."""
        left = list(outcomes)

        async def answer(_: bytes) -> Outcome:
            outcome = left.pop(0) if left else Accepted()
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        self.answer = answer

    async def hang(self, _: bytes) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


class World:
    """A pipeline in the virtual time of the running loop."""

    def __init__(self, limits: PipelineConfig = LIMITS, processor: Processor | None = None) -> None:
        self.to = Destination()
        self.events: list[Event] = []
        self.looks = 0
        self.line = Pipeline(
            TRACES,
            limits,
            self.to,
            processor,
            clock=self.time,
            random=random.Random(1).random,
            notify=self.events.append,
        )

    def time(self) -> float:
        self.looks += 1
        return asyncio.get_running_loop().time()

    def send(self, first: int, behind: int) -> None:
        self.line.consume(spans(range(first, behind)), "grpc")
        self.balanced()

    def balanced(self) -> None:
        ledger = self.line.delivery.ledger
        assert ledger.received.total() == (
            ledger.filtered.total()
            + ledger.dropped.total()
            + ledger.exported
            + self.line.delivery.ring.items
            + ledger.in_flight
        )

    @property
    def exported(self) -> int:
        return self.line.delivery.ledger.exported

    @property
    def dropped(self) -> dict[str, int]:
        self.balanced()
        return {key: n for key, n in self.line.delivery.ledger.dropped.items() if n}


def in_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        virtual.run(test())

    functools.update_wrapper(run, test)
    del run.__wrapped__  # type: ignore[attr-defined]  # pytest must not look through it
    return run


async def turns(number: int = 20) -> None:
    """Let everything run that can run now."""
    for _ in range(number):
        await asyncio.sleep(0)


# --- in and out ----------------------------------------------------------------------------------


@in_virtual_time
async def test_taking_a_request_awaits_nothing_and_sends_nothing_yet() -> None:
    world = World(PipelineConfig(schedule_delay=0.0))
    world.send(0, 512)
    # Not even connecting has begun: the caller, who answers the app, comes first.
    assert world.to.connects == 0
    assert world.line.requests["grpc", "accepted"] == 1
    await turns()
    assert world.to.numbers == list(range(512))
    assert world.exported == 512


@in_virtual_time
async def test_a_batch_leaves_when_its_oldest_item_has_waited() -> None:
    world = World()
    world.send(0, 10)
    await asyncio.sleep(3)
    world.send(10, 20)
    await asyncio.sleep(1.99)
    assert world.to.payloads == []
    await asyncio.sleep(0.02)
    assert world.to.payloads == [spans(range(10)) + spans(range(10, 20))]
    assert world.line.last_success is not None
    assert world.line.batch_items.total == 20


@in_virtual_time
async def test_a_full_batch_leaves_at_once() -> None:
    world = World()
    world.send(0, 511)
    await turns()
    assert world.to.payloads == []
    world.send(511, 600)
    await turns()
    # Not cut for one span more.
    assert world.to.numbers == list(range(511))
    assert world.line.delivery.ring.items == 89


@in_virtual_time
async def test_without_a_delay_every_request_leaves_at_once_and_nothing_spins() -> None:
    world = World(PipelineConfig(schedule_delay=0.0))
    for number in range(10):
        world.send(number, number + 1)
        await turns()
        assert world.to.numbers == list(range(number + 1))
    assert world.to.payloads == [spans([number]) for number in range(10)]
    # Idle, with a hung export, without a connection: no loop looks at the clock.
    for answer in (world.to.accept, world.to.hang):
        world.to.answer = answer
        for number in range(10):
            world.send(number, number + 1)
        await turns()
        looks = world.looks
        await turns(1000)
        assert world.looks == looks
    waiting = World(PipelineConfig(schedule_delay=0.0))
    waiting.to.link = functools.partial(waiting.to.hang, b"")  # type: ignore[assignment]  # never returns
    for number in range(10):
        waiting.send(number, number + 1)
    await turns()
    looks = waiting.looks
    await turns(1000)
    assert waiting.looks == looks
    assert waiting.to.connects == 1
    assert await waiting.line.drain(1) == 10
    assert await world.line.drain(1) > 0


@in_virtual_time
async def test_what_waits_for_a_connection_can_still_be_displaced() -> None:
    world = World()
    world.to.link = functools.partial(world.to.hang, b"")  # type: ignore[assignment]  # never returns
    for first in range(0, 10_000, 100):
        world.send(first, first + 100)
        await turns(2)
    assert world.line.delivery.ledger.in_flight == 0
    assert world.dropped == {"queue_full": 7952}
    assert await world.line.drain(0.1) == 2048
    assert world.dropped == {"queue_full": 7952, "shutdown": 2048}


@in_virtual_time
async def test_concurrent_exports_and_no_more() -> None:
    world = World()
    world.to.answer = world.to.hang
    world.send(0, 2048)
    await turns()
    assert len(world.to.payloads) == 4
    world.send(2048, 4096)
    await turns()
    assert len(world.to.payloads) == 4
    assert world.line.delivery.ledger.in_flight == 2048
    assert world.line.delivery.ring.items == 2048
    await world.line.drain(0)


@in_virtual_time
async def test_an_outage_and_its_end() -> None:
    world = World()
    failures = iter([REFUSED, REFUSED, REFUSED])

    async def link() -> Retryable | None:
        failure = next(failures, None)
        world.to.connected = failure is None
        return failure

    world.to.link = link
    world.send(0, 600)
    await asyncio.sleep(30)
    assert world.to.numbers == list(range(600))
    kinds = [type(event) for event in world.events]
    assert kinds[0] is OutageBegan
    assert kinds[-1] is OutageEnded
    assert world.line.delivery.ledger.attempts == {"CONNECT_FAILED": 3, "OK": 2}


@in_virtual_time
async def test_a_retry_resumes_by_itself() -> None:
    world = World()
    world.to.outcomes(DOWN, DOWN)
    world.send(0, 512)
    await turns()
    assert world.line.delivery.ledger.in_flight == 0
    assert world.line.delivery.ring.items == 512
    await asyncio.sleep(11)
    assert world.exported == 512
    assert len(world.to.payloads) == 3
    assert world.line.export_seconds.cumulative()[-1] == ("+Inf", 3)


@in_virtual_time
async def test_requests_are_counted_by_outcome() -> None:
    world = World()
    world.send(0, 3)
    world.line.consume(b"", "http")
    with pytest.raises(RefusedError) as caught:
        world.line.consume(b"\xff", "http")
    assert caught.value.refusal is Refusal.INVALID
    assert "ExportTraceServiceRequest" in caught.value.message
    world.line.refused("http", Refusal.TOO_LARGE, 0.1)
    assert world.line.requests == {
        ("grpc", "accepted"): 1,
        ("http", "accepted"): 1,
        ("http", "invalid"): 1,
        ("http", "too_large"): 1,
    }
    assert world.line.receive_seconds["http"].cumulative()[-1] == ("+Inf", 3)
    assert world.line.receive_seconds["http"].total >= 0.1
    ledger = world.line.delivery.ledger
    assert ledger.received == {"grpc": 3}
    assert ledger.received_bytes == {"grpc": len(spans(range(3)))}


# --- faults --------------------------------------------------------------------------------------


@in_virtual_time
async def test_an_exporter_that_raises_costs_nothing() -> None:
    world = World()
    world.to.outcomes(RuntimeError("a defect"), RuntimeError("another"))
    world.send(0, 1100)
    await asyncio.sleep(20)
    assert sorted(set(world.to.numbers)) == list(range(1100))
    assert world.exported == 1100
    assert world.dropped == {}
    assert world.line.delivery.ledger.attempts["INTERNAL"] == 2


@in_virtual_time
async def test_connecting_that_raises_is_tried_again() -> None:
    world = World()
    left = [RuntimeError("a defect")]

    async def link() -> Retryable | None:
        if left:
            raise left.pop()
        return await world.to.connect_at_once()

    world.to.link = link
    world.send(0, 512)
    await asyncio.sleep(6)
    assert world.exported == 512
    assert world.line.delivery.ledger.attempts["CONNECT_FAILED"] == 1


class Filter:
    """Removes nothing, or all of it; raises when ``broken``; prunes as told."""

    def __init__(self) -> None:
        self.broken = False
        self.remove = False
        self.learned = False
        self.prunes: Iterator[bool] = iter(())
        """Whether each pruned payload goes, and teaches something."""
        self.pruned: list[list[int]] = []

    def count(self, payload: bytes) -> tuple[int, int]:
        return wire.count(payload, TRACES)

    def process(self, payload: bytes, units: int, items: int, now: float) -> Result:
        if self.broken:
            raise RuntimeError("a defect")
        if self.remove:
            return Result(b"", 0, 0, {"sampled_out": items}, self.learned)
        return Result(payload, units, items)

    def affects(self, waiting: Iterable[bytes]) -> bool:
        return True

    def prune(self, payload: bytes, units: int, items: int, now: float) -> Result:
        self.pruned.append(numbers_of(payload, TRACES))
        if next(self.prunes, False):
            return Result(b"", 0, 0, {"subtree": items}, learned=True)
        return Result(payload, units, items)


@in_virtual_time
async def test_a_filter_that_raises_takes_no_request_and_counts_none() -> None:
    filters = Filter()
    world = World(processor=filters)
    filters.broken = True
    with pytest.raises(RuntimeError):
        world.send(0, 10)
    world.balanced()
    assert world.line.delivery.ledger.received.total() == 0
    filters.broken = False
    world.send(10, 20)
    assert await world.line.drain(1) == 0
    assert world.to.numbers == list(range(10, 20))


@in_virtual_time
async def test_what_a_filter_learns_reaches_all_that_waits_newest_first() -> None:
    filters = Filter()
    world = World(processor=filters)
    for number in range(3):
        world.send(number, number + 1)
    filters.remove = filters.learned = True
    # The second looked at goes and teaches; so all that is left is looked at once more.
    filters.prunes = iter([False, True])
    world.send(9, 10)
    assert filters.pruned == [[2], [1], [0], [2], [0]]
    ledger = world.line.delivery.ledger
    assert ledger.filtered == {"sampled_out": 1, "subtree": 1}
    assert await world.line.drain(1) == 0
    assert world.to.numbers == [0, 2]
    world.balanced()


@in_virtual_time
async def test_a_filter_that_raises_over_what_waits_costs_nothing() -> None:
    filters = Filter()
    world = World(processor=filters)
    world.send(0, 5)
    filters.remove = filters.learned = True

    def prune(payload: bytes, units: int, items: int, now: float) -> Result:
        raise RuntimeError("a defect")

    filters.prune = prune  # type: ignore[method-assign]  # broken for what waits alone
    world.send(5, 9)
    world.balanced()
    assert world.line.delivery.ledger.filtered == {"sampled_out": 4}
    assert await world.line.drain(1) == 0
    assert world.to.numbers == list(range(5))
    world.balanced()


# --- the end -------------------------------------------------------------------------------------


@in_virtual_time
async def test_draining_nothing_and_twice() -> None:
    world = World()
    assert await world.line.drain(5) == 0
    assert asyncio.get_running_loop().time() == 1000
    assert await world.line.drain(5) == 0
    with pytest.raises(RefusedError) as caught:
        world.line.consume(spans([1]), "grpc")
    assert caught.value.refusal is Refusal.UNAVAILABLE
    assert world.line.requests == {("grpc", "unavailable"): 1}
    world.balanced()


@in_virtual_time
async def test_two_that_drain_at_once_both_end_when_it_is_done() -> None:
    world = World()
    world.send(0, 10)
    assert sum(await asyncio.gather(world.line.drain(5), world.line.drain(5))) == 0
    assert asyncio.get_running_loop().time() == 1000
    assert world.exported == 10


@in_virtual_time
async def test_draining_sends_what_waits_for_a_batch_and_takes_what_comes_meanwhile() -> None:
    world = World()
    world.send(0, 10)
    gate = asyncio.Event()

    async def answer(_: bytes) -> Outcome:
        await gate.wait()
        return Accepted()

    world.to.answer = answer
    draining = asyncio.create_task(world.line.drain(5))
    await turns()
    assert world.to.numbers == list(range(10))
    world.send(10, 20)
    await turns()
    assert world.to.numbers == list(range(20))
    gate.set()
    assert await draining == 0
    assert world.exported == 20
    assert asyncio.get_running_loop().time() == 1000


@in_virtual_time
async def test_draining_tries_again_within_its_limit() -> None:
    world = World()
    world.to.outcomes(DOWN, DOWN, DOWN)
    world.send(0, 600)
    assert await world.line.drain(20) == 0
    assert asyncio.get_running_loop().time() < 1020
    assert world.exported == 600


@in_virtual_time
async def test_draining_ends_at_its_limit_while_it_waits_to_try_again() -> None:
    world = World()

    async def down(_: bytes) -> Outcome:
        return DOWN

    world.to.answer = down
    world.send(0, 600)
    assert await world.line.drain(7) == 600
    assert asyncio.get_running_loop().time() == 1007
    assert world.dropped == {"shutdown": 600}
    assert world.line.delivery.exports == 0


@in_virtual_time
async def test_draining_ends_at_its_limit_while_exports_hang() -> None:
    world = World()
    world.to.answer = world.to.hang
    world.send(0, 3000)
    assert await world.line.drain(7) == 2048
    assert asyncio.get_running_loop().time() == 1007
    assert world.dropped == {"queue_full": 952, "shutdown": 2048}
    assert world.line.delivery.ledger.in_flight == 0


@in_virtual_time
async def test_an_export_cancelled_before_its_first_step_loses_nothing_uncounted() -> None:
    world = World()
    await world.to.connect_at_once()
    world.send(0, 512)  # Its export is a task that has not run yet.
    assert world.line.delivery.ledger.in_flight == 512
    await world.line._tasks.cancel()
    assert world.to.payloads == []
    assert await world.line.drain(0) == 512
    assert world.dropped == {"shutdown": 512}


@in_virtual_time
async def test_no_answer_after_the_end_is_counted() -> None:
    world = World()
    refuse_to_die = asyncio.Event()

    async def stubborn(_: bytes) -> Outcome:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            refuse_to_die.set()
            return Permanent("INTERNAL", Fault.OTHER)
        raise AssertionError("unreachable")

    world.to.answer = stubborn
    world.send(0, 10)
    assert await world.line.drain(1) == 0
    assert refuse_to_die.is_set()
    assert world.dropped == {"rejected": 10}
    world.balanced()


@in_virtual_time
async def test_signals_are_apart() -> None:
    destinations = {schema.name: Destination() for schema in (TRACES, LOGS, PROFILES)}
    lines = Pipelines(
        {
            schema.name: Pipeline(
                schema, LIMITS, destinations[schema.name], clock=asyncio.get_running_loop().time
            )
            for schema in (TRACES, LOGS, PROFILES)
        }
    )
    lines.consume(TRACES, spans(range(5)), "grpc")
    lines.consume(LOGS, logs(range(7)), "http")
    lines.refused(PROFILES, "http", Refusal.TOO_LARGE, 0.0)
    destinations["logs"].answer = destinations["logs"].hang
    assert await lines.drain(3) == {"traces": 0, "logs": 7, "profiles": 0}
    assert asyncio.get_running_loop().time() == 1003
    assert destinations["traces"].payloads == [spans(range(5))]
    assert lines.by_signal["profiles"].requests == {("http", "too_large"): 1}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Defects are logged with a traceback, which is what some of these are about."""
    caplog.set_level(logging.CRITICAL)
