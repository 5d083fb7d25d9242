"""compose/collector/: what the Collector itself says of its configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import COMPOSE, DEPLOY, OTELCOL_WHY, load, program, run

CONFIGS = COMPOSE / "collector"
# Options of the Elasticsearch exporter that are used, from its README; the newer of the two
# binaries that validate has no such exporter.
ELASTICSEARCH = {
    "endpoints", "traces_index", "metrics_index", "logs_index", "user", "password", "tls",
}  # fmt: skip


def test_configuration() -> None:
    otelcol = program("otelcol", OTELCOL_WHY)
    run(otelcol, "validate", "--config", CONFIGS / "config.yaml")


@pytest.mark.parametrize("overlay", [False, True])
def test_elastic_configuration_as_it_stands(tmp_path: Path, overlay: bool) -> None:
    # An older release, but with the exporter itself: option names and values are checked by it.
    otelcol = program("otelcol-elastic", "deploy/collector/build.sh '' elastic.yaml makes one")
    arguments = ["--config", str(CONFIGS / "elastic.yaml")]
    if overlay:
        secret = tmp_path / "password"
        secret.write_text("secret")
        production = (CONFIGS / "elastic.production.yaml").read_text()
        named = "/run/secrets/elastic_collector_password"
        assert named in production
        (tmp_path / "production.yaml").write_text(production.replace(named, str(secret)))
        arguments += ["--config", str(tmp_path / "production.yaml")]
    run(otelcol, "validate", *arguments)
    wrong = (CONFIGS / "elastic.yaml").read_text().replace("traces_index:", "trace_index:")
    (tmp_path / "wrong.yaml").write_text(wrong)
    with pytest.raises(AssertionError, match="trace_index"):
        run(otelcol, "validate", "--config", tmp_path / "wrong.yaml")


@pytest.mark.parametrize("overlay", [False, True])
def test_elastic_configuration(tmp_path: Path, overlay: bool) -> None:
    otelcol = program("otelcol", OTELCOL_WHY)
    files = ["elastic.yaml", "elastic.production.yaml"] if overlay else ["elastic.yaml"]
    arguments = []
    for name in files:
        config = load(CONFIGS / name)
        exporter = config["exporters"].pop("elasticsearch")
        assert set(exporter) <= ELASTICSEARCH
        assert not config["exporters"]
        # Something else in its place, so that all the rest is looked at.
        config["exporters"] = {"otlp_http/elasticsearch": {"endpoint": exporter["endpoints"][0]}}
        for pipeline in config.get("service", {}).get("pipelines", {}).values():
            assert pipeline["exporters"] == ["elasticsearch"]
            pipeline["exporters"] = ["otlp_http/elasticsearch"]
        (tmp_path / name).write_text(yaml.safe_dump(config))
        arguments += ["--config", str(tmp_path / name)]
    run(otelcol, "validate", *arguments)


def test_a_fault_is_found(tmp_path: Path) -> None:
    otelcol = program("otelcol", OTELCOL_WHY)
    text = (CONFIGS / "config.yaml").read_text().replace("limit_percentage:", "limit_percent:")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(AssertionError, match="limit_percent"):
        run(otelcol, "validate", "--config", tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["config.yaml", "elastic.yaml"])
def test_memory_limiter_comes_first(name: str) -> None:
    pipelines = load(CONFIGS / name)["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics", "logs"}
    for pipeline in pipelines.values():
        assert pipeline["processors"][0] == "memory_limiter"


def test_traces_go_to_jaeger_and_to_elasticsearch() -> None:
    config = load(CONFIGS / "config.yaml")
    assert config["service"]["pipelines"]["traces"]["exporters"] == [
        "otlp_grpc/jaeger",
        "otlp_grpc/elastic",
    ]
    services = load(COMPOSE / "compose.yaml")["services"]
    for exporter in config["service"]["pipelines"]["traces"]["exporters"]:
        host, _, port = config["exporters"][exporter]["endpoint"].partition(":")
        assert host in services
        assert port == "4317"
    indices = load(CONFIGS / "elastic.yaml")["exporters"]["elasticsearch"]
    assert [indices[f"{signal}_index"] for signal in ("traces", "metrics", "logs")] == [
        "otel-traces",
        "otel-metrics",
        "otel-logs",
    ]


@pytest.mark.parametrize("name", ["builder.yaml", "elastic.yaml"])
def test_builder_takes_the_components_of_one_release(name: str) -> None:
    manifest = load(DEPLOY / "collector" / name)
    version = manifest["dist"]["version"]
    components = [
        entry["gomod"]
        for kind in ("receivers", "processors", "exporters", "extensions")
        for entry in manifest[kind]
    ]
    assert components
    assert {component.split()[1] for component in components} == {f"v{version}"}
    # Providers are of the stable modules: 1.N.0 belongs to 0.(N + 94).0.
    minor = int(re.findall(r"^0\.(\d+)\.", version)[0])
    assert {entry["gomod"].split()[1] for entry in manifest["providers"]} == {f"v1.{minor - 94}.0"}
