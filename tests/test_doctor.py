"""Judgements: facts in, findings out."""

from __future__ import annotations

from typing import Any

import pytest

from relay.doctor import (
    Finding,
    Level,
    differences,
    judge_clock,
    judge_outcomes,
    judge_relay,
    judge_spoken,
    redacted,
    spoken,
)
from relay.otlp import Accepted, Fault, Outcome, Permanent, Retryable

SETTINGS = b"\0\0\x06\4\0\0\0\0\0\0\3\0\0\0\x64"


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (b"", ""),
        (SETTINGS, "http2"),
        (SETTINGS[:8], "other"),
        (b"\0\0\x06\4\0\0\0\0\1", "other"),  # SETTINGS belong to stream 0
        (b"HTTP/1.0 400 Bad Request\r\n", "http1"),
        (b"\x15\x03\x01\0\2\2\x46", "tls"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "other"),
    ],
)
def test_first_bytes_tell_the_protocol(first: bytes, what: str) -> None:
    assert spoken(first) == what


def wrong(
    wanted: str, heard: dict[str, str], *, encrypted: bool = False, answers_tls: bool = False
) -> str:
    finding = judge_spoken("here", wanted, heard, encrypted=encrypted, answers_tls=answers_tls)
    assert finding.level is Level.FAULT
    assert finding.advice
    return f"{finding.message} {finding.advice}"


def test_what_speaks_is_held_against_what_is_wanted() -> None:
    for wanted, heard in (("grpc", "http2"), ("http/protobuf", "http1")):
        finding = judge_spoken("x", wanted, {heard: heard}, encrypted=False, answers_tls=False)
        assert finding.level is Level.OK
    assert "PROTOCOL=http/protobuf" in wrong("grpc", {"http2": "http1", "http1": "http1"})
    assert "4317" in wrong("grpc", {"http2": "closed", "http1": "http1"})
    assert "PROTOCOL=grpc" in wrong("http/protobuf", {"http1": "closed", "http2": "http2"})
    assert "4318" in wrong("http/protobuf", {"http1": "http2", "http2": "http2"})
    assert "https://" in wrong("grpc", {"http2": "tls", "http1": "tls"})
    assert "https://" in wrong("grpc", {"http2": "http1", "http1": "http1"}, answers_tls=True)
    assert "no OTLP receiver" in wrong("grpc", {"http2": "other", "http1": "other"})
    assert "closes it" in wrong("grpc", {"http2": "closed", "http1": "closed"})
    assert "says nothing" in wrong("grpc", {"http2": "silent", "http1": "silent"})


UNIMPLEMENTED = Permanent("UNIMPLEMENTED", Fault.UNIMPLEMENTED, "unknown service")
ALL = ("traces", "metrics", "logs", "profiles")


def outcomes(
    found: dict[str, Outcome], received: tuple[str, ...] = (), headers: tuple[str, ...] = ()
) -> list[Finding]:
    return list(judge_outcomes("there", found, headers, received))


def test_all_signals_taken() -> None:
    (finding,) = outcomes(dict.fromkeys(ALL, Accepted()))
    assert (finding.level, finding.message) == (
        Level.OK, "takes traces, metrics, logs and profiles",
    )  # fmt: skip


def test_unimplemented_is_as_bad_as_what_is_sent() -> None:
    without_profiles: dict[str, Outcome] = dict.fromkeys(ALL, Accepted())
    without_profiles["profiles"] = UNIMPLEMENTED
    assert [each.level for each in outcomes(without_profiles)] == [Level.OK, Level.OK]
    without_logs: dict[str, Outcome] = {**without_profiles, "logs": UNIMPLEMENTED}
    assert [each.level for each in outcomes(without_logs)] == [Level.OK, Level.WARNING]
    _, sent = outcomes(without_logs, received=("logs", "traces"))
    assert sent.level is Level.FAULT
    assert "but logs arrive at the relay" in sent.message
    (nothing,) = outcomes(dict.fromkeys(ALL, UNIMPLEMENTED))
    assert nothing.level is Level.FAULT
    assert "no OTLP receiver" in nothing.message


@pytest.mark.parametrize(
    ("outcome", "level", "words"),
    [
        (Permanent("UNAUTHENTICATED", Fault.OTHER, "no token"), Level.FAULT, "authorization="),
        (Permanent("401", Fault.OTHER), Level.FAULT, "sent along: authorization, x-scope"),
        (Retryable("UNAVAILABLE", "memory"), Level.FAULT, "memory_limiter"),
        (Retryable("503", ""), Level.FAULT, "says later"),
        (Retryable("DEADLINE_EXCEEDED", "", timed_out=True), Level.FAULT, "stuck"),
        (Permanent("308", Fault.OTHER, "moved"), Level.FAULT, "redirects are not followed"),
        (Retryable("CONNECT_FAILED", "refused"), Level.FAULT, "no connection: all: CONNECT_FAILED"),
        (Permanent("INVALID_ARGUMENT", Fault.INVALID, "empty"), Level.WARNING, "empty request"),
        (Permanent("INTERNAL", Fault.OTHER, "oh"), Level.FAULT, "refuses: all: INTERNAL, oh"),
    ],
)
def test_refusals_are_told_apart(outcome: Outcome, level: Level, words: str) -> None:
    (finding,) = outcomes({"all": outcome}, headers=("authorization", "x-scope"))
    assert finding.level is level
    assert words in f"{finding.message} {finding.advice}"


