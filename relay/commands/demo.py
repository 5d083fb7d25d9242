"""``otlp-relay demo``: a relay, a collector and an app in one go, through an outage and back.

The relay is a real ``otlp-relay run`` in a process of its own, the collector is the sink, the app
sends numbered spans over gRPC. What the table shows is the app's own counting and the relay's
``/metrics``; at the end every span is accounted for.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn, TextIO

import aiohttp
import grpc
import grpc.aio

from relay.commands import UsageError
from relay.otlp import TRACES
from relay.sink import Sink

__all__ = ["Books", "Ledger", "Options", "Phase", "parse", "read_books", "run"]

RATE: Final = 2000
"""Spans a second that the app sends: a ring of 2048 holds one second of an outage."""
REQUEST: Final = 50
"""Spans in one request of the app."""
PATIENCE: Final = 30.0
"""Seconds after which a relay that does not start, recover or drain is a failure."""
TICK: Final = 0.25
"""Seconds between two scrapes."""
CALL_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the walk, at least ``seconds`` long, with the collector up or not.

    With it up, until the relay has caught up; without, until the ring has overflowed.
    """

    name: str
    seconds: float
    up: bool
    words: str


@dataclass(frozen=True, slots=True)
class Options:
    """What the flags say."""

    once: bool = False
    fast: bool = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        healthy, outage, recovery = (1.5, 2.5, 1.5) if self.fast else (6.0, 8.0, 8.0)
        return (
            Phase(
                "healthy",
                healthy,
                up=True,
                words="The collector is up: the relay answers the app at once, gathers spans into "
                "batches of up to 512, and forwards them.",
            ),
            Phase(
                "outage",
                outage,
                up=False,
                words="The collector is gone: the app is answered as before. The ring keeps the "
                "newest 2,048 spans; when it is full the oldest make room, and are counted.",
            ),
            Phase(
                "recovery",
                recovery,
                up=True,
                words="The collector is back on the same address: the relay notices by itself, "
                "sends what the ring kept, and all is as before. Nothing was restarted.",
            ),
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"demo: {message}")


def parse(argv: Sequence[str]) -> Options:
    """Read the flags.

    Raises:
        UsageError: a flag is unknown.
    """
    parser = _Parser(
        prog="otlp-relay demo",
        allow_abbrev=False,
        description="Relay, collector and traffic in one go: healthy, outage, recovery, again and "
        "again, with a live table. Ctrl-C ends it with the account of every span.",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="end after one round; exit code 1 if anything was lost unaccounted",
    )
    parser.add_argument("--fast", action="store_true", help="shorter phases")
    values = parser.parse_args(argv)
    return Options(once=values.once, fast=values.fast)


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Walk through the phases. 0 when every span is accounted for, 1 when not or at a failure.

    Raises:
        UsageError: a flag is wrong.
    """
    options = parse(argv)
    screen = Screen(sys.stdout, environ)
    try:
        with asyncio.Runner() as runner:
            return runner.run(_walk(options, screen, environ))
    except _FailedError as error:
        print(f"otlp-relay demo: {error}", file=sys.stderr)
        return 1


class _FailedError(Exception):
    """The demonstration cannot go on; the message says why."""


# ------------------------------------------------------------------------------ counting


@dataclass(frozen=True, slots=True)
class Books:
    """The relay's books about traces, from one scrape. Counts in spans."""

    received: int = 0
    filtered: int = 0
    exported: int = 0
    queued: int = 0
    in_flight: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    up: bool | None = None

    @property
    def all_dropped(self) -> int:
        return sum(self.dropped.values())

    @property
    def uncounted(self) -> int:
        """Received, and then neither anywhere nor counted as gone; 0 unless the books are wrong."""
        gone = self.filtered + self.all_dropped + self.exported
        return self.received - gone - self.queued - self.in_flight


_OF_BOOKS: Final = re.compile(r"(?:# TYPE )?otlp_relay_(?:\w+_items(?:_total)?|collector_up)[ {]")


