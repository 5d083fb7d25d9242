"""Real processes and real clients for end-to-end tests.

* :class:`RelayProcess`: ``python -m relay run`` with its ports, log, metrics and exit code.
* :class:`RotelProcess`: a collector by somebody else (Rotel, from PyPI) that forwards to a sink.
* :class:`Sdk`: the OpenTelemetry SDK with its OTLP exporters, which remembers what it exported.
* :func:`numbered_request`, :func:`numbers`: spans that carry a number, to account for every one.
* :func:`send`: one raw request. :func:`until`, :func:`within`: wait for conditions.

The collector is a :class:`relay.sink.Sink` in the test's own process. Everything is waited for by
condition; :data:`DEADLINE` only ends what would otherwise never end, and says what was missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self

import aiohttp
import grpc
import grpc.aio
from google.protobuf import symbol_database
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.trace import TracerProvider as ApiTracerProvider
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from relay.otlp import SIGNALS, TRACES, SignalSchema
from relay.receivers import Listen
from relay.sink.ports import Hold

DEADLINE: Final = 30.0
"""Seconds after which anything that is waited for is a failure."""

ROOT: Final = Path(__file__).resolve().parents[2]

# --------------------------------------------------------------------------- waiting


@contextlib.asynccontextmanager
async def within(
    what: str, detail: Callable[[], str] = lambda: "", seconds: float = DEADLINE
) -> AsyncIterator[None]:
    """Fail with a message when the block takes longer than the deadline."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what}\n{detail()}") from None


async def until(
    condition: Callable[[], object | Awaitable[object]],
    what: str,
    detail: Callable[[], str] = lambda: "",
    seconds: float = DEADLINE,
) -> None:
    """Ask until the condition holds; for what cannot tell by itself that it changed."""
    async with within(what, detail, seconds):
        while True:
            answer = condition()
            if inspect.isawaitable(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.01)


# ----------------------------------------------------------------- requests and items


def numbered_request(
    first: int, behind: int, *, service: str = "numbered", padding: int = 0, name: str = "span"
) -> bytes:
    """A serialized trace request with the spans ``first`` to ``behind - 1``, in order.

    Each is its own trace; its number is in the span id, the trace id and an attribute.
    ``padding``: bytes of an attribute that makes the spans larger.
    """
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = service
    scope = resource.scope_spans.add()
    scope.scope.name = "numbers"
    for number in range(first, behind):
        span = scope.spans.add(
            trace_id=(number + 1).to_bytes(16, "big"),
            span_id=(number + 1).to_bytes(8, "big"),
            name=f"{name} {number}",
            start_time_unix_nano=1_700_000_000_000_000_000 + number,
            end_time_unix_nano=1_700_000_000_000_000_000 + number + 1000,
        )
        span.attributes.add(key="number").value.int_value = number
        if padding:
            span.attributes.add(key="padding").value.string_value = "x" * padding
    return request.SerializeToString()


def numbers(*payloads: bytes) -> list[int]:
    """The numbers in trace requests of :func:`numbered_request`, in order, with repetitions."""
    return [
        int.from_bytes(span.span_id, "big") - 1
        for payload in payloads
        for resource in ExportTraceServiceRequest.FromString(payload).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def ranges(values: Iterable[int]) -> str:
    """Numbers for messages: ``0-99, 205``."""
    found: list[list[int]] = []
    for value in sorted(set(values)):
        if found and found[-1][1] == value - 1:
            found[-1][1] = value
        else:
            found.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found) or "none"


class Item(NamedTuple):
    """One unit with all that stands around it; each part deterministically serialized.

    ``resource`` and ``scope`` are the Resource* and Scope* entries without their children, so
    with schema URLs and unknown fields.
    """

    resource: bytes
    scope: bytes
    unit: bytes


