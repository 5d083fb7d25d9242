"""deploy/prometheus/: what promtool says of the rules, and that they fit relay and runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.tools import COMPOSE, DEPLOY, PROMTOOL_WHY, ROOT, check_names, load, program, run

RULES = DEPLOY / "prometheus"
RUNBOOK = ROOT / "docs" / "runbook.md"


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in load(RULES / name)["groups"] for rule in group["rules"]]


ALERTS = rules("alerts.yaml")
RECORDED = {rule["record"]: rule["expr"] for rule in rules("rules.yaml")}


def test_check() -> None:
    promtool = program("promtool", PROMTOOL_WHY)
    run(promtool, "check", "rules", RULES / "rules.yaml", RULES / "alerts.yaml")
    run(promtool, "check", "config", "--syntax-only", COMPOSE / "prometheus" / "prometheus.yaml")


def test_alerts_fire_when_they_should() -> None:
    run(program("promtool", PROMTOOL_WHY), "test", "rules", RULES / "alerts_test.yaml")


def test_a_fault_is_found(tmp_path: Path) -> None:
    promtool = program("promtool", PROMTOOL_WHY)
    for path in RULES.glob("*.yaml"):
        text = path.read_text()
        # An outage reported too late.
        (tmp_path / path.name).write_text(
            text.replace("outage_seconds > 60", "outage_seconds > 600")
        )
    with pytest.raises(AssertionError, match="OtlpRelayOutage"):
        run(promtool, "test", "rules", tmp_path / "alerts_test.yaml")


def test_every_alert_is_tested_both_ways() -> None:
    fired: set[str] = set()
    silent: set[str] = set()
    for test in load(RULES / "alerts_test.yaml")["tests"]:
        for case in test["alert_rule_test"]:
            (fired if case.get("exp_alerts") else silent).add(case["alertname"])
    names = {alert["alert"] for alert in ALERTS}
    assert fired == names
    assert silent == names


@pytest.mark.parametrize(
    "rule", [*ALERTS, *rules("rules.yaml")], ids=lambda r: r.get("alert", r.get("record"))
)
def test_names_exist(rule: dict[str, Any]) -> None:
    check_names(rule["expr"])
    for name in re.findall(r"\w+:\w+:\w+", rule["expr"]):
        assert name in RECORDED, f"no rule records {name}"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_has_a_runbook_entry(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"page", "ticket", "info"}
    assert {"summary", "description"} <= set(alert["annotations"])
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert ROOT / path == RUNBOOK
    assert anchor == alert["alert"].lower()
    text = RUNBOOK.read_text()
    found = re.search(rf"^## {alert['alert']}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no entry for {alert['alert']}"
    for heading in ("What it means", "How to look", "What to do"):
        assert f"**{heading}.**" in found[1], f"{alert['alert']}: no {heading!r}"


def test_runbook_knows_no_other_alerts() -> None:
    entries = set(re.findall(r"^## (OtlpRelay\w+)$", RUNBOOK.read_text(), re.MULTILINE))
    assert entries == {alert["alert"] for alert in ALERTS}


def test_runbook_names_only_metrics_that_exist() -> None:
    for name in re.findall(r"`(otlp_relay_[^`]*)`", RUNBOOK.read_text()):
        check_names(name, families=True)