def read_books(text: str) -> Books:
    """The books in the text of ``/metrics``.

    Raises:
        ValueError: a metric that must be there is not.
    """
    from prometheus_client.parser import (  # noqa: PLC0415 - a run that fails early needs none
        text_string_to_metric_families,
    )

    sums: dict[str, int] = {}
    dropped: dict[str, int] = {}
    known = set()
    # The parser is slow, and while it runs the app's answers wait to be looked at.
    lines = [line for line in text.splitlines() if _OF_BOOKS.match(line)]
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        known.add(family.name)
        for sample in family.samples:
            if sample.labels.get("signal") != "traces":
                continue
            name = sample.name.removeprefix("otlp_relay_").removesuffix("_items_total")
            if sample.name == "otlp_relay_dropped_items_total":
                if sample.value:
                    dropped[sample.labels["reason"]] = int(sample.value)
            else:
                sums[name] = sums.get(name, 0) + int(sample.value)
    expected = ("received_items", "filtered_items", "dropped_items", "exported_items")
    missing = {f"otlp_relay_{each}" for each in (*expected, "queue_items", "in_flight_items")}
    if missing - known:
        raise ValueError(f"/metrics lacks {', '.join(sorted(missing - known))}")
    return Books(
        received=sums.get("received", 0),
        filtered=sums.get("filtered", 0),
        exported=sums.get("exported", 0),
        queued=sums.get("queue_items", 0),
        in_flight=sums.get("in_flight_items", 0),
        dropped=dropped,
        up=bool(sums["collector_up"]) if "collector_up" in sums else None,
    )


@dataclass(slots=True)
class App:
    """What the app knows: spans sent, answered OK, not answered OK, and how long answers took."""

    sent: int = 0
    acknowledged: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    answer_times: list[float] = field(default_factory=list)
    """Seconds, of the present phase."""

    @property
    def answered(self) -> int:
        return self.acknowledged + sum(self.failures.values())


@dataclass(slots=True)
class Ledger:
    """The account of every span. Counts in spans.

    ``arrived``: different spans that reached the collector; ``twice``: arrivals beyond the first.
    """

    sent: int
    acknowledged: int
    books: Books
    arrived: int
    twice: int
    missing: str
    """The numbers of acknowledged spans that did not arrive, as ranges."""
    wrong_scrapes: int = 0
    scrapes: int = 0
    exit_code: int | None = 0

    @property
    def unaccounted(self) -> int:
        """Acknowledged, not arrived, and not counted as filtered, dropped or still waiting."""
        books = self.books
        accounted = books.filtered + books.all_dropped + books.queued + books.in_flight
        return max(0, self.acknowledged - self.arrived - accounted)

    def faults(self) -> list[str]:
        """What is wrong, in words; nothing when every span is accounted for."""
        found = []
        if self.unaccounted:
            found.append(f"{self.unaccounted:,} spans were lost and not counted ({self.missing})")
        if self.sent != self.acknowledged:
            found.append(f"{self.sent - self.acknowledged:,} spans were sent but not acknowledged")
        if self.acknowledged != self.books.received:
            found.append(
                f"the app had {self.acknowledged:,} spans acknowledged, the relay received "
                f"{self.books.received:,}"
            )
        if self.books.exported > self.arrived:
            found.append(
                f"the relay exported {self.books.exported:,} spans, {self.arrived:,} arrived"
            )
        if self.wrong_scrapes:
            found.append(f"the books did not add up in {self.wrong_scrapes} scrapes")
        if self.exit_code:
            found.append(f"the relay ended with exit code {self.exit_code}")
        return found

    def lines(self) -> list[str]:
        """The account, for people."""
        books = self.books
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in books.dropped.items())
        rows = [
            ("sent by the app", self.sent, ""),
            ("acknowledged by the relay", self.acknowledged, ""),
            ("  exported", books.exported, "accepted by the collector"),
            ("  dropped", books.all_dropped, reasons),
        ]
        optional = [
            ("  filtered", books.filtered, ""),
            ("  still in the ring", books.queued, ""),
            ("  in flight", books.in_flight, ""),
        ]
        rows += [row for row in optional if row[1]]
        rows.append(("arrived at the collector", self.arrived, "each counted once"))
        if self.twice:
            rows.append(("  arrived again", self.twice, "the outage cut off the first answer"))
        rows.append(("lost and not counted", self.unaccounted, ""))
        wide = max(len(f"{count:,}") for _, count, _ in rows)
        lines = [f"  {name:<26} {count:>{wide},}  {note}".rstrip() for name, count, note in rows]
        if self.missing != "none":
            lines.append(f"  did not arrive: spans {self.missing}")
        lines.append(
            f"  the books added up in {self.scrapes - self.wrong_scrapes} of {self.scrapes} scrapes"
        )
        return lines