def test_one_code_is_one_finding_however_it_is_worded() -> None:
    worded: dict[str, Outcome] = {
        "traces": Retryable("DEADLINE_EXCEEDED", "", timed_out=True),
        "metrics": Retryable("DEADLINE_EXCEEDED", "Deadline Exceeded", timed_out=True),
        "logs": Retryable("DEADLINE_EXCEEDED", "Stream removed (...)", timed_out=True),
        "profiles": Retryable("UNAVAILABLE", "memory"),
    }
    late, later = outcomes(worded)
    assert late.message == (
        "does not answer a request in time: traces, metrics and logs: DEADLINE_EXCEEDED,"
        " Deadline Exceeded"
    )
    assert later.message == "answers, and says later: profiles: UNAVAILABLE, memory"


def status(**signal: Any) -> dict[str, Any]:
    healthy: dict[str, Any] = {
        "received": 10,
        "exported": 10,
        "filtered": {},
        "dropped": {},
        "refused": {},
        "queue": {"items": 0},
        "collector": {"up": True, "outage_seconds": 0.0},
        "errors": [],
    }
    return {
        "version": "1.2.3",
        "now": 5000.0,
        "started_at": 1000.0,
        "listening": {"grpc": ["127.0.0.1:4317", "[::1]:4317"]},
        "signals": {"traces": {**healthy, **signal}},
    }


def judged(ready: bool = True, **signal: Any) -> list[tuple[Level, str]]:
    found = judge_relay("relay", status(**signal), ready=ready)
    return [(each.level, f"{each.message} {each.advice}") for each in found]


def only(found: list[tuple[Level, str]], level: Level) -> str:
    (words,) = [text for each, text in found if each is level]
    return words


def test_a_healthy_relay() -> None:
    found = judged()
    assert {level for level, _ in found} == {Level.OK}
    assert "1.2.3 is running, for 1 h 6 min: grpc on 127.0.0.1:4317, [::1]:4317" in found[0][1]
    assert "received 10, exported 10" in found[1][1]


def test_what_a_relay_knows_is_said() -> None:
    assert "not ready" in only(judged(ready=False), Level.FAULT)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317" in only(
        judged(received=0, exported=0), Level.WARNING
    )
    assert "port 4317" in only(judged(refused={"invalid": 7}), Level.WARNING)
    outage = judged(
        collector={"up": False, "outage_seconds": 75.0},
        errors=[{"at": 0, "code": "CONNECT_FAILED", "message": "refused"}],
        queue={"items": 12},
    )
    words = only(outage, Level.FAULT)
    assert "for 1 min 15 s; last: CONNECT_FAILED, refused; 12 wait" in words
    assert "RELAY_QUEUE_SIZE" in only(judged(dropped={"queue_full": 5}), Level.WARNING)
    removed = only(judged(filtered={"sampled_out": 8, "disabled": 2}), Level.FAULT)
    assert "all 10 items were removed by settings (disabled 2, sampled_out 8)" in removed
    assert "OTEL_TRACES_SAMPLER_ARG" in removed
    assert not [each for each in judged(filtered={"sampled_out": 9}) if each[0] is Level.FAULT]


def test_differences_of_configuration() -> None:
    running = [
        {"name": "RELAY_QUEUE_SIZE", "signal": "", "value": "100"},
        {"name": "RELAY_LOG_LEVEL", "signal": "", "value": "debug"},
        {"name": "X", "signal": "logs", "value": "1"},
    ]
    mine = [
        ("RELAY_QUEUE_SIZE", "", "2048"), ("RELAY_LOG_LEVEL", "", "info"), ("X", "logs", "1"),
        ("ELSEWHERE", "", "1"),
    ]  # fmt: skip
    assert differences(mine, running) == ["RELAY_QUEUE_SIZE is 100 there, 2048 here"]


def test_clocks() -> None:
    assert judge_clock("x", 1000.0, 1059.0).level is Level.OK
    behind = judge_clock("x", 5000.0, 1000.0)
    assert behind.level is Level.WARNING
    assert "1 h 6 min behind" in behind.message
    assert "2 min 0 s ahead" in judge_clock("x", 1000.0, 1120.0).message


def test_secrets_are_taken_out_also_in_parts() -> None:
    finding = Finding(Level.FAULT, "x", "token s3cret-token in 'Bearer s3cret-token'", "not abc")
    (clean,) = redacted([finding], ["Bearer s3cret-token", "abc", ""])
    assert clean.message == "token <redacted> in '<redacted>'"
    assert clean.advice == "not abc", "three letters are no secret"
