"""Bad networks for tests: a TCP proxy that stalls and cuts, a name server, a full backlog."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self


class Proxy:
    """Passes TCP connections on to ``target`` (``host:port``), and misbehaves on request.

    ``sent``: bytes that clients sent, as far as they were read. An async context manager.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.endpoint = ""
        self.accepted = 0
        self.sent = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.endpoint = f"{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stall(self) -> None:
        """Pass nothing on any more, and leave what comes new without an answer."""
        self._flowing.clear()

    def flow(self) -> None:
        """Pass on again, on old connections too."""
        self._flowing.set()

    def cut(self, *, reset: bool = False) -> None:
        """Close every connection towards the clients, with FIN or with RST."""
        for writer in self._clients:
            if reset:
                linger = struct.pack("ii", 1, 0)
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            else:
                writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        self._clients.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._flowing.wait()
        host, _, port = self.target.rpartition(":")
        there, onward = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, onward, count=True))
                group.create_task(self._pass(there, writer))
        except* OSError:
            pass
        finally:
            onward.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool = False
    ) -> None:
        while data := await reader.read(65536):
            await self._flowing.wait()
            if count:
                self.sent += len(data)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError  # Either end ends both.


class NameServer(asyncio.DatagramProtocol):
    """Answers look-ups of A records from ``names``; an unknown name does not exist.

    ``silent``: answers nothing. A gRPC client asks it for the target ``dns://ADDRESS/name:port``.
    """

    def __init__(self, names: Mapping[str, Sequence[str]]) -> None:
        self.names = dict(names)
        self.silent = False
        self.asked = 0
        self.address = ""
        self._transport: asyncio.DatagramTransport | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        host, port = self._transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._transport is not None
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one query (RFC 1035, section 4): header, one question, answers."""
        self.asked += 1
        if self.silent:
            return
        labels, at = [], 12
        while length := data[at]:
            labels.append(data[at + 1 : at + 1 + length].decode())
            at += 1 + length
        question = data[12 : at + 5]
        name = ".".join(labels).lower()
        is_a = data[at + 1 : at + 3] == b"\0\1"
        hosts = self.names.get(name, ()) if is_a else ()
        code = 0 if name in self.names else 3
        head = data[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(hosts), 0, 0)
        answers = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(host)
            for host in hosts
        )
        assert self._transport is not None
        self._transport.sendto(head + question + answers, addr)


@contextlib.contextmanager
def silent_listener(*, full: bool = False) -> Iterator[str]:
    """A listener that never accepts: connections stand, and nothing is ever said on them.

    ``full``: its backlog is full as well, so that the kernel (Linux) answers no SYN.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0 if full else 16)
        for _ in range(4 if full else 0):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """An address that refuses connections, and is nobody else's meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"
