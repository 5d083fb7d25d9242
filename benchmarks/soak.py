"""A relay process under steady load with outages: does anything grow?

``python -m benchmarks.soak --minutes 30`` (``make soak MINUTES=30``). The collector goes away for a
while again and again, by each of several ways. At the end of every cycle, when all has drained, the
relay's memory, file descriptors and threads are looked at; the first half is its warming up. It
judges the second: memory may not grow by more than 1 MiB an hour beyond what the fit is uncertain
of, nor the rest at all; nothing may be lost uncounted. Exits 1 where that is broken. Needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import grpc.aio

from relay.otlp import LOGS, TRACES
from relay.sink import Behaviour, Sink
from tests.e2e.harness import RelayProcess, send
from tests.numbered import logs, spans

MIB = 1024 * 1024
CYCLE = 20.0
"""Seconds of one cycle: half of it an outage, and then time to drain."""

OUTAGES: tuple[Behaviour | None, ...] = (
    None,  # the listener goes
    Behaviour(code="UNAVAILABLE"),
    Behaviour(hang=True),
    Behaviour(code="INVALID_ARGUMENT", probability=0.2),
    Behaviour(close=True, probability=0.5),
    Behaviour(code="RESOURCE_EXHAUSTED", retry_after=1),
)


@dataclass(slots=True)
class Look:
    """The relay at the end of a cycle."""

    at: float
    resident: int
    descriptors: int
    threads: int

    @classmethod
    def at_process(cls, pid: int, at: float) -> Look:
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return cls(
            at,
            int(status["VmRSS"].split()[0]) * 1024,
            len(list(Path(f"/proc/{pid}/fd").iterdir())),
            int(status["Threads"]),
        )


def slope(looks: list[Look]) -> tuple[float, float]:
    """Bytes an hour that memory grows, by least squares, and the standard error of that."""
    count = len(looks)
    mean_at = sum(each.at for each in looks) / count
    mean = sum(each.resident for each in looks) / count
    spread = sum((each.at - mean_at) ** 2 for each in looks)
    rise = sum((each.at - mean_at) * (each.resident - mean) for each in looks) / spread
    rest = sum((each.resident - mean - rise * (each.at - mean_at)) ** 2 for each in looks)
    error = (rest / max(count - 2, 1) / spread) ** 0.5
    return rise * 3600, error * 3600


class Soak:
    """One relay, one sink, one application."""

    def __init__(self, rate: int, protocol: str) -> None:
        self.rate = rate
        self.protocol = protocol
        self.acknowledged = 0
        self.looks: list[Look] = []

    async def _traffic(self, relay: RelayProcess) -> None:
        """Spans over gRPC and log records over HTTP, in requests of ten."""
        headers = {"Content-Type": "application/x-protobuf"}
        async with relay.channel() as channel, aiohttp.ClientSession() as client:
            await asyncio.gather(
                self._paced(lambda first: self._spans(channel, first)),
                self._paced(lambda first: self._logs(client, relay.http, headers, first)),
            )

    async def _paced(self, request: Callable[[int], Awaitable[None]]) -> None:
        begun = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(begun + number * 20 / self.rate - time.monotonic(), 0))
            await request(number * 10 + 1)
            self.acknowledged += 10

    async def _spans(self, channel: grpc.aio.Channel, first: int) -> None:
        await send(channel, TRACES, spans(range(first, first + 10), pad=200))

    async def _logs(
        self, client: aiohttp.ClientSession, http: str, headers: dict[str, str], first: int
    ) -> None:
        url = f"http://{http}{LOGS.http_path}"
        payload = logs(range(first, first + 10))
        async with client.post(url, data=payload, headers=headers) as answer:
            assert answer.status == 200

    async def run(self, minutes: float) -> bool:
        settings: dict[str, str | None] = {
            "RELAY_EXPORTER_PROTOCOL": self.protocol,
            "RELAY_EXPORTER_TIMEOUT": "2000",
            "RELAY_CONNECT_TIMEOUT": "2000",
            "RELAY_SCHEDULE_DELAY": "1000",
        }
        async with Sink(record=False, seed=1) as sink:
            http = self.protocol != "grpc"
            endpoint = sink.http_url if http else f"http://{sink.grpc_endpoint}"
            async with RelayProcess(endpoint, settings) as relay:
                traffic = asyncio.create_task(self._traffic(relay))
                begun = time.monotonic()
                for outage in itertools.cycle(OUTAGES):
                    if time.monotonic() - begun >= minutes * 60:
                        break
                    await self._cycle(relay, sink, outage, begun)
                    if traffic.done():
                        traffic.result()
                traffic.cancel()
                await asyncio.gather(traffic, return_exceptions=True)
                scrape = await relay.drained()
                accepted = sum(sink.accepted_items(each) for each in ("traces", "logs"))
                received = int(scrape.value("received_items_total"))
                exported = int(scrape.value("exported_items_total"))
                dropped = scrape.by("reason", "dropped_items_total")
                attempts = scrape.by("code", "export_attempts_total")
                code = await relay.stop()
        print(f"received {received}, exported {exported}, dropped {dropped}")
        print(f"accepted by the collector {accepted}; attempts {attempts}")
        honest = received >= self.acknowledged and accepted >= exported and code == 0
        if not honest:
            print(f"BROKEN: {self.acknowledged} acknowledged, exit code {code}")
        return self._judge() and honest

    async def _cycle(
        self, relay: RelayProcess, sink: Sink, outage: Behaviour | None, begun: float
    ) -> None:
        await asyncio.sleep(CYCLE / 4)
        if outage is None:
            await sink.stop()
        else:
            sink.behave(outage)
        until = time.monotonic() + CYCLE / 2
        while time.monotonic() < until:
            await relay.identity()
            await asyncio.sleep(1)
        sink.behave()
        await sink.start()
        await asyncio.sleep(CYCLE / 4)
        await relay.until(
            lambda scrape: (
                scrape.value("collector_up", signal="traces") == 1
                and scrape.value("queue_items") < 4 * self.rate
            ),
            "the backlog is gone",
        )
        look = Look.at_process(relay.pid, time.monotonic() - begun)
        self.looks.append(look)
        print(
            f"{look.at:7.0f} s  {look.resident / MIB:6.1f} MiB  {look.descriptors} descriptors"
            f"  {look.threads} threads",
            flush=True,
        )

    def _judge(self) -> bool:
        # Caches, arenas and the library's own pools fill for some minutes; a leak goes on.
        settled = self.looks[len(self.looks) // 2 :]
        if len(settled) < len(OUTAGES):
            print(f"too short to judge: {2 * len(OUTAGES)} cycles of {CYCLE:g} s are needed")
            return True
        rise, error = slope(settled)
        half = len(settled) // 2
        early, late = settled[:half], settled[half:]
        descriptors = max(each.descriptors for each in late) - max(
            each.descriptors for each in early
        )
        threads = max(each.threads for each in late) - max(each.threads for each in early)
        print(
            f"memory {rise / MIB:+.2f} MiB an hour (standard error {error / MIB:.2f});"
            f" descriptors {descriptors:+d}, threads {threads:+d} from the first half to the second"
        )
        flat = rise - 3 * error <= MIB and descriptors <= 2 and threads <= 1
        if not flat:
            print("BROKEN: it grows")
        return flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=int, default=400, help="items a second, both signals")
    parser.add_argument("--protocol", choices=("grpc", "http/protobuf"), default="grpc")
    options = parser.parse_args()
    flat = asyncio.run(Soak(options.rate, options.protocol).run(options.minutes))
    return 0 if flat else 1


if __name__ == "__main__":
    raise SystemExit(main())
