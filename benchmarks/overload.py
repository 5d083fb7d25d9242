"""Memory and a well-behaved client's answer times while other clients overload a relay.

``python -m benchmarks.overload --seconds 10``; prints a table as in docs/security.md. The
collector is away all the time, so that the ring is full as well. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import asyncio

from tests.e2e.harness import RelayProcess
from tests.e2e.overload import ATTACKS, MIB, watch


async def measure(seconds: float, only: str, settings: dict[str, str | None]) -> None:
    print("| attack | idle MiB | peak MiB | after MiB | gRPC median, longest ms | HTTP |")
    print("|---|---|---|---|---|---|")
    largest = int(settings.get("RELAY_MAX_REQUEST_BYTES") or 16 * MIB)
    streams = int(settings.get("RELAY_MAX_STREAMS") or 128)
    for name, attack in ATTACKS.items():
        if only not in name:
            continue
        # Nothing listens on port 1: a collector that is away.
        async with RelayProcess("http://127.0.0.1:1", settings) as relay:
            outcome = await watch(relay, attack, largest, streams, seconds)
            await relay.identity()
            times = [
                f"{outcome.median(each) * 1000:.1f}, {max(outcome.answers[each]) * 1000:.0f}"
                for each in ("grpc", "http")
            ]
            sizes = [f"{each / MIB:.0f}" for each in (outcome.before, outcome.peak, outcome.after)]
            print("|", " | ".join([name, *sizes, *times]), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", default="", help="attacks whose name has this")
    parser.add_argument("--set", action="append", default=[], metavar="RELAY_X=value")
    options = parser.parse_args()
    settings: dict[str, str | None] = {}
    for each in options.set:
        name, _, value = each.partition("=")
        settings[name] = value
    asyncio.run(measure(options.seconds, options.only, settings))


if __name__ == "__main__":
    main()
