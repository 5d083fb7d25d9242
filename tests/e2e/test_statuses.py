"""What each answer of the collector means for the items, through a real relay over gRPC."""

from __future__ import annotations

import json
from pathlib import Path

from relay.otlp import LOGS, PROFILES, TRACES
from relay.sink import Sink
from relay.sink.behaviour import GRPC_CODES, Behaviour
from relay.sink.report import Received
from tests import numbered
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import RelayProcess, Scrape, numbered_request, numbers, send
from tests.pki import replace

SPANS = 8
RETRYABLE = (
    "CANCELLED",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNAVAILABLE",
    "DATA_LOSS",
)
APART = ("OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED")
"""These have tests of their own."""
FINAL = tuple(code for code in GRPC_CODES if code not in {*RETRYABLE, *APART})


async def settled(relay: RelayProcess, exported: int, dropped: int = 0) -> Scrape:
    """Wait until so many spans went either way, in all."""
    return await relay.until(
        lambda scrape: (
            scrape.value("exported_items_total", signal="traces") == exported
            and scrape.value("dropped_items_total", signal="traces") == dropped
            and not scrape.value("in_flight_items", signal="traces")
        ),
        f"{exported} spans exported and {dropped} dropped",
    )


async def test_retryable_answers_cost_nothing(sink: Sink, relay: RelayProcess) -> None:
    assert len({*RETRYABLE, *FINAL, *APART}) == 17
    first = 0
    async with relay.channel() as channel:
        for code in (*RETRYABLE, "RESOURCE_EXHAUSTED"):
            # With RetryInfo, so that the test need not wait for our own pauses.
            sink.script(Behaviour(code=code, retry_after=0.1))
            request = numbered_request(first, first + SPANS)
            await send(channel, TRACES, request)
            first += SPANS
            scrape = await settled(relay, first)
            assert sink.payloads("traces")[-2:] == [request, request]
            assert scrape.value("export_attempts_total", code=code) == 1
        # And without.
        sink.script(Behaviour(code="UNAVAILABLE"))
        await send(channel, TRACES, numbered_request(first, first + SPANS))
        await settled(relay, first + SPANS)
    assert sink.requests("traces") == 2 * 8
    assert numbers(*sink.accepted("traces")) == list(range(first + SPANS))


async def test_final_answers_cost_what_was_in_them(sink: Sink, relay: RelayProcess) -> None:
    assert len(FINAL) == 7
    async with relay.channel() as channel:
        for number, code in enumerate(FINAL, 1):
            # What asks to be tried again is not what is final.
            sink.script(Behaviour(code=code, retry_after=0.1 if number % 2 else None))
            await send(channel, TRACES, numbered_request(0, SPANS))
            scrape = await settled(relay, exported=0, dropped=number * SPANS)
            assert scrape.value("export_attempts_total", code=code) == 1
        await send(channel, TRACES, numbered_request(0, SPANS))
        scrape = await settled(relay, SPANS, dropped=len(FINAL) * SPANS)
    assert scrape.by("reason", "dropped_items_total") == {"rejected": len(FINAL) * SPANS}
    assert sink.requests("traces") == len(FINAL) + 1
    # The first of them is told, the others within half a minute are not.
    told = [record for record in relay.records if record.get("event") == "refused"]
    assert [(line["reason"], line["items"], line["code"]) for line in told] == [
        ("rejected", SPANS, FINAL[0])
    ]


async def test_invalid_argument_costs_the_span_at_fault(sink: Sink, relay: RelayProcess) -> None:
    def answer(request: Received) -> Behaviour:
        bad = 77 in numbers(request.payload)
        return Behaviour(code="INVALID_ARGUMENT" if bad else "OK", message="bad span")

    sink.behave(answer)
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 512))
        scrape = await settled(relay, exported=511, dropped=1)
    assert scrape.by("reason", "dropped_items_total") == {"rejected": 1}
    assert sorted(numbers(*sink.accepted("traces"))) == sorted(set(range(512)) - {77})
    assert sink.requests("traces") <= 21


async def test_spans_that_do_not_parse_are_found(sink: Sink, relay: RelayProcess) -> None:
    good, bad = (numbered.spans(range(first, first + 4)) for first in (0, 4))
    # A name that is no UTF-8: receivers look at the structure down to the item, not inside it.
    bad = bad.replace(b"span 5", b"\xff" * 6)
    sink.behave(
        lambda request: Behaviour(
            code="INVALID_ARGUMENT" if b"\xff\xff\xff" in request.payload else "OK"
        )
    )
    async with relay.channel() as channel:
        await send(channel, TRACES, good)
        await send(channel, TRACES, bad)
        scrape = await settled(relay, exported=7, dropped=1)
    assert scrape.by("reason", "dropped_items_total") == {"malformed": 1}


