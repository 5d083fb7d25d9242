"""Under clients that ask too much: memory within its bound, others served, the books balanced.

Short versions; ``python -m benchmarks.overload`` measures longer, with the relay's defaults.
"""

from __future__ import annotations

import sys

import pytest

from tests.e2e.harness import RelayProcess
from tests.e2e.overload import ATTACKS, MIB, bound, watch

SETTINGS = {
    "QUEUE_MAX_BYTES": 2 * MIB,
    "EXPORT_MAX_BYTES": 500_000,
    "MAX_CONCURRENT_EXPORTS": 4,
    "MAX_REQUEST_BYTES": 2 * MIB,
    "MAX_STREAMS": 16,
}

OPEN = {
    "flood": (16, 8),
    "large requests": (8, 4),
    "large spans": (8, 4),
    "slow reader": (50, 0),
    "a thousand connections": (2000, 0),
    "stream resets": (4, 64),
    "slow uploads, HTTP": (200, 0),
    "slow uploads, gRPC": (1, 16),
}
"""The connections and gRPC calls that each attack holds open, the well-behaved client's apart."""

LONGEST = 10.0
"""Seconds that a well-behaved client waits for an answer at most. Measured: below 1; the rest is
for machines that are busy with other things."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("attack", ATTACKS)
async def test_memory_stays_within_its_bound_and_others_are_served(attack: str) -> None:
    settings: dict[str, str | None] = {f"RELAY_{name}": str(n) for name, n in SETTINGS.items()}
    settings["RELAY_SHUTDOWN_TIMEOUT"] = "1000"
    # Nothing listens on port 1: the collector is away, so that the ring is full as well.
    async with RelayProcess("http://127.0.0.1:1", settings) as relay:
        found = await watch(
            relay,
            ATTACKS[attack],
            SETTINGS["MAX_REQUEST_BYTES"],
            SETTINGS["MAX_STREAMS"],
            1.0,
            settle=0.0,
        )
        connections, streams = OPEN[attack]
        most = bound(SETTINGS, found.before, connections + 2, streams + 1)
        assert found.peak <= most, f"{found.peak / MIB:.0f} MiB, at most {most / MIB:.0f} MiB"
        assert found.longest() <= LONGEST
        await relay.identity()
        assert await relay.stop() == 0
