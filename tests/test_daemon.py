"""The daemon in this process: what it builds, opens and closes, and what its status shows."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest

from relay import __version__
from relay.config import Loaded, load, parse_flags
from relay.daemon import Daemon
from relay.exporters.grpc import GrpcExporter
from relay.exporters.http import HttpExporter
from relay.otlp import LOGS, SIGNALS, TRACES
from relay.sink import Sink
from relay.tls import TlsError
from tests.numbered import logs, spans

OWN = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
ANYWHERE = {
    "RELAY_GRPC_LISTEN": "127.0.0.1:0",
    "RELAY_HTTP_LISTEN": "127.0.0.1:0",
    "RELAY_ADMIN_LISTEN": "127.0.0.1:0",
    "RELAY_EXPORTER_ENDPOINT": "http://127.0.0.1:9",
    "RELAY_SCHEDULE_DELAY": "10",
    "RELAY_SHUTDOWN_LINGER": "0",
    "RELAY_SHUTDOWN_TIMEOUT": "2000",
}


def loaded(**settings: str) -> Loaded:
    found = load(parse_flags([]), ANYWHERE | settings)
    assert found.config is not None, found.faults
    return found


def build(**settings: str) -> Daemon:
    found = loaded(**settings)
    assert found.config is not None
    return Daemon(found.config, found.effective)


class Running:
    """A daemon that serves."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon

    def address(self, listener: str) -> str:
        listening = self.status["listening"]
        return str(listening[listener][0])

    @property
    def status(self) -> dict[str, Any]:
        return dict(json.loads(json.dumps(self.daemon.status())))

    async def export(self, method: str = TRACES.method, payload: bytes = b"") -> bytes:
        async with grpc.aio.insecure_channel(self.address("grpc"), options=OWN) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            return await call(payload, timeout=20)


@asynccontextmanager
async def running(**settings: str) -> AsyncIterator[Running]:
    daemon = build(**settings)
    task = asyncio.create_task(daemon.run())
    try:
        async with asyncio.timeout(20):
            while not daemon.status()["ready"]:
                assert not task.done(), task.exception()
                await asyncio.sleep(0.005)
        yield Running(daemon)
        daemon.stop()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# --- what is built -------------------------------------------------------------------------------


async def test_signals_with_one_destination_share_its_connection() -> None:
    daemon = build(RELAY_EXPORTER_LOGS_ENDPOINT="http://127.0.0.1:10")
    channels = {
        name: exporter._connection
        for name, exporter in daemon._exporters.items()
        if isinstance(exporter, GrpcExporter)
    }
    assert set(channels) == {schema.name for schema in SIGNALS}
    assert channels["traces"] is channels["metrics"] is channels["profiles"]
    assert channels["logs"] is not channels["traces"]


async def test_a_signal_may_have_a_protocol_of_its_own() -> None:
    daemon = build(
        RELAY_EXPORTER_METRICS_PROTOCOL="http/protobuf",
        RELAY_EXPORTER_METRICS_ENDPOINT="http://127.0.0.1:10/v1/metrics",
    )
    kinds = {name: type(exporter) for name, exporter in daemon._exporters.items()}
    assert kinds.pop("metrics") is HttpExporter
    assert set(kinds.values()) == {GrpcExporter}
    for exporter in daemon._exporters.values():
        await exporter.close()


async def test_certificates_that_cannot_be_used_are_told_when_it_is_built(tmp_path: Path) -> None:
    nonsense = tmp_path / "ca.pem"
    nonsense.write_text("nonsense")
    config = loaded().config
    assert config is not None
    for protocol in ("grpc", "http/protobuf"):
        settings = {
            "RELAY_EXPORTER_PROTOCOL": protocol,
            "RELAY_EXPORTER_ENDPOINT": "https://127.0.0.1:9",
            "RELAY_EXPORTER_CERTIFICATE": str(nonsense),
        }
        found = load(parse_flags([]), ANYWHERE | settings)
        if found.config is None:
            assert any(str(nonsense) in str(fault) for fault in found.faults)
            continue
        with pytest.raises(TlsError, match=str(nonsense)):
            Daemon(found.config)


# --- from start to end ---------------------------------------------------------------------------


async def test_what_comes_in_goes_out_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "relay")
    async with Sink() as sink:
        async with running(RELAY_EXPORTER_ENDPOINT=f"http://{sink.grpc_endpoint}") as it:
            await it.export(payload=spans(range(5)))
            url = f"http://{it.address('http')}{LOGS.http_path}"
            headers = {"Content-Type": "application/x-protobuf"}
            async with (
                aiohttp.ClientSession() as client,
                client.post(url, data=logs(range(3)), headers=headers) as answer,
            ):
                assert answer.status == 200
            addresses = {name: it.address(name) for name in ("grpc", "http", "admin")}
        assert sink.payloads("traces") == [spans(range(5))]
        assert sink.payloads("logs") == [logs(range(3))]
    names = [getattr(record, "event", None) for record in caplog.records]
    assert names == ["started", "stopping", "stopped"]
    started, _, stopped = caplog.records
    for name, address in addresses.items():
        assert f"{name} on {address}" in started.getMessage()
    assert f"forwarding to {sink.grpc_endpoint} (grpc, plaintext)" in started.getMessage()
    assert stopped.getMessage() == (
        "stopped: traces: received 5 = exported 5 + filtered 0 + dropped 0;"
        " logs: received 3 = exported 3 + filtered 0 + dropped 0"
    )


