"""The admin listener over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay.admin import Admin
from relay.receivers import Listen

ANY = Listen("127.0.0.1", 0)
PATHS = ("/metrics", "/healthz", "/readyz", "/status.json")


class Running:
    """An admin listener with a registry of one counter, and a client."""

    def __init__(self, listen: Listen) -> None:
        self.ready = True
        self.state: Mapping[str, object] = {"now": 1.7e9, "ready": True, "signals": {}}
        registry = CollectorRegistry()
        self.counter = Counter("items", "Items.", ["signal"], registry=registry)
        self.counter.labels("traces").inc(3)
        self.admin = Admin(
            listen, registry, lambda: self.ready, lambda: self.state, socket_mode=0o600
        )
        self.bound: list[str] = []
        self.client = aiohttp.ClientSession()

    async def ask(
        self, path: str, method: str = "GET", accept: str = "*/*"
    ) -> tuple[int, str, Mapping[str, str]]:
        url = f"http://{self.bound[0]}{path}"
        async with self.client.request(method, url, headers={"Accept": accept}) as answer:
            return answer.status, await answer.text(), answer.headers


@asynccontextmanager
async def running(listen: Listen = ANY) -> AsyncIterator[Running]:
    it = Running(listen)
    try:
        it.bound = await it.admin.start()
        yield it
    finally:
        await it.client.close()
        await it.admin.stop()


@pytest.fixture
async def it() -> AsyncIterator[Running]:
    async with running() as it:
        yield it


async def test_metrics_as_text(it: Running) -> None:
    for accept in ("*/*", "", "text/plain;version=0.0.4", "text/html, nonsense;q=x"):
        status, body, headers = await it.ask("/metrics", accept=accept)
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=")
        (family,) = [family for family in parse_text(body) if family.name == "items"]
        assert [sample.value for sample in family.samples if sample.name == "items_total"] == [3]


# What Prometheus 3 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    "accept",
    ["application/openmetrics-text", "application/openmetrics-text;version=1.0.0", PROMETHEUS],
)
async def test_metrics_as_openmetrics_when_asked_for(it: Running, accept: str) -> None:
    status, body, headers = await it.ask("/metrics", accept=accept)
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=")
    assert body.endswith("# EOF\n")
    families = list(parse_openmetrics(body))  # type: ignore[no-untyped-call]  # has no types
    assert [family.name for family in families] == ["items"]


async def test_health_says_that_the_process_answers(it: Running) -> None:
    it.ready = False
    assert (await it.ask("/healthz"))[:2] == (200, "ok\n")


async def test_readiness_follows(it: Running) -> None:
    assert (await it.ask("/readyz"))[:2] == (200, "ready\n")
    it.ready = False
    status, body, _ = await it.ask("/readyz")
    assert status == 503
    assert "stopping" in body
    it.ready = True
    assert (await it.ask("/readyz"))[0] == 200


async def test_status_is_fresh_json(it: Running) -> None:
    status, body, headers = await it.ask("/status.json")
    assert status == 200
    assert json.loads(body) == it.state
    assert headers["Content-Type"].startswith("application/json")
    assert headers["Cache-Control"] == "no-store"
    it.state = {**it.state, "ready": False}
    assert json.loads((await it.ask("/status.json"))[1])["ready"] is False


@pytest.mark.parametrize("path", PATHS)
async def test_read_only(it: Running, path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, _, headers = await it.ask(path, method)
        assert status == 405
        assert set(headers["Allow"].split(",")) == {"GET", "HEAD"}
    status, body, headers = await it.ask(path, "HEAD")
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/nowhere", "/metrics/x", "/v1/traces", "/..%2fmetrics"])
async def test_unknown_paths(it: Running, path: str) -> None:
    assert (await it.ask(path))[0] == 404


async def test_nonsense_harms_nobody(it: Running) -> None:
    host, _, port = it.bound[0].rpartition(":")
    for said in (b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /metrics HTTP/1.1\r\n"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(said)
        writer.write_eof()
        answer = await reader.read()
        assert b" 200 " not in answer
        writer.close()
    assert (await it.ask("/metrics"))[0] == 200


async def test_a_failing_status_is_a_500_without_its_details(
    it: Running, caplog: pytest.LogCaptureFixture
) -> None:
    it.state = {**it.state, "a secret": object()}
    status, body, _ = await it.ask("/status.json")
    assert status == 500
    assert "secret" not in body
    assert (await it.ask("/healthz"))[0] == 200


async def test_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        admin = Admin(Listen("127.0.0.1", port), CollectorRegistry(), lambda: True, dict)
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port}: another process listens there"):
            await admin.start()
        await admin.stop()


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    async with running(Listen(path=str(path))) as it:
        assert it.bound == [f"unix:{path}"]
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        connector = aiohttp.UnixConnector(str(path))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.get("http://relay/readyz") as answer,
        ):
            assert answer.status == 200
    assert not path.exists()


async def test_the_end_waits_for_no_client(it: Running) -> None:
    # One is idle between two requests, one has asked for more than it will ever read.
    assert (await it.ask("/healthz"))[0] == 200
    it.state = {**it.state, "long": "x" * 20_000_000}
    host, _, port = it.bound[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /status.json HTTP/1.1\r\nHost: relay\r\n\r\n")
    assert await reader.readexactly(15) == b"HTTP/1.1 200 OK"
    async with asyncio.timeout(5):
        await it.admin.stop()
    writer.transport.abort()
    await it.admin.stop()
