"""``otlp-relay demo``: its arithmetic, its screen, and the whole of it as a process."""

from __future__ import annotations

import asyncio
import io
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from relay.commands import UsageError
from relay.commands.demo import (
    COLUMNS,
    HEADER,
    App,
    Books,
    Ledger,
    Options,
    Row,
    Screen,
    _close,
    numbers_of,
    parse,
    quantile,
    ranges,
    read_books,
    request_of,
    run,
)
from tests.e2e.harness import clean_environment

HEALTHY, OUTAGE, RECOVERY = Options().phases


def test_flags() -> None:
    assert parse([]) == Options()
    assert parse(["--once", "--fast"]) == Options(once=True, fast=True)
    with pytest.raises(UsageError, match="--twice"):
        parse(["--twice"])


def test_a_round_is_healthy_then_an_outage_that_overflows_the_ring_then_recovery() -> None:
    for options in (Options(), Options(fast=True)):
        assert [(phase.name, phase.up) for phase in options.phases] == [
            ("healthy", True),
            ("outage", False),
            ("recovery", True),
        ]
        assert options.phases[1].seconds * 2000 > 2048
    assert 20 <= sum(phase.seconds for phase in Options().phases) <= 25


PAGE = """\
# HELP otlp_relay_received_items_total Items.
# TYPE otlp_relay_received_items_total counter
otlp_relay_received_items_total{signal="traces",transport="grpc"} 60.0
otlp_relay_received_items_total{signal="traces",transport="http"} 40.0
otlp_relay_received_items_total{signal="logs",transport="grpc"} 5.0
# TYPE otlp_relay_received_bytes_total counter
otlp_relay_received_bytes_total{signal="traces",transport="grpc"} 6000.0
# TYPE otlp_relay_filtered_items_total counter
otlp_relay_filtered_items_total{signal="traces",reason="subtree"} 1.0
# TYPE otlp_relay_dropped_items_total counter
otlp_relay_dropped_items_total{signal="traces",reason="queue_full"} 7.0
otlp_relay_dropped_items_total{signal="traces",reason="rejected"} 2.0
otlp_relay_dropped_items_total{signal="traces",reason="shutdown"} 0.0
# TYPE otlp_relay_exported_items_total counter
otlp_relay_exported_items_total{signal="traces"} 50.0
# TYPE otlp_relay_export_batch_items histogram
otlp_relay_export_batch_items_bucket{signal="traces",le="+Inf"} 3.0
otlp_relay_export_batch_items_sum{signal="traces"} 50.0
otlp_relay_export_batch_items_count{signal="traces"} 3.0
# TYPE otlp_relay_queue_items gauge
otlp_relay_queue_items{signal="traces"} 30.0
# TYPE otlp_relay_queue_capacity_items gauge
otlp_relay_queue_capacity_items{signal="traces"} 2048.0
# TYPE otlp_relay_in_flight_items gauge
otlp_relay_in_flight_items{signal="traces"} 10.0
"""
BOOKS = Books(
    received=100,
    filtered=1,
    exported=50,
    queued=30,
    in_flight=10,
    dropped={"queue_full": 7, "rejected": 2},
)


def test_books_are_read_from_the_metrics() -> None:
    assert read_books(PAGE) == BOOKS
    assert BOOKS.uncounted == 0
    up = '# TYPE otlp_relay_collector_up gauge\notlp_relay_collector_up{signal="traces"} '
    assert read_books(f"{PAGE}{up}1.0\n") == replace(BOOKS, up=True)
    assert read_books(f"{PAGE}{up}0.0\n") == replace(BOOKS, up=False)


@pytest.mark.parametrize(
    "name", ["received_items", "filtered_items", "dropped_items", "exported_items"]
)
def test_a_metric_that_is_gone_is_an_error_and_not_a_zero(name: str) -> None:
    page = PAGE.replace(f"otlp_relay_{name}_total", "otlp_relay_something")
    with pytest.raises(ValueError, match=f"lacks otlp_relay_{name}"):
        read_books(page)


