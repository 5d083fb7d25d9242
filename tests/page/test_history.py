"""Ten minutes of samples, with time passed in."""

from __future__ import annotations

import json
from typing import Any

from relay.page.history import FIELDS, INTERVAL, SPAN, History


def status(now: float, received: int = 0, **more: Any) -> dict[str, Any]:
    signal = {
        "received": received,
        "filtered": {"sampled_out": 1, "subtree": 2},
        "dropped": {"queue_full": 4},
        "exported": received // 2,
        "in_flight": 3,
        "queue": {"items": 10, "bytes": 50, "capacity_items": 100, "capacity_bytes": 1000},
        "collector": {"up": True},
        **more,
    }
    return {"now": now, "signals": {"traces": signal}, "configuration": ["not kept"]}


def times(history: History) -> list[float]:
    samples: Any = history.document()["samples"]
    return [sample["at"] for sample in samples]


def test_a_sample_has_the_fields_in_order() -> None:
    history = History()
    history.add(status(1000.0, received=8))
    document: Any = json.loads(json.dumps(history.document()))
    assert (document["interval"], document["span"]) == (INTERVAL, SPAN)
    (sample,) = document["samples"]
    assert sample["at"] == 1000.0
    assert dict(zip(document["fields"], sample["signals"]["traces"], strict=True)) == {
        "received": 8,
        "filtered": 3,
        "dropped": 4,
        "exported": 4,
        "waiting": 13,
        "fill": 0.1,
        "up": True,
    }
    assert tuple(document["fields"]) == FIELDS


def test_fill_is_that_of_what_is_fuller() -> None:
    history = History()
    queue = {"items": 10, "bytes": 900, "capacity_items": 100, "capacity_bytes": 1000}
    history.add(status(0.0, queue=queue, collector={"up": None}))
    samples: Any = history.document()["samples"]
    assert samples[0]["signals"]["traces"][-2:] == (0.9, None)


def test_holds_ten_minutes_and_no_more_however_long_it_runs() -> None:
    history = History()
    for number in range(5000):
        history.add(status(number * INTERVAL, received=number))
    kept = times(history)
    assert kept[-1] == 4999 * INTERVAL
    assert kept[-1] - kept[0] == SPAN
    assert len(kept) == SPAN / INTERVAL + 1


def test_what_is_older_goes_also_after_a_pause() -> None:
    """A machine that slept, a process that was stopped: few samples, but none too old."""
    history = History()
    for number in range(10):
        history.add(status(number * INTERVAL))
    history.add(status(3600.0))
    assert times(history) == [3600.0]


def test_a_clock_set_back_leaves_no_samples_in_the_future() -> None:
    history = History()
    for at in (100.0, 105.0, 110.0, 115.0):
        history.add(status(at))
    history.add(status(106.0))
    assert times(history) == [100.0, 105.0, 106.0]
    history.add(status(106.0))
    assert times(history) == [100.0, 105.0, 106.0]
