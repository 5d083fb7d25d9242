"""Which events become lines, how many, and what a line looks like."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from relay.delivery import (
    Event,
    LimitLowered,
    OutageBegan,
    OutageContinues,
    OutageEnded,
    Refused,
    Unimplemented,
)
from relay.logs import INTERVAL, Incident, Reporter, event, set_up
from relay.otlp import LOGS, TRACES, SignalSchema


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the lines go; the root logger is as it was afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


class World:
    """A reporter with a clock that stands still, and the lines that it wrote."""

    def __init__(self, stream: io.StringIO, schema: SignalSchema = TRACES) -> None:
        set_up("info", "json", stream)
        self._stream = stream
        self.now = 500.0
        self.reporter = Reporter(schema, clock=lambda: self.now, wall=lambda: 1_760_000_000.0)

    def __call__(self, *events: Event) -> None:
        for each in events:
            self.reporter(each)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]

    @property
    def names(self) -> list[str]:
        return [line["event"] for line in self.lines]


# --- what is said --------------------------------------------------------------------------------


def test_an_outage_is_a_warning_at_its_begin_and_a_line_at_its_end(stream: io.StringIO) -> None:
    world = World(stream)
    world(
        OutageBegan("CONNECT_FAILED", "connection refused"),
        OutageEnded(12.34, 7952),
    )
    began, ended = world.lines
    assert (began["level"], began["event"]) == ("warning", "outage_began")
    assert began["signal"] == "traces"
    assert (began["code"], began["detail"]) == ("CONNECT_FAILED", "connection refused")
    assert "connection refused" in began["message"]
    assert (ended["level"], ended["event"]) == ("info", "outage_ended")
    assert (ended["seconds"], ended["lost"]) == (12.3, 7952)
    assert ended["message"] == "traces: exporting again after 12.3 s; 7952 spans lost meanwhile"


def test_one_item_is_one(stream: io.StringIO) -> None:
    world = World(stream, LOGS)
    world(OutageBegan("X", ""), OutageEnded(1.0, 1))
    assert world.lines[-1]["message"].endswith("; 1 log record lost meanwhile")


def test_in_between_there_is_at_most_one_line_in_30_seconds(stream: io.StringIO) -> None:
    world = World(stream)
    world(OutageBegan("UNAVAILABLE", "no"))
    for second in range(1, 301):
        world.now = 500.0 + second
        world(OutageContinues(float(second), second * 10, "UNAVAILABLE", "no"))
    assert world.names == ["outage_began"] + ["outage_continues"] * 10
    said = [line["seconds"] for line in world.lines[1:]]
    assert said == [INTERVAL * number for number in range(1, 11)]
    assert world.lines[-1]["lost"] == 3000


def test_a_new_outage_is_told_however_soon_it_comes(stream: io.StringIO) -> None:
    world = World(stream)
    for _ in range(2):
        world(OutageBegan("X", ""), OutageContinues(1, 0, "X", ""), OutageEnded(1, 0))
    assert world.names == ["outage_began", "outage_ended"] * 2


def test_a_collector_that_comes_and_goes_does_not_fill_the_log(stream: io.StringIO) -> None:
    world = World(stream)
    for tenth in range(1200):
        world.now = 500.0 + tenth / 10
        world(OutageBegan("UNAVAILABLE", "no"), OutageEnded(0.1, 2))
    # Three in thirty seconds, for two minutes.
    assert world.names == ["outage_began", "outage_ended"] * 12
    told = [line["message"] for line in world.lines if line["event"] == "outage_began"]
    assert told[3].endswith("; 297 more outages since the last line, 594 spans lost")
    assert "more outages" not in told[4]
    # One of them that stays is told.
    world.now = 622.0
    world(OutageBegan("UNAVAILABLE", "no"))
    world.now = 655.0
    world(OutageContinues(33.0, 7, "UNAVAILABLE", "no"), OutageEnded(33.1, 7))
    assert world.names[-2:] == ["outage_continues", "outage_ended"]


def test_refusals_are_summed_for_30_seconds_by_reason(stream: io.StringIO) -> None:
    world = World(stream)
    for second in range(40):
        world.now = 500.0 + second
        world(Refused("rejected", 5, "INVALID_ARGUMENT", "bad span"))
    world(Refused("too_large", 1, "RESOURCE_EXHAUSTED", ""))
    assert [(line["reason"], line["items"]) for line in world.lines] == [
        ("rejected", 5),
        ("rejected", 150),
        ("too_large", 1),
    ]
    assert world.lines[0]["level"] == "warning"
    assert "INVALID_ARGUMENT: bad span" in world.lines[0]["message"]


def test_a_lowered_limit_and_a_missing_signal_say_what_to_do(stream: io.StringIO) -> None:
    world = World(stream)
    world(
        LimitLowered(4_000_000, 2_000_000, "larger than max"),
        Unimplemented(started=True, message="unknown service"),
        Unimplemented(started=False, message=""),
    )
    lowered, missing, back = world.lines
    assert "RELAY_EXPORT_MAX_BYTES" in lowered["message"]
    assert (lowered["size"], lowered["limit"]) == (4_000_000, 2_000_000)
    assert "RELAY_EXPORTER_TRACES_ENDPOINT" in missing["message"]
    assert missing["level"] == "warning"
    assert back["event"] == "implemented"


def test_the_latest_incidents_are_kept_for_the_status(stream: io.StringIO) -> None:
    world = World(stream)
    world(OutageBegan("UNAVAILABLE", "no"))
    assert list(world.reporter.incidents) == [Incident(1_760_000_000.0, "UNAVAILABLE", "no")]
    for number in range(100):
        world(Refused("rejected", number, "INTERNAL", "no"))
    assert len(world.reporter.incidents) == 20
    assert world.reporter.incidents[-1].message == "99 spans: no"


# --- what a line looks like ----------------------------------------------------------------------


def test_text(stream: io.StringIO) -> None:
    set_up("info", "text", stream)
    event(logging.getLogger("relay.x"), logging.WARNING, "outage_began", "grüße", code="X")
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning grüße\n", stream.getvalue()
    )


def test_json_has_name_and_fields(stream: io.StringIO) -> None:
    set_up("info", "json", stream)
    event(logging.getLogger("relay.x"), logging.INFO, "started", "here", grpc="a:1", other={1, 2})
    line = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line.pop("other") == "{1, 2}"
    assert line == {"level": "info", "message": "here", "event": "started", "grpc": "a:1"}


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_a_collector_says_writes_no_lines_of_its_own(stream: io.StringIO, style: str) -> None:
    world = World(stream)
    set_up("info", style, stream)
    world(OutageBegan("X", "a\n2026-01-01T00:00:00.000Z error   forged\r\x1b[31m\u2028"))
    (line,) = stream.getvalue().splitlines()
    assert "forged" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_defect_comes_with_its_traceback(stream: io.StringIO, style: str) -> None:
    set_up("info", style, stream)
    try:
        int("nonsense")
    except ValueError:
        logging.getLogger("relay.x").exception("failed")
    assert "ValueError: invalid literal" in stream.getvalue()
    if style == "json":
        (line,) = stream.getvalue().splitlines()
        assert json.loads(line)["level"] == "error"


def test_levels_hold_for_us_and_libraries_speak_up_only_when_something_is_wrong(
    stream: io.StringIO,
) -> None:
    set_up("debug", "text", stream)
    logging.getLogger("relay.x").debug("ours")
    logging.getLogger("aiohttp.server").info("chatter")
    logging.getLogger("asyncio").warning("slow")
    assert [line.split(maxsplit=2)[2] for line in stream.getvalue().splitlines()] == [
        "ours",
        "slow",
    ]
    set_up("error", "text", stream)
    stream.truncate(0)
    logging.getLogger("relay.x").warning("ours")
    logging.getLogger("asyncio").warning("slow")
    assert stream.getvalue() == ""


def test_setting_up_twice_does_not_write_twice(stream: io.StringIO) -> None:
    for _ in range(2):
        set_up("info", "text", stream)
    logging.getLogger("relay.x").info("once")
    assert stream.getvalue().count("once") == 1
