"""The harness itself: what it asserts can fail, and its third-party parts work without a relay."""

from __future__ import annotations

import asyncio
import sys
from typing import Literal

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay.otlp import LOGS, METRICS, TRACES
from relay.sink import Sink
from tests.e2e.harness import (
    Child,
    RotelProcess,
    Scrape,
    clean_environment,
    items_of,
    numbered_request,
    numbers,
    ranges,
    sdk,
    until,
    within,
)

METRICS_PAGE = """\
# TYPE otlp_relay_received_items_total counter
otlp_relay_received_items_total{signal="traces",transport="grpc"} 60
otlp_relay_received_items_total{signal="traces",transport="http"} 40
# TYPE otlp_relay_filtered_items_total counter
# TYPE otlp_relay_dropped_items_total counter
otlp_relay_dropped_items_total{signal="traces",reason="queue_full"} 7
otlp_relay_dropped_items_total{signal="traces",reason="rejected"} 3
otlp_relay_dropped_items_total{signal="traces",reason="shutdown"} 0
# TYPE otlp_relay_exported_items_total counter
otlp_relay_exported_items_total{signal="traces"} 50
# TYPE otlp_relay_queue_items gauge
otlp_relay_queue_items{signal="traces"} 30
# TYPE otlp_relay_in_flight_items gauge
otlp_relay_in_flight_items{signal="traces"} 10
"""


def scrape_of(text: str) -> Scrape:
    return Scrape(text_string_to_metric_families(text))


def test_a_scrape_sums_by_labels_and_knows_wrong_names() -> None:
    scrape = scrape_of(METRICS_PAGE)
    assert scrape.value("received_items_total") == 100
    assert scrape.value("received_items_total", transport="http") == 40
    assert scrape.value("filtered_items_total", signal="traces") == 0
    assert scrape.by("reason", "dropped_items_total") == {"queue_full": 7, "rejected": 3}
    assert scrape.has("queue_items", signal="traces")
    assert not scrape.has("queue_items", signal="logs")
    with pytest.raises(KeyError, match="otlp_relay_queued_items"):
        scrape.value("queued_items")


@pytest.mark.parametrize(
    "line",
    [
        'received_items_total{signal="traces",transport="grpc"} 60',
        'dropped_items_total{signal="traces",reason="queue_full"} 7',
        'exported_items_total{signal="traces"} 50',
        'queue_items{signal="traces"} 30',
        'in_flight_items{signal="traces"} 10',
    ],
)
def test_the_identity_fails_when_any_part_is_off_by_one(line: str) -> None:
    scrape_of(METRICS_PAGE).identity()
    head, value = line.rsplit(" ", 1)
    wrong = METRICS_PAGE.replace(line, f"{head} {int(value) + 1}")
    assert wrong != METRICS_PAGE
    with pytest.raises(AssertionError, match="traces: received"):
        scrape_of(wrong).identity()


def test_numbers_come_back_in_order_and_with_repetitions() -> None:
    payloads = [numbered_request(5, 8), numbered_request(6, 7, padding=100)]
    assert numbers(*payloads) == [5, 6, 7, 6]
    assert len(numbered_request(0, 1, padding=1000)) > 1000
    assert ranges([3, 1, 2, 9, 9]) == "1-3, 9"
    assert ranges([]) == "none"


def test_items_are_the_same_however_they_are_grouped_and_differ_by_any_bit() -> None:
    whole = items_of(TRACES, numbered_request(0, 4))
    assert items_of(TRACES, numbered_request(2, 4), numbered_request(0, 2)) == whole
    assert items_of(TRACES, numbered_request(0, 4), numbered_request(0, 1)) != whole
    assert items_of(TRACES, numbered_request(0, 4, service="other")) != whole
    assert items_of(TRACES, numbered_request(0, 4, name="other")) != whole


async def test_waiting_ends_with_words() -> None:
    with pytest.raises(AssertionError, match=r"(?s)not within 0.05 s: pigs fly.*no wings"):
        await until(lambda: False, "pigs fly", lambda: "no wings", seconds=0.05)
    with pytest.raises(AssertionError, match="not within 0 s: never"):
        async with within("never", seconds=0):
            await asyncio.Event().wait()


async def test_a_child_that_ends_early_is_a_failure_with_its_output() -> None:
    child = Child("child")
    await child.spawn([sys.executable, "-c", "print('first'); exit(3)"], clean_environment())
    assert await child.line(lambda line: "first" in line, "a line") == "first"
    with pytest.raises(AssertionError, match=r"(?s)ended before: a second.*exit code 3.*first"):
        await child.line(lambda line: "second" in line, "a second")
    assert await child.exit_code() == 3


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_what_the_sdk_says_it_exports_is_what_a_sink_receives(
    protocol: Literal["grpc", "http"], sink: Sink
) -> None:
    endpoint = sink.grpc_endpoint if protocol == "grpc" else sink.http_endpoint
    async with sdk(endpoint, protocol) as app:
        app.make_spans(0, 600)
        app.make_metrics()
        app.make_logs(0, 10)
        await asyncio.to_thread(app.flush)
        for signal in (TRACES, METRICS, LOGS):
            assert sink.payloads(signal.name) == app.exported[signal.name]
    assert app.results == ["SUCCESS"] * 4


async def test_rotel_passes_on_what_it_receives(sink: Sink, rotel: RotelProcess) -> None:
    async with sdk(rotel.grpc) as app:
        app.make_spans(0, 100)
        await asyncio.to_thread(app.flush)
    await sink.wait_for(lambda: sink.items("traces") == 100)
    assert items_of(TRACES, *sink.payloads("traces")) == items_of(TRACES, *app.exported["traces"])
