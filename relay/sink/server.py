"""The sink itself: what both listeners share, and the life of the listeners."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Final, Self

from proto_stubs import SignalSchema
from relay import wire
from relay.otlp import SIGNALS
from relay.receivers import Listen, ServerTls
from relay.sink.behaviour import ALWAYS_OK, Behaviour, decide
from relay.sink.grpc import GrpcListener
from relay.sink.http import HttpListener
from relay.sink.ports import Hold
from relay.sink.report import HUNG, Counts, Received

__all__ = ["ANY_PORT", "OFF", "Script", "Sink"]

ANY_PORT: Final = Listen(host="127.0.0.1", port=0)
OFF: Final = Listen()

Script = Behaviour | Callable[[Received], Behaviour]
"""A fixed behaviour, or one chosen for each request by looking at it."""


class Sink:
    """A collector that counts, records and misbehaves: an async context manager.

    ::

        async with Sink() as sink:
            ...  # export to sink.grpc_endpoint or sink.http_url
            await sink.wait_for(lambda: sink.items("traces") >= 100)
            sink.behave(Behaviour(code="UNAVAILABLE", retry_after=1))
            await sink.stop()   # connections are cut, new ones refused
            await sink.start()  # back on the same ports

    ``grpc``, ``http``: where to listen; port 0 lets the kernel choose once, and the port is kept
    for the sink's whole life, stopped or not. ``started`` False: the addresses are held, and
    refuse connections until :meth:`start`. ``behaviour``: how every request is answered unless
    :attr:`behaviours` has one for its signal; both may be replaced at any time.
    ``max_message``: largest request accepted, in bytes (4 MiB, as collectors and gRPC servers
    have it by default). ``record``: keep every request, with its payload, in :attr:`received`.
    ``on_received``: called with every request as it arrives. ``seed``: of ``probability``.

    All methods belong to one event loop.

    Raises:
        OSError: on entering, when an address is taken.
    """

    def __init__(  # noqa: PLR0913 - by keyword only, each with a default
        self,
        *,
        grpc: Listen = ANY_PORT,
        http: Listen = ANY_PORT,
        behaviour: Script = ALWAYS_OK,
        max_message: int = 4 * 1024 * 1024,
        tls: ServerTls | None = None,
        record: bool = True,
        started: bool = True,
        on_received: Callable[[Received], None] | None = None,
        seed: int | None = None,
    ) -> None:
        self.behaviour: Script = behaviour
        self.behaviours: dict[str, Script] = {}
        self.received: list[Received] = []
        self.counts: dict[str, Counts] = {signal.name: Counts() for signal in SIGNALS}
        self.invalid = 0
        """Requests that were no valid request of their signal, and so no items."""
        self.on_received = on_received
        self.max_message = max_message
        self.tls = tls
        self._listen = (grpc, http)
        self._record = record
        self._autostart = started
        self._dice = random.Random(seed)  # noqa: S311 - misbehaviour, not a secret
        self._next: deque[Behaviour] = deque()
        self._waiters: list[tuple[Callable[[], object], asyncio.Future[None]]] = []
        self._holds: list[Hold | None] = [None, None]
        self._listeners: list[GrpcListener | HttpListener] = []
        self._number = 0
        self._life = asyncio.Lock()
        self._cutting: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        try:
            self._hold()
            if self._autostart:
                await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def listening(self) -> bool:
        """Whether the listeners are open."""
        return bool(self._listeners)

    @property
    def grpc_endpoint(self) -> str:
        """``host:port`` or ``unix:/path`` of the gRPC listener; also while stopped."""
        return self._endpoint(0)

    @property
    def http_endpoint(self) -> str:
        """``host:port`` or ``unix:/path`` of the HTTP listener; also while stopped."""
        return self._endpoint(1)

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP listener."""
        return f"{'https' if self.tls else 'http'}://{self.http_endpoint}"

    @property
    def addresses(self) -> dict[str, list[str]]:
        """Every bound address: ``{"grpc": [...], "http": [...]}``; empty lists when off."""
        names = ("grpc", "http")
        return {
            name: hold.endpoints if hold else []
            for name, hold in zip(names, self._holds, strict=True)
        }

    def _endpoint(self, index: int) -> str:
        hold = self._holds[index]
        if hold is None:
            raise RuntimeError("this sink has no such listener, or was not entered")
        return hold.endpoint

    def _hold(self) -> None:
        for index, listen in enumerate(self._listen):
            if not listen.off and self._holds[index] is None:
                self._holds[index] = Hold(listen)

    async def start(self) -> None:
        """Open the listeners, on the same ports as before. Nothing happens when they are open.

        Raises:
            OSError: an address could not be had.
        """
        async with self._life:
            await self._start()

    async def _start(self) -> None:
        if self._listeners:
            return
        self._hold()
        grpc, http = self._holds
        listeners: list[GrpcListener | HttpListener] = []
        if grpc:
            listeners.append(GrpcListener(self, grpc))
        if http:
            listeners.append(HttpListener(self, http))
        try:
            for listener in listeners:
                await listener.open()
        except BaseException:
            for listener in listeners:
                await listener.close()
            raise
        self._listeners = listeners
        self._changed()

    async def stop(self) -> None:
        """Close the listeners and cut every connection; requests under way get no answer.

        The ports stay held, so that new connections are refused. Idempotent.
        """
        async with self._life:
            await self._stop()

    async def _stop(self) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in reversed(listeners):
            await listener.close()
        if listeners:
            self._changed()

    async def move(self) -> None:
        """Stop, let go of the ports, and come back on ports that the kernel chooses."""
        async with self._life:
            await self._stop()
            old, self._holds = self._holds, [None, None]
            grpc, http = (
                listen if listen.path or listen.off else Listen(host=listen.host)
                for listen in self._listen
            )
            self._listen = (grpc, http)
            self._hold()
            for hold in old:
                if hold:
                    hold.release()
            await self._start()

    async def close(self) -> None:
        """Stop for good and give the ports back. Idempotent."""
        for task in self._cutting:
            task.cancel()
        await asyncio.gather(*self._cutting, return_exceptions=True)
        async with self._life:
            await self._stop()
            for hold in self._holds:
                if hold:
                    hold.release()

    # --------------------------------------------------------------- scripting

    def behave(self, behaviour: Script = ALWAYS_OK, *, signals: Iterable[str] = ()) -> None:
        """From now on answer so: every signal, or only those named (which then keep it)."""
        names = tuple(signals)
        if not names:
            self.behaviour = behaviour
            self.behaviours.clear()
        for name in names:
            if name not in self.counts:
                raise ValueError(f"no signal is called {name!r}")
            self.behaviours[name] = behaviour

    def script(self, *behaviours: Behaviour) -> None:
        """Answer the next requests, whatever their signal, with these, one each, in order."""
        self._next.extend(behaviours)

    @property
    def scripted(self) -> int:
        """How many scripted answers are still to be given."""
        return len(self._next)

    async def wait_for(
        self,
        predicate: Callable[[], object],
        timeout: float = 30.0,  # noqa: ASYNC109 - names what failed, which asyncio.timeout cannot
        what: str = "",
    ) -> None:
        """Wait until the predicate holds; it is asked again whenever something happens here.

        ``timeout``: an overall limit in seconds, so that a test ends; not a pace.

        Raises:
            TimeoutError: saying ``what`` was waited for and what had arrived.
        """
        if predicate():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (predicate, future)
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise TimeoutError(
                f"waited {timeout:g} s for {what or 'a condition'}; the sink has {self.summary()}"
            ) from None
        finally:
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def _changed(self) -> None:
        for predicate, future in list(self._waiters):
            if future.done():
                continue
            try:
                holds = predicate()
            except Exception as error:  # noqa: BLE001 - the one who waits is told
                future.set_exception(error)
                continue
            if holds:
                future.set_result(None)

    # ------------------------------------------------------------- what arrived

    def payloads(self, signal: str) -> list[bytes]:
        """Every payload of a signal, in the order of arrival, whatever it was answered."""
        return [each.payload for each in self.received if each.signal.name == signal]

    def accepted(self, signal: str) -> list[bytes]:
        """The payloads of a signal that were answered with success."""
        return [
            each.payload for each in self.received if each.signal.name == signal and each.accepted
        ]

    def requests(self, signal: str) -> int:
        """Requests of a signal that arrived."""
        return self.counts[signal].requests

    def items(self, signal: str) -> int:
        """Items of a signal that arrived, whatever they were answered."""
        return self.counts[signal].items

    def accepted_items(self, signal: str) -> int:
        """Items of a signal answered with success, less those rejected in partial successes."""
        return self.counts[signal].accepted_items

    def summary(self) -> str:
        """What arrived, in words, for messages of failed tests."""
        parts = [
            f"{name}: {count.requests} requests, {count.items} items, "
            f"{count.accepted_items} accepted, answers {dict(count.answers)}"
            for name, count in self.counts.items()
            if count.requests
        ]
        if self.invalid:
            parts.append(f"{self.invalid} invalid requests")
        return "; ".join(parts) or "nothing arrived"

    # ------------------------------------------------- what the listeners call

    def take(
        self,
        signal: SignalSchema,
        transport: str,
        payload: bytes,
        headers: Mapping[str, str],
    ) -> tuple[Received, Behaviour]:
        """Count one request and decide its answer.

        Raises:
            relay.wire.MalformedError: it is no valid request; counted as invalid.
        """
        try:
            units, items = wire.count(payload, signal)
        except wire.MalformedError:
            self.invalid += 1
            self._changed()
            raise
        self._number += 1
        received = Received(
            signal=signal,
            transport=transport,
            payload=payload,
            size=len(payload),
            units=units,
            items=items,
            headers=headers,
            at=time.monotonic(),
            number=self._number,
        )
        self.counts[signal.name].arrived(received)
        if self._record:
            self.received.append(received)
        if self.on_received:
            self.on_received(received)
        behaviour = self._decide(received)
        if not self._record:
            received.payload = b""
        if behaviour.hang:
            self.answered(received, HUNG)
        self._changed()
        return received, behaviour

    def _decide(self, received: Received) -> Behaviour:
        if self._next:
            return decide(self._next.popleft(), received.items, self._dice)
        script = self.behaviours.get(received.signal.name, self.behaviour)
        behaviour = script if isinstance(script, Behaviour) else script(received)
        return decide(behaviour, received.items, self._dice)

    def answered(self, received: Received, answer: str, rejected: int = 0) -> None:
        """Note the answer of a request, just before it is sent."""
        received.answer = answer
        received.rejected = rejected
        self.counts[received.signal.name].answered(received)
        self._changed()

    def cut(self) -> None:
        """Cut every connection now and listen again at once."""
        # Owned by _cutting; close() cancels and awaits what is left.
        task = asyncio.get_running_loop().create_task(self._cut())
        self._cutting.add(task)
        task.add_done_callback(self._cutting.discard)

    async def _cut(self) -> None:
        async with self._life:
            if self._listeners:
                await self._stop()
                await self._start()
