"""One run: an application, a relay, a proxy and a collector, all real, and a plan of faults.

The relay is a :class:`Local` one, the daemon in this process and event loop, for thousands of
schedules, or a :class:`Remote` one, a process that can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import aiohttp
import grpc
import grpc.aio

from relay import config as configuration
from relay import delivery, retry
from relay.daemon import Daemon
from relay.otlp import LOGS, TRACES, SignalSchema
from relay.pipeline import Pipeline
from relay.sink import ALWAYS_OK, Behaviour, Received, Sink
from tests.chaos.oracle import Books, Life, Trace, judge
from tests.chaos.plan import Behave, Network, Plan, Request
from tests.chaos.proxy import CLEAR, Faults, Proxy
from tests.e2e.harness import OWN_CONNECTION, RelayProcess, Scrape
from tests.numbered import logs, numbers_of, spans

__all__ = ["Ending", "Local", "Remote", "Report", "faster", "run"]

SIGNALS: Final = (TRACES, LOGS)

SLACK: Final = 4.0
"""Seconds on top of every limit: the machines that run this are shared."""

Ending = Literal["drain", "SIGTERM", "SIGKILL"]

MAX_DELAY: Final = retry.MAX_DELAY
UNIMPLEMENTED_RETRY: Final = delivery.UNIMPLEMENTED_RETRY
"""The waits of a relay process, which :func:`faster` does not reach."""


@contextlib.contextmanager
def faster(factor: float = 10.0) -> Iterator[None]:
    """Divide the relay's waits between retries, in this process, for more schedules a minute."""
    kept = retry.MIN_DELAY, retry.MAX_DELAY, delivery.UNIMPLEMENTED_RETRY
    retry.MIN_DELAY = kept[0] / factor
    retry.MAX_DELAY = kept[1] / factor
    delivery.UNIMPLEMENTED_RETRY = 0.3  # type: ignore[misc]  # Final: for the relay, not for us
    try:
        yield
    finally:
        retry.MIN_DELAY, retry.MAX_DELAY = kept[:2]
        delivery.UNIMPLEMENTED_RETRY = kept[2]  # type: ignore[misc]  # as above


class Relay(Protocol):
    """A relay under test."""

    grpc: str
    http: str

    async def books(self) -> dict[str, Books]: ...
    async def end(self, how: Ending) -> dict[str, Books] | None: ...


class Local:
    """The daemon in this event loop."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        loaded = configuration.load({}, environment)
        assert loaded.config is not None, loaded.faults
        self._daemon = Daemon(loaded.config, loaded.effective)
        self._limit = loaded.config.shutdown_timeout
        self._task: asyncio.Task[None] | None = None
        self.grpc = self.http = ""

    async def start(self) -> None:
        self._task = asyncio.create_task(self._daemon.run())
        while not self._daemon._ready:
            await asyncio.sleep(0.001)
            assert not self._task.done(), self._task.exception()
        listening = self._daemon._listening
        self.grpc, self.http = listening["grpc"][0], listening["http"][0]
        # The daemon's handlers would outlive it.
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)

    async def books(self) -> dict[str, Books]:
        by_signal = self._daemon.pipelines.by_signal
        return {signal.name: _books(by_signal[signal.name]) for signal in SIGNALS}

    async def end(self, how: Ending) -> dict[str, Books] | None:
        assert self._task is not None
        if self._task.done():
            await self._task
            return None
        begun = time.monotonic()
        self._daemon.stop()
        await self._task
        seconds = time.monotonic() - begun
        assert seconds < self._limit + SLACK, f"the shutdown took {seconds:.1f} s"
        return await self.books()


def _books(pipeline: Pipeline) -> Books:
    ledger = pipeline.delivery.ledger
    return Books(
        received=ledger.received.total(),
        filtered=ledger.filtered.total(),
        dropped={reason: count for reason, count in ledger.dropped.items() if count},
        exported=ledger.exported,
        queued=pipeline.delivery.ring.items,
        in_flight=ledger.in_flight,
        up=ledger.up,
        attempts=dict(ledger.attempts),
    )


class Remote:
    """A relay process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = RelayProcess("http://localhost:1", {**environment})
        self._limit = float(environment["RELAY_SHUTDOWN_TIMEOUT"]) / 1000
        self.grpc = self.http = ""

    async def start(self) -> None:
        await self.process.__aenter__()
        self.grpc, self.http = self.process.grpc, self.process.http

    async def books(self) -> dict[str, Books]:
        scrape = await self.process.metrics()
        return {signal.name: _scraped(scrape, signal.name) for signal in SIGNALS}

    async def end(self, how: Ending) -> dict[str, Books] | None:
        if how == "SIGKILL":
            self.process.kill()
            await self.process.__aexit__(None, None, None)
            return None
        begun = time.monotonic()
        self.process.terminate()
        code = await self.process.exit_code()
        seconds = time.monotonic() - begun
        await self.process.__aexit__(None, None, None)
        assert code == 0, self.process.tail()
        assert seconds < self._limit + SLACK, f"the shutdown took {seconds:.1f} s"
        ledger = self.process.last_record["ledger"]
        return {
            signal.name: Books(
                received=ledger[signal.name]["received"],
                filtered=sum(ledger[signal.name]["filtered"].values()),
                dropped={r: n for r, n in ledger[signal.name]["dropped"].items() if n},
                exported=ledger[signal.name]["exported"],
                attempts=ledger[signal.name]["attempts"],
            )
            for signal in SIGNALS
        }


