"""Two collectors behind one name: both are used, and the loss of either costs nothing."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Self

import pytest

from relay.otlp import TRACES
from relay.receivers import Listen
from relay.sink import Sink
from tests.e2e.harness import DEADLINE, ROOT, RelayProcess, numbered_request, numbers, send

HOSTS = ("127.0.0.2", "127.0.0.3")
NAME = "collectors.test"
FEW = 200
"""Items that show that a collector is in use."""


def in_namespace(hosts: str) -> list[str]:
    """Return what runs a command with a hosts file of its own, in a mount namespace of its own."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = f'mount --bind {shlex.quote(hosts)} /etc/hosts && exec "$@"'
    return ["unshare", "--mount", *user, "sh", "-c", script, "sh"]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What runs a process for which the name has two addresses."""
    path = tmp_path_factory.mktemp("names") / "hosts"
    lines = ["127.0.0.1 localhost", *(f"{host} {NAME}" for host in HOSTS)]
    path.write_text("\n".join(lines) + "\n")
    prefix = in_namespace(str(path))
    look = f"import socket; print(len(socket.getaddrinfo({NAME!r}, 1, type=socket.SOCK_STREAM)))"
    try:
        found = subprocess.run(
            [*prefix, sys.executable, "-c", look],
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare to give a name two addresses with")
    if found.stdout.strip() != "2":
        pytest.skip(f"a name cannot be given two addresses here: {found.stderr.strip()[-200:]}")
    for host in HOSTS:
        try:
            socket.create_server((host, 0)).close()
        except OSError as error:
            pytest.skip(f"{host} is not on this machine's loopback: {error}")
    return prefix


class NamedRelay(RelayProcess):
    """A relay for which the name has two addresses."""

    prefix: Sequence[str] = ()

    async def spawn(self, argv: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT) -> None:
        await super().spawn([*self.prefix, *argv], env, cwd)


@asynccontextmanager
async def two_sinks() -> AsyncIterator[tuple[Sink, Sink]]:
    """Two collectors on the same two ports of two addresses."""
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(
            Sink(grpc=Listen(HOSTS[0], 0), http=Listen(HOSTS[0], 0), seed=1)
        )
        ports = [int(end.rpartition(":")[2]) for end in (one.grpc_endpoint, one.http_endpoint)]
        listens = [Listen(HOSTS[1], port) for port in ports]
        two = await stack.enter_async_context(Sink(grpc=listens[0], http=listens[1], seed=2))
        yield one, two


class Load:
    """Numbered spans, ten a request, for as long as the block lasts."""

    def __init__(self, relay: RelayProcess) -> None:
        self.relay = relay
        self.sent = 0
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def _run(self) -> None:
        async with self.relay.channel() as channel:
            while not self._stop.is_set():
                await send(channel, TRACES, numbered_request(self.sent, self.sent + 10))
                self.sent += 10
                await asyncio.sleep(0.002)  # a pace, not a wait

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        assert self._task is not None
        await self._task


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.timeout(120)
async def test_both_are_used_and_the_loss_of_either_costs_nothing(
    prefix: list[str], protocol: str
) -> None:
    async with two_sinks() as (one, two):
        endpoint = one.grpc_endpoint if protocol == "grpc" else one.http_endpoint
        relay = NamedRelay(
            f"http://{NAME}:{endpoint.rpartition(':')[2]}",
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "RELAY_BATCH_SIZE": "20",
                "RELAY_SCHEDULE_DELAY": "20",
                "RELAY_QUEUE_SIZE": "1000000",
            },
        )
        relay.prefix = prefix
        async with relay:

            async def more(*sinks: Sink) -> None:
                """Wait until a few more items arrived at each of these."""
                goals = [sink.accepted_items("traces") + FEW for sink in sinks]
                for sink, goal in zip(sinks, goals, strict=True):
                    await sink.wait_for(
                        lambda sink=sink, goal=goal: sink.accepted_items("traces") >= goal,  # type: ignore[misc]  # mypy does not infer defaults
                        what=f"{FEW} more items at {sink.grpc_endpoint}",
                    )

            async with Load(relay) as load:
                await more(one, two)
                for lost, left in ((one, two), (two, one)):
                    await lost.stop()
                    await more(left)
                    await lost.start()
                    await more(lost, left)
            scrape = await relay.drained()
            assert scrape.value("dropped_items_total") == 0
            assert scrape.value("exported_items_total", signal="traces") == load.sent
            arrived = numbers(*one.accepted("traces"), *two.accepted("traces"))
            assert set(arrived) == set(range(load.sent))
            events = {record.get("event") for record in relay.records}
            assert "outage_began" not in events, "the loss of one of several is no outage"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_one_that_was_never_there_is_no_obstacle(prefix: list[str], protocol: str) -> None:
    async with two_sinks() as (one, two):
        await two.stop()
        endpoint = one.grpc_endpoint if protocol == "grpc" else one.http_endpoint
        relay = NamedRelay(
            f"http://{NAME}:{endpoint.rpartition(':')[2]}",
            {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "RELAY_SCHEDULE_DELAY": "20"},
        )
        relay.prefix = prefix
        async with relay:
            async with relay.channel() as channel:
                for first in range(0, 200, 10):
                    await send(channel, TRACES, numbered_request(first, first + 10))
            scrape = await relay.drained()
            assert scrape.value("dropped_items_total") == 0
        assert sorted(set(numbers(*one.accepted("traces")))) == list(range(200))
