"""The proxy does what it is told, so that a run without a finding means something."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.chaos.proxy import CLEAR, Faults, Proxy
from tests.e2e.harness import within


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"{host}:{port}"
    server.close()


@pytest.fixture
async def proxy(echo: str) -> AsyncIterator[Proxy]:
    async with Proxy(echo) as proxy:
        yield proxy


async def connect(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.endpoint.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter], words: bytes) -> bytes:
    reader, writer = streams
    writer.write(words)
    async with within("an echo"):
        return await reader.readexactly(len(words))


async def nothing_comes(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await streams[0].read(1)


async def test_it_passes_and_delays_and_throttles(proxy: Proxy) -> None:
    streams = await connect(proxy)
    assert await ask(streams, b"hello") == b"hello"
    proxy.set(Faults(delay=0.05))
    begun = time.monotonic()
    assert await ask(streams, b"later") == b"later"
    assert time.monotonic() - begun >= 0.1  # each way
    proxy.set(Faults(rate=1000))
    begun = time.monotonic()
    assert await ask(streams, b"x" * 50) == b"x" * 50
    assert time.monotonic() - begun >= 0.1
    streams[1].close()


@pytest.mark.parametrize("faults", [Faults(stall_up=True), Faults(stall_down=True)])
async def test_what_stalls_comes_later(proxy: Proxy, faults: Faults) -> None:
    streams = await connect(proxy)
    await ask(streams, b"a")
    proxy.set(faults)
    streams[1].write(b"b")
    await nothing_comes(streams)
    proxy.set(CLEAR)
    assert await ask(streams, b"c") == b"b"
    streams[1].close()


async def test_what_a_blackhole_swallows_never_comes_and_nobody_is_told(proxy: Proxy) -> None:
    streams = await connect(proxy)
    await ask(streams, b"a")
    proxy.set(Faults(blackhole=True))
    late = await connect(proxy)
    for each in (streams, late):
        each[1].write(b"b")
        await nothing_comes(each)
    proxy.set(CLEAR)
    for each in (streams, late):
        await nothing_comes(each)
    fresh = await connect(proxy)
    assert await ask(fresh, b"c") == b"c"
    for each in (streams, late, fresh):
        each[1].close()


@pytest.mark.parametrize("reset", [False, True])
async def test_it_cuts(proxy: Proxy, reset: bool) -> None:
    streams = await connect(proxy)
    await ask(streams, b"a")
    proxy.cut(reset=reset)
    async with within("the end"):
        if reset:
            with pytest.raises(ConnectionResetError):
                await streams[0].read()
        else:
            assert await streams[0].read() == b""
    fresh = await connect(proxy)
    assert await ask(fresh, b"b") == b"b"
    streams[1].close()
    fresh[1].close()


async def test_it_half_closes(proxy: Proxy) -> None:
    streams = await connect(proxy)
    await ask(streams, b"a")
    proxy.half_close()
    async with within("the end of one direction"):
        assert await streams[0].read() == b""
    streams[1].close()


async def test_it_refuses_and_comes_back_with_another_target(proxy: Proxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"other")
        writer.close()

    other = await asyncio.start_server(greet, "127.0.0.1", 0)
    proxy.target = f"127.0.0.1:{other.sockets[0].getsockname()[1]}"
    await proxy.listen()
    reader, writer = await connect(proxy)
    assert await reader.read() == b"other"
    writer.close()
    other.close()


async def test_it_talks_garbage(proxy: Proxy) -> None:
    proxy.set(Faults(garbage=b"SSH-2.0\r\n"))
    reader, writer = await connect(proxy)
    assert await reader.read() == b"SSH-2.0\r\n"
    writer.close()