@cache
def message_class(full_name: str) -> type[Message]:
    """The message class of an Export request or response."""
    package, _, message = full_name.rpartition(".")
    service = message.removeprefix("Export").partition("Service")[0].lower()
    importlib.import_module(f"{package}.{service}_service_pb2")
    return symbol_database.Default().GetSymbol(full_name)


def items_of(signal: SignalSchema, *payloads: bytes) -> Counter[Item]:
    """Every unit of the requests with its resource and scope, however they are grouped."""
    found: Counter[Item] = Counter()
    for payload in payloads:
        request: Any = message_class(signal.request).FromString(payload)
        for resource in _children(request, signal.resources):
            around_scopes = _without(resource, signal.scopes)
            for scope in _children(resource, signal.scopes):
                around_units = _without(scope, signal.units)
                for unit in _children(scope, signal.units):
                    alone = unit.SerializeToString(deterministic=True)
                    found[Item(around_scopes, around_units, alone)] += 1
    return found


def _children(message: Any, number: int) -> Any:
    return getattr(message, message.DESCRIPTOR.fields_by_number[number].name)


def _without(message: Any, number: int) -> bytes:
    bare = type(message)()
    bare.CopyFrom(message)
    bare.ClearField(message.DESCRIPTOR.fields_by_number[number].name)
    return bytes(bare.SerializeToString(deterministic=True))


async def send(
    channel: grpc.aio.Channel,
    schema: SignalSchema,
    payload: bytes,
    *,
    timeout: float = DEADLINE,
    wait: bool = False,
    metadata: Sequence[tuple[str, str]] = (),
) -> bytes:
    """One Export call with a raw request; the raw answer.

    Raises:
        grpc.aio.AioRpcError: any status but OK.
    """
    export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(schema.method)
    return await export(payload, timeout=timeout, wait_for_ready=wait, metadata=tuple(metadata))


# ------------------------------------------------------------------------- processes


class Child:
    """A child process whose output is read as it comes, line by line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.output: list[str] = []
        """Lines of standard output and standard error, as they came."""
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._news = asyncio.Condition()

    async def spawn(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1024 * 1024,
        )
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            async with self._news:
                self.output.append(line.decode(errors="replace").rstrip("\n"))
                self._news.notify_all()
        async with self._news:
            await self._process.wait()
            self._news.notify_all()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def tail(self) -> str:
        """The last lines of output, for messages."""
        state = f"exit code {self.process.returncode}" if not self.running else "running"
        return "\n".join([f"--- {self.name}, {state}:", *self.output[-30:]])

    async def line(self, predicate: Callable[[str], object], what: str) -> str:
        """The first line of output, past or to come, for which the predicate holds."""
        seen = 0
        async with within(what, self.tail), self._news:
            while True:
                for line in self.output[seen:]:
                    if predicate(line):
                        return line
                seen = len(self.output)
                assert self.running, f"{self.name} ended before: {what}\n{self.tail()}"
                await self._news.wait()

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.terminate()

    def interrupt(self) -> None:
        """SIGINT."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    async def exit_code(self, seconds: float = DEADLINE) -> int:
        """Wait for the end; -N when signal N ended it."""
        async with within(f"{self.name} ends", self.tail, seconds):
            code = await self.process.wait()
            if self._reader is not None:
                await self._reader
        return code

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.running:
            self.terminate()
        return await self.exit_code()

    async def reap(self) -> None:
        """End it in any way that ends it."""
        if self._process is None:
            return
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self.kill()
        await self.process.wait()
        if self._reader is not None:
            await self._reader


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of OpenTelemetry or of the relay."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "RELAY_", "GRPC_", "ROTEL_"))
        and not name.lower().endswith("_proxy")
    }