async def test_a_collector_that_takes_only_small_messages(start_relay: StartRelay) -> None:
    async with Sink(max_message=20_000) as sink:
        relay = await start_relay(f"http://{sink.grpc_endpoint}")
        async with relay.channel() as channel:
            await send(channel, TRACES, numbered_request(0, 512, padding=200))
            await settled(relay, exported=512)
            await send(channel, TRACES, numbered_request(512, 513, padding=50_000))
            scrape = await settled(relay, exported=512, dropped=1)
        assert scrape.by("reason", "dropped_items_total") == {"too_large": 1}
        assert sorted(numbers(*sink.accepted("traces"))) == list(range(512))
        lowered = [line for line in relay.records if line.get("event") == "limit_lowered"]
        assert lowered
        assert lowered[-1]["limit"] < 20_000
        assert "RELAY_EXPORT_MAX_BYTES" in lowered[0]["message"]


async def test_a_signal_that_the_collector_does_not_take(sink: Sink, relay: RelayProcess) -> None:
    sink.behave(Behaviour(code="UNIMPLEMENTED"), signals=["logs"])
    async with relay.channel() as channel:
        await send(channel, LOGS, numbered.logs(range(5)))
        await relay.until(
            lambda scrape: (
                scrape.by("reason", "dropped_items_total", signal="logs") == {"unimplemented": 5}
            ),
            "it was answered so twice",
        )
        await send(channel, LOGS, numbered.logs(range(3)))
        scrape = await relay.until(
            lambda scrape: scrape.value("dropped_items_total", signal="logs") == 8, "more of them"
        )
        # Other signals pass, and this one is not asked for again so soon.
        await send(channel, TRACES, numbered_request(0, SPANS))
        await send(channel, PROFILES, numbered.profiles(range(3)))
        await settled(relay, SPANS)
    assert scrape.value("export_attempts_total", signal="logs", code="UNIMPLEMENTED") == 2
    assert sink.requests("logs") == 2
    told = [line for line in relay.records if line.get("event") == "unimplemented"]
    assert len(told) == 1
    assert "RELAY_EXPORTER_LOGS_ENDPOINT" in told[0]["message"]


async def test_partial_success(sink: Sink, relay: RelayProcess) -> None:
    sink.script(Behaviour(reject=3, message="quota"))
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, SPANS))
        scrape = await settled(relay, SPANS - 3, dropped=3)
    assert scrape.by("reason", "dropped_items_total") == {"partial_success": 3}
    assert scrape.value("collector_up", signal="traces") == 1
    assert sink.requests("traces") == 1


async def test_a_token_that_expired_and_was_replaced(
    sink: Sink, start_relay: StartRelay, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_text("authorization=Bearer first-secret\n")
    relay = await start_relay(RELAY_EXPORTER_HEADERS_FILE=str(file))
    valid = "first"

    def answer(request: Received) -> Behaviour:
        fine = request.headers["authorization"] == f"Bearer {valid}-secret"
        return Behaviour(code="OK" if fine else "UNAUTHENTICATED")

    sink.behave(answer)
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, SPANS))
        await settled(relay, SPANS)
        valid = "second"
        replace(file, b"authorization=Bearer second-secret\n")
        await send(channel, TRACES, numbered_request(SPANS, 2 * SPANS))
        await settled(relay, 2 * SPANS)
        _, status = await relay.get("/status.json")
        _, metrics = await relay.get("/metrics")
    assert await relay.stop() == 0
    for shown in (status, metrics, *relay.output):
        assert "secret" not in shown


async def test_neither_headers_of_the_app_nor_secrets_of_the_settings_go_astray(
    sink: Sink, start_relay: StartRelay
) -> None:
    relay = await start_relay(
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20s3cret", RELAY_LOG_LEVEL="debug"
    )
    async with relay.channel() as channel:
        metadata = (("authorization", "Bearer of-the-app"), ("x-tenant", "of-the-app"))
        await send(channel, TRACES, numbered_request(0, SPANS), metadata=metadata)
        await settled(relay, SPANS)
    headers = sink.received[0].headers
    assert headers["authorization"] == "Bearer s3cret"
    assert "of-the-app" not in str(headers)
    _, status = await relay.get("/status.json")
    assert json.loads(status)["signals"]["traces"]["exported"] == SPANS
    assert await relay.stop() == 0
    for shown in (status, *relay.output):
        assert "s3cret" not in shown
        assert "of-the-app" not in shown