def ranges(values: Iterable[int], most: int = 4) -> str:
    """Ascending numbers as ``0-99, 205``; ``none``; what is beyond ``most`` ranges is counted."""
    found: list[list[int]] = []
    for value in values:
        if found and found[-1][1] == value - 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    shown = [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in found[:most]]
    if len(found) > most:
        shown.append(f"and {len(found) - most} more ranges")
    return ", ".join(shown) or "none"


def quantile(values: Sequence[float], share: float) -> float:
    """The value at ``share`` (0 to 1) of the sorted values; 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1 if share else 0)]


# ------------------------------------------------------------------------------- showing

COLUMNS: Final = (
    ("phase", 8),
    ("time", 6),
    ("sent", 7),
    ("acked", 7),
    ("exported", 8),
    ("queued", 6),
    ("flight", 6),
    ("dropped", 7),
    ("coll.", 5),
    ("p50/p99 ms", 10),
)
"""Names and widths, 79 characters together: sent, acknowledged, ... , whether the collector is up,
and how long the app waited for its answers (half of them, 99 of 100 of them)."""


@dataclass(slots=True)
class Row:
    """One phase in the table: counters since it began, gauges as they are."""

    phase: Phase
    seconds: float
    app: App
    books: Books
    app_before: tuple[int, int]
    """Answered and acknowledged when the phase began."""
    books_before: Books

    def cells(self) -> tuple[str, ...]:
        up = {True: "up", False: "down", None: "-"}[self.books.up]
        times = self.app.answer_times
        return (
            self.phase.name,
            f"{self.seconds:.1f} s",
            f"{self.app.sent - self.app_before[0]:,}",
            f"{self.app.acknowledged - self.app_before[1]:,}",
            f"{self.books.exported - self.books_before.exported:,}",
            f"{self.books.queued:,}",
            f"{self.books.in_flight:,}",
            f"{self.books.all_dropped - self.books_before.all_dropped:,}",
            up,
            f"{quantile(times, 0.5) * 1000:.1f}/{quantile(times, 0.99) * 1000:.1f}",
        )


def line_of(cells: Sequence[str]) -> str:
    """Cells as one line; the first is to the left, figures to the right."""
    return " ".join(
        f"{cell:<{width}}" if index == 0 else f"{cell:>{width}}"
        for index, (cell, (_, width)) in enumerate(zip(cells, COLUMNS, strict=True))
    )


HEADER: Final = line_of([name for name, _ in COLUMNS])
_COLOURS: Final = {"healthy": "32", "outage": "31", "recovery": "36"}


class Screen:
    """Where the table appears: redrawn in place on a terminal, else a line now and then.

    ``NO_COLOR`` and ``TERM=dumb`` are honoured.
    """

    EVERY: Final = 1.0
    """Seconds between two lines where nothing can be redrawn."""

    def __init__(self, out: TextIO, environ: Mapping[str, str]) -> None:
        self._out = out
        self.live = out.isatty() and environ.get("TERM", "dumb") != "dumb"
        self._coloured = self.live and not environ.get("NO_COLOR")
        self._last = -math.inf

    def say(self, text: str = "") -> None:
        """A line that stays."""
        self._out.write(f"{text}\n")
        self._out.flush()

    def begin(self, phase: Phase) -> None:
        self.say()
        words = textwrap.fill(f"{phase.name.upper()}: {phase.words}", self._width())
        self.say(self._paint(words, phase))
        self.say(HEADER)
        self._last = -math.inf

    def show(self, row: Row, *, last: bool = False) -> None:
        """The present state of a phase."""
        line = line_of(row.cells())
        if self.live:
            # The line is written over itself; one that wraps could not be.
            line = self._paint(line[: self._width()], row.phase)
            self._out.write("\r\x1b[2K" + line + ("\n" if last else ""))
            self._out.flush()
        elif last or row.seconds - self._last >= self.EVERY:
            self._last = row.seconds
            self.say(line)

    def _width(self) -> int:
        return shutil.get_terminal_size().columns - 1 if self.live else 79

    def _paint(self, text: str, phase: Phase) -> str:
        return f"\x1b[{_COLOURS[phase.name]}m{text}\x1b[0m" if self._coloured else text

    def aside(self, text: str) -> None:
        """A line in between, without harm to the one that is being redrawn."""
        self.say(f"\r\x1b[2K{text}" if self.live else text)


# ------------------------------------------------------------------------------- running


class Relay:
    """The relay's process: its addresses, its log, its metrics."""

    def __init__(self, process: asyncio.subprocess.Process, hear: Callable[[str], None]) -> None:
        self._process = process
        self._hear = hear
        self.log: list[str] = []
        self.started: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

    @classmethod
    async def spawn(
        cls, collector: str, environ: Mapping[str, str], hear: Callable[[str], None]
    ) -> Relay:
        """Start ``otlp-relay run`` with its defaults, on ports that the kernel chooses."""
        inherited = {
            name: value
            for name, value in environ.items()
            if not name.startswith(("OTEL_", "RELAY_"))
        }
        settings = {
            "RELAY_GRPC_LISTEN": "127.0.0.1:0",
            "RELAY_HTTP_LISTEN": "off",
            "RELAY_ADMIN_LISTEN": "127.0.0.1:0",
            "RELAY_EXPORTER_ENDPOINT": f"http://{collector}",
            "RELAY_LOG_FORMAT": "json",
            # So that the last spans of a round need not wait 5 s for a batch to fill.
            "RELAY_SCHEDULE_DELAY": "1000",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "run"),
            env={**inherited, **settings},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=1024 * 1024,
            # Ctrl-C is for the demo, which ends the relay in order.
            start_new_session=True,
        )
        return cls(process, hear)

    async def read_log(self) -> None:
        """Read the log until the process ends."""
        stream = self._process.stderr
        if stream is None:
            return
        while line := (await stream.readline()).decode(errors="replace").rstrip():
            self.log.append(line)
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record.get("event") == "started" and not self.started.done():
                self.started.set_result(record)
            elif not self.started.done():
                continue
            else:
                self._hear(str(record.get("message", line)))
        if not self.started.done():
            said = "\n".join(self.log[-20:]) or "it said nothing"
            self.started.set_exception(_FailedError(f"the relay did not start:\n{said}"))

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    async def end(self) -> int:
        """SIGINT, which is SIGTERM without the linger, and the exit code."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._process.wait()
        except TimeoutError:
            raise _FailedError(f"the relay did not end within {PATIENCE:.0f} s") from None

    def kill_now(self) -> None:
        """SIGKILL."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def kill(self) -> None:
        """End it, whatever it does, and wait until it has."""
        self.kill_now()
        await self._process.wait()


