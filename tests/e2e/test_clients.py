"""The SDK for Node through the relay, over gRPC, HTTP protobuf and HTTP JSON.

The application (node/client.mjs) exports everything twice: straight to a sink, and to the relay,
behind which is another sink, or Rotel in front of it. The same spans, metrics and log records must
come out at both ends; JSON to the relay is held against protobuf to the sink. The Python SDK has
tests of its own (test_sdk.py).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.otlp import LOGS, METRICS, TRACES, SignalSchema
from relay.sink import Sink
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import (
    DEADLINE,
    Child,
    Item,
    RelayProcess,
    RotelProcess,
    clean_environment,
    items_of,
    message_class,
)

NODE = Path(__file__).with_name("node")
LOCK = NODE / "package-lock.json"
STAMP = NODE / "node_modules" / ".installed"
SIGNALS = (TRACES, METRICS, LOGS)
SPANS, LOG_RECORDS = 700, 300
INSTALLING = 300.0
"""Seconds that npm may take, once, to fetch some 60 packages."""


def missing() -> str:
    """Why the SDK for Node cannot be had on this machine; empty where it can."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"there is no {program} on this machine"
    version = subprocess.run(
        ["node", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not ((18, 19) <= numbers < (19, 0) or numbers >= (20, 6)):
        return f"the SDK needs Node 18.19 or 20.6, this is {version}"
    return ""


MISSING = missing()
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.timeout(INSTALLING + 3 * DEADLINE),
]


@pytest.fixture(scope="session")
def node() -> Path:
    """The folder of the application, its packages installed as the lock file pins them."""
    if not STAMP.exists() or STAMP.read_bytes() != LOCK.read_bytes():
        subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=NODE,
            check=True,
            timeout=INSTALLING,
        )
        STAMP.write_bytes(LOCK.read_bytes())
    return NODE


def test_the_lock_file_names_no_host() -> None:
    lock = json.loads(LOCK.read_text(encoding="utf-8"))
    for name, package in lock["packages"].items():
        assert "resolved" not in package, name
        assert not name or package["integrity"].startswith("sha512-"), name


@pytest.fixture
async def direct() -> AsyncIterator[Sink]:
    """The sink to which the application exports without a relay."""
    async with Sink(seed=2) as sink:
        yield sink


def urls(protocol: str, grpc: str, http: str) -> dict[str, str]:
    if protocol == "grpc":
        return dict.fromkeys(("traces", "metrics", "logs"), f"http://{grpc}")
    return {name: f"{http}/v1/{name}" for name in ("traces", "metrics", "logs")}


async def run(
    node: Path, protocol: str, direct: Sink, relay: RelayProcess, *, compression: str = "none"
) -> None:
    """Let the application export everything to both ends."""
    options = {
        "protocol": protocol,
        "compression": compression,
        "direct": urls(protocol, direct.grpc_endpoint, direct.http_url),
        "relay": urls(protocol, relay.grpc, f"http://{relay.http}"),
    }
    application = Child("node")
    try:
        await application.spawn(
            ["node", "client.mjs", json.dumps(options)], clean_environment(), node
        )
        line = await application.line(lambda text: text.startswith("{"), "the outcomes")
        outcomes = json.loads(line)
        assert outcomes["failures"] == []
        assert outcomes["exports"] >= 2 * len(SIGNALS)
        assert await application.exit_code() == 0
    finally:
        await application.reap()


async def compare(direct: Sink, sink: Sink) -> None:
    """Wait until as much has arrived behind the relay; then it must be the same."""
    for signal in SIGNALS:
        wanted = items_of(signal, *direct.payloads(signal.name))
        assert wanted.total() == {TRACES: SPANS, METRICS: 5, LOGS: LOG_RECORDS}[signal]
        found = await arrived(sink, signal, wanted.total())
        assert found == wanted
    spans = {span.name: span for span in spans_of(*sink.payloads("traces"))}
    check_span(spans["span 9"], spans["span 8"])


async def arrived(sink: Sink, signal: SignalSchema, units: int) -> Counter[Item]:
    await sink.wait_for(
        lambda: sum(each.units for each in sink.received if each.signal is signal) >= units,
        what=f"{units} units of {signal.name}",
    )
    return items_of(signal, *sink.payloads(signal.name))


def spans_of(*payloads: bytes) -> list[Any]:
    request: Any = message_class(TRACES.request)
    return [
        span
        for payload in payloads
        for resource in request.FromString(payload).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def check_span(span: Any, previous: Any) -> None:
    """Some facts that the application states, so that two equal wrongs are not taken for right."""
    assert (len(span.trace_id), len(span.span_id)) == (16, 8)
    assert span.trace_id == previous.trace_id
    assert span.parent_span_id == previous.span_id == span.links[0].span_id
    assert span.kind == 5
    assert span.status.code == 2
    assert span.status.message == "no"
    assert [event.name for event in span.events] == ["happened"]
    assert span.end_time_unix_nano >= span.start_time_unix_nano > 1_700_000_000_000_000_000
    values = {each.key: each.value for each in span.attributes}
    assert values["number"].int_value == 9
    assert values["text"].string_value == 'grüße "日本" 🎈 \\ \n'
    assert values["empty"].string_value == ""
    assert values["empty"].WhichOneof("value") == "string_value"
    assert values["ratio"].double_value == 9 / 7
    assert values["large"].int_value == 2**53 - 1
    assert values["flag"].bool_value is False
    assert values["flag"].WhichOneof("value") == "bool_value"
    assert [each.string_value for each in values["strings"].array_value.values] == ["a", ""]
    assert values["cut inside a character"].string_value == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("outbound", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("inbound", ["grpc", "proto", "json"])
async def test_node_to_sink(
    inbound: str, outbound: str, node: Path, direct: Sink, sink: Sink, start_relay: StartRelay
) -> None:
    collector = f"http://{sink.grpc_endpoint}" if outbound == "grpc" else sink.http_url
    relay = await start_relay(collector, OTEL_EXPORTER_OTLP_PROTOCOL=outbound)
    await run(node, inbound, direct, relay)
    await compare(direct, sink)
    scrape = await relay.drained()
    transport = "grpc" if inbound == "grpc" else "http"
    for signal in SIGNALS:
        items = sink.items(signal.name)
        assert items
        assert (
            scrape.value("received_items_total", signal=signal.name, transport=transport) == items
        )
    assert await relay.stop() == 0


@pytest.mark.parametrize("outbound", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("inbound", ["grpc", "proto", "json"])
async def test_node_to_rotel(
    inbound: str,
    outbound: str,
    node: Path,
    direct: Sink,
    sink: Sink,
    rotel: RotelProcess,
    start_relay: StartRelay,
) -> None:
    collector = f"http://{rotel.grpc if outbound == 'grpc' else rotel.http}"
    relay = await start_relay(collector, OTEL_EXPORTER_OTLP_PROTOCOL=outbound)
    await run(node, inbound, direct, relay)
    # Rotel decodes and encodes again what it passes on to the sink; the fields are the same.
    await compare(direct, sink)
    assert await relay.stop() == 0


@pytest.mark.parametrize("inbound", ["grpc", "proto", "json"])
async def test_node_with_gzip(
    inbound: str, node: Path, direct: Sink, sink: Sink, relay: RelayProcess
) -> None:
    await run(node, inbound, direct, relay, compression="gzip")
    await compare(direct, sink)