def _scraped(scrape: Scrape, name: str) -> Books:
    return Books(
        received=int(scrape.value("received_items_total", signal=name)),
        filtered=int(scrape.value("filtered_items_total", signal=name)),
        dropped={
            reason: int(count)
            for reason, count in scrape.by("reason", "dropped_items_total", signal=name).items()
        },
        exported=int(scrape.value("exported_items_total", signal=name)),
        queued=int(scrape.value("queue_items", signal=name)),
        in_flight=int(scrape.value("in_flight_items", signal=name)),
        up=bool(scrape.value("collector_up", signal=name))
        if scrape.has("collector_up", signal=name)
        else None,
        attempts={
            code: int(count)
            for code, count in scrape.by("code", "export_attempts_total", signal=name).items()
        },
    )


@dataclass(slots=True)
class Report:
    """What came of a run. ``wrong`` is empty when every promise held."""

    plan: Plan
    wrong: list[str] = field(default_factory=list)
    faults: int = 0
    requests: int = 0
    acknowledged: int = 0
    found: int = 0
    duplicates: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    in_memory: int = 0
    """Items lost with a killed process."""
    recovered: float = 0.0
    """Seconds from the end of the last fault until an export was accepted."""
    drained: float = 0.0
    """Seconds from the end of the last fault until nothing was waiting."""


