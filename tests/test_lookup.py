"""Names and addresses that need no network, and a resolver that hangs."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from relay.lookup import look_up
from relay.rotation import Address


async def test_a_literal_stands_for_itself() -> None:
    assert await look_up("127.0.0.1", 4317) == [Address(socket.AF_INET, "127.0.0.1", 4317)]


async def test_every_address_in_the_order_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def two(host: str, port: int, **options: int) -> list[object]:
        assert host == "collector.test"
        return [*real("127.0.0.2", port, **options), *real("127.0.0.1", port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    found = await look_up("collector.test", 1)
    assert [str(each) for each in found] == ["127.0.0.2:1", "127.0.0.1:1"]


async def test_a_name_that_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror, match="not known"):
        await look_up("nowhere.test", 1)


async def test_what_cannot_be_a_name() -> None:
    with pytest.raises(UnicodeError):
        await look_up("a" * 64 + ".test", 1)


async def test_whoever_waits_for_a_resolver_that_hangs_may_give_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go = threading.Event()
    workers = []

    def hang(*_: object, **__: object) -> list[object]:
        workers.append(threading.current_thread())
        let_go.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await look_up("slow.test", 1)
    finally:
        let_go.set()
    assert all(worker.daemon for worker in workers), "none keeps the process from ending"
    for worker in workers:
        await asyncio.to_thread(worker.join)  # its answer comes too late, and harms nothing
