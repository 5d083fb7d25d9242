"""A TCP proxy between relay and collector that does to connections what networks do.

All faults may be combined and changed at any time; they hold for connections that stand and for
those that come. The address never changes, whatever :attr:`Proxy.target` is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import weakref
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

__all__ = ["CLEAR", "Faults", "Proxy"]

_CHUNK: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What the proxy does.

    ``delay``: seconds added to everything that passes, each way. ``rate``: bytes a second, each
    way; 0: no limit. ``stall_up``, ``stall_down``: nothing more passes towards the collector, or
    from it, and what waits passes later. ``blackhole``: what comes is read and thrown away, new
    connections reach nobody, and none is ever closed, as with a firewall that forgot them.
    ``garbage``: new connections are answered with these bytes instead of a collector.
    """

    delay: float = 0.0
    rate: int = 0
    stall_up: bool = False
    stall_down: bool = False
    blackhole: bool = False
    garbage: bytes = b""


CLEAR: Final = Faults()


class Proxy:
    """Passes connections on to ``target`` (``host:port``). An async context manager.

    ``accepted``, ``passed``: connections and bytes so far.
    """

    def __init__(self, target: str = "") -> None:
        self.target = target
        self.endpoint = ""
        self.faults = CLEAR
        self.accepted = 0
        self.passed = 0
        self._port = 0
        self._hold: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._finished: weakref.WeakSet[asyncio.StreamWriter] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        # Bound for good, so that nobody else gets the port while nothing listens on it.
        self._hold = _bound(0)
        self._port = self._hold.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self._port}"
        await self.listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.refuse()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self._hold is not None
        self._hold.close()

    async def listen(self) -> None:
        """Take connections (again)."""
        if self._server is None:
            listener = _bound(self._port)
            listener.listen(64)
            self._server = await asyncio.start_server(self._accept, sock=listener)

    def refuse(self) -> None:
        """Refuse new connections; those that stand stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def set(self, faults: Faults) -> None:
        """Misbehave so from now on.

        What a blackhole swallowed is gone, so the connections that lost bytes in one never work
        again: they stay dead and open until they are cut, or until their client leaves.
        """
        self.faults = faults
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def cut(self, *, reset: bool = False) -> None:
        """Close every connection on both sides, with FIN or with RST."""
        for writer in list(self._writers):
            if reset:
                linger = struct.pack("ii", 1, 0)
                with contextlib.suppress(OSError):
                    sock: socket.socket = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        for task in self._lost:
            task.cancel()

    def half_close(self) -> None:
        """Send FIN on every connection to both ends, and go on passing what still comes."""
        for writer in list(self._writers):
            self._finish(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self._writers.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            self._lost.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.faults.blackhole:
            await self._swallow(reader)
            return
        if self.faults.garbage:
            writer.write(self.faults.garbage)
            await writer.drain()
            writer.close()
            return
        host, _, port = self.target.rpartition(":")
        there, onward = await asyncio.open_connection(host, int(port))
        self._writers.add(onward)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, onward, up=True))
                group.create_task(self._pass(there, writer, up=False))
        except* OSError:
            pass
        finally:
            self._writers.discard(onward)
            onward.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        while data := await reader.read(_CHUNK):
            while self.faults.stall_up if up else self.faults.stall_down:
                await self._changed.wait()
            if self.faults.blackhole:
                await self._swallow(reader)
            pause = self.faults.delay
            if self.faults.rate:
                pause += len(data) / self.faults.rate
            if pause:
                await asyncio.sleep(pause)
            if writer in self._finished:
                return  # Half-closed by us meanwhile.
            self.passed += len(data)
            writer.write(data)
            await writer.drain()
        # The end of one direction is passed on as well; the other goes on.
        self._finish(writer)

    def _finish(self, writer: asyncio.StreamWriter) -> None:
        self._finished.add(writer)
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._lost.add(task)
        try:
            while await reader.read(_CHUNK):
                pass
            await asyncio.Event().wait()
        except OSError:
            await asyncio.Event().wait()
        finally:
            self._lost.discard(task)


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.setblocking(False)
    return sock