GOOD = Ledger(
    sent=1000,
    acknowledged=1000,
    books=Books(received=1000, exported=800, dropped={"queue_full": 200}),
    arrived=800,
    twice=0,
    missing="100 to 299",
    scrapes=5,
)


def test_an_account_that_adds_up_has_no_faults() -> None:
    assert GOOD.faults() == []
    assert GOOD.unaccounted == 0
    screen, out = screen_to(io.StringIO())
    assert _close(GOOD, App(), screen) == 0
    assert "arrived or is counted as dropped" in out.getvalue()


def test_what_arrived_although_it_is_counted_as_dropped_is_no_loss() -> None:
    # Its answer was cut off, it went back to the ring, and newer spans displaced it there.
    assert replace(GOOD, arrived=812, twice=3).faults() == []


@pytest.mark.parametrize(
    ("ledger", "words"),
    [
        (replace(GOOD, arrived=799), "1 spans were lost and not counted"),
        (replace(GOOD, arrived=799), "exported 800 spans, 799 arrived"),
        (replace(GOOD, sent=1050), "50 spans were sent but not acknowledged"),
        (replace(GOOD, books=replace(GOOD.books, received=999)), "the relay received 999"),
        (replace(GOOD, books=replace(GOOD.books, dropped={})), "200 spans were lost"),
        (replace(GOOD, wrong_scrapes=1), "did not add up in 1 scrapes"),
        (replace(GOOD, exit_code=1), "exit code 1"),
        (replace(GOOD, exit_code=-9), "exit code -9"),
    ],
)
def test_an_account_that_does_not_add_up_fails_the_demo(ledger: Ledger, words: str) -> None:
    assert any(words in fault for fault in ledger.faults())
    screen, out = screen_to(io.StringIO())
    assert _close(ledger, App(failures={"UNAVAILABLE": 50}), screen) == 1
    assert f"WRONG: {ledger.faults()[0]}" in out.getvalue()
    assert "answered UNAVAILABLE: 50" in out.getvalue()


def test_numbers_survive_the_wire() -> None:
    assert numbers_of(request_of([0, 7, 100_000])) == [0, 7, 100_000]
    assert numbers_of(request_of([1]) + request_of([0])) == [1, 0]