class Scrape:
    """One answer of ``/metrics``, parsed."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = {family.name: family for family in families}

    def samples(self, name: str) -> list[tuple[Mapping[str, str], float]]:
        """Labels and value of every sample of ``otlp_relay_NAME``.

        ``NAME`` is as in the contract, so with ``_total``, ``_count``, ``_sum`` or ``_bucket``.

        Raises:
            KeyError: there is no such family, so the name is wrong.
        """
        full = f"otlp_relay_{name}"
        bases = [full] + [
            full.removesuffix(suffix)
            for suffix in ("_total", "_count", "_sum", "_bucket", "_info")
            if full.endswith(suffix)
        ]
        for base in reversed(bases):
            if base in self.families:
                family = self.families[base]
                return [(each.labels, each.value) for each in family.samples if each.name == full]
        raise KeyError(f"{full} is not among {sorted(self.families)}")

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples of ``otlp_relay_NAME`` that have these labels; 0 for none."""
        return sum(
            value
            for found, value in self.samples(name)
            if all(found.get(key) == wanted for key, wanted in labels.items())
        )

    def has(self, name: str, **labels: str) -> bool:
        """Whether there is a sample with these labels."""
        return any(
            all(found.get(key) == wanted for key, wanted in labels.items())
            for found, _ in self.samples(name)
        )

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The non-zero sums of ``otlp_relay_NAME`` by the values of one label."""
        sums: dict[str, float] = {}
        for found, value in self.samples(name):
            if value and all(found.get(key) == wanted for key, wanted in labels.items()):
                sums[found[label]] = sums.get(found[label], 0.0) + value
        return sums

    LEFT: Final = (
        "filtered_items_total",
        "dropped_items_total",
        "exported_items_total",
        "queue_items",
        "in_flight_items",
    )

    def identity(self, signals: Iterable[str] = (), held: Sequence[str] = ()) -> None:
        """Assert contract section 4: nothing is uncounted, for every signal.

        ``held``: further gauges of items that a feature keeps elsewhere.
        """
        for name in signals or [each.name for each in SIGNALS]:
            received = self.value("received_items_total", signal=name)
            parts = {part: self.value(part, signal=name) for part in (*self.LEFT, *held)}
            assert received == sum(parts.values()), (
                f"{name}: received {received:g} is not {sum(parts.values()):g} = {parts}"
            )


class RelayProcess(Child):
    """``python -m relay run`` as a child process, on ports that the kernel chose.

    ``settings``: environment variables (None: not set at all). By default everything listens
    on loopback at port 0, a batch waits 100 ms instead of 5 s, and the linger is 0, so that
    tests are quick; the collector is where ``collector`` says (an
    ``OTEL_EXPORTER_OTLP_ENDPOINT``).
    An async context manager: started and ready on entering, gone on leaving.
    """

    def __init__(
        self,
        collector: str,
        settings: Mapping[str, str | None] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__("relay")
        self.settings: dict[str, str | None] = {
            "RELAY_GRPC_LISTEN": "127.0.0.1:0",
            "RELAY_HTTP_LISTEN": "127.0.0.1:0",
            "RELAY_ADMIN_LISTEN": "127.0.0.1:0",
            "RELAY_LOG_FORMAT": "json",
            "RELAY_SCHEDULE_DELAY": "100",
            "RELAY_SHUTDOWN_LINGER": "0",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            **(settings or {}),
        }
        self.arguments = tuple(arguments)
        self.grpc = ""
        """``host:port`` (or ``unix:/path``) of the gRPC listener; the same for the others."""
        self.http = ""
        self.admin = ""
        self._client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.reap()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.reap()
        finally:
            if self._client is not None:
                await self._client.close()
        if error is not None:
            print(self.tail())

    async def start(self) -> None:
        """Start it, learn its addresses, wait until it is ready."""
        environment = clean_environment() | {
            name: value for name, value in self.settings.items() if value is not None
        }
        await self.spawn([sys.executable, "-m", "relay", "run", *self.arguments], environment)
        started = json.loads(await self.line(_is_started, "the relay says where it listens"))
        self.grpc, self.http, self.admin = (
            _first(started.get(name, "off")) for name in ("grpc", "http", "admin")
        )
        if self.admin != "off":
            await until(self._is_ready, "/readyz answers 200", self.tail)

    async def _is_ready(self) -> bool:
        assert self.running, f"the relay ended before it was ready\n{self.tail()}"
        try:
            status, _ = await self.get("/readyz")
        except aiohttp.ClientConnectionError:
            return False
        return status == 200

    @property
    def client(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE))
        return self._client

    async def get(self, path: str, accept: str = "*/*") -> tuple[int, str]:
        """Status and body of a GET on the admin listener."""
        url = f"http://{self.admin}{path}"
        async with self.client.get(url, headers={"Accept": accept}) as answer:
            return answer.status, await answer.text()

    async def metrics(self, *, openmetrics: bool = False) -> Scrape:
        """Scrape ``/metrics``, read by the Prometheus client library's own parsers."""
        if openmetrics:
            status, text = await self.get("/metrics", "application/openmetrics-text;version=1.0.0")
            families = openmetrics_parser.text_string_to_metric_families(  # type: ignore[no-untyped-call]  # has no types
                text
            )
        else:
            status, text = await self.get("/metrics", "text/plain;version=0.0.4")
            families = text_string_to_metric_families(text)
        assert status == 200, text
        return Scrape(families)

    async def identity(self) -> Scrape:
        """Scrape, and assert that nothing is uncounted."""
        scrape = await self.metrics()
        scrape.identity()
        return scrape

    async def until(self, condition: Callable[[Scrape], object], what: str) -> Scrape:
        """Scrape until the condition holds, asserting the identity at every scrape."""
        scrape = await self.identity()

        async def holds() -> bool:
            nonlocal scrape
            scrape = await self.identity()
            return bool(condition(scrape))

        if not condition(scrape):
            await until(holds, what, self.tail)
        return scrape

    async def drained(self) -> Scrape:
        """Wait until nothing is waiting or under way."""
        return await self.until(
            lambda scrape: not scrape.value("queue_items") + scrape.value("in_flight_items"),
            "everything left the ring",
        )

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        """A gRPC channel to the relay that has no part in other channels' connections."""
        async with grpc.aio.insecure_channel(self.grpc, options=OWN_CONNECTION) as channel:
            yield channel

    @property
    def records(self) -> list[dict[str, Any]]:
        """The log records so far; lines that are no JSON are left out."""
        found = []
        for line in self.output:
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    found.append(record)
        return found

    @property
    def last_record(self) -> dict[str, Any]:
        """The last log line."""
        assert self.output, "the relay has logged nothing"
        record = json.loads(self.output[-1])
        assert isinstance(record, dict)
        return record