class Traffic:
    """The app: numbered spans at a steady rate, one request after the other."""

    def __init__(self, endpoint: str) -> None:
        self.app = App()
        self._endpoint = endpoint
        self._numbers = itertools.count()

    async def send(self, stop: asyncio.Event) -> None:
        """Send until told to stop; a request under way is finished."""
        loop = asyncio.get_running_loop()
        async with grpc.aio.insecure_channel(
            self._endpoint, options=(("grpc.enable_http_proxy", 0),)
        ) as channel:
            export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                TRACES.method
            )
            async with asyncio.timeout(PATIENCE):
                await channel.channel_ready()
            due = loop.time()
            while not stop.is_set():
                await self._request(export)
                due = max(due + REQUEST / RATE, loop.time() - 1.0)
                await asyncio.sleep(max(0.0, due - loop.time()))

    async def _request(self, export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        payload = request_of([next(self._numbers) for _ in range(REQUEST)])
        self.app.sent += REQUEST
        begun = time.perf_counter()
        try:
            await export(payload, timeout=CALL_TIMEOUT, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            name = error.code().name
            self.app.failures[name] = self.app.failures.get(name, 0) + REQUEST
            return
        self.app.answer_times.append(time.perf_counter() - begun)
        self.app.acknowledged += REQUEST


def request_of(numbers: Iterable[int]) -> bytes:
    """A serialized trace request of spans whose ids are their numbers plus 1."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415
        ExportTraceServiceRequest,
    )

    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "otlp-relay-demo"
    scope = resource.scope_spans.add()
    now = time.time_ns()
    for number in numbers:
        span = scope.spans.add(
            trace_id=(number + 1).to_bytes(16, "big"),
            span_id=(number + 1).to_bytes(8, "big"),
            name=f"work {number}",
            start_time_unix_nano=now - 5_000_000,
            end_time_unix_nano=now,
        )
        span.attributes.add(key="number").value.int_value = number
    return request.SerializeToString()


def numbers_of(payload: bytes) -> list[int]:
    """The numbers in a request of :func:`request_of`s, however they were batched."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415
        ExportTraceServiceRequest,
    )

    return [
        int.from_bytes(span.span_id, "big") - 1
        for resource in ExportTraceServiceRequest.FromString(payload).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


class Demo:
    """Everything that runs, and the walk through the phases."""

    def __init__(
        self,
        relay: Relay,
        admin: str,
        sink: Sink,
        traffic: Traffic,
        client: aiohttp.ClientSession,
        screen: Screen,
    ) -> None:
        self._relay = relay
        self._metrics = f"http://{admin}/metrics"
        self._sink = sink
        self._traffic = traffic
        self._client = client
        self._screen = screen
        self._seen = bytearray()
        self._twice = 0
        self._scrapes = 0
        self._wrong = 0
        self.interrupted = asyncio.Event()

    async def scrape(self) -> Books:
        """The relay's books; whether they add up is counted."""
        try:
            async with self._client.get(self._metrics) as answer:
                answer.raise_for_status()
                books = read_books(await answer.text())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            why = f"exit code {self._relay.exit_code}" if self._relay.exit_code is not None else ""
            raise _FailedError(f"the relay's metrics cannot be read: {error} {why}") from None
        self._scrapes += 1
        self._wrong += books.uncounted != 0
        return books

    async def phase(self, phase: Phase) -> None:
        """One phase, until its time is over and it has shown what it is there to show."""
        app = self._traffic.app
        app.answer_times.clear()
        self._screen.begin(phase)
        before = await self.scrape()
        begun = time.monotonic()
        back_after: float | None = None
        if phase.up:
            await self._sink.start()
        else:
            await self._sink.stop()
        row = Row(phase, 0.0, app, before, (app.answered, app.acknowledged), before)
        while not self.interrupted.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK):
                    await self.interrupted.wait()
            row.books = await self.scrape()
            row.seconds = time.monotonic() - begun
            recovered = row.books.up is True and row.books.queued < 512
            if back_after is None and row.books.exported > before.exported:
                back_after = row.seconds
            shown = recovered if phase.up else row.books.all_dropped > before.all_dropped
            if row.seconds >= phase.seconds and shown:
                break
            if row.seconds >= phase.seconds + PATIENCE:
                self._screen.show(row, last=True)
                lacks = "the relay had not recovered" if phase.up else "the ring was not full"
                raise _FailedError(f"{lacks} {row.seconds:.0f} s later")
            self._screen.show(row)
        self._screen.show(row, last=True)
        if phase.name == "recovery" and back_after is not None:
            self._screen.say(
                f"  spans arrived again within {back_after:.1f} s of the collector's return"
            )

    async def drain(self) -> Books:
        """Let the relay send what it has; the collector is there."""
        await self._sink.start()
        begun = time.monotonic()
        books = await self.scrape()
        while books.queued or books.in_flight:
            if time.monotonic() - begun > PATIENCE:
                raise _FailedError(
                    f"{books.queued} spans waited and {books.in_flight} were in flight "
                    f"{PATIENCE:.0f} s after the last one was sent"
                )
            await asyncio.sleep(TICK / 5)
            books = await self.scrape()
        return books

    def ledger(self, books: Books) -> Ledger:
        """The account so far; what the sink recorded is taken out of it."""
        app = self._traffic.app
        self._seen.extend(bytes(app.sent - len(self._seen)))
        received, self._sink.received = self._sink.received, []
        for each in received:
            for number in numbers_of(each.payload):
                self._twice += self._seen[number]
                self._seen[number] = 1
        missing = (number for number, there in enumerate(self._seen) if not there)
        return Ledger(
            sent=app.sent,
            acknowledged=app.acknowledged,
            books=books,
            arrived=sum(self._seen),
            twice=self._twice,
            missing=ranges(missing),
            wrong_scrapes=self._wrong,
            scrapes=self._scrapes,
        )


async def _walk(options: Options, screen: Screen, environ: Mapping[str, str]) -> int:
    async with Sink() as sink, _relay(sink, screen, environ) as relay:
        try:
            async with asyncio.timeout(PATIENCE):
                started = await relay.started
        except TimeoutError:
            raise _FailedError(f"the relay did not start within {PATIENCE:.0f} s") from None
        endpoint, admin = started["grpc"], started["admin"]
        screen.say("otlp-relay demo: an app, a relay beside it, and a collector that goes away")
        screen.say(f"  app        sends {RATE:,} spans/s to {endpoint} over gRPC")
        screen.say(f"  relay      otlp-relay run; metrics at http://{admin}/metrics")
        screen.say(f"  collector  the sink, at {sink.grpc_endpoint}")
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT)
        async with aiohttp.ClientSession(timeout=timeout) as client:
            traffic = Traffic(endpoint)
            demo = Demo(relay, admin, sink, traffic, client, screen)
            with _signals(demo, relay):
                ledger = await _rounds(options, demo, traffic, screen)
                ledger.exit_code = await relay.end()
    return _close(ledger, traffic.app, screen)


