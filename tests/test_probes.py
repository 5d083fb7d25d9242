"""Probes against real sockets; the doctor's own tests have the rest of the network."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from relay import probes
from relay.probes import Place
from relay.receivers import Listen
from tests.network import refusing, silent_listener


async def test_a_resolver_that_hangs_costs_the_limit_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        let_go.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        found = await probes.resolve("collector", 4317, 0.1)
    finally:
        let_go.set()
    assert found.addresses == ()
    assert found.fault == "no answer within 0.1 s"


async def test_an_address_stands_for_itself() -> None:
    found = await probes.resolve("127.0.0.1", 1, 5)
    assert (found.addresses, found.fault) == (("127.0.0.1",), "")


def test_places_read_as_people_write_them() -> None:
    assert str(Place("::1", 4317)) == "[::1]:4317"
    assert str(Place("10.0.0.1", 4317)) == "10.0.0.1:4317"
    assert str(Place(path="/run/x")) == "unix:/run/x"


def test_errors_in_words() -> None:
    assert probes.why(TimeoutError()) == "no answer in time"
    assert probes.why(OSError(errno.ECONNREFUSED, "Connect call failed ('::1', 1)")) == (
        "connection refused"
    )
    assert probes.why(ValueError("odd")) == "odd"
    assert probes.why(ConnectionAbortedError()) == "ConnectionAbortedError"


def test_ports_that_are_free_taken_and_not_ours() -> None:
    with refusing() as address:
        port = int(address.rpartition(":")[2])
    assert probes.bindable(Listen("127.0.0.1", port)) is None
    with silent_listener() as address:
        port = int(address.rpartition(":")[2])
        error = probes.bindable(Listen("127.0.0.1", port))
        assert error is not None
        assert error.errno == errno.EADDRINUSE
    error = probes.bindable(Listen("192.0.2.1", port))  # TEST-NET-1, nobody's
    assert error is not None
    assert error.errno == errno.EADDRNOTAVAIL


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_owner_of_a_port() -> None:
    with silent_listener() as address:
        port = int(address.rpartition(":")[2])
        assert probes.owner(port).endswith(f"(pid {os.getpid()})")
    assert probes.owner(port) == ""


async def test_get_reads_the_whole_answer_and_tells_what_is_no_http(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    path = str(tmp_path / "s")
    async with await asyncio.start_unix_server(serve, path):
        assert await probes.get(Place(path=path), "/", 5) == (200, b"x" * 100_000)
        answer = b"SSH-2.0\r\n"
        with pytest.raises(ValueError, match="does not speak HTTP"):
            await probes.get(Place(path=path), "/", 5)


async def test_asking_who_says_nothing_takes_the_limit() -> None:
    with silent_listener() as address:
        place = Place("127.0.0.1", int(address.rpartition(":")[2]))
        for how in ("http1", "http2"):
            assert (await probes.ask(place, how, 0.05)).what == "silent"
        with pytest.raises(TimeoutError):
            await probes.get(place, "/", 0.05)


async def test_asking_a_port_where_nobody_listens() -> None:
    with refusing() as address:
        answer = await probes.ask(Place("127.0.0.1", int(address.rpartition(":")[2])), "http1", 5)
    assert answer.what == "closed"
    assert isinstance(answer.error, ConnectionRefusedError)


async def test_the_date_of_an_answer() -> None:
    lines = ["Date: Tue, 15 Nov 1994 08:12:31 GMT", "date:x", "Else: 1"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 404 Not Found\r\n{lines[0]}\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, family=socket.AF_INET)
    async with server:
        place = Place("127.0.0.1", server.sockets[0].getsockname()[1])
        assert (await probes.ask(place, "http1", 5)).date == 784887151.0
        for _ in (1, 2):
            lines.pop(0)
            answer = await probes.ask(place, "http1", 5)
            assert (answer.what, answer.date) == ("http1", None)
