"""The benchmark tells the truth: what was lost is void, pairs are pairs, every span is counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import bodies, contestants, paced, process, report
from relay import wire
from relay.otlp import TRACES


def record(contestant: str, number: int, cost: float, void: str | None = None) -> report.Record:
    return {
        "section": "cost", "contestant": contestant, "round": number, "void": void,
        "transport": "grpc", "tls": False, "spans": 100, "us_per_span": cost,
    }  # fmt: skip


def results(*records: report.Record) -> report.Results:
    return {
        "machine": {"CPU": "one"}, "versions": {"relay": "1"}, "started": "now",
        "quick": True, "load_before": 0.0, "command": "bench", "records": records,
    }  # fmt: skip


def test_ratios_are_of_pairs_and_void_runs_count_nowhere() -> None:
    # The machine was slow in round 1 and a run of round 2 is void: of medians apart, neither
    # would show.
    table = report.Table(
        results(
            record("relay", 0, 1.0), record("rotel", 0, 10.0),
            record("relay", 1, 5.0), record("rotel", 1, 50.0),
            record("relay", 2, 9.0, "spans are missing"), record("rotel", 2, 10.0),
        )
    )  # fmt: skip
    case = {"transport": "grpc", "tls": False, "spans": 100}
    assert table.ratio(report.PER_SPAN, "cost", "relay", "rotel", **case) == pytest.approx(0.1)
    assert table.median(report.PER_SPAN, "cost", contestant="relay", **case) == pytest.approx(3.0)
    assert table.cell(report.PER_SPAN, "cost", contestant="relay", **case) == "3.00 (1 void)"


def test_the_report_judges_and_lists_what_is_void() -> None:
    text = report.markdown(
        results(
            record("relay", 0, 1.0), record("rotel", 0, 5.0), record("otelcol", 0, 2.0),
            record("relay", 1, 1.0, "3 spans were sent, 2 arrived"),
        )
    )  # fmt: skip
    rows = [line for line in text.splitlines() if "CPU per span, 100 a request, grpc" in line]
    assert ["met, not the aim" in rows[0], "**missed**" in rows[1]] == [True, True]
    assert "round 2, transport grpc, tls False, spans 100: 3 spans were sent, 2 arrived" in text


def test_memory_with_a_full_ring_is_judged_by_how_it_was_filled() -> None:
    full: report.Record = {
        "section": "full_ring", "contestant": "relay-defaults", "round": 0, "void": None,
        "idle_mib": 50.0, "rss_mib": 55.0, "fill": "paced",
    }  # fmt: skip
    flood = {**full, "fill": "flood", "rss_mib": 61.0}
    lines = report.markdown(results(full, flood)).splitlines()
    found = {
        line.split("|")[1].strip(): line for line in lines if line.startswith("| MiB resident")
    }
    assert "50.00 | met" in found["MiB resident idle, relay-defaults"]
    assert "55.00 | met" in found["MiB resident, full ring, paced, relay-defaults"]
    assert "61.00 | **missed**" in found["MiB resident, full ring, flood, relay-defaults"]


def test_a_case_without_a_valid_run_is_void_not_missing() -> None:
    table = report.Table(results(record("relay", 0, 1.0, "lost")))
    assert table.cell(report.PER_SPAN, "cost", contestant="relay", spans=100) == "void"


@pytest.mark.parametrize("spans", [1, 10, 512])
def test_requests_hold_what_they_say(spans: int) -> None:
    assert wire.count(bodies.trace_request(spans), TRACES) == (spans, spans)


def test_attributes_are_of_the_size_asked_for() -> None:
    small, large = (len(bodies.trace_request(100, size)) for size in (64, 1064))
    assert 1000 <= (large - small) / 100 <= 1010


@pytest.fixture
def sink() -> Iterator[contestants.SinkProcess]:
    made = contestants.SinkProcess()
    yield made
    made.stop()


@pytest.mark.parametrize(("spans", "requests"), [(1, 300), (512, 12)])
def test_the_client_sends_everything_and_the_sink_counts_it(
    sink: contestants.SinkProcess, spans: int, requests: int
) -> None:
    # 512 spans are more than the flow control windows and frames of HTTP/2 take at once.
    task = paced.Task("127.0.0.1", sink.port, 1000, requests, spans, pid=sink.pid, patience=20)
    answer = paced.run(task)
    assert (answer["answered"], answer["failed"]) == (requests, 0), answer
    assert sink.spans() == requests * spans
    assert 0 < answer["cpu_seconds"] <= process.cpu_seconds(sink.pid)


def test_answer_times_count_from_when_a_request_was_due(sink: contestants.SinkProcess) -> None:
    # 20 requests due at once, one stream's worth of answers each 50 ms: a client that waited
    # with its clock stopped would say 50 ms for each.
    sink.stop()
    sink.delay = 0.05
    sink.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paced.Http2, "idle", lambda self: not self._streams)
        task = paced.Task("127.0.0.1", sink.port, 1e6, 20, 1, connections=1, patience=20)
        answer = paced.run(task)
    assert answer["answered"] == 20
    assert answer["answer_ms"]["max"] >= 20 * 50
    assert answer["answer_ms"]["p50"] >= 9 * 50


def test_an_error_is_no_answer(sink: contestants.SinkProcess) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "GRPC_PATH", "/no.such.Service/Export")
        task = paced.Task("127.0.0.1", sink.port, 1000, 5, 1, patience=20)
        answer = paced.run(task)
    assert (answer["answered"], answer["failed"]) == (0, 5)
    assert sink.spans() == 0


def test_a_sink_that_is_gone_is_no_sink(sink: contestants.SinkProcess) -> None:
    sink.stop()
    with pytest.raises(ConnectionRefusedError):
        paced.run(paced.Task("127.0.0.1", sink.port, 1000, 1, 1))