async def _rounds(options: Options, demo: Demo, traffic: Traffic, screen: Screen) -> Ledger:
    """The phases, again and again or once; the account at the end of each round."""
    while True:
        async with _sending(traffic):
            for phase in options.phases:
                if not demo.interrupted.is_set():
                    await demo.phase(phase)
        ledger = demo.ledger(await demo.drain())
        if options.once or demo.interrupted.is_set() or ledger.faults():
            return ledger
        screen.say()
        screen.say("so far, in spans:")
        for line in ledger.lines():
            screen.say(line)


@contextlib.asynccontextmanager
async def _sending(traffic: Traffic) -> AsyncIterator[None]:
    """Traffic for the time of the block; the last request is answered before it ends."""
    stop = asyncio.Event()
    task = asyncio.get_running_loop().create_task(traffic.send(stop))
    try:
        yield
    except BaseException:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
    stop.set()
    await task


def _close(ledger: Ledger, app: App, screen: Screen) -> int:
    screen.say()
    screen.say("the account, in spans:")
    for line in ledger.lines():
        screen.say(line)
    for code, count in app.failures.items():
        screen.say(f"  answered {code}: {count:,}")
    faults = ledger.faults()
    for fault in faults:
        screen.say(f"WRONG: {fault}")
    if not faults:
        screen.say("every span that the relay acknowledged arrived or is counted as dropped")
    return 1 if faults else 0


@contextlib.asynccontextmanager
async def _relay(sink: Sink, screen: Screen, environ: Mapping[str, str]) -> AsyncIterator[Relay]:
    """A relay whose log is read, and which is gone at the end."""

    def hear(message: str) -> None:
        screen.aside(f"  relay: {message}")

    relay = await Relay.spawn(sink.grpc_endpoint, environ, hear)
    reader = asyncio.get_running_loop().create_task(relay.read_log())
    try:
        yield relay
    finally:
        await relay.kill()
        await reader


@contextlib.contextmanager
def _signals(demo: Demo, relay: Relay) -> Iterator[None]:
    """SIGINT and SIGTERM end the walk in order; a second one ends everything at once."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def end(number: signal.Signals) -> None:
        if demo.interrupted.is_set():
            relay.kill_now()
            loop.remove_signal_handler(number)
            signal.raise_signal(number)
        demo.interrupted.set()

    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
