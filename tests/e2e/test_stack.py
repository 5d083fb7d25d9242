"""What is deployed beside the relay, run for real: Prometheus, Collector, demo app, drill.

Docker is the one part that is not there; the processes are those that the containers hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from relay.otlp import TRACES
from relay.receivers import Listen
from relay.sink import Sink
from relay.sink.ports import Hold
from tests.e2e.conftest import StartRelay
from tests.e2e.harness import (
    ROOT,
    Child,
    RelayProcess,
    clean_environment,
    numbered_request,
    numbers,
    send,
    until,
)

COMPOSE = ROOT / "compose"
RULES = ROOT / "deploy" / "prometheus"


def program(name: str, why: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on the PATH ({why})")
    return path


async def get_json(url: str) -> Any:
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        return await answer.json() if answer.status == 200 else None


@contextlib.asynccontextmanager
async def process(name: str, *argv: str | Path, **env: str) -> AsyncIterator[Child]:
    """A program that runs while the block does."""
    child = Child(name)
    try:
        await child.spawn([str(part) for part in argv], clean_environment() | env)
        yield child
    except BaseException:
        print(child.tail())
        raise
    finally:
        await child.reap()


@pytest.fixture
def ports() -> Iterator[Callable[[], str]]:
    """``host:port`` on loopback at every call; held, so that nobody else gets it meanwhile."""
    with contextlib.ExitStack() as stack:

        def port() -> str:
            hold = Hold(Listen(host="127.0.0.1"))
            stack.callback(hold.release)
            hold.listening()
            return hold.endpoint

        yield port


Ports = Callable[[], str]


# ------------------------------------------------------------------------- Prometheus


async def test_metric_names_pass_the_linter(relay: RelayProcess) -> None:
    promtool = program("promtool", "Debian package prometheus")
    async with relay.channel() as channel:
        await send(channel, TRACES, numbered_request(0, 10))
    await relay.drained()
    _, text = await relay.get("/metrics", "text/plain;version=0.0.4")
    lint = await asyncio.create_subprocess_exec(
        promtool, "check", "metrics",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await lint.communicate(text.encode())
    # The names of process_* and python_* are the client library's.
    ours = [line for line in said.decode().splitlines() if line.startswith("otlp_relay_")]
    assert not ours, "\n".join(ours)


class Prometheus:
    def __init__(self, address: str) -> None:
        self.api = f"http://{address}/api/v1"

    async def query(self, expression: str) -> dict[str, float]:
        """Value by signal."""
        url = f"{self.api}/query"
        async with (
            aiohttp.ClientSession() as client,
            client.get(url, params={"query": expression}) as answer,
        ):
            body = await answer.json()
        assert body["status"] == "success", body
        return {
            each["metric"].get("signal", ""): float(each["value"][1])
            for each in body["data"]["result"]
        }

    async def alerts(self) -> dict[str, str]:
        body = await get_json(f"{self.api}/alerts")
        return {each["labels"]["alertname"]: each["state"] for each in body["data"]["alerts"]}


def dashboard_queries() -> list[tuple[str, str]]:
    """Panel and query of every query of the dashboard, with every variable standing for all."""
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "dashboard.json").read_text())
    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name in ("job", "instance", "signal"):
                expression = expression.replace(f"${name}", ".*")
            for name in ("rate_interval", "range"):
                expression = expression.replace(f"$__{name}", "1m")
            found.append((panel["title"], expression))
    assert found
    return found


async def test_prometheus_scrapes_the_relay_and_evaluates_the_rules(
    sink: Sink, start_relay: StartRelay, tmp_path: Path, ports: Ports
) -> None:
    prometheus = program("prometheus", "Debian package prometheus")
    relay = await start_relay(RELAY_QUEUE_SIZE="50")
    config = yaml.safe_load((COMPOSE / "prometheus" / "prometheus.yaml").read_text())
    # Its own time scale, and the relay where it is; the rest is the stack's configuration.
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["rule_files"] = [str(RULES / "rules.yaml"), str(tmp_path / "alerts.yaml")]
    config["scrape_configs"] = config["scrape_configs"][:1]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [relay.admin]}]
    alerts = yaml.safe_load((RULES / "alerts.yaml").read_text())
    for rule in alerts["groups"][0]["rules"]:
        rule.pop("for", None)  # minutes
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(alerts))
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = ports()
    async with process(
        "Prometheus", prometheus, f"--config.file={tmp_path}/prometheus.yaml",
        f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address={address}",
    ) as child:  # fmt: skip
        there = Prometheus(address)

        async def scraped() -> bool:
            assert child.running, child.tail()
            with contextlib.suppress(aiohttp.ClientError):
                return bool(await there.query('up{job="otlp-relay"} == 1'))
            return False

        await until(scraped, "Prometheus has scraped the relay", child.tail)
        # The collector goes away, and more comes in than the ring holds.
        async with relay.channel() as channel:
            await send(channel, TRACES, numbered_request(0, 10))
            await sink.wait_for(lambda: sink.items("traces") == 10)
            await sink.stop()
            for first in range(10, 210, 10):
                await send(channel, TRACES, numbered_request(first, first + 10))

        async def page() -> bool:
            alerts = await there.alerts()
            return {"OtlpRelayDropping", "OtlpRelayRingFilling"} <= alerts.keys()

        await until(page, "the alerts of a full ring fire", child.tail)
        alerts = await there.alerts()
        # What did not happen raises no alarm.
        assert not {
            "OtlpRelayDown", "OtlpRelayAbsent", "OtlpRelayRejected", "OtlpRelayPoison",
            "OtlpRelayRefusingClients", "OtlpRelayUnaccounted", "OtlpRelayNoTraffic",
        } & alerts.keys()  # fmt: skip
        assert (await there.query("signal:otlp_relay_unaccounted_items:sum"))["traces"] == 0
        assert (await there.query("signal:otlp_relay_queue_fill:ratio"))["traces"] > 0.8
        await there.query("otlp_relay_build_info")
        # Every query of the dashboard is answered, and the panels have something to show. A rate
        # needs two scrapes of its series, and some appear with the first request or failure only.
        panels = dashboard_queries()
        empty: set[str] = set()

        async def shown() -> bool:
            nonlocal empty
            empty = {title for title, query in panels if not await there.query(query)}
            return empty <= {"Filtered by reason"}

        await until(shown, "the panels show something", lambda: f"empty: {empty}")


# ------------------------------------------------------------------------- the Collector


def collector_config(*, grpc: str, health: str, jaeger: str) -> dict[str, Any]:
    """compose/collector/config.yaml with addresses of this machine; nobody is Elasticsearch."""
    found: dict[str, Any] = yaml.safe_load((COMPOSE / "collector" / "config.yaml").read_text())
    found["receivers"]["otlp"]["protocols"] = {"grpc": {"endpoint": grpc}}
    found["exporters"]["otlp_grpc/jaeger"]["endpoint"] = jaeger
    found["exporters"]["otlp_grpc/elastic"]["endpoint"] = "127.0.0.1:1"
    found["extensions"]["health_check"]["endpoint"] = health
    found["service"]["telemetry"]["metrics"] = {"level": "none"}
    return found


async def test_relay_to_the_stacks_collector(sink: Sink, tmp_path: Path, ports: Ports) -> None:
    otelcol = program("otelcol", "deploy/collector/build.sh makes one")
    grpc, health = ports(), ports()
    config = collector_config(grpc=grpc, health=health, jaeger=sink.grpc_endpoint)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    # The relay first: it needs no collector in order to start.
    async with RelayProcess(f"http://{grpc}") as relay, relay.channel() as channel:
        for first in range(0, 1000, 100):
            await send(channel, TRACES, numbered_request(first, first + 100))
        async with process("otelcol", otelcol, "--config", tmp_path / "config.yaml"):
            # Jaeger's place gets everything once, though nobody listens in that of Elasticsearch.
            await sink.wait_for(lambda: sink.items("traces") >= 1000)
            scrape = await relay.drained()
    assert sorted(numbers(*sink.accepted("traces"))) == list(range(1000))
    assert scrape.value("dropped_items_total", signal="traces") == 0
    assert scrape.value("exported_items_total", signal="traces") == 1000


# ------------------------------------------------------------------------- the demo app


def demo_modules() -> None:
    for name in (
        "fastapi",
        "httpx",
        "opentelemetry.instrumentation.fastapi",
        "opentelemetry.instrumentation.httpx",
        "opentelemetry.instrumentation.logging",
        "uvicorn",
    ):
        pytest.importorskip(name, reason=f"{name}: compose/app/requirements.txt")


@contextlib.asynccontextmanager
async def demo_app(address: str, environment: Mapping[str, str]) -> AsyncIterator[str]:
    """compose/app under uvicorn, as in its container; its URL."""
    demo_modules()
    port = address.rpartition(":")[2]
    settings = {"PORT": port, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    async with process(
        "demo app", sys.executable, "-m", "uvicorn", "main:app", "--no-access-log",
        "--app-dir", COMPOSE / "app", "--host", "127.0.0.1", "--port", port, **settings,
    ) as child:  # fmt: skip

        async def healthy() -> bool:
            assert child.running, child.tail()
            with contextlib.suppress(aiohttp.ClientError):
                return await get_json(f"http://{address}/health") is not None
            return False

        await until(healthy, "the demo app answers", child.tail)
        yield f"http://{address}"
        # Orderly, as Docker stops it: it flushes.
        child.terminate()
        await child.exit_code()


def compose_environment(service: str) -> dict[str, str]:
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return {key: str(value) for key, value in services[service]["environment"].items()}


async def test_demo_app_through_the_relay(sink: Sink, relay: RelayProcess, ports: Ports) -> None:
    environment = compose_environment("app") | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{relay.grpc}",
        "DEMO_REQUESTS_PER_SECOND": "0",
    }
    async with demo_app(ports(), environment) as url, aiohttp.ClientSession() as client:
        async with client.get(f"{url}/orders/7") as answer:
            assert (await answer.json()) == {"order": 7, "paid": True}
        async with client.get(f"{url}/stream?chunks=3") as answer:
            assert [json.loads(line)["chunk"] async for line in answer.content] == [0, 1, 2]
    await relay.drained()
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (  # noqa: PLC0415 - slow
        ExportTraceServiceRequest,
    )

    names: list[str] = []
    for payload in sink.accepted("traces"):
        for resource in ExportTraceServiceRequest.FromString(payload).resource_spans:
            [service] = [
                attribute.value.string_value
                for attribute in resource.resource.attributes
                if attribute.key == "service.name"
            ]
            assert service == "demo-app"
            names += [span.name for scope in resource.scope_spans for span in scope.spans]
    # Whole requests, without the health checks and without ASGI's event spans.
    assert sorted(names) == sorted([
        "GET /orders/{number}", "SELECT orders", "authorize payment",
        "GET /stream", "make chunk", "make chunk", "make chunk",
    ])  # fmt: skip
    assert sink.items("logs") >= 1
    assert sink.items("metrics") >= 1


async def test_unix_socket_as_in_the_manifest(sink: Sink, tmp_path: Path, ports: Ports) -> None:
    manifest = yaml.safe_load(
        (ROOT / "deploy" / "kubernetes" / "unix-socket" / "deployment.yaml").read_text()
    )
    pod = manifest["spec"]["template"]["spec"]

    def of(container: Mapping[str, Any]) -> dict[str, str]:
        found = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
        return {
            name: value.replace("/run/otlp-relay", str(tmp_path)) for name, value in found.items()
        }

    relay_settings = of(pod["initContainers"][0]) | {
        "RELAY_ADMIN_LISTEN": "127.0.0.1:0",
        "RELAY_RESOURCE_ATTRIBUTES": "k8s.pod.name=demo-app-1",
        "RELAY_EXPORTER_ENDPOINT": f"http://{sink.grpc_endpoint}",
    }
    async with RelayProcess("", relay_settings) as relay:
        assert (tmp_path / "otlp.sock").stat().st_mode & 0o777 == 0o660
        async with (
            demo_app(ports(), of(pod["containers"][0])) as url,
            aiohttp.ClientSession() as client,
            client.get(f"{url}/") as answer,
        ):
            assert answer.status == 200
        await relay.drained()
        assert await relay.stop() == 0
    assert sink.accepted_items("traces") == 1
    assert b"demo-app-1" in b"".join(sink.accepted("traces"))


# ------------------------------------------------------------------------- the drill

DOCKER = """\
#!/bin/sh
# Stands in for `docker compose`: tells the test what was asked, and waits until it is done.
echo "$*" >"{folder}/asked.new" && mv "{folder}/asked.new" "{folder}/asked"
while [ -e "{folder}/asked" ]; do sleep 0.05; done
"""


async def compose_stand_in(folder: Path, sink: Sink, seen: list[str]) -> None:
    while True:
        asked = folder / "asked"
        if asked.exists():
            words = asked.read_text().strip()
            seen.append(words)
            if words == "stop collector":
                await sink.stop()
            elif words == "start collector":
                await sink.start()
            else:
                raise AssertionError(f"the drill asked for {words!r}")
            asked.unlink()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(("spans", "lost"), [(300, 0), (900, 388)])
async def test_outage_drill(
    sink: Sink, start_relay: StartRelay, tmp_path: Path, ports: Ports, spans: int, lost: int
) -> None:
    program("curl", "Debian package curl")
    program("awk", "Debian package mawk or gawk")
    relay = await start_relay(RELAY_QUEUE_SIZE="512", RELAY_BATCH_SIZE="128")
    stand_in = tmp_path / "docker-compose"
    stand_in.write_text(DOCKER.format(folder=tmp_path))
    stand_in.chmod(0o755)
    seen: list[str] = []
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{relay.grpc}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    async with demo_app(ports(), environment) as url:
        docker = asyncio.create_task(compose_stand_in(tmp_path, sink, seen))
        try:
            async with process(
                "drill", COMPOSE / "drill.sh",
                SPANS=str(spans), COMPOSE=str(stand_in), APP=url, RELAY=f"http://{relay.admin}",
                PAUSE="0.1", RECOVERY="30", PATH=os.environ["PATH"],
            ) as drill:  # fmt: skip
                code = await drill.exit_code()
        finally:
            docker.cancel()
            await asyncio.gather(docker, return_exceptions=True)
    said = "\n".join(drill.output)
    assert code == 0, said
    assert seen == ["stop collector", "start collector"]
    assert "Every span is accounted for" in said
    assert " DOWN " in said
    if lost:
        assert f"dropped {lost}," in said
        assert f"queue_full       {lost}" in said
    else:
        assert "Nothing was lost" in said
    await relay.drained()
    scrape = await relay.identity()
    assert scrape.value("dropped_items_total", signal="traces", reason="queue_full") == lost
