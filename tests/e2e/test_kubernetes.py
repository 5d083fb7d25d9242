"""The timing of a cluster: the relay is there before its collector, or before the name resolves.

The relay runs in a mount namespace with its own /etc/hosts and /etc/resolv.conf, and the name
server that the latter names is the test's, so names change as they do in a cluster: by DNS for a
service, by the hosts file for a host alias.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal, Self

import pytest

from relay.otlp import TRACES
from relay.receivers import Listen
from relay.sink import Sink
from tests.e2e.harness import RelayProcess, numbered_request, numbers, send
from tests.network import NameServer

NAME = "collector.test"
SERVER = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
"""Where the name server listens, on the port that resolv.conf cannot change; another one in every
process, so that two runs on one machine are not in each other's way."""

Protocol = Literal["grpc", "http/protobuf"]
protocols = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
by = pytest.mark.parametrize("source", ["hosts", "dns"])


def _why_not() -> str:
    """Why these tests cannot run here; empty when they can."""
    if os.name != "posix" or not Path("/proc/self/ns/mnt").exists():
        return "needs mount namespaces, so Linux"
    if os.geteuid() != 0:
        return "needs root, for port 53 and a mount namespace"
    if shutil.which("unshare") is None:
        return "needs unshare (util-linux)"
    tried = subprocess.run(
        ["unshare", "-m", "mount", "--bind", "/etc/hosts", "/etc/hosts"],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        return f"may not mount in a namespace: {tried.stderr.strip()}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((SERVER, 53))
        except OSError as error:
            return f"may not listen on {SERVER}:53: {error}"
    return ""


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "runs")


class Names(NameServer):
    """A name server on port 53, and a hosts file; both are asked by the relay alone."""

    def __init__(self, folder: Path, source: str) -> None:
        super().__init__({})
        self.hosts = folder / "hosts"
        self.resolv = folder / "resolv.conf"
        self._source = source
        self.hosts.write_text("127.0.0.1 localhost\n")
        # Short, so that a silent server costs the test a second and not half a minute.
        self.resolv.write_text(f"nameserver {SERVER}\noptions timeout:1 attempts:1\n")

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=(SERVER, 53)
        )
        return self

    def point(self, host: str | None) -> None:
        """Let the name be this address, or nothing."""
        if self._source == "dns":
            self.names = {NAME: [host]} if host else {}
            return
        line = f"{host} {NAME}\n" if host else ""
        # In place: what is mounted is this file, not its name.
        self.hosts.write_text(f"127.0.0.1 localhost\n{line}")


class InNamespace(RelayProcess):
    """A relay that sees its own hosts file and resolver configuration."""

    def __init__(self, names: Names, collector: str, protocol: Protocol) -> None:
        settings = {
            "RELAY_EXPORTER_PROTOCOL": protocol,
            "RELAY_CONNECT_TIMEOUT": "2000",
            "RELAY_EXPORTER_TIMEOUT": "2000",
        }
        super().__init__(collector, settings)
        self._names = names

    async def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None = None
    ) -> None:
        script = (
            'mount --bind "$1" /etc/hosts && mount --bind "$2" /etc/resolv.conf'
            ' && shift 2 && exec "$@"'
        )
        files = [str(self._names.hosts), str(self._names.resolv)]
        await super().spawn(["unshare", "-m", "sh", "-c", script, "sh", *files, *argv], env)


class Cluster:
    """Names, a collector that can be at two addresses, and a relay."""

    def __init__(self, names: Names, first: Sink, second: Sink, relay: RelayProcess) -> None:
        self.names, self.first, self.second, self.relay = names, first, second, relay
        self._sent = 0

    async def send(self, count: int = 100) -> None:
        async with self.relay.channel() as channel:
            for _ in range(count):
                await send(channel, TRACES, numbered_request(self._sent, self._sent + 1))
                self._sent += 1

    async def nothing_lost(self) -> None:
        scrape = await self.relay.drained()
        assert scrape.value("dropped_items_total") == 0
        assert scrape.value("collector_up", signal="traces") == 1
        found = numbers(*self.first.accepted("traces"), *self.second.accepted("traces"))
        assert set(found) == set(range(self._sent))


@pytest.fixture
async def cluster(tmp_path: Path, protocol: Protocol, source: str) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        names = await stack.enter_async_context(Names(tmp_path, source))
        first = await stack.enter_async_context(_sink("127.0.0.2", 0, protocol))
        at = first.grpc_endpoint if protocol == "grpc" else first.http_endpoint
        port = int(at.rpartition(":")[2])
        second = await stack.enter_async_context(_sink("127.0.0.3", port, protocol))
        relay = InNamespace(names, f"http://{NAME}:{port}", protocol)
        await stack.enter_async_context(relay)
        yield Cluster(names, first, second, relay)


def _sink(host: str, port: int, protocol: Protocol) -> Sink:
    listen = Listen(host=host, port=port)
    off = Listen()
    if protocol == "grpc":
        return Sink(grpc=listen, http=off, started=False)
    return Sink(grpc=off, http=listen, started=False)


@protocols
@by
async def test_the_relay_is_there_before_the_name_and_the_name_before_the_collector(
    cluster: Cluster,
) -> None:
    await cluster.send()
    await cluster.relay.until(
        lambda scrape: scrape.value("export_attempts_total", code="CONNECT_FAILED") >= 1,
        "the name is not found",
    )
    cluster.names.point("127.0.0.2")
    await cluster.send()
    await cluster.relay.until(
        lambda scrape: scrape.value("export_attempts_total", code="CONNECT_FAILED") >= 3,
        "the collector is not there",
    )
    await cluster.first.start()
    await cluster.nothing_lost()


@protocols
@by
async def test_the_address_behind_the_name_changes(cluster: Cluster) -> None:
    cluster.names.point("127.0.0.2")
    await cluster.first.start()
    await cluster.send()
    await cluster.first.wait_for(lambda: cluster.first.accepted_items("traces") == 100)
    await cluster.first.stop()
    await cluster.send()
    cluster.names.point("127.0.0.3")
    await cluster.second.start()
    await cluster.nothing_lost()
    assert cluster.second.accepted_items("traces") > 0


@protocols
@pytest.mark.parametrize("source", ["dns"])
async def test_names_are_not_answered_for_a_while(cluster: Cluster) -> None:
    cluster.names.point("127.0.0.2")
    cluster.names.silent = True
    await cluster.first.start()
    await cluster.send()
    await cluster.relay.until(
        lambda scrape: scrape.value("export_attempts_total") >= 1, "an attempt failed"
    )
    cluster.names.silent = False
    await cluster.first.wait_for(lambda: cluster.first.accepted_items("traces") == 100)
    # A connection that stands needs no name.
    cluster.names.silent = True
    await cluster.send()
    await cluster.nothing_lost()
    # Lost while nobody answers: found again when somebody does.
    await cluster.first.stop()
    await cluster.send()
    await cluster.relay.until(
        lambda scrape: scrape.value("collector_up", signal="traces") == 0, "the outage is seen"
    )
    await cluster.first.start()
    cluster.names.silent = False
    await cluster.nothing_lost()