OWN_CONNECTION: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
"""Channel options: share no connection with another channel of this process."""


def _is_started(line: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and record.get("event") == "started"


def _first(value: str | list[str]) -> str:
    return value if isinstance(value, str) else next(iter(value), "off")


def rotel_binary() -> Path | None:
    """The agent inside the ``rotel`` package; None where it is not installed."""
    found = importlib.util.find_spec("rotel")
    if found is None or not found.submodule_search_locations:
        return None
    binary = Path(found.submodule_search_locations[0]) / "rotel-agent"
    return binary if binary.exists() else None


class RotelProcess(Child):
    """Rotel with an OTLP receiver on held ports and an OTLP exporter to ``collector``.

    ``collector``: ``http://host:port`` of a gRPC receiver, usually a sink's. Rotel itself tells
    what it received only by passing it on.
    """

    def __init__(self, collector: str) -> None:
        super().__init__("Rotel")
        self.collector = collector
        # It cannot be asked which port the kernel chose, so the ports are held for it.
        self._holds = [Hold(Listen(host="127.0.0.1")), Hold(Listen(host="127.0.0.1"))]
        self.grpc, self.http = (hold.endpoint for hold in self._holds)

    async def __aenter__(self) -> Self:
        binary = rotel_binary()
        assert binary is not None, "Rotel is not installed (it is among the test dependencies)"
        for hold in self._holds:
            hold.listening()
        try:
            await self.spawn(
                [
                    *(str(binary), "start", "--log-format", "json", "--exporter", "otlp"),
                    *("--otlp-grpc-endpoint", self.grpc, "--otlp-http-endpoint", self.http),
                    *("--otlp-exporter-endpoint", self.collector),
                    *("--otlp-exporter-compression", "none", "--batch-timeout", "20ms"),
                    *("--otlp-exporter-retry-initial-backoff", "100ms"),
                    *("--otlp-grpc-max-recv-msg-size-mib", "16"),
                ],
                clean_environment(),
            )
            async with grpc.aio.insecure_channel(self.grpc, options=OWN_CONNECTION) as channel:
                await self._ready(channel)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def _ready(self, channel: grpc.aio.Channel) -> None:
        async with within("Rotel listens", self.tail):
            # An empty request is no data, and is answered when the receiver is there.
            await send(channel, TRACES, b"", wait=True)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.reap()
        for hold in self._holds:
            hold.release()
        if error is not None:
            print(self.tail())


# ------------------------------------------------------------------------------- SDK


class Sdk:
    """The OpenTelemetry SDK exporting to ``endpoint`` over gRPC or HTTP (protobuf).

    ``exported`` remembers each request as the exporter encoded it, by signal name, so that what
    comes out at the other end can be compared. Its methods block, as an app's would, so an
    asyncio test calls them in a thread (``asyncio.to_thread``), where they let the sink in the
    test's own loop answer.
    """

    def __init__(
        self,
        endpoint: str,
        protocol: Literal["grpc", "http"] = "grpc",
        service: str = "shop",
        batch: int = 512,
    ) -> None:
        from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415 - slow, few need it
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415
        from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415
        from opentelemetry.sdk.metrics.export import (  # noqa: PLC0415
            PeriodicExportingMetricReader,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        self.exported: dict[str, list[bytes]] = {"traces": [], "metrics": [], "logs": []}
        self.results: list[str] = []
        """Names of what the exporters returned, in order."""
        spans, metrics, logs = _exporters(endpoint, protocol)
        for name, exporter in (("traces", spans), ("metrics", metrics), ("logs", logs)):
            self._remember(name, exporter)
        resource = Resource.create({"service.name": service, "deployment.environment": "test"})
        self.traces = TracerProvider(resource=resource)
        self.traces.add_span_processor(
            BatchSpanProcessor(spans, max_queue_size=100_000, max_export_batch_size=batch)
        )
        self._reader = PeriodicExportingMetricReader(metrics, export_interval_millis=float("inf"))
        self.metrics = MeterProvider([self._reader], resource=resource)
        self.logs = LoggerProvider(resource=resource)
        self.logs.add_log_record_processor(
            BatchLogRecordProcessor(logs, max_queue_size=100_000, max_export_batch_size=batch)
        )

    def _remember(self, name: str, exporter: Any) -> None:
        export = exporter.export

        def remembering(batch: Any, *arguments: Any, **options: Any) -> Any:
            self.exported[name].append(_encode(name, batch).SerializeToString())
            result = export(batch, *arguments, **options)
            self.results.append(result.name)
            return result

        exporter.export = remembering

    @property
    def tracer_provider(self) -> ApiTracerProvider:
        return self.traces

    def make_spans(self, first: int, behind: int) -> None:
        """Numbered spans in pairs of parent and child, with every kind of field set."""
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.trace import Link, SpanKind, StatusCode  # noqa: PLC0415

        tracer = self.traces.get_tracer("shop.checkout", "1.2.3", schema_url="https://example.com/")
        previous: list[Link] = []
        parent: trace.Span | None = None
        for number in range(first, behind):
            context = None
            if parent is not None and number % 2:
                context = trace.set_span_in_context(parent)
            span = tracer.start_span(
                f"span {number}",
                context=context,
                kind=list(SpanKind)[number % 5],
                links=previous,
                attributes={
                    "number": number,
                    "text": "grüße",
                    "ratio": number / 7,
                    "flag": number % 2 == 0,
                    "list": ["a", "b"],
                },
            )
            span.add_event("happened", {"what": "something"})
            span.set_status(StatusCode.ERROR if number % 3 == 0 else StatusCode.OK, None)
            span.end()
            previous, parent = [Link(span.get_span_context(), {"link": number})], span

    def make_metrics(self) -> None:
        """One instrument of each kind, several attribute sets."""
        from opentelemetry.metrics import Observation  # noqa: PLC0415

        meter = self.metrics.get_meter("shop.meter", "2")
        counter = meter.create_counter("requests", "1", "requests served")
        levels = meter.create_up_down_counter("in_use")
        histogram = meter.create_histogram("duration", "s")
        for number in range(20):
            counter.add(number, {"route": f"/r{number % 4}"})
            levels.add(1 if number % 3 else -1, {"pool": "a"})
            histogram.record(number / 10, {"route": f"/r{number % 4}"})
        meter.create_observable_gauge("temperature", [lambda _: [Observation(21.5, {"room": "1"})]])

    def make_logs(self, first: int, behind: int) -> None:
        """Numbered log records through the standard library's logging."""
        from opentelemetry._logs import LogRecord, SeverityNumber  # noqa: PLC0415

        logger = self.logs.get_logger("shop.logs")
        for number in range(first, behind):
            logger.emit(
                LogRecord(
                    timestamp=1_700_000_000_000_000_000 + number,
                    severity_number=SeverityNumber.WARN,
                    severity_text="WARN",
                    body=f"record {number}",
                    attributes={"number": number, "nested": {"a": [1, 2]}},
                )
            )

    def flush(self) -> None:
        """Export everything now; the exporters' answers are in :attr:`results`."""
        assert self.traces.force_flush(int(DEADLINE * 1000))
        assert self.metrics.force_flush(int(DEADLINE * 1000))
        assert self.logs.force_flush(int(DEADLINE * 1000))

    def shutdown(self) -> None:
        for provider in (self.traces, self.metrics, self.logs):
            provider.shutdown()


def _exporters(endpoint: str, protocol: Literal["grpc", "http"]) -> tuple[Any, Any, Any]:
    """Span, metric and log exporter of the SDK."""
    base = f"opentelemetry.exporter.otlp.proto.{protocol}"
    spans = importlib.import_module(f"{base}.trace_exporter").OTLPSpanExporter
    metrics = importlib.import_module(f"{base}.metric_exporter").OTLPMetricExporter
    logs = importlib.import_module(f"{base}._log_exporter").OTLPLogExporter
    if protocol == "grpc":
        options: dict[str, Any] = {"endpoint": endpoint, "insecure": True, "timeout": DEADLINE}
        return spans(**options), metrics(**options), logs(**options)
    made = [
        exporter(endpoint=f"http://{endpoint}/v1/{name}", timeout=DEADLINE)
        for exporter, name in ((spans, "traces"), (metrics, "metrics"), (logs, "logs"))
    ]
    return made[0], made[1], made[2]


def _encode(name: str, batch: Any) -> Any:
    base = "opentelemetry.exporter.otlp.proto.common"
    if name == "traces":
        return importlib.import_module(f"{base}.trace_encoder").encode_spans(batch)
    if name == "metrics":
        return importlib.import_module(f"{base}.metrics_encoder").encode_metrics(batch)
    return importlib.import_module(f"{base}._log_encoder").encode_logs(batch)


@contextlib.asynccontextmanager
async def sdk(endpoint: str, protocol: Literal["grpc", "http"] = "grpc") -> AsyncIterator[Sdk]:
    """An :class:`Sdk` that is shut down at the end, off the event loop."""
    # The exporters log each failed attempt with a traceback; results tell the same.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    made = Sdk(endpoint, protocol)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.shutdown)