async def test_the_line_at_the_start_tells_destinations_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "relay")
    async with running(RELAY_EXPORTER_LOGS_ENDPOINT="http://127.0.0.1:10"):
        pass
    assert (
        caplog.records[0]
        .getMessage()
        .endswith(
            "forwarding traces and metrics and profiles to 127.0.0.1:9 (grpc, plaintext),"
            " logs to 127.0.0.1:10 (grpc, plaintext)"
        )
    )


async def test_the_line_at_the_start_names_a_base_url_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "relay")
    async with running(RELAY_EXPORTER_PROTOCOL="http/protobuf"):
        pass
    text = caplog.records[0].getMessage()
    assert text.endswith("; forwarding to http://127.0.0.1:9 (http/protobuf, plaintext)")


async def test_a_faulty_file_that_all_signals_read_is_told_once(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_text("a bare token\n")
    async with running(RELAY_EXPORTER_HEADERS_FILE=str(file)):
        pass
    (warning,) = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warning.endswith("line 1: not name=value; going on without it until it can be used")


async def test_what_is_off_does_not_listen() -> None:
    off = {f"RELAY_{name}_LISTEN": "off" for name in ("HTTP", "ADMIN")}
    async with running(**off) as it:
        assert list(it.status["listening"]) == ["grpc"]
        assert await it.export() == b""


@pytest.mark.parametrize("taken", ["GRPC", "HTTP", "ADMIN"])
async def test_a_taken_port_closes_what_was_opened(tmp_path: Path, taken: str) -> None:
    paths = {name: tmp_path / f"{name}.sock" for name in ("GRPC", "HTTP", "ADMIN")}
    settings = {f"RELAY_{name}_LISTEN": f"unix:{path}" for name, path in paths.items()}
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        daemon = build(**settings | {f"RELAY_{taken}_LISTEN": address})
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            await daemon.run()
    assert list(tmp_path.iterdir()) == []
    assert daemon.status()["ready"] is False


async def test_ready_until_the_end_begins() -> None:
    async with running(RELAY_SHUTDOWN_LINGER="500") as it:
        url = f"http://{it.address('admin')}/readyz"
        async with aiohttp.ClientSession() as client:
            async with client.get(url) as answer:
                assert answer.status == 200
            it.daemon.stop(signal.SIGTERM)
            await asyncio.sleep(0)
            async with client.get(url) as answer:
                assert answer.status == 503
        # The collector is away, which is nobody's readiness; requests are still taken.
        assert await it.export(payload=b"") == b""
        it.daemon._signal = 0  # The fixture's own stop is the first then, not the second.


# --- status --------------------------------------------------------------------------------------


async def test_status_shows_the_books_the_ring_and_the_collector() -> None:
    async with Sink() as sink:
        async with running(
            RELAY_EXPORTER_ENDPOINT=f"http://{sink.grpc_endpoint}", RELAY_SCHEDULE_DELAY="60000"
        ) as it:
            before = it.status
            assert before["version"] == __version__
            assert before["ready"] is True
            assert before["started_at"] <= before["now"]
            assert list(before["signals"]) == [schema.name for schema in SIGNALS]
            await it.export(payload=spans(range(512)))
            await sink.wait_for(lambda: sink.items("traces") == 512)
            await it.export(payload=spans(range(7)))
            async with asyncio.timeout(20):
                while it.status["signals"]["traces"]["in_flight"]:
                    await asyncio.sleep(0.005)
            shown = it.status["signals"]["traces"]
        assert shown["received"] == 519
        assert shown["exported"] == 512
        assert (shown["dropped"], shown["filtered"], shown["in_flight"]) == ({}, {}, 0)
        assert shown["attempts"] == {"OK": 1}
        queue = shown["queue"]
        assert queue["items"] == 7
        assert queue["capacity_items"] == 2048
        assert 0 < queue["bytes"] < queue["capacity_bytes"]
        assert queue["oldest_age_seconds"] >= 0
        collector = shown["collector"]
        assert collector["endpoint"] == sink.grpc_endpoint
        assert collector["protocol"] == "grpc"
        assert collector["up"] is True
        assert collector["last_success"] > 1_700_000_000
        assert collector["outage_seconds"] == 0
        assert shown["errors"] == []


async def test_status_shows_an_outage() -> None:
    async with (
        Sink(started=False) as sink,
        running(RELAY_EXPORTER_ENDPOINT=f"http://{sink.grpc_endpoint}") as it,
    ):
        await it.export(payload=spans(range(3)))
        async with asyncio.timeout(20):
            while not it.status["signals"]["traces"]["errors"]:
                await asyncio.sleep(0.005)
        shown = it.status["signals"]["traces"]
        assert shown["collector"]["up"] is False
        assert shown["collector"]["last_success"] is None
        assert shown["collector"]["outage_seconds"] > 0
        (error, *_) = shown["errors"]
        assert error["code"] == "CONNECT_FAILED"
        assert "Connection refused" in error["message"]


async def test_status_holds_no_secret() -> None:
    async with running(
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20s3cret,x-api-key=k3y"
    ) as it:
        shown = json.dumps(it.status)
    assert "s3cret" not in shown
    assert "k3y" not in shown
    rows = {row["name"]: row for row in it.status["configuration"] if not row["signal"]}
    assert rows["RELAY_QUEUE_SIZE"]["value"] == "2048"
    assert rows["RELAY_SCHEDULE_DELAY"]["source"] == "RELAY_SCHEDULE_DELAY"
    assert rows["OTEL_EXPORTER_OTLP_HEADERS"]["source"] == "OTEL_EXPORTER_OTLP_HEADERS"
