"""compose/: valid for Compose, and as its comments say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import pytest

from tests.deploy.tools import COMPOSE, ROOT, interpolate, load, program, relay_check, run

FILES = ("compose.yaml", "compose.production.yaml")
ALL = "elastic,metrics,demo"


def services(*files: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in files:
        found.update(load(COMPOSE / file)["services"])
    return found


DEVELOPMENT = services("compose.yaml")
RELAYS = ("relay", "relay-host")


@pytest.mark.parametrize("file", FILES)
def test_specification(file: str) -> None:
    # The bindings know no interpolation, and want no anchors' homes.
    model = {
        key: value
        for key, value in interpolate(load(COMPOSE / file)).items()
        if not key.startswith("x-")
    }
    parsed = compose_spec.PyCompose.from_json(json.dumps(model))
    assert set(parsed.service_names()) == set(model["services"])


def compose_loader() -> list[str] | None:
    """A program that resolves compose files as `docker compose` does, if there is one."""
    docker = shutil.which("docker")
    if docker:
        there = subprocess.run([docker, "compose", "version"], capture_output=True, check=False)
        if there.returncode == 0:
            return [docker, "compose"]
    loader = shutil.which("compose-spec")
    return [loader] if loader else None


@pytest.mark.parametrize("files", [FILES[:1], FILES])
@pytest.mark.parametrize("profiles", ["", "elastic", "metrics", ALL])
def test_docker_compose_resolves_it(files: tuple[str, ...], profiles: str) -> None:
    loader = compose_loader()
    if loader is None:
        pytest.skip("neither `docker compose` nor compose-go's `compose-spec` is installed")
    paths = [str(COMPOSE / file) for file in files]
    if "docker" in Path(loader[0]).name:
        paths = [part for path in paths for part in ("-f", path)] + ["config"]
    out = run(*loader, *paths, env={"COMPOSE_PROFILES": profiles})
    assert "otlp-relay:local" in out


def test_smallest_useful_set_starts_by_default() -> None:
    default = {name for name, service in DEVELOPMENT.items() if not service.get("profiles")}
    assert default == {"app", "relay", "relay-host", "collector", "jaeger"}
    profiles = {name: service.get("profiles") for name, service in DEVELOPMENT.items()}
    assert profiles["elasticsearch"] == profiles["kibana"] == ["elastic"]
    assert profiles["prometheus"] == profiles["grafana"] == ["metrics"]


def test_ports_are_those_people_know_and_on_loopback() -> None:
    published = {}
    for file in FILES:
        for name, service in services(file).items():
            for port in service.get("ports", []):
                address, host, inside = port.split(":")
                assert address == "127.0.0.1", f"{name}: {port} is open to the network"
                published[int(host)] = (name, int(inside))
    assert published == {
        4317: ("relay-host", 4317),
        4318: ("relay-host", 4318),
        8888: ("relay-host", 8888),
        8889: ("relay", 8888),
        8000: ("relay", 8000),
        16686: ("jaeger", 16686),
        9200: ("elasticsearch", 9200),
        5601: ("kibana", 5601),
        9090: ("prometheus", 9090),
        3000: ("grafana", 3000),
    }


def test_images_are_pinned() -> None:
    versions: dict[str, str] = {}
    for name, service in services(*reversed(FILES)).items():
        image = service.get("image", "")
        if service.get("build"):
            assert image.endswith(":local"), f"{name}: {image}"
            continue
        repository, _, tag = image.rpartition(":")
        assert re.fullmatch(r"v?\d+(\.\d+)+(-\S+)?", tag), f"{name}: {image}"
        # One version of one image, everywhere.
        assert versions.setdefault(repository, tag) == tag, f"{name}: {image}"
    assert (
        versions["docker.elastic.co/elasticsearch/elasticsearch"]
        == versions["docker.elastic.co/kibana/kibana"]
    )


def seconds(duration: str) -> int:
    assert duration.endswith("s"), duration
    return int(duration.removesuffix("s"))


@pytest.mark.parametrize("name", RELAYS)
def test_relay_has_time_to_flush_and_nothing_to_abuse(name: str) -> None:
    relay = DEVELOPMENT[name]
    effective = relay_check({key: str(value) for key, value in relay["environment"].items()})
    found = re.search(r"^\s*RELAY_SHUTDOWN_TIMEOUT\s.*?(\d+)", effective, re.MULTILINE)
    assert found, effective
    assert seconds(relay["stop_grace_period"]) * 1000 >= int(found[1]) + 3000
    assert relay["read_only"] is True
    assert relay["cap_drop"] == ["ALL"]
    assert relay["healthcheck"]["test"] == ["CMD", "otlp-relay", "healthcheck"]


def test_app_lives_in_the_relays_network_namespace() -> None:
    app = DEVELOPMENT["app"]
    assert app["network_mode"] == "service:relay"
    assert app["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://localhost:4317"
    # So it can have neither ports nor networks of its own.
    assert not {"ports", "networks"} & set(app)
    assert app["depends_on"]["relay"]["condition"] == "service_healthy"


def test_relays_need_no_collector_in_order_to_start() -> None:
    for name in RELAYS:
        assert "depends_on" not in DEVELOPMENT[name]
        endpoint = DEVELOPMENT[name]["environment"]["RELAY_EXPORTER_ENDPOINT"]
        assert endpoint == "http://otel-collector:4317"
    assert DEVELOPMENT["collector"]["networks"]["default"]["aliases"] == ["otel-collector"]
    assert "ports" not in DEVELOPMENT["collector"]


def test_every_file_that_is_mounted_or_built_exists() -> None:
    for file in FILES:
        for name, service in services(file).items():
            for volume in service.get("volumes", []):
                source = volume.split(":")[0]
                if source.startswith("."):
                    assert (COMPOSE / source).exists(), f"{file}: {name}: {volume}"
                else:
                    assert source in load(COMPOSE / file)["volumes"], f"{file}: {name}: {volume}"
            build = service.get("build")
            if build:
                context = COMPOSE / (build if isinstance(build, str) else build["context"])
                assert (context / "Dockerfile").is_file(), f"{file}: {name}"


def test_production_asks_for_passwords_and_writes_none_down() -> None:
    overlay = load(COMPOSE / "compose.production.yaml")
    elasticsearch = overlay["services"]["elasticsearch"]["environment"]
    assert elasticsearch["xpack.security.enabled"] == "true"
    assert elasticsearch["xpack.security.http.ssl.enabled"] == "true"
    assert "-Xmx" in elasticsearch["ES_JAVA_OPTS"]
    assert "replicas" in overlay["services"]["collector"]["deploy"]
    for secret in overlay["secrets"].values():
        assert secret["file"].startswith("./secrets/")
    used = {
        secret for service in overlay["services"].values() for secret in service.get("secrets", [])
    }
    assert used == set(overlay["secrets"])
    for service in overlay["services"].values():
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key:
                assert value.startswith("/run/secrets/"), key


def test_secrets_are_made_once(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets.sh"
    script.write_bytes((COMPOSE / "make-secrets.sh").read_bytes())
    run("sh", script)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").glob("*_password")}
    overlay = load(COMPOSE / "compose.production.yaml")
    assert {f"./secrets/{name}" for name in made} == {
        secret["file"] for secret in overlay["secrets"].values()
    }
    assert all(re.fullmatch(r"p[A-Za-z0-9]{31}", value) for value in made.values())
    assert len(set(made.values())) == len(made)
    run("sh", script)
    again = {path.name: path.read_text() for path in (tmp_path / "secrets").glob("*_password")}
    assert again == made
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    assert (tmp_path / "secrets" / ".gitignore").read_text() == "*\n"


def test_shell_scripts() -> None:
    shellcheck = program("shellcheck", "Debian package shellcheck")
    run(shellcheck, *COMPOSE.glob("*.sh"), ROOT / "deploy" / "collector" / "build.sh")
    for script in COMPOSE.glob("*.sh"):
        assert os.access(script, os.X_OK), script


def test_demo_app_is_pinned_with_hashes() -> None:
    wanted = {
        line.strip()
        for line in (COMPOSE / "app" / "requirements.in").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    pinned = (COMPOSE / "app" / "requirements.txt").read_text()
    found = set(re.findall(r"^([a-z0-9-]+)==\S+ \\\n    --hash=sha256:", pinned, re.MULTILINE))
    assert wanted <= found
