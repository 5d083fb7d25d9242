"""deploy/grafana/dashboard.json: every query is PromQL about metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import COMPOSE, DEPLOY, PROMTOOL_WHY, check_names, load, program, run

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
EXPRESSIONS = [
    (panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]
] + [(entry["name"], entry["expr"]) for entry in DASHBOARD["annotations"]["list"]]


def filled_in(expression: str) -> str:
    """As Grafana sends it."""
    expression = re.sub(r"\$__(rate_interval|range|interval)\b", "5m", expression)
    return re.sub(r"\$(\w+)", lambda m: f"{VARIABLES[m[1]]['name']}.*", expression)


def test_queries(tmp_path: Path) -> None:
    promtool = program("promtool", PROMTOOL_WHY)
    rules = [
        {"record": f"test:query:n{number}", "expr": filled_in(expression)}
        for number, (_, expression) in enumerate(EXPRESSIONS)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(EXPRESSIONS)} rules found" in run(promtool, "check", "rules", path)


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_names_exist(title: str, expression: str) -> None:
    check_names(filled_in(expression))


def test_variables() -> None:
    assert list(VARIABLES) == ["datasource", "job", "instance", "signal"]
    for variable in VARIABLES.values():
        if variable["type"] == "query":
            check_names(filled_in(variable["query"]["query"]))
    for panel in PANELS:
        for target in panel["targets"]:
            assert panel["datasource"]["uid"] == target["datasource"]["uid"] == "${datasource}"
            assert "instance=~" in target["expr"], panel["title"]


def test_what_must_be_seen_is_there() -> None:
    shown = " ".join(expression for _, expression in EXPRESSIONS)
    for name in (
        "collector_up", "outage_seconds", "received_items_total", "exported_items_total",
        "filtered_items_total", "dropped_items_total", "queue_items", "queue_capacity_items",
        "queue_oldest_age_seconds", "export_duration_seconds_bucket",
        "receive_duration_seconds_bucket", "export_attempts_total", "in_flight_items",
    ):  # fmt: skip
        assert f"otlp_relay_{name}" in shown
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total"):
        assert name in shown


def test_layout() -> None:
    assert DASHBOARD["uid"] == "otlp-relay"
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_it_is_provisioned_in_the_compose_stack() -> None:
    [provider] = load(COMPOSE / "grafana/provisioning/dashboards/otlp-relay.yaml")["providers"]
    [source] = load(COMPOSE / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    volumes = load(COMPOSE / "compose.yaml")["services"]["grafana"]["volumes"]
    target = f"{provider['options']['path']}/dashboard.json"
    assert f"../deploy/grafana/dashboard.json:{target}:ro" in volumes
    assert VARIABLES["datasource"]["current"]["value"] == source["uid"]
