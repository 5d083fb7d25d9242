"""The sink against real clients: raw gRPC calls and HTTP requests over loopback."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from google.rpc import (  # type: ignore[import-untyped]  # has no types
    error_details_pb2,
    status_pb2,
)
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.profiles.v1development.profiles_service_pb2 import (
    ExportProfilesServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from relay.otlp import LOGS, METRICS, SIGNALS, TRACES, SignalSchema
from relay.receivers import Listen
from relay.sink import Behaviour, Received, Sink
from relay.sink.behaviour import GRPC_CODES, http_status_of
from relay.sink.report import HUNG

PROTOBUF = {"Content-Type": "application/x-protobuf"}


def spans(count: int) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(count):
        scope.spans.add(name=f"span {number}", trace_id=b"t" * 16, span_id=b"s" * 8)
    return request.SerializeToString()


def three_items(signal: SignalSchema) -> bytes:
    if signal is TRACES:
        return spans(3)
    if signal is METRICS:
        metrics = ExportMetricsServiceRequest()
        scope = metrics.resource_metrics.add().scope_metrics.add()
        for value in (1, 2):
            scope.metrics.add(name="a").gauge.data_points.add(as_int=value)
        scope.metrics.add(name="b").histogram.data_points.add(count=7)
        return metrics.SerializeToString()
    if signal is LOGS:
        logs = ExportLogsServiceRequest()
        records = logs.resource_logs.add().scope_logs.add().log_records
        for text in ("a", "b", "c"):
            records.add().body.string_value = text
        return logs.SerializeToString()
    profiles = ExportProfilesServiceRequest()
    scope_profiles = profiles.resource_profiles.add().scope_profiles.add()
    for name in (b"a", b"b", b"c"):
        scope_profiles.profiles.add(profile_id=name * 16)
    return profiles.SerializeToString()


async def call(
    channel: grpc.aio.Channel, payload: bytes, signal: SignalSchema = TRACES, wait: bool = False
) -> bytes:
    export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(signal.method)
    return await export(payload, timeout=30, wait_for_ready=wait)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink(seed=1) as sink:
        yield sink


@pytest.fixture
async def channel(sink: Sink) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(sink.grpc_endpoint) as channel:
        yield channel


@pytest.fixture
async def http(sink: Sink) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(sink.http_url) as session:
        yield session


@pytest.mark.parametrize("signal", SIGNALS, ids=lambda signal: signal.name)
async def test_every_signal_is_counted_over_grpc_and_http(
    signal: SignalSchema, sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    payload = three_items(signal)
    assert await call(channel, payload, signal) == b""
    async with http.post(signal.http_path, data=payload, headers=PROTOBUF) as answer:
        assert (answer.status, await answer.read()) == (200, b"")
    counts = sink.counts[signal.name]
    assert (counts.requests, counts.items, counts.accepted_items) == (2, 6, 6)
    assert (counts.bytes, counts.largest_batch) == (2 * len(payload), 3)
    assert dict(counts.answers) == {"OK": 1, "200": 1}
    assert sink.payloads(signal.name) == [payload, payload]
    assert [each.transport for each in sink.received] == ["grpc", "http"]


async def test_gzip_is_read_on_both(
    sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TRACES.method)
    await export(spans(2), compression=grpc.Compression.Gzip)
    headers = PROTOBUF | {"Content-Encoding": "gzip"}
    async with http.post("/v1/traces", data=gzip.compress(spans(2)), headers=headers) as answer:
        assert answer.status == 200
    assert sink.payloads("traces") == [spans(2), spans(2)]


async def test_json_is_counted_and_recorded_as_protobuf(
    sink: Sink, http: aiohttp.ClientSession
) -> None:
    document = {
        "resourceSpans": [
            {
                "scopeSpans": [
                    {
                        "spans": [
                            {
                                "traceId": "5B8EFFF798038103D269B633813FC60C",
                                "spanId": "EEE19B7EC3C1B174",
                                "name": "I'm a server span",
                                "startTimeUnixNano": "1544712660000000000",
                                "kind": 2,
                                "notInTheProtocol": True,
                            }
                        ]
                    }
                ]
            }
        ]
    }
    async with http.post("/v1/traces", json=document) as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
        assert await answer.json() == {}
    [payload] = sink.payloads("traces")
    span = ExportTraceServiceRequest.FromString(payload).resource_spans[0].scope_spans[0].spans[0]
    assert span.trace_id.hex() == "5b8efff798038103d269b633813fc60c"
    assert (span.name, span.kind, span.start_time_unix_nano) == (
        "I'm a server span",
        2,
        1544712660000000000,
    )
    for bad in ("{", "[]", '{"resourceSpans": 1}', '{"resourceSpans":[{"scopeSpans":7}]}'):
        async with http.post(
            "/v1/traces", data=bad, headers={"Content-Type": "application/json"}
        ) as answer:
            assert answer.status == 400
            assert (await answer.json())["code"] == GRPC_CODES["INVALID_ARGUMENT"]
    sink.behave(Behaviour(reject=1, message="one is enough"))
    async with http.post("/v1/traces", json=document) as answer:
        assert await answer.json() == {
            "partialSuccess": {"rejectedSpans": "1", "errorMessage": "one is enough"}
        }


async def test_malformed_and_unsupported_bodies_are_refused_and_are_no_items(
    sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, spans(1)[:-1])
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    async with http.post("/v1/traces", data=spans(1)[:-1], headers=PROTOBUF) as answer:
        assert answer.status == 400
    async with http.post("/v1/traces", data=b"hello", headers={"Content-Type": "text/plain"}) as a:
        assert a.status == 415
    async with http.post("/v1/nothing", data=b"", headers=PROTOBUF) as answer:
        assert answer.status == 404
    assert sink.invalid == 2
    assert sink.requests("traces") == 0


@pytest.mark.parametrize("code", [code for code in GRPC_CODES if code != "OK"])
async def test_every_status_with_retry_info(
    code: str, sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    sink.behave(Behaviour(code=code, retry_after=1.5, message="not now"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, spans(1))
    assert caught.value.code().name == code
    details = dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    over_grpc = status_pb2.Status.FromString(details)
    async with http.post("/v1/traces", data=spans(1), headers=PROTOBUF) as answer:
        assert answer.status == http_status_of(code)
        assert answer.headers["Retry-After"] == "2"
        over_http = status_pb2.Status.FromString(await answer.read())
    assert over_grpc == over_http
    assert (over_grpc.code, over_grpc.message) == (GRPC_CODES[code], "not now")
    retry_info = error_details_pb2.RetryInfo()
    assert over_grpc.details[0].Unpack(retry_info)
    assert retry_info.retry_delay.ToMilliseconds() == 1500
    counts = sink.counts["traces"]
    assert (counts.items, counts.accepted_items) == (2, 0)
    assert dict(counts.answers) == {code: 1, str(http_status_of(code)): 1}


async def test_failure_without_retry_info_has_no_details(
    sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    sink.behave(Behaviour(code="UNAVAILABLE"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, spans(1))
    assert "grpc-status-details-bin" not in dict(caught.value.trailing_metadata() or ())
    async with http.post("/v1/traces", data=spans(1), headers=PROTOBUF) as answer:
        assert "Retry-After" not in answer.headers


async def test_partial_success_rejects_at_most_what_there_is(
    sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    sink.behave(Behaviour(reject=3, message="too blue"))
    response = ExportTraceServiceResponse.FromString(await call(channel, spans(5)))
    assert response.partial_success.rejected_spans == 3
    assert response.partial_success.error_message == "too blue"
    async with http.post("/v1/traces", data=spans(2), headers=PROTOBUF) as answer:
        response = ExportTraceServiceResponse.FromString(await answer.read())
    assert response.partial_success.rejected_spans == 2
    counts = sink.counts["traces"]
    assert (counts.items, counts.accepted_items, counts.rejected_items) == (7, 2, 5)


async def test_behaviour_by_signal_by_request_and_scripted(
    sink: Sink, channel: grpc.aio.Channel
) -> None:
    sink.behave(Behaviour(code="UNIMPLEMENTED"), signals=["logs"])
    await call(channel, three_items(METRICS), METRICS)
    with pytest.raises(grpc.aio.AioRpcError):
        await call(channel, three_items(LOGS), LOGS)

    def no_big_ones(received: Received) -> Behaviour:
        return Behaviour(code="RESOURCE_EXHAUSTED" if received.items > 10 else "OK")

    sink.behave(no_big_ones)
    await call(channel, three_items(LOGS), LOGS)
    await call(channel, spans(10))
    with pytest.raises(grpc.aio.AioRpcError):
        await call(channel, spans(11))
    sink.script(Behaviour(code="ABORTED"), Behaviour())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, spans(1))
    assert caught.value.code() == grpc.StatusCode.ABORTED
    assert sink.scripted == 1
    await call(channel, spans(11))
    assert sink.scripted == 0
    with pytest.raises(ValueError, match="spans"):
        sink.behave(signals=["spans"])


async def test_a_hung_request_ends_with_its_client_and_is_counted(
    sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    sink.behave(Behaviour(hang=True))
    waiting = [
        asyncio.create_task(call(channel, spans(1))),
        asyncio.create_task(http.post("/v1/traces", data=spans(1), headers=PROTOBUF).__aenter__()),
    ]
    await sink.wait_for(lambda: sink.items("traces") == 2)
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert [each.answer for each in sink.received] == [HUNG, HUNG]


async def test_stop_cuts_hung_requests_and_refuses_until_start_on_the_same_ports(
    sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    sink.behave(Behaviour(hang=True))
    waiting = [
        asyncio.create_task(call(channel, spans(1))),
        asyncio.create_task(http.post("/v1/traces", data=spans(1), headers=PROTOBUF).__aenter__()),
    ]
    await sink.wait_for(lambda: sink.items("traces") == 2)
    endpoints = sink.addresses
    await sink.stop()
    assert not sink.listening
    broken = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(broken[0], grpc.aio.AioRpcError)
    assert isinstance(broken[1], aiohttp.ClientError)
    for endpoint in (sink.grpc_endpoint, sink.http_endpoint):
        host, _, port = endpoint.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
    sink.behave()
    for _ in range(3):
        await sink.start()
        assert sink.addresses == endpoints
        await call(channel, spans(1), wait=True)
        async with http.post("/v1/traces", data=spans(1), headers=PROTOBUF) as answer:
            assert answer.status == 200
        await sink.stop()
    assert sink.accepted_items("traces") == 6


async def test_a_sink_may_begin_closed_with_its_ports_already_its_own() -> None:
    async with Sink(started=False) as sink:
        assert not sink.listening
        host, _, port = sink.grpc_endpoint.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        await sink.start()
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()


async def test_move_changes_the_ports(sink: Sink) -> None:
    before = sink.addresses
    await sink.move()
    assert sink.addresses["grpc"] != before["grpc"]
    assert sink.addresses["http"] != before["http"]
    async with grpc.aio.insecure_channel(sink.grpc_endpoint) as channel:
        await call(channel, spans(1))
    async with aiohttp.ClientSession(sink.http_url) as http:
        await http.post("/v1/traces", data=spans(1), headers=PROTOBUF)
    assert sink.items("traces") == 2


async def test_close_cuts_the_connection_in_the_middle_of_the_answer(
    sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    sink.script(Behaviour(close=True))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, spans(1))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await call(channel, spans(1), wait=True)
    sink.script(Behaviour(close=True))
    with pytest.raises(aiohttp.ClientPayloadError):
        async with http.post("/v1/traces", data=spans(1), headers=PROTOBUF) as answer:
            await answer.read()
    async with http.post("/v1/traces", data=spans(1), headers=PROTOBUF) as answer:
        assert answer.status == 200


async def test_garbage_delay_and_headers(
    sink: Sink, channel: grpc.aio.Channel, http: aiohttp.ClientSession
) -> None:
    sink.behave(Behaviour(garbage=b"\xff\xff", delay=0.001))
    export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TRACES.method)
    assert await export(spans(1), metadata=(("api-key", "secret"),)) == b"\xff\xff"
    headers = PROTOBUF | {"Api-Key": "secret"}
    async with http.post("/v1/traces", data=spans(1), headers=headers) as answer:
        assert await answer.read() == b"\xff\xff"
    assert [each.headers["api-key"] for each in sink.received] == ["secret", "secret"]


async def test_requests_over_the_limit_are_refused_after_decompression_too() -> None:
    async with (
        Sink(max_message=1000) as sink,
        grpc.aio.insecure_channel(sink.grpc_endpoint) as channel,
        aiohttp.ClientSession(sink.http_url) as http,
    ):
        big = spans(100)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, big)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        async with http.post("/v1/traces", data=big, headers=PROTOBUF) as answer:
            assert answer.status == 413
        packed = gzip.compress(big)
        assert len(packed) < 1000 < len(big)
        headers = PROTOBUF | {"Content-Encoding": "gzip"}
        async with http.post("/v1/traces", data=packed, headers=headers) as answer:
            assert answer.status == 413
        await call(channel, spans(1))
        assert sink.items("traces") == 1


async def test_a_port_that_is_served_is_refused_with_its_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            await Sink(grpc=Listen(host="127.0.0.1", port=port)).__aenter__()
    async with Sink() as sink:
        port = int(sink.grpc_endpoint.rpartition(":")[2])
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            await Sink(grpc=Listen(host="127.0.0.1", port=port)).__aenter__()


async def test_localhost_listens_on_every_loopback_there_is() -> None:
    listen = Listen(host="localhost", port=0)
    async with Sink(grpc=listen, http=listen) as sink:
        for endpoints in sink.addresses.values():
            assert len({endpoint.rpartition(":")[2] for endpoint in endpoints}) == 1
        for endpoint in sink.addresses["grpc"]:
            async with grpc.aio.insecure_channel(endpoint) as channel:
                await call(channel, spans(1))
        assert sink.items("traces") == len(sink.addresses["grpc"])


async def test_unix_sockets(tmp_path: Path) -> None:
    listen = (Listen(path=str(tmp_path / "grpc.sock")), Listen(path=str(tmp_path / "http.sock")))
    async with Sink(grpc=listen[0], http=listen[1]) as sink:
        for _ in range(2):
            async with grpc.aio.insecure_channel(sink.grpc_endpoint) as channel:
                await call(channel, spans(1), wait=True)
            connector = aiohttp.UnixConnector(listen[1].path)
            async with aiohttp.ClientSession("http://sink", connector=connector) as http:
                await http.post("/v1/traces", data=spans(1), headers=PROTOBUF)
            await sink.stop()
            await sink.start()
        assert sink.items("traces") == 4
    assert list(tmp_path.iterdir()) == []


async def test_listeners_may_be_off() -> None:
    async with Sink(http=Listen()) as sink:
        assert sink.addresses["http"] == []
        with pytest.raises(RuntimeError, match="no such listener"):
            _ = sink.http_url


async def test_wait_for_says_what_arrived_when_it_gives_up(
    sink: Sink, channel: grpc.aio.Channel
) -> None:
    await call(channel, spans(3))
    with pytest.raises(TimeoutError, match=r"a fourth span.*1 requests, 3 items"):
        await sink.wait_for(lambda: sink.items("traces") == 4, timeout=0.01, what="a fourth span")
    await sink.wait_for(lambda: sink.items("traces") == 3)
    waiting = asyncio.create_task(sink.wait_for(lambda: sink.items("traces") > 3 and 1 / 0))
    await asyncio.sleep(0)
    await call(channel, spans(1))
    with pytest.raises(ZeroDivisionError):
        await waiting


async def test_the_same_seed_gives_the_same_answers() -> None:
    answers = []
    for _ in range(2):
        async with (
            Sink(seed=7, behaviour=Behaviour(code="UNAVAILABLE", probability=0.5)) as sink,
            grpc.aio.insecure_channel(sink.grpc_endpoint) as channel,
        ):
            for _ in range(20):
                await asyncio.gather(call(channel, spans(1)), return_exceptions=True)
            answers.append([each.answer for each in sink.received])
    assert answers[0] == answers[1]
    assert {"OK", "UNAVAILABLE"} == set(answers[0])


async def test_hooks_see_requests_and_recording_can_be_off() -> None:
    seen: list[int] = []
    async with (
        Sink(record=False, on_received=lambda each: seen.append(each.items)) as sink,
        grpc.aio.insecure_channel(sink.grpc_endpoint) as channel,
    ):
        await call(channel, spans(2))
        assert (seen, sink.received) == ([2], [])
