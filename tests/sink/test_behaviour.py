"""Decisions and parsing of the sink, as values."""

from __future__ import annotations

import random

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from relay.otlp import TRACES
from relay.sink.behaviour import (
    ALWAYS_OK,
    GRPC_CODES,
    Behaviour,
    decide,
    grpc_code_of_http,
    http_status_of,
    parse_delay,
    parse_fail,
    parse_outage,
    partial_success,
)

RETRYABLE = ["CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE"]


def test_the_codes_are_grpcs() -> None:
    assert {code.name: code.value[0] for code in grpc.StatusCode} == dict(GRPC_CODES)


@pytest.mark.parametrize("code", GRPC_CODES)
def test_what_is_retryable_over_grpc_is_retryable_over_http(code: str) -> None:
    retryable = code in {*RETRYABLE, "DATA_LOSS", "RESOURCE_EXHAUSTED"}
    assert (http_status_of(code) in {429, 502, 503, 504}) == retryable


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (200, "OK"),
        (400, "INVALID_ARGUMENT"),
        (404, "UNIMPLEMENTED"),
        (413, "RESOURCE_EXHAUSTED"),
        (418, "UNKNOWN"),
        (429, "RESOURCE_EXHAUSTED"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_grpc_code_of_http(status: int, code: str) -> None:
    assert grpc_code_of_http(status) == code


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNAVAILABLE", Behaviour(code="UNAVAILABLE")),
        ("unavailable:0.25", Behaviour(code="UNAVAILABLE", probability=0.25)),
        ("14", Behaviour(code="UNAVAILABLE")),
        ("3:1", Behaviour(code="INVALID_ARGUMENT")),
        ("503", Behaviour(code="UNAVAILABLE", http_status=503)),
        ("413:0.5", Behaviour(code="RESOURCE_EXHAUSTED", http_status=413, probability=0.5)),
        ("0", Behaviour()),
    ],
)
def test_parse_fail(text: str, expected: Behaviour) -> None:
    assert parse_fail(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no status"),
        ("AWAY", "UNAVAILABLE"),
        ("17", "0 to 16"),
        ("99", "no status"),
        ("600", "no HTTP status"),
        ("100", "no HTTP status"),
        ("UNAVAILABLE:", "the probability"),
        ("UNAVAILABLE:1.5", "0 to 1"),
        ("UNAVAILABLE:-1", "0 or more"),
        ("UNAVAILABLE:nan", "a number"),
    ],
)
def test_parse_fail_says_what_is_accepted(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_fail(text)


def test_parse_delay() -> None:
    assert parse_delay("1.5") == (1.5, False)
    assert parse_delay("hang") == (0.0, True)
    for text in ("", "-1", "inf", "soon"):
        with pytest.raises(ValueError, match="in seconds, or 'hang'"):
            parse_delay(text)


def test_parse_outage() -> None:
    assert parse_outage("5:2.5") == (5.0, 2.5)
    for text, words in (("5", "START:DURATION"), ("a:1", "START is"), ("1:", "DURATION is")):
        with pytest.raises(ValueError, match=words):
            parse_outage(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"code": "AWAY"}, "AWAY"),
        ({"probability": 2.0}, "probability"),
        ({"delay": -1.0}, "negative"),
        ({"reject": -1}, "negative"),
    ],
)
def test_a_behaviour_that_makes_no_sense_is_refused(
    arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        Behaviour(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_decide_follows_the_dice_and_leaves_them_alone_when_certain() -> None:
    dice = random.Random(3)
    half = Behaviour(code="ABORTED", probability=0.5)
    outcomes = [decide(half, 1, dice) for _ in range(1000)]
    assert set(outcomes) == {half, ALWAYS_OK}
    assert 400 < outcomes.count(half) < 600
    before = dice.getstate()
    assert decide(Behaviour(code="ABORTED"), 1, dice).code == "ABORTED"
    assert decide(ALWAYS_OK, 1, dice) is ALWAYS_OK
    assert dice.getstate() == before
    never = Behaviour(code="ABORTED", probability=0.0)
    assert {decide(never, 1, dice) for _ in range(100)} == {ALWAYS_OK}


def test_decide_rejects_no_more_than_there_is() -> None:
    assert decide(Behaviour(reject=5), 3, random.Random()).reject == 3
    assert decide(Behaviour(reject=5), 8, random.Random()).reject == 5


@pytest.mark.parametrize("rejected", [0, 1, 127, 128, 512, 1 << 40])
@pytest.mark.parametrize("message", ["", "too blue", "ü" * 100])
def test_partial_success_is_what_the_message_classes_read(rejected: int, message: str) -> None:
    response = ExportTraceServiceResponse.FromString(partial_success(TRACES, rejected, message))
    partial = response.partial_success
    assert (partial.rejected_spans, partial.error_message) == (rejected, message)
    assert response.HasField("partial_success") == bool(rejected or message)
