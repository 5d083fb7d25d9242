"""Clients that ask too much of a relay, and one that does not and is watched meanwhile.

Each attack is a coroutine that goes on until it is cancelled. ``python -m tests.e2e.overload GRPC
HTTP`` is the well-behaved client: a process of its own, so that what it measures is the relay's
time and not the attacker's. It prints one JSON line per answer: transport and seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Self

import aiohttp
import grpc.aio

from relay.otlp import SIGNALS, TRACES
from tests.e2e.harness import OWN_CONNECTION, Child, RelayProcess, clean_environment, send, until
from tests.numbered import spans

__all__ = ["ATTACKS", "Outcome", "bound", "watch"]

MIB: Final = 1024 * 1024
_PROTOBUF: Final = {"Content-Type": "application/x-protobuf"}


# --- attacks --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A relay as its clients see it. ``largest``: RELAY_MAX_REQUEST_BYTES; ``streams``:
    RELAY_MAX_STREAMS."""

    grpc: str
    http: str
    largest: int = 16 * MIB
    streams: int = 128


Attack = Callable[[Target], Awaitable[None]]


async def _posting(target: Target, payload: bytes, clients: int) -> None:
    """Post over both transports, as fast as answers come."""

    async def over_http(session: aiohttp.ClientSession) -> None:
        while True:
            url = f"http://{target.http}/v1/traces"
            with contextlib.suppress(aiohttp.ClientError):
                async with session.post(url, data=io.BytesIO(payload), headers=_PROTOBUF) as answer:
                    await answer.read()

    async def over_grpc() -> None:
        options = [*OWN_CONNECTION, ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(target.grpc, options=options) as channel:
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await send(channel, TRACES, payload)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(over_http(session))
            group.create_task(over_grpc())


async def flood(target: Target) -> None:
    """Small and middling requests as fast as answers come."""
    await _posting(target, spans(range(1, 200), pad=100), 8)


async def large_requests(target: Target) -> None:
    """Requests of the largest size that is accepted."""
    payload = spans(range(1, 9), pad=target.largest // 8 - 1000)
    assert target.largest * 0.9 < len(payload) <= target.largest
    await _posting(target, payload, 4)


async def large_spans(target: Target) -> None:
    """Single spans of 4 MiB, or the largest accepted."""
    await _posting(target, spans([1], pad=min(4 * MIB, target.largest) - 1000), 4)


async def slow_reader(target: Target) -> None:
    """Requests one behind the other on a connection, and not one answer read."""
    body = spans(range(1, 20))
    head = f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Content-Type: application/x-protobuf\r\n\r\n".encode() + body

    async def one() -> None:
        _, writer = await _open(target.http)
        transport = writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        try:
            while True:
                writer.write(request * 10)
                await writer.drain()
        finally:
            writer.transport.abort()

    await _forever([one] * 50)


async def a_thousand_connections(target: Target) -> None:
    """Open them on each listener, half of them with the beginning of a request, and wait."""

    async def one(endpoint: str, beginning: bytes) -> None:
        _, writer = await _open(endpoint)
        writer.write(beginning)
        try:
            await asyncio.Event().wait()
        finally:
            writer.transport.abort()

    begun = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    clients: list[Callable[[], Awaitable[None]]] = []
    for number in range(1000):
        clients.append(partial(one, target.http, begun if number % 2 else b""))
        clients.append(partial(one, target.grpc, PREFACE if number % 2 else b""))
    await _forever(clients)


async def resets(target: Target) -> None:
    """Open gRPC calls and reset each at once, as fast as the connection takes it."""

    async def one() -> None:
        async with _Http2(target.grpc) as connection:
            for stream in itertools.count(1, 2):
                connection.call(stream)
                connection.frame(3, 0, stream, struct.pack("!I", 8))  # RST_STREAM, CANCEL
                if stream % 64 == 1:
                    await connection.flush()

    await _forever([one] * 4)


async def slow_uploads_http(target: Target) -> None:
    """Two hundred bodies of the largest size that arrive little by little."""

    async def one() -> None:
        _, writer = await _open(target.http)
        try:
            writer.write(
                f"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: {target.largest}\r\n"
                "Content-Type: application/x-protobuf\r\n\r\n".encode()
            )
            while True:
                writer.write(b"\0" * 16_384)
                await writer.drain()
                await asyncio.sleep(0.05)
        finally:
            writer.transport.abort()

    await _forever([one] * 200)


async def slow_uploads_grpc(target: Target) -> None:
    """As many calls on one connection as it takes, with messages that never end."""

    async def one() -> None:
        async with _Http2(target.grpc) as connection:
            calls = range(1, 2 * target.streams, 2)
            for stream in calls:
                connection.call(stream)
                prefix = struct.pack("!BI", 0, target.largest)
                connection.data(stream, prefix)
            for stream in itertools.cycle(calls):
                await connection.data_when_it_may(stream, 8192, target.largest - 10_000)

    await _forever([one])


ATTACKS: Final[Mapping[str, Attack]] = {
    "flood": flood,
    "large requests": large_requests,
    "large spans": large_spans,
    "slow reader": slow_reader,
    "a thousand connections": a_thousand_connections,
    "stream resets": resets,
    "slow uploads, HTTP": slow_uploads_http,
    "slow uploads, gRPC": slow_uploads_grpc,
}


async def _forever(clients: list[Callable[[], Awaitable[None]]]) -> None:
    async def again(client: Callable[[], Awaitable[None]]) -> None:
        while True:
            with contextlib.suppress(OSError):
                await client()
            await asyncio.sleep(0.05)  # Refused or cut: once more.

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(again(client))


async def _open(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = endpoint.rpartition(":")
    return await asyncio.open_connection(host, int(port))


PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What an HTTP/2 client begins with: the preface and empty SETTINGS (RFC 9113, section 3.4)."""


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing (RFC 7541, section 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class _Http2:
    """As much of an HTTP/2 client as it takes to be a nuisance."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._windows: dict[int, int] = {0: 65_535}
        self._sent: dict[int, int] = {}
        self._more = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await _open(self._endpoint)
        self._writer.write(PREFACE)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = struct.pack("!I", len(payload))[1:] + bytes([kind, flags])
        self._writer.write(head + struct.pack("!I", stream) + payload)

    def call(self, stream: int) -> None:
        """HEADERS of an Export call."""
        path = TRACES.method.encode()
        block = (
            b"\x83\x86\x04"  # :method POST, :scheme http, :path
            + bytes([len(path)])
            + path
            + b"\x01\x01x"  # :authority x
            + _literal(b"te", b"trailers")
            + _literal(b"content-type", b"application/grpc")
        )
        self.frame(1, 4, stream, block)
        self._windows[stream] = 65_535

    def data(self, stream: int, payload: bytes) -> None:
        self._windows[0] -= len(payload)
        self._windows[stream] -= len(payload)
        self._sent[stream] = self._sent.get(stream, 0) + len(payload)
        self.frame(0, 0, stream, payload)

    async def data_when_it_may(self, stream: int, size: int, most: int) -> None:
        """Send DATA if the windows and ``most`` allow it."""
        if self._sent[stream] + size > most or self._reader.at_eof():
            await asyncio.sleep(0.001)
            if self._reader.at_eof():
                raise ConnectionResetError
        elif (now := min(size, self._windows[stream], self._windows[0])) > 0:
            self.data(stream, b"\0" * now)
            await self.flush()
        else:
            await asyncio.sleep(0)

    async def flush(self) -> None:
        if self._reader.at_eof():
            raise ConnectionResetError
        await self._writer.drain()
        await asyncio.sleep(0)

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await self._reader.readexactly(9)
                size = int.from_bytes(head[:3], "big")
                kind, flags = head[3], head[4]
                stream = int.from_bytes(head[5:], "big")
                payload = await self._reader.readexactly(size)
                if kind == 8:  # WINDOW_UPDATE
                    more = int.from_bytes(payload, "big")
                    self._windows[stream] = self._windows.get(stream, 65_535) + more
                elif kind == 4 and not flags & 1:  # SETTINGS
                    self.frame(4, 1, 0, b"")
                elif kind == 6 and not flags & 1:  # PING
                    self.frame(6, 1, 0, payload)


# --- the well-behaved client ----------------------------------------------------------------------


async def _well_behaved(grpc_endpoint: str, http_endpoint: str) -> None:
    """A small request every 20 ms, over each transport, on connections of its own."""
    payload = spans([1])

    def told(transport: str, seconds: float) -> None:
        print(json.dumps([transport, seconds]), flush=True)

    async def over_grpc() -> None:
        async with grpc.aio.insecure_channel(grpc_endpoint, options=OWN_CONNECTION) as channel:
            while True:
                begun = time.perf_counter()
                await send(channel, TRACES, payload, wait=True)
                told("grpc", time.perf_counter() - begun)
                await asyncio.sleep(0.02)

    async def over_http() -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                begun = time.perf_counter()
                url = f"http://{http_endpoint}/v1/traces"
                async with session.post(url, data=payload, headers=_PROTOBUF) as answer:
                    assert answer.status == 200, answer.status
                told("http", time.perf_counter() - begun)
                await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        group.create_task(over_grpc())
        group.create_task(over_http())


# --- watching -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What an attack did. Sizes in bytes, times in seconds."""

    before: int
    peak: int
    after: int
    answers: dict[str, list[float]] = field(default_factory=dict)

    def longest(self) -> float:
        return max(max(each) for each in self.answers.values())

    def median(self, transport: str) -> float:
        each = sorted(self.answers[transport])
        return each[len(each) // 2]


def memory(pid: int, name: str = "VmRSS") -> int:
    """A process's resident memory in bytes, now or (``VmHWM``) at its highest."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/{pid}/status has no {name}")


def bound(settings: Mapping[str, int], base: int, connections: int, streams: int) -> int:
    """The memory that a relay may take: the formula of docs/security.md.

    ``settings``: the values of RELAY_QUEUE_MAX_BYTES and so on, without the prefix. ``base``: what
    it has when idle. ``connections`` and ``streams`` are those that clients hold open.
    """
    ring = settings["QUEUE_MAX_BYTES"]
    exports = 3 * settings["MAX_CONCURRENT_EXPORTS"] * settings["EXPORT_MAX_BYTES"]
    largest = settings["MAX_REQUEST_BYTES"]
    http = 8 * largest + connections * 384 * 1024
    grpc_calls = 2 * streams * largest + connections * 128 * 1024
    return base + len(SIGNALS) * (ring + exports) + http + grpc_calls


async def watch(
    relay: RelayProcess,
    attack: Attack,
    largest: int,
    streams: int,
    seconds: float,
    *,
    settle: float = 2.0,
) -> Outcome:
    """Let an attack go on for a while, and the well-behaved client beside it.

    ``settle``: seconds that the relay has to give memory back, before ``after`` is read.
    """
    outcome = Outcome(memory(relay.pid), 0, 0)
    target = Target(relay.grpc, relay.http, largest, streams)
    client = Child("well-behaved client")
    await client.spawn(
        [sys.executable, "-m", "tests.e2e.overload", relay.grpc, relay.http], clean_environment()
    )
    attacking: asyncio.Task[None] | None = None
    try:
        for transport in ("grpc", "http"):
            await _answer(client, transport)
        undisturbed = len(client.output)
        attacking = asyncio.create_task(_run(attack, target))
        await asyncio.wait({attacking}, timeout=seconds)
        if attacking.done():
            attacking.result()
        for transport in ("grpc", "http"):
            await _answer(client, transport)
        assert client.running, client.tail()
    finally:
        if attacking is not None:
            attacking.cancel()
            await asyncio.gather(attacking, return_exceptions=True)
        await client.reap()
    outcome.peak = memory(relay.pid, "VmHWM")
    await asyncio.sleep(settle)
    outcome.after = memory(relay.pid)
    for line in client.output[undisturbed:]:
        if line.startswith("["):  # gRPC's core may have words of its own about connections
            transport, taken = json.loads(line)
            outcome.answers.setdefault(transport, []).append(taken)
    return outcome


async def _answer(client: Child, transport: str) -> None:
    """Wait for an answer that the well-behaved client has not had yet."""
    seen = len(client.output)

    def more() -> bool:
        assert client.running, client.tail()
        return any(line.startswith(f'["{transport}"') for line in client.output[seen:])

    await until(more, f"an answer over {transport}", client.tail)


async def _run(attack: Attack, target: Target) -> None:
    await attack(target)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_well_behaved(sys.argv[1], sys.argv[2]))
