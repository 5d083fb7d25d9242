"""deploy/kubernetes/: valid for Kubernetes, and fitting the relay."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]  # has no types
import pytest

from relay.config import load as settings
from tests.deploy.tools import COMPOSE, DEPLOY, ROOT, load, relay_check

MANIFESTS = DEPLOY / "kubernetes"
DEPLOYMENTS = ("deployment.yaml", "unix-socket/deployment.yaml")
# Native sidecars are on by default from 1.29; then the newest that the validator knows.
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def names_in(container: dict[str, Any]) -> dict[str, str]:
    """The environment, with stand-ins for what the kubelet fills in."""
    found: dict[str, str] = {}
    for entry in container["env"]:
        value = entry.get("value", f"the-{entry['name'].lower()}")
        found[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda m: found[m[1]], value)
    return found


def spec_of(name: str) -> dict[str, Any]:
    spec = load(MANIFESTS / name)["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def relay_of(name: str) -> dict[str, Any]:
    [relay] = spec_of(name)["initContainers"]
    assert isinstance(relay, dict)
    return relay


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(load(MANIFESTS / name), version, strict=True)


def test_a_fault_is_found() -> None:
    manifest = load(MANIFESTS / "deployment.yaml")
    manifest["spec"]["template"]["spec"]["initContainers"][0]["restartPolicies"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_native_sidecar(name: str) -> None:
    relay = relay_of(name)
    assert relay["restartPolicy"] == "Always"
    port = {port["name"]: port["containerPort"] for port in relay["ports"]}
    assert port == {"relay-admin": 8888}
    paths = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert relay[probe]["httpGet"]["port"] == "relay-admin"
        paths[probe] = relay[probe]["httpGet"]["path"]
    assert paths == {
        "startupProbe": "/readyz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    admin = (ROOT / "relay" / "admin.py").read_text()
    for path in paths.values():
        assert f'"{path}"' in admin, f"the admin listener serves no {path}"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_restricted(name: str) -> None:
    # Kubernetes, "Pod Security Standards", restricted; and a root that cannot be written.
    for container in [relay_of(name), *spec_of(name)["containers"]]:
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


MIB = 2**20


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_resources_are_what_was_measured(name: str) -> None:
    resources = relay_of(name)["resources"]
    assert resources["requests"] == {"cpu": "50m", "memory": "64Mi"}
    # The columns of "CPU per span", docs/performance.md: CPU seconds per million spans.
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (ROOT / "docs" / "performance.md").read_text().splitlines()
        if line.startswith("|")
    ]
    head = next(row for row in rows if row[:2] == ["receiver", "spans a request"])
    [cost] = [
        float(row[head.index("relay-defaults")])
        for row in rows[rows.index(head) :]
        if row[:2] == ["gRPC", "100"] and len(row) == len(head)
    ]
    assert 0.05 / (100 * cost / 1e6) > 50
    # docs/security.md, "Memory": three signals, their rings full, exports under way.
    assert " 60 MiB " in (ROOT / "docs" / "security.md").read_text()
    config = settings({}, {}).config
    assert config is not None
    defaults = config.pipelines["traces"]
    ring = defaults.queue_max_bytes
    exports = 3 * defaults.max_concurrent_exports * defaults.export_max_bytes
    limit = int(resources["limits"]["memory"].removesuffix("Mi"))
    assert 60 + 3 * (ring + exports) / MIB <= limit
    unit = (DEPLOY / "systemd" / "otlp-relay.service").read_text()
    assert f"MemoryMax={limit}M" in unit
    assert "\nMemoryHigh=" not in unit
    compose = load(COMPOSE / "compose.yaml")["services"]
    assert compose["relay"]["mem_limit"] == f"{limit}m"


def test_user_is_that_of_the_image() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    found = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    assert found
    for name in DEPLOYMENTS:
        context = relay_of(name)["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (int(found[1]), int(found[2]))


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_relay_accepts_its_environment(name: str) -> None:
    effective = relay_check(names_in(relay_of(name)))
    assert "otel-collector.observability.svc.cluster.local" in effective
    found = re.search(r"^\s*RELAY_SHUTDOWN_TIMEOUT\s.*?(\d+)", effective, re.MULTILINE)
    assert found
    # The app's share and a margin beside it.
    assert spec_of(name)["terminationGracePeriodSeconds"] >= int(found[1]) / 1000 + 30


def test_unix_socket_is_shared() -> None:
    name = "unix-socket/deployment.yaml"
    spec, relay = spec_of(name), relay_of(name)
    [app] = spec["containers"]
    address = names_in(relay)["RELAY_GRPC_LISTEN"]
    assert names_in(app)["OTEL_EXPORTER_OTLP_ENDPOINT"] == address
    folder = str(Path(address.removeprefix("unix:")).parent)
    [volume] = spec["volumes"]
    assert "emptyDir" in volume
    for container in (relay, app):
        [mount] = container["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], folder)
        assert not mount.get("readOnly")
    # Another user may write to the socket because it is of the same group.
    assert spec["securityContext"]["fsGroup"] == relay["securityContext"]["runAsGroup"]
    assert names_in(relay)["RELAY_SOCKET_MODE"] == "0660"


def test_both_variants_differ_in_the_socket_only() -> None:
    plain, unix = (relay_of(name) for name in DEPLOYMENTS)
    for key in set(plain) - {"env"}:
        assert plain[key] == unix[key], key
    for name in DEPLOYMENTS:
        kustomization = load((MANIFESTS / name).parent / "kustomization.yaml")
        for resource in kustomization["resources"]:
            assert ((MANIFESTS / name).parent / resource).is_file()
        images = {entry["name"] for entry in kustomization["images"]}
        assert relay_of(name)["image"].rpartition(":")[0] in images


# The fields of a PodMonitor that are used, as the Prometheus Operator documents them (API
# reference, monitoring.coreos.com/v1). Anything beside them is a slip: an unknown field is dropped
# without a word.
_NAME = {"type": "string", "minLength": 1}
_DURATION = {"type": "string", "pattern": r"^(0|(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)$"}
_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


POD_MONITOR = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PodMonitor"},
    metadata=_object(["name"], name=_NAME, labels=_LABELS),
    spec=_object(
        ["selector", "podMetricsEndpoints"],
        namespaceSelector=_object([], any={"type": "boolean"}, matchNames={"type": "array"}),
        selector=_object(["matchLabels"], matchLabels=_LABELS),
        podTargetLabels={"type": "array", "items": _NAME},
        podMetricsEndpoints={
            "type": "array",
            "items": _object(
                ["port"],
                port=_NAME,
                path={"type": "string", "pattern": "^/"},
                interval=_DURATION,
                scrapeTimeout=_DURATION,
                filterRunning={"type": "boolean"},
                relabelings={
                    "type": "array",
                    "items": _object(
                        ["targetLabel"],
                        action={"enum": ["replace"]},
                        sourceLabels={"type": "array", "items": _NAME},
                        separator={"type": "string"},
                        targetLabel=_NAME,
                        replacement={"type": "string"},
                    ),
                },
            ),
        },
    ),
)


def test_pod_monitor() -> None:
    monitor = load(MANIFESTS / "podmonitor.yaml")
    jsonschema.validate(monitor, POD_MONITOR)
    labels = monitor["spec"]["selector"]["matchLabels"].items()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    for name in DEPLOYMENTS:
        template = load(MANIFESTS / name)["spec"]["template"]
        assert labels <= template["metadata"]["labels"].items()
        assert endpoint["port"] in {port["name"] for port in relay_of(name)["ports"]}
    # The name by which rules and dashboard know relays; compose's Prometheus uses it too.
    [job] = [r["replacement"] for r in endpoint["relabelings"] if r["targetLabel"] == "job"]
    jobs = load(COMPOSE / "prometheus" / "prometheus.yaml")["scrape_configs"]
    assert job == "otlp-relay" == jobs[0]["job_name"]