class World:
    """The parts of one run."""

    def __init__(self, plan: Plan, *, remote: bool, fast: bool) -> None:
        self.plan = plan
        self.remote = remote
        self.fast = fast
        self.sink = Sink(seed=plan.seed, max_message=plan.max_message)
        self.proxy = Proxy()
        self.behaviour = ALWAYS_OK
        self.traces = {each.name: Trace(plan.lossy, plan.limits.queue_size) for each in SIGNALS}
        self.report = Report(plan, faults=plan.faults)
        self.relay: Local | Remote | None = None
        self._next = dict.fromkeys(self.traces, 1)
        self._client: aiohttp.ClientSession | None = None
        self._channel: grpc.aio.Channel | None = None

    # -- the collector ----------------------------------------------------------------------

    def _answer(self, received: Received) -> Behaviour:
        poison = self.plan.poison if received.signal is TRACES else frozenset()
        if poison and poison.intersection(numbers_of(received.payload, TRACES)):
            return self.plan.venom
        return self.behaviour

    def _retarget(self) -> None:
        grpc_out = self.plan.limits.protocol == "grpc"
        self.proxy.target = self.sink.grpc_endpoint if grpc_out else self.sink.http_endpoint

    async def _do(self, does: Behave | Faults | Network | None) -> None:
        match does:
            case None:
                await self._heal()
            case Behave(behaviour=behaviour):
                self.behaviour = behaviour
            case Faults():
                self.proxy.set(does)
            case "cut" | "reset":
                self.proxy.cut(reset=does == "reset")
            case "half-close":
                self.proxy.half_close()
            case "refuse":
                self.proxy.refuse()
                self.proxy.cut()
            case "listen":
                await self.proxy.listen()
            case "stop":
                await self.sink.stop()
            case "start":
                await self.sink.start()
            case "move":
                await self.sink.move()
                self._retarget()
            case "vanish":
                self.proxy.set(Faults(blackhole=True))
                await self.sink.stop()

    async def _heal(self) -> None:
        self.behaviour = ALWAYS_OK
        await self.sink.start()
        await self.proxy.listen()
        self.proxy.set(CLEAR)

    # -- the application --------------------------------------------------------------------

    async def _send(self, request: Request) -> bool:
        name = request.signal.name
        trace = self.traces[name]
        first = self._next[name]
        self._next[name] += request.items
        numbers = range(first, first + request.items)
        traces = request.signal is TRACES
        payload = spans(numbers, pad=request.pad) if traces else logs(numbers)
        self.report.requests += 1
        life = trace.life
        life.uncertain.update(numbers)
        taken = await self._deliver(request, payload)
        if taken:
            life.uncertain.difference_update(numbers)
            life.acknowledged.extend(numbers)
        return taken

    async def _deliver(self, request: Request, payload: bytes) -> bool:
        assert self._channel is not None
        assert self._client is not None
        assert self.relay is not None
        try:
            if request.transport == "grpc":
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
                    request.signal.method
                )
                packed = grpc.Compression.Gzip if request.gzip else None
                await call(payload, timeout=request.timeout, compression=packed)
                return True
            headers = {"Content-Type": "application/x-protobuf"}
            if request.gzip:
                headers["Content-Encoding"] = "gzip"
                payload = gzip.compress(payload, 1)
            async with self._client.post(
                f"http://{self.relay.http}{request.signal.http_path}",
                data=payload,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=request.timeout),
            ) as answer:
                await answer.read()
                return answer.status == 200
        except (grpc.aio.AioRpcError, aiohttp.ClientError, TimeoutError) as error:
            if request.timeout > 1 and self.relay_should_answer:
                self.report.wrong.append(f"a request was not acknowledged: {error!r}")
            return False

    relay_should_answer = True

    async def _traffic(self, signal: SignalSchema) -> None:
        for request in self.plan.requests:
            # One after the other, so that numbers are in order of arrival.
            await asyncio.sleep(request.gap)
            if request.signal is signal:
                await self._send(request)

    async def _mischief(self) -> None:
        begun = time.monotonic()
        for step in self.plan.steps:
            await asyncio.sleep(max(begun + step.at - time.monotonic(), 0))
            await self._do(step.does)

    async def _watch(self) -> None:
        """Hold the identity at every look, and look all the time."""
        while True:
            await self._look()
            await asyncio.sleep(0.05 if self.remote else 0.003)

    async def _look(self) -> dict[str, Books]:
        assert self.relay is not None
        # What is acknowledged while the books are read may not be in them.
        read = {name: len(trace.life.acknowledged) for name, trace in self.traces.items()}
        found = await self.relay.books()
        for name, books in found.items():
            life = self.traces[name].life
            life.books, life.read = books, read[name]
            if not books.balanced:
                self.report.wrong.append(f"{name}: the identity is broken: {books}")
        return found

    # -- the run ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        environment = self.plan.limits.environment(self.proxy.endpoint)
        relay = Remote(environment) if self.remote else Local(environment)
        await relay.start()
        self.relay = relay
        try:
            async with (
                aiohttp.ClientSession() as self._client,
                grpc.aio.insecure_channel(
                    relay.grpc, options=[*OWN_CONNECTION, ("grpc.enable_retries", 0)]
                ) as self._channel,
            ):
                yield
        finally:
            if isinstance(relay, Remote):
                await relay.process.__aexit__(None, None, None)
            else:
                await relay.end("drain")

    async def run(self, ending: Ending) -> Report:
        plan = self.plan
        async with self.sink, self.proxy:
            self._retarget()
            self.sink.behave(self._answer)
            if ending == "drain":
                async with self._connected():
                    await self._through(plan)
                    await self._recover()
                    await self._end("SIGTERM")
            else:
                rng = random.Random(plan.seed)
                async with self._connected():
                    await self._interrupted(ending, rng)
                for trace in self.traces.values():
                    trace.lives.append(Life())
                self.relay_should_answer = True
                await self._heal()
                async with self._connected():
                    await self._recover()
                    await self._end("SIGTERM")
            self._judge()
        return self.report

    async def _through(self, plan: Plan) -> None:
        watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._mischief())
                for signal in SIGNALS:
                    group.create_task(self._traffic(signal))
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        if watching.done() and not watching.cancelled():
            watching.result()

    async def _interrupted(self, ending: Ending, rng: random.Random) -> None:
        """Run until a moment in the middle, and end the relay there."""
        whole = sum(each.gap for each in self.plan.requests)
        running = asyncio.create_task(self._through(self.plan))
        await asyncio.wait({running}, timeout=rng.random() * whole)
        self.relay_should_answer = False
        await self._end(ending)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError, ExceptionGroup):
            await running

    async def _end(self, how: Ending) -> None:
        assert self.relay is not None
        left = await self.relay.end(how)
        for name, trace in self.traces.items():
            life = trace.life
            if left is None:
                life.killed = True
                continue
            life.books = left[name]
            if sum(left[name].dropped.values()) and "shutdown" in left[name].dropped:
                # Nobody could help it: the limit was up, or the collector was away.
                trace.lossy |= {"shutdown"}

    async def _recover(self) -> None:
        """All is well again: everything has to leave, and fresh items too, within the limits."""
        begun = time.monotonic()
        limits = self.plan.limits
        attempt = limits.timeout + limits.connect_timeout
        delay = MAX_DELAY if self.remote else retry.MAX_DELAY
        resumed = attempt + delay + self.plan.longest_wait + 1.0
        if "unimplemented" in self.plan.lossy:
            resumed += UNIMPLEMENTED_RETRY if self.remote else delivery.UNIMPLEMENTED_RETRY
        hangs = self.plan.venom.hang and bool(self.plan.poison)
        if hangs:
            # The relay has to find a part without poison first: three attempts, and one for each
            # of the parts that it divides into while nothing passes.
            resumed += (delivery.SUSPECT_AFTER + delivery.BLIND_CASES) * (attempt + delay)
        fresh = [Request(0, each, 1, 0, "grpc", gzip=False) for each in SIGNALS]
        seen: dict[str, int] = {}
        moved, settled = begun, -1
        while True:
            books = await self._look()
            passed = time.monotonic() - begun
            for request in fresh:
                name = request.signal.name
                now = books[name]
                seen.setdefault(name, now.exported)
                few = len(self.plan.poison) if hangs and name == "traces" else 0
                if now.waiting <= few and (now.exported == seen[name] or not now.up or few):
                    # Something has to be sent for the collector to be seen, and what hangs is
                    # only dropped while something else passes.
                    await self._send(request)
            if all(books[name].exported > count for name, count in seen.items()):
                self.report.recovered = self.report.recovered or passed
                if all(each.up and not each.waiting for each in books.values()):
                    break
            if not self.report.recovered and passed > resumed + SLACK:
                self.report.wrong.append(f"no export {passed:.1f} s after the last fault: {books}")
                return
            gone = sum(each.exported + sum(each.dropped.values()) for each in books.values())
            if gone > settled:
                moved, settled = time.monotonic(), gone
            if time.monotonic() - moved > resumed + SLACK:
                self.report.wrong.append(f"stuck after {passed:.1f} s: {books}")
                return
            await asyncio.sleep(0.02 if self.remote else 0.005)
        self.report.drained = time.monotonic() - begun

    def _judge(self) -> None:
        report = self.report
        for schema in SIGNALS:
            trace = self.traces[schema.name]
            for payload in self.sink.accepted(schema.name):
                trace.found.update(numbers_of(payload, schema))
            report.wrong += [f"{schema.name}: {each}" for each in judge(trace)]
            report.duplicates += trace.duplicates
            report.found += len(trace.found)
            for life in trace.lives:
                report.acknowledged += len(life.acknowledged)
                report.dropped.update(life.books.dropped)
                report.attempts.update(life.books.attempts)
                if life.killed:
                    gone = sum(number not in trace.found for number in life.acknowledged)
                    counted = sum(life.books.dropped.values())
                    report.in_memory += max(gone - counted, 0)


async def run(plan: Plan, *, ending: Ending = "drain", remote: bool = False) -> Report:
    """Carry out a plan and judge it."""
    report = Report(plan)
    try:
        world = World(plan, remote=remote, fast=not remote)
        report = world.report
        async with asyncio.timeout(400):
            await world.run(ending)
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed is what is wanted
        report.wrong.append(f"the run itself failed: {error!r}")
        if isinstance(error, ExceptionGroup):
            report.wrong += [repr(each) for each in error.exceptions]
    return report
