"""Random faults between a relay and its collector, for as long as wanted.

``python -m tests.chaos --minutes 10``; ``--seed N`` replays one run (with ``--ending`` and
``--process`` as the failure says). Prints the figures; exits 1 if any promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tests.chaos.plan import draw
from tests.chaos.world import Ending, Report, faster, run


class Total:
    """The figures of a campaign."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.attempts: Counter[str] = Counter()
        self.recovered: list[float] = []
        self.failed: list[str] = []

    def add(self, kind: str, report: Report) -> None:
        self.runs[kind] += 1
        for name in ("faults", "requests", "acknowledged", "found", "duplicates", "in_memory"):
            self.sums[name] += getattr(report, name)
        self.dropped.update(report.dropped)
        self.attempts.update(report.attempts)
        self.recovered.append(report.recovered)

    def __str__(self) -> str:
        sums = self.sums
        times = sorted(self.recovered) or [0.0]
        recovered = f"median {times[len(times) // 2]:.2f} s, longest {times[-1]:.2f} s"
        return "\n".join(
            (
                f"runs: {sum(self.runs.values())} {dict(self.runs)}",
                f"faults injected: {sums['faults']}",
                f"requests: {sums['requests']}; items acknowledged: {sums['acknowledged']}",
                f"items found: {sums['found']}, besides {sums['duplicates']} duplicates",
                f"dropped, counted: {dict(sorted(self.dropped.items()))}",
                f"gone with killed processes, from their memory: {sums['in_memory']}",
                f"attempts by code: {dict(self.attempts.most_common())}",
                f"export accepted after the last fault: {recovered}",
                f"runs with a broken promise (lost uncounted among them): {len(self.failed)}",
            )
        )


ENDINGS: Final[tuple[Ending, ...]] = ("drain", "SIGTERM", "SIGKILL")


def kinds() -> Iterator[tuple[str, Ending]]:
    """Which kind of run is next: mostly in this process, some with processes that are ended."""
    while True:
        for number in range(30):
            yield "local", "SIGTERM" if number % 8 == 7 else "drain"
        for ending in ENDINGS:
            yield "process", ending


async def campaign(options: argparse.Namespace) -> Total:
    """Run until the time is up, several at once."""
    total = Total()
    until = time.monotonic() + options.minutes * 60
    first = options.seed if options.seed is not None else random.SystemRandom().getrandbits(40)
    seeds = iter(range(first, first + options.runs))
    if options.ending is None:
        which = kinds()
    else:
        which = iter(lambda: ("process" if options.process else "local", options.ending), None)

    async def worker() -> None:
        for seed in seeds:
            if time.monotonic() > until:
                return
            kind, ending = next(which)
            plan = draw(seed)
            if options.verbose:
                print(plan, flush=True)
            report = await run(plan, ending=ending, remote=kind == "process")
            total.add(f"{kind} {ending}", report)
            if report.wrong:
                flag = " --process" if kind == "process" else ""
                again = f"python -m tests.chaos --seed {seed} --ending {ending}{flag}"
                total.failed.append(again)
                print(f"BROKEN: {again}\n{plan}", *report.wrong[:8], sep="\n  ", flush=True)

    workers = 1 if options.runs == 1 else options.parallel
    await asyncio.gather(*(worker() for _ in range(workers)))
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="of the first run; alone: of the only run")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--parallel", type=int, default=6)
    parser.add_argument("--ending", choices=ENDINGS)
    parser.add_argument("--process", action="store_true", help="a relay in a process of its own")
    parser.add_argument("--real-time", action="store_true", help="do not shorten the relay's waits")
    parser.add_argument("--verbose", action="store_true", help="print every plan, and the logs")
    options = parser.parse_args()
    if options.runs is None:
        options.runs = 1 if options.seed is not None else sys.maxsize
    if options.runs == 1 and options.ending is None:
        options.ending = "drain"
    if not options.verbose:
        os.environ["GRPC_VERBOSITY"] = "NONE"
        logging.disable(logging.WARNING)
    begun = time.monotonic()
    try:
        with faster(1.0 if options.real_time else 10.0):
            total = asyncio.run(campaign(options))
    except Exception:  # noqa: BLE001 - of the harness itself
        traceback.print_exc()
        return 2
    print(total)
    print(f"{time.monotonic() - begun:.0f} s")
    return 1 if total.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
