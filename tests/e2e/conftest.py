"""Fixtures of the end-to-end tests: a sink, relays, Rotel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from relay.sink import Sink
from tests.e2e.harness import RelayProcess, RotelProcess

StartRelay = Callable[..., Awaitable[RelayProcess]]


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """A collector on ports of its own that records everything."""
    async with Sink(seed=1) as sink:
        yield sink


@pytest.fixture
async def start_relay(sink: Sink) -> AsyncIterator[StartRelay]:
    """Start a relay in front of the sink, or of ``collector``; settings by keyword.

    ``await start_relay(RELAY_BATCH_SIZE="100")``
    """
    async with AsyncExitStack() as stack:

        async def start(collector: str = "", **settings: str | None) -> RelayProcess:
            target = collector or f"http://{sink.grpc_endpoint}"
            return await stack.enter_async_context(RelayProcess(target, settings))

        yield start


@pytest.fixture
async def relay(start_relay: StartRelay) -> RelayProcess:
    """A relay with the harness's settings in front of the sink."""
    return await start_relay()


@pytest.fixture
async def rotel(sink: Sink) -> AsyncIterator[RotelProcess]:
    """Rotel, which forwards to the sink."""
    async with RotelProcess(f"http://{sink.grpc_endpoint}") as rotel:
        yield rotel
