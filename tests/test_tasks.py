from __future__ import annotations

import asyncio

import pytest

from relay.tasks import Tasks


async def test_tasks_are_owned_until_they_end() -> None:
    tasks = Tasks()
    done = []

    async def work() -> None:
        done.append(1)

    await tasks.spawn(work())
    assert done == [1]
    await asyncio.sleep(0)
    assert len(tasks) == 0


async def test_cancel_ends_all_and_waits_for_their_last_words() -> None:
    tasks = Tasks()
    said: list[str] = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            said.append(name)

    for name in ("a", "b"):
        tasks.spawn(work(name))
    await asyncio.sleep(0)
    assert len(tasks) == 2
    await tasks.cancel()
    assert sorted(said) == ["a", "b"]
    assert len(tasks) == 0
    await tasks.cancel()


async def test_a_failure_is_told_to_the_event_loop_and_to_no_owner(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = Tasks()

    async def fail() -> None:
        raise RuntimeError("a defect")

    tasks.spawn(fail())
    while len(tasks):
        await asyncio.sleep(0)
    (record,) = caplog.records
    assert record.getMessage().startswith("a background task failed")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a defect"


async def test_cancelling_what_fails_at_the_end_does_not_raise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = Tasks()

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("a defect")

    tasks.spawn(fail())
    await asyncio.sleep(0)
    await tasks.cancel()
    await asyncio.sleep(0)
    assert len(caplog.records) == 1
