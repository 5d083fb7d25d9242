"""Short fault campaigns with fixed seeds; `make chaos` is the long one with fresh seeds.

A failure names its seed: ``python -m tests.chaos --seed N --ending E [--process]`` replays it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import pytest

from tests.chaos.plan import draw
from tests.chaos.world import Ending, Report, faster, run


async def several(seeds: Iterable[int], ending: Ending, *, remote: bool) -> list[Report]:
    """Run plans at the same time, as far as that is good for two cores."""
    turns = asyncio.Semaphore(6)

    async def one(seed: int) -> Report:
        async with turns:
            return await run(draw(seed), ending=ending, remote=remote)

    return await asyncio.gather(*(one(seed) for seed in seeds))


def none_broken(reports: list[Report], ending: Ending, flag: str = "") -> None:
    for report in reports:
        again = f"python -m tests.chaos --seed {report.plan.seed} --ending {ending}{flag}"
        assert not report.wrong, f"{again}\n{report.plan}\n" + "\n".join(report.wrong[:8])
    # A campaign in which nothing happens would prove nothing.
    assert sum(report.faults for report in reports) >= len(reports)
    assert sum(report.acknowledged for report in reports) > 100


@pytest.mark.parametrize("ending", ["drain", "SIGTERM"])
async def test_nothing_is_lost_uncounted_whatever_the_network_and_the_collector_do(
    ending: Ending, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with faster():
        reports = await several(range(24), ending, remote=False)
    none_broken(reports, ending)
    assert sum(sum(report.dropped.values()) for report in reports) > 0
    assert sum(report.found for report in reports) > 1000


@pytest.mark.parametrize("ending", ["SIGTERM", "SIGKILL"])
async def test_a_process_that_is_ended_loses_what_is_in_memory_at_most(ending: Ending) -> None:
    reports = await several((100, 101), ending, remote=True)
    none_broken(reports, ending, " --process")


def test_a_plan_depends_on_its_seed_only() -> None:
    assert draw(7) == draw(7)
    assert str(draw(7)) != str(draw(8))