def test_ranges_and_quantiles() -> None:
    assert ranges([]) == "none"
    assert ranges([1, 2, 3, 7, 1000]) == "1 to 3, 7, 1,000"
    assert ranges(range(0, 20, 2)) == "0, 2, 4, 6, and 6 more ranges"
    values = [float(value) for value in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99)) == (50.0, 99.0)
    assert (quantile(values, 0.0), quantile(values, 1.0)) == (1.0, 100.0)
    assert (quantile([], 0.5), quantile([3.0], 0.99)) == (0.0, 3.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen_to(
    out: io.StringIO, environ: Mapping[str, str] | None = None
) -> tuple[Screen, io.StringIO]:
    return Screen(out, environ or {}), out


def row_at(seconds: float) -> Row:
    app = App(sent=2050, acknowledged=2000, answer_times=[0.001, 0.002])
    books = replace(BOOKS, exported=1500, dropped={"queue_full": 900}, up=False)
    return Row(OUTAGE, seconds, app, books, (1000, 990), BOOKS)


def test_a_row_shows_what_changed_since_the_phase_began() -> None:
    cells = dict(zip([name for name, _ in COLUMNS], row_at(1.25).cells(), strict=True))
    assert cells == {
        "phase": "outage",
        "time": "1.2 s",
        "sent": "1,050",
        "acked": "1,010",
        "exported": "1,450",
        "queued": "30",
        "flight": "10",
        "dropped": "891",
        "coll.": "down",
        "p50/p99 ms": "1.0/2.0",
    }
    assert len(HEADER) <= 79


@pytest.mark.parametrize(
    ("out", "environ"),
    [(io.StringIO(), {"TERM": "xterm"}), (Terminal(), {"TERM": "dumb"}), (Terminal(), {})],
)
def test_without_a_terminal_there_are_plain_lines_now_and_then(
    out: io.StringIO, environ: Mapping[str, str]
) -> None:
    screen, _ = screen_to(out, environ)
    screen.begin(OUTAGE)
    for seconds in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        screen.show(row_at(seconds))
    screen.aside("  relay: something")
    screen.show(row_at(1.75), last=True)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    # The first, one a second later, and the last.
    assert re.findall(r"^outage +([\d.]+) s", text, re.MULTILINE) == ["0.2", "1.2", "1.8"]
    assert max(map(len, text.splitlines())) <= 79


def test_on_a_terminal_the_row_is_redrawn_and_coloured() -> None:
    screen, out = screen_to(Terminal(), {"TERM": "xterm"})
    screen.begin(OUTAGE)
    before = out.getvalue().count("\n")
    screen.show(row_at(0.25))
    screen.show(row_at(0.5))
    assert out.getvalue().count("\n") == before
    assert out.getvalue().count("\r\x1b[2K\x1b[31moutage") == 2
    screen.show(row_at(0.75), last=True)
    assert out.getvalue().endswith("\x1b[0m\n")
    plain, out = screen_to(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    plain.begin(OUTAGE)
    plain.show(row_at(1.0))
    assert "\x1b[31m" not in out.getvalue()
    assert "\r\x1b[2Koutage" in out.getvalue()


def test_a_relay_that_does_not_start_fails_the_demo_with_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    # The demo's relay inherits the environment: an interpreter without its library cannot start.
    environ = clean_environment() | {"PYTHONHOME": str(tmp_path)}
    assert run(["--once"], environ) == 1
    error = capsys.readouterr().err
    assert "the relay did not start" in error
    assert "Python" in error


@asynccontextmanager
async def demo(argv: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "demo", *argv),
        env=clean_environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(50):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_once_walks_through_an_outage_and_accounts_for_every_span() -> None:
    async with demo(["--once", "--fast"]) as process:
        out, _ = await process.communicate()
    text = out.decode()
    print(text)
    assert process.returncode == 0
    figures = {
        name: int(count.replace(",", ""))
        for name, count in re.findall(r"^ +([a-z ]+?) {2,}([\d,]+)\b", text, re.MULTILINE)
    }
    assert figures["sent by the app"] == figures["acknowledged by the relay"]
    assert figures["exported"] + figures["dropped"] == figures["sent by the app"]
    assert figures["dropped"] > 0
    assert figures["lost and not counted"] == 0
    assert figures["exported"] <= figures["arrived at the collector"] < figures["sent by the app"]
    headings = re.findall(r"^([A-Z]+): ", text, re.MULTILINE)
    assert headings == ["HEALTHY", "OUTAGE", "RECOVERY"]
    assert re.search(r"^outage .* 2,0\d\d .*  down", text, re.MULTILINE)
    assert re.search(r"^recovery .*  up", text, re.MULTILINE)
    assert "arrived or is counted as dropped" in text


async def test_an_interrupt_in_the_outage_ends_with_the_account() -> None:
    async with demo(["--fast"]) as process:
        assert process.stdout is not None
        seen = ""
        while not seen.startswith("outage"):
            seen = (await process.stdout.readline()).decode()
            assert seen, "the demo ended before the outage"
        process.send_signal(signal.SIGINT)
        rest = (await process.stdout.read()).decode()
        print(rest)
        assert await process.wait() == 0
    assert "RECOVERY" not in rest
    assert re.search(r"relay: stopped: .*received (\d+) = exported ", rest)
    assert "arrived or is counted as dropped" in rest
